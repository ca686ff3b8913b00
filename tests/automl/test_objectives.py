"""The objective is what the trainer declares: direction and unit are never guessed."""

import itertools
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from automl.contract import Objective
from automl.errors import SchemaError, StudySpecError
from automl.objectives import (
    Constraint,
    Goals,
    Point,
    covered,
    dominates,
    front_of,
    hypervolume,
    knee,
    knee_of,
    non_dominated,
    resolve_goals,
    score,
)
from tests.automl import studies

MODEL = json.loads((studies.MODEL_DIR / "model.json").read_text())


@pytest.mark.parametrize(
    ("objectives", "expected"),
    [
        ([], Objective("val/epe", "minimize", "px")),
        (["val/bp1"], Objective("val/bp1", "minimize", "fraction")),
        (["val/bp1 minimize"], Objective("val/bp1", "minimize", "fraction")),
    ],
)
def test_a_declared_metric_brings_direction_and_unit(objectives, expected):
    assert resolve_goals(studies.study_spec(objectives=objectives), MODEL) == Goals(expected)


@pytest.mark.parametrize(
    ("objectives", "words"),
    [
        (
            ["val/bp2"],
            r"no metric val/bp2 \(it declares val/epe, val/bp1, model/parameters,.*val/bp1\?",
        ),
        (["val/epe maximize"], "got maximize, the trainer declares minimize"),
    ],
)
def test_an_undeclared_metric_or_direction_is_refused(objectives, words):
    with pytest.raises(StudySpecError, match=words):
        resolve_goals(studies.study_spec(objectives=objectives), MODEL)


def test_all_wrong_names_directions_and_constraints_are_told_together():
    study = studies.study_spec(
        objectives=["val/epe maximize", "engine/latency", "val/bp1", "val/bp1"],
        constraints=["engine/latency_ms < 33", "engine/size_mb <= 3", "model/parameters <= many"],
    )
    with pytest.raises(StudySpecError) as error:
        resolve_goals(study, MODEL)
    told = str(error.value)
    for words in (
        "val/epe: got maximize, the trainer declares minimize",
        "no metric engine/latency ",
        "Did you mean engine/latency_ms?",
        "val/bp1 is named twice",
        "'engine/latency_ms < 33'",
        "no metric engine/size_mb",
        "'model/parameters <= many'",
        "Write METRIC <= NUMBER or METRIC >= NUMBER",
    ):
        assert words in told


def test_the_first_objective_known_after_each_epoch_leads():
    objectives = ["engine/latency_ms", "val/bp1", "val/epe", "train/peak_memory_mb"]
    constraints = ["engine/latency_ms <= 33", "model/parameters<=1e6", "val/bp1 >= 0.1"]
    goals = resolve_goals(studies.study_spec(objectives=objectives, constraints=constraints), MODEL)
    assert goals.leading.metric == "val/bp1"
    assert [each.metric for each in goals.others] == [objectives[0], *objectives[2:]]
    assert [str(limit) for limit in goals.constraints] == [
        "engine/latency_ms <= 33 ms", "model/parameters <= 1e+06", "val/bp1 >= 0.1 fraction",
    ]  # fmt: skip
    assert goals.costs == ("engine/latency_ms", "model/parameters")  # memory comes with training
    assert goals.weighs
    assert not resolve_goals(studies.study_spec(), MODEL).weighs


def test_costs_alone_cannot_lead():
    with pytest.raises(StudySpecError, match=r"none of them is known after each epoch.*val/epe"):
        resolve_goals(studies.study_spec(objectives=["engine/latency_ms"]), MODEL)


def test_a_declaration_without_direction_is_an_error():
    with pytest.raises(SchemaError, match="val/x: got direction None"):
        resolve_goals(studies.study_spec(), {"objective": {"metric": "val/x"}})


def test_a_loss_is_smaller_when_better():
    assert Objective("d1", "maximize").loss(0.9) < Objective("d1", "maximize").loss(0.5)
    assert Objective("epe", "minimize").loss(0.5) < Objective("epe", "minimize").loss(0.9)


@pytest.mark.parametrize(
    ("unit", "value", "words"),
    [("px", 2.34567, "2.346 px"), ("fraction", 0.12345, "12.35 %"), ("", 3.0, "3"),
     ("px", None, "-")],
)  # fmt: skip
def test_a_score_is_said_with_its_unit_and_shares_as_percent(unit, value, words):
    assert score(Objective("val/x", "minimize", unit), value) == words


# --- fronts -------------------------------------------------------------------------------------

EPE, SPEED = Objective("val/epe", "minimize", "px"), Objective("val/d1", "maximize")
LIMIT = Constraint("val/d1", ">=", 0.2)
BOTH = Goals(EPE, (SPEED,))
numbers = st.floats(0, 4, allow_nan=False).map(lambda x: round(x, 1))


def clouds(size: int):
    return st.lists(st.tuples(*[numbers] * size), min_size=1, max_size=12)


