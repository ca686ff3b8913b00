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
from stereo.data.encodings import NYU_PNG, RAW_PNG
from stereo.errors import DataError

_MOST = 0.5  # share of the values that must agree


def found_instead(form: Format, row: Row) -> str:
    """The range of the values in the file, and the class that they look like; "" for neither."""
    if not isinstance(form, MonoFormat) or row.disparity is None:
        return ""
    try:
        values = raw_truth(form, row)
    except DataError:  # reported elsewhere
        return ""
    known = values[np.isfinite(values)]
    if not known.size:
        return f"{row.disparity} knows no value"
    found = f"{row.disparity} holds {known.min():g}..{known.max():g}"
    near, far = NYU_RELATIVE_RANGE
    metres = known / 1000
    in_room = float(((metres > near) & (metres < far)).mean())
    if form.truth[row.disparity.suffix.lower()] is not RAW_PNG or known.max() < 255:
        return found
    if in_room < _MOST or float((metres > 0.255).mean()) < _MOST:
        return found
    return f"{found}, which looks like millimetres: use {_reader_of_millimetres(form)}"


def _reader_of_millimetres(form: MonoFormat) -> str:
    """The class that gives the same quantity from millimetres."""
    readers = (f for f in MONO_FORMATS.values() if NYU_PNG in f.truth.values())
    return next(reader.name for reader in readers if reader.quantity == form.quantity)
