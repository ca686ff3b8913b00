"""Runners carry jobs of a `TrialDriver` to where they train: in this process, or by Ray Tune.

What they share: SIGINT and SIGTERM end a study between two events, never inside one, and the
study is closed the same way whoever ran it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from automl.trial import Driver


class TrainingInterruptedError(BaseException):
    """Leaves a trainer that runs in this process; no trainer catches it by accident."""


class Interruption:
    """SIGINT and SIGTERM as a flag, while it is entered in the main thread.

    Attributes:
        signal: the signal that arrived, else None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._leave_at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.getsignal(number)
        self.catch()
        return self

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def catch(self) -> None:
        """Install the handlers; once more after a library has installed its own."""
        if threading.current_thread() is threading.main_thread():
            for number in self._before:
                signal.signal(number, self._arrived)

    @contextmanager
    def leaves_training(self) -> Generator[None]:
        """Inside, a signal raises `TrainingInterruptedError` at once, which ends the block."""
        self._leave_at_once = True
        try:
            yield
        except TrainingInterruptedError:
            pass
        finally:
            self._leave_at_once = False

    @contextmanager
    def held_back(self) -> Generator[None]:
        """Inside, a signal only sets the flag; when it came, the exit leaves the training."""
        self._leave_at_once = False
        yield
        self._leave_at_once = True
        if self.signal is not None:
            raise TrainingInterruptedError

    def _arrived(self, number: int, _frame: FrameType | None) -> None:
        self.signal = number
        if self._leave_at_once:
            raise TrainingInterruptedError


def run_driver(driver: Driver) -> None:
    """Run the jobs of a driver in the runner that its study names, Ray or this process."""
    if driver.study.resolved.study.runner == "local":
        from automl.runners import local

        local.drive(driver)
    else:
        from automl.runners import ray_tune

        ray_tune.drive(driver)


def conclude(driver: Driver, interruption: Interruption) -> None:
    """Record why the study ended.

    Raises:
        AutoMLError: the study could not go on.
        KeyboardInterrupt: SIGINT arrived.
        SystemExit: SIGTERM arrived; its code is 143.
    """
    if driver.failure is not None:
        raise driver.failure
    if interruption.signal == signal.SIGINT:
        raise KeyboardInterrupt
    if interruption.signal is not None:
        raise SystemExit(128 + interruption.signal)
    driver.end_study()
