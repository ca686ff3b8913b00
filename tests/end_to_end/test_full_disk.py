"""Studies of the real network on a small file system that is, or becomes, full."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from automl.events import read
from automl.store import read_study
from tests.end_to_end.small_ffs import PATIENCE_S, Place
from tests.end_to_end.test_chaos import check_log

pytestmark = pytest.mark.xdist_group("ray")
EPOCHS, RUNGS = 3, (1,)
CHANGES = {
    "spec": {"train": {"num_epochs": EPOCHS}},
    "algorithm": {"rungs": list(RUNGS)},
    "budget": {"trials": 2},
    "promote": {"enabled": False},
}


@pytest.fixture
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of as many MiB as the test's parameter says."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={request.param}M", "tmpfs", str(directory)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs is not allowed here")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


def fill(disk: Path, leave: int) -> None:
    """Take all the space there is, except `leave` bytes."""
    with (disk / "fill").open("wb", buffering=0) as file:
        with suppress(OSError):
            while file.write(b"x" * 2**20):
                pass
        with suppress(OSError):
            while file.write(b"x" * 512):
                pass
        if leave:
            file.truncate(file.tell() - leave)


@pytest.mark.parametrize("disk", [16], indirect=True)
def test_a_disk_that_is_full_at_the_start_is_refused(disk: Path) -> None:
    place = Place(disk)
    place.write(CHANGES)
    for leave in (0, 4 * 2**20):
        fill(disk, leave)
        code, output = place.automl("study", "first.yaml")
        assert code in (1, 2), output
        assert "Traceback" not in output
        assert "MiB are free, the study needs about" in output or "disk is full" in output
        assert not (place.study / "trials").exists()
        (disk / "fill").unlink()


@pytest.mark.slow
@pytest.mark.parametrize("disk", [1700], indirect=True)
@pytest.mark.parametrize("leave", [0, 2**20], ids=["nothing left", "less than a checkpoint"])
def test_a_disk_that_fills_up_stops_the_study_and_it_goes_on(disk: Path, leave: int) -> None:
    place = Place(disk)
    place.write(CHANGES)
    log = place.study / "events.jsonl"
    driver = place.start("automl.cli", "study", "first.yaml")
    while driver.poll() is None and not (log.exists() and b'"epoch"' in log.read_bytes()):
        with suppress(subprocess.TimeoutExpired):
            driver.wait(timeout=0.2)
    fill(disk, leave)
    output, _ = driver.communicate(timeout=PATIENCE_S)

    assert driver.returncode == 1, output
    assert "the disk is full" in output
    assert "Traceback" not in output
    assert place.left_over() == []
    kept = read(log)
    assert kept
    (disk / "fill").unlink()
    code, output = place.automl("study", "first.yaml")

    assert code == 0, output
    study = read_study(place.study)
    assert study.events[: len(kept)] == kept
    assert study.trials[0].state == "complete"
    check_log(study.events, RUNGS, EPOCHS)
    resumed = [event for event in study.events if event.get("cause") == "resumed"]
    assert any(event["resumed_from_epoch"] >= 1 for event in resumed)
