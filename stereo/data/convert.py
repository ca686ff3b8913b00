"""The walk that writes split files: scene folders -> train.txt and val.txt, or test.txt.

Paths are matched, rewritten and sorted as text relative to `data_root`, whatever stands above it;
upper and lower case count. Links to folders are followed, and an image that is reached under
several names is written under one, so that no split holds it twice.

Symbols: a *pattern* is one string of `image_dir_pattern`, a *companion* is the right image, the
ground truth or the mask of a left image.

Nothing is written before every path is known to exist; faults of all images come together.

Source: design page data.md, section 2, whose pitfalls are the faults below.
"""

from __future__ import annotations

import heapq
import logging
import math
import os
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path
from typing import TypeAlias

from stereo.errors import DataError
from stereo.files import write_text
from stereo.spec.data import ConvertSpec, MonoConvertSpec

LOG = logging.getLogger(__name__)
Progress: TypeAlias = Callable[[str, int, int | None], None]

OUTPUTS = ("train.txt", "val.txt", "test.txt")
_SHOWN_FAULTS = 20
_CANDIDATES = 3
_COMPARED = 2000  # files that are compared letter by letter to name the nearest
_COMPARED_IN_FOLDER = 8  # of them from one folder
_PROGRESS_STEP = 1000  # files between two calls of `progress`
_Identity: TypeAlias = tuple[int, int]  # device and inode of a folder
_NEEDS_QUOTES = re.compile(r'[\s"#\ufeff]')


@dataclass(frozen=True)
class ConvertResult:
    """What was written.

    Attributes:
        files: the written annotation files; `train` and `val`, or `test`.
        counts: samples in each.
        moved: outputs of an earlier run in the other mode, under the names they have now.
    """

    files: dict[str, Path]
    counts: dict[str, int]
    moved: tuple[Path, ...]


@dataclass(frozen=True)
class _Column:
    """How the path of a companion follows from that of its left image."""

    title: str
    replacements: Sequence[str]  # one for each pattern
    suffix: str  # instead of the image's; empty: the image's


@dataclass
class _Listing:
    """What the walk found, as paths relative to data_root.

    Attributes:
        files: every file below a scene folder.
        images: names of those that are left images, and of dangling links that would be, by folder.
        folders: for every real folder the ones of `images` that lead to it: whether that goes
            through a link, and the folder.
        beside: files that lie in data_root itself.
        unlisted: folders that could not be read, with the reason.
    """

    files: set[str] = field(default_factory=set[str])
    images: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    folders: dict[_Identity, list[tuple[bool, str]]] = field(
        default_factory=dict[_Identity, list[tuple[bool, str]]]
    )
    beside: list[str] = field(default_factory=list[str])
    unlisted: list[str] = field(default_factory=list[str])


def convert(
    spec: MonoConvertSpec,
    directory: Path,
    progress: Progress = lambda _what, _done, _total: None,
    *,
    pairs: bool = False,
) -> ConvertResult:
    """Write the annotation files of a folder of scenes.

    Args:
        spec: keeps the rules of `stereo.spec.rules.CONVERT_RULES`.
        directory: where the files go, created when missing.
        progress: told now and then what is done, how often so far, and of how many if known.
        pairs: every line needs a right image; without one it would be read as left and right.

    Raises:
        DataError: with exit code 2, before anything is written, with all faults.
    """
    if pairs and not (isinstance(spec, ConvertSpec) and spec.right_dir_pattern):
        problem = (
            "convert.right_dir_pattern: got [], dataset.dataset_name=StereoDataset needs right "
            "images. Give it, or set dataset.dataset_name=MonoDataset for lists of single images"
        )
        raise DataError(problem, exit_code=2)
    root = _existing_root(spec)
    if isinstance(spec, ConvertSpec) and spec.nocc_mask_dir_name:
        LOG.warning("convert.nocc_mask_dir_name has no effect; use convert.nocc_dir_pattern")
    listing = _walk(root, spec, progress)
    if listing.unlisted:
        faults = _listed(sorted(listing.unlisted), "folders cannot be read", root)
        raise DataError("\n".join(faults), exit_code=2)
    images = _images_once(root, listing)
    beside = _images_beside(root, spec, listing)
    if not images:
        raise DataError(_no_match(root, spec, listing, beside), exit_code=2)
    if beside:
        LOG.warning("%s: %d matching files directly in it are not read", root, len(beside))
    rows = _checked_rows(root, spec, images, listing.files, progress)
    splits = _split(rows, spec)
    directory.mkdir(parents=True, exist_ok=True)
    return _write(splits, directory, root, relative=spec.relative)


