"""One trial in any runner: patch the spec, run the trainer, record every epoch and the outcome.

`run_trial` is the worker's half: it runs the trainer and knows nothing of the study. A `Driver`
is the driver's half and the log's only writer: it hands out jobs, writes every event before
anybody acts on it, and decides. A runner carries jobs one way and reports the other way.
`TrialDriver` is the driver of the search; `automl.confirm` has one for repetitions.

A trial that the log shows as running is continued from the checkpoint of its last logged epoch,
so the epochs of a trial are consecutive whatever was killed. An epoch counts when it is logged.
"""

from __future__ import annotations

import errno
import math
import os
import time
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from automl.algorithms.rungs import Decision
from automl.algorithms.table import Algorithm
from automl.budget import Budget
from automl.contract import RESUME_KEY, Report, Status, find_trainable
from automl.errors import AutoMLError, StoreError, StudyFailedError
from automl.events import write_error
from automl.store import Study, TrialRecord
from automl.study_spec import set_path

TRIAL_VARIABLE = "DEPTHTUNE_TRIAL"  # set while a trial trains: a trial never starts a study
TURN_VARIABLE = "DEPTHTUNE_CHECKPOINT_TURN"  # the file that trials lock to write in turn
TURN_FILE = "turn.lock"  # in the study's directory
WORKER_LOG = "worker.log"  # in the trial's directory: output of its process, and tracebacks
FAILURES_IN_A_ROW = 3
MOST_MOVES = 3  # beyond, a dead node counts as a failure: the trial may be what kills it

Cause = Literal["new", "resumed", "retried", "moved"]


class Costs(NamedTuple):
    """What a structure costs on the device; `detail` says why nothing is known."""

    metrics: Mapping[str, float]
    detail: str = ""


Measure = Callable[[Mapping[str, Any]], Costs]
"""Complete spec of a trial -> what its structure costs."""


@dataclass(frozen=True)
class Job:
    """All a worker needs to run one trial, or to continue it.

    Attributes:
        trial: the trial's number in the study.
        trainable: name for `automl.contract.find_trainable`.
        spec: the complete spec; names the checkpoint to resume from.
        directory: the trial's own directory.
    """

    trial: int
    trainable: str
    spec: Mapping[str, Any]
    directory: Path


@dataclass(frozen=True)
class Outcome:
    """How training ended, in the worker's eyes; `status` is a value of `Status`."""

    status: str
    detail: str = ""
    disk_full: bool = False


def run_trial(job: Job, report: Report) -> Outcome:
    """Train one trial and say how it ended; an exception of the trainer is an outcome too."""
    try:
        with _marked_as_trial(job):
            trainable = find_trainable(job.trainable)
            result = trainable.run("train", job.spec, job.directory, report)
    except Exception as error:  # noqa: BLE001 - whatever a trainer raises must not end the study
        with suppress(OSError), (job.directory / WORKER_LOG).open("a", encoding="utf-8") as log:
            traceback.print_exception(error, file=log)
        detail = f"{type(error).__name__}: {error}"
        return Outcome(Status.FAILED, detail, disk_full=_is_disk_full(error))
    full = result.status == Status.FAILED and os.strerror(errno.ENOSPC) in result.detail
    return Outcome(result.status, result.detail, disk_full=full)


@contextmanager
def _marked_as_trial(job: Job) -> Generator[None]:
    marks = {
        TRIAL_VARIABLE: str(job.trial),
        TURN_VARIABLE: str(job.directory.absolute().parents[1] / TURN_FILE),
    }
    before = {name: os.environ[name] for name in marks if name in os.environ}
    os.environ.update(marks)
    try:
        yield
    finally:
        for name in marks:
            del os.environ[name]
        os.environ.update(before)


def _is_disk_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


@dataclass
class _Attempt:
    """A started trial: when it started and when it was last heard of, on the monotonic clock."""

    started: float
    heard: float


