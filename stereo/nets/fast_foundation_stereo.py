"""FastFoundationStereo: features, matching volume, hourglass, iterative refinement.

Symbols: B batch, H, W rows and columns of the image (multiples of 32), h = H/4, w = W/4, D
disparity candidates (one per 4 px of the image). Images are normalised outside. Disparity is
positive, left x minus right x; it is not clamped.

Source: Fast-FoundationStereo (NVIDIA, 2025), re-implemented from a description of its layers;
state-dict names and default widths are those of the released `bp2` checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stereo.nets.aggregation import Hourglass, soft_argmin
from stereo.nets.blocks import (
    BatchNorm,
    ChannelAttention,
    ConvBlock,
    FeatureGate,
    ScoreConv3d,
    SpatialAttention,
    channels_last,
)
from stereo.nets.cost_volume import (
    GeometryLookup,
    concatenation_volume,
    group_wise_correlation,
)
from stereo.nets.edgenext import WIDTHS, EdgeNeXtFeatures, FeaturePyramid
from stereo.nets.gru import MotionEncoder, UpdateBlock
from stereo.nets.sampling import convex_upsample
from stereo.spec.networks import FastFoundationStereoSpec

DECODER_WIDTH = 2 * WIDTHS[0]
VIT_WIDTHS = {"vits": 32, "vitb": 64, "vitl": 128}  # channels the distilled ViT features once had
STRIDE = 32


class StereoOutput(NamedTuple):
    """Disparity before and after refinement.

    Attributes:
        initial: soft-argmin of the filtered volume, (B, 1, H/4, W/4), in px of that map.
        refined: one map per iteration, or only the last, (B, 1, H, W), in px of the image.
    """

    initial: Tensor
    refined: list[Tensor]


@dataclass(frozen=True)
class Widths:
    """Channel counts of the refinement with every `None` of the spec resolved."""

    hidden: int
    context: int
    motion: int
    gating: tuple[int, ...]
    head: tuple[int, tuple[int, ...]]
    attention: int

    @classmethod
    def of(cls, spec: FastFoundationStereoSpec) -> Widths:
        """Resolve the spec's widths; a width that is not given follows from `hidden_dims`."""
        base = spec.hidden_dims[0]
        hidden = spec.gru_hidden or base
        _, context = spec.cnet_conv04_widths or (base, base)
        motion = (spec.motion_encoder_final or base - 1) + 1  # the disparity itself is appended
        mid = spec.disp_head_intermediate or hidden
        return cls(
            hidden=hidden,
            context=context,
            motion=motion,
            gating=tuple(
                spec.gru_gating_conv_widths or (context + motion, context + motion + hidden)
            ),
            head=(mid, tuple(spec.disp_head_pwconv1_widths or (4 * mid, 4 * mid))),
            attention=spec.cam_mid_channels or context // 16,
        )


class Context(nn.Module):
    """Two parallel convolutions on the left features: initial GRU state and context features."""

    def __init__(self, in_channels: int, hidden: int, context: int) -> None:
        super().__init__()
        self.conv04 = nn.ModuleList(
            ConvBlock(nn.Conv2d, in_channels, width, 3, padding=1, norm=BatchNorm)
            for width in (hidden, context)
        )

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        state, context = self.conv04
        return torch.tanh(state(features)), F.relu(context(features))