# -- the walk -------------------------------------------------------------------------------------


def _existing_root(spec: MonoConvertSpec) -> str:
    """The absolute path of data_root; links in it are kept."""
    root = Path(spec.data_root or "").expanduser().absolute()
    if not root.is_dir():
        reason = "is a file" if root.exists() else "no such folder"
        problem = f"convert.data_root: {spec.data_root}: {reason}. Name a local folder"
        raise DataError(problem, exit_code=2)
    return os.path.normpath(root)


def _walk(root: str, spec: MonoConvertSpec, progress: Progress) -> _Listing:
    """List the files under every name that leads to them; a link that leads back is not followed.

    A pattern may stand in the name of a link and not in that of the folder it leads to.
    """
    listing = _Listing()
    seen = 0
    folders: list[tuple[str, bool, frozenset[_Identity]]] = [("", False, frozenset())]
    while folders:
        folder, linked, above = folders.pop()  # folders end with a slash
        try:
            status = Path(root, folder).stat()
            identity = (status.st_dev, status.st_ino)
            if identity in above:
                LOG.warning("%s/%s: a link to a folder above it, not followed", root, folder)
                continue
            with os.scandir(f"{root}/{folder}") as entries:
                for entry in entries:
                    if entry.is_dir():
                        below = (f"{folder}{entry.name}/", linked or entry.is_symlink())
                        folders.append((*below, above | {identity}))
                        continue
                    _add(folder, entry, listing, spec)
                    seen += 1
                    if seen % _PROGRESS_STEP == 0:
                        progress("files seen", seen, None)
            if folder in listing.images:
                listing.folders.setdefault(identity, []).append((linked, folder))
        except OSError as error:
            listing.unlisted.append(f"{folder or '.'}: {error.strerror}")
    return listing


def _add(folder: str, entry: os.DirEntry[str], listing: _Listing, spec: MonoConvertSpec) -> None:
    path = folder + entry.name
    if not folder:
        listing.beside.append(path)
        return
    if entry.is_file():
        listing.files.add(path)
    if _is_image(path, spec):
        listing.images.setdefault(folder, []).append(entry.name)


def _images_once(root: str, listing: _Listing) -> list[str]:
    """The sorted paths of the images, each under one name: without a link where there is one."""
    images: list[str] = []
    for names in listing.folders.values():
        first: dict[str, str] = {}  # name of an image -> the folder it is listed in
        for _, folder in sorted(names):
            found = listing.images[folder]
            doubles = [name for name in found if name in first]
            if doubles:
                LOG.warning(
                    "%s/%s: %d images are listed as those of %s, which is the same folder",
                    *(root, folder, len(doubles), first[doubles[0]]),
                )
            fresh = [name for name in found if name not in first]
            first |= dict.fromkeys(fresh, folder)
            images += [folder + name for name in fresh]
    return sorted(images)


def _is_image(path: str, spec: MonoConvertSpec) -> bool:
    return path.endswith(spec.image_extension) and all(p in path for p in spec.image_dir_pattern)


# -- nothing found --------------------------------------------------------------------------------


def _images_beside(root: str, spec: MonoConvertSpec, listing: _Listing) -> list[str]:
    """Files of data_root itself that would be images if its parent were given."""
    scene = Path(root).name
    return [name for name in listing.beside if _is_image(f"{scene}/{name}", spec)]


