"""YAML, mappings and overrides -> one checked `ExperimentSpec`, all mistakes in one error.

Values are laid over each other by key: dataclass defaults, the packaged template of the verb, the
spec, the overrides; lists and scalars replace. Only what remains is checked: types and unknown
keys by an OmegaConf structured config, ranges by the declared facts, relations by `rules.RULES`.
"""

from __future__ import annotations

import copy
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stereo.errors import SpecError, SpecProblem
from stereo.spec import rules
from stereo.spec.deploy import QuantLayer
from stereo.spec.experiment import ACTIONS, DATA_KEYS, ExperimentSpec
from stereo.spec.fields import MISSING, Node, leaves, range_words, walk
from stereo.spec.models import DEFAULT, MODELS, Model

LOG = logging.getLogger(__name__)
COMMAND_LINE = "command line"
_DATA_LISTS = tuple(DATA_KEYS.values())
_SOURCE_KEYS = ("dataset_name", "data_file")
_LAYER_NODES = {node.path: node for node in leaves(QuantLayer)}
_ITEMS = ("data_sources", "layers")  # lists of mappings
_Spec = TypeVar("_Spec")


def load_spec(
    source: Path | Mapping[str, Any] | None,
    overrides: Sequence[str] = (),
    *,
    action: str,
    model: str | None = None,
) -> ExperimentSpec:
    """Load the experiment for one verb.

    Args:
        source: a YAML file, a mapping of the same form, or None for the template alone.
        overrides: `key.path=value` with the value in YAML; `+key=value` means the same.
        action: a verb; its required fields must have values afterwards.
        model: model key; default: that of the network the spec and the overrides name.

    Raises:
        SpecError: with every mistake of the spec and the overrides.
    """
    return _laid_over(source, overrides, action, model).finish()


def given_values(
    source: Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    action: str,
    model: str | None = None,
) -> dict[str, Any]:
    """What a spec and overrides say themselves, by dotted path, unchecked.

    Raises:
        SpecError: the file is no YAML mapping.
    """
    loader = _laid_over(source, overrides, action, model)
    return {path: loader.given[path].value for path in sorted(loader.by_user)}


