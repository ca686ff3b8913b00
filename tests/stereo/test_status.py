from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from stereo.errors import SpecError
from stereo.files import sha256
from stereo.spec.experiment import ExperimentSpec
from stereo.status import (
    StatusLog,
    action_directory,
    duration,
    log_file,
    write_experiment,
    write_provenance,
)


def refuse(constant: str) -> float:
    raise AssertionError(f"{constant} is not JSON")


def lines(directory: Path) -> list[dict]:
    text = (directory / "status.json").read_text("utf-8")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_lines_are_strict_json_with_dates_without_padding(tmp_path: Path) -> None:
    status = StatusLog(tmp_path, clock=lambda: datetime(2025, 1, 2, 6, 4, 3, tzinfo=UTC))
    status.started()
    status.running(
        "Eval metrics generated.", {"val/loss": math.nan, "val/epe": 1.5}, epoch=0, step=7
    )
    status.success(artifacts=[tmp_path / "dn_model_latest.pth"])

    started, running, success = lines(tmp_path)
    assert started["message"] == "Starting Depth Net train."
    assert (started["date"], started["time"]) == ("1/2/2025", "6:4:3")
    assert started["timestamp"] == "2025-01-02T06:04:03+00:00"
    assert running["kpi"] == {"val/loss": None, "val/epe": 1.5}
    assert running["nonfinite"] == ["val/loss"]
    assert running["step"] == 7
    assert success["message"] == "Train finished successfully."
    assert (success["status"], success["exit_code"]) == ("SUCCESS", 0)
    assert success["artifacts"] == ["dn_model_latest.pth"]
    assert "kpi" not in success


def test_the_first_verdict_stands(tmp_path: Path) -> None:
    status = StatusLog(tmp_path, "evaluate")
    status.failure("Runtime error: engine", 3)
    status.success()
    (line,) = lines(tmp_path)
    assert (line["status"], line["exit_code"], line["verbosity"]) == ("FAILURE", 3, "ERROR")


def test_a_second_run_appends(tmp_path: Path) -> None:
    for _ in range(2):
        StatusLog(tmp_path, "export").started()
    assert [line["message"] for line in lines(tmp_path)] == ["Starting Depth Net export."] * 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.5, "0:00:00.500000"), (3725, "1:02:05.000000"), (90000, "25:00:00.000000")],
)
def test_durations_count_hours(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_an_own_directory_is_used_as_it_is() -> None:
    spec = ExperimentSpec(results_dir="/runs/a")
    assert action_directory(spec, "train") == Path("/runs/a/train")
    spec.evaluate.checkpoint = "a.pth"
    assert action_directory(spec, "evaluate") == Path("/runs/a/evaluate")
    spec.evaluate.checkpoint, spec.evaluate.trt_engine = None, "a.rtx"
    assert action_directory(spec, "evaluate") == Path("/runs/a/trt_evaluate"), "scores of its own"
    spec.gen_trt_engine.trt_engine = "b.rtx"
    assert action_directory(spec, "gen_trt_engine") == Path("/runs/a/gen_trt_engine")
    spec.train.results_dir = "/elsewhere"
    assert action_directory(spec, "train") == Path("/elsewhere")


def test_without_any_directory_both_keys_are_named() -> None:
    with pytest.raises(SpecError, match=r"results_dir.*export\.results_dir"):
        action_directory(ExperimentSpec(), "export")


def test_experiment_and_provenance(tmp_path: Path) -> None:
    source = tmp_path / "train.txt"
    source.write_text("left right disparity\n", "utf-8")
    write_experiment(tmp_path, {"train": {"optim": {"lr": 1e-5}}, "model": {"hidden_dims": [128]}})
    write_provenance(
        tmp_path,
        action="train",
        seed=3,
        command=["depth_net", "train"],
        inferred={"evaluate.checkpoint": "run/dn_model_best.pth"},
        inputs=[source],
    )
    assert (tmp_path / "experiment.yaml").read_text("utf-8").startswith("train:\n  optim:\n")
    record = json.loads((tmp_path / "provenance.json").read_text("utf-8"))
    assert record["seed"] == 3
    assert record["inputs"] == {str(source): sha256(source)}
    assert record["versions"]["torch"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "experiment.yaml",
        "provenance.json",
        "train.txt",
    ]


def test_messages_of_the_package_go_to_the_action_log(tmp_path: Path) -> None:
    with log_file(tmp_path, "train") as path:
        logging.getLogger("stereo.train").info("epoch %d", 1)
        logging.getLogger("elsewhere").warning("not ours")
    logging.getLogger("stereo.train").warning("too late")
    text = path.read_text("utf-8")
    assert "stereo.train: epoch 1" in text
    assert "not ours" not in text
    assert "too late" not in text


def test_a_warning_of_a_running_action_is_in_its_log_and_on_stderr(tmp_path: Path) -> None:
    program = (
        "import logging, pathlib, sys\n"
        "from stereo.status import log_file\n"
        "with log_file(pathlib.Path(sys.argv[1]), 'evaluate'):\n"
        "    logging.getLogger('stereo.engines').warning('exchanged')\n"
        "    logging.getLogger('stereo.engines').info('only for the log')\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert found.stderr == "exchanged\n"
    log = (tmp_path / "evaluate.log").read_text()
    assert "exchanged" in log
    assert "only for the log" in log
