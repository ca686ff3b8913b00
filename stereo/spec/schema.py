"""Everything that is published about the spec, made from the dataclasses.

`python -m stereo.spec.schema` writes, below the repository root (all files sorted and stable):

    schemas/<model>/<action>.schema.json    JSON Schema 2020-12 of one verb's sections
    schemas/<model>/experiment.schema.json  the same of all sections, for combined specs
    schemas/<model>/model.json              verbs, objective, metrics, keys with a meaning
    schemas/manifest.json                   paths and hashes of the above
    spec_templates/<model>/<action>.yaml    the packaged template, defaults as comments
    docs/spec-reference.md                  every field of every model in a table

`--check` compares instead of writing, and lists every declaration that breaks a rule. Keywords
that JSON Schema does not have are `automl_enabled` and those of `KEYWORDS`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import stereo
from stereo.files import write_bytes
from stereo.spec.experiment import (
    ACTIONS,
    COSTS,
    DATA_KEYS,
    FIDELITY,
    NOT_IN_GRAPH,
    Action,
)
from stereo.spec.fields import MISSING, Node, Scale, range_words, walk
from stereo.spec.models import MODELS, Model

ROOT = Path(__file__).resolve().parents[2]
SCHEMA_VERSION = 1
NETWORK_ARCH = {"StereoDataset": "depth_net_stereo", "MonoDataset": "depth_net_mono"}
SEARCHED_ACTION = "train"  # only its schema carries candidates

_JSON_TYPES = {
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "string": "string",
    "list": "array",
}
_TEXT = {"type": "string", "minLength": 1}
_TEXTS = {"type": "array", "items": _TEXT}
_ENDS: Mapping[str, Any] = {
    "type": "array",
    "items": {"type": "number"},
    "minItems": 2,
    "maxItems": 2,
}
KEYWORDS: Mapping[str, Mapping[str, Any]] = {
    "automl_enabled": {"type": "boolean"},
    "automl_default_parameters": _TEXTS,
    "automl_disabled_parameters": _TEXTS,
    "x-active-if": {
        "type": "object",
        "minProperties": 1,
        "additionalProperties": {"type": "array", "minItems": 1},
    },
    "x-depends-on": _TEXT,
    "x-math-cond": _TEXT,
    "x-null-means": {
        "type": "object",
        "minProperties": 1,
        "additionalProperties": {"type": "object", "additionalProperties": {"type": "number"}},
    },
    "x-popular": {"type": ["boolean", "object"]},
    "x-scale": {"enum": [scale.value for scale in Scale]},
    "x-search-range": _ENDS,
    "x-search-range-cpu": _ENDS,
    "x-shapes-weights": {"const": True},
    "x-source": {
        "type": "object",
        "required": ["model", "action", "schema_version", "generator", "hash"],
    },
    "x-unit": _TEXT,
    "x-upper-open": {"const": True},
    "x-value-type": {
        "enum": [
            "int",
            "float",
            "bool",
            "string",
            "categorical",
            "ordered_int",
            "list",
            "subset_list",
            "optional_list",
        ]
    },
}
"""Keywords beside those of JSON Schema, each with the schema of its value."""

STANDARD_KEYWORDS = frozenset(
    (
        "$schema",
        "$id",
        "title",
        "description",
        "default",
        "type",
        "enum",
        "anyOf",
        "properties",
        "required",
        "additionalProperties",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "items",
        "minItems",
        "maxItems",
        "uniqueItems",
    )
)


# -- JSON Schema ----------------------------------------------------------------------------------


def experiment_schema(model: Model) -> dict[str, Any]:
    """The schema of every section, for combined specs."""
    return _root_schema(model, model.nodes, None)


def action_schema(model: Model, action: str) -> dict[str, Any]:
    """The schema of the sections that one verb reads, with its required fields."""
    verb = ACTIONS[action]
    return _root_schema(model, _nodes_of(model, verb), verb)


def _nodes_of(model: Model, action: Action) -> tuple[Node, ...]:
    """Sections and fields of a verb: model, dataset with its splits, its own and borrowed ones."""
    return tuple(node for node in model.nodes if _belongs(node.path, action))


def _fields_of(nodes: Sequence[Node]) -> list[Node]:
    return [node for node in nodes if node.kind != "section"]


def _belongs(path: str, action: Action) -> bool:
    first, *rest = path.split(".")
    if first == "dataset" and rest and rest[0].endswith("_dataset"):
        return rest[0] in action.splits
    if first in ("model_name", "encryption_key"):
        return action.network
    if first in ("wandb", "mlflow"):
        return action.name == "train"
    return first in ("results_dir", "model", "dataset", action.name) or _borrows(action, path)


def _borrows(action: Action, path: str) -> bool:
    """Whether the verb reads a field of another verb's section, or one below that section."""
    return any(f"{field}.".startswith(f"{path}.") for field in action.borrowed)


