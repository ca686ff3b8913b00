"""A study of the real network, killed with SIGKILL at random moments until it completes.

Whatever the kill hits (check of the data, start of Ray, a step, a checkpoint, a line of the log,
export, engine), the same command goes on, and the log tells one consistent story.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from automl.store import read_study
from tests.end_to_end.small_ffs import PATIENCE_S, Place
from tests.end_to_end.test_chaos import check_log

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.xdist_group("ray")]
EPOCHS, RUNGS, TRIALS = 12, (3, 6), 5
LONGEST_S = 40.0  # between a start and a kill; a start takes about 10 s
CHANGES = {
    "seed": 3,
    "spec": {"train": {"num_epochs": EPOCHS}},
    "algorithm": {"rungs": list(RUNGS)},
    "budget": {"trials": TRIALS},
}


class Killer:
    """Starts the study again and again, and kills something of it at a random moment."""

    def __init__(self, place: Place, seed: int) -> None:
        self.place = place
        self._moments = random.Random(seed)
        self._log = place.study / "events.jsonl"

    def logged(self) -> bytes:
        """The complete lines of the log."""
        content = self._log.read_bytes() if self._log.exists() else b""
        return content[: content.rfind(b"\n") + 1]

    def strike(self, victim: str) -> None:
        """One session: start it, kill a part of it, and see that the log has only grown."""
        before = self.logged()
        driver = self.place.start("automl.cli", "study", "first.yaml")
        if victim == "driver in a trial":
            self._wait_for_an_epoch(driver)
        elif victim == "worker":
            self._kill_a_worker(driver)
        longest = 5.0 if victim == "driver in a trial" else LONGEST_S
        with suppress(subprocess.TimeoutExpired):
            driver.communicate(timeout=self._moments.uniform(0.0, longest))
        with suppress(ProcessLookupError):
            send = os.kill if victim.startswith("driver") else os.killpg
            send(driver.pid, signal.SIGKILL)
        driver.communicate()
        assert self.logged().startswith(before)

    def tear(self) -> None:
        """Leave half a line, as a kill in the middle of a write does."""
        with self._log.open("ab") as log:
            log.write(b'{"kind": "epoch", "trial": 0, "metr')

    def _wait_for_an_epoch(self, driver: subprocess.Popen[str]) -> None:
        before = self.logged().count(b'"kind": "epoch"')
        while driver.poll() is None and self.logged().count(b'"kind": "epoch"') == before:
            with suppress(subprocess.TimeoutExpired):
                driver.wait(timeout=0.2)

    def _kill_a_worker(self, driver: subprocess.Popen[str]) -> None:
        """After the next epoch of a trial, kill the process of some trial."""
        self._wait_for_an_epoch(driver)
        with suppress(subprocess.TimeoutExpired):
            driver.wait(timeout=self._moments.uniform(0.0, 5.0))
        workers = [p for p in self.place.processes() if p.name().startswith("ray::StudyWork")]
        for process in self._moments.sample(workers, min(1, len(workers))):
            process.kill()


@pytest.mark.parametrize("seed", range(2))
def test_a_study_of_the_real_network_survives_any_death(tmp_path: Path, seed: int) -> None:
    place = Place(tmp_path)
    place.write(CHANGES)
    killer = Killer(place, seed)
    victims = ["worker", "driver", "group"]
    random.Random(seed).shuffle(victims)

    for victim in ["driver in a trial", *victims]:
        killer.strike(victim)
    killer.tear()
    kept = killer.logged()
    driver = place.start("automl.cli", "study", "first.yaml")
    output, _ = driver.communicate(timeout=2 * PATIENCE_S)

    assert driver.returncode == 0, output
    assert place.left_over() == []
    assert (place.study / "events.jsonl").read_bytes().startswith(kept)
    study = read_study(place.study)
    assert study.state == "finished"
    assert len(study.trials) == TRIALS
    check_log(study.events, RUNGS, EPOCHS)
    started = [event for event in study.events if event["kind"] == "trial_started"]
    again = [event for event in started if event["attempt"] > 1]
    assert {event["cause"] for event in again} <= {"resumed", "retried"}
    assert any(event["cause"] == "resumed" for event in again)
    sessions = [event for event in study.events if event["kind"] == "session_started"]
    assert sessions[-1]["repaired_bytes"] > 0
    params = [json.dumps(trial.params, sort_keys=True) for trial in study.trials]
    assert len(set(params)) == TRIALS
    assert json.loads((place.study / "bundle" / "bundle.json").read_text())["accepted"]
    kept_files = {trial.checkpoint for trial in (study.baseline(), study.best()) if trial}
    assert {f.resolve() for f in (place.study / "trials").rglob("*.pth") if not f.is_symlink()} == {
        file.resolve() for file in kept_files if file
    }
