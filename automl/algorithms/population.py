"""Evolution: proposals bred from the better trials; each sampler is a function of the log.

A generation is a block of trials in the order of their numbers, so nothing but the log has to be
kept. Failed trials count as worst, and so do stopped ones behind every complete one.

Sources: differential evolution within Hyperband (DEHB), Awad et al., IJCAI 2021; CMA-ES by the
package `cmaes`, NSGA-II by Optuna.
"""

# pyright: basic, reportMissingTypeStubs=false
# The types of cmaes and NumPy's choices are partial.
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from automl.algorithms.cube import Cube
from automl.algorithms.curves import curve_of, told_loss
from automl.algorithms.samplers import (
    FAILED,
    FAILED_LOSS,
    derived_seed,
    inward,
    suggested,
)
from automl.contract import Objective
from automl.errors import Problem, StudySpecError
from automl.objectives import Constraint, Goals
from automl.space import SearchSpace
from automl.store import TrialRecord

POPULATION = 10
MUTATION, CROSSOVER = 0.5, 0.5  # of differential evolution, as in DEHB
FIRST_STEP = 0.2  # of CMA-ES, a share of every range


@dataclass(frozen=True)
class DifferentialEvolution:
    """Crosses a member of the population with a mutant of three others.

    The population of a length are the best trials that reached it; members come from the longest
    length that has enough of them for a mutation.
    """

    space: SearchSpace
    seed: int
    objective: Objective
    lengths: tuple[int, ...]

    def suggest(self, trials: Sequence[TrialRecord], number: int, retry: int) -> dict[str, Any]:
        """Return a child of trials before `number`; before there are enough, a random point."""
        cube = Cube(self.space)
        generator = np.random.default_rng(derived_seed(self.seed, number, retry))
        population = self._population(trials)
        if number <= POPULATION or len(population) < 4:
            return cube.params(cube.uniform(generator, 1)[0])
        members = cube.points([trial.params for trial in population])
        target = members[number % len(members)]
        first, second, third = members[generator.permutation(len(members))[:3]]
        mutant = first + MUTATION * (second - third)
        outside = (mutant < 0) | (mutant > 1)
        fresh = cube.uniform(generator, 1)[0]
        option = np.where(generator.random(cube.columns) < MUTATION, first, fresh)
        mutant = np.where(cube.choices > 0, option, np.where(outside, fresh, mutant))
        crossed = generator.random(cube.columns) < CROSSOVER
        crossed[generator.integers(cube.columns)] = True
        return cube.params(np.where(crossed, mutant, target))

    def _population(self, trials: Sequence[TrialRecord]) -> list[TrialRecord]:
        sound = [trial for trial in trials if trial.state not in FAILED]
        for length in sorted(self.lengths, reverse=True):
            reached = [
                (curve[length], trial.id, trial)
                for trial in sound
                if length in (curve := curve_of(trial, self.objective))
            ]
            if len(reached) >= POPULATION // 2:
                return [row[2] for row in sorted(reached, key=lambda row: row[:2])[:POPULATION]]
        return []


@dataclass(frozen=True)
class CMASampler:
    """CMA-ES from the default; choices are rounded positions, for which it is weak."""

    space: SearchSpace
    seed: int
    objective: Objective

    def __post_init__(self) -> None:
        """Refuse before the first trial what would fail at the second."""
        _cmaes()

    def suggest(self, trials: Sequence[TrialRecord], number: int, retry: int) -> dict[str, Any]:
        """Return a sample of the distribution that whole generations of trials have shaped."""
        cmaes = _cmaes()
        cube = Cube(self.space)
        span = np.maximum(cube.choices, 1)
        middle = np.where(cube.choices > 0, 0.5, 0.0)
        optimizer = cmaes.CMA(
            mean=(cube.default + middle) / span,
            sigma=FIRST_STEP,
            bounds=np.tile([0.0, 1.0], (cube.columns, 1)),
            population_size=POPULATION,
            seed=derived_seed(self.seed, number, retry),
        )
        ended = [trial for trial in trials if trial.state != "running" and trial.id > 0]
        points = (cube.points([trial.params for trial in ended]) + middle) / span
        losses = _losses(ended, self.objective)
        size: int = optimizer.population_size
        with threadpool_limits(1, user_api="blas"):
            for start in range(0, len(ended) - size + 1, size):
                block = range(start, start + size)
                optimizer.tell([(points[index], losses[index]) for index in block])
            point = optimizer.ask()
        option = np.minimum(np.floor(point * span), span - 1)
        return cube.params(np.where(cube.choices > 0, option, point))


@dataclass(frozen=True)
class GeneticSampler:
    """Optuna's NSGA-II: the fittest of every generation are the parents of the next."""

    space: SearchSpace
    seed: int
    goals: Goals

    def suggest(self, trials: Sequence[TrialRecord], number: int, retry: int) -> dict[str, Any]:
        """Return a child of the last whole generation; its fittest are the front so far."""
        import optuna
        from optuna.study import StudyDirection
        from optuna.trial import TrialState, create_trial

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.NSGAIISampler(
            population_size=POPULATION, seed=derived_seed(self.seed, number, retry)
        )
        directions = [StudyDirection.MINIMIZE for _ in self.goals.objectives]
        study = optuna.create_study(directions=directions, sampler=sampler)
        ended = [trial for trial in trials if trial.state != "running"]
        for index, loss in enumerate(_losses(ended, self.goals.leading)):
            params, distributions = inward(self.space, ended[index].params)
            others = [_other_loss(ended[index], each) for each in self.goals.others]
            beyond = [_excess(ended[index], limit) for limit in self.goals.constraints]
            study.add_trial(
                create_trial(
                    state=TrialState.COMPLETE,
                    values=[loss, *others],
                    params=params,
                    distributions=distributions,
                    system_attrs={
                        "NSGAIISampler:generation": index // POPULATION,
                        **({"constraints": beyond} if beyond else {}),
                    },
                )
            )
        return suggested(study.ask(), self.space)


def _other_loss(trial: TrialRecord, objective: Objective) -> float:
    """Return the loss of a further objective; the worst of a trial that failed or lacks it."""
    value = _value(trial, objective.metric)
    return FAILED_LOSS if trial.state in FAILED or value is None else told_loss(value, objective)


def _excess(trial: TrialRecord, limit: Constraint) -> float:
    value = _value(trial, limit.metric)
    return FAILED_LOSS if value is None else limit.excess(value)


def _value(trial: TrialRecord, metric: str) -> float | None:
    value = trial.value_at(trial.last_epoch, metric)
    return trial.cost(metric) if value is None else value


def _losses(trials: Sequence[TrialRecord], objective: Objective) -> list[float]:
    """Return losses that rank trials: complete ones first, then by length, then failed ones."""
    losses: list[float] = []
    for trial in trials:
        curve = curve_of(trial, objective)
        if trial.state in FAILED or not curve:
            losses.append(FAILED_LOSS)
        else:
            behind = 0.0 if trial.state == "complete" else 1e3 / max(curve)
            losses.append(curve[max(curve)] + behind)
    return losses


def _cmaes() -> Any:
    """Import the optional package.

    Raises:
        StudySpecError: it is not installed.
    """
    try:
        import cmaes  # pyright: ignore[reportMissingImports]
    except ImportError:
        got = "got cmaes, but the package cmaes is not installed"
        remedy = "Install it (pip install cmaes), or use auto or tpe"
        raise StudySpecError([Problem("study", "algorithm", got, remedy)]) from None
    return cmaes
