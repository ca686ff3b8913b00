"""Our trainers pass the checks that any trainer must pass."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from automl.contract import find_trainable
from automl.contract_suite import ContractError, check_trainable, main, quick_spec
from automl.errors import TrainableError
from automl.store import read_study
from automl.study_spec import base_spec, load_study, merge, parse_yaml
from tests.automl.quadratic import NAME, Quadratic, Result

MODEL_FILE = "model.json"
ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "line_fit"


def with_example(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a module where the example's trainer can be found, as its page says."""
    environment = os.environ | {"PYTHONPATH": f"{EXAMPLE}:{ROOT}"}
    command = [sys.executable, "-W", "error", "-m", *words]
    return subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, check=False
    )


def test_the_documented_trainer_keeps_the_contract_on_its_own(tmp_path):
    done = with_example(tmp_path, "automl.contract_suite", "line_fit:LineFit")
    assert (done.returncode, done.stderr) == (0, "")
    assert "line_fit:LineFit fulfils the contract with model line." in done.stdout

    broken = with_example(tmp_path, "automl.contract_suite", "line_fit:LineFit", "train.wrong=1")
    assert broken.returncode == 1
    assert "('wrong' was unexpected)" in broken.stderr
    assert "Traceback" not in broken.stderr


def test_the_documented_trainer_runs_as_a_study(tmp_path):
    file = str(EXAMPLE / "line.yaml")
    done = with_example(tmp_path, "automl.cli", "study", file, "--trainable", "line_fit:LineFit")
    assert done.returncode == 0, done.stderr
    study = read_study(tmp_path / "results" / "studies" / "line")
    assert len(study.trials) == 12
    assert study.best().id != 0
    assert "is better than the baseline" in done.stdout
    assert (study.directory / "report.html").is_file()


def test_the_documented_trainer_is_short():
    source = (EXAMPLE / "line_fit.py").read_text()
    trainer = source[source.index("class LineFit") :].splitlines()
    assert sum(bool(line.strip()) for line in trainer) <= 35


def test_the_suite_names_the_model_when_there_are_several(capsys):
    assert main(["stereo.trainable:DepthNet"]) == 1
    assert "choose by --model" in capsys.readouterr().err


def test_the_suite_checks_the_quadratic_by_its_name(capsys):
    assert main([NAME, "--model", "quadratic", "train.flip=0.2"]) == 0
    assert "fulfils the contract" in capsys.readouterr().out


def test_a_quick_spec_is_three_epochs_of_the_trainers_own_data(tmp_path):
    spec = quick_spec(Quadratic(), "quadratic", tmp_path)
    assert spec["train"]["num_epochs"] == 3
    assert Path(spec["dataset"]["train_files"][0]["data_file"]).is_file()


def quadratic_spec(directory: Path) -> dict:
    spec = Quadratic().template("quadratic", "train")
    files = Quadratic().embedded_data("quadratic", directory)
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
    spec = base_spec(
        study, template, model, trainer.embedded_data(study.model, tmp_path / "embedded")
    )
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


class Seeded(Quadratic):
    """Knows one seed."""

    def run(self, action, spec, results_dir, report=None):
        if spec["train"]["seed"] != 0:
            return Result("failed", detail="only seed 0")
        return super().run(action, spec, results_dir, report)


class Vague(Quadratic):
    """Measures something else than it declares."""

    def run(self, action, spec, results_dir, report=None):
        if action == "measure":
            return Result("ok", {"model/parameters": 1.0})
        return super().run(action, spec, results_dir, report)


@pytest.mark.parametrize(
    ("trainer", "words"),
    [
        (Vague, r"measure told \['model/parameters'\], declared are \['engine/latency_ms', 'model"),
        (Silent, r"reported epochs \[\], not \[1, 2"),
        (Stubborn, r"told to stop after epoch 1, reported \[1, 2"),
        (Seeded, r"with train\.seed 1 training ended failed: only seed 0"),
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
