"""Convolution, normalisation and attention units shared by the stereo networks.

Symbols: B batch, C channels, D disparity candidates, H, W rows and columns. Parameter names are
those of the released checkpoints (`conv1`, `bn1`, `feat_att.0.norm`, ...), so state dicts need no
renaming.

Two-dimensional maps and volumes are kept in channels-last memory (`torch.channels_last`,
`torch.channels_last_3d`); shapes stay (B, C, H, W) and (B, C, D, H, W). On one CPU thread that
layout makes the 3-D convolutions 1.7 to 3.7 times faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from stereo.nets import winograd
from stereo.nets.recompute import announce, recomputable

Norm = Callable[[int], nn.Module]
Result = TypeVar("Result")

LEAKY_SLOPE = 0.01


def channels_last(x: Tensor) -> Tensor:
    """Return `x` (B, C, ...) with its channels innermost in memory.

    `contiguous(memory_format=...)` does the same but has no ONNX form.
    """
    inner = (0, *range(2, x.ndim), 1)
    outer = (0, x.ndim - 1, *range(1, x.ndim - 1))
    return x.permute(inner).contiguous().permute(outer)


def runs_eagerly_on_cpu(x: Tensor) -> bool:
    """True where work may be arranged for one CPU: not in a graph, not on another device."""
    return (
        x.device.type == "cpu"
        and not torch.onnx.is_in_onnx_export()
        and not torch.compiler.is_compiling()
    )


_computes_sizes = False


@contextmanager
def computed_sizes() -> Iterator[None]:
    """While it lasts, a traced graph computes the sizes of its maps from its inputs."""
    global _computes_sizes
    _computes_sizes = True
    try:
        yield
    finally:
        _computes_sizes = False


def plain_sizes(sizes: Iterable[int]) -> list[int]:
    """Return sizes as plain integers.

    A traced graph then holds them as constants instead of computing them again from its inputs;
    but see `computed_sizes`.
    """
    return list(sizes) if _computes_sizes else [int(size) for size in sizes]


def spatial_shape(x: Tensor) -> list[int]:
    """Return the sizes of `x` (B, C, ...) behind the channels, see `plain_sizes`."""
    return plain_sizes(x.shape[2:])


def leading(*sizes: int) -> int:
    """Return the first size of a reshape, the product of sizes: left open, or computed.

    An open size beside computed ones has no useful upper bound, so that TensorRT would plan for
    maps many times too large (`computed_sizes`).
    """
    return math.prod(sizes) if _computes_sizes else -1


def full_precision(x: Tensor) -> Tensor:
    """Return `x` in float32 where autocast made it half precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def recomputed(function: Callable[..., Result], *inputs: Any, random: bool = False) -> Result:
    """Return `function(*inputs)`; the backward pass computes it again instead of keeping it.

    Running statistics are updated once. With `random`, the second computation draws the same
    numbers as the first.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():  # a compiler decides itself
        return function(*inputs)
    result = checkpoint(
        function,
        *inputs,
        use_reentrant=False,
        preserve_rng_state=random,
        context_fn=lambda: (nullcontext(), BatchNorm.statistics_kept()),
    )
    return cast(Result, result)


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation over every dimension but the channels, for maps and volumes alike.

    On the CPU the framework (torch 2.13) sums channels-last input in plain float32: the variance in
    train mode is off by 6e-4 relative at 128x256 and by 5e-3 at 320x736, the weight's gradient in
    either mode by 1e-3. There this class computes the sums itself, at the same cost.
    """

    MOMENTUM = 0.1
    _keeps_statistics = False  # True in a forward pass that is made again

    def __init__(self, channels: int) -> None:
        super().__init__(channels, momentum=self.MOMENTUM)

    @staticmethod
    @contextmanager
    def statistics_kept() -> Iterator[None]:
        """Leave the running statistics of every instance as they are."""
        BatchNorm._keeps_statistics = True
        try:
            yield
        finally:
            BatchNorm._keeps_statistics = False

    def forward(self, input: Tensor) -> Tensor:
        if self._is_framework_exact(input) or not (self.training or torch.is_grad_enabled()):
            if self.training and self._keeps_statistics:
                return F.batch_norm(input, None, None, self.weight, self.bias, True, eps=self.eps)
            return super().forward(input)
        return self._normalised(input, slope=1.0)

    def activated(self, input: Tensor, slope: float) -> Tensor:
        """Return the LeakyReLU of the normalised input; that needs nothing but the input."""
        if self._is_framework_exact(input) or not torch.is_grad_enabled():
            return leaky_relu_(self(input), slope)
        return self._normalised(input, slope=slope)

    def _normalised(self, input: Tensor, slope: float) -> Tensor:
        if not self.training:
            mean, variance, _ = self.buffers()
            given = (input, self.weight, self.bias, mean, variance)
            output = _FrozenNormFunction.apply(*given, self.eps, slope)
            announce(output, partial(_frozen, eps=self.eps, slope=slope), *given)
            return output
        output, mean, variance, scale = _BatchNormFunction.apply(
            input, self.weight, self.bias, self.eps, slope
        )
        announce(output, partial(_affine, slope=slope), input, mean, scale, self.bias)
        if self._keeps_statistics:
            return output
        count = input.numel() // input.shape[1]
        with torch.no_grad():
            running_mean, running_var, batches = self.buffers()
            running_mean.lerp_(mean, self.MOMENTUM)
            running_var.lerp_(variance * (count / max(count - 1, 1)), self.MOMENTUM)
            batches.add_(1)
        return output

    @staticmethod
    def _is_framework_exact(input: Tensor) -> bool:
        return input.is_cuda or torch.compiler.is_compiling()

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any number of spatial dimensions."""


class _BatchNormFunction(torch.autograd.Function):
    """LeakyReLU of normalisation by batch statistics; returns mean, biased variance, scale too.

    `Tensor.sum` adds in blocks, which keeps float32 sums over millions of values exact to 1e-7.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean = _rows(x).mean(0)
        variance = _rows((x - _over(mean, x)).square_()).mean(0)
        inverse = (variance + eps).rsqrt()
        scale = weight * inverse
        ctx.save_for_backward(x, bias, mean, inverse, scale)
        ctx.slope = slope
        ctx.mark_non_differentiable(mean, variance, scale)
        return _affine(x, mean, scale, bias, slope), mean, variance, scale

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor, *_statistics: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, bias, mean, inverse, scale = ctx.saved_tensors
        if ctx.slope != 1:
            linear = _affine(x, mean, scale, bias, 1.0)
            grad = torch.ops.aten.leaky_relu_backward(grad, linear, ctx.slope, False)
            del linear
        normalised = (x - _over(mean, x)).mul_(_over(inverse, x))
        grad_bias = _rows(grad).sum(0)
        grad_weight = _rows(grad * normalised).sum(0)
        count = grad.numel() // len(mean)
        shared = torch.addcmul(_over(grad_bias, x), normalised, _over(grad_weight, x)).div_(count)
        grad_x = torch.sub(grad, shared, out=shared).mul_(_over(scale, x))
        return grad_x, grad_weight, grad_bias, None, None


