"""Whole studies that confirm their winner, in this process and killed on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from automl.budget import Budget
from automl.confirm import ConfirmDriver, confirm, further_seeds
from automl.errors import StudySpecError
from automl.gain import gain
from automl.live import status_text
from automl.plan import prepare
from automl.runners import local
from automl.store import Study, read_study
from tests.automl.quadratic import NAME
from tests.automl.runners.driving import algorithm_of, open_quadratic

EPOCHS = 3


def opened(root: Path, **keys: Any) -> Study:
    keys = {"trials": 5, "confirm": 2, "runner": "local", "behaviour": {"noise": 0.05}, **keys}
    return open_quadratic(root, epochs=EPOCHS, rungs=(1,), **keys)


def search(study: Study) -> None:
    local.run(study, algorithm_of(study), NAME)


def kinds(study: Study) -> list[str]:
    return [event["kind"] for event in study.events]


def test_baseline_and_winner_are_trained_again_on_further_seeds(tmp_path: Path) -> None:
    study = opened(tmp_path)
    search(study)
    best = study.best()
    assert best is not None
    assert best.id != 0

    confirm(study, NAME)

    runs = study.confirmations
    assert [(run.trial, run.seed) for run in runs] == [(0, 1), (best.id, 1), (0, 2), (best.id, 2)]
    assert [run.state for run in runs] == ["complete"] * 4
    assert all(run.last_epoch == EPOCHS for run in runs)
    assert runs[0].params == study.trials[0].params
    assert runs[1].params == best.params
    scores = [study.value(run) for run in runs]
    assert len(set(scores)) == 4  # each seed has its own noise
    assert study.best() is best
    assert len(study.trials) == 5
    found = gain(study)
    assert found is not None
    assert (found.baseline, found.winner) == (tuple(scores[::2]), tuple(scores[1::2]))
    assert not list((study.directory / "confirm").rglob("epoch_*.json"))  # no checkpoint is kept
    study.close()


def test_a_second_start_runs_nothing_again(tmp_path: Path) -> None:
    study = opened(tmp_path)
    search(study)
    confirm(study, NAME)
    before = len(study.events)
    confirm(study, NAME)
    assert len(study.events) == before
    study.close()


class GoneError(BaseException):
    """The driver dies."""


@pytest.mark.parametrize("after", [1, 2, 4, 5, 9])
def test_a_killed_confirmation_goes_on_from_its_last_epoch(tmp_path: Path, after: int) -> None:
    study = opened(tmp_path)
    search(study)
    seen: list[str] = []

    def die(event: Any) -> None:
        seen.append(event["kind"])
        if len(seen) == after:
            raise GoneError

    with pytest.raises(GoneError):
        confirm(study, NAME, live=die)
    study.close()
    assert read_study(study.directory).state == "interrupted"

    again = opened(tmp_path)
    search(again)
    confirm(again, NAME)

    epochs = [(event["run"], event["epoch"]) for event in again.events
              if event["kind"] == "confirm_epoch"]  # fmt: skip
    assert sorted(epochs) == [(run, epoch) for run in range(4) for epoch in (1, 2, 3)]
    undisturbed = opened(tmp_path / "other")
    search(undisturbed)
    confirm(undisturbed, NAME)
    assert gain(again) == gain(undisturbed)
    assert read_study(again.directory).end_reason == again.end_reason
    again.close()
    undisturbed.close()


def test_a_new_winner_is_confirmed_and_the_old_ones_open_runs_end(tmp_path: Path) -> None:
    study = opened(tmp_path)
    search(study)
    old = study.best()
    assert old is not None
    driver = ConfirmDriver(study, NAME)
    assert driver.next_job() is not None
    assert driver.next_job() is not None
    study.close()
    more = opened(tmp_path, trials=30)
    search(more)
    best = more.best()
    assert best is not None
    assert best.id != old.id

    confirm(more, NAME)

    assert more.confirmations[1].state == "stopped"
    assert "no longer the best" in more.confirmations[1].detail
    complete = [run for run in more.confirmations if run.state == "complete"]
    assert {(run.trial, run.seed) for run in complete} == {(0, 1), (0, 2), (best.id, 1),
                                                           (best.id, 2)}  # fmt: skip
    more.close()


def test_a_winner_that_fails_again_is_a_result_and_no_error(tmp_path: Path) -> None:
    study = opened(tmp_path, behaviour={"noise": 0.05, "fail_at": 2, "fail_trials": "confirm"})
    search(study)
    confirm(study, NAME)
    assert [run.state for run in study.confirmations] == ["failed"] * 4
    found = gain(study)
    assert found is not None
    assert found.verdict == "not_shown"
    study.close()


def test_confirmation_counts_in_status_and_cost(tmp_path: Path) -> None:
    study = opened(tmp_path, budget={"cost_per_hour": 3600.0})
    search(study)
    confirm(study, NAME)
    study.close()
    done = sum(run.last_epoch for run in [*study.trials, *study.confirmations])
    text = " ".join(status_text(read_study(study.directory)).split())
    assert f"{done} of about {done} epochs" in text
    assert "the baseline: val/epe" in text
    assert "% interval" in text
    spent = Budget.of(study.resolved.study).spent(study)
    assert spent == pytest.approx(study.active_seconds())


def test_confirm_can_be_asked_for_later(tmp_path: Path) -> None:
    study = opened(tmp_path, confirm=0)
    search(study)
    confirm(study, NAME)
    assert study.confirmations == []
    study.close()
    later = opened(tmp_path, confirm=2)
    search(later)
    confirm(later, NAME)
    assert len(later.confirmations) == 4
    assert [e["new"]["confirm"] for e in later.events if e["kind"] == "budget_changed"] == [2]
    later.close()


def test_one_repetition_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(json.dumps({"model": "quadratic", "budget": {"trials": 2}, "confirm": 1}))
    with pytest.raises(StudySpecError, match=r"confirm: got 1, allowed 0 \(off\), 2 or more"):
        prepare(file, trainable=NAME)


@pytest.mark.parametrize(("used", "seeds"), [(0, [1, 2]), (1234, [1235, 1236]), (-1, [1, 2])])
def test_further_seeds_follow_the_one_of_the_search(
    tmp_path: Path, used: int, seeds: list[int]
) -> None:
    study = opened(tmp_path, spec={"train": {"seed": used}})
    assert further_seeds(study, 2) == seeds
    study.close()
