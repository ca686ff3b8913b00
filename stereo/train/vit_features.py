"""Whether a run keeps the features of the frozen ViT, and why not (`train.cache_vit_features`)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from stereo.spec.train import FoundationStereoTrainSpec

if TYPE_CHECKING:
    from torch import nn

    from stereo.data.loaders import DataModule
    from stereo.spec.experiment import ExperimentSpec

log = logging.getLogger(__name__)


def keep_vit_features(network: nn.Module, spec: ExperimentSpec, data: DataModule) -> None:
    """Let `network` keep them if it has such a branch, the spec wants it and images come again."""
    if not isinstance(spec.train, FoundationStereoTrainSpec):
        return
    if spec.train.cache_vit_features == "off":
        return
    if reason := _hindrance(spec, data):
        log.info("train.cache_vit_features: features are not kept, %s", reason)
        return
    from stereo.nets.foundation_stereo import ViTBranch

    for module in network.modules():
        if isinstance(module, ViTBranch):
            module.keep_features()
            log.info("train.cache_vit_features: features are kept from the first epoch on")


def _hindrance(spec: ExperimentSpec, data: DataModule) -> str | None:
    """Why no image would come again or be recognised; None where it would."""
    if spec.model.compile:
        return "model.compile makes one graph of the network, and a look-up is none"
    if fields := data.varying_fields():
        return f"the images differ from epoch to epoch by {', '.join(fields)}"
    return None
