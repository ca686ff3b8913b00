from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import psutil
import pytest

from automl.confirm import confirm
from automl.gain import gain
from automl.runners import ray_tune
from automl.store import Study, read_study
from tests.automl.quadratic import NAME
from tests.automl.runners.driving import algorithm_of, open_quadratic, run_study
from tests.end_to_end.test_chaos import check_log

pytestmark = pytest.mark.xdist_group("ray")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, str, dict[str, object]]:
    """One study by Ray, in this process; its trial 0 hangs."""
    root = tmp_path_factory.mktemp("ray")
    before = {"environment": dict(os.environ), "handler": signal.getsignal(signal.SIGTERM)}
    study = open_quadratic(
        root,
        trials=12,
        behaviour={"fail_trials": "0", "hang_at": 3},
        trial_limits={"minutes_without_report": 0.05},
    )
    elsewhere = ray_sessions()
    with Captured(root / "terminal") as terminal:
        run_study(study, "ray")
    after = {"environment": dict(os.environ), "handler": signal.getsignal(signal.SIGTERM)}
    return (
        read_study(root / "study"),
        terminal.text(),
        {
            "same": before == after,
            "sessions": ray_sessions() - elsewhere,
        },
    )


def ray_sessions() -> set[Path]:
    """Folders of running Rays, and of those whose driver was killed and not started again."""
    return set(Path("/tmp").glob("depthtune-*/session_latest"))


class Captured:
    """Everything written to this process's terminal, native libraries included."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __enter__(self) -> Captured:
        self._saved = [os.dup(number) for number in (1, 2)]
        file = os.open(self._file, os.O_WRONLY | os.O_CREAT)
        for number in (1, 2):
            os.dup2(file, number)
        os.close(file)
        return self

    def __exit__(self, *_: object) -> None:
        for number, saved in zip((1, 2), self._saved, strict=True):
            os.dup2(saved, number)
            os.close(saved)

    def text(self) -> str:
        return self._file.read_text()


def test_the_study_is_complete_and_its_log_sound(finished: tuple[Study, str, object]) -> None:
    study = finished[0]
    assert study.state == "finished"
    assert len(study.trials) == 12
    assert study.best() is not None
    assert len({repr(trial.params) for trial in study.trials}) == 12
    check_log(study.events)


def test_the_terminal_is_ours(finished: tuple[Study, str, object]) -> None:
    assert finished[1] == ""


def test_environment_and_signal_handlers_are_restored(
    finished: tuple[Study, str, dict[str, object]],
) -> None:
    assert finished[2]["same"]


def test_a_hanging_trial_is_killed_and_the_study_goes_on(
    finished: tuple[Study, str, object],
) -> None:
    hung = finished[0].trials[0]
    assert (hung.state, hung.last_epoch, hung.attempts) == ("failed", 2, 1)
    assert "no report for 0.05 min (trial_limits.minutes_without_report)" in hung.detail


def test_workers_are_reused(
    finished: tuple[Study, str, object],
) -> None:
    logs = (finished[0].directory / "trials").glob("*/worker.log")
    started = [re.findall(r"^process (\d+)$", log.read_text(), re.M) for log in logs]
    processes = {number for numbers in started for number in numbers}
    assert len(started) == 12
    assert len(processes) <= 3  # two workers, and one for the worker that was killed


def test_nothing_of_ray_is_left(finished: tuple[Study, str, dict[str, object]]) -> None:
    scratch = finished[0].directory / "ray"
    assert [file.name for file in scratch.iterdir()] == ["ray.log"]
    commands = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
    assert [command for command in commands if "multiprocessing" not in command] == []
    assert finished[2]["sessions"] == set()


def test_the_token_file_is_private(finished: tuple[Study, str, object]) -> None:
    assert ray_tune.token_file().stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
def test_repetitions_run_side_by_side_in_workers(tmp_path: Path) -> None:
    study = open_quadratic(
        tmp_path, trials=4, epochs=3, rungs=(1,), confirm=2, behaviour={"noise": 0.05}
    )
    ray_tune.run(study, algorithm_of(study), NAME)

    confirm(study, NAME)

    assert [run.state for run in study.confirmations] == ["complete"] * 4
    starts = [event["kind"] for event in study.events if event["kind"].startswith("confirm_")]
    assert starts[:2] == ["confirm_started", "confirm_started"]
    assert gain(study) is not None
    study.close()


def test_checkpoints_on_the_disk_are_bounded_at_every_moment(tmp_path: Path) -> None:
    """One per running trial, the best, the baseline, and the one that is being replaced."""
    study = open_quadratic(
        tmp_path,
        trials=14,
        rungs=(),
        behaviour={
            "count_checkpoints": True,
            "checkpoint_bytes": 3_000_000,  # writing and training take long enough to overlap
            "seconds_per_epoch": 0.05,
        },
        resources={"max_concurrent": 3, "cpus": 0.1},
    )
    run_study(study, "ray")

    lines = (study.directory / "counts.txt").read_text().splitlines()
    counts: list[list[int]] = [json.loads(line) for line in lines]
    assert len(counts) == sum(trial.last_epoch for trial in study.trials)
    assert all(sum(count > 1 for count in each) <= 1 for each in counts)
    assert 3 < max(map(sum, counts)) <= 3 + 3