class SuperpixelMerge(nn.Module):
    """Mask features at 1/4 and stem features at 1/2 to features at 1/2."""

    def __init__(self, in_channels: int, mid: int, skip: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = ConvBlock(
            nn.ConvTranspose2d, in_channels, mid, 4, stride=2, padding=1, norm=None
        )
        self.conv2 = ConvBlock(nn.Conv2d, mid + skip, out_channels, 3, padding=1, norm=None)

    def forward(self, mask: Tensor, stem: Tensor) -> Tensor:
        return self.conv2(torch.cat((self.conv1(mask), stem), dim=1))


class VolumeStem(nn.ModuleList):
    """Two 3-D convolutions on the raw volume and a gate from the left features."""

    def __init__(self, in_channels: int, c: int, feature_channels: int) -> None:
        super().__init__(
            (
                ConvBlock(nn.Conv3d, in_channels, c, 3, padding=1, norm=BatchNorm),
                ConvBlock(nn.Conv3d, c, c, 3, padding=1, norm=BatchNorm),
                FeatureGate(c, feature_channels),
            )
        )

    def forward(self, volume: Tensor, features: Tensor) -> Tensor:
        first, second, gate = self
        return gate(second(first(volume)), features)


class FastFoundationStereo(nn.Module):
    """Disparity of the left image of a rectified pair.

    Args:
        spec: widths, volume and lookup sizes; `spec.max_disparity` in px of the image gives D.
    """

    def __init__(self, spec: FastFoundationStereoSpec) -> None:
        super().__init__()
        self.candidates = spec.max_disparity // 4
        self.groups = spec.cv_group
        self.normalize = spec.gwc_feature_normalize
        self.lookup = {"levels": spec.corr_levels, "radius": spec.corr_radius}
        c = spec.volume_dim
        widths = Widths.of(spec)
        feature_widths = EdgeNeXtFeatures.widths(DECODER_WIDTH + VIT_WIDTHS[spec.encoder])
        x4 = feature_widths[0]

        self.feature = EdgeNeXtFeatures(x4)
        self.stem_2 = self._stem(*spec.stem_2_widths)
        self.proj_cmb = nn.Conv2d(x4, spec.concat_channel // 2, 1)
        self.corr_feature_att = VolumeStem(spec.cv_group + spec.concat_channel, c, x4)
        self.cost_agg = Hourglass(c, feature_widths=feature_widths, candidates=self.candidates)
        self.classifier = nn.Sequential(ScoreConv3d(c))
        self.cnet = Context(x4, widths.hidden, widths.context)
        self.cam = ChannelAttention(widths.context, widths.attention)
        self.sam = SpatialAttention()
        self.update_block = UpdateBlock(
            encoder=MotionEncoder(
                volume_dim=c,
                **self.lookup,
                widths=spec.motion_encoder_widths,
                final=widths.motion - 1,
            ),
            context=widths.context,
            motion=widths.motion,
            hidden=widths.hidden,
            gating=widths.gating,
            head=widths.head,
            mask=spec.mask_widths,
        )
        self.spx_2_gru = SuperpixelMerge(*spec.spx_2_gru_widths)
        self.spx_gru = nn.Sequential(
            nn.ConvTranspose2d(spec.spx_2_gru_widths[3], spec.spx_gru_out, 4, stride=2, padding=1)
        )
        self._build_unused(spec)

    @staticmethod
    def _stem(first: int, second: int) -> nn.Sequential:
        """Return the half-resolution features of the left image."""
        return nn.Sequential(
            ConvBlock(nn.Conv2d, 3, first, 3, stride=2, padding=1, norm=nn.InstanceNorm2d),
            nn.Conv2d(first, second, 3, padding=1, bias=False),
            nn.InstanceNorm2d(second),
            nn.ReLU(),
        )

    def _build_unused(self, spec: FastFoundationStereoSpec) -> None:
        """Create what released checkpoints contain and `forward` leaves out."""
        self.context_zqr_convs = nn.ModuleList(
            nn.Conv2d(width, 3 * width, 3, padding=1) for width in spec.hidden_dims
        )
        offsets = torch.arange(-spec.corr_radius, spec.corr_radius + 1, dtype=torch.int8)
        self.register_buffer("dx", offsets.view(1, 1, -1, 1))

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
        features, right_x4 = self._features(left, right)
        volume = self._filtered_volume(features, right_x4)
        if init_disparity is None:
            init_disparity = soft_argmin(self.classifier(volume))

        state, context = self.cnet(features.x4)
        context = self.cam(context) * context
        attention = self.sam(context)
        prepared = self.update_block.prepare(context)
        stem = channels_last(self.stem_2(left))
        lookup = GeometryLookup(volume, features.x4, right_x4, **self.lookup)

        disparity = init_disparity
        refined: list[Tensor] = []
        for iteration in range(iters):
            disparity = disparity.detach()
            geometry = lookup(disparity)
            state, delta = self.update_block(state, disparity, geometry, attention, prepared)
            disparity = disparity + delta
            if not last_only or iteration == iters - 1:
                refined.append(self._upsample(disparity, state, stem))
        return StereoOutput(init_disparity, refined)

    def _features(self, left: Tensor, right: Tensor) -> tuple[FeaturePyramid, Tensor]:
        """Return the left pyramid and the right features at 1/4."""
        images = channels_last(torch.cat((left, right)))
        pyramid = self.feature(images)
        batch = left.shape[0]
        return FeaturePyramid(*(level[:batch] for level in pyramid)), pyramid.x4[batch:]

    def _filtered_volume(self, left: FeaturePyramid, right: Tensor) -> Tensor:
        """Return the filtered matching volume, (B, c, D, h, w)."""
        correlation = group_wise_correlation(
            left.x4,
            right,
            num_groups=self.groups,
            max_disparity=self.candidates,
            normalize=self.normalize,
        )
        concatenation = concatenation_volume(
            self.proj_cmb(left.x4), self.proj_cmb(right), max_disparity=self.candidates
        )
        volume = channels_last(torch.cat((correlation, concatenation), dim=1))
        return self.cost_agg(self.corr_feature_att(volume, left.x4), left)

    def _upsample(self, disparity: Tensor, state: Tensor, stem: Tensor) -> Tensor:
        """Return `disparity` (B, 1, h, w) at full resolution, (B, 1, H, W) in px of the image."""
        mask = 0.25 * self.update_block.mask(state)
        logits = self.spx_gru(self.spx_2_gru(mask, stem))  # (B, 9, H, W)
        return convex_upsample(disparity, torch.softmax(logits, dim=1))
