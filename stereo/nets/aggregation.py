"""Filtering of the matching volume: 3-D hourglass, disparity transformer, soft-argmin.

Symbols: B batch, C channels, D disparity candidates, h, w rows and columns at 1/4 of the image, c
the volume's width (`volume_dim`), L tokens along the disparity axis.

The pruned hourglass stores modules that its forward pass does not use; released checkpoints contain
them and a strict load needs their names. They never receive a gradient.

Source: hourglass of FoundationStereo, Wen et al., CVPR 2025, and its pruned form in
Fast-FoundationStereo.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from stereo.nets.blocks import (
    AxialConv3d,
    BatchNorm,
    ConvBlock,
    FeatureGate,
    Norm,
    Residual,
    channels_last,
    full_precision,
    leading,
    recomputed,
    runs_eagerly_on_cpu,
    spatial_shape,
)
from stereo.nets.edgenext import FeaturePyramid
from stereo.nets.recompute import join, recomputable

HEADS = 4
DROPOUT = 0.1


def _conv(in_channels: int, out_channels: int, kernel_size: int, **options: Any) -> ConvBlock:
    """Return a 3-D ConvBlock with BatchNorm and LeakyReLU."""
    return ConvBlock(nn.Conv3d, in_channels, out_channels, kernel_size, norm=BatchNorm, **options)


def _conv3(in_channels: int, out_channels: int, stride: int = 1) -> ConvBlock:
    """Return a 3-D ConvBlock of kernel 3 that keeps (stride 1) or halves (stride 2) the size."""
    return _conv(in_channels, out_channels, 3, stride=stride, padding=1)


def _double(in_channels: int, out_channels: int, kernel_size: int = 4, **options: Any) -> ConvBlock:
    """Return a transposed 3-D ConvBlock that doubles the size."""
    return ConvBlock(
        nn.ConvTranspose3d,
        in_channels,
        out_channels,
        kernel_size,
        norm=BatchNorm,
        stride=2,
        padding=1,
        **options,
    )


def _merge(conv: type[nn.Module], in_channels: int, out_channels: int) -> nn.Sequential:
    """Return what mixes a decoded volume with its skip: 1x1x1, then two axial convolutions."""
    return nn.Sequential(
        ConvBlock(conv, in_channels, out_channels, 1, norm=BatchNorm),
        AxialConv3d(out_channels, out_channels, 17),
        AxialConv3d(out_channels, out_channels, 17),
    )


class DisparityAttention(nn.Module):
    """Attention in the tokens of one pixel, (N, L, C) in and out; subclasses arrange the heads.

    The released networks differ in the arrangement, and their weights depend on it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(channels, channels)
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.out_proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (project(x) for project in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(self.mix(q, k, v))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the attended values, (N, L, C)."""
        raise NotImplementedError


class GroupAttention(DisparityAttention):
    """Every disparity attends over its own four channel groups, not over other disparities."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        length, channels = (int(size) for size in q.shape[1:])
        count, width = leading(q.shape[0]), channels // HEADS
        q, k, v = (x.reshape(count, length, HEADS, width) for x in (q, k, v))
        scores = q @ k.transpose(-2, -1) / math.sqrt(width)  # (N, L, heads, heads)
        mixed = torch.softmax(scores, dim=-1) @ v
        return mixed.reshape(count, length, channels)


class RowAttention(DisparityAttention):
    """Every quarter of the disparities attends over itself, four sub-tokens per disparity."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        length, channels = (int(size) for size in q.shape[1:])
        # Contiguous rows are cut anew, without exchanging axes: (N, heads, L, C/heads).
        q, k, v = (x.reshape(-1, HEADS, length, channels // HEADS) for x in (q, k, v))
        return _attend(q, k, v).reshape(-1, length, channels)


class HeadAttention(DisparityAttention):
    """Multi-head attention of the textbooks: every disparity attends over all of them."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        length, channels = (int(size) for size in q.shape[1:])
        split = (-1, length, HEADS, channels // HEADS)
        q, k, v = (x.reshape(split).transpose(1, 2) for x in (q, k, v))  # (N, heads, L, C/heads)
        mixed = _attend(q, k, v)
        return mixed.transpose(1, 2).reshape(-1, length, channels)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(width)) v, all (N, heads, L, width)."""
    if not runs_eagerly_on_cpu(q):
        return F.scaled_dot_product_attention(q, k, v)
    return _AttentionFunction.apply(q / math.sqrt(int(q.shape[-1])), k, v)


class _AttentionFunction(torch.autograd.Function):
    """`softmax(q k^T) v` for narrow heads, (N, heads, L, width).

    A product (L, L) x (L, width) takes the CPU four times as long as its transpose for width 7, so
    every one of them is computed transposed. The framework's fused kernel is slower than either.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = torch.softmax(q @ k.transpose(-2, -1), dim=-1)
        ctx.save_for_backward(q, k, v, weights)
        return (v.transpose(-2, -1) @ weights.transpose(-2, -1)).transpose(-2, -1)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, weights = ctx.saved_tensors
        grad_v = (grad.transpose(-2, -1) @ weights).transpose(-2, -1)
        grad_weights = grad @ v.transpose(-2, -1)
        scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, q.dtype)
        grad_q = (k.transpose(-2, -1) @ scores.transpose(-2, -1)).transpose(-2, -1)
        grad_k = (q.transpose(-2, -1) @ scores).transpose(-2, -1)
        return grad_q, grad_k, grad_v


