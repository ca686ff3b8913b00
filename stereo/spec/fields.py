"""How a spec field is declared, and how declarations are read.

`spec_field` in a dataclass is the only home of a field's default, meaning, unit, range, options
and searchability. The loader (types, ranges), the JSON Schema, the templates, the search space
and `docs/spec-reference.md` are all made from it by `walk`.

Paths inside a declaration (`active_if`, `depends_on`, `null_means`) are names of fields of the same
dataclass.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING as NOTHING
from dataclasses import dataclass, field, fields, is_dataclass, replace
from enum import StrEnum
from functools import cache
from typing import Any, Literal

MISSING = "???"  # value that the user must give before the verb that needs it can run
_METADATA_KEY = "spec"


class Scale(StrEnum):
    """How a search samples a number between its ends."""

    LINEAR = "linear"
    LOG = "log"


@dataclass(frozen=True)
class Facts:
    """Everything that is declared about a field besides its name, type and default.

    Attributes:
        low, high: valid ends, inclusive; infinite `high`: open on purpose; None: not limited.
        exclusive_low: `low` itself is not valid.
        zero_is_off: 0 is valid too, below `low`.
        options: valid values of a number; those of a text come from its `Literal` type.
        length: exact number of items of a list.
        item_low: least valid item of a list.
        automl_enabled: True candidate of a study, None only when a study names it, False never.
        search_default: searched when the study names nothing.
        search_range: default ends of a search where narrower than low..high.
        search_range_cpu: the same for a study on a machine without a GPU, where cost decides.
        active_if: the field acts only while the other fields have one of these values.
        null_means: field -> its value -> the number that null stands for.
        shapes_weights: changes parameter shapes, hence kept fixed when weights are loaded.
        searched: of a section: False keeps every field below it out of the search.
    """

    description: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    exclusive_low: bool = False
    zero_is_off: bool = False
    options: tuple[int, ...] = ()
    length: int | None = None
    item_low: float | None = None
    automl_enabled: bool | None = False
    search_default: bool = False
    search_range: tuple[float, float] | None = None
    search_range_cpu: tuple[float, float] | None = None
    scale: Scale = Scale.LINEAR
    active_if: Mapping[str, Sequence[Any]] | None = None
    depends_on: str | None = None
    null_means: Mapping[str, Mapping[str, float]] | None = None
    math_cond: str | None = None
    shapes_weights: bool = False
    searched: bool = True
    popular: bool = False


def spec_field(
    default: Any,
    description: str,
    *,
    automl_enabled: bool | None = False,
    search_default: bool | None = None,
    **facts: Any,
) -> Any:
    """Declare one field of a spec dataclass; `facts` are the attributes of `Facts`.

    A candidate (`automl_enabled=True`) is searched by default unless `search_default=False`.
    A dataclass, or a function that makes one, as the default declares a nested section.
    """
    by_default = bool(automl_enabled) if search_default is None else search_default
    metadata = {
        _METADATA_KEY: Facts(
            description, automl_enabled=automl_enabled, search_default=by_default, **facts
        )
    }
    return _declare(default, metadata)


def same_field(spec_class: type, name: str, **changes: Any) -> Any:
    """Declare a field or section of another spec dataclass again, with changes to its `Facts`."""
    declared = _declaration(spec_class, name)
    factory = declared.default_factory
    metadata = {_METADATA_KEY: replace(declared.metadata[_METADATA_KEY], **changes)}
    return _declare(declared.default if factory is NOTHING else factory, metadata)


def with_default(spec_class: type, name: str, default: Any) -> Any:
    """Declare a field or section of another spec dataclass again, with another default."""
    return _declare(default, _declaration(spec_class, name).metadata)


def _declaration(spec_class: type, name: str) -> Any:
    (declared,) = (declared for declared in fields(spec_class) if declared.name == name)
    return declared


def _declare(default: Any, metadata: Mapping[str, Any]) -> Any:
    """A dataclass field; a list is copied for every instance, a callable makes the default."""
    if isinstance(default, list):
        items: list[Any] = list(typing.cast("list[Any]", default))
        return field(default_factory=lambda: list(items), metadata=metadata)
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


Kind = Literal["int", "float", "bool", "string", "list", "section"]


@dataclass(frozen=True)
class Node:
    """A field or a section at its place in the experiment.

    Attributes:
        path: dotted, from the root of the experiment.
        item: kind of a list's items; "section" for a list of mappings.
        choices: valid values of a closed set, also of a list's items.
        spec_class: dataclass of a section, or of the items of a list of sections.
    """

    path: str
    kind: Kind
    facts: Facts
    default: Any
    nullable: bool = False
    item: Kind | None = None
    choices: tuple[Any, ...] = ()
    spec_class: type | None = None

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.rpartition(".")[2]

    @property
    def value_type(self) -> str:
        """The documents' word for the type."""
        if self.kind == "list":
            if self.choices:
                return "subset_list"
            return "optional_list" if self.nullable else "list"
        if self.choices:
            return "ordered_int" if self.kind == "int" else "categorical"
        return self.kind


