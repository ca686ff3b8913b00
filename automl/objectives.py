"""Which metric decides a study, and how its values are said to people.

The trainer declares the metric with its direction and unit; nothing is guessed.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, cast

from automl.contract import Objective
from automl.errors import Problem, SchemaError, StudySpecError
from automl.study_spec import StudySpec

FRACTION = "fraction"  # the unit of shares


def resolve_objective(study: StudySpec, model: Mapping[str, Any]) -> Objective:
    """Return the study's objective, or the trainer's own when the study names none.

    Args:
        study: `objectives` holds at most one `METRIC` or `METRIC minimize|maximize`.
        model: `model.json`: `objective`, and `metrics` with direction and unit of every metric.

    Raises:
        StudySpecError: an undeclared metric, or a direction that is not the declared one.
        SchemaError: a declaration without direction.
    """
    if not study.objectives:
        declared = cast("Mapping[str, Any]", model["objective"])
        return _objective(declared["metric"], declared)
    metric, _, direction = study.objectives[0].partition(" ")
    metrics = cast("Mapping[str, Mapping[str, Any]]", model.get("metrics", {}))
    if metric not in metrics:
        near = difflib.get_close_matches(metric, metrics, n=1)
        hint = f"Did you mean {near[0]}?" if near else ""
        problem = f"the trainer declares no metric {metric} (it declares {', '.join(metrics)})"
        raise StudySpecError([Problem("study", "objectives", problem, hint)])
    objective = _objective(metric, metrics[metric])
    if direction.strip() not in ("", objective.direction):
        problem = f"{metric}: got {direction.strip()}, the trainer declares {objective.direction}"
        remedy = f"Write {metric} {objective.direction}"
        raise StudySpecError([Problem("study", "objectives", problem, remedy)])
    return objective


def as_read(value: float, unit: str) -> tuple[float, str]:
    """Return a value and its unit as people read them: files hold fractions, people see percent."""
    return (100 * value, "%") if unit == FRACTION else (value, unit)


def score(objective: Objective, value: float | None) -> str:
    """Return a value of the objective with its unit, `-` without one."""
    if value is None:
        return "-"
    shown, unit = as_read(value, objective.unit)
    return f"{shown:.4g} {unit}".rstrip()


def _objective(metric: str, declared: Mapping[str, Any]) -> Objective:
    direction = declared.get("direction")
    if direction not in ("minimize", "maximize"):
        raise SchemaError(
            f"model.json: {metric}: got direction {direction!r}, allowed minimize and maximize"
        )
    return Objective(metric, direction, declared.get("unit") or "")
