"""The confirmed gain: right numbers, and claims that are right often enough."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from automl.contract import Objective
from automl.gain import gain, in_words, interval
from automl.objectives import Goals
from automl.store import Study, open_study
from tests.automl import studies

STUDIES = 400
TRIALS = 12


def new(directory: Path, **keys: Any) -> Study:
    keys = {"confirm": 3, "spec": {"train": {"num_epochs": 1}}, **keys}
    return open_study(studies.resolved(directory, **keys), directory / "s")


def trial(study: Study, number: int, value: float) -> None:
    studies.start(study, number, {"train.optim.lr": 1e-4 * (number + 1)})
    studies.finish_epoch(study, number, 1, value, decision="complete")
    studies.end(study, number, "complete")


def repeat(study: Study, of: int, seed: int, value: float | None) -> None:
    """One repetition; without a value it diverges."""
    run = len(study.confirmations)
    study.append({"kind": "confirm_started", "run": run, "trial": of, "params": {}, "seed": seed})
    if value is not None:
        study.append({"kind": "confirm_epoch", "run": run, "epoch": 1, "checkpoint": None,
                      "metrics": {"val/epe": value, "seconds": 2.0}})  # fmt: skip
    state = "diverged" if value is None else "complete"
    study.append({"kind": "confirm_ended", "run": run, "state": state, "detail": ""})


@pytest.fixture
def study(tmp_path):
    """The baseline scored 2, trial 1 wins with 1."""
    study = new(tmp_path)
    trial(study, 0, 2.0)
    trial(study, 1, 1.0)
    yield study
    study.close()


def fill(study: Study, baseline: list[Any], winner: list[Any]) -> None:
    for seed, pair in enumerate(zip(baseline, winner, strict=True)):
        for of, value in enumerate(pair):
            repeat(study, of, seed, value)


def test_the_interval_is_students():
    """Worked example: means 10 and 12, standard deviation 1 in both, t(0.965; 4) = 2.4559."""
    low, high = interval((9.0, 10.0, 11.0), (11.0, 12.0, 13.0))
    assert (low, high) == pytest.approx((2 - 2.4559 * (2 / 3) ** 0.5, 2 + 2.4559 * (2 / 3) ** 0.5),
                                        abs=1e-3)  # fmt: skip
    assert interval((1.0,), (1.0, 2.0)) is None


def test_only_the_repetitions_are_compared(study):
    fill(study, [2.0, 2.1, 1.9], [1.9, 2.0, 2.1])
    found = gain(study)
    assert found.difference == pytest.approx(0.0)
    assert found.verdict == "not_shown"
    assert "not shown to be better" in in_words(found, study.objective)


def test_a_gain_is_told_with_its_interval(study):
    fill(study, [2.0, 2.1, 1.9], [1.0, 1.1, 0.9])
    found = gain(study)
    assert found.verdict == "improved"
    words = in_words(found, study.objective)
    assert words.startswith("Trial 1 is better than the baseline: val/epe -1 px (93 % interval -1.")
    assert "means 1 px and 2 px of 3 and 3 further seeds" in words


def test_a_winner_that_is_worse_on_other_seeds_is_told(study):
    fill(study, [2.0, 2.1, 1.9], [3.0, 3.1, 2.9])
    assert gain(study).verdict == "worse"


def test_larger_is_better_where_the_objective_says_so(tmp_path):
    settings = studies.resolved(tmp_path, confirm=3, spec={"train": {"num_epochs": 1}})
    upward = replace(settings, goals=Goals(Objective("val/epe", "maximize", "px")))
    study = open_study(upward, tmp_path / "s")
    trial(study, 0, 1.0)
    trial(study, 1, 2.0)
    fill(study, [2.0, 2.1, 1.9], [3.0, 3.1, 2.9])
    assert gain(study).verdict == "improved"
    study.close()


def test_a_winner_that_fails_on_a_seed_is_no_improvement(study):
    fill(study, [2.0, 2.1, 1.9], [1.0, 1.1, None])
    found = gain(study)
    assert (found.verdict, found.failed) == ("not_shown", 1)
    assert "1 repetitions of trial 1 failed" in in_words(found, study.objective)


def test_too_few_complete_repetitions_say_so(study):
    fill(study, [2.0, 2.1, 1.9], [1.0, None, None])
    found = gain(study)
    assert (found.low, found.verdict) == (None, "not_shown")
    assert "could not be confirmed" in in_words(found, study.objective)


def test_there_is_no_gain_before_the_last_repetition_has_ended(study):
    fill(study, [2.0, 2.1], [1.0, 1.1])
    assert gain(study) is None


def test_a_baseline_that_wins_needs_no_confirmation(tmp_path):
    study = new(tmp_path)
    trial(study, 0, 1.0)
    trial(study, 1, 2.0)
    assert gain(study) is None
    study.close()


def claims(true_gain: float) -> float:
    """Share of studies that claim an improvement; scores are normal, the best of all trials wins.

    `true_gain`, in standard deviations, is what every trial but the baseline really gains.
    """
    claimed = 0
    for seed in range(STUDIES):
        noise = random.Random(seed)
        searched = [noise.gauss(-true_gain * (number > 0), 1.0) for number in range(TRIALS)]
        winner = searched.index(min(searched))
        shift = -true_gain if winner else 0.0
        baseline = tuple(noise.gauss(0.0, 1.0) for _ in range(3))
        again = tuple(noise.gauss(shift, 1.0) for _ in range(3))
        ends = interval(baseline, again)
        claimed += winner > 0 and ends[1] < 0
    return claimed / STUDIES


def test_of_pure_noise_few_studies_claim_an_improvement():
    assert claims(0.0) <= 0.05


def test_a_true_gain_of_three_deviations_is_mostly_claimed():
    assert claims(3.0) >= 0.80
