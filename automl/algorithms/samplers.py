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

from automl.algorithms.cube import value_at
from automl.algorithms.curves import curve_of
from automl.contract import Objective
from automl.lock import PriorTrial
from automl.space import Parameter, SearchSpace
from automl.store import ENDED, TrialRecord, identity

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, Trial

FAILED = tuple(state for state in ENDED if state not in ("complete", "stopped"))
FAILED_LOSS = 1e6
MODEL_RETRIES = 20
RANDOM_RETRIES = 200


class Sampler(Protocol):
    """Proposes the parameters of one trial."""

    def suggest(
        self, trials: Sequence[TrialRecord], number: int, retry: int
    ) -> dict[str, Any] | None:
        """Return a proposal for trial `number`; another `retry` gives another proposal.

        None: there is nothing left to propose.
        """
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
class GridSampler:
    """Every combination of values once, in a scattered order.

    A parameter has all its choices, or `levels` values from one end of its range to the other.

    Attributes:
        space: what is searched.
        seed: of the order.
        levels: values of a range.
    """

    space: SearchSpace
    seed: int
    levels: int

    def suggest(
        self, trials: Sequence[TrialRecord], number: int, retry: int
    ) -> dict[str, Any] | None:
        """Return the first combination in order that no trial had."""
        taken = {trial.identity for trial in trials}
        values = grid_values(self.space, self.levels)
        cells = math.prod(len(each) for each in values)
        generator = random.Random(self.seed)
        first, step = generator.randrange(cells), generator.randrange(cells) | 1
        while math.gcd(step, cells) > 1:
            step += 1
        for index in range(cells):
            cell = (first + index * step) % cells
            params: dict[str, Any] = {}
            for parameter, each in zip(self.space.parameters, values, strict=True):
                cell, position = divmod(cell, len(each))
                if self.space.is_active(parameter, params):
                    params[parameter.path] = parameter.limited(each[position], params)
            if identity(params) not in taken:
                return params
        return None


def grid_values(space: SearchSpace, levels: int) -> list[list[Any]]:
    """Return the values of every parameter on a grid with so many values of a range."""
    positions = [index / (levels - 1) for index in range(levels)]
    return [
        list(item.choices)
        if item.type == "choice"
        else list(dict.fromkeys(value_at(item, position) for position in positions))
        for item in space.parameters
    ]


def grid_levels(space: SearchSpace, trials: int | None) -> int:
    """Return how fine a grid may be for so many trials; at least both ends of every range."""
    levels = 2
    while levels < 100 and trials is not None:
        finer = [len(each) for each in grid_values(space, levels + 1)]
        if math.prod(finer) > trials - 1:
            break
        levels += 1
    return levels


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
        return suggested(study.ask(), self.space)

    def _frozen(self, trial: TrialRecord) -> FrozenTrial:
        from optuna.trial import TrialState, create_trial

        params, distributions = inward(self.space, trial.params)
        losses = curve_of(trial, self.objective)
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


def derived_seed(*parts: int | str) -> int:
    """Return a 32-bit seed made from others, e.g. (study's seed, trial's number, retry)."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big")


def first_points(prior: Sequence[PriorTrial]) -> list[PriorTrial]:
    """Return the best trials of the earlier studies, one of each study in turn."""
    sound = [trial for trial in prior if trial.loss is not None]
    ranked = sorted(sound, key=lambda trial: (trial.loss or 0.0) + trial.variance**0.5)
    turns: dict[str, int] = {}
    rounds: list[tuple[int, PriorTrial]] = []
    for trial in ranked:
        turns[trial.study] = turns.get(trial.study, 0) + 1
        rounds.append((turns[trial.study], trial))
    return [trial for _, trial in sorted(rounds, key=lambda pair: pair[0])]


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
        position = int(position * len(parameter.choices))
    return value_at(parameter, position)


def inward(
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


def suggested(trial: Trial, space: SearchSpace) -> dict[str, Any]:
    """Return the parameters that an Optuna trial suggests; inactive ones are left out."""
    params: dict[str, Any] = {}
    for parameter in space.parameters:
        if space.is_active(parameter, params):
            value = _suggest(trial, parameter)
            params[parameter.path] = parameter.limited(value, params)
    return params


def _suggest(trial: Trial, parameter: Parameter) -> Any:
    if parameter.type == "choice":
        index = trial.suggest_categorical(parameter.path, range(len(parameter.choices)))
        return parameter.choices[index]
    low, high = cast(float, parameter.low), cast(float, parameter.high)
    if parameter.type == "float":
        return trial.suggest_float(parameter.path, low, high, log=parameter.log)
    step = 1 if parameter.log else parameter.step or 1
    return trial.suggest_int(parameter.path, int(low), int(high), step=step, log=parameter.log)
