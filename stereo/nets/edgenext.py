"""EdgeNeXt-small encoder and the decoder that merges its levels: features at 1/4 to 1/32.

Symbols: B batch, C channels, H, W rows and columns, N = H * W tokens. Parameter names load the
public `edgenext_small` weights after the renames of `names.py`.

Source: EdgeNeXt, Maaz et al., 2022: depthwise convolution blocks, and at the end of stages 1 to 3
one split-transpose block whose attention runs across channels (cross-covariance, XCA).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stereo.nets.blocks import UpMerge, channels_last, leading, plain_sizes, spatial_shape
from stereo.nets.recompute import recomputable

WIDTHS = (48, 96, 160, 304)
DEPTHS = (3, 3, 9, 3)
KERNELS = (3, 5, 7, 9)
SCALES = (1, 2, 3, 4)  # chunks of the split-transpose block that closes the stage; 1: no such block
HEADS = 8
MLP_RATIO = 4
NORM_EPS = 1e-6


class FeaturePyramid(NamedTuple):
    """Feature maps at 1/4, 1/8, 1/16 and 1/32 of the image."""

    x4: Tensor
    x8: Tensor
    x16: Tensor
    x32: Tensor


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a (B, C, H, W) map."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=NORM_EPS)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Mlp(nn.Module):
    """LayerNorm, two linear layers with GELU, layer scale; on channels-last (..., C) input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)
        self.pwconv1 = nn.Linear(channels, MLP_RATIO * channels)
        self.pwconv2 = nn.Linear(MLP_RATIO * channels, channels)
        self.gamma = nn.Parameter(torch.full((channels,), 1e-6))

    def expand(self, x: Tensor) -> Tensor:
        """Return the scaled output for (..., C); the caller adds the residual."""
        wide = recomputable(self.pwconv1, recomputable(self.norm, x))
        return self.gamma * self.pwconv2(recomputable(F.gelu, wide))