class _FrozenNormFunction(torch.autograd.Function):
    """LeakyReLU of normalisation by given statistics."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        eps: float,
        slope: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias, mean, variance)
        ctx.eps, ctx.slope = eps, slope
        return _frozen(x, weight, bias, mean, variance, eps=eps, slope=slope)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, variance = ctx.saved_tensors
        if ctx.slope != 1:
            linear = _frozen(x, weight, bias, mean, variance, eps=ctx.eps, slope=1.0)
            grad = torch.ops.aten.leaky_relu_backward(grad, linear, ctx.slope, False)
            del linear
        scale = (variance + ctx.eps).rsqrt()
        grad_weight = _rows((x - _over(mean, x)).mul_(grad)).sum(0) * scale
        grad_bias = _rows(grad).sum(0)
        return grad * _over(weight * scale, x), grad_weight, grad_bias, *(None,) * 4


def _affine(x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor, slope: float) -> Tensor:
    """Return leaky_relu((x - mean) * scale + bias)."""
    output = torch.addcmul(_over(bias, x), x - _over(mean, x), _over(scale, x))
    return leaky_relu_(output, slope)


def _frozen(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    eps: float,
    slope: float,
) -> Tensor:
    """Return leaky_relu of the normalisation by given statistics."""
    output = F.batch_norm(x, mean, variance, weight, bias, eps=eps)
    return leaky_relu_(output, slope)


def activated(norm: nn.Module, x: Tensor, slope: float) -> Tensor:
    """Return leaky_relu(norm(x)) in as little memory as the norm allows."""
    if isinstance(norm, BatchNorm):
        return norm.activated(x, slope)
    return leaky_relu_(norm(x), slope)


def leaky_relu_(x: Tensor, slope: float) -> Tensor:
    """LeakyReLU in place; slope 1 leaves `x` alone, slope 0 is the ReLU."""
    if slope == 1:
        return x
    return F.leaky_relu_(x, slope) if slope else F.relu_(x)


def _rows(x: Tensor) -> Tensor:
    """Return `x` (B, C, ...) as one row per position, (N, C); a view in channels-last memory."""
    return x.permute(0, *range(2, x.ndim), 1).flatten(0, -2)


def _over(values: Tensor, x: Tensor) -> Tensor:
    """Return one value per channel (C,) in a shape that broadcasts over `x` (B, C, ...)."""
    return values.view(-1, *(1,) * (x.ndim - 2))


class ConvBlock(nn.Module):
    """Convolution without bias, then an optional norm and an optional LeakyReLU."""

    def __init__(
        self,
        conv: type[nn.Module],
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        norm: Norm | None,
        activation: bool = True,
        **options: Any,
    ) -> None:
        super().__init__()
        self.conv = conv(in_channels, out_channels, kernel_size, bias=False, **options)
        self.norm = norm(out_channels) if norm is not None else nn.Identity()
        self.activates = activation

    def forward(self, x: Tensor) -> Tensor:
        # At batch 1 the framework computes small convolutions by a path that loses the layout.
        x = channels_last(self.conv(x))
        return activated(self.norm, x, LEAKY_SLOPE) if self.activates else self.norm(x)


class Residual(nn.Module):
    """`relu(x + n2(conv2(relu(n1(conv1 x)))))` with 3-wide convolutions of unchanged width."""

    def __init__(self, conv: type[nn.Module], channels: int, *, norm: Norm) -> None:
        super().__init__()
        self.conv1 = conv(channels, channels, 3, padding=1, bias=False)
        self.bn1 = norm(channels)
        self.conv2 = conv(channels, channels, 3, padding=1, bias=False)
        self.bn2 = norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = activated(self.bn1, self.conv1(x), 0.0)
        return F.relu_(x + self.bn2(self.conv2(y)))


class ResidualBlock(nn.Module):
    """Two 3-wide convolutions with bias and a shortcut; width and size may change.

    Checkpoints hold the norm of a projected shortcut under two names, as one tensor.
    """

    def __init__(self, in_channels: int, out_channels: int, *, norm: Norm, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)
        self.norm1 = norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.norm2 = norm(out_channels)
        self.downsample: nn.Sequential | None = None
        if stride > 1 or in_channels != out_channels:
            self.norm3 = norm(out_channels)
            project = nn.Conv2d(in_channels, out_channels, 1, stride=stride)
            self.downsample = nn.Sequential(project, self.norm3)

    def forward(self, x: Tensor) -> Tensor:
        y = activated(self.norm1, channels_last(self.conv1(x)), 0.0)
        y = activated(self.norm2, channels_last(self.conv2(y)), 0.0)
        return F.relu_((x if self.downsample is None else self.downsample(x)) + y)


class UpMerge(nn.Module):
    """Double the resolution, concatenate the finer map, mix both with a residual block."""

    def __init__(self, in_channels: int, skip_channels: int) -> None:
        super().__init__()
        self.conv1 = ConvBlock(
            nn.ConvTranspose2d,
            in_channels,
            skip_channels,
            4,
            stride=2,
            padding=1,
            norm=nn.InstanceNorm2d,
        )
        self.conv2 = Residual(nn.Conv2d, 2 * skip_channels, norm=nn.InstanceNorm2d)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.conv2(torch.cat((self.conv1(x), skip), dim=1))


class DepthConv3d(nn.Conv3d):
    """A (k, 1, 1) convolution along the disparity axis, run as a 2-D one over (D, H * W).

    In channels-last memory that is a view, and the framework's 2-D kernels are several times
    faster.
    """

    def __init__(self, channels: int, kernel_size: int) -> None:
        padding = (kernel_size // 2, 0, 0)
        super().__init__(channels, channels, (kernel_size, 1, 1), padding=padding)

    def forward(self, input: Tensor) -> Tensor:
        # Flattening in channels-last order keeps the strides of a batch of one recognisable.
        depth, height, width = spatial_shape(input)
        rows = input.permute(0, 2, 3, 4, 1)
        rows = rows.reshape(leading(input.shape[0]), depth, height * width, self.in_channels)
        rows = rows.permute(0, 3, 1, 2)  # (B, C, D, H W)
        rows = F.conv2d(rows, self.weight.squeeze(-1), self.bias, padding=self.padding[:2])
        shape = (leading(input.shape[0]), depth, height, width, self.out_channels)
        volume = rows.permute(0, 2, 3, 1).reshape(shape)
        return volume.permute(0, 4, 1, 2, 3)


class PlaneConv3d(nn.Conv3d):
    """A (1, 3, 3) convolution within every disparity plane, run as a 2-D one over B * D planes."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, (1, 3, 3), padding=(0, 1, 1))

    def forward(self, input: Tensor) -> Tensor:
        depth, height, width = spatial_shape(input)
        planes = input.permute(0, 2, 3, 4, 1)
        count = leading(input.shape[0], depth)
        planes = planes.reshape(count, height, width, self.in_channels)
        planes = planes.permute(0, 3, 1, 2)  # (B D, C, H, W)
        planes = F.conv2d(planes, self.weight.squeeze(2), self.bias, padding=self.padding[1:])
        shape = (leading(input.shape[0]), depth, height, width, self.out_channels)
        volume = planes.permute(0, 2, 3, 1).reshape(shape)
        return volume.permute(0, 4, 1, 2, 3)


