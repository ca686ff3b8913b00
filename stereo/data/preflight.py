"""The check of all files of a split before they are used; what it decodes fills the cache."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from stereo.data.annotations import raise_faults
from stereo.data.batches import Preparation, Sample, Size, preparation
from stereo.data.cache import open_cache, read_sample, require
from stereo.data.datasets import truth_of
from stereo.data.loaders import Entry, Reads, parse_split, too_few
from stereo.data.remote import RemoteFile
from stereo.data.suspects import found_instead, mistaken_unit
from stereo.errors import DataError
from stereo.spec.data import SplitSpec
from stereo.spec.experiment import ExperimentSpec

log = logging.getLogger(__name__)

_DECODED_BEFOREHAND = 2000  # samples per split; of a larger one a sample, seconds to a minute


@dataclass(frozen=True)
class SplitFacts:
    """What `preflight` found in a split; truth and share are of the decoded samples.

    Attributes:
        samples: number of samples.
        sizes: samples per image size (H, W) in px, as far as they were looked at.
        least: smallest known truth, None without any: disparity px, or depth m.
        greatest: largest known truth, before the limits, None without any.
        valid_share: share of the pixels whose truth is known and usable.
    """

    samples: int
    sizes: dict[Size, int]
    least: float | None
    greatest: float | None
    valid_share: float


def preflight(
    spec: ExperimentSpec,
    splits: Sequence[str],
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, SplitFacts]:
    """Check the files of the splits before they are used; what is decoded fills the cache.

    Every file of a split with at most 2000 samples is read completely. Of a larger split that is
    done for a seeded choice of 2000; of the others, head and length of each file are read, which
    finds a wrong size or encoding and a cut PFM, but neither damage within a file nor the end of a
    cut image. Of these others, samples with a remote file are not looked at.

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
        entries[name], reasons = parse_split(split, spec, inference=name == "infer_dataset")
        faults += reasons
    total, done = sum(map(len, entries.values())), 0
    facts: dict[str, SplitFacts] = {}
    cache, reads = open_cache(spec.dataset, quiet=True), Reads()
    for name, samples in entries.items():
        prepare = preparation(spec, getattr(spec.dataset, name).augmentation)
        survey = _Survey(prepare, scored=name != "train_dataset")
        decoded = _decoded_beforehand(name, len(samples), prepare.samples)
        for number, entry in enumerate(samples):
            try:
                if number in decoded:
                    sample, from_cache = read_sample(entry.form, entry.row, cache)
                    survey.add(sample, entry)
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
            faults += _unusable(spec, name, facts[name], survey)
    reads.log("samples of the check")
    raise_faults(faults)
    if cache is not None:
        require(spec.dataset, cache.directory, cache.stopped or cache.full)
    return facts


def _decoded_beforehand(name: str, count: int, samples: str) -> Container[int]:
    """Numbers of the samples of a split that the check decodes."""
    if count <= _DECODED_BEFOREHAND:
        return range(count)
    log.info(
        "data: of the %d %s of %s a sample of %d is decoded beforehand, of the others only the"
        " heads of local files are read",
        count,
        samples,
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


@dataclass
class _Source:
    """Truth of the decoded samples of one data source."""

    first: Entry
    least: float = np.inf
    greatest: float = -np.inf
    usable: int = 0  # pixels


class _Survey:
    """Facts of a split, collected sample by sample."""

    def __init__(self, prepare: Preparation, *, scored: bool) -> None:
        self.prepare = prepare
        self.sources: dict[int, _Source] = {}
        self._scored = scored
        self._sizes: Counter[Size] = Counter()
        self._samples = self._pixels = 0

    def add(self, sample: Sample, entry: Entry) -> None:
        truth = truth_of(sample)
        height, width = truth.shape
        self.add_undecoded((height, width))
        known = truth[sample.valid]
        usable = self.prepare.usable(sample, entry.form, scored=self._scored)
        source = self.sources.setdefault(entry.source, _Source(entry))
        source.least = min(source.least, float(known.min(initial=np.inf)))
        source.greatest = max(source.greatest, float(known.max(initial=-np.inf)))
        source.usable += int(np.count_nonzero(usable))
        self._pixels += height * width

    def add_undecoded(self, size: Size | None) -> None:
        self._samples += 1
        if size is not None:
            self._sizes[size] += 1

    def facts(self) -> SplitFacts:
        least = min((source.least for source in self.sources.values()), default=np.inf)
        greatest = max((source.greatest for source in self.sources.values()), default=-np.inf)
        usable = sum(source.usable for source in self.sources.values())
        return SplitFacts(
            samples=self._samples,
            sizes=dict(self._sizes),
            least=least if least <= greatest else None,
            greatest=greatest if least <= greatest else None,
            valid_share=usable / self._pixels if self._pixels else 0.0,
        )


def _unusable(spec: ExperimentSpec, name: str, facts: SplitFacts, survey: _Survey) -> Iterator[str]:
    """Why readable files are of no use for their split."""
    split: SplitSpec = getattr(spec.dataset, name)
    prepare = survey.prepare
    if name == "train_dataset" and facts.samples < split.batch_size:
        yield too_few(split, facts.samples, prepare.samples)
    if name == "infer_dataset":
        return
    for source in survey.sources.values():
        entry = source.first
        if source.usable:
            if mistaken := mistaken_unit(entry.form, entry.row, prepare.limits):
                yield f"{entry.row.source}: {mistaken}"
            continue
        found = f"no known {prepare.quantity}"
        if source.least <= source.greatest:
            found = f"{prepare.quantity} {source.least:g}..{source.greatest:g}{prepare.unit}"
        instead = found_instead(entry.form, entry.row)
        yield (
            f"{entry.row.source}: no usable ground truth: {found}, usable is "
            f"{prepare.usable_words}. {instead}{'. ' if instead else ''}"
            f"Check dataset_name (the encoding){prepare.limit_keys}"
        )
