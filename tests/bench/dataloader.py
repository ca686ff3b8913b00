"""Samples per CPU second of the training loader against its bars, and the generator's speed.

The work is that of the design's data baseline: generated pairs of 960x544 and
256x192 (PNG images, PFM truth), with the augmentation of the spec's defaults, each row once without
the decoded cache and once with a warm one. CPU seconds (process time) of one thread, files in the
page cache. A rate times the seconds of one yardstick unit (`yardstick.py`), measured around every
row, is samples per unit: that number can be compared between machines.

    OMP_NUM_THREADS=1 python tests/bench/dataloader.py [--kitti FILE] [--record] [--samples 24]

`--kitti` adds the fourth workload, an annotation file of real KITTI pairs. `factory` and
`cached_factory` give the same data sets to the bench that runs the reference beside them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from record import record  # noqa: E402 (a script finds its neighbours by path)
from yardstick import unit_seconds  # noqa: E402

from stereo.data.generator import generate  # noqa: E402
from stereo.data.layouts import write_annotations, write_middlebury  # noqa: E402
from stereo.data.loaders import DataModule  # noqa: E402
from stereo.spec.data import (  # noqa: E402
    DatasetSpec,
    DataSource,
    SplitSpec,
    StereoAugmentSpec,
)
from stereo.spec.experiment import ExperimentSpec  # noqa: E402


@dataclass(frozen=True)
class Workload:
    """Files, crop, and the samples per CPU second that the design asks for."""

    size: tuple[int, int] | None  # of generated files, (H, W); None: KITTI
    crop: tuple[int, int]
    bar: float
    cached_bar: float

    @property
    def name(self) -> str:
        files = "KITTI" if self.size is None else f"{self.size[1]}x{self.size[0]}"
        return f"{files}, crop {self.crop[0]}x{self.crop[1]} (H x W)"


WORKLOADS = (
    Workload((544, 960), (320, 736), 36, 150),
    Workload((544, 960), (128, 256), 36, 500),
    Workload((192, 256), (128, 256), 300, 800),
    Workload(None, (320, 736), 36, 150),
)


class Crops:
    """Training samples under the names of the reference's batches, by index."""

    def __init__(self, spec: ExperimentSpec) -> None:
        self._dataset: Any = DataModule(spec, 0).train_dataloader().dataset
        self._reads: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        self._reads[index] += 1  # a new crop every time, as in another epoch
        sample = self._dataset[self._reads[index], index]
        return {
            "image": torch.as_tensor(sample["left"]),
            "right_image": torch.as_tensor(sample["right"]),
            "disparity": torch.as_tensor(sample["disparity"]),
            "valid_mask": torch.as_tensor(sample["valid"]),
        }


def experiment(
    annotations: Path | str,
    dataset_name: str,
    augmentation: Mapping[str, Any],
    max_disparity: int,
    cache_dir: str | None = None,
) -> ExperimentSpec:
    """An experiment that trains on one annotation file; without a folder the cache is off."""
    split = SplitSpec(
        data_sources=[DataSource(dataset_name, str(annotations))],
        workers=0,
        augmentation=StereoAugmentSpec(**augmentation),
    )
    mode = "on" if cache_dir else "off"
    dataset = DatasetSpec(
        max_disparity=max_disparity, train_dataset=split, cache=mode, cache_dir=cache_dir
    )
    return ExperimentSpec("unused", dataset=dataset)


def factory(
    annotations: str, dataset_name: str, augmentation: Mapping[str, Any], max_disparity: int
) -> Crops:
    """The data set without the decoded cache."""
    return Crops(experiment(annotations, dataset_name, augmentation, max_disparity))


def cached_factory(
    annotations: str, dataset_name: str, augmentation: Mapping[str, Any], max_disparity: int
) -> Crops:
    """The data set with the decoded cache, in a folder that all calls share."""
    folder = str(Path(tempfile.gettempdir()) / "depthtune_bench_cache")
    return Crops(experiment(annotations, dataset_name, augmentation, max_disparity, folder))


