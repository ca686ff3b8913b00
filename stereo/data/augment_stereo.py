"""Training augmentation of a rectified pair: geometry, colour, eraser.

Effects in order: pad, scale and stretch, flips, horizontal shift, crop with row jitter, colour,
gamma, eraser. Scale, flips, shifts and window are drawn first; then each view is resampled once,
by one affine map straight into the crop, and colour runs on the crop only.

Symbols: s scale of an axis, output px per source px; P padded source length, p padding before it;
t output position in the scaled image, t = u' + start for pixel u' of the window. Pixel centres are
integers, so position t shows source coordinate (t + 0.5) / s - 0.5 - p. Disparity is multiplied by
the column scale and sampled nearest: bilinear sampling mixes surfaces at edges.

Source: design page data.md, section 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from stereo.data.datasets import StereoSample
from stereo.data.encodings import FloatMap, Image
from stereo.spec.data import StereoAugmentSpec

_MAX_ROW_JITTER = 2  # px, either way
_MAX_COLUMN_SHIFT = 4  # px, either way
_CROP_DRAWS = 20
_ERASER_SIDES = (50, 100)  # px, half-open, for crops whose short side is at least:
_ERASER_FULL_SIZE = 320
_GREY = np.array([0.299, 0.587, 0.114])  # luma of RGB
_SEEN_THROUGH = 1.0  # px; a warped pixel this much behind both neighbours shows through a gap


@dataclass(frozen=True)
class Axis:
    """Where the pixels of a window read the source, along rows or columns.

    Attributes:
        size: window length in px.
        start: first window pixel in the scaled, padded image.
        scale: output px per source px.
        source: source length in px.
        padded: source length after padding, px.
        mirrored: read from the far end.
    """

    size: int
    start: int
    scale: float
    source: int
    padded: int
    mirrored: bool

    @classmethod
    def unscaled(cls, size: int, source: int, *, mirrored: bool) -> Axis:
        """A window at the start of a source that is padded to it where it is shorter."""
        return cls(size, 0, 1.0, source, max(size, source), mirrored)

    @property
    def padding(self) -> int:
        """Padding before the source, px."""
        return (self.padded - self.source) // 2

    @property
    def scaled(self) -> int:
        """Whole pixels of the scaled, padded image."""
        return int(self.scale * self.padded + 1e-6)

    def map(self, shift: int = 0) -> tuple[float, float]:
        """(slope, offset): window pixel u reads source coordinate slope * u + offset.

        Args:
            shift: px by which the window starts later in this view.
        """
        slope = 1 / self.scale
        offset = (self.start + shift + 0.5) * slope - 0.5
        if self.mirrored:
            return -slope, self.padded - 1 - offset - self.padding
        return slope, offset - self.padding

    def nearest(self) -> npt.NDArray[np.int64]:
        """Source index of each window pixel; outside 0..source-1 where the window shows padding."""
        slope, offset = self.map()
        return np.floor(slope * np.arange(self.size) + offset + 0.5).astype(np.int64)


@dataclass(frozen=True)
class Window:
    """The geometric change of one sample.

    Attributes:
        rows: y axis of the left view.
        columns: x axis of the left view.
        row_shift: px by which the right view's window starts lower (vertical misalignment).
        column_shift: px by which the right view's content moves right; disparity shrinks by it.
    """

    rows: Axis
    columns: Axis
    row_shift: int
    column_shift: int

    def left(self, view: Image) -> Image:
        """The window of the left view, bilinear, border replicated."""
        return self._warp(view, self.rows.map(), self.columns.map())

    def right(self, view: Image) -> Image:
        """The window of the right view, with both shifts."""
        return self._warp(view, self.rows.map(self.row_shift), self.columns.map(-self.column_shift))

    def disparity(self, disparity: FloatMap) -> FloatMap:
        """The window of a left disparity map in px of the window; +inf where unknown or <= 0."""
        rows, columns = self.rows.nearest(), self.columns.nearest()
        sampled = np.take(disparity, rows, axis=0, mode="clip")
        sampled = np.take(sampled, columns, axis=1, mode="clip")
        sampled *= np.float32(self.columns.scale)
        if self.column_shift:
            sampled -= np.float32(self.column_shift)
            sampled[sampled <= 0] = np.inf
        sampled[(rows < 0) | (rows >= self.rows.source)] = np.inf
        sampled[:, (columns < 0) | (columns >= self.columns.source)] = np.inf
        return sampled

    def _warp(self, view: Image, rows: tuple[float, float], columns: tuple[float, float]) -> Image:
        matrix = np.array([[columns[0], 0, columns[1]], [0, rows[0], rows[1]]])
        size = (self.columns.size, self.rows.size)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return _bytes(
            cv2.warpAffine(view, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
        )


def augment(
    sample: StereoSample, spec: StereoAugmentSpec, rng: np.random.Generator
) -> StereoSample:
    """A random training crop (`spec.crop_size`) of a sample.

    Args:
        sample: the decoded pair; not changed.
        spec: ranges and probabilities.
        rng: decides everything; equal states give equal samples.
    """
    left, right, disparity = sample.left, sample.right, sample.disparity
    if mirrored := spec.do_flip and _chance(rng, spec.h_flip_prob):
        left, right = right, left
        disparity = sample.right_disparity
        if disparity is None:
            disparity = right_view_disparity(sample.disparity)
    reversed_rows = spec.do_flip and _chance(rng, spec.v_flip_prob)
    window = _draw_window(rng, spec, disparity, mirrored=mirrored, reversed_rows=reversed_rows)
    disparity = window.disparity(disparity)
    left, right = _change_colours(rng, spec, window.left(left), window.right(right))
    if _chance(rng, spec.eraser_aug_prob):
        right = _erase(rng, right)
    return replace(
        sample,
        left=left,
        right=right,
        disparity=disparity,
        right_disparity=None,
    )


def right_view_disparity(disparity: FloatMap) -> FloatMap:
    """Disparity of the right view's pixels, forward-warped from the left map; +inf in holes.

    Every known pixel lands in column round(x - d) with its d; the largest (front-most) wins. A
    pixel with larger disparities by more than 1 px within 2 px on both sides is dropped: it is
    background seen through a gap that a stretched surface left.
    """
    height, width = disparity.shape
    row, column = np.nonzero(np.isfinite(disparity))
    values = disparity[row, column]
    target = np.rint(column - values).astype(np.int64)
    inside = (target >= 0) & (target < width)
    warped = np.zeros(height * width, np.float32)
    np.maximum.at(warped, row[inside] * width + target[inside], values[inside])
    warped = warped.reshape(height, width)
    around = np.pad(warped, ((0, 0), (2, 2)))
    before = np.maximum(around[:, :-4], around[:, 1:-3])
    after = np.maximum(around[:, 3:-1], around[:, 4:])
    hidden = np.minimum(before, after) > warped + _SEEN_THROUGH
    warped[hidden | (warped == 0)] = np.inf
    return warped


def _draw_window(
    rng: np.random.Generator,
    spec: StereoAugmentSpec,
    disparity: FloatMap,
    *,
    mirrored: bool,
    reversed_rows: bool,
) -> Window:
    """Scale, shifts and position of the crop; `disparity` is of the view that becomes the left."""
    height, width = spec.crop_size
    has_jitter = _chance(rng, spec.yjitter_prob)
    row_shift = _integer(rng, -_MAX_ROW_JITTER, _MAX_ROW_JITTER) if has_jitter else 0
    has_shift = _chance(rng, spec.hshift_prob)
    column_shift = _integer(rng, -_MAX_COLUMN_SHIFT, _MAX_COLUMN_SHIFT) if has_shift else 0
    rows = Axis.unscaled(height, disparity.shape[0], mirrored=reversed_rows)
    columns = Axis.unscaled(width, disparity.shape[1], mirrored=mirrored)
    if _chance(rng, spec.spatial_aug_prob):
        column_scale, row_scale = _draw_scales(rng, spec)
        room = 2 * _MAX_ROW_JITTER if has_jitter else 0
        rows = replace(rows, scale=max(row_scale, (height + room) / rows.padded))
        columns = replace(columns, scale=max(column_scale, width / columns.padded))
    window = Window(rows, columns, row_shift, column_shift)
    if spec.crop_min_valid_disp_ratio > 0:
        return _draw_valid_position(rng, window, disparity, spec.crop_min_valid_disp_ratio)
    return _draw_position(rng, window)


def _draw_scales(rng: np.random.Generator, spec: StereoAugmentSpec) -> tuple[float, float]:
    """Column and row scale, powers of 2 with uniform exponents."""
    exponent = rng.uniform(spec.min_scale, spec.max_scale)
    stretch = np.zeros(2)
    if _chance(rng, spec.stretch_prob):
        stretch = rng.uniform(-spec.max_stretch, spec.max_stretch, 2)
    column_scale, row_scale = 2.0 ** (exponent + stretch)
    return float(column_scale), float(row_scale)


def _draw_position(rng: np.random.Generator, window: Window) -> Window:
    """The window anywhere in the image; with row jitter where both views have the rows, if any."""
    x = _integer(rng, 0, window.columns.scaled - window.columns.size)
    last = window.rows.scaled - window.rows.size
    first_with_room, last_with_room = max(0, -window.row_shift), last - max(0, window.row_shift)
    if first_with_room <= last_with_room:
        y = _integer(rng, first_with_room, last_with_room)
    else:
        y = _integer(rng, 0, last)
    return replace(
        window, rows=replace(window.rows, start=y), columns=replace(window.columns, start=x)
    )


def _draw_valid_position(
    rng: np.random.Generator, window: Window, disparity: FloatMap, ratio: float
) -> Window:
    """The first of 20 positions with enough known disparity, else the best of them."""
    whole = Window(
        replace(window.rows, size=window.rows.scaled, start=0),
        replace(window.columns, size=window.columns.scaled, start=0),
        0,
        window.column_shift,
    )
    known = np.isfinite(whole.disparity(disparity)).astype(np.uint8)
    sums = cv2.integral(known)
    best, best_share = window, -1.0
    for _ in range(_CROP_DRAWS):
        drawn = _draw_position(rng, window)
        top, left = drawn.rows.start, drawn.columns.start
        bottom, right = top + drawn.rows.size, left + drawn.columns.size
        count = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
        share = float(count) / (drawn.rows.size * drawn.columns.size)
        if share > best_share:
            best, best_share = drawn, share
        if share >= ratio:
            break
    return best


def _change_colours(
    rng: np.random.Generator, spec: StereoAugmentSpec, left: Image, right: Image
) -> tuple[Image, Image]:
    """Jitter and gamma: the same for both views, or with `color_aug_prob` different ones."""
    if _chance(rng, spec.color_aug_prob):
        left = _draw_colour_change(rng, spec, _mean_colour(left)).apply(left)
        right = _draw_colour_change(rng, spec, _mean_colour(right)).apply(right)
        return left, right
    mean = (_mean_colour(left) + _mean_colour(right)) / 2
    change = _draw_colour_change(rng, spec, mean)
    return change.apply(left), change.apply(right)


@dataclass(frozen=True)
class ColourChange:
    """RGB -> matrix @ (R, G, B, 1), then 255 * gain * (x / 255) ** gamma; values 0..255."""

    matrix: npt.NDArray[np.float64]
    gamma: float
    gain: float

    def apply(self, image: Image) -> Image:
        """The changed image."""
        if not np.allclose(self.matrix, np.eye(3, 4), atol=1e-9):
            image = _bytes(cv2.transform(image, self.matrix))
        if (self.gamma, self.gain) != (1.0, 1.0):
            table = 255 * self.gain * (np.arange(256) / 255) ** self.gamma
            image = _bytes(cv2.LUT(image, np.clip(np.rint(table), 0, 255).astype(np.uint8)))
        return image


def _draw_colour_change(
    rng: np.random.Generator, spec: StereoAugmentSpec, mean: npt.NDArray[np.float64]
) -> ColourChange:
    """Brightness, contrast, saturation and hue in random order, then gamma.

    `mean` is the mean RGB of the images: contrast blends with its grey.
    """
    brightness = _draw_factor(rng, spec.color_aug_brightness)
    contrast = _draw_factor(rng, spec.color_aug_contrast)
    saturation = _draw_from(rng, spec.color_aug_saturation)
    hue = _draw_from(rng, spec.color_aug_hue_range)
    grey = np.tile(_GREY, (3, 1))
    matrix = np.eye(3, 4)
    for step in rng.permutation(4):
        if step == 0:
            matrix = brightness * matrix
        elif step == 1:
            level = _GREY @ matrix @ np.append(mean, 1)
            matrix = contrast * matrix
            matrix[:, 3] += (1 - contrast) * level
        elif step == 2:
            matrix = (saturation * np.eye(3) + (1 - saturation) * grey) @ matrix
        else:
            matrix = _hue_rotation(hue) @ matrix
    return ColourChange(
        matrix, gamma=_draw_from(rng, spec.gamma[:2]), gain=_draw_from(rng, spec.gamma[2:])
    )


def _hue_rotation(turns: float) -> npt.NDArray[np.float64]:
    """Rotation of RGB about the grey axis."""
    cos, sin = np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    return cos * np.eye(3) + sin * cross + (1 - cos) / 3


def _erase(rng: np.random.Generator, image: Image) -> Image:
    """Fill one or two rectangles with the mean colour, as if something stood before the camera."""
    image = image.copy()
    height, width = image.shape[:2]
    mean = np.rint(_mean_colour(image)).astype(np.uint8)
    shrink = min(1.0, min(height, width) / _ERASER_FULL_SIZE)
    for _ in range(_integer(rng, 1, 2)):
        top, left = _integer(rng, 0, height - 1), _integer(rng, 0, width - 1)
        rows, columns = (max(1, round(shrink * side)) for side in rng.integers(*_ERASER_SIDES, 2))
        image[top : top + rows, left : left + columns] = mean
    return image


def _mean_colour(image: Image) -> npt.NDArray[np.float64]:
    """Mean RGB of every fourth pixel each way."""
    return image[::4, ::4].reshape(-1, 3).mean(axis=0)


def _draw_factor(rng: np.random.Generator, strength: float) -> float:
    return rng.uniform(max(0.0, 1 - strength), 1 + strength)


def _draw_from(rng: np.random.Generator, ends: Sequence[float]) -> float:
    low, high = ends
    return rng.uniform(low, high)


def _chance(rng: np.random.Generator, probability: float) -> bool:
    """True with the probability; exact at 0 and 1."""
    return bool(rng.random() < probability)


def _integer(rng: np.random.Generator, low: int, high: int) -> int:
    """A uniform integer, both ends included."""
    return int(rng.integers(low, high, endpoint=True))


def _bytes(array: Any) -> Image:
    """The same uint8 array for the type checker; OpenCV's stubs allow any number."""
    return np.asarray(array, np.uint8)
