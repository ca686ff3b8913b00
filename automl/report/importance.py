"""How much each parameter mattered, and whether the study can tell at all.

fANOVA (Hutter et al., ICML 2014; Optuna's, on scikit-learn's forests) of the objective after one
common epoch. It is repeated on bootstrap samples of the trials, each with a probe: a parameter of
random numbers that cannot matter. The probe's share is the noise floor; a parameter whose interval
reaches into it is not told apart from noise. Below a number of trials nothing is ranked: with 20
trials of 4 parameters the probe came second in a test.
"""

# pyright: standard
from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from automl.space import Parameter
from automl.store import Study, TrialRecord

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MIN_TRIALS = 30
MIN_TRIALS_PER_PARAMETER = 2
RESAMPLES = 20
RESAMPLED = 200  # trials in one resample at most: time grows with their square, intervals widen
TREES = 8  # per resample; 20 x 8 trees of 150 trials and 20 parameters take about 10 s
INTERVAL = (0.05, 0.95)
PROBE = "probe (random numbers)"


@dataclass(frozen=True)
class Share:
    """Share of the objective's variance that one parameter explains, 0 to 1, with its interval."""

    path: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Importance:
    """What can be said about the parameters.

    Attributes:
        epoch: at which all values were taken.
        trials: how many have a value there.
        needed: trials from which on a ranking is shown.
        shares: largest first; empty with too few trials.
        probe: the noise floor; None with too few trials.
    """

    epoch: int
    trials: int
    needed: int
    shares: tuple[Share, ...] = ()
    probe: Share | None = None

    def stands_out(self, share: Share) -> bool:
        """Whether a parameter's whole interval lies above the probe's."""
        return self.probe is not None and share.low > self.probe.high


def common_epoch(study: Study) -> int:
    """Return the last epoch that every complete or stopped trial has finished; 0 without any."""
    reached = [trial.last_epoch for trial in study.trials if trial.state in ("complete", "stopped")]
    return min(reached, default=0)


def compared(study: Study) -> list[tuple[TrialRecord, float]]:
    """Return the trials that have a value after the common epoch, with it."""
    epoch, metric = common_epoch(study), study.objective.metric
    values = [(trial, trial.value_at(epoch, metric)) for trial in study.trials]
    return [(trial, value) for trial, value in values if value is not None]


def importance(study: Study) -> Importance:
    """Rank the parameters, or say how many trials that would take."""
    parameters = study.resolved.space.parameters
    found = compared(study)
    needed = max(MIN_TRIALS, MIN_TRIALS_PER_PARAMETER * len(parameters))
    result = Importance(common_epoch(study), len(found), needed)
    values = [value for _, value in found]
    if len(found) < needed or min(values) == max(values):
        return result
    import numpy as np

    rows = np.array([_positions(parameters, trial.params) for trial, _ in found])
    targets = np.array([math.log(value) if min(values) > 0 else value for value in values])
    names = [*(parameter.path for parameter in parameters), PROBE]
    shares = _bootstrap(names, rows, targets, study.resolved.study.seed)
    *real, probe = shares
    real.sort(key=lambda share: -share.value)
    return Importance(result.epoch, result.trials, needed, tuple(real), probe)


def position(parameter: Parameter, value: Any) -> float:
    """Return where a value lies in its range, 0 to 1 (logarithmic ranges: of the logarithm)."""
    if parameter.type == "choice":
        last = max(1, len(parameter.choices) - 1)
        return parameter.choices.index(value) / last if value in parameter.choices else 0.0
    low, high = float(parameter.low or 0), float(parameter.high or 0)
    if high <= low:
        return 0.5
    value = min(max(float(value), low), high)
    if parameter.log:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def _positions(parameters: tuple[Parameter, ...], params: Mapping[str, Any]) -> list[float]:
    """Parameters that do not act in a trial stand at their default."""
    return [
        position(parameter, params.get(parameter.path, parameter.default))
        for parameter in parameters
    ]


def _bootstrap(
    names: list[str], rows: NDArray[np.float64], targets: NDArray[np.float64], seed: int
) -> list[Share]:
    import numpy as np

    generator = np.random.default_rng(seed)
    count = len(targets)
    samples = []
    while len(samples) < RESAMPLES:
        chosen = generator.integers(count, size=min(count, RESAMPLED))
        if np.ptp(targets[chosen]) == 0:
            continue
        probed = np.column_stack([rows, generator.random(count)])[chosen]
        samples.append(_fanova(names, probed, targets[chosen], seed + len(samples)))
    shares = np.array([[sample[name] for name in names] for sample in samples])
    low, high = np.quantile(shares, INTERVAL, axis=0)
    middle = shares.mean(axis=0)
    return [
        Share(name, float(middle[i]), float(low[i]), float(high[i])) for i, name in enumerate(names)
    ]


def _fanova(
    names: list[str], rows: NDArray[np.float64], targets: NDArray[np.float64], seed: int
) -> dict[str, float]:
    import optuna
    from optuna.distributions import BaseDistribution, FloatDistribution

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    ranges: dict[str, BaseDistribution] = {name: FloatDistribution(0.0, 1.0) for name in names}
    for row, target in zip(rows, targets, strict=True):
        params = dict(zip(names, map(float, row), strict=True))
        study.add_trial(
            optuna.create_trial(params=params, distributions=ranges, value=float(target))
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=TREES, seed=seed)
    found = evaluator.evaluate(study)
    return {name: float(found[name]) for name in names}
