"""Networks that no schema uses yet: fields against the frozen rows of fields.csv.

networks.csv holds, per field, the row of the network's own family or else of `all`.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from stereo.spec.fields import walk
from stereo.spec.networks import MetricDepthSpec, RelativeDepthSpec

CLASSES = {
    "mono_metric": MetricDepthSpec,
    "mono_relative": RelativeDepthSpec,
}
NETWORKS_CSV = Path(__file__).with_name("networks.csv")
ROWS = list(csv.DictReader(NETWORKS_CSV.read_text().splitlines()))
SEARCHED = {"TRUE": True, "FALSE": False, "": None}


def value_of(row: dict[str, str]) -> object:
    text = row["default"]
    if text in ("null", "true", "false") or text.startswith("["):
        return json.loads(text)
    return {"int": int, "ordered_int": int}.get(row["type"], str)(text)


@pytest.mark.parametrize(("key", "spec_class"), CLASSES.items())
def test_every_field_agrees_with_its_row(key: str, spec_class: type[Any]) -> None:
    rows = {row["path"]: row for row in ROWS if row["model"] == key}
    nodes = {node.path: node for node in walk(spec_class, "model.")}

    assert set(nodes) == set(rows)
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
