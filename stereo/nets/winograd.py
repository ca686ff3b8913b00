"""3x3 convolution with 16 instead of 36 products per 2x2 outputs, for one CPU.

The map is cut into tiles of 4x4 that overlap by two; tile and kernel are transformed by sums, their
products are matrix products over the channels, and sums make 2x2 outputs of each tile. In float32
the result is as close to double precision as that of the framework's kernels.

Symbols: B batch, C channels in, N channels out, H, W rows and columns (even), T = B * H/2 * W/2
tiles. Maps are in channels-last memory. The 16 places of a tile are numbered column by column.

Source: F(2x2, 3x3) of Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

PLACES = 16
STRIP = 512  # tiles at once: enough for the matrix products, few enough for the cache
MIN_CHANNELS = 64  # of either side, below which the framework is as fast
KERNEL_SUMS = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])


def transformed(weight: Tensor) -> Tensor:
    """Return a kernel (N, C, 3, 3) as one matrix per place of a tile, (16, N, C)."""
    sums = torch.einsum("yi,xj->xyij", KERNEL_SUMS, KERNEL_SUMS).reshape(PLACES, 9).to(weight)
    return (sums @ weight.reshape(-1, 9).T).view(PLACES, *weight.shape[:2])


def convolve(parts: Sequence[Tensor], kernel: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve maps (B, C_i, H, W), concatenated along their channels, with zeros around them.

    Args:
        parts: the maps; the backward pass keeps them, and no copy.
        kernel: what `transformed` returns, (16, N, C).
        bias: (N,).

    Returns:
        (B, N, H, W).
    """
    return _ConvolveFunction.apply(kernel, bias, *parts)


class _ConvolveFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernel: Tensor, bias: Tensor | None, *parts: Tensor) -> Tensor:
        ctx.save_for_backward(kernel, *parts)
        ctx.has_bias = bias is not None
        batch, _, height, width = parts[0].shape
        padded, channels = _padded(parts), kernel.shape[1]
        output = padded.new_empty(batch, height, width, channels)
        for rows in _strips(padded):
            tiles = _tiles(padded[:, rows.start : rows.stop + 2])
            _write_outputs(_products(tiles, kernel.transpose(1, 2)), output[:, rows])
        if bias is not None:
            output += bias
        return output.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        kernel, *parts = ctx.saved_tensors
        grad = grad.permute(0, 2, 3, 1)
        padded = _padded(parts)
        grad_kernel, grad_padded = torch.zeros_like(kernel), torch.zeros_like(padded)
        for rows in _strips(padded):
            strip = slice(rows.start, rows.stop + 2)
            grad_products = _spread(grad[:, rows])
            _add_products(grad_products.transpose(1, 2), _tiles(padded[:, strip]), grad_kernel)
            grad_tiles = _products(grad_products, kernel)
            _add_untransformed(grad_tiles, grad_padded[:, strip])
        grad_parts = grad_padded[:, 1:-1, 1:-1].permute(0, 3, 1, 2)
        grad_bias = grad.sum((0, 1, 2)) if ctx.has_bias else None
        return grad_kernel, grad_bias, *grad_parts.split([x.shape[1] for x in parts], dim=1)


def _padded(parts: Sequence[Tensor]) -> Tensor:
    """Return the maps beside each other, channels last, with zeros around them."""
    batch, _, height, width = parts[0].shape
    widths = [part.shape[1] for part in parts]
    padded = parts[0].new_zeros(batch, height + 2, width + 2, sum(widths))
    places = padded[:, 1:-1, 1:-1].split(widths, dim=3)
    for place, part in zip(places, parts, strict=True):
        place.copy_(part.permute(0, 2, 3, 1))
    return padded


