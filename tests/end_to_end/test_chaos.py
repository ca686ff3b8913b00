"""Studies whose processes are killed with SIGKILL at random moments, then started again.

The studies are real programs over the quadratic trainer. The moments come from seeded generators;
what they hit (start of Ray, an epoch, a write of the log, the end) differs from run to run, and
the invariants must hold for all of it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from automl.events import read
from automl.store import Study, read_study

pytestmark = pytest.mark.xdist_group("ray")
ROOT = Path(__file__).resolve().parents[2]
FACTOR, RUNGS, EPOCHS = 3, (2, 4), 6


class Program:
    """The study program in its own session: one command, started again after every kill."""

    def __init__(self, root: Path, runner: str, trials: int, seconds_per_epoch: float) -> None:
        self.study = root / "study"
        self._options = {
            "root": str(root),
            "runner": runner,
            "trials": trials,
            "epochs": EPOCHS,
            "rungs": RUNGS,
            "behaviour": {"seconds_per_epoch": seconds_per_epoch, "checkpoint_bytes": 20_000},
        }
        self.sessions: list[int] = []

    def start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.automl.runners.driving", json.dumps(self._options)],
            cwd=ROOT,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.sessions.append(process.pid)
        return process

    def finish(self, process: subprocess.Popen[str]) -> None:
        """Let it run to its end; it says nothing and leaves nothing."""
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
        assert output == ""
        assert self.processes() == []

    def processes(self) -> list[psutil.Process]:
        """Whatever still runs in the sessions of all drivers so far."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, ProcessLookupError):
                if os.getsid(process.pid) in self.sessions and process.status() != "zombie":
                    found.append(process)
        return found

    def workers(self) -> list[psutil.Process]:
        return [p for p in self.processes() if p.name().startswith("ray::StudyWork")]

    def logged(self, kind: str) -> int:
        log = self.study / "events.jsonl"
        return sum(event["kind"] == kind for event in read(log)) if log.exists() else 0


def kill(program: Program, driver: subprocess.Popen[str], victim: str) -> None:
    if victim == "worker":
        for process in program.workers()[:1]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        return
    send = os.killpg if victim == "group" else os.kill
    with suppress(ProcessLookupError):
        send(driver.pid, signal.SIGKILL)
    driver.communicate()


def interrupt_at_random(program: Program, victims: list[str], seed: int, longest: float) -> None:
    """Kill each victim once, each at a random moment after the study's latest start."""
    moments = random.Random(seed)
    driver = program.start()
    for victim in victims:
        before = program.logged("epoch")
        while victim == "worker" and driver.poll() is None and program.logged("epoch") == before:
            with suppress(subprocess.TimeoutExpired):
                driver.wait(timeout=0.05)
        with suppress(subprocess.TimeoutExpired):
            driver.wait(timeout=moments.uniform(0.0, longest))
        kill(program, driver, victim)
        if victim != "worker":
            driver = program.start()
    program.finish(driver)


def check(study: Study, trials: int) -> None:
    """What holds for every study, however often it was killed."""
    assert study.state == "finished"
    assert [trial.id for trial in study.trials] == list(range(trials))
    params = [json.dumps(trial.params, sort_keys=True) for trial in study.trials]
    assert len(set(params)) == trials
    check_log(study.events)
    keep = (study.baseline(), study.best())
    kept = {trial.checkpoint for trial in keep if trial and trial.state == "complete"}
    assert set((study.directory / "trials").rglob("epoch_*.json")) == kept


def check_log(
    events: list[dict[str, Any]], rungs: tuple[int, ...] = RUNGS, epochs: int = EPOCHS
) -> None:
    """Epochs are consecutive without doubles, attempts continue, stops follow from the log."""
    finished: dict[int, int] = {}
    decided: dict[int, str] = {}
    seen: dict[int, dict[int, float]] = {rung: {} for rung in rungs}
    for event in events:
        trial = event.get("trial")
        if event["kind"] == "trial_started":
            assert event["resumed_from_epoch"] == finished.setdefault(trial, 0)
            assert decided.get(trial, "continue") == "continue"
        elif event["kind"] == "epoch":
            finished[trial] += 1
            assert event["epoch"] == finished[trial]
            value = event["metrics"]["val/epe"]
            decided[trial] = expected_decision(trial, event["epoch"], value, seen, epochs)
            assert event["decision"] == decided[trial]
        elif event["kind"] == "trial_ended" and event["state"] in ("stopped", "complete"):
            assert decided[trial] == {"stopped": "stop"}.get(event["state"], event["state"])


def expected_decision(
    trial: int, epoch: int, value: float, seen: dict[int, dict[int, float]], epochs: int
) -> str:
    """The rule in other words: values at the rungs by trial, as the log has them so far."""
    if epoch == epochs:
        return "complete"
    rung = max((rung for rung in seen if rung <= epoch), default=None)
    if rung is None:
        return "continue"
    if epoch == rung:
        seen[rung][trial] = value
    arrived = len(seen[rung])
    is_compared = trial != 0 and (epoch == rung or arrived <= FACTOR)
    better = sum(at <= seen[rung][trial] for other, at in seen[rung].items() if other != trial)
    return "stop" if is_compared and better >= max(1, arrived // FACTOR) else "continue"


def outcome(study: Study) -> list[Any]:
    """All that must not depend on kills when trials run one after another."""
    return [
        (trial.params, trial.state, [record.metrics["val/epe"] for record in trial.epochs])
        for trial in study.trials
    ]


def test_a_sequential_study_killed_again_and_again_equals_an_undisturbed_one(
    tmp_path: Path,
) -> None:
    undisturbed = Program(tmp_path / "calm", "local", 12, 0.01)
    undisturbed.finish(undisturbed.start())
    killed = Program(tmp_path / "killed", "local", 12, 0.01)

    interrupt_at_random(killed, ["driver"] * 8, seed=4, longest=1.2)

    study = read_study(killed.study)
    check(study, 12)
    assert outcome(study) == outcome(read_study(undisturbed.study))


def test_a_ray_study_survives_the_death_of_worker_driver_and_group(tmp_path: Path) -> None:
    program = Program(tmp_path, "ray", 8, 0.1)

    interrupt_at_random(program, ["worker", "driver", "group"], seed=7, longest=2.0)

    check(read_study(program.study), 8)


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(4))
def test_a_ray_study_survives_many_deaths(tmp_path: Path, seed: int) -> None:
    program = Program(tmp_path, "ray", 16, 0.2)
    victims = random.Random(seed).choices(["worker", "driver", "group"], k=6)

    interrupt_at_random(program, victims, seed, longest=8.0)

    check(read_study(program.study), 16)


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(6))
def test_a_sequential_study_survives_kills_in_the_middle_of_writes(
    tmp_path: Path, seed: int
) -> None:
    """Without sleeping the program does little but write."""
    program = Program(tmp_path, "local", 60, 0.0)

    interrupt_at_random(program, ["driver"] * 15, seed, longest=0.8)

    check(read_study(program.study), 60)
