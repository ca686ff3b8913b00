"""A study of several objectives as its owner meets it: report, status, promotion."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from automl.algorithms.table import make_algorithm
from automl.cli import main
from automl.errors import NoResultError
from automl.live import status_text
from automl.measure import measurer
from automl.promote.chain import StepChoiceError, promote
from automl.report.page import write_report
from automl.runners import local
from automl.store import Study, open_study, read_study
from automl.study import conclusion
from automl.trial import TrialDriver
from tests.automl import studies
from tests.automl.quadratic import NAME
from tests.automl.report.examples import charts
from tests.automl.test_measure import KEYS, MODEL

LATENCY = "engine/latency_ms"


def finished(directory: Path, **changes: Any) -> Study:
    keys = {**KEYS, "spec": {"behaviour": {"steps": 3}}, **changes}
    resolved = studies.resolved(directory, **keys)
    study = open_study(resolved, directory / "results" / "studies" / "s")
    algorithm = make_algorithm(resolved.study, resolved.space, study)
    measure = measurer(NAME, MODEL, (64, 96), directory / "measured")
    local.drive(TrialDriver(study, algorithm, NAME, measure=measure))
    return study


@pytest.fixture
def study(tmp_path: Path):
    study = finished(tmp_path)
    yield study
    study.close()


def test_the_front_on_the_page_is_the_csv(study: Study) -> None:
    text = write_report(study).read_text("utf-8")

    with (study.directory / "front.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    points = {(float(row[LATENCY]), float(row["val/epe"])) for row in rows}
    best = [(float(r[LATENCY]), float(r["val/epe"])) for r in rows if r["front"] == "True"]
    traces: dict[Any, Any] = {trace["meta"]: trace for trace in charts(text)["front"]["data"]}
    drawn = {key: list(zip(trace["x"], trace["y"], strict=True)) for key, trace in traces.items()}
    assert len(rows) == len(study.points()) > len(best) >= 4
    assert sorted(drawn.pop("front")) == sorted(best)
    assert drawn.pop("knee") == [
        (float(r[LATENCY]), float(r["val/epe"])) for r in rows if r["knee"] == "True"
    ]
    assert {point for group in drawn.values() for point in group} == points
    covered = charts(text)["covered"]["data"][0]
    assert covered["customdata"] == [trial.id for trial in study.trials]  # one after another
    assert covered["y"] == sorted(covered["y"])
    assert 0 < covered["y"][-1] < 1
    assert text.count("(knee)") == 1
    assert f"Front of {len(best)} points; its knee is trial" in text


def test_a_study_with_one_objective_has_no_front(tmp_path: Path) -> None:
    study = finished(tmp_path, objectives=[])
    text = write_report(study).read_text("utf-8")
    assert study.front() == []
    assert "front" not in charts(text)
    assert not (study.directory / "front.csv").exists()
    assert "front of" not in status_text(study)
    study.close()


def test_status_and_conclusion_show_the_front(study: Study, capsys, monkeypatch) -> None:
    knee = study.knee()
    assert knee is not None
    for text in (status_text(study), conclusion(study, None)):
        assert f"front of {len(study.front())} points, best val/epe first:" in text
        assert text.count("(knee)") == 1
        line = next(line for line in text.splitlines() if "(knee)" in line)
        assert f"trial {knee.trial} at {knee.setting}: val/epe" in line
    monkeypatch.chdir(study.directory.parents[2])
    assert main(["status", "s", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["front"]
    assert [row["point"] for row in told] == [point.name for point in study.front()]
    assert [row["point"] for row in told if row["knee"]] == [knee.name]


def bundle_of(study: Study) -> dict[str, Any]:
    return json.loads((study.directory / "bundle" / "bundle.json").read_text("utf-8"))


def test_the_knee_is_promoted_at_its_setting(study: Study) -> None:
    knee = study.knee()
    assert knee is not None
    assert knee.setting is not None
    assert knee.setting.value < 3

    assert promote(study, NAME).accepted

    bundle = bundle_of(study)
    assert (bundle["trial"], bundle["setting"]) == (knee.trial, dict([knee.setting]))
    assert bundle["spec"]["behaviour"]["steps"] == knee.setting.value
    assert bundle["values"] == knee.values
    assert [point["point"] for point in bundle["front"]] == [p.name for p in study.front()]


def test_another_point_can_be_selected(study: Study) -> None:
    first = study.front()[0]
    last = study.front()[-1]
    for select, point in (("val/epe", first), (LATENCY, last), (last.name, last)):
        promote(study, NAME, select=select)
        bundle = bundle_of(study)
        assert point.setting is not None
        assert (bundle["trial"], bundle["setting"]) == (point.trial, dict([point.setting]))
    promote(study, NAME, select="0")
    assert (bundle_of(study)["trial"], "setting" in bundle_of(study)) == (0, False)
    with pytest.raises(StepChoiceError, match=r"--select: got '77'; there are knee, val/epe, eng"):
        promote(study, NAME, select="77")


def test_nothing_is_promoted_that_breaks_a_constraint(tmp_path: Path) -> None:
    study = finished(tmp_path, constraints=[f"{LATENCY} <= 1"], budget={"trials": 3})
    assert study.points() != []
    assert study.best() is None
    with pytest.raises(NoResultError, match=f"no complete trial keeps {LATENCY} <= 1 ms"):
        promote(study, NAME)
    assert "No result: no complete trial keeps the constraints" in write_report(study).read_text()
    assert "no complete trial keeps engine/latency_ms <= 1 ms" in status_text(study)
    study.close()


def test_a_moved_study_reads_the_same_front(study: Study) -> None:
    again = read_study(study.directory)
    assert (again.front(), again.knee()) == (study.front(), study.knee())


def test_the_verdict_tells_the_scores_of_the_setting(study: Study) -> None:
    promote(study, NAME)
    knee = study.knee()
    assert knee is not None
    assert knee.setting is not None
    text = write_report(study).read_text("utf-8")
    assert f"val/epe after 9 epochs, {knee.setting}" in text
    scores = study.trials[knee.trial].settings[knee.setting]
    assert f"Best (trial {knee.trial}, {knee.setting})" in text
    assert f"{scores['val/bp1'] * 100:#.4g} %" in text
