"""FastFoundationStereo: the distilled, pruned form of FoundationStereo, without a ViT.

Symbols as in `stereo_network.py`.

Source: Fast-FoundationStereo (NVIDIA, 2025), re-implemented from a description of its layers;
state-dict names and default widths are those of the released `bp2` checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stereo.nets.aggregation import PrunedHourglass
from stereo.nets.blocks import (
    BatchNorm,
    ChannelAttention,
    ConvBlock,
    FeatureGate,
    ScoreConv3d,
    SpatialAttention,
    channels_last,
)
from stereo.nets.edgenext import EdgeNeXtFeatures, FeaturePyramid
from stereo.nets.gru import MotionEncoder, UpdateBlock
from stereo.nets.stereo_network import (
    VIT_WIDTHS,
    Features,
    Level,
    StereoNetwork,
    SuperpixelMerge,
    half_resolution_stem,
)
from stereo.spec.networks import FastFoundationStereoSpec


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

    def forward(self, features: Tensor) -> Level:
        state, context = self.conv04
        return Level(torch.tanh(state(features)), F.relu(context(features)))


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


class FastFoundationStereo(StereoNetwork):
    """Disparity of the left image of a rectified pair.

    Args:
        spec: widths, volume and lookup sizes; `spec.max_disparity` in px of the image gives D.
    """

    def __init__(self, spec: FastFoundationStereoSpec) -> None:
        super().__init__()
        self.candidates = spec.max_disparity // 4
        self.groups = spec.cv_group
        self.normalize = spec.gwc_feature_normalize
        self.low_memory = spec.low_memory
        self.mixed_precision = spec.mixed_precision
        self.lookup = {"levels": spec.corr_levels, "radius": spec.corr_radius}
        c = spec.volume_dim
        widths = Widths.of(spec)
        feature_widths = EdgeNeXtFeatures.widths(EdgeNeXtFeatures.WIDTH + VIT_WIDTHS[spec.encoder])
        x4 = feature_widths[0]

        self.feature = EdgeNeXtFeatures(x4)
        self.stem_2 = half_resolution_stem(3, *spec.stem_2_widths)
        self.proj_cmb = nn.Conv2d(x4, spec.concat_channel // 2, 1)
        self.corr_feature_att = VolumeStem(spec.cv_group + spec.concat_channel, c, x4)
        self.cost_agg = PrunedHourglass(
            c, feature_widths=feature_widths, candidates=self.candidates
        )
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
        mask, mid, skip, out = spec.spx_2_gru_widths
        mix = ConvBlock(nn.Conv2d, mid + skip, out, 3, padding=1, norm=None)
        self.spx_2_gru = SuperpixelMerge(mask, mid, mix)
        self.spx_gru = nn.Sequential(
            nn.ConvTranspose2d(out, spec.spx_gru_out, 4, stride=2, padding=1)
        )
        self._build_unused(spec)

    def _build_unused(self, spec: FastFoundationStereoSpec) -> None:
        """Create what released checkpoints contain and `forward` leaves out."""
        self.context_zqr_convs = nn.ModuleList(
            nn.Conv2d(width, 3 * width, 3, padding=1) for width in spec.hidden_dims
        )
        offsets = torch.arange(-spec.corr_radius, spec.corr_radius + 1, dtype=torch.int8)
        self.register_buffer("dx", offsets.view(1, 1, -1, 1))

    def features(self, left: Tensor, right: Tensor) -> Features:
        pyramid = self.feature(channels_last(torch.cat((left, right))))
        batch = left.shape[0]
        return Features(FeaturePyramid(*(x[:batch] for x in pyramid)), pyramid.x4[batch:])

    def filtered(self, volume: Tensor, features: FeaturePyramid) -> Tensor:
        return self.cost_agg(self.corr_feature_att(volume, features.x4), features)

    def context(self, left: Tensor, features: Features) -> list[Level]:
        return [self.cnet(features.left.x4)]
