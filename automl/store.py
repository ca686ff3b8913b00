"""One study on disk: `results/studies/<name>/` with its lock, its event log and its trials.

`events.jsonl` is the truth; a `Study` is the fold of its events. `study.lock.yaml` holds
everything that must not change between sessions; a difference on resume is an error that names
the key (a larger budget is allowed and recorded). `owner.json` names the driver that has the
study open and carries its lock: the lock belongs to the process, so a dead owner never blocks.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import psutil
import yaml

from automl.contract import Objective
from automl.errors import StoreError, StudyLockedError
from automl.events import FORMAT_VERSION, Event, EventLog, read
from automl.space import SearchSpace
from automl.study_spec import BudgetChoice, StudySpec, parse_yaml, study_from_dict

if TYPE_CHECKING:
    import pandas as pd  # pyright: ignore[reportMissingTypeStubs]

EVENTS_FILE = "events.jsonl"
LOCK_FILE = "study.lock.yaml"
OWNER_FILE = "owner.json"

ENDED = ("complete", "stopped", "diverged", "out_of_memory", "invalid_spec", "failed")


@dataclass(frozen=True)
class ResolvedStudy:
    """Everything about a study that is fixed when it is created.

    Attributes:
        study: the study file after profile and options.
        base_spec: the complete spec of trial 0.
        space: what is searched.
        objective: the metric that decides, as the trainer declares it.
        full_epochs: R, finished epochs of a complete trial.
        code_version: of this program.
    """

    study: StudySpec
    base_spec: Mapping[str, Any]
    space: SearchSpace
    objective: Objective
    full_epochs: int
    code_version: str = field(default_factory=lambda: code_version())

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `study.lock.yaml`."""
        return {
            "format_version": FORMAT_VERSION,
            "code_version": self.code_version,
            "seed": self.study.seed,
            "objective": asdict(self.objective),
            "full_epochs": self.full_epochs,
            "study": self.study.to_dict(),
            "space": self.space.to_dict(),
            "base_spec": _plain(self.base_spec),
        }


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
            os.ftruncate(self._owner, 0)
            _release(self._owner)
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
                self._trial(event).epochs.append(_epoch(event))
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
        owner = _take_ownership(directory)
    except OSError as error:
        raise StoreError(f"{directory}: cannot be written: {error.strerror or error}") from error
    try:
        old_budget = _check_lock(resolved, directory)
        return _open_log(resolved, directory, owner, old_budget)
    except BaseException:
        os.ftruncate(owner, 0)
        _release(owner)
        raise


def read_study(directory: Path) -> Study:
    """Read a study, running or not, without touching it.

    Raises:
        StoreError: there is no study, or it is damaged or newer.
    """
    resolved = read_lock(directory)
    if resolved is None or not (directory / EVENTS_FILE).is_file():
        raise StoreError(
            f"{directory}: holds no study ({LOCK_FILE} and {EVENTS_FILE} are expected)."
            " `automl list` shows the studies there are"
        )
    return Study(directory, resolved, None, None)


def read_lock(directory: Path) -> ResolvedStudy | None:
    """Return what a study was created with, or None where there is none.

    Raises:
        StoreError: unreadable or newer.
    """
    tree = _lock_tree(directory)
    if tree is None:
        return None
    try:
        return ResolvedStudy(
            study=study_from_dict(tree["study"], str(directory / LOCK_FILE)),
            base_spec=tree["base_spec"],
            space=SearchSpace.from_dict(tree["space"]),
            objective=Objective(**tree["objective"]),
            full_epochs=tree["full_epochs"],
            code_version=tree["code_version"],
        )
    except (KeyError, TypeError) as error:
        raise StoreError(f"{directory / LOCK_FILE}: is damaged: {error}") from error


