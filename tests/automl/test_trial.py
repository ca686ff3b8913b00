from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from automl.contract import Status
from automl.errors import StoreError, StudyFailedError
from automl.store import Study, open_study
from automl.trial import MOST_MOVES, TRIAL_VARIABLE, Job, Outcome, TrialDriver, run_trial
from tests.automl.quadratic import NAME
from tests.automl.runners.driving import algorithm_of, open_quadratic

OK = Outcome(Status.OK)


def driver_of(study: Study, events: list[Mapping[str, Any]] | None = None) -> TrialDriver:
    on_event = None if events is None else events.append
    return TrialDriver(study, algorithm_of(study), NAME, on_event)


def report_epochs(driver: TrialDriver, job: Job, values: list[float], first: int = 1) -> list[bool]:
    """Report epochs with checkpoints as a trainer does; the answers."""
    answers = []
    for epoch, value in enumerate(values, start=first):
        checkpoint = job.directory / f"epoch_{epoch:03d}.json"
        checkpoint.write_text("{}")
        metrics = {"val/epe": value, "seconds": 1.0}
        answers.append(driver.on_epoch(job.trial, epoch, metrics, checkpoint))
        (job.directory / f"epoch_{epoch - 1:03d}.json").unlink(missing_ok=True)
    return answers


def next_job(driver: TrialDriver) -> Job:
    job = driver.next_job()
    assert job is not None
    driver.job_started(job.trial)
    return job


class Raising:
    """A trainer that raises what it is given."""

    schema_dir = Path()
    error: Exception = RuntimeError("no reason")

    def run(self, action: str, spec: Any, results_dir: Path, report: Any) -> Any:
        assert os.environ[TRIAL_VARIABLE] == "7"
        raise self.error

    def objective(self, model: str) -> Any: ...
    def template(self, model: str, action: str) -> Any: ...
    def embedded_data(self, model: str, directory: Path, profile: str = "cpu") -> Any: ...


class FullDisk(Raising):
    error = RuntimeError("checkpoint failed")
    error.__cause__ = OSError(errno.ENOSPC, "full")


def raising_job(tmp_path: Path, trainer: type[Raising]) -> Job:
    return Job(7, f"{__name__}:{trainer.__name__}", {}, tmp_path)


def test_an_exception_of_the_trainer_is_an_outcome_with_a_traceback_in_the_log(
    tmp_path: Path,
) -> None:
    outcome = run_trial(raising_job(tmp_path, Raising), lambda *_: False)
    full = run_trial(raising_job(tmp_path, FullDisk), lambda *_: False)

    assert outcome == Outcome(Status.FAILED, "RuntimeError: no reason")
    assert "Traceback" in (tmp_path / "worker.log").read_text()
    assert full.disk_full
    assert TRIAL_VARIABLE not in os.environ


def test_every_event_is_in_the_log_before_anybody_hears_of_it(tmp_path: Path) -> None:
    study = open_quadratic(tmp_path)
    seen: list[bool] = []
    driver = TrialDriver(
        study,
        algorithm_of(study),
        NAME,
        lambda event: seen.append(study.events[-1] | event == study.events[-1]),
    )
    job = next_job(driver)
    report_epochs(driver, job, [3, 2, 1, 1, 1, 1])
    driver.on_end(job.trial, OK)
    assert len(seen) == 8
    assert all(seen)


def test_a_failure_is_tried_once_more_from_the_last_epoch(tmp_path: Path) -> None:
    driver = driver_of(open_quadratic(tmp_path))
    job = next_job(driver)
    report_epochs(driver, job, [3.0, 2.0])

    driver.on_lost(job.trial, "the worker died: killed")
    again = next_job(driver)

    assert again.trial == job.trial
    assert again.spec["train"]["resume_training_checkpoint_path"].endswith("epoch_002.json")
    assert driver.study.events[-1]["detail"] == "the worker died: killed"
    driver.on_lost(job.trial, "the worker died: again")
    record = driver.study.trials[0]
    assert (record.state, record.detail, record.last_epoch) == (
        "failed",
        "the worker died: again",
        2,
    )


def test_a_dead_node_is_not_the_fault_of_its_trials(tmp_path: Path) -> None:
    study = open_quadratic(tmp_path)
    driver = driver_of(study)
    job = next_job(driver)
    for move in range(MOST_MOVES):
        driver.on_placed(job.trial, f"node {move}")
        assert study.trials[0].node == f"node {move}"
        driver.on_lost(job.trial, f"node {move} died", by_node=True)
        assert next_job(driver).trial == job.trial
        assert study.events[-1]["cause"] == "moved"
        assert study.events[-1]["detail"] == f"node {move} died"
        assert study.trials[0].node == ""
    driver.on_lost(job.trial, "the worker died: killed")
    assert next_job(driver).trial == job.trial

    driver.on_lost(job.trial, "node 9 died", by_node=True)  # it may be what kills nodes

    assert (study.trials[0].state, study.trials[0].retries) == ("failed", 1)


