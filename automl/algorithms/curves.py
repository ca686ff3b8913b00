"""What a trial's loss will be at full length, judged by its curve so far.

Losses are what models are told: smaller is better, a positive minimised metric as its logarithm.
The complete trials, and trial 0 is always one of them, show how much a loss still falls after
epoch e; their mean is the `shape`. A trial's curve is fitted over its later epochs as
level + steepness * shape(e), with a steepness near 1; the level is the forecast. How wrong such
forecasts are is measured on the complete trials, by what would have been said of them earlier.

A stopped trial tells a model its forecast and the variance of it, so values of different lengths
are never compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from automl.algorithms.cube import Array
from automl.contract import Objective
from automl.store import TrialRecord

UNFORECAST_VARIANCE = 0.1  # of a loss while no trial is complete

# What is assumed until enough curves are known; each is worth PRIOR_COUNT observations.
NOISE_VARIANCE = 0.02**2  # of a loss from epoch to epoch
ERROR_VARIANCE = 0.3**2  # of a forecast, relative to the square of the fall still to come
PRIOR_COUNT = 3
STEEPNESS_VARIANCE = 0.5**2  # of a trial's steepness around 1

Curve = Mapping[int, float]
"""Finished epoch -> loss."""


class Forecast(NamedTuple):
    """A trial's loss at full length."""

    mean: float
    variance: float


@dataclass(frozen=True)
class Curves:
    """What the complete trials of a study teach about curves.

    Attributes:
        shape: mean fall of the loss from after epoch e (index e - 1) to full length.
        noise: variance of a loss from epoch to epoch.
        error: variance of a forecast, relative to the square of the fall still to come.
    """

    shape: Array
    noise: float
    error: float = ERROR_VARIANCE

    def forecast(self, curve: Curve) -> Forecast:
        """Return the forecast of a trial with a curve that is not empty."""
        level, variance = self.level(curve)
        to_come = float(self.shape[max(curve) - 1])
        return Forecast(level, self.noise + variance + self.error * to_come**2)

    def level(self, curve: Curve) -> tuple[float, float]:
        """Return the fitted level and its variance, as if the shape were exact.

        Only the last two thirds of the curve count: the beginning says least about the end.
        """
        last = max(curve)
        used = np.array([epoch for epoch in curve if epoch > last // 3])
        losses = np.array([curve[epoch] for epoch in used])
        fall = self.shape[used - 1]
        centred = fall - fall.mean()
        precision = centred @ centred / self.noise + 1 / STEEPNESS_VARIANCE
        steepness = (centred @ losses / self.noise + 1 / STEEPNESS_VARIANCE) / precision
        level = losses.mean() - steepness * fall.mean()
        return float(level), float(self.noise / len(used) + fall.mean() ** 2 / precision)


def learn_curves(curves: Sequence[Curve], full_epochs: int) -> Curves | None:
    """Return what these curves teach; None while none of them is complete."""
    epochs = range(1, full_epochs + 1)
    whole = [curve for curve in curves if all(epoch in curve for epoch in epochs)]
    if not whole:
        return None
    table = np.array([[curve[epoch] for epoch in epochs] for curve in whole])
    shape = (table - table[:, -1:]).mean(axis=0)
    noise = _noise(table[:, full_epochs // 3 :])
    learnt = Curves(shape, noise)
    errors = _relative_errors(learnt, whole) if len(whole) > 1 else []
    error = (PRIOR_COUNT * ERROR_VARIANCE + sum(errors)) / (PRIOR_COUNT + len(errors))
    return Curves(shape, noise, error)


def _noise(table: Array) -> float:
    """Return the variance from epoch to epoch, by second differences of curves (one per row)."""
    bends = np.diff(table, n=2, axis=1)
    total = PRIOR_COUNT * NOISE_VARIANCE + float((bends**2).sum()) / 6
    return total / (PRIOR_COUNT + bends.size)


def _relative_errors(learnt: Curves, whole: Sequence[Curve]) -> list[float]:
    """Return squared errors of forecasts after a ninth and a third of each complete curve."""
    full = len(learnt.shape)
    errors: list[float] = []
    for last in sorted({max(2, full // 9), max(2, full // 3)} & set(range(full))):
        to_come = float(learnt.shape[last - 1]) ** 2
        if to_come < 4 * learnt.noise:
            continue  # next to nothing is left to be forecast
        for curve in whole:
            early, _ = learnt.level({epoch: curve[epoch] for epoch in range(1, last + 1)})
            error = (early - learnt.level(curve)[0]) ** 2
            errors.append(max(0.0, error - learnt.noise) / to_come)
    return errors


def curve_of(trial: TrialRecord, objective: Objective) -> dict[int, float]:
    """Return the losses of a trial's finished epochs."""
    values = ((record.epoch, record.metrics.get(objective.metric)) for record in trial.epochs)
    return {
        epoch: told_loss(value, objective)
        for epoch, value in values
        if value is not None and math.isfinite(value)
    }


def forecasts(
    trials: Sequence[TrialRecord], objective: Objective, full_epochs: int
) -> list[tuple[TrialRecord, Forecast]]:
    """Return the trials that reached an epoch and did not fail, with their forecasts.

    While none is complete they are compared after as many epochs as all of them have.
    """
    curves = [curve_of(trial, objective) for trial in trials]
    learnt = learn_curves(curves, full_epochs)
    known = [
        (trial, curve)
        for trial, curve in zip(trials, curves, strict=True)
        if curve and trial.state in ("complete", "stopped", "running")
    ]
    if learnt is None:
        common = min((max(curve) for _, curve in known), default=0)
        return [(trial, Forecast(curve[common], UNFORECAST_VARIANCE)) for trial, curve in known]
    return [(trial, learnt.forecast(curve)) for trial, curve in known]


def told_loss(value: float, objective: Objective) -> float:
    """Return a value of the objective as models are told it."""
    if objective.direction == "minimize" and value > 0:
        return math.log(value)
    return objective.loss(value)
