"""What happens between the steps: checkpoints, records, reports, interruption, divergence.

Order at the end of an epoch: validation, checkpoint, records, report. A study is asked only after
the checkpoint is on disk; an older one is deleted only after the report of its successor has
returned, so that the last epoch the study has logged can always be resumed.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch

from stereo import files
from stereo.errors import DivergedError, NoResultError
from stereo.evaluation.pictures import write_batch
from stereo.train import checkpoint
from stereo.train.module import DepthModule
from stereo.train.records import Records

if TYPE_CHECKING:
    from collections.abc import Iterable, Sized
    from signal import Signals
    from typing import Protocol

    from stereo.spec.train import TrainSpec

    class Loader(Iterable[dict[str, Any]], Sized, Protocol):
        """A data loader."""


log = logging.getLogger(__name__)

TURN_VARIABLE = "DEPTHTUNE_CHECKPOINT_TURN"  # set by a study: the file to lock (docs/trainable.md)

Report = Callable[[int, Mapping[str, float], Path | None], bool]


class InterruptedTraining(Exception):
    """A signal asked to stop; raised between two steps."""


class TrainBatches:
    """The batches of every epoch; the first epoch after a resume leaves out the ones seen before.

    Their places hold empty mappings, so that the length of an epoch stays what it is.
    """

    def __init__(
        self,
        loader: Loader,
        module: DepthModule,
        set_epoch: Callable[[int], None],
        rng: Mapping[str, Any] | None,
    ) -> None:
        self._loader = loader
        self._module = module
        self._set_epoch = set_epoch
        self._rng = rng

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        progress = self._module.progress
        seen = progress.batch
        self._set_epoch(progress.epoch)
        if seen == 0:
            self._restore_rng()  # before the loader draws the seed of its workers
        batches = iter(self._loader)
        for _ in islice(batches, seen):
            pass
        if seen:
            self._restore_rng()
        for _ in range(seen):
            yield {}
        yield from batches

    def _restore_rng(self) -> None:
        if self._rng is not None:
            checkpoint.restore_rng(self._rng)
            self._rng = None


class RunCallback(pl.Callback):
    """Saves, records and reports one run.

    Args:
        directory: of the train action.
        records: where numbers are written; None in a dry run, which leaves nothing behind.
        report: the study; None in a plain run.
        monitored: the number whose smallest value makes the best checkpoint.
        resumed: the checkpoint the run continues from.
        signals: the signal received so far, if any.
    """

    def __init__(
        self,
        directory: Path,
        records: Records | None,
        *,
        report: Report | None,
        monitored: str,
        resumed: Mapping[str, Any] | None,
        signals: list[Signals],
    ) -> None:
        self.directory = directory
        self.records = records
        self.report = report
        self.monitored = monitored
        self.signals = signals
        self.stopped = False
        self.latest: Path | None = None
        self.metrics: dict[str, float] = {}
        self.best: dict[str, Any] = {}
        self._resumed = resumed
        self._saved: tuple[int, int] = (-1, -1)
        self._spare: Path | None = None  # a best checkpoint that no interval asked for
        self._rng: dict[str, Any] | None = None
        self._epoch_started = time.monotonic()
        self._epoch_step = 0

    @property
    def best_file(self) -> Path | None:
        """The best checkpoint, where one is kept."""
        path = self.directory / self.best["file"] if self.best and self.report is None else None
        return path if path is not None and path.exists() else None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the optimiser of a resumed run."""
        module = _depth(pl_module)
        if self._resumed is not None:
            checkpoint.restore_optimizer(_optimizer(module), self._resumed)
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            if scaler is not None and self._resumed.get("scaler"):
                scaler.load_state_dict(self._resumed["scaler"])
            self.best = dict(self._resumed.get("best") or {})
            self.metrics = dict(self._resumed.get("metrics") or {})
            self._resumed = None
            self._saved = (module.progress.step, module.progress.batch)
        if self.records is not None:
            self.records.start(module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock of the epoch."""
        self._epoch_started = time.monotonic()
        self._epoch_step = _depth(pl_module).progress.step

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Record and save the step; leave when a signal asked for it."""
        module = _depth(pl_module)
        progress, train = module.progress, module.spec.train
        if not batch or self.records is None:
            return
        self.records.batch(module)
        if progress.batch != batch_idx + 1:
            return  # gradients are still being accumulated
        if progress.batch == trainer.num_training_batches:
            self._rng = checkpoint.rng_state()  # validation draws from it and may be interrupted
        self.records.step(module)
        if train.dataloader_visualize and progress.step % train.vis_step_interval == 0:
            folder = self.directory / "visualizations"
            look = module.spec.dataset.train_dataset.augmentation
            write_batch(folder / f"step_{progress.step:06d}", batch, module.task, look)
        if (
            self.report is None
            and self._is_due(train, progress.step)
            and progress.step > max(self._saved[0], 0)
        ):
            self._save(trainer, module)
        if self.signals:
            raise InterruptedTraining

    @staticmethod
    def _is_due(train: TrainSpec, step: int) -> bool:
        """Whether a checkpoint belongs after this optimiser step."""
        by_unit = train.checkpoint_interval if train.checkpoint_interval_unit == "step" else None
        return any(
            every is not None and step % every == 0
            for every in (by_unit, train.checkpoint_interval_steps)
        )

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Leave when a signal asked for it."""
        if self.signals and self.records is not None:
            raise InterruptedTraining

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Judge the epoch, save it, write it down, ask the study."""
        module = _depth(pl_module)
        progress = module.progress
        module.reads.log(f"training {module.task.samples}")
        self._rng = None
        row = {"train_loss": progress.train_loss, **module.validation, "lr": module.last_rates[0]}
        validated, module.validation = bool(module.validation), {}
        problem = _verdict(module, row)
        progress.finish_epoch()
        row |= {
            "epoch": progress.epoch,
            "step": progress.step,
            "seconds": time.monotonic() - self._epoch_started,
            "peak_memory_mb": peak_memory_mb(),
        }
        if self.records is None:  # dry run
            self.metrics = row
            if problem:
                raise problem
            return
        with files.turn(self._turn()):
            if problem is None:
                self.metrics = row
                self._save_epoch(trainer, module, validated=validated)
            self.records.epoch(row, steps=progress.step - self._epoch_step)
            if problem is not None:
                raise problem
            if self.report is not None and validated:
                self._ask(trainer, progress.epoch, row | module.sweep)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Keep the state of an interrupted plain run, unless it diverged or the disk is full."""
        module = _depth(pl_module)
        here = (module.progress.step, module.progress.batch)
        if self.report is not None or self.records is None or here == self._saved:
            return
        if not isinstance(exception, NoResultError | OSError) and module.progress.step > 0:
            self._save(trainer, module)

    def _turn(self) -> Path | None:
        """Trials of one study replace their checkpoints in turn, so that the disk holds fewer."""
        named = os.environ.get(TURN_VARIABLE)
        return Path(named) if named and self.report is not None else None

    def _save_epoch(self, trainer: pl.Trainer, module: DepthModule, *, validated: bool) -> None:
        train, epoch = module.spec.train, module.progress.epoch
        if self.report is not None:
            if validated:
                self._save(trainer, module)
            return
        is_due = (
            train.checkpoint_interval_unit == "epoch" and epoch % train.checkpoint_interval == 0
        )
        is_due = is_due or epoch == train.num_epochs
        value = self.metrics.get(self.monitored)
        is_best = value is not None and value < self.best.get("value", math.inf)
        if is_best:
            spare = checkpoint.file_name(epoch - 1, module.progress.step)
            self.best = {"value": value, "file": spare}
        if is_due or is_best:
            path = self._save(trainer, module)
            if is_best:
                checkpoint.point(self.directory, checkpoint.BEST, path)
                if self._spare is not None:
                    self._spare.unlink(missing_ok=True)
                self._spare = None if is_due else path

    def _save(self, trainer: pl.Trainer, module: DepthModule) -> Path:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        is_last = module.progress.epoch >= module.spec.train.num_epochs
        path = checkpoint.save(
            self.directory,
            module,
            None if is_last and self.report is not None else _optimizer(module),
            metrics=self.metrics,
            best=self.best,
            rng=self._rng,
            scaler=scaler.state_dict() if scaler is not None else None,
        )
        self._saved = (module.progress.step, module.progress.batch)
        self.latest = path
        checkpoint.point(self.directory, checkpoint.LATEST, path)
        return path

    def _ask(self, trainer: pl.Trainer, epoch: int, row: Mapping[str, float]) -> None:
        assert self.report is not None
        assert self.latest is not None
        numbers = {name: value for name, value in row.items() if name not in ("epoch", "step")}
        self.stopped = self.report(epoch, numbers, self.latest)
        checkpoint.remove_others(self.directory, self.latest)
        if self.stopped:
            trainer.should_stop = True


def peak_memory_mb() -> float:
    """Largest memory of the run so far, MiB: of the GPU where one is used, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text("ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def reset_peak_memory() -> None:
    """Start a new measurement, without what an earlier run of this process left behind."""
    gc.collect()  # trainer and module refer to each other
    with suppress(OSError, AttributeError):  # glibc keeps what an ended thread has freed
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", "ascii")  # resets VmHWM (man 5 proc)


def _verdict(module: DepthModule, row: Mapping[str, float]) -> NoResultError | None:
    """Why the epoch that just ended has no usable result, None when it has one."""
    progress = module.progress
    number, task = progress.epoch + 1, module.task
    if not progress.losses and not progress.nonfinite_run:
        return NoResultError(
            f"Epoch {number} saw no valid pixel in {progress.empty} batches: no ground truth with"
            f" {task.usable_truth(module.spec)}. Likely the dataset class"
            " (dataset.train_dataset.data_sources.dataset_name) does not fit the depth encoding;"
            f" check {task.limit_keys} too"
        )
    if not progress.losses:
        return DivergedError(f"Training diverged: epoch {number} had no finite loss")
    if "val/loss" not in row:
        return None
    if not module.scored.images:
        if math.isfinite(row["val/loss"]):
            return DivergedError(
                f"Training collapsed: after epoch {number} the {task.quantity} of every validation"
                " image is the same everywhere, so it cannot be compared with the ground truth."
                f" Lower train.optim.lr ({module.spec.train.optim.lr:g}) or use another train.seed"
            )
        return NoResultError(
            f"The validation after epoch {number} saw no valid pixel: check"
            f" dataset.val_dataset.data_sources and {task.limit_keys}"
        )
    judged = ("val/loss", f"val/{task.headline[0]}")
    broken = [name for name in judged if not math.isfinite(row[name])]
    if broken:
        return DivergedError(
            f"Training diverged: {', '.join(broken)} is not finite after epoch {number}."
            f" Lower train.optim.lr ({module.spec.train.optim.lr:g})"
        )
    return None


def _depth(module: pl.LightningModule) -> DepthModule:
    assert isinstance(module, DepthModule)
    return module


def _optimizer(module: DepthModule) -> torch.optim.Optimizer:
    optimizer = module.optimizers(use_pl_optimizer=False)
    assert isinstance(optimizer, torch.optim.Optimizer)
    return optimizer
