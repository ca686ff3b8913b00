"""Procedural stereo pairs with exact disparity and occlusion; the data a bare machine trains on.

A scene is a slanted background and 5 to 8 objects: plane patches, boxes, spheres (`surfaces`).
Everything follows from (seed, index).

Symbols: those of `surfaces`; D largest disparity px.

Source: design page data.md, section 9.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from stereo.data.encodings import (
    OCCLUDED,
    VISIBLE,
    BoolMap,
    FloatMap,
    Image,
    write_pfm,
    write_png,
)
from stereo.data.surfaces import (
    BASELINE,
    BoxSide,
    Camera,
    Coordinates,
    Ids,
    Patch,
    Plane,
    Sphere,
    StereoScene,
    Surface,
)
from stereo.files import write_text

GENERATOR_VERSION = 1  # part of the written data's identity: raise it when any pixel changes

_NEAREST = 0.95  # largest disparity of any surface, in units of D
_FARTHEST = 0.02  # smallest, in units of D
_MIN_BOX_OFFSET = 1.3  # |X| of a box's side plane in baselines; below, one view cannot see it
_TILE = 512  # px, side of a texture
_TILE_PAD = 4  # reflected px around a texture, so that interpolation never mixes two
_TEXTURES = 8
_FLAT_TEXTURES = 2  # further textures of low contrast
_FLAT_SHARE = 0.15  # of the surfaces use one of those


@dataclass(frozen=True)
class GeneratedPair:
    """One rendered pair.

    Attributes:
        left: uint8 (H, W, 3) RGB.
        right: uint8 (H, W, 3) RGB.
        disparity: float32 (H, W) px, left view, known everywhere.
        right_disparity: float32 (H, W) px of the right view's own pixels.
        occluded: bool (H, W), True where the right camera does not see the left pixel.
        ids: uint8 (H, W), surface seen at each left pixel, 0 = background.
        right_ids: uint8 (H, W), the same for the right view.
        camera: the left camera.
    """

    left: Image
    right: Image
    disparity: FloatMap
    right_disparity: FloatMap
    occluded: BoolMap
    ids: Ids
    right_ids: Ids
    camera: Camera


@dataclass(frozen=True)
class EmbeddedLayout:
    """What `write_embedded` writes; the only home of these numbers."""

    train_pairs: int = 30
    train_size: tuple[int, int] = (128, 192)  # H, W px
    train_seed: int = 1
    val_pairs: int = 16
    val_size: tuple[int, int] = (96, 128)
    val_seed: int = 2
    max_disparity: float = 32.0  # a quarter of the smaller width


EMBEDDED = EmbeddedLayout()
EMBEDDED_LARGE = EmbeddedLayout(
    train_pairs=120, train_size=(384, 768), val_size=(320, 736), max_disparity=184.0
)  # for crops of 320x736 on a GPU


@dataclass(frozen=True)
class EmbeddedSet:
    """Annotation files of the written data; the `middlebury` ones also name the masks."""

    train: Path
    val: Path
    train_middlebury: Path
    val_middlebury: Path


def generate(
    seed: int,
    index: int,
    *,
    height: int,
    width: int,
    max_disparity: float | None = None,
    photometric: bool = True,
) -> GeneratedPair:
    """The pair number `index` of the set `seed`; equal arguments give equal bytes.

    Args:
        seed: of the set; it also fixes the pool of textures.
        index: of the pair within the set.
        height: H in px.
        width: W in px.
        max_disparity: D in px; every disparity is below it. None = W / 4.
        photometric: give the views different exposure, blur, vignette and noise.
    """
    rng = np.random.default_rng((seed, index))
    scene = _draw_scene(rng, Camera(height, width), max_disparity or width / 4)
    disparity, ids = scene.trace(right=False)
    right_disparity, right_ids = scene.trace(right=True)
    painter = _Painter(rng, len(scene.surfaces), seed)
    x, y = scene.grid
    views = [painter.paint(ids, x, y), painter.paint(right_ids, x + right_disparity, y)]
    if photometric:
        views = _expose(rng, views)
    left, right = (_to_uint8(view) for view in views)
    return GeneratedPair(
        left=left,
        right=right,
        disparity=disparity.astype(np.float32),
        right_disparity=right_disparity.astype(np.float32),
        occluded=scene.occluded(disparity),
        ids=ids,
        right_ids=right_ids,
        camera=scene.camera,
    )


def write_embedded(directory: Path, layout: EmbeddedLayout = EMBEDDED) -> EmbeddedSet:
    """Write the embedded training and validation pairs below `directory`, once.

    Every file is written under a temporary name and has the same bytes whoever writes it, so
    several processes may call this at the same time; a killed call is finished by the next one.
    """
    marker = directory / "embedded.json"
    identity = json.dumps({"generator": GENERATOR_VERSION, **asdict(layout)}, sort_keys=True)
    embedded = EmbeddedSet(
        train=directory / "train.txt",
        val=directory / "val.txt",
        train_middlebury=directory / "train_middlebury.txt",
        val_middlebury=directory / "val_middlebury.txt",
    )
    if marker.is_file() and marker.read_text() == identity:
        return embedded
    for split, seed, pairs, (height, width) in (
        ("train", layout.train_seed, layout.train_pairs, layout.train_size),
        ("val", layout.val_seed, layout.val_pairs, layout.val_size),
    ):
        scenes = [f"{split}/{index:04d}" for index in range(pairs)]
        for index, scene in enumerate(scenes):
            pair = generate(
                seed, index, height=height, width=width, max_disparity=layout.max_disparity
            )
            write_middlebury(directory / scene, pair)
        write_annotations(directory / f"{split}.txt", scenes, masks=False)
        write_annotations(directory / f"{split}_middlebury.txt", scenes, masks=True)
    write_text(marker, identity)
    return embedded


def write_middlebury(scene: Path, pair: GeneratedPair) -> None:
    """Write a pair as a Middlebury scene folder: im0, im1, disp0GT, mask0nocc, calib."""
    scene.mkdir(parents=True, exist_ok=True)
    write_png(scene / "im0.png", pair.left)
    write_png(scene / "im1.png", pair.right)
    write_pfm(scene / "disp0GT.pfm", pair.disparity)
    mask = np.where(pair.occluded, OCCLUDED, VISIBLE).astype(np.uint8)
    write_png(scene / "mask0nocc.png", mask)
    camera = pair.camera
    matrix = f"[{camera.focal} 0 {camera.cx}; 0 {camera.focal} {camera.cy}; 0 0 1]"
    write_text(
        scene / "calib.txt",
        f"cam0={matrix}\ncam1={matrix}\ndoffs=0\nbaseline={BASELINE * 1000}\n"
        f"width={camera.width}\nheight={camera.height}\n",
    )


def write_annotations(path: Path, scenes: Sequence[str], *, masks: bool) -> None:
    """Write the annotation file of Middlebury scene folders, relative to its own folder."""
    names = ["im0.png", "im1.png", "disp0GT.pfm", "mask0nocc.png"][: 4 if masks else 3]
    lines = [" ".join(f"{scene}/{name}" for name in names) for scene in scenes]
    write_text(path, "\n".join(lines) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m stereo.data.generator DIRECTORY`: write the embedded data there."""
    parser = argparse.ArgumentParser(
        prog="python -m stereo.data.generator", description=main.__doc__
    )
    parser.add_argument("directory", type=Path, help="folder to write to")
    embedded = write_embedded(parser.parse_args(arguments).directory)
    for name, path in asdict(embedded).items():
        sys.stdout.write(f"{name}: {path}\n")


