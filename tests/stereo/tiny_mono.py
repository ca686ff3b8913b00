"""A small graph with the layers of a monocular network that engines treat each in their own way."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stereo.engines import base

SIZE = (28, 42)


class TinyMono(nn.Module):
    """Patches, a LayerNorm, a Linear, back to the size of the image by deconvolution."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.patches = nn.Conv2d(3, 16, 14, stride=14)
        self.norm = nn.LayerNorm(16)
        self.mix = nn.Linear(16, 16)
        self.grow = nn.ConvTranspose2d(16, 8, 14, stride=14)
        self.output_conv2 = nn.Conv2d(8, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.norm(self.patches(image).permute(0, 2, 3, 1))
        mixed = (tokens + torch.softmax(self.mix(tokens), -1)).permute(0, 3, 1, 2)
        return 1 + torch.sigmoid(self.output_conv2(self.grow(mixed)))[:, 0]


class _Graph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = TinyMono().eval()

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image)


def write_tiny_mono(path: Path, facts: dict[str, Any] | None = None) -> Path:
    """The graph, and a sidecar with some facts."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Graph(),
            (torch.randn(1, 3, *SIZE),),
            str(path),
            input_names=["images"],
            output_names=["outputs"],
            opset_version=17,
            dynamo=False,
        )
    if facts is not None:
        base.write_sidecar(path, {"kind": "graph", **facts})
    return path
