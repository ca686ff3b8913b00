"""Warm start: trials of earlier studies of the same model, in the words of a new study.

An earlier study may be of another data set, image size or length; its model (the schema) and its
objective are the same. What is taken is fixed when the new study is created and lies in its
`study.lock.yaml`, so that `automl replay` needs nothing else. A trial is taken when the new study
could have it: every parameter that acts has a value, searched or fixed there, inside the range
here. What models make of it is in `automl.algorithms.earlier`.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from automl.algorithms.curves import forecasts
from automl.algorithms.samplers import FAILED
from automl.contract import Objective
from automl.errors import Problem, StoreError, StudySpecError
from automl.lock import PriorTrial, ResolvedStudy
from automl.space import SearchSpace
from automl.store import EVENTS_FILE, Study, TrialRecord, read_study
from automl.study_spec import StudySpec, get_path

MOST_SOUND, MOST_FAILED = 150, 50  # of an earlier study: its best, and its latest that failed


@dataclass(frozen=True)
class Taken:
    """What is taken from one earlier study.

    Attributes:
        study: its name.
        directory: where it is.
        trials: what models are told.
        of: how many trials it has ended.
        notes: what is left out or differs, and why.
    """

    study: str
    directory: str
    trials: tuple[PriorTrial, ...]
    of: int
    notes: tuple[str, ...] = ()


def take(
    study: StudySpec, space: SearchSpace, objective: Objective, directory: Path
) -> list[Taken]:
    """Return what the studies named by `warm_start` give to a new study.

    Args:
        study: the new study.
        space: what it searches.
        objective: what it optimises.
        directory: where it will live, beside the earlier ones.

    Raises:
        StudySpecError: an earlier study is not there, unreadable, of another model or objective,
            or has nothing to give; all together.
    """
    problems: list[Problem] = []
    found: list[Taken] = []
    for name in study.warm_start:
        earlier = _earlier(name, study, directory, problems)
        fault = "" if earlier is None else _fault(earlier, study, objective)
        if earlier is None:
            continue
        taken = prior_of(earlier, space)
        if not fault and not taken.trials:
            fault = "has no trial that this study could have: " + ("; ".join(taken.notes) or "none")
        if fault:
            remedy = "Leave it out, or name a study of the same model, objective and ranges"
            problems.append(Problem(f"study {study.name}", "warm_start", f"{name} {fault}", remedy))
        found.append(taken)
    if problems:
        raise StudySpecError(problems)
    return found


def prior_of(study: Study, space: SearchSpace) -> Taken:
    """Return what a study gives to another one that searches this space."""
    ended = [trial for trial in study.trials if trial.state != "running"]
    resolved = study.resolved
    losses = {
        trial.id: told for trial, told in forecasts(ended, resolved.objective, resolved.full_epochs)
    }
    sound: list[PriorTrial] = []
    failed: list[PriorTrial] = []
    left_out: Counter[str] = Counter()
    for trial in ended:
        params, reason = _translated(study, trial, space)
        if reason:
            left_out[reason] += 1
        elif trial.id in losses:
            sound.append(PriorTrial(study.name, trial.id, params, *losses[trial.id]))
        elif trial.state in FAILED:
            failed.append(PriorTrial(study.name, trial.id, params, None))
    best = sorted(sound, key=lambda each: each.loss or 0.0)[:MOST_SOUND]
    chosen = sorted([*best, *failed[-MOST_FAILED:]], key=lambda each: each.trial)
    notes = [f"{count} left out: {reason}" for reason, count in left_out.most_common()]
    here = {parameter.path for parameter in space.parameters}
    fixed = [item.path for item in resolved.space.parameters if item.path not in here]
    notes += [f"searched there and fixed here: {', '.join(fixed)}"] if fixed else []
    return Taken(study.name, str(study.directory), tuple(chosen), len(ended), tuple(notes))


def in_words(resolved: ResolvedStudy, taken: Sequence[Taken], sampler: str) -> list[str]:
    """Return what a study takes from which earlier one, what it leaves out, and what it is for.

    Args:
        resolved: the study.
        taken: what was looked at just now; empty for a study that has its prior in its lock.
        sampler: the study's.
    """
    if not resolved.study.warm_start:
        return []
    notes = {each.study: [f"of {each.of} ended", *each.notes] for each in taken}
    lines: list[str] = []
    for name in dict.fromkeys(trial.study for trial in resolved.prior):
        trials = [trial for trial in resolved.prior if trial.study == name]
        failed = sum(trial.loss is None for trial in trials)
        counts = f"{len(trials)} trials ({failed} of them failed)"
        lines.append("; ".join([f"{name}: {counts}", *notes.get(name, ["as locked"])]))
    return [*lines, _USES.get(sampler, _FIRST)]


_FIRST = "The best of them are trials 1, 3 and 5; the model learns from this study's trials only."
_MODELLED = (
    "The best of them are trials 1, 3 and 5; the Gaussian process follows all of them as far as"
    " this study's trials agree."
)
_USES = {
    "gp": _MODELLED,
    "bfbo": _MODELLED,
    "grid": "A grid enumerates: nothing of it is used.",
}


def _translated(study: Study, trial: TrialRecord, space: SearchSpace) -> tuple[dict[str, Any], str]:
    """Return the trial's values of the parameters that act here, or why it has none."""
    spec: Mapping[str, Any] = study.resolved.space.apply(study.resolved.base_spec, trial.params)
    params: dict[str, Any] = {}
    for parameter in space.parameters:
        if space.is_active(parameter, params):
            value = get_path(spec, parameter.path)
            if not parameter.contains(value):
                return {}, f"{parameter.path} is outside {parameter.domain()}"
            params[parameter.path] = parameter.nearest(value)
    return params, ""


def _earlier(name: str, study: StudySpec, directory: Path, problems: list[Problem]) -> Study | None:
    """Return an earlier study by its name beside the new one, or by its directory."""
    beside = directory.parent / name
    place = beside if beside.is_dir() else Path(name)
    source = f"study {study.name}"
    if not (place / EVENTS_FILE).is_file():
        known = sorted(log.parent.name for log in directory.parent.glob(f"*/{EVENTS_FILE}"))
        near = difflib.get_close_matches(name, known, n=1)
        remedy = f"Did you mean {near[0]}?" if near else "`automl list` shows the studies there are"
        problem = f"there is no study {name} (neither {beside} nor a directory)"
        problems.append(Problem(source, "warm_start", problem, remedy))
        return None
    try:
        return read_study(place)
    except StoreError as error:
        problems.append(Problem(source, "warm_start", str(error)))
        return None


def _fault(earlier: Study, study: StudySpec, objective: Objective) -> str:
    """Return why an earlier study says nothing about a new one."""
    settings, other = earlier.resolved.study, earlier.objective
    if settings.model != study.model:
        return f"is of model {settings.model}, which has another schema than {study.model}"
    if (other.metric, other.direction) != (objective.metric, objective.direction):
        wanted = f"{objective.metric} {objective.direction}"
        return f"optimises {other.metric} {other.direction}, this study {wanted}"
    return ""
