"""What a training run tells: metrics.csv, TensorBoard events, status.json lines, the terminal.

One row of `metrics.csv` per finished epoch; an empty cell is a value that is missing or not finite.
The terminal shows a bar with the time left, or one line per epoch where it is not a terminal;
inside a study it shows nothing, because the study does.

Source: training.md 6, interface.md 1.4.
"""

from __future__ import annotations

import csv
import logging
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stereo.status import StatusLog, duration

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from torch.utils.tensorboard import SummaryWriter

    from stereo.tasks import Task
    from stereo.train.module import DepthModule
    from stereo.train.trackers import Tracker

log = logging.getLogger(__name__)


class Records:
    """Writes the progress of one run.

    Args:
        directory: of the train action.
        status: its status log.
        task: which scores there are.
        num_epochs: epochs of the whole run.
        batches: batches per epoch.
        log_every: optimiser steps between scalars in TensorBoard.
        quiet: inside a study.
        trackers: get the scalars too.
    """

    def __init__(
        self,
        directory: Path,
        status: StatusLog,
        task: Task[Any],
        *,
        num_epochs: int,
        batches: int,
        log_every: int,
        quiet: bool,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self.table = directory / "metrics.csv"
        self.status = status
        self.columns = _columns(task)
        self.num_epochs = num_epochs
        self.batches = batches
        self.log_every = log_every
        self.quiet = quiet
        self._trackers = trackers
        self._task = task
        self._directory = directory
        self._writer: SummaryWriter | None = None
        self._bar: Bar | None = None
        self._seconds: list[float] = []

    def start(self, module: DepthModule) -> None:
        """Forget rows of epochs that are trained again; open the bar."""
        done = module.progress.epoch
        if self.table.exists():
            with self.table.open(newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if int(row["epoch"]) <= done]
            self._write_rows(rows, "w")
        if not self.quiet and sys.stderr.isatty():
            self._open_bar(module)

    def batch(self, module: DepthModule) -> None:
        """A batch is done."""
        if self._bar is not None:
            self._bar.update(
                self._bar.task_ids[0],
                advance=1,
                epoch=module.progress.epoch + 1,
                loss=f"{module.last.loss:.3f}",
            )

    def step(self, module: DepthModule) -> None:
        """An optimiser step is done."""
        step = module.progress.step
        if step % self.log_every == 0:
            last = module.last
            names = ["train/lr", *(f"train/lr{n}" for n in range(1, len(module.last_rates)))]
            rates = dict(zip(names, module.last_rates, strict=True))
            scalars = {"train_loss_step": last.loss, "train/grad_norm": last.grad_norm}
            self._scalars(scalars | rates, step)

    def epoch(self, row: Mapping[str, float], *, steps: int) -> None:
        """An epoch is done: `row` has the keys of `columns`, `steps` is the number taken in it."""
        epoch, step = int(row["epoch"]), int(row["step"])
        self._seconds.append(row["seconds"])
        left = (self.num_epochs - epoch) * sum(self._seconds) / len(self._seconds)
        self._status_lines(row, epoch, step, left, steps)
        self._write_rows([{name: _cell(row.get(name)) for name in self.columns}], "a")
        scalars = {name: value for name, value in row.items() if name.startswith("val/")}
        self._scalars({"train_loss_epoch": row["train_loss"], **scalars}, step)
        text = f"epoch {epoch}/{self.num_epochs}: train loss {row['train_loss']:.4g}"
        if "val/loss" in row:
            text += "".join(f", {self._score(f'val/{name}', row)}" for name in self._task.headline)
        text += f", {row['seconds']:.1f} s, {duration(left).partition('.')[0]} left"
        log.info("%s", text)
        if not self.quiet:
            self._say(text)

    def close(self) -> None:
        """Flush and close whatever is open."""
        for tracker in self._trackers:
            tracker.close()
        self._trackers = ()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _status_lines(
        self, row: Mapping[str, float], epoch: int, step: int, left: float, steps: int
    ) -> None:
        last_step = step + (self.num_epochs - epoch) * max(steps, 1)
        self.status.running(
            "Training loop in progress",
            epoch=epoch - 1,
            step=step,
            max_epoch=self.num_epochs - 1,
            max_step=last_step,
            time_per_epoch=duration(row["seconds"]),
            time_per_step=duration(row["seconds"] / max(steps, 1)),
            eta=duration(left),
        )
        place = {"epoch": epoch - 1, "step": step}
        self.status.running("Train metrics generated.", {"train_loss": row["train_loss"]}, **place)
        if "val/loss" in row:
            scores = {name: value for name, value in row.items() if name.startswith("val/")}
            scores["val_loss"] = row["val/loss"]
            self.status.running("Eval metrics generated.", scores, **place)

    def _write_rows(self, rows: list[dict[str, str]], mode: str) -> None:
        is_new = mode == "w" or not self.table.exists()
        with self.table.open(mode, newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            if is_new:
                writer.writeheader()
            writer.writerows(rows)

    def _scalars(self, values: Mapping[str, float], step: int) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._directory))
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        for name, value in finite.items():
            self._writer.add_scalar(name, value, step)
        for tracker in self._trackers:
            tracker.log(finite, step)

    def _open_bar(self, module: DepthModule) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}/" + str(self.num_epochs)),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} batches, loss {task.fields[loss]}"),
            TextColumn("time left"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=Console(stderr=True),
        )
        progress = module.progress
        self._bar.add_task(
            "train",
            total=self.num_epochs * self.batches,
            completed=progress.epoch * self.batches + progress.batch,
            epoch=progress.epoch + 1,
            loss="-",
        )
        self._bar.start()

    def _score(self, name: str, row: Mapping[str, float]) -> str:
        unit = self._task.declared[name]["unit"]
        if unit == "fraction":
            return f"{name} {100 * row[name]:.2f} %"
        return f"{name} {row[name]:.4g} {unit}".rstrip()

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, highlight=False)
        else:
            sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
            sys.stderr.flush()


def _columns(task: Task[Any]) -> tuple[str, ...]:
    scores = [name for name in task.declared if name != "val/loss"]
    before = ("epoch", "step", "lr", "train_loss", "val/loss")
    return (*before, *scores, "seconds", "peak_memory_mb")


def _cell(value: float | None) -> str:
    return f"{value:.10g}" if value is not None and math.isfinite(value) else ""