def _draw_scene(rng: np.random.Generator, camera: Camera, max_disparity: float) -> StereoScene:
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


class _Painter:
    """Colours of surfaces: each shows one texture under its own rotation, scale and offset."""

    def __init__(self, rng: np.random.Generator, surfaces: int, seed: int) -> None:
        self._atlas = _texture_atlas(seed)
        scale, angle = rng.uniform(0.6, 1.6, surfaces), rng.uniform(-np.pi, np.pi, surfaces)
        self._cos = (scale * np.cos(angle)).astype(np.float32)
        self._sin = (scale * np.sin(angle)).astype(np.float32)
        self._u = rng.uniform(0, _TILE, surfaces).astype(np.float32)
        self._v = rng.uniform(0, _TILE, surfaces).astype(np.float32)
        tile = np.where(
            rng.random(surfaces) < _FLAT_SHARE,
            _TEXTURES + rng.integers(0, _FLAT_TEXTURES, surfaces),
            rng.integers(0, _TEXTURES, surfaces),
        )
        self._top = (tile * (_TILE + 2 * _TILE_PAD) + _TILE_PAD).astype(np.float32)

    def paint(self, ids: Ids, x_left: Coordinates, y: Coordinates) -> FloatMap:
        """Colours float32 (H, W, 3), 0..255; both views ask with the left column, so they agree."""
        x, rows = x_left.astype(np.float32), y.astype(np.float32)
        cos, sin = self._cos[ids], self._sin[ids]
        u = _mirrored(cos * x - sin * rows + self._u[ids])
        v = _mirrored(sin * x + cos * rows + self._v[ids]) + self._top[ids]
        return _floats(cv2.remap(self._atlas, u + _TILE_PAD, v, cv2.INTER_LINEAR))


