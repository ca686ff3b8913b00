"""The recipe of one training run: seed, data, network, Lightning trainer, outcome.

Lightning runs the loops; what a checkpoint holds, when it is written and how a run continues is
ours (`callback.py`, `checkpoint.py`). Lightning is imported when a run starts, not before.

Source: training.md 4 and 5.
"""

from __future__ import annotations

import logging
import random
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from stereo.checkpoints import files, load
from stereo.errors import CheckpointError, NoResultError, SpecError, SpecProblem
from stereo.files import write_text
from stereo.registry import load_start, other_meanings
from stereo.train.optim import warn_about_unused
from stereo.train.vit_features import keep_vit_features

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from stereo.registry import ModelEntry
    from stereo.spec.experiment import ExperimentSpec
    from stereo.status import StatusLog
    from stereo.train.callback import RunCallback

log = logging.getLogger(__name__)

NOT_LOADED = "not_loaded.txt"  # tensors that a partial load left new, one per line
Report = Callable[[int, Mapping[str, float], Path | None], bool]
PRECISIONS: dict[str, Literal["32-true", "16-mixed", "bf16-mixed"]] = {
    "fp32": "32-true",
    "fp16": "16-mixed",
    "bf16": "bf16-mixed",
}


@dataclass(frozen=True)
class TrainOutcome:
    """How a run ended.

    Attributes:
        status: `ok` (all epochs), `stopped` (by the study), `diverged` (no usable result) or
            `out_of_memory`.
        metrics: of the last finished epoch: `val/<metric>`, `train_loss`, `lr`, `seconds`, ...
        best: the checkpoint with the best monitored metric; None inside a study.
        latest: the newest checkpoint.
        detail: one sentence for a person.
    """

    status: Literal["ok", "stopped", "diverged", "out_of_memory"]
    metrics: dict[str, float] = field(default_factory=dict)
    best: Path | None = None
    latest: Path | None = None
    detail: str = ""


def fit(
    spec: ExperimentSpec,
    entry: ModelEntry,
    directory: Path,
    *,
    report: Report | None = None,
    status: StatusLog,
) -> TrainOutcome:
    """Train the network of `spec` until all epochs are done or something ends it.

    A directory that holds a checkpoint is continued, unless a study calls: a study names the
    checkpoint in `train.resume_training_checkpoint_path`.

    Args:
        spec: the experiment.
        entry: builds the network.
        directory: of the train action.
        report: called after every validation with the number of finished epochs (from 1), the
            metrics and the checkpoint just written; True ends the run.
        status: receives the lines of the run; the verdict is the caller's.

    Raises:
        SpecError, DataError, CheckpointError: before the first step.
        KeyboardInterrupt: after SIGINT or SIGTERM (its argument); a plain run has saved its state.
    """
    _check_machine(spec)
    directory.mkdir(parents=True, exist_ok=True)
    start = _resume_point(spec, directory, in_study=report is not None)
    if start is not None and start.payload["loops"]["epoch"] >= spec.train.num_epochs:
        log.warning("%s has all %d epochs: nothing to do", start.path, spec.train.num_epochs)
        status.skipped(f"Nothing to do: {start.path.name} has all {spec.train.num_epochs} epochs.")
        return TrainOutcome(
            "ok", start.payload["metrics"], latest=start.path, detail="nothing to do"
        )
    try:
        return _run(spec, entry, directory, report, status, start)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return TrainOutcome("out_of_memory", detail=out_of_memory_detail(error))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch, CUDA or Python says that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text


def out_of_memory_detail(error: BaseException) -> str:
    """What a person should read when memory ran out."""
    reason = str(error) or type(error).__name__
    return f"{reason}. Use a smaller batch, crop or network"


@dataclass(frozen=True)
class _Start:
    """A checkpoint to continue from."""

    path: Path
    payload: dict[str, Any]


def _resume_point(spec: ExperimentSpec, directory: Path, *, in_study: bool) -> _Start | None:
    from stereo.train.checkpoint import resume_path

    path = resume_path(spec, directory, in_study=in_study)
    if path is None:
        return None
    path = path.resolve()
    payload = files.read(path)
    if not {"loops", "rng", "optimizer_states"} <= payload.keys():
        raise CheckpointError(
            f"{path}: holds weights but not the state of a training run, so it cannot be resumed."
            " Set train.pretrained_model_path to start from its weights"
        )
    log.warning("resuming from %s (epoch %s)", path, payload["epoch"])
    return _Start(path, payload)


