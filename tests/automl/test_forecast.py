"""How long a study will take, against simulated studies of the real search space."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from automl.algorithms.rungs import Rungs
from automl.budget import Budget
from automl.forecast import EpochTimes, epochs_left, forecast
from automl.live import seconds_left
from automl.plan import prepare
from automl.space import build_space, read_fields
from automl.store import ResolvedStudy, Study, TrialRecord, open_study
from automl.study_spec import AlgorithmChoice, BudgetChoice, ResourceChoice, SearchChoice
from tests.automl import studies
from tests.automl.simulated import BEGIN, Work, at, simulate

SCHEMA = Path(__file__).resolve().parents[2] / "schemas" / "ffs" / "train.schema.json"
ITERS, RADIUS, LR = "model.train_iters", "model.corr_radius", "train.optim.lr"
EPOCHS = 12


def seconds(params: Mapping[str, Any]) -> float:
    """Time of an epoch: iterations matter most, the radius a little; 4 to 32 differ 2.3 times."""
    return (0.45 + 0.025 * params[ITERS]) * (0.8 + 0.05 * params[RADIUS])


def value(params: Mapping[str, Any], epoch: int) -> float:
    """A score with its best at lr 6e-4 and 24 iterations, and a little noise."""
    lr, iters = math.log10(params[LR]) + 3.2, params[ITERS] - 24
    noise = random.Random(str(sorted(params.items()))).gauss(1.0, 0.03)
    return (0.5 + 0.25 * lr * lr + 0.01 * abs(iters)) * (1 + 3 * epoch**-1.2) * noise


WORK = Work(value, seconds, between=0.1)


@pytest.fixture(scope="module")
def base() -> ResolvedStudy:
    return prepare("ffs").resolved


def stereo(base: ResolvedStudy, root: Path, slots: int, seed: int, **keys: Any) -> Study:
    """A study of the real FFS space, `train_iters` and `corr_radius` over their whole range."""
    settings = replace(
        base.study,
        search=SearchChoice(ranges={ITERS: (4, 32), RADIUS: (2, 8)}),
        resources=ResourceChoice(max_concurrent=slots),
        seed=seed,
        **{"budget": BudgetChoice(trials=13), "algorithm": AlgorithmChoice(name="tpe"), **keys},
    )
    fields = read_fields(json.loads(SCHEMA.read_text()))
    space = build_space(fields, settings, base.base_spec, ())
    resolved = replace(base, study=settings, space=space, full_epochs=EPOCHS)
    return open_study(resolved, root / f"{slots}_{seed}")


def errors(base: ResolvedStudy, root: Path, slots: int, **keys: Any) -> list[float]:
    """Relative error of the whole wall time as expected after three trials, of several studies."""
    found: list[float] = []
    for seed in range(7):
        study = stereo(base, root, slots, seed, **keys)
        expected: list[float] = []

        def look(now: float, study: Study = study, expected: list[float] = expected) -> None:
            if sum(trial.ended is not None for trial in study.trials) == 3:
                left = forecast(study.resolved, study, BEGIN + now).seconds
                assert left is not None
                expected.append(now + left)

        total = simulate(study, WORK, slots, look)
        study.close()
        found.append(expected[0] / total - 1)
    return found


@pytest.mark.parametrize("slots", [1, 2])
def test_after_three_trials_the_wall_time_is_known_to_a_fifth(base, tmp_path, slots):
    found = errors(base, tmp_path, slots)
    assert sum(abs(error) <= 0.2 for error in found) >= len(found) - 1
    assert sum(map(abs, found)) / len(found) <= 0.12


def test_early_stopping_is_expected_as_it_happens_on_average(base, tmp_path):
    """How far ten more trials get is chance: a single study may differ by more."""
    found = errors(base, tmp_path, 2, algorithm=AlgorithmChoice(name="asha"))
    assert abs(sum(found) / len(found)) <= 0.2
    assert sum(abs(error) <= 0.35 for error in found) >= len(found) - 2


def test_the_time_of_an_epoch_follows_the_parameters(base, tmp_path):
    study = stereo(base, tmp_path, 1, 0, budget=BudgetChoice(trials=6))
    simulate(study, WORK)
    model = EpochTimes(study.resolved.space, study.trials, None)
    default = study.resolved.space.defaults(study.resolved.base_spec)
    for iters, radius in ((6, 4), (18, 3), (30, 7)):
        params = {**default, ITERS: iters, RADIUS: radius}
        assert model.of(params) == pytest.approx(seconds(params), rel=0.15)
    study.close()


def test_nothing_is_known_before_the_first_epoch_unless_it_was_measured(base, tmp_path):
    study = stereo(base, tmp_path, 2, 0)
    unknown = forecast(study.resolved, study)
    assert (unknown.trials, unknown.seconds, unknown.cost) == (13, None, None)
    assert unknown.epochs == 13 * EPOCHS
    assert "not known before the first one has finished" in unknown.origin
    measured = forecast(study.resolved, None, seconds_per_epoch=2.0)
    assert measured.seconds == 7 * EPOCHS * 2.0  # seven rounds of two
    assert "2 s per epoch, as measured before" in measured.origin
    study.close()


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ({"trials": 13, "epochs": 24}, 48.0),
        ({"epochs": 24}, 48.0),
        ({"trials": 13, "hours": 0.01}, 36.0),
        ({"hours": 0.01}, 36.0),
        ({"trials": 13, "cost": 1.0, "cost_per_hour": 100.0}, 36.0),
        ({"no_improvement": 3}, None),
    ],
)
def test_a_forecast_respects_every_limit(base, tmp_path, budget, expected):
    study = stereo(base, tmp_path, 1, 0, budget=BudgetChoice(**budget))
    assert forecast(study.resolved, None, seconds_per_epoch=2.0).seconds == expected
    study.close()


def test_a_forecast_names_its_price(base, tmp_path):
    budget = BudgetChoice(trials=1, cost_per_hour=3600.0)
    study = stereo(base, tmp_path, 1, 0, budget=budget)
    assert forecast(study.resolved, None, seconds_per_epoch=2.0).cost == EPOCHS * 2.0
    study.close()


def test_hours_bound_search_and_confirmation_together(base, tmp_path):
    """Four repetitions of 24 s one after another are kept out of the 180 s."""
    study = stereo(base, tmp_path, 1, 0, budget=BudgetChoice(trials=13, hours=0.05), confirm=2)
    assert forecast(study.resolved, None, seconds_per_epoch=2.0).seconds == pytest.approx(180)
    study.close()


def test_confirmation_is_counted_until_it_has_ended(tmp_path):
    study = open_study(
        studies.resolved(tmp_path, confirm=2, budget={"trials": 2}, runner="local",
                         spec={"train": {"num_epochs": 2}}), tmp_path / "s")  # fmt: skip
    before = forecast(study.resolved, None, seconds_per_epoch=2.0)
    assert (before.epochs, before.seconds) == (2 * 2 + 4 * 2, 24.0)
    for trial, score in enumerate((3.0, 2.0)):
        studies.start(study, trial, {"train.optim.lr": 1e-4 * (trial + 1)})
        for epoch in (1, 2):
            studies.finish_epoch(study, trial, epoch, score)
        studies.end(study, trial, "complete")
    study.append({"kind": "study_ended", "reason": "over"})
    assert forecast(study.resolved, study).epochs == 8
    study.append({"kind": "confirm_started", "run": 0, "trial": 0, "params": {}, "seed": 1})
    study.append({"kind": "confirm_epoch", "run": 0, "epoch": 1, "metrics": {}, "checkpoint": None})
    assert forecast(study.resolved, study).epochs == 7
    study.close()


def test_the_time_left_falls_with_the_clock_after_the_last_event(tmp_path, monkeypatch):
    study = open_study(
        studies.resolved(tmp_path, budget={"trials": 1}, runner="local",
                         spec={"train": {"num_epochs": 9}}), tmp_path / "s")  # fmt: skip
    assert seconds_left(study) is None
    studies.start(study, 0, {})
    studies.finish_epoch(study, 0, 1, 1.0)
    now = time.time()
    assert seconds_left(study) == pytest.approx(16.0, abs=1.0)
    monkeypatch.setattr(time, "time", lambda: now + 10)
    assert seconds_left(study) == pytest.approx(6.0, abs=1.0)
    study.close()


def test_a_baseline_that_won_has_nothing_left_to_confirm(tmp_path):
    study = open_study(
        studies.resolved(tmp_path, confirm=2, budget={"trials": 1},
                         spec={"train": {"num_epochs": 1}}), tmp_path / "s")  # fmt: skip
    studies.start(study, 0, {})
    studies.finish_epoch(study, 0, 1, 1.0)
    studies.end(study, 0, "complete")
    study.append({"kind": "study_ended", "reason": "over"})
    assert (forecast(study.resolved, study).epochs, forecast(study.resolved, study).seconds) == (
        0, 0.0)  # fmt: skip
    study.close()


def test_the_rest_of_a_running_trial_follows_its_chances_at_the_rungs():
    rungs = Rungs(12, (2, 6), factor=3)
    trials = [TrialRecord(number, {}, 0, 0.0) for number in range(2)]
    assert epochs_left(trials[0], trials, rungs) == 12  # the baseline is never stopped
    assert epochs_left(trials[1], trials, rungs) == 12  # so is the first to arrive
    many = [TrialRecord(number, {}, 0, 0.0) for number in range(10)]
    for trial in many[:9]:
        trial.epochs = [record(12)]
    assert epochs_left(many[0], many, rungs) == 0
    assert epochs_left(TrialRecord(0, {}, 0, 0.0), many, rungs) == 12
    assert epochs_left(many[9], many, rungs) == pytest.approx(2 + 4 * 0.3 + 6 * 0.3 * 0.3)


def record(epoch: int) -> Any:
    from automl.store import EpochRecord

    return EpochRecord(epoch, {}, 1.0, None, "continue", None)


def test_the_reserve_of_a_simulated_study_keeps_it_inside_its_hours(base, tmp_path):
    budget = BudgetChoice(hours=0.05)
    study = stereo(base, tmp_path, 1, 0, budget=budget, confirm=2)
    end = simulate(study, WORK)
    best = study.best()
    assert best is not None
    full = max(best.seconds, study.trials[0].seconds)
    assert 4 * full < 90  # less than half of the limit, so all of it is kept
    assert end + 4 * full <= 180 + EPOCHS * 1.5
    assert "kept for the confirmation" in (Budget.of(study.resolved.study).exhausted(
        study, BEGIN + end) or "")  # fmt: skip
    at(study, end, kind="study_ended", reason="over")
    study.close()