def _no_match(root: str, spec: MonoConvertSpec, listing: _Listing, beside: Sequence[str]) -> str:
    if beside:
        return (
            f"convert.data_root: {root}: {len(beside)} matching files lie directly in it, such as "
            f"{min(beside)}, and none in a folder below. It is a scene itself: give its parent "
            f"{Path(root).parent}"
        )
    nearest = _nearest(listing, spec)
    shown = "\n".join(f"  {path}" for path in nearest) or "  none, there is no file"
    return (
        f"convert.data_root: {root}: no path below a child folder holds all of "
        f"image_dir_pattern {spec.image_dir_pattern} and ends with image_extension "
        f"'{spec.image_extension}' (upper and lower case count). Nearest paths:\n{shown}"
    )


def _nearest(listing: _Listing, spec: MonoConvertSpec) -> list[str]:
    """The paths that come closest to being a left image, best first."""
    in_folder: dict[str, list[str]] = {}
    for path in sorted((*listing.files, *listing.beside)):
        names = in_folder.setdefault(path.rpartition("/")[0], [])
        if len(names) < _COMPARED_IN_FOLDER:
            names.append(path)

    def fulfilled(path: str) -> int:
        matched = sum(pattern in path for pattern in spec.image_dir_pattern)
        return matched + path.endswith(spec.image_extension)

    def likeness(path: str) -> float:
        wanted = (*spec.image_dir_pattern, spec.image_extension)
        return sum(_common_share(text.lower(), path.lower()) for text in wanted if text)

    paths = chain.from_iterable(in_folder.values())
    close = heapq.nsmallest(_COMPARED, paths, key=lambda path: (-fulfilled(path), path))
    best = sorted(close, key=lambda path: (-fulfilled(path), -likeness(path), path))
    return best[:_CANDIDATES]


def _common_share(text: str, path: str) -> float:
    """Letters of `text` that stand in the same order in `path`, 0..1."""
    blocks = SequenceMatcher(None, text, path, autojunk=False).get_matching_blocks()
    return sum(block.size for block in blocks) / len(text)


# -- companions -----------------------------------------------------------------------------------


def _columns(spec: MonoConvertSpec) -> list[_Column]:
    columns = [_Column("ground truth", spec.depth_dir_pattern, spec.depth_extension)]
    if isinstance(spec, ConvertSpec):
        right = _Column("right image", spec.right_dir_pattern, "")
        columns = [right, *columns, _Column("mask", spec.nocc_dir_pattern, spec.nocc_extension)]
    return [column for column in columns if column.replacements]


def _checked_rows(
    root: str, spec: MonoConvertSpec, images: Sequence[str], files: set[str], progress: Progress
) -> list[tuple[str, ...]]:
    """For every image its path and those of its companions, all of them there.

    Raises:
        DataError: with every path that is ambiguous, missing or cannot be written.
    """
    columns = _columns(spec)
    rows: list[tuple[str, ...]] = []
    unclear: list[str] = []
    missing: list[str] = []
    unwritable: list[str] = []

    def is_there(path: str) -> bool:
        # The walk has seen nearly all of them, so that a slow disk is not asked again.
        return path in files or Path(os.path.normpath(f"{root}/{path}")).is_file()

    for done, image in enumerate(images):
        if done % _PROGRESS_STEP == 0:
            progress("images checked", done, len(images))
        if not is_there(image):
            missing.append(f"{image}: a link that leads nowhere")
            continue
        if not _is_writable(image):
            unwritable.append(repr(image))
            continue
        places = _places(image, spec.image_dir_pattern) if columns else []
        if isinstance(places, str):
            unclear.append(f"{image}: {places}")
            continue
        row = [image]
        for column in columns:
            path = _companion(image, places, column, spec.image_extension)
            row.append(path)
            if not is_there(path):
                missing.append(f"{image}: no {column.title} {path}")
            elif not _is_writable(path):
                unwritable.append(repr(path))
        rows.append(tuple(row))
    faults = [
        *_listed(unclear, "paths are ambiguous. Give longer strings in image_dir_pattern", root),
        *_listed(missing, "files are missing. Check the patterns and extensions", root),
        *_listed(unwritable, "names hold a line break or are not UTF-8. Rename them", root),
    ]
    if faults:
        raise DataError("\n".join(faults), exit_code=2)
    return rows