def _root_schema(model: Model, nodes: Sequence[Node], action: Action | None) -> dict[str, Any]:
    name = action.name if action else "experiment"
    candidates = action is None or action.name == SEARCHED_ACTION
    required = action.required if action else ()
    properties, top = _properties(nodes, "", required, candidates)
    fields = _fields_of(nodes)
    searched = [node.path for node in fields if candidates and node.facts.search_default]
    never = [
        node.path
        for node in fields
        if node.facts.automl_enabled is False or (node.facts.automl_enabled and not candidates)
    ]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:depthtune:schema:{model.key}:{name}:{SCHEMA_VERSION}",
        "title": f"{model.model_type}: {name}",
        "description": f"An experiment with {model.model_type}.",
        "type": "object",
        "additionalProperties": False,
        "required": top,
        "properties": properties,
        "automl_default_parameters": sorted(searched),
        "automl_disabled_parameters": sorted(never),
        "x-popular": _popular(fields),
        "x-source": {
            "model": model.key,
            "action": name,
            "schema_version": SCHEMA_VERSION,
            "generator": f"depthtune {stereo.__version__}",
            "hash": _sha256(json.dumps([properties, top], sort_keys=True)),
        },
    }


def _properties(
    nodes: Sequence[Node], prefix: str, required: Sequence[str], candidates: bool
) -> tuple[dict[str, Any], list[str]]:
    """Schemas of the nodes directly below `prefix`, and the names among them that are required."""
    properties: dict[str, Any] = {}
    names: list[str] = []
    for node in nodes:
        if node.path.rpartition(".")[0] != prefix.rstrip("."):
            continue
        needed = any(path == node.path or path.startswith(f"{node.path}.") for path in required)
        names += [node.name] if needed else []
        if node.kind == "section":
            below, below_names = _properties(nodes, f"{node.path}.", required, candidates)
            properties[node.name] = {
                "type": "object",
                "description": node.facts.description,
                "additionalProperties": False,
                "required": below_names,
                "properties": below,
            }
        else:
            properties[node.name] = _field_schema(node, needed, candidates)
    return properties, names


def _field_schema(node: Node, required: bool, candidates: bool) -> dict[str, Any]:
    facts = node.facts
    json_type: Any = _JSON_TYPES[node.kind]
    nullable = node.nullable and not required
    schema: dict[str, Any] = {
        "type": [json_type, "null"] if nullable else json_type,
        "description": facts.description,
    }
    if node.default != MISSING and not (node.default is None and not nullable):
        schema["default"] = node.default
    schema.update(_item_limits(node, required) if node.kind == "list" else _limits(node))
    if facts.automl_enabled is not None:
        schema["automl_enabled"] = facts.automl_enabled and candidates
    schema["x-value-type"] = node.value_type
    if _is_number(node) and (facts.automl_enabled or facts.scale is Scale.LOG):
        schema["x-scale"] = facts.scale.value
    optional = {
        "x-search-range": facts.search_range and list(facts.search_range),
        "x-search-range-cpu": facts.search_range_cpu and list(facts.search_range_cpu),
        "x-active-if": facts.active_if and {k: list(v) for k, v in facts.active_if.items()},
        "x-depends-on": facts.depends_on,
        "x-math-cond": facts.math_cond,
        "x-null-means": facts.null_means and {k: dict(v) for k, v in facts.null_means.items()},
        "x-shapes-weights": facts.shapes_weights,
        "x-unit": facts.unit,
        "x-popular": facts.popular,
    }
    schema.update({keyword: value for keyword, value in optional.items() if value})
    return schema


def _is_number(node: Node) -> bool:
    return node.kind in ("int", "float")


def _limits(node: Node) -> dict[str, Any]:
    facts = node.facts
    limits: dict[str, Any] = {"enum": list(node.choices)} if node.choices else {}
    if facts.low is not None and facts.zero_is_off:
        limits["minimum"] = 0
        limits["anyOf"] = [{"const": 0}, {"minimum": facts.low}]
    elif facts.low is not None:
        limits["minimum"] = facts.low
    if facts.exclusive_low:
        limits["exclusiveMinimum"] = facts.low
    if facts.high is not None and math.isinf(facts.high):
        limits["x-upper-open"] = True
    elif facts.high is not None:
        limits["maximum"] = facts.high
    return limits


