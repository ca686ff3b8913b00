"""The program `depth_net`: exit codes, console, what is written and what is not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from stereo.cli import VERBS, main


@pytest.fixture
def spec_file(small_values: dict, tmp_path: Path) -> Path:
    path = tmp_path / "any name.yaml"
    path.write_text(yaml.safe_dump({"results_dir": str(tmp_path / "runs"), **small_values}))
    return path


def test_evaluate_prints_numbers_with_units_and_ends_with_the_status(
    spec_file: Path, small_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["evaluate", "-e", str(spec_file), f"evaluate.checkpoint={small_weights}"])
    lines = capsys.readouterr().out.splitlines()
    assert code == 0
    epe = json.loads((tmp_path / "runs" / "evaluate" / "results.json").read_text())["epe"]
    assert f"val/epe: {epe:.6g} px" in lines
    assert next(line for line in lines if line.startswith("val/bp1: ")).endswith(" %")
    assert lines[-2].startswith("scored by PyTorch")
    assert lines[-1] == "Execution status: PASS"


def test_a_failed_run_says_why_and_ends_with_the_status(
    spec_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["evaluate", "-e", str(spec_file), f"evaluate.checkpoint={tmp_path}/gone.pth"])
    shown = capsys.readouterr()
    assert code == 2
    assert "gone.pth: no such checkpoint" in shown.err
    assert shown.out.splitlines()[-1] == "Execution status: FAIL"


def test_all_mistakes_are_told_before_anything_is_written(
    spec_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["train", "-e", str(spec_file), "train.lr=1", "model.corr_radius=99"])
    shown = capsys.readouterr()
    assert code == 2
    assert "train.optim.lr" in shown.err
    assert "model.corr_radius: got 99" in shown.err
    assert shown.out == "Execution status: FAIL\n"
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_prints_a_spec_that_can_be_used_and_writes_nothing(
    spec_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "-e", str(spec_file), "train.num_epochs=7", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert yaml.safe_load(shown)["train"]["num_epochs"] == 7
    assert f"# would write to {tmp_path}/runs/train; nothing was run" in shown
    assert not (tmp_path / "runs").exists()


def test_inferred_values_are_shown_with_their_parent(
    spec_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = tmp_path / "parent"
    parent.mkdir()
    (parent / "experiment.yaml").write_text(yaml.safe_dump({"model": {"corr_radius": 3}}))
    (parent / "dn_model_best.pth").touch()
    command = ["evaluate", "-e", str(spec_file), "--set-from", str(parent), "--dry-run"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert yaml.safe_load(shown)["evaluate"]["checkpoint"] == str(parent / "dn_model_best.pth")
    assert yaml.safe_load(shown)["model"]["corr_radius"] == 3
    assert f"# model.corr_radius: model section of the training run {parent}" in shown


def test_the_policy_of_automl_is_sent_to_automl(
    spec_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "-e", str(spec_file), "--automl-policy", "off"]) == 2
    assert "Use automl train MODEL --automl-policy" in capsys.readouterr().err


@pytest.mark.parametrize("action", list(VERBS))
def test_a_default_spec_is_written_once_and_its_open_fields_are_told(
    action: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "spec.yaml"
    command = ["default_specs", "--model", "ffs", "--action", action, "-o", str(path)]
    assert main(command) == 0
    assert main(command) == 2
    assert "exists and would be overwritten" in capsys.readouterr().err

    assert main(["validate", "-e", str(path), "--action", action]) == 2
    assert "results_dir: not set" in capsys.readouterr().err


def test_validate_checks_for_the_verb(spec_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "-e", str(spec_file)]) == 0
    assert "valid for train" in capsys.readouterr().out
    assert main(["validate", "-e", str(spec_file), "--action", "export"]) == 2
    assert "export.checkpoint: required by export" in capsys.readouterr().err


@pytest.mark.parametrize("verb", list(VERBS))
def test_help_names_required_fields_and_outputs(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main([verb, "--help"])
    shown = capsys.readouterr().out
    assert left.value.code == 0
    assert "required fields (ffs):" in shown
    assert "writes (ffs): " in shown


@pytest.mark.slow
def test_sigterm_ends_training_with_143_and_a_state_to_continue_from(
    spec_file: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "stereo.cli", "train", "-e", str(spec_file)]
    with subprocess.Popen(
        [*command, "train.num_epochs=1000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        first = next(line for line in process.stderr if "epoch 1/1000" in line)
        process.send_signal(signal.SIGTERM)
        out, rest = process.communicate()
    assert process.returncode == 143, first + rest
    assert "Interrupted (exit 143)" in rest
    assert out.splitlines()[-1] == "Execution status: FAIL"
    run = tmp_path / "runs" / "train"
    assert (run / "dn_model_latest.pth").is_file()
    verdict = json.loads((run / "status.json").read_text().splitlines()[-1])
    assert (verdict["status"], verdict["exit_code"]) == ("FAILURE", 143)
