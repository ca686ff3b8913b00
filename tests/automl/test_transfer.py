"""Warm start: what a study takes from earlier ones, where it is recorded, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from automl.algorithms.cube import Cube
from automl.algorithms.earlier import Earlier, Process
from automl.algorithms.samplers import first_points
from automl.errors import StudyLockedError, StudySpecError
from automl.lock import PriorTrial, read_lock
from automl.plan import make_plan, prepare, render
from automl.replay import replay
from automl.space import Parameter, SearchSpace
from automl.store import Study, read_study
from automl.study import run_study
from automl.transfer import prior_of
from tests.automl.quadratic import NAME

STUDY: dict[str, Any] = {
    "model": "quadratic",
    "runner": "local",
    "budget": {"trials": 8},
    "spec": {"train": {"num_epochs": 4}},
    "algorithm": {"name": "auto", "rungs": [2]},
    "promote": {"enabled": False},
}


@pytest.fixture(autouse=True)
def _work_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, **changes: Any) -> str:
    Path(f"{name}.yaml").write_text(yaml.safe_dump(STUDY | changes))
    return f"{name}.yaml"


def run(name: str, *overrides: str, **changes: Any) -> Study:
    target = write(name, **changes)
    assert run_study(target, overrides, trainable=NAME, progress=False) in (0, 3)
    return read_study(Path("results/studies") / name)


def planned(name: str, **changes: Any) -> str:
    return render(make_plan(prepare(write(name, **changes), trainable=NAME), []))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of another length whose best trial is better than its default."""
    folder = tmp_path_factory.mktemp("earlier")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        best = run("old", "train.num_epochs=3", algorithm={"name": "random"}).best()
    assert best is not None
    assert best.id > 0
    return folder / "results"


@pytest.fixture
def earlier(finished: Path) -> Study:
    shutil.copytree(finished, "results")
    return read_study(Path("results/studies/old"))


def test_a_study_begins_with_the_best_of_the_earlier_one_and_replays(earlier: Study) -> None:
    study = run("new", warm_start=["old"])

    best = earlier.best()
    assert best is not None
    assert study.trials[1].params == best.params
    lock = read_lock(study.directory)
    assert lock is not None
    assert {trial.study for trial in lock.prior} == {"old"}
    assert [trial.trial for trial in lock.prior] == list(range(8))
    assert study.events[0]["warm_start"] == {"old": 8}
    again = replay(study)
    assert (again.suggestions, again.difference) == (8, "")


def test_what_was_taken_is_locked_and_outlives_the_earlier_study(earlier: Study) -> None:
    first = run("new", warm_start=["old"], budget={"trials": 4})
    shutil.rmtree(earlier.directory)

    study = run("new", warm_start=["old"], budget={"trials": 7})

    assert len(study.trials) == 7
    assert study.resolved.prior == first.resolved.prior
    assert replay(study).difference == ""
    words = planned("new", warm_start=["old"], budget={"trials": 7})
    assert "old: 8 trials" in words
    assert "as locked" in words


def test_another_warm_start_needs_another_name(earlier: Study) -> None:
    run("new", budget={"trials": 1})
    with pytest.raises(StudyLockedError, match=r"study\.warm_start") as caught:
        run("new", warm_start=["old"], budget={"trials": 1})
    assert "prior" not in str(caught.value)


def test_a_plan_says_what_is_taken_and_what_not(earlier: Study) -> None:
    width = [trial.params["model.width"] for trial in earlier.trials]
    inside = [value for value in width if value <= 16]
    assert 0 < len(inside) < len(width)

    search = {"ranges": {"model.width": [4, 16]}, "drop": ["train.flip"]}
    words = planned("new", warm_start=["old"], search=search)

    assert f"old: {len(inside)} trials" in words
    assert "of 8 ended" in words
    assert f"{8 - len(inside)} left out: model.width is outside 4..16" in words
    assert "searched there and fixed here: train.flip" in words
    assert "the Gaussian process follows all of them as far as this study's trials agree" in words
    for name, use in (("random", "learns from this study's trials only"), ("grid", "enumerates")):
        assert use in planned("new", warm_start=["old"], algorithm=name)
    assert "Warm start" not in planned("new")


def test_values_fixed_in_the_earlier_study_count_too(earlier: Study) -> None:
    space = prepare(write("new", search={"add": ["train.optim.momentum"]}), trainable=NAME)
    parameters = space.resolved.space
    optimizer = Parameter("train.optim.optimizer", "choice", "AdamW", choices=("AdamW", "SGD"))
    taken = prior_of(earlier, SearchSpace((optimizer, *parameters.parameters)))
    assert {trial.params["train.optim.optimizer"] for trial in taken.trials} == {"AdamW"}


