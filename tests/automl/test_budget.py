"""When a study ends."""

import json
import time

import pytest

from automl.budget import Budget
from automl.errors import StudySpecError
from automl.store import open_study
from automl.study_spec import BudgetChoice, load_study
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
        ({"no_improvement": 1}, "the last 1 ended trials"),
        ({"no_improvement": 2}, None),
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


def one_more(study, value, state="complete"):
    trial = len(study.trials)
    studies.start(study, trial, {"train.optim.lr": 1e-4 * (trial + 1)})
    for epoch in (1, 2) if state == "complete" else (1,):
        studies.finish_epoch(study, trial, epoch, value)
    studies.end(study, trial, state)


@pytest.mark.parametrize("state", ["complete", "stopped", "diverged"])
def test_trials_that_bring_nothing_end_the_study_however_they_end(study, state):
    budget = Budget(BudgetChoice(no_improvement=3))
    for _ in range(2):
        assert budget.exhausted(study) is None
        one_more(study, 2.5, state)
    reason = budget.exhausted(study)
    assert "no improvement is expected: the last 3 ended trials" in reason
    assert "val/epe from 2 to 2 (budget.no_improvement 3)" in reason


def test_gains_too_small_to_matter_end_the_study_and_others_do_not(study):
    budget = Budget(BudgetChoice(no_improvement=2))
    for value in (1.9995, 1.999):
        one_more(study, value)
    assert "from 2 to 1.999" in budget.exhausted(study)
    one_more(study, 1.99)
    assert budget.exhausted(study) is None


def test_nothing_is_judged_before_there_is_a_best_trial(tmp_path):
    study = open_study(studies.resolved(tmp_path), tmp_path / "s")
    for _ in range(5):
        one_more(study, 2.0, "diverged")
    assert Budget(BudgetChoice(no_improvement=2)).exhausted(study) is None
    study.close()


def test_cost_is_time_at_its_price(study):
    budget = Budget(BudgetChoice(cost=5.0, cost_per_hour=10.0))
    assert budget.overrun(study, time.time() + 1700) is None
    reason = budget.overrun(study, time.time() + 1900)
    assert "0.53 hours passed at 10 per hour (budget.cost 5)" in reason
    assert Budget(BudgetChoice(cost_per_hour=3600.0)).spent(study) == study.active_seconds()
    assert Budget(BudgetChoice(trials=1)).spent(study) is None


def test_the_tighter_of_hours_and_cost_counts(study):
    budget = Budget(BudgetChoice(hours=0.2, cost=5.0, cost_per_hour=10.0))
    assert budget.hours() == 0.2
    assert "budget.hours 0.2" in budget.overrun(study, time.time() + 800)


def test_hours_leave_room_for_the_confirmation_but_never_more_than_half(study):
    """A full run took 4 s; three rounds of it are 12 s."""
    limits = BudgetChoice(hours=0.1)
    at = time.time() + 355
    assert Budget(limits).overrun(study, at) is None
    reason = Budget(limits, rounds=3).overrun(study, at)
    assert "0.10 hours passed, about 0.00 are kept for the confirmation" in reason
    assert Budget(limits, rounds=3000).overrun(study, time.time() + 150) is None
    assert Budget(limits, rounds=3000).overrun(study, time.time() + 190) is not None


@pytest.mark.parametrize(("confirm", "concurrent", "rounds"), [(0, 2, 0), (3, 2, 3), (3, 4, 2)])
def test_repetitions_run_side_by_side(confirm, concurrent, rounds):
    settings = studies.study_spec(confirm=confirm, resources={"max_concurrent": concurrent})
    assert Budget.of(settings).rounds == rounds


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ({"cost": 5.0}, "budget.cost: needs budget.cost_per_hour"),
        ({"cost_per_hour": 5.0}, "budget: has no limit"),
        ({"cost": 5.0, "cost_per_hour": 0.0}, "budget.cost_per_hour: got 0.0"),
    ],
)
def test_a_cost_without_its_price_is_refused(tmp_path, budget, words):
    file = tmp_path / "s.yaml"
    file.write_text(json.dumps({"model": "quadratic", "budget": budget}))
    with pytest.raises(StudySpecError, match=words):
        load_study(file)


@pytest.fixture
def front(tmp_path):
    """Trial 0: 2 px at 20 ms; trial 1 breaks the limit; trial 2 is on the front, 3 adds nothing."""
    objectives, constraints = ["val/epe", "engine/latency_ms"], ["engine/latency_ms <= 30"]
    resolved = studies.resolved(tmp_path, objectives=objectives, constraints=constraints)
    study = open_study(resolved, tmp_path / "front")
    for trial, (epe, latency) in enumerate([(2.0, 20.0), (1.0, 40.0), (3.0, 10.0), (3.0, 10.0)]):
        studies.start(study, trial, {"train.flip": trial / 10})
        costs = {"engine/latency_ms": latency}
        study.append({"kind": "trial_measured", "trial": trial, "metrics": costs, "detail": ""})
        for epoch in range(1, resolved.full_epochs + 1):
            studies.finish_epoch(study, trial, epoch, epe)
        studies.end(study, trial, "complete")
    yield study
    study.close()


def test_a_target_is_reached_by_what_keeps_the_constraints(front):
    assert [point.trial for point in front.front()] == [0, 2]
    reached = Budget(BudgetChoice(target=2.0)).overrun(front)
    assert reached == "trial 0 reached val/epe 2 (budget.target 2)"
    assert Budget(BudgetChoice(target=1.5)).overrun(front) is None  # trial 1 did, at 40 ms


def test_trials_that_add_nothing_to_the_front_end_the_study(front):
    assert "the front covers" in Budget(BudgetChoice(no_improvement=1)).exhausted(front)
    assert Budget(BudgetChoice(no_improvement=2)).exhausted(front) is None