class ScoreConv3d(nn.Conv3d):
    """A 3x3x3 convolution to one channel, run as a matrix product and shifted sums.

    The framework's kernels compute many output channels at once; for a single one this is three
    times faster.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 1, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        taps = input.permute(0, 2, 3, 4, 1) @ self.weight.flatten(2)[0]  # (B, D, H, W, 27)
        taps = taps.reshape(leading(input.shape[0]), *spatial_shape(input), 3, 3, 3)
        score = F.pad(taps, (0,) * 6 + (1, 1) * 3)
        for axis in (3, 2, 1):  # the last tap axis belongs to W, then H, then D
            score = self._sum_taps(score, axis)
        assert self.bias is not None
        return score.unsqueeze(1) + self.bias

    @staticmethod
    def _sum_taps(x: Tensor, axis: int) -> Tensor:
        """Add the three taps of the last dimension, tap k read from k on along `axis`."""
        (size,) = plain_sizes([x.shape[axis] - 2])
        first, second, third = (x.select(-1, k).narrow(axis, k, size) for k in range(3))
        return first + second + third


class WideScoreConv3d(nn.Conv3d):
    """A k x k x k convolution to one channel, run as a 2-D one to k channels and shifted sums.

    Output channel i of the 2-D convolution holds what plane d gives to plane d + k // 2 - i. Five
    times faster than the framework's kernel at k = 7, and three times closer to double precision.
    """

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__(channels, 1, kernel_size, padding=kernel_size // 2)

    def forward(self, input: Tensor) -> Tensor:
        depth, height, width = spatial_shape(input)
        size, _, _ = self.kernel_size
        margin = size // 2
        planes = input.permute(0, 2, 3, 4, 1)
        count = leading(input.shape[0], depth)
        planes = planes.reshape(count, height, width, self.in_channels)
        planes = planes.permute(0, 3, 1, 2)  # (B D, C, H, W)
        shares = F.conv2d(planes, self.weight[0].transpose(0, 1), padding=margin)
        shares = shares.reshape(leading(input.shape[0]), depth, size, height, width)
        shares = F.pad(shares, (0, 0, 0, 0, 0, 0, margin, margin))
        assert self.bias is not None
        score = self.bias
        for tap in range(size):
            score = score + shares[:, tap : tap + depth, tap]
        return score.unsqueeze(1)


class NormRelu(nn.Sequential):
    """A convolution, its norm and a ReLU."""

    def forward(self, input: Tensor) -> Tensor:
        conv, norm = self
        return activated(norm, conv(input), 0.0)


class AxialConv3d(nn.Module):
    """A 3x3 convolution within every disparity plane, then one along the disparity axis."""

    def __init__(self, in_channels: int, out_channels: int, depth: int) -> None:
        super().__init__()
        self.conv1 = NormRelu(PlaneConv3d(in_channels, out_channels), BatchNorm(out_channels))
        self.conv2 = NormRelu(DepthConv3d(out_channels, depth), BatchNorm(out_channels))

    def forward(self, volume: Tensor) -> Tensor:
        return self.conv2(self.conv1(volume))


class FeatureGate(nn.Module):
    """Scale every disparity plane of a volume by a sigmoid gate computed from image features."""

    def __init__(
        self, volume_channels: int, feature_channels: int, *, norm: Norm = BatchNorm
    ) -> None:
        super().__init__()
        mid = feature_channels // 2
        self.feat_att = nn.Sequential(
            ConvBlock(nn.Conv2d, feature_channels, mid, 1, norm=norm),
            nn.Conv2d(mid, volume_channels, 1),
        )

    def forward(self, volume: Tensor, features: Tensor) -> Tensor:
        gate = torch.sigmoid(self.feat_att(features)).unsqueeze(2)
        return recomputable(torch.mul, volume, gate)


def tiled(weight: Tensor) -> Tensor | None:
    """Return a kernel as `winograd.convolve` takes it; None where that would not be faster.

    It is meant for those who convolve with it many times. The backward pass does not keep it: it
    has almost twice the size of the kernel.
    """
    if not runs_eagerly_on_cpu(weight) or torch.is_autocast_enabled("cpu"):
        return None
    if weight.shape[2:] != (3, 3) or min(weight.shape[:2]) < winograd.MIN_CHANNELS:
        return None
    return recomputable(winograd.transformed, weight)


def conv_of_parts(
    parts: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    tiles: Tensor | None = None,
) -> Tensor:
    """Convolve maps (B, C_i, H, W) that are concatenated along their channels, at unchanged size.

    For the backward pass the parts are kept, which others keep anyway, and not a copy of them.

    Args:
        parts: the maps.
        weight: (N, C, k, k).
        bias: (N,).
        tiles: `tiled(weight)`.
    """
    padding = weight.shape[-1] // 2
    if tiles is not None and all(size % 2 == 0 for size in spatial_shape(parts[0])):
        return winograd.convolve(parts, tiles, bias)
    if len(parts) == 1:
        return F.conv2d(parts[0], weight, bias, padding=padding)
    if torch.is_grad_enabled() and runs_eagerly_on_cpu(weight):
        return _ConvOfPartsFunction.apply(weight, bias, padding, *parts)
    return F.conv2d(torch.cat(list(parts), dim=1), weight, bias, padding=padding)


class PartsConv2d(nn.Conv2d):
    """A convolution of maps that are concatenated along their channels (`conv_of_parts`)."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, input: Sequence[Tensor], tiles: Tensor | None = None
    ) -> Tensor:
        return conv_of_parts(input, self.weight, self.bias, tiles)


