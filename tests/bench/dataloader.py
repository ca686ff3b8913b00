"""Samples per CPU second of the training loader, and pairs per second of the generator.

Prints, never fails. Inputs are generated pairs (PNG images, PFM truth) of 256x192 and 960x544; the
augmentation is that of the spec's defaults. CPU seconds (process time) of one thread, files in the
page cache. A rate times the seconds of one yardstick unit (`yardstick.py`) is samples per unit,
which can be compared between machines.

    OMP_NUM_THREADS=1 python tests/bench/dataloader.py [--samples 24] [--repeats 3]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import torch

from stereo.data import loaders
from stereo.data.generator import generate, write_annotations, write_middlebury
from stereo.spec.data import DatasetSpec, DataSource, SplitSpec, StereoAugmentSpec
from stereo.spec.experiment import ExperimentSpec

# files (H, W), crop (H, W)
WORKLOADS = (
    ((544, 960), (320, 736)),
    ((544, 960), (128, 256)),
    ((192, 256), (128, 256)),
    ((192, 256), (64, 128)),
)


def rate(work: Callable[[], Iterable[object]], repeats: int) -> float:
    """Items per CPU second, median of `repeats` runs after one warm-up."""
    runs: list[float] = []
    for _ in range(repeats + 1):
        started = time.process_time()
        count = sum(1 for _ in work())
        runs.append(count / (time.process_time() - started))
    return statistics.median(runs[1:])


def write_pairs(folder: Path, count: int, size: tuple[int, int]) -> Path:
    """Write pairs as Middlebury scenes and return their annotation file."""
    scenes = [f"{index:04d}" for index in range(count)]
    for index, scene in enumerate(scenes):
        write_middlebury(folder / scene, generate(0, index, height=size[0], width=size[1]))
    write_annotations(folder / "pairs.txt", scenes, masks=False)
    return folder / "pairs.txt"


def training(annotations: Path, crop: tuple[int, int]) -> loaders.StereoDataModule:
    """The training data of an experiment with the default augmentation."""
    split = SplitSpec(
        data_sources=[DataSource("GenericDataset", str(annotations))],
        workers=0,
        augmentation=StereoAugmentSpec(crop_size=list(crop)),
    )
    dataset = DatasetSpec(train_dataset=split)
    return loaders.StereoDataModule(ExperimentSpec("unused", dataset=dataset), 0)


def unit_seconds() -> float | None:
    """CPU seconds of one yardstick unit, None where the yardstick is not beside this file."""
    if not (Path(__file__).parent / "yardstick.py").is_file():
        return None
    sys.path.insert(0, str(Path(__file__).parent))
    from yardstick import unit_seconds as measure

    return measure()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    unit = unit_seconds()

    def show(what: str, value: float) -> None:
        per_unit = f"{value * unit:9.2f} per unit" if unit else ""
        sys.stdout.write(f"{what:52} {value:8.1f} per CPU s {per_unit}\n")

    with tempfile.TemporaryDirectory() as folder:
        files: dict[tuple[int, int], Path] = {}
        for size, crop in WORKLOADS:
            if size not in files:
                target = Path(folder) / f"{size[0]}x{size[1]}"
                files[size] = write_pairs(target, arguments.samples, size)
            name = f"{size[1]}x{size[0]}, crop {crop[0]}x{crop[1]} (H x W)"
            kept = training(files[size], crop)
            show(f"{name}, decoded in memory", rate(kept.train_dataloader, arguments.repeats))
            budget, loaders._DECODED_BYTES = loaders._DECODED_BYTES, 0
            fresh = training(files[size], crop)
            loaders._DECODED_BYTES = budget
            show(f"{name}, read from files", rate(fresh.train_dataloader, arguments.repeats))
        for height, width in ((192, 256), (480, 640)):
            count = arguments.samples if height < 400 else 6

            def pairs(height: int = height, width: int = width, count: int = count):
                return (generate(0, i, height=height, width=width) for i in range(count))

            def scenes(height: int = height, width: int = width, count: int = count):
                for index, pair in enumerate(pairs(height, width, count)):
                    yield write_middlebury(Path(folder) / f"s{index}", pair)

            show(f"generator {width}x{height}, in memory", rate(pairs, arguments.repeats))
            show(f"generator {width}x{height}, files written", rate(scenes, arguments.repeats))


if __name__ == "__main__":
    main()
