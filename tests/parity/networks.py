"""The networks that a kit can describe, and how one gets the kit's weights.

Weights are generated from tensor names by `tests/golden/fill.py`, written to a checkpoint and
loaded through the project's own loader.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stereo.checkpoints import files
from stereo.checkpoints.load import load_into
from stereo.nets import names
from stereo.nets.depth_anything_v2 import MetricDepthAnything, RelativeDepthAnything
from stereo.nets.fast_foundation_stereo import FastFoundationStereo
from stereo.nets.foundation_stereo import FoundationStereo
from stereo.spec.networks import (
    FastFoundationStereoSpec,
    FoundationStereoSpec,
    MetricDepthSpec,
    RelativeDepthSpec,
)
from tests.golden.fill import checksum, fill_state_dict
from tests.parity.checks import KitError


@dataclass(frozen=True)
class Network:
    """How to make a network from the model section of a kit.

    Attributes:
        spec_class: dataclass of the section.
        build: section (and, where the network needs it, `max_depth` in m) -> network.
        rename: released names -> ours.
    """

    spec_class: type[Any]
    build: Callable[..., nn.Module]
    rename: Callable[[dict[str, Tensor]], dict[str, Tensor]]


NETWORKS: dict[str, Network] = {
    "FastFoundationStereo": Network(
        FastFoundationStereoSpec, FastFoundationStereo, names.rename_fast_foundation_stereo
    ),
    "FoundationStereo": Network(
        FoundationStereoSpec, FoundationStereo, names.rename_foundation_stereo
    ),
    "MetricDepthAnything": Network(MetricDepthSpec, MetricDepthAnything, names.rename_metric_depth),
    "RelativeDepthAnything": Network(
        RelativeDepthSpec, RelativeDepthAnything, names.rename_relative_depth
    ),
}


def find_network(model_type: str) -> Network:
    """Row of the network that a kit describes."""
    if model_type not in NETWORKS:
        raise KitError(f"model_type {model_type}: this project builds {', '.join(NETWORKS)}")
    return NETWORKS[model_type]


def model_spec(spec_class: type[Any], model: dict[str, Any]) -> Any:
    """Build the model section of the spec from a kit's header."""
    defaults = spec_class()
    values: dict[str, Any] = {}
    for key, value in model.items():
        if not hasattr(defaults, key):
            raise KitError(f"header.model.{key} is no field of {spec_class.__name__}")
        section = getattr(defaults, key)
        values[key] = type(section)(**value) if dataclasses.is_dataclass(section) else value
    return spec_class(**values)


def load_filled(
    network: nn.Module, row: Network, manifest: dict[str, Any], expected: str
) -> nn.Module:
    """Load the weights of a manifest through the project's loader.

    Args:
        network: fresh network.
        row: where the network comes from.
        manifest: `tensors` with name, shape and dtype.
        expected: checksum of the filled weights.
    """
    filled = fill_state_dict(manifest)
    found = checksum(filled)
    if found != expected:
        raise KitError(f"checksum of the filled weights is {found}, the kit says {expected}")
    compare_names(manifest, network)
    integers = {
        tensor["name"]: torch.zeros(tensor["shape"], dtype=torch.int64)
        for tensor in manifest["tensors"]
        if tensor["dtype"] == "int64"
    }
    state = {name: torch.from_numpy(value) for name, value in filled.items()} | integers
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "filled.pth"
        files.write(checkpoint, {"state_dict": {f"model.{k}": v for k, v in state.items()}})
        load_into(network, checkpoint, rename=row.rename)
    return network.eval()


def compare_names(manifest: dict[str, Any], network: nn.Module) -> None:
    """Compare names and shapes in both directions."""
    expected = {tensor["name"]: tuple(tensor["shape"]) for tensor in manifest["tensors"]}
    found = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    faults = [f"missing {name}" for name in expected if name not in found]
    faults += [f"unexpected {name}" for name in found if name not in expected]
    faults += [
        f"{name}: shape {found[name]}, the kit says {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if faults:
        raise KitError("names and shapes differ from the kit:\n" + "\n".join(faults))
