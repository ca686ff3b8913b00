"""Procedural stereo pairs with exact disparity and occlusion; the data a bare machine trains on.

A scene is a slanted background and 5 to 8 objects: plane patches, boxes, spheres (`surfaces`).
Everything follows from (seed, index).

Symbols: those of `surfaces`; D largest disparity px.

Source: design page data.md, section 9.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import shlex
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from stereo.data.appearance import Painter, draw_haze, expose, to_uint8
from stereo.data.encodings import BoolMap, FloatMap, Image
from stereo.data.layouts import LAYOUTS, LayoutFolder, write_annotations, write_middlebury
from stereo.data.scenes import draw_scene
from stereo.data.surfaces import BASELINE, Camera, Ids
from stereo.errors import OutputExistsError
from stereo.files import write_text
from stereo.progress import bar_when_slow, on_terminal

GENERATOR_VERSION = 1  # part of the written data's identity: raise it when any pixel changes

_MAX_DISPARITY = 255.0  # px, what every layout can hold
_MAX_PAIRS = 100_000
_IMAGES_PER_POOL = 32  # that tell depth: with one pool of textures a network learns them by heart
_MIN_SIDE, _MAX_SIDE = 16, 4096  # px
_EMBEDDED_NAME = "embedded"  # beside the layouts' names
_STEREO_HEADING = "Dataset classes that read it, as options of `automl study MODEL`:"
_MONO_HEADING = "For networks of monocular depth, the dataset class and the annotation file:"
_EXAMPLES = """\
examples:
  python -m stereo.data.generator results/data
  python -m stereo.data.generator /tmp/pairs --layout kitti fsd --pairs 200 --size 320x736
  automl study ffs --data Kitti:/tmp/pairs/kitti/kitti.txt
