"""The algorithms by name, and the object a runner asks and tells.

Every answer of an `Algorithm` follows from the event log alone; there is no other state, and so
nothing to restore after a kill, and `automl.replay` can prove it.
"""

from __future__ import annotations

import difflib
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from automl.algorithms.curves import curve_of, learn_curves, told_loss
from automl.algorithms.rungs import (
    PRUNERS,
    Decision,
    Rungs,
    default_rungs,
    losses_at,
    may_complete,
)
from automl.algorithms.samplers import (
    MODEL_RETRIES,
    RANDOM_RETRIES,
    GridSampler,
    RandomSampler,
    Sampler,
    TPESampler,
    derived_seed,
    first_points,
    grid_levels,
)
from automl.algorithms.weighing import is_hopeless, rivals, weighed
from automl.errors import Problem, StudySpecError
from automl.space import SearchSpace
from automl.store import ResolvedStudy, Study, TrialRecord, identity
from automl.study_spec import AlgorithmChoice, StudySpec

PRIOR_TURNS = (1, 3, 5)  # trials that repeat the best of earlier studies
MANY_TRIALS = 500  # above, fitting a Gaussian process for every proposal takes too long


@dataclass(frozen=True)
class Row:
    """One algorithm: who proposes, who stops, and when to use it."""

    sampler: str
    pruner: str
    when: str


NAMES: dict[str, Row] = {
    "auto": Row("gp", "forecast", "the default: chosen by budget, dimensions and fidelity"),
    "tpe": Row("tpe", "none", "a robust model for many trials; every trial runs to the end"),
    "gp": Row("gp", "none", "few trials, each worth waiting for; every trial runs to the end"),
    "bfbo": Row("bfbo", "none", "a Gaussian process that spreads many parallel trials"),
    "cmaes": Row("cmaes", "none", "numbers only, hundreds of trials, optimum near the default"),
    "random": Row("random", "none", "a reference to compare with"),
    "grid": Row("grid", "none", "few values: every combination once"),
    "nsga2": Row("nsga2", "none", "evolution of a population, hundreds of trials"),
    "asha": Row("tpe", "asha", "model-based proposals, poor trials end early"),
    "median": Row("tpe", "median", "as asha, but only trials below the median end early"),
    "hyperband": Row("random", "hyperband", "no model, and no single first rung to be wrong"),
    "hyperband_es": Row("random", "hyperband_es", "hyperband that also ends hopeless trials"),
    "bohb": Row("tpe", "hyperband", "hyperband with model-based proposals"),
    "dehb": Row("evolution", "hyperband", "hyperband with differential evolution"),
}
ALIASES = {"bayesian": "gp"}
WEIGHS_ITSELF = ("nsga2", "random", "grid")  # samplers that several objectives do not bother
SAMPLERS = ("tpe", "gp", "bfbo", "cmaes", "random", "grid", "nsga2", "evolution")

