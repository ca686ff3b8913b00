"""Colours of generated pairs: the textures of surfaces, and what two cameras make of them.

A texture is a sum of random grids with lines and discs; a data set has a pool of them in one
atlas, so that a view is painted by one interpolation. Both views ask for a colour with the left
column of the surface point, so they show the same one.

Views are float32 (H, W, 3) RGB, 0..255.

Source: design page data.md, section 9.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from stereo.data.encodings import FloatMap, Image
from stereo.data.surfaces import Coordinates, Ids

_TILE = 512  # px, side of a texture
_TILE_PAD = 4  # reflected px around a texture, so that interpolation never mixes two
_TEXTURES = 8
_FLAT_TEXTURES = 2  # further textures of low contrast
_FLAT_SHARE = 0.15  # of the surfaces use one of those


class Painter:
    """Colours of surfaces: each shows one texture under its own rotation, scale and offset.

    Args:
        rng: of the scene.
        surfaces: their number.
        pool: fixes the textures to choose from.
    """

    def __init__(self, rng: np.random.Generator, surfaces: int, pool: tuple[int, ...]) -> None:
        self._atlas = _texture_atlas(pool)
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


@dataclass(frozen=True)
class Haze:
    """Air of one colour that takes over with distance.

    Attributes:
        colour: RGB, 0..255.
        reach: depth in m at which a third of a surface's own colour is left.
    """

    colour: FloatMap
    reach: float

    def over(self, view: FloatMap, depth: Coordinates) -> FloatMap:
        """The view (H, W, 3) of surfaces at `depth` (H, W) m, seen through the air."""
        left = np.exp(-depth / self.reach).astype(np.float32)[..., None]
        return _floats(left * view + (1 - left) * self.colour)


def draw_haze(rng: np.random.Generator) -> Haze:
    """The air of one scene: bright, almost grey; what is 9 m away is barely seen."""
    colour = rng.uniform(185, 205) + rng.uniform(-4, 4, 3)
    return Haze(colour.astype(np.float32), float(rng.uniform(2.5, 3)))


def expose(rng: np.random.Generator, views: Sequence[FloatMap]) -> list[FloatMap]:
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


def to_uint8(view: FloatMap) -> Image:
    """The view rounded to whole grey levels."""
    return np.clip(np.rint(view), 0, 255).astype(np.uint8)


def _mirrored(coordinate: npt.NDArray[Any]) -> FloatMap:
    """Fold any coordinate into a texture, mirrored at its border."""
    edge = np.float32(_TILE - 1)
    return _floats(np.abs(np.mod(coordinate, 2 * edge) - edge))


@lru_cache(maxsize=2)
def _texture_atlas(pool: tuple[int, ...]) -> FloatMap:
    """The textures of a pool, one below the other with reflected borders, float32 RGB."""
    tiles = [
        _texture(np.random.default_rng((*pool, 10**6 + number)), is_flat=number >= _TEXTURES)
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


def _with_noise(rng: np.random.Generator, view: FloatMap) -> FloatMap:
    sigma = np.float32(rng.uniform(0.3, 2.0))
    return _floats(view + sigma * rng.standard_normal(view.shape, np.float32))


def _vignette(size: tuple[int, int], strength: float) -> FloatMap:
    """Factor (H, W, 1): 1 in the middle, 1 - strength in the corners."""
    rows, columns = (np.linspace(-1, 1, n, dtype=np.float32) for n in size)
    return 1 - np.float32(strength / 2) * (rows[:, None, None] ** 2 + columns[None, :, None] ** 2)


def _floats(array: Any) -> FloatMap:
    """The same float32 array for the type checker, which sees a wider type; never a copy here."""
    return np.asarray(array, np.float32)
