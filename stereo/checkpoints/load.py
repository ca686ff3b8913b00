"""Names -> network: the only place that copies stored weights into a module."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stereo.checkpoints import files, identify
from stereo.errors import CheckpointError

log = logging.getLogger(__name__)

State = dict[str, Tensor]

CONTAINERS = ("model", "state_dict", "model_state_dict")
PREFIXES = ("model.", "module.")  # in this order: Lightning around a distributed wrapper
COMPARED = frozenset({"stride", "padding", "output_padding", "dilation", "groups", "eps"})
"""Attributes of a layer that change what it computes, and none of its shapes."""
DERIVED = frozenset({"dx"})  # buffers that follow from the spec; older exports lack them


@dataclass(frozen=True)
class LoadReport:
    """Names that did not find their counterpart.

    Attributes:
        missing: tensors of the network that the file lacks.
        unexpected: tensors of the file that the network has no place for.
        mismatched: `name: file (shape), network (shape)` of tensors that differ in shape.
        zeroed: tensors that the file may lack because nothing reads them; they became zero.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]
    zeroed: tuple[str, ...] = ()

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


Expected = Callable[[dict[str, Any]], State]
"""`model` fields that a file needs -> names and shapes of that network."""


def load_into(
    module: nn.Module,
    path: Path,
    *,
    partial: bool = False,
    rename: Callable[[State], State] | None = None,
    expected: Expected | None = None,
) -> LoadReport:
    """Copy the weights of a checkpoint into `module`.

    Args:
        module: the network; unchanged when the load is refused.
        path: a `.pth` file.
        partial: accept differences and load what fits; otherwise every name and shape must agree.
        rename: released names -> ours.
        expected: tells a file that needs other fields from one that fits no network of its kind;
            default: only what names show.

    Raises:
        CheckpointError: the file is unusable, holds no tensors, or differs and `partial` is off.
    """
    payload = files.read(path)
    state = network_state(payload)
    if not state:
        raise CheckpointError(f"{path}: holds no network weights")
    if rename is not None:
        state = rename(state)
    own = module.state_dict()
    report = compare(state, own)
    if not report.complete and not partial:
        raise CheckpointError(f"{path}: {explain(state, own, report, expected)}")
    fitting = {
        name: value
        for name, value in state.items()
        if name in own and name not in DERIVED and value.shape == own[name].shape
    }
    if report.zeroed and not partial:
        fitting |= {name: torch.zeros_like(own[name]) for name in report.zeroed}
        log.warning(
            "%s lacks %d tensors that the network stores and never uses (first: %s): set to zero",
            path,
            len(report.zeroed),
            report.zeroed[0],
        )
    module.load_state_dict(fitting, strict=False)
    rows = layer_differences(payload, module, rename)
    if rows:
        log.warning("%s: layers of the file compute otherwise:\n%s", path, identify.table(rows))
    return report


def layer_differences(
    payload: Mapping[str, Any], network: nn.Module, rename: Callable[[State], State] | None = None
) -> tuple[identify.Contradiction, ...]:
    """What no shape shows: layers of a pickled module that differ from those of `network`.

    Empty for files that hold no layers.
    """
    stored: Mapping[str, Mapping[str, Any]] = payload.get(files.LAYERS) or {}
    if not stored:
        return ()
    names = {f"{name}.weight": torch.empty(0) for name in stored}
    ours = dict(network.named_modules())
    rows: list[identify.Contradiction] = []
    for name, settings in zip(rename(names) if rename else names, stored.values(), strict=True):
        layer = ours.get(name.removesuffix(".weight"))
        for key in COMPARED & settings.keys():
            given = getattr(layer, key, settings[key])
            if given != settings[key]:
                place = f"{name.removesuffix('.weight')}.{key}"
                rows.append(identify.Contradiction(place, given, settings[key]))
    return tuple(sorted(rows, key=lambda row: row.field))


def compare(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> LoadReport:
    """Compare names and shapes in both directions."""
    optional = identify.may_lack(own)
    absent = [name for name in own if name not in state and name not in DERIVED]
    zeroed = tuple(name for name in absent if optional and name.startswith(optional))
    return LoadReport(
        missing=tuple(name for name in absent if name not in zeroed),
        unexpected=tuple(name for name in state if name not in own and name not in DERIVED),
        mismatched=tuple(
            f"{name}: file {tuple(value.shape)}, network {tuple(own[name].shape)}"
            for name, value in state.items()
            if name in own and name not in DERIVED and value.shape != own[name].shape
        ),
        zeroed=zeroed,
    )


def require_network(state: State, found: identify.Identity, expected: Expected) -> None:
    """Refuse weights that fit no network of this program, whatever the spec.

    Args:
        state: tensors under our names.
        found: what they were recognised as.
        expected: `model` fields -> names and shapes of that network.

    Raises:
        CheckpointError: names or shapes differ from those of a network with the file's own fields.
    """
    told = _misfit(state, found, compare(state, {}), expected)
    if told is not None:
        raise CheckpointError(told)


def explain(state: State, own: State, report: LoadReport, expected: Expected | None) -> str:
    """Say why weights do not fit: another spec is needed, or no spec would do."""
    general = f"the weights do not fit this network: {report}"
    remedy = "Use the model section the file was trained with"
    try:
        given = identify.identify(own)
    except CheckpointError:  # a network of somebody else's
        return f"{general}. {remedy}"
    try:
        needed = identify.identify(state)
    except CheckpointError as error:
        return f"{general}. The file is {error}"
    if given.network != needed.network:
        return f"{general}. The file is {needed.network}, the network {given.network}"
    told = _misfit(state, needed, report, expected)
    if told is not None:
        return told
    rows = identify.contradictions(given, needed)
    return f"{general}. Set these fields:\n{identify.table(rows)}" if rows else general


def _misfit(
    state: State, needed: identify.Identity, report: LoadReport, expected: Expected | None
) -> str | None:
    """Why no fields make a network for a file; None when some do, as far as can be told."""
    own: State = {}
    if expected is not None:
        try:
            own = expected(needed.fields)
            report = compare(state, own)
        except (CheckpointError, ArithmeticError, RuntimeError, TypeError, ValueError) as error:
            return f"no network has the fields of this file: {error}"
    elif not (report.missing or report.unexpected):
        return None  # other widths, which other fields may make
    if report.complete:
        return None
    return identify.refusal(needed, report.missing, report.unexpected, report.mismatched)
