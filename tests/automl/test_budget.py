"""When a study ends, and what its forecast says."""

import time

import pytest

from automl.budget import Budget
from automl.store import open_study
from automl.study_spec import BudgetChoice
from tests.automl import studies


@pytest.fixture
def study(tmp_path):
    """Two complete trials of two epochs (values 3 and 2), one stopped after one epoch."""
    study = open_study(
        studies.resolved(tmp_path, spec={"train": {"num_epochs": 2}}), tmp_path / "s"
    )
    for trial, (state, epochs, value) in enumerate(
        [("complete", 2, 3.0), ("complete", 2, 2.0), ("stopped", 1, 4.0)]
    ):
        studies.start(study, trial, {"train.optim.lr": 1e-4 * (trial + 1)})
        for epoch in range(1, epochs + 1):
            studies.finish_epoch(study, trial, epoch, value)
        studies.end(study, trial, state)
    yield study
    study.close()


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"trials": 3}, "3 trials started"),
        ({"trials": 4}, None),
        ({"epochs": 5}, "5 epochs finished"),
        ({"epochs": 6}, None),
        ({"target": 2.0}, "trial 1 reached val/epe 2"),
        ({"target": 1.9}, None),
        ({"hours": 0.5}, None),
        ({"no_improvement": 1}, None),
        ({"trials": 9, "epochs": 2}, "budget.epochs 2"),
    ],
)
def test_each_limit_ends_the_study(study, limits, reason):
    found = Budget(BudgetChoice(**limits)).exhausted(study)
    assert (found is None) if reason is None else (reason in found)


def test_hours_count_the_open_session_up_to_now(study):
    budget = Budget(BudgetChoice(hours=0.5))
    assert budget.overrun(study, time.time() + 1700) is None
    assert "budget.hours 0.5" in budget.overrun(study, time.time() + 1900)


def test_complete_trials_without_a_better_one_end_the_study(study):
    budget = Budget(BudgetChoice(no_improvement=2))
    for trial in (3, 4):
        assert budget.exhausted(study) is None
        studies.start(study, trial, {"train.optim.lr": 1e-4 * (trial + 1)})
        for epoch in (1, 2):
            studies.finish_epoch(study, trial, epoch, 2.5)
        studies.end(study, trial, "complete")
    assert "2 complete trials in a row without a better one" in budget.exhausted(study)


def test_a_forecast_says_where_its_time_comes_from(study):
    budget = Budget(BudgetChoice(trials=10))
    unknown = budget.forecast(lambda trials: 3.0 * trials, concurrency=2)
    assert (unknown.epochs, unknown.seconds) == (30, None)
    assert "not known before the first one has finished" in unknown.origin

    measured = budget.forecast(lambda trials: 3.0 * trials, concurrency=2, study=study)
    assert measured.seconds == 30 * 2.0 / 2
    assert "the mean of 5 finished epochs of this study" in measured.origin
    assert "10 trials in random order of quality give about 30 epochs" in measured.origin


def test_a_forecast_respects_the_other_limits():
    budget = Budget(BudgetChoice(trials=10, epochs=20, hours=0.001))
    found = budget.forecast(lambda trials: 90.0, concurrency=1, seconds_per_epoch=2.0)
    assert (found.epochs, found.seconds) == (20, 3.6)
    assert "at most 0.001 hours" in found.origin
