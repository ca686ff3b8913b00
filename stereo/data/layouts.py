"""Folder layouts of published data sets: where each keeps its files, in which encoding.

A writer stores one generated pair below a layout's folder and returns the files of its annotation
line. `LAYOUTS` names the dataset classes that read the result back.

Source: design page data.md, section 9; the layouts as published with the data sets.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import cv2
import numpy as np

from stereo.data.encodings import (
    CRESTEREO_PNG,
    FSD_PNG,
    KITTI_PNG,
    OCCLUDED,
    PFM,
    PFM_TOP_DOWN,
    THREE_DVLM_NPY,
    VISIBLE,
    FloatMap,
    Image,
    MapEncoding,
    write_depth_png,
    write_pfm,
    write_png,
)
from stereo.data.surfaces import BASELINE
from stereo.errors import OutputExistsError
from stereo.files import write_bytes, write_json, write_text

if TYPE_CHECKING:
    from stereo.data.generator import GeneratedPair

Files: TypeAlias = tuple[Path, ...]  # in the order of an annotation line's columns


@dataclass(frozen=True)
class Layout:
    """One way of keeping pairs in files.

    Attributes:
        files: what a pair becomes, for people.
        write: store pair number i below a folder and return the files of its annotation line.
        stereo: the stereo classes that read it.
        mono: the mono classes that read it.
        size: H, W px where the classes read no other.
    """

    files: str
    write: Callable[[Path, int, GeneratedPair], Files]
    stereo: tuple[str, ...] = ()
    mono: tuple[str, ...] = ()
    size: tuple[int, int] | None = None


class LayoutFolder:
    """The folder of one layout while it is written; a marker in it says what it holds.

    Files are renamed into place and the annotation file comes last, so several processes may
    write the same content at once, and a killed one leaves a folder that the next call finishes.

    Args:
        path: the folder; its name is the annotation file's.
        layout: how pairs are kept.
        content: what identifies the pairs, as JSON values.
    """

    def __init__(self, path: Path, layout: Layout, content: Mapping[str, Any]) -> None:
        self.annotations = path / f"{path.name}.txt"
        self._path = path
        self._layout = layout
        self._content = dict(content)
        self._marker = path / "generated.json"
        self._written: list[Files] = []

    def is_complete(self) -> bool:
        """Whether all is there.

        Raises:
            OutputExistsError: the folder holds other pairs, or files of someone else.
        """
        if not self._path.exists() or _is_empty(self._path):
            return False
        try:
            found = json.loads(self._marker.read_text())
        except (OSError, ValueError):
            found = None
        for complete in (True, False):
            if found == {**self._content, "complete": complete}:
                return complete
        held = "files of another origin" if found is None else f"the pairs {json.dumps(found)}"
        raise OutputExistsError(
            f"{self._path}: holds {held}, asked for {json.dumps(self._content)}. "
            f"Name another directory or remove this folder"
        )

    def add(self, index: int, pair: GeneratedPair) -> None:
        """Write pair number `index`."""
        if not self._written:
            write_json(self._marker, {**self._content, "complete": False})
        self._written.append(self._layout.write(self._path, index, pair))

    def finish(self) -> None:
        """Write the annotation file and mark the folder as complete."""
        readers = [f"{name} (stereo)" for name in self._layout.stereo]
        readers += [f"{name} (mono)" for name in self._layout.mono]
        comment = f"dataset_name: {', '.join(readers)}"
        write_annotations(self.annotations, self._written, comment=comment)
        write_json(self._marker, {**self._content, "complete": True})


def write_middlebury(scene: Path, pair: GeneratedPair) -> Files:
    """Write a pair as a Middlebury scene folder: im0, im1, disp0GT, mask0nocc, calib."""
    left, right = scene / "im0.png", scene / "im1.png"
    disparity, mask = scene / "disp0GT.pfm", scene / "mask0nocc.png"
    write_png(left, pair.left)
    write_png(right, pair.right)
    write_pfm(disparity, pair.disparity)
    write_png(mask, np.where(pair.occluded, OCCLUDED, VISIBLE).astype(np.uint8))
    camera = pair.camera
    matrix = f"[{camera.focal} 0 {camera.cx}; 0 {camera.focal} {camera.cy}; 0 0 1]"
    write_text(
        scene / "calib.txt",
        f"cam0={matrix}\ncam1={matrix}\ndoffs=0\nbaseline={BASELINE * 1000}\n"
        f"width={camera.width}\nheight={camera.height}\n",
    )
    return left, right, disparity, mask


def write_annotations(path: Path, lines: Iterable[Sequence[Path]], *, comment: str = "") -> None:
    """Write an annotation file; its paths are relative to its own folder.

    Args:
        path: the annotation file.
        lines: files of each sample, in the order of the columns; none with white space below the
            annotation file's folder.
        comment: first line of the file.
    """
    text = f"# {comment}\n" if comment else ""
    for files in lines:
        text += " ".join(file.relative_to(path.parent).as_posix() for file in files) + "\n"
    write_text(path, text)


def _middlebury(folder: Path, index: int, pair: GeneratedPair) -> Files:
    return write_middlebury(folder / f"{index:04d}", pair)


def _eth3d(folder: Path, index: int, pair: GeneratedPair) -> Files:
    grey = replace(pair, left=_grey(pair.left), right=_grey(pair.right))
    return write_middlebury(folder / f"{index:04d}", grey)


def _kitti(folder: Path, index: int, pair: GeneratedPair) -> Files:
    """`disp_noc_0` holds the disparity of pixels that both cameras see."""
    roles = ("image_2", "image_3", "disp_noc_0")
    left, right, disparity = (folder / "training" / role / f"{index:06d}_10.png" for role in roles)
    visible = np.where(pair.occluded, np.float32(np.inf), pair.disparity)
    return _write_pair((left, right, disparity), pair, KITTI_PNG, visible)


def _fsd(folder: Path, index: int, pair: GeneratedPair) -> Files:
    roles = ("left/rgb", "right/rgb", "left/disparity")
    left, right, disparity = (folder / "data" / role / f"{index:04d}.png" for role in roles)
    return _write_pair((left, right, disparity), pair, FSD_PNG, pair.disparity)


def _crestereo(folder: Path, index: int, pair: GeneratedPair) -> Files:
    roles = ("left", "right", "left.disp")
    left, right, disparity = (folder / "set" / f"{index}_{role}.png" for role in roles)
    return _write_pair((left, right, disparity), pair, CRESTEREO_PNG, pair.disparity)


def _write_pair(
    files: tuple[Path, Path, Path], pair: GeneratedPair, encoding: MapEncoding, disparity: FloatMap
) -> Files:
    left, right, truth = files
    write_png(left, pair.left)
    write_png(right, pair.right)
    encoding.write(truth, disparity)
    return files


def _nyu(folder: Path, index: int, pair: GeneratedPair) -> Files:
    image = folder / "scene" / f"rgb_{index:05d}.jpg"
    depth = folder / "scene" / f"sync_depth_{index:05d}.png"
    _write_jpeg(image, pair.left)
    write_depth_png(depth, pair.depth)
    return image, depth


def _beside_image(
    truth: str, encoding: MapEncoding, values: Callable[[GeneratedPair], FloatMap]
) -> Callable[[Path, int, GeneratedPair], Files]:
    """A writer of `scenes/rgb/NNNN.png` with the map `values` of the pair at `scenes/<truth>`."""

    def write(folder: Path, index: int, pair: GeneratedPair) -> Files:
        image = folder / "scenes" / "rgb" / f"{index:04d}.png"
        target = folder / "scenes" / truth.format(f"{index:04d}")
        write_png(image, pair.left)
        encoding.write(target, values(pair))
        return image, target

    return write


def _disparity(pair: GeneratedPair) -> FloatMap:
    return pair.disparity


def _depth(pair: GeneratedPair) -> FloatMap:
    return pair.depth


def _grey(image: Image) -> Image:
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)


def _is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but hidden files, as one that another process just began."""
    return all(file.name.startswith(".") for file in folder.iterdir())