def _item_limits(node: Node, required: bool) -> dict[str, Any]:
    facts = node.facts
    limits: dict[str, Any] = {}
    if facts.length is not None:
        limits = {"minItems": facts.length, "maxItems": facts.length}
    elif required:
        limits = {"minItems": 1}
    if node.spec_class is not None:
        return {**limits, "items": _entry_schema(walk(node.spec_class))}
    items: dict[str, Any] = {"type": _JSON_TYPES[str(node.item)]}
    if node.choices:
        items["enum"] = list(node.choices)
        limits["uniqueItems"] = True
    if facts.item_low is not None:
        items["minimum"] = facts.item_low
    return {**limits, "items": items}


def _entry_schema(nodes: Sequence[Node], prefix: str = "") -> dict[str, Any]:
    """The schema of one mapping of a list: texts, and mappings of texts."""
    direct = [node for node in nodes if node.path == prefix + node.name]
    return {
        "type": "object",
        "additionalProperties": False,
        "required": [node.name for node in direct if node.default == MISSING],
        "properties": {
            node.name: _entry_schema(nodes, f"{node.path}.")
            if node.kind == "section"
            else _entry_field(node)
            for node in direct
        },
    }


def _entry_field(node: Node) -> dict[str, Any]:
    limits = {"enum": list(node.choices)} if node.choices else {"minLength": 1}
    return {"type": "string", "description": node.facts.description, **limits}


