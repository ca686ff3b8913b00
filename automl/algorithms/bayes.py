"""Bayesian optimisation: a Gaussian process over the trials' forecasts proposes the next trial.

What the process sees: of a trial with finished epochs its loss at full length, forecast unless it
is complete, with the forecast's variance; of a failed trial nothing. A second process over failed
(1) or not (0) gives the chance of failing, by which improvement is discounted. Trials without an
epoch yet count as if the prediction for them had come true.

The first trials lie around the default: a Latin hypercube over half of every range, since a
default is better than most of the space. Then the acquisition is maximised over random points and
over neighbours of the most promising ones, which is how high-dimensional spaces are searched.
`improvement` is expected improvement over the best prediction at a tried point; `bound` is the
lower confidence bound with a local penalty around running trials (González et al., Batch Bayesian
Optimization via Local Penalization, AISTATS 2016).
"""

# pyright: basic, reportMissingTypeStubs=false
# SciPy's types are partial.
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from scipy.special import log_ndtr, ndtr

from automl.algorithms.cube import Array, Cube
from automl.algorithms.curves import forecasts
from automl.algorithms.earlier import Earlier, Process, squashed
from automl.algorithms.gaussian import GaussianProcess
from automl.algorithms.samplers import FAILED, derived_seed
from automl.contract import Objective
from automl.lock import PriorTrial
from automl.space import SearchSpace
from automl.store import TrialRecord

NEARNESS = 0.5  # share of every range that the first trials cover, around the default
MOST_TRIALS = 250  # that a process is fitted to: the best, and the latest of those that failed
RANDOM_POINTS, NEIGHBOURS, CENTRES, ROUNDS = 500, 1000, 8, 3
WARM_STARTUP = 4  # trials of the initial design after earlier studies
HEARSAY = 0.25  # variance of what another study says about failing (1) or not (0)
CONFIDENCE = 2.0  # standard deviations below the mean, of the bound

Score = Callable[[Array], Array]


