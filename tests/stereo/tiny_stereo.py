"""A small real stereo network with the interface of the big ones: quick to export and to build."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stereo.spec.experiment import ExperimentSpec

HEIGHT, WIDTH, CANDIDATES, CHANNELS = 32, 64, 8, 8


class Output(NamedTuple):
    initial: Tensor
    refined: list[Tensor]


class TinyStereo(nn.Module):
    """Normalised features at 1/4, correlation by gather, soft-argmin, convolutional refinement."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.features = nn.Sequential(
            nn.Conv2d(3, CHANNELS, 3, stride=4, padding=1), nn.InstanceNorm2d(CHANNELS), nn.GELU()
        )
        self.refine = nn.Conv2d(1 + CHANNELS, 1, 3, padding=1)
        self.unused = nn.Linear(100, 100)

    def forward(
        self, left: Tensor, right: Tensor, *, iters: int, last_only: bool = False
    ) -> Output:
        both = torch.cat((left, right))
        left_features, right_features = F.normalize(self.features(both), dim=1).chunk(2)
        match = torch.arange(WIDTH // 4)[None] - torch.arange(CANDIDATES)[:, None]  # (D, w)
        shifted = right_features[..., match.clamp(min=0)]  # (B, C, h, D, w)
        volume = (left_features.unsqueeze(3) * shifted).sum(1).masked_fill(match < 0, 0.0)
        weights = torch.softmax(10 * volume, dim=2)
        disparity = (weights * torch.arange(CANDIDATES)[:, None]).sum(2)[:, None]
        refined: list[Tensor] = []
        for _ in range(iters):
            disparity = disparity + self.refine(torch.cat((disparity, left_features), dim=1))
            refined.append(4 * F.interpolate(disparity, scale_factor=4, mode="bilinear"))
        return Output(disparity, refined[-1:] if last_only else refined)


def tiny_spec(*, batch_size: int = 1, opset: int = 17) -> ExperimentSpec:
    spec = ExperimentSpec()
    spec.export.input_height, spec.export.input_width = HEIGHT, WIDTH
    spec.export.batch_size, spec.export.opset_version = batch_size, opset
    spec.export.valid_iters = 2
    return spec