class Driver(ABC):
    """The only writer of a series of runs, and the place where decisions become events.

    Attributes:
        study: the open study.
        failure: the first error after which the study cannot go on; None while all is well.
        word: what one run of the series is called.
        events: kinds of the events started, epoch, ended and placed, and the key of the run's
            number.
        failures_in_a_row: so many failed runs in a row stop the study; None: never.
    """

    word: str
    events: tuple[str, str, str, str, str]
    failures_in_a_row: int | None = FAILURES_IN_A_ROW

    def __init__(
        self,
        study: Study,
        trainable: str,
        on_event: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        """Close or queue what an earlier session left running."""
        self.study = study
        self.failure: AutoMLError | None = None
        self._trainable = trainable
        self._on_event = on_event
        self._waiting: deque[tuple[TrialRecord, Cause, str]] = deque()
        self._attempts: dict[int, _Attempt] = {}
        self._failed_in_a_row = 0
        self._unpruned: set[int] = set()  # ended runs that may still hold a checkpoint
        self._suffixes = {".tmp"}
        for record in self.records():
            if record.state != "running":
                self._unpruned.add(record.id)
                continue
            state = _decided_state(record)
            if state is None:
                self._waiting.append((record, "resumed", ""))
            else:
                self._end(record.id, state, "")
        self._prune_checkpoints()

    # --- what a series of runs is ---

    @abstractmethod
    def records(self) -> Sequence[TrialRecord]:
        """Return the runs so far; a run's number is its place."""

    @abstractmethod
    def directory(self, number: int) -> Path:
        """Return where a run writes."""

    @abstractmethod
    def end_reason(self) -> str | None:
        """Return why no new run is started, or None."""

    @abstractmethod
    def end_study(self) -> None:
        """Record that every run has ended."""

    @abstractmethod
    def _proposal(self) -> Mapping[str, Any] | None:
        """Return `params`, `seed` and other facts of the next run; None: there is none."""

    @abstractmethod
    def _decide(self, number: int, epoch: int, value: float) -> Decision:
        """Decide about a run after an epoch that is not in the log yet."""

    @abstractmethod
    def _spec(self, record: TrialRecord) -> dict[str, Any]:
        """Return the complete spec of a run."""

    def _overrun(self) -> str | None:
        """Return why a run ends although it would go on, or None."""
        return None

    def _keeps(self, record: TrialRecord) -> bool:
        """Whether the last checkpoint of an ended run is still needed."""
        return False

    # --- handing out jobs ---

    def next_job(self) -> Job | None:
        """Start the next run: one to continue, else a new one; None when there is none."""
        if self.failure is not None:
            return None
        if self._waiting:
            return self._start_again(*self._waiting.popleft())
        if self.end_reason() is not None:
            return None
        facts = self._proposal()
        if facts is None:
            return None
        number = len(self.records())
        start = {"attempt": 1, "resumed_from_epoch": 0, "cause": "new"}
        self._append_run(0, number, **facts, **start)
        return self._job(self.records()[number], None)

    def has_work(self) -> bool:
        """Whether `next_job` would give a job now."""
        return self.failure is None and (bool(self._waiting) or self.end_reason() is None)

    def job_started(self, trial: int) -> None:
        """Start the clocks of a trial: its worker has it now."""
        now = time.monotonic()
        self._attempts[trial] = _Attempt(now, now)

    def on_placed(self, trial: int, node: str) -> None:
        """Record which node of a cluster trains a trial."""
        if self.records()[trial].state == "running":
            self._append_run(3, trial, node=node)

    # --- what workers report ---

    def on_epoch(
        self, trial: int, epoch: int, metrics: Mapping[str, float], checkpoint: Path | None
    ) -> bool:
        """Record a finished epoch with the decision about it; True: the trial stops here."""
        record = self.records()[trial]
        if record.state != "running":
            return True
        fault = self._fault(record, epoch, metrics)
        if fault is not None:
            self._end(trial, *fault)
            return True
        value = metrics[self.study.objective.metric]
        decision = self._decide(trial, epoch, value)
        self._append_run(
            1,
            trial,
            epoch=epoch,
            metrics=dict(metrics),
            checkpoint=self.study.relative(checkpoint) if checkpoint else None,
            decision=decision.action,
            rung=decision.rung,
        )
        if trial in self._attempts:
            self._attempts[trial].heard = time.monotonic()
        if decision.action == "continue":
            reason = self._overrun()
            if reason is not None:
                self._end(trial, "stopped", reason)
            return reason is not None
        return decision.action == "stop"

    def on_end(self, trial: int, outcome: Outcome) -> None:
        """Record how a trial's training ended; a failure is tried once more."""
        record = self.records()[trial]
        if record.state != "running" or self.failure is not None:
            return
        decided = _decided_state(record)
        if decided is not None:
            self._end(trial, decided, outcome.detail if outcome.status != Status.OK else "")
        elif outcome.disk_full:
            self.fail(
                StoreError(
                    f"{self.study.directory}: the disk is full: {self.word} {trial} could not"
                    f" write ({outcome.detail}). Free some space and run the same command again:"
                    " it continues from its last epoch"
                )
            )
        elif outcome.status == Status.OK:
            full = self.study.resolved.full_epochs
            detail = f"training ended by itself after {record.last_epoch} of {full} epochs"
            self._failed(record, detail)
        elif outcome.status == Status.FAILED:
            self._failed(record, outcome.detail)
        else:
            self._end(trial, outcome.status, outcome.detail)

    def on_lost(self, trial: int, reason: str, *, by_node: bool = False) -> None:
        """Record that a trial's worker died, with its whole node (which is not its fault)."""
        record = self.records()[trial]
        if record.state != "running" or self.failure is not None:
            return
        decided = _decided_state(record)
        if decided is not None:
            self._end(trial, decided, "")
        elif by_node and record.moves < MOST_MOVES:
            self._attempts.pop(trial, None)
            self._waiting.append((record, "moved", reason))
        else:
            self._failed(record, reason)

    def end_overdue(self) -> list[int]:
        """End the trials beyond a limit as failed, unless the log has decided about them already.

        Returns:
            The trials whose workers the caller has to kill.
        """
        overdue: list[int] = []
        for trial in list(self._attempts):
            reason = self.over_limit(trial)
            if reason is not None:
                decided = _decided_state(self.records()[trial])
                self._end(trial, decided or Status.FAILED, reason)
                overdue.append(trial)
        return overdue

    def over_limit(self, trial: int) -> str | None:
        """Return which limit a running trial has passed, or None."""
        limits = self.study.resolved.study.trial_limits
        attempt, now = self._attempts[trial], time.monotonic()
        silent, total = now - attempt.heard, now - attempt.started
        if silent > 60 * limits.minutes_without_report:
            return (
                f"killed: no report for {limits.minutes_without_report:g} min"
                " (trial_limits.minutes_without_report)"
            )
        if limits.hours is not None and total > 3600 * limits.hours:
            return f"killed: longer than {limits.hours:g} h (trial_limits.hours)"
        return None

    def fail(self, error: AutoMLError) -> None:
        """Remember why the study cannot go on; the first reason counts."""
        self.failure = self.failure or error

    # --- events ---

    def _start_again(self, record: TrialRecord, cause: Cause, detail: str) -> Job:
        checkpoint = record.checkpoint
        if checkpoint is None or not checkpoint.is_file():
            checkpoint = None
        more = {checkpoint.suffix} if checkpoint else set[str]()
        _delete_files(self.directory(record.id), self._suffixes | more, checkpoint)
        resumed_from = record.last_epoch if checkpoint else 0
        again = {"attempt": record.attempts + 1, "resumed_from_epoch": resumed_from, "cause": cause}
        more = {"detail": detail} if detail else {}
        facts = {"params": dict(record.params), "seed": record.seed}
        self._append_run(0, record.id, **facts, **again, **more)
        return self._job(record, checkpoint)

    def _job(self, record: TrialRecord, checkpoint: Path | None) -> Job:
        spec = self._spec(record)
        if checkpoint is not None:
            set_path(spec, RESUME_KEY, str(checkpoint))
        directory = self.directory(record.id)
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(directory, error) from error
        return Job(record.id, self._trainable, spec, directory)

    def _fault(
        self, record: TrialRecord, epoch: int, metrics: Mapping[str, float]
    ) -> tuple[str, str] | None:
        """Return the state and reason that end a trial whose report cannot be recorded."""
        metric = self.study.objective.metric
        if metric not in metrics:
            return Status.FAILED, f"the trainer reported no {metric} after epoch {epoch}"
        if not math.isfinite(metrics[metric]):
            return Status.DIVERGED, f"{metric} is {metrics[metric]} after epoch {epoch}"
        if epoch != record.last_epoch + 1:
            return Status.FAILED, f"the trainer reported epoch {epoch} after {record.last_epoch}"
        return None

    def _failed(self, record: TrialRecord, detail: str) -> None:
        if record.retries == 0:
            self._attempts.pop(record.id, None)
            self._waiting.append((record, "retried", detail))
        else:
            self._end(record.id, Status.FAILED, detail)

    def _end(self, trial: int, state: str, detail: str) -> None:
        self._attempts.pop(trial, None)
        self._unpruned.add(trial)
        self._append_run(2, trial, state=str(state), detail=detail)
        self._failed_in_a_row = self._failed_in_a_row + 1 if state == Status.FAILED else 0
        if self._failed_in_a_row == self.failures_in_a_row:
            self.fail(
                StudyFailedError(
                    f"{self.study.directory}: {self.failures_in_a_row} {self.word}s in a row"
                    f" failed, the last one ({self.word} {trial}) with: {detail}. See"
                    f" {self.directory(trial)}; when the cause is gone, run the same command again"
                )
            )
        self._prune_checkpoints()

    def _append_run(self, which: int, number: int, **facts: Any) -> None:
        """Append an event of one run: 0 started, 1 epoch, 2 ended, 3 placed."""
        self._append({"kind": self.events[which], self.events[-1]: number, **facts})

    def _append(self, event: Mapping[str, Any]) -> None:
        self.study.append(event)
        if self._on_event is not None:
            self._on_event(event)

    # --- checkpoints ---

    def _prune_checkpoints(self) -> None:
        """Delete the checkpoints of ended runs, except the last one of those still needed."""
        records = [self.records()[number] for number in sorted(self._unpruned)]
        self._suffixes |= {record.checkpoint.suffix for record in records if record.checkpoint}
        for record in records:
            keep = record.checkpoint if self._keeps(record) else None
            _delete_files(self.directory(record.id), self._suffixes, keep)
            if keep is None:
                self._unpruned.discard(record.id)


class TrialDriver(Driver):
    """The driver of the search: the algorithm proposes and stops, the budget ends it."""

    word = "trial"
    events = ("trial_started", "epoch", "trial_ended", "trial_placed", "trial")

    def __init__(
        self,
        study: Study,
        algorithm: Algorithm,
        trainable: str,
        on_event: Callable[[Mapping[str, Any]], None] | None = None,
        measure: Measure | None = None,
    ) -> None:
        """Close or queue what an earlier session left running.

        `measure` tells what the structure of a spec costs, before the trial trains.
        """
        self._algorithm = algorithm
        self._measure = measure
        self._budget = Budget.of(study.resolved.study)
        self._space_used_up = False
        super().__init__(study, trainable, on_event)

    def records(self) -> Sequence[TrialRecord]:
        """Return the trials so far."""
        return self.study.trials

    def directory(self, number: int) -> Path:
        """Return where a trial writes."""
        return self.study.trial_directory(number)

    def end_reason(self) -> str | None:
        """Return why no new trial is started, or None."""
        if self._space_used_up:
            return "every combination of the searched values has been tried"
        return self._budget.exhausted(self.study)

    def end_study(self) -> None:
        """Record that the budget is used and every trial has ended."""
        if self.study.end_reason is None:
            self._append({"kind": "study_ended", "reason": self.end_reason()})

    def _proposal(self) -> Mapping[str, Any] | None:
        suggestion = self._algorithm.ask()
        if suggestion is None:
            self._space_used_up = True
            return None
        return {"params": dict(suggestion[1]), "seed": self.study.resolved.study.seed}

    def _decide(self, number: int, epoch: int, value: float) -> Decision:
        return self._algorithm.stop(number, epoch, value)

    def _job(self, record: TrialRecord, checkpoint: Path | None) -> Job:
        if self._measure is not None and record.costs is None:
            costs = self._measure(self._spec(record))
            if costs.detail and record.id == 0:
                raise StudyFailedError(
                    f"{self.study.directory}: the baseline cannot be measured, so no trial could"
                    f" be: {costs.detail}"
                )
            facts = {"metrics": costs.metrics, "detail": costs.detail}
            self._append({"kind": "trial_measured", "trial": record.id, **facts})
        return super()._job(record, checkpoint)

    def _spec(self, record: TrialRecord) -> dict[str, Any]:
        resolved = self.study.resolved
        return resolved.space.apply(resolved.base_spec, record.params)

    def _overrun(self) -> str | None:
        return self._budget.overrun(self.study)

    def _keeps(self, record: TrialRecord) -> bool:
        best = self.study.best()
        wanted = {0, *(point.trial for point in self.study.front())}
        wanted |= {best.id} if best is not None else set()
        return record.id in wanted and record.state == "complete"


def _decided_state(record: TrialRecord) -> str | None:
    """Return the end that a trial's last logged decision implies, or None."""
    decision = record.epochs[-1].decision if record.epochs else "continue"
    return {"stop": "stopped", "complete": "complete"}.get(decision)


def _delete_files(directory: Path, suffixes: set[str], keep: Path | None) -> None:
    kept = keep.resolve() if keep is not None else None
    for file in list(directory.rglob("*")):
        if file.suffix in suffixes and file.resolve() != kept:
            file.unlink(missing_ok=True)
