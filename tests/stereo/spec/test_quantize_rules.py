"""Section `quantize`: its list of layers, and what goes with which library and mode."""

from __future__ import annotations

import logging

import pytest

from stereo.errors import SpecError
from stereo.spec.deploy import QuantActivationSpec, QuantLayer, QuantWeightSpec
from stereo.spec.experiment import ExperimentSpec
from stereo.spec.load import load_spec
from stereo.spec.rules import QUANTIZE_RULES

CHECKPOINT, GRAPH = "quantize.model_path=a.pth", "quantize.model_path=a.onnx"
IMAGES = "dataset.quant_calibration_dataset.images_dir=images"
STATIC = ("quantize.mode=static_ptq", IMAGES)
OPERATORS = "quantize.backend_kwargs.op_types"


def load(*overrides: str) -> ExperimentSpec:
    return load_spec(None, ["results_dir=out", *overrides], action="quantize", model="ffs")


def problems(*overrides: str) -> dict[str, str]:
    with pytest.raises(SpecError) as caught:
        load(*overrides)
    return {problem.key: str(problem) for problem in caught.value.problems}


BROKEN = [
    ("quantize.mode", ("quantize.backend=torchao", *STATIC), "torchao has weight_only_ptq"),
    ("quantize.mode", ("quantize.backend=modelopt.onnx",), "modelopt.onnx has static_ptq"),
    ("quantize.mode", ("quantize.backend=modelopt.pytorch",), "has static_ptq"),
    ("quantize.model_path", (GRAPH, "quantize.backend=torchao"), "a file that ends in .pth"),
    ("quantize.model_path", ("quantize.model_path=a.engine",), "ends in .pth or .onnx"),
    (
        "quantize.layers",
        ("quantize.layers=[{module_name: a, weights: {dtype: fp8_e5m2}}]",),
        "got fp8_e5m2, onnxruntime has int8, native",
    ),
    (
        "quantize.layers",
        (
            *STATIC,
            "quantize.backend=modelopt.onnx",
            "quantize.layers=[{module_name: a}, {module_name: b, weights: {dtype: fp8_e4m3fn}}]",
        ),
        "modelopt.onnx quantises all modules to one type",
    ),
    (
        "quantize.layers",
        (*STATIC, "quantize.layers=[{module_name: a, activations: {dtype: native}}]"),
        "Set both types to native",
    ),
    ("quantize.algorithm", ("quantize.algorithm=awq_lite",), "are for 4-bit weights"),
    (
        "quantize.algorithm",
        ("quantize.backend=modelopt.onnx", *STATIC, "quantize.algorithm=percentile"),
        "modelopt.onnx calibrates int8 and fp8 by minmax, max, entropy",
    ),
    (
        "dataset.quant_calibration_dataset.images_dir",
        ("quantize.mode=static_ptq",),
        "required by static_ptq",
    ),
    ("quantize.device", ("quantize.device=gpu",), "Use auto, cpu, cuda, cuda:INDEX or trt"),
    ("quantize.device", ("quantize.device=trt",), "got trt, which onnxruntime does not have"),
    (OPERATORS, (f"{OPERATORS}=[Relu]",), "Use some of MatMul, Gemm, Conv"),
    (OPERATORS, (f"{OPERATORS}=[]",), "Use some of MatMul, Gemm, Conv"),
    (OPERATORS, (f"{OPERATORS}=[MatMul, Conv]",), "Set quantize.mode=static_ptq"),
]
WARNED = [
    (
        "quantize.layers",
        ("quantize.layers=[{module_name: a, activations: {dtype: int8}}]",),
        "no effect with mode weight_only_ptq",
    ),
    ("quantize.algorithm", ("quantize.algorithm=entropy",), "no effect: weight_only_ptq"),
]


@pytest.mark.parametrize(("key", "overrides", "said"), BROKEN)
def test_what_a_library_or_mode_cannot_do_is_refused(
    key: str, overrides: tuple[str, ...], said: str
) -> None:
    assert said in problems(CHECKPOINT, *overrides)[key]


@pytest.mark.parametrize(("key", "overrides", "said"), WARNED)
def test_a_setting_without_effect_is_told(
    key: str, overrides: tuple[str, ...], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        load(CHECKPOINT, *overrides)
    assert any(f"{key}: " in line and said in line for line in caplog.messages)


def test_every_rule_has_a_case() -> None:
    assert {rule.keys[0] for rule in QUANTIZE_RULES} == {key for key, *_ in (*BROKEN, *WARNED)}
    assert len(QUANTIZE_RULES) == 12


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1"])
def test_devices_that_a_machine_may_have_are_accepted(device: str) -> None:
    assert load(CHECKPOINT, f"quantize.device={device}").quantize.device == device


def test_layers_are_read_with_their_defaults_and_other_spellings() -> None:
    spec = load(
        CHECKPOINT,
        "quantize.backend=torchao",
        "quantize.layers=[{module_name: '*.fc1', weights: {dtype: float8_e4m3fn}},"
        " {module_name: Conv2d, activations: {dtype: null}}]",
        "quantize.layers.1.weights.dtype=native",
    )
    assert spec.quantize.layers == [
        QuantLayer("*.fc1", QuantWeightSpec("fp8_e4m3fn"), QuantActivationSpec(None)),
        QuantLayer("Conv2d", QuantWeightSpec("native"), QuantActivationSpec(None)),
    ]


@pytest.mark.parametrize(
    ("layer", "key", "said"),
    [
        ("{weights: {dtype: int8}}", "quantize.layers.0", "Write {module_name: PATTERN}"),
        ("fc1", "quantize.layers.0", "needs module_name"),
        (
            "{module_name: a, weights: {type: int8}}",
            "quantize.layers.0.weights.type",
            "Keys: module_name, weights.dtype, activations.dtype",
        ),
        (
            "{module_name: a, weights: {dtype: int4}}",
            "quantize.layers.0.weights.dtype",
            "got 'int4', allowed int8, fp8_e4m3fn, fp8_e5m2, native",
        ),
        ("{module_name: 5}", "quantize.layers.0.module_name", "got 5, allowed text"),
    ],
)
def test_a_wrong_layer_is_reported_at_its_place(layer: str, key: str, said: str) -> None:
    assert said in problems(CHECKPOINT, f"quantize.layers=[{layer}]")[key]