def named_model(source: Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> str | None:
    """Model key of the network that a spec and overrides name; None where they name none."""
    return _named_model(_document(source), overrides)


def to_dict(spec: ExperimentSpec) -> dict[str, Any]:
    """The spec as plain JSON types; null and open values are kept."""
    return asdict(spec)


def template(model: str, action: str) -> dict[str, Any]:
    """The packaged template of a verb as a nested mapping, open values as `???`."""
    _known_action(action)
    nested: dict[str, Any] = {}
    for path, value in _known_model(model).packaged_values(action).items():
        *parents, name = path.split(".")
        level = nested
        for parent in parents:
            level = level.setdefault(parent, {})
        level[name] = copy.deepcopy(value)
    return nested


def _laid_over(
    source: Path | Mapping[str, Any] | None,
    overrides: Sequence[str],
    action: str,
    model: str | None,
) -> _Loader:
    """A loader with the packaged values, the spec and the overrides in it."""
    _known_action(action)
    document = None if source is None else _document(source)
    chosen = _known_model(model or _named_model(document, overrides) or DEFAULT)
    name = document.name if document else f"template {chosen.key}/{action}"
    loader = _Loader(chosen, action, name)
    if document is not None:
        loader.add_document(document)
    for override in overrides:
        loader.add_override(override)
    return loader


def _named_model(document: _Document | None, overrides: Sequence[str]) -> str | None:
    """Key of the network that the last word on `model.model_type` names."""
    section = document.values.get("model") if document else None
    named = cast("Any", section).get("model_type") if isinstance(section, Mapping) else None
    for override in overrides:
        key, _, text = override.removeprefix("+").partition("=")
        named = text.strip("'\" ") if key == "model.model_type" else named
    named = rules.VALUE_ALIASES.get(("model.model_type", str(named)), named)
    keys = (key for key, model in MODELS.items() if model.model_type == named)
    return next(keys, None)


def _known_model(key: str) -> Model:
    if fault := rules.model_key_fault(key):
        raise SpecError([SpecProblem("model key", key, *fault)])
    return MODELS[key]


def _known_action(action: str) -> None:
    if action not in ACTIONS:
        raise SpecError([SpecProblem("action", action, f"unknown, allowed {', '.join(ACTIONS)}")])


class _YamlLoader(yaml.SafeLoader):
    """Safe YAML where `1e-5` is a number, as in YAML 1.2."""


_YamlLoader.add_implicit_resolver(  # pyright: ignore[reportUnknownMemberType]
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


@dataclass(frozen=True)
class _Document:
    """A mapping, what it is called, and the lines of its keys where it came from a file."""

    values: Mapping[str, Any]
    name: str
    lines: Mapping[str, int] = field(default_factory=dict[str, int])
    problems: Sequence[SpecProblem] = ()

    def place(self, path: str) -> str:
        return f"{self.name}:{self.lines[path]}" if path in self.lines else self.name


def _document(source: Path | Mapping[str, Any]) -> _Document:
    return _read_document(source) if isinstance(source, Path) else _Document(source, "spec")


def _read_document(path: Path) -> _Document:
    try:
        loader = _YamlLoader(path.read_text(encoding="utf-8"))
        root = loader.get_single_node()
        values: Any = {} if root is None else cast(Any, loader).construct_document(root)
    except OSError as error:
        reason = error.strerror or str(error)
        problem = SpecProblem(str(path), "", f"cannot be read: {reason}", "Check the path")
        raise SpecError([problem]) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError([_syntax_problem(path, error)]) from None
    if not isinstance(values, dict):
        problem = SpecProblem(str(path), "", "holds no mapping", "Write `section:` and its keys")
        raise SpecError([problem])
    lines: dict[str, int] = {}
    problems: list[SpecProblem] = []
    for key, line in _key_lines(root):
        if key in lines:
            problem = f"given twice, first in line {lines[key]}"
            problems.append(SpecProblem(f"{path}:{line}", key, problem, "Keep one of them"))
        lines.setdefault(key, line)
    return _Document(cast("dict[str, Any]", values), str(path), lines, problems)


def _syntax_problem(path: Path, error: Exception) -> SpecProblem:
    mark = getattr(error, "problem_mark", None)
    place = str(path) if mark is None else f"{path}:{mark.line + 1}"
    detail = getattr(error, "problem", None) or str(error)
    return SpecProblem(place, "", f"is not valid YAML: {detail}")


def _key_lines(node: yaml.Node | None, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Dotted path and line, from 1, of every key and list item below a YAML node."""
    if isinstance(node, yaml.MappingNode):
        pairs = cast("list[tuple[yaml.Node, yaml.Node]]", node.value)
        for key, value in pairs:
            path = f"{prefix}{key.value}"
            yield path, key.start_mark.line + 1
            yield from _key_lines(value, f"{path}.")
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(cast("list[yaml.Node]", node.value)):
            yield f"{prefix}{index}", value.start_mark.line + 1
            yield from _key_lines(value, f"{prefix}{index}.")


@dataclass(frozen=True)
class _Given:
    """A value laid over the default of a field, and the document it stands in."""

    value: Any
    document: _Document


class _Loader:
    """Collects values and mistakes, then builds the spec."""

    def __init__(self, model: Model, action: str, name: str) -> None:
        self.model = model
        self.nodes = {node.path: node for node in model.nodes}
        self.action = action
        self.name = name
        packaged = _Document({}, name)
        values = model.packaged_values(action)
        self.given = {path: _Given(value, packaged) for path, value in values.items()}
        self.by_user: set[str] = set()
        self.problems: list[SpecProblem] = []
        self.failed: set[str] = set()
        self.config = OmegaConf.structured(model.spec_class)

    def fault(self, place: str, key: str, problem: str, remedy: str = "") -> None:
        self.problems.append(SpecProblem(place, key, problem, remedy))
        self.failed.add(key)

    # -- laying values over each other -------------------------------------------------------

    def add_document(self, document: _Document) -> None:
        self.problems.extend(document.problems)
        self._add_mapping(document.values, "", document)

    def _add_mapping(self, values: Mapping[Any, Any], prefix: str, document: _Document) -> None:
        for name, value in values.items():
            path = f"{prefix}{name}"
            node = self.nodes.get(path)
            if node is None:
                self._unknown(path, value, document)
            elif node.kind != "section":
                self._give(path, value, document)
            elif isinstance(value, Mapping):
                self._add_mapping(cast("Mapping[Any, Any]", value), f"{path}.", document)
            elif value is not None:
                self.fault(document.place(path), path, f"got {value!r}, needs keys below it")

    def _give(self, path: str, value: Any, document: _Document) -> None:
        self.given[path] = _Given(value, document)
        self.by_user.add(path)

    def add_override(self, override: str) -> None:
        key, equals, text = override.removeprefix("+").partition("=")
        key = self.model.short_names.get(key, key).format(action=self.action)
        if not equals or not key:
            self.fault(COMMAND_LINE, override, "is no override", "Write key.path=value")
            return
        try:
            value: Any = yaml.load(text, _YamlLoader)
        except yaml.YAMLError:
            self.fault(COMMAND_LINE, key, f"{text!r} is not valid YAML", "Quote the value")
            return
        parent = self._list_above(key)
        if parent is not None:
            self._set_item(parent, key, value)
            return
        nested: dict[str, Any] = {}
        *sections, name = key.split(".")
        level = nested
        for section in sections:
            level = level.setdefault(section, {})
        level[name] = value
        self._add_mapping(nested, "", _Document(nested, COMMAND_LINE))

    def _list_above(self, key: str) -> str | None:
        """The list field that a path with an index points into."""
        parts = key.split(".")
        heads = (".".join(parts[:end]) for end in range(1, len(parts)))
        lists = (head for head in heads if head in self.nodes and self.nodes[head].item)
        return next(lists, None)

    def _set_item(self, path: str, key: str, value: Any) -> None:
        """Change one item of a list, one key of an item, or append the item after the last."""
        index, _, name = key.removeprefix(f"{path}.").partition(".")
        current = self.given[path].value if path in self.given else self.nodes[path].default
        items = copy.deepcopy(cast("list[Any]", current)) if isinstance(current, list) else []
        if not index.isdecimal() or int(index) > len(items):
            self.fault(COMMAND_LINE, key, f"no item {index}", f"The list has {len(items)} items")
            return
        if int(index) == len(items):
            items.append({} if name else None)
        if name and isinstance(items[int(index)], dict):
            items[int(index)][name] = value
        elif name:
            self.fault(COMMAND_LINE, key, f"item {index} has no keys")
        else:
            items[int(index)] = value
        self._give(path, items, _Document({}, COMMAND_LINE))

    def _unknown(self, path: str, value: Any, document: _Document) -> None:
        if isinstance(value, Mapping):
            for name, below in cast("Mapping[Any, Any]", value).items():
                if f"{path}.{name}" in rules.KEY_HINTS:
                    self._unknown(f"{path}.{name}", below, document)
                    return
        if owner := rules.owner(path):
            problem = f"belongs to {owner}, not to {self.model.key}"
            self.fault(document.place(path), path, problem, "Remove the key")
            return
        self.fault(document.place(path), path, "unknown key", self._nearest(path))

    # -- checking what remains ---------------------------------------------------------------

    def finish(self) -> ExperimentSpec:
        for path, given in self.given.items():
            self._check(self.nodes[path], given)
        values = self._resolved()
        for path, node in self.nodes.items():
            if node.kind != "section":
                self._check_range(node, _at(values, path))
        self._check_required(values)
        spec = _build(self.model.spec_class, values)
        self._check_rules(spec)
        if self.problems:
            raise SpecError(self.problems)
        return spec

    def _check(self, node: Node, given: _Given) -> None:
        place = given.document.place(node.path)
        value = self._normalised(node, given.value)
        if node.item == "section" and isinstance(value, list):
            before = len(self.problems)
            entries = enumerate(cast("list[Any]", value))
            read = self._layer if node.spec_class is QuantLayer else self._entry
            value = [read(node, given.document, i, entry) for i, entry in entries]
            if len(self.problems) > before:
                self.failed.add(node.path)
                return
        if value == MISSING and not rules.is_open(node.default):
            self.fault(place, node.path, "left open", f"Give {allowed(node)}")
            return
        try:
            if _wrong_kind(node, value):
                raise TypeError
            OmegaConf.update(self.config, node.path, value)
        except (OmegaConfBaseException, TypeError):
            self._refuse(node, place, given.value)
            return
        if isinstance(value, str) and node.kind in ("int", "float", "bool") and "${" not in value:
            self._warn(place, node.path, f"the text {value!r} is read as {_WORDS[node.kind]}")

    def _normalised(self, node: Node, value: Any) -> Any:
        """The value in its usual spelling: aliases, paths, tuples, empty text, sizes with units."""
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, tuple):
            return list(cast("tuple[Any, ...]", value))
        if isinstance(value, bool) and {"on", "off"} <= set(node.choices):
            return "on" if value else "off"  # YAML 1.1 reads the bare words as truth values
        if isinstance(value, int) and node.facts.unit == "px [H, W]":
            return [value, value]
        if not isinstance(value, str):
            return value
        if node.nullable and value in ("", MISSING):
            return node.default if node.default == MISSING else None
        if node.facts.unit == "GiB":
            return _gibibytes(value)
        return rules.VALUE_ALIASES.get((node.path, value), value)

    def _entry(self, node: Node, document: _Document, index: int, entry: Any) -> dict[str, Any]:
        """One {dataset_name, data_file} with the name in its usual spelling."""
        path = f"{node.path}.{index}"
        place = document.place(path)
        classes = _dataset_names(node)
        names = f"Dataset names: {', '.join(classes)}"
        if not isinstance(entry, Mapping):
            self.fault(place, path, f"got {entry!r}, needs dataset_name and data_file", names)
            return {}
        keys = dict(cast("Mapping[str, Any]", entry))
        for name in _SOURCE_KEYS:
            if keys.get(name) is None:
                self.fault(place, path, f"{name} is missing", names)
        for name in sorted(keys.keys() - set(_SOURCE_KEYS)):
            self.fault(place, f"{path}.{name}", "unknown key", f"Keys: {', '.join(_SOURCE_KEYS)}")
        given = str(keys.get("dataset_name") or MISSING)
        known = {dataset.lower(): dataset for dataset in (*classes, MISSING)}
        if given.lower() not in known and "${" not in given:
            self.fault(place, f"{path}.dataset_name", f"got {given}", names)
        keys["dataset_name"] = known.get(given.lower(), given)
        return keys

    def _layer(self, node: Node, document: _Document, index: int, entry: Any) -> dict[str, Any]:
        """One {module_name, weights, activations} with its types in their usual spelling."""
        path = f"{node.path}.{index}"
        if not isinstance(entry, Mapping) or not cast("Any", entry).get("module_name"):
            problem = f"got {entry!r}, needs module_name"
            self.fault(document.place(path), path, problem, "Write {module_name: PATTERN}")
            return {}
        layer: dict[str, Any] = {}
        for key, value in _leaves(cast("Mapping[str, Any]", entry)):
            place, allowed = document.place(f"{path}.{key}"), _LAYER_NODES.get(key)
            if allowed is None:
                keys = ", ".join(_LAYER_NODES)
                self.fault(place, f"{path}.{key}", "unknown key", f"Keys: {keys}")
                continue
            value = rules.TYPE_ALIASES.get(value, value) if isinstance(value, str) else value
            if not isinstance(value, str) or (allowed.choices and value not in allowed.choices):
                choices = ", ".join(map(str, allowed.choices)) or "text"
                self.fault(place, f"{path}.{key}", f"got {value!r}, allowed {choices}")
                continue
            section, _, name = key.rpartition(".")
            (layer.setdefault(section, {}) if section else layer)[name] = value
        return layer

    def _resolved(self) -> dict[str, Any]:
        """Plain values of the config, references like `${results_dir}` filled in."""
        while True:
            try:
                return cast("dict[str, Any]", OmegaConf.to_container(self.config, resolve=True))
            except OmegaConfBaseException as error:
                node = self.nodes.get(str(error.full_key or "").partition("[")[0])
                if node is None:
                    self.fault("spec", str(error.full_key), str(error))
                    raise SpecError(self.problems) from None
                reason = str(error).partition("\n")[0]
                self.fault(self._place(node.path), node.path, f"cannot be resolved: {reason}")
                OmegaConf.update(self.config, node.path, copy.deepcopy(node.default))

    def _check_range(self, node: Node, value: Any) -> None:
        if node.path in self.failed or value is None or value == MISSING:
            return
        items = cast("list[Any]", value) if isinstance(value, list) else [value]
        right_length = node.kind != "list" or node.facts.length in (None, len(items))
        if not right_length or not all(_in_range(node, item) for item in items):
            self._refuse(node, self._place(node.path), value)

    def _check_required(self, values: Mapping[str, Any]) -> None:
        for path in ACTIONS[self.action].required:
            value = _at(values, path)
            if path in self.failed or path == f"{self.action}.results_dir":
                continue  # of an output folder a rule says that the top-level one will do
            if rules.is_open(value) or value == []:
                self._open(path)
            elif path in _DATA_LISTS:
                for index, entry in enumerate(cast("list[Mapping[str, Any]]", value)):
                    for name in (n for n in _SOURCE_KEYS if entry[n] == MISSING):
                        self._open(f"{path}.{index}.{name}")

    def _open(self, path: str) -> None:
        remedy = f"Set it in the spec or with {path}=VALUE"
        if path in _DATA_LISTS:
            names = ", ".join(_dataset_names(self.nodes[path]))
            remedy = f"Give a list of {{dataset_name, data_file}}; dataset names: {names}"
        self.fault(self._place(path), path, f"required by {self.action}, not set", remedy)

    def _check_rules(self, spec: ExperimentSpec) -> None:
        for rule in rules.RULES[self.model.key]:
            applies = not rule.actions or self.action in rule.actions
            if not applies or not self.failed.isdisjoint(rule.keys):
                continue
            problem = rule.broken(spec)
            if problem is None:
                continue
            key = rule.keys[0]
            place = next((self._place(k) for k in rule.keys if k in self.by_user), self.name)
            if rule.warning:
                self._warn(place, key, problem, rule.remedy)
            else:
                self.problems.append(SpecProblem(place, key, problem, rule.remedy))

    # -- messages ----------------------------------------------------------------------------

    def _place(self, path: str) -> str:
        return self.given[path].document.place(path) if path in self.by_user else self.name

    def _warn(self, place: str, key: str, problem: str, remedy: str = "") -> None:
        LOG.warning("%s", SpecProblem(place, key, problem, remedy))

    def _refuse(self, node: Node, place: str, value: Any) -> None:
        hint = rules.VALUE_HINTS.get((node.path, value)) if isinstance(value, str) else None
        options = [str(choice) for choice in node.choices]
        near = get_close_matches(value, options, 1) if isinstance(value, str) else []
        if hint is None and near:
            hint = f"Did you mean {near[0]}"
        if hint is None and (nearest := _nearest_valid(node, value)) is not None:
            hint = f"The nearest is {nearest}"
        if hint is None and not rules.is_open(node.default):
            hint = f"Remove the key for the default {node.default}"
            if value is None and node.kind == "string":
                hint += f", or write {node.path}=\"''\" for an empty text"
        self.fault(place, node.path, f"got {value!r}, allowed {allowed(node)}", hint or "")

    def _nearest(self, path: str) -> str:
        """What an unknown key probably should be."""
        name = path.rpartition(".")[2]
        hint = rules.KEY_HINTS.get(path) or rules.NAME_HINTS.get(name)
        if hint:
            return hint[0].upper() + hint[1:]
        parent = path.rpartition(".")[0]
        siblings = [n.name for n in self.nodes.values() if n.path.rpartition(".")[0] == parent]
        same_name = [p for p, node in self.nodes.items() if node.name == name]
        near = [f"{parent}.{s}" if parent else s for s in get_close_matches(name, siblings, 2)]
        near += same_name[:2] if len(same_name) <= 2 else []
        near = near or get_close_matches(path, list(self.nodes), 2)
        return f"Nearest: {', '.join(dict.fromkeys(near))}" if near else "Remove the key"


def _dataset_names(node: Node) -> tuple[str, ...]:
    """Dataset classes that the entries of a list of data sources may name."""
    assert node.spec_class is not None
    return next(entry.choices for entry in walk(node.spec_class) if entry.choices)


def allowed(node: Node) -> str:
    """The valid values of a field in words: `integer 2..8`, `list of 4 integers >= 1`."""
    facts = node.facts
    if node.spec_class is not None:
        return f"a list of {{{', '.join(field.name for field in fields(node.spec_class))}}}"
    if node.choices:
        words = ", ".join(str(choice) for choice in node.choices)
        words = f"a list of {words}" if node.kind == "list" else words
    elif node.kind == "list":
        count = "" if facts.length is None else f"{facts.length} "
        least = "" if facts.item_low is None else f" >= {facts.item_low:g}"
        words = f"a list of {count}{_WORDS[str(node.item)]} values{least}"
    else:
        words = f"{_WORDS[node.kind]} {range_words(node)}".rstrip()
    return f"{words} or null" if node.nullable else words


_WORDS = {"int": "integer", "float": "number", "bool": "true or false", "string": "text"}


def _wrong_kind(node: Node, value: Any) -> bool:
    """What OmegaConf would convert silently: a truth value as text, a list inside a list."""
    if node.kind == "string":
        return isinstance(value, bool)
    if node.kind == "list" and node.item != "section" and isinstance(value, list):
        return any(isinstance(item, bool | list | dict) for item in cast("list[Any]", value))
    return False


def _in_range(node: Node, value: Any) -> bool:
    """Whether a number, or a list's item, lies between the declared ends."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    facts = node.facts
    if not math.isfinite(value):
        return False
    if node.kind == "list":
        return facts.item_low is None or value >= facts.item_low
    if facts.options:
        return value in facts.options
    if facts.zero_is_off and value == 0:
        return True
    if facts.low is not None and (
        value < facts.low or (facts.exclusive_low and value == facts.low)
    ):
        return False
    return facts.high is None or value <= facts.high


def _nearest_valid(node: Node, value: Any) -> Any:
    """The valid number or list that lies nearest to an invalid one; None when nothing is near."""
    if node.kind == "list" and isinstance(value, list):
        return _nearest_items(node, cast("list[Any]", value))
    facts = node.facts
    if node.kind not in ("int", "float") or not _is_number(value):
        return None
    number = cast("float", value)
    if facts.options:
        return min(facts.options, key=lambda option: abs(option - number))
    if facts.low is not None and number < facts.low:
        return None if facts.exclusive_low else facts.low
    return facts.high if facts.high is not None and number > facts.high else None


def _nearest_items(node: Node, items: list[Any]) -> list[Any] | None:
    """The list in its right length, the default's items in place of missing ones, none too low."""
    facts, default = node.facts, cast("list[Any]", node.default or [])
    least, length = facts.item_low, facts.length or len(items)
    whole = [*items[:length], *default[len(items) : length]]
    fits = len(whole) == length and all(map(_is_number, whole))
    return [max(least, item) for item in whole] if fits and least is not None else None


def _is_number(value: Any) -> bool:
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and math.isfinite(value)


def _gibibytes(text: str) -> int | str:
    """A size with its unit in whole GiB, rounded up; the text itself when it is none."""
    match = re.fullmatch(r"(\d+)\s*(GiB|MiB)", text, re.IGNORECASE)
    if match is None:
        return text
    size = int(match[1])
    return size if match[2].lower() == "gib" else math.ceil(size / 1024)


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path and value of everything below a mapping that is none itself."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(cast("Mapping[str, Any]", value), f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", value


def _at(values: Mapping[str, Any], path: str) -> Any:
    value: Any = values
    for name in path.split("."):
        value = value[name]
    return value


def _build(spec_class: type[_Spec], values: Mapping[str, Any]) -> _Spec:
    """A dataclass from plain values, nested sections and data sources included."""
    built = spec_class()
    for declared in fields(cast(Any, spec_class)):
        current, value = getattr(built, declared.name), values[declared.name]
        if is_dataclass(current):
            value = _build(type(current), value)
        elif declared.name in _ITEMS and isinstance(value, list):
            (items,) = (node for node in walk(spec_class) if node.path == declared.name)
            entry_class = cast("type[Any]", items.spec_class)
            value = [_build(entry_class, entry) for entry in cast("list[Any]", value)]
        setattr(built, declared.name, value)
    return built
