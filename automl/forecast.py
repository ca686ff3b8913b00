"""How long a study will take: the same estimate before the first trial, in between, and live.

The time of an epoch depends on the configuration (more iterations take longer), so it is modelled
from the finished epochs: linear in the parameters, by ridge regression. A few trials cannot tell
what twenty parameters cost; the prior is that whole numbers (iterations, radius, widths) change
the amount of work and rates and probabilities do not. Coming trials are expected anywhere in the
space at first, and more and more like the ones before them. How far they run follows from the
stopping rule; who runs when, from placing every run on the slot that is free first.

Times in seconds.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean, median
from typing import Any

import numpy as np

from automl.algorithms.rungs import Rungs
from automl.algorithms.samplers import at_positions
from automl.algorithms.table import make_rungs, resolve, startup_trials
from automl.budget import Budget
from automl.resources import of_study
from automl.space import Parameter, SearchSpace
from automl.store import ResolvedStudy, Study, TrialRecord

COUNTED, RATED = 0.5, 0.03  # prior: share of an epoch's time that a parameter's range changes
NOISE = 0.05  # of a trial's mean time of an epoch
MEASURED = 200  # latest trials that are looked at
POINTS = 64  # of the space, which stand for the trials to come
FAMILIAR = 10  # so many trials weigh as much as what is expected of the space
SETTLED = 30  # the same for how far trials get, which varies more
BETTER = 0.04  # a model's proposals pass rungs ever more often, so each runs longer by this share
LENIENT = 1.2  # stopping by forecast lets a trial go on as long as it may win
UNLEARNT = ("random", "grid")  # samplers whose proposals do not get better


@dataclass(frozen=True)
class Forecast:
    """What is still to come in a study.

    Attributes:
        trials: trials it starts at most, in all; None when no limit says so.
        epochs: expected epochs ahead, confirmation included; None when no limit bounds them.
        seconds: expected wall time ahead; None while nothing is known about it.
        cost: of these seconds, with `budget.cost_per_hour`.
        origin: where the numbers come from, in words for the user.
    """

    trials: int | None
    epochs: float | None
    seconds: float | None
    cost: float | None
    origin: str


def forecast(
    resolved: ResolvedStudy,
    study: Study | None = None,
    now: float | None = None,
    seconds_per_epoch: float | None = None,
) -> Forecast:
    """Return what is still to come.

    Args:
        resolved: the study.
        study: what has happened; None: nothing has.
        now: seconds since 1970; default: the moment of the last event.
        seconds_per_epoch: a measurement from elsewhere, used before the first epoch.
    """
    settings, limits = resolved.study, resolved.study.budget
    trials = study.trials if study is not None else []
    model = EpochTimes(resolved.space, trials, seconds_per_epoch)
    searching = study is None or study.end_reason is None or bool(study.running())
    runs = _running(resolved, trials, model)
    done = sum(trial.last_epoch for trial in trials)
    bounded = limits.trials is not None or not searching
    if searching and limits.trials is not None:
        runs += _coming(resolved, trials, model)
    if searching and limits.epochs is not None:
        runs = _cut(runs, max(0, limits.epochs - done), bounded, model.usual)
        bounded = True
    confirmation = _confirmation(resolved, study, model)
    slots = of_study(settings).max_concurrent
    seconds = None
    if bounded and model.usual is not None:
        seconds = _makespan(runs, slots)
    hours = Budget.of(settings).hours()
    if searching and hours is not None:
        passed = study.active_seconds(now) if study is not None else 0.0
        kept = _makespan(confirmation, slots) if model.usual is not None else 0.0
        allowed = max(0.0, 3600 * hours - passed - kept)
        seconds = allowed if seconds is None else min(seconds, allowed)
    if seconds is not None and model.usual is not None:
        seconds += _makespan(confirmation, slots)
    epochs = sum(run.epochs for run in [*runs, *confirmation]) if bounded else None
    price = limits.cost_per_hour
    return Forecast(
        limits.trials,
        epochs,
        seconds,
        seconds / 3600 * price if seconds is not None and price is not None else None,
        _origin(resolved, model.origin, slots),
    )


# --- the time of an epoch -----------------------------------------------------------------------


class EpochTimes:
    """The time of an epoch as a function of the parameters.

    Attributes:
        usual: of the trials to come; None while nothing is known.
        between: what a trial takes besides its epochs.
        origin: what this rests on, in words.
    """

    def __init__(
        self,
        space: SearchSpace,
        trials: Sequence[TrialRecord],
        given: float | None,
    ) -> None:
        self._parameters = space.parameters
        self._prior = np.array([1.0, *(_prior(item) for item in space.parameters)]) ** 2
        measured = [trial for trial in trials if trial.epochs][-MEASURED:]
        self.between = _between(measured)
        self._weights = np.zeros(len(self._prior))
        self._scale, self._floor = given, 0.0
        count = sum(len(trial.epochs) for trial in measured)
        if measured:
            self._fit(measured)
            self.origin = f"the time of an epoch from {count} finished epochs of this study"
        elif given is not None:
            self.origin = f"{given:.2g} s per epoch, as measured before"
        else:
            self.origin = "the time of an epoch is not known before the first one has finished"
        self.usual = self._usual(space, measured)

    def of(self, params: Mapping[str, Any]) -> float | None:
        """Return the expected time of an epoch."""
        if self._scale is None:
            return None
        share = 1.0 + float(self._row(params) @ self._weights)
        return max(self._scale * share, self._floor)

    def _fit(self, measured: Sequence[TrialRecord]) -> None:
        times = np.array([_epoch_seconds(trial) for trial in measured])
        self._scale, self._floor = float(times.mean()), float(times.min()) / 2
        if self._scale > 0:
            rows = np.stack([self._row(trial.params) for trial in measured])
            shrink = np.diag(NOISE**2 / self._prior)
            target = rows.T @ (times / self._scale - 1.0)
            self._weights = np.linalg.solve(rows.T @ rows + shrink, target)

    def _row(self, params: Mapping[str, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.array([1.0, *(_position(item, params) for item in self._parameters)])

    def _usual(self, space: SearchSpace, measured: Sequence[TrialRecord]) -> float | None:
        """Weigh the whole space against the epochs of the latest trials."""
        if self._scale is None:
            return None
        if not self._weights.any():
            return self._scale
        generator = random.Random(0)
        points = (
            at_positions(space, {item.path: generator.random() for item in self._parameters})
            for _ in range(POINTS)
        )
        anywhere = fmean(self.of(point) or 0.0 for point in points)
        latest = measured[-FAMILIAR:]
        seconds = sum(trial.seconds for trial in latest)
        like_before = seconds / sum(len(trial.epochs) for trial in latest)
        trust = len(measured) / (len(measured) + FAMILIAR)
        return trust * like_before + (1 - trust) * anywhere


def _prior(parameter: Parameter) -> float:
    numbers = all(type(choice) is int for choice in parameter.choices)
    counted = parameter.type == "int" or (parameter.type == "choice" and numbers)
    return COUNTED if counted else RATED


def _position(parameter: Parameter, params: Mapping[str, Any]) -> float:
    """Where in its range a value lies, -0.5 to 0.5; 0 when the parameter does not act."""
    value = params.get(parameter.path)
    if parameter.type == "choice":
        if value not in parameter.choices or len(parameter.choices) < 2:
            return 0.0
        return parameter.choices.index(value) / (len(parameter.choices) - 1) - 0.5
    low, high = parameter.low, parameter.high
    if value is None or low is None or high is None or low == high:
        return 0.0
    return (value - low) / (high - low) - 0.5


def _epoch_seconds(trial: TrialRecord) -> float:
    return median(record.seconds for record in trial.epochs)


def _between(measured: Sequence[TrialRecord]) -> float:
    """Return the usual time of a trial besides its epochs."""
    beside = [
        max(0.0, trial.ended - trial.started - trial.seconds)
        for trial in measured
        if trial.ended is not None and trial.attempts == 1
    ]
    return median(beside) if beside else 0.0


# --- what is to be run --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    """One run ahead, or the rest of one."""

    epochs: float
    seconds: float


def _running(
    resolved: ResolvedStudy, trials: Sequence[TrialRecord], model: EpochTimes
) -> list[_Run]:
    rungs = _rungs(resolved)
    found: list[_Run] = []
    for trial in trials:
        if trial.state == "running":
            epochs = epochs_left(trial, trials, rungs)
            each = _epoch_seconds(trial) if trial.epochs else model.of(trial.params)
            found.append(_Run(epochs, epochs * (each or 0.0)))
    return found


def epochs_left(trial: TrialRecord, trials: Sequence[TrialRecord], rungs: Rungs) -> float:
    """Return the expected epochs of a running trial, by its chances at the rungs ahead."""
    chance, total, before = 1.0, 0.0, trial.last_epoch
    for rung in [*(rung for rung in rungs.rungs if rung > before), rungs.full_epochs]:
        total += chance * (rung - before)
        before = rung
        if trial.id != 0:  # the baseline is never stopped
            arrived = 1 + sum(other.last_epoch >= rung for other in trials)
            chance *= min(1.0, rungs.survivors(arrived) / arrived)
    return total


def _coming(
    resolved: ResolvedStudy, trials: Sequence[TrialRecord], model: EpochTimes
) -> list[_Run]:
    planned = resolved.study.budget.trials
    assert planned is not None
    rungs, count = _rungs(resolved), max(0, planned - len(trials))
    baseline = [_Run(rungs.full_epochs, rungs.full_epochs * (model.usual or 0.0))]
    runs = baseline if count and not trials else []
    usual = _usual_epochs(resolved, planned)
    ended = [trial for trial in trials[1:planned] if trial.ended is not None]
    if ended:  # how much further than usual do trials get in this study?
        further = sum(t.last_epoch for t in ended) / sum(usual[t.id] for t in ended)
        trust = len(ended) / (len(ended) + SETTLED)
        usual = [each * (trust * further + 1 - trust) for each in usual]
    for each in usual[max(1, len(trials)) :]:
        epochs = min(rungs.full_epochs, each)
        runs.append(_Run(epochs, epochs * (model.usual or 0.0) + model.between))
    return runs


def _usual_epochs(resolved: ResolvedStudy, planned: int) -> list[float]:
    """Return how far each trial gets, as far as its number and the stopping rule tell."""
    rungs, limit = _rungs(resolved), resolved.study.budget.trials
    each = (_expected_epochs(rungs, max(2, planned)) - rungs.full_epochs) / max(1, planned - 1)
    row = resolve(resolved.study.algorithm)
    if row.pruner == "forecast":
        return [min(rungs.full_epochs, each * LENIENT)] * planned
    if row.sampler in UNLEARNT:
        return [each] * planned
    first = startup_trials(limit)
    growth = (min(2.0, 1.0 + BETTER * max(0, number - first)) for number in range(planned))
    return [min(rungs.full_epochs, each * factor) for factor in growth]


def _cut(runs: list[_Run], epochs: float, bounded: bool, usual: float | None) -> list[_Run]:
    """Return the runs that fit into so many epochs; unbounded ones fill them."""
    kept: list[_Run] = []
    for run in runs:
        share = min(1.0, epochs / run.epochs) if run.epochs else 1.0
        kept.append(_Run(share * run.epochs, share * run.seconds))
        epochs -= kept[-1].epochs
    if not bounded:
        kept += [_Run(1.0, usual or 0.0)] * round(epochs)
    return kept


def _confirmation(resolved: ResolvedStudy, study: Study | None, model: EpochTimes) -> list[_Run]:
    """The repetitions of baseline and winner that have not ended; each is a full run."""
    wanted = resolved.study.confirm
    if not wanted:
        return []
    full = resolved.full_epochs
    best = study.best() if study is not None else None
    over = study is not None and study.end_reason is not None
    if over and (best is None or best.id == 0):
        return []  # there is no winner to confirm
    trials = [0] if best is None or best.id == 0 else [0, best.id]
    runs: list[_Run] = []
    for trial in trials:
        began = study.confirmations_of(trial) if study is not None else []
        each = _seconds_of(study, trial, model)
        left = [full - run.last_epoch for run in began if run.state == "running"]
        left += [full] * (wanted - len(began))
        runs += [_Run(epochs, epochs * each + model.between) for epochs in left]
    if len(trials) == 1:  # the winner is not known yet
        runs += [_Run(full, full * (model.usual or 0.0) + model.between)] * wanted
    return runs


def _seconds_of(study: Study | None, trial: int, model: EpochTimes) -> float:
    if study is not None and trial < len(study.trials) and study.trials[trial].epochs:
        return _epoch_seconds(study.trials[trial])
    return model.usual or 0.0


def _makespan(runs: Sequence[_Run], slots: int) -> float:
    """Return when the last run ends, each starting on the slot that is free first."""
    free = [0.0] * max(1, min(slots, len(runs)))
    for run in runs:
        heapq.heapreplace(free, free[0] + run.seconds)
    return max(free)


@lru_cache
def _expected_epochs(rungs: Rungs, trials: int) -> float:
    """Return `Rungs.expected_epochs`, which takes a while for many trials, once."""
    return rungs.expected_epochs(trials)


def _rungs(resolved: ResolvedStudy) -> Rungs:
    return make_rungs(resolved.study.algorithm, resolved.full_epochs)


# --- words --------------------------------------------------------------------------------------


def _origin(resolved: ResolvedStudy, times: str, slots: int) -> str:
    limits, settings = resolved.study.budget, resolved.study
    parts: list[str] = []
    if limits.trials is not None:
        epochs = _expected_epochs(_rungs(resolved), limits.trials)
        parts.append(
            f"{limits.trials} trials in random order of quality give about {epochs:.0f} epochs"
        )
    parts.append(times)
    parts.append(f"{slots} trial{'s' if slots > 1 else ''} at a time")
    if settings.confirm:
        parts.append(f"baseline and winner {settings.confirm} times more (confirm)")
    if limits.hours is not None:
        parts.append(f"at most {limits.hours:g} hours (budget.hours)")
    if limits.cost is not None:
        parts.append(f"at most {limits.cost:g} (budget.cost)")
    if limits.target is not None or limits.no_improvement is not None:
        parts.append("ends earlier when its target or no-improvement limit is reached")
    return "; ".join(parts)
