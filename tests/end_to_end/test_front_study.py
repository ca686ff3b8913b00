"""A small study of the real network with two conflicting objectives: accuracy and latency."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from automl.store import read_study
from stereo.engines.base import read_sidecar
from tests.end_to_end.small_ffs import Place

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]
LATENCY = "engine/latency_ms"
ITERATIONS = 4
PATIENCE_S = 2400.0  # on a machine that others use; five minutes on two idle cores
CHANGES = {
    "data": {"train": "embedded", "val": "embedded"},
    "objectives": ["val/epe minimize", f"{LATENCY} minimize"],
    "spec": {
        "model": {"train_iters": ITERATIONS, "valid_iters": ITERATIONS},
        "dataset": {"val_dataset": {"batch_size": 4}, "test_dataset": {"batch_size": 4}},
        "train": {"num_epochs": 4, "optim": {"lr": 4e-4}},
    },
    "search": {"parameters": ["train.optim.lr", "model.corr_radius"]},
    "algorithm": {"name": "auto", "rungs": [2]},
}


def test_the_front_has_four_points_and_its_knee_is_promoted(tmp_path: Path) -> None:
    place = Place(tmp_path, name="front")
    place.write(CHANGES)

    code, plan = place.automl("plan", "front.yaml")
    assert code == 0, plan
    assert f"objective   {LATENCY} minimize, ms" in plan
    process = place.start("automl.cli", "study", "front.yaml")
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output

    study = read_study(place.study)
    complete = [trial for trial in study.trials if trial.state == "complete"]
    settings = [setting.value for trial in complete for setting in trial.settings]
    assert settings == list(range(1, ITERATIONS + 1)) * len(complete)  # every complete trial
    front, knee = study.front(), study.knee()
    assert len(front) >= 4
    assert knee in front
    assert knee is not None
    assert knee.setting is not None
    structures = {trial.params["model.corr_radius"] for trial in study.trials}
    assert len(list((place.root / "results" / "measured").iterdir())) == len(structures)
    assert output.count("measuring what this structure costs") == len(structures)

    bundle = json.loads((place.study / "bundle" / "bundle.json").read_text())
    assert bundle["accepted"]
    assert (bundle["trial"], bundle["setting"]) == (knee.trial, dict([knee.setting]))
    graph = place.study / "bundle" / bundle["files"]["graph"]["path"]
    assert (read_sidecar(graph) or {})["iterations"] == knee.setting.value
    swept = study.trials[knee.trial].settings[knee.setting]["val/epe"]
    assert bundle["metrics"]["epe"]["native"] == pytest.approx(swept, rel=1e-4)
    assert bundle["metrics"]["epe"]["graph"] == pytest.approx(swept, rel=1e-2)

    with (place.study / "front.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["front"] == "True"]
    assert len(rows) == len(front)
    page = (place.study / "report.html").read_text("utf-8")
    assert f"Front of {len(front)} points" in page
    code, status = place.automl("status", "front")
    assert code == 0
    assert re.search(rf"trial {knee.trial} at {knee.setting}: val/epe .* \(knee\)", status)
    code, replayed = place.automl("replay", "front")
    assert code == 0, replayed
    assert place.left_over() == []
