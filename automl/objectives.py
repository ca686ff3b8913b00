"""What decides a study: objectives and constraints, the front they make, and what is told of it.

The trainer declares every metric with its direction and unit; nothing is guessed. The first
objective that training reports after each epoch is the leading one: trials are compared by it
while they run. Several objectives make a front: the points that no other point equals or beats in
all of them. Its knee is the point with the best trade: the farthest below the plane through the
best point of each objective. Losses are values turned so that smaller is better.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, cast

from automl.contract import PEAK_MEMORY, Objective, Setting
from automl.errors import Problem, SchemaError, StudySpecError
from automl.study_spec import StudySpec

FRACTION = "fraction"  # the unit of shares
MARGIN = 0.1  # of the range of every objective, behind its worst value
_CONSTRAINT = re.compile(r"(?P<metric>\S+)\s*(?P<relation><=|>=)\s*(?P<limit>\S+)")

Losses = tuple[float, ...]


# --- what is wanted -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Constraint:
    """A limit that what is promoted must keep.

    Attributes:
        metric: as declared by the trainer.
        relation: `<=` or `>=`.
        limit: in the metric's unit.
        unit: e.g. `ms`.
    """

    metric: str
    relation: str
    limit: float
    unit: str = ""

    def excess(self, value: float) -> float:
        """Return how far a value is beyond the limit; not above 0 when it keeps it."""
        return value - self.limit if self.relation == "<=" else self.limit - value

    def __str__(self) -> str:
        return f"{self.metric} {self.relation} {self.limit:g} {self.unit}".rstrip()


@dataclass(frozen=True)
class Goals:
    """What decides a study.

    Attributes:
        leading: the objective that trials are compared by while they run.
        others: further objectives, in the order of the study file.
        constraints: limits.
        costs: the metrics of these that follow from a spec's structure, without training.
    """

    leading: Objective
    others: tuple[Objective, ...] = ()
    constraints: tuple[Constraint, ...] = ()
    costs: tuple[str, ...] = ()

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """All objectives, the leading one first."""
        return (self.leading, *self.others)

    @property
    def weighs(self) -> bool:
        """Whether more than the leading objective decides."""
        return bool(self.others or self.constraints)

    @property
    def units(self) -> dict[str, str]:
        """Every metric that decides, with its unit."""
        return {item.metric: item.unit for item in (*self.objectives, *self.constraints)}


def resolve_goals(study: StudySpec, model: Mapping[str, Any]) -> Goals:
    """Return the study's objectives and constraints; the trainer's objective when it names none.

    Args:
        study: `objectives` holds `METRIC` or `METRIC minimize|maximize`, `constraints` holds
            `METRIC <= NUMBER` or `METRIC >= NUMBER`.
        model: `model.json`: `objective`, and `metrics` and `costs` with direction and unit.

    Raises:
        StudySpecError: all undeclared metrics, wrong directions and unreadable constraints.
        SchemaError: a declaration without direction.
    """
    metrics = cast("Mapping[str, Mapping[str, Any]]", model.get("metrics", {}))
    costs = cast("Mapping[str, Mapping[str, Any]]", model.get("costs", {}))
    known = {**metrics, **costs}
    problems: list[Problem] = []
    objectives: list[Objective] = []
    for line in study.objectives:
        metric, _, direction = line.partition(" ")
        if _is_declared(metric, "objectives", known, problems):
            objective = _objective(metric, known[metric])
            objectives.append(objective)
            if direction.strip() not in ("", objective.direction):
                got = f"{metric}: got {direction.strip()}, the trainer declares"
                remedy = f"Write {metric} {objective.direction}"
                problem = f"{got} {objective.direction}"
                problems.append(Problem("study", "objectives", problem, remedy))
    constraints = [
        found
        for line in study.constraints
        if (found := _constraint(line, known, problems)) is not None
    ]
    names = [objective.metric for objective in objectives]
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.append(Problem("study", "objectives", f"{name} is named twice"))
    if names and not problems and all(name in costs for name in names):
        problem = "none of them is known after each epoch, so trials cannot be compared"
        remedy = f"Add one of {', '.join(metrics)}"
        problems.append(Problem("study", "objectives", problem, remedy))
    if problems:
        raise StudySpecError(problems)
    if not objectives:
        declared = cast("Mapping[str, Any]", model["objective"])
        metric = declared["metric"]
        objectives = [_objective(metric, {**metrics.get(metric, {}), **declared})]
    leading = next(item for item in objectives if item.metric not in costs)
    others = tuple(item for item in objectives if item is not leading)
    goals = Goals(leading, others, tuple(constraints))
    measured = (name for name in goals.units if name in costs and name != PEAK_MEMORY)
    return replace(goals, costs=tuple(measured))


def _is_declared(
    metric: str, key: str, known: Mapping[str, Mapping[str, Any]], problems: list[Problem]
) -> bool:
    if metric in known:
        return True
    near = difflib.get_close_matches(metric, known, n=1)
    hint = f"Did you mean {near[0]}?" if near else ""
    problem = f"the trainer declares no metric {metric} (it declares {', '.join(known)})"
    problems.append(Problem("study", key, problem, hint))
    return False


def _constraint(
    line: str, known: Mapping[str, Mapping[str, Any]], problems: list[Problem]
) -> Constraint | None:
    match = _CONSTRAINT.fullmatch(line.strip())
    try:
        limit = float(match["limit"]) if match is not None else None
    except ValueError:
        limit = None
    if match is None or limit is None:
        remedy = "Write METRIC <= NUMBER or METRIC >= NUMBER"
        problems.append(Problem("study", "constraints", f"got {line!r}", remedy))
        return None
    metric = match["metric"]
    if not _is_declared(metric, "constraints", known, problems):
        return None
    return Constraint(metric, match["relation"], limit, known[metric].get("unit") or "")


def _objective(metric: str, declared: Mapping[str, Any]) -> Objective:
    direction = declared.get("direction")
    if direction not in ("minimize", "maximize"):
        raise SchemaError(
            f"model.json: {metric}: got direction {direction!r}, allowed minimize and maximize"
        )
    return Objective(metric, direction, declared.get("unit") or "", declared.get("of") or "")


# --- points and their front ---------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """One way to use a complete trial.

    Attributes:
        trial: its number.
        setting: value of a field that differs from the trial's spec, or repeats it; None: none.
        values: every metric that decides.
    """

    trial: int
    setting: Setting | None
    values: Mapping[str, float] = field(default_factory=dict[str, float])

    def losses(self, goals: Goals) -> Losses:
        """Return the values of the objectives, turned so that smaller is better."""
        return tuple(each.loss(self.values[each.metric]) for each in goals.objectives)

    def is_feasible(self, goals: Goals) -> bool:
        """Whether it keeps every constraint."""
        return all(each.excess(self.values[each.metric]) <= 0 for each in goals.constraints)

    @property
    def name(self) -> str:
        """`TRIAL` or `TRIAL:VALUE`, as `automl promote --select` takes it."""
        return str(self.trial) if self.setting is None else f"{self.trial}:{self.setting.value}"


def front_of(points: Sequence[Point], goals: Goals) -> list[Point]:
    """Return the feasible points that no other one beats, best by the leading objective first."""
    feasible = [point for point in points if point.is_feasible(goals)]
    kept = non_dominated([point.losses(goals) for point in feasible])
    return sorted(
        (feasible[index] for index in kept), key=lambda point: (point.losses(goals), point.name)
    )


def knee_of(front: Sequence[Point], goals: Goals) -> Point | None:
    """Return the point with the best trade; None of an empty front."""
    return front[knee([point.losses(goals) for point in front])] if front else None


def dominates(one: Losses, other: Losses) -> bool:
    """Whether `one` is nowhere worse than `other` and somewhere better."""
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def non_dominated(losses: Sequence[Losses]) -> list[int]:
    """Return the places of the points that no other dominates; of equal points the first."""
    return [
        place
        for place, own in enumerate(losses)
        if own not in losses[:place] and not any(dominates(other, own) for other in losses)
    ]


def knee(losses: Sequence[Losses]) -> int:
    """Return the place of the point with the best trade on a front; of equals the first.

    Each loss counts as a share of its range over the front, and the sum of the shares decides: all
    points of a plane through the best point of each objective have the same sum.
    """
    box = [(min(column), max(column)) for column in zip(*losses, strict=True)]
    sums = [sum(_shares(own, box)) for own in losses]
    return min(range(len(sums)), key=lambda place: (round(sums[place], 9), place))


def hypervolume(losses: Sequence[Losses], reference: Losses) -> float:
    """Return the volume between a front and a reference that is worse in everything.

    Slices along the first objective; a point that does not beat the reference adds nothing.
    """
    inside = [own for own in set(losses) if all(a < b for a, b in zip(own, reference, strict=True))]
    if not inside:
        return 0.0
    if len(reference) == 1:
        return reference[0] - min(own[0] for own in inside)
    total, ends = 0.0, [*sorted({own[0] for own in inside}), reference[0]]
    for start, end in pairwise(ends):
        slice_ = [own[1:] for own in inside if own[0] <= start]
        total += (end - start) * hypervolume(slice_, reference[1:])
    return total


def covered(points: Sequence[Point], within: Sequence[Point], goals: Goals) -> float:
    """Return the share of a box that the feasible of `points` dominate, 0..1.

    The box holds all points `within`, with a margin behind the worst, so that the ends of a front
    count too.
    """
    columns = list(zip(*(point.losses(goals) for point in within), strict=True))
    box = [(min(column), max(column)) for column in columns]
    feasible = [point.losses(goals) for point in points if point.is_feasible(goals)]
    shares = [_shares(own, box) for own in feasible]
    sides = len(shares[0]) if shares else 0
    side = 1.0 + MARGIN
    return hypervolume(shares, (side,) * sides) / side**sides if sides else 0.0


def _shares(losses: Losses, box: Sequence[tuple[float, float]]) -> Losses:
    """Return where losses lie in a box, 0 to 1, along the sides that it has."""
    sides = zip(losses, box, strict=True)
    return tuple((own - low) / (high - low) for own, (low, high) in sides if high > low)


# --- for people ---------------------------------------------------------------------------------


def as_read(value: float, unit: str) -> tuple[float, str]:
    """Return a value and its unit as people read them: files hold fractions, people see percent."""
    return (100 * value, "%") if unit == FRACTION else (value, unit)


def score(objective: Objective | Constraint, value: float | None) -> str:
    """Return a value of a metric with its unit, `-` without one."""
    if value is None:
        return "-"
    shown, unit = as_read(value, objective.unit)
    return f"{shown:.4g} {unit}".rstrip()


def in_words(point: Point, goals: Goals) -> str:
    """Return a point as people read it: the trial, its setting, all objectives."""
    setting = f" at {point.setting}" if point.setting is not None else ""
    values = ", ".join(
        f"{each.metric} {score(each, point.values[each.metric])}" for each in goals.objectives
    )
    return f"trial {point.trial}{setting}: {values}"
