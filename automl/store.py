"""One study on disk: `results/studies/<name>/` with its lock, its event log and its trials.

`events.jsonl` is the truth (`automl.events`); a `Study` is the fold of its events. What must not
change between sessions, and who has the study open, is in `automl.lock`.
"""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from automl.contract import PEAK_MEMORY, Objective, Setting, split_settings
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
from automl.objectives import Goals, Point, front_of, knee_of
from automl.study_spec import StudySpec, set_path

if TYPE_CHECKING:
    import pandas as pd  # pyright: ignore[reportMissingTypeStubs]

__all__ = [
    "ENDED",
    "EVENTS_FILE",
    "LOCK_FILE",
    "ConfirmRecord",
    "EpochRecord",
    "ResolvedStudy",
    "Study",
    "TrialRecord",
    "code_version",
    "identity",
    "open_study",
    "owner_of",
    "read_lock",
    "read_study",
]

EVENTS_FILE = "events.jsonl"

ENDED = ("complete", "stopped", "diverged", "out_of_memory", "invalid_spec", "failed")


@dataclass(frozen=True)
class EpochRecord:
    """One finished epoch: metrics as reported, wall seconds, checkpoint, and what was decided.

    `settings` has the metrics that the same weights reach with other values of a field.
    """

    epoch: int
    metrics: Mapping[str, float]
    seconds: float
    checkpoint: Path | None
    decision: str
    rung: int | None
    settings: Mapping[Setting, Mapping[str, float]] = field(
        default_factory=dict[Setting, Mapping[str, float]]
    )


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
        moves: how often it was started again because its node had died.
        node: of the cluster that trains or trained it; empty without a cluster.
        costs: what its structure costs on the device, by setting; None of the spec as it is.
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
    moves: int = 0
    node: str = ""
    costs: dict[Setting | None, Mapping[str, float]] | None = None

    @cached_property
    def identity(self) -> str:
        """A text that is the same for the same parameters only; they never change."""
        return identity(self.params)

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

    @property
    def settings(self) -> Mapping[Setting, Mapping[str, float]]:
        """The metrics of a complete trial with other values of a field; else empty."""
        return self.epochs[-1].settings if self.state == "complete" else {}

    @property
    def peak_memory(self) -> float | None:
        """The largest memory use it reported, MiB."""
        peaks = [record.metrics.get("peak_memory_mb") for record in self.epochs]
        return max((peak for peak in peaks if peak is not None), default=None)

    def cost(self, metric: str, setting: Setting | None = None) -> float | None:
        """Return what a metric of the structure is with a setting, None where it is unknown."""
        if metric == PEAK_MEMORY:
            return self.peak_memory
        costs = self.costs or {}
        return costs.get(setting, {}).get(metric, costs.get(None, {}).get(metric))

    def value_at(self, epoch: int, metric: str) -> float | None:
        """Return the finite value of a metric after an epoch, else None."""
        for record in self.epochs:
            if record.epoch == epoch:
                value = record.metrics.get(metric)
                return value if value is not None and math.isfinite(value) else None
        return None


@dataclass
class ConfirmRecord(TrialRecord):
    """A trial's spec trained once more on a further seed, to learn how much its score varies.

    Attributes:
        trial: the trial that is repeated; `id` counts these runs from 0.
    """

    trial: int = 0


