from __future__ import annotations

import csv
import html
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from automl.errors import PromotionError, StoreError, StudyLockedError
from automl.gain import gain, in_words
from automl.plan import prepare
from automl.store import open_study, read_study
from automl.study import RefusedError, promote_study, refuse_without_space, run_study
from tests.automl.quadratic import NAME

ROOT = Path(__file__).parents[2]
STUDY: dict[str, Any] = {
    "model": "quadratic",
    "runner": "local",
    "budget": {"trials": 4},
    "spec": {"train": {"num_epochs": 3}},
    "algorithm": {"name": "random"},
}


@pytest.fixture(autouse=True)
def _work_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


UNPROMOTED = {"promote": {"enabled": False}}


def run(*overrides: str, said: list[str] | None = None, **changes: Any) -> int:
    """Run the small study, with keys of its file changed."""
    Path("tiny.yaml").write_text(yaml.safe_dump(STUDY | changes))
    say = said.append if said is not None else lambda _: None
    return run_study("tiny.yaml", overrides, trainable=NAME, progress=False, say=say)


def study_directory() -> Path:
    return Path("results/studies/tiny")


def test_a_study_ends_with_bundle_and_report() -> None:
    said: list[str] = []

    assert run(said=said) == 0

    directory = study_directory()
    study = read_study(directory)
    assert study.state == "finished"
    assert [trial.state for trial in study.trials] == ["complete"] * 4
    assert json.loads((directory / "bundle" / "bundle.json").read_text())["accepted"]
    assert (directory / "report.html").is_file()
    assert json.loads((directory / "status.json").read_text())["message"].startswith(
        "AutoML policy row 6"
    )
    text = "\n".join(said)
    assert "data: 4 samples for training, 4 for validation" in text
    assert "baseline  trial 0" in text
    assert "engine - checkpoint" in text