@cache
def walk(spec_class: type, prefix: str = "", searched: bool = True) -> tuple[Node, ...]:
    """All sections and fields below a spec dataclass, in the order of declaration."""
    return tuple(_walk(spec_class(), prefix, searched))


def leaves(spec_class: type) -> tuple[Node, ...]:
    """The fields below a spec dataclass, without the sections."""
    return tuple(node for node in walk(spec_class) if node.kind != "section")


def range_words(node: Node) -> str:
    """The valid numbers of a field: `2..8`, `>= 1`, `0 or 1e-09..1`; empty when not limited."""
    facts = node.facts
    if facts.low is None:
        return ""
    zero = "0 or " if facts.zero_is_off else ""
    low = f"> {facts.low:g}" if facts.exclusive_low else f">= {facts.low:g}"
    if facts.high is None or math.isinf(facts.high):
        return f"{zero}{low}"
    return (
        f"{low} and <= {facts.high:g}"
        if facts.exclusive_low
        else (f"{zero}{facts.low:g}..{facts.high:g}")
    )


def _walk(defaults: Any, prefix: str, searched: bool) -> Iterator[Node]:
    """Nodes of a section, with the defaults that it has at its place in the experiment."""
    hints = typing.get_type_hints(typing.cast(Any, type(defaults)))
    for declared in fields(defaults):
        facts: Facts = declared.metadata[_METADATA_KEY]
        path = f"{prefix}{declared.name}"
        annotation, default = hints[declared.name], getattr(defaults, declared.name)
        if is_dataclass(annotation):
            nested = typing.cast(type, annotation)
            yield Node(path, "section", facts, None, spec_class=nested)
            yield from _walk(default, f"{path}.", searched and facts.searched)
        else:
            yield _leaf(path, annotation, _placed(facts, prefix, searched), default)


def _placed(facts: Facts, prefix: str, searched: bool) -> Facts:
    """Facts with full paths, and without the search where the section is never searched."""
    null_means = facts.null_means and {f"{prefix}{k}": v for k, v in facts.null_means.items()}
    facts = replace(facts, null_means=null_means)
    depends_on = None if facts.depends_on is None else f"{prefix}{facts.depends_on}"
    if not searched:
        # A conditional field hangs on its switch only inside a search.
        depends_on = None if facts.active_if else depends_on
        return replace(
            facts,
            automl_enabled=False,
            search_default=False,
            active_if=None,
            depends_on=depends_on,
        )
    active_if = facts.active_if and {f"{prefix}{k}": v for k, v in facts.active_if.items()}
    return replace(facts, active_if=active_if, depends_on=depends_on)


_SCALARS: dict[type, Kind] = {bool: "bool", int: "int", float: "float", str: "string"}


def _leaf(path: str, annotation: Any, facts: Facts, default: Any) -> Node:
    nullable = typing.get_origin(annotation) in (types.UnionType, typing.Union)
    if nullable:
        (annotation,) = (a for a in typing.get_args(annotation) if a is not type(None))
    item: Kind | None = None
    spec_class: type | None = None
    if typing.get_origin(annotation) is list:
        (annotation,) = typing.get_args(annotation)
        if is_dataclass(annotation):
            spec_class = typing.cast(type, annotation)
            return Node(path, "list", facts, default, nullable, "section", (), spec_class)
        item, choices = _scalar(annotation)
        return Node(path, "list", facts, default, nullable, item, choices)
    kind, choices = _scalar(annotation)
    return Node(path, kind, facts, default, nullable, None, choices or facts.options)


def _scalar(annotation: Any) -> tuple[Kind, tuple[Any, ...]]:
    if typing.get_origin(annotation) is Literal:
        return "string", typing.get_args(annotation)
    return _SCALARS[annotation], ()
