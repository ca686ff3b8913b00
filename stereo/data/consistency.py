"""Does the truth of a pair explain its right view? If not, does another reading of the pair?

Measured by photo-consistency: the right view sampled at (x - d, y) must look like the left view at
(x, y). The error is the median over pixels of the mean absolute RGB difference in grey levels
(0..255), after one affine gain per channel.

Measured over the project's real samples and 300 generated pairs, on textured pixels: a right truth
has at most 0.6 times the error of disparity 0 (real: 0.4). A wrong one (twice or half the value,
views exchanged, sign reversed) has 1.4 times the error or more; that of the right view comes near
(0.9 times).

Symbols: d disparity px, x, y column and row px, N pixels, H, W rows and columns of the image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from stereo.data.annotations import Row
from stereo.data.datasets import STEREO_FORMATS
from stereo.data.encodings import (
    FSD_PNG,
    RAW_PNG,
    BoolMap,
    FloatMap,
    Image,
    MapEncoding,
    read_pfm,
)
from stereo.errors import DataError

Values = npt.NDArray[np.float32]
Indices = npt.NDArray[np.intp]

ROWS = 4  # px, largest row offset that is tried
BETTER = 0.75  # another explanation must have at most this share of the error
EXPLAINS = 0.6  # ... and at most this share of the error at disparity 0
FITS = 0.5  # ... of a fitted factor, which has more freedom
UNEXPLAINED = 0.7  # from this share of the error at disparity 0 on, a truth explains nothing

_LEAST_DISPARITY = 2.0  # px; nearer to 0 a truth cannot be told from disparity 0
_OUTSIDE = 255.0  # error of a pixel whose match lies outside the other view
_PIXELS = 20_000  # of a pair that are measured; the median then varies by about 1 %
_TRIED = 8_000  # of a pair on which other explanations are tried, before half of them go
_FEWEST = 50
_LONGEST_SIDE = 2**15 - 2  # px, of images that cv2.remap takes
_COARSE, _FINE = 1.05, 1.005  # ratio of neighbouring factors that are tried
_ROUND = 0.05  # a fitted divisor this near to a round one is meant to be it
_ROUND_DIVISORS = (2, 3, 4, 8, 16, 32, 64, 100, 128, 256, 512, 1000)
_RED_AND_BLUE_EXCHANGED = replace(FSD_PNG, weights=FSD_PNG.weights[::-1])
_CHANNELS = [
    replace(FSD_PNG, weights=weights, steps=1) for weights in np.eye(3, dtype=int).tolist()
]
_AS_PFM = "Write the disparity in px as PFM and use dataset_name GenericDataset"


@dataclass(frozen=True)
class Finding:
    """An explanation of a pair that fits better than the one in use.

    Attributes:
        kind: findings of several pairs are counted by it.
        how: completes "the pair fits better ...".
        remedy: what to do, without a full stop.
        error: grey levels over textured pixels.
    """

    kind: str
    how: str
    remedy: str
    error: float


@dataclass(frozen=True)
class Explanation:
    """How well the truth of a pair explains its right view; errors over textured pixels.

    Attributes:
        error: grey levels; a pixel whose match lies outside the right view counts as 255.
        zero_error: the same at disparity 0.
        row_offset: px by which the right view lies too low; None when no offset explains it.
        finding: what fits better; None when nothing does.
        unexplained: the truth is hardly better than disparity 0, and nothing else fits.
    """

    error: float
    zero_error: float
    row_offset: float | None
    finding: Finding | None
    unexplained: bool


def photo_errors(left: Image, right: Image, disparity: FloatMap) -> tuple[float, float] | None:
    """Photo-consistency of a disparity and of disparity 0, in grey levels.

    Args:
        left: uint8 (H, W, 3) RGB.
        right: uint8 (H, W, 3) RGB.
        disparity: float32 (H, W) px, +inf where unknown.

    Returns:
        Medians over the pixels whose match lies in the right view, None with fewer than 50 or
        for a side of 32 767 px or more.
    """
    if max(disparity.shape) > _LONGEST_SIDE:
        return None
    places = _chosen(disparity <= np.arange(left.shape[1], dtype=np.float32), _PIXELS)
    if len(places[0]) < _FEWEST:
        return None
    trial = _Trial(left, right, places)
    values = trial.at(disparity)
    return trial.error(values), trial.error(np.zeros_like(values))


def difference_picture(left: Image, right: Image, disparity: FloatMap) -> Values:
    """|left - right warped by the truth| in grey levels (H, W), NaN where it is not known."""
    difference = np.full(disparity.shape, np.nan, np.float32)
    if max(disparity.shape) > _LONGEST_SIDE:
        return difference
    x, y = np.meshgrid(*(np.arange(size, dtype=np.float32) for size in disparity.shape[::-1]))
    inside = disparity <= x
    sampled = _sample(right.astype(np.float32), x - np.where(inside, disparity, 0), y)
    if inside.any():
        difference[inside] = _differences(left[inside].astype(np.float32), sampled[inside])
    return difference


def explain(row: Row, left: Image, right: Image, disparity: FloatMap | None) -> Explanation | None:
    """Measure a pair and try other explanations of its truth.

    Args:
        row: names the ground truth, whose file is read again in other ways.
        left: uint8 (H, W, 3) RGB.
        right: uint8 (H, W, 3) RGB.
        disparity: float32 (H, W) px, +inf where unknown; None when its class cannot read the file.

    Returns:
        None when nothing can be said: too few pixels are known, there is too little texture, or a
        side has 32 767 px or more.
    """
    if max(left.shape) > _LONGEST_SIDE:
        return None
    size = left.shape[:2]
    stored = _stored(row, size)
    used = _nothing(size) if disparity is None else disparity
    known = np.isfinite(used)
    if known.sum() < _FEWEST:
        known = np.isfinite(stored) & (stored != 0)
    trial = _Trial(left, right, _textured(left, known))
    if trial.size < _FEWEST or trial.zero_error == 0:
        return None
    values = trial.at(used)
    rows = [trial.error(values, rows=offset) for offset in range(-ROWS, ROWS + 1)]
    error = min(rows)
    others = [*_other_views(left, right, known, used, trial), *_other_readings(row, trial, used)]
    finding = _best(others, min(BETTER * error, EXPLAINS * trial.zero_error))
    if finding is None and error > EXPLAINS * trial.zero_error:
        finding = _best(_fits(trial, stored), min(BETTER * error, FITS * trial.zero_error))
    is_hopeless = finding is None and error > UNEXPLAINED * trial.zero_error
    return Explanation(
        error=error,
        zero_error=trial.zero_error,
        row_offset=_lowest(rows) if error <= EXPLAINS * trial.zero_error else None,
        finding=finding,
        unexplained=is_hopeless and float(np.median(values)) > _LEAST_DISPARITY,
    )


def _best(findings: Iterable[Finding], limit: float) -> Finding | None:
    """The finding with the smallest error, if that is at most the limit."""
    best = min(findings, key=lambda finding: finding.error, default=None)
    return best if best is not None and best.error <= limit else None


class _Trial:
    """Chosen pixels of a reference view, to be matched in the other view."""

    def __init__(self, reference: Image, other: Image, places: tuple[Indices, Indices]) -> None:
        self._places = places
        self._y, self._x = (place.astype(np.float32) for place in places)
        self._colours = reference[places].astype(np.float32)  # (N, 3)
        self._other = other.astype(np.float32)
        self.size, self.width = len(self._x), other.shape[1]
        self.zero_error = self.error(np.zeros(self.size, np.float32))

    def at(self, values: FloatMap) -> Values:
        """Values (N,) of a map (H, W)."""
        return values[self._places]

    def error(self, disparity: Values, *, rows: int = 0, sign: int = -1) -> float:
        """Error of a disparity (N,) px, +inf where unknown; 255 when it cannot be measured.

        Args:
            disparity: of the chosen pixels.
            rows: px added to the row of the match.
            sign: the match lies at x + sign * d.
        """
        height, width = self._other.shape[:2]
        given = np.isfinite(disparity)
        x = self._x + sign * np.where(given, disparity, 0)
        y = self._y + rows
        inside = given & (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
        if inside.sum() < max(_FEWEST, 0.5 * self.size):
            return _OUTSIDE
        sampled = _sample(self._other, x[inside, None], y[inside, None])[:, 0]
        differences = _differences(self._colours[inside], sampled)
        outside = np.full(int(given.sum()) - len(differences), _OUTSIDE)
        return float(np.median(np.concatenate([differences, outside])))


def _other_views(
    left: Image, right: Image, known: BoolMap, disparity: FloatMap, trial: _Trial
) -> Iterator[Finding]:
    """The views exchanged, or the truth taken for that of the other view.

    An error is in grey levels of the view that is the reference. Where that is the right one, it is
    scaled to the left one: in a darker view every explanation, right or wrong, errs by less.
    """
    of_right = _Trial(right, left, _textured(right, known))
    if of_right.zero_error == 0:
        return
    scale = trial.zero_error / of_right.zero_error
    values = of_right.at(disparity)
    yield Finding(
        "exchanged",
        "with left and right exchanged",
        "Exchange the first two columns of the annotation file",
        scale * of_right.error(values),
    )
    yield Finding(
        "exchanged with truth",
        "with left and right exchanged and the truth that of the right view",
        "Exchange the first two columns and name the truth of the left view",
        trial.error(trial.at(disparity), sign=1),
    )
    yield Finding(
        "truth of the right view",
        "when the truth is taken for that of the right view",
        "Name the disparity of the left view",
        scale * of_right.error(values, sign=1),
    )


def _other_readings(row: Row, trial: _Trial, disparity: FloatMap) -> Iterator[Finding]:
    """The same file upside down, with the other sign, or read by another class."""
    yield Finding(
        "upside down",
        "when the rows of the truth are reversed",
        "A PFM holds its bottom row first; reverse the rows of the file",
        trial.error(trial.at(disparity[::-1])),
    )
    for label, (encoding, classes) in _encodings(row).items():
        values = _read(encoding, row, disparity.shape)
        if values is not None:
            yield Finding(
                f"read as {label}",
                f"when the truth is read as {' or '.join(classes)} ({label})",
                f"Use dataset_name {classes[0]}",
                trial.error(trial.at(values)),
            )
    swapped = _read(_RED_AND_BLUE_EXCHANGED, row, disparity.shape)
    if swapped is not None:
        yield Finding(
            "red and blue exchanged",
            "when red and blue of the truth are exchanged",
            "Write the FSD code as RGB; OpenCV takes BGR",
            trial.error(trial.at(swapped)),
        )


def _encodings(row: Row) -> dict[str, tuple[MapEncoding, list[str]]]:
    """Encodings of the stereo classes that accept the file's suffix, by label, with the classes."""
    assert row.disparity is not None
    found: dict[str, tuple[MapEncoding, list[str]]] = {}
    for form in STEREO_FORMATS.values():
        encoding = form.truth.get(row.disparity.suffix.lower())
        if encoding is not None:
            found.setdefault(encoding.label, (encoding, []))[1].append(form.name)
    return found


