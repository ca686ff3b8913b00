"""Spec to batches: training crops, native-size evaluation, and the check of all files beforehand.

A training sample is a function of (seed, epoch, source, index) alone: the sampler hands out
(epoch, index) pairs and each sample has its own generator, so worker count and batch size do not
matter. Validation, evaluation and inference read whole pairs at native size. All of them, and the
check, read through the decoded cache.

| key of a batch | content |
|---|---|
| left, right | float32 (B, 3, H, W), (x / 255 - mean) / std |
| disparity | float32 (B, 1, H, W) px, +inf where unknown |
| valid | bool (B, 1, H, W): known and below min(dataset.max_disparity, model.max_disparity) |
| truth_pixels | int64 (B,): known pixels before that limit |
| has_gt | bool (B,): the sample came with ground truth |
| name | list of B texts |
| index | int64 (B,): place in the split, 0-based, in file order |
| from_cache | bool (B,): the files did not have to be decoded |
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeAlias

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from stereo.data.annotations import Row, parse, raise_faults
from stereo.data.augment_stereo import augment
from stereo.data.cache import SampleCache, open_cache, read_sample, require
from stereo.data.datasets import StereoFormat, StereoSample, find_format
from stereo.data.encodings import FloatMap, Image, read_image_size
from stereo.data.remote import RemoteFile
from stereo.errors import DataError
from stereo.spec.data import SplitSpec, StereoAugmentSpec
from stereo.spec.experiment import ExperimentSpec, disparity_limit

Batch: TypeAlias = dict[str, Any]

log = logging.getLogger(__name__)

_DECODED_BEFOREHAND = 2000  # pairs per split; of a larger one a sample, seconds to a minute


@dataclass(frozen=True)
class Entry:
    """One sample of a split: its class, its row and its place."""

    form: StereoFormat
    row: Row
    source: int  # index of the data source within the split
    index: int  # index of the row within the source


@dataclass(frozen=True)
class SplitFacts:
    """What `preflight` found in a split; disparities and the share are of the decoded samples.

    Attributes:
        pairs: number of samples.
        sizes: samples per image size (H, W) in px, as far as they were looked at.
        min_disparity: smallest known disparity in px, None without any.
        max_disparity: largest known disparity in px, before the limit, None without any.
        valid_share: share of the pixels whose truth is known and below the limit.
    """

    pairs: int
    sizes: dict[tuple[int, int], int]
    min_disparity: float | None
    max_disparity: float | None
    valid_share: float


class StereoDataModule:
    """Training and validation data of an experiment.

    Args:
        spec: the experiment; `dataset.train_dataset` and `dataset.val_dataset` are used.
        seed: of order and augmentation; negative draws one.

    Raises:
        DataError: a faulty annotation file, or fewer training samples than a batch (exit code 2).
    """

    def __init__(self, spec: ExperimentSpec, seed: int) -> None:
        split = spec.dataset.train_dataset
        entries = _entries(split)
        _require_batch(entries, split)
        self._seed = seed if seed >= 0 else int(np.random.SeedSequence().generate_state(1)[0])
        self._order = EpochSampler(len(entries), self._seed)
        cache = open_cache(spec.dataset)
        dataset = TrainingCrops(entries, spec, self._seed, cache)
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

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """Whole validation pairs at native size; an empty list without validation data."""
        return self._val

    @staticmethod
    def _validation(
        spec: ExperimentSpec, cache: SampleCache | None
    ) -> DataLoader[Batch] | list[Any]:
        split = spec.dataset.val_dataset
        if not split.data_sources:
            return []
        entries = _entries(split)
        pairs = WholePairs(entries, spec, split.augmentation, cache)
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
    pairs = WholePairs(entries, spec, split.augmentation, open_cache(spec.dataset))
    return _whole_loader(pairs, split, batch_size)


def preflight(
    spec: ExperimentSpec,
    splits: Sequence[str],
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, SplitFacts]:
    """Check the files of the splits before they are used; what is decoded fills the cache.

    Every file of a split with at most 2000 pairs is read completely. Of a larger split that is done
    for a seeded sample of 2000 pairs; of the others, head and length of each file are read, which
    finds a wrong size or encoding and a cut PFM, but neither damage within a file nor the end of a
    cut image. Of these others, pairs with a remote file are not looked at.

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
    cache, reads = open_cache(spec.dataset, quiet=True), Reads()
    for name, samples in entries.items():
        survey = _Survey(disparity_limit(spec))
        decoded = _decoded_beforehand(name, len(samples))
        for number, entry in enumerate(samples):
            try:
                if number in decoded:
                    sample, from_cache = read_sample(entry.form, entry.row, cache)
                    survey.add(sample)
                    reads.add([from_cache])
                else:
                    survey.add_undecoded(_size_in_heads(entry))
            except DataError as error:
                faults.append(str(error))
            done += 1
            if progress is not None:
                progress(done, total)
        facts[name] = survey.facts()
        if not faults:
            faults += _unusable(spec, name, facts[name], samples)
    reads.log("pairs of the check")
    raise_faults(faults)
    if cache is not None:
        require(spec.dataset, cache.directory, cache.stopped or cache.full)
    return facts


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
        self, entries: Sequence[Entry], spec: ExperimentSpec, seed: int, cache: SampleCache | None
    ) -> None:
        self._entries = entries
        self._augmentation = spec.dataset.train_dataset.augmentation
        self._limit = disparity_limit(spec)
        self._tensors = _Tensors(self._augmentation, self._limit)
        self._seed = seed
        self._cache = cache

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        epoch, index = key
        entry = self._entries[index]
        rng = np.random.default_rng((self._seed, epoch, entry.source, entry.index))
        sample, from_cache = read_sample(entry.form, entry.row, self._cache)
        crop = augment(sample, self._augmentation, rng, limit=self._limit)
        return self._tensors(crop, index, from_cache=from_cache)


