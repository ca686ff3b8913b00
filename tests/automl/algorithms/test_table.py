"""Algorithms by name, and whole studies through the object a runner uses."""

import pytest

from automl.algorithms.table import first_batch, make_algorithm, make_rungs, resolve, startup_trials
from automl.errors import StudySpecError
from automl.store import open_study
from automl.study_spec import AlgorithmChoice
from tests.automl import studies


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (
            AlgorithmChoice("bohb"),
            "algorithm.name: got bohb, available are auto, asha, tpe, random",
        ),
        (AlgorithmChoice("ashaa"), "Did you mean asha?"),
        (
            AlgorithmChoice("tpe", sampler="gp"),
            "algorithm.sampler: got gp, available are tpe, rand",
        ),
        (AlgorithmChoice("tpe", pruner="median"), "algorithm.pruner: got median, available are a"),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(choice, words):
    with pytest.raises(StudySpecError) as caught:
        resolve(choice)
    assert words in str(caught.value)


def test_names_stand_for_sampler_and_pruner():
    assert (resolve(AlgorithmChoice()).sampler, resolve(AlgorithmChoice()).pruner) == (
        "tpe",
        "asha",
    )
    assert make_rungs(AlgorithmChoice("tpe"), 27).rungs == ()
    assert make_rungs(AlgorithmChoice("asha"), 27).rungs == (3, 9)
    assert make_rungs(AlgorithmChoice("random", pruner="asha"), 27).rungs == (3, 9)
    assert make_rungs(AlgorithmChoice(rungs=(2, 6, 12)), 12).rungs == (2, 6)
    with pytest.raises(StudySpecError, match=r"algorithm.rungs: got \[2, 40\], a full run has 12"):
        make_rungs(AlgorithmChoice(rungs=(2, 40)), 12)
    assert [startup_trials(trials) for trials in (None, 6, 14, 100)] == [10, 3, 4, 10]


@pytest.mark.parametrize("algorithm", ["auto", "tpe", "random"])
def test_a_study_has_the_baseline_first_and_no_parameters_twice(tmp_path, algorithm):
    resolved = studies.resolved(tmp_path, algorithm=algorithm, budget={"trials": 12})
    study = open_study(resolved, tmp_path / "s")
    studies.run(study)
    params = [trial.params for trial in study.trials]
    assert params[0] == resolved.space.defaults(resolved.base_spec)
    assert len({str(item) for item in params}) == len(params) == 12
    assert all(resolved.space.contains(item) for item in params)
    assert study.baseline().state == "complete"
    assert study.value(study.best()) < study.value(study.baseline())
    assert first_batch(resolved, 3) == params[:3] if algorithm != "tpe" else True
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
