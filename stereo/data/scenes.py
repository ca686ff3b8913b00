"""Random scenes: a slanted background and 5 to 8 plane patches, boxes and spheres before it.

Symbols: those of `surfaces`; D largest disparity px; every surface keeps 0 < d < D.

Source: design page data.md, section 9.
"""

from __future__ import annotations

import numpy as np

from stereo.data.surfaces import (
    BASELINE,
    BoxSide,
    Camera,
    Patch,
    Plane,
    Sphere,
    StereoScene,
    Surface,
)

_NEAREST = 0.95  # largest disparity of any surface, in units of D
_FARTHEST = 0.02  # smallest, in units of D
_MIN_BOX_OFFSET = 1.3  # |X| of a box's side plane in baselines; below, one view cannot see it


def draw_scene(rng: np.random.Generator, camera: Camera, max_disparity: float) -> StereoScene:
    """A background and 5 to 8 objects, all with 0 < d < D."""
    surfaces: list[Surface] = [_draw_background(rng, camera, max_disparity)]
    for _ in range(rng.integers(5, 9)):
        centre = rng.uniform(0.15, 0.9) * max_disparity
        x, y = rng.uniform(0, camera.width), rng.uniform(0, camera.height)
        half_width = rng.uniform(0.05, 0.2) * camera.width
        half_height = rng.uniform(0.06, 0.25) * camera.height
        kind = rng.random()
        if kind < 0.5:
            patch = _draw_patch(rng, centre, x, y, half_width, half_height, max_disparity)
            surfaces.append(patch)
        elif kind < 0.75:
            face = Patch(0.0, 0.0, centre, x, y, half_width, half_height)
            surfaces += _box(rng, camera, face, max_disparity)
        else:
            surfaces.append(_sphere(camera, centre, x, y, half_width))
    return StereoScene(camera, surfaces)


def _draw_background(rng: np.random.Generator, camera: Camera, max_disparity: float) -> Plane:
    """A far plane with a slight slant, positive also where only the right view looks."""
    farthest = max_disparity * rng.uniform(0.04, 0.15)
    reach = camera.width + max_disparity
    a = rng.uniform(-0.25, 0.25) * farthest / reach
    b = rng.uniform(-0.1, 1.2) * farthest / camera.height
    return Plane(a, b, farthest - min(0.0, a * reach) - min(0.0, b * camera.height))


def _draw_patch(
    rng: np.random.Generator,
    centre: float,
    x: float,
    y: float,
    half_width: float,
    half_height: float,
    max_disparity: float,
) -> Patch:
    """A slanted patch with disparity `centre` in its middle, flattened until it stays in (0, D)."""
    a = float(np.clip(rng.uniform(-0.15, 0.15) * centre / half_width, -0.5, 0.5))
    b = rng.uniform(-0.15, 0.15) * centre / half_height
    angle = rng.uniform(-0.6, 0.6)
    is_ellipse = bool(rng.random() < 0.4)
    flat = Patch(0.0, 0.0, centre, x, y, half_width, half_height, angle, is_ellipse)
    box = flat.extent(right=False)
    swing = abs(a) * (box.right - x) + abs(b) * (box.bottom - y)
    room = min(_NEAREST * max_disparity - centre, centre - _FARTHEST * max_disparity)
    flatten = min(1.0, room / swing)
    a, b = a * flatten, b * flatten
    c = centre - a * x - b * y
    return Patch(a, b, c, x, y, half_width, half_height, angle, is_ellipse)


def _box(
    rng: np.random.Generator, camera: Camera, face: Patch, max_disparity: float
) -> list[Surface]:
    """A fronto-parallel face and, where both views can see one, the side behind its inner edge."""
    towards_axis = 1 if face.x < camera.cx else -1
    edge = face.x + towards_axis * face.half_width - camera.cx  # px from the axis
    nearest = -towards_axis * edge / _MIN_BOX_OFFSET  # disparity at which |X| is 1.3 baselines
    far_share = rng.uniform(0.4, 0.8)
    if nearest < 0.1 * max_disparity:
        return [face]
    near = min(face.c, nearest)
    slope = near / edge  # a = B / X
    face = Patch(0.0, 0.0, near, face.x, face.y, face.half_width, face.half_height)
    side = BoxSide(
        a=slope,
        b=0.0,
        c=-slope * camera.cx,
        near=near,
        far=far_share * near,
        top=face.y - face.half_height,
        bottom=face.y + face.half_height,
        cx=camera.cx,
        cy=camera.cy,
    )
    return [face, side]


def _sphere(camera: Camera, centre: float, x: float, y: float, half_width: float) -> Sphere:
    """A sphere whose nearest point has disparity `centre`."""
    depth = camera.focal * BASELINE / centre
    radius = min(0.45 * depth, depth * half_width / camera.focal)
    middle = ((x - camera.cx) * depth / camera.focal, (y - camera.cy) * depth / camera.focal)
    return Sphere((*middle, depth + radius), radius, camera)
