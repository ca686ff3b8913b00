"""What a study is doing, for people: a live table on a terminal, plain lines in a pipe.

`show` follows a study in its own process, `status_text` and `watch` read it from any other. Times
in seconds. The time left is an estimate from finished epochs and the stopping rule; between two
events it counts down with the clock.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO, cast

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from automl.forecast import forecast
from automl.gain import gain, in_words
from automl.objectives import as_read, score
from automl.objectives import in_words as point_in_words
from automl.store import Study, TrialRecord, owner_of, read_study

ROWS = 14  # trials in the table: the running ones, the best, then the latest
REFRESH_PER_SECOND = 4
TEXT_WIDTH = 100
BAR_WIDTH = 24

OnEvent = Callable[[Mapping[str, Any]], None]


# --- how far, how long --------------------------------------------------------------------------


@dataclass(frozen=True)
class Progress:
    """How far a study is.

    Attributes:
        done: finished epochs of all trials, confirmation included.
        expected: epochs it will have had at its end, as far as known now; None: nothing bounds it.
        left: seconds to its end; None while nothing is known about it.
    """

    done: int
    expected: float | None
    left: float | None

    @property
    def fraction(self) -> float:
        """Share of the expected epochs that is done, 0 to 1."""
        return min(1.0, self.done / self.expected) if self.expected else 0.0


def progress(study: Study, now: float, seconds_per_epoch: float | None = None) -> Progress:
    """Return how far a study is at `now` (seconds since 1970).

    Args:
        study: running or ended.
        now: seconds since 1970.
        seconds_per_epoch: used before the study has a finished epoch of its own.
    """
    done = sum(run.last_epoch for run in [*study.trials, *study.confirmations])
    if study.state == "finished":
        return Progress(done, float(done), 0.0)
    ahead = forecast(study.resolved, study, now, seconds_per_epoch)
    return Progress(done, None if ahead.epochs is None else done + ahead.epochs, ahead.seconds)


class Countdown:
    """An estimate of the time left that falls with the clock and jumps only when it must."""

    def __init__(self) -> None:
        self._left: float | None = None
        self._at = 0.0

    def update(self, estimate: float | None, now: float) -> float | None:
        """Take a new estimate; a slightly longer one is noise and the countdown goes on."""
        shown = self.at(now)
        if estimate is not None and (shown is None or not shown <= estimate <= 1.3 * shown + 5):
            self._left, self._at = estimate, now
        return self.at(now)

    def at(self, now: float) -> float | None:
        """Return the seconds left at a moment."""
        return None if self._left is None else max(0.0, self._left - (now - self._at))


# --- while it runs ------------------------------------------------------------------------------


@contextmanager
def show(
    study: Study, stream: TextIO | None = None, seconds_per_epoch: float | None = None
) -> Generator[OnEvent]:
    """Yield the function that shows every event of a study in this process.

    Args:
        study: open in this process.
        stream: default: standard output; a terminal gets the table, anything else plain lines.
        seconds_per_epoch: what is known about it before the first epoch has finished.
    """
    stream = stream or cast(TextIO, sys.stdout)
    if not stream.isatty():
        yield _PlainLines(study, stream, seconds_per_epoch).event
        return
    view = _View(study, seconds_per_epoch)
    console = Console(file=stream)
    with Live(view, console=console, refresh_per_second=REFRESH_PER_SECOND, transient=True):
        yield view.event
    console.print(view)


class _View:
    """The live table; rich asks for it several times a second."""

    def __init__(self, study: Study, seconds_per_epoch: float | None) -> None:
        self._study = study
        self._seconds_per_epoch = seconds_per_epoch
        self._countdown = Countdown()
        self._estimated = 0.0
        self.event({})

    def event(self, event: Mapping[str, Any]) -> None:
        """Estimate again after an event, at most once a second while trials go on."""
        now = time.time()
        if event.get("kind") in ("trial_started", "epoch") and now < self._estimated + 1:
            return
        self._estimated = now
        self._progress = progress(self._study, now, self._seconds_per_epoch)
        self._countdown.update(self._progress.left, now)

    def __rich__(self) -> Group:
        return _picture(self._study, self._progress, self._countdown.at(time.time()))


class _PlainLines:
    """One line per event, for pipes and log files."""

    def __init__(self, study: Study, stream: TextIO, seconds_per_epoch: float | None) -> None:
        self._study = study
        self._stream = stream
        self._seconds_per_epoch = seconds_per_epoch
        self._best: int | None = None

    def event(self, event: Mapping[str, Any]) -> None:
        """Write what happened, if it is of interest."""
        line = event_line(self._study, event)
        if line is None:
            return
        if event["kind"] in ("trial_ended", "confirm_ended"):
            left = progress(self._study, time.time(), self._seconds_per_epoch)
            line += f"  [{left.fraction:.0%}, time left {clock(left.left)}]"
        self._stream.write(line + "\n")
        best = self._study.best()
        if best is not None and best.id != self._best:
            self._best = best.id
            self._stream.write(best_line(self._study) + "\n")
        self._stream.flush()


def event_line(study: Study, event: Mapping[str, Any]) -> str | None:
    """Return one event in words, None for events that say nothing to a user."""
    name = _name(study, event)
    match event["kind"]:
        case "trial_started" | "confirm_started":
            return f"{name} {_how_started(event)}"
        case "trial_placed" | "confirm_placed":
            return f"{name} on node {event['node'][:8]}"
        case "epoch" | "confirm_epoch":
            metric, full = study.objective.metric, study.resolved.full_epochs
            value, seconds = event["metrics"].get(metric), event["metrics"].get("seconds", 0.0)
            decided = {"stop": ", stopped here", "complete": ", complete"}
            words = decided.get(event["decision"], "")
            shown = score(study.objective, value)
            return f"{name} epoch {event['epoch']}/{full}: {metric} {shown}, {seconds:.1f} s{words}"
        case "trial_ended" | "confirm_ended":
            reason = f": {event['detail'].splitlines()[0]}" if event.get("detail") else ""
            return f"{name} {event['state']}{reason}"
        case "study_ended":
            return f"study ended: {event['reason']}"
        case _:
            return None


def _name(study: Study, event: Mapping[str, Any]) -> str:
    if "run" not in event:
        return f"trial {event.get('trial')}"
    number: int = event["run"]
    run = study.confirmations[number]
    return f"trial {run.trial} again, seed {run.seed},"


def best_line(study: Study) -> str:
    """Return the best trial so far beside the baseline, in words."""
    best, baseline = study.best(), study.baseline()
    if best is None and study.points():
        limits = ", ".join(map(str, study.goals.constraints))
        return f"best so far: no complete trial keeps {limits}"
    if best is None:
        return "best so far: no trial is complete yet"
    if (knee := study.knee()) is not None:
        return f"knee of {len(study.front())} points so far: {point_in_words(knee, study.goals)}"
    objective = study.objective
    base = study.value(baseline) if baseline is not None else None
    beside = f" (baseline {score(objective, base)})" if base is not None else ""
    shown = score(objective, study.value(best))
    return f"best so far: trial {best.id}, {objective.metric} {shown}{beside}"


def front_lines(study: Study) -> list[str]:
    """Return the front of a study with several objectives, a point per line; else nothing."""
    front, knee = study.front(), study.knee()
    if not study.goals.weighs:
        return []
    if not front:
        return [best_line(study)]
    lines = [f"  {point_in_words(each, study.goals)}" for each in front]
    marks = [" (knee)" if each == knee else "" for each in front]
    told = [f"{line}{mark}" for line, mark in zip(lines, marks, strict=True)]
    return [f"front of {len(front)} points, best {study.objective.metric} first:", *told]


def _how_started(event: Mapping[str, Any]) -> str:
    if event.get("cause", "new") == "new":
        values = ", ".join(
            f"{path.rpartition('.')[2]} {_number(value)}" for path, value in event["params"].items()
        )
        return f"started: {values}" if values else "started"
    again = f"{event['cause']} after epoch {event['resumed_from_epoch']}"
    return f"{again}: {event['detail'].splitlines()[0]}" if event.get("detail") else again


# --- from another process -----------------------------------------------------------------------


def status_text(study: Study) -> str:
    """Return the state of a study as plain text: how far, its trials, the best."""
    how_far, left = progress(study, _last_event(study)), seconds_left(study)
    text = io.StringIO()
    console = Console(file=text, width=TEXT_WIDTH, color_system=None)
    console.print(_picture(study, how_far, left))
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def seconds_left(study: Study) -> float | None:
    """Return the expected seconds to the end of a study, None while nothing is known about them."""
    last = _last_event(study)
    left = progress(study, last).left
    return None if left is None else max(0.0, left - (time.time() - last))  # the clock went on


def _last_event(study: Study) -> float:
    return datetime.fromisoformat(study.events[-1]["time"]).timestamp()


def watch(directory: Path, stream: TextIO | None = None) -> int:
    """Follow a study until no driver has it open; returns exit code 0."""
    stream = stream or cast(TextIO, sys.stdout)
    study = read_study(directory)
    if stream.isatty():
        _watch_table(directory, study, stream)
    else:
        _watch_lines(directory, study, stream)
    return 0


def _watch_table(directory: Path, study: Study, stream: TextIO) -> None:
    countdown = Countdown()
    with Live(console=Console(file=stream), auto_refresh=False) as live:
        while True:
            how_far, now = progress(study, time.time()), time.time()
            left = countdown.update(how_far.left, now)
            live.update(_picture(study, how_far, left), refresh=True)
            if study.state != "running":
                return
            time.sleep(1)
            study = read_study(directory)


def _watch_lines(directory: Path, study: Study, stream: TextIO) -> None:
    stream.write(status_text(study) + "\n")
    seen = len(study.events)
    while study.state == "running":
        time.sleep(1)
        study = read_study(directory)
        lines = [event_line(study, event) for event in study.events[seen:]]
        stream.write("".join(f"{line}\n" for line in lines if line is not None))
        stream.flush()
        seen = len(study.events)


# --- the picture --------------------------------------------------------------------------------


def _picture(study: Study, how_far: Progress, left: float | None) -> Group:
    objective = study.objective
    shown_unit = as_read(0.0, objective.unit)[1]
    unit = f", {shown_unit}" if shown_unit else ""
    head = f"study {study.name}: {objective.metric}, {objective.direction}{unit}"
    return Group(
        Text(f"{head}   {_state_words(study)}", style="bold"),
        _bar(study, how_far, left),
        _trial_table(study),
        *map(Text, front_lines(study) or [best_line(study)]),
        Text(_counts(study)),
        *map(Text, _confirmation(study)),
    )


def _bar(study: Study, how_far: Progress, left: float | None) -> Table:
    row = Table.grid(padding=(0, 1))
    expected = f" of about {how_far.expected:.0f}" if how_far.expected is not None else ""
    passed = clock(study.active_seconds(time.time() if study.state == "running" else None))
    row.add_row(
        ProgressBar(total=1.0, completed=how_far.fraction, width=BAR_WIDTH),
        Text(f"{how_far.fraction:.0%}"),
        Text(f"{how_far.done}{expected} epochs, {passed} passed, time left {clock(left)}"),
    )
    return row


def _trial_table(study: Study) -> Table:
    objective, full = study.objective, study.resolved.full_epochs
    table = Table(box=box.SIMPLE, pad_edge=False)
    title = f"{objective.metric} {as_read(0.0, objective.unit)[1]}".rstrip()
    for name in ("trial", "epoch", title, "seconds"):
        table.add_column(name, justify="right")
    table.add_column("state")
    best = study.best()
    for trial in _chosen(study, best):
        value = trial.value_at(trial.last_epoch, objective.metric)
        mark = " (best)" if best is not None and trial.id == best.id else ""
        table.add_row(
            str(trial.id),
            f"{trial.last_epoch}/{full}",
            _number(value if value is None else as_read(value, objective.unit)[0]),
            f"{trial.seconds:.0f}",
            f"{trial.state}{mark}",
        )
    return table


def _chosen(study: Study, best: TrialRecord | None) -> list[TrialRecord]:
    """Return the trials that fit the table, in their order."""
    ended = [trial for trial in study.trials if trial.state != "running" and trial is not best]
    first = study.running() + ([best] if best is not None else [])
    room = max(0, ROWS - len(first))
    return sorted(first + ended[len(ended) - min(room, len(ended)) :], key=lambda trial: trial.id)


def _counts(study: Study) -> str:
    states = [trial.state for trial in study.trials]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    limit = study.resolved.study.budget.trials
    of = f" of {limit}" if limit is not None else ""
    return f"{len(states)}{of} trials" + (f": {counts}" if counts else "")


def _confirmation(study: Study) -> list[str]:
    """How far the repetitions of baseline and winner are, and what they say at their end."""
    found, wanted = gain(study), study.resolved.study.confirm
    if found is not None:
        return [in_words(found, study.objective)]
    if not study.confirmations:
        return []
    ended = sum(run.state != "running" for run in study.confirmations)
    return [f"confirmation on {wanted} further seeds: {ended} of {2 * wanted} runs have ended"]


def _state_words(study: Study) -> str:
    if study.state == "finished":
        return f"finished: {study.end_reason}"
    if study.state == "interrupted":
        return "interrupted; the same command resumes it"
    owner = owner_of(study.directory)
    return f"running in process {owner['pid']} on {owner['host']}" if owner else "running"


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def clock(seconds: float | None) -> str:
    """Return seconds as `m:ss` or `h:mm:ss`, `?` when unknown."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
