"""Measures the data of a spec before training and says what looks wrong with it.

Headers of at most 20 000 pairs per source are read, a sample of the pairs completely; which ones
depends on the number of rows alone. Faults (nothing can be trained on that row) and warnings
(readable, but probably not what was meant) are kept apart. `check_report` prints and draws.

Units: disparity px, errors grey levels 0..255, shares 0..1, sizes (H, W) px.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from stereo.data.annotations import Row, parse
from stereo.data.consistency import explain
from stereo.data.datasets import StereoFormat, find_format
from stereo.data.encodings import read_image
from stereo.data.pair_facts import PairFacts, measure, notes_of, warnings_of
from stereo.errors import DataError
from stereo.spec.data import DataSource, SplitSpec
from stereo.spec.experiment import ExperimentSpec, disparity_limit

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
        pairs: rows without fault in the annotation file.
        headers: pairs whose headers were read.
        sizes: pairs per image size (H, W), most frequent first.
        facts: of the pairs that were read completely.
        faults: `file:line: reason`.
        warnings: what looks wrong, with a remedy.
        notes: what a user may want to know.
    """

    split: str
    dataset: str
    file: str
    pairs: int
    headers: int
    sizes: dict[tuple[int, int], int]
    facts: tuple[PairFacts, ...]
    faults: tuple[str, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def disparity(self) -> tuple[float, float] | None:
        """Smallest and largest known disparity in px."""
        ranges = [fact.disparity for fact in self.facts if fact.disparity is not None]
        return (min(low for low, _ in ranges), max(high for _, high in ranges)) if ranges else None

    @property
    def valid_share(self) -> float | None:
        """Share of the pixels whose truth is known and below the limit; None without truth."""
        pixels = sum(fact.pixels for fact in self.facts if fact.row.disparity is not None)
        known = sum(fact.known - fact.above for fact in self.facts)
        return known / pixels if pixels else None

    @property
    def above_share(self) -> float:
        """Share of the known truth at or above the limit."""
        known = sum(fact.known for fact in self.facts)
        return sum(fact.above for fact in self.facts) / known if known else 0.0

    @property
    def errors(self) -> tuple[float, float] | None:
        """Photo-consistency with the truth and at disparity 0: medians over the pairs."""
        errors = [fact.errors for fact in self.facts if fact.errors is not None]
        if not errors:
            return None
        truth, zero = np.median(np.array(errors), axis=0).tolist()
        return truth, zero

    @property
    def row_offsets(self) -> tuple[float, ...]:
        """Row offsets in px of the pairs where one explains the pair."""
        found = (fact.explanation.row_offset for fact in self.facts if fact.explanation)
        return tuple(offset for offset in found if offset is not None)


@dataclass(frozen=True)
class CheckReport:
    """What was found in the data of a spec.

    Attributes:
        sources: in the order of the spec.
        limit: px at and above which truth counts nowhere.
        warnings: those that concern several sources.
    """

    sources: tuple[SourceReport, ...]
    limit: float
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
        pairs: how many pairs of a source are read completely; None reads all.
        headers: of how many pairs of a source at most the headers are read.
        progress: told what is done and how far.

    Raises:
        DataError: the splits name no source (exit code 2).
    """
    limit = disparity_limit(spec)
    reports: list[SourceReport] = []
    seen: dict[str, dict[str, Row]] = {}
    for name in splits:
        split: SplitSpec = getattr(spec.dataset, name)
        for source in split.data_sources or []:
            checker = _Checker(name, split, source, limit, progress)
            reports.append(checker.check(pairs, headers))
            seen.setdefault(name, {}).update((_key(row), row) for row in checker.rows)
    if not reports:
        raise DataError(_nothing(splits), exit_code=2)
    overlap = _overlap(seen.get("train_dataset", {}), seen.get("val_dataset", {}))
    return CheckReport(tuple(reports), limit, tuple(overlap))


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
        limit: float,
        progress: Progress | None,
    ) -> None:
        self._split = split
        self._spec = spec
        self._source = source
        self._limit = limit
        self._progress = progress
        self._faults: list[str] = []
        self._faulty_lines: set[int] = set()
        self._refused = 0
        self.rows: list[Row] = []

    def check(self, pairs: int | None, headers: int) -> SourceReport:
        """The report of the source."""
        form = find_format(self._source.dataset_name)
        inference = self._split == "infer_dataset"
        self._tell("reading annotations of", 0, 1)
        self.rows, faults = parse(self._source.data_file, form, inference=inference)
        self._faults += faults
        drawn = _drawn(self.rows, headers)
        sizes = self._sizes(form, drawn)
        readable = [row for row in self.rows if row.line not in self._faulty_lines]
        facts = self._facts(form, _drawn(readable, pairs))
        ordered = dict(Counter(sizes.values()).most_common())
        return SourceReport(
            split=self._split,
            dataset=form.name,
            file=self._source.data_file,
            pairs=len(self.rows),
            headers=len(drawn),
            sizes=ordered,
            facts=tuple(facts),
            faults=tuple(self._faults),
            warnings=tuple(warnings_of(facts, form, self._limit)),
            notes=(*self._notes(ordered), *notes_of(facts, self._limit)),
        )

    def _tell(self, what: str, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(f"{what} {Path(self._source.data_file).name}", done, total)

    def _sizes(self, form: StereoFormat, rows: Sequence[Row]) -> dict[int, tuple[int, int]]:
        """Size of the left image by line; faults of files whose heads or lengths are wrong."""
        sizes: dict[int, tuple[int, int]] = {}
        with ThreadPoolExecutor(_HEADERS_AT_A_TIME) as pool:
            heads = pool.map(partial(_head, form), rows)
            for number, (row, found) in enumerate(zip(rows, heads, strict=True)):
                if isinstance(found, DataError):
                    self._faults.append(f"{found}{self._hint(row)}")
                    self._faulty_lines.add(row.line)
                else:
                    sizes[row.line] = found
                self._tell("reading headers of", number + 1, len(rows))
        return sizes

    def _facts(self, form: StereoFormat, rows: Sequence[Row]) -> list[PairFacts]:
        """Measurements of pairs read completely; faults of those that cannot be read."""
        facts: list[PairFacts] = []
        for number, row in enumerate(rows):
            try:
                facts.append(measure(form.read(row), self._limit))
            except DataError as error:
                self._faults.append(f"{error}{self._hint(row)}")
            self._tell("measuring pairs of", number + 1, len(rows))
        return facts

    def _hint(self, row: Row) -> str:
        """What the truth of a row would be, when it is the truth that its class refuses."""
        if row.disparity is None or row.right is None or self._refused == _EXPLAINED:
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
                f"{len(sizes)} image sizes; a batch outside training holds pairs of one size"
            )
        height, width = self._spec.augmentation.crop_size
        small = sum(count for size, count in sizes.items() if size[0] < height or size[1] < width)
        if small and self._split == "train_dataset":
            notes.append(
                f"{small} of {sum(sizes.values())} pairs are smaller than the crop "
                f"{width}x{height} of training and are padded; a smaller "
                "dataset.train_dataset.augmentation.crop_size avoids it"
            )
        return notes


def _head(form: StereoFormat, row: Row) -> tuple[int, int] | DataError:
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
