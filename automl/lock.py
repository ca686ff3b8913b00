"""What a study was created with, and who has it open.

`study.lock.yaml` holds everything that must not change between sessions; a difference on resume
is an error that names the key (a larger budget is allowed and recorded; the cluster and the
resources of a trial may change with every session, for they decide nothing). `owner.json` names the
driver that has the study open and carries its lock: the lock belongs to the process, so a dead
owner never blocks.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import psutil
import yaml

from automl.contract import Objective
from automl.errors import StudyLockedError, UnreadableError
from automl.events import FORMAT_VERSION, write_error
from automl.objectives import Constraint, Goals
from automl.space import SearchSpace
from automl.study_spec import StudySpec, parse_yaml, study_from_dict

LOCK_FILE = "study.lock.yaml"
OWNER_FILE = "owner.json"
PLACE = ("address", "resources")  # where trials run, not what they are


@dataclass(frozen=True)
class PriorTrial:
    """A trial of an earlier study, as this study's models are told it.

    Attributes:
        study: name of the earlier study.
        trial: its number there.
        params: the values of this study's parameters that it had.
        loss: forecast at its own full length; None: it failed.
        variance: of the loss.
    """

    study: str
    trial: int
    params: Mapping[str, Any]
    loss: float | None
    variance: float = 0.0


@dataclass(frozen=True)
class ResolvedStudy:
    """Everything about a study that is fixed when it is created.

    Attributes:
        study: the study file after profile and options.
        base_spec: the complete spec of trial 0.
        space: what is searched.
        goals: objectives and constraints, as the trainer declares their metrics.
        full_epochs: R, finished epochs of a complete trial.
        prior: what is taken from earlier studies (`warm_start`).
        code_version: of this program.
    """

    study: StudySpec
    base_spec: Mapping[str, Any]
    space: SearchSpace
    goals: Goals
    full_epochs: int
    prior: tuple[PriorTrial, ...] = ()
    code_version: str = field(default_factory=lambda: code_version())

    @property
    def objective(self) -> Objective:
        """The leading objective: trials are compared by it while they run."""
        return self.goals.leading

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `study.lock.yaml`."""
        return {
            "format_version": FORMAT_VERSION,
            "code_version": self.code_version,
            "seed": self.study.seed,
            "objective": self.objective.to_dict(),
            "other_objectives": [each.to_dict() for each in self.goals.others],
            "constraints": [asdict(each) for each in self.goals.constraints],
            "costs": list(self.goals.costs),
            "full_epochs": self.full_epochs,
            "study": self.study.to_dict(),
            "space": self.space.to_dict(),
            "base_spec": _plain(self.base_spec),
            "prior": [asdict(trial) for trial in self.prior],
        }


def read_lock(directory: Path) -> ResolvedStudy | None:
    """Return what a study was created with, or None where there is none.

    Raises:
        UnreadableError: damaged or newer.
    """
    tree = _lock_tree(directory)
    if tree is None:
        return None
    try:
        return ResolvedStudy(
            study=study_from_dict(tree["study"], str(directory / LOCK_FILE)),
            base_spec=tree["base_spec"],
            space=SearchSpace.from_dict(tree["space"]),
            goals=Goals(
                Objective(**tree["objective"]),
                tuple(Objective(**each) for each in tree.get("other_objectives", ())),
                tuple(Constraint(**each) for each in tree.get("constraints", ())),
                tuple(tree.get("costs", ())),
            ),
            full_epochs=tree["full_epochs"],
            prior=tuple(PriorTrial(**trial) for trial in tree.get("prior", [])),
            code_version=tree["code_version"],
        )
    except (KeyError, TypeError) as error:
        raise UnreadableError(f"{directory / LOCK_FILE}: is damaged: {error}") from error


def owner_of(directory: Path) -> dict[str, Any] | None:
    """Return pid, start time and host of the living driver of a study, else None.

    Of a driver on another host, or in a container that has gone, only the lock can be looked at.
    """
    path = directory / OWNER_FILE
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    here = owner["host"] == socket.gethostname()
    living = is_running(owner["pid"], owner["started"]) if here else _is_locked(path)
    return cast("dict[str, Any]", owner) if living else None


