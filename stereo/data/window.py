"""The window that a training crop shows of a pair: geometry of augmentation, one map per view.

Symbols: s scale of an axis, output px per source px; P padded source length, p padding before it;
t output position in the scaled image, t = u' + start for pixel u' of the window. Pixel centres are
integers, so position t shows source coordinate (t + 0.5) / s - 0.5 - p. Disparity is multiplied by
the column scale and never interpolated: that mixes surfaces at edges.

Source: design page data.md, sections 6.4 to 6.6.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, floor
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from stereo.data.encodings import FloatMap, Image

_SEEN_THROUGH = 1.0  # px; a warped pixel this much behind both neighbours shows through a gap

Indices = npt.NDArray[np.int64]


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

    @property
    def extent(self) -> slice[int, int]:
        """The source indices that any of the window's pixels shows."""
        slope, offset = self.map()
        first, last = sorted((offset - slope / 2, offset + slope * (self.size - 0.5)))
        return slice(max(0, floor(first)), min(self.source, ceil(last) + 1))

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

    def nearest(self) -> Indices:
        """Source index of each window pixel; outside 0..source-1 where the window shows padding."""
        position = np.arange(self.size) + self.start
        index = np.floor((position + 0.5) / self.scale).astype(np.int64)
        return (self.padded - 1 - index if self.mirrored else index) - self.padding

    def landing(self) -> Indices:
        """Window pixel nearest to each source pixel; outside 0..size-1 where not in the window."""
        position = np.arange(self.source) + self.padding
        if self.mirrored:
            position = self.padded - 1 - position
        return np.floor((position + 0.5) * self.scale).astype(np.int64) - self.start


@dataclass(frozen=True)
class Window:
    """The geometric change of one sample.

    Attributes:
        rows: y axis of the left view.
        columns: x axis of the left view.
        row_shift: px by which the right view's window starts lower (vertical misalignment).
        column_shift: px by which the right view's content moves right; disparity shrinks by it.
        blur: (sx, sy) by which both views are shrunk and enlarged again, without other effect.
        is_sparse: the disparity is scattered points; shrinking keeps each where it can.
    """

    rows: Axis
    columns: Axis
    row_shift: int = 0
    column_shift: int = 0
    blur: tuple[float, float] = (1.0, 1.0)
    is_sparse: bool = False

    def at(self, y: int, x: int) -> Window:
        """The same window starting at another position of the scaled, padded image."""
        return replace(
            self, rows=replace(self.rows, start=y), columns=replace(self.columns, start=x)
        )

    def whole(self) -> Window:
        """The window of everything, without its shift between the rows."""
        return replace(
            self,
            rows=replace(self.rows, size=self.rows.scaled, start=0),
            columns=replace(self.columns, size=self.columns.scaled, start=0),
            row_shift=0,
        )

    def left(self, view: Image) -> Image:
        """The window of the left view, bilinear, border replicated."""
        return self._warp(view, self.rows.map(), self.columns.map())

    def right(self, view: Image) -> Image:
        """The window of the right view, with both shifts."""
        return self._warp(view, self.rows.map(self.row_shift), self.columns.map(-self.column_shift))

    def disparity(self, disparity: FloatMap) -> FloatMap:
        """The window of a left disparity map in px of the window; +inf where unknown or <= 0."""
        sampled = self._scattered(disparity) if self.is_sparse else self._nearest(disparity)
        sampled *= np.float32(self.columns.scale)
        if self.column_shift:
            sampled -= np.float32(self.column_shift)
            sampled[sampled <= 0] = np.inf
        return sampled

    def _nearest(self, disparity: FloatMap) -> FloatMap:
        """Each window pixel takes the source pixel whose area it lies in."""
        return _gather(_gather(disparity, self.rows, 0), self.columns, 1)

    def _scattered(self, disparity: FloatMap) -> FloatMap:
        """Nearest along an axis that grows; along one that shrinks known pixels land where shown.

        Of the pixels that land together the largest, which is the front-most, stays.
        """
        landing = [axis.landing() for axis in (self.rows, self.columns)]
        for along, axis in enumerate((self.rows, self.columns)):
            if axis.scale >= 1:
                disparity = _gather(disparity, axis, along)
                landing[along] = np.arange(axis.size)
        size = self.rows.size, self.columns.size
        inside = [_slice_within(index, n) for index, n in zip(landing, size, strict=True)]
        disparity = np.ascontiguousarray(disparity[inside[0], inside[1]])
        rows, columns = landing[0][inside[0]], landing[1][inside[1]]
        known = np.flatnonzero(np.isfinite(disparity))
        target = (rows[:, None] * self.columns.size + columns).reshape(-1)[known]
        scattered = np.zeros(size[0] * size[1], np.float32)
        np.maximum.at(scattered, target, disparity.reshape(-1)[known])
        scattered[scattered == 0] = np.inf
        return scattered.reshape(size)

    def _warp(self, view: Image, rows: tuple[float, float], columns: tuple[float, float]) -> Image:
        if self.blur != (1.0, 1.0):
            view = _blurred(view, *self.blur)
        matrix = np.array([[columns[0], 0, columns[1]], [0, rows[0], rows[1]]])
        size = (self.columns.size, self.rows.size)
        # OpenCV 5.0 warps four channels 2.4 times as fast as three, to the same bytes.
        warped = cv2.warpAffine(
            cv2.cvtColor(view, cv2.COLOR_RGB2RGBA),
            matrix,
            size,
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
        return as_image(cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB))


