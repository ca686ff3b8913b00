"""What earlier studies say about a new one, as far as the new one confirms it.

A Gaussian process per earlier study predicts its losses. The new study's losses are modelled as
a level, plus for each earlier study a share of its prediction, plus a Gaussian process for the
rest. The shares are fitted to the trials of the new study, starting from 1 divided among the
studies (Bayesian regression), between 0 and 1: a study that orders the trials differently is soon
left out, and what remains is the process of a cold start. Levels cancel, so another data set or
image size with other errors is no obstacle; losses are logarithms (`curves`), so shares are ratios.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np

from automl.algorithms.cube import Array, Cube
from automl.algorithms.gaussian import GaussianProcess
from automl.lock import PriorTrial

SHARE_VARIANCE = 1.0  # of a study's share, before the new study has trials
LEAST_VARIANCE = 0.05**2  # of losses around what the studies say
CONFIRMED = 4  # trials that may confirm what the studies say; with fewer they are believed
ROUNDS = 3  # of fitting shares and this variance in turns


class Earlier:
    """The earlier studies of one new study."""

    def __init__(self, cube: Cube, prior: Sequence[PriorTrial]) -> None:
        """Fit a process to every earlier study that has two trials to learn from."""
        self._cube = cube
        self._prior = prior
        self._processes: list[GaussianProcess] = []
        for name in dict.fromkeys(trial.study for trial in prior):
            told = [t for t in prior if t.study == name and t.loss is not None]
            if len(told) > 1:
                points = cube.points([trial.params for trial in told])
                losses = squashed(np.array([trial.loss for trial in told]))
                variances = np.array([trial.variance for trial in told])
                process = GaussianProcess(points, losses, variances, cube.choices)
                self._processes.append(process)

    def trend(self, points: Array, losses: Array) -> Trend:
        """Return the part of the losses at these points that the earlier studies explain."""
        count = len(self._processes)
        if not count:
            return Trend([], np.zeros(0))
        said = np.stack([process.predict(points)[0] for process in self._processes], axis=1)
        centred, wanted = said - said.mean(axis=0), losses - losses.mean()
        shares, first = np.full(count, 1 / count), np.full(count, 1 / count)
        for _ in range(ROUNDS):
            rest = wanted - centred @ shares
            variance = max(float((rest**2).mean()), LEAST_VARIANCE)
            precision = centred.T @ centred / variance + np.eye(count) / SHARE_VARIANCE
            evidence = centred.T @ wanted / variance + first / SHARE_VARIANCE
            shares = np.minimum(np.maximum(np.linalg.solve(precision, evidence), 0.0), 1.0)
        return Trend(self._processes, shares)

    def failures(self) -> tuple[Array, Array]:
        """Return the points of all earlier trials, and 1 where one failed, else 0."""
        points = self._cube.points([trial.params for trial in self._prior])
        return points, np.array([float(trial.loss is None) for trial in self._prior])


class Trend:
    """A weighted sum of what earlier studies predict."""

    def __init__(self, processes: Sequence[GaussianProcess], shares: Array) -> None:
        self._processes = processes
        self.shares = shares

    def at(self, points: Array) -> tuple[Array, Array]:
        """Return the sum at points and its variance; 0 without studies."""
        total, variance = np.zeros(len(points)), np.zeros(len(points))
        for process, share in zip(self._processes, self.shares, strict=True):
            if share > 0:
                mean, deviation = process.predict(points)
                total += share * mean
                variance += (share * deviation) ** 2
        return total, variance


class Process:
    """A Gaussian process around a trend, or without it where the values are more likely then.

    Attributes:
        is_warm: whether the trend is used.
    """

    def __init__(
        self, points: Array, values: Array, variances: Array, choices: Array, trend: Trend
    ) -> None:
        """Fit; arguments as those of `GaussianProcess`."""
        self._rest = GaussianProcess(points, values, variances, choices)
        self._trend, self.is_warm = Trend([], np.zeros(0)), False
        if trend.shares.any():
            rest = GaussianProcess(points, values - trend.at(points)[0], variances, choices)
            if len(values) < CONFIRMED or rest.evidence > self._rest.evidence:
                self._rest, self._trend, self.is_warm = rest, trend, True

    @property
    def noise(self) -> float:
        """Standard deviation of values around the function, beside their known variances."""
        return self._rest.noise

    def predict(self, points: Array) -> tuple[Array, Array]:
        """Return mean and standard deviation of the function, without noise, at points."""
        mean, deviation = self._rest.predict(points)
        trend, variance = self._trend.at(points)
        return mean + trend, np.sqrt(deviation**2 + variance)

    def believing(self, points: Array) -> Process:
        """Return the process after its own predictions were seen at more points."""
        believer = copy.copy(self)
        believer._rest = self._rest.believing(points)
        return believer


def squashed(losses: Array) -> Array:
    """Return losses with the bad ones cut off: how bad a bad trial is does not matter."""
    best, middle = float(losses.min()), float(np.median(losses))
    return np.minimum(losses, middle + 2 * (middle - best))