def identity(params: Mapping[str, Any]) -> str:
    """Return a text that is the same for the same parameters only."""
    return json.dumps(params, sort_keys=True)


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
        self.confirmations: list[ConfirmRecord] = []
        self.promotion: dict[str, Event] = {}
        self.end_reason: str | None = None
        self._log = log
        self._owner = owner
        self._root = directory.resolve()
        self._clock = _Clock()
        self._best: TrialRecord | None = None  # asked for at every event, so it is kept
        self._front: list[Point] = []
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
    def goals(self) -> Goals:
        """All that decides: the objective, further ones, constraints."""
        return self.resolved.goals

    @property
    def state(self) -> Literal["running", "finished", "interrupted"]:
        """Whether a living driver has it open, else whether it reached its end."""
        if self._log is not None or owner_of(self.directory) is not None:
            return "running"
        ended = self.end_reason is not None and self.is_confirmed()
        return "finished" if ended else "interrupted"

    def baseline(self) -> TrialRecord | None:
        """Trial 0, the spec as given; None before it started."""
        return self.trials[0] if self.trials else None

    def trial_directory(self, trial: int) -> Path:
        """Return where a trial writes."""
        return self.directory / "trials" / str(trial)

    def confirm_directory(self, run: int) -> Path:
        """Return where a confirmation run writes."""
        return self.directory / "confirm" / str(run)

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

    def confirmations_of(self, trial: int) -> list[ConfirmRecord]:
        """Return the repetitions of a trial."""
        return [run for run in self.confirmations if run.trial == trial]

    def is_confirmed(self) -> bool:
        """Whether the winner's repetitions have ended, or there is nothing to confirm."""
        best, wanted = self.best(), self.resolved.study.confirm
        if not wanted or best is None or best.id == 0:
            return True
        return all(
            sum(run.state != "running" for run in self.confirmations_of(trial)) >= wanted
            for trial in (0, best.id)
        )

    def value(self, trial: TrialRecord) -> float | None:
        """Return a complete trial's objective at full fidelity; None for every other trial."""
        if trial.state != "complete":
            return None
        return trial.value_at(self.resolved.full_epochs, self.objective.metric)

    def points(self, among: Sequence[TrialRecord] | None = None) -> list[Point]:
        """Return every way to use a complete trial of which all that decides is known."""
        trials = self.trials if among is None else among
        return [point for trial in trials for point in self._points_of(trial)]

    def front(self) -> list[Point]:
        """Return the points that keep the constraints and that no other one beats."""
        return list(self._front)

    def knee(self) -> Point | None:
        """Return the point of the front with the best trade: what is promoted by default."""
        return knee_of(self._front, self.goals)

    def chosen(self) -> Point | None:
        """Return what is promoted by default: the knee, with one objective the best trial."""
        if self.goals.weighs:
            return self.knee()
        best = self.best()
        return None if best is None else Point(best.id, None)

    def spec_of(self, point: Point) -> dict[str, Any]:
        """Return the complete spec of a trial with its setting."""
        resolved = self.resolved
        spec = resolved.space.apply(resolved.base_spec, self.trials[point.trial].params)
        if point.setting is not None:
            set_path(spec, point.setting.field, point.setting.value)
        return spec

    def front_frame(self) -> pd.DataFrame:
        """Return one row per point: trial, field, setting, values, feasible, front, knee."""
        import pandas as pd  # pyright: ignore[reportMissingTypeStubs]

        front, knee = self.front(), self.knee()
        rows = [
            {
                "trial": point.trial,
                "field": point.setting.field if point.setting else None,
                "setting": point.setting.value if point.setting else None,
                **point.values,
                "feasible": point.is_feasible(self.goals),
                "front": point in front,
                "knee": point == knee,
            }
            for point in self.points()
        ]
        return pd.DataFrame(rows)

    def reached(self) -> tuple[TrialRecord, float] | None:
        """Return the best value of the leading objective within the constraints, and its trial."""
        best = self._best
        if best is None:
            return None
        if self.goals.weighs:  # the front starts with the best by the leading objective
            first = self._front[0]
            return self.trials[first.trial], first.values[self.objective.metric]
        value = self.value(best)
        return None if value is None else (best, value)

    def best(self, among: Sequence[TrialRecord] | None = None) -> TrialRecord | None:
        """Return the best complete trial at full fidelity; of equals the earlier one.

        With several objectives or constraints it is the trial of the knee of the front.
        """
        if among is None:
            return self._best
        if self.goals.weighs:
            knee = knee_of(front_of(self.points(among), self.goals), self.goals)
            return None if knee is None else self.trials[knee.trial]
        values = [(trial, self.value(trial)) for trial in among]
        scored = [(self.objective.loss(v), t.id, t) for t, v in values if v is not None]
        return min(scored, key=lambda item: item[:2])[2] if scored else None

    def active_seconds(self, now: float | None = None) -> float:
        """Return the wall time of all sessions; `now` (since 1970) extends the open one."""
        return self._clock.active(now)

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

    def confirm_frame(self) -> pd.DataFrame:
        """Return one row per repetition: run, trial, seed, state, epochs, value, seconds."""
        import pandas as pd  # pyright: ignore[reportMissingTypeStubs]

        rows = [
            {"run": run.id, "trial": run.trial, "seed": run.seed, "state": run.state,
             "epochs": run.last_epoch, "value": self.value(run), "seconds": run.seconds}
            for run in self.confirmations
        ]  # fmt: skip
        return pd.DataFrame(rows)

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

    def sweep_frame(self) -> pd.DataFrame:
        """Return one row per setting of every complete trial: trial, field, setting, metrics."""
        import pandas as pd  # pyright: ignore[reportMissingTypeStubs]

        rows = [
            {"trial": trial.id, "field": setting.field, "setting": setting.value, **metrics}
            for trial in self.trials
            for setting, metrics in trial.settings.items()
        ]
        return pd.DataFrame(rows)

    # --- the fold ---

    def _check(self, event: Mapping[str, Any]) -> None:
        kind: str = event["kind"]
        word, _, what = kind.rpartition("_")
        if not kind.startswith(("trial_", "confirm_", "epoch")):
            return
        runs, number = self._runs_of(event)
        record = runs[number] if number < len(runs) else None
        problem = ""
        if record is None:
            if what != "started":
                problem = "it has not started"
            elif number != len(runs):
                problem = f"the next {word} is {len(runs)}"
        elif record.state != "running":
            problem = f"it has ended ({record.state})"
        elif what == "epoch" and event["epoch"] != record.last_epoch + 1:
            problem = f"its next epoch is {record.last_epoch + 1}"
        elif what == "ended" and event["state"] not in ENDED:
            problem = f"a {word} ends as one of {', '.join(ENDED)}"
        if problem:
            facts = {k: event[k] for k in ("run", "trial", "epoch", "state") if k in event}
            raise StoreError(f"{self.directory}: event {kind} {facts} is impossible: {problem}")

    def _apply(self, event: Event) -> None:
        self.events.append(event)
        at = self._clock.add(event)
        match event["kind"]:
            case "trial_started":
                self._start(event, at)
                self.end_reason = None
            case "confirm_started":
                self._start(event, at)
            case "trial_placed" | "confirm_placed":
                self._run(event).node = event["node"]
            case "epoch" | "confirm_epoch":
                self._run(event).epochs.append(self._epoch(event))
            case "trial_ended" | "confirm_ended":
                run = self._run(event)
                run.state = event["state"]
                run.detail = event.get("detail", "")
                run.ended = at
                if event["kind"] == "trial_ended":
                    self._rank(run)
            case "trial_measured":
                plain, others = split_settings(event["metrics"])
                self._run(event).costs = {None: plain, **others}
            case "promotion_step":
                self.promotion[event["step"]] = event
            case "study_ended":
                self.end_reason = event.get("reason", "")
            case _:
                pass

    def _rank(self, ended: TrialRecord) -> None:
        """Bring the best trial and the front up to date."""
        if not self.goals.weighs:
            self._best = self.best([ended] if self._best is None else [self._best, ended])
            return
        self._front = front_of([*self._front, *self._points_of(ended)], self.goals)
        knee = self.knee()
        self._best = None if knee is None else self.trials[knee.trial]

    def _points_of(self, trial: TrialRecord) -> Iterator[Point]:
        if self.value(trial) is None:
            return
        for setting in [*trial.settings] or [None]:
            scores = trial.epochs[-1].metrics if setting is None else trial.settings[setting]
            values = {
                name: scores[name] if name in scores else trial.cost(name, setting)
                for name in self.goals.units
            }
            known = {n: v for n, v in values.items() if v is not None and math.isfinite(v)}
            if len(known) == len(values):
                yield Point(trial.id, setting, known)

    def _runs_of(self, event: Mapping[str, Any]) -> tuple[Sequence[TrialRecord], int]:
        """Return the runs that an event belongs to, and which one of them it is about."""
        if event["kind"].startswith("confirm_"):
            return self.confirmations, event["run"]
        return self.trials, event["trial"]

    def _run(self, event: Event) -> TrialRecord:
        runs, number = self._runs_of(event)
        return runs[number]

    def _epoch(self, event: Event) -> EpochRecord:
        metrics, settings = split_settings(event["metrics"])
        checkpoint = event.get("checkpoint")
        return EpochRecord(
            epoch=event["epoch"],
            metrics=metrics,
            seconds=metrics.get("seconds", 0.0),
            checkpoint=self.absolute(checkpoint) if checkpoint else None,
            decision=event.get("decision", "continue"),
            rung=event.get("rung"),
            settings=settings,
        )

    def _start(self, event: Event, at: float) -> None:
        runs, number = self._runs_of(event)
        if number == len(runs):
            facts = (number, event["params"], event.get("seed", 0), at)
            if runs is self.trials:
                self.trials.append(TrialRecord(*facts))
            else:
                self.confirmations.append(ConfirmRecord(*facts, trial=event["trial"]))
            return
        run = runs[number]
        run.attempts += 1
        run.retries += event.get("cause") == "retried"
        run.moves += event.get("cause") == "moved"
        run.node = ""
        resumed_from = event.get("resumed_from_epoch", 0)
        run.epochs = [record for record in run.epochs if record.epoch <= resumed_from]

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
        old = check_lock(resolved, directory, directory / EVENTS_FILE)
        return _open_log(resolved, directory, owner, old)
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