def _run(
    spec: ExperimentSpec,
    entry: ModelEntry,
    directory: Path,
    report: Report | None,
    status: StatusLog,
    start: _Start | None,
) -> TrainOutcome:
    from stereo.data.loaders import DataModule
    from stereo.train.callback import (
        InterruptedTraining,
        RunCallback,
        TrainBatches,
        reset_peak_memory,
    )
    from stereo.train.module import DepthModule, Progress
    from stereo.train.records import Records
    from stereo.train.trackers import trackers

    reset_peak_memory()
    seed_everything(spec.train.seed)
    module = DepthModule(entry, spec, _network(spec, entry, start, directory))
    data = DataModule(spec, spec.train.seed)
    keep_vit_features(module.model, spec, data)
    loader, validation = data.train_dataloader(), data.val_dataloader()
    batches = 1 if spec.train.is_dry_run else len(loader)
    steps = -(-batches // spec.train.accumulate_grad_batches)
    module.sweeps = report is not None
    module.total_steps = spec.train.num_epochs * steps
    warn_about_unused(spec.train.optim, module.total_steps)
    if start is not None:
        module.progress = Progress(**start.payload["loops"])
    records = None
    if not spec.train.is_dry_run:
        records = Records(
            directory,
            status,
            entry.task,
            num_epochs=spec.train.num_epochs,
            batches=batches,
            log_every=min(spec.train.log_every_n_steps, steps),
            quiet=report is not None,
            trackers=trackers(spec, directory),
        )
    with _signals() as signals:
        callback = RunCallback(
            directory,
            records,
            report=report,
            monitored=_monitored(spec, has_validation=bool(validation)),
            resumed=start.payload if start is not None else None,
            signals=signals,
        )
        rng = start.payload["rng"] if start is not None else None
        train = TrainBatches(loader, module, data.set_epoch, rng)
        trainer = _trainer(spec, directory, callback)
        counter = trainer.fit_loop.epoch_progress.current  # Lightning's end and intervals follow it
        counter.processed = module.progress.epoch  # pyright: ignore[reportAttributeAccessIssue]
        status.started("Starting Training Loop.")
        try:
            with _quiet_lightning():
                trainer.fit(module, train, validation or None)
        except NoResultError as error:
            return _outcome("diverged", callback, str(error))
        except (InterruptedTraining, RuntimeError, SystemExit) as error:
            # A data worker that got the signal too ends the loop with a RuntimeError. Lightning
            # answers a SIGTERM at the end of an epoch, and a KeyboardInterrupt, with SystemExit.
            if signals:
                raise KeyboardInterrupt(signals[0]) from error
            if isinstance(error.__context__, KeyboardInterrupt):
                raise error.__context__ from None
            raise
        finally:
            if records is not None:
                records.close()
    status.running("Training loop complete.")
    if callback.stopped:
        return _outcome(
            "stopped", callback, f"stopped by the study after epoch {module.progress.epoch}"
        )
    detail = "dry run: one batch of training and validation" if spec.train.is_dry_run else ""
    return _outcome("ok", callback, detail)


def _monitored(spec: ExperimentSpec, *, has_validation: bool) -> str:
    """The number that the best checkpoint has the smallest value of."""
    name = spec.train.optim.monitor_name
    if name == "val_loss" and not has_validation:
        log.warning(
            "no dataset.val_dataset.data_sources: the best checkpoint is that of the smallest"
            " training loss"
        )
        name = "train_loss"
    return {"val_loss": "val/loss", "train_loss": "train_loss"}[name]


def _outcome(
    status: Literal["ok", "stopped", "diverged"], callback: RunCallback, detail: str
) -> TrainOutcome:
    return TrainOutcome(status, callback.metrics, callback.best_file, callback.latest, detail)


def _network(
    spec: ExperimentSpec, entry: ModelEntry, start: _Start | None, directory: Path
) -> torch.nn.Module:
    """The network with the weights it starts from; `NOT_LOADED` lists what those left new."""
    network = entry.build(spec)
    if spec.model.compile:
        network.compile()
    if start is not None:
        if problems := other_meanings(start.path, start.payload, entry, spec):
            raise SpecError(problems)
        load.load_into(network, start.path)
        return network
    for file, report in load_start(network, entry, spec).items():
        lines = report.lines()
        log.info("weights from %s, %d tensors not loaded", file, len(lines))
        if lines:
            log.warning("not loaded from %s:\n%s", file, "\n".join(lines))
            write_text(directory / NOT_LOADED, "".join(f"{line}\n" for line in lines))
    return network


def _trainer(spec: ExperimentSpec, directory: Path, callback: RunCallback) -> pl.Trainer:
    import pytorch_lightning as pl
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment

    train = spec.train
    on_gpu = torch.cuda.is_available()
    ask_for_determinism = "warn" if on_gpu and train.cudnn.deterministic else False
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    return pl.Trainer(
        accelerator="gpu" if on_gpu else "cpu",
        devices=train.gpu_ids if on_gpu else 1,
        precision=PRECISIONS[train.precision],
        max_epochs=1 if train.is_dry_run else train.num_epochs,
        limit_train_batches=1 if train.is_dry_run else None,
        limit_val_batches=1 if train.is_dry_run else None,
        check_val_every_n_epoch=1 if train.is_dry_run else train.validation_interval,
        num_sanity_val_steps=0,
        deterministic=train.deterministic or ask_for_determinism,
        benchmark=train.cudnn.benchmark,
        callbacks=[callback],
        default_root_dir=directory,
        plugins=[LightningEnvironment()],  # never talk to SLURM or torchrun on our own
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch; a negative seed leaves them alone."""
    if seed < 0:
        return
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  libraries may draw from the global generator
    torch.manual_seed(seed)


def _check_machine(spec: ExperimentSpec) -> None:
    problems: list[SpecProblem] = []
    if spec.train.num_gpus != 1:
        problem = f"got {spec.train.num_gpus}, this version trains on one device"
        problems.append(SpecProblem("", "train.num_gpus", problem, "Use 1"))
    if spec.train.precision == "fp16" and not torch.cuda.is_available():
        problem = "fp16 needs a GPU with CUDA, none is visible"
        problems.append(SpecProblem("", "train.precision", problem, "Use fp32"))
    if problems:
        raise SpecError(problems)


@contextmanager
def _signals() -> Iterator[list[signal.Signals]]:
    """Note SIGINT and SIGTERM instead of acting on them; a second one acts as before.

    Only the main thread can do so; in a worker thread the list stays empty.
    """
    received: list[signal.Signals] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _frame: object) -> None:
        received.append(signal.Signals(number))
        signal.signal(number, previous[signal.Signals(number)])

    for number in previous:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Hide Lightning's advice about loaders and hooks: both are as they are on purpose."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric)\.")
        yield
