"""Iterative refinement: motion encoder, selective ConvGRU, disparity head, mask head.

Symbols: B batch, h, w rows and columns at 1/4 of the image. Disparity is in px of that map.
State-dict names follow the released checkpoints (`gru04` is the level at 1/4). Lists of levels go
from fine to coarse.

Work that does not change between iterations is done once, in `UpdateBlock.prepare`: the part of the
first GRU convolution that sees the context features, and weights that are merged, reordered or
transformed.

Source: Selective-Stereo, Wang et al., CVPR 2024 (small and large kernel cells mixed by an attention
map); the loop is that of RAFT-Stereo, Lipson et al., 3DV 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stereo.nets.blocks import (
    ConvNeXtLite,
    PartsConv2d,
    channels_last,
    conv_of_parts,
    spatial_shape,
    tiled,
)
from stereo.nets.cost_volume import channel_order, lookup_channels
from stereo.nets.recompute import join, recomputable
from stereo.nets.sampling import resize


class Kernel(NamedTuple):
    """Weight and bias of a convolution; `tiles` is the weight as `tiled` returns it."""

    weight: Tensor
    bias: Tensor | None
    tiles: Tensor | None


class PreparedCell(NamedTuple):
    """What all iterations of one forward pass share in one cell."""

    gates: Kernel  # of update and reset gate
    candidate: Tensor | None  # tiles of `convq`


class PreparedLevel(NamedTuple):
    """What all iterations of one forward pass share at one level."""

    context: (
        Tensor  # (B, gating width, h, w): share of the context features in the first convolution
    )
    inputs: Kernel  # of the first convolution for the other inputs
    features: Tensor | None  # tiles of `conv1`
    small: PreparedCell
    large: PreparedCell


class PreparedMotion(NamedTuple):
    """What all iterations of one forward pass share in the motion encoder."""

    geometry: Tensor  # weight of the lookup's 1x1 convolution, in the lookup's channel order
    mixed: Tensor | None  # tiles of `convc2`
    final: Tensor | None  # tiles of `conv`


class Prepared(NamedTuple):
    """What all iterations of one forward pass share."""

    motion: PreparedMotion
    levels: list[PreparedLevel]


class MotionEncoder(nn.Module):
    """Encodes what the volume says around the current disparity, and the disparity itself."""

    def __init__(
        self, *, volume_dim: int, levels: int, radius: int, widths: Sequence[int], final: int
    ) -> None:
        super().__init__()
        shape = {"channels": volume_dim, "levels": levels, "radius": radius}
        correlation, mixed, disparity, disparity_mixed = widths
        self.convc1 = nn.Conv2d(lookup_channels(**shape), correlation, 1)
        self.convc2 = PartsConv2d(correlation, mixed, 3, padding=1)
        self.convd1 = nn.Conv2d(1, disparity, 7, padding=3)
        self.convd2 = nn.Conv2d(disparity, disparity_mixed, 3, padding=1)
        self.conv = PartsConv2d(mixed + disparity_mixed, final, 3, padding=1)
        self.order: Tensor
        self.register_buffer("order", channel_order(**shape), persistent=False)

    def prepare(self) -> PreparedMotion:
        """Compute what does not change between iterations."""
        return PreparedMotion(
            geometry=self.convc1.weight[:, self.order],
            mixed=tiled(self.convc2.weight),
            final=tiled(self.conv.weight),
        )

    def forward(self, geometry: Tensor, disparity: Tensor, prepared: PreparedMotion) -> Tensor:
        correlation = F.relu(F.conv2d(geometry, prepared.geometry, self.convc1.bias))
        correlation = F.relu(self.convc2((correlation,), prepared.mixed))
        # A map of one channel has no layout of its own: what is made from it gets the default one.
        motion = channels_last(F.relu(self.convd1(disparity)))
        motion = F.relu(self.convd2(motion))
        motion = F.relu(self.conv((correlation, motion), prepared.final))
        return recomputable(_joined, motion, disparity)


def _joined(motion: Tensor, disparity: Tensor) -> Tensor:
    return channels_last(join(motion, disparity))


class ConvGRUCell(nn.Module):
    """Convolutional GRU cell whose gates see precomputed features of input and state."""

    def __init__(self, gate_in: int, candidate_in: int, hidden: int, kernel_size: int) -> None:
        super().__init__()
        self.padding = kernel_size // 2
        self.convz = nn.Conv2d(gate_in, hidden, kernel_size, padding=self.padding)
        self.convr = nn.Conv2d(gate_in, hidden, kernel_size, padding=self.padding)
        self.convq = PartsConv2d(candidate_in, hidden, kernel_size, padding=self.padding)

    def prepare(self) -> PreparedCell:
        """Compute what does not change between iterations; the gates as one convolution."""
        weight, bias = (
            torch.cat([getattr(conv, key) for conv in (self.convz, self.convr)])
            for key in ("weight", "bias")
        )
        return PreparedCell(Kernel(weight, bias, tiled(weight)), tiled(self.convq.weight))

    def forward(self, state: Tensor, x: Tensor, features: Tensor, prepared: PreparedCell) -> Tensor:
        both = torch.sigmoid(conv_of_parts((features,), *prepared.gates))
        update, reset = both.chunk(2, dim=1)
        parts = recomputable(torch.mul, reset, state), x
        candidate = torch.tanh(self.convq(parts, prepared.candidate))
        return recomputable(torch.lerp, state, candidate, update)


class FeaturesConv(nn.Sequential):
    """The convolution that both cells see, and its ReLU."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, input: Sequence[Tensor], tiles: Tensor | None
    ) -> Tensor:
        conv, activation = self
        return activation(conv(input, tiles))


