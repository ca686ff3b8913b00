"""What ground truth of single images probably is when its class makes little or nothing of it."""

from __future__ import annotations

import numpy as np

from stereo.data.annotations import Row
from stereo.data.datasets import (
    MONO_FORMATS,
    NYU_RELATIVE_RANGE,
    Format,
    MonoFormat,
    raw_truth,
)
from stereo.data.encodings import NYU_PNG, RAW_PNG, FloatMap
from stereo.errors import DataError

_MOST = 0.5  # share of the values that must agree
_EIGHT_BITS = 255  # no camera is nearer than so many millimetres to most of a scene


def found_instead(form: Format, row: Row) -> str:
    """The range of the values in a file of single images and what they look like, else ""."""
    if not isinstance(form, MonoFormat) or row.disparity is None:
        return ""
    known = _known(form, row)
    if not known.size:
        return f"{row.disparity} knows no value"
    found = f"{row.disparity} holds {known.min():g}..{known.max():g}"
    reader = reader_of_millimetres(form, row)
    return f"{found}, which looks like millimetres: use {reader}" if reader else found


def mistaken_unit(form: Format, row: Row, limits: tuple[float, float]) -> str:
    """What a file of single images holds whose class takes millimetres for another unit, else "".

    Some of them may lie within the limits all the same: what is near passes for a disparity. Ground
    truth that lies there for the most part is taken at its word.

    Args:
        form: class of the file.
        row: names the file.
        limits: of usable ground truth, both exclusive.
    """
    if not isinstance(form, MonoFormat) or not (reader := reader_of_millimetres(form, row)):
        return ""
    known, (low, high) = _known(form, row), limits
    if np.count_nonzero((known > low) & (known < high)) > _MOST * known.size:
        return ""
    found = f"{row.disparity} holds {known.min():g}..{known.max():g}"
    return f"{found}, which looks like millimetres and not like {form.quantity}: use {reader}"


def reader_of_millimetres(form: MonoFormat, row: Row) -> str:
    """The class that reads a file which its class takes as it is but holds millimetres, else ""."""
    if row.disparity is None or form.truth[row.disparity.suffix.lower()] is not RAW_PNG:
        return ""
    known = _known(form, row)
    nearest, farthest = (1000 * metres for metres in NYU_RELATIVE_RANGE)
    likely = (known > max(nearest, _EIGHT_BITS)) & (known < farthest)
    if np.count_nonzero(likely) <= _MOST * known.size:
        return ""
    readers = (other for other in MONO_FORMATS.values() if NYU_PNG in other.truth.values())
    return next(reader.name for reader in readers if reader.quantity == form.quantity)


def _known(form: MonoFormat, row: Row) -> FloatMap:
    """The values (N,) of the file, before limits."""
    try:
        values = raw_truth(form, row)
    except DataError:  # reported where the sample is read
        return np.empty(0, np.float32)
    return values[np.isfinite(values)]
