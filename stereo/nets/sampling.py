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

from stereo.nets.blocks import spatial_shape


class LinearTable:
    """Rows of samples, one row per pixel, read at fractional positions.

    The rows are stored with 2r+2 zeros before and behind, so that a window which leaves the row
    needs no mask: its start is clamped to where it holds zeros only.

    Args:
        rows: samples (N, D, C).
        radius: r; a reading returns the 2r+1 samples at distance -r..r of a position.
    """

    def __init__(self, rows: Tensor, radius: int) -> None:
        self.taps = 2 * radius + 1
        self.radius = radius
        self.length = int(rows.shape[1])
        self.margin = self.taps + 1
        self.padded = F.pad(rows, (0, 0, self.margin, self.margin))  # (N, D + 2 margin, C)

    def read(self, position: Tensor) -> Tensor:
        """Interpolate linearly at `position + k`, k = -r..r.

        All taps of a pixel share one fraction, so 2r+2 neighbours are gathered once and blended.

        Args:
            position: (N,), in samples.

        Returns:
            (N, 2r+1, C). Gradients flow to the rows, not to the position.
        """
        floor = position.floor()
        fraction = (position - floor)[:, None, None]
        start = (floor - self.radius).clamp(-self.margin, self.length).long() + self.margin
        if not torch.onnx.is_in_onnx_export():  # NaN passes the clamp and becomes a row far outside
            start = start.clamp(0, self.length + self.margin)
        neighbours, self.padded = _gather_windows(self.padded, start, self.taps + 1)
        return torch.lerp(neighbours[:, :-1], neighbours[:, 1:], fraction)


def halve(rows: Tensor) -> Tensor:
    """Return the means of adjacent samples (N, D // 2, C); an odd last one of D is dropped."""
    length, channels = (int(size) for size in rows.shape[1:])
    pairs = rows[:, : length // 2 * 2].reshape(-1, length // 2, 2, channels)
    first, second = pairs.unbind(2)
    return (first + second) / 2


def _window_index(start: Tensor, size: int, length: int) -> Tensor:
    """Flat row numbers (N * size) of windows [start, start + size) in (N * length) rows."""
    first = start + torch.arange(start.shape[0], device=start.device) * length
    return (first[:, None] + torch.arange(size, device=start.device)).reshape(-1)


def _gather_windows(table: Tensor, start: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return rows [start, start + size) of every pixel (N, size, C), and the table to use next."""
    if torch.is_grad_enabled() and table.requires_grad:
        return _GatherWindows.apply(table, start, size)
    return _windows(table, _window_index(start, size, int(table.shape[1])), size), table


def _windows(table: Tensor, index: Tensor, size: int) -> Tensor:
    """Return the rows `index` (N * size) of a table (N, length, C) as (N, size, C)."""
    channels = int(table.shape[2])
    return table.reshape(-1, channels).index_select(0, index).reshape(-1, size, channels)


class _GatherWindows(torch.autograd.Function):
    """Gather windows and pass the table on, so that one buffer collects the gradient of all calls.

    Plain gathering allocates a zero-filled gradient of the whole table for every refinement
    iteration. Here iteration i+1 reads the table returned by iteration i, hence its gradient
    arrives as the incoming gradient of that output and can be added to in place.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, start: Tensor, size: int) -> tuple[Tensor, Tensor]:
        index = _window_index(start, size, int(table.shape[1]))
        ctx.save_for_backward(index)
        ctx.table_shape = table.shape
        ctx.set_materialize_grads(False)
        return _windows(table, index, size), table.view_as(table)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_windows: Tensor | None, grad_table: Tensor | None
    ) -> tuple[Tensor | None, None, None]:
        (index,) = ctx.saved_tensors
        if grad_windows is None:
            return grad_table, None, None
        if grad_table is None:
            grad_table = grad_windows.new_zeros(ctx.table_shape)
        rows = grad_table.flatten(0, 1)
        rows[index] += grad_windows.flatten(0, 1)  # the windows of a pixel hold distinct rows
        return grad_table, None, None


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
    blocks = weights.reshape(-1, 9, height, 4, width, 4)
    full = (blocks * neighbours).sum(dim=1, keepdim=True)  # (B, 1, h, 4, w, 4)
    return full.reshape(-1, 1, 4 * height, 4 * width)