def rate(work: Callable[[], Iterable[object]], repeats: int) -> tuple[float, float]:
    """Items per CPU second and per yardstick unit, medians of `repeats` runs after a warm-up."""
    for _ in work():
        pass
    runs, units = [], [unit_seconds(repeats=1)]
    for _ in range(repeats):
        started = time.process_time()
        count = sum(1 for _ in work())
        runs.append(count / (time.process_time() - started))
        units.append(unit_seconds(repeats=1))
    per_second = statistics.median(runs)
    return per_second, per_second * statistics.median(units)


def write_pairs(folder: Path, count: int, size: tuple[int, int]) -> Path:
    """Write pairs as Middlebury scenes and return their annotation file."""
    scenes = [
        write_middlebury(folder / f"{i:04d}", generate(0, i, height=size[0], width=size[1]))
        for i in range(count)
    ]
    for image in folder.rglob("im?.png"):  # compressed as the baseline's, not as the generator's
        cv2.imwrite(str(image), cv2.imread(str(image)))
    write_annotations(folder / "pairs.txt", [files[:3] for files in scenes])
    return folder / "pairs.txt"


def training(arguments: argparse.Namespace, folder: Path) -> Iterator[str]:
    """Lines of the table of the workloads."""
    yield f"| {'training samples':36} | per CPU s |  bar | per unit | cached | bar | per unit |"
    yield "|---|---|---|---|---|---|---|"
    files: dict[tuple[int, int] | None, Path] = {}
    if arguments.kitti:
        files[None] = arguments.kitti
    for work in WORKLOADS:
        if work.size is None and None not in files:
            continue
        if work.size is not None and work.size not in files:
            target = folder / f"{work.size[0]}x{work.size[1]}"
            files[work.size] = write_pairs(target, arguments.samples, work.size)
        name = "Kitti" if work.size is None else "GenericDataset"
        cells = []
        for cache_dir, bar in ((None, work.bar), (str(folder / "cache"), work.cached_bar)):
            crop = {"crop_size": list(work.crop)}
            data = Crops(experiment(files[work.size], name, crop, 192, cache_dir))
            samples = range(min(arguments.samples, len(data)))
            per_second, per_unit = rate(lambda: map(data.__getitem__, samples), arguments.repeats)  # noqa: B023
            cells.append(f"{per_second:7.1f} | {bar:4.0f} | {per_unit:7.2f}")
        yield f"| {work.name:36} | {' | '.join(cells)} |"


def generating(arguments: argparse.Namespace, folder: Path) -> Iterator[str]:
    """Lines of the table of the generator."""
    yield f"| {'generated pairs':36} | per CPU s | per unit |"
    yield "|---|---|---|"
    for height, width in ((192, 256), (480, 640)):
        count = arguments.samples if height < 400 else 6

        def pairs(height: int = height, width: int = width, count: int = count):
            return (generate(0, i, height=height, width=width) for i in range(count))

        def scenes(height: int = height, width: int = width, count: int = count):
            for index, pair in enumerate(pairs(height, width, count)):
                yield write_middlebury(folder / f"s{index}", pair)

        for work, what in ((pairs, "in memory"), (scenes, "files written")):
            per_second, per_unit = rate(work, arguments.repeats)
            name = f"{width}x{height}, {what}"
            yield f"| {name:36} | {per_second:9.1f} | {per_unit:8.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--kitti", type=Path)
    parser.add_argument("--record", action="store_true", help="write docs/performance.md too")
    arguments = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        lines: list[str] = []
        for part in (training, generating):
            for line in part(arguments, Path(folder)):
                print(line, flush=True)
                lines.append(line)
            lines.append("")
    if arguments.record:
        record("data", lines[:-1], "python tests/bench/dataloader.py --record")


if __name__ == "__main__":
    main()