def test_a_confirmed_gain_is_in_terminal_bundle_report_and_csv() -> None:
    said: list[str] = []

    assert run("behaviour.noise=0.05", confirm=2, said=said, budget={"trials": 6}) == 0

    directory = study_directory()
    study = read_study(directory)
    found = gain(study)
    assert found is not None
    words = in_words(found, study.objective)
    assert words in "\n".join(said)
    bundle = json.loads((directory / "bundle" / "bundle.json").read_text())
    assert bundle["gain"]["low"] == found.low
    assert bundle["gain"]["winner"] == list(found.winner)
    page = (directory / "report.html").read_text()
    assert words in html.unescape(page)
    assert "Confirmation on further seeds" in page
    with (directory / "confirm.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["value"]) for row in rows if row["trial"] == "0"] == list(found.baseline)
    assert [float(row["value"]) for row in rows if row["trial"] != "0"] == list(found.winner)


def test_scores_at_another_size_are_named() -> None:
    said: list[str] = []

    assert run("behaviour.mixed_sizes=true", said=said) == 0

    assert "checkpoint, native size" in "\n".join(said)


def test_the_same_command_again_changes_nothing() -> None:
    run(**UNPROMOTED)
    before = [trial.params for trial in read_study(study_directory()).trials]

    assert run(**UNPROMOTED) == 0

    assert [trial.params for trial in read_study(study_directory()).trials] == before


def test_other_settings_need_another_name() -> None:
    run(**UNPROMOTED)

    with pytest.raises(StudyLockedError, match=r"train\.flip"):
        run("train.flip=0.5", **UNPROMOTED)


def test_a_running_study_is_not_opened_twice() -> None:
    run(**UNPROMOTED)
    resolved = read_study(study_directory()).resolved
    study = open_study(resolved, study_directory())

    with pytest.raises(StudyLockedError, match="open in process"):
        run(**UNPROMOTED)
    study.close()


def test_a_second_command_is_refused_and_the_first_goes_on() -> None:
    slow = STUDY | UNPROMOTED
    Path("tiny.yaml").write_text(yaml.safe_dump(slow))
    command = [sys.executable, "-m", "automl.cli", "study", "tiny.yaml", "--trainable", NAME]
    command += ["behaviour.seconds_per_epoch=0.5"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    log = study_directory() / "events.jsonl"
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as first:
        while first.poll() is None and not (log.exists() and b'"epoch"' in log.read_bytes()):
            with suppress(subprocess.TimeoutExpired):
                first.wait(timeout=0.05)
        second = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )
        output, _ = first.communicate(timeout=60)
    assert second.returncode == 2
    assert f"the study is open in process {first.pid}" in second.stderr
    assert "automl status" in second.stderr
    assert first.returncode == 0, output
    assert [trial.attempts for trial in read_study(study_directory()).trials] == [1] * 4


def test_broken_data_is_refused_with_file_and_line() -> None:
    Path("train.txt").write_text("1\nbroken\n")
    Path("tiny.yaml").write_text(yaml.safe_dump(STUDY))

    with pytest.raises(RefusedError, match=r"train\.txt:2: 'broken' is not a number") as error:
        run_study("tiny.yaml", data="train.txt", trainable=NAME, progress=False)

    assert error.value.exit_code == 2
    assert not (Path("results/studies/tiny-train") / "events.jsonl").exists()


def test_a_wrong_spec_is_refused_before_the_first_trial() -> None:
    with pytest.raises(RefusedError, match=r"\$\.train\.optim\.optimizer: 'Foo' is not one of"):
        run("train.optim.optimizer=Foo", search={"drop": ["train.optim.optimizer"]})


@pytest.mark.parametrize(
    "size",
    [
        1e9,
        {"train.optim.optimizer": {"AdamW": 1e9, "SGD": 1}},
        {"train.optim.optimizer": {"Another": 1e9, "SGD": 1}},  # of an unknown value the largest
    ],
)
def test_a_disk_that_is_too_small_is_refused(size: object) -> None:
    Path("tiny.yaml").write_text(yaml.safe_dump(STUDY))
    prepared = prepare("tiny.yaml", trainable=NAME)
    prepared.metadata["checkpoint_mb"] = {"train.optim.optimizer": {"AdamW": 1, "SGD": 1e9}}  # type: ignore[index]
    refuse_without_space(prepared)
    prepared.metadata["checkpoint_mb"] = size  # type: ignore[index]

    with pytest.raises(RefusedError, match=r"MiB are free, the study needs about \d+ MiB"):
        refuse_without_space(prepared)


def test_without_a_complete_trial_there_is_a_report_and_exit_3() -> None:
    said: list[str] = []

    code = run("train.optim.lr=1.0", search={"drop": ["train.optim.lr"]}, said=said)

    assert code == 3
    assert [trial.state for trial in read_study(study_directory()).trials] == ["diverged"] * 4
    assert (study_directory() / "report.html").is_file()
    assert "No trial is complete" in said[-1]


def test_a_bundle_outside_its_limits_is_exit_3() -> None:
    said: list[str] = []

    assert run("behaviour.engine_shift=0.06", said=said) == 3

    assert "REJECTED" in "\n".join(said)
    assert (study_directory() / "report.html").is_file()


def test_a_failed_promotion_still_leaves_a_report() -> None:
    with pytest.raises(PromotionError, match="no engine today") as error:
        run("behaviour.engine_fails=true")

    assert error.value.exit_code == 3
    assert (study_directory() / "report.html").is_file()


def test_promotion_can_be_switched_off_and_done_later() -> None:
    assert run(**UNPROMOTED) == 0
    assert not (study_directory() / "bundle").exists()

    assert promote_study(study_directory(), NAME, lambda _: None) == 0
    assert (study_directory() / "bundle" / "bundle.json").is_file()


def test_a_directory_without_a_study_cannot_be_promoted(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no study"):
        promote_study(tmp_path, NAME, lambda _: None)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_study_says_so_and_goes_on(number: int, code: int) -> None:
    slow = {"train": {"num_epochs": 3}, "behaviour": {"seconds_per_epoch": 0.1}}
    Path("tiny.yaml").write_text(yaml.safe_dump(STUDY | UNPROMOTED | {"spec": slow}))
    command = [sys.executable, "-m", "automl.cli", "study", "tiny.yaml", "--trainable", NAME]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("trial 1 epoch 1"):
                process.send_signal(number)
                break
        rest, errors = process.communicate()
    assert process.returncode == code, errors
    assert f"Interrupted (exit {code}); every finished epoch is kept" in rest
    assert "Traceback" not in errors
    kept = read_study(study_directory())
    assert kept.state == "interrupted"
    epochs = [(trial.id, record.epoch) for trial in kept.trials for record in trial.epochs]
    assert epochs[:4] == [(0, 1), (0, 2), (0, 3), (1, 1)]

    done = subprocess.run(command, env=environment, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert "trial 1 resumed after epoch" in done.stdout
    study = read_study(study_directory())
    assert [trial.last_epoch for trial in study.trials] == [3, 3, 3, 3]
