"""Filtering of the matching volume: 3-D hourglass, disparity transformer, soft-argmin.

Symbols: B batch, C channels, D disparity candidates, h, w rows and columns at 1/4 of the image, c
the volume's width (`volume_dim`), L tokens along the disparity axis.

The hourglass stores modules that its forward pass does not use; released checkpoints contain them
and a strict load needs their names. They never receive a gradient.

Source: hourglass of FoundationStereo, Wen et al., CVPR 2025, in the pruned form of
Fast-FoundationStereo.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stereo.nets.blocks import (
    AxialConv3d,
    BatchNorm,
    ConvBlock,
    FeatureGate,
    Residual,
    channels_last,
    spatial_shape,
)
from stereo.nets.edgenext import FeaturePyramid

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


class GroupAttention(nn.Module):
    """Attention among the channel groups of one disparity position; tokens (N, L, C) in and out.

    The released networks arrange the heads so that a position attends over its own four channel
    groups, not over other disparities. Weights depend on it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(channels, channels)
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.out_proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        length, channels = (int(size) for size in x.shape[1:])
        width = channels // HEADS
        q, k, v = (
            project(x).reshape(-1, length, HEADS, width)  # (N, L, heads, C/heads)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        scores = q @ k.transpose(-2, -1) / math.sqrt(width)  # (N, L, heads, heads)
        mixed = torch.softmax(scores, dim=-1) @ v
        return self.out_proj(mixed.reshape(-1, length, channels))


class TransformerLayer(nn.Module):
    """Post-norm transformer layer with GELU; tokens (N, L, C)."""

    def __init__(self, channels: int, feedforward: int) -> None:
        super().__init__()
        self.self_attn = GroupAttention(channels)
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
    """Transformer along the disparity axis of a volume (B, C, L, h, w), pixel by pixel."""

    def __init__(self, channels: int, *, length: int, layers: int, feedforward: int) -> None:
        super().__init__()
        self.sa = nn.ModuleList(TransformerLayer(channels, feedforward) for _ in range(layers))
        self.position: Tensor
        self.register_buffer("position", sinusoidal_table(length, channels), persistent=False)

    def forward(self, volume: Tensor) -> Tensor:
        channels, (length, height, width) = int(volume.shape[1]), spatial_shape(volume)
        tokens = volume.permute(0, 3, 4, 2, 1).reshape(-1, length, channels)  # (B h w, L, C)
        tokens = tokens + self.position
        for layer in self.sa:
            tokens = layer(tokens)
        tokens = tokens.reshape(-1, height, width, length, channels)
        return channels_last(tokens.permute(0, 4, 3, 1, 2))  # (B, C, L, h, w)


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
        return conv_out(axial(conv_in(gate(self.upsample(volume) + skip, features))))


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
        return axial(gate(conv(self.upsample(volume) + skip), features))


class TransformerMerge(nn.Module):
    """1/4: the transformer branch of the decoded volume, added to the hourglass input, filtered.

    The branch is computed from the decoded volume `low`; its partner in the sum is `high`, the
    volume that entered the hourglass.
    """

    def __init__(self, c: int, candidates: int) -> None:
        super().__init__()
        self.upsample = nn.Sequential(
            ConvBlock(nn.Conv3d, c, c, 4, stride=4, norm=BatchNorm, activation=False),
            DisparityTransformer(c, length=candidates // 4, layers=1, feedforward=4 * c),
            nn.Upsample(scale_factor=4, mode="trilinear", align_corners=False),
        )
        self.out = nn.Sequential(_conv3(c, c), Residual(nn.Conv3d, c, norm=BatchNorm))

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        return self.out(self.upsample(low) + high)


class Hourglass(nn.Module):
    """3-D hourglass over a volume (B, c, D, h, w); D, h and w are multiples of 8.

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
        self.agg_0 = nn.Sequential(
            _conv(8 * c, 4 * c, 1), AxialConv3d(4 * c, 4 * c, 17), AxialConv3d(4 * c, 4 * c, 17)
        )
        self.agg_1 = nn.Sequential(
            _conv(4 * c, 2 * c, 1), AxialConv3d(2 * c, 2 * c, 17), AxialConv3d(2 * c, 2 * c, 17)
        )
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
    """Expected disparity (B, 1, h, w) in candidates, from scores (B, 1, D, h, w)."""
    probability = torch.softmax(scores.squeeze(1), dim=1)  # (B, D, h, w)
    count = int(scores.shape[2])
    candidates = torch.arange(count, dtype=scores.dtype, device=scores.device)
    return (probability * candidates[:, None, None]).sum(dim=1, keepdim=True)