def _popular(fields: Sequence[Node]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for node in fields:
        if node.facts.popular:
            *parents, name = node.path.split(".")
            level = nested
            for parent in parents:
                level = level.setdefault(parent, {})
            level[name] = node.default
    return nested


# -- templates ------------------------------------------------------------------------------------


def template_text(model: Model, action: str) -> str:
    """The packaged template: what the user must touch, and the other defaults as comments."""
    verb = ACTIONS[action]
    values = model.packaged_values(action)
    nodes = [node for node in model.nodes if _in_template(node, verb, values)]
    name = f"{model.model_type} ({model.key})"
    title = f"# {name}: depth_net {action} -e THIS_FILE [key.path=value ...]"
    note = "# ??? must be given. Commented keys show their defaults; remove the # to change one."
    return "\n".join([title, note, "", *_template_lines(nodes, "", values)]) + "\n"


def _in_template(node: Node, action: Action, values: Mapping[str, Any]) -> bool:
    """Given fields and their sections; as comments those of the verb's own, and borrowed ones."""
    if any(path == node.path or path.startswith(f"{node.path}.") for path in values):
        return True
    top, _, rest = node.path.partition(".")
    if top == action.name or _borrows(action, node.path):
        return True
    if top != "dataset" or not action.splits:
        return False
    split, _, below = rest.partition(".")
    augments = below.startswith("augmentation") and split != "train_dataset"
    return not split.endswith("_dataset") or (split in action.splits and not augments)


def _template_lines(nodes: Sequence[Node], prefix: str, values: Mapping[str, Any]) -> Iterator[str]:
    indent = "  " * prefix.count(".")
    for node in nodes:
        if node.path.rpartition(".")[0] != prefix.rstrip("."):
            continue
        given = [path for path in values if f"{path}.".startswith(f"{node.path}.")]
        mark = "" if given else "# "
        if node.kind == "section":
            yield f"{indent}{mark}{node.name}:"
            below = list(_template_lines(nodes, f"{node.path}.", values))
            # Inside a section that is a comment itself, one # in front is enough.
            yield from below if given else (_as_comment(line, indent) for line in below)
        else:
            value = values.get(node.path, node.default)
            yield from _template_field(node, value, f"{indent}{mark}")


def _as_comment(line: str, indent: str) -> str:
    return f"{indent}# {line.removeprefix(indent).replace('# ', '', 1)}"


def _template_field(node: Node, value: Any, start: str) -> Iterator[str]:
    note = " ".join(part for part in (node.facts.description, _range_note(node)) if part)
    if isinstance(value, list) and value and isinstance(value[0], dict):
        yield f"{start}{node.name}:  # {note}"
        for entry in cast("list[dict[str, Any]]", value):
            keys = [f"{key}: {_yaml(item)}" for key, item in entry.items()]
            yield f"{start}  - {keys[0]}"
            yield from (f"{start}    {key}" for key in keys[1:])
    else:
        yield f"{start}{node.name}: {_yaml(value)}  # {note}"


def _range_note(node: Node) -> str:
    """Valid values and unit in brackets, empty when there is nothing to say."""
    valid = ", ".join(str(choice) for choice in node.choices) or range_words(node)
    text = " ".join(part for part in (valid, node.facts.unit) if part)
    return f"[{text}]" if text else ""


def _yaml(value: Any) -> str:
    """A value in YAML flow style; numbers keep a form that YAML 1.1 reads as a number."""
    if isinstance(value, float):
        text = repr(value)
        return text.replace("e", ".0e") if "e" in text and "." not in text else text
    if isinstance(value, list):
        return f"[{', '.join(_yaml(item) for item in cast('list[Any]', value))}]"
    if isinstance(value, str):
        return value or "''"  # nothing at all would be null
    return json.dumps(value)


# -- model.json, manifest, reference page ---------------------------------------------------------


def model_metadata(model: Model) -> dict[str, Any]:
    """What a tool must know about the model besides the schemas."""
    fields = _fields_of(model.nodes)
    return {
        "key": model.key,
        "family": model.family,
        "model_type": model.model_type,
        "network_arch": NETWORK_ARCH[model.dataset_name],
        "schema_version": SCHEMA_VERSION,
        "automl_enabled": any(node.facts.search_default for node in fields),
        "objective": {
            "metric": model.objective,
            "direction": model.metrics[model.objective]["direction"],
            "unit": model.metrics[model.objective]["unit"],
        },
        "fidelity": FIDELITY,
        "checkpoint_mb": model.checkpoint_mb,
        "seconds_per_epoch": dict(model.seconds_per_epoch),
        "metrics": {name: dict(facts) for name, facts in model.metrics.items()},
        "costs": {name: dict(facts) for name, facts in COSTS.items()},
        "structure": {"sections": ["model"], "without": [f"model.{n}" for n in NOT_IN_GRAPH]},
        "parity_limits": {name: dict(limits) for name, limits in model.parity_limits.items()},
        "data_keys": dict(DATA_KEYS),
        "default_dataset": model.default_dataset,
        "weight_keys": list(model.weight_keys),
        "part_keys": {key: list(shaping) for key, shaping in model.part_keys.items()},
        "key_defaults": _popular(fields),
        "shorthands": model.short_names,
        "actions": {
            action.name: {
                "inputs": [asdict(given) for given in model.inputs(action.name)],
                "outputs": [*action.outputs, *model.outputs.get(action.name, ())],
                "required": list(action.required),
            }
            for action in ACTIONS.values()
        },
        "spec_params": {action: model.inherited(action) for action in ACTIONS},
    }


def _manifest(files: Mapping[str, str]) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "generator": f"depthtune {stereo.__version__}",
        "models": {
            model.key: {
                "network_arch": NETWORK_ARCH[model.dataset_name],
                "model_type": model.model_type,
                "automl_enabled": model_metadata(model)["automl_enabled"],
                "metadata": f"schemas/{model.key}/model.json",
                "experiment": f"schemas/{model.key}/experiment.schema.json",
                "actions": {action: _manifest_entry(model, action, files) for action in ACTIONS},
            }
            for model in MODELS.values()
        },
    }


def _manifest_entry(model: Model, action: str, files: Mapping[str, str]) -> dict[str, Any]:
    schema_path = f"schemas/{model.key}/{action}.schema.json"
    template_path = f"spec_templates/{model.key}/{action}.yaml"
    schema = action_schema(model, action)
    return {
        "schema": schema_path,
        "schema_sha256": _sha256(files[schema_path]),
        "template": template_path,
        "template_sha256": _sha256(files[template_path]),
        "fields": len(_fields_of(_nodes_of(model, ACTIONS[action]))),
        "automl_default_parameters": schema["automl_default_parameters"],
        "popular": schema["x-popular"],
        "failures": [],
    }


