"""Which parameters to try next, as a function of the log and the study's seed.

A suggestion is made from scratch: the model is rebuilt from the trials in the order of their
numbers and its random numbers come from (seed, trial number). So the same log gives the same
suggestion, before and after a resume, and nothing but the log has to be kept.

The tree-structured Parzen estimator is Optuna's, multivariate and grouped (conditional
parameters form their own groups), with the rules of failure of `libraries.md`: a stopped trial is
told as pruned with its intermediate values; a failed one as pruned with a bad value at step 0,
which ranks it below every other; a running one counts as bad (constant liar). The first trials
after the baseline are a Latin hypercube: each parameter's range is covered evenly.
"""

from __future__ import annotations

import hashlib
import math
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from automl.contract import Objective
from automl.space import Parameter, SearchSpace
from automl.store import TrialRecord

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, Trial

FAILED_LOSS = 1e6
MODEL_RETRIES = 20
RANDOM_RETRIES = 200


class Sampler(Protocol):
    """Proposes the parameters of one trial."""

    def suggest(self, trials: Sequence[TrialRecord], number: int, retry: int) -> dict[str, Any]:
        """Return a proposal for trial `number`; another `retry` gives another proposal."""
        ...


@dataclass(frozen=True)
class RandomSampler:
    """Uniform in every parameter's range, or in its logarithm."""

    space: SearchSpace
    seed: int

    def suggest(self, trials: Sequence[TrialRecord], number: int, retry: int) -> dict[str, Any]:
        """Return a proposal that depends on the number only."""
        generator = random.Random(derived_seed(self.seed, number, retry))
        positions = {item.path: generator.random() for item in self.space.parameters}
        return at_positions(self.space, positions)


@dataclass(frozen=True)
class TPESampler:
    """Latin hypercube for trials 1..startup, then Optuna's TPE.

    Attributes:
        space: what is searched.
        seed: of the study.
        objective: decides what is good; positive minimised metrics are modelled as logarithms.
        full_epochs: where a complete trial's value counts.
        startup: number of trials of the initial design.
    """

    space: SearchSpace
    seed: int
    objective: Objective
    full_epochs: int
    startup: int

    def suggest(self, trials: Sequence[TrialRecord], number: int, retry: int) -> dict[str, Any]:
        """Return a proposal made from the trials before `number`."""
        if number <= self.startup and retry == 0:
            return self._initial(number)
        return self._model(trials, derived_seed(self.seed, number, retry))

    def _initial(self, number: int) -> dict[str, Any]:
        positions: dict[str, float] = {}
        for index, parameter in enumerate(self.space.parameters):
            generator = random.Random(derived_seed(self.seed, -1, index))
            cells = list(range(self.startup))
            generator.shuffle(cells)
            offsets = [generator.random() for _ in cells]
            positions[parameter.path] = (cells[number - 1] + offsets[number - 1]) / self.startup
        return at_positions(self.space, positions)

    def _model(self, trials: Sequence[TrialRecord], seed: int) -> dict[str, Any]:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                seed=seed, multivariate=True, group=True, constant_liar=True, n_startup_trials=1
            )
        study = optuna.create_study(direction="minimize", sampler=sampler)
        study.add_trials([self._frozen(trial) for trial in trials])
        trial = study.ask()
        params: dict[str, Any] = {}
        for parameter in self.space.parameters:
            if self.space.is_active(parameter, params):
                value = _suggest(trial, parameter)
                params[parameter.path] = parameter.limited(value, params)
        return params

    def _frozen(self, trial: TrialRecord) -> FrozenTrial:
        from optuna.trial import TrialState, create_trial

        params, distributions = _inward(self.space, trial.params)
        losses = {
            record.epoch: self._loss(value)
            for record in trial.epochs
            if (value := trial.value_at(record.epoch, self.objective.metric)) is not None
        }
        state, value = TrialState.PRUNED, None
        if trial.state == "running":
            state = TrialState.RUNNING
        elif trial.state == "complete" and self.full_epochs in losses:
            state, value = TrialState.COMPLETE, losses[self.full_epochs]
        elif trial.state != "stopped" or not losses:
            losses = {0: FAILED_LOSS}
        return create_trial(
            state=state,
            value=value,
            params=params,
            distributions=distributions,
            intermediate_values=losses,
        )

    def _loss(self, value: float) -> float:
        if self.objective.direction == "minimize" and value > 0:
            return math.log(value)
        return self.objective.loss(value)


def derived_seed(seed: int, number: int, retry: int) -> int:
    """Return a 32-bit seed for one proposal of one trial."""
    digest = hashlib.sha256(f"{seed}/{number}/{retry}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def at_positions(space: SearchSpace, positions: Mapping[str, float]) -> dict[str, Any]:
    """Return the parameters at positions 0..1 of their ranges; inactive ones are left out."""
    params: dict[str, Any] = {}
    for parameter in space.parameters:
        if space.is_active(parameter, params):
            value = _at(parameter, positions[parameter.path])
            params[parameter.path] = parameter.limited(value, params)
    return params


def distribution(parameter: Parameter) -> BaseDistribution:
    """Return Optuna's distribution of a parameter; choices are their positions in the list."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if parameter.type == "choice":
        return CategoricalDistribution(range(len(parameter.choices)))
    low, high = cast(float, parameter.low), cast(float, parameter.high)
    if parameter.type == "float":
        return FloatDistribution(low, high, log=parameter.log)
    if parameter.log:
        return IntDistribution(int(low), int(high), log=True)
    return IntDistribution(int(low), int(high), step=parameter.step or 1)


def _at(parameter: Parameter, position: float) -> Any:
    if parameter.type == "choice":
        return parameter.choices[int(position * len(parameter.choices))]
    low, high = cast(float, parameter.low), cast(float, parameter.high)
    step = (parameter.step or 1) if parameter.type == "int" else 0
    if parameter.type == "int":  # every whole number gets an equal part of the range
        low, high = low - step / 2, high + step / 2
    if parameter.log:
        value = math.exp(math.log(low) + position * (math.log(high) - math.log(low)))
    else:
        value = low + position * (high - low)
    return parameter.nearest(value)


def _inward(
    space: SearchSpace, params: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
    """Return a trial's parameters as Optuna knows them.

    The baseline may lie outside a range: it is told at the nearest point inside, and a choice
    that is not on the list is left out.
    """
    inward: dict[str, Any] = {}
    distributions: dict[str, BaseDistribution] = {}
    for parameter in space.parameters:
        if parameter.path not in params:
            continue
        value = parameter.nearest(params[parameter.path])
        if value is None and None not in parameter.choices:
            continue
        index = parameter.type == "choice"
        inward[parameter.path] = parameter.choices.index(value) if index else value
        distributions[parameter.path] = distribution(parameter)
    return inward, distributions


def _suggest(trial: Trial, parameter: Parameter) -> Any:
    if parameter.type == "choice":
        index = trial.suggest_categorical(parameter.path, range(len(parameter.choices)))
        return parameter.choices[index]
    low, high = cast(float, parameter.low), cast(float, parameter.high)
    if parameter.type == "float":
        return trial.suggest_float(parameter.path, low, high, log=parameter.log)
    step = 1 if parameter.log else parameter.step or 1
    return trial.suggest_int(parameter.path, int(low), int(high), step=step, log=parameter.log)