def _read(encoding: MapEncoding, row: Row, size: tuple[int, ...]) -> FloatMap | None:
    """The truth of a row in an encoding; None when the file is not of that kind."""
    assert row.disparity is not None
    try:
        values = encoding.read(row.disparity)
    except DataError:
        return None
    return values if values.shape == size else None


def _fits(trial: _Trial, stored: FloatMap) -> Iterator[Finding]:
    """Disparity proportional to the value or to its inverse, with a factor that is searched."""
    values = trial.at(stored)
    with np.errstate(divide="ignore"):
        inverse = np.where(values > 0, 1 / values, np.inf).astype(np.float32)
    if (values < 0).mean() > 0.5:
        yield Finding(
            "negative",
            "with the sign of the truth reversed",
            "Disparity is positive: write minus the value",
            trial.error(-values),
        )
    proportional = _best_factor(trial, np.where(values > 0, values, np.inf).astype(np.float32))
    if proportional is not None:
        factor, error = proportional
        yield Finding("scaled", f"with {_in_words(factor)} as disparity", _AS_PFM, error)
    reciprocal = _best_factor(trial, inverse)
    if reciprocal is not None:
        factor, error = reciprocal
        yield Finding(
            "depth",
            f"with {factor:.3g} / value as disparity (the values look like depth)",
            "Write focal length (px) x baseline / depth as PFM",
            error,
        )