def reference_text() -> str:
    """Every field in one table per section, as Markdown; a row names its models if not all."""
    names = " and ".join(f"`{model.key}` ({model.model_type})" for model in MODELS.values())
    lines = [
        "# Spec reference",
        "",
        "Generated by `make schemas` from the dataclasses in `stereo/spec`; do not edit.",
        "",
        f"Models: {names}; a field without a model belongs to every one. Search: **default** = a"
        " study searches it when it names nothing, `enabled` and `by name` = only when the study"
        " names it. S = shapes weights, kept fixed when weights are loaded. `???` must be given.",
    ]
    for section, rows in _reference_rows().items():
        title = f"## `{section}`" if section else "## Root"
        lines += ["", title, "", _TABLE_HEAD, _TABLE_RULE]
        lines += [_table_row(row, models) for row, models in rows.items()]
    return "\n".join(lines) + "\n"


def _reference_rows() -> dict[str, dict[tuple[str, ...], list[str]]]:
    """Section -> cells of a row -> keys of the models that have it so, fields side by side."""
    rows: dict[str, dict[str, dict[tuple[str, ...], list[str]]]] = {}
    for model in MODELS.values():
        for node in _fields_of(model.nodes):
            section = rows.setdefault(node.path.rpartition(".")[0], {})
            section.setdefault(node.name, {}).setdefault(_cells(node), []).append(model.key)
    return {
        section: {cells: models for field in fields.values() for cells, models in field.items()}
        for section, fields in rows.items()
    }


_TABLE_HEAD = "| Field | Model | Type | Default | Valid | Unit | Search | Meaning |"
_TABLE_RULE = "|---|---|---|---|---|---|---|---|"


def _table_row(cells: tuple[str, ...], models: Sequence[str]) -> str:
    name, *rest = cells
    shown = "" if len(models) == len(MODELS) else ", ".join(models)
    return f"| {' | '.join((name, shown, *rest))} |"


def _cells(node: Node) -> tuple[str, ...]:
    facts = node.facts
    search = {True: "**default**" if facts.search_default else "enabled", None: "by name"}.get(
        facts.automl_enabled, ""
    )
    if facts.search_range:
        search += f" {facts.search_range[0]:g}..{facts.search_range[1]:g}"
    if facts.search_range_cpu:
        search += f" (CPU {facts.search_range_cpu[0]:g}..{facts.search_range_cpu[1]:g})"
    if facts.automl_enabled and facts.scale is Scale.LOG:
        search += " log"
    if facts.active_if:
        search += "".join(
            f", if {path.rpartition('.')[2]} is {' or '.join(_yaml(v) for v in values)}"
            for path, values in facts.active_if.items()
        )
    if facts.shapes_weights:
        search = f"{search} S".strip()
    valid = ", ".join(str(choice) for choice in node.choices) or range_words(node)
    type_name = f"{node.value_type} or null" if node.nullable else node.value_type
    return (
        f"`{node.name}`",
        type_name,
        f"`{_yaml(node.default)}`",
        valid,
        facts.unit,
        search,
        facts.description,
    )


# -- files, checks, program -----------------------------------------------------------------------


def render() -> dict[str, str]:
    """Path below the root -> text of every generated file."""
    files = {"docs/spec-reference.md": reference_text()}
    for key, model in MODELS.items():
        files[f"schemas/{key}/experiment.schema.json"] = _json(experiment_schema(model))
        files[f"schemas/{key}/model.json"] = _json(model_metadata(model))
        for action in ACTIONS:
            files[f"schemas/{key}/{action}.schema.json"] = _json(action_schema(model, action))
            files[f"spec_templates/{key}/{action}.yaml"] = template_text(model, action)
    files["schemas/manifest.json"] = _json(_manifest(files))
    return files


def violations(model: Model) -> list[str]:
    """Every declaration, keyword and template that breaks a rule of the generated files."""
    found = [fault for node in _fields_of(model.nodes) for fault in _field_faults(node)]
    paths = {node.path for node in model.nodes}
    for node in model.nodes:
        if not node.facts.description:
            found.append(f"{node.path}: no description")
        controls = {*(node.facts.active_if or ()), *filter(None, [node.facts.depends_on])}
        found += [f"{node.path}: depends on unknown {path}" for path in sorted(controls - paths)]
    for schema in (experiment_schema(model), *(action_schema(model, a) for a in ACTIONS)):
        found += _keyword_faults(schema, str(schema["title"]))
    for action in ACTIONS:
        found += _template_faults(model, action)
    return found