def right_view_disparity(disparity: FloatMap, rows: slice[int, int] | None = None) -> FloatMap:
    """Disparity of the right view's pixels, forward-warped from the left map; +inf in holes.

    Every known pixel lands in column round(x - d) with its d; the largest (front-most) wins. A
    pixel with larger disparities by more than 1 px within 2 px on both sides is dropped: it is
    background seen through a gap that a stretched surface left. What the left view's mask calls
    occluded is unknown in the map and lands nowhere, so what is known afterwards is visible in
    both views, and the mask itself has no further say.

    Args:
        disparity: float32 (H, W) px of the left view, positive or +inf.
        rows: the rows that are needed, the others stay +inf; None: all.
    """
    rows = rows or slice(None)
    left: FloatMap = disparity[rows]
    height, width = left.shape
    row = np.arange(height, dtype=np.int64).reshape(-1, 1)
    target: npt.NDArray[np.float64] = np.rint(np.arange(width, dtype=np.float64) - left)
    known = np.flatnonzero(target >= 0)  # a pixel of unknown disparity lands at -inf
    index = (target + width * row).reshape(-1)[known].astype(np.int64)
    warped = np.zeros(height * width, np.float32)
    # Of pixels that land together the rightmost has the largest d, and the last assignment stays.
    warped[index] = left.reshape(-1)[known]
    warped = warped.reshape(height, width)
    around = np.pad(warped, ((0, 0), (2, 2)))
    before = np.maximum(around[:, :-4], around[:, 1:-3])
    after = np.maximum(around[:, 3:-1], around[:, 4:])
    hidden = np.minimum(before, after) > warped + _SEEN_THROUGH
    warped[hidden | (warped == 0)] = np.inf
    whole = np.full_like(disparity, np.inf)
    whole[rows] = warped
    return whole


def _gather(disparity: FloatMap, axis: Axis, along: int) -> FloatMap:
    """Nearest resampling along one axis; +inf in the padding."""
    index = axis.nearest()
    sampled = np.take(disparity, index, axis=along, mode="clip")
    padding = (index < 0) | (index >= axis.source)
    if padding.any():
        sampled[(slice(None),) * along + (padding,)] = np.inf
    return sampled


def _slice_within(index: Indices, size: int) -> slice[int, int]:
    """The run of a monotonic index that lies in 0..size-1."""
    inside = np.flatnonzero((index >= 0) & (index < size))
    return slice(inside[0], inside[-1] + 1)


def _blurred(view: Image, column_scale: float, row_scale: float) -> Image:
    """The view shrunk and enlarged to its size again."""
    height, width = view.shape[:2]
    small = (max(1, round(column_scale * width)), max(1, round(row_scale * height)))
    shrunk = cv2.resize(view, small, interpolation=cv2.INTER_LINEAR)
    return as_image(cv2.resize(shrunk, (width, height), interpolation=cv2.INTER_LINEAR))


def as_image(array: Any) -> Image:
    """The same uint8 array for the type checker; OpenCV's stubs allow any number."""
    return np.asarray(array, np.uint8)
