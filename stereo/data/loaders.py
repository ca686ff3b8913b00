"""Spec to batches: training crops, and evaluation that scores at native size.

A training sample is a function of (seed, epoch, source, index) alone: the sampler hands out
(epoch, index) pairs and each sample has its own generator, so worker count and batch size do not
matter. Validation, evaluation and inference read whole samples. All of them read through the
decoded cache. What a batch holds, and what a family of networks does with a sample: `batches`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from stereo.data.annotations import Row, parse, raise_faults
from stereo.data.augment_stereo import varying_fields
from stereo.data.batches import Batch, Preparation, Sample, Size, preparation
from stereo.data.cache import SampleCache, open_cache, read_sample
from stereo.data.datasets import Format, family_of, find_format
from stereo.data.encodings import read_image_size
from stereo.data.suspects import mistaken_unit
from stereo.errors import DataError
from stereo.spec.data import SplitSpec
from stereo.spec.experiment import ExperimentSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One sample of a split: its class, its row and its place."""

    form: Format
    row: Row
    source: int  # index of the data source within the split
    index: int  # index of the row within the source


class DataModule:
    """Training and validation data of an experiment.

    Args:
        spec: the experiment; `dataset.train_dataset` and `dataset.val_dataset` are used.
        seed: of order and augmentation; negative draws one.

    Raises:
        DataError: a faulty annotation file, or fewer training samples than a batch (exit code 2).
    """

    def __init__(self, spec: ExperimentSpec, seed: int) -> None:
        split = spec.dataset.train_dataset
        entries = entries_of(split, spec)
        prepare = preparation(spec, split.augmentation)
        _require_batch(entries, split, prepare.samples)
        self._seed = seed if seed >= 0 else int(np.random.SeedSequence().generate_state(1)[0])
        self._entries, self._augmentation = entries, split.augmentation
        self._order = EpochSampler(len(entries), self._seed)
        cache = open_cache(spec.dataset)
        dataset = TrainingCrops(entries, prepare, self._seed, cache)
        self._train = _loader(
            dataset, split, sampler=self._order, batch_size=split.batch_size, drop_last=True
        )
        self._val = self._validation(spec, cache)

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass over the training data the one of `epoch`, 0-based."""
        self._order.set_epoch(epoch)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled random crops; the last partial batch is dropped."""
        return self._train

    def varying_fields(self) -> list[str]:
        """Keys by which the training images of a sample differ from epoch to epoch, of pairs.

        The first sample of every source tells whether crops are whole images.
        """
        first = {entry.source: entry.row.left for entry in reversed(self._entries)}
        sizes = map(read_image_size, first.values())
        names = {name for size in sizes for name in varying_fields(self._augmentation, size)}
        return [f"dataset.train_dataset.augmentation.{name}" for name in sorted(names)]

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """Whole validation samples; an empty list without validation data."""
        return self._val

    @staticmethod
    def _validation(
        spec: ExperimentSpec, cache: SampleCache | None
    ) -> DataLoader[Batch] | list[Any]:
        split = spec.dataset.val_dataset
        if not split.data_sources:
            return []
        samples = WholeSamples(
            entries_of(split, spec), preparation(spec, split.augmentation), cache
        )
        return _whole_loader(samples, split, split.batch_size)


def evaluation_loader(
    split: SplitSpec,
    spec: ExperimentSpec,
    *,
    batch_size: int,
    inference: bool = False,
    input_size: Size | None = None,
) -> DataLoader[Batch]:
    """Whole samples of a split with their truth at native size, in file order.

    Neighbours of equal size share a batch; a batch ends where the size changes.

    Args:
        split: data sources, workers and normalisation.
        spec: the experiment, for the limits of the ground truth.
        batch_size: largest batch.
        inference: ground truth is not needed.
        input_size: [height, width] px that single images are resized to; None: as far as they
            cover `augmentation.crop_size`, keeping the aspect. Pairs stay as they are.

    Raises:
        DataError: faulty annotation files, listed with line and reason, or ground truth in
            another unit than its class reads (exit code 2).
    """
    entries = entries_of(split, spec, inference=inference)
    tiled = spec.train.inference_tile
    prepare = preparation(spec, split.augmentation, input_size, keep_native=tiled)
    if not inference:
        raise_faults(_mistaken_units(entries, prepare))
    samples = WholeSamples(entries, prepare, open_cache(spec.dataset))
    return _whole_loader(samples, split, batch_size)


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


class TrainingCrops(Dataset[Batch]):
    """Augmented crops, indexed by (epoch, index)."""

    def __init__(
        self, entries: Sequence[Entry], prepare: Preparation, seed: int, cache: SampleCache | None
    ) -> None:
        self._entries = entries
        self._prepare = prepare
        self._seed = seed
        self._cache = cache

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        epoch, index = key
        entry = self._entries[index]
        rng = np.random.default_rng((self._seed, epoch, entry.source, entry.index))
        sample, from_cache = read_sample(entry.form, entry.row, self._cache)
        return {**self._prepare.crop(sample, rng), **_facts(sample, index, from_cache)}


