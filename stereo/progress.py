"""Bars with the time left, on a terminal only; a pipe gets no carriage return.

Everything that takes more than two seconds shows one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SLOW_SECONDS = 2.0


def on_terminal() -> bool:
    """Whether stderr shows bars."""
    return Console(stderr=True).is_terminal


def progress_bar(wanted: bool = True) -> Progress:
    """A bar with the time left on a terminal; silent in a pipe."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not (wanted and console.is_terminal),
    )


@contextmanager
def bar_when_slow() -> Generator[Callable[[str, int, int | None], None]]:
    """A bar on a terminal once the work has taken two seconds; told (what, done, total or None)."""
    started = time.monotonic()
    bar: Progress | None = None
    with ExitStack() as stack:

        def show(what: str, done: int, total: int | None) -> None:
            nonlocal bar
            if bar is None:
                if time.monotonic() - started < SLOW_SECONDS or not on_terminal():
                    return
                bar = stack.enter_context(progress_bar())
                bar.add_task(what, total=total)
            if bar.tasks[0].description != what:
                bar.reset(bar.task_ids[0], description=what)
            bar.update(bar.task_ids[0], completed=done, total=total)

        yield show
