from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from automl.report.importance import common_epoch, importance, position
from automl.space import Parameter
from automl.store import Study
from tests.automl.report.examples import new
from tests.automl.studies import end, finish_epoch, start


def trials(study: Study, count: int, weight: float, seed: int) -> None:
    """Ended trials whose value after epoch 2 depends on train.flip by `weight`, else noise."""
    generator = np.random.default_rng(seed)
    for trial in range(count):
        flip, noise, position_lr = (float(value) for value in generator.random(3))
        params = {
            "model.width": int(generator.choice([4, 8, 16, 32])),
            "train.flip": flip,
            "train.optim.lr": 10 ** (-6 + 5 * position_lr),
        }
        start(study, trial, params)
        finish_epoch(study, trial, 1, 9.0)
        finish_epoch(study, trial, 2, 1.0 + weight * flip + (1 - weight) * noise)
        end(study, trial, "stopped")


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return new(tmp_path)


def test_too_few_trials_are_not_ranked(study: Study) -> None:
    trials(study, 29, 1.0, seed=0)
    found = importance(study)
    assert (found.epoch, found.trials, found.needed) == (2, 29, 30)
    assert found.shares == ()
    study.close()


def test_a_parameter_that_matters_stands_out(study: Study) -> None:
    trials(study, 40, 0.9, seed=0)
    found = importance(study)
    assert found.shares[0].path == "train.flip"
    assert [share.path for share in found.shares if found.stands_out(share)] == ["train.flip"]
    assert found.shares[0].low <= found.shares[0].value <= found.shares[0].high
    study.close()


@pytest.mark.parametrize("seed", range(4))
def test_nothing_stands_out_of_noise(study: Study, seed: int) -> None:
    trials(study, 40, 0.0, seed)
    found = importance(study)
    assert [share for share in found.shares if found.stands_out(share)] == []
    study.close()


def test_equal_values_are_not_ranked(study: Study) -> None:
    for trial in range(40):
        start(study, trial, {"train.flip": trial / 40})
        finish_epoch(study, trial, 1, 1.0)
        end(study, trial, "stopped")
    assert importance(study).probe is None
    study.close()


def test_the_common_epoch_is_one_that_all_have(study: Study) -> None:
    for trial, epochs in enumerate((5, 2, 1)):
        start(study, trial, {"train.flip": trial / 9})
        for epoch in range(1, epochs + 1):
            finish_epoch(study, trial, epoch, 1.0)
        end(study, trial, "failed" if trial == 2 else "stopped")
    assert common_epoch(study) == 2
    study.close()


def test_positions_follow_the_scale() -> None:
    log = Parameter("lr", "float", 1e-4, 1e-6, 1e-2, log=True)
    assert position(log, 1e-4) == pytest.approx(0.5)
    assert position(log, 1.0) == 1.0
    assert position(Parameter("n", "int", 4, 4, 12), 6) == 0.25
    assert position(Parameter("n", "int", 4, 4, 4), 4) == 0.5
    assert position(Parameter("c", "choice", "b", choices=("a", "b", "c")), "b") == 0.5
