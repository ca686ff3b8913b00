"""Networks that no schema uses yet: fields against the frozen rows of fields.csv, and rules.

networks.csv holds, per field, the row of the network's own family or else of `all`.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from stereo.spec.fields import walk
from stereo.spec.networks import (
    FoundationStereoSpec,
    MetricDepthSpec,
    RelativeDepthSpec,
    foundation_stereo_faults,
)

CLASSES = {
    "fs": FoundationStereoSpec,
    "mono_metric": MetricDepthSpec,
    "mono_relative": RelativeDepthSpec,
}
NETWORKS_CSV = Path(__file__).with_name("networks.csv")
ROWS = list(csv.DictReader(NETWORKS_CSV.read_text().splitlines()))
SEARCHED = {"TRUE": True, "FALSE": False, "": None}
NOT_YET = {"model.compile"}


def value_of(row: dict[str, str]) -> object:
    text = row["default"]
    if text in ("null", "true", "false") or text.startswith("["):
        return json.loads(text)
    return {"int": int, "ordered_int": int}.get(row["type"], str)(text)


@pytest.mark.parametrize(("key", "spec_class"), CLASSES.items())
def test_every_field_agrees_with_its_row(key: str, spec_class: type[Any]) -> None:
    rows = {row["path"]: row for row in ROWS if row["model"] == key}
    nodes = {node.path: node for node in walk(spec_class, "model.")}

    assert set(nodes) == set(rows) - NOT_YET
    for path, node in nodes.items():
        row, facts = rows[path], node.facts
        assert facts.description == row["description"], path
        if node.kind == "section":
            continue
        assert node.default == value_of(row), path
        assert node.nullable == (row["nullable"] == "TRUE"), path
        assert {str(choice) for choice in node.choices} == set(
            filter(None, row["options"].split("|"))
        ), path
        given = facts.low, facts.high, facts.search_range
        ends = (row["min"], row["max"]), (row["search_min"], row["search_max"])
        limits, searched = (tuple(float(end) for end in pair if end) for pair in ends)
        assert given == (*(limits or (None, None)), searched or None), path
        assert facts.unit == row["unit"], path
        assert (facts.math_cond or "") == row["math_cond"], path
        assert facts.shapes_weights == (row["changes_parameter_shapes"] == "TRUE"), path
        assert (
            facts.automl_enabled is {"TRUE": True, "FALSE": False, "": None}[row["automl_enabled"]]
        )
        assert facts.search_default == (row["search_default"] == "TRUE"), path


def test_the_defaults_break_no_rule() -> None:
    assert foundation_stereo_faults(FoundationStereoSpec()) == []


@pytest.mark.parametrize(
    ("fields", "key", "said"),
    [
        ({"hidden_dims": [128, 128]}, "hidden_dims", ["[128, 128]", "128 channels"]),
        ({"hidden_dims": [64, 64, 64]}, "hidden_dims", ["Use [128, 128, 128]"]),
        ({"max_disparity": 200}, "max_disparity", ["200", "multiple of 32", "Use 192"]),
        ({"max_disparity": 33}, "max_disparity", ["Use 32"]),
        ({"volume_dim": 30}, "volume_dim", ["30", "multiple of 4", "Use 32"]),
        ({"cv_group": 12}, "cv_group", ["12", "divide the 1/4-scale width 128", "Use 8"]),
        ({"attention_layout": "mha"}, "attention_layout", ["mha", "variant tao has auto, rows"]),
        (
            {"variant": "public", "attention_layout": "rows"},
            "attention_layout",
            ["rows", "variant public has auto, groups, mha"],
        ),
        ({"variant": "public", "n_gru_layers": 1}, "n_gru_layers", ["got 1", "Use 2"]),
    ],
)
def test_a_broken_rule_names_field_value_rule_and_remedy(
    fields: dict[str, Any], key: str, said: list[str]
) -> None:
    (problem,) = foundation_stereo_faults(FoundationStereoSpec(**fields))

    assert problem.key == f"model.{key}"
    assert [words for words in said if words not in str(problem)] == []


@pytest.mark.parametrize(
    "fields",
    [
        {"n_gru_layers": 1},
        {"variant": "public", "attention_layout": "groups", "n_gru_layers": 2},
        {"variant": "public", "attention_layout": "mha"},
        {"variant": "tao", "attention_layout": "rows"},
        {"variant": "auto", "attention_layout": "mha"},
        {"encoder": "vitl", "cv_group": 16, "volume_dim": 64, "max_disparity": 832},
    ],
)
def test_valid_combinations_break_no_rule(fields: dict[str, Any]) -> None:
    assert foundation_stereo_faults(FoundationStereoSpec(**fields)) == []
