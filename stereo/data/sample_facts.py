"""What is measured on the samples of any data source, and on single images in particular.

A warning says what looks wrong, in how many samples, in which line first, and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stereo.data.annotations import Row
from stereo.data.batches import Preparation
from stereo.data.datasets import MonoFormat, MonoSample
from stereo.data.suspects import reader_of_millimetres

_MANY_OUTSIDE = 0.05  # share of the truth outside the limits that is warned about
_FEW_USABLE = 0.01  # share of the pixels


@dataclass(frozen=True)
class SampleFacts:
    """What was measured on one sample.

    Attributes:
        row: where it came from.
        pixels: H * W.
        known: pixels with known truth.
        outside: known pixels that count nowhere.
        truth: smallest and largest known truth, None without any.
        is_constant: an image has a single colour.
    """

    row: Row
    pixels: int
    known: int
    outside: int
    truth: tuple[float, float] | None
    is_constant: bool


@dataclass(frozen=True)
class ImageFacts(SampleFacts):
    """What was measured on a single image.

    Attributes:
        reader: class that the file of the truth is more likely made for, "" for none.
    """

    reader: str


def measure_image(
    sample: MonoSample, form: MonoFormat, prepare: Preparation, *, scored: bool
) -> ImageFacts:
    """Measure a single image with its target.

    Raises:
        DataError: the part that counts in scores is not defined for its size.
    """
    known = sample.target[sample.valid]
    prepare.usable(sample, form, scored=scored)
    usable = np.count_nonzero(prepare.usable(sample, form, scored=False))
    return ImageFacts(
        row=sample.row,
        pixels=sample.target.size,
        known=known.size,
        outside=known.size - int(usable),
        truth=(float(known.min()), float(known.max())) if known.size else None,
        is_constant=bool((sample.image == sample.image[0, 0]).all()),
        reader=reader_of_millimetres(form, sample.row),
    )


def image_warnings(facts: Sequence[ImageFacts], prepare: Preparation) -> list[str]:
    """What looks wrong in the measured images of a source."""
    warnings: list[str] = []
    constant = [fact for fact in facts if fact.is_constant]
    if constant:
        some = of_samples(constant, facts, prepare.samples)
        warnings.append(f"an image has a single colour in {some}. Check the image files")
    millimetres = [fact for fact in facts if fact.reader]
    if millimetres:
        some = of_samples(millimetres, facts, prepare.samples)
        reader = millimetres[0].reader
        warnings.append(f"the truth looks like millimetres in {some}. Use dataset_name {reader}")
    known, outside = known_and_outside(facts)
    if outside > _MANY_OUTSIDE * known:
        warnings.append(f"{_outside(facts, prepare)}. {_remedy(prepare)}")
    usable = usable_share(facts)
    if usable is not None and usable < _FEW_USABLE:
        warnings.append(
            f"only {100 * usable:.2g} % of the pixels have usable truth (known, "
            f"{prepare.usable_words}). {_remedy(prepare)}"
        )
    return warnings


def image_notes(facts: Sequence[ImageFacts], prepare: Preparation) -> list[str]:
    """What is worth knowing about the measured images of a source, without being a doubt."""
    known, outside = known_and_outside(facts)
    return [_outside(facts, prepare)] if 0 < outside <= _MANY_OUTSIDE * known else []


def of_samples(some: Sequence[SampleFacts], every: Sequence[SampleFacts], samples: str) -> str:
    """`3 of 32 pairs (first train.txt:7)`."""
    return f"{len(some)} of {len(every)} {samples} (first {some[0].row.where})"


def known_and_outside(facts: Sequence[SampleFacts]) -> tuple[int, int]:
    """Pixels with known truth, and those of them that count nowhere."""
    return sum(fact.known for fact in facts), sum(fact.outside for fact in facts)


def usable_share(facts: Sequence[SampleFacts]) -> float | None:
    """Share of the pixels of the samples with truth whose truth counts; None without any."""
    pixels = sum(fact.pixels for fact in facts if fact.row.disparity is not None)
    known, outside = known_and_outside(facts)
    return (known - outside) / pixels if pixels else None


def _outside(facts: Sequence[ImageFacts], prepare: Preparation) -> str:
    known, outside = known_and_outside(facts)
    ranges = [fact.truth for fact in facts if fact.truth is not None]
    least, greatest = min(low for low, _ in ranges), max(high for _, high in ranges)
    return (
        f"{100 * outside / known:.3g} % of the truth is not used: usable is "
        f"{prepare.usable_words}, the truth spans {least:g}..{greatest:g}{prepare.unit}"
    )


def _remedy(prepare: Preparation) -> str:
    return f"Check dataset_name (the encoding), masks{prepare.limit_keys}"
