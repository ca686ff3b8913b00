"""The whole experiment: its sections, its verbs and what the networks report.

One combined spec may serve every verb; the sections of other verbs are checked but unused.
Paths are dotted, from the root of the experiment. `{action}` in a path stands for the verb.
"""

# An experiment with another network has other sections under the same names.
# pyright: reportIncompatibleVariableOverride=false

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stereo.spec.data import (
    ConvertSpec,
    DatasetSpec,
    MetricDatasetSpec,
    MonoConvertSpec,
    MonoDatasetSpec,
)
from stereo.spec.deploy import (
    DynamicEngineSpec,
    EngineSpec,
    EvaluateSpec,
    ExportSpec,
    InferenceSpec,
    MonoEngineSpec,
    MonoEvaluateSpec,
    MonoExportSpec,
    MonoInferenceSpec,
    QuantizeSpec,
)
from stereo.spec.fields import MISSING, spec_field, with_default
from stereo.spec.networks import (
    FastFoundationStereoSpec,
    FoundationStereoSpec,
    MetricDepthSpec,
    RelativeDepthSpec,
)
from stereo.spec.train import (
    FoundationStereoTrainSpec,
    MetricTrainSpec,
    MlflowSpec,
    OptimSpec,
    RelativeTrainSpec,
    TrainSpec,
    WandbSpec,
)


@dataclass
class ExperimentSpec:
    """An experiment with FastFoundationStereo, and what those with other networks derive from.

    Code that serves several networks reads only fields that their sections share.
    """

    results_dir: str = spec_field(MISSING, "Root directory for everything the run writes")
    model_name: str | None = spec_field(None, "Free label stored with the run")
    encryption_key: str | None = spec_field(
        None, "Checkpoint encryption key in the reference; we accept and ignore it"
    )
    model: FastFoundationStereoSpec = spec_field(
        FastFoundationStereoSpec, "Network architecture settings"
    )
    dataset: DatasetSpec = spec_field(DatasetSpec, "All data settings of the experiment")
    convert: ConvertSpec = spec_field(ConvertSpec, "Settings of the convert action")
    train: TrainSpec = spec_field(TrainSpec, "Settings of the train action")
    evaluate: EvaluateSpec = spec_field(EvaluateSpec, "Settings of the evaluate action")
    inference: InferenceSpec = spec_field(InferenceSpec, "Settings of the inference action")
    export: ExportSpec = spec_field(ExportSpec, "Settings of the ONNX export action")
    gen_trt_engine: DynamicEngineSpec = spec_field(
        DynamicEngineSpec, "Settings of the TensorRT engine build"
    )
    quantize: QuantizeSpec = spec_field(QuantizeSpec, "Settings of the quantize action")
    wandb: WandbSpec = spec_field(WandbSpec, "Weights & Biases logger settings")
    mlflow: MlflowSpec = spec_field(MlflowSpec, "MLflow logger settings")


@dataclass
class FoundationStereoExperiment(ExperimentSpec):
    """An experiment with FoundationStereo."""

    model: FoundationStereoSpec = with_default(ExperimentSpec, "model", FoundationStereoSpec)
    dataset: DatasetSpec = with_default(
        ExperimentSpec, "dataset", lambda: DatasetSpec(max_disparity=416)
    )
    train: FoundationStereoTrainSpec = with_default(
        ExperimentSpec,
        "train",
        lambda: FoundationStereoTrainSpec(optim=OptimSpec(lr_scheduler="PolynomialLR")),
    )
    export: ExportSpec = with_default(
        ExperimentSpec,
        "export",
        lambda: ExportSpec(input_height=320, batch_size=-1, valid_iters=22),
    )
    gen_trt_engine: EngineSpec = with_default(
        ExperimentSpec, "gen_trt_engine", lambda: EngineSpec(batch_size=-1)
    )


@dataclass
class _MonoExperiment(ExperimentSpec):
    """What both experiments with single images share."""

    convert: MonoConvertSpec = with_default(ExperimentSpec, "convert", MonoConvertSpec)
    evaluate: MonoEvaluateSpec = with_default(ExperimentSpec, "evaluate", MonoEvaluateSpec)
    inference: MonoInferenceSpec = with_default(ExperimentSpec, "inference", MonoInferenceSpec)
    export: MonoExportSpec = with_default(ExperimentSpec, "export", MonoExportSpec)
    gen_trt_engine: MonoEngineSpec = with_default(ExperimentSpec, "gen_trt_engine", MonoEngineSpec)


