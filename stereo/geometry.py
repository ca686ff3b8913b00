"""Image geometry: padding to a stride and back, disparity to metric depth.

Disparity in px of the stated image; depth in m; `depth = baseline * focal / (disparity + doffs)`
with the baseline in m, focal and doffs in px.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
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
