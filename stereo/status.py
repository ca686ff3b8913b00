"""What every action writes about itself: status.json, experiment.yaml, provenance.json and its log.

`status.json` holds one strict JSON object per line, appended and flushed: `date` (m/d/yyyy), `time`
(h:m:s, local, no leading zeros), `status`, `verbosity`, `message`, our `timestamp` (UTC, ISO 8601),
and where they belong to that line `kpi`, `epoch`, `step`, `exit_code`, `artifacts`. A value that is
not finite is written as null and named under `nonfinite`. The first SUCCESS or FAILURE line of a
`StatusLog` is the verdict; later ones are not written.

Source: interface.md 1.3 and 1.4, training.md 6.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from stereo.errors import SpecError, SpecProblem
from stereo.files import Readable, sha256, write_json, write_text
from stereo.spec.rules import is_open

if TYPE_CHECKING:
    from stereo.spec.experiment import ExperimentSpec

Word = Literal["STARTED", "RUNNING", "SUCCESS", "FAILURE", "SKIPPED"]
ENGINE_FORMS = ("evaluate", "inference")  # with an engine they have directories of their own
VERSIONED = ("depthtune", "torch", "pytorch-lightning", "numpy", "onnx", "onnxruntime")
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def action_directory(spec: ExperimentSpec, action: str) -> Path:
    """Where an action writes: `<action>.results_dir` as it is, else `<results_dir>/<action>`.

    Args:
        spec: the experiment; `trt_evaluate` and `trt_inference` are where engines are judged.
        action: a verb.

    Raises:
        SpecError: neither key is set.
    """
    section = getattr(spec, action)
    if section.results_dir and not is_open(section.results_dir):
        return Path(section.results_dir)
    if not spec.results_dir or is_open(spec.results_dir):
        problem = f"not set, and {action}.results_dir is not set either"
        raise SpecError([SpecProblem("", "results_dir", problem, "Set one of the two")])
    form = f"trt_{action}" if action in ENGINE_FORMS and section.trt_engine else action
    return Path(spec.results_dir) / form


class StatusLog:
    """Appends the lines of one run of an action to `<directory>/status.json`."""

    def __init__(
        self,
        directory: Path,
        action: str = "train",
        *,
        clock: Callable[[], datetime] = lambda: datetime.now().astimezone(),
    ) -> None:
        self.path = directory / "status.json"
        self.action = action
        self.verdict: Word | None = None
        self._clock = clock
        directory.mkdir(parents=True, exist_ok=True)

    def started(self, message: str | None = None) -> None:
        """The action, or a named part of it, begins."""
        self._write("STARTED", message or f"Starting Depth Net {self.action}.")

    def running(
        self, message: str, kpi: Mapping[str, float] | None = None, **fields: int | str
    ) -> None:
        """Progress: `kpi` values belong to this line only; `fields` such as `epoch` and `step`."""
        self._write("RUNNING", message, kpi, **fields)

    def success(
        self,
        message: str | None = None,
        artifacts: Sequence[Path] = (),
        kpi: Mapping[str, float] | None = None,
    ) -> None:
        """The verdict of a run whose artifacts are there."""
        message = message or f"{self.action.capitalize()} finished successfully."
        self._verdict("SUCCESS", message, artifacts, 0, kpi)

    def failure(self, message: str, exit_code: int = 1, artifacts: Sequence[Path] = ()) -> None:
        """The verdict of a run without a usable result."""
        self._verdict("FAILURE", message, artifacts, exit_code)

    def skipped(self, message: str) -> None:
        """There was nothing to do."""
        self._write("SKIPPED", message)

    def _verdict(
        self,
        word: Word,
        message: str,
        artifacts: Iterable[Path],
        exit_code: int,
        kpi: Mapping[str, float] | None = None,
    ) -> None:
        if self.verdict is not None:
            return
        self.verdict = word
        paths = [os.path.relpath(path, self.path.parent) for path in artifacts]
        self._write(word, message, kpi, exit_code=exit_code, artifacts=paths)

    def _write(
        self, word: Word, message: str, kpi: Mapping[str, float] | None = None, **fields: Any
    ) -> None:
        now = self._clock()
        line: dict[str, Any] = {
            "date": f"{now.month}/{now.day}/{now.year}",
            "time": f"{now.hour}:{now.minute}:{now.second}",
            "status": word,
            "verbosity": "ERROR" if word == "FAILURE" else "INFO",
            "message": message,
            "timestamp": now.astimezone(UTC).isoformat(),
            **fields,
        }
        if kpi:
            values = {name: float(value) for name, value in kpi.items()}
            line["kpi"] = {n: v if math.isfinite(v) else None for n, v in values.items()}
            if broken := [name for name, value in values.items() if not math.isfinite(value)]:
                line["nonfinite"] = broken
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")


def duration(seconds: float) -> str:
    """Seconds as `h:mm:ss.ffffff`."""
    hours, rest = divmod(timedelta(seconds=seconds), timedelta(hours=1))
    minutes, rest = divmod(rest, timedelta(minutes=1))
    return f"{hours}:{minutes:02d}:{rest.seconds:02d}.{rest.microseconds:06d}"


@contextmanager
def log_file(directory: Path, action: str, *, verbose: bool = False) -> Iterator[Path]:
    """Copy the package's log messages to `<directory>/<action>.log` while the action runs.

    Warnings also go to stderr: a logger with a handler of its own would keep them to its file.
    With `verbose`, everything goes there.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{action}.log"
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    logger = logging.getLogger("stereo")
    level = logger.level
    logger.setLevel(min(logger.getEffectiveLevel(), logging.INFO))
    console = logging.StreamHandler()
    console.setLevel(logging.INFO if verbose else logging.WARNING)
    handlers = [handler] if logger.hasHandlers() else [handler, console]
    for added in handlers:
        logger.addHandler(added)
    try:
        yield path
    finally:
        for added in handlers:
            logger.removeHandler(added)
        logger.setLevel(level)
        handler.close()


def write_experiment(directory: Path, spec: Mapping[str, Any]) -> Path:
    """Write the resolved spec (plain types, from `spec.load.to_dict`) as `experiment.yaml`."""
    text = yaml.safe_dump(dict(spec), sort_keys=False, allow_unicode=True)
    path = directory / "experiment.yaml"
    write_text(path, text)
    return path


def write_provenance(
    directory: Path,
    *,
    action: str,
    seed: int | None = None,
    command: Sequence[str] = tuple(sys.argv),
    inferred: Mapping[str, str] | None = None,
    inputs: Iterable[Readable] = (),
) -> Path:
    """Write `provenance.json`: what made the files of this directory.

    Args:
        directory: the action's directory.
        action: the verb.
        seed: seed of the run, None where it has none.
        command: the program and its arguments.
        inferred: key of the spec -> the file its value was taken from.
        inputs: annotation files, checkpoints, graphs; their SHA-256 is recorded.
    """
    record = {
        "action": action,
        "command": list(command),
        "seed": seed,
        "versions": {"python": platform.python_version(), **_versions()},
        "git": _git_commit(),
        "machine": {"system": platform.platform(), "cpus": os.cpu_count()},
        "inferred": dict(inferred or {}),
        "inputs": {str(path): sha256(path) for path in inputs},
        "started": datetime.now(UTC).isoformat(),
    }
    path = directory / "provenance.json"
    write_json(path, record)
    return path


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _git_commit() -> str | None:
    """Commit of the working copy this package runs from, None outside one."""
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return None
    return answer.stdout.strip() or None
