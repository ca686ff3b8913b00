"""Measures the data of a spec before training and says what looks wrong with it.

Headers of at most 20 000 samples per source are read, some samples completely; which ones
depends on the number of rows alone. Faults (nothing can be trained on that row) and warnings
(readable, but probably not what was meant) are kept apart. `check_report` prints and draws.

Units: disparity px, errors grey levels 0..255, shares 0..1, sizes (H, W) px.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from stereo.data.annotations import Row, parse
from stereo.data.batches import Preparation, Size, preparation
from stereo.data.consistency import explain
from stereo.data.datasets import Format, MonoFormat, StereoFormat, family_of, find_format
from stereo.data.encodings import read_image
from stereo.data.pair_facts import PairFacts, measure, notes_of, warnings_of
from stereo.data.sample_facts import (
    ImageFacts,
    SampleFacts,
    image_notes,
    image_warnings,
    measure_image,
)
from stereo.errors import DataError
from stereo.spec.data import DataSource, SplitSpec
from stereo.spec.experiment import ExperimentSpec

Progress = Callable[[str, int, int], None]  # what is done, steps done, steps in all

PAIRS = 32  # read completely per source unless told otherwise
HEADERS = 20_000  # pairs whose headers are read; of more rows, a sample

_SEED = 1234
_HEADERS_AT_A_TIME = 16  # a header of a remote file is a request
_EXPLAINED = 3  # files that their class refuses: how many are tried otherwise, per source


@dataclass(frozen=True)
class SourceReport:
    """What was found in one data source.

    Attributes:
        split: section of `dataset`.
        dataset: class name.
        file: annotation file as the spec names it.
        prepare: which truth is usable, and the words for it.
        samples: rows without fault in the annotation file.
        headers: samples whose headers were read.
        sizes: samples per image size (H, W), most frequent first.
        facts: of the samples that were read completely.
        faults: `file:line: reason`.
        warnings: what looks wrong, with a remedy.
        notes: what a user may want to know.
    """

    split: str
    dataset: str
    file: str
    prepare: Preparation = field(compare=False)
    samples: int
    headers: int
    sizes: dict[Size, int]
    facts: tuple[SampleFacts, ...]
    faults: tuple[str, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def truth(self) -> tuple[float, float] | None:
        """Smallest and largest known truth."""
        ranges = [fact.truth for fact in self.facts if fact.truth is not None]
        return (min(low for low, _ in ranges), max(high for _, high in ranges)) if ranges else None

    @property
    def valid_share(self) -> float | None:
        """Share of the pixels whose truth is known and usable; None without truth."""
        pixels = sum(fact.pixels for fact in self.facts if fact.row.disparity is not None)
        known = sum(fact.known - fact.outside for fact in self.facts)
        return known / pixels if pixels else None

    @property
    def outside_share(self) -> float:
        """Share of the known truth that is not usable."""
        known = sum(fact.known for fact in self.facts)
        return sum(fact.outside for fact in self.facts) / known if known else 0.0

    @property
    def errors(self) -> tuple[float, float] | None:
        """Photo-consistency with the truth and at disparity 0: medians over the pairs."""
        errors = [fact.errors for fact in self._pairs if fact.errors is not None]
        if not errors:
            return None
        truth, zero = np.median(np.array(errors), axis=0).tolist()
        return truth, zero

    @property
    def row_offsets(self) -> tuple[float, ...]:
        """Row offsets in px of the pairs where one explains the pair."""
        found = (fact.explanation.row_offset for fact in self._pairs if fact.explanation)
        return tuple(offset for offset in found if offset is not None)

    @property
    def _pairs(self) -> list[PairFacts]:
        return [fact for fact in self.facts if isinstance(fact, PairFacts)]


@dataclass(frozen=True)
class CheckReport:
    """What was found in the data of a spec.

    Attributes:
        sources: in the order of the spec.
        warnings: those that concern several sources.
    """

    sources: tuple[SourceReport, ...]
    warnings: tuple[str, ...]

    @property
    def faults(self) -> list[str]:
        """Faults of all sources."""
        return [fault for source in self.sources for fault in source.faults]

    @property
    def warning_count(self) -> int:
        """Warnings of all sources and across them."""
        return len(self.warnings) + sum(len(source.warnings) for source in self.sources)


def check_data(
    spec: ExperimentSpec,
    splits: Sequence[str],
    *,
    pairs: int | None = PAIRS,
    headers: int = HEADERS,
    progress: Progress | None = None,
) -> CheckReport:
    """Measure every data source of the splits.

    Args:
        spec: the experiment.
        splits: sections of `dataset`, for example `train_dataset`.
        pairs: how many samples of a source are read completely; None reads all.
        headers: of how many samples of a source at most the headers are read.
        progress: told what is done and how far.

    Raises:
        DataError: the splits name no source (exit code 2).
    """
    family = family_of(spec.dataset.dataset_name)
    reports: list[SourceReport] = []
    seen: dict[str, dict[str, Row]] = {}
    for name in splits:
        split: SplitSpec = getattr(spec.dataset, name)
        prepare = preparation(spec, split.augmentation)
        for source in split.data_sources or []:
            form = find_format(source.dataset_name, family)
            checker = _Checker(name, split, source, form, prepare, progress)
            reports.append(checker.check(pairs, headers))
            seen.setdefault(name, {}).update((_key(row), row) for row in checker.rows)
    if not reports:
        raise DataError(_nothing(splits), exit_code=2)
    overlap = _overlap(seen.get("train_dataset", {}), seen.get("val_dataset", {}))
    return CheckReport(tuple(reports), tuple(overlap))


def _nothing(splits: Sequence[str]) -> str:
    if not splits:
        return "nothing to check: the verb reads no data. Use --action train, evaluate or inference"
    keys = ", ".join(f"dataset.{name}.data_sources" for name in splits)
    return f"nothing to check: {keys} is empty. Name a dataset_name and a data_file"


def _key(row: Row) -> str:
    """The same for every way to write the path of a left image."""
    if isinstance(row.left, Path):
        return os.path.normpath(row.left.absolute())
    return str(row.left)


def _overlap(train: dict[str, Row], val: dict[str, Row]) -> list[str]:
    """A warning when a left image is used for training and for validation."""
    shared = [key for key in val if key in train]
    if not shared:
        return []
    first = val[shared[0]]
    return [
        f"{len(shared)} of {len(val)} left images of val_dataset are also in train_dataset, first "
        f"{first.where} and {train[shared[0]].where}: {shared[0]}. Validation then measures what "
        "was memorised; remove the lines from one of the files"
    ]


class _Checker:
    """Checks one source; collects its faults on the way."""

    def __init__(
        self,
        split: str,
        spec: SplitSpec,
        source: DataSource,
        form: Format,
        prepare: Preparation,
        progress: Progress | None,
    ) -> None:
        self._split = split
        self._spec = spec
        self._source = source
        self._form = form
        self._prepare = prepare
        self._progress = progress
        self._faults: list[str] = []
        self._faulty_lines: set[int] = set()
        self._refused = 0
        self.rows: list[Row] = []

    def check(self, pairs: int | None, headers: int) -> SourceReport:
        """The report of the source."""
        form = self._form
        inference = self._split == "infer_dataset"
        self._tell("reading annotations of", 0, 1)
        self.rows, faults = parse(self._source.data_file, form, inference=inference)
        self._faults += faults
        drawn = _drawn(self.rows, headers)
        sizes = self._sizes(drawn)
        readable = [row for row in self.rows if row.line not in self._faulty_lines]
        facts = self._facts(_drawn(readable, pairs))
        warnings, notes = self._judged(facts)
        ordered = dict(Counter(sizes.values()).most_common())
        return SourceReport(
            split=self._split,
            dataset=form.name,
            file=self._source.data_file,
            prepare=self._prepare,
            samples=len(self.rows),
            headers=len(drawn),
            sizes=ordered,
            facts=tuple(facts),
            faults=tuple(self._faults),
            warnings=tuple(warnings),
            notes=(*self._notes(ordered), *notes),
        )

    def _tell(self, what: str, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(f"{what} {Path(self._source.data_file).name}", done, total)

    def _sizes(self, rows: Sequence[Row]) -> dict[int, tuple[int, int]]:
        """Size of the left image by line; faults of files whose heads or lengths are wrong."""
        sizes: dict[int, tuple[int, int]] = {}
        with ThreadPoolExecutor(_HEADERS_AT_A_TIME) as pool:
            heads = pool.map(partial(_head, self._form), rows)
            for number, (row, found) in enumerate(zip(rows, heads, strict=True)):
                if isinstance(found, DataError):
                    self._faults.append(f"{found}{self._hint(row)}")
                    self._faulty_lines.add(row.line)
                else:
                    sizes[row.line] = found
                self._tell("reading headers of", number + 1, len(rows))
        return sizes

    def _facts(self, rows: Sequence[Row]) -> list[SampleFacts]:
        """Measurements of samples read completely; faults of those that cannot be read."""
        facts: list[SampleFacts] = []
        for number, row in enumerate(rows):
            try:
                facts.append(self._measured(row))
            except DataError as error:
                self._faults.append(f"{error}{self._hint(row)}")
            self._tell(f"measuring {self._prepare.samples} of", number + 1, len(rows))
        return facts

    def _measured(self, row: Row) -> SampleFacts:
        if isinstance(self._form, StereoFormat):
            return measure(self._form.read(row), self._prepare.limits[1])
        scored = self._split in ("val_dataset", "test_dataset")
        sample = self._form.read(row)
        return measure_image(sample, self._form, self._prepare, scored=scored)

    def _judged(self, facts: Sequence[SampleFacts]) -> tuple[list[str], list[str]]:
        """Warnings and notes about the measured samples."""
        if isinstance(self._form, StereoFormat):
            pairs, limit = [f for f in facts if isinstance(f, PairFacts)], self._prepare.limits[1]
            return warnings_of(pairs, self._form, limit), notes_of(pairs, limit)
        images = [fact for fact in facts if isinstance(fact, ImageFacts)]
        return image_warnings(images, self._prepare), image_notes(images, self._prepare)

    def _hint(self, row: Row) -> str:
        """What the truth of a row would be, when it is the truth that its class refuses."""
        explained = self._refused == _EXPLAINED or isinstance(self._form, MonoFormat)
        if row.disparity is None or row.right is None or explained:
            return ""
        self._refused += 1
        try:
            left, right = read_image(row.left), read_image(row.right)
            explanation = explain(row, left, right, None) if left.shape == right.shape else None
        except DataError:  # an image is the fault
            return ""
        if explanation is None or explanation.finding is None:
            return ""
        return f". The pair fits {explanation.finding.how}. {explanation.finding.remedy}"

    def _notes(self, sizes: dict[tuple[int, int], int]) -> list[str]:
        """What the sizes mean for training and for batches."""
        notes: list[str] = []
        if len(sizes) > 1:
            notes.append(
                f"{len(sizes)} image sizes; a batch outside training holds"
                f" {self._prepare.samples} of one size"
            )
        height, width = self._spec.augmentation.crop_size
        small = sum(count for size, count in sizes.items() if size[0] < height or size[1] < width)
        pads = isinstance(self._form, StereoFormat)  # single images are resized
        if small and pads and self._split == "train_dataset":
            notes.append(
                f"{small} of {sum(sizes.values())} pairs are smaller than the crop "
                f"{width}x{height} of training and are padded; a smaller "
                "dataset.train_dataset.augmentation.crop_size avoids it"
            )
        return notes


def _head(form: Format, row: Row) -> tuple[int, int] | DataError:
    try:
        return form.heads(row)
    except DataError as error:
        return error


def _drawn(rows: Sequence[Row], count: int | None) -> list[Row]:
    """A sample of rows in file order, the same one for the same number of rows."""
    if count is None or count >= len(rows):
        return list(rows)
    chosen = np.random.default_rng(_SEED).choice(len(rows), count, replace=False)
    return [rows[index] for index in sorted(chosen.tolist())]
