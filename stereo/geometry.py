"""Image geometry: padding to a stride and back, disparity to metric depth, affine alignment.

Disparity in px of the stated image; depth in m; `depth = baseline * focal / (disparity + doffs)`
with the baseline in m, focal and doffs in px.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


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


def pad_to_multiple(image: Tensor, stride: int) -> tuple[Tensor, Padding]:
    """Repeat the border of `image` (B, C, H, W) until H and W are multiples of `stride`.

    Left and right images of one size get the same padding, so disparities stay as they are.
    """
    padding = centred_padding(-image.shape[-2] % stride, -image.shape[-1] % stride)
    if not any(padding):
        return image, padding
    return F.pad(image, padding, mode="replicate"), padding


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
