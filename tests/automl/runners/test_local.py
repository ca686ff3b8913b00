from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from automl.confirm import confirm as run_confirmation
from automl.errors import StoreError
from automl.events import read
from automl.runners import local
from automl.store import read_study
from tests.automl.quadratic import NAME
from tests.automl.runners.driving import algorithm_of, open_quadratic, run_study

pytestmark = pytest.mark.xdist_group("ray")
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 300 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs is not allowed here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def enlarge(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=8M", str(disk)], check=True)


def test_a_study_runs_to_the_end_of_its_budget(tmp_path: Path) -> None:
    behaviour = {"diverge_at": 1, "fail_trials": "5"}
    run_study(open_quadratic(tmp_path, trials=12, behaviour=behaviour))

    study = read_study(tmp_path / "study")
    states = [trial.state for trial in study.trials]
    assert len(states) == 12
    assert states[0] == "complete"
    assert set(states) == {"complete", "stopped", "diverged"}
    assert study.state == "finished"
    assert study.end_reason == "12 trials started (budget.trials 12)"


def test_a_finished_study_is_not_touched_again_and_a_larger_budget_goes_on(tmp_path: Path) -> None:
    run_study(open_quadratic(tmp_path, trials=3))
    ended = read(tmp_path / "study" / "events.jsonl")[-1]
    run_study(open_quadratic(tmp_path, trials=3))
    events = read(tmp_path / "study" / "events.jsonl")
    assert [event["kind"] for event in events[events.index(ended) + 1 :]] == ["session_started"]

    run_study(open_quadratic(tmp_path, trials=5))

    assert len(read_study(tmp_path / "study").trials) == 5


@pytest.mark.parametrize("confirm", [0, 2])
def test_at_no_time_there_are_more_than_four_checkpoints_and_the_needed_ones_stay(
    tmp_path: Path, confirm: int
) -> None:
    """One running trial, the one it replaces, the baseline's and the best's: concurrency + 3."""
    study = open_quadratic(
        tmp_path, trials=20, confirm=confirm, runner="local", behaviour={"noise": 0.05}
    )
    most = 0

    def look(_: object) -> None:
        nonlocal most
        most = max(most, len(list(study.directory.rglob("epoch_*.json"))))
        for trial in filter(None, (study.trials[0], study.best())):
            if trial.state == "complete":
                assert trial.checkpoint is not None
                assert trial.checkpoint.is_file()

    local.run(study, algorithm_of(study), NAME, live=look)
    run_confirmation(study, NAME, live=look)

    assert most <= 1 + 3
    assert len(study.confirmations) == 2 * confirm
    best = study.best()
    assert best is not None
    assert {file.resolve() for file in study.directory.rglob("epoch_*.json")} == {
        study.trials[0].checkpoint, best.checkpoint}  # fmt: skip
    study.close()


def test_a_disk_that_fills_during_the_confirmation_pauses_it(small_disk: Path) -> None:
    options = {"trials": 4, "epochs": 3, "rungs": (1,), "confirm": 2, "runner": "local"}
    study = open_quadratic(small_disk, **options)
    local.run(study, algorithm_of(study), NAME)
    with (small_disk / "fill").open("wb", buffering=0) as file, suppress(OSError):
        while file.write(b"x" * 512):
            pass
    with pytest.raises(StoreError, match=r"disk is full"):
        run_confirmation(study, NAME)
    study.close()
    (small_disk / "fill").unlink()

    again = open_quadratic(small_disk, **options)
    run_confirmation(again, NAME)

    assert [run.state for run in again.confirmations] == ["complete"] * 4
    again.close()


def test_a_disk_that_fills_during_a_checkpoint_stops_the_study_and_it_resumes(
    small_disk: Path,
) -> None:
    behaviour = {"checkpoint_bytes": 90_000}
    with pytest.raises(StoreError, match="the disk is full: trial"):
        run_study(open_quadratic(small_disk, behaviour=behaviour))
    before = read(small_disk / "study" / "events.jsonl")

    enlarge(small_disk)
    run_study(open_quadratic(small_disk, behaviour=behaviour))

    study = read_study(small_disk / "study")
    assert study.events[: len(before)] == before
    assert study.state == "finished"


def test_a_disk_that_fills_in_the_middle_of_an_event_loses_only_that_event(
    small_disk: Path,
) -> None:
    """The rest of the disk is taken; a log line is the next thing to be written."""
    study = open_quadratic(small_disk)

    def fill(event: dict[str, object]) -> None:
        if event["kind"] == "epoch" and event["epoch"] == 3:
            with (small_disk / "fill").open("wb", buffering=0) as file, suppress(OSError):
                while file.write(b"x" * 512):
                    pass

    with pytest.raises(StoreError, match=r"disk is full"):
        run_study(study, live=fill)  # pyright: ignore[reportArgumentType]
    kept = len(read(small_disk / "study" / "events.jsonl"))
    (small_disk / "fill").unlink()

    run_study(open_quadratic(small_disk))

    study = read_study(small_disk / "study")
    assert study.state == "finished"
    assert kept >= 5
    assert [record.epoch for record in study.trials[0].epochs] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("runner", "number", "code"),
    [
        ("local", signal.SIGINT, 130),
        ("local", signal.SIGTERM, 143),
        ("ray", signal.SIGTERM, 143),
    ],
)
def test_a_signal_ends_a_study_between_two_events_and_it_resumes(
    tmp_path: Path, runner: str, number: int, code: int
) -> None:
    options = {"root": str(tmp_path), "runner": runner, "trials": 2,
               "behaviour": {"seconds_per_epoch": 0.2}}  # fmt: skip
    command = [sys.executable, "-m", "tests.automl.runners.driving", json.dumps(options)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    log = tmp_path / "study" / "events.jsonl"
    while process.poll() is None and not (log.exists() and b'"epoch": 1' in log.read_bytes()):
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.05)

    process.send_signal(number)
    output, _ = process.communicate(timeout=60)

    assert (process.returncode, output) == (code, "")
    study = read_study(tmp_path / "study")
    assert study.state == "interrupted"
    assert study.trials[0].state == "running"
    run_study(open_quadratic(tmp_path, trials=2, behaviour={"seconds_per_epoch": 0.2}))
    assert read_study(tmp_path / "study").state == "finished"