@given(st.integers(1, 4).flatmap(clouds))
def test_a_front_beats_everything_and_no_member_beats_another(cloud):
    places = non_dominated(cloud)
    front = [cloud[place] for place in places]
    assert places == sorted(places)
    assert not any(dominates(a, b) for a, b in itertools.permutations(front, 2))
    assert len(set(front)) == len(front)
    for point in cloud:
        assert any(member == point or dominates(member, point) for member in front)


@pytest.mark.parametrize(
    ("one", "other", "beats"),
    [((1, 2), (1, 3), True), ((1, 2), (2, 3), True), ((1, 2), (1, 2), False),
     ((1, 3), (2, 2), False), ((2, 3), (1, 2), False)],
)  # fmt: skip
def test_nowhere_worse_and_somewhere_better_is_what_beats(one, other, beats):
    assert dominates(one, other) is beats


@given(st.integers(1, 3).flatmap(clouds), st.data())
def test_a_front_can_be_kept_up_to_date_point_by_point(cloud, data):
    kept = []
    for point in data.draw(st.permutations(cloud)):
        seen = [*kept, point]
        kept = [seen[place] for place in non_dominated(seen)]
    assert set(kept) == {cloud[place] for place in non_dominated(cloud)}


@given(st.integers(1, 3).flatmap(clouds))
def test_the_hypervolume_is_what_the_points_cover(cloud):
    """Counted on the grid of all coordinates, which the volume is made of."""
    reference = (4.0,) * len(cloud[0])
    axes = [sorted({*(own[axis] for own in cloud), 4.0}) for axis in range(len(reference))]
    volume = 0.0
    for corner in itertools.product(*(range(len(axis) - 1) for axis in axes)):
        low = [axis[place] for axis, place in zip(axes, corner, strict=True)]
        high = [axis[place + 1] for axis, place in zip(axes, corner, strict=True)]
        if any(all(a <= b for a, b in zip(own, low, strict=True)) for own in cloud):
            volume += math.prod(b - a for a, b in zip(low, high, strict=True))
    assert hypervolume(cloud, reference) == pytest.approx(volume)
    assert hypervolume([cloud[p] for p in non_dominated(cloud)], reference) == pytest.approx(volume)


@given(st.integers(1, 3).flatmap(clouds), st.floats(0.5, 3), st.floats(-2, 2))
def test_the_knee_is_on_the_front_and_units_do_not_move_it(cloud, scale, shift):
    front = [cloud[place] for place in non_dominated(cloud)]
    place = knee(front)
    told = [tuple(scale * x + shift for x in own) for own in front]
    low, high = ([f(axis) for axis in zip(*front, strict=True)] for f in (min, max))

    def share(own) -> float:
        sides = zip(own, low, high, strict=True)
        return sum((x - a) / (b - a) for x, a, b in sides if b > a)

    assert share(front[place]) == pytest.approx(min(map(share, front)))
    assert share(front[knee(told)]) == pytest.approx(share(front[place]))


def test_the_knee_is_where_the_front_bends():
    assert knee([(1.0, 9.0), (1.2, 3.0), (3.0, 2.0), (9.0, 1.0)]) == 1
    assert knee([(1.0, 2.0), (2.0, 1.0)]) == 0  # two ends are as good: the leading objective
    assert knee([(3.0,)]) == 0


def point(trial: int, epe: float, d1: float) -> Point:
    return Point(trial, None, {"val/epe": epe, "val/d1": d1})


def test_what_breaks_a_constraint_is_never_on_the_front():
    points = [point(0, 1.0, 0.1), point(1, 2.0, 0.5), point(2, 3.0, 0.4), point(3, 3.0, 0.9)]
    limited = Goals(EPE, (SPEED,), (LIMIT,))
    assert [each.trial for each in front_of(points, BOTH)] == [0, 1, 3]
    assert [each.trial for each in front_of(points, limited)] == [1, 3]
    assert [each.trial for each in front_of(points, Goals(EPE, (), (LIMIT,)))] == [1]
    assert knee_of(front_of(points[:1], limited), limited) is None


def test_the_covered_share_grows_from_nothing_to_the_front():
    points = [point(0, 4.0, 0.0), point(1, 2.0, 0.5), point(2, 0.0, 1.0)]
    shares = [covered(points[: count + 1], points, BOTH) for count in range(3)]
    assert shares == pytest.approx([0.01 / 1.21, 0.36 / 1.21, 1.0])
    assert covered(points[:1], points[:1], BOTH) == 0.0


@pytest.mark.parametrize(
    ("limit", "value", "excess"),
    [(Constraint("m", "<=", 33.0), 30.0, -3.0), (Constraint("m", "<=", 33.0), 33.0, 0.0),
     (Constraint("m", ">=", 0.5), 0.25, 0.25)],
)  # fmt: skip
def test_a_limit_may_be_reached_but_not_passed(limit, value, excess):
    assert limit.excess(value) == excess
    assert Point(0, None, {"m": value}).is_feasible(Goals(EPE, (), (limit,))) == (excess <= 0)