def _field_faults(node: Node) -> Iterator[str]:
    facts, default = node.facts, node.default
    low, high = facts.low, facts.high
    is_number = isinstance(default, int | float) and not isinstance(default, bool)
    if is_number and not (facts.zero_is_off and default == 0):
        if low is not None and (default < low or (facts.exclusive_low and default == low)):
            yield f"{node.path}: default {default} below {low}"
        if high is not None and default > high:
            yield f"{node.path}: default {default} above {high}"
    given = cast("list[Any]", default) if isinstance(default, list) else [default]
    for item in given:
        if node.choices and item not in (*node.choices, None, MISSING):
            yield f"{node.path}: default {item} is none of {', '.join(map(str, node.choices))}"
    if not (facts.automl_enabled and _is_number(node)):
        return
    yield from _range_faults(node, facts.search_range or (low, high))
    if facts.search_range_cpu:
        yield from _range_faults(node, facts.search_range_cpu)


def _range_faults(node: Node, ends: tuple[float | None, float | None]) -> Iterator[str]:
    low, high = node.facts.low, node.facts.high
    if any(end is None or math.isinf(end) for end in ends):
        yield f"{node.path}: enabled without both ends of a search range"
        return
    first, last = cast("tuple[float, float]", ends)
    if first >= last:
        yield f"{node.path}: empty search range {first}..{last}"
    if first < (first if low is None else low) or last > (last if high is None else high):
        yield f"{node.path}: search range {first}..{last} outside {low}..{high}"
    if node.facts.scale is Scale.LOG and first <= 0:
        yield f"{node.path}: a log scale needs a low end above 0"


def _keyword_faults(schema: Mapping[str, Any], where: str) -> Iterator[str]:
    for keyword, value in schema.items():
        if keyword in KEYWORDS:
            for fault in _schema_faults(KEYWORDS[keyword], value):
                yield f"{where}: {keyword}: {fault}"
        elif keyword not in STANDARD_KEYWORDS:
            yield f"{where}: unknown keyword {keyword}"
    below: Mapping[str, Any] = schema.get("properties", {})
    for name, value in below.items():
        yield from _keyword_faults(value, f"{where}: {name}")


def _template_faults(model: Model, action: str) -> Iterator[str]:
    """Mistakes of a template after its open values were given."""
    import yaml

    text = template_text(model, action)
    source = f"[{{dataset_name: {model.default_dataset}, data_file: samples.txt}}]"
    for item, given in (("data_sources", source), ("pattern", _ONE_PATTERN)):
        text = text.replace(f"{item}: {MISSING}", f"{item}: {given}")
    for fault in _schema_faults(action_schema(model, action), yaml.safe_load(text)):
        yield f"template {action}: {fault}"


def _schema_faults(schema: Mapping[str, Any], value: Any) -> list[str]:
    """Where a value breaks a schema, which must be valid itself."""
    from jsonschema import Draft202012Validator

    Draft202012Validator.check_schema(schema)
    validator = cast(Any, Draft202012Validator(schema))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]


_ONE_PATTERN = "[left]"


def differences(root: Path = ROOT) -> list[str]:
    """Generated files that are missing, changed or no longer generated below `root`."""
    files = render()
    found: list[str] = []
    for name, text in files.items():
        path = root / name
        if not path.exists():
            found.append(f"{name}: missing")
        elif path.read_bytes() != text.encode():
            found.append(f"{name}: differs from the dataclasses")
    for folder in (f"{kind}/{key}" for kind in ("schemas", "spec_templates") for key in MODELS):
        present = {f"{folder}/{path.name}" for path in (root / folder).glob("*")}
        found += [f"{name}: not generated any more" for name in sorted(present - files.keys())]
    return found


def write(root: Path = ROOT) -> list[str]:
    """Write every generated file that changed; returns their names."""
    changed = [name for name, text in render().items() if _write_if_changed(root / name, text)]
    return sorted(changed)


def _write_if_changed(path: Path, text: str) -> bool:
    content = text.encode()
    if path.exists() and path.read_bytes() == content:
        return False
    write_bytes(path, content)
    return True


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check the generated files; 0 when all is well."""
    parser = argparse.ArgumentParser(prog="python -m stereo.spec.schema", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder with schemas/ and docs/")
    options = parser.parse_args(arguments)
    faults = [f"{model.key}: {fault}" for model in MODELS.values() for fault in violations(model)]
    if options.check:
        faults += [f"{line}; run `make schemas`" for line in differences(options.root)]
    if faults:
        sys.stderr.write("\n".join(faults) + "\n")
        return 1
    if not options.check:
        sys.stdout.writelines(f"wrote {name}\n" for name in write(options.root))
    return 0


if __name__ == "__main__":
    sys.exit(main())