def test_three_trials_in_a_row_that_failed_stop_the_study(tmp_path: Path) -> None:
    driver = driver_of(open_quadratic(tmp_path))
    for _ in range(6):
        driver.on_end(next_job(driver).trial, Outcome(Status.FAILED, "no camera"))

    assert driver.next_job() is None
    with pytest.raises(StudyFailedError, match=r"3 trials in a row.*trial 2.*no camera"):
        raise driver.failure or AssertionError


def test_a_nan_is_recorded_as_diverged_and_never_as_an_epoch(tmp_path: Path) -> None:
    driver = driver_of(open_quadratic(tmp_path))
    job = next_job(driver)

    assert report_epochs(driver, job, [3.0, float("nan")]) == [False, True]

    record = driver.study.trials[0]
    assert (record.state, record.last_epoch) == ("diverged", 1)
    assert record.detail == "val/epe is nan after epoch 2"
    assert list(job.directory.iterdir()) == []


@pytest.mark.parametrize("status", ["diverged", "out_of_memory", "invalid_spec"])
def test_other_ends_are_recorded_with_their_name_and_reason(tmp_path: Path, status: str) -> None:
    driver = driver_of(open_quadratic(tmp_path))
    driver.on_end(next_job(driver).trial, Outcome(status, "because"))
    record = driver.study.trials[0]
    assert (record.state, record.detail) == (status, "because")
    assert next_job(driver).trial == 1


def test_a_full_disk_leaves_the_trial_running(tmp_path: Path) -> None:
    driver = driver_of(open_quadratic(tmp_path))
    driver.on_end(next_job(driver).trial, Outcome(Status.FAILED, "ENOSPC", disk_full=True))
    assert driver.study.trials[0].state == "running"
    with pytest.raises(StoreError, match=r"disk is full: trial 0.*run the same command again"):
        raise driver.failure or AssertionError


def test_an_end_that_was_decided_but_not_recorded_is_recorded_on_resume(tmp_path: Path) -> None:
    study = open_quadratic(tmp_path)
    first = driver_of(study)
    base = next_job(first)
    report_epochs(first, base, [3, 2, 2, 2, 2, 1])
    poor = next_job(first)
    assert report_epochs(first, poor, [5, 4])[-1]
    study.close()

    study = open_quadratic(tmp_path)
    driver_of(study)

    assert [trial.state for trial in study.trials] == ["complete", "stopped"]


def test_a_running_trial_continues_and_without_its_checkpoint_starts_again(tmp_path: Path) -> None:
    study = open_quadratic(tmp_path)
    first = driver_of(study)
    kept, gone = next_job(first), next_job(first)
    report_epochs(first, kept, [3.0])
    report_epochs(first, gone, [2.0])
    (gone.directory / "epoch_001.json").unlink()
    study.close()

    study = open_quadratic(tmp_path)
    driver = driver_of(study)
    jobs = [next_job(driver), next_job(driver)]

    resumed = [job.spec["train"]["resume_training_checkpoint_path"] for job in jobs]
    assert resumed == [str(kept.directory / "epoch_001.json"), None]
    starts = [event for event in study.events if event["kind"] == "trial_started"][2:]
    assert [start["resumed_from_epoch"] for start in starts] == [1, 0]
    assert {start["cause"] for start in starts} == {"resumed"}


@pytest.mark.parametrize("absolute", [False, True], ids=["moved", "old absolute paths"])
def test_a_study_that_was_moved_continues(tmp_path: Path, absolute: bool) -> None:
    study = open_quadratic(tmp_path)
    first = driver_of(study)
    job = next_job(first)
    report_epochs(first, job, [3.0])
    study.close()
    log, place = study.directory / "events.jsonl", study.directory
    assert str(tmp_path) not in log.read_text()
    if absolute:
        log.write_text(log.read_text().replace('"trials/', f'"{study.directory}/trials/'))
    else:
        place = study.directory.rename(tmp_path / "elsewhere")

    study = open_study(study.resolved, place)
    again = next_job(driver_of(study))

    resumed = again.spec["train"]["resume_training_checkpoint_path"]
    assert resumed == str(place / "trials/0/epoch_001.json")
    study.close()


