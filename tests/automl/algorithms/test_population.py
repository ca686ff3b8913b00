"""Evolution: children of the better trials, as functions of the log."""

import math
import sys

import pytest

from automl.algorithms.population import (
    POPULATION,
    CMASampler,
    DifferentialEvolution,
    GeneticSampler,
)
from automl.algorithms.samplers import RandomSampler
from automl.contract import Objective
from automl.errors import StudySpecError
from automl.objectives import Constraint, Goals
from automl.space import SearchSpace
from automl.store import TrialRecord
from tests.automl.algorithms.trials import SPACE, trial

OBJECTIVE = Objective("epe", "minimize")
NUMBERS = SearchSpace(SPACE.parameters[:3])


def sampler(name: str, space: SearchSpace = SPACE):
    if name == "cmaes":
        pytest.importorskip("cmaes")
        return CMASampler(space, 1, OBJECTIVE)
    if name == "nsga2":
        return GeneticSampler(space, 1, Goals(OBJECTIVE))
    return DifferentialEvolution(space, 1, OBJECTIVE, (1, 3))


def outcome(number: int, params: dict) -> TrialRecord:
    """Best at 1e-3; above 1e-2 trials fail, bad ones are stopped."""
    bad = abs(math.log10(params["lr"]) + 3)
    if params["lr"] > 1e-2:
        return trial(number, params, "diverged")
    if bad > 1.5:
        return trial(number, params, "stopped", 3 + bad)
    return trial(number, params, "complete", 3 + bad, 2 + bad, 1 + bad)


@pytest.mark.parametrize("name", ["cmaes", "nsga2", "evolution"])
def test_generations_move_to_where_it_is_good(name):
    trials: list[TrialRecord] = []
    for number in range(6 * POPULATION):
        params = sampler(name, NUMBERS).suggest(trials, number, 0)
        assert NUMBERS.contains(params)
        trials.append(outcome(number, params))

    def bad(part: list[TrialRecord]) -> float:
        return sum(abs(math.log10(each.params["lr"]) + 3) for each in part) / len(part)

    assert bad(trials[-2 * POPULATION :]) < 0.6 * bad(trials[:POPULATION])


@pytest.mark.parametrize("name", ["cmaes", "nsga2", "evolution"])
def test_proposals_are_inside_and_follow_from_the_trials(name):
    generator = RandomSampler(SPACE, 3)
    trials = [outcome(n, generator.suggest([], n, 0)) for n in range(23)]
    trials[5].state = "running"
    params = sampler(name).suggest(trials, 23, 0)
    assert SPACE.contains(params)
    assert sampler(name).suggest(trials, 23, 0) == params
    assert sampler(name).suggest(trials, 23, 1) != params


def test_the_population_is_the_best_of_the_longest_length_with_enough():
    trials = [trial(n, {"lr": 1e-4}, "stopped", float(n)) for n in range(15)]
    evolution = sampler("evolution")
    assert [each.id for each in evolution._population(trials)] == list(range(POPULATION))
    trials += [trial(n, {}, "complete", 9.0, 9.0, float(-n)) for n in range(15, 20)]
    trials += [trial(20, {}, "diverged", 0.0, 0.0, 0.0)]
    assert [each.id for each in evolution._population(trials)] == [19, 18, 17, 16, 15]


def test_without_its_package_cmaes_is_refused_before_the_first_trial(monkeypatch):
    monkeypatch.setitem(sys.modules, "cmaes", None)
    with pytest.raises(StudySpecError, match=r"cmaes is not installed.*pip install cmaes"):
        CMASampler(SPACE, 0, OBJECTIVE)


def test_nsga2_breeds_from_the_front_and_from_what_keeps_the_constraints():
    """Early trials have the smaller error, late ones cost less; the limit leaves the last two."""
    speed = Objective("engine/latency_ms", "minimize", "ms")
    goals = Goals(OBJECTIVE, (speed,), (), (speed.metric,))
    limited = Goals(OBJECTIVE, (speed,), (Constraint(speed.metric, "<=", 10.0),), (speed.metric,))

    def told(costs) -> list[TrialRecord]:
        trials = []
        for number, params in enumerate(points):
            trials.append(trial(number, params, "complete", 3.0, 2.0, 1 + number / 10))
            trials[-1].costs = {None: {speed.metric: costs(number)}}
        return trials

    points = [RandomSampler(SPACE, 0).suggest([], number, 0) for number in range(POPULATION)]
    one = GeneticSampler(SPACE, 1, Goals(OBJECTIVE))
    both, kept = GeneticSampler(SPACE, 1, goals), GeneticSampler(SPACE, 1, limited)
    falling = told(lambda number: 18.0 - number)  # every trial is on the front
    children = [
        [sampler.suggest(falling, POPULATION + n, 0) for n in range(8)]
        for sampler in (one, both, kept)
    ]
    assert children[0] != children[1]  # one objective: only the first trials are fit
    assert children[1] != children[2]
    assert children[0] == [one.suggest(told(lambda n: n), POPULATION + n, 0) for n in range(8)]