class SelectiveConvGRU(nn.Module):
    """A 1x1 and a 3x3 cell on shared features, mixed per pixel by an attention map.

    Args:
        context: channels of the context features.
        inputs: channels of the other inputs.
        hidden: channels of the state.
        gating: widths of the two convolutions before the cells; default: those of their inputs.
    """

    def __init__(
        self, context: int, inputs: int, hidden: int, gating: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        total = context + inputs
        x, features = gating or (total, total + hidden)
        self.context = context
        self.conv0 = nn.ModuleList([nn.Conv2d(total, x, 3, padding=1)])
        self.conv1 = FeaturesConv(PartsConv2d(x + hidden, features, 3, padding=1), nn.ReLU())
        self.small_gru = ConvGRUCell(features, x + hidden, hidden, 1)
        self.large_gru = ConvGRUCell(features, x + hidden, hidden, 3)

    def prepare(self, context: Tensor) -> PreparedLevel:
        """Compute what does not change between iterations from the context features."""
        first, second = self.conv0[0], self.conv1[0]
        assert isinstance(first, nn.Conv2d)
        assert isinstance(second, nn.Conv2d)
        shared, inputs = first.weight[:, : self.context], first.weight[:, self.context :]
        return PreparedLevel(
            context=F.conv2d(context, shared, first.bias, padding=1),
            inputs=Kernel(inputs, None, tiled(inputs)),
            features=tiled(second.weight),
            small=self.small_gru.prepare(),
            large=self.large_gru.prepare(),
        )

    def forward(
        self,
        state: Tensor,
        inputs: Sequence[Tensor],
        attention: Tensor,
        prepared: PreparedLevel,
    ) -> Tensor:
        own = conv_of_parts(inputs, *prepared.inputs)
        x = F.relu(own + prepared.context)
        features = self.conv1((x, state), prepared.features)
        small = self.small_gru(state, x, features, prepared.small)
        large = self.large_gru(state, x, features, prepared.large)
        return torch.lerp(large, small, attention)


class DisparityHead(nn.Module):
    """Residual disparity (B, 1, h, w) from the GRU state."""

    def __init__(self, hidden: int, mid: int, expansions: Sequence[int]) -> None:
        super().__init__()
        first, second = expansions
        self.conv = nn.Sequential(
            nn.Conv2d(hidden, mid, 3, padding=1),
            nn.ReLU(),
            ConvNeXtLite(mid, first),
            ConvNeXtLite(mid, second),
            nn.Conv2d(mid, 1, 3, padding=1),
        )

    def forward(self, state: Tensor) -> Tensor:
        return self.conv(state)


class UpdateBlock(nn.Module):
    """One refinement step: states and disparity to new states and a residual disparity.

    Every level sees the coarser state that this step made and the finer one of the step before.

    Args:
        encoder: motion encoder of the finest level.
        context: channels of the context features of a level.
        motion: channels that `encoder` returns.
        hidden: channels of the state of a level.
        gating: widths of the two convolutions before the cells of the finest level.
        head: inner width and expansion widths of the disparity head.
        mask: widths of the mask head.
        levels: 1 to 3 levels, at 1/4, 1/8 and 1/16 of the image.
    """

    LEVELS = ("gru04", "gru08", "gru16")

    def __init__(
        self,
        *,
        encoder: MotionEncoder,
        context: int,
        motion: int,
        hidden: int,
        gating: Sequence[int] | None,
        head: tuple[int, Sequence[int]],
        mask: Sequence[int],
        levels: int = 1,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.names = self.LEVELS[:levels]
        for index, name in enumerate(self.names):
            coarser = hidden if index + 1 < levels else 0
            finer = hidden if index else motion
            widths = None if index else gating
            self.add_module(name, SelectiveConvGRU(context, finer + coarser, hidden, widths))
        self.disp_head = DisparityHead(hidden, *head)
        self.mask = nn.Sequential(
            nn.Conv2d(hidden, mask[0], 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(mask[0], mask[1], 3, padding=1),
            nn.ReLU(),
        )

    def prepare(self, contexts: Sequence[Tensor]) -> Prepared:
        """Compute what does not change between iterations from the context features."""
        levels = [
            self._level(name).prepare(context)
            for name, context in zip(self.names, contexts, strict=True)
        ]
        return Prepared(self.encoder.prepare(), levels)

    def _level(self, name: str) -> SelectiveConvGRU:
        level = self.get_submodule(name)
        assert isinstance(level, SelectiveConvGRU)
        return level

    def forward(
        self,
        states: Sequence[Tensor],
        disparity: Tensor,
        geometry: Tensor,
        attentions: Sequence[Tensor],
        prepared: Prepared,
    ) -> tuple[list[Tensor], Tensor]:
        updated = list(states)
        for index in reversed(range(len(updated))):
            state = updated[index]
            if index:
                inputs = [F.avg_pool2d(updated[index - 1], 3, stride=2, padding=1)]
            else:
                inputs = [self.encoder(geometry, disparity, prepared.motion)]
            if index + 1 < len(updated):
                inputs.append(resize(updated[index + 1], spatial_shape(state)))
            level = self._level(self.names[index])
            updated[index] = level(state, inputs, attentions[index], prepared.levels[index])
        return updated, self.disp_head(updated[0])
