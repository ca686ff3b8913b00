"""Several objectives for samplers that know one: every proposal weighs them anew (ParEGO).

A proposal draws weights and sees every trial with one loss in place of its leading objective: the
largest weighted share of the ranges that its objectives span over the trials, plus a little of
their sum. Another proposal draws other weights, so together they go for the whole front. What a
trial costs is known before it trains and the same at every epoch, so a curve keeps its shape, and
trials that ended early teach too: Optuna's own multi-objective TPE learns from complete trials
only, one parameter at a time. A trial that no setting can bring inside the constraints counts as
failed.

Source: Knowles, ParEGO, IEEE Transactions on Evolutionary Computation 10(1), 2006.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

from automl.algorithms.curves import told_loss
from automl.algorithms.samplers import derived_seed
from automl.contract import Objective
from automl.objectives import Goals
from automl.store import EpochRecord, TrialRecord

SAME = 0.05  # share of a cost by which timings of equal structures may differ on a busy machine
SUM_SHARE = 0.05  # of the augmented Chebyshev norm, as in ParEGO

Losses = dict[str, float]  # metric -> loss, as models are told it


def weighed(
    trials: Sequence[TrialRecord], goals: Goals, seed: int, number: int
) -> Sequence[TrialRecord]:
    """Return the trials as the sampler of trial `number` sees them; with one goal as they are."""
    if not goals.weighs:
        return trials
    seen = [_failed(trial) if is_hopeless(trial, goals) else trial for trial in trials]
    if not goals.others:
        return seen
    weights = _weights(goals, seed, number)
    curves = [[_losses(trial, record, goals) for record in trial.epochs] for trial in seen]
    lasts = [curve[-1] for curve in curves if curve and curve[-1] is not None]
    if not lasts:
        return seen
    spans = {
        name: (min(last[name] for last in lasts), max(last[name] for last in lasts))
        for name in weights
    }
    return [
        _with_losses(trial, [_one(losses, spans, weights, goals) for losses in curve], goals)
        for trial, curve in zip(seen, curves, strict=True)
    ]


def is_hopeless(trial: TrialRecord, goals: Goals) -> bool:
    """Whether what a trial's structure costs breaks a constraint with every setting."""
    if trial.costs is None or not goals.constraints:
        return False
    settings = [setting for setting in trial.costs if setting is not None] or [None]
    limits = [limit for limit in goals.constraints if limit.metric in goals.costs]
    values = (
        [(limit, trial.cost(limit.metric, setting)) for limit in limits] for setting in settings
    )
    return not any(
        all(value is not None and limit.excess(value) <= 0 for limit, value in known)
        for known in values
    )


def rivals(trials: Sequence[TrialRecord], trial: TrialRecord, goals: Goals) -> list[TrialRecord]:
    """Return the trials whose structure costs about as much or less: those may leave it behind."""
    costs = [each for each in goals.others if each.metric in goals.costs]
    own = _costs(trial, costs)
    return [
        other
        for other in trials
        if all(a <= b + SAME * abs(b) for a, b in zip(_costs(other, costs), own, strict=True))
    ]


def _costs(trial: TrialRecord, objectives: Sequence[Objective]) -> list[float]:
    values = [(each, trial.cost(each.metric)) for each in objectives]
    return [math.inf if value is None else each.loss(value) for each, value in values]


def _weights(goals: Goals, seed: int, number: int) -> Losses:
    """Return shares that are uniform over all shares of the objectives."""
    generator = random.Random(derived_seed(seed, number, "weights"))
    drawn = {each.metric: -math.log(1.0 - generator.random()) for each in goals.objectives}
    total = sum(drawn.values())
    return {name: share / total for name, share in drawn.items()}


def _losses(trial: TrialRecord, record: EpochRecord, goals: Goals) -> Losses | None:
    """Return the losses of all objectives after an epoch; None where one is unknown."""
    losses: Losses = {}
    for each in goals.objectives:
        value = record.metrics.get(each.metric, trial.cost(each.metric))
        if value is None or not math.isfinite(value):
            return None
        losses[each.metric] = told_loss(value, each)
    return losses


def _one(
    losses: Losses | None,
    spans: Mapping[str, tuple[float, float]],
    weights: Losses,
    goals: Goals,
) -> float | None:
    """Return one loss for several, in the units of the leading one."""
    if losses is None:
        return None
    shares = {
        name: weights[name] * (losses[name] - low) / (high - low)
        for name, (low, high) in spans.items()
        if high > low
    }
    low, high = spans[goals.leading.metric]
    unit = high - low or 1.0
    return unit * (max(shares.values(), default=0.0) + SUM_SHARE * sum(shares.values()))


def _with_losses(trial: TrialRecord, losses: Sequence[float | None], goals: Goals) -> TrialRecord:
    """Return a trial whose leading objective has these losses."""
    leading = goals.leading
    told = [math.nan if loss is None else _value(loss, leading) for loss in losses]
    epochs = [
        replace(record, metrics={**record.metrics, leading.metric: value})
        for record, value in zip(trial.epochs, told, strict=True)
    ]
    return replace(trial, epochs=epochs)


def _value(loss: float, objective: Objective) -> float:
    """Return the value of which models are told a loss; the inverse of `told_loss`."""
    return math.exp(loss) if objective.direction == "minimize" else -loss


def _failed(trial: TrialRecord) -> TrialRecord:
    """Return a trial as if its spec were invalid."""
    return replace(trial, state="invalid_spec", epochs=[])
