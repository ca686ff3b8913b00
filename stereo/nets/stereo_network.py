"""What both stereo networks do: features, matching volume, initial disparity, refinement.

Symbols: B batch, H, W rows and columns of the image (multiples of 32), h = H/4, w = W/4, D
disparity candidates (one per 4 px of the image). Images are normalised outside. Disparity is
positive, left x minus right x; it is not clamped. Lists of levels go from fine to coarse.

Source: FoundationStereo, Wen et al., CVPR 2025; the flow is that of IGEV-Stereo, Xu et al., CVPR
2023.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stereo.nets.aggregation import soft_argmin
from stereo.nets.blocks import (
    ChannelAttention,
    ConvBlock,
    Result,
    SpatialAttention,
    channels_last,
    recomputed,
    runs_eagerly_on_cpu,
)
from stereo.nets.cost_volume import (
    GeometryLookup,
    concatenation_volume,
    group_wise_correlation,
)
from stereo.nets.edgenext import FeaturePyramid
from stereo.nets.gru import UpdateBlock
from stereo.nets.recompute import cheap_ones_recomputed, join, recomputable
from stereo.nets.sampling import convex_upsample

VIT_WIDTHS = {"vits": 32, "vitb": 64, "vitl": 128}  # channels of the ViT map beside the CNN's


class StereoOutput(NamedTuple):
    """Disparity before and after refinement.

    Attributes:
        initial: soft-argmin of the filtered volume, (B, 1, H/4, W/4), in px of that map.
        refined: one map per iteration, or only the last, (B, 1, H, W), in px of the image.
    """

    initial: Tensor
    refined: list[Tensor]


class Features(NamedTuple):
    """What the encoder sees in a pair.

    Attributes:
        left: pyramid of the left image.
        right: finest level of the right image.
        semantic: ViT map of the left image, (B, V, h, w), where the network has one.
    """

    left: FeaturePyramid
    right: Tensor
    semantic: Tensor | None = None


class Level(NamedTuple):
    """Context of one level of the refinement: initial state and context features."""

    state: Tensor
    context: Tensor


class SuperpixelMerge(nn.Module):
    """Mask features at 1/4 and stem features at 1/2 to features at 1/2."""

    def __init__(self, in_channels: int, mid: int, mix: nn.Module) -> None:
        super().__init__()
        self.conv1 = ConvBlock(
            nn.ConvTranspose2d, in_channels, mid, 4, stride=2, padding=1, norm=None
        )
        self.conv2 = mix

    def forward(self, mask: Tensor, stem: Tensor) -> Tensor:
        return self.conv2(recomputable(join, self.conv1(mask), stem))


def half_resolution_stem(
    in_channels: int, first: int, second: int, *, norm: type[nn.Module] = nn.InstanceNorm2d
) -> nn.Sequential:
    """Return layers that halve the resolution of a map."""
    return nn.Sequential(
        ConvBlock(nn.Conv2d, in_channels, first, 3, stride=2, padding=1, norm=norm),
        nn.Conv2d(first, second, 3, padding=1, bias=False),
        norm(second),
        nn.ReLU(),
    )


class Leaner(IntEnum):
    """From which `low_memory` on the backward pass computes a part again.

    The upsampling it always computes again: that costs little.
    """

    STEPS = 1
    FEATURES = 2
    CONTEXT = 3
    VOLUME = 4


class StereoNetwork(nn.Module):
    """Disparity of the left image of a rectified pair.

    Subclasses create the submodules declared here, in the widths of their spec.

    Attributes:
        low_memory: 0 to 4, see `Leaner`; trades time of a training step for memory.
        mixed_precision: on a GPU, run under float16 autocast where the caller has set none.
    """

    low_memory = 0
    mixed_precision = False
    candidates: int
    groups: int
    normalize: bool
    lookup: dict[str, int]

    stem_2: nn.Module
    proj_cmb: nn.Module
    classifier: nn.Module
    cam: ChannelAttention
    sam: SpatialAttention
    update_block: UpdateBlock
    spx_2_gru: SuperpixelMerge
    spx_gru: nn.Module

    @abstractmethod
    def features(self, left: Tensor, right: Tensor) -> Features:
        """Encode normalised images (B, 3, H, W)."""

    @abstractmethod
    def filtered(self, volume: Tensor, features: FeaturePyramid) -> Tensor:
        """Filter the matching volume (B, C, D, h, w) to (B, c, D, h, w)."""

    @abstractmethod
    def context(self, left: Tensor, features: Features) -> list[Level]:
        """Prepare the levels of the refinement."""

    def checkpoint_activations(self) -> None:
        """Compute every refinement step again in the backward pass."""
        self.low_memory = max(self.low_memory, Leaner.STEPS)

    def _part(self, part: Leaner, function: Callable[..., Result], *inputs: Any) -> Result:
        """Return `function(*inputs)`, computed again later where memory is that low."""
        if self.low_memory < part:
            return function(*inputs)
        return recomputed(function, *inputs, random=self.training)

    def forward(
        self,
        left: Tensor,
        right: Tensor,
        *,
        iters: int,
        last_only: bool = False,
        init_disparity: Tensor | None = None,
    ) -> StereoOutput:
        """Estimate disparity.

        Args:
            left: normalised left image, (B, 3, H, W); H and W are multiples of 32.
            right: normalised right image, (B, 3, H, W).
            iters: refinement iterations, at least 1.
            last_only: upsample only the result of the last iteration.
            init_disparity: start of the refinement in place of the soft-argmin,
                (B, 1, H/4, W/4), in px of that map.
        """
        memory = cheap_ones_recomputed() if runs_eagerly_on_cpu(left) else nullcontext()
        with memory, self._arithmetic(left.device.type):
            return self._estimated(
                left, right, iters=iters, last_only=last_only, init_disparity=init_disparity
            )

    def _arithmetic(self, device: str) -> AbstractContextManager[Any]:
        if not self.mixed_precision or device != "cuda" or torch.is_autocast_enabled(device):
            return nullcontext()
        return torch.autocast(device, torch.float16)

    def _estimated(
        self,
        left: Tensor,
        right: Tensor,
        *,
        iters: int,
        last_only: bool,
        init_disparity: Tensor | None,
    ) -> StereoOutput:
        features = self._part(Leaner.FEATURES, self.features, left, right)
        volume = self._part(Leaner.VOLUME, self._filtered_volume, features)
        if init_disparity is None:
            init_disparity = soft_argmin(self._part(Leaner.VOLUME, self.classifier, volume))

        levels = self._part(Leaner.CONTEXT, self.context, left, features)
        states = [level.state for level in levels]
        contexts = [self.cam(level.context) * level.context for level in levels]
        attentions = [self.sam(context) for context in contexts]
        prepared = self.update_block.prepare(contexts)
        stem = channels_last(self.stem_2(left))
        lookup = GeometryLookup(volume, features.left.x4, features.right, **self.lookup)

        def step(states: list[Tensor], disparity: Tensor) -> tuple[list[Tensor], Tensor]:
            geometry = lookup(disparity)
            states, delta = self.update_block(states, disparity, geometry, attentions, prepared)
            return states, disparity + delta

        disparity = init_disparity
        refined: list[Tensor] = []
        for iteration in range(iters):
            states, disparity = self._part(Leaner.STEPS, step, states, disparity.detach())
            if not last_only or iteration == iters - 1:
                refined.append(recomputed(self._upsample, disparity, states[0], stem))
        return StereoOutput(init_disparity, refined)

    def _filtered_volume(self, features: Features) -> Tensor:
        return self.filtered(self._volume(features), features.left)

    def _volume(self, features: Features) -> Tensor:
        """Return the matching volume, (B, C, D, h, w)."""
        return recomputable(lambda: self._correlated(features))

    def _correlated(self, features: Features) -> Tensor:
        left, right = features.left.x4, features.right
        correlation = group_wise_correlation(
            left,
            right,
            num_groups=self.groups,
            max_disparity=self.candidates,
            normalize=self.normalize,
        )
        concatenation = concatenation_volume(
            self.proj_cmb(left), self.proj_cmb(right), max_disparity=self.candidates
        )
        return channels_last(torch.cat((correlation, concatenation), dim=1))

    def _upsample(self, disparity: Tensor, state: Tensor, stem: Tensor) -> Tensor:
        """Return `disparity` (B, 1, h, w) at full resolution, (B, 1, H, W) in px of the image."""
        mask = 0.25 * self.update_block.mask(state)
        logits = self.spx_gru(self.spx_2_gru(mask, stem))  # (B, 9, H, W)
        return convex_upsample(disparity, torch.softmax(logits, dim=1))
