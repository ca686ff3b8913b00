"""The precision pass: a float32 graph gets the types of its engine before any backend sees it.

Every backend builds strongly typed networks, so the types written in the graph are the arithmetic
of the engine, the same on TensorRT, TensorRT-RTX and ONNX Runtime. Inputs and outputs stay float32.

A node computes in the type of the engine unless its operator is in `KEPT_FLOAT32`, one of its
constants does not survive the type (an epsilon of 1e-12 becomes 0 in float16), it computes sizes,
or `layers_precision` names it. int8 is no matter of this pass: `quantize` has written it into the
graph. Same graph: same bytes.

ONNX Runtime has few kernels for bfloat16. For it the pass *emulates* that type: every value that
would be stored in bfloat16 is rounded to it and computed with in float32, as a GPU accumulates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from stereo.engines.base import DataType
from stereo.errors import EngineError, SpecError, SpecProblem

FLOAT32, FLOAT16, BFLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
TYPES: Mapping[str, int] = {"fp32": FLOAT32, "fp16": FLOAT16, "bf16": BFLOAT16}
_NAMES: Mapping[int, str] = {FLOAT32: "float32", FLOAT16: "float16", BFLOAT16: "bfloat16"}
_NUMPY: Mapping[int, Any] = {FLOAT16: np.float16, BFLOAT16: ml_dtypes.bfloat16}
_LARGEST: Mapping[int, float] = {FLOAT16: 65504.0, BFLOAT16: 3.3895e38}
# Normalisation statistics overflow or lose their epsilon in float16, and coordinates up to the
# image width need more than its 11 bits, or the 8 of bfloat16 (engines.md, section 3).
_STATISTICS_AND_COORDINATES = frozenset(
    {
        "CumSum",
        "GridSample",
        "GroupNormalization",
        "InstanceNormalization",
        "LpNormalization",
        "Pow",
        "Range",
        "ReduceL2",
        "ReduceSumSquare",
    }
)
KEPT_FLOAT32: Mapping[int, frozenset[str]] = {
    FLOAT32: frozenset(),
    FLOAT16: _STATISTICS_AND_COORDINATES,
    # TensorRT-RTX 1.7 builds no deconvolution in bfloat16, 2-D or 3-D.
    BFLOAT16: _STATISTICS_AND_COORDINATES | {"ConvTranspose"},
}
# Inputs that the operator defines as float32 whatever the type of its data: Resize's roi, scales.
ALWAYS_FLOAT32_INPUTS = {"Resize": (1, 2)}
_SIZES = ("Shape", "Size")
KEY = "gen_trt_engine.tensorrt.layers_precision"


def convert(
    graph: bytes,
    data_type: DataType,
    layers: Sequence[str] = (),
    *,
    emulate_bfloat16: bool = False,
) -> bytes:
    """The graph with its arithmetic in `data_type`; the very same bytes where nothing changes.

    Args:
        graph: a serialised float32 ONNX model, or for int8 one with quantised weights.
        data_type: type of the arithmetic.
        layers: `name:precision` each; the name is that of a node or a shell pattern, `*` alone
            replaces `data_type`, other names win over the lists of operators.
        emulate_bfloat16: for a backend without bfloat16.

    Raises:
        SpecError: a layer or precision that does not exist.
        EngineError: the graph has control flow, which the pass does not enter.
    """
    if data_type == "int8" or (data_type == "fp32" and not layers):
        return graph
    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(graph))
    default, named = _named_types(
        layers, TYPES[data_type], [node.name for node in model.graph.node]
    )
    if default == FLOAT32 and not named:
        return graph
    _Pass(model, default, named, emulate_bfloat16).run()
    del model.graph.value_info[:]  # they describe the float32 graph
    return model.SerializeToString(deterministic=True)


def _named_types(
    layers: Sequence[str], default: int, nodes: Sequence[str]
) -> tuple[int, dict[str, int]]:
    """Type of all other nodes, and of those that `layers` names; the last entry wins."""
    named: dict[str, int] = {}
    problems: list[SpecProblem] = []
    for entry in layers:
        name, _, precision = entry.rpartition(":")
        chosen = [node for node in nodes if node == name or fnmatchcase(node, name)]
        if precision.lower() not in TYPES or not name:
            remedy = f"Write name:precision with {', '.join(TYPES)}"
            problems.append(SpecProblem("spec", KEY, f"got {entry!r}", remedy))
        elif name == "*":
            default = TYPES[precision.lower()]
        elif not chosen:
            near = get_close_matches(name, nodes, 3, cutoff=0.3) or list(nodes[:3])
            problem = f"no layer {name!r} among {len(nodes)}"
            problems.append(SpecProblem("spec", KEY, problem, f"Nearest: {', '.join(near)}"))
        else:
            named |= dict.fromkeys(chosen, TYPES[precision.lower()])
    if problems:
        raise SpecError(problems)
    return default, named


@dataclass
class _Pass:
    """One walk through the nodes, in order, keeping track of which type each tensor now has."""

    model: ModelProto
    default: int
    named: Mapping[str, int]
    emulates: bool
    floats: set[str] = field(init=False)  # tensors that were float32 before the pass
    sizes: set[str] = field(init=False, default_factory=set[str])  # made of shapes only
    constants: dict[str, NDArray[np.float32]] = field(init=False)
    made: dict[str, int] = field(init=False, default_factory=dict[str, int])  # if not float32
    known: dict[tuple[str, int], str] = field(init=False, default_factory=dict[Any, str])
    nodes: list[NodeProto] = field(init=False, default_factory=list[NodeProto])

    def run(self) -> None:
        graph = self.model.graph
        self._hoist_constants()
        self.constants = {
            tensor.name: numpy_helper.to_array(tensor)
            for tensor in graph.initializer
            if tensor.data_type == FLOAT32
        }
        typed = (*graph.input, *graph.value_info, *graph.output)
        self.floats = set(self.constants) | {
            value.name for value in typed if value.type.tensor_type.elem_type == FLOAT32
        }
        outputs = {value.name for value in graph.output}
        stored = {tensor.name for tensor in graph.initializer}
        for node in list(graph.node):
            self._convert(node, outputs, stored)
        del graph.node[:]
        graph.node.extend(self.nodes)
        self._drop_unused_constants()

    def _hoist_constants(self) -> None:
        """Turn Constant nodes into initialisers, so that one rule serves both."""
        kept: list[NodeProto] = []
        for node in self.model.graph.node:
            if any(attribute.HasField("g") for attribute in node.attribute):
                raise EngineError(
                    f"{node.op_type} node {node.name!r} holds a graph of its own: the precision "
                    "pass handles graphs without control flow only. Build with data_type fp32"
                )
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                tensor = self.model.graph.initializer.add()
                tensor.CopyFrom(node.attribute[0].t)
                tensor.name = node.output[0]
            else:
                kept.append(node)
        del self.model.graph.node[:]
        self.model.graph.node.extend(kept)

    def _convert(self, node: NodeProto, graph_outputs: set[str], stored: set[str]) -> None:
        kind = self._type_of(node, stored)
        exempt = ALWAYS_FLOAT32_INPUTS.get(node.op_type, ())
        for position, name in enumerate(node.input):
            if name in self.floats:
                node.input[position] = self._as(name, FLOAT32 if position in exempt else kind)
        if node.op_type == "Cast" and not self._is_emulated(kind):
            _retarget(node, kind)
        self.nodes.append(node)
        if kind == FLOAT32:
            return
        for position, name in enumerate(node.output):
            if name in self.floats:
                self._finish(node, position, name, kind, is_output=name in graph_outputs)

    def _finish(
        self, node: NodeProto, position: int, name: str, kind: int, *, is_output: bool
    ) -> None:
        """Note the type of an output, and bring the name back to float32 where that is needed."""
        self.made[name] = kind
        if self._is_emulated(kind):
            node.output[position] = f"{name}_unrounded"
            self._add_cast(node.output[position], name, kind)
        elif is_output:
            node.output[position] = f"{name}_{_NAMES[kind]}"
            self._add_cast(node.output[position], name, FLOAT32)
            self.known[name, kind] = node.output[position]
            self.known[name, FLOAT32] = name

    def _type_of(self, node: NodeProto, stored: set[str]) -> int:
        inputs = [name for name in node.input if name and name not in stored]
        if node.op_type in _SIZES or (inputs and self.sizes.issuperset(inputs)):
            self.sizes.update(node.output)
            return FLOAT32
        if node.name in self.named:
            return self.named[node.name]
        kept = node.op_type in KEPT_FLOAT32[self.default] or not all(
            _survives(self.constants[name], self.default)
            for name in node.input
            if name in self.constants
        )
        return FLOAT32 if kept else self.default

    def _as(self, name: str, kind: int) -> str:
        """Name of the tensor in the type wanted; a cast is added the first time it is needed."""
        made = self.made.get(name, FLOAT32)
        if (name, kind) in self.known:
            return self.known[name, kind]
        if made == kind or (kind == FLOAT32 and self._is_emulated(made)):
            return name
        self.known[name, kind] = target = f"{name}_{_NAMES[kind]}"
        if name in self.constants:
            values = self.constants[name].astype(_NUMPY[kind])
            values = values.astype(np.float32) if self._is_emulated(kind) else values
            self.model.graph.initializer.append(numpy_helper.from_array(values, target))
        else:
            self._add_cast(self.known.get((name, made), name), target, kind)
        return target

    def _is_emulated(self, kind: int) -> bool:
        return self.emulates and kind == BFLOAT16

    def _add_cast(self, source: str, target: str, to: int) -> None:
        """A cast, or the rounding that emulates it."""
        stored = f"{target}_stored" if self._is_emulated(to) else target
        self.nodes.append(
            helper.make_node("Cast", [source], [stored], name=f"{stored}_cast", to=to)
        )
        if stored != target:
            widen = helper.make_node("Cast", [stored], [target], name=f"{target}_cast", to=FLOAT32)
            self.nodes.append(widen)

    def _drop_unused_constants(self) -> None:
        graph = self.model.graph
        used = {name for node in graph.node for name in node.input}
        used |= {value.name for value in graph.output}
        kept = [tensor for tensor in graph.initializer if tensor.name in used]
        del graph.initializer[:]
        graph.initializer.extend(kept)


def _survives(values: NDArray[np.float32], kind: int) -> bool:
    """False for a finite value beyond the range, and for a scalar that would become 0."""
    if kind == FLOAT32:
        return True
    magnitude = np.abs(values[np.isfinite(values)])
    if (magnitude > _LARGEST[kind]).any():
        return False
    return values.size != 1 or not magnitude.any() or bool(values.astype(_NUMPY[kind]).any())


def _retarget(cast: NodeProto, kind: int) -> None:
    """Let a cast to float32 give the type of the node."""
    for attribute in cast.attribute:
        if attribute.name == "to" and attribute.i == FLOAT32:
            attribute.i = kind


# -- quantised graphs -----------------------------------------------------------------------------


def quantized_as(graph: bytes) -> str | None:
    """`qdq` for a graph that engines take as int8, `dynamic` for one of ONNX Runtime, else None."""
    found = {node.op_type for node in onnx.load_model_from_string(graph).graph.node}
    if found & {"DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"}:
        return "dynamic"
    return "qdq" if "DequantizeLinear" in found else None


def int8_share(graph: bytes) -> float:
    """Share of the weights of MatMul and Gemm that are stored in 8 bits, 0..1, by values."""
    model = onnx.load_model_from_string(graph).graph
    stored = {tensor.name: tensor for tensor in model.initializer}
    maker = {name: node for node in model.node for name in node.output}
    total: dict[str, int] = {}
    small: dict[str, int] = {}
    for node in model.node:
        if node.op_type not in ("MatMul", "Gemm"):
            continue
        source = maker.get(node.input[1])
        is_small = source is not None and source.op_type == "DequantizeLinear"
        name = source.input[0] if is_small and source is not None else node.input[1]
        if name in stored:
            total[name] = int(np.prod(stored[name].dims))
            if is_small:
                small[name] = total[name]
    return sum(small.values()) / sum(total.values()) if total else 0.0
