"""Spec to batches: training crops, native-size evaluation, and the check of all files beforehand.

A training sample is a function of (seed, epoch, source, index) alone: the sampler hands out
(epoch, index) pairs and each sample has its own generator, so worker count and batch size do not
matter. Validation, evaluation and inference read whole pairs at native size.

| key of a batch | content |
|---|---|
| left, right | float32 (B, 3, H, W), (x / 255 - mean) / std |
| disparity | float32 (B, 1, H, W) px, +inf where unknown |
| valid | bool (B, 1, H, W): known and below min(dataset.max_disparity, model.max_disparity) |
| truth_pixels | int64 (B,): known pixels before that limit |
| has_gt | bool (B,): the sample came with ground truth |
| name | list of B texts |
| index | int64 (B,): place in the split, 0-based, in file order |
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from stereo.data.annotations import Row, parse, raise_faults
from stereo.data.augment_stereo import augment
from stereo.data.datasets import Format, StereoSample, find_format
from stereo.data.encodings import FloatMap, Image, read_image_size
from stereo.errors import DataError
from stereo.spec.data import SplitSpec, StereoAugmentSpec
from stereo.spec.experiment import ExperimentSpec

Batch: TypeAlias = dict[str, Any]

log = logging.getLogger(__name__)

# Per split. A small set is decoded once and stays; beyond it the rest is decoded every time.
_DECODED_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Entry:
    """One sample of a split: its class, its row and its place."""

    form: Format
    row: Row
    source: int  # index of the data source within the split
    index: int  # index of the row within the source


@dataclass(frozen=True)
class SplitFacts:
    """What `preflight` found in a split.

    Attributes:
        pairs: number of samples.
        sizes: samples per image size (H, W) in px.
        min_disparity: smallest known disparity in px, None without any.
        max_disparity: largest known disparity in px, before the limit, None without any.
        valid_share: share of all pixels whose truth is known and below the limit.
    """

    pairs: int
    sizes: dict[tuple[int, int], int]
    min_disparity: float | None
    max_disparity: float | None
    valid_share: float


class StereoDataModule(pl.LightningDataModule):
    """Training and validation data of an experiment.

    Args:
        spec: the experiment; `dataset.train_dataset` and `dataset.val_dataset` are used.
        seed: of order and augmentation; negative draws one.

    Raises:
        DataError: a faulty annotation file, or fewer training samples than a batch (exit code 2).
    """

    def __init__(self, spec: ExperimentSpec, seed: int) -> None:
        super().__init__()
        split = spec.dataset.train_dataset
        entries = _entries(split)
        _require_batch(entries, split)
        self._seed = seed if seed >= 0 else int(np.random.SeedSequence().generate_state(1)[0])
        self._order = EpochSampler(len(entries), self._seed)
        dataset = TrainingCrops(entries, spec, self._seed)
        self._train = _loader(
            dataset, split, sampler=self._order, batch_size=split.batch_size, drop_last=True
        )
        self._val = self._validation(spec)

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass over the training data the one of `epoch`, 0-based."""
        self._order.set_epoch(epoch)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled random crops; the last partial batch is dropped."""
        return self._train

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """Whole validation pairs at native size; an empty list without validation data."""
        return self._val

    @staticmethod
    def _validation(spec: ExperimentSpec) -> DataLoader[Batch] | list[Any]:
        split = spec.dataset.val_dataset
        if not split.data_sources:
            return []
        entries = _entries(split)
        pairs = WholePairs(entries, spec, split.augmentation, _DECODED_BYTES)
        return _whole_loader(pairs, split, split.batch_size)


def evaluation_loader(
    split: SplitSpec, spec: ExperimentSpec, *, batch_size: int, inference: bool = False
) -> DataLoader[Batch]:
    """Whole pairs of a split at native size, in file order.

    Neighbours of equal size share a batch; a batch ends where the size changes.

    Args:
        split: data sources, workers and normalisation.
        spec: the experiment, for the disparity limit.
        batch_size: largest batch.
        inference: ground truth is not needed.

    Raises:
        DataError: faulty annotation files, listed with line and reason (exit code 2).
    """
    entries = _entries(split, inference=inference)
    return _whole_loader(WholePairs(entries, spec, split.augmentation, 0), split, batch_size)


def preflight(
    spec: ExperimentSpec,
    splits: Sequence[str],
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, SplitFacts]:
    """Read every file of the splits completely.

    Args:
        spec: the experiment.
        splits: sections of `dataset`, for example `train_dataset`.
        progress: called with (samples read, samples in all).

    Raises:
        DataError: with exit code 2 and every fault as `annotation.txt:line: path: reason`.
    """
    faults: list[str] = []
    entries: dict[str, list[Entry]] = {}
    for name in splits:
        split: SplitSpec = getattr(spec.dataset, name)
        entries[name], reasons = _parse(split, inference=name == "infer_dataset")
        faults += reasons
    total, done = sum(map(len, entries.values())), 0
    facts: dict[str, SplitFacts] = {}
    for name, samples in entries.items():
        survey = _Survey(disparity_limit(spec))
        for entry in samples:
            try:
                survey.add(entry.form.read(entry.row))
            except DataError as error:
                faults.append(str(error))
            done += 1
            if progress is not None:
                progress(done, total)
        facts[name] = survey.facts()
        if not faults:
            faults += _unusable(spec, name, facts[name], samples)
    raise_faults(faults)
    return facts


def disparity_limit(spec: ExperimentSpec) -> float:
    """Disparity in px at and above which ground truth counts nowhere."""
    return float(min(spec.dataset.max_disparity, spec.model.max_disparity))


class EpochSampler(Sampler[tuple[int, int]]):
    """(epoch, index) of all samples in the order of an epoch, a function of (seed, epoch)."""

    def __init__(self, size: int, seed: int) -> None:
        self._size = size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration (Lightning calls this too)."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng((self._seed, self._epoch)).permutation(self._size)
        return iter([(self._epoch, int(index)) for index in order])


class SameSizeBatches(Sampler[list[int]]):
    """Consecutive indices with equal image sizes, at most `batch_size` together."""

    def __init__(self, entries: Sequence[Entry], batch_size: int) -> None:
        if batch_size == 1:  # no need to look at the files
            self._batches = [[index] for index in range(len(entries))]
            return
        sizes = [read_image_size(entry.row.left) for entry in entries]
        self._batches: list[list[int]] = []
        for _, group in groupby(range(len(entries)), key=lambda index: sizes[index]):
            run = list(group)
            starts = range(0, len(run), batch_size)
            self._batches += [run[start : start + batch_size] for start in starts]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches)


class _Samples:
    """Decoded samples by index; kept in memory while the byte budget lasts, never evicted.

    A pass in random order finds as much in such a store as in one that evicts.
    """

    def __init__(self, entries: Sequence[Entry], budget: int) -> None:
        self.entries = entries
        self._room = budget
        self._kept: dict[int, StereoSample] = {}

    def read(self, index: int) -> StereoSample:
        """The sample; its arrays must not be changed."""
        sample = self._kept.get(index)
        if sample is None:
            entry = self.entries[index]
            sample = entry.form.read(entry.row)
            arrays = (sample.left, sample.right, sample.disparity)
            size = sum(array.nbytes for array in arrays)
            if size <= self._room:
                self._room -= size
                self._kept[index] = sample
        return sample


class TrainingCrops(Dataset[Batch]):
    """Augmented crops, indexed by (epoch, index)."""

    def __init__(self, entries: Sequence[Entry], spec: ExperimentSpec, seed: int) -> None:
        split = spec.dataset.train_dataset
        self._samples = _Samples(entries, _DECODED_BYTES // max(1, _workers(split)))
        self._augmentation = split.augmentation
        self._tensors = _Tensors(split.augmentation, disparity_limit(spec))
        self._seed = seed

    def __len__(self) -> int:
        return len(self._samples.entries)

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        epoch, index = key
        entry = self._samples.entries[index]
        rng = np.random.default_rng((self._seed, epoch, entry.source, entry.index))
        crop = augment(self._samples.read(index), self._augmentation, rng)
        return self._tensors(crop, index)


class WholePairs(Dataset[Batch]):
    """Pairs as they are, indexed in file order."""

    def __init__(
        self,
        entries: Sequence[Entry],
        spec: ExperimentSpec,
        augmentation: StereoAugmentSpec,
        budget: int,
    ) -> None:
        self.entries = entries
        self._samples = _Samples(entries, budget)
        self._tensors = _Tensors(augmentation, disparity_limit(spec))

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Batch:
        return self._tensors(self._samples.read(index), index)


class _Tensors:
    """Turns a sample into the arrays of a batch of one."""

    def __init__(self, augmentation: StereoAugmentSpec, limit: float) -> None:
        values = np.arange(256)[:, None] / 255
        mean, std = np.array(augmentation.input_mean), np.array(augmentation.input_std)
        table = ((values - mean) / std).astype(np.float32)  # (256, 3)
        self._tables = [np.ascontiguousarray(table[:, channel]) for channel in range(3)]
        self._limit = limit

    def __call__(self, sample: StereoSample, index: int) -> Batch:
        valid = sample.disparity < self._limit
        return {
            "left": self._normalised(sample.left),
            "right": self._normalised(sample.right),
            "disparity": sample.disparity[None],
            "valid": valid[None],
            "truth_pixels": int(sample.valid.sum()),
            "has_gt": sample.has_gt,
            "name": sample.name,
            "index": index,
        }

    def _normalised(self, image: Image) -> FloatMap:
        """Float32 (3, H, W); a table look-up is four times as fast as arithmetic."""
        planes = np.empty((3, *image.shape[:2]), np.float32)
        for channel, table in enumerate(self._tables):
            cv2.LUT(cv2.extractChannel(image, channel), table, dst=planes[channel])
        return planes


def collate(items: Sequence[Batch]) -> Batch:
    """Stack samples of equal size into a batch."""
    stacked = ("left", "right", "disparity", "valid")
    batch: Batch = {
        key: torch.as_tensor(np.stack([item[key] for item in items])) for key in stacked
    }
    batch["truth_pixels"] = torch.tensor([item["truth_pixels"] for item in items])
    batch["has_gt"] = torch.tensor([item["has_gt"] for item in items])
    batch["name"] = [item["name"] for item in items]
    batch["index"] = torch.tensor([item["index"] for item in items])
    return batch


def _entries(split: SplitSpec, *, inference: bool = False) -> list[Entry]:
    """All samples of a split; every fault of its annotation files in one error."""
    entries, faults = _parse(split, inference=inference)
    raise_faults(faults)
    return entries


def _parse(split: SplitSpec, *, inference: bool) -> tuple[list[Entry], list[str]]:
    """Samples and faults of a split."""
    entries: list[Entry] = []
    faults: list[str] = (
        [] if split.data_sources else ["data_sources: empty; name a dataset_name and a data_file"]
    )
    for number, source in enumerate(split.data_sources or []):
        path = Path(source.data_file).expanduser()
        try:
            form = find_format(source.dataset_name)
        except DataError as error:
            faults.append(f"{path}: {error}")
            continue
        rows, reasons = parse(path, form, inference=inference)
        faults += reasons
        if not inference and rows and rows[0].disparity is None:
            faults.append(f"{rows[0].where}: no ground truth; add the disparity as third column")
        entries += [Entry(form, row, number, index) for index, row in enumerate(rows)]
    return entries, faults


def _require_batch(entries: Sequence[Entry], split: SplitSpec) -> None:
    if len(entries) < split.batch_size:
        raise DataError(_too_few(split, len(entries)), exit_code=2)


def _too_few(split: SplitSpec, pairs: int) -> str:
    files = ", ".join(source.data_file for source in split.data_sources or [])
    return (
        f"{files}: {pairs} pairs, fewer than dataset.train_dataset.batch_size "
        f"({split.batch_size}). Use a smaller batch or more data"
    )


def _whole_loader(pairs: WholePairs, split: SplitSpec, batch_size: int) -> DataLoader[Batch]:
    log.info("%d pairs are read at native size; crop_size acts on training only", len(pairs))
    return _loader(pairs, split, batch_sampler=SameSizeBatches(pairs.entries, batch_size))


def _loader(dataset: Dataset[Batch], split: SplitSpec, **order: Any) -> DataLoader[Batch]:
    """A loader with capped workers; OpenCV's own threads would fight torch's for the cores."""
    cv2.setNumThreads(0)
    workers = _workers(split)
    if workers < split.workers:
        log.warning(
            "workers: %d asked, this machine has %d cores; using that", split.workers, workers
        )
    return DataLoader(
        dataset,
        num_workers=workers,
        pin_memory=split.pin_memory and torch.cuda.is_available(),
        collate_fn=collate,
        worker_init_fn=_start_worker,
        persistent_workers=workers > 0 and "sampler" in order,
        **order,
    )


def _start_worker(_worker: int) -> None:
    cv2.setNumThreads(0)


def _workers(split: SplitSpec) -> int:
    """Worker processes to start: as asked, at most one per core this process may use."""
    may_ask = hasattr(os, "sched_getaffinity")  # not on macOS
    return min(split.workers, len(os.sched_getaffinity(0)) if may_ask else os.cpu_count() or 1)


class _Survey:
    """Facts of a split, collected sample by sample."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._sizes: Counter[tuple[int, int]] = Counter()
        self._lowest, self._highest = np.inf, -np.inf
        self._valid = 0

    def add(self, sample: StereoSample) -> None:
        height, width = sample.disparity.shape
        self._sizes[height, width] += 1
        known = sample.disparity[sample.valid]
        self._lowest = min(self._lowest, float(known.min(initial=np.inf)))
        self._highest = max(self._highest, float(known.max(initial=-np.inf)))
        self._valid += int((known < self._limit).sum())

    def facts(self) -> SplitFacts:
        pixels = sum(height * width * count for (height, width), count in self._sizes.items())
        has_truth = self._lowest <= self._highest
        return SplitFacts(
            pairs=sum(self._sizes.values()),
            sizes=dict(self._sizes),
            min_disparity=self._lowest if has_truth else None,
            max_disparity=self._highest if has_truth else None,
            valid_share=self._valid / pixels if pixels else 0.0,
        )


def _unusable(
    spec: ExperimentSpec, name: str, facts: SplitFacts, entries: Sequence[Entry]
) -> list[str]:
    """Why readable files are of no use for their split."""
    split: SplitSpec = getattr(spec.dataset, name)
    if name == "train_dataset" and facts.pairs < split.batch_size:
        return [_too_few(split, facts.pairs)]
    if name == "infer_dataset" or facts.valid_share > 0:
        return []
    found = "no known disparity"
    if facts.min_disparity is not None:
        found = f"disparity {facts.min_disparity:g}..{facts.max_disparity:g} px"
    return [
        f"{entries[0].row.source}: no usable ground truth: {found}, usable is above 0 and below "
        f"{disparity_limit(spec):g} px. Check dataset_name (the encoding) and max_disparity"
    ]
