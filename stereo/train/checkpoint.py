"""Training checkpoints: names, contents, the links `latest` and `best`, where to resume.

`dn_model_epoch_EEE_step_SSSSS.pth`: EEE is the 0-based epoch just finished (or interrupted), SSSSS
the optimiser steps taken. The learning rate needs no state: it is a function of the step.

Source: training.md 5.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stereo.checkpoints import files
from stereo.errors import CheckpointError
from stereo.spec.load import to_dict

if TYPE_CHECKING:
    from stereo.spec.experiment import ExperimentSpec
    from stereo.train.module import DepthModule

log = logging.getLogger(__name__)

LATEST = "dn_model_latest.pth"
BEST = "dn_model_best.pth"
PATTERN = "dn_model_epoch_*_step_*.pth"


def file_name(epoch: int, step: int) -> str:
    """Name of a checkpoint: 0-based epoch, optimiser steps taken."""
    return f"dn_model_epoch_{epoch:03d}_step_{step:05d}.pth"


def save(
    directory: Path,
    module: DepthModule,
    optimizer: torch.optim.Optimizer | None,
    *,
    metrics: Mapping[str, float],
    best: Mapping[str, Any],
    rng: Mapping[str, Any] | None = None,
    scaler: Mapping[str, Any] | None = None,
) -> Path:
    """Write the state of a run; the links stay as they are.

    Args:
        directory: of the train action.
        module: network and progress.
        optimizer: its moments are saved; None for a run that nothing will continue.
        metrics: of the last finished epoch.
        best: monitored value and file name of the best checkpoint so far.
        rng: generator states to store; default: the present ones.
        scaler: state of the fp16 loss scaler.
    """
    progress = module.progress
    in_epoch = progress.batch > 0
    epoch = progress.epoch if in_epoch else max(progress.epoch - 1, 0)
    path = directory / file_name(epoch, progress.step)
    payload = {
        "state_dict": module.state_dict(),
        "optimizer_states": [] if optimizer is None else [optimizer.state_dict()],
        "lr_schedulers": [],
        "epoch": epoch,
        "global_step": progress.step,
        "loops": progress.state(),
        "rng": rng if rng is not None else rng_state(),
        "scaler": dict(scaler or {}),
        "spec": to_dict(module.spec),
        "metrics": dict(metrics),
        "best": dict(best),
    }
    files.write(path, payload)
    return path


def restore_optimizer(optimizer: torch.optim.Optimizer, payload: Mapping[str, Any]) -> None:
    """Take the moments from a checkpoint; rates and decay stay those of the present spec.

    Raises:
        CheckpointError: there is no state, or it is that of another network.
    """
    if not payload["optimizer_states"]:
        raise CheckpointError(
            "the checkpoint to resume is the last one of a study's trial and holds weights only:"
            " use train.pretrained_model_path to start from them"
        )
    groups = optimizer.state_dict()["param_groups"]
    saved = payload["optimizer_states"][0]
    if [len(g["params"]) for g in groups] != [len(g["params"]) for g in saved["param_groups"]]:
        raise CheckpointError(
            "the checkpoint to resume was written with other trainable parameters than this spec's:"
            " keep the model section, or use train.pretrained_model_path"
        )
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})


def resume_path(spec: ExperimentSpec, directory: Path, *, in_study: bool) -> Path | None:
    """Checkpoint to continue from: the one the spec names, else the directory's latest.

    A study names it itself: what lies in the directory may be newer than the study's log.
    """
    if spec.train.resume_training_checkpoint_path:
        return Path(spec.train.resume_training_checkpoint_path)
    latest = directory / LATEST
    return latest if not in_study and latest.exists() else None


def point(directory: Path, name: str, target: Path) -> Path:
    """Let `name` mean `target` of the same directory: a link, or a copy where links are refused."""
    link = directory / name
    temporary = directory / f".{name}.{os.getpid()}"
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(target.name)
    except (NotImplementedError, PermissionError):
        shutil.copyfile(target, temporary)
    temporary.replace(link)
    return link


def remove_others(directory: Path, keep: Path) -> None:
    """Delete every checkpoint but `keep`."""
    for path in directory.glob(PATTERN):
        if path != keep:
            path.unlink()


def rng_state() -> dict[str, Any]:
    """States of the global generators as plain values and tensors."""
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002  the global one is meant
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": list(random.getstate()),
        "numpy": [kind, [int(key) for key in keys], *rest],
    }


def restore_rng(state: Mapping[str, Any]) -> None:
    """Put the global generators back to `rng_state()`."""
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([part.cpu() for part in state["cuda"]])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.asarray(keys, np.uint32), *rest))  # noqa: NPY002