class WholeSamples(Dataset[Batch]):
    """Samples as they are scored, indexed in file order."""

    def __init__(
        self, entries: Sequence[Entry], prepare: Preparation, cache: SampleCache | None
    ) -> None:
        self.entries = entries
        self.prepare = prepare
        self._cache = cache

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Batch:
        entry = self.entries[index]
        sample, from_cache = read_sample(entry.form, entry.row, self._cache)
        return {**self.prepare.whole(sample, entry.form), **_facts(sample, index, from_cache)}


def _facts(sample: Sample, index: int, from_cache: bool) -> Batch:
    return {
        "has_gt": sample.has_gt,
        "name": sample.name,
        "index": index,
        "from_cache": from_cache,
    }


def collate(items: Sequence[Batch]) -> Batch:
    """Stack samples of equal size into a batch."""
    batch: Batch = {}
    for key, value in items[0].items():
        values = [item[key] for item in items]
        if isinstance(value, np.ndarray):
            batch[key] = torch.as_tensor(np.stack(values))
        else:
            batch[key] = values if isinstance(value, str) else torch.tensor(values)
    return batch


class Reads:
    """Samples of a pass, by whether their files had to be decoded."""

    def __init__(self) -> None:
        self.cached = self.decoded = 0

    def add(self, from_cache: Iterable[bool]) -> None:
        """Count samples."""
        for cached in from_cache:
            self.cached += cached
            self.decoded += not cached

    def log(self, samples: str) -> None:
        """Write the line of the pass into the log, if it read anything, and start anew.

        Args:
            samples: what was read, for example `training pairs`.
        """
        total = self.cached + self.decoded
        if total:
            text = "data: %d of %d %s from the cache, %d decoded"
            log.info(text, self.cached, total, samples, self.decoded)
        self.cached = self.decoded = 0


def entries_of(split: SplitSpec, spec: ExperimentSpec, *, inference: bool = False) -> list[Entry]:
    """All samples of a split; every fault of its annotation files in one error."""
    entries, faults = parse_split(split, spec, inference=inference)
    raise_faults(faults)
    return entries


def parse_split(
    split: SplitSpec, spec: ExperimentSpec, *, inference: bool
) -> tuple[list[Entry], list[str]]:
    """Samples and faults of a split."""
    entries: list[Entry] = []
    faults: list[str] = (
        [] if split.data_sources else ["data_sources: empty; name a dataset_name and a data_file"]
    )
    family = family_of(spec.dataset.dataset_name)
    for number, source in enumerate(split.data_sources or []):
        try:
            form = find_format(source.dataset_name, family)
        except DataError as error:
            faults.append(f"{source.data_file}: {error}")
            continue
        rows, reasons = parse(source.data_file, form, inference=inference)
        faults += reasons
        entries += [Entry(form, row, number, index) for index, row in enumerate(rows)]
    return entries, faults


def _require_batch(entries: Sequence[Entry], split: SplitSpec, samples: str) -> None:
    if len(entries) < split.batch_size:
        raise DataError(too_few(split, len(entries), samples), exit_code=2)


def too_few(split: SplitSpec, count: int, samples: str) -> str:
    """What to say of a training split that is smaller than its batch."""
    files = ", ".join(source.data_file for source in split.data_sources or [])
    return (
        f"{files}: {count} {samples}, fewer than dataset.train_dataset.batch_size "
        f"({split.batch_size}). Use a smaller batch or more data"
    )


def _mistaken_units(entries: Sequence[Entry], prepare: Preparation) -> list[str]:
    """What is wrong with the unit of the ground truth; the first sample of a source decides."""
    first = {entry.source: entry for entry in reversed(entries)}
    told = (
        (entry.row, mistaken_unit(entry.form, entry.row, prepare.limits))
        for entry in reversed(first.values())
    )
    return [f"{row.source}: {mistaken}" for row, mistaken in told if mistaken]


def _whole_loader(samples: WholeSamples, split: SplitSpec, batch_size: int) -> DataLoader[Batch]:
    log.info("%d %s", len(samples), samples.prepare.whole_words)
    return _loader(samples, split, batch_sampler=SameSizeBatches(samples.entries, batch_size))


def _loader(dataset: Dataset[Batch], split: SplitSpec, **order: Any) -> DataLoader[Batch]:
    """A loader with capped workers, which start as the platform starts processes.

    Forked or spawned, they give the same samples. OpenCV's own threads would fight torch's for the
    cores.
    """
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
