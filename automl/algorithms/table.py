"""The algorithms by name, and the object a runner asks and tells.

Every answer of an `Algorithm` follows from the event log alone; there is no other state, and so
nothing to restore after a kill.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from automl.algorithms.rungs import Decision, Rungs, default_rungs, losses_at, may_complete
from automl.algorithms.samplers import (
    MODEL_RETRIES,
    RANDOM_RETRIES,
    RandomSampler,
    Sampler,
    TPESampler,
)
from automl.errors import Problem, StudySpecError
from automl.space import SearchSpace
from automl.store import ResolvedStudy, Study, TrialRecord
from automl.study_spec import AlgorithmChoice, StudySpec

SAMPLERS = ("tpe", "random")
PRUNERS = ("asha", "none")


@dataclass(frozen=True)
class Row:
    """One algorithm: who proposes, who stops, and when to use it."""

    sampler: str
    pruner: str
    when: str


NAMES: dict[str, Row] = {
    "auto": Row(
        "tpe",
        "asha",
        "TPE with ASHA: the best measured with several workers and fewer than 100 full runs",
    ),
    "asha": Row("tpe", "asha", "model-based proposals, poor trials end early"),
    "tpe": Row("tpe", "none", "model-based proposals, every trial runs to the end"),
    "random": Row("random", "none", "a reference to compare with; every trial runs to the end"),
}


@dataclass(frozen=True)
class Algorithm:
    """Sampler and pruner of one study.

    Attributes:
        name: as in the study file.
        row: what the name stands for, with the study's own choice of sampler or pruner.
        rungs: the stopping rule.
    """

    name: str
    row: Row
    sampler: Sampler
    rungs: Rungs
    space: SearchSpace
    base_spec: Mapping[str, Any]
    store: Study

    def ask(self) -> tuple[int, dict[str, Any]] | None:
        """Return the next trial: its number and parameters that no trial before it had.

        The answer is the same until `trial_started` is in the log. None: the space is finite and
        used up.
        """
        params = self._propose(self.store.trials)
        return None if params is None else (len(self.store.trials), params)

    def stop(self, trial: int, epoch: int, value: float) -> Decision:
        """Decide what happens to a trial whose objective is `value` after a finished epoch.

        Call it before this epoch is in the log, and log what it answers.
        """
        objective = self.store.objective
        sign = 1 if objective.direction == "minimize" else -1
        rungs = self.rungs.rungs
        reached = losses_at(self.store.trials, rungs, objective.metric, sign, without=trial)
        values = {rung: self.store.trials[trial].value_at(rung, objective.metric) for rung in rungs}
        own = {rung: sign * at for rung, at in values.items() if at is not None}
        own[epoch] = objective.loss(value)
        planned = self.store.resolved.study.budget.trials
        to_come = math.inf if planned is None else max(0, planned - len(self.store.trials))
        others = may_complete(self.store.trials, without=trial) + to_come
        return self.rungs.decide(trial, epoch, own, reached, others)

    def _propose(self, trials: Sequence[TrialRecord]) -> dict[str, Any] | None:
        return _propose(self.sampler, self.space, self.base_spec, trials)


def make_algorithm(study_spec: StudySpec, space: SearchSpace, store: Study) -> Algorithm:
    """Return the algorithm a study names, rebuilt from the study's log.

    Raises:
        StudySpecError: unknown names, or rungs that do not fit the full run.
    """
    row = resolve(study_spec.algorithm)
    return Algorithm(
        name=study_spec.algorithm.name,
        row=row,
        sampler=_sampler(row, store.resolved),
        rungs=make_rungs(study_spec.algorithm, store.resolved.full_epochs),
        space=space,
        base_spec=store.resolved.base_spec,
        store=store,
    )


def first_batch(resolved: ResolvedStudy, count: int) -> list[dict[str, Any]]:
    """Return the parameters of the first trials, as a study would start them together."""
    sampler = _sampler(resolve(resolved.study.algorithm), resolved)
    trials: list[TrialRecord] = []
    while len(trials) < count:
        params = _propose(sampler, resolved.space, resolved.base_spec, trials)
        if params is None:
            break
        trials.append(TrialRecord(len(trials), params, resolved.study.seed, 0.0))
    return [trial.params for trial in trials]


def resolve(choice: AlgorithmChoice) -> Row:
    """Return what an algorithm's name stands for.

    Raises:
        StudySpecError: unknown name, sampler or pruner.
    """
    problems: list[Problem] = []
    _known("algorithm.name", choice.name, tuple(NAMES), problems)
    if choice.sampler is not None:
        _known("algorithm.sampler", choice.sampler, SAMPLERS, problems)
    if choice.pruner is not None:
        _known("algorithm.pruner", choice.pruner, PRUNERS, problems)
    if problems:
        raise StudySpecError(problems)
    row = NAMES[choice.name]
    return Row(choice.sampler or row.sampler, choice.pruner or row.pruner, row.when)


def make_rungs(choice: AlgorithmChoice, full_epochs: int) -> Rungs:
    """Return the stopping rule for full runs of so many epochs.

    Raises:
        StudySpecError: a rung beyond the full run.
    """
    if resolve(choice).pruner == "none":
        return Rungs(full_epochs)
    named = default_rungs(full_epochs) if choice.rungs is None else choice.rungs
    if named and named[-1] > full_epochs:
        got = f"got {list(named)}, a full run has {full_epochs} epochs"
        remedy = "Give rungs that fit in the study file, or train longer (train.num_epochs)"
        raise StudySpecError([Problem("study", "algorithm.rungs", got, remedy)])
    below = tuple(rung for rung in named if rung < full_epochs)
    return Rungs(full_epochs, below, choice.factor, choice.min_complete)


def startup_trials(budget_trials: int | None) -> int:
    """Return the size of the initial design: Optuna's 10, or a third of a small budget."""
    if budget_trials is None:
        return 10
    return min(10, max(3, budget_trials // 3))


def _sampler(row: Row, resolved: ResolvedStudy) -> Sampler:
    study, space = resolved.study, resolved.space
    if row.sampler == "random":
        return RandomSampler(space, study.seed)
    startup = startup_trials(study.budget.trials)
    return TPESampler(space, study.seed, resolved.objective, resolved.full_epochs, startup)


def _propose(
    sampler: Sampler,
    space: SearchSpace,
    base_spec: Mapping[str, Any],
    trials: Sequence[TrialRecord],
) -> dict[str, Any] | None:
    number = len(trials)
    if number == 0:
        return space.defaults(base_spec)
    taken = {_identity(trial.params) for trial in trials}
    for retry in range(MODEL_RETRIES):
        params = sampler.suggest(trials, number, retry)
        if _identity(params) not in taken:
            return params
    fallback = RandomSampler(space, 0)
    for retry in range(RANDOM_RETRIES):
        params = fallback.suggest(trials, number, retry)
        if _identity(params) not in taken:
            return params
    return None


def _identity(params: Mapping[str, Any]) -> str:
    return json.dumps(params, sort_keys=True)


def _known(key: str, value: str, names: tuple[str, ...], problems: list[Problem]) -> None:
    if value in names:
        return
    near = difflib.get_close_matches(value, names, n=1)
    hint = f"Did you mean {near[0]}?" if near else ""
    problem = f"got {value}, available are {', '.join(names)}"
    problems.append(Problem("study", key, problem, hint))