def _best_factor(trial: _Trial, unit: Values) -> tuple[float, float] | None:
    """The factor that makes the best disparity of `unit` (N,), and its error."""
    known = unit[np.isfinite(unit)]
    if known.size < _FEWEST:
        return None
    middle, width = float(np.median(known)), trial.width

    def search(low: float, high: float, ratio: float) -> tuple[float, float]:
        steps = int(np.ceil(np.log(high / low) / np.log(ratio)))
        factors = np.geomspace(low, high, steps + 1)
        errors = [trial.error(np.float32(factor) * unit) for factor in factors]
        best = int(np.argmin(errors))
        return float(factors[best]), errors[best]

    largest = max(width / 3, 2 * _LEAST_DISPARITY)
    factor, _ = search(_LEAST_DISPARITY / middle, largest / middle, _COARSE)
    return search(factor / _COARSE, factor * _COARSE, _FINE)


def _in_words(factor: float) -> str:
    """`value / 4` for a factor near 0.25, else the product."""
    if abs(factor - 1) < _ROUND:
        return "the value itself"
    for divisor in _ROUND_DIVISORS:
        if abs(factor * divisor - 1) < _ROUND:
            return f"value / {divisor}"
        if abs(factor / divisor - 1) < _ROUND:
            return f"value x {divisor}"
    return f"value x {factor:.3g}"


