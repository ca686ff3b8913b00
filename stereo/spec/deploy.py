"""Evaluation, inference, export, quantising, engine building (sections named after their verbs).

A batch of -1 means "not fixed here": the data split's batch for evaluate and inference, a dynamic
axis for export, the min/opt/max profile for gen_trt_engine. Input sizes are those of the network.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal

from stereo.spec.fields import MISSING, same_field, spec_field, with_default

SMALL_RATIO = "Scale of the first pass"
HIERARCHICAL = "Two passes, the first on smaller images, as in networks-stereo.md section 14"


@dataclass
class MonoEvaluateSpec:
    """Settings of the evaluate action (`evaluate`)."""

    num_gpus: int = spec_field(1, "Number of devices", low=1, popular=True)
    gpu_ids: list[int] = spec_field(
        [0], "Device indices; length equals num_gpus", item_low=0, popular=True
    )
    num_nodes: int = spec_field(1, "Number of machines", low=1, popular=True)
    checkpoint: str | None = spec_field(None, "Weights to load")
    trt_engine: str | None = spec_field(None, "Engine file; selects the deploy path when set")
    results_dir: str | None = spec_field(None, "Root directory for everything the run writes")
    batch_size: int = spec_field(-1, "Engine batch; -1 = take it from dataset.test_dataset", low=-1)
    input_width: int | None = spec_field(None, "Network input width", unit="px", low=1)
    input_height: int | None = spec_field(None, "Network input height", unit="px", low=1)


@dataclass
class EvaluateSpec(MonoEvaluateSpec):
    """The same for pairs."""

    native_padded: bool = spec_field(
        False, "Pad each image to the next multiple of 32 and predict at native size"
    )
    hierarchical: bool = spec_field(False, HIERARCHICAL)
    small_ratio: float = spec_field(0.5, SMALL_RATIO, low=0.1, high=1.0)


@dataclass
class MonoInferenceSpec:
    """Settings of the inference action (`inference`)."""

    num_gpus: int = spec_field(1, "Number of devices", low=1, popular=True)
    gpu_ids: list[int] = spec_field(
        [0], "Device indices; length equals num_gpus", item_low=0, popular=True
    )
    num_nodes: int = spec_field(1, "Number of machines", low=1, popular=True)
    checkpoint: str | None = spec_field(None, "Weights to load")
    trt_engine: str | None = spec_field(None, "Engine file; selects the deploy path when set")
    results_dir: str | None = spec_field(None, "Root directory for everything the run writes")
    batch_size: int = spec_field(
        -1, "Engine batch; -1 = take it from dataset.infer_dataset", low=-1
    )
    input_width: int | None = spec_field(None, "Network input width", unit="px", low=1)
    input_height: int | None = spec_field(None, "Network input height", unit="px", low=1)
    conf_threshold: float = spec_field(0.5, "Leftover of detection tasks; ignored")
    save_raw_pfm: bool = spec_field(False, "Also write raw predictions as PFM")
    save_raw_npy: bool = spec_field(False, "Also write raw float32 predictions as NPY")


@dataclass
class InferenceSpec(MonoInferenceSpec):
    """The same for pairs."""

    native_padded: bool = spec_field(
        False, "Pad to the stride and crop back instead of resizing to the engine size"
    )
    hierarchical: bool = spec_field(False, HIERARCHICAL)
    small_ratio: float = spec_field(0.5, SMALL_RATIO, low=0.1, high=1.0)
    save_ply: bool = spec_field(False, "Write a coloured point cloud per pair")


@dataclass
class MonoExportSpec:
    """Settings of the export action (`export`)."""

    results_dir: str | None = spec_field(None, "Root directory for everything the run writes")
    checkpoint: str = spec_field(MISSING, "Weights to load")
    onnx_file: str | None = spec_field(None, "ONNX file path")
    overwrite: bool = spec_field(False, "Replace an existing ONNX file")
    on_cpu: bool = spec_field(True, "Trace on the CPU")
    input_width: int = spec_field(518, "Network input width", unit="px", low=32)
    input_height: int = spec_field(518, "Network input height", unit="px", low=32)
    batch_size: int = spec_field(-1, "Fixed batch of the graph; -1 = dynamic batch axis", low=-1)
    dynamic_hw: bool = spec_field(False, "Make height and width dynamic (FFS only)")
    include_normalization: bool = spec_field(False, "Graph takes uint8 RGB and normalises inside")
    input_channel: int = spec_field(3, "Input channels", low=1, options=(1, 3))
    gpu_id: int = spec_field(0, "Device index", low=0)
    opset_version: int = spec_field(17, "ONNX operator set", low=16, high=18)
    format: Literal["onnx"] = spec_field("onnx", "Export format")
    verbose: bool = spec_field(False, "Verbose export logging")


@dataclass
class ExportSpec(MonoExportSpec):
    """The same for pairs."""

    input_width: int = with_default(MonoExportSpec, "input_width", 736)
    input_height: int = with_default(MonoExportSpec, "input_height", 480)
    batch_size: int = with_default(MonoExportSpec, "batch_size", 1)
    valid_iters: int = spec_field(
        8, "GRU updates unrolled into the exported graph", unit="GRU updates", low=1
    )


@dataclass
class TensorRTSpec:
    """Builder settings (`gen_trt_engine.tensorrt`)."""

    data_type: Literal["fp32", "fp16", "int8"] = spec_field("fp32", "Engine arithmetic")
    layers_precision: list[str] = spec_field([], 'List of "layer:precision"; "*" = default')
    workspace_size: int = spec_field(4, "Builder workspace limit", unit="GiB", low=0, high=1024)
    min_batch_size: int = spec_field(1, "Profile minimum batch", low=1, popular=True)
    opt_batch_size: int = spec_field(1, "Profile optimum batch", low=1, popular=True)
    max_batch_size: int = spec_field(1, "Profile maximum batch", low=1, popular=True)


@dataclass
class EngineSpec:
    """Settings of the TensorRT engine build (`gen_trt_engine`)."""

    results_dir: str | None = spec_field(None, "Root directory for everything the run writes")
    onnx_file: str = spec_field(MISSING, "ONNX file path")
    trt_engine: str | None = spec_field(None, "Where the engine is written")
    timing_cache: str | None = spec_field(None, "Builder timing cache file, read and updated")
    runtime_cache: str | None = spec_field(
        None, "Kernel cache of TensorRT-RTX, read and written on the target"
    )
    gpu_id: int = spec_field(0, "Device index", low=0, popular=True)
    batch_size: int = spec_field(
        1,
        "Fixed batch of the engine; -1 = use the min/opt/max profile",
        low=-1,
        popular=True,
    )
    backend: Literal["auto", "tensorrt", "tensorrt_rtx", "onnxruntime"] = spec_field(
        "auto", "Which engine builder to use"
    )
    compute_capabilities: list[
        Literal["SM75", "SM80", "SM86", "SM89", "SM120", "SM121", "CURRENT"]
    ] = spec_field(
        ["SM80", "SM86", "SM89", "SM120"],
        "Target GPUs of an ahead-of-time TensorRT-RTX build",
    )
    verbose: bool = spec_field(False, "Verbose builder logging")
    tensorrt: TensorRTSpec = spec_field(TensorRTSpec, "Builder settings")


@dataclass
class DynamicEngineSpec(EngineSpec):
    """Settings of the engine build of a network whose graph can leave height and width open."""

    min_height: int | None = spec_field(None, "Profile minimum height", unit="px", low=32)
    opt_height: int | None = spec_field(None, "Profile optimum height", unit="px", low=32)
    max_height: int | None = spec_field(None, "Profile maximum height", unit="px", low=32)
    min_width: int | None = spec_field(None, "Profile minimum width", unit="px", low=32)
    opt_width: int | None = spec_field(None, "Profile optimum width", unit="px", low=32)
    max_width: int | None = spec_field(None, "Profile maximum width", unit="px", low=32)


@dataclass
class MonoTensorRTSpec(TensorRTSpec):
    """Builder settings of the mono networks, which have a bf16 engine."""

    data_type: Literal["fp32", "fp16", "bf16", "int8"] = same_field(TensorRTSpec, "data_type")  # pyright: ignore[reportIncompatibleVariableOverride]


@dataclass
class MonoEngineSpec(EngineSpec):
    """Settings of the engine build of a mono network."""

    batch_size: int = with_default(EngineSpec, "batch_size", -1)
    tensorrt: MonoTensorRTSpec = with_default(EngineSpec, "tensorrt", MonoTensorRTSpec)  # pyright: ignore[reportIncompatibleVariableOverride]


QuantType = Literal["int8", "fp8_e4m3fn", "fp8_e5m2", "native"]


@dataclass
class QuantWeightSpec:
    """Type of the weights of a module."""

    dtype: QuantType = spec_field("int8", "Type of the stored weights; native = left as they are")


@dataclass
class QuantActivationSpec:
    """Type of what a module computes with."""

    dtype: QuantType | None = spec_field(
        None, "Type of the inputs; native = left as they are, null = as the mode says"
    )


@dataclass
class QuantLayer:
    """A rule of `quantize.layers`: which modules, and their types."""

    module_name: str = spec_field(
        MISSING, "Shell pattern matched against the name of a module, then against its class"
    )
    weights: QuantWeightSpec = spec_field(QuantWeightSpec, "Type of the weights")
    activations: QuantActivationSpec = spec_field(QuantActivationSpec, "Type of the inputs")


@dataclass
class QuantKwargsSpec:
    """What only some quantisation libraries read (`quantize.backend_kwargs`)."""

    num_images: int = spec_field(64, "Calibration images", low=1, high=inf)
    op_types: list[str] = spec_field(["MatMul", "Gemm"], "Operator types that are quantised")
    max_drift: float | None = spec_field(
        None,
        "Relative change above which the action fails; null = only warn above 0.05",
        low=0.0,
        high=1.0,
    )


@dataclass
class QuantizeSpec:
    """Settings of the quantize action (`quantize`)."""

    results_dir: str | None = spec_field(None, "Root directory for everything the run writes")
    model_path: str = spec_field(MISSING, "Checkpoint or ONNX to quantise")
    backend: Literal["onnxruntime", "torchao", "modelopt.pytorch", "modelopt.onnx"] = spec_field(
        "onnxruntime", "Quantisation library"
    )
    mode: Literal["static_ptq", "weight_only_ptq"] = spec_field(
        "weight_only_ptq", "Quantisation mode"
    )
    algorithm: Literal[
        "minmax", "max", "entropy", "awq_clip", "awq_lite", "awq_full", "rtn_dq", "percentile"
    ] = spec_field("minmax", "Calibration method")
    layers: list[QuantLayer] = spec_field(
        [], "Per-pattern rules {module_name, weights, activations}"
    )
    skip_names: list[str] = spec_field([], "Patterns never quantised")
    device: str = spec_field("auto", "Calibration device")
    backend_kwargs: QuantKwargsSpec = spec_field(QuantKwargsSpec, "Extra backend arguments")