def is_running(pid: int, started: float) -> bool:
    """Whether a process of this host still is the one that started then (seconds since 1970)."""
    try:
        return abs(psutil.Process(pid).create_time() - started) <= 1
    except psutil.NoSuchProcess:
        return False


def _is_locked(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


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


def take_ownership(directory: Path) -> int:
    """Return the descriptor that holds a study's lock; the process must `release` it.

    Raises:
        StudyLockedError: a living driver holds it.
        OSError: `owner.json` cannot be written.
    """
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
        release(descriptor)
        raise
    return descriptor


def release(descriptor: int) -> None:
    """Give a study's lock up; `owner.json` is left empty."""
    os.ftruncate(descriptor, 0)
    _held.discard(descriptor)
    os.close(descriptor)


# --- lock file ----------------------------------------------------------------------------------


def _lock_tree(directory: Path) -> dict[str, Any] | None:
    path = directory / LOCK_FILE
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UnreadableError(f"{path}: cannot be read: {error}") from error
    found = cast("dict[str, Any]", tree).get("format_version") if isinstance(tree, dict) else None
    if not isinstance(found, int):
        raise UnreadableError(f"{path}: is damaged: it has no format_version")
    if found > FORMAT_VERSION:
        raise UnreadableError(
            f"{path}: format_version {found}, this program reads up to {FORMAT_VERSION}."
            " Use the newer release of depthtune that wrote this study"
        )
    return cast("dict[str, Any]", tree)


def check_lock(resolved: ResolvedStudy, directory: Path, events_file: Path) -> StudySpec | None:
    """Write the lock of a new study, or compare it; return the old study when it was enlarged.

    Raises:
        StudyLockedError: something but a larger budget or confirm differs; every key is named.
        StoreError: there are events without a lock, or the disk is full.
    """
    locked = read_lock(directory)
    if locked is None:
        if events_file.exists():
            raise UnreadableError(
                f"{directory}: has {events_file.name} but no {LOCK_FILE}, so what the study was"
                " created with is unknown. Restore the file, or use another --name"
            )
        _write_lock(resolved, directory)
        return None
    old_study = locked.study
    enlarged = _is_enlarged(old_study, resolved.study)
    may_change = (*PLACE, "budget", "confirm") if enlarged else PLACE
    as_before = {key: getattr(old_study, key) for key in may_change}
    comparable = replace(resolved, study=replace(resolved.study, **as_before))
    old, new = _flat(_yaml_form(locked)), _flat(_yaml_form(comparable))
    missing = object()
    changed = [key for key in old | new if old.get(key, missing) != new.get(key, missing)]
    changed = [key for key in changed if key != "prior"] or changed  # follows from warm_start
    if changed:
        lines = [
            f"  {key}: {old.get(key, '(absent)')} -> {new.get(key, '(absent)')}" for key in changed
        ]
        raise StudyLockedError(
            f"{directory / LOCK_FILE}: the study was created with other settings"
            " (key: then -> now):\n" + "\n".join(lines) + "\nUse the old settings to resume, or"
            " another --name for a new study. Budget and confirm may only be enlarged"
        )
    if resolved.study != old_study:
        _write_lock(resolved, directory)
    return old_study if enlarged else None


def _is_enlarged(old: StudySpec, new: StudySpec) -> bool:
    before, after = asdict(old.budget), asdict(new.budget)
    fixed = ("target", "cost_per_hour")
    if (before, old.confirm) == (after, new.confirm) or new.confirm < old.confirm:
        return False
    if any(before[key] != after[key] for key in fixed):
        return False
    limits = {key: math.inf if limit is None else limit for key, limit in after.items()}
    return all(
        limits[key] >= (math.inf if limit is None else limit)
        for key, limit in before.items()
        if key not in fixed
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
        raise write_error(path, error) from error


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
