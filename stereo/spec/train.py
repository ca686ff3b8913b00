"""Training (section `train`). Steps are optimiser steps, intervals are epochs unless said."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal

from stereo.spec.fields import Scale, same_field, spec_field, with_default

Scheduler = Literal[
    "MultiStepLR",
    "StepLR",
    "LambdaLR",
    "PolynomialLR",
    "OneCycleLR",
    "CosineAnnealingLR",
    "CustomMultiStepLRScheduler",
]


GRADIENT_WEIGHTS = {"ssi": 2.0, "trimmed": 0.5}  # of the relative losses, where the spec has null


@dataclass
class OptimSpec:
    """Optimiser and learning-rate schedule (`train.optim`)."""

    optimizer: Literal["AdamW", "SGD"] = spec_field("AdamW", "Optimiser", automl_enabled=None)
    monitor_name: Literal["val_loss", "train_loss"] = spec_field(
        "val_loss", "Quantity watched by schedulers and best-checkpoint selection"
    )
    lr: float = spec_field(
        1e-5,
        "Base learning rate",
        low=1e-9,
        high=1e4,
        math_cond="> 0.0",
        automl_enabled=True,
        search_range=(1e-6, 1e-2),
        scale=Scale.LOG,
    )
    momentum: float = spec_field(
        0.9,
        "SGD momentum (AdamW does not read it)",
        low=0.0,
        high=0.999,
        math_cond="> 0.0",
        automl_enabled=True,
        active_if={"optimizer": ("SGD",)},
        depends_on="optimizer",
    )
    weight_decay: float = spec_field(
        1e-4,
        "Weight decay",
        low=1e-9,
        high=1.0,
        zero_is_off=True,
        automl_enabled=True,
        search_range=(1e-6, 1e-2),
        scale=Scale.LOG,
    )
    lr_scheduler: Scheduler = spec_field(
        "MultiStepLR", "Learning-rate schedule", automl_enabled=None
    )
    lr_steps: list[int] = spec_field(
        [1000], "Milestones of MultiStepLR", unit="optimiser steps", item_low=1, automl_enabled=None
    )
    lr_step_size: int = spec_field(
        1000,
        "Period of StepLR",
        unit="optimiser steps",
        low=1,
        high=inf,
        math_cond="> 0",
        automl_enabled=True,
        search_range=(1, 10000),
        scale=Scale.LOG,
        active_if={"lr_scheduler": ("StepLR",)},
        depends_on="lr_scheduler",
    )
    lr_decay: float = spec_field(
        0.1,
        "Decay factor of MultiStepLR and StepLR",
        low=0.0,
        high=1.0,
        exclusive_low=True,
        math_cond="> 0.0",
        automl_enabled=True,
        search_range=(0.05, 1.0),
        active_if={"lr_scheduler": ("MultiStepLR", "StepLR", "CustomMultiStepLRScheduler")},
        depends_on="lr_scheduler",
    )
    min_lr: float = spec_field(
        1e-7,
        "Floor of CosineAnnealingLR",
        low=1e-12,
        high=1.0,
        zero_is_off=True,
        math_cond="< depends_on lr",
        automl_enabled=True,
        search_range=(1e-8, 1e-3),
        scale=Scale.LOG,
        active_if={"lr_scheduler": ("CosineAnnealingLR", "CustomMultiStepLRScheduler")},
        depends_on="lr_scheduler",
    )
    warmup_steps: int = spec_field(
        20,
        "Linear warm-up length",
        unit="optimiser steps",
        low=0,
        high=inf,
        automl_enabled=None,
    )


@dataclass
class MonoOptimSpec(OptimSpec):
    """Optimiser with one rate for the encoder, `lr`, and a multiple of it for the head."""

    lr: float = with_default(OptimSpec, "lr", 5e-6)
    lr_scheduler: Scheduler = with_default(OptimSpec, "lr_scheduler", "LambdaLR")
    head_lr_ratio: float = spec_field(
        10.0,
        "Learning rate of the head divided by that of the encoder",
        low=1.0,
        high=100.0,
        automl_enabled=True,
        scale=Scale.LOG,
    )


@dataclass
class CudnnSpec:
    """cuDNN switches (`train.cudnn`)."""

    benchmark: bool = spec_field(False, "cuDNN autotuning")
    deterministic: bool = spec_field(True, "Ask for deterministic kernels")


@dataclass
class MlflowSpec:
    """MLflow (`mlflow`)."""

    enable: bool = spec_field(False, "Turn the logger on")
    tracking_uri: str | None = spec_field(
        None, "Tracking store; null = a folder in the action directory"
    )
    experiment: str | None = spec_field(None, "Experiment name; null = model key")


@dataclass
class WandbSpec:
    """Weights & Biases (`wandb`)."""

    enable: bool = spec_field(False, "Turn the logger on")
    project: str = spec_field("", "W&B project")
    entity: str = spec_field("", "W&B entity")
    group: str = spec_field("", "W&B group")
    tags: list[str] = spec_field([], "W&B tags")
    reinit: bool = spec_field(False, "W&B reinit")
    sync_tensorboard: bool = spec_field(False, "Mirror TensorBoard")
    save_code: bool = spec_field(False, "Upload code")
    name: str = spec_field("", "W&B run name")
    run_id: str = spec_field("", "W&B run id")


@dataclass
class TrainSpec:
    """Settings of the train action (`train`)."""

    num_gpus: int = spec_field(1, "Number of devices", low=1, popular=True)
    gpu_ids: list[int] = spec_field(
        [0], "Device indices; length equals num_gpus", item_low=0, popular=True
    )
    num_nodes: int = spec_field(1, "Number of machines", low=1, popular=True)
    distributed_strategy: Literal["ddp", "fsdp"] = spec_field("ddp", "Multi-device strategy")
    seed: int = spec_field(1234, "Random seed; negative leaves seeding off", low=-1, high=inf)
    cudnn: CudnnSpec = spec_field(CudnnSpec, "cuDNN switches")
    num_epochs: int = spec_field(
        10, "Training epochs", unit="epochs", low=1, high=inf, popular=True
    )
    checkpoint_interval: int = spec_field(1, "Checkpoint period", low=1, popular=True)
    checkpoint_interval_unit: Literal["epoch", "step"] = spec_field(
        "epoch", "Unit of checkpoint_interval"
    )
    checkpoint_interval_steps: int | None = spec_field(
        None, "Also save every N optimiser steps", low=1
    )
    validation_interval: int = spec_field(
        1, "Epochs between validations", unit="epochs", low=1, popular=True
    )
    resume_training_checkpoint_path: str | None = spec_field(
        None, "Checkpoint to continue from, with optimiser state"
    )
    results_dir: str | None = spec_field(None, "Root directory for everything the run writes")
    pretrained_model_path: str | None = spec_field(
        None, "Weights to start from (no optimiser state)"
    )
    clip_grad_norm: float = spec_field(
        0.1, "Gradient clipping value, 0 = off", low=0.0, automl_enabled=None
    )
    clip_grad_algorithm: Literal["norm", "value"] = spec_field(
        "norm", "Gradient clipping rule", automl_enabled=None
    )
    is_dry_run: bool = spec_field(False, "Run one batch of every stage and stop")
    optim: OptimSpec = spec_field(OptimSpec, "Optimiser settings")
    precision: Literal["fp32", "fp16"] = spec_field(
        "fp32", "Training arithmetic", automl_enabled=None
    )
    verbose: bool = spec_field(False, "Verbose console logging")
    dataloader_visualize: bool = spec_field(False, "Write augmented batches as images")
    vis_step_interval: int = spec_field(
        10, "Steps between visualisations", unit="optimiser steps", low=1
    )
    log_every_n_steps: int = spec_field(500, "Logging period", unit="optimiser steps", low=1)
    allow_partial_load: bool = spec_field(
        False,
        "Load the tensors that fit, list every one that does not; corr_radius taps that overlap"
        " are copied",
    )
    max_nonfinite_steps: int = spec_field(
        5,
        "Consecutive steps with a non-finite loss after which the run ends as diverged",
        low=0,
        high=inf,
    )
    inference_tile: bool = spec_field(False, "Predict large images in tiles")
    tile_wtype: Literal["gaussian", "uniform"] = spec_field("gaussian", "Blending weights of tiles")
    tile_min_overlap: list[int] = spec_field(
        [16, 16], "Least overlap of tiles [height, width]", length=2, item_low=0
    )
    accumulate_grad_batches: int = spec_field(1, "Batches per optimiser step", low=1, high=inf)
    deterministic: bool = spec_field(
        False, "Deterministic algorithms as an error instead of a warning"
    )
    activation_checkpoint: bool = spec_field(False, "Recompute activations in the backward pass")


@dataclass
class FoundationStereoTrainSpec(TrainSpec):
    """What FoundationStereo trains with beside `TrainSpec`."""

    cache_vit_features: Literal["auto", "off"] = spec_field(
        "auto",
        "Keep the frozen ViT features per image; auto: when augmentation leaves the ViT input"
        " unchanged",
    )


@dataclass
class MonoTrainSpec(TrainSpec):
    """What both mono networks train with beside `TrainSpec`."""

    optim: MonoOptimSpec = with_default(TrainSpec, "optim", MonoOptimSpec)  # pyright: ignore[reportIncompatibleVariableOverride]
    precision: Literal["fp32", "bf16", "fp16"] = same_field(  # pyright: ignore[reportIncompatibleVariableOverride]
        TrainSpec, "precision"
    )


@dataclass
class MetricTrainSpec(MonoTrainSpec):
    """Settings of the train action for metric depth (`train`)."""

    silog_form: Literal["variance", "sqrt"] = spec_field(
        "variance", "Form of the SiLog loss", automl_enabled=True
    )
    silog_lambda: float = spec_field(
        0.5,
        "Weight of the squared mean in the SiLog loss",
        low=0.0,
        high=1.0,
        search_range=(0.0, 0.95),
        automl_enabled=True,
    )


@dataclass
class RelativeTrainSpec(MonoTrainSpec):
    """Settings of the train action for relative depth (`train`)."""

    relative_loss: Literal["ssi", "trimmed"] = spec_field(
        "ssi", "Data term of the relative loss", automl_enabled=True
    )
    gradient_loss_weight: float | None = spec_field(
        None,
        "Weight of the gradient term; null = 2.0 for ssi, 0.5 for trimmed",
        low=0.0,
        high=10.0,
        search_range=(0.0, 4.0),
        automl_enabled=True,
        null_means={"relative_loss": GRADIENT_WEIGHTS},
    )
