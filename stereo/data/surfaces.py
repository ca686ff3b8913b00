"""Closed-form surfaces seen by a rectified pair of cameras: planes, box sides, spheres.

Nothing is warped: each view is ray-cast from the same surfaces, so disparity is exact and
occlusion is known to 0.001 px.

Symbols: W, H image size px; f = 0.9 W focal length px; B = 0.1 m baseline; d = f B / Z disparity
px; (x, y) pixel, y shared by both views; x_l, x_r its column left and right, x_r = x_l - d;
(X, Y, Z) metres in the left camera's frame. Principal point ((W-1)/2, (H-1)/2).

Source: design page data.md, section 9.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from stereo.data.encodings import BoolMap

BASELINE = 0.1  # m

# Float64: a float32 sphere silhouette is off by 0.004 px, above the occlusion tolerance.
Coordinates: TypeAlias = npt.NDArray[np.float64]
Ids: TypeAlias = npt.NDArray[np.uint8]

_OCCLUSION_TOLERANCE = 1e-3  # px
_TEXTURE_DEPTH = 4.0  # m at which one px of a texture of fixed size in metres fills one of the view
_SEAM = 1e-4  # px by which a box side reaches over its edge, so that rounding leaves no gap


@dataclass(frozen=True)
class Camera:
    """The left camera; the right one is `BASELINE` to its right."""

    height: int
    width: int

    @property
    def focal(self) -> float:
        """Focal length in px."""
        return 0.9 * self.width

    @property
    def cx(self) -> float:
        """Principal point column in px, the same in both views."""
        return (self.width - 1) / 2

    @property
    def cy(self) -> float:
        """Principal point row in px."""
        return (self.height - 1) / 2

    def depth(self, disparity: Coordinates) -> Coordinates:
        """Z in m."""
        return self.focal * BASELINE / disparity

    def on_surface(
        self, x_left: Coordinates, y: Coordinates, disparity: Coordinates
    ) -> tuple[Coordinates, Coordinates]:
        """Where a texture of fixed size in metres is read, in its px: along (X + Z, Y).

        Z keeps the sides of boxes, where X is constant, from showing stripes.
        """
        magnified = self.depth(disparity) / _TEXTURE_DEPTH
        return (x_left - self.cx + self.focal) * magnified, (y - self.cy) * magnified


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels, inclusive, that holds all of a surface in one view."""

    left: float
    right: float
    top: float
    bottom: float


class Surface(Protocol):
    """Something opaque; `inside` is where it exists, disparity elsewhere has no meaning."""

    def extent(self, *, right: bool) -> Box:
        """A box around the surface in one view."""
        ...

    def hit(
        self, x: Coordinates, y: Coordinates, *, right: bool
    ) -> tuple[Coordinates, BoolMap | bool]:
        """Disparity in px at column x of one view, and where it counts."""
        ...


@dataclass(frozen=True)
class Plane:
    """d(x_l, y) = a x_l + b y + c, everywhere; the base of the bounded planes."""

    a: float
    b: float
    c: float

    def extent(self, *, right: bool) -> Box:
        """The whole image: a plane has no border."""
        return Box(-np.inf, np.inf, -np.inf, np.inf)

    def hit(
        self, x: Coordinates, y: Coordinates, *, right: bool
    ) -> tuple[Coordinates, BoolMap | bool]:
        """Disparity at column x of one view; the support is tested at x_l in both."""
        if right:
            x_left = (x + self.b * y + self.c) / (1 - self.a)
            disparity = x_left - x
        else:
            x_left = x
            disparity = self.a * x + self.b * y + self.c
        return disparity, self.contains(x_left, y, disparity)

    def contains(self, x: Coordinates, y: Coordinates, disparity: Coordinates) -> BoolMap | bool:
        """Whether the point of the plane seen at left pixel (x, y) exists."""
        return True


@dataclass(frozen=True)
class Patch(Plane):
    """A plane inside a rotated rectangle or ellipse of the left image."""

    x: float
    y: float
    half_width: float
    half_height: float
    angle: float = 0.0
    is_ellipse: bool = False

    def extent(self, *, right: bool) -> Box:
        """Box around the rotated rectangle, moved by the disparities of its corners."""
        cos, sin = abs(np.cos(self.angle)), abs(np.sin(self.angle))
        reach_x = self.half_width * cos + self.half_height * sin
        reach_y = self.half_width * sin + self.half_height * cos
        x = np.array([self.x - reach_x, self.x + reach_x])
        y = np.array([self.y - reach_y, self.y + reach_y])
        if right:
            columns = x[None, :] * (1 - self.a) - self.b * y[:, None] - self.c
            return Box(float(columns.min()), float(columns.max()), *map(float, y))
        return Box(*map(float, x), *map(float, y))

    def contains(self, x: Coordinates, y: Coordinates, disparity: Coordinates) -> BoolMap | bool:
        """Whether left pixel (x, y) lies in the rotated rectangle or ellipse."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        u, v = x - self.x, y - self.y
        p = (u * cos + v * sin) / self.half_width
        q = (v * cos - u * sin) / self.half_height
        if self.is_ellipse:
            return p * p + q * q <= 1
        return (np.abs(p) <= 1) & (np.abs(q) <= 1)


@dataclass(frozen=True)
class BoxSide(Plane):
    """The side of a box behind the edge of a fronto-parallel face: the 3D plane X = constant.

    It runs from the edge (disparity `near`) to its far edge (disparity `far`); its rows shrink
    towards the principal point `cy` with the disparity, from `top` and `bottom` at the edge.
    """

    near: float
    far: float
    top: float
    bottom: float
    cx: float
    cy: float

    def extent(self, *, right: bool) -> Box:
        """Box around the trapezoid."""
        disparity = np.array([self.near, self.far])
        columns = (disparity - self.c) / self.a - (disparity if right else 0)
        shrink = disparity / self.near
        rows = np.concatenate(
            [self.cy + shrink * (self.top - self.cy), self.cy + shrink * (self.bottom - self.cy)]
        )
        return Box(*(float(v) for v in (columns.min(), columns.max(), rows.min(), rows.max())))

    def contains(self, x: Coordinates, y: Coordinates, disparity: Coordinates) -> BoolMap | bool:
        """Whether the point lies between the two edges and within the box's height."""
        shrink = disparity / self.near
        below_top = y - self.cy >= shrink * (self.top - self.cy)
        above_bottom = y - self.cy <= shrink * (self.bottom - self.cy)
        between = (disparity >= self.far) & (disparity <= self.near + _SEAM)
        return below_top & above_bottom & between


