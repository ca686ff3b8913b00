"""The objective is what the trainer declares: direction and unit are never guessed."""

import json

import pytest

from automl.contract import Objective
from automl.errors import SchemaError, StudySpecError
from automl.objectives import resolve_objective, score
from tests.automl import studies

MODEL = json.loads((studies.MODEL_DIR / "model.json").read_text())


@pytest.mark.parametrize(
    ("objectives", "expected"),
    [
        ([], Objective("val/epe", "minimize", "px")),
        (["val/bp1"], Objective("val/bp1", "minimize", "fraction")),
        (["val/bp1 minimize"], Objective("val/bp1", "minimize", "fraction")),
    ],
)
def test_a_declared_metric_brings_direction_and_unit(objectives, expected):
    assert resolve_objective(studies.study_spec(objectives=objectives), MODEL) == expected


@pytest.mark.parametrize(
    ("objectives", "words"),
    [
        (["val/bp2"], r"no metric val/bp2 \(it declares val/epe, val/bp1\).*val/bp1\?"),
        (["val/epe maximize"], "got maximize, the trainer declares minimize"),
    ],
)
def test_an_undeclared_metric_or_direction_is_refused(objectives, words):
    with pytest.raises(StudySpecError, match=words):
        resolve_objective(studies.study_spec(objectives=objectives), MODEL)


def test_a_declaration_without_direction_is_an_error():
    with pytest.raises(SchemaError, match="val/x: got direction None"):
        resolve_objective(studies.study_spec(), {"objective": {"metric": "val/x"}})


def test_a_loss_is_smaller_when_better():
    assert Objective("d1", "maximize").loss(0.9) < Objective("d1", "maximize").loss(0.5)
    assert Objective("epe", "minimize").loss(0.5) < Objective("epe", "minimize").loss(0.9)


@pytest.mark.parametrize(
    ("unit", "value", "words"),
    [("px", 2.34567, "2.346 px"), ("fraction", 0.12345, "12.35 %"), ("", 3.0, "3"),
     ("px", None, "-")],
)  # fmt: skip
def test_a_score_is_said_with_its_unit_and_shares_as_percent(unit, value, words):
    assert score(Objective("val/x", "minimize", unit), value) == words
