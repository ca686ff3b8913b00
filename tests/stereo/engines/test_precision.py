from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from stereo.engines import precision
from stereo.engines.base import DataType
from stereo.engines.ort import GraphEngine
from stereo.errors import EngineError, SpecError

FLOAT, FLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16


def _model(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]) -> bytes:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", FLOAT, [1, 2, 4, 4])],
        [helper.make_tensor_value_info("y", FLOAT, [1, 2, 4, 4])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    opset = helper.make_opsetid("", 17)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()


def _types(model: ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in inferred.initializer}


@pytest.fixture
def mixed() -> bytes:
    """Convolution, L2 norm with epsilon, and the shared weight of a second convolution."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("ReduceL2", ["a"], ["n"], name="norm", axes=[1]),
        helper.make_node("Clip", ["n", "eps"], ["m"], name="floor"),
        helper.make_node("Div", ["a", "m"], ["b"], name="divide"),
        helper.make_node("Conv", ["b", "w"], ["c"], name="conv_again", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["y"], name="last"),
    ]
    weight = np.random.default_rng(0).standard_normal((2, 2, 3, 3)).astype(np.float32)
    return _model(nodes, {"w": weight, "eps": np.array(1e-12, np.float32)})


def test_fp32_leaves_the_bytes_alone(mixed: bytes) -> None:
    assert precision.convert(mixed, "fp32") is mixed


def test_fp16_computes_in_float16_between_float32_ends(mixed: bytes) -> None:
    model = onnx.load_from_string(precision.convert(mixed, "fp16"))

    onnx.checker.check_model(model, full_check=True)
    types = _types(model)
    assert types["x"] == types["y"] == FLOAT
    assert types["a"] == types["b"] == types["c"] == FLOAT16
    assert types["n"] == types["m"] == FLOAT, "a norm and its epsilon do not survive float16"
    weights = [tensor for tensor in model.graph.initializer if tensor.dims]
    assert [tensor.data_type for tensor in weights] == [FLOAT16], "weights are stored once"


def test_each_tensor_is_cast_once_per_type(mixed: bytes) -> None:
    model = onnx.load_from_string(precision.convert(mixed, "fp16"))
    casts = [tuple(node.input) for node in model.graph.node if node.op_type == "Cast"]
    assert sorted(casts) == [("a",), ("m",), ("x",), ("y_float16",)]


def test_fp16_is_close_and_repeatable(mixed: bytes) -> None:
    converted = precision.convert(mixed, "fp16")
    assert converted == precision.convert(mixed, "fp16")

    x = np.random.default_rng(1).standard_normal((1, 2, 4, 4)).astype(np.float32)
    expected, found = GraphEngine(mixed)({"x": x})["y"], GraphEngine(converted)({"x": x})["y"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-2)
    assert (found != expected).any()


@pytest.mark.parametrize(
    ("value", "kept"), [(1e-12, FLOAT), (1e6, FLOAT), (0.0, FLOAT16), (2.0, FLOAT16)]
)
def test_a_constant_that_float16_cannot_hold_keeps_its_node(value: float, kept: int) -> None:
    nodes = [
        helper.make_node(
            "Constant", [], ["k"], value=numpy_helper.from_array(np.array(value, np.float32))
        ),
        helper.make_node("Add", ["x", "k"], ["a"], name="add"),
        helper.make_node("Relu", ["a"], ["y"], name="last"),
    ]
    model = onnx.load_from_string(precision.convert(_model(nodes, {}), "fp16"))
    assert _types(model)["a"] == kept


def test_resize_keeps_its_scales_and_a_cast_to_float_becomes_float16() -> None:
    nodes = [
        helper.make_node("Resize", ["x", "", "scales"], ["a"], name="resize", mode="linear"),
        helper.make_node("Greater", ["a", "zero"], ["p"], name="positive"),
        helper.make_node("Cast", ["p"], ["b"], name="as_float", to=FLOAT),
        helper.make_node("Mul", ["a", "b"], ["y"], name="masked"),
    ]
    constants = {"scales": np.ones(4, np.float32), "zero": np.zeros(1, np.float32)}
    model = onnx.load_from_string(precision.convert(_model(nodes, constants), "fp16"))
    types = _types(model)
    assert types["scales"] == FLOAT
    assert types["a"] == types["b"] == FLOAT16
    onnx.checker.check_model(model, full_check=True)


def test_bfloat16_leaves_deconvolutions_and_sizes_in_float32() -> None:
    weight = np.random.default_rng(0).standard_normal((2, 2, 2, 2)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="conv"),
        helper.make_node("ConvTranspose", ["a", "w"], ["b"], name="grow"),
        helper.make_node("Shape", ["b"], ["s"], name="shape"),
        helper.make_node("Cast", ["s"], ["f"], name="as_float", to=FLOAT),
        helper.make_node("ReduceMax", ["f"], ["m"], name="side", keepdims=0),
        helper.make_node("Div", ["b", "m"], ["y"], name="scale"),
    ]
    model = onnx.load_from_string(precision.convert(_model(nodes, {"w": weight}), "bf16"))

    made = {node.name: node for node in model.graph.node}
    stored = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert stored[made["conv"].input[1]] == precision.BFLOAT16
    assert stored[made["grow"].input[1]] == FLOAT
    assert made["side"].input[0] == "f", "a size is not rounded to 8 bits"
    assert [a.i for a in made["as_float"].attribute] == [FLOAT]
    casts = {
        node.output[0]: node.attribute[0].i for node in model.graph.node if node.op_type == "Cast"
    }
    assert casts["x_bfloat16"] == casts["b_bfloat16"] == casts["m_bfloat16"] == precision.BFLOAT16
    assert casts["a_float32"] == casts["y"] == FLOAT


def test_emulated_bfloat16_stores_what_bfloat16_holds_and_computes_in_float32() -> None:
    nodes = [
        helper.make_node("Mul", ["x", "k"], ["a"], name="scale"),
        helper.make_node("Add", ["a", "k"], ["y"], name="shift"),
    ]
    factor = np.array(1.2345678, np.float32)
    graph = precision.convert(_model(nodes, {"k": factor}), "bf16", emulate_bfloat16=True)
    x = np.random.default_rng(1).standard_normal((1, 2, 4, 4)).astype(np.float32)

    def rounded(values: np.ndarray) -> np.ndarray:
        return values.astype(ml_dtypes.bfloat16).astype(np.float32)

    small = rounded(factor)
    expected = rounded(rounded(rounded(x) * small) + small)
    np.testing.assert_array_equal(GraphEngine(graph)({"x": x})["y"], expected)
    assert (expected != x * factor + factor).any()


def _types_of_nodes(model: onnx.ModelProto) -> dict[str, int]:
    types = _types(model)
    return {node.name: types[node.output[0]] for node in model.graph.node if node.op_type != "Cast"}


@pytest.mark.parametrize(
    ("data_type", "layers", "expected"),
    [
        ("fp32", ["conv:fp16"], {"conv": FLOAT16, "conv_again": FLOAT, "divide": FLOAT}),
        ("fp16", ["conv*:FP32"], {"conv": FLOAT, "conv_again": FLOAT, "divide": FLOAT16}),
        ("fp16", ["*:fp32", "divide:fp16"], {"conv": FLOAT, "divide": FLOAT16}),
        ("fp32", ["*:fp16"], {"conv": FLOAT16, "norm": FLOAT, "divide": FLOAT16}),
        ("fp32", ["norm:fp16"], {"conv": FLOAT, "norm": FLOAT16, "divide": FLOAT}),
        ("fp16", ["conv*:fp32", "conv:fp16"], {"conv": FLOAT16, "conv_again": FLOAT}),
    ],
)
def test_layers_precision_names_nodes_patterns_and_the_rest(
    mixed: bytes, data_type: DataType, layers: list[str], expected: dict[str, int]
) -> None:
    converted = precision.convert(mixed, data_type, layers)
    model = onnx.load_from_string(converted)
    onnx.checker.check_model(model, full_check=True)
    assert expected.items() <= _types_of_nodes(model).items()
    x = np.ones((1, 2, 4, 4), np.float32)
    assert np.isfinite(GraphEngine(converted)({"x": x})["y"]).all()


def test_layers_that_do_not_exist_are_listed_with_names_that_are_near(mixed: bytes) -> None:
    with pytest.raises(SpecError) as error:
        precision.convert(mixed, "fp16", ["dividee:fp32", "conv:int8", "norm", "last:fp32"])
    said = str(error.value)
    assert "no layer 'dividee' among 6. Nearest: divide" in said
    assert "got 'conv:int8'. Write name:precision with fp32, fp16, bf16" in said
    assert "got 'norm'" in said
    assert len(error.value.problems) == 3


def test_a_default_of_float32_leaves_the_bytes_alone(mixed: bytes) -> None:
    assert precision.convert(mixed, "fp16", ["*:fp32"]) is mixed


def test_a_quantised_graph_is_told_from_a_float_one(mixed: bytes) -> None:
    weight = np.zeros((4, 3), np.int8)
    scale = np.ones(1, np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["d"], name="d"),
        helper.make_node("MatMul", ["x", "d"], ["a"], name="small"),
        helper.make_node("MatMul", ["a", "v"], ["y"], name="float"),
    ]
    quantised = _model(nodes, {"w": weight, "s": scale, "v": np.zeros((3, 2), np.float32)})
    assert precision.quantized_as(quantised) == "qdq"
    assert precision.int8_share(quantised) == 12 / 18
    assert precision.quantized_as(mixed) is None
    assert precision.int8_share(mixed) == 0.0
    dynamic = [helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "s", "z"], name="d")]
    assert precision.quantized_as(_model(dynamic, {})) == "dynamic"
    assert precision.convert(quantised, "int8") is quantised


def test_control_flow_is_refused() -> None:
    branch = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["z"])],
        "branch",
        [],
        [helper.make_tensor_value_info("z", FLOAT, [1, 2, 4, 4])],
    )
    nodes = [
        helper.make_node("If", ["c"], ["y"], name="if", then_branch=branch, else_branch=branch)
    ]
    with pytest.raises(EngineError, match=r"If node 'if'.*data_type fp32"):
        precision.convert(_model(nodes, {"c": np.array(True)}), "fp16")
