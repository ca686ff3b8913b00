"""Forecasts of power-law curves from their beginning."""

import math

import numpy as np
import pytest

from automl.algorithms.curves import curve_of, learn_curves, told_loss
from automl.contract import Objective
from tests.automl.algorithms.trials import trial

FULL = 27


def curve(floor: float, speed: float, noise: float = 0.0, epochs: int = FULL, seed: int = 0):
    generator = np.random.default_rng(seed)
    return {
        e: math.log(floor + 20 * (1 + e / speed) ** -2) + noise * generator.standard_normal()
        for e in range(1, epochs + 1)
    }


def test_without_a_complete_curve_nothing_is_known():
    assert learn_curves([curve(1.0, 0.5, epochs=26), {}], FULL) is None


@pytest.mark.parametrize("epochs", [3, 9])
def test_a_curve_of_the_usual_shape_is_foretold(epochs):
    complete = [curve(floor, 0.5, 0.01, seed=int(10 * floor)) for floor in (0.8, 1.0, 1.2, 1.5)]
    learnt = learn_curves(complete, FULL)
    for floor in (0.9, 2.0):
        forecast = learnt.forecast(curve(floor, 0.5, 0.01, epochs, seed=99))
        truth = curve(floor, 0.5)[FULL]
        assert forecast.mean == pytest.approx(truth, abs=3 * math.sqrt(forecast.variance))
        assert forecast.mean == pytest.approx(truth, abs=0.12)


def test_crossing_curves_are_told_apart():
    """A fast beginner with a bad end is ahead after 3 epochs, and its forecast is not."""
    complete = [curve(1.0, 0.5), curve(1.1, 0.7), curve(0.9, 0.6)]
    learnt = learn_curves(complete, FULL)
    hare, tortoise = curve(1.25, 0.3, epochs=3), curve(0.85, 0.8, epochs=3)
    assert hare[3] < tortoise[3]
    assert learnt.forecast(hare).mean > learnt.forecast(tortoise).mean


def test_a_forecast_is_surer_the_longer_the_curve():
    learnt = learn_curves([curve(1.0, 0.5, 0.01), curve(1.2, 0.6, 0.01, seed=1)], FULL)
    spreads = [learnt.forecast(curve(1.1, 0.5, epochs=n)).variance for n in (2, 5, 12, FULL)]
    assert spreads == sorted(spreads, reverse=True)
    assert spreads[-1] < 0.03**2
    assert spreads[0] > learnt.error * learnt.shape[1] ** 2 > 0.1**2


def test_forecasts_that_were_wrong_make_the_next_ones_unsure():
    alike = [curve(1.0 + i / 10, 0.5) for i in range(6)]
    mixed = [curve(1.0 + i / 10, 0.2 * (i + 1)) for i in range(6)]
    assert learn_curves(mixed, FULL).error > 2 * learn_curves(alike, FULL).error


def test_noise_is_seen_from_epoch_to_epoch():
    quiet, loud = (
        learn_curves([curve(1.0, 0.5, noise, seed=i) for i in range(5)], FULL).noise
        for noise in (0.01, 0.1)
    )
    assert loud == pytest.approx(0.1**2, rel=0.5)
    assert quiet < 0.02**2


def test_losses_are_logarithms_of_positive_errors_and_negative_scores():
    assert told_loss(math.e, Objective("epe", "minimize")) == pytest.approx(1.0)
    assert told_loss(-2.0, Objective("epe", "minimize")) == -2.0
    assert told_loss(0.7, Objective("d1", "maximize")) == -0.7
    record = trial(0, {}, "running", 1.0, math.nan, 1.0)
    assert curve_of(record, Objective("epe", "minimize")) == {1: 0.0, 3: 0.0}


@pytest.mark.parametrize("full", [1, 2, 3, 4])
def test_short_runs_have_forecasts_too(full):
    complete = [curve(floor, 0.5, epochs=full) for floor in (1.0, 1.2)]
    learnt = learn_curves(complete, full)
    early = learnt.forecast(curve(1.1, 0.5, epochs=max(1, full - 1)))
    assert early.mean == pytest.approx(curve(1.1, 0.5)[full], abs=0.1)
    assert early.variance > 0