"""


@dataclass(frozen=True)
class GeneratedPair:
    """One rendered pair.

    Attributes:
        left: uint8 (H, W, 3) RGB.
        right: uint8 (H, W, 3) RGB.
        disparity: float32 (H, W) px, left view, known everywhere.
        right_disparity: float32 (H, W) px of the right view's own pixels.
        occluded: bool (H, W), True where the right camera does not see the left pixel.
        ids: uint8 (H, W), surface seen at each left pixel, 0 = background.
        right_ids: uint8 (H, W), the same for the right view.
        camera: the left camera.
    """

    left: Image
    right: Image
    disparity: FloatMap
    right_disparity: FloatMap
    occluded: BoolMap
    ids: Ids
    right_ids: Ids
    camera: Camera

    @property
    def depth(self) -> FloatMap:
        """Metric depth float32 (H, W) m of the left view, f B / d."""
        return np.float32(self.camera.focal * BASELINE) / self.disparity


@dataclass(frozen=True)
class EmbeddedLayout:
    """What `write_embedded` and `write_embedded_images` write; the only home of these numbers."""

    train_pairs: int = 30
    train_size: tuple[int, int] = (128, 192)  # H, W px
    train_seed: int = 1
    val_pairs: int = 16
    val_size: tuple[int, int] = (96, 128)
    val_seed: int = 2
    max_disparity: float = 32.0  # a quarter of the smaller width


EMBEDDED = EmbeddedLayout()
EMBEDDED_LARGE = EmbeddedLayout(
    train_pairs=120, train_size=(384, 768), val_size=(320, 736), max_disparity=184.0
)  # for crops of 320x736 on a GPU
# Images of one size: depth of a single image follows its field of view. Disparity up to a quarter
# of the width gives depth of 0.4 to 9 m.
EMBEDDED_IMAGES = EmbeddedLayout(
    train_pairs=320, train_size=(126, 168), val_size=(126, 168), max_disparity=42.0
)
EMBEDDED_IMAGES_LARGE = EmbeddedLayout(
    train_pairs=240, train_size=(336, 448), val_size=(336, 448), val_pairs=32, max_disparity=112.0
)


@dataclass(frozen=True)
class EmbeddedSet:
    """Annotation files of the written data; the `middlebury` ones also name the masks."""

    train: Path
    val: Path
    train_middlebury: Path
    val_middlebury: Path


def generate(
    seed: int,
    index: int,
    *,
    height: int,
    width: int,
    max_disparity: float | None = None,
    photometric: bool = True,
    depth_cues: bool = False,
) -> GeneratedPair:
    """The pair number `index` of the set `seed`; equal arguments give equal bytes.

    Args:
        seed: of the set; it also fixes the pool of textures, or pools with `depth_cues`.
        index: of the pair within the set.
        height: H in px.
        width: W in px.
        max_disparity: D in px; every disparity is below it. None = W / 4.
        photometric: give the views different exposure, blur, vignette and noise.
        depth_cues: let a single view tell depth as photos do: textures have a size in metres, so
            they shrink with distance, and haze lies over what is far. Geometry stays the same.
    """
    rng = np.random.default_rng((seed, index))
    scene = draw_scene(rng, Camera(height, width), max_disparity or width / 4)
    disparity, ids = scene.trace(right=False)
    right_disparity, right_ids = scene.trace(right=True)
    pool = (seed, index // _IMAGES_PER_POOL) if depth_cues else (seed,)
    painter = Painter(rng, len(scene.surfaces), pool)
    x, y = scene.grid
    seen = [(ids, x, disparity), (right_ids, x + right_disparity, right_disparity)]
    if depth_cues:
        haze, camera = draw_haze(rng), scene.camera
        views = [
            haze.over(painter.paint(i, *camera.on_surface(x_left, y, d)), camera.depth(d))
            for i, x_left, d in seen
        ]
    else:
        views = [painter.paint(i, x_left, y) for i, x_left, _ in seen]
    if photometric:
        views = expose(rng, views)
    left, right = (to_uint8(view) for view in views)
    return GeneratedPair(
        left=left,
        right=right,
        disparity=disparity.astype(np.float32),
        right_disparity=right_disparity.astype(np.float32),
        occluded=scene.occluded(disparity),
        ids=ids,
        right_ids=right_ids,
        camera=scene.camera,
    )


def write_embedded(directory: Path, layout: EmbeddedLayout = EMBEDDED) -> EmbeddedSet:
    """Write the embedded training and validation pairs below `directory`, once.

    Every file is written under a temporary name and has the same bytes whoever writes it, so
    several processes may call this at the same time; a killed call is finished by the next one.
    """

    def write(split: str, pairs: Iterator[GeneratedPair]) -> None:
        folder = directory / split
        written = [write_middlebury(folder / f"{i:04d}", pair) for i, pair in enumerate(pairs)]
        write_annotations(directory / f"{split}.txt", [files[:3] for files in written])
        write_annotations(directory / f"{split}_middlebury.txt", written)

    _write_once(directory, layout, write)
    return EmbeddedSet(
        train=directory / "train.txt",
        val=directory / "val.txt",
        train_middlebury=directory / "train_middlebury.txt",
        val_middlebury=directory / "val_middlebury.txt",
    )


def write_embedded_images(
    directory: Path, dataset: str, layout: EmbeddedLayout = EMBEDDED_IMAGES
) -> tuple[Path, Path]:
    """Write embedded images with the truth of a mono class below `directory`, once.

    Args:
        directory: may be that of `write_embedded`, which says what holds for this one too.
        dataset: mono class.
        layout: how many, how large.

    Returns:
        The annotation files of training and validation.
    """
    folder = directory / f"embedded_{dataset}"
    store = next(kind.write for kind in LAYOUTS.values() if dataset in kind.mono)

    def write(split: str, pairs: Iterator[GeneratedPair]) -> None:
        files = [store(folder / split, index, pair) for index, pair in enumerate(pairs)]
        write_annotations(folder / f"{split}.txt", files)

    _write_once(folder, layout, write, depth_cues=True)
    return folder / "train.txt", folder / "val.txt"


def embedded_sources(dataset: str, directory: Path, *, large: bool) -> dict[str, str]:
    """Write the embedded samples that suit a dataset class and name them as `CLASS:FILE`.

    Pairs are read as Middlebury: training and scores use the pixels that both cameras see.

    Args:
        dataset: GenericDataset for pairs, else a mono class.
        directory: the same for every class.
        large: those for a GPU.

    Returns:
        The sources of `train` and `val`.
    """
    folder = directory / "large" if large else directory
    if dataset == "GenericDataset":
        pairs = write_embedded(folder, EMBEDDED_LARGE if large else EMBEDDED)
        files = pairs.train_middlebury, pairs.val_middlebury
        dataset = "Middlebury"
    else:
        layout = EMBEDDED_IMAGES_LARGE if large else EMBEDDED_IMAGES
        files = write_embedded_images(folder, dataset, layout)
    return {name: f"{dataset}:{file}" for name, file in zip(("train", "val"), files, strict=True)}


def _write_once(
    directory: Path,
    layout: EmbeddedLayout,
    write: Callable[[str, Iterator[GeneratedPair]], None],
    *,
    depth_cues: bool = False,
) -> None:
    """Call `write(split, pairs)` for both splits unless the directory is complete."""
    marker = directory / "embedded.json"
    facts = {"generator": GENERATOR_VERSION, **asdict(layout)}
    identity = json.dumps(facts | {"depth_cues": True} if depth_cues else facts, sort_keys=True)
    if marker.is_file() and marker.read_text() == identity:
        return
    for split, seed, count, (height, width) in (
        ("train", layout.train_seed, layout.train_pairs, layout.train_size),
        ("val", layout.val_seed, layout.val_pairs, layout.val_size),
    ):
        draw = partial(generate, seed, height=height, width=width, depth_cues=depth_cues)
        write(split, (draw(index, max_disparity=layout.max_disparity) for index in range(count)))
    write_text(marker, identity)


def write_layouts(
    directory: Path,
    names: Sequence[str] = tuple(LAYOUTS),
    *,
    pairs: int,
    size: tuple[int, int],
    seed: int,
    tell: Callable[[int, int], None] | None = None,
) -> dict[str, Path]:
    """Write the same pairs in several layouts, each to a folder of its name, once.

    Args:
        directory: holds the folders of the layouts.
        names: keys of `LAYOUTS`.
        pairs: number of pairs.
        size: H, W px; a layout of fixed size keeps its own.
        seed: of the set.
        tell: called after every pair with the pairs drawn so far and in all.

    Returns:
        The annotation file of each layout.

    Raises:
        OutputExistsError: a layout's folder holds something else; nothing was written.
    """
    folders: dict[str, LayoutFolder] = {}
    unfinished: dict[tuple[int, int], list[LayoutFolder]] = {}
    for name in names:
        shape = LAYOUTS[name].size or size
        content = {"generator": GENERATOR_VERSION, "pairs": pairs, "size": [*shape], "seed": seed}
        folders[name] = LayoutFolder(directory / name, LAYOUTS[name], content)
        if not folders[name].is_complete():
            unfinished.setdefault(shape, []).append(folders[name])
    done = 0
    for (height, width), wanted in unfinished.items():
        limit = min(width / 4, _MAX_DISPARITY)
        for index in range(pairs):
            pair = generate(seed, index, height=height, width=width, max_disparity=limit)
            for folder in wanted:
                folder.add(index, pair)
            done += 1
            if tell:
                tell(done, len(unfinished) * pairs)
        for folder in wanted:
            folder.finish()
    return {name: folder.annotations for name, folder in folders.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write generated pairs with exact ground truth, in the layouts of published data sets.

    Without --layout everything is written: the embedded training and validation pairs, and each
    layout in a folder of its name with the annotation file in it. What is there is kept, and the
    same command finishes what a killed one began. It ends by printing the files with the dataset
    classes that read them.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    names: list[str] = options.layout or [_EMBEDDED_NAME, *LAYOUTS]
    stereo: list[str] = []
    try:
        if _EMBEDDED_NAME in names:
            stereo += _embedded_lines(write_embedded(options.directory))
        with _progress() as tell:
            written = write_layouts(
                options.directory,
                [name for name in dict.fromkeys(names) if name != _EMBEDDED_NAME],
                pairs=options.pairs,
                size=options.size,
                seed=options.seed,
                tell=tell,
            )
    except (OutputExistsError, OSError) as error:
        parser.exit(getattr(error, "exit_code", 1), f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: interrupted; the same command finishes the set\n")
    mono: list[str] = []
    for name, path in written.items():
        layout = LAYOUTS[name]
        stereo += [f"stereo  {_option('data', known, path)}" for known in layout.stereo]
        mono += [f"mono    {known}  {shlex.quote(str(path))}" for known in layout.mono]
    lines = [f"Written below {options.directory}."]
    lines += [_STEREO_HEADING, *stereo] if stereo else []
    lines += [_MONO_HEADING, *mono] if mono else []
    sys.stdout.write("\n".join(lines) + "\n")


def _parser() -> argparse.ArgumentParser:
    """The options; the help lists every layout with its files and classes."""
    doc = inspect.cleandoc(main.__doc__ or "")
    table = "".join(
        f"  {name:14} {layout.files}\n{'':17}"
        f"stereo: {', '.join(layout.stereo) or '-'}; mono: {', '.join(layout.mono) or '-'}\n"
        for name, layout in LAYOUTS.items()
    )
    parser = argparse.ArgumentParser(
        prog="python -m stereo.data.generator",
        description=doc,
        epilog=f"layouts, and the dataset classes that read them:\n{table}\n{_EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="folder to write below")
    for option, metavar, kind, default, meaning in (
        ("--pairs", "N", _count, "16", "in each layout"),
        ("--size", "HxW", _size, "192x256", "height and width in px"),
        ("--seed", "S", _seed, "3", "another one gives other pairs"),
    ):
        parser.add_argument(
            option,
            metavar=metavar,
            type=kind,
            default=default,
            help=f"{meaning}, default %(default)s",
        )
    parser.add_argument(
        "--layout",
        metavar="NAME",
        nargs="+",
        choices=[_EMBEDDED_NAME, *LAYOUTS],
        help="one or more of the layouts below, or `embedded`; default all",
    )
    return parser


def _count(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= _MAX_PAIRS):
        raise argparse.ArgumentTypeError(f"got '{text}', allowed 1..{_MAX_PAIRS}")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"got '{text}', allowed is a whole number from 0 on")
    return int(text)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text.lower())
    size = (int(match[1]), int(match[2])) if match else (0, 0)
    if not all(_MIN_SIDE <= side <= _MAX_SIDE for side in size):
        raise argparse.ArgumentTypeError(
            f"got '{text}', wanted height x width in px like 192x256, each {_MIN_SIDE}..{_MAX_SIDE}"
        )
    return size


@contextmanager
def _progress() -> Generator[Callable[[int, int], None]]:
    """A function to tell (done, total): a bar with the time left, or lines when in a pipe."""
    with bar_when_slow() as show:
        yield partial(show, "writing pairs") if on_terminal() else _tell_line


def _tell_line(done: int, total: int) -> None:
    """Ten lines for any total."""
    if done * 10 // total > (done - 1) * 10 // total:
        sys.stderr.write(f"{done} of {total} pairs\n")


def _embedded_lines(embedded: EmbeddedSet) -> list[str]:
    masked = _option("data", "Middlebury", embedded.train_middlebury)
    whole = _option("data", "GenericDataset", embedded.train)
    return [
        f"stereo  {masked} {_option('val', 'Middlebury', embedded.val_middlebury)}",
        f"stereo  {whole} {_option('val', 'GenericDataset', embedded.val)}",
    ]


def _option(option: str, dataset: str, annotations: Path) -> str:
    """`--data CLASS:FILE`, quoted for a shell where needed."""
    return f"--{option} {shlex.quote(f'{dataset}:{annotations}')}"


if __name__ == "__main__":
    main()
