"""Names -> network: the only place that copies stored weights into a module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from stereo.checkpoints import files
from stereo.errors import CheckpointError

State = dict[str, Tensor]

CONTAINERS = ("model", "state_dict", "model_state_dict")
PREFIXES = ("model.", "module.")  # in this order: Lightning around a distributed wrapper
DERIVED = frozenset({"dx"})  # buffers that follow from the spec; older exports lack them


@dataclass(frozen=True)
class LoadReport:
    """Names that did not find their counterpart.

    Attributes:
        missing: tensors of the network that the file lacks.
        unexpected: tensors of the file that the network has no place for.
        mismatched: `name: file (shape), network (shape)` of tensors that differ in shape.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """True when every tensor found its place."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        parts = (
            ("missing from the file", self.missing),
            ("without a place in the network", self.unexpected),
            ("of another shape", self.mismatched),
        )
        return "; ".join(
            f"{len(names)} {what} (first: {names[0]})" for what, names in parts if names
        )


def network_state(payload: Mapping[str, Any]) -> State:
    """Return the network's tensors of a checkpoint, without containers and wrapper prefixes."""
    inner = next(
        (payload[key] for key in CONTAINERS if isinstance(payload.get(key), dict)), payload
    )
    state = {name: value for name, value in inner.items() if isinstance(value, Tensor)}
    for prefix in PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def load_into(
    module: nn.Module,
    path: Path,
    *,
    partial: bool = False,
    rename: Callable[[State], State] | None = None,
) -> LoadReport:
    """Copy the weights of a checkpoint into `module`.

    Args:
        module: the network; unchanged when the load is refused.
        path: a `.pth` file.
        partial: accept differences and load what fits; otherwise every name and shape must agree.
        rename: released names -> ours.

    Raises:
        CheckpointError: the file is unusable, holds no tensors, or differs and `partial` is off.
    """
    state = network_state(files.read(path))
    if not state:
        raise CheckpointError(f"{path}: holds no network weights")
    if rename is not None:
        state = rename(state)
    own = module.state_dict()
    report = _compare(state, own)
    if not report.complete and not partial:
        raise CheckpointError(
            f"{path}: the weights do not fit this network: {report}. "
            "Use the model section the file was trained with"
        )
    fitting = {
        name: value
        for name, value in state.items()
        if name in own and name not in DERIVED and value.shape == own[name].shape
    }
    module.load_state_dict(fitting, strict=False)
    return report


def _compare(state: State, own: State) -> LoadReport:
    """Compare names and shapes in both directions."""
    return LoadReport(
        missing=tuple(name for name in own if name not in state and name not in DERIVED),
        unexpected=tuple(name for name in state if name not in own and name not in DERIVED),
        mismatched=tuple(
            f"{name}: file {tuple(value.shape)}, network {tuple(own[name].shape)}"
            for name, value in state.items()
            if name in own and name not in DERIVED and value.shape != own[name].shape
        ),
    )
