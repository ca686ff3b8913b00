"""FoundationStereo: a frozen ViT beside the CNN, a transformer beside the hourglass.

Symbols as in `stereo_network.py`; V channels of the ViT map.

Two released networks exist, `tao` and `public`, with equal names and shapes but for some norms;
`VARIANTS` lists in what they differ. FoundationStereo stores modules that its forward pass does not
use; released checkpoints contain them.

Source: FoundationStereo, Wen et al., CVPR 2025, re-implemented from a description of its layers;
state-dict names are those of the released checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stereo.nets.aggregation import (
    DisparityAttention,
    GroupAttention,
    HeadAttention,
    Hourglass,
    HourglassVariant,
    RowAttention,
)
from stereo.nets.blocks import (
    BatchNorm,
    ChannelAttention,
    ConvBlock,
    FeatureGate,
    Norm,
    Residual,
    ResidualBlock,
    SpatialAttention,
    WideScoreConv3d,
    channels_last,
    spatial_shape,
)
from stereo.nets.depth_anything_v2 import RelativeDepthAnything
from stereo.nets.edgenext import EdgeNeXtDecoder, FeaturePyramid
from stereo.nets.feature_cache import FeatureCache
from stereo.nets.gru import MotionEncoder, UpdateBlock
from stereo.nets.sampling import resize
from stereo.nets.stereo_network import (
    VIT_WIDTHS,
    Features,
    Level,
    StereoNetwork,
    SuperpixelMerge,
    half_resolution_stem,
)
from stereo.nets.vit import PATCH
from stereo.spec.networks import (
    FoundationStereoSpec,
    MonoBackboneSpec,
    RelativeDepthSpec,
    StereoBackboneSpec,
)

HIDDEN = 128  # channels of state and context at every level
CONCAT = 24  # channels of the concatenation volume
VIT_STEP = 112  # px; multiple of the patch and of 16
VIT_LIMIT = 1344  # px; largest side the ViT sees
LAYOUTS: dict[str, type[DisparityAttention]] = {
    "rows": RowAttention,
    "groups": GroupAttention,
    "mha": HeadAttention,
}


@dataclass(frozen=True)
class Variant:
    """In what the released networks differ.

    Attributes:
        norm_2d: norm of `cnet.conv2`; the gates have theirs in `hourglass`.
        norm_3d: norm of `corr_stem.1` and `classifier.0`.
        mixes_transposed: `spx_2_gru.conv2` is a transposed convolution without activation.
        hourglass: differences below the volume.
    """

    norm_2d: Norm
    norm_3d: Norm
    mixes_transposed: bool
    hourglass: HourglassVariant


VARIANTS = {
    "tao": Variant(
        norm_2d=nn.InstanceNorm2d,
        norm_3d=nn.InstanceNorm3d,
        mixes_transposed=True,
        hourglass=HourglassVariant(
            gate_norm=nn.InstanceNorm2d,
            merge=nn.ConvTranspose3d,
            patch_shift=1,
            attention=RowAttention,
            attends_patches=False,
        ),
    ),
    "public": Variant(
        norm_2d=BatchNorm,
        norm_3d=BatchNorm,
        mixes_transposed=False,
        hourglass=HourglassVariant(
            gate_norm=BatchNorm,
            merge=nn.Conv3d,
            patch_shift=0,
            attention=GroupAttention,
            attends_patches=True,
        ),
    ),
}
VARIANTS["auto"] = VARIANTS["tao"]  # without a checkpoint that decides


def variant_of(spec: FoundationStereoSpec) -> Variant:
    """Return the variant of a spec with its attention layout."""
    variant = VARIANTS[spec.variant]
    if spec.attention_layout == "auto":
        return variant
    attention = LAYOUTS[spec.attention_layout]
    return replace(variant, hourglass=replace(variant.hourglass, attention=attention))


def vit_size(height: int, width: int) -> tuple[int, int]:
    """Size in px at which the ViT sees an image: multiples of 112, the larger side at most 1344."""
    height, width = (math.ceil(side / VIT_STEP) * VIT_STEP for side in (height, width))
    larger = max(height, width)
    if larger <= VIT_LIMIT:
        return height, width
    # The rounded sides are scaled, not those of the image; the larger one becomes the limit.
    height, width = (
        math.ceil(side * VIT_LIMIT / larger / VIT_STEP) * VIT_STEP for side in (height, width)
    )
    return height, width


class ViTBranch(nn.Module):
    """Frozen Depth Anything V2: normalised images (B, 3, H, W) to (B, V, H/4, W/4).

    It stays in evaluation mode and gets no gradient.

    Attributes:
        cache: features of images seen before; see `keep_features`.
    """

    cache: FeatureCache | None = None

    def __init__(self, encoder: str, backbone: StereoBackboneSpec) -> None:
        super().__init__()
        parts = MonoBackboneSpec(use_bn=backbone.use_bn, use_clstoken=backbone.use_clstoken)
        self.depth_anything = RelativeDepthAnything(
            RelativeDepthSpec(encoder=encoder, mono_backbone=parts)  # pyright: ignore[reportArgumentType]
        )
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> ViTBranch:
        """Stay in evaluation mode."""
        del mode
        return super().train(False)

    def keep_features(self) -> None:
        """Keep the features of images until other weights are loaded."""
        cache = FeatureCache(self._features)
        self.cache = cache
        self.register_load_state_dict_post_hook(lambda *_: cache.forget())

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        return self._features(image) if self.cache is None else self.cache(image)

    def _features(self, image: Tensor) -> Tensor:
        height, width = spatial_shape(image)
        size = vit_size(height, width)
        image = F.interpolate(image, size=size, mode="bicubic")
        tokens = self.depth_anything.pretrained(image)
        rows, columns = (side // PATCH for side in size)
        features = self.depth_anything.depth_head.features(tokens, rows, columns)
        return resize(features, (height // 4, width // 4))


class SemanticPyramid(NamedTuple):
    """Feature pyramid and the ViT map that entered its finest level."""

    pyramid: FeaturePyramid
    semantic: Tensor


class SemanticFeatures(EdgeNeXtDecoder):
    """EdgeNeXt features whose finest level sees the ViT map: 96 + V channels."""

    def __init__(self, encoder: str, backbone: StereoBackboneSpec) -> None:
        super().__init__()
        self.dino = ViTBranch(encoder, backbone)
        width = self.WIDTH + VIT_WIDTHS[encoder]
        self.conv4 = nn.Sequential(
            ConvBlock(nn.Conv2d, width, width, 3, padding=1, norm=nn.InstanceNorm2d),
            ResidualBlock(width, width, norm=nn.InstanceNorm2d),
            ResidualBlock(width, width, norm=nn.InstanceNorm2d),
        )

    def forward(self, image: Tensor) -> SemanticPyramid:
        semantic = channels_last(self.dino(image))
        decoded = self.decode(image)
        x4 = self.conv4(torch.cat((decoded.x4, semantic), dim=1))
        return SemanticPyramid(decoded._replace(x4=channels_last(x4)), semantic)


def _stage(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Return two residual blocks, the first of them with the stride."""
    return nn.Sequential(
        ResidualBlock(in_channels, out_channels, norm=BatchNorm, stride=stride),
        ResidualBlock(out_channels, out_channels, norm=BatchNorm),
    )


