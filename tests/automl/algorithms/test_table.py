"""Algorithms by name, and whole studies through the object a runner uses."""

import importlib.util
import itertools

import pytest

from automl.algorithms.table import (
    ALIASES,
    NAMES,
    REFUSED,
    first_batch,
    make_algorithm,
    make_rungs,
    resolve,
    row_of,
    startup_trials,
)
from automl.errors import StudySpecError
from automl.store import open_study, read_study
from automl.study_spec import AlgorithmChoice
from tests.automl import studies

HERE = [name for name in NAMES if name != "cmaes" or importlib.util.find_spec("cmaes")]


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (AlgorithmChoice("newton"), "algorithm.name: got newton, available are auto, tpe, gp"),
        (AlgorithmChoice("ashaa"), "Did you mean asha?"),
        (AlgorithmChoice("tpe", sampler="pg"), "algorithm.sampler: got pg, available are tpe, gp"),
        (AlgorithmChoice("tpe", pruner="me"), "algorithm.pruner: got me, available are forecast"),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(choice, words):
    with pytest.raises(StudySpecError) as caught:
        resolve(choice)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_offered_is_refused_with_its_reason_and_the_others(name):
    with pytest.raises(StudySpecError) as caught:
        resolve(AlgorithmChoice(name))
    assert f"{name} is not offered: {REFUSED[name]}" in str(caught.value)
    assert "Use one of auto, tpe, gp" in str(caught.value)


def test_the_documents_names_mean_an_algorithm_or_are_refused():
    documents = {"bayesian", "bfbo", "hyperband", "hyperband_es", "asha", "bohb", "dehb", "pbt",
                 "llm", "hybrid", "autoresearch"}  # fmt: skip
    assert documents <= {*NAMES, *ALIASES, *REFUSED}
    assert resolve(AlgorithmChoice("bayesian")) == NAMES["gp"]


def test_names_stand_for_sampler_and_pruner():
    assert make_rungs(AlgorithmChoice("tpe"), 27).rungs == ()
    assert make_rungs(AlgorithmChoice("asha"), 27).rungs == (3, 9)
    assert make_rungs(AlgorithmChoice("random", pruner="asha"), 27).rungs == (3, 9)
    assert make_rungs(AlgorithmChoice(rungs=(2, 6, 12)), 12).rungs == (2, 6)
    assert make_rungs(AlgorithmChoice("bohb"), 27).brackets == 3
    with pytest.raises(StudySpecError, match=r"algorithm.rungs: got \[2, 40\], a full run has 12"):
        make_rungs(AlgorithmChoice(rungs=(2, 40)), 12)
    assert [startup_trials(trials) for trials in (None, 6, 14, 100)] == [10, 3, 4, 10]


@pytest.mark.parametrize(
    ("keys", "sampler", "reason"),
    [
        ({"budget": {"trials": 12}}, "gp", "3 parameters, 12 trials; learning curves of 9 epochs"),
        ({"budget": {"hours": 1}}, "gp", "3 parameters, a budget of few full runs"),
        ({"budget": {"trials": 501}}, "tpe", "501 trials are too many"),
        (
            {"budget": {"trials": 8}, "search": {"parameters": ["model.width"]}},
            "grid",
            "the 8 combinations fit into 8 trials",
        ),
        ({"algorithm": {"name": "auto", "sampler": "random"}}, "random", "the default"),
    ],
)
def test_auto_chooses_with_a_reason(tmp_path, keys, sampler, reason):
    row = row_of(studies.resolved(tmp_path, **keys))
    assert row.sampler == sampler
    assert reason in row.when


@pytest.mark.parametrize("name", HERE)
def test_a_study_has_the_baseline_first_and_no_parameters_twice(tmp_path, name):
    resolved = studies.resolved(tmp_path, algorithm=name, budget={"trials": 14})
    study = open_study(resolved, tmp_path / "s")
    studies.run(study)
    params = [trial.params for trial in study.trials]
    assert params[0] == resolved.space.defaults(resolved.base_spec)
    expected = 9 if name == "grid" else 14  # the baseline and 2 * 2 * 2; 3 * 3 * 3 are too many
    assert len({str(item) for item in params}) == len(params) == expected
    assert all(resolved.space.contains(item) for item in params)
    assert study.baseline().state == "complete"
    assert name == "grid" or study.value(study.best()) < study.value(study.baseline())
    assert first_batch(resolved, 3) == params[:3]
    ahead = make_algorithm(resolved.study, resolved.space, study).ask()
    study.close()
    again = read_study(tmp_path / "s")
    assert make_algorithm(resolved.study, resolved.space, again).ask() == ahead


def test_any_two_names_ask_differently_within_ten_trials(tmp_path):
    asked = {}
    for name in HERE:
        resolved = studies.resolved(tmp_path, algorithm=name, budget={"trials": 10})
        study = open_study(resolved, tmp_path / name)
        studies.run(study)
        asked[name] = [trial.params for trial in study.trials]
        study.close()
    assert len(asked) == len(HERE)
    for one, other in itertools.combinations(HERE, 2):
        assert asked[one] != asked[other], f"{one} and {other}"


def test_the_seed_makes_a_sequential_study_bit_identical(tmp_path):
    def told(name: str, seed: int) -> list[tuple]:
        resolved = studies.resolved(tmp_path, budget={"trials": 10}, seed=seed)
        study = open_study(resolved, tmp_path / name)
        studies.run(study)
        study.close()
        return [
            (event["kind"], event.get("params"), event.get("decision"), event.get("state"))
            for event in study.events
        ]

    assert told("a", 3) == told("b", 3) != told("c", 4)


def test_grid_enumerates_every_combination(tmp_path):
    search = {"parameters": ["train.optim.optimizer", "train.flip", "train.optim.momentum"]}
    keys = {"search": search, "spec": {"train": {"num_epochs": 1}}, "algorithm": "grid"}
    resolved = studies.resolved(tmp_path, budget={"trials": 30}, **keys)
    study = open_study(resolved, tmp_path / "s")
    studies.run(study)
    flips = sorted({trial.params["train.flip"] for trial in study.trials})
    assert flips == pytest.approx([0, 1 / 2, 1])  # 2 * 3 * 3 fit into 30 trials, 2 * 4 * 4 do not
    sgd = [trial.params for trial in study.trials if trial.params["train.optim.optimizer"] == "SGD"]
    assert len(sgd) == 9
    assert len(study.trials) == 12  # without momentum three more, one of them the baseline
    study.close()


def test_a_small_space_is_used_up_without_repetition(tmp_path):
    search = {"parameters": ["train.optim.optimizer", "model.width"],
              "ranges": {"model.width": [4, 8]}}  # fmt: skip
    resolved = studies.resolved(tmp_path, search=search, budget={"trials": 50})
    study = open_study(resolved, tmp_path / "s")
    studies.run(study)
    assert len(study.trials) == 4
    assert make_algorithm(resolved.study, resolved.space, study).ask() is None
    study.close()


def test_running_trials_give_distinct_proposals(tmp_path):
    resolved = studies.resolved(tmp_path, budget={"trials": 9})
    study = open_study(resolved, tmp_path / "s")
    algorithm = make_algorithm(resolved.study, resolved.space, study)
    for _ in range(9):
        assert algorithm.ask() == algorithm.ask()
        studies.start(study, *algorithm.ask())
    assert len({str(trial.params) for trial in study.trials}) == 9
    study.close()