@dataclass
class MetricDepthExperiment(_MonoExperiment):
    """An experiment with MetricDepthAnything."""

    model: MetricDepthSpec = with_default(ExperimentSpec, "model", MetricDepthSpec)
    dataset: MetricDatasetSpec = with_default(ExperimentSpec, "dataset", MetricDatasetSpec)
    train: MetricTrainSpec = with_default(ExperimentSpec, "train", MetricTrainSpec)


@dataclass
class RelativeDepthExperiment(_MonoExperiment):
    """An experiment with RelativeDepthAnything."""

    model: RelativeDepthSpec = with_default(ExperimentSpec, "model", RelativeDepthSpec)
    dataset: MonoDatasetSpec = with_default(ExperimentSpec, "dataset", MonoDatasetSpec)
    train: RelativeTrainSpec = with_default(ExperimentSpec, "train", RelativeTrainSpec)


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
        borrowed: fields that the verb reads of another verb's section.
        required: fields that must have a value before the verb runs.
        template: values of the packaged template that do not depend on the network.
        network: the verb meets the network, so that its template holds the released widths.
        spec_params: field -> rule that fills it from a parent run (interface.md section 6).
    """

    name: str
    splits: tuple[str, ...] = ()
    borrowed: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    template: Mapping[str, Any] = field(default_factory=dict[str, Any])
    network: bool = True
    inputs: tuple[ActionInput, ...] = ()
    outputs: tuple[str, ...] = ()
    spec_params: Mapping[str, str] = field(default_factory=dict[str, str])


_SOURCES = {
    split: f"dataset.{split}_dataset.data_sources" for split in ("train", "val", "test", "infer")
}

_TILES = ("train.inference_tile", "train.tile_wtype", "train.tile_min_overlap")

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
                "convert.depth_dir_pattern": MISSING,
                "convert.image_extension": ".png",
                "convert.depth_extension": ".png",
                "convert.split_ratio": 0.0,
            },
            network=False,
            inputs=(ActionInput("convert.data_root", kind="folder"),),
            outputs=("train.txt", "val.txt", "test.txt"),
        ),
        Action(
            "train",
            splits=("train_dataset", "val_dataset"),
            required=(_SOURCES["train"],),
            template={
                _SOURCES["train"]: MISSING,
                _SOURCES["val"]: None,
                "train.precision": "fp32",
                "train.optim.optimizer": "AdamW",
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
                "train.pretrained_model_path": "ptm_if_no_resume_model",
                "train.resume_training_checkpoint_path": "resume_model",
            },
        ),
        Action(
            "evaluate",
            splits=("test_dataset",),
            borrowed=_TILES,  # the documents put them under train
            required=(_SOURCES["test"],),
            template={
                _SOURCES["test"]: MISSING,
                "evaluate.checkpoint": MISSING,
            },
            inputs=(
                ActionInput(_SOURCES["test"]),
                ActionInput("evaluate.checkpoint", optional=True),
                ActionInput("evaluate.trt_engine", optional=True),
            ),
            outputs=("results.json", "per_sample_results.json", "worst_samples.png"),
            spec_params={
                "evaluate.checkpoint": "parent_model",
                "evaluate.trt_engine": "parent_model",
            },
        ),
        Action(
            "inference",
            splits=("infer_dataset",),
            borrowed=_TILES,  # the documents put them under train
            required=(_SOURCES["infer"],),
            template={
                "inference.checkpoint": MISSING,
                "inference.save_raw_pfm": True,
            },
            inputs=(
                ActionInput(_SOURCES["infer"]),
                ActionInput("inference.checkpoint", optional=True),
                ActionInput("inference.trt_engine", optional=True),
            ),
            outputs=("inference_images/", "results.json", "per_sample_results.json"),
            spec_params={
                "inference.checkpoint": "parent_model",
                "inference.trt_engine": "parent_model",
            },
        ),
        Action(
            "export",
            required=("export.checkpoint",),
            template={
                "export.checkpoint": MISSING,
                "export.opset_version": 17,
            },
            inputs=(ActionInput("export.checkpoint"),),
            outputs=("<checkpoint stem>.onnx", "<checkpoint stem>.onnx.json"),
            spec_params={
                "export.checkpoint": "parent_model",
                "export.onnx_file": "create_onnx_file",
            },
        ),
        Action(
            "gen_trt_engine",
            required=("gen_trt_engine.onnx_file",),
            template={
                "gen_trt_engine.onnx_file": MISSING,
                "gen_trt_engine.tensorrt.data_type": "fp32",
                "gen_trt_engine.tensorrt.workspace_size": 4,
                "gen_trt_engine.tensorrt.min_batch_size": 1,
                "gen_trt_engine.tensorrt.opt_batch_size": 1,
            },
            inputs=(ActionInput("gen_trt_engine.onnx_file"),),
            outputs=("<engine>", "<engine>.json"),
            spec_params={
                "gen_trt_engine.onnx_file": "parent_model",
                "gen_trt_engine.trt_engine": "create_engine_file",
            },
        ),
        Action(
            "quantize",
            splits=("val_dataset", "quant_calibration_dataset"),
            required=("quantize.model_path",),
            template={
                _SOURCES["val"]: MISSING,
                "dataset.quant_calibration_dataset.images_dir": "",
                "quantize.model_path": MISSING,
                "quantize.backend": "onnxruntime",
                "quantize.mode": "weight_only_ptq",
            },
            inputs=(
                ActionInput("quantize.model_path"),
                ActionInput(_SOURCES["val"], optional=True),
                ActionInput(
                    "dataset.quant_calibration_dataset.images_dir", kind="folder", optional=True
                ),
            ),
            outputs=("quantized_model*", "quantize.json"),
            spec_params={"quantize.model_path": "parent_model"},
        ),
    )
}

DATA_KEYS: Mapping[str, str] = _SOURCES
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
"""What training of a stereo network reports; `meaningful` says which numbers count there."""

MONO_METRICS: Mapping[str, Mapping[str, Any]] = {
    f"val/{name}": {"direction": direction, "unit": unit, "meaningful": True}
    | ({"of": "depth"} if name == "abs_rel" else {})
    for name, direction, unit in (
        ("d1", "maximize", "fraction"),
        ("d2", "maximize", "fraction"),
        ("d3", "maximize", "fraction"),
        ("abs_rel", "minimize", ""),
        ("sq_rel", "minimize", "m"),
        ("rmse", "minimize", "m"),
        ("rmse_log", "minimize", ""),
        ("log10", "minimize", ""),
        ("silog", "minimize", ""),
        ("silog_kitti", "minimize", ""),
        ("loss", "minimize", ""),
    )
}
"""What training of a metric depth network reports; d1 is an accuracy here, in stereo an error.

