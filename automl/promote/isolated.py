"""Actions of a trainer in a process of their own.

The driver of a study stays light (it never loads a network library), a crash inside an action
is an outcome instead of the end of the driver, and the memory is given back at the end. One
process serves several actions, because a trainer's libraries take seconds to load.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any

from automl.contract import Status, find_trainable


@dataclass(frozen=True)
class Outcome:
    """How an action ended; the attributes of `automl.contract.ActionResult`."""

    status: str
    metrics: dict[str, float]
    artifacts: dict[str, Path]
    detail: str


class ActionProcess:
    """A process that runs one action after another; started with the first, a context manager."""

    def __init__(self, trainable: str) -> None:
        """Nothing is started yet; `trainable` is a name for `find_trainable`."""
        self._trainable = trainable
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None

    def __enter__(self) -> ActionProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process is not None and error is not None:
            self._process.kill()  # interrupted in the middle of an action
        self._leave()

    def run(self, action: str, spec: Mapping[str, Any], results_dir: Path) -> Outcome:
        """Run an action and wait for it.

        Args:
            action: verb, `check` or `pictures`.
            spec: complete spec of the action.
            results_dir: directory of this action.

        Returns:
            The trainer's own outcome, or `failed` when the process ended without one.
        """
        pipe = self._pipe or self._start()
        try:
            pipe.send((action, dict(spec), results_dir))
            return pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            exit_code = self._leave()
            return Outcome(Status.FAILED, {}, {}, _how_it_ended(action, exit_code))

    def _start(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._trainable))
        self._process.start()
        theirs.close()
        return self._pipe

    def _leave(self) -> int | None:
        """Let the process end; returns its exit code."""
        if self._process is None or self._pipe is None:
            return None
        self._pipe.close()
        self._process.join()
        exit_code = self._process.exitcode
        self._process = self._pipe = None
        return exit_code


def run_action(trainable: str, action: str, spec: Mapping[str, Any], results_dir: Path) -> Outcome:
    """Run a single action in a process of its own; see `ActionProcess.run`."""
    with ActionProcess(trainable) as process:
        return process.run(action, spec, results_dir)


def _serve(pipe: Connection, name: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides what an interrupt means
    threading.Thread(target=_end_with_the_driver, daemon=True).start()
    trainable = find_trainable(name)
    while True:
        try:
            action, spec, results_dir = pipe.recv()
        except EOFError:
            return
        result = trainable.run(action, spec, results_dir, None)
        pipe.send(
            Outcome(str(result.status), dict(result.metrics), dict(result.artifacts), result.detail)
        )


def _end_with_the_driver() -> None:
    driver = multiprocessing.parent_process()
    if driver is not None:
        driver.join()
        os._exit(1)


def _how_it_ended(action: str, exit_code: int | None) -> str:
    if exit_code == -signal.SIGKILL:
        return f"the process of {action} was killed (signal 9); most often the memory ran out"
    if exit_code is not None and exit_code < 0:
        return f"the process of {action} was ended by signal {-exit_code}"
    return f"the process of {action} ended with exit code {exit_code} and no result; see above"