def _lowest(errors: Sequence[float]) -> float:
    """Row offset of the smallest of the errors at -ROWS..ROWS, by a parabola through three."""
    best = int(np.argmin(errors))
    if best in (0, len(errors) - 1):
        return float(best - ROWS)
    before, here, after = errors[best - 1 : best + 2]
    bend = before - 2 * here + after
    return best - ROWS + ((before - after) / (2 * bend) if bend > 0 else 0.0)


def _textured(view: Image, known: BoolMap) -> tuple[Indices, Indices]:
    """Rows and columns of the half of some known pixels where the view changes most."""
    places = _chosen(known, _TRIED)
    grey = cv2.GaussianBlur(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY), (0, 0), 1)
    across, down = (cv2.Sobel(grey, cv2.CV_32F, dx, 1 - dx)[places] for dx in (1, 0))
    change = np.hypot(across, down)
    kept = change >= np.median(change) if change.size else np.zeros(0, bool)
    return places[0][kept], places[1][kept]


def _chosen(known: BoolMap, count: int) -> tuple[Indices, Indices]:
    """Rows and columns of at most so many known pixels, always the same ones."""
    flat = np.flatnonzero(known)
    if len(flat) > count:
        flat = np.random.default_rng(0).choice(flat, count, replace=False)
    y, x = np.divmod(flat, known.shape[1])
    return y, x


def _sample(view: Values, x: Values, y: Values) -> Values:
    """A view (H, W, 3) at places inside it, arrays of one 2-d shape, linearly interpolated."""
    return np.asarray(cv2.remap(view, x, y, cv2.INTER_LINEAR), np.float32)


def _differences(reference: Values, sampled: Values) -> Values:
    """Mean absolute difference (N,) of colours (N, 3) after one affine gain per channel."""
    centre, wanted = sampled.mean(axis=0), reference.mean(axis=0)
    spread = ((sampled - centre) ** 2).mean(axis=0)
    joint = ((sampled - centre) * (reference - wanted)).mean(axis=0)
    gain = joint / np.maximum(spread, 1e-6)
    return np.abs((sampled - centre) * gain + wanted - reference).mean(axis=1)


def _stored(row: Row, size: tuple[int, int]) -> FloatMap:
    """One number per pixel as the file of the truth stores it, +inf where it has none.

    PFM values, those of a one-channel PNG or of a grey picture in three channels; else FSD px.
    """
    assert row.disparity is not None
    if row.disparity.suffix.lower() == ".pfm":
        try:
            values = read_pfm(row.disparity)
        except DataError:
            values = None
        return _nothing(size) if values is None or values.shape != size else values
    red, green, blue = (_read(channel, row, size) for channel in _CHANNELS)
    if red is not None and green is not None and blue is not None:
        if np.array_equal(red, green) and np.array_equal(green, blue):
            return red
        values = _read(FSD_PNG, row, size)
    else:
        values = _read(RAW_PNG, row, size)
    return _nothing(size) if values is None else values


def _nothing(size: tuple[int, int]) -> FloatMap:
    return np.full(size, np.inf, np.float32)
