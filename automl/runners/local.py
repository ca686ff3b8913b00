"""Trials in this process, one after another, without Ray: starts in no time, runs anywhere.

The limits of a trial are checked whenever it reports; a trainer that hangs in this process
cannot be killed from it (the Ray runner can).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from automl.errors import AutoMLError
from automl.runners import Interruption, conclude
from automl.trial import Driver, Job, Outcome, TrialDriver, run_trial

if TYPE_CHECKING:
    from automl.algorithms.table import Algorithm
    from automl.store import Study


def run(
    study: Study,
    algorithm: Algorithm,
    trainable: str,
    *,
    live: Callable[[Mapping[str, Any]], None] | None = None,
) -> None:
    """Run or resume a study to the end of its budget.

    Raises:
        AutoMLError: the study cannot go on (full disk, trials keep failing).
        KeyboardInterrupt: SIGINT arrived; SystemExit(143): SIGTERM. Both resume.
    """
    drive(TrialDriver(study, algorithm, trainable, live))


def drive(driver: Driver) -> None:
    """Run the jobs of a driver; raises as `run` does."""
    with Interruption() as interruption:
        while interruption.signal is None and (job := driver.next_job()) is not None:
            driver.job_started(job.trial)
            outcome = _train(driver, job, interruption)
            if outcome is not None:
                driver.on_end(job.trial, outcome)
        conclude(driver, interruption)


def _train(driver: Driver, job: Job, interruption: Interruption) -> Outcome | None:
    def report(epoch: int, metrics: Mapping[str, float], checkpoint: Path | None) -> bool:
        with interruption.held_back():
            try:
                stop = driver.on_epoch(job.trial, epoch, metrics, checkpoint)
                return stop or job.trial in driver.end_overdue()
            except AutoMLError as error:
                driver.fail(error)
                return True

    outcome = None
    with interruption.leaves_training():
        outcome = run_trial(job, report)
    return outcome
