"""Proposals of the Gaussian process: near the default first, then where it is good and safe."""

import math

import numpy as np
import pytest

from automl.algorithms.bayes import BayesSampler, _log_improvement
from automl.algorithms.cube import Cube
from automl.algorithms.samplers import RandomSampler
from automl.contract import Objective
from automl.space import Parameter, SearchSpace
from tests.automl.algorithms.trials import SPACE, trial

OBJECTIVE = Objective("epe", "minimize")
PLANE = SearchSpace(
    (Parameter("x", "float", 0.5, 0.0, 1.0), Parameter("lr", "float", 1e-4, 1e-6, 1e-2, log=True))
)


def sampler(space: SearchSpace = PLANE, startup: int = 4, **more) -> BayesSampler:
    return BayesSampler(space, 0, OBJECTIVE, 3, startup, **more)


def tried(number: int, x: float, decade: float):
    """Best at x = 0.8 and 1e-4; above 1e-3 trials diverge."""
    params = {"x": x, "lr": 10**decade}
    if decade > -3:
        return trial(number, params, "diverged", 9.0)
    loss = 1 + (x - 0.8) ** 2 + 0.1 * (decade + 4) ** 2
    if loss > 1.4:
        return trial(number, params, "stopped", loss + 2)
    return trial(number, params, "complete", loss + 2, loss + 1, loss)


def history(count: int):
    generator = np.random.default_rng(0)
    first = tried(0, 0.5, -4)
    rest = [tried(n, generator.random(), -6 + 4 * generator.random()) for n in range(1, count)]
    return [first, *rest]


@pytest.mark.parametrize("acquisition", ["improvement", "bound"])
def test_it_goes_where_it_was_good_and_leaves_where_it_failed(acquisition):
    trials = history(24)
    proposals = [
        sampler(acquisition=acquisition).suggest(trials, number, 0) for number in range(24, 34)
    ]
    assert sum(abs(params["x"] - 0.8) < 0.2 for params in proposals) >= 8
    assert all(params["lr"] < 2e-3 for params in proposals)


def test_the_first_trials_lie_around_the_default():
    space = SearchSpace((Parameter("x", "float", 0.9, 0.0, 1.0), *SPACE.parameters[4:]))
    proposals = [sampler(space, 8).suggest([], number, 0) for number in range(1, 9)]
    values = sorted(params["x"] for params in proposals)
    for index, value in enumerate(values):
        assert 0.5 + index / 16 <= value <= 0.5 + (index + 1) / 16
    assert {params["optimizer"] for params in proposals} == {"AdamW", "SGD"}


@pytest.mark.parametrize("state", ["complete", "stopped", "diverged", "running", "failed"])
@pytest.mark.parametrize("epochs", [0, 1, 3])
@pytest.mark.parametrize("acquisition", ["improvement", "bound"])
def test_it_proposes_inside_whatever_happened(state, epochs, acquisition):
    trials = [
        trial(n, RandomSampler(SPACE, 0).suggest([], n, 0), state, *([2.0] * epochs))
        for n in range(6)
    ]
    params = sampler(SPACE, acquisition=acquisition).suggest(trials, 6, 0)
    assert SPACE.contains(params)
    assert sampler(SPACE, acquisition=acquisition).suggest(trials, 6, 0) == params
    assert sampler(SPACE, acquisition=acquisition).suggest(trials, 6, 1) != params


@pytest.mark.parametrize("acquisition", ["improvement", "bound"])
def test_running_trials_push_the_next_one_away(acquisition):
    trials, proposals = history(12), []
    for number in range(12, 16):
        params = sampler(acquisition=acquisition).suggest(trials, number, 0)
        proposals.append(params)
        trials.append(trial(number, params, "running"))
    cube = Cube(PLANE)
    points = cube.points(proposals)
    apart = [np.abs(a - b).max() for i, a in enumerate(points) for b in points[:i]]
    assert min(apart) > 0.005


def test_a_tried_point_is_not_proposed_again():
    space = SearchSpace((Parameter("width", "int", 1, 1, 12),))
    trials = [trial(n, {"width": n + 1}, "complete", 3.0, 2.0, 1.0 + abs(n - 5)) for n in range(11)]
    assert sampler(space).suggest(trials, 11, 0) == {"width": 12}


def test_the_logarithm_of_the_improvement_is_smooth_down_to_nothing():
    z = np.linspace(-40, 5, 2000)
    values = _log_improvement(z)
    steps = np.diff(values)
    assert (steps > 0).all()
    assert np.abs(np.diff(steps)).max() < 0.01
    assert values[-1] == pytest.approx(math.log(5), abs=1e-3)
