"""Our search and stop rules in the shape Ray Tune asks for.

Ray's searcher and scheduler hold no state here: both pass on to the `Driver`, which writes
the event before Ray acts on it. A Ray trial is one attempt at a trial of the study; a resumed or
retried trial is a new Ray trial with the same study number.

An error of ours must not reach Ray, which would print and wrap it: the driver remembers it and
the experiment is stopped.
"""

# pyright: basic, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# Ray's types are partial.
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from automl.contract import Status
from automl.errors import AutoMLError
from automl.runners.ray_cluster import answers
from automl.trial import Driver, Job, Outcome

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

    from automl.runners import Interruption


@dataclass(frozen=True)
class Place:
    """What a worker on a cluster says first: the node it is on."""

    node: str


class StudySearcher(Searcher):
    """Suggests the driver's next job; `{"job": Job, "names_node": bool}` configures a Ray trial."""

    def __init__(self, driver: Driver, *, names_nodes: bool) -> None:
        super().__init__()
        self._driver = driver
        self._names_nodes = names_nodes
        self._active: set[str] = set()

    def suggest(self, trial_id: str) -> dict[str, Job | bool] | str | None:
        """Return a configuration; None: not now (an active trial may come back); or FINISHED."""
        try:
            job = self._driver.next_job()
        except AutoMLError as error:
            self._driver.fail(error)
            return None
        if job is not None:
            self._active.add(trial_id)
            return {"job": job, "names_node": self._names_nodes}
        return None if self._active else self.FINISHED

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Forget a Ray trial; its outcome was recorded by the scheduler."""
        self._active.discard(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the event log holds everything."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: Ray's state is never read."""


class StudyScheduler(FIFOScheduler):
    """Records what workers report and turns the driver's decision into Ray's."""

    def __init__(self, driver: Driver) -> None:
        super().__init__()
        self._driver = driver

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Record an epoch or an end.

        A worker learns the decision about its epoch by `answer`, ahead of the next `train` call,
        and winds its training down; so a trial leaves its worker only when its thread has ended.
        """
        number = trial.config["job"].trial
        message = result["message"]
        worker: Any = trial.temporary_state.ray_actor
        try:
            if isinstance(message, Place):
                self._driver.on_placed(number, message.node)
                return TrialScheduler.CONTINUE
            if not isinstance(message, Outcome):
                worker.answer.remote(self._driver.on_epoch(number, *message))
                return TrialScheduler.CONTINUE
            self._driver.on_end(number, message)
        except AutoMLError as error:
            self._driver.fail(error)
            return TrialScheduler.NOOP
        if message.status == Status.OUT_OF_MEMORY:  # may have poisoned the worker's CUDA context
            ray.kill(worker)
            return TrialScheduler.CONTINUE  # the next call finds the worker dead
        return TrialScheduler.STOP

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Record that a worker died, unless the trial had ended before."""
        number: int = trial.config["job"].trial
        node = self._driver.records()[number].node
        by_node = bool(node) and not answers(node)
        reason = f"node {node} died" if by_node else f"the worker died: {_why(trial)}"
        try:
            self._driver.on_lost(number, reason, by_node=by_node)
        except AutoMLError as error:
            self._driver.fail(error)


class StudyWatch(tune.Callback):
    """Looks after running trials between two of Ray's steps: limits, start times, the way out."""

    def __init__(self, driver: Driver, interruption: Interruption) -> None:
        self._driver = driver
        self._interruption = interruption
        self._workers: dict[int, Any] = {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        """Start a trial's clocks: its worker is up."""
        number = trial.config["job"].trial
        self._workers[number] = trial.temporary_state.ray_actor
        self._driver.job_started(number)

    def on_step_begin(self, iteration: int, trials: list[Trial], **_: Any) -> None:
        """Kill the workers of overdue trials, and all of them when the study must stop."""
        try:
            overdue = self._driver.end_overdue()
        except AutoMLError as error:
            self._driver.fail(error)
            overdue = []
        for number in overdue:
            ray.kill(self._workers[number])
        if self.must_stop():
            for trial in trials:
                worker = trial.temporary_state.ray_actor
                if worker is not None:
                    ray.kill(worker)

    def must_stop(self) -> bool:
        """Whether the study ends before its budget: an error of ours, or a signal."""
        return self._driver.failure is not None or self._interruption.signal is not None


class StopWhen(tune.Stopper):
    """Stops the whole experiment when the watch says so."""

    def __init__(self, watch: StudyWatch) -> None:
        self._watch = watch

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial is stopped here."""
        return False

    def stop_all(self) -> bool:
        """Whether to stop everything."""
        return self._watch.must_stop()


def _why(trial: Trial) -> str:
    """Return the last line of what Ray wrote about the end of a trial."""
    try:
        text = Path(trial.error_file or "").read_text(encoding="utf-8")
    except OSError:
        text = ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason known"
