"""The search space of a study, read from the trainer's JSON Schema.

A field is a leaf of `schemas/<model>/train.schema.json`, named by its dotted path. The keywords
`automl_enabled`, `x-search-range`, `x-search-range-cpu`, `x-scale`, `x-active-if`,
`x-shapes-weights`, `x-math-cond`, `x-null-means` and `x-unit` say whether and how it can be
searched; the root list `automl_default_parameters` says what is searched when a study names
nothing. A field that cannot matter is dropped, and the reason is kept for plan, log and report.

A parameter with a `condition` is sampled only in trials where the fields it depends on, which
are searched themselves, have one of the named values.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, cast

from automl.errors import Problem, SchemaError, StudySpecError
from automl.study_spec import SearchChoice, StudySpec, get_path, merge, set_path

Kind = Literal["int", "float", "choice"]
Conditions = Mapping[str, tuple[Any, ...]]


@dataclass(frozen=True)
class SearchField:
    """One leaf of the schema.

    Attributes:
        path: dotted path in the spec.
        kind: `choice` for booleans, enumerations and everything that is not a number.
        minimum: smallest valid value; -inf when open.
        maximum: largest valid value; inf when open.
        search_range: default range of a study; None when the schema names none.
        search_range_cpu: the same for the profile of a machine without a GPU.
        options: values of an enumeration or boolean; empty when the field has none.
        step: allowed values are multiples of it; None for any.
        log: the logarithm is sampled.
        enabled: True candidate, False never searched, None only when a study names it.
        searched_by_default: named in `automl_default_parameters`.
        active_if: the field acts only when these paths have one of these values.
        below: path of a field whose value this one must stay below; empty for none.
        null_means: path of a field -> its value -> the number that null stands for.
    """

    path: str
    kind: Kind
    default: Any
    minimum: float
    maximum: float
    search_range: tuple[float, float] | None
    search_range_cpu: tuple[float, float] | None
    options: tuple[Any, ...]
    step: int | None
    log: bool
    enabled: bool | None
    searched_by_default: bool
    active_if: Conditions
    below: str
    null_means: Mapping[str, Mapping[str, float]]
    shapes_weights: bool
    unit: str
    description: str


@dataclass(frozen=True)
class Parameter:
    """One dimension of a search space.

    Attributes:
        path: dotted path in the spec.
        type: decides which of low, high, step, log or choices count.
        default: the base spec's value, that of trial 0; may lie outside the range.
        condition: controllers and the values that make this parameter act; empty for always.
        below: path of a parameter before this one; a sampled value at or above it is moved
            just below it.
    """

    path: str
    type: Kind
    default: Any
    low: float | None = None
    high: float | None = None
    step: int | None = None
    log: bool = False
    choices: tuple[Any, ...] = ()
    unit: str = ""
    condition: Conditions = field(default_factory=dict[str, tuple[Any, ...]])
    below: str = ""

    def contains(self, value: Any) -> bool:
        """Whether a value lies inside range, step or choices."""
        if self.type == "choice":
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if self.type == "int" and (value != int(value) or value % (self.step or 1)):
            return False
        return cast(float, self.low) <= value <= cast(float, self.high)

    def nearest(self, value: Any) -> Any:
        """Return the value moved into the range, or None where nothing is near."""
        if self.contains(value):
            return int(value) if self.type == "int" else value
        if self.type == "choice" or isinstance(value, bool) or not isinstance(value, int | float):
            return None
        low, high = cast(float, self.low), cast(float, self.high)
        if self.type == "float":
            return min(max(float(value), low), high)
        step = self.step or 1
        return int(min(max(round(value / step) * step, low), high))

    def limited(self, value: Any, params: Mapping[str, Any]) -> Any:
        """Return a sampled value, moved just below the parameter named by `below`."""
        limit = params.get(self.below)
        if limit is None or value < limit:
            return value
        low = cast(float, self.low)
        if self.type == "int":
            return max(int(limit) - (self.step or 1), int(low))
        return max(math.nextafter(limit, -math.inf), low)

    def domain(self) -> str:
        """Return the range in words, e.g. `1e-06..0.01 log` or `4, 8, 16`."""
        if self.type == "choice":
            return ", ".join(str(choice) for choice in self.choices)
        step = f" step {self.step}" if (self.step or 1) > 1 else ""
        return f"{self.low:g}..{self.high:g}{step}{' log' if self.log else ''}"


@dataclass(frozen=True)
class Dropped:
    """A candidate that is not searched, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class SearchSpace:
    """What a study searches: parameters in an order in which conditions come after controllers."""

    parameters: tuple[Parameter, ...]
    dropped: tuple[Dropped, ...] = ()

    def is_active(self, parameter: Parameter, params: Mapping[str, Any]) -> bool:
        """Whether a parameter acts, given the values of the parameters before it."""
        return all(params.get(path) in values for path, values in parameter.condition.items())

    def apply(self, base_spec: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the spec of a trial: the base spec with the trial's values in place."""
        spec = merge(base_spec, {})
        for path, value in params.items():
            set_path(spec, path, value)
        return spec

    def defaults(self, base_spec: Mapping[str, Any]) -> dict[str, Any]:
        """Return trial 0: the base spec's own values of the active parameters."""
        params: dict[str, Any] = {}
        for parameter in self.parameters:
            if self.is_active(parameter, params):
                params[parameter.path] = get_path(base_spec, parameter.path, parameter.default)
        return params

    def contains(self, params: Mapping[str, Any]) -> bool:
        """Whether exactly the active parameters are present, each inside its range."""
        expected: set[str] = set()
        for parameter in self.parameters:
            if self.is_active(parameter, params):
                expected.add(parameter.path)
                if not parameter.contains(params.get(parameter.path)):
                    return False
        return expected == set(params)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as stored in `study.lock.yaml`."""
        return {
            "parameters": {item.path: _plain_parameter(item) for item in self.parameters},
            "dropped": {item.path: item.reason for item in self.dropped},
        }

    @staticmethod
    def from_dict(tree: Mapping[str, Any]) -> SearchSpace:
        """Rebuild a space from `to_dict`."""
        parameters = [_from_plain(path, values) for path, values in tree["parameters"].items()]
        dropped = [Dropped(path, reason) for path, reason in tree["dropped"].items()]
        return SearchSpace(tuple(parameters), tuple(dropped))


def with_numbers_for_nulls(
    fields: Sequence[SearchField], spec: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a spec with the number that each null stands for, so that it can be searched."""
    filled = merge(spec, {})
    defaults = {item.path: item.default for item in fields}
    for item in fields:
        for control, numbers in item.null_means.items():
            if get_path(filled, item.path) is None:
                number = numbers[get_path(filled, control, defaults[control])]
                set_path(filled, item.path, number)
    return filled


def read_fields(schema: Mapping[str, Any]) -> list[SearchField]:
    """Return every leaf of an action's schema, in the schema's order.

    Raises:
        SchemaError: a candidate without usable range or options.
    """
    searched = set(cast("Sequence[str]", schema.get("automl_default_parameters", ())))
    fields = [_field(path, leaf, path in searched) for path, leaf in _leaves(schema, "")]
    unknown = searched - {item.path for item in fields}
    if unknown:
        raise SchemaError(
            f"schema {schema.get('$id', '')}: automl_default_parameters names"
            f" {', '.join(sorted(unknown))}, which the schema does not have."
            " Regenerate the schemas (make schemas)"
        )
    return fields


def build_space(
    fields: Sequence[SearchField],
    study: StudySpec,
    base_spec: Mapping[str, Any],
    weight_keys: Sequence[str] = (),
    part_keys: Mapping[str, Sequence[str]] | None = None,
) -> SearchSpace:
    """Choose what is searched and drop what cannot matter.

    Args:
        fields: of the train schema.
        study: its `search` section adds, drops and narrows.
        base_spec: the spec of trial 0.
        weight_keys: paths of the spec; when any is set, weights are loaded and every field that
            shapes weights stays fixed (unless the study allows partial loading).
        part_keys: paths of files that fill a part of the network where no whole one is loaded ->
            fields that shape the part; they stay fixed.

    Raises:
        StudySpecError: unknown paths, ranges outside the valid ones; all together.
    """
    by_path = {item.path: item for item in fields}
    problems: list[Problem] = []
    candidates = _candidates(by_path, study.search, problems)
    loaded = [key for key in weight_keys if get_path(base_spec, key)]
    parts = {} if loaded else _filled_parts(part_keys or {}, base_spec)
    if study.allow_partial_load:
        loaded = []
    dropped = {path: "dropped by the study" for path in study.search.drop if path in by_path}
    for path in list(candidates):
        base = _base_value(by_path, base_spec, path)
        reason = _fixed_reason(by_path[path], loaded, base) or parts.get(path, "")
        if path in dropped or reason:
            dropped.setdefault(path, reason)
            candidates.remove(path)
    conditions = _conditions(by_path, candidates, base_spec, dropped)
    parameters = [
        _parameter(by_path[path], study, base_spec, condition, problems)
        for path, condition in conditions.items()
    ]
    if problems:
        raise StudySpecError(problems)
    found = [parameter for parameter in parameters if parameter is not None]
    if not found:
        reasons = "; ".join(f"{path}: {reason}" for path, reason in dropped.items())
        problem = Problem("study", "search", f"nothing is left to search ({reasons})")
        raise StudySpecError([problem])
    return SearchSpace(tuple(found), tuple(Dropped(*item) for item in dropped.items()))


# --- schema -> fields ---------------------------------------------------------------------------


def _leaves(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, child in cast("Mapping[str, Any]", node.get("properties", {})).items():
        path = f"{prefix}{name}"
        if "properties" in child:
            yield from _leaves(child, f"{path}.")
        else:
            yield path, child


def _field(path: str, leaf: Mapping[str, Any], searched: bool) -> SearchField:
    kind = _kind(leaf)
    open_low = leaf.get("exclusiveMinimum", -math.inf)
    search_range, for_cpu = leaf.get("x-search-range"), leaf.get("x-search-range-cpu")
    multiple, options = _math_condition(path, leaf)
    if leaf.get("type") == "boolean":
        options = (False, True)
    result = SearchField(
        path=path,
        kind="choice" if options else kind,
        default=leaf.get("default"),
        minimum=leaf.get("minimum", open_low),
        maximum=leaf.get("maximum", math.inf),
        search_range=tuple(search_range) if search_range else None,
        search_range_cpu=tuple(for_cpu) if for_cpu else None,
        options=options,
        step=multiple if kind == "int" else None,
        log=leaf.get("x-scale") == "log",
        enabled=leaf.get("automl_enabled"),
        searched_by_default=searched,
        active_if={key: tuple(of) for key, of in leaf.get("x-active-if", {}).items()},
        below=_upper_neighbour(path, leaf),
        null_means=leaf.get("x-null-means", {}),
        shapes_weights=bool(leaf.get("x-shapes-weights", False)),
        unit=leaf.get("x-unit", ""),
        description=leaf.get("description", ""),
    )
    if searched and result.enabled is False:
        raise SchemaError(f"{path}: searched by default although automl_enabled is false")
    return result


def _kind(leaf: Mapping[str, Any]) -> Kind:
    types = leaf.get("type", [])
    names = [types] if isinstance(types, str) else types
    if "integer" in names:
        return "int"
    return "float" if "number" in names else "choice"


def _math_condition(path: str, leaf: Mapping[str, Any]) -> tuple[int | None, tuple[Any, ...]]:
    """Return (multiple, options): `/ n` allows multiples of n, `^ n` powers of n in the range."""
    options = tuple(leaf.get("enum", ()))
    match = re.fullmatch(r"\s*([/^])\s*(\d+)\s*", leaf.get("x-math-cond", ""))
    if match is None:
        return None, options
    base = int(match[2])
    if match[1] == "/":
        return base, options
    low, high = leaf.get("x-search-range", (leaf.get("minimum"), leaf.get("maximum")))
    if low is None or high is None or base < 2:
        raise SchemaError(f"{path}: powers of {base} need a minimum and a maximum")
    powers = (base**exponent for exponent in range(64))
    return None, tuple(power for power in powers if low <= power <= high)


def _upper_neighbour(path: str, leaf: Mapping[str, Any]) -> str:
    """Return the path that `< depends_on` or `< depends_on NAME` (a sibling) refers to."""
    match = re.fullmatch(r"\s*<=?\s*depends_on(?:\s+(\w+))?\s*", leaf.get("x-math-cond", ""))
    if match is None:
        return ""
    if match[1]:
        return f"{path.rpartition('.')[0]}.{match[1]}"
    return leaf.get("x-depends-on", "")


# --- fields + study -> parameters ---------------------------------------------------------------


def _candidates(
    by_path: Mapping[str, SearchField], search: SearchChoice, problems: list[Problem]
) -> list[str]:
    """Return the paths to search, in the schema's order, before anything is dropped."""
    named = {
        "search.parameters": search.parameters or (),
        "search.add": search.add,
        "search.drop": search.drop,
        "search.ranges": tuple(search.ranges),
        "search.choices": tuple(search.choices),
    }
    for key, paths in named.items():
        for path in paths:
            if path not in by_path:
                near = difflib.get_close_matches(path, by_path, n=1)
                hint = f"Did you mean {near[0]}?" if near else "See docs/spec-reference.md"
                problem = f"the trainer's spec has no field {path}"
                problems.append(Problem("study", key, problem, hint))
            elif key != "search.drop" and by_path[path].enabled is False:
                problem = f"{path} is never searched (automl_enabled is false in the schema)"
                problems.append(Problem("study", key, problem, "Set it in spec instead"))
    if search.parameters is None:
        chosen = {path for path, item in by_path.items() if item.searched_by_default}
    else:
        chosen = set(search.parameters)
    chosen |= set(search.add)
    for key in ("search.ranges", "search.choices"):
        for path in named[key]:
            if path in by_path and path not in chosen:
                problem = f"{path} is given values but is not searched"
                problems.append(Problem("study", key, problem, f"Add it: search.add: [{path}]"))
    return [path for path in by_path if path in chosen]


def _fixed_reason(item: SearchField, loaded: Sequence[str], base: Any) -> str:
    if item.enabled is False:
        return "automl_enabled is false in the schema"
    if item.kind != "choice" and base is None:
        return "null in trial 0, the spec; give it a number there to search it"
    if item.shapes_weights and loaded:
        return f"changes the shape of weights, and weights are loaded ({', '.join(loaded)})"
    return ""


def _filled_parts(
    part_keys: Mapping[str, Sequence[str]], base_spec: Mapping[str, Any]
) -> dict[str, str]:
    """Return field -> why it is fixed, for the parts of the network that have their own file."""
    return {
        path: f"changes the shape of weights that are loaded ({key})"
        for key, shaping in part_keys.items()
        if get_path(base_spec, key)
        for path in shaping
    }


def _conditions(
    by_path: Mapping[str, SearchField],
    candidates: Sequence[str],
    base_spec: Mapping[str, Any],
    dropped: dict[str, str],
) -> dict[str, Conditions]:
    """Return path -> condition for the fields that can act, fields they depend on first.

    A condition on a field that is not searched is decided here: met, or the field is dropped.
    """
    kept: dict[str, Conditions] = {}
    waiting = list(candidates)
    while waiting:
        path = next((p for p in waiting if not _needs(by_path[p]) & set(waiting)), None)
        if path is None:
            raise SchemaError(f"the conditions of {', '.join(waiting)} depend on each other")
        waiting.remove(path)
        condition: dict[str, tuple[Any, ...]] = {}
        for controller, values in by_path[path].active_if.items():
            if controller in kept:
                condition[controller] = values
                continue
            actual = _base_value(by_path, base_spec, controller)
            if actual not in values:
                allowed = " or ".join(str(value) for value in values)
                dropped[path] = f"acts only with {controller} = {allowed}, here it is {actual}"
        if path not in dropped:
            kept[path] = condition
    return kept


def _needs(item: SearchField) -> set[str]:
    return {*item.active_if, item.below}


def _base_value(by_path: Mapping[str, SearchField], base_spec: Mapping[str, Any], path: str) -> Any:
    default = by_path[path].default if path in by_path else None
    return get_path(base_spec, path, default)


def _parameter(
    item: SearchField,
    study: StudySpec,
    base_spec: Mapping[str, Any],
    condition: Conditions,
    problems: list[Problem],
) -> Parameter | None:
    default = get_path(base_spec, item.path, item.default)
    choices = tuple(study.search.choices.get(item.path, item.options))
    if choices or item.kind == "choice":
        wrong = [value for value in choices if not _is_valid(item, value)]
        if wrong or not choices:
            problem = f"{item.path}: got {wrong or 'no values'}, allowed {_valid(item)}"
            problems.append(Problem("study", "search.choices", problem))
            return None
        return Parameter(item.path, "choice", default, choices=choices, unit=item.unit,
                         condition=condition)  # fmt: skip
    default_range = item.search_range or (item.minimum, item.maximum)
    if study.profile == "cpu":
        default_range = item.search_range_cpu or default_range
    low, high = study.search.ranges.get(item.path) or default_range
    problem = _range_problem(item, low, high)
    if problem:
        remedy = f"Give one inside: search.ranges: {{{item.path}: [low, high]}}"
        problems.append(Problem("study", "search.ranges", f"{item.path}: {problem}", remedy))
        return None
    if item.kind == "int":
        step = item.step or 1
        low, high = math.ceil(low / step) * step, math.floor(high / step) * step
    return Parameter(item.path, item.kind, default, low, high, item.step, item.log,
                     unit=item.unit, condition=condition, below=item.below)  # fmt: skip


def _range_problem(item: SearchField, low: float, high: float) -> str:
    if not (math.isfinite(low) and math.isfinite(high)):
        return f"has no finite range ({low:g}..{high:g})"
    if low < item.minimum or high > item.maximum:
        return f"got [{low:g}, {high:g}], allowed {_valid(item)}"
    if item.log and low <= 0:
        return f"got [{low:g}, {high:g}], a logarithmic range starts above 0"
    step = item.step or 1
    if item.kind == "int" and math.ceil(low / step) > math.floor(high / step):
        return f"got [{low:g}, {high:g}], which holds no allowed value (multiples of {step})"
    return ""


def _is_valid(item: SearchField, value: Any) -> bool:
    if item.options:
        return value in item.options
    if item.kind == "choice":
        return True
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return item.minimum <= value <= item.maximum and not (item.kind == "int" and value % 1)


def _valid(item: SearchField) -> str:
    if item.options:
        return ", ".join(str(option) for option in item.options)
    low = f"{item.minimum:g}" if math.isfinite(item.minimum) else ""
    high = f"{item.maximum:g}" if math.isfinite(item.maximum) else ""
    return f"{low}..{high}"


def _plain_parameter(parameter: Parameter) -> dict[str, Any]:
    values = asdict(parameter)
    del values["path"]
    values["choices"] = list(parameter.choices)
    values["condition"] = {path: list(of) for path, of in parameter.condition.items()}
    return values


def _from_plain(path: str, values: Mapping[str, Any]) -> Parameter:
    known = dict(values)
    known["choices"] = tuple(known["choices"])
    known["condition"] = {key: tuple(of) for key, of in known["condition"].items()}
    return Parameter(path=path, **known)
