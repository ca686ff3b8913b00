"""Optimisers and the seven learning-rate schedules of `train.optim`.

A schedule is a function of the optimiser step alone: step t = 0, 1, ... is the one about to be
taken, T the total number of steps; beyond T it counts as T. Nothing has to be saved to resume one.

Source: training.md section 4; the curves are goldens in `tests/golden/schedules.json`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

import torch

from stereo.spec.train import OptimSpec
from stereo.tasks import ParameterGroup

log = logging.getLogger(__name__)

ONE_CYCLE_START = 25.0  # lr0 / 25 at step 0
ONE_CYCLE_END = 250_000.0  # lr0 / 250000 at step T - 1
ONE_CYCLE_RISE = 0.3  # share of T until lr0 is reached

Schedule = Callable[[OptimSpec, float, int, int], float]  # (spec, lr0, t, T) -> lr


def _multi_step(optim: OptimSpec, lr: float, step: int, _total: int) -> float:
    return lr * optim.lr_decay ** sum(milestone <= step for milestone in optim.lr_steps)


def _floored_multi_step(optim: OptimSpec, lr: float, step: int, total: int) -> float:
    return max(_multi_step(optim, lr, step, total), optim.min_lr)


def _step(optim: OptimSpec, lr: float, step: int, _total: int) -> float:
    return lr * optim.lr_decay ** (step // optim.lr_step_size)


def _linear(_optim: OptimSpec, lr: float, step: int, total: int) -> float:
    return lr * (1 - step / total)


def _cosine_annealing(optim: OptimSpec, lr: float, step: int, total: int) -> float:
    return _cosine_leg(lr, optim.min_lr, step / total)


def _one_cycle(_optim: OptimSpec, lr: float, step: int, total: int) -> float:
    if total < 4:  # the rising leg would be empty
        return lr
    peak, end = ONE_CYCLE_RISE * total - 1, total - 1
    if step <= peak:
        return _cosine_leg(lr / ONE_CYCLE_START, lr, step / peak)
    return _cosine_leg(lr, lr / ONE_CYCLE_END, min((step - peak) / (end - peak), 1.0))


def _cosine_leg(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


SCHEDULES: dict[str, Schedule] = {
    "MultiStepLR": _multi_step,
    "StepLR": _step,
    "CustomMultiStepLRScheduler": _floored_multi_step,
    "LambdaLR": _linear,
    "PolynomialLR": _linear,
    "CosineAnnealingLR": _cosine_annealing,
    "OneCycleLR": _one_cycle,
}


def learning_rate(optim: OptimSpec, lr: float, step: int, total_steps: int) -> float:
    """Learning rate of optimiser step `step` (0-based) for a group whose base rate is `lr`."""
    schedule = SCHEDULES[optim.lr_scheduler]
    warmup = effective_warmup(optim, total_steps)
    step = min(step, total_steps)
    if step < warmup:
        return lr * (step + 1) / warmup
    return schedule(optim, lr, step - warmup, total_steps - warmup)


def effective_warmup(optim: OptimSpec, total_steps: int) -> int:
    """Warm-up steps used: at most half of the run; none for OneCycleLR, which has its own."""
    if optim.lr_scheduler == "OneCycleLR":
        return 0
    return min(optim.warmup_steps, total_steps // 2)


def build_optimizer(
    parameters: Sequence[ParameterGroup], optim: OptimSpec
) -> torch.optim.Optimizer:
    """Optimiser over groups of parameters; the base rate of each is `ratio` times `optim.lr`."""
    groups = [{"params": group.parameters, "lr": group.ratio * optim.lr} for group in parameters]
    decay = optim.weight_decay
    if optim.optimizer == "SGD":
        return torch.optim.SGD(groups, momentum=optim.momentum, weight_decay=decay)
    # fused: a quarter of the time on a CPU, 45 ms of a 1 s step of FastFoundationStereo
    return torch.optim.AdamW(groups, weight_decay=decay, fused=True)


def warn_about_unused(optim: OptimSpec, total_steps: int) -> None:
    """Log the settings that were changed but are not read, and a warm-up that is cut."""
    default = OptimSpec()
    if optim.optimizer == "AdamW" and optim.momentum != default.momentum:
        log.warning("train.optim.momentum: AdamW does not read it; use optimizer SGD")
    if optim.lr_scheduler == "PolynomialLR" and optim.lr_decay != default.lr_decay:
        log.warning("train.optim.lr_decay: PolynomialLR does not read it; its power is 1")
    used = effective_warmup(optim, total_steps)
    if optim.lr_scheduler != "OneCycleLR" and used < optim.warmup_steps:
        log.warning(
            "train.optim.warmup_steps: %d of %d training steps is more than half; %d are used",
            optim.warmup_steps,
            total_steps,
            used,
        )
