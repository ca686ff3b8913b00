"""Proof from the log that every suggestion and every decision of a study follows from it.

The events are read again one by one. Before a new trial starts, the algorithm, which has seen the
events before this one only, is asked; before an epoch is added, it is asked for its decision. Both
answers must be what the log says, so the log explains the whole study, parallel or not.

Numbers come from the same code on the same kind of processor; other linear algebra may round
differently.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from automl.algorithms.table import Algorithm, make_algorithm
from automl.events import Event
from automl.store import ResolvedStudy, Study, code_version, identity
from automl.study_spec import BudgetChoice


class MemoryLog:
    """An event log that is not on a disk."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def append(self, event: Mapping[str, Any]) -> Event:
        """Keep one event and return it as it is kept."""
        self.events.append({"time": datetime.now(UTC).isoformat(), **event})
        return self.events[-1]

    def close(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True)
class Replay:
    """What was compared.

    Attributes:
        suggestions: new trials whose parameters follow.
        decisions: epochs whose decision follows.
        difference: the first answer that does not follow, in words; empty when all do.
    """

    suggestions: int
    decisions: int
    difference: str


def replay(study: Study) -> Replay:
    """Ask again for everything a study was told, up to the first difference."""
    resolved = _as_created(study)
    again = memory_study(study.directory, resolved)
    algorithm = make_algorithm(resolved.study, resolved.space, again)
    suggestions = decisions = 0
    for line, event in enumerate(study.events, start=1):
        difference = ""
        if event["kind"] == "budget_changed":
            resolved = _with_budget(resolved, event["new"])
            again.resolved = resolved
            algorithm = make_algorithm(resolved.study, resolved.space, again)
        elif event["kind"] == "trial_started" and event["trial"] == len(again.trials):
            difference = _other_suggestion(algorithm, event)
            suggestions += not difference
        elif event["kind"] == "epoch":
            difference = _other_decision(algorithm, event)
            decisions += not difference
        if difference:
            return Replay(suggestions, decisions, f"line {line}: {difference}{_versions(study)}")
        again.append(event)
    return Replay(suggestions, decisions, "")


def memory_study(directory: Path, resolved: ResolvedStudy) -> Study:
    """Return an empty study whose log is in memory."""
    return Study(directory, resolved, cast(Any, MemoryLog()), None)


def _as_created(study: Study) -> ResolvedStudy:
    """Return what a study was created with: a lock has the newest budget."""
    changes = (event for event in study.events if event["kind"] == "budget_changed")
    first = next(changes, None)
    return study.resolved if first is None else _with_budget(study.resolved, first["old"])


def _with_budget(resolved: ResolvedStudy, budget: Mapping[str, Any]) -> ResolvedStudy:
    limits = {key: limit for key, limit in budget.items() if key != "confirm"}
    return replace(resolved, study=replace(resolved.study, budget=BudgetChoice(**limits)))


def _other_suggestion(algorithm: Algorithm, event: Event) -> str:
    """Return how the suggestion differs from the trial that was started, or nothing."""
    answer, trial, logged = algorithm.ask(), event["trial"], event["params"]
    if answer is None:
        return f"trial {trial} was started, but there is nothing left to suggest"
    params = answer[1]
    if identity(params) == identity(logged):
        return ""
    different = (
        f"{path} is {logged.get(path, 'absent')} in the log, {params.get(path, 'absent')} follows"
        for path in dict.fromkeys([*logged, *params])
        if logged.get(path) != params.get(path)
    )
    return f"trial {trial}: {'; '.join(different)}"


def _other_decision(algorithm: Algorithm, event: Event) -> str:
    """Return how the decision differs from the one in the log, or nothing."""
    trial, epoch = event["trial"], event["epoch"]
    value = event["metrics"][algorithm.store.objective.metric]
    follows = tuple(algorithm.stop(trial, epoch, value))
    logged = (event["decision"], event["rung"])
    if follows == logged:
        return ""
    words = [
        f"{action} ({'no rung' if rung is None else f'rung {rung}'})"
        for action, rung in (logged, follows)
    ]
    return f"trial {trial}, epoch {epoch}: {words[0]} in the log, {words[1]} follows"


def _versions(study: Study) -> str:
    """Return which programs wrote the log, when this is another."""
    wrote = {e["code_version"] for e in study.events if e["kind"] == "session_started"}
    others = sorted(wrote - {code_version()})
    return f" (written by release {', '.join(others)}, this is {code_version()})" if others else ""