class ConvEncoder(Mlp):
    """Depthwise convolution, then the channel MLP, with a residual around both."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__(channels)
        self.dwconv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(self.dwconv(x).permute(0, 2, 3, 1))  # (B, H, W, C)
        return x + y.permute(0, 3, 1, 2)  # (B, C, H, W)


class FourierPosition(nn.Module):
    """Fourier code of row and column, projected to C channels, (1, C, H, W)."""

    FREQUENCIES = 32

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.token_projection = nn.Conv2d(2 * self.FREQUENCIES, channels, 1)

    def _axis(self, length: int, like: Tensor) -> Tensor:
        """Interleaved sine and cosine of positions 1..length scaled to 2 pi, (length, 32)."""
        position = torch.arange(1, length + 1, dtype=like.dtype, device=like.device)
        position = position / (length + NORM_EPS) * (2 * math.pi)
        pair = torch.arange(self.FREQUENCIES // 2, dtype=like.dtype, device=like.device)
        angle = position[:, None] / 10000 ** (2 * pair / self.FREQUENCIES)
        return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = spatial_shape(x)
        rows = self._axis(height, x)[:, None].expand(-1, width, -1)
        columns = self._axis(width, x)[None].expand(height, -1, -1)
        code = torch.cat((rows, columns), dim=-1)  # (H, W, 64)
        return self.token_projection(code.permute(2, 0, 1)[None])


class CrossCovarianceAttention(nn.Module):
    """Attention among the channels of each head; tokens (B, N, C) in and out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(HEADS, 1, 1))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        count, channels = plain_sizes(x.shape[1:])
        qkv = self.qkv(x).transpose(1, 2)  # (B, 3C, N)
        qkv = qkv.reshape(leading(x.shape[0]), 3, HEADS, channels // HEADS, count)
        q, k, v = qkv.unbind(1)  # each (B, heads, C/heads, N)
        q = F.normalize(q, dim=-1)
        k = F.normalize(k, dim=-1)
        attention = torch.softmax(q @ k.transpose(-2, -1) * self.temperature, dim=-1)
        mixed = (attention @ v).reshape(leading(x.shape[0]), channels, count)
        return self.proj(mixed.transpose(1, 2))


class SplitTransposeEncoder(Mlp):
    """Depthwise convolutions cascaded over channel chunks, cross-covariance attention, MLP."""

    def __init__(self, channels: int, scales: int, *, positional: bool) -> None:
        super().__init__(channels)
        self.chunk = math.ceil(channels / scales)
        self.convs = nn.ModuleList(
            nn.Conv2d(self.chunk, self.chunk, 3, padding=1, groups=self.chunk)
            for _ in range(scales - 1)
        )
        self.pos_embd = FourierPosition(channels) if positional else None
        self.norm_xca = nn.LayerNorm(channels, eps=NORM_EPS)
        self.gamma_xca = nn.Parameter(torch.full((channels,), 1e-6))
        self.xca = CrossCovarianceAttention(channels)

    def _cascade(self, x: Tensor) -> Tensor:
        *chunks, last = x.split(self.chunk, dim=1)
        mixed = [self.convs[0](chunks[0])]
        for conv, chunk in zip(self.convs[1:], chunks[1:], strict=True):
            mixed.append(conv(mixed[-1] + chunk))
        return torch.cat((*mixed, last), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self._cascade(x)
        if self.pos_embd is not None:
            y = y + self.pos_embd(y)
        tokens = y.flatten(2).transpose(1, 2)  # (B, N, C)
        tokens = tokens + self.gamma_xca * self.xca(self.norm_xca(tokens))
        out = self.expand(tokens).transpose(1, 2)  # (B, C, N)
        return x + out.reshape(leading(x.shape[0]), int(x.shape[1]), *spatial_shape(x))


def _stage(index: int) -> nn.Sequential:
    """Return the blocks of one resolution level."""
    width, scales = WIDTHS[index], SCALES[index]
    count = DEPTHS[index] if scales == 1 else DEPTHS[index] - 1
    blocks: list[nn.Module] = [ConvEncoder(width, KERNELS[index]) for _ in range(count)]
    if scales > 1:
        blocks.append(SplitTransposeEncoder(width, scales, positional=index == 1))
    return nn.Sequential(*blocks)


def _downsample(index: int) -> nn.Sequential:
    """Return the layer that enters one resolution level."""
    if index == 0:
        return nn.Sequential(nn.Conv2d(3, WIDTHS[0], 4, stride=4), ChannelNorm(WIDTHS[0]))
    conv = nn.Conv2d(WIDTHS[index - 1], WIDTHS[index], 2, stride=2)
    return nn.Sequential(ChannelNorm(WIDTHS[index - 1]), conv)


def _initialise(module: nn.Module) -> None:
    """Draw weights from a normal distribution truncated at two deviations, zero the biases."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class EdgeNeXtDecoder(nn.Module):
    """EdgeNeXt-small with a decoder; subclasses make the finest map from what it returns."""

    WIDTH = 2 * WIDTHS[0]  # of the finest decoded map

    def __init__(self) -> None:
        super().__init__()
        self.downsample_layers = nn.ModuleList(_downsample(index) for index in range(4))
        self.stages = nn.ModuleList(_stage(index) for index in range(4))
        self.apply(_initialise)
        self.deconv32_16 = UpMerge(WIDTHS[3], WIDTHS[2])
        self.deconv16_8 = UpMerge(2 * WIDTHS[2], WIDTHS[1])
        self.deconv8_4 = UpMerge(2 * WIDTHS[1], WIDTHS[0])

    @staticmethod
    def widths(out_channels: int) -> tuple[int, int, int, int]:
        """Return the channels of x4, x8, x16 and x32."""
        return out_channels, 2 * WIDTHS[1], 2 * WIDTHS[2], WIDTHS[3]

    def decode(self, image: Tensor) -> FeaturePyramid:
        """Return 96, 192, 320 and 304 channels from normalised images (B, 3, H, W)."""
        levels: list[Tensor] = []
        x = image
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
            levels.append(x)
        x32 = levels[3]
        x16 = self.deconv32_16(x32, levels[2])
        x8 = self.deconv16_8(x16, levels[1])
        x4 = self.deconv8_4(x8, levels[0])
        # Instance norms leave their output in the default layout.
        return FeaturePyramid(*(channels_last(level) for level in (x4, x8, x16, x32)))


class EdgeNeXtFeatures(EdgeNeXtDecoder):
    """Normalised images (B, 3, H, W) to a `FeaturePyramid`.

    Args:
        out_channels: width of the finest map, x4; x8, x16 and x32 have 192, 320 and 304 channels.
    """

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.conv4 = nn.Conv2d(self.WIDTH, out_channels, 1)

    def forward(self, image: Tensor) -> FeaturePyramid:
        decoded = self.decode(image)
        return decoded._replace(x4=channels_last(self.conv4(decoded.x4)))