def _write_jpeg(path: Path, image: Image) -> None:
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    write_bytes(path, encoded.tobytes())


LAYOUTS: dict[str, Layout] = {
    "middlebury": Layout(
        "NNNN/{im0.png, im1.png, disp0GT.pfm, mask0nocc.png, calib.txt}",
        _middlebury,
        stereo=("Middlebury", "GenericDataset"),
        mono=("Middlebury",),
    ),
    "eth3d": Layout("as middlebury, grey images", _eth3d, stereo=("Eth3d",)),
    "kitti": Layout(
        "training/{image_2, image_3, disp_noc_0}/NNNNNN_10.png", _kitti, stereo=("Kitti",)
    ),
    "fsd": Layout(
        "data/{left/rgb, right/rgb, left/disparity}/NNNN.png",
        _fsd,
        stereo=("FSD",),
        mono=("FSD",),
    ),
    "isaac_real": Layout("as fsd", _fsd, stereo=("IsaacRealDataset",)),
    "crestereo": Layout(
        "set/{N_left.png, N_right.png, N_left.disp.png}",
        _crestereo,
        stereo=("Crestereo",),
        mono=("Crestereo",),
    ),
    "nyu": Layout(
        "scene/{rgb_NNNNN.jpg, sync_depth_NNNNN.png}, 480x640",
        _nyu,
        mono=("NYUDV2", "NYUDV2Relative"),
        size=(480, 640),
    ),
    "mono_metric": Layout(
        "scenes/{rgb/NNNN.png, depth/NNNN.pfm}, metres",
        _beside_image("depth/{}.pfm", PFM, _depth),
        mono=("MetricMonoDataset",),
    ),
    "mono_relative": Layout(
        "scenes/{rgb/NNNN.png, disparity/NNNN.pfm}",
        _beside_image("disparity/{}.pfm", PFM, _disparity),
        mono=("RelativeMonoDataset", "IssacStereo"),
    ),
    "nvclip": Layout(
        "scenes/{rgb/NNNN.png, disparity/NNNN.pfm}, rows top-down",
        _beside_image("disparity/{}.pfm", PFM_TOP_DOWN, _disparity),
        mono=("NvCLIP",),
    ),
    "three_d_vlm": Layout(
        "scenes/{rgb/NNNN.png, depth/NNNN.npy}, 1 / (1000 x disparity)",
        _beside_image("depth/{}.npy", THREE_DVLM_NPY, _disparity),
        mono=("ThreeDVLM",),
    ),
}
