"""The event log of a study: append-only JSON lines, the only truth about what happened.

One line is one event: an object with `kind` and `time` (UTC, ISO 8601) and the fields below.
The first event is `study_created` and carries `format_version`. A line is written by one
`write` and is durable (fsync) before `append` returns; one process writes, any number read.

    study_created     format_version, name, model; warm_start: trials taken of earlier studies
    session_started   pid, host, code_version, repaired_bytes: a driver opened the study
    budget_changed    old, new: the budget, or `confirm`, was enlarged on resume
    cluster_joined    address, nodes: id, host, cores and gpus of each
    trial_started     trial, params, seed, attempt, resumed_from_epoch,
                      cause (new, resumed, retried after a failure, moved from a dead node)
    trial_placed      trial, node: the node of a cluster that trains it now
    epoch             trial, epoch, metrics, checkpoint (relative to the study's directory when it
                      lies inside), decision (continue, stop, complete), rung; metrics named
                      <field>=<value>/<metric> are those of another setting of the trial
    trial_measured    trial, metrics, detail: what the structure of a trial costs on the device
    trial_ended       trial, state (complete, stopped, diverged, out_of_memory, invalid_spec,
                      failed), detail
    confirm_started   run, trial (the one that is repeated), params, seed, attempt,
                      resumed_from_epoch, cause: after the search, on a further seed
    confirm_placed    run, node
    confirm_epoch     run, epoch, metrics, checkpoint, decision, rung
    confirm_ended     run, state, detail
    promotion_step    step, status, inputs_hash, artifacts, metrics, detail
    study_ended       reason

JSON here is strict. A NaN or an infinity is written as null, and the event's `nonfinite` list
says where it was and what it was; `read` puts it back.

A line torn by a kill or a full disk can only be the last one. Opening for writing cuts it off
and keeps its bytes in `<log>.torn`; a last line that only lacks its newline is completed.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from automl.errors import StoreError, UnreadableError

FORMAT_VERSION = 1  # of events.jsonl and study.lock.yaml
BUNDLE_FORMAT_VERSION = 1  # of bundle.json, which promote writes and report reads

Event = dict[str, Any]


class EventLog:
    """The log opened for writing.

    Attributes:
        path: the file.
        events: every event, in order; grows with `append`.
        repaired_bytes: length of the torn last line that opening removed, 0 when there was none.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the log, repairing a torn last line.

        Raises:
            UnreadableError: unreadable, damaged before its last line, or of a newer format.
        """
        self.path = path
        self.repaired_bytes = 0
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise write_error(path, error) from error
        try:
            self.events = self._repair()
        except BaseException:
            os.close(self._file)
            raise

    def append(self, event: Mapping[str, Any]) -> Event:
        """Write one event and return it as `read` would; it is on the disk when this returns.

        Raises:
            StoreError: the disk is full or failing; the log is as it was before the call.
        """
        stored: Event = {"kind": event["kind"], "time": _now(), **event}
        line = _encode(stored)
        size = os.fstat(self._file).st_size
        try:
            written = os.write(self._file, line)
            if written < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, size)
            raise write_error(self.path, error) from error
        self.events.append(cast("Event", _parse(line)))
        return self.events[-1]

    def close(self) -> None:
        """Release the file."""
        os.close(self._file)

    def _repair(self) -> list[Event]:
        data = self.path.read_bytes()
        events, good = _decode(self.path, data)
        torn = data[good:]
        try:
            if torn:
                self._keep_aside(torn)
                os.ftruncate(self._file, good)
                self.repaired_bytes = len(torn)
            if good and data[good - 1 : good] != b"\n":
                os.write(self._file, b"\n")
            os.fsync(self._file)
        except OSError as error:
            raise write_error(self.path, error) from error
        return events

    def _keep_aside(self, torn: bytes) -> None:
        with self.path.with_name(f"{self.path.name}.torn").open("ab") as aside:
            aside.write(torn + b"\n")
            aside.flush()
            os.fsync(aside.fileno())


def read(path: Path) -> list[Event]:
    """Read a log that may be written at this moment; a torn last line is left out.

    Raises:
        UnreadableError: unreadable, damaged before its last line, or of a newer format.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnreadableError(f"{path}: cannot be read: {error.strerror}") from error
    return _decode(path, data)[0]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _encode(event: Event) -> bytes:
    nonfinite: list[dict[str, Any]] = []
    plain = _strict(event, [], nonfinite)
    if nonfinite:
        plain["nonfinite"] = nonfinite
    return json.dumps(plain, allow_nan=False, ensure_ascii=False).encode() + b"\n"


def _strict(value: Any, at: list[str | int], nonfinite: list[dict[str, Any]]) -> Any:
    if isinstance(value, Mapping):
        items = cast("Mapping[str, Any]", value).items()
        return {key: _strict(item, [*at, key], nonfinite) for key, item in items}
    if isinstance(value, list | tuple):
        sequence = cast("list[Any]", value)
        return [_strict(item, [*at, index], nonfinite) for index, item in enumerate(sequence)]
    if isinstance(value, float) and not math.isfinite(value):
        nonfinite.append({"at": at, "was": str(value)})
        return None
    return str(value) if isinstance(value, Path) else value


def _decode(path: Path, data: bytes) -> tuple[list[Event], int]:
    """Return the events and the number of leading bytes that hold complete ones."""
    events: list[Event] = []
    good = 0
    lines = _split(data)
    for number, line in enumerate(lines, start=1):
        event = _parse(line)
        if event is None:
            if number < len(lines):
                raise UnreadableError(
                    f"{path}:{number}: this line is not an event, and it is not the last one:"
                    " the log was damaged from outside. Restore it from a copy, or delete the"
                    " study's directory to start again"
                )
            break
        events.append(event)
        good += len(line)
    _check_format(path, events)
    return events, good


def _split(data: bytes) -> list[bytes]:
    parts = data.split(b"\n")
    lines = [part + b"\n" for part in parts[:-1]]
    return [*lines, parts[-1]] if parts[-1] else lines


def _parse(line: bytes) -> Event | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    if not isinstance(event, dict) or "kind" not in event:
        return None
    return _restore(cast("Event", event))


def _restore(event: Event) -> Event:
    for entry in event.pop("nonfinite", []):
        *parents, last = entry["at"]
        holder: Any = event
        for key in parents:
            holder = holder[key]
        holder[last] = float(entry["was"])
    return event


def _check_format(path: Path, events: list[Event]) -> None:
    if not events:
        return
    version = events[0].get("format_version")
    if events[0]["kind"] != "study_created" or not isinstance(version, int):
        raise UnreadableError(
            f"{path}:1: the first event is not study_created with a format_version"
        )
    if version > FORMAT_VERSION:
        raise UnreadableError(
            f"{path}:1: format_version {version}, this program reads up to {FORMAT_VERSION}."
            " Use the newer release of depthtune that wrote this study"
        )


def write_error(path: Path, error: OSError) -> StoreError:
    """Return the error that says why a file of a study could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(
            f"{path}: the disk is full; what was about to be written here is missing, everything"
            " before it is kept. Free some space and run the same command again to resume"
        )
    return StoreError(f"{path}: cannot be written: {error.strerror or error}")
