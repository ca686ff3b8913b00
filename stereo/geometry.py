"""Image geometry: padding to a stride and back, tiles, disparity to metric depth, alignment.

Disparity in px of the stated image; depth in m; `depth = baseline * focal / (disparity + doffs)`
with the baseline in m, focal and doffs in px.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

WEIGHT_FLOOR = 1e-3  # of a pixel at the border of a tile


class Padding(NamedTuple):
    """Pixels added on each side, in the order of `torch.nn.functional.pad`."""

    left: int
    right: int
    top: int
    bottom: int


def centred_padding(vertical: int, horizontal: int) -> Padding:
    """So many rows and columns in all, split evenly; the odd one goes to the bottom and right."""
    left, top = horizontal // 2, vertical // 2
    return Padding(left=left, right=horizontal - left, top=top, bottom=vertical - top)


def pad(image: Tensor, padding: Padding) -> Tensor:
    """Repeat the border of `image` (B, C, H, W).

    Left and right images with the same padding keep their disparities.
    """
    return F.pad(image, padding, mode="replicate") if any(padding) else image


def crop(tensor: Tensor, padding: Padding) -> Tensor:
    """Take the padding off the last two axes again."""
    rows = slice(padding.top, tensor.shape[-2] - padding.bottom)
    columns = slice(padding.left, tensor.shape[-1] - padding.right)
    return tensor[..., rows, columns]


def disparity_to_depth(
    disparity: NDArray[np.float32], *, baseline: float, focal_x: float, doffs: float = 0.0
) -> NDArray[np.float32]:
    """Depth in m; 0 where the disparity is not positive or not finite.

    Args:
        disparity: px of the native image, any shape.
        baseline: distance of the cameras, m.
        focal_x: focal length, px of the native width.
        doffs: x difference of the principal points, px.
    """
    shifted = disparity + doffs
    seen = np.isfinite(disparity) & (disparity > 0) & (shifted > 0)
    depth = np.zeros(disparity.shape, np.float32)
    np.divide(baseline * focal_x, shifted, out=depth, where=seen, casting="same_kind")
    return depth


class Alignment(NamedTuple):
    """Maps brought to the scale and shift of others, per image.

    Attributes:
        aligned: scale * source + shift, (B, ...); of no meaning where the mask was False.
        scale: (B,).
        shift: (B,).
        found: bool (B,); False for a source without two different valid values: all three are 0.
    """

    aligned: Tensor
    scale: Tensor
    shift: Tensor
    found: Tensor


def align(source: Tensor, target: Tensor, valid: Tensor) -> Alignment:
    """Scale and shift per image that bring `source` closest to `target` by least squares.

    Both are centred first: the determinant of the normal equations cancels in float32. Gradients
    flow through scale and shift. A source that is not finite gives NaN.

    Args:
        source: (B, ...).
        target: of the same shape; any value where `valid` is False.
        valid: bool, of the same shape.
    """
    axes = tuple(range(1, source.ndim))
    count = valid.sum(axes, keepdim=True).clamp(min=1)
    source_mean, target_mean = (
        torch.where(valid, values, 0.0).sum(axes, keepdim=True) / count
        for values in (source, target)
    )
    x = torch.where(valid, source - source_mean, 0.0)
    y = torch.where(valid, target - target_mean, 0.0)
    variance = x.square().sum(axes, keepdim=True)
    # The mean of equal values is rounded, so the variance alone does not show that they are equal.
    highest = torch.where(valid, source, -torch.inf).amax(axes, keepdim=True)
    lowest = torch.where(valid, source, torch.inf).amin(axes, keepdim=True)
    constant = (highest <= lowest) | (variance == 0)
    slope = (x * y).sum(axes, keepdim=True) / torch.where(constant, 1.0, variance)
    scale = torch.where(constant, 0.0, slope)
    middle = torch.where(constant, 0.0, target_mean)
    shift = middle - scale * source_mean
    return Alignment(middle + scale * x, scale.flatten(), shift.flatten(), ~constant.flatten())


class Tiles(NamedTuple):
    """How an image is covered by tiles of one size, and how what they show is blended.

    Attributes:
        size: height and width of a tile, px.
        overlap: least overlap of neighbours in rows and columns, px, below `size`.
        weights: of a pixel of a tile: `gaussian` falls from its middle to its border, `uniform`
            is 1.
    """

    size: tuple[int, int]
    overlap: tuple[int, int]
    weights: Literal["gaussian", "uniform"]

    def cut(self, size: tuple[int, int]) -> bool:
        """Whether an image of this height and width needs more than one."""
        return any(length > tile for length, tile in zip(size, self.size, strict=True))

    def blend(
        self, shape: tuple[int, int, int], predict: Callable[[slice, slice], Tensor]
    ) -> Tensor:
        """Weighted mean of what is predicted for every tile, float32.

        Args:
            shape: (B, H, W) of the result, nowhere smaller than a tile.
            predict: rows and columns of a tile -> values (B, *size) on the CPU.
        """
        weight = self._weight()
        total, weights = torch.zeros(shape).double(), torch.zeros(shape[1:]).double()
        rows, columns = (
            [slice(start, start + tile) for start in tile_starts(length, tile, overlap)]
            for length, tile, overlap in zip(shape[1:], self.size, self.overlap, strict=True)
        )
        for window in itertools.product(rows, columns):
            total[:, *window] += weight * predict(*window)
            weights[window] += weight
        return (total / weights).float()

    def _weight(self) -> Tensor:
        rows, columns = (
            gaussian_weights(side) if self.weights == "gaussian" else torch.ones(side).double()
            for side in self.size
        )
        return rows[:, None] * columns


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """First pixels of the fewest tiles that cover a length, spread evenly.

    Args:
        length: px; what is not longer than a tile is covered by one at 0.
        tile: px.
        overlap: least one of neighbours, px; 0 <= overlap < tile.
    """
    assert 0 <= overlap < tile
    if length <= tile:
        return [0]
    last = -(-(length - overlap) // (tile - overlap)) - 1
    return [index * (length - tile) // last for index in range(last + 1)]


def gaussian_weights(length: int) -> Tensor:
    """Bell (length,) around the middle, with a standard deviation of an eighth of the length."""
    distance = torch.arange(length, dtype=torch.float64) - (length - 1) / 2
    return torch.exp(-distance.square() / (2 * (length / 8) ** 2)).clamp(min=WEIGHT_FLOOR)
