"""Sampling along image rows, resizing of maps and convex upsampling of disparity.

Symbols: B batch, N = B * h * w pixels of the 1/4-resolution map, D samples along the sampled axis,
C channels, r lookup radius. Positions are in samples of the table; outside it every value is 0.

Source: correlation lookup and convex upsampling of RAFT, Teed and Deng, ECCV 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from stereo.nets.blocks import leading, plain_sizes, spatial_shape


class LinearTable:
    """Rows of samples, one row per pixel, read at fractional positions.

    Args:
        rows: (G, D, P, C): D samples in each of G groups of P pixels, so that a volume can be read
            as it lies in memory; N = G * P.
        radius: r; a reading returns the 2r+1 samples at distance -r..r of a position.
    """

    def __init__(self, rows: Tensor, radius: int) -> None:
        self.windows = _Windows(rows, radius)
        self.samples = rows.reshape(-1, int(rows.shape[3]))  # (G D P, C)

    def read(self, position: Tensor) -> Tensor:
        """Interpolate linearly at `position + k`, k = -r..r.

        Args:
            position: (N,), in samples.

        Returns:
            (N, 2r+1, C). Gradients flow to the rows, not to the position.
        """
        needs_gradient = torch.is_grad_enabled() and self.samples.requires_grad
        if not needs_gradient or torch.compiler.is_compiling():
            return self.windows.blended(self.samples, position)
        blended, self.samples = _ReadFunction.apply(self.samples, position, self.windows)
        return blended


class _Windows:
    """Where the samples around the positions of all pixels lie in a table of one row per sample.

    All taps of a pixel share one fraction, so 2r+2 neighbours are gathered once and blended.
    """

    def __init__(self, rows: Tensor, radius: int) -> None:
        self.radius = radius
        groups, (self.length, self.stride) = rows.shape[0], plain_sizes(rows.shape[1:3])
        group = torch.arange(groups, device=rows.device) * (self.length * self.stride)
        pixel = torch.arange(self.stride, device=rows.device)
        self.first = (group[:, None] + pixel).reshape(-1, 1)  # (N, 1): the pixel's first sample

    def at(self, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Row numbers (N, 2r+2), which of them exist (N, 2r+2, 1), and the fraction (N, 1, 1)."""
        floor = position.floor()
        margin = self.radius + 2
        taps = torch.arange(-self.radius, self.radius + 2, device=position.device)
        number = floor.clamp(-margin, self.length + margin).long()[:, None] + taps
        # NaN passes the clamp and becomes a number far outside.
        exists = ((number >= 0) & (number < self.length)).unsqueeze(2).to(position.dtype)
        number = number.clamp(0, self.length - 1)
        return self.first + number * self.stride, exists, (position - floor)[:, None, None]

    def blended(self, samples: Tensor, position: Tensor) -> Tensor:
        """Interpolated samples (N, 2r+1, C) of a table (G D P, C)."""
        index, exists, fraction = self.at(position)
        size, channels = 2 * self.radius + 2, int(samples.shape[1])
        neighbours = samples.index_select(0, index.reshape(-1)).reshape(-1, size, channels)
        neighbours = neighbours * exists
        return torch.lerp(neighbours[:, :-1], neighbours[:, 1:], fraction)


def halve(rows: Tensor) -> Tensor:
    """Return the means of adjacent samples (G, D // 2, P, C); an odd last one of D is dropped."""
    length, pixels, channels = plain_sizes(rows.shape[1:])
    shape = (leading(rows.shape[0]), length // 2, 2, pixels, channels)
    pairs = rows[:, : length // 2 * 2].reshape(shape)
    first, second = pairs.unbind(2)
    return (first + second) / 2


class _ReadFunction(torch.autograd.Function):
    """Read and pass the samples on, so that one buffer collects the gradient of all readings.

    Plain gathering allocates a zero-filled gradient of the whole table for every refinement
    iteration. Here iteration i+1 reads the samples returned by iteration i, hence their gradient
    arrives as the incoming gradient of that output and can be added to in place.
    """

    @staticmethod
    def forward(
        ctx: Any, samples: Tensor, position: Tensor, windows: _Windows
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(position)
        ctx.windows, ctx.shape = windows, samples.shape
        ctx.set_materialize_grads(False)
        return windows.blended(samples, position), samples.view_as(samples)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor | None, grad_samples: Tensor | None
    ) -> tuple[Tensor | None, None, None]:
        if grad is None:
            return grad_samples, None, None
        index, exists, fraction = ctx.windows.at(*ctx.saved_tensors)
        upper = grad * fraction
        neighbours = F.pad(grad - upper, (0, 0, 0, 1))
        neighbours[:, 1:] += upper
        if grad_samples is None:
            grad_samples = grad.new_zeros(ctx.shape)
        rows = neighbours.mul_(exists).flatten(0, 1)
        return grad_samples.index_add_(0, index.reshape(-1), rows), None, None


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return `x` (B, C, H, W) at another size: bilinear, the corner pixels stay corners."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


def convex_upsample(disparity: Tensor, weights: Tensor) -> Tensor:
    """Upsample disparity fourfold as a weighted mean of its 3x3 coarse neighbours.

    Args:
        disparity: (B, 1, h, w), in px of the 1/4-resolution map.
        weights: (B, 9, 4h, 4w), summing to 1 over the neighbours in row-major order.

    Returns:
        Disparity (B, 1, 4h, 4w) in px of the full-resolution image.
    """
    height, width = spatial_shape(disparity)
    padded = F.pad(4 * disparity, (1, 1, 1, 1))
    shifted = [padded[..., y : y + height, x : x + width] for y in range(3) for x in range(3)]
    neighbours = torch.cat(shifted, dim=1)[:, :, :, None, :, None]  # (B, 9, h, 1, w, 1)
    blocks = weights.reshape(leading(weights.shape[0]), 9, height, 4, width, 4)
    full = (blocks * neighbours).sum(dim=1, keepdim=True)  # (B, 1, h, 4, w, 4)
    return full.reshape(leading(weights.shape[0]), 1, 4 * height, 4 * width)
