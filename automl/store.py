"""One study on disk: `results/studies/<name>/` with its lock, its event log and its trials.

`events.jsonl` is the truth (`automl.events`); a `Study` is the fold of its events. What must not
change between sessions, and who has the study open, is in `automl.lock`.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from automl.contract import Objective
from automl.errors import StoreError, UnreadableError
from automl.events import FORMAT_VERSION, Event, EventLog, read, write_error
from automl.lock import (
    LOCK_FILE,
    ResolvedStudy,
    check_lock,
    code_version,
    owner_of,
    read_lock,
    release,
    take_ownership,
)
from automl.study_spec import BudgetChoice

if TYPE_CHECKING:
    import pandas as pd  # pyright: ignore[reportMissingTypeStubs]

__all__ = [
    "ENDED",
    "EVENTS_FILE",
    "LOCK_FILE",
    "EpochRecord",
    "ResolvedStudy",
    "Study",
    "TrialRecord",
    "code_version",
    "open_study",
    "owner_of",
    "read_lock",
    "read_study",
]

EVENTS_FILE = "events.jsonl"

ENDED = ("complete", "stopped", "diverged", "out_of_memory", "invalid_spec", "failed")


@dataclass(frozen=True)
class EpochRecord:
    """One finished epoch: metrics as reported, wall seconds, checkpoint, and what was decided."""

    epoch: int
    metrics: Mapping[str, float]
    seconds: float
    checkpoint: Path | None
    decision: str
    rung: int | None


@dataclass
class TrialRecord:
    """One trial as the log tells it.

    Attributes:
        id: counts from 0; trial 0 is the spec as given.
        params: dotted path -> value, of the parameters that act in this trial.
        state: `running` or one of `ENDED`.
        epochs: consecutive from epoch 1.
        detail: reason of the end, for the user.
        started: seconds since 1970 of the first start; `ended` likewise, None while running.
        attempts: how often it was started (resumed and retried included).
        retries: how often it was started again after a failure.
    """

    id: int
    params: dict[str, Any]
    seed: int
    started: float
    state: str = "running"
    epochs: list[EpochRecord] = field(default_factory=list[EpochRecord])
    detail: str = ""
    ended: float | None = None
    attempts: int = 1
    retries: int = 0

    @property
    def last_epoch(self) -> int:
        """Finished epochs."""
        return self.epochs[-1].epoch if self.epochs else 0

    @property
    def checkpoint(self) -> Path | None:
        """The checkpoint of the last finished epoch: training resumes from it."""
        return self.epochs[-1].checkpoint if self.epochs else None

    @property
    def seconds(self) -> float:
        """Wall time of the finished epochs."""
        return sum(record.seconds for record in self.epochs)

    def value_at(self, epoch: int, metric: str) -> float | None:
        """Return the finite value of a metric after an epoch, else None."""
        for record in self.epochs:
            if record.epoch == epoch:
                value = record.metrics.get(metric)
                return value if value is not None and math.isfinite(value) else None
        return None


class Study:
    """A study read from its log; writable when it was opened with `open_study`."""

    def __init__(
        self, directory: Path, resolved: ResolvedStudy, log: EventLog | None, owner: int | None
    ) -> None:
        """Use `open_study` or `read_study`."""
        self.directory = directory
        self.resolved = resolved
        self.events: list[Event] = []
        self.trials: list[TrialRecord] = []
        self.promotion: dict[str, Event] = {}
        self.end_reason: str | None = None
        self._log = log
        self._owner = owner
        self._root = directory.resolve()
        for event in log.events if log else read(directory / EVENTS_FILE):
            self._apply(event)

    # --- writing ---

    def append(self, event: Mapping[str, Any]) -> None:
        """Record one event (kinds and fields: `automl.events`); durable when this returns.

        Raises:
            StoreError: read-only, impossible after the events before it, or the disk is full.
        """
        if self._log is None:
            raise StoreError(f"{self.directory}: opened for reading only")
        self._check(event)
        self._apply(self._log.append(event))

    def close(self) -> None:
        """Give the study up; another driver may open it."""
        if self._log is not None:
            self._log.close()
            self._log = None
        if self._owner is not None:
            release(self._owner)
            self._owner = None

    # --- reading ---

    @property
    def name(self) -> str:
        """The study's name."""
        return self.resolved.study.name

    @property
    def objective(self) -> Objective:
        """The metric that decides."""
        return self.resolved.objective

    @property
    def state(self) -> Literal["running", "finished", "interrupted"]:
        """Whether a living driver has it open, else whether it reached its end."""
        if self._log is not None or owner_of(self.directory) is not None:
            return "running"
        return "interrupted" if self.end_reason is None else "finished"

    def baseline(self) -> TrialRecord | None:
        """Trial 0, the spec as given; None before it started."""
        return self.trials[0] if self.trials else None

    def trial_directory(self, trial: int) -> Path:
        """Return where a trial writes."""
        return self.directory / "trials" / str(trial)

    def relative(self, path: Path) -> str:
        """Return a path as the log holds it: a study that is moved finds its own files again."""
        path = path.resolve()
        inside = path.is_relative_to(self._root)
        return str(path.relative_to(self._root) if inside else path)

    def absolute(self, path: str) -> Path:
        """Return the file that a path in the log means."""
        return self._root / path

    def running(self) -> list[TrialRecord]:
        """Return the trials without an end."""
        return [trial for trial in self.trials if trial.state == "running"]

    def value(self, trial: TrialRecord) -> float | None:
        """Return a complete trial's objective at full fidelity; None for every other trial."""
        if trial.state != "complete":
            return None
        return trial.value_at(self.resolved.full_epochs, self.objective.metric)

    def best(self) -> TrialRecord | None:
        """Return the best complete trial at full fidelity; of equals the earlier one."""
        values = [(trial, self.value(trial)) for trial in self.trials]
        scored = [(self.objective.loss(v), t.id, t) for t, v in values if v is not None]
        return min(scored, key=lambda item: item[:2])[2] if scored else None

    def active_seconds(self, now: float | None = None) -> float:
        """Return the wall time of all sessions; `now` (since 1970) extends the open one."""
        total, start, last = 0.0, None, 0.0
        for event in self.events:
            at = _seconds(event)
            if event["kind"] == "session_started":
                total += last - start if start is not None else 0.0
                start = at
            last = at
        if start is None:
            return total
        return total + max(now or last, last) - start

    def dataframe(self) -> pd.DataFrame:
        """Return one row per trial: outcome, cost and parameters.

        Columns: trial, state, epochs, value (objective after the trial's last epoch; comparable
        only between rows of equal epochs), seconds, attempts, started, ended (UTC), detail, then
        one column per searched path (empty where it did not act).
        """
        import pandas as pd  # pyright: ignore[reportMissingTypeStubs]

        paths = [parameter.path for parameter in self.resolved.space.parameters]
        rows = [self._row(trial, paths) for trial in self.trials]
        columns = ["trial", "state", "epochs", "value", "seconds", "attempts", "started", "ended",
                   "detail", *paths]  # fmt: skip
        return pd.DataFrame(rows, columns=columns)

    def epoch_frame(self) -> pd.DataFrame:
        """Return one row per finished epoch: trial, epoch, decision, rung, seconds, metrics."""
        import pandas as pd  # pyright: ignore[reportMissingTypeStubs]

        rows = [
            {"trial": trial.id, "epoch": record.epoch, "decision": record.decision,
             "rung": record.rung, **record.metrics, "seconds": record.seconds}
            for trial in self.trials
            for record in trial.epochs
        ]  # fmt: skip
        columns = ["trial", "epoch", "decision", "rung", "seconds"]
        return pd.DataFrame(rows) if rows else pd.DataFrame(columns=columns)

    # --- the fold ---

    def _check(self, event: Mapping[str, Any]) -> None:
        kind = event["kind"]
        if kind not in ("trial_started", "epoch", "trial_ended"):
            return
        number: int = event["trial"]
        known = number < len(self.trials)
        problem = ""
        if kind == "trial_started":
            if not known and number != len(self.trials):
                problem = f"the next trial is {len(self.trials)}"
            elif known and self.trials[number].state != "running":
                problem = f"it has ended ({self.trials[number].state})"
        elif not known:
            problem = "it has not started"
        elif self.trials[number].state != "running":
            problem = f"it has ended ({self.trials[number].state})"
        elif kind == "epoch" and event["epoch"] != self.trials[number].last_epoch + 1:
            problem = f"its next epoch is {self.trials[number].last_epoch + 1}"
        elif kind == "trial_ended" and event["state"] not in ENDED:
            problem = f"a trial ends as one of {', '.join(ENDED)}"
        if problem:
            facts = {key: event[key] for key in ("trial", "epoch", "state") if key in event}
            raise StoreError(f"{self.directory}: event {kind} {facts} is impossible: {problem}")

    def _apply(self, event: Event) -> None:
        self.events.append(event)
        match event["kind"]:
            case "trial_started":
                self._start(event)
                self.end_reason = None
            case "epoch":
                self._trial(event).epochs.append(self._epoch(event))
            case "trial_ended":
                trial = self._trial(event)
                trial.state = event["state"]
                trial.detail = event.get("detail", "")
                trial.ended = _seconds(event)
            case "promotion_step":
                self.promotion[event["step"]] = event
            case "study_ended":
                self.end_reason = event.get("reason", "")
            case _:
                pass

    def _trial(self, event: Event) -> TrialRecord:
        number: int = event["trial"]
        return self.trials[number]

    def _epoch(self, event: Event) -> EpochRecord:
        metrics: dict[str, float] = dict(event["metrics"])
        checkpoint = event.get("checkpoint")
        return EpochRecord(
            epoch=event["epoch"],
            metrics=metrics,
            seconds=metrics.get("seconds", 0.0),
            checkpoint=self.absolute(checkpoint) if checkpoint else None,
            decision=event.get("decision", "continue"),
            rung=event.get("rung"),
        )

    def _start(self, event: Event) -> None:
        number: int = event["trial"]
        if number == len(self.trials):
            seed = event.get("seed", 0)
            self.trials.append(TrialRecord(number, event["params"], seed, _seconds(event)))
            return
        trial = self.trials[number]
        trial.attempts += 1
        trial.retries += event.get("cause") == "retried"
        resumed_from = event.get("resumed_from_epoch", 0)
        trial.epochs = [record for record in trial.epochs if record.epoch <= resumed_from]

    def _row(self, trial: TrialRecord, paths: list[str]) -> dict[str, Any]:
        value = trial.value_at(trial.last_epoch, self.objective.metric)
        facts = {
            "trial": trial.id, "state": trial.state, "epochs": trial.last_epoch, "value": value,
            "seconds": trial.seconds, "attempts": trial.attempts, "started": _utc(trial.started),
            "ended": _utc(trial.ended), "detail": trial.detail,
        }  # fmt: skip
        return facts | {path: trial.params.get(path) for path in paths}


