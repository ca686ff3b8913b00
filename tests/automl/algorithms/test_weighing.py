"""What samplers of one objective see of a study with several."""

from __future__ import annotations

import math

import pytest

from automl.algorithms.curves import curve_of
from automl.algorithms.table import make_algorithm, row_of
from automl.algorithms.weighing import is_hopeless, rivals, weighed
from automl.contract import Objective, Setting
from automl.objectives import Constraint, Goals
from automl.store import TrialRecord, open_study, read_study
from tests.automl import studies
from tests.automl.algorithms.trials import trial

EPE = Objective("epe", "minimize", "px")
SPEED = Objective("engine/latency_ms", "minimize", "ms")
BOTH = Goals(EPE, (SPEED,), (), (SPEED.metric,))


def measured(number: int, latency: float, *epe: float) -> TrialRecord:
    record = trial(number, {"lr": 1e-3}, "complete" if len(epe) == 3 else "stopped", *epe)
    record.costs = {
        None: {SPEED.metric: latency},
        Setting("iters", 1): {SPEED.metric: latency / 2},
        Setting("iters", 2): {SPEED.metric: latency},
    }
    return record


ACCURATE = measured(0, 40.0, 4.0, 2.0, 1.0)
FAST = measured(1, 10.0, 8.0, 6.0, 4.0)
STOPPED = measured(2, 20.0, 8.0)
TRIALS = [ACCURATE, FAST, STOPPED]


def losses(trials: list[TrialRecord], number: int) -> list[dict[int, float]]:
    return [curve_of(record, EPE) for record in weighed(trials, BOTH, 0, number)]


def test_one_objective_is_left_as_it_is():
    assert weighed(TRIALS, Goals(EPE), 0, 5) is TRIALS


def test_every_proposal_weighs_anew_and_together_they_want_both_ends():
    told = [losses(TRIALS, number) for number in range(40)]
    accurate_first = [curves[0][3] < curves[1][3] for curves in told]
    assert 5 < sum(accurate_first) < 35
    assert losses(TRIALS, 7) == told[7]


def test_a_trial_that_ended_early_keeps_its_curve():
    for number in range(10):
        curves = losses(TRIALS, number)
        assert [sorted(curve) for curve in curves] == [[1, 2, 3], [1, 2, 3], [1]]
        assert all(curve[1] >= curve[2] >= curve[3] for curve in curves[:2])
        assert all(math.isfinite(loss) for curve in curves for loss in curve.values())


def test_a_dominated_trial_never_looks_better_than_the_one_that_beats_it():
    worse = measured(3, 50.0, 8.0, 7.0, 5.0)
    for number in range(20):
        told = losses([*TRIALS, worse], number)
        assert told[3][3] > max(told[0][3], told[1][3])


@pytest.mark.parametrize(("limit", "hopeless"), [(30.0, False), (20.0, False), (19.0, True)])
def test_only_what_no_setting_can_save_counts_as_failed(limit, hopeless):
    goals = Goals(EPE, (), (Constraint(SPEED.metric, "<=", limit),), (SPEED.metric,))
    assert is_hopeless(ACCURATE, goals) == hopeless  # 40 ms, 20 ms with one iteration
    seen = weighed(TRIALS, goals, 0, 5)
    assert seen[0].state == ("invalid_spec" if hopeless else "complete")
    assert [record.state for record in seen[1:]] == ["complete", "stopped"]
    assert ACCURATE.state == "complete"


def test_a_trial_is_compared_with_those_that_cost_no_more():
    assert rivals(TRIALS, STOPPED, BOTH) == [FAST, STOPPED]
    nearly = [measured(3, 20.9, 1.0), measured(4, 21.1, 1.0)]  # ms; STOPPED has 20
    assert rivals(nearly, STOPPED, BOTH) == nearly[:1]
    assert rivals(TRIALS, STOPPED, Goals(EPE)) == TRIALS


@pytest.mark.parametrize("name", ["auto", "tpe", "nsga2", "asha", "dehb"])
def test_a_study_of_several_objectives_keeps_a_front_and_follows_from_its_log(tmp_path, name):
    keys = {
        "objectives": ["val/epe", "engine/latency_ms"],
        "constraints": ["engine/latency_ms <= 30"],
        "algorithm": name,
        "budget": {"trials": 16},
        "spec": {"behaviour": {"steps": 2}},
    }
    resolved = studies.resolved(tmp_path, **keys)
    study = open_study(resolved, tmp_path / "s")
    studies.run(study)
    states = {record.id: record.state for record in study.trials}
    front = study.front()
    assert {states[each.trial] for each in front} == {"complete"}
    assert all(each.values["engine/latency_ms"] <= 30 for each in front)
    assert len(front) > 1
    hopeless = [record for record in study.trials if record.params["model.width"] + 4 > 30]
    assert {record.state for record in hopeless} <= {"stopped", "diverged"}
    assert study.best().id == study.knee().trial
    study.close()
    again = read_study(tmp_path / "s")
    assert (again.front(), again.knee()) == (front, study.knee())
    ahead = [make_algorithm(resolved.study, resolved.space, each).ask() for each in (study, again)]
    assert ahead[0] == ahead[1]
    assert ("weighs the objectives anew" in row_of(resolved).when) == (name != "nsga2")


@pytest.mark.parametrize(("latency", "action"), [(20.0, "stop"), (10.0, "continue")])
def test_only_trials_that_cost_no_more_can_end_a_trial(tmp_path, latency, action):
    algorithm = {"name": "asha", "rungs": [2], "factor": 2}
    keys = {"objectives": ["val/epe", "engine/latency_ms"], "algorithm": algorithm}
    resolved = studies.resolved(tmp_path, **keys)
    study = open_study(resolved, tmp_path / "s")
    for number, (epe, cost) in enumerate([(1.0, 20.0), (2.0, 20.0), (3.0, 20.0), (4.0, latency)]):
        studies.start(study, number, {"train.flip": number / 10})
        costs = {"engine/latency_ms": cost}
        study.append({"kind": "trial_measured", "trial": number, "metrics": costs, "detail": ""})
        for epoch in (1, 2)[: 2 if number < 3 else 1]:
            studies.finish_epoch(study, number, epoch, epe)
    asked = make_algorithm(resolved.study, resolved.space, study)
    assert asked.stop(3, 2, 4.0).action == action
    study.close()
