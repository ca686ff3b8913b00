"""Proposals: inside the space, functions of the log, and better where it was better."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automl.algorithms.samplers import RandomSampler, TPESampler, distribution
from automl.contract import Objective
from automl.store import EpochRecord, TrialRecord
from tests.automl.algorithms.trials import SPACE, trial

SAMPLER = TPESampler(SPACE, 0, Objective("epe", "minimize"), full_epochs=3, startup=4)
STATES = ("complete", "stopped", "diverged", "out_of_memory", "failed", "running")


def history(count: int) -> list[TrialRecord]:
    """Trials of every state; small learning rates are bad, large ones fail."""
    trials: list[TrialRecord] = []
    for number in range(count):
        params = RandomSampler(SPACE, 1).suggest([], number, 0)
        good = abs(math.log10(params["lr"]) + 3)
        if params["lr"] > 3e-2:
            trials.append(trial(number, params, "diverged"))
        elif good > 1.5:
            trials.append(trial(number, params, "stopped", 3 + good))
        else:
            trials.append(trial(number, params, "complete", 3 + good, 2 + good, 1 + good))
    return trials


@given(seed=st.integers(0, 2**16), number=st.integers(1, 30), retry=st.integers(0, 3))
@settings(deadline=None)
def test_random_and_initial_proposals_are_inside(seed, number, retry):
    params = RandomSampler(SPACE, seed).suggest([], number, retry)
    assert SPACE.contains(params)
    assert params["min_lr"] < params["lr"] or params["min_lr"] == 1e-7
    assert SPACE.contains(TPESampler(SPACE, seed, SAMPLER.objective, 3, 30).suggest([], number, 0))


def test_the_initial_design_covers_every_range_evenly():
    sampler = TPESampler(SPACE, 3, SAMPLER.objective, 3, startup=10)
    decades = sorted(math.log10(sampler.suggest([], n, 0)["lr"]) for n in range(1, 11))
    for index, decade in enumerate(decades):
        assert -6 + 0.5 * index <= decade <= -6 + 0.5 * (index + 1)


@given(states=st.lists(st.sampled_from(STATES), min_size=1, max_size=8), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=15)
def test_the_model_proposes_inside_whatever_happened(states, seed):
    trials = [
        trial(n, RandomSampler(SPACE, seed).suggest([], n, 0), state, *([2.0] * (3 * (n % 2))))
        for n, state in enumerate(states)
    ]
    params = SAMPLER.suggest(trials, 20, 0)
    assert SPACE.contains(params)
    assert SAMPLER.suggest(trials, 20, 0) == params
    assert SAMPLER.suggest(trials, 20, 1) != params


def test_the_model_goes_where_it_was_good_and_leaves_where_it_failed():
    proposals = [SAMPLER.suggest(history(40), number, 0) for number in range(40, 60)]
    decades = [math.log10(params["lr"]) for params in proposals]
    assert sum(-4.5 < decade < -1.5 for decade in decades) >= 16


def test_failed_stopped_running_and_complete_are_told_apart():
    from optuna.trial import TrialState

    params = RandomSampler(SPACE, 0).suggest([], 1, 0)
    told = {
        state: SAMPLER._frozen(trial(1, params, state, *values))
        for state, values in {
            "complete": (3.0, 2.0, 1.0),
            "stopped": (3.0,),
            "diverged": (3.0, 2.0),
            "running": (3.0,),
        }.items()
    }
    assert told["complete"].state == TrialState.COMPLETE
    assert told["complete"].value == 0.0  # log of 1
    assert told["stopped"].state == told["diverged"].state == TrialState.PRUNED
    assert told["stopped"].intermediate_values == {1: math.log(3.0)}
    assert told["diverged"].intermediate_values == {0: 1e6}
    assert told["running"].state == TrialState.RUNNING


def test_a_maximised_metric_is_turned():
    sampler = TPESampler(SPACE, 0, Objective("d1", "maximize"), 1, 1)
    record = trial(1, {}, "complete")
    record.epochs.append(EpochRecord(1, {"d1": 0.75}, 1.0, None, "complete", 1))
    assert sampler._frozen(record).value == -0.75


def test_a_baseline_outside_the_range_is_told_at_its_edge():
    told = SAMPLER._frozen(trial(0, {"lr": 0.0, "width": 100, "optimizer": "Lion"}, "complete"))
    assert told.params == {"lr": 1e-6, "width": 32}


@pytest.mark.parametrize("parameter", SPACE.parameters, ids=lambda item: item.path)
def test_optuna_knows_the_same_range(parameter):
    known = distribution(parameter)
    if parameter.type == "choice":
        assert tuple(known.choices) == tuple(range(len(parameter.choices)))
    else:
        assert (known.low, known.high, known.log) == (parameter.low, parameter.high, parameter.log)
