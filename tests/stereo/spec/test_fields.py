"""The declared fields against the frozen rows of fields.csv (design pages).

fields.csv holds the rows of the models of this version, without the columns that are for
information only. The row of a field is that of the model's family, else the row `all`.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from stereo.spec.experiment import ACTIONS
from stereo.spec.fields import MISSING, Node, Scale, range_words
from stereo.spec.models import MODELS, Model
from stereo.spec.schema import action_schema, experiment_schema, violations

Row = Mapping[str, str]
FIELDS_CSV = Path(__file__).with_name("fields.csv")
TABLE = list(csv.DictReader(FIELDS_CSV.read_text().splitlines()))


class Declared:
    """Fields of one model: their rows in the table, their declaration and their schema."""

    def __init__(self, model: Model) -> None:
        self.model = model
        families = ("all", model.family)
        rows = [row for row in TABLE if row["models"] == "all" or model.key in _keys(row)]
        chosen = [row for row in rows if row["family"] in families]
        chosen.sort(key=lambda row: families.index(row["family"]))
        self.rows: dict[str, Row] = {row["path"]: row for row in chosen}
        self.nodes: dict[str, Node] = {node.path: node for node in model.nodes}
        self.leaves = [path for path, node in self.nodes.items() if node.kind != "section"]
        self.schema = experiment_schema(model)


def _keys(row: Row) -> list[str]:
    return row["models"].split(";")


@pytest.fixture(scope="module", params=MODELS)
def declared(request: pytest.FixtureRequest) -> Declared:
    return Declared(MODELS[request.param])


# training.md 4 describes this schedule and the CSV's active_if names it, but not its options.
BEYOND = {"train.optim.lr_scheduler": {"CustomMultiStepLRScheduler"}}
# Numbers that may also be 0 (off), below their range.
ZERO_IS_OFF = {"train.optim.weight_decay", "train.optim.min_lr"}


def schema_at(schema: Mapping[str, Any], path: str) -> dict[str, Any]:
    found: Any = schema
    for name in path.split("."):
        found = found["properties"][name]
    return found


def default_of(row: Row) -> object:
    text = row["default"]
    if row["path"] == "results_dir" or text == MISSING:  # the table leaves the former empty
        return MISSING
    if text in ("null", "true", "false") or text.startswith("["):
        return json.loads(text)
    return {"int": int, "ordered_int": int, "float": float}.get(row["type"], str)(text)


def number(text: str) -> float | None:
    return float(text) if text else None


def test_every_field_has_a_row(declared: Declared) -> None:
    assert set(declared.nodes) == set(declared.rows)


def test_descriptions_agree(declared: Declared) -> None:
    assert {p: schema_at(declared.schema, p)["description"] for p in declared.nodes} == {
        p: declared.rows[p]["description"] for p in declared.nodes
    }


def test_types_defaults_and_nullability_agree(declared: Declared) -> None:
    kinds = {"int": "integer", "ordered_int": "integer", "float": "number", "bool": "boolean"}
    for path in declared.leaves:
        row, schema = declared.rows[path], schema_at(declared.schema, path)
        types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        kind = "array" if row["type"].startswith("list") else kinds.get(row["type"], "string")
        ours = types[0], "null" in types, schema.get("default", MISSING)
        assert ours == (kind, row["nullable"] == "TRUE", default_of(row)), path


def test_valid_values_agree(declared: Declared) -> None:
    for path in declared.leaves:
        row, schema = declared.rows[path], schema_at(declared.schema, path)
        low, high = number(row["min"]), number(row["max"])
        options = {part for part in row["options"].split("|") if part}
        ours = {str(option) for option in schema.get("items", schema).get("enum", [])}
        if path in ZERO_IS_OFF:
            assert schema["anyOf"] == [{"const": 0}, {"minimum": low}], path
        else:
            assert schema.get("minimum") == low, path
        assert schema.get("maximum") == (None if high == math.inf else high), path
        assert schema.get("x-upper-open", False) == (high == math.inf), path
        if schema["x-value-type"] != "optional_list":  # options of the entries have no row
            assert ours == options | BEYOND.get(path, set()), path


def test_search_agrees(declared: Declared) -> None:
    for path in declared.leaves:
        row, schema = declared.rows[path], schema_at(declared.schema, path)
        flag = {"TRUE": True, "FALSE": False, "": None}[row["automl_enabled"]]
        active_if = {}
        if row["active_if"]:
            control, _, values = row["active_if"].partition("=")
            active_if = {control: [{"true": True}.get(v, v) for v in values.split("|")]}
        ends = [number(row["search_min"]), number(row["search_max"])]
        by_default = path in declared.schema["automl_default_parameters"]

        assert schema.get("automl_enabled") == flag, path
        assert by_default == (row["search_default"] == "TRUE"), path
        assert (path in declared.schema["automl_disabled_parameters"]) == (flag is False), path
        assert schema.get("x-search-range", [None, None]) == ends, path
        assert (schema.get("x-scale") == "log") == (row["log_scale"] == "TRUE"), path
        assert schema.get("x-active-if", {}) == active_if, path


def test_remaining_facts_agree(declared: Declared) -> None:
    for path in declared.leaves:
        row, schema = declared.rows[path], schema_at(declared.schema, path)
        shapes, popular = row["changes_parameter_shapes"] == "TRUE", row["popular"] == "TRUE"

        assert schema.get("x-unit", "") == row["unit"], path
        assert schema.get("x-shapes-weights", False) == shapes, path
        assert schema.get("x-popular", False) == popular, path
        assert schema.get("x-math-cond", "") == row["math_cond"], path
        assert schema.get("x-depends-on", "") == row["depends_on"], path


def test_required_fields_agree(declared: Declared) -> None:
    required = {path for action in ACTIONS.values() for path in action.required}
    assert required == {
        path for path in declared.leaves if declared.rows[path]["required"] == "TRUE"
    }
    for action in ACTIONS.values():
        for path in action.required:
            parent, _, name = path.rpartition(".")
            assert name in schema_at(action_schema(declared.model, action.name), parent)["required"]


def test_the_documented_number_of_fields_is_searched(declared: Declared) -> None:
    enabled = {p for p in declared.leaves if declared.nodes[p].facts.automl_enabled}
    by_default = {p for p in enabled if declared.nodes[p].facts.search_default}
    stereo = declared.model.dataset_name == "StereoDataset"
    assert len(by_default) == (17 if stereo else 10)
    assert enabled - by_default == ({"model.cv_group", "model.volume_dim"} if stereo else set())


@pytest.mark.parametrize("split", ["val", "test", "infer"])
def test_evaluation_splits_are_never_searched(declared: Declared, split: str) -> None:
    below = [path for path in declared.leaves if path.startswith(f"dataset.{split}_dataset.")]
    assert below
    assert all(declared.nodes[path].facts.automl_enabled is False for path in below)


def test_declarations_keep_every_rule_of_the_generation(declared: Declared) -> None:
    assert violations(declared.model) == []


def test_ranges_are_said_in_words(declared: Declared) -> None:
    words = {path: range_words(declared.nodes[path]) for path in declared.leaves}
    assert words.get("model.corr_radius", "2..8") == "2..8"  # of the stereo networks
    assert words["train.num_epochs"] == ">= 1"
    assert words["train.optim.min_lr"] == "0 or 1e-12..1"
    assert words["train.optim.lr_decay"] == "> 0 and <= 1"
    assert words["results_dir"] == ""
    assert declared.nodes["train.optim.lr"].facts.scale is Scale.LOG
