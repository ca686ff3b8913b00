"""The training step: forward, loss, clipped update, validation at native size.

Lightning gives the loops, the device, autocast and loss scaling; the update itself is done here
(manual optimisation), because a step may be left out: a batch without valid pixels, or with a loss
or gradient that is not finite, changes nothing and is counted.

Source: training.md sections 1 to 4.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from stereo.data.loaders import Reads
from stereo.errors import DivergedError
from stereo.evaluation.sweep import StepScores, native_steps
from stereo.tasks import InputSizes
from stereo.train.optim import build_optimizer, learning_rate

if TYPE_CHECKING:
    from stereo.registry import ModelEntry
    from stereo.spec.experiment import ExperimentSpec

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """Where a run stands; saved in every checkpoint.

    Attributes:
        epoch: finished epochs.
        batch: batches of the current epoch that are part of a finished optimiser step.
        step: optimiser steps taken.
        loss_sum: sum of the finite batch losses of the current epoch.
        losses: their number.
        empty: batches of the current epoch without a valid pixel.
        nonfinite_run: non-finite steps since the last good one.
        nonfinite: non-finite steps of the whole run.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    losses: int = 0
    empty: int = 0
    nonfinite_run: int = 0
    nonfinite: int = 0

    def finish_epoch(self) -> None:
        """Count the epoch and start the sums of the next one."""
        self.epoch += 1
        self.batch = self.losses = self.empty = 0
        self.loss_sum = 0.0

    @property
    def train_loss(self) -> float:
        """Mean loss of the current epoch, NaN before its first finite batch."""
        return self.loss_sum / self.losses if self.losses else math.nan

    def state(self) -> dict[str, float]:
        """The attributes as plain numbers."""
        return asdict(self)


@dataclass
class StepFacts:
    """What the last optimiser step did, for the logs."""

    loss: float = math.nan
    grad_norm: float = math.nan


@dataclass
class _Accumulated:
    """Batches since the last optimiser step."""

    batches: int = 0
    losses: list[float] = field(default_factory=list)