class ContextNetwork(nn.Module):
    """Left image and its ViT map to state and context features at 1/4, 1/8 and 1/16.

    Args:
        vit_width: V.
        hidden: widths of state and context, from coarse to fine.
        norm: norm of the layer that takes in the ViT map.
    """

    def __init__(self, vit_width: int, hidden: Sequence[int], norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, padding=3)
        self.norm1 = BatchNorm(64)
        self.layer1 = _stage(64, 64, 1)
        self.layer2 = _stage(64, 96, 2)
        self.layer3 = _stage(96, HIDDEN, 2)
        self.conv2 = ConvBlock(nn.Conv2d, HIDDEN + vit_width, HIDDEN, 3, padding=1, norm=norm)
        self.layer4 = _stage(HIDDEN, HIDDEN, 2)
        self.layer5 = _stage(HIDDEN, HIDDEN, 2)
        coarse, middle, fine = hidden
        self.outputs04 = self._heads(fine, residual=True)
        self.outputs08 = self._heads(middle, residual=True)
        self.outputs16 = self._heads(coarse, residual=False)
        # In released checkpoints, never used.
        self.down = nn.Sequential(nn.Conv2d(HIDDEN, HIDDEN, 4, stride=4), BatchNorm(HIDDEN))
        self.norm = BatchNorm(2 * HIDDEN)

    @staticmethod
    def _heads(width: int, *, residual: bool) -> nn.ModuleList:
        """Return the heads of one level: initial state, context features."""

        def head() -> nn.Module:
            conv = nn.Conv2d(HIDDEN, width, 3, padding=1)
            if not residual:
                return conv
            return nn.Sequential(ResidualBlock(HIDDEN, HIDDEN, norm=BatchNorm), conv)

        return nn.ModuleList(head() for _ in range(2))

    def forward(self, image: Tensor, semantic: Tensor, levels: int) -> list[Level]:
        x = F.relu(self.norm1(channels_last(self.conv1(image))))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = self.conv2(torch.cat((x, semantic), dim=1))
        found = [self._level(self.outputs04, x)]
        if levels > 1:
            x = self.layer4(x)
            found.append(self._level(self.outputs08, x))
        if levels > 2:
            x = self.layer5(x)
            found.append(self._level(self.outputs16, x))
        return found

    @staticmethod
    def _level(heads: nn.ModuleList, x: Tensor) -> Level:
        state, context = heads
        return Level(torch.tanh(state(x)), F.relu(context(x)))