def test_only_checkpoints_that_are_still_needed_stay_on_the_disk(tmp_path: Path) -> None:
    study = open_quadratic(tmp_path, rungs=())
    driver = driver_of(study)

    def finish(values: list[float]) -> None:
        job = next_job(driver)
        (job.directory / "latest.json").symlink_to(job.directory / "epoch_006.json")
        (job.directory / "torn.json.12.tmp").write_text("x")
        report_epochs(driver, job, values)
        driver.on_end(job.trial, OK)

    def checkpoints() -> list[str]:
        files = (study.directory / "trials").rglob("*.*")
        return sorted(str(f.relative_to(study.directory / "trials")) for f in files)

    finish([6, 5, 4, 3, 2, 1.0])
    finish([6, 5, 4, 3, 2, 0.8])
    finish([6, 5, 4, 3, 2, 0.9])
    assert checkpoints() == [
        f"{trial}/{name}" for trial in (0, 1) for name in ("epoch_006.json", "latest.json")
    ]
    finish([6, 5, 4, 3, 2, 0.7])
    assert {name[0] for name in checkpoints()} == {"0", "3"}


def test_what_a_killed_driver_left_of_ended_trials_is_deleted_on_resume(tmp_path: Path) -> None:
    study = open_quadratic(tmp_path, rungs=())
    driver = driver_of(study)
    for value in (1.0, 2.0):
        job = next_job(driver)
        report_epochs(driver, job, [6, 5, 4, 3, 2, value])
        if job.trial == 0:
            driver.on_end(job.trial, OK)
    study.append({"kind": "trial_ended", "trial": 1, "state": "complete", "detail": ""})  # killed
    assert list(study.trial_directory(1).glob("epoch_*"))
    study.close()

    again = open_quadratic(tmp_path, rungs=())
    driver_of(again)

    assert list(again.trial_directory(1).glob("epoch_*")) == []
    assert [file.name for file in again.trial_directory(0).glob("epoch_*")] == ["epoch_006.json"]
    again.close()


@pytest.mark.parametrize(
    ("limits", "text"),
    [({"minutes_without_report": 0.0}, "no report for 0 min"), ({"hours": 0.0}, "longer than 0 h")],
)
def test_a_trial_beyond_a_limit_is_ended_as_failed(
    tmp_path: Path, limits: dict[str, float], text: str
) -> None:
    driver = driver_of(open_quadratic(tmp_path, trial_limits=limits))
    job = next_job(driver)
    assert driver.end_overdue() == [job.trial]
    record = driver.study.trials[0]
    assert record.state == "failed"
    assert text in record.detail
    assert driver.on_epoch(job.trial, 1, {"val/epe": 1.0}, None)  # a late report changes nothing
    assert next_job(driver).trial == 1


def test_a_trial_that_hangs_after_its_last_epoch_is_complete(tmp_path: Path) -> None:
    limits = {"minutes_without_report": 0.0}
    driver = driver_of(open_quadratic(tmp_path, trial_limits=limits))
    job = next_job(driver)
    report_epochs(driver, job, [6, 5, 4, 3, 2, 1.0])

    assert driver.end_overdue() == [job.trial]
    assert driver.study.trials[0].state == "complete"
    assert driver.study.best() is driver.study.trials[0]


def test_running_trials_end_when_the_target_is_reached(tmp_path: Path) -> None:
    study = open_quadratic(tmp_path, budget={"trials": 9, "target": 1.5})
    driver = driver_of(study)
    first, second = next_job(driver), next_job(driver)
    assert report_epochs(driver, second, [3.0]) == [False]
    report_epochs(driver, first, [6, 5, 4, 3, 2, 1.4])
    driver.on_end(first.trial, OK)

    assert report_epochs(driver, second, [2.0], first=2) == [True]

    assert study.trials[1].state == "stopped"
    assert "budget.target" in study.trials[1].detail
    assert driver.next_job() is None


def test_what_a_dead_worker_left_is_deleted_before_its_trial_goes_on(tmp_path: Path) -> None:
    driver = driver_of(open_quadratic(tmp_path))
    job = next_job(driver)
    report_epochs(driver, job, [3.0, 2.0])
    for name in ("epoch_003.json", "epoch_003.json.7.tmp"):
        (job.directory / name).write_text("x")  # written, but not in the log

    driver.on_lost(job.trial, "the worker died: killed")
    next_job(driver)

    assert [file.name for file in job.directory.iterdir()] == ["epoch_002.json"]
    driver.study.close()
