"""Names -> network: the only place that copies stored weights into a module.

A file fills a whole network (`load_into`) or one part of it (`load_part`). Either way every tensor
must agree in name and shape, unless a partial load is asked for; then what fits is copied and the
report names everything else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stereo.checkpoints import files, identify, taps
from stereo.errors import CheckpointError

log = logging.getLogger(__name__)

State = dict[str, Tensor]

CONTAINERS = ("model", "state_dict", "model_state_dict")
PREFIXES = ("model.", "module.")  # of Lightning and of a distributed wrapper, in any order
SHOWN = 10  # names of each kind in a message
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
        partly: `name: what of it was copied` of tensors that differ in shape.
        other_meaning: tensors of equal name and shape that mean something else in the network.
        settings: fields of section `model` that the file states and tensors do not show.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]
    zeroed: tuple[str, ...] = ()
    partly: tuple[str, ...] = ()
    other_meaning: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def complete(self) -> bool:
        """True when every tensor found its place."""
        return not any(names for _, names in self._groups)

    @property
    def _groups(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        return (
            ("missing from the file", self.missing),
            ("without a place in the network", self.unexpected),
            ("of another shape", self.mismatched),
            ("of another meaning", self.other_meaning),
        )

    def __str__(self) -> str:
        """Counts, and the first names of each kind."""
        return "; ".join(
            f"{len(names)} {what}: {', '.join(names[:SHOWN])}{', ...' if names[SHOWN:] else ''}"
            for what, names in self._groups
            if names
        )

    def lines(self) -> list[str]:
        """One line for every tensor that was not loaded, or not wholly."""
        copied = {line.partition(":")[0] for line in self.partly}
        found = [
            f"{name} ({what})"
            for what, names in self._groups
            for name in names
            if name.partition(":")[0] not in copied
        ]
        return [*self.partly, *found]


def network_state(payload: Mapping[str, Any]) -> State:
    """Return the network's tensors of a checkpoint, without containers and wrapper prefixes."""
    inner = next(
        (payload[key] for key in CONTAINERS if isinstance(payload.get(key), dict)), payload
    )
    state = {name: value for name, value in inner.items() if isinstance(value, Tensor)}
    while prefix := next((p for p in PREFIXES if _all_start(state, p)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _all_start(state: State, prefix: str) -> bool:
    return bool(state) and all(name.startswith(prefix) for name in state)


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
        CheckpointError: the file is unusable, holds no tensors, or differs and `partial` is off;
            or nothing of it fits.
    """
    payload = files.read(path)
    state = network_state(payload)
    if not state:
        raise CheckpointError(f"{path}: holds no network weights")
    own = module.state_dict()
    if not partial:
        _require_same_depth(path, payload, state, own)
    if rename is not None:
        state = rename(state)
    report = compare(state, own)
    if not report.complete and not partial:
        raise CheckpointError(f"{path}: {explain(state, own, report, expected)}")
    report = _copy(module, path, state, report, partial=partial)
    rows = layer_differences(payload, module, rename)
    if rows:
        log.warning("%s: layers of the file compute otherwise:\n%s", path, identify.table(rows))
    return replace(report, settings=_settings(state, payload))


def _settings(state: State, payload: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        return identify.identify(state, payload).settings
    except CheckpointError:  # a network of somebody else's
        return {}


@dataclass(frozen=True)
class Part:
    """A part of a network that may start from a file of its own.

    Attributes:
        key: the field of a spec that names the file.
        what: the part in words.
        prefix: what stands in front of its names in the network.
        names: beginnings of its names behind the prefix; whatever else a file holds is left out.
        rename: published names -> ours, without the prefix.
    """

    key: str
    what: str
    prefix: str
    names: tuple[str, ...]
    rename: Callable[[State], State]


def load_part(module: nn.Module, path: Path, part: Part, *, partial: bool = False) -> LoadReport:
    """Copy the weights of a file into one part of `module`; the rest stays as it is.

    Args:
        module: the network; unchanged when the load is refused.
        path: a `.pth` file.
        part: where the weights go.
        partial: accept differences and load what fits; otherwise every name and shape must agree.

    Raises:
        CheckpointError: the file is unusable, does not hold the part, or differs and `partial` is
            off; or nothing of it fits.
    """
    stored = part.rename(network_state(files.read(path)))
    state = {name: value for name, value in stored.items() if name.startswith(part.names)}
    if not state:
        raise CheckpointError(f"{path}: {part.key} needs {part.what}. {_what_it_is(stored)}")
    inside = tuple(f"{part.prefix}{name}" for name in part.names)
    own = {
        name.removeprefix(part.prefix): value
        for name, value in module.state_dict().items()
        if name.startswith(inside)
    }
    report = compare(state, own)
    if not report.complete and not partial:
        raise CheckpointError(f"{path}: {part.key}: {explain(state, own, report, None)}")
    within = {f"{part.prefix}{name}": value for name, value in state.items()}
    return _copy(module, path, within, report, partial=partial)


def _what_it_is(state: State) -> str:
    try:
        found = identify.identify(state)
    except CheckpointError as error:
        return f"The file is {error}"
    return f"The file is {found.network}" + (f" ({found.remark})" if found.remark else "")


def _copy(
    module: nn.Module, path: Path, state: State, report: LoadReport, *, partial: bool
) -> LoadReport:
    """Copy what fits; return the report with what was copied in part."""
    own = module.state_dict()
    fitting = {
        name: value
        for name, value in state.items()
        if name in own
        and name not in DERIVED
        and name not in report.other_meaning
        and value.shape == own[name].shape
    }
    shared = taps.shared_taps(state, own)
    if shared is not None:
        fitting[taps.WEIGHT], told = shared
        report = replace(report, partly=(told,))
    if not fitting:
        raise CheckpointError(f"{path}: nothing of it fits this network: {report}")
    if report.zeroed and not partial:
        fitting |= {name: torch.zeros_like(own[name]) for name in report.zeroed}
        log.warning(
            "%s lacks %d tensors that the network stores and never uses (first: %s): set to zero",
            path,
            len(report.zeroed),
            report.zeroed[0],
        )
    module.load_state_dict(fitting, strict=False)
    return report


def _require_same_depth(path: Path, payload: Mapping[str, Any], state: State, own: State) -> None:
    """Refuse the head of metric depth for relative depth and the other way round."""
    given = identify.depth_of(state, payload, path.name)
    needed = identify.depth_of(own)
    is_relative = needed == identify.DEPTH_HEADS["depth_head."]
    if is_relative and identify.is_of_public_script(payload):
        log.warning(
            "%s: looks as if the public training script wrote it, which trains metric depth;"
            " %s takes its head for one of inverse depth",
            *(path, needed),
        )
    if given is None or needed is None or given == needed:
        return
    raise CheckpointError(
        f"{path}: holds the head of {given}, the network is {needed}. Set"
        " train.allow_partial_load=true to start from all its weights, or"
        " model.mono_backbone.pretrained_path to start from its encoder. Released metric files have"
        ' the names of relative ones: they are told by the word "metric" in the name of the file'
    )


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
        other_meaning=identify.other_meaning(state, own),
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
    encoder = needed.fields.get("encoder")
    if encoder is not None and encoder != given.fields.get("encoder", encoder):
        general = f"encoder mismatch? file looks like {encoder}; {general}"
    if given.network != needed.network:
        remark = f" ({needed.remark})" if needed.remark else ""
        return f"the file is {needed.network}{remark}, the network {given.network}; {general}"
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
    elif needed.network not in identify.SEARCHED or not (report.missing or report.unexpected):
        return None  # other widths, which other fields may make
    if report.complete:
        return None
    return identify.refusal(needed, report.missing, report.unexpected, report.mismatched)