class _ConvOfPartsFunction(torch.autograd.Function):
    """`conv2d` of concatenated maps."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, bias: Tensor | None, padding: int, *parts: Tensor
    ) -> Tensor:
        ctx.save_for_backward(weight, *parts)
        ctx.padding = padding
        ctx.bias_sizes = None if bias is None else bias.shape
        return F.conv2d(torch.cat(parts, dim=1), weight, bias, padding=padding)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        weight, *parts = ctx.saved_tensors
        padding = [ctx.padding] * 2
        grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            grad,
            torch.cat(parts, dim=1),
            weight,
            ctx.bias_sizes,
            [1, 1],
            padding,
            [1, 1],
            False,
            [0, 0],
            1,
            [any(ctx.needs_input_grad[3:]), True, ctx.bias_sizes is not None],
        )
        widths = [part.shape[1] for part in parts]
        grads = [None] * len(parts) if grad_x is None else grad_x.split(widths, dim=1)
        return grad_weight, grad_bias, None, *grads


class ConvNeXtLite(nn.Module):
    """A ConvNeXt block without normalisation: depthwise 7x7, two linear layers, layer scale.

    The wide inner map is computed again in the backward pass: it costs little time and much memory.
    """

    def __init__(self, channels: int, mid: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels,), 1e-6))
        self.dwconv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.pwconv1 = nn.Linear(channels, mid)
        self.pwconv2 = nn.Linear(mid, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.dwconv(x).permute(0, 2, 3, 1)  # (B, H, W, C)
        y = recomputed(self._mix, y) if runs_eagerly_on_cpu(y) else self._mix(y)
        return x + y.permute(0, 3, 1, 2)  # (B, C, H, W)

    def _mix(self, y: Tensor) -> Tensor:
        return self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))


class ChannelAttention(nn.Module):
    """One sigmoid weight per channel from its average and its maximum, (B, C, 1, 1)."""

    def __init__(self, channels: int, mid: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Conv2d(channels, mid, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(mid, channels, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        average = x.mean(dim=(2, 3), keepdim=True)
        maximum = x.amax(dim=(2, 3), keepdim=True)
        return torch.sigmoid(self.fc(average) + self.fc(maximum))


class SpatialAttention(nn.Module):
    """One sigmoid weight per pixel from the mean and maximum over channels, (B, 1, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.samconv = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        summary = torch.cat((x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)), dim=1)
        return torch.sigmoid(self.samconv(summary))