@pytest.mark.parametrize(
    ("names", "changes", "words"),
    [
        (["olt"], {}, "there is no study olt .*Did you mean old"),
        (["old", "gone"], {}, "there is no study gone"),
        (["old"], {"objectives": ["val/bp1 minimize"]}, "old optimises val/epe minimize, this"),
        (
            ["old"],
            {
                "search": {
                    "parameters": ["train.optim.lr"],
                    "ranges": {"train.optim.lr": [1.0, 2.0]},
                }
            },
            "old has no trial that this study could have: 8 left out: train.optim.lr is outside",
        ),
    ],
)
def test_a_warm_start_that_says_nothing_is_refused(
    earlier: Study, names: list[str], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(StudySpecError, match=words):
        prepare(write("new", warm_start=names, **changes), trainable=NAME)


def test_a_study_of_another_model_is_refused(earlier: Study) -> None:
    file = earlier.directory / "study.lock.yaml"
    lock = yaml.safe_load(file.read_text())
    lock["study"]["model"] = "cubic"
    file.write_text(yaml.safe_dump(lock))
    words = "old is of model cubic, which has another schema than quadratic"
    with pytest.raises(StudySpecError, match=words):
        prepare(write("new", warm_start=["old"]), trainable=NAME)


# --- what models make of it ---------------------------------------------------------------------

SPACE = SearchSpace(tuple(Parameter(f"p{n}", "float", 0.5, 0.0, 1.0) for n in range(4)))


def loss(point: Any, optimum: float, level: float) -> float:
    return level + float(((point - optimum) ** 2).sum())


def prior(optimum: float, *, study: str = "old", count: int = 30) -> list[PriorTrial]:
    points = np.random.default_rng(0).random((count, 4))
    return [
        PriorTrial(study, n, {f"p{i}": float(v) for i, v in enumerate(p)}, loss(p, optimum, 2.0))
        for n, p in enumerate(points)
    ]


@pytest.mark.parametrize(("here", "there", "warm"), [(0.3, 0.35, True), (0.1, 0.9, False)])
def test_an_earlier_study_is_followed_as_long_as_trials_agree(
    here: float, there: float, warm: bool
) -> None:
    cube = Cube(SPACE)
    points = np.random.default_rng(1).random((8, 4))
    losses = np.array([loss(point, here, 0.5) for point in points])
    at = np.random.default_rng(2).random((200, 4))
    truth = np.array([loss(point, here, 0.5) for point in at])

    trend = Earlier(cube, prior(there)).trend(points, losses)
    process = Process(points, losses, np.zeros(8), cube.choices, trend)
    cold = Process(
        points, losses, np.zeros(8), cube.choices, Earlier(cube, []).trend(points, losses)
    )

    assert process.is_warm == warm
    error, cold_error = (float(np.abs(p.predict(at)[0] - truth).mean()) for p in (process, cold))
    assert error < 0.5 * cold_error if warm else error == cold_error


def test_what_an_earlier_study_adds_must_make_the_trials_likelier() -> None:
    """It agrees about two parameters and invents something about the others."""
    cube = Cube(SPACE)
    tried = np.random.default_rng(0).random((40, 4))
    told = [
        PriorTrial("old", n, {f"p{i}": float(v) for i, v in enumerate(p)},
                   loss(p[:2], 0.3, 2.0) + 0.6 * np.sin(25 * p[2]) * np.sin(25 * p[3]))
        for n, p in enumerate(tried)
    ]  # fmt: skip
    points = np.random.default_rng(1).random((32, 4))
    losses = np.array([loss(point, 0.3, 0.5) for point in points])

    trend = Earlier(cube, told).trend(points, losses)

    assert trend.shares[0] > 0.5
    assert not Process(points, losses, np.zeros(32), cube.choices, trend).is_warm


def test_of_two_earlier_studies_the_one_that_agrees_counts() -> None:
    points = np.random.default_rng(1).random((12, 4))
    losses = np.array([loss(point, 0.3, 0.5) for point in points])
    both = [*prior(0.3, study="same"), *prior(0.9, study="other")]
    shares = Earlier(Cube(SPACE), both).trend(points, losses).shares
    assert shares[0] > 0.7
    assert shares[1] < 0.3


def test_the_first_points_take_turns_between_the_studies() -> None:
    trials = [
        PriorTrial("a", 0, {}, 3.0),
        PriorTrial("a", 1, {}, 1.0),
        PriorTrial("a", 2, {}, 0.5, 9.0),  # not sure at all
        PriorTrial("a", 3, {}, None),
        PriorTrial("b", 0, {}, 2.0),
    ]
    assert [(t.study, t.trial) for t in first_points(trials)] == [
        ("a", 1), ("b", 0), ("a", 0), ("a", 2)
    ]  # fmt: skip


def test_the_log_and_the_lock_are_plain(earlier: Study) -> None:
    study = run("new", warm_start=["old"], budget={"trials": 1})
    first = json.loads((study.directory / "events.jsonl").read_text().splitlines()[0])
    assert first["warm_start"] == {"old": 8}
    tree = yaml.safe_load((study.directory / "study.lock.yaml").read_text())
    assert set(tree["prior"][0]) == {"study", "trial", "params", "loss", "variance"}
