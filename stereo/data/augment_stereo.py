"""Training augmentation of a rectified pair: geometry, colour, eraser.

Effects in order: pad, scale and stretch, flips, horizontal shift, crop with row jitter, colour,
gamma, eraser. Scale, flips, shifts and window are drawn first; then each view is resampled once,
by one affine map straight into the crop (`window`), and colour runs on the crop only.

Source: design page data.md, section 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

import cv2
import numpy as np
import numpy.typing as npt

from stereo.data.datasets import StereoSample
from stereo.data.encodings import BoolMap, Image
from stereo.data.window import Axis, Window, as_image, right_view_disparity
from stereo.spec.data import StereoAugmentSpec

_MAX_ROW_JITTER = 2  # px, either way
_MAX_COLUMN_SHIFT = 4  # px, either way
_CROP_DRAWS = 20
_BLUR_MARGIN = 8  # px that the reference leaves around the crop
_ERASER_SIDES = (50, 100)  # px, half-open, for crops whose short side is at least:
_ERASER_FULL_SIZE = 320
_GREY = np.array([0.299, 0.587, 0.114])  # luma of RGB
_UNCHANGED = np.eye(3, 4)
_NOTHING = 1e-9  # rounding of a matrix that changes no colour


def augment(
    sample: StereoSample,
    spec: StereoAugmentSpec,
    rng: np.random.Generator,
    *,
    limit: float = inf,
) -> StereoSample:
    """A random training crop (`spec.crop_size`) of a sample.

    Args:
        sample: the decoded pair; not changed.
        spec: ranges and probabilities.
        rng: decides everything; equal states give equal samples.
        limit: disparity of the crop in px from which on it does not count as ground truth.
    """
    left, right, truth = sample.left, sample.right, sample.disparity
    if mirrored := spec.do_flip and _chance(rng, spec.h_flip_prob):
        left, right, truth = right, left, sample.right_disparity
    reversed_rows = spec.do_flip and _chance(rng, spec.v_flip_prob)
    window = _draw_window(rng, spec, sample, mirrored=mirrored, reversed_rows=reversed_rows)
    if spec.crop_min_valid_disp_ratio > 0:
        truth = right_view_disparity(sample.disparity) if truth is None else truth
        valid = window.whole().disparity(truth) < limit
        position = _draw_valid_position(rng, window, valid, spec.crop_min_valid_disp_ratio)
    else:
        position = _draw_position(rng, window)
    window = window.at(*position)
    if truth is None:
        truth = right_view_disparity(sample.disparity, window.rows.extent)
    left, right = _change_colours(rng, spec, window.left(left), window.right(right))
    if _chance(rng, spec.eraser_aug_prob):
        right = _erase(rng, right)
    return replace(
        sample,
        left=left,
        right=right,
        disparity=window.disparity(truth),
        right_disparity=None,
    )


def varying_fields(spec: StereoAugmentSpec, size: tuple[int, int]) -> list[str]:
    """The fields by which the crops of one sample differ from epoch to epoch.

    Args:
        spec: ranges and probabilities.
        size: height and width of the sample in px.
    """
    chances = ("spatial_aug_prob", "yjitter_prob", "hshift_prob", "eraser_aug_prob")
    flips = ("h_flip_prob", "v_flip_prob") if spec.do_flip else ()
    strengths = ("color_aug_brightness", "color_aug_contrast")
    ranges = {
        "color_aug_saturation": spec.color_aug_saturation,
        # A constant rotation does too: whether it comes before the saturation is drawn.
        "color_aug_hue_range": (0.0, max(map(abs, spec.color_aug_hue_range))),
        "gamma": spec.gamma[:2],
        "gamma (gain)": spec.gamma[2:],
    }
    has_room = any(side > crop for side, crop in zip(size, spec.crop_size, strict=True))
    return [
        *(["crop_size"] if has_room else []),
        *(name for name in (*chances, *flips, *strengths) if getattr(spec, name) > 0),
        *(name for name, (low, high) in ranges.items() if low != high),
    ]


def _draw_window(
    rng: np.random.Generator,
    spec: StereoAugmentSpec,
    sample: StereoSample,
    *,
    mirrored: bool,
    reversed_rows: bool,
) -> Window:
    """Scale and shifts of the crop; its position is still to be drawn."""
    height, width = spec.crop_size
    has_jitter = _chance(rng, spec.yjitter_prob)
    row_shift = _integer(rng, -_MAX_ROW_JITTER, _MAX_ROW_JITTER) if has_jitter else 0
    has_shift = _chance(rng, spec.hshift_prob)
    column_shift = _integer(rng, -_MAX_COLUMN_SHIFT, _MAX_COLUMN_SHIFT) if has_shift else 0
    rows = Axis.unscaled(height, sample.disparity.shape[0], mirrored=reversed_rows)
    columns = Axis.unscaled(width, sample.disparity.shape[1], mirrored=mirrored)
    blur = (1.0, 1.0)
    if _chance(rng, spec.spatial_aug_prob):
        column_scale, row_scale = _draw_scales(rng, spec)
        if spec.blur_scale:
            blur = _blur_scales(column_scale, row_scale, rows, columns)
        else:
            room = 2 * _MAX_ROW_JITTER if has_jitter else 0
            rows = replace(rows, scale=max(row_scale, (height + room) / rows.padded))
            columns = replace(columns, scale=max(column_scale, width / columns.padded))
    return Window(rows, columns, row_shift, column_shift, blur, sample.is_sparse)


def _draw_scales(rng: np.random.Generator, spec: StereoAugmentSpec) -> tuple[float, float]:
    """Column and row scale, powers of 2 with uniform exponents."""
    exponent = rng.uniform(spec.min_scale, spec.max_scale)
    stretch = np.zeros(2)
    if _chance(rng, spec.stretch_prob):
        stretch = rng.uniform(-spec.max_stretch, spec.max_stretch, 2)
    column_scale, row_scale = 2.0 ** (exponent + stretch)
    return float(column_scale), float(row_scale)


def _blur_scales(
    column_scale: float, row_scale: float, rows: Axis, columns: Axis
) -> tuple[float, float]:
    """The scales as the reference limits them: never larger than 1, nor far below the crop."""
    least = max(
        (rows.size + _BLUR_MARGIN) / rows.padded, (columns.size + _BLUR_MARGIN) / columns.padded
    )
    return min(1.0, max(least, column_scale)), min(1.0, max(least, row_scale))


def _draw_position(rng: np.random.Generator, window: Window) -> tuple[int, int]:
    """First row and column of the window, anywhere in the image.

    With row jitter the rows are where both views have them, if there are such.
    """
    x = _integer(rng, 0, window.columns.scaled - window.columns.size)
    last = window.rows.scaled - window.rows.size
    first_with_room, last_with_room = max(0, -window.row_shift), last - max(0, window.row_shift)
    if first_with_room <= last_with_room:
        return _integer(rng, first_with_room, last_with_room), x
    return _integer(rng, 0, last), x


def _draw_valid_position(
    rng: np.random.Generator, window: Window, valid: BoolMap, ratio: float
) -> tuple[int, int]:
    """The first of 20 positions with enough usable disparity, else the best of them.

    Args:
        rng: draws the positions.
        window: its size and shifts count.
        valid: where the scaled, padded image has usable disparity.
        ratio: share of the window that is enough.
    """
    sums = cv2.integral(valid.astype(np.uint8))
    height, width = window.rows.size, window.columns.size
    best, best_count = (0, 0), -1
    for _ in range(_CROP_DRAWS):
        top, left = _draw_position(rng, window)
        bottom, right = top + height, left + width
        count = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
        if count > best_count:
            best, best_count = (top, left), int(count)
        if count >= ratio * height * width:
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
        if np.abs(self.matrix - _UNCHANGED).max() > _NOTHING:
            image = as_image(cv2.transform(image, self.matrix))
        if (self.gamma, self.gain) != (1.0, 1.0):
            table = 255 * self.gain * (np.arange(256) / 255) ** self.gamma
            image = as_image(cv2.LUT(image, np.clip(np.rint(table), 0, 255).astype(np.uint8)))
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
    return np.array(cv2.mean(image[::4, ::4])[:3])


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
