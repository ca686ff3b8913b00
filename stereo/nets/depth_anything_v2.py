"""Depth Anything V2: depth of a single image, relative or in metres (monocular networks).

Symbols: B batch, H, W image size in px (multiples of 14). Images are normalised outside.

Both networks are a DINOv2 transformer (`pretrained`) with a DPT head; they differ in the last
activation and in the name of the head in checkpoints.

Source: Depth Anything V2, Yang et al., NeurIPS 2024.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stereo.nets.blocks import full_precision, spatial_shape
from stereo.nets.dpt import DPTHead
from stereo.nets.vit import PATCH, VisionTransformer
from stereo.spec.networks import MetricDepthSpec, MonoBackboneSpec, RelativeDepthSpec


def _encoder(spec: MetricDepthSpec | RelativeDepthSpec, *, recompute: bool) -> VisionTransformer:
    backbone = spec.mono_backbone
    return VisionTransformer(
        spec.encoder, blocks=backbone.blocks, width=backbone.width, recompute=recompute
    )


def _head(encoder: str, backbone: MonoBackboneSpec) -> DPTHead:
    return DPTHead(
        encoder,
        use_bn=backbone.use_bn,
        use_clstoken=backbone.use_clstoken,
        token_width=backbone.width,
    )


def _score(image: Tensor, encoder: VisionTransformer, head: DPTHead) -> Tensor:
    """Signed scores (B, 1, H, W) of an image."""
    height, width = spatial_shape(image)
    return head(encoder(image), height // PATCH, width // PATCH)


class RelativeDepthAnything(nn.Module):
    """Inverse depth (B, 1, H, W) up to an unknown scale and shift: >= 0, larger is nearer.

    Args:
        spec: section `model`.
        recompute: see `VisionTransformer`.
    """

    def __init__(self, spec: RelativeDepthSpec, *, recompute: bool = False) -> None:
        super().__init__()
        self.pretrained = _encoder(spec, recompute=recompute)
        self.depth_head = _head(spec.encoder, spec.mono_backbone)
        # Fresh scores differ by 0.01 around the bias of their layer. Where that is negative, as for
        # every second seed, the ReLU is 0 everywhere and so is its gradient.
        last = self.depth_head.scratch.output_conv2[-1]
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        nn.init.ones_(last.bias)

    def forward(self, image: Tensor) -> Tensor:
        return F.relu(full_precision(_score(image, self.pretrained, self.depth_head)))


class MetricDepthAnything(nn.Module):
    """Depth (B, 1, H, W) in m, between 0 and `max_depth`, both excluded.

    Args:
        spec: section `model`.
        max_depth: m; part of what the weights mean.
        recompute: see `VisionTransformer`.
    """

    def __init__(self, spec: MetricDepthSpec, *, max_depth: float, recompute: bool = False) -> None:
        super().__init__()
        self.max_depth = max_depth
        self.pretrained = _encoder(spec, recompute=recompute)
        self.metric_depth_head = _head(spec.encoder, spec.mono_backbone)

    def forward(self, image: Tensor) -> Tensor:
        score = full_precision(_score(image, self.pretrained, self.metric_depth_head))
        return torch.sigmoid(score) * self.max_depth