@dataclass(frozen=True)
class BayesSampler:
    """Proposes the most promising point.

    Attributes:
        space: what is searched.
        seed: of the proposals.
        objective: decides what is good.
        full_epochs: where a complete trial's value counts.
        startup: number of trials of the initial design.
        prior: trials of earlier studies.
    """

    space: SearchSpace
    seed: int
    objective: Objective
    full_epochs: int
    startup: int
    acquisition: Literal["improvement", "bound"] = "improvement"
    prior: tuple[PriorTrial, ...] = ()

    @cached_property
    def _earlier(self) -> Earlier:
        return Earlier(Cube(self.space), self.prior)

    def suggest(self, trials: Sequence[TrialRecord], number: int, retry: int) -> dict[str, Any]:
        """Return a proposal made from the trials before `number`."""
        cube = Cube(self.space)
        if number <= (min(self.startup, WARM_STARTUP) if self.prior else self.startup):
            return cube.params(self._initial(cube, number, retry))
        generator = np.random.default_rng(derived_seed(self.seed, number, retry))
        told, losses, variances = self._told(trials)
        if len(told) < 2:
            return cube.params(cube.uniform(generator, 1)[0])
        points = cube.points([trial.params for trial in told])
        losses = squashed(losses)
        trend = self._earlier.trend(points, losses)
        process = Process(points, losses, variances, cube.choices, trend)
        if number <= self.startup and not process.is_warm:
            return cube.params(self._initial(cube, number, retry))
        silent = [trial.params for trial in trials if trial.state == "running" and not trial.epochs]
        if self.acquisition == "bound":
            running = [trial.params for trial in trials if trial.state == "running"]
            score = _bound(process, cube.points(running), generator, cube)
        else:
            believer = process.believing(cube.points(silent)) if silent else process
            score = _improvement(believer, points)
        chance, new = (
            self._chance(cube, trials),
            _new(cube.points([trial.params for trial in trials])),
        )
        means, _ = process.predict(points)
        centres = points[np.argsort(means, kind="stable")[:CENTRES]]
        best = _best(cube, generator, centres, lambda at: score(at) + chance(at) + new(at))
        return cube.params(best)

    def _initial(self, cube: Cube, number: int, retry: int) -> Array:
        """Return a point of the Latin hypercube around the default."""
        generator = np.random.default_rng(derived_seed(self.seed, -1, retry))
        shape = (cube.columns, self.startup)
        cells = np.argsort(generator.random(shape), axis=1) + generator.random(shape)
        positions = cells[:, number - 1] / self.startup
        kept = generator.random(shape)[:, number - 1] > NEARNESS
        chosen = np.where(kept, cube.default, np.floor(positions * np.maximum(cube.choices, 1)))
        low = np.clip(cube.default - NEARNESS / 2, 0, 1 - NEARNESS)
        return np.where(cube.choices > 0, chosen, low + NEARNESS * positions)

    def _told(self, trials: Sequence[TrialRecord]) -> tuple[list[TrialRecord], Array, Array]:
        """Return the trials a process learns from, their losses and the variances of these."""
        known = forecasts(trials, self.objective, self.full_epochs)
        best = sorted(known, key=lambda pair: pair[1].mean)[:MOST_TRIALS]
        table = np.array([forecast for _, forecast in best]).reshape(-1, 2)
        return [trial for trial, _ in best], table[:, 0], table[:, 1]

    def _chance(self, cube: Cube, trials: Sequence[TrialRecord]) -> Score:
        """Return the logarithm of the chance that a trial does not fail."""
        heard = [trial for trial in trials if trial.epochs or trial.state != "running"]
        failed = [trial for trial in heard if trial.state in FAILED][-MOST_TRIALS // 2 :]
        earlier, before = self._earlier.failures()
        if not failed and not before.any():
            return lambda at: np.zeros(len(at))
        sound = [trial for trial in heard if trial.state not in FAILED][-MOST_TRIALS // 2 :]
        labels = np.array([1.0] * len(failed) + [0.0] * len(sound))
        points = cube.points([trial.params for trial in [*failed, *sound]])
        variances = np.repeat([0.0, HEARSAY], [len(labels), len(before)])
        labels, points = np.concatenate([labels, before]), np.concatenate([points, earlier])
        process = GaussianProcess(points, labels, variances, cube.choices)
        return lambda at: np.log(np.clip(1 - process.predict(at)[0], 1e-3, 1.0))


def _improvement(process: Process, points: Array) -> Score:
    """Return the logarithm of the expected improvement over the best predicted point."""
    best = float(process.predict(points)[0].min())

    def score(at: Array) -> Array:
        mean, deviation = process.predict(at)
        z = (best - mean) / deviation
        news = 1 - process.noise / np.sqrt(process.noise**2 + deviation**2)
        return np.log(deviation * news) + _log_improvement(z)

    return score


def _log_improvement(z: Array) -> Array:
    """Return log(z * cdf(z) + pdf(z)), by its asymptote where the sum cancels."""
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    direct = np.log(np.maximum(z * ndtr(z) + density, 1e-300))
    far = -(z**2) / 2 - math.log(math.sqrt(2 * math.pi)) - 2 * np.log(np.maximum(-z, 1.0))
    return np.where(z > -30, direct, far)


def _bound(process: Process, running: Array, generator: Any, cube: Cube) -> Score:
    """Return the bound turned so that larger is better, times the penalties, as a logarithm."""
    probes = cube.uniform(generator, RANDOM_POINTS)
    means, deviations = process.predict(probes)
    floor = float((means - CONFIDENCE * deviations).min())
    steps = _distances(probes[1:], probes[:-1], cube)
    slope = float(np.max(np.abs(np.diff(means)) / np.maximum(steps, 1e-9)))
    busy = [(point, *process.predict(point[None])) for point in running]

    def score(at: Array) -> Array:
        mean, deviation = process.predict(at)
        total = np.log(np.logaddexp(0.0, floor - mean + CONFIDENCE * deviation))
        for point, expected, spread in busy:
            radius = slope * _distances(at, point[None], cube) - (expected - floor)
            total = total + log_ndtr(radius / spread)
        return total

    return score


def _distances(left: Array, right: Array, cube: Cube) -> Array:
    apart = np.abs(left - right)
    return np.sqrt((np.where(cube.choices > 0, apart > 0, apart) ** 2).sum(axis=1))


def _new(tried: Array) -> Score:
    """Return 0 for a point that no trial had, else minus infinity."""
    known = {row.tobytes() for row in tried.round(9)}
    return lambda at: np.array([-math.inf if r.tobytes() in known else 0.0 for r in at.round(9)])


def _best(cube: Cube, generator: np.random.Generator, centres: Array, score: Score) -> Array:
    """Return the point of the highest score found: random points, then ever nearer neighbours."""
    points = cube.uniform(generator, RANDOM_POINTS)
    count, widest = NEIGHBOURS, 0.3
    for _ in range(ROUNDS):
        rows = centres[generator.integers(len(centres), size=count)]
        scales = widest * 10 ** generator.uniform(-1.5, 0.0, (count, 1))
        points = cube.snapped(np.concatenate([points, cube.near(generator, rows, scales)]))
        points = points[np.argsort(-score(points), kind="stable")[:CENTRES]]
        centres, count, widest = points, NEIGHBOURS // 3, widest / 3
    return points[0]