class FoundationStereo(StereoNetwork):
    """Disparity of the left image of a rectified pair.

    Args:
        spec: variant, volume and lookup sizes; `spec.max_disparity` in px of the image gives D.
    """

    normalize = True

    def __init__(self, spec: FoundationStereoSpec) -> None:
        super().__init__()
        variant = variant_of(spec)
        self.levels = spec.n_gru_layers
        self.candidates = spec.max_disparity // 4
        self.groups = spec.cv_group
        self.low_memory = spec.low_memory
        self.mixed_precision = spec.mixed_precision
        self.lookup = {"levels": spec.corr_levels, "radius": spec.corr_radius}
        c, vit_width = spec.volume_dim, VIT_WIDTHS[spec.encoder]
        feature_widths = SemanticFeatures.widths(SemanticFeatures.WIDTH + vit_width)
        x4 = feature_widths[0]

        self.feature = SemanticFeatures(spec.encoder, spec.stereo_backbone)
        self.stem_2 = half_resolution_stem(3, 32, 32)
        self.proj_cmb = nn.Conv2d(x4, CONCAT // 2, 1)
        self.corr_stem = nn.Sequential(
            nn.Conv3d(spec.cv_group + CONCAT, c, 1),
            ConvBlock(nn.Conv3d, c, c, 3, padding=1, norm=variant.norm_3d),
            Residual(nn.Conv3d, c, norm=BatchNorm),
            Residual(nn.Conv3d, c, norm=BatchNorm),
        )
        self.corr_feature_att = FeatureGate(c, x4, norm=variant.hourglass.gate_norm)
        self.cost_agg = Hourglass(
            c,
            feature_widths=feature_widths,
            candidates=self.candidates,
            variant=variant.hourglass,
        )
        self.classifier = nn.Sequential(
            ConvBlock(nn.Conv3d, c, c // 2, 3, padding=1, norm=variant.norm_3d),
            Residual(nn.Conv3d, c // 2, norm=BatchNorm),
            WideScoreConv3d(c // 2, 7),
        )
        self.cnet = ContextNetwork(vit_width, spec.hidden_dims, variant.norm_2d)
        self.cam = ChannelAttention(HIDDEN, HIDDEN // 16)
        self.sam = SpatialAttention()
        self.update_block = UpdateBlock(
            encoder=MotionEncoder(
                volume_dim=c, **self.lookup, widths=(256, 256, 64, 64), final=HIDDEN - 1
            ),
            context=HIDDEN,
            motion=HIDDEN,
            hidden=HIDDEN,
            gating=None,
            head=(HIDDEN, (4 * HIDDEN, 4 * HIDDEN)),
            mask=(64, 32),
            levels=self.levels,
        )
        self.spx_2_gru = SuperpixelMerge(32, 32, self._mix(variant.mixes_transposed))
        self.spx_gru = nn.Sequential(nn.ConvTranspose2d(64, 9, 4, stride=2, padding=1))
        self._build_unused(spec)

    @staticmethod
    def _mix(transposed: bool) -> ConvBlock:
        """Return the layer that mixes mask and stem features at half resolution."""
        conv = nn.ConvTranspose2d if transposed else nn.Conv2d
        return ConvBlock(conv, 64, 64, 3, padding=1, norm=None, activation=not transposed)

    def _build_unused(self, spec: FoundationStereoSpec) -> None:
        """Create what released checkpoints contain and `forward` leaves out."""
        self.stem_4 = half_resolution_stem(32, 48, 48)
        self.context_zqr_convs = nn.ModuleList(
            nn.Conv2d(width, 3 * width, 3, padding=1)
            for width in spec.hidden_dims[: spec.n_gru_layers]
        )

    def features(self, left: Tensor, right: Tensor) -> Features:
        pyramid, semantic = self.feature(channels_last(torch.cat((left, right))))
        batch = left.shape[0]
        return Features(
            FeaturePyramid(*(x[:batch] for x in pyramid)), pyramid.x4[batch:], semantic[:batch]
        )

    def filtered(self, volume: Tensor, features: FeaturePyramid) -> Tensor:
        volume = self.corr_feature_att(self.corr_stem(volume), features.x4)
        return self.cost_agg(volume, features)

    def context(self, left: Tensor, features: Features) -> list[Level]:
        assert features.semantic is not None
        return self.cnet(channels_last(left), features.semantic, self.levels)