@dataclass(frozen=True)
class Sphere:
    """A sphere with centre (X, Y, Z) and radius in metres."""

    centre: tuple[float, float, float]
    radius: float
    camera: Camera

    def extent(self, *, right: bool) -> Box:
        """Box around the silhouette."""
        columns = self._silhouette(self._centre_x(right))
        rows = self._silhouette(self.centre[1])
        focal, cx, cy = self.camera.focal, self.camera.cx, self.camera.cy
        return Box(
            cx + focal * columns[0],
            cx + focal * columns[1],
            cy + focal * rows[0],
            cy + focal * rows[1],
        )

    def hit(
        self, x: Coordinates, y: Coordinates, *, right: bool
    ) -> tuple[Coordinates, BoolMap | bool]:
        """Disparity of the near intersection with the ray through (x, y)."""
        u = (x - self.camera.cx) / self.camera.focal
        v = (y - self.camera.cy) / self.camera.focal
        centre_x, centre_y, centre_z = self._centre_x(right), self.centre[1], self.centre[2]
        a = u * u + v * v + 1
        q = u * centre_x + v * centre_y + centre_z
        distance = centre_x**2 + centre_y**2 + centre_z**2 - self.radius**2
        discriminant = q * q - a * distance
        depth = (q - np.sqrt(np.maximum(discriminant, 0))) / a
        return self.camera.focal * BASELINE / depth, discriminant > 0

    def _centre_x(self, right: bool) -> float:
        return self.centre[0] - (BASELINE if right else 0.0)

    def _silhouette(self, offset: float) -> tuple[float, float]:
        """Smallest and largest ray slope that touches the sphere, along one image axis."""
        depth, radius = self.centre[2], self.radius
        spread = radius * np.sqrt(offset**2 + depth**2 - radius**2)
        scale = depth**2 - radius**2
        return float(offset * depth - spread) / scale, float(offset * depth + spread) / scale


@dataclass(frozen=True)
class StereoScene:
    """Surfaces before a camera; index 0 is the background."""

    camera: Camera
    surfaces: Sequence[Surface]

    @cached_property
    def grid(self) -> tuple[Coordinates, Coordinates]:
        """Column coordinates (1, W) and row coordinates (H, 1)."""
        return (
            np.arange(self.camera.width, dtype=np.float64)[None, :],
            np.arange(self.camera.height, dtype=np.float64)[:, None],
        )

    def trace(self, *, right: bool) -> tuple[Coordinates, Ids]:
        """Front-most disparity (px) and surface id at every pixel of one view."""
        x, y = self.grid
        shape = (self.camera.height, self.camera.width)
        nearest = np.zeros(shape)
        ids = np.zeros(shape, np.uint8)
        for number, surface in enumerate(self.surfaces):
            rows, columns = self._window(surface.extent(right=right))
            disparity, inside = surface.hit(x[:, columns], y[rows], right=right)
            in_front = inside & (disparity > nearest[rows, columns])
            np.copyto(nearest[rows, columns], disparity, where=in_front)
            ids[rows, columns][in_front] = number
        return nearest, ids

    def occluded(self, disparity: Coordinates) -> BoolMap:
        """True where the right view does not show the left pixel: hidden or outside the image."""
        x, _ = self.grid
        x_right = x - disparity
        occluded = (x_right < 0) | (x_right > self.camera.width - 1)
        for surface in self.surfaces:
            box = surface.extent(right=True)
            rows, _ = self._window(box)
            candidates = (x_right[rows] >= box.left) & (x_right[rows] <= box.right)
            row, column = np.nonzero(candidates & ~occluded[rows])
            row += rows.start
            own = disparity[row, column]
            there, inside = surface.hit(x_right[row, column], row.astype(np.float64), right=True)
            occluded[row, column] = inside & (there > own + _OCCLUSION_TOLERANCE)
        return occluded

    def _window(self, box: Box) -> tuple[slice, slice]:
        """Rows and columns of the image that a box can touch."""
        return (
            _whole_pixels(box.top, box.bottom, self.camera.height),
            _whole_pixels(box.left, box.right, self.camera.width),
        )


def _whole_pixels(low: float, high: float, size: int) -> slice:
    """The pixels 0..size-1 in [low, high], as a slice (empty when there are none)."""
    first = int(np.ceil(np.clip(low, 0, size)))
    last = int(np.floor(np.clip(high, -1, size - 1)))
    return slice(first, max(first, last + 1))
