"""The refinement sweep: what a network would score with fewer refinements, at no further pass.

A stereo network makes a disparity after every refinement on the way to its last. One forward pass
per pair therefore scores the network at 1..N refinements, N being the number that its spec
evaluates with (`model.valid_iters`), and accuracy against time of the exported graph is known
without training or evaluating again. Networks that do not refine have a single step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stereo.spec.experiment import ExperimentSpec
from stereo.tasks import InputSizes, Task

Scores = dict[str, float]  # `val/<metric>`


def native_steps(
    task: Task[Any],
    network: nn.Module,
    batch: Mapping[str, Any],
    sizes: InputSizes,
    spec: ExperimentSpec,
) -> list[Tensor]:
    """Predictions (B, H, W) at native size after 1, 2, ... refinements, from one forward pass.

    `sizes` has no tiles: the steps travel as one large batch.
    """

    def stacked(*images: Tensor) -> Tensor:
        return torch.cat(task.predict_steps(network, images, spec))

    return list(task.at_native_size(stacked, batch, sizes).split(len(batch[task.target])))


class StepScores:
    """Metrics and loss of the predictions after every step, batch by batch."""

    def __init__(self, task: Task[Any], spec: ExperimentSpec) -> None:
        """Collect for one network; the number of steps is that of the first batch."""
        self._task = task
        self._spec = spec
        self._steps: list[_Scored] = []

    def add(self, predictions: Sequence[Tensor], batch: Mapping[str, Any]) -> None:
        """Score a batch; one prediction (B, H, W) per step, the last is the network's own."""
        self._steps = self._steps or [_Scored(self._task, self._spec) for _ in predictions]
        for step, prediction in zip(self._steps, predictions, strict=True):
            step.add(prediction, batch)

    @property
    def images(self) -> int:
        """Images with a score of the last step."""
        return self._steps[-1].metrics.compute()["images"] if self._steps else 0

    def last(self) -> Scores:
        """The scores of the network as its spec says, `val/loss` first; NaN without a batch."""
        return (self._steps or [_Scored(self._task, self._spec)])[-1].result()

    def sweep(self) -> Scores:
        """The scores of all steps, `<field>=<steps>/val/<metric>`; empty where there is only one.

        The field is the one of the spec that says how many refinements there are.
        """
        if not self._task.steps or len(self._steps) < 2:
            return {}
        return {
            f"{self._task.steps}={number}/{name}": value
            for number, step in enumerate(self._steps, start=1)
            for name, value in step.result().items()
        }


class _Scored:
    """Scores of one step."""

    def __init__(self, task: Task[Any], spec: ExperimentSpec) -> None:
        self.metrics = task.metrics(spec)
        self._task = task
        self._spec = spec
        self._loss_sum = torch.zeros((), dtype=torch.float64)
        self._loss_terms = 0

    def add(self, prediction: Tensor, batch: Mapping[str, Any]) -> None:
        total, terms = self._task.validation_terms(prediction, batch, self._spec)
        self._loss_sum += total.cpu()
        self._loss_terms += terms
        truth, valid = batch[self._task.target][:, 0], batch["valid"][:, 0]
        self.metrics.update(prediction, truth, valid, batch["truth_pixels"])

    def result(self) -> Scores:
        loss = float(self._loss_sum) / self._loss_terms if self._loss_terms else math.nan
        scores = self.metrics.compute()[self.metrics.flat]
        return {"val/loss": loss} | {f"val/{name}": value for name, value in scores.items()}