_CLONES = "needs trials that take over another's weights while they run, which no runner can do yet"
_MODEL = "an algorithm must follow from the log, which a language model does not"
REFUSED = {
    "pbt": _CLONES,
    "pb2": _CLONES,
    "llm": _MODEL,
    "hybrid": _MODEL,
    "autoresearch": _MODEL,
    "univariate_tpe": "it ignores failures and proposes them again (86 % of its trials failed)",
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
    store: Study

    def _seen(self, number: int) -> Sequence[TrialRecord]:
        """Return the trials as the sampler sees them."""
        if self.row.sampler in WEIGHS_ITSELF:
            return self.store.trials
        return weighed(self.store.trials, self.store.goals, self.store.resolved.study.seed, number)

    def ask(self) -> tuple[int, dict[str, Any]] | None:
        """Return the next trial: its number and parameters that no trial before it had.

        The answer is the same until `trial_started` is in the log. None: the space is finite and
        used up.
        """
        number = len(self.store.trials)
        params = _propose(self.sampler, self.store.resolved, self._seen(number))
        return None if params is None else (number, params)

    def stop(self, trial: int, epoch: int, value: float) -> Decision:
        """Decide what happens to a trial whose objective is `value` after a finished epoch.

        Call it before this epoch is in the log, and log what it answers.
        """
        rungs = self.rungs.of(trial)
        own_record, goals = self.store.trials[trial], self.store.goals
        if trial > 0 and epoch < rungs.full_epochs and is_hopeless(own_record, goals):
            return Decision("stop", None)
        at = rungs.compared_at(epoch)
        if at is None or epoch >= rungs.full_epochs:
            return rungs.decide(trial, epoch, {}, {})
        objective = self.store.objective
        sign = 1 if objective.direction == "minimize" else -1
        peers = [
            t
            for t in rivals(self.store.trials, own_record, goals)
            if self.rungs.bracket(t.id) == self.rungs.bracket(trial)
        ]
        reached = losses_at(peers, [at], objective.metric, sign, without=trial)
        own = value if at == epoch else own_record.value_at(at, objective.metric)
        loss = math.nan if own is None else objective.loss(own)
        planned = self.store.resolved.study.budget.trials
        to_come = math.inf if planned is None else max(0, planned - len(self.store.trials))
        others = may_complete(self.store.trials, without=trial) + to_come
        chance = self._chance(trial, epoch, value) if rungs.forecasts(epoch) else None
        return rungs.decide(trial, epoch, {at: loss}, reached, others, chance)

    def _chance(self, trial: int, epoch: int, value: float) -> float | None:
        """Return the chance that a running trial beats the best; None while none is complete."""
        objective, trials = self.store.objective, self.store.trials
        curves = [curve_of(record, objective) for record in trials]
        curves[trial][epoch] = told_loss(value, objective)
        learnt = learn_curves(curves, self.rungs.full_epochs)
        if learnt is None:
            return None
        full = self.rungs.full_epochs
        beside = {record.id for record in rivals(trials, trials[trial], self.store.goals)}
        complete = [curve for number, curve in enumerate(curves) if number in beside]
        best = min((learnt.forecast(c).mean for c in complete if full in c), default=None)
        if best is None:
            return None
        own = learnt.forecast(curves[trial])
        return statistics.NormalDist(own.mean, math.sqrt(own.variance)).cdf(best)


def make_algorithm(study_spec: StudySpec, space: SearchSpace, store: Study) -> Algorithm:
    """Return the algorithm a study names, rebuilt from the study's log.

    Raises:
        StudySpecError: unknown names, or rungs that do not fit the full run.
    """
    row = row_of(store.resolved)
    return Algorithm(
        name=study_spec.algorithm.name,
        row=row,
        sampler=_sampler(row, store.resolved),
        rungs=make_rungs(study_spec.algorithm, store.resolved.full_epochs),
        space=space,
        store=store,
    )


def first_batch(resolved: ResolvedStudy, count: int) -> list[dict[str, Any]]:
    """Return the parameters of the first trials, as a study would start them together."""
    sampler = _sampler(row_of(resolved), resolved)
    trials: list[TrialRecord] = []
    while len(trials) < count:
        params = _propose(sampler, resolved, trials)
        if params is None:
            break
        trials.append(TrialRecord(len(trials), params, resolved.study.seed, 0.0))
    return [trial.params for trial in trials]


def resolve(choice: AlgorithmChoice) -> Row:
    """Return what an algorithm's name stands for, in general; `row_of` knows the study too.

    Raises:
        StudySpecError: unknown name, sampler or pruner.
    """
    problems: list[Problem] = []
    name = ALIASES.get(choice.name, choice.name)
    _known("algorithm.name", name, (*NAMES, *ALIASES), problems)
    if choice.sampler is not None:
        _known("algorithm.sampler", choice.sampler, SAMPLERS, problems)
    if choice.pruner is not None:
        _known("algorithm.pruner", choice.pruner, PRUNERS, problems)
    if problems:
        raise StudySpecError(problems)
    row = NAMES[name]
    return Row(choice.sampler or row.sampler, choice.pruner or row.pruner, row.when)


def row_of(resolved: ResolvedStudy) -> Row:
    """Return what a study's algorithm stands for; for `auto` with the reason of the choice.

    Raises:
        StudySpecError: unknown name, sampler or pruner.
    """
    row = _chosen_row(resolved)
    if not resolved.goals.others:
        return row
    if row.sampler == "nsga2":
        return replace(row, when=f"{row.when}; it breeds a front of all objectives")
    if row.sampler in WEIGHS_ITSELF:
        return row
    reason = "each proposal weighs the objectives anew, so that trials that end early teach too"
    return replace(row, when=f"{row.when}; {reason}")


def _chosen_row(resolved: ResolvedStudy) -> Row:
    choice = resolved.study.algorithm
    row = resolve(choice)
    if choice.name != "auto" or choice.sampler is not None:
        return row
    trials = resolved.study.budget.trials
    combinations = _combinations(resolved.space)
    count = len(resolved.space.parameters)
    if trials is not None and combinations <= trials:
        reason = f"the {combinations} combinations fit into {trials} trials"
        return replace(row, sampler="grid", when=reason)
    if trials is not None and trials > MANY_TRIALS:
        reason = f"{trials} trials are too many to fit a Gaussian process for each"
        return replace(row, sampler="tpe", when=reason)
    reason = f"{count} parameters, {f'{trials} trials' if trials else 'a budget of few full runs'}"
    if row.pruner == "forecast" and make_rungs(choice, resolved.full_epochs).rungs:
        reason += f"; learning curves of {resolved.full_epochs} epochs tell early what is hopeless"
    return replace(row, when=reason)


def make_rungs(choice: AlgorithmChoice, full_epochs: int) -> Rungs:
    """Return the stopping rule for full runs of so many epochs.

    Raises:
        StudySpecError: a rung beyond the full run.
    """
    pruner = resolve(choice).pruner
    if pruner == "none":
        return Rungs(full_epochs)
    named = default_rungs(full_epochs) if choice.rungs is None else choice.rungs
    if named and named[-1] > full_epochs:
        got = f"got {list(named)}, a full run has {full_epochs} epochs"
        remedy = "Give rungs that fit in the study file, or train longer (train.num_epochs)"
        raise StudySpecError([Problem("study", "algorithm.rungs", got, remedy)])
    below = tuple(rung for rung in named if rung < full_epochs)
    return Rungs(full_epochs, below, choice.factor, choice.min_complete, pruner)


def startup_trials(budget_trials: int | None) -> int:
    """Return the size of the initial design: Optuna's 10, or a third of a small budget."""
    if budget_trials is None:
        return 10
    return min(10, max(3, budget_trials // 3))


def _combinations(space: SearchSpace) -> float:
    """Return how many points a space has; infinite with a range of real numbers."""
    if any(parameter.type == "float" for parameter in space.parameters):
        return math.inf
    return math.prod(
        len(item.choices) or int((item.high or 0) - (item.low or 0)) // (item.step or 1) + 1
        for item in space.parameters
    )


def _sampler(row: Row, resolved: ResolvedStudy) -> Sampler:
    return _MAKERS[row.sampler](resolved, _seed(resolved))


def _seed(resolved: ResolvedStudy) -> int:
    """Two names draw different numbers, so that comparing them compares two samples."""
    return derived_seed(resolved.study.seed, resolve_name(resolved.study.algorithm))


def resolve_name(choice: AlgorithmChoice) -> str:
    """Return the name of the table that a study's algorithm means."""
    return ALIASES.get(choice.name, choice.name)


def _gp(resolved: ResolvedStudy, seed: int) -> Sampler:
    from automl.algorithms.bayes import BayesSampler

    return BayesSampler(resolved.space, seed, resolved.objective, resolved.full_epochs,
                        startup_trials(resolved.study.budget.trials),
                        prior=resolved.prior)  # fmt: skip


def _bfbo(resolved: ResolvedStudy, seed: int) -> Sampler:
    from automl.algorithms.bayes import BayesSampler

    return BayesSampler(resolved.space, seed, resolved.objective, resolved.full_epochs,
                        startup_trials(resolved.study.budget.trials), "bound",
                        resolved.prior)  # fmt: skip


def _tpe(resolved: ResolvedStudy, seed: int) -> Sampler:
    return TPESampler(resolved.space, seed, resolved.objective, resolved.full_epochs,
                      startup_trials(resolved.study.budget.trials))  # fmt: skip


def _cma(resolved: ResolvedStudy, seed: int) -> Sampler:
    from automl.algorithms.population import CMASampler

    return CMASampler(resolved.space, seed, resolved.objective)


def _nsga2(resolved: ResolvedStudy, seed: int) -> Sampler:
    from automl.algorithms.population import GeneticSampler

    return GeneticSampler(resolved.space, seed, resolved.goals)


def _evolution(resolved: ResolvedStudy, seed: int) -> Sampler:
    from automl.algorithms.population import DifferentialEvolution

    rungs = make_rungs(resolved.study.algorithm, resolved.full_epochs)
    lengths = (*rungs.rungs, resolved.full_epochs)
    return DifferentialEvolution(resolved.space, seed, resolved.objective, lengths)


def _grid(resolved: ResolvedStudy, seed: int) -> Sampler:
    trials = resolved.study.budget.trials
    return GridSampler(resolved.space, seed, grid_levels(resolved.space, trials))


_MAKERS: dict[str, Callable[[ResolvedStudy, int], Sampler]] = {
    "tpe": _tpe,
    "gp": _gp,
    "bfbo": _bfbo,
    "cmaes": _cma,
    "random": lambda resolved, seed: RandomSampler(resolved.space, seed),
    "grid": _grid,
    "nsga2": _nsga2,
    "evolution": _evolution,
}


def _propose(
    sampler: Sampler, resolved: ResolvedStudy, trials: Sequence[TrialRecord]
) -> dict[str, Any] | None:
    space, number = resolved.space, len(trials)
    if number == 0:
        return space.defaults(resolved.base_spec)
    taken = {trial.identity for trial in trials}
    if number in PRIOR_TURNS and not isinstance(sampler, GridSampler):
        for earlier in first_points(resolved.prior):
            if identity(earlier.params) not in taken:
                return dict(earlier.params)
    for retry in range(MODEL_RETRIES):
        params = sampler.suggest(trials, number, retry)
        if params is None or identity(params) not in taken:
            return params
    fallback = RandomSampler(space, 0)
    for retry in range(RANDOM_RETRIES):
        params = fallback.suggest(trials, number, retry)
        if identity(params) not in taken:
            return params
    return None


def _known(key: str, value: str, names: Sequence[str], problems: list[Problem]) -> None:
    if value in names:
        return
    if value in REFUSED:
        problem = f"{value} is not offered: {REFUSED[value]}"
        problems.append(Problem("study", key, problem, f"Use one of {', '.join(names)}"))
        return
    near = difflib.get_close_matches(value, names, n=1)
    hint = f"Did you mean {near[0]}?" if near else ""
    problem = f"got {value}, available are {', '.join(names)}"
    problems.append(Problem("study", key, problem, hint))
