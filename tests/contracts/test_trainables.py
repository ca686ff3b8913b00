"""Our trainers pass the checks that any trainer must pass."""

from pathlib import Path

import pytest

from automl.contract import find_trainable
from automl.contract_suite import ContractError, check_trainable
from automl.errors import TrainableError
from automl.study_spec import base_spec, load_study, merge, parse_yaml
from tests.automl.quadratic import NAME, Quadratic, Result

MODEL_FILE = "model.json"


def quadratic_spec(directory: Path) -> dict:
    spec = Quadratic().template("quadratic", "train")
    files = Quadratic().embedded_data(directory)
    for split in ("train", "val"):
        file = files[split].removeprefix("Numbers:")
        spec["dataset"][f"{split}_files"] = [{"dataset_name": "Numbers", "data_file": file}]
    return spec


def test_the_quadratic_fulfils_the_contract(tmp_path):
    check_trainable(find_trainable(NAME), "quadratic", quadratic_spec(tmp_path), tmp_path)


@pytest.mark.slow
def test_the_depth_trainer_fulfils_the_contract(tmp_path):
    trainer = find_trainable("stereo.trainable:DepthNet")
    model = parse_yaml((trainer.schema_dir / "ffs" / MODEL_FILE).read_text())
    study = load_study("ffs")
    template = trainer.template("ffs", "train")
    spec = base_spec(study, template, model, trainer.embedded_data(tmp_path / "embedded"))
    check_trainable(trainer, "ffs", merge(spec, {"train": {"num_epochs": 3}}), tmp_path / "runs")


class Silent(Quadratic):
    """Does not report."""

    def run(self, action, spec, results_dir, report=None):
        return super().run(action, spec, results_dir, None)


class Stubborn(Quadratic):
    """Goes on when told to stop."""

    def run(self, action, spec, results_dir, report=None):
        goes_on = report and (lambda *seen: bool(report(*seen)) and False)
        return super().run(action, spec, results_dir, goes_on)


class Polite(Quadratic):
    """Accepts whatever it is given."""

    def run(self, action, spec, results_dir, report=None):
        if "no_such_section" in spec:
            return Result("ok")
        return super().run(action, spec, results_dir, report)


@pytest.mark.parametrize(
    ("trainer", "words"),
    [
        (Silent, r"reported epochs \[\], not \[1, 2"),
        (Stubborn, r"told to stop after epoch 1, reported \[1, 2"),
        (Polite, "with an unknown key ended ok"),
    ],
)
def test_a_broken_rule_is_named(tmp_path, trainer, words):
    with pytest.raises(ContractError, match=words):
        check_trainable(trainer(), "quadratic", quadratic_spec(tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_trainer", "not installed"),
        ("tests.automl.quadratic:Gone", "cannot be imported"),
        ("pathlib:PurePosixPath", "lacks a part of the contract"),
    ],
)
def test_a_trainer_that_cannot_be_used_is_said(name, words):
    with pytest.raises(TrainableError, match=words):
        find_trainable(name)
