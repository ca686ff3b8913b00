"""The whole experiment: its sections, its verbs and what is published about the model.

One combined spec may serve every verb; the sections of other verbs are checked but unused.
Paths are dotted, from the root of the experiment. `{action}` in a path stands for the verb.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stereo.spec.data import ConvertSpec, DatasetSpec
from stereo.spec.deploy import EngineSpec, EvaluateSpec, ExportSpec, InferenceSpec
from stereo.spec.fields import MISSING, spec_field
from stereo.spec.networks import FastFoundationStereoSpec
from stereo.spec.train import TrainSpec

MODEL_KEY = "ffs"
MODEL_TYPE = "FastFoundationStereo"


@dataclass
class ExperimentSpec:
    """An experiment with FastFoundationStereo."""

    results_dir: str = spec_field(MISSING, "Root directory for everything the run writes")
    model: FastFoundationStereoSpec = spec_field(
        FastFoundationStereoSpec, "Network architecture settings"
    )
    dataset: DatasetSpec = spec_field(DatasetSpec, "All data settings of the experiment")
    convert: ConvertSpec = spec_field(ConvertSpec, "Settings of the convert action")
    train: TrainSpec = spec_field(TrainSpec, "Settings of the train action")
    evaluate: EvaluateSpec = spec_field(EvaluateSpec, "Settings of the evaluate action")
    inference: InferenceSpec = spec_field(InferenceSpec, "Settings of the inference action")
    export: ExportSpec = spec_field(ExportSpec, "Settings of the ONNX export action")
    gen_trt_engine: EngineSpec = spec_field(EngineSpec, "Settings of the TensorRT engine build")


def disparity_limit(spec: ExperimentSpec) -> float:
    """Disparity in px at and above which ground truth counts nowhere."""
    return float(min(spec.dataset.max_disparity, spec.model.max_disparity))


@dataclass(frozen=True)
class ActionInput:
    """A path that a verb reads."""

    path: str
    kind: str = "file"
    optional: bool = False


@dataclass(frozen=True)
class Action:
    """What one verb reads, needs, writes, and takes over from a parent run.

    Attributes:
        splits: sections of `dataset` that the verb reads.
        required: fields that must have a value before the verb runs.
        template: values of the packaged template beyond those every template has.
        network: the verb meets the network, so that its template holds the released widths.
        spec_params: field -> rule that fills it from a parent run (interface.md section 6).
    """

    name: str
    splits: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    template: Mapping[str, Any] = field(default_factory=dict[str, Any])
    network: bool = True
    inputs: tuple[ActionInput, ...] = ()
    outputs: tuple[str, ...] = ()
    spec_params: Mapping[str, str] = field(default_factory=dict[str, str])


_SOURCES = {
    split: f"dataset.{split}_dataset.data_sources" for split in ("train", "val", "test", "infer")
}
_CONSTANTS = {
    "dataset.dataset_name": "constant StereoDataset",
    "model.model_type": f"constant {MODEL_TYPE}",
    "results_dir": "output_dir",
}

ACTIONS: Mapping[str, Action] = {
    action.name: action
    for action in (
        Action(
            "convert",
            required=("convert.data_root", "convert.results_dir", "convert.image_dir_pattern"),
            template={
                "convert.data_root": MISSING,
                "convert.results_dir": MISSING,
                "convert.image_dir_pattern": MISSING,
                "convert.right_dir_pattern": MISSING,
                "convert.depth_dir_pattern": MISSING,
                "convert.nocc_dir_pattern": [],
                "convert.image_extension": ".png",
                "convert.depth_extension": ".png",
                "convert.nocc_extension": ".png",
                "convert.split_ratio": 0.0,
            },
            network=False,
            inputs=(ActionInput("convert.data_root", kind="folder"),),
            outputs=("train.txt", "val.txt", "test.txt"),
            spec_params={**_CONSTANTS},
        ),
        Action(
            "train",
            splits=("train_dataset", "val_dataset"),
            required=(_SOURCES["train"],),
            template={
                "dataset.max_disparity": 192,
                _SOURCES["train"]: MISSING,
                "dataset.train_dataset.augmentation.crop_size": [320, 736],
                _SOURCES["val"]: None,
                "train.num_epochs": 1,
                "train.log_every_n_steps": 1,
                "train.precision": "fp32",
                "train.pretrained_model_path": None,
                "train.optim.optimizer": "AdamW",
                "train.optim.lr": 1e-5,
                "train.optim.lr_scheduler": "MultiStepLR",
                "train.optim.lr_decay": 0.1,
                "train.optim.warmup_steps": 0,
            },
            inputs=(
                ActionInput(_SOURCES["train"]),
                ActionInput(_SOURCES["val"], optional=True),
                ActionInput("train.pretrained_model_path", optional=True),
                ActionInput("train.resume_training_checkpoint_path", optional=True),
            ),
            outputs=(
                "dn_model_epoch_EEE_step_SSSSS.pth",
                "dn_model_latest.pth",
                "dn_model_best.pth",
                "metrics.csv",
                "events.out.tfevents.*",
            ),
            spec_params={
                **_CONSTANTS,
                "train.pretrained_model_path": "ptm_if_no_resume_model",
                "train.resume_training_checkpoint_path": "resume_model",
            },
        ),
        Action(
            "evaluate",
            splits=("test_dataset",),
            required=(_SOURCES["test"],),
            template={
                _SOURCES["test"]: MISSING,
                "dataset.test_dataset.augmentation.crop_size": [480, 736],
                "evaluate.checkpoint": MISSING,
            },
            inputs=(
                ActionInput(_SOURCES["test"]),
                ActionInput("evaluate.checkpoint", optional=True),
                ActionInput("evaluate.trt_engine", optional=True),
            ),
            outputs=("results.json", "per_sample_results.json"),
            spec_params={
                **_CONSTANTS,
                "evaluate.checkpoint": "parent_model",
                "evaluate.trt_engine": "parent_model",
            },
        ),
        Action(
            "inference",
            splits=("infer_dataset",),
            required=(_SOURCES["infer"],),
            template={
                _SOURCES["infer"]: [{"dataset_name": "GenericDataset", "data_file": MISSING}],
                "inference.checkpoint": MISSING,
                "inference.save_raw_pfm": True,
            },
            inputs=(
                ActionInput(_SOURCES["infer"]),
                ActionInput("inference.checkpoint", optional=True),
                ActionInput("inference.trt_engine", optional=True),
            ),
            outputs=(
                "inference_images/",
                "disparity_pfm/",
                "disparity_npy/",
                "depth/",
                "results.json",
                "per_sample_results.json",
            ),
            spec_params={
                **_CONSTANTS,
                "inference.checkpoint": "parent_model",
                "inference.trt_engine": "parent_model",
            },
        ),
        Action(
            "export",
            required=("export.checkpoint",),
            template={
                "export.checkpoint": MISSING,
                "export.input_width": 736,
                "export.input_height": 480,
                "export.batch_size": 1,
                "export.opset_version": 17,
                "export.valid_iters": 8,
            },
            inputs=(ActionInput("export.checkpoint"),),
            outputs=("<checkpoint stem>.onnx", "<checkpoint stem>.onnx.json"),
            spec_params={
                **_CONSTANTS,
                "export.checkpoint": "parent_model",
                "export.onnx_file": "create_onnx_file",
            },
        ),
        Action(
            "gen_trt_engine",
            required=("gen_trt_engine.onnx_file",),
            template={
                "gen_trt_engine.onnx_file": MISSING,
                "gen_trt_engine.batch_size": 1,
                "gen_trt_engine.tensorrt.data_type": "fp32",
                "gen_trt_engine.tensorrt.workspace_size": 4,
                "gen_trt_engine.tensorrt.min_batch_size": 1,
                "gen_trt_engine.tensorrt.opt_batch_size": 1,
                "gen_trt_engine.tensorrt.max_batch_size": 1,
            },
            inputs=(ActionInput("gen_trt_engine.onnx_file"),),
            outputs=("<engine>", "<engine>.json"),
            spec_params={
                **_CONSTANTS,
                "gen_trt_engine.onnx_file": "parent_model",
                "gen_trt_engine.trt_engine": "create_engine_file",
            },
        ),
    )
}

BP2_BLOCK: Mapping[str, Any] = {
    "model_type": MODEL_TYPE,
    "encoder": "vitl",
    "hidden_dims": [128],
    "n_gru_layers": 1,
    "corr_radius": 4,
    "corr_levels": 2,
    "n_downsample": 2,
    "valid_iters": 8,
    "train_iters": 22,
    "max_disparity": 192,
    "volume_dim": 28,
    "mixed_precision": False,
    "gwc_feature_normalize": True,
    "motion_encoder_widths": [56, 96, 16, 12],
    "motion_encoder_final": 48,
    "gru_hidden": 60,
    "gru_gating_conv_widths": [100, 168],
    "disp_head_input_dim": 60,
    "disp_head_intermediate": 36,
    "disp_head_pwconv1_widths": [212, 244],
    "mask_widths": [32, 16],
    "stem_2_widths": [12, 16],
    "spx_2_gru_widths": [16, 12, 16, 24],
    "spx_gru_out": 9,
    "classifier_mid": 14,
    "cnet_conv04_widths": [60, 48],
    "cam_mid_channels": 8,
    "cost_agg_conv_patch_padding": [0, 0, 0],
}
"""Values of section `model` that the released bp2 weights were trained with."""

DATA_KEYS: Mapping[str, str] = _SOURCES
WEIGHT_KEYS = (
    "train.pretrained_model_path",
    "train.resume_training_checkpoint_path",
    "model.stereo_backbone.edgenext_pretrained_path",
)
"""Any of these set means that training starts from loaded weights."""

SECONDS_PER_EPOCH = {"cpu": 13}  # of the packaged profile, one core; docs/performance.md
CHECKPOINT_MB = 190  # with AdamW state at the default widths; a study plans its disk with it
OBJECTIVE = {"metric": "val/epe", "direction": "minimize", "unit": "px"}
FIDELITY = "train.num_epochs"
METRICS: Mapping[str, Mapping[str, Any]] = {
    f"val/{name}": {"direction": "minimize", "unit": unit, "meaningful": meaningful}
    for name, unit, meaningful in (
        ("epe", "px", True),
        ("bp1", "fraction", True),
        ("bp2", "fraction", True),
        ("bp3", "fraction", True),
        ("d1", "fraction", True),
        ("rmse", "px", True),
        ("abs_rel", "", False),
        ("sq_rel", "px", False),
        ("rmse_log", "", False),
        ("loss", "px", True),
    )
}
"""What training reports; `meaningful` says which numbers count for stereo."""

SHORTHANDS: Mapping[str, str] = {
    "num_epochs": "train.num_epochs",
    "train_batch_size": "dataset.train_dataset.batch_size",
    "infer_batch_size": "dataset.infer_dataset.batch_size",
    "test_batch_size": "dataset.test_dataset.batch_size",
    "learning_rate": "train.optim.lr",
    "trt_data_type": "gen_trt_engine.tensorrt.data_type",
    "trt_engine": "{action}.trt_engine",
    "resume_checkpoint": "train.resume_training_checkpoint_path",
    "train_ptm": "train.pretrained_model_path",
    "bp2_ckpt": "train.pretrained_model_path",
    "edgenext_ptm": "model.stereo_backbone.edgenext_pretrained_path",
}
"""Short names accepted on the command line."""


def packaged_values(action: str) -> dict[str, Any]:
    """Dotted path -> value of the packaged template of a verb, in template order."""
    network = BP2_BLOCK if ACTIONS[action].network else {"model_type": MODEL_TYPE}
    return {
        "results_dir": MISSING,
        **{f"model.{name}": value for name, value in network.items()},
        "dataset.dataset_name": "StereoDataset",
        **ACTIONS[action].template,
    }
