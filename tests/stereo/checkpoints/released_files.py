"""Weight files with the names and shapes of published ones, written by tests.

Every tensor holds one number of its own, so that a tensor in the wrong place shows. Such a tensor
is stored as one number where the loader accepts that, and a file takes a few megabytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stereo.checkpoints.archive import SMALL_VIEW

State = dict[str, Tensor]


def numbered(shapes: Mapping[str, Tensor], first: int = 1) -> State:
    """Tensors of the given shapes: the i-th holds `first + i` everywhere.

    A shortcut's norm is one tensor under two names.
    """
    state = {
        name: _filled(tensor, first + index) for index, (name, tensor) in enumerate(shapes.items())
    }
    twins = {name: name.replace(".downsample.1.", ".norm3.") for name in state}
    return {name: state.get(twins[name], tensor) for name, tensor in state.items()}


def _filled(like: Tensor, value: int) -> Tensor:
    one = torch.full((1,) * like.ndim, value, dtype=like.dtype)
    return one.expand(like.shape) if like.numel() <= SMALL_VIEW else one.repeat(like.shape)


def below(prefix: str, state: Mapping[str, Tensor]) -> State:
    """Tensors whose names begin with `prefix`, without it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def written(path: Path, payload: Mapping[str, Any]) -> Path:
    """Save as published files are, without our `format_version`."""
    torch.save(dict(payload), path)
    return path


def snapshot(network: nn.Module) -> State:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def changed(network: nn.Module, before: Mapping[str, Tensor]) -> set[str]:
    """Names of the tensors that differ from a snapshot."""
    return {n for n, tensor in network.state_dict().items() if not torch.equal(tensor, before[n])}


def assert_holds(network: nn.Module, expected: Mapping[str, Tensor]) -> None:
    own = network.state_dict()
    wrong = [name for name, tensor in expected.items() if not torch.equal(own[name], tensor)]
    assert wrong == []


def names_starting(prefixes: Iterable[str], state: Mapping[str, Tensor]) -> set[str]:
    return {name for name in state if name.startswith(tuple(prefixes))}