class WholePairs(Dataset[Batch]):
    """Pairs as they are, indexed in file order."""

    def __init__(
        self,
        entries: Sequence[Entry],
        spec: ExperimentSpec,
        augmentation: StereoAugmentSpec,
        cache: SampleCache | None,
    ) -> None:
        self.entries = entries
        self._tensors = _Tensors(augmentation, disparity_limit(spec))
        self._cache = cache

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Batch:
        entry = self.entries[index]
        sample, from_cache = read_sample(entry.form, entry.row, self._cache)
        return self._tensors(sample, index, from_cache=from_cache)


class _Tensors:
    """Turns a sample into the arrays of a batch of one."""

    def __init__(self, augmentation: StereoAugmentSpec, limit: float) -> None:
        values = np.arange(256)[:, None] / 255
        mean, std = np.array(augmentation.input_mean), np.array(augmentation.input_std)
        table = ((values - mean) / std).astype(np.float32)  # (256, 3)
        self._tables = [np.ascontiguousarray(table[:, channel]) for channel in range(3)]
        self._limit = limit

    def __call__(self, sample: StereoSample, index: int, *, from_cache: bool) -> Batch:
        valid = sample.disparity < self._limit
        return {
            "left": self._normalised(sample.left),
            "right": self._normalised(sample.right),
            "disparity": sample.disparity[None],
            "valid": valid[None],
            "truth_pixels": np.count_nonzero(sample.valid),
            "has_gt": sample.has_gt,
            "name": sample.name,
            "index": index,
            "from_cache": from_cache,
        }

    def _normalised(self, image: Image) -> FloatMap:
        """Float32 (3, H, W); a table look-up is four times as fast as arithmetic."""
        planes = np.empty((3, *image.shape[:2]), np.float32)
        for channel, values in enumerate(cv2.split(image)):
            cv2.LUT(values, self._tables[channel], dst=planes[channel])
        return planes


def collate(items: Sequence[Batch]) -> Batch:
    """Stack samples of equal size into a batch."""
    stacked = ("left", "right", "disparity", "valid")
    batch: Batch = {
        key: torch.as_tensor(np.stack([item[key] for item in items])) for key in stacked
    }
    for key in ("truth_pixels", "has_gt", "index", "from_cache"):
        batch[key] = torch.tensor([item[key] for item in items])
    batch["name"] = [item["name"] for item in items]
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
        try:
            form = find_format(source.dataset_name)
        except DataError as error:
            faults.append(f"{source.data_file}: {error}")
            continue
        rows, reasons = parse(source.data_file, form, inference=inference)
        faults += reasons
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


def _decoded_beforehand(name: str, count: int) -> Container[int]:
    """Numbers of the samples of a split that the check decodes."""
    if count <= _DECODED_BEFOREHAND:
        return range(count)
    log.info(
        "data: of the %d pairs of %s a sample of %d is decoded beforehand, of the others only the"
        " heads of local files are read",
        count,
        name,
        _DECODED_BEFOREHAND,
    )
    return set(np.random.default_rng(count).permutation(count)[:_DECODED_BEFOREHAND].tolist())


def _size_in_heads(entry: Entry) -> tuple[int, int] | None:
    """Height and width of the files of a sample by their heads; None where one is remote."""
    row = entry.row
    files = (row.left, row.right, row.disparity, row.occlusion)
    if any(isinstance(file, RemoteFile) for file in files):
        return None
    return entry.form.heads(row)


class _Survey:
    """Facts of a split, collected sample by sample."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._sizes: Counter[tuple[int, int]] = Counter()
        self._lowest, self._highest = np.inf, -np.inf
        self._pairs = self._valid = self._pixels = 0

    def add(self, sample: StereoSample) -> None:
        height, width = sample.disparity.shape
        self.add_undecoded((height, width))
        known = sample.disparity[sample.valid]
        self._lowest = min(self._lowest, float(known.min(initial=np.inf)))
        self._highest = max(self._highest, float(known.max(initial=-np.inf)))
        self._valid += np.count_nonzero(known < self._limit)
        self._pixels += height * width

    def add_undecoded(self, size: tuple[int, int] | None) -> None:
        self._pairs += 1
        if size is not None:
            self._sizes[size] += 1

    def facts(self) -> SplitFacts:
        has_truth = self._lowest <= self._highest
        return SplitFacts(
            pairs=self._pairs,
            sizes=dict(self._sizes),
            min_disparity=self._lowest if has_truth else None,
            max_disparity=self._highest if has_truth else None,
            valid_share=self._valid / self._pixels if self._pixels else 0.0,
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