def _strips(padded: Tensor) -> Iterator[slice]:
    """Cut the rows of the map into strips of some `STRIP` tiles."""
    batch, height, width, _ = padded.shape
    height, tiles_per_row = height - 2, batch * (width // 2 - 1)
    step = 2 * max(1, STRIP // tiles_per_row)
    for start in range(0, height, step):
        yield slice(start, min(start + step, height))


def _products(left: Tensor, right: Tensor) -> Tensor:
    """Matrix product of each place; `bmm` takes up to twice the time."""
    result = left.new_empty(PLACES, left.shape[1], right.shape[2])
    for one, other, product in zip(left, right, result, strict=True):
        torch.mm(one, other, out=product)
    return result


def _add_products(left: Tensor, right: Tensor, total: Tensor) -> None:
    for one, other, product in zip(left, right, total, strict=True):
        product.addmm_(one, other)


def _tiles(padded: Tensor) -> Tensor:
    """Return the transformed tiles of a padded map, (16, T, C)."""
    batch, height, width, channels = padded.shape
    height, width = height - 2, width - 2
    rows = padded.new_empty(4, batch, height // 2, width + 2, channels)
    _transform([padded[:, y : y + height : 2] for y in range(4)], rows)
    tiles = padded.new_empty(4, 4, batch, height // 2, width // 2, channels)
    _transform([rows[:, :, :, x : x + width : 2] for x in range(4)], tiles)
    return tiles.view(PLACES, -1, channels)


def _transform(samples: Sequence[Tensor], out: Tensor) -> None:
    """Transform four neighbours along one axis of the tiles."""
    torch.sub(samples[0], samples[2], out=out[0])
    torch.add(samples[1], samples[2], out=out[1])
    torch.sub(samples[2], samples[1], out=out[2])
    torch.sub(samples[1], samples[3], out=out[3])


def _add_untransformed(grad_tiles: Tensor, grad: Tensor) -> None:
    """Add to the gradient of a padded map what that of its tiles, (16, T, C), says: the adjoint."""
    batch, height, width, channels = grad.shape
    height, width = height - 2, width - 2
    tiles = grad_tiles.view(4, 4, batch, height // 2, width // 2, channels)
    rows = grad.new_zeros(4, batch, height // 2, width + 2, channels)
    _untransform(tiles, [rows[:, :, :, x : x + width : 2] for x in range(4)])
    _untransform(rows, [grad[:, y : y + height : 2] for y in range(4)])


def _untransform(grads: Tensor, samples: Sequence[Tensor]) -> None:
    """Adjoint of `_transform`, added to what the samples hold; they overlap."""
    samples[0].add_(grads[0])
    samples[1].add_(grads[1]).sub_(grads[2]).add_(grads[3])
    samples[2].sub_(grads[0]).add_(grads[1]).add_(grads[2])
    samples[3].sub_(grads[3])


def _write_outputs(products: Tensor, output: Tensor) -> None:
    """Write the map (B, H, W, N) that the products (16, T, N) make."""
    batch, height, width, channels = output.shape
    tiles = products.view(4, 4, batch, height // 2, width // 2, channels)
    columns = tiles.new_empty(2, *tiles.shape[1:])
    _reduce(tiles, list(columns))
    for x, column in enumerate(columns):
        _reduce(column, [output[:, y::2, x::2] for y in range(2)])


def _reduce(samples: Tensor, out: Sequence[Tensor]) -> None:
    """Make two outputs of four samples along one axis of the tiles."""
    torch.add(samples[1], samples[2], out=out[0]).add_(samples[0])
    torch.sub(samples[1], samples[2], out=out[1]).sub_(samples[3])


def _spread(grad: Tensor) -> Tensor:
    """Return what the gradient (B, H, W, N) of the map is in the products, (16, T, N): adjoint."""
    batch, height, width, channels = grad.shape
    rows = grad.new_empty(4, batch, height // 2, width, channels)
    _expand([grad[:, y::2] for y in range(2)], rows)
    tiles = grad.new_empty(4, 4, batch, height // 2, width // 2, channels)
    _expand([rows[:, :, :, x::2] for x in range(2)], tiles)
    return tiles.view(PLACES, -1, channels)


def _expand(samples: Sequence[Tensor], out: Tensor) -> None:
    """Adjoint of `_reduce`."""
    first, second = samples
    out[0].copy_(first)
    torch.add(first, second, out=out[1])
    torch.sub(first, second, out=out[2])
    torch.neg(second, out=out[3])