`of` says what a metric without unit is a share of.
"""

RELATIVE_METRICS: Mapping[str, Mapping[str, Any]] = {
    path: {
        **facts,
        **({"of": "inverse depth"} if "of" in facts else {}),
        "unit": "" if facts["unit"] == "m" else facts["unit"],
        "meaningful": path in ("val/d1", "val/d2", "val/d3", "val/abs_rel", "val/loss"),
    }
    for path, facts in MONO_METRICS.items()
}
"""The same of aligned inverse depth, which has no unit and no scale that data sets share."""


def unit_words(facts: Mapping[str, Any]) -> str:
    """`px`; `of inverse depth` for a share of it; empty for other numbers without unit."""
    return facts["unit"] or (f"of {facts['of']}" if "of" in facts else "")


COSTS: Mapping[str, Mapping[str, Any]] = {
    "model/parameters": {"direction": "minimize", "unit": ""},
    "engine/latency_ms": {"direction": "minimize", "unit": "ms"},
    "engine/size_mb": {"direction": "minimize", "unit": "MB"},
    "train/peak_memory_mb": {"direction": "minimize", "unit": "MiB"},
}
"""What a network costs; a study may weigh it against the metrics."""

NOT_IN_GRAPH = ("train_iters", "low_memory", "mixed_precision", "compile")
"""Fields of `model` that the exported graph does not depend on."""

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
}
"""Short names accepted on the command line for every network."""
