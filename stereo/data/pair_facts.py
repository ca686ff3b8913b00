"""What is measured on the pairs of a data source, and what is doubtful about them.

A warning says what looks wrong, in how many pairs, in which line first, and what to do.

Units: disparity px, errors grey levels 0..255.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stereo.data.consistency import ROWS, Explanation, explain, photo_errors
from stereo.data.datasets import StereoFormat, StereoSample
from stereo.data.sample_facts import SampleFacts, known_and_outside, of_samples, usable_share

_MANY_ABOVE = 0.05  # share of the truth at or above the limit that is warned about
_FEW_VALID = 0.01  # share of the pixels, of dense truth
_FEW_SCATTERED = 0.001  # ... of laser points; four beams reach about 0.002
_SOME_PAIRS = 0.1  # share of the pairs that must agree on a finding
_MOST_PAIRS = 0.5
_ROW_OFFSET = 0.6  # px; the calibration of KITTI leaves 0.2 to 0.36


@dataclass(frozen=True)
class PairFacts(SampleFacts):
    """What was measured on one pair; `outside` is at or above the limit, `truth` is in px.

    Attributes:
        errors: photo-consistency with the truth and at disparity 0, None where not measurable.
        explanation: see `consistency.explain`; None without truth or texture.
        is_identical: left and right are the same picture.
    """

    errors: tuple[float, float] | None
    explanation: Explanation | None
    is_identical: bool


def measure(sample: StereoSample, limit: float) -> PairFacts:
    """Measure a pair against the limit in px at and above which truth counts nowhere."""
    known = sample.disparity[sample.valid]
    is_identical = bool(np.array_equal(sample.left, sample.right))
    is_constant = any(bool((view == view[0, 0]).all()) for view in (sample.left, sample.right))
    explanation = None
    if sample.has_gt and not (is_identical or is_constant):
        explanation = explain(sample.row, sample.left, sample.right, sample.disparity)
    return PairFacts(
        row=sample.row,
        pixels=sample.disparity.size,
        known=known.size,
        outside=int((known >= limit).sum()),
        truth=(float(known.min()), float(known.max())) if known.size else None,
        errors=photo_errors(sample.left, sample.right, sample.disparity),
        explanation=explanation,
        is_identical=is_identical,
        is_constant=is_constant,
    )


def warnings_of(facts: Sequence[PairFacts], form: StereoFormat, limit: float) -> list[str]:
    """What looks wrong in the measured pairs of a source of a class."""
    return [
        *_same_or_constant(facts),
        *_findings(facts, form.name),
        *_row_offset(facts),
        *_amount(facts, limit, _FEW_SCATTERED if form.is_sparse else _FEW_VALID),
    ]


def _same_or_constant(facts: Sequence[PairFacts]) -> list[str]:
    warnings: list[str] = []
    identical = [fact for fact in facts if fact.is_identical]
    constant = [fact for fact in facts if fact.is_constant and not fact.is_identical]
    if identical:
        warnings.append(
            f"left and right are the same picture in {_of(identical, facts)}. Check the second "
            "column"
        )
    if constant:
        warnings.append(
            f"a view has a single colour in {_of(constant, facts)}. Check the image files"
        )
    return warnings


def _findings(facts: Sequence[PairFacts], dataset: str) -> list[str]:
    """What most pairs prefer among those that another explanation fits better.

    Of a few such pairs nothing is said where more of them are explained by nothing at all: in wrong
    pairs one of many explanations fits by chance.
    """
    explained = [(fact, fact.explanation) for fact in facts if fact.explanation is not None]
    hopeless = [(fact, told) for fact, told in explained if told.unexplained]
    found = [(fact, told, told.finding) for fact, told in explained if told.finding is not None]
    kinds = Counter(finding.kind for _, _, finding in found)
    kind, count = max(kinds.items(), key=lambda item: item[1], default=("", 0))
    if hopeless and len(hopeless) >= max(_MOST_PAIRS * len(explained), count + 1):
        return [_unexplained(hopeless, explained)]
    if count == 0 or count < _SOME_PAIRS * len(explained):
        return []
    first, told, finding = next(each for each in found if each[2].kind == kind)
    return [
        f"{count} of {len(explained)} pairs (first {first.row.where}) fit better {finding.how}: "
        f"{finding.error:.1f} grey levels against {told.error:.1f} as {dataset}. {finding.remedy}"
    ]


def _unexplained(
    hopeless: Sequence[tuple[PairFacts, Explanation]],
    explained: Sequence[tuple[PairFacts, Explanation]],
) -> str:
    first, told = hopeless[0]
    return (
        f"the truth does not explain the right view in {len(hopeless)} of {len(explained)} pairs "
        f"(first {first.row.where}): {told.error:.1f} grey levels, {told.zero_error:.1f} at "
        "disparity 0. Check that the files of a line belong together, and the encoding of the truth"
    )


def _row_offset(facts: Sequence[PairFacts]) -> list[str]:
    """A warning when a tenth of the pairs or more is shifted vertically."""
    found = [
        (fact, fact.explanation.row_offset)
        for fact in facts
        if fact.explanation is not None and fact.explanation.row_offset is not None
    ]
    shifted = [(fact, offset) for fact, offset in found if abs(offset) > _ROW_OFFSET]
    if not shifted or len(shifted) < _SOME_PAIRS * len(found):
        return []
    offsets = [offset for _, offset in shifted]
    ways = [way for way, sign in (("lower", 1), ("higher", -1)) if sign in np.sign(offsets)]
    return [
        f"the right view lies {offset_text(offsets)} {' or '.join(ways)} than the left one in "
        f"{_of([fact for fact, _ in shifted], facts)}. Rectify the pairs"
    ]


def offset_text(offsets: Sequence[float]) -> str:
    """The size of row offsets without their direction; the search ends at 4 px."""
    middle = float(np.median(np.abs(offsets)))
    return f"{ROWS} px or more" if middle >= ROWS else f"{middle:.1f} px"


def _amount(facts: Sequence[PairFacts], limit: float, few: float) -> list[str]:
    """Warnings about too little usable truth, a share, and about truth beyond the limit."""
    known, above = known_and_outside(facts)
    warnings: list[str] = []
    if above > _MANY_ABOVE * known:
        warnings.append(
            f"{_above(facts, limit)}. Raise dataset.max_disparity and model.max_disparity, or "
            "check the encoding"
        )
    valid = usable_share(facts)
    if valid is not None and valid < few:
        warnings.append(
            f"only {100 * valid:.2g} % of the pixels have usable truth (known, above 0 and below "
            f"{limit:g} px). Check dataset_name (the encoding), masks and max_disparity"
        )
    return warnings


def notes_of(facts: Sequence[PairFacts], limit: float) -> list[str]:
    """What is worth knowing about the measured pairs of a source, without being a doubt."""
    known, above = known_and_outside(facts)
    return [_above(facts, limit)] if 0 < above <= _MANY_ABOVE * known else []


def _above(facts: Sequence[PairFacts], limit: float) -> str:
    known, above = known_and_outside(facts)
    highest = max(fact.truth[1] for fact in facts if fact.truth is not None)
    return (
        f"{100 * above / known:.3g} % of the truth is at or above max_disparity {limit:g} px and "
        f"is not used; the largest is {highest:g} px"
    )


def _of(some: Sequence[PairFacts], every: Sequence[PairFacts]) -> str:
    return of_samples(some, every, "pairs")