class TransformerLayer(nn.Module):
    """Post-norm transformer layer with GELU; tokens (N, L, C)."""

    def __init__(
        self, channels: int, feedforward: int, attention: type[DisparityAttention]
    ) -> None:
        super().__init__()
        self.self_attn = attention(channels)
        self.linear1 = nn.Linear(channels, feedforward)
        self.linear2 = nn.Linear(feedforward, channels)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(DROPOUT)
        self.dropout1 = nn.Dropout(DROPOUT)
        self.dropout2 = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.dropout1(self.self_attn(x)))
        y = self.linear2(self.dropout(F.gelu(self.linear1(x))))
        return self.norm2(x + self.dropout2(y))


def sinusoidal_table(length: int, channels: int) -> Tensor:
    """Fixed position code (length, channels): sine on even, cosine on odd channels."""
    position = torch.arange(length, dtype=torch.float32)[:, None]
    frequency = torch.exp(torch.arange(0, channels, 2) * (-math.log(10000.0) / channels))
    return torch.stack(((position * frequency).sin(), (position * frequency).cos()), -1).flatten(1)


class DisparityTransformer(nn.Module):
    """Transformer along the disparity axis of a volume (B, C, L, h, w), pixel by pixel.

    Its activations would be the largest part of a training step's memory. They are computed again
    in the backward pass, and on the CPU a few pixels at a time, which then stay in the cache.
    """

    CHUNK = 2048  # tokens

    def __init__(
        self,
        channels: int,
        *,
        length: int,
        layers: int,
        feedforward: int,
        attention: type[DisparityAttention] = GroupAttention,
    ) -> None:
        super().__init__()
        self.sa = nn.ModuleList(
            TransformerLayer(channels, feedforward, attention) for _ in range(layers)
        )
        self.position: Tensor
        self.register_buffer("position", sinusoidal_table(length, channels), persistent=False)

    def forward(self, volume: Tensor) -> Tensor:
        channels, (length, height, width) = int(volume.shape[1]), spatial_shape(volume)
        tokens = recomputable(_tokens, volume)
        tokens = self._filtered(tokens)
        tokens = tokens.reshape(leading(volume.shape[0]), height, width, length, channels)
        return channels_last(tokens.permute(0, 4, 3, 1, 2))  # (B, C, L, h, w)

    def _filtered(self, tokens: Tensor) -> Tensor:
        """Return the tokens (N, L, C) behind all layers."""
        parameters = [p for p in self.sa.parameters() if p.requires_grad]
        if runs_eagerly_on_cpu(tokens):
            pixels = max(1, self.CHUNK // int(tokens.shape[1]))
            return _ChunkedFunction.apply(self._layers, pixels, self.training, tokens, *parameters)
        return recomputed(self._layers, tokens, random=self.training)

    def _layers(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.position
        for layer in self.sa:
            tokens = layer(tokens)
        return tokens


class _ChunkedFunction(torch.autograd.Function):
    """A function of rows (N, ...), a few rows at a time; the backward pass computes it again.

    Results go to one place from the start: kept in pieces between the tensors of the following
    chunks, they would scatter the heap. With `random`, the second computation draws the same
    numbers as the first.
    """

    @staticmethod
    def forward(
        ctx: Any,
        function: Callable[[Tensor], Tensor],
        rows: int,
        random: bool,
        x: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        ctx.function, ctx.rows, ctx.parameters = function, rows, parameters
        ctx.generator = torch.get_rng_state() if random else None
        ctx.save_for_backward(x)
        output = torch.empty_like(x)
        for part, result in zip(x.split(rows), output.split(rows), strict=True):
            result.copy_(function(part))
        return output

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        sums = [torch.zeros_like(parameter) for parameter in ctx.parameters]
        pieces = (whole.split(ctx.rows) for whole in (x, grad, grad_x))
        with torch.random.fork_rng(devices=()), torch.enable_grad():
            if ctx.generator is not None:
                torch.set_rng_state(ctx.generator)
            for part, grad_part, result in zip(*pieces, strict=True):
                part = part.detach().requires_grad_()
                inputs = (part, *ctx.parameters)
                found = torch.autograd.grad(ctx.function(part), inputs, grad_part)
                result.copy_(found[0])
                for total, share in zip(sums, found[1:], strict=True):
                    total.add_(share)
        return None, None, None, grad_x, *sums


def _tokens(volume: Tensor) -> Tensor:
    """Return the disparity axis of every pixel of (B, C, L, h, w), (B h w, L, C)."""
    batch, channels, length, height, width = volume.shape
    shape = (leading(batch, height, width), int(length), int(channels))
    return volume.permute(0, 3, 4, 2, 1).reshape(shape)


def _sum(one: Tensor, other: Tensor) -> Tensor:
    return recomputable(torch.add, one, other)


class DownGated(nn.Module):
    """1/4 to 1/8: strided convolution, axial convolution, gate."""

    def __init__(self, c: int, feature_channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            (
                _conv3(c, c, stride=2),
                AxialConv3d(c, 2 * c, 17),
                FeatureGate(2 * c, feature_channels),
            )
        )

    def forward(self, volume: Tensor, features: Tensor) -> Tensor:
        conv, axial, gate = self.layers
        return gate(axial(conv(volume)), features)


class DownAxial(nn.Module):
    """1/8 to 1/16: strided convolution and a bottleneck of two axial convolutions."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _conv3(2 * c, 4 * c, stride=2),
            AxialConv3d(4 * c, 2 * c, 13),
            AxialConv3d(2 * c, 4 * c, 3),
        )

    def forward(self, volume: Tensor) -> Tensor:
        return self.layers(volume)


class UpGateFirst(nn.Module):
    """1/32 to 1/16: upsample, add the skip volume, gate, filter."""

    def __init__(self, c: int, feature_channels: int) -> None:
        super().__init__()
        self.upsample = nn.Sequential(_double(6 * c, 4 * c, 3, output_padding=1))
        self.out = nn.ModuleList(
            (
                FeatureGate(4 * c, feature_channels),
                _conv3(4 * c, 4 * c),
                AxialConv3d(4 * c, 4 * c, 9),
                _conv3(4 * c, 4 * c),
            )
        )

    def forward(self, volume: Tensor, skip: Tensor, features: Tensor) -> Tensor:
        gate, conv_in, axial, conv_out = self.out
        return conv_out(axial(conv_in(gate(_sum(self.upsample(volume), skip), features))))


class UpConvFirst(nn.Module):
    """1/16 to 1/8: upsample, add the skip volume, filter, gate, filter."""

    def __init__(self, c: int, feature_channels: int) -> None:
        super().__init__()
        self.upsample = nn.Sequential(_double(4 * c, 2 * c))
        self.out = nn.ModuleList(
            (
                _conv3(2 * c, 2 * c),
                FeatureGate(2 * c, feature_channels),
                AxialConv3d(2 * c, 2 * c, 9),
            )
        )

    def forward(self, volume: Tensor, skip: Tensor, features: Tensor) -> Tensor:
        conv, gate, axial = self.out
        return axial(gate(conv(_sum(self.upsample(volume), skip)), features))


class TransformerBranch(nn.Sequential):
    """Patches of a volume, the transformer on them, and its result at the volume's size."""

    def forward(self, input: Tensor) -> Tensor:
        patches, transformer, enlarge = self
        return recomputable(enlarge, transformer(patches(input)))


class TransformerMerge(nn.Module):
    """1/4: the transformer branch of the decoded volume, added to the hourglass input, filtered.

    The branch is computed from the decoded volume `low`; its partner in the sum is `high`, the
    volume that entered the hourglass.
    """

    def __init__(self, c: int, candidates: int) -> None:
        super().__init__()
        self.upsample = TransformerBranch(
            ConvBlock(nn.Conv3d, c, c, 4, stride=4, norm=BatchNorm, activation=False),
            DisparityTransformer(c, length=candidates // 4, layers=1, feedforward=4 * c),
            nn.Upsample(scale_factor=4, mode="trilinear", align_corners=False),
        )
        self.out = nn.Sequential(_conv3(c, c), Residual(nn.Conv3d, c, norm=BatchNorm))

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        return self.out(_sum(self.upsample(low), high))


class PatchConv3d(nn.Conv3d):
    """Depthwise convolution of non-overlapping 4x4x4 patches, (B, C, D, h, w) to quarter size.

    Args:
        channels: C.
        shift: patches start this many samples before the first one in D and h, in zeros; as many
            samples at the end are left out.
    """

    SIZE = 4

    def __init__(self, channels: int, shift: int) -> None:
        super().__init__(
            channels,
            channels,
            self.SIZE,
            stride=self.SIZE,
            padding=(shift, shift, 0),
            groups=channels,
        )


@dataclass(frozen=True)
class HourglassVariant:
    """In what the released FoundationStereo networks differ below the volume.

    Attributes:
        gate_norm: norm inside the gates.
        merge: kind of the 1x1x1 convolution that opens `agg_1`.
        patch_shift: see `PatchConv3d`.
        attention: arrangement of the heads.
        attends_patches: the transformer runs on the patches, before they are enlarged, and not on
            every disparity of every pixel.
    """

    gate_norm: Norm
    merge: type[nn.Module]
    patch_shift: int
    attention: type[DisparityAttention]
    attends_patches: bool


class Hourglass(nn.Module):
    """3-D hourglass with a transformer branch over a volume (B, c, D, h, w).

    D, h and w are multiples of 8.

    Args:
        c: width of the volume; inner levels have 2c, 4c and 6c channels.
        feature_widths: channels of the image features at 1/4, 1/8, 1/16 and 1/32.
        candidates: D.
        variant: which of the released networks.
    """

    LAYERS = 4

    def __init__(
        self,
        c: int,
        *,
        feature_widths: tuple[int, int, int, int],
        candidates: int,
        variant: HourglassVariant,
    ) -> None:
        super().__init__()
        _, x8, x16, x32 = feature_widths
        norm = variant.gate_norm
        self.attends_patches = variant.attends_patches
        self.conv1 = nn.Sequential(_conv3(c, 2 * c, stride=2), AxialConv3d(2 * c, 2 * c, 17))
        self.feature_att_8 = FeatureGate(2 * c, x8, norm=norm)
        self.conv2 = nn.Sequential(_conv3(2 * c, 4 * c, stride=2), AxialConv3d(4 * c, 4 * c, 17))
        self.feature_att_16 = FeatureGate(4 * c, x16, norm=norm)
        self.conv3 = nn.Sequential(_conv3(4 * c, 6 * c, stride=2), AxialConv3d(6 * c, 6 * c, 17))
        self.feature_att_32 = FeatureGate(6 * c, x32, norm=norm)
        self.conv3_up = _double(6 * c, 4 * c)
        self.agg_0 = _merge(nn.Conv3d, 8 * c, 4 * c)
        self.feature_att_up_16 = FeatureGate(4 * c, x16, norm=norm)
        self.conv2_up = _double(4 * c, 2 * c)
        self.agg_1 = _merge(variant.merge, 4 * c, 2 * c)
        self.feature_att_up_8 = FeatureGate(2 * c, x8, norm=norm)
        self.conv1_up = _double(2 * c, c)
        self.conv_patch = nn.Sequential(PatchConv3d(c, variant.patch_shift), BatchNorm(c))
        self.upsample = nn.Upsample(
            scale_factor=PatchConv3d.SIZE, mode="trilinear", align_corners=False
        )
        transformer = DisparityTransformer(
            c,
            length=candidates // PatchConv3d.SIZE if self.attends_patches else candidates,
            layers=self.LAYERS,
            feedforward=c,
            attention=variant.attention,
        )
        self.atts = nn.ModuleDict({"cost_vol_disp": transformer})
        self.conv_out = nn.Sequential(AxialConv3d(c, c, 17), AxialConv3d(c, c, 17))

    def forward(self, volume: Tensor, features: FeaturePyramid) -> Tensor:
        a8 = self.feature_att_8(self.conv1(volume), features.x8)  # (B, 2c, D/2, h/2, w/2)
        a16 = self.feature_att_16(self.conv2(a8), features.x16)  # (B, 4c, D/4, h/4, w/4)
        a32 = self.feature_att_32(self.conv3(a16), features.x32)  # (B, 6c, D/8, h/8, w/8)
        b16 = self.agg_0(recomputable(join, self.conv3_up(a32), a16))
        b16 = self.feature_att_up_16(b16, features.x16)  # (B, 4c, D/4, h/4, w/4)
        b8 = self.agg_1(recomputable(join, self.conv2_up(b16), a8))
        b8 = self.feature_att_up_8(b8, features.x8)  # (B, 2c, D/2, h/2, w/2)
        decoded = self.conv1_up(b8) + self._attended(volume)
        return self.conv_out(decoded)  # (B, c, D, h, w)

    def _attended(self, volume: Tensor) -> Tensor:
        """Return what the transformer sees in the unfiltered volume, (B, c, D, h, w)."""
        patches, transformer = self.conv_patch(volume), self.atts["cost_vol_disp"]
        if self.attends_patches:
            return self.upsample(transformer(patches))
        return transformer(recomputable(self.upsample, patches))


class PrunedHourglass(nn.Module):
    """3-D hourglass of the distilled network over a volume (B, c, D, h, w).

    D, h and w are multiples of 8.

    Args:
        c: width of the volume; inner levels have 2c, 4c and 6c channels.
        feature_widths: channels of the image features at 1/4, 1/8, 1/16 and 1/32.
        candidates: D.
    """

    def __init__(
        self, c: int, *, feature_widths: tuple[int, int, int, int], candidates: int
    ) -> None:
        super().__init__()
        _, x8, x16, x32 = feature_widths
        self.feature_att_8 = DownGated(c, x8)
        self.feature_att_16 = DownAxial(c)
        self.conv3 = nn.Sequential(_conv3(4 * c, 6 * c, stride=2), AxialConv3d(6 * c, 6 * c, 17))
        self.feature_att_32 = FeatureGate(6 * c, x32)
        self.post32_to_16 = UpGateFirst(c, x16)
        self.post16_to_8 = UpConvFirst(c, x8)
        self.conv1_up = _double(2 * c, c)
        self.post8_to_4 = TransformerMerge(c, candidates)
        self._build_unused(c, x8=x8, x16=x16)

    def _build_unused(self, c: int, *, x8: int, x16: int) -> None:
        """Create the modules that checkpoints contain and `forward` leaves out."""
        self.conv3_up = _double(6 * c, 4 * c)
        self.conv2_up = _double(4 * c, 2 * c)
        self.agg_0 = _merge(nn.Conv3d, 8 * c, 4 * c)
        self.agg_1 = _merge(nn.Conv3d, 4 * c, 2 * c)
        self.conv_out = nn.Sequential(AxialConv3d(c, c, 17), AxialConv3d(c, c, 17))
        self.conv_patch = nn.Sequential(nn.Conv3d(c, c, 4, stride=4, groups=c), BatchNorm(c))
        transformer = DisparityTransformer(c, length=1, layers=4, feedforward=c)
        self.atts = nn.ModuleDict({"cost_vol_disp": transformer})
        self.feature_att_up_16 = FeatureGate(4 * c, x16)
        self.feature_att_up_8 = FeatureGate(2 * c, x8)

    def forward(self, volume: Tensor, features: FeaturePyramid) -> Tensor:
        a8 = self.feature_att_8(volume, features.x8)  # (B, 2c, D/2, h/2, w/2)
        a16 = self.feature_att_16(a8)  # (B, 4c, D/4, h/4, w/4)
        a32 = self.feature_att_32(self.conv3(a16), features.x32)  # (B, 6c, D/8, h/8, w/8)
        b16 = self.post32_to_16(a32, a16, features.x16)  # (B, 4c, D/4, h/4, w/4)
        b8 = self.post16_to_8(b16, a8, features.x8)  # (B, 2c, D/2, h/2, w/2)
        return self.post8_to_4(volume, self.conv1_up(b8))  # (B, c, D, h, w)


def soft_argmin(scores: Tensor) -> Tensor:
    """Expected disparity (B, 1, h, w) in candidates, from scores (B, 1, D, h, w).

    In float32, also under autocast.
    """
    scores = full_precision(scores)
    probability = torch.softmax(scores.squeeze(1), dim=1)  # (B, D, h, w)
    count = int(scores.shape[2])
    candidates = torch.arange(count, dtype=scores.dtype, device=scores.device)
    return (probability * candidates[:, None, None]).sum(dim=1, keepdim=True)
