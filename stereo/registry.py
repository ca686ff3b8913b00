"""The networks by key: the only place that knows a model by name.

A row says how to build a network from its spec section, which released names it accepts and which
stride its input sides must keep. torch is imported when a network is built, not before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stereo.spec.networks import FastFoundationStereoSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stereo.spec.experiment import ExperimentSpec


@dataclass(frozen=True)
class ModelEntry:
    """What the rest of the package needs to know about one network.

    Attributes:
        key: `ffs`, as in `MODEL=` and the folder names.
        model_type: the long name inside a spec (`model.model_type`).
        spec_class: dataclass of the spec's `model` section.
        build: spec section -> network with fresh weights.
        load_release: released names -> ours; leaves our own names unchanged.
        stride: input height and width are multiples of this many pixels.
    """

    key: str
    model_type: str
    spec_class: type[Any]
    build: Callable[[Any], nn.Module]
    load_release: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    stride: int


def _build_fast_foundation_stereo(spec: FastFoundationStereoSpec) -> nn.Module:
    from stereo.nets.fast_foundation_stereo import FastFoundationStereo

    return FastFoundationStereo(spec)


def _fast_foundation_stereo_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    from stereo.nets.names import rename_fast_foundation_stereo

    return rename_fast_foundation_stereo(state)


MODELS: dict[str, ModelEntry] = {
    entry.key: entry
    for entry in (
        ModelEntry(
            key="ffs",
            model_type="FastFoundationStereo",
            spec_class=FastFoundationStereoSpec,
            build=_build_fast_foundation_stereo,
            load_release=_fast_foundation_stereo_names,
            stride=32,
        ),
    )
}


def entry_for(spec: ExperimentSpec) -> ModelEntry:
    """Row of the network that `spec.model` describes."""
    return next(entry for entry in MODELS.values() if isinstance(spec.model, entry.spec_class))