def open_study(resolved: ResolvedStudy, directory: Path) -> Study:
    """Create a study, or resume it when its directory holds one, and become its owner.

    Raises:
        StudyLockedError: a living driver owns it, or it was created with other settings.
        StoreError: the directory cannot be written, or its log is damaged or newer.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        owner = take_ownership(directory)
    except OSError as error:
        raise write_error(directory, error) from error
    try:
        old_budget = check_lock(resolved, directory, directory / EVENTS_FILE)
        return _open_log(resolved, directory, owner, old_budget)
    except BaseException:
        release(owner)
        raise


def read_study(directory: Path) -> Study:
    """Read a study, running or not, without touching it.

    Raises:
        UnreadableError: there is no study, or it is damaged or newer.
    """
    resolved = read_lock(directory)
    if resolved is None or not (directory / EVENTS_FILE).is_file():
        raise UnreadableError(
            f"{directory}: holds no study ({LOCK_FILE} and {EVENTS_FILE} are expected)."
            " `automl list` shows the studies there are"
        )
    return Study(directory, resolved, None, None)


def _open_log(
    resolved: ResolvedStudy, directory: Path, owner: int, old_budget: BudgetChoice | None
) -> Study:
    log = EventLog(directory / EVENTS_FILE)
    try:
        study = Study(directory, resolved, log, owner)
        if not study.events:
            identity = {"name": study.name, "model": resolved.study.model}
            study.append({"kind": "study_created", "format_version": FORMAT_VERSION, **identity})
        session = {"pid": os.getpid(), "host": socket.gethostname()}
        facts = {"code_version": code_version(), "repaired_bytes": log.repaired_bytes}
        study.append({"kind": "session_started", **session, **facts})
        if old_budget is not None:
            change = {"old": asdict(old_budget), "new": asdict(resolved.study.budget)}
            study.append({"kind": "budget_changed", **change})
    except BaseException:
        log.close()
        raise
    return study


def _seconds(event: Event) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


def _utc(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