def _listed(faults: Sequence[str], what: str, root: str) -> list[str]:
    """A heading with the count and the first faults; nothing without faults."""
    if not faults:
        return []
    count = f"{len(faults)} {what}"
    more = f", the first {_SHOWN_FAULTS}" if len(faults) > _SHOWN_FAULTS else ""
    return [f"{root}: {count}{more}:", *(f"  {fault}" for fault in faults[:_SHOWN_FAULTS])]


def _is_writable(path: str) -> bool:
    """Whether a line of a UTF-8 annotation file can hold the path."""
    if "\n" in path:
        return False
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _places(image: str, patterns: Sequence[str]) -> list[tuple[int, int, int]] | str:
    """(begin, end, index) of every pattern in the path, in order; or why that is not clear."""
    places: list[tuple[int, int, int]] = []
    for index, pattern in enumerate(patterns):
        begin = image.index(pattern)
        if image.find(pattern, begin + 1) >= 0:
            return f"'{pattern}' occurs more than once"
        places.append((begin, begin + len(pattern), index))
    places.sort()
    for (_, end, first), (begin, _, second) in pairwise(places):
        if begin < end:
            return f"'{patterns[first]}' and '{patterns[second]}' overlap"
    return places


def _companion(
    image: str, places: Sequence[tuple[int, int, int]], column: _Column, image_suffix: str
) -> str:
    """The companion's path: all patterns replaced at once, then the suffix swapped."""
    parts: list[str] = []
    copied = 0
    for begin, end, index in places:
        parts += (image[copied:begin], column.replacements[index])
        copied = end
    path = "".join((*parts, image[copied:]))
    if column.suffix and path.endswith(image_suffix):
        path = path.removesuffix(image_suffix) + column.suffix
    return os.path.normpath(path)


# -- splits and files -----------------------------------------------------------------------------


def _split(
    rows: Sequence[tuple[str, ...]], spec: MonoConvertSpec
) -> dict[str, list[tuple[str, ...]]]:
    """Rows of `test`, or of `train` and `val` in shuffled order.

    Raises:
        DataError: `train` would be empty; `val` cannot, the train share is rounded down.
    """
    if spec.split_ratio in (0, 1):
        return {"test": list(rows)}
    # As the decimal that was written: 0.29 of 100 are 29, although 0.29 * 100 is below 29.
    train = math.floor(len(rows) * Fraction(str(spec.split_ratio)))
    if train == 0:
        raise DataError(
            f"convert.split_ratio: {spec.split_ratio} of {len(rows)} samples leaves none for "
            f"train. Use a share that gives both splits one, or 0 for one test file",
            exit_code=2,
        )
    generator = random.Random(spec.seed)
    # random() is the one method whose numbers Python keeps the same in every version.
    keys = [generator.random() for _ in rows]
    shuffled = [row for _, row in sorted(zip(keys, rows, strict=True))]
    return {"train": shuffled[:train], "val": shuffled[train:]}


def _write(
    splits: dict[str, list[tuple[str, ...]]], directory: Path, root: str, *, relative: bool
) -> ConvertResult:
    """Write one file per split and move an output of the other mode out of the way."""
    # A link in the output folder's own path would send `..` elsewhere.
    start = os.path.relpath(root, directory.resolve()) if relative else root
    files: dict[str, Path] = {}
    for name, rows in splits.items():
        files[name] = directory / f"{name}.txt"
        lines = (" ".join(_field(f"{start}/{path}") for path in row) for row in rows)
        write_text(files[name], "\n".join(lines) + "\n")
    moved: list[Path] = []
    for name in OUTPUTS:
        stale = directory / name
        if stale not in files.values() and stale.is_file():
            moved.append(stale.replace(stale.with_name(f"{name}.previous")))
            LOG.info("%s is of an earlier run; it is now %s", stale, moved[-1].name)
    return ConvertResult(files, {name: len(rows) for name, rows in splits.items()}, tuple(moved))


def _field(path: str) -> str:
    """A path as a field of an annotation file: quoted where the parser would split or skip it."""
    path = os.path.normpath(path)
    if path.startswith("~"):
        path = f"./{path}"  # else it means a home directory
    return '"' + path.replace('"', '""') + '"' if _NEEDS_QUOTES.search(path) else path
