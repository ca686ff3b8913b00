from __future__ import annotations

import logging
import re

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import nn

from stereo.errors import SpecError
from stereo.export.selection import modules_of_graph, modules_of_network, select
from stereo.spec.deploy import QuantizeSpec, QuantLayer, QuantWeightSpec

MODULES = {
    "blocks.0.fc1": "Linear",
    "blocks.0.fc2": "Linear",
    "head.conv": "Conv2d",
    "head.output_conv2.0": "Conv2d",
}


def layer(pattern: str, dtype: str = "int8") -> QuantLayer:
    return QuantLayer(pattern, QuantWeightSpec(dtype))  # type: ignore[arg-type]


def test_without_layers_everything_but_the_regression_heads_is_int8(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        found = select(MODULES, QuantizeSpec())
    assert found.types == dict.fromkeys(list(MODULES)[:3], "int8")
    assert found.skipped == {"head.output_conv2.0": "regression output *output_conv2*"}
    assert "every module gets int8 weights" in caplog.text


@pytest.mark.parametrize(
    ("layers", "skip", "types"),
    [
        ([layer("*.fc1")], [], {"blocks.0.fc1": "int8"}),
        ([layer("Conv2d")], [], {"head.conv": "int8"}),
        ([layer("*"), layer("*.fc?", "fp8_e4m3fn"), layer("blocks.0.fc2", "native")], [],
         {"blocks.0.fc1": "fp8_e4m3fn", "head.conv": "int8"}),
        ([layer("*")], ["Linear"], {"head.conv": "int8"}),
        ([layer("blocks.0.fc1")], ["*conv"], {"blocks.0.fc1": "int8"}),
    ],
)  # fmt: skip
def test_later_layers_override_and_skip_names_win(
    layers: list[QuantLayer], skip: list[str], types: dict[str, str]
) -> None:
    found = select(MODULES, QuantizeSpec(layers=layers, skip_names=skip))
    assert found.types == types
    assert found.types.keys() | found.skipped.keys() == MODULES.keys()


def test_the_reason_of_every_skipped_module_is_told() -> None:
    layers = [layer("*.fc?"), layer("*.fc2", "native")]
    found = select(MODULES, QuantizeSpec(layers=layers, skip_names=["*conv"]))
    assert found.skipped == {
        "blocks.0.fc2": "native by *.fc2",
        "head.conv": "skip_names *conv",
        "head.output_conv2.0": "regression output *output_conv2*",
    }


@pytest.mark.parametrize("key", ["layers", "skip_names"])
@pytest.mark.parametrize("pattern", ["*.FC1", "blocks.0.fc3", "linear"])
def test_a_pattern_that_matches_nothing_names_what_is_near(key: str, pattern: str) -> None:
    given = {key: [layer(pattern) if key == "layers" else pattern]}
    said = rf"quantize\.{key}: {re.escape(repr(pattern))} matches none of 4 modules"
    with pytest.raises(SpecError, match=rf"{said}.*Nearest: .*fc1"):
        select(MODULES, QuantizeSpec(**given))


def test_nothing_to_quantise_is_an_error() -> None:
    with pytest.raises(SpecError, match="every one of 4 modules is skipped"):
        select(MODULES, QuantizeSpec(skip_names=["*"]))
    with pytest.raises(SpecError, match=r"no MatMul, Gemm with a weight.*op_types"):
        select({}, QuantizeSpec())


def test_modules_of_a_graph_have_the_names_of_the_network() -> None:
    def node(kind: str, name: str, weight: str) -> object:
        return helper.make_node(kind, ["x", weight], [f"{name}_out"], name=name)

    weights = {"onnx::MatMul_7": (4, 4), "network.head.scratch.conv.weight": (4, 4, 3, 3)}
    nodes = [
        node("MatMul", "/network/blocks.0/mlp/mlp.0/MatMul", "onnx::MatMul_7"),
        node("MatMul", "/network/blocks.0/mlp/mlp.0/MatMul_1", "onnx::MatMul_7"),
        node("MatMul", "/network/blocks.0/attn/MatMul", "x"),
        node("Conv", "/network/head/conv/Conv", "network.head.scratch.conv.weight"),
        node("Relu", "/network/head/Relu", "onnx::MatMul_7"),
    ]
    tensors = [
        numpy_helper.from_array(np.zeros(shape, np.float32), name)
        for name, shape in weights.items()
    ]
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 4])
    model: ModelProto = helper.make_model(helper.make_graph(nodes, "g", [value], [], tensors))

    kinds, names = modules_of_graph(model, ["MatMul", "Gemm", "Conv"])

    assert kinds == {"blocks.0.mlp.0": "Linear", "head.scratch.conv": "Conv2d"}
    assert names["blocks.0.mlp.0"] == [n.name for n in model.graph.node[:2]]
    assert modules_of_graph(model, ["MatMul"])[0] == {"blocks.0.mlp.0": "Linear"}


def test_modules_of_a_network_are_its_layers_by_operator() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Conv2d(1, 1, 1), nn.Conv3d(1, 1, 1), nn.ReLU())
    assert modules_of_network(network, ["Gemm"]) == {"0": "Linear"}
    assert modules_of_network(network, ["MatMul", "Conv"]) == {
        "0": "Linear",
        "1": "Conv2d",
        "2": "Conv3d",
    }