def _mirrored(coordinate: npt.NDArray[Any]) -> FloatMap:
    """Fold any coordinate into a texture, mirrored at its border."""
    edge = np.float32(_TILE - 1)
    return _floats(np.abs(np.mod(coordinate, 2 * edge) - edge))


@lru_cache(maxsize=2)
def _texture_atlas(seed: int) -> FloatMap:
    """The textures of a set, one below the other with reflected borders, float32 RGB."""
    tiles = [
        _texture(np.random.default_rng((seed, 10**6 + number)), is_flat=number >= _TEXTURES)
        for number in range(_TEXTURES + _FLAT_TEXTURES)
    ]
    pad = [(_TILE_PAD, _TILE_PAD), (_TILE_PAD, _TILE_PAD), (0, 0)]
    return np.concatenate([np.pad(tile, pad, mode="reflect") for tile in tiles])


def _texture(rng: np.random.Generator, *, is_flat: bool) -> FloatMap:
    """Random grids of falling amplitude, lines and discs, lightly blurred; 0..255."""
    texture = np.zeros((_TILE, _TILE, 3), np.float32)
    amplitude = 1.0
    for cells in (4, 16, 48, 128):
        cell = rng.random((cells, cells, 3), np.float32) - np.float32(0.5)
        texture += amplitude * cv2.resize(cell, (_TILE, _TILE), interpolation=cv2.INTER_CUBIC)
        amplitude *= rng.uniform(0.5, 0.9)
    texture *= np.float32(rng.uniform(60, 160))
    texture += rng.uniform(60, 190, 3).astype(np.float32)
    for _ in range(rng.integers(10, 40)):
        _draw_shape(rng, texture)
    texture = _floats(cv2.GaussianBlur(np.clip(texture, 0, 255), (0, 0), 0.7))
    if is_flat:
        mean = texture.mean(axis=(0, 1))
        texture = mean + np.float32(0.12) * (texture - mean)
    return texture


def _draw_shape(rng: np.random.Generator, texture: FloatMap) -> None:
    """Draw one random line or disc into the texture."""
    start, end = (tuple(int(v) for v in rng.integers(0, _TILE, 2)) for _ in range(2))
    colour = [float(v) for v in rng.uniform(0, 255, 3)]
    if rng.random() < 0.5:
        cv2.line(texture, start, end, colour, int(rng.integers(1, 5)), cv2.LINE_AA)
    else:
        cv2.circle(texture, start, int(rng.integers(3, 40)), colour, -1, cv2.LINE_AA)


def _expose(rng: np.random.Generator, views: Sequence[FloatMap]) -> list[FloatMap]:
    """Two real cameras: sometimes soft or vignetted lenses, a right exposure of its own, noise."""
    left, right = views
    right = right * rng.uniform(0.9, 1.1, 3).astype(np.float32) + np.float32(rng.uniform(-6, 6))
    if rng.random() < 0.2:
        sigma = rng.uniform(0.4, 0.8)
        left, right = (_floats(cv2.GaussianBlur(v, (0, 0), sigma)) for v in (left, right))
    if rng.random() < 0.2:
        vignette = _vignette(left.shape[:2], rng.uniform(0.1, 0.3))
        left, right = left * vignette, right * vignette
    return [_with_noise(rng, view) for view in (left, right)]


def _with_noise(rng: np.random.Generator, view: FloatMap) -> FloatMap:
    sigma = np.float32(rng.uniform(0.3, 2.0))
    return _floats(view + sigma * rng.standard_normal(view.shape, np.float32))


def _vignette(size: tuple[int, int], strength: float) -> FloatMap:
    """Factor (H, W, 1): 1 in the middle, 1 - strength in the corners."""
    rows, columns = (np.linspace(-1, 1, n, dtype=np.float32) for n in size)
    return 1 - np.float32(strength / 2) * (rows[:, None, None] ** 2 + columns[None, :, None] ** 2)


def _to_uint8(view: FloatMap) -> Image:
    return np.clip(np.rint(view), 0, 255).astype(np.uint8)


def _floats(array: Any) -> FloatMap:
    """The same float32 array for the type checker, which sees a wider type; never a copy here."""
    return np.asarray(array, np.float32)


if __name__ == "__main__":
    main()
