"""One action of a trainer in a process of its own.

The driver of a study stays light (it never loads a network library), a crash inside an action
is an outcome instead of the end of the driver, and memory is given back when the action ends.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from automl.contract import Status, find_trainable


@dataclass(frozen=True)
class Outcome:
    """How an action ended; the attributes of `automl.contract.ActionResult`."""

    status: str
    metrics: dict[str, float]
    artifacts: dict[str, Path]
    detail: str


def run_action(trainable: str, action: str, spec: Mapping[str, Any], results_dir: Path) -> Outcome:
    """Run `action` in a fresh process and wait for it.

    Args:
        trainable: name for `find_trainable`.
        action: verb, `check` or `pictures`.
        spec: complete spec of the action.
        results_dir: directory of this action.

    Returns:
        The trainer's own outcome, or `failed` when the process ended without one.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(
        target=_child, args=(sender, trainable, action, dict(spec), results_dir)
    )
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        return Outcome(Status.FAILED, {}, {}, _how_it_ended(action, process.exitcode))
    except BaseException:
        process.kill()
        raise
    finally:
        receiver.close()
        process.join()


def _child(
    sender: Connection, trainable: str, action: str, spec: dict[str, Any], results_dir: Path
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides what an interrupt means
    threading.Thread(target=_end_with_the_driver, daemon=True).start()
    result = find_trainable(trainable).run(action, spec, results_dir, None)
    sender.send(
        Outcome(str(result.status), dict(result.metrics), dict(result.artifacts), result.detail)
    )
    sender.close()


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
