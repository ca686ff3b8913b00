"""A log explains its study; a changed one is found out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from automl.algorithms.table import make_algorithm
from automl.cli import main
from automl.replay import Replay, replay
from automl.store import Study, open_study, read_study
from tests.automl import studies
from tests.automl.quadratic import distance


def run_parallel(study: Study, workers: int) -> None:
    """Trials in turn, an epoch of each at a time, ending in another order than they started."""
    algorithm = make_algorithm(study.resolved.study, study.resolved.space, study)
    trials, full = study.resolved.study.budget.trials or 0, study.resolved.full_epochs
    while study.running() or len(study.trials) < trials:
        while len(study.running()) < workers and len(study.trials) < trials:
            studies.start(study, *(algorithm.ask() or (0, {})))
        for trial in study.running()[:: -1 if len(study.events) % 3 else 1]:
            spec = study.resolved.space.apply(study.resolved.base_spec, trial.params)
            if spec["train"]["optim"]["lr"] > 0.05:
                studies.end(study, trial.id, "diverged")
                continue
            epoch = trial.last_epoch + 1
            value = 0.5 + distance(spec) + 4 * 0.7**epoch
            decision = algorithm.stop(trial.id, epoch, value)
            more = {"decision": decision.action, "rung": decision.rung}
            studies.finish_epoch(study, trial.id, epoch, value, **more)
            if decision.action != "continue":
                ends = {"stop": "stopped", "complete": "complete"}
                studies.end(study, trial.id, ends[decision.action])
    assert any(trial.last_epoch < full for trial in study.trials)


@pytest.fixture
def parallel(tmp_path: Path) -> Path:
    resolved = studies.resolved(tmp_path, budget={"trials": 16}, seed=5)
    study = open_study(resolved, tmp_path / "s")
    run_parallel(study, 4)
    study.close()
    return tmp_path / "s"


def changed(directory: Path, change: Callable[[dict[str, Any]], bool]) -> Replay:
    """Replay after the first event for which `change` says that it changed it."""
    log = directory / "events.jsonl"
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert any(change(event) for event in events)
    log.write_text("".join(json.dumps(event) + "\n" for event in events))
    return replay(read_study(directory))


def test_a_parallel_study_follows_from_its_log(parallel: Path) -> None:
    study = read_study(parallel)
    found = replay(study)
    assert found.difference == ""
    assert found.suggestions == 16
    assert found.decisions == sum(event["kind"] == "epoch" for event in study.events) > 40


def test_another_suggestion_is_found(parallel: Path) -> None:
    def change(event: dict[str, Any]) -> bool:
        if event["kind"] != "trial_started" or event["trial"] != 9:
            return False
        event["params"]["train.flip"] = 0.125
        return True

    found = changed(parallel, change)
    assert found.suggestions == 9
    assert "trial 9: train.flip is 0.125 in the log, 0." in found.difference


def test_another_decision_is_found(parallel: Path) -> None:
    def change(event: dict[str, Any]) -> bool:
        stopped = event["kind"] == "epoch" and event["decision"] == "stop"
        event["decision"] = "continue" if stopped else event.get("decision")
        return stopped

    found = changed(parallel, change)
    assert "continue (rung 2) in the log, stop (rung 2) follows" in found.difference


def test_a_forged_value_changes_what_follows(parallel: Path) -> None:
    def change(event: dict[str, Any]) -> bool:
        forged = event["kind"] == "epoch" and (event["trial"], event["epoch"]) == (0, 9)
        if forged:
            event["metrics"]["val/epe"] = 40.0
        return forged

    assert changed(parallel, change).difference


@pytest.mark.parametrize("kill_after", [7, 23])
def test_a_resumed_study_with_a_larger_budget_follows(tmp_path: Path, kill_after: int) -> None:
    study = open_study(studies.resolved(tmp_path, budget={"trials": 8}), tmp_path / "s")
    with pytest.raises(studies.Killed):
        studies.run(study, kill_after)
    study.close()
    study = open_study(studies.resolved(tmp_path, budget={"trials": 14}), tmp_path / "s")
    studies.run(study)
    study.close()
    found = replay(read_study(tmp_path / "s"))
    assert (found.suggestions, found.difference) == (14, "")


def test_the_command_says_what_follows(parallel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(parallel)]) == 0
    assert "16 suggestions and" in capsys.readouterr().out

    log = parallel / "events.jsonl"
    log.write_text(log.read_text().replace('"decision": "stop"', '"decision": "continue"', 1))
    assert main(["replay", str(parallel)]) == 1
    captured = capsys.readouterr()
    assert "events.jsonl: line " in captured.err
    assert "stop (rung" in captured.err
