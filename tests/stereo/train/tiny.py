"""A small real network behind the forward signature of the stereo networks."""

from __future__ import annotations

import torch
from torch import nn

from stereo.nets.stereo_network import StereoOutput
from stereo.registry import ModelEntry
from stereo.spec.networks import FastFoundationStereoSpec
from stereo.tasks import STEREO


class TinyStereo(nn.Module):
    """Three convolutions at 1/4 resolution; dropout makes the random state matter."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(6, 16, 8, stride=4, padding=2)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Conv2d(16, 1, 3, padding=1)
        self.update = nn.Conv2d(17, 1, 3, padding=1)

    def forward(self, left, right, *, iters, last_only=False, init_disparity=None) -> StereoOutput:
        features = self.dropout(self.features(torch.cat([left, right], 1)).relu())
        disparity = initial = self.head(features)
        refined = []
        for _ in range(iters):
            disparity = disparity + self.update(torch.cat([features, disparity.detach()], 1))
            refined.append(nn.functional.interpolate(4 * disparity, scale_factor=4.0))
        return StereoOutput(initial, refined[-1:] if last_only else refined)


TINY = ModelEntry(
    key="tiny",
    model_type="TinyStereo",
    spec_class=FastFoundationStereoSpec,
    load_task=lambda: STEREO,
    build=lambda _spec: TinyStereo(),
    load_release=lambda state: state,
    release_faults=lambda _spec: [],
    stride=32,
)