def owner_of(directory: Path) -> dict[str, Any] | None:
    """Return pid, start time and host of the living driver of a study, else None.

    A driver on another host cannot be looked at; it counts as living until it closes the study.
    """
    try:
        owner = json.loads((directory / OWNER_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if owner["host"] == socket.gethostname():
        try:
            started = psutil.Process(owner["pid"]).create_time()
        except psutil.NoSuchProcess:
            return None
        if abs(started - owner["started"]) > 1:
            return None
    return cast("dict[str, Any]", owner)


def code_version() -> str:
    """Return the version of the installed distribution."""
    try:
        return version("depthtune")
    except PackageNotFoundError:
        return "not installed"


# --- ownership ----------------------------------------------------------------------------------

_held: set[int] = set()


def _forget_locks() -> None:
    """Close the descriptors a fork inherited: only the driver itself may hold the lock."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget_locks)


def _take_ownership(directory: Path) -> int:
    descriptor = os.open(directory / OWNER_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        owner = owner_of(directory) or {"pid": "unknown", "host": "unknown"}
        raise StudyLockedError(
            f"{directory}: the study is open in process {owner['pid']} on {owner['host']}."
            " Wait for it, stop it, or watch it with `automl status`"
        ) from error
    _held.add(descriptor)
    me = psutil.Process()
    facts = {"pid": me.pid, "started": me.create_time(), "host": socket.gethostname()}
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(facts).encode(), 0)
    except OSError:
        _release(descriptor)
        raise
    return descriptor


def _release(descriptor: int) -> None:
    _held.discard(descriptor)
    os.close(descriptor)


# --- lock file and log --------------------------------------------------------------------------


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
        facts = {"code_version": resolved.code_version, "repaired_bytes": log.repaired_bytes}
        study.append({"kind": "session_started", **session, **facts})
        if old_budget is not None:
            change = {"old": asdict(old_budget), "new": asdict(resolved.study.budget)}
            study.append({"kind": "budget_changed", **change})
    except BaseException:
        log.close()
        raise
    return study


def _lock_tree(directory: Path) -> dict[str, Any] | None:
    path = directory / LOCK_FILE
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: cannot be read: {error}") from error
    found = cast("dict[str, Any]", tree).get("format_version") if isinstance(tree, dict) else None
    if not isinstance(found, int):
        raise StoreError(f"{path}: is damaged: it has no format_version")
    if found > FORMAT_VERSION:
        raise StoreError(
            f"{path}: format_version {found}, this program reads up to {FORMAT_VERSION}."
            " Use the newer release of depthtune that wrote this study"
        )
    return cast("dict[str, Any]", tree)


def _check_lock(resolved: ResolvedStudy, directory: Path) -> BudgetChoice | None:
    """Write the lock of a new study, or compare; return the old budget when it was enlarged."""
    locked = read_lock(directory)
    if locked is None:
        if (directory / EVENTS_FILE).exists():
            raise StoreError(
                f"{directory}: has {EVENTS_FILE} but no {LOCK_FILE}, so what the study was created"
                " with is unknown. Restore the file, or use another --name"
            )
        _write_lock(resolved, directory)
        return None
    enlarged = _is_enlarged(locked.study.budget, resolved.study.budget)
    comparable = resolved
    if enlarged:
        comparable = replace(resolved, study=replace(resolved.study, budget=locked.study.budget))
    old, new = _flat(_yaml_form(locked)), _flat(_yaml_form(comparable))
    missing = object()
    changed = [key for key in old | new if old.get(key, missing) != new.get(key, missing)]
    if changed:
        lines = [
            f"  {key}: {old.get(key, '(absent)')} -> {new.get(key, '(absent)')}" for key in changed
        ]
        raise StudyLockedError(
            f"{directory / LOCK_FILE}: the study was created with other settings"
            " (key: then -> now):\n" + "\n".join(lines) + "\nUse the old settings to resume, or"
            " another --name for a new study. A budget may only be enlarged"
        )
    if not enlarged:
        return None
    _write_lock(resolved, directory)
    return locked.study.budget


def _is_enlarged(old: BudgetChoice, new: BudgetChoice) -> bool:
    before, after = asdict(old), asdict(new)
    if before == after or before["target"] != after["target"]:
        return False
    limits = {key: math.inf if limit is None else limit for key, limit in after.items()}
    return all(
        limits[key] >= (math.inf if limit is None else limit)
        for key, limit in before.items()
        if key != "target"
    )


def _write_lock(resolved: ResolvedStudy, directory: Path) -> None:
    path = directory / LOCK_FILE
    temporary = path.with_suffix(".tmp")
    text = yaml.safe_dump(resolved.to_dict(), sort_keys=False, allow_unicode=True)
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(f"{path}: cannot be written: {error.strerror or error}") from error


def _yaml_form(resolved: ResolvedStudy) -> dict[str, Any]:
    return parse_yaml(yaml.safe_dump(resolved.to_dict(), sort_keys=False))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(cast("Mapping[str, Any]", value), f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast("list[Any]", value)]
    return str(value) if isinstance(value, Path) else value


def _epoch(event: Event) -> EpochRecord:
    metrics: dict[str, float] = dict(event["metrics"])
    checkpoint = event.get("checkpoint")
    return EpochRecord(
        epoch=event["epoch"],
        metrics=metrics,
        seconds=metrics.get("seconds", 0.0),
        checkpoint=Path(checkpoint) if checkpoint else None,
        decision=event.get("decision", "continue"),
        rung=event.get("rung"),
    )


def _seconds(event: Event) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


def _utc(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
