"""The precision pass: a float32 graph becomes a float16 graph before any backend sees it.

Every backend builds strongly typed networks, so the types written in the graph are the arithmetic
of the engine, the same on TensorRT, TensorRT-RTX and ONNX Runtime. Inputs and outputs stay float32.

A node computes in float16 unless its operator is in `FLOAT32_OPERATORS` or one of its constants
does not survive float16 (an epsilon of 1e-12 becomes 0). Same graph: same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from stereo.engines.base import DataType
from stereo.errors import EngineError

# Normalisation statistics overflow or lose their epsilon in float16, and coordinates up to the
# image width need more than its 11 bits (engines.md, section 3).
FLOAT32_OPERATORS = frozenset(
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
# Inputs that the operator defines as float32 whatever the type of its data: Resize's roi, scales.
ALWAYS_FLOAT32_INPUTS = {"Resize": (1, 2)}
LARGEST_FLOAT16 = float(np.finfo(np.float16).max)


def convert(graph: bytes, data_type: DataType) -> bytes:
    """The graph with its arithmetic in `data_type`; for fp32 the very same bytes.

    Args:
        graph: a serialised float32 ONNX model.
        data_type: type of the arithmetic.

    Raises:
        EngineError: the graph has control flow, which the pass does not enter.
    """
    if data_type == "fp32":
        return graph
    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(graph))
    _Pass(model).run()
    del model.graph.value_info[:]  # they describe the float32 graph
    return model.SerializeToString(deterministic=True)


@dataclass
class _Pass:
    """One walk through the nodes, in order, keeping track of which type each tensor now has."""

    model: ModelProto
    floats: set[str] = field(init=False)  # tensors that were float32 before the pass
    constants: dict[str, NDArray[np.float32]] = field(init=False)
    in_float16: dict[str, str] = field(init=False, default_factory=dict[str, str])  # name -> name
    in_float32: dict[str, str] = field(init=False, default_factory=dict[str, str])
    nodes: list[NodeProto] = field(init=False, default_factory=list[NodeProto])

    def run(self) -> None:
        graph = self.model.graph
        self._hoist_constants()
        self.constants = {
            tensor.name: numpy_helper.to_array(tensor)
            for tensor in graph.initializer
            if tensor.data_type == TensorProto.FLOAT
        }
        typed = (*graph.input, *graph.value_info, *graph.output)
        self.floats = set(self.constants) | {
            value.name for value in typed if value.type.tensor_type.elem_type == TensorProto.FLOAT
        }
        outputs = {value.name for value in graph.output}
        for node in list(graph.node):
            self._convert(node, outputs)
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

    def _convert(self, node: NodeProto, graph_outputs: set[str]) -> None:
        float16 = self._computes_in_float16(node)
        exempt = ALWAYS_FLOAT32_INPUTS.get(node.op_type, ())
        for position, name in enumerate(node.input):
            if name in self.floats:
                wants_float16 = float16 and position not in exempt
                node.input[position] = self._as(name, float16=wants_float16)
        if float16 and node.op_type == "Cast":
            _retarget(node)
        self.nodes.append(node)
        if not float16:
            return
        for position, name in enumerate(node.output):
            if name not in self.floats:
                continue
            self.in_float16[name] = name
            if name in graph_outputs:
                node.output[position] = self.in_float16[name] = f"{name}_float16"
                self._add_cast(node.output[position], name, TensorProto.FLOAT)
                self.in_float32[name] = name

    def _computes_in_float16(self, node: NodeProto) -> bool:
        return node.op_type not in FLOAT32_OPERATORS and all(
            _survives_float16(self.constants[name]) for name in node.input if name in self.constants
        )

    def _as(self, name: str, *, float16: bool) -> str:
        """Name of the tensor in the type wanted; a cast is added the first time it is needed."""
        known = self.in_float16 if float16 else self.in_float32
        other = self.in_float32 if float16 else self.in_float16
        if name in known:
            return known[name]
        if not float16 and name not in other:
            return name
        known[name] = f"{name}_float16" if float16 else f"{name}_float32"
        if name in self.constants:
            values = self.constants[name].astype(np.float16)
            self.model.graph.initializer.append(numpy_helper.from_array(values, known[name]))
        else:
            target = TensorProto.FLOAT16 if float16 else TensorProto.FLOAT
            self._add_cast(other.get(name, name), known[name], target)
        return known[name]

    def _add_cast(self, source: str, target: str, to: int) -> None:
        cast = helper.make_node("Cast", [source], [target], name=f"{target}_cast", to=to)
        self.nodes.append(cast)

    def _drop_unused_constants(self) -> None:
        graph = self.model.graph
        used = {name for node in graph.node for name in node.input}
        used |= {value.name for value in graph.output}
        kept = [tensor for tensor in graph.initializer if tensor.name in used]
        del graph.initializer[:]
        graph.initializer.extend(kept)


def _survives_float16(values: NDArray[np.float32]) -> bool:
    """False for a finite value beyond the range, and for a scalar that would become 0."""
    magnitude = np.abs(values[np.isfinite(values)])
    if (magnitude > LARGEST_FLOAT16).any():
        return False
    return values.size != 1 or not magnitude.any() or bool(values.astype(np.float16).any())


def _retarget(cast: NodeProto) -> None:
    """Let a cast to float32 give float16."""
    for attribute in cast.attribute:
        if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