class DepthModule(pl.LightningModule):
    """A network with the loss and metrics of its task, and an optimiser; the network is `model`.

    Attributes:
        sweeps: score every refinement step in the last validation; set it before training.
        validation: `val/<metric>` of the last validation.
        sweep: scores of its refinement steps, see `StepScores.sweep`.
        scored: the scores being collected.
    """

    def __init__(self, entry: ModelEntry, spec: ExperimentSpec, network: nn.Module) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.task = entry.task
        self.spec = spec
        self.model = network
        self.progress = Progress()
        self.last = StepFacts()
        self.total_steps = 1  # set before training; the schedules need it
        self.sweeps = False
        self.scored = StepScores(self.task, spec)
        self._sizes = InputSizes(entry.stride)
        self._groups = self.task.parameter_groups(network, spec)
        self.validation: dict[str, float] = {}
        self.sweep: dict[str, float] = {}
        self.reads = Reads()  # of the training pairs of the current epoch
        self._validation_reads = Reads()
        self._first_bad = ""
        self._accumulated = _Accumulated()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW or SGD of `train.optim`."""
        return build_optimizer(self._groups, self.spec.train.optim)

    def learning_rates(self, step: int) -> list[float]:
        """Rates of an optimiser step, 0-based, by group of parameters."""
        optim = self.spec.train.optim
        return [
            learning_rate(optim, group.ratio * optim.lr, step, self.total_steps)
            for group in self._groups
        ]

    @property
    def last_rates(self) -> list[float]:
        """Rates of the last step taken, by group of parameters; the first is `lr`."""
        return self.learning_rates(max(self.progress.step - 1, 0))

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Add one batch to the current optimiser step and take the step when it is complete."""
        if not batch:  # seen before an interruption in the middle of this epoch
            return
        self.reads.add(batch["from_cache"])
        if bool(batch["valid"].any()):
            self._backward(batch)
        else:
            self.progress.empty += 1
            log.warning("no valid pixel in batch %d: %s", batch_idx, _names(batch))
        self._accumulated.batches += 1
        is_last = batch_idx + 1 == self.trainer.num_training_batches
        if self._accumulated.batches == self.spec.train.accumulate_grad_batches or is_last:
            self._finish_step(batch, batch_idx)

    def _backward(self, batch: Mapping[str, Any]) -> None:
        loss = self.task.loss(self.model, batch, self.spec)
        value = float(loss.detach())
        self._accumulated.losses.append(value)
        if math.isfinite(value):
            self.manual_backward(loss / self.spec.train.accumulate_grad_batches)

    def _finish_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        progress, losses = self.progress, self._accumulated.losses
        self._accumulated = _Accumulated()
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        if losses and not (all(map(math.isfinite, losses)) and self._update(optimizer)):
            self._count_nonfinite(batch)
        elif losses:
            progress.nonfinite_run = 0
            progress.loss_sum += sum(losses)
            progress.losses += len(losses)
            progress.step += 1
            self.last.loss = sum(losses) / len(losses)
        optimizer.zero_grad(set_to_none=True)
        progress.batch = batch_idx + 1

    def _update(self, optimizer: torch.optim.Optimizer) -> bool:
        """Clip and step; False when the gradient is not finite (fp16 overflow is the scaler's)."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            scaler.unscale_(optimizer)
        norm = self._clip()
        if scaler is None and not math.isfinite(norm):
            return False
        self.last.grad_norm = norm
        rates = self.learning_rates(self.progress.step)
        for group, lr in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = lr
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        return True

    def _clip(self) -> float:
        """Clip the gradients as the spec says; returns their global L2 norm before clipping."""
        train = self.spec.train
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if train.clip_grad_norm > 0 and train.clip_grad_algorithm == "norm":
            nn.utils.clip_grads_with_norm_(parameters, train.clip_grad_norm, norm)
        elif train.clip_grad_norm > 0:
            nn.utils.clip_grad_value_(parameters, train.clip_grad_norm)
        return float(norm)

    def _count_nonfinite(self, batch: Mapping[str, Any]) -> None:
        progress = self.progress
        progress.nonfinite += 1
        progress.nonfinite_run += 1
        if progress.nonfinite_run == 1:
            self._first_bad = _names(batch)
        log.warning(
            "loss or gradient is not finite after step %d (%d in a row): %s",
            progress.step,
            progress.nonfinite_run,
            _names(batch),
        )
        if progress.nonfinite_run > self.spec.train.max_nonfinite_steps:
            raise DivergedError(
                f"Training diverged: {progress.nonfinite_run} steps in a row without a finite loss"
                f" (train.max_nonfinite_steps {self.spec.train.max_nonfinite_steps}), in epoch"
                f" {progress.epoch + 1} after step {progress.step}; first bad sample:"
                f" {self._first_bad}. Lower train.optim.lr ({self.spec.train.optim.lr:g})"
            )

    def on_validation_epoch_start(self) -> None:
        """Forget the previous validation."""
        self.scored = StepScores(self.task, self.spec)

    def validation_step(self, batch: Mapping[str, Any], _batch_idx: int) -> None:
        """Score a batch at native size."""
        self._validation_reads.add(batch["from_cache"])
        if self.sweeps and self.progress.epoch + 1 == self.spec.train.num_epochs:
            predictions = native_steps(self.task, self.model, batch, self._sizes, self.spec)
        else:
            predictions = [self.task.at_native_size(self._predict, batch, self._sizes)]
        self.scored.add(predictions, batch)

    def _predict(self, *images: Tensor) -> Tensor:
        return self.task.predict(self.model, images, self.spec)

    def on_validation_epoch_end(self) -> None:
        """Turn the sums into `val/<metric>`."""
        self._validation_reads.log(f"validation {self.task.samples}")
        self.validation, self.sweep = self.scored.last(), self.scored.sweep()


def _names(batch: Mapping[str, Any]) -> str:
    return ", ".join(str(name) for name in batch["name"])