def _open_log(resolved: ResolvedStudy, directory: Path, owner: int, old: StudySpec | None) -> Study:
    log = EventLog(directory / EVENTS_FILE)
    try:
        study = Study(directory, resolved, log, owner)
        if not study.events:
            identity: Event = {"name": study.name, "model": resolved.study.model}
            if resolved.prior:
                studies = Counter(trial.study for trial in resolved.prior)
                identity["warm_start"] = dict(studies)
            study.append({"kind": "study_created", "format_version": FORMAT_VERSION, **identity})
        session = {"pid": os.getpid(), "host": socket.gethostname()}
        facts = {"code_version": code_version(), "repaired_bytes": log.repaired_bytes}
        study.append({"kind": "session_started", **session, **facts})
        if old is not None:
            change = {"old": _limits(old), "new": _limits(resolved.study)}
            study.append({"kind": "budget_changed", **change})
    except BaseException:
        log.close()
        raise
    return study


def _limits(study: StudySpec) -> dict[str, Any]:
    return {**asdict(study.budget), "confirm": study.confirm}


class _Clock:
    """Adds up the wall time of all sessions, event by event; seconds since 1970."""

    def __init__(self) -> None:
        self._closed = 0.0
        self._started: float | None = None
        self._last = 0.0

    def add(self, event: Event) -> float:
        """Take the next event and return its time."""
        at = datetime.fromisoformat(event["time"]).timestamp()
        if event["kind"] == "session_started":
            self._closed = self.active(None)
            self._started = at
        self._last = at
        return at

    def active(self, now: float | None) -> float:
        """Return the wall time of all sessions, the open one up to `now` or the last event."""
        if self._started is None:
            return self._closed
        return self._closed + max(now or self._last, self._last) - self._started


def _utc(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
