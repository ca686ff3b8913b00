"""Costs of structures: measured once, kept for all studies, in the log before a trial trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from automl.algorithms.table import make_algorithm
from automl.contract import Setting
from automl.errors import StudyFailedError
from automl.measure import measurer, structure_key
from automl.replay import replay
from automl.runners import local
from automl.store import Study, open_study, read_study
from automl.study_spec import merge
from automl.trial import TrialDriver
from tests.automl import studies
from tests.automl.quadratic import NAME, Quadratic

MODEL = json.loads((studies.MODEL_DIR / "model.json").read_text())
LATENCY = "engine/latency_ms"
KEYS: dict[str, Any] = {
    "objectives": ["val/epe minimize", f"{LATENCY} minimize"],
    "budget": {"trials": 8},
    "runner": "local",
}


def spec(**model: Any) -> dict[str, Any]:
    return merge(Quadratic().template("quadratic", "train"), {"model": model})


def run(directory: Path, name: str = "s", **changes: Any) -> Study:
    resolved = studies.resolved(directory, **{**KEYS, **changes})
    study = open_study(resolved, directory / name)
    algorithm = make_algorithm(resolved.study, resolved.space, study)
    measure = measurer(NAME, MODEL, (64, 96), directory / "measured")
    try:
        local.drive(TrialDriver(study, algorithm, NAME, measure=measure))
    finally:
        study.close()
    return study


def test_equal_structures_are_measured_once(tmp_path: Path) -> None:
    told: list[str] = []
    measure = measurer(NAME, MODEL, (64, 96), tmp_path / "measured", told.append)

    first = measure(spec(width=16))
    other_training = merge(spec(width=16), {"train": {"flip": 0.7}, "behaviour": {"noise": 1.0}})
    assert measure(other_training) == first
    assert len(told) == 1
    assert first.metrics == {"model/parameters": 160.0, LATENCY: 16.0}
    assert measure(spec(width=20)).metrics[LATENCY] == 20.0
    assert len(told) == 2
    again = measurer(NAME, MODEL, (64, 96), tmp_path / "measured", told.append)
    assert again(spec(width=16)) == first
    assert len(told) == 2
    names = sorted(file.name for file in (tmp_path / "measured").iterdir())
    assert len(names) == 2
    assert all(name.startswith("quadratic-") and name.endswith(".json") for name in names)


def test_a_structure_is_what_shapes_the_graph_and_the_size_of_the_images() -> None:
    key = structure_key(spec(width=16), MODEL, (64, 96))
    assert structure_key(merge(spec(width=16), {"train": {"flip": 0.5}}), MODEL, (64, 96)) == key
    assert structure_key(spec(width=20), MODEL, (64, 96)) != key
    assert structure_key(spec(width=16), MODEL, (64, 128)) != key
    steps = merge(spec(width=16), {"behaviour": {"steps": 2}})
    assert structure_key(steps, MODEL, (64, 96)) != key


def test_a_damaged_file_is_measured_again(tmp_path: Path) -> None:
    measure = measurer(NAME, MODEL, (64, 96), tmp_path)
    first = measure(spec(width=16))
    (file,) = tmp_path.iterdir()
    file.write_text("{")
    assert measure(spec(width=16)) == first
    assert json.loads(file.read_text())["metrics"] == first.metrics


def test_a_study_knows_the_costs_of_a_trial_before_it_trains(tmp_path: Path) -> None:
    study = run(tmp_path, spec={"behaviour": {"steps": 3}})

    kinds = [(event["kind"], event.get("trial")) for event in study.events]
    for trial in study.trials:
        at = kinds.index(("trial_measured", trial.id))
        assert kinds[at - 1] == ("trial_started", trial.id)
        assert kinds.count(("trial_measured", trial.id)) == 1
        width = trial.params["model.width"]
        assert trial.cost(LATENCY) == width + 12
        assert trial.cost(LATENCY, Setting("behaviour.steps", 1)) == width + 4
        assert trial.cost("model/parameters", Setting("behaviour.steps", 1)) == 10 * width
    complete = [trial for trial in study.trials if trial.state == "complete"]
    assert len(study.points()) == 3 * len(complete)  # the sweep gives several points per trial
    assert len(study.front()) >= 4
    kept = {trial.id for trial in complete if trial.checkpoint and trial.checkpoint.is_file()}
    assert kept == {0, *(point.trial for point in study.front())}
    found = replay(read_study(tmp_path / "s"))
    assert (found.suggestions, found.difference) == (8, "")


def test_a_trial_killed_before_its_costs_were_logged_is_measured_on_resume(tmp_path: Path) -> None:
    resolved = studies.resolved(tmp_path, **KEYS)
    study = open_study(resolved, tmp_path / "s")
    studies.start(study, 0, resolved.space.defaults(resolved.base_spec))
    study.close()

    study = run(tmp_path)

    assert study.trials[0].costs is not None
    assert study.trials[0].attempts == 2
    assert study.trials[0].state == "complete"


def test_a_baseline_that_cannot_be_measured_ends_the_study_at_once(tmp_path: Path) -> None:
    with pytest.raises(StudyFailedError, match=r"baseline cannot be measured.*a width of 8 cannot"):
        run(tmp_path, spec={"behaviour": {"unmeasurable": [8]}})
    assert read_study(tmp_path / "s").trials[0].epochs == []


def test_another_trial_that_cannot_be_measured_has_no_place_on_the_front(tmp_path: Path) -> None:
    search = {"parameters": ["model.width"], "ranges": {"model.width": [8, 16]}}
    keys = {"search": search, "algorithm": "grid", "budget": {"trials": 3}}
    study = run(tmp_path, **keys, spec={"behaviour": {"unmeasurable": [16]}})
    widths = {trial.params["model.width"]: trial for trial in study.trials}
    assert widths[16].costs == {None: {}}
    assert {point.trial for point in study.points()} == {widths[8].id}
    reasons = [event["detail"] for event in study.events if event["kind"] == "trial_measured"]
    assert sum("a width of 16 cannot be exported" in reason for reason in reasons) == 1


def test_no_trial_of_a_study_with_one_objective_is_measured(tmp_path: Path) -> None:
    study = studies.resolved(tmp_path)
    assert study.goals.costs == ()
    assert (study.to_dict()["other_objectives"], study.to_dict()["constraints"]) == ([], [])
