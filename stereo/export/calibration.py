"""What a network is calibrated with: the inputs that inference would give it for some images.

`dataset.quant_calibration_dataset.images_dir` is a folder of images (searched recursively, in
sorted order), for pairs one that holds `left/` and `right/` with files of the same names; or such a
folder as `.tar.gz`; or an annotation file, whose ground truth is not read.
"""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stereo.data.annotations import read_rows
from stereo.data.encodings import IMAGE_SUFFIXES
from stereo.data.loaders import evaluation_loader
from stereo.errors import DataError
from stereo.files import write_text
from stereo.spec.data import DataSource
from stereo.spec.models import model_of
from stereo.tasks import InputSizes, Size, Task

if TYPE_CHECKING:
    from stereo.spec.experiment import ExperimentSpec

KEY = "dataset.quant_calibration_dataset.images_dir"
Images = tuple[Tensor, ...]  # (1, 3, h, w) each, in the order of `Task.inputs`


def calibration_images(spec: ExperimentSpec, task: Task, size: Size, stride: int) -> list[Images]:
    """Normalised images at the size of the network, at most `backend_kwargs.num_images` samples.

    Args:
        spec: the experiment; an empty `images_dir` gives no sample.
        task: what the network is given.
        size: height and width that it is given, px.
        stride: sides it takes are multiples of it.

    Raises:
        DataError: no such folder, no image in it, or a left image without its right one (exit
            code 2).
    """
    named = spec.dataset.quant_calibration_dataset.images_dir
    if not named:
        return []
    count = spec.quantize.backend_kwargs.num_images
    kept: list[Images] = []

    def keep(*images: Tensor) -> Tensor:
        kept.append(images)
        return torch.zeros(len(images[0]), *images[0].shape[-2:])

    with _folder(Path(named).expanduser()) as place:
        for batch in _loader(spec, _files(place, spec, len(task.inputs))[:count], size):
            task.at_native_size(keep, batch, InputSizes(stride, fixed=size, source=named))
    return kept


@contextmanager
def _folder(path: Path) -> Iterator[Path]:
    """The path itself, or the folder that an archive holds."""
    if not path.exists():
        raise DataError(f"{KEY}: {path}: no such file or folder. Check the path", exit_code=2)
    if not path.name.endswith((".tar.gz", ".tgz")):
        yield path
        return
    with tempfile.TemporaryDirectory() as scratch:
        try:
            with tarfile.open(path) as archive:
                archive.extractall(scratch, filter="data")  # nothing outside the folder
        except (tarfile.TarError, OSError) as error:
            raise DataError(f"{KEY}: {path}: cannot be unpacked: {error}", exit_code=2) from error
        yield Path(scratch)


def _files(path: Path, spec: ExperimentSpec, inputs: int) -> list[tuple[Any, ...]]:
    """Files of every sample, in sorted order or that of the annotation file."""
    if path.is_file():
        family = "stereo" if inputs == 2 else "mono"
        dataset = model_of(spec).default_dataset
        rows = read_rows(path, dataset=dataset, family=family, inference=True)
        return [(row.left, row.right)[:inputs] for row in rows]
    if inputs == 1:
        return [(image,) for image in _images(path, path)]
    sides = [next(iter(sorted(path.rglob(name))), path / name) for name in ("left", "right")]
    lefts = _images(sides[0], path)
    pairs = [(left, sides[1] / left.relative_to(sides[0])) for left in lefts]
    missing = [str(right) for _, right in pairs if not right.is_file()]
    if missing:
        shown = ", ".join(missing[:5])
        problem = f"{len(missing)} of {len(pairs)} left images have no right one: {shown}"
        raise DataError(f"{KEY}: {path}: {problem}. Give both the same name", exit_code=2)
    return pairs


def _images(folder: Path, given: Path) -> list[Path]:
    found = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES]
    if not found:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(
            f"{KEY}: {given}: no image ({suffixes}) in {folder}. Name a folder of images, for "
            "pairs one with left/ and right/, or an annotation file",
            exit_code=2,
        )
    return found


def _loader(spec: ExperimentSpec, files: list[tuple[Any, ...]], size: Size) -> Iterator[Any]:
    """Batches of one sample as inference reads them."""
    with tempfile.TemporaryDirectory() as scratch:
        rows = Path(scratch) / "calibration.txt"
        lines = (" ".join(map(_quoted, sample)) for sample in files)
        write_text(rows, "".join(f"{line}\n" for line in lines))
        dataset: Any = model_of(spec).default_dataset
        source = DataSource(dataset, str(rows))
        split = replace(spec.dataset.infer_dataset, data_sources=[source], workers=0)
        yield from evaluation_loader(split, spec, batch_size=1, inference=True, input_size=size)


def _quoted(path: Path) -> str:
    text = str(path.resolve() if isinstance(path, Path) else path).replace('"', '""')
    return f'"{text}"'
