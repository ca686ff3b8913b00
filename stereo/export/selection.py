"""Which modules of a network are quantised, and to which type: the rules of section `quantize`.

A *module* is what holds a weight: its qualified name (`pretrained.blocks.0.mlp.fc1`) and its class
(`Linear`, `Conv2d`, ...). In a graph both are told from the node and the name of its weight, so
that the same patterns serve checkpoints and graphs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

import onnx
from onnx import NodeProto, TensorProto
from torch import nn

from stereo.errors import SpecError, SpecProblem
from stereo.spec.deploy import QuantizeSpec, QuantLayer

LOG = logging.getLogger(__name__)
# Outputs are regressions: the last layers before them stay as they are (training.md 10).
REGRESSION_HEADS = ("*output_conv2*", "*classifier*", "*disp_head*")
NATIVE = "native"
_LINEAR = "Linear"
_OPERATORS: Mapping[type[nn.Module], str] = {
    nn.Linear: "MatMul",
    nn.Conv1d: "Conv",
    nn.Conv2d: "Conv",
    nn.Conv3d: "Conv",
}


@dataclass(frozen=True)
class Selection:
    """What happens to every module that could be quantised.

    Attributes:
        types: module -> type of its weight.
        skipped: module -> why it stays as it is.
    """

    types: dict[str, str]
    skipped: dict[str, str]


def select(modules: Mapping[str, str], section: QuantizeSpec) -> Selection:
    """Apply `layers` and `skip_names` to modules.

    Args:
        modules: qualified name -> class of every module with a weight of a quantised operator.
        section: later entries of `layers` override earlier ones, `skip_names` win.

    Raises:
        SpecError: no module at all, or a pattern that matches none, with names that are near.
    """
    layers = section.layers or [QuantLayer(module_name="*")]
    if not section.layers:
        LOG.info("quantize.layers is empty: every module gets int8 weights")
    operators = ", ".join(section.backend_kwargs.op_types)
    if not modules:
        problem = f"no {operators} with a weight"
        remedy = "Name other operators in quantize.backend_kwargs.op_types"
        raise SpecError([SpecProblem(section.model_path, "quantize", problem, remedy)])
    _require_matches("layers", [layer.module_name for layer in layers], modules, operators)
    _require_matches("skip_names", section.skip_names, modules, operators)
    types: dict[str, str] = {}
    skipped: dict[str, str] = {}
    for name, kind in modules.items():
        chosen = [layer for layer in layers if matches(layer.module_name, name, kind)]
        skip = _first(section.skip_names, name, kind)
        head = _first(REGRESSION_HEADS, name, kind)
        if skip is not None:
            skipped[name] = f"skip_names {skip}"
        elif head is not None:
            skipped[name] = f"regression output {head}"
        elif not chosen:
            skipped[name] = "no pattern of layers matches"
        elif chosen[-1].weights.dtype == NATIVE:
            skipped[name] = f"native by {chosen[-1].module_name}"
        else:
            types[name] = chosen[-1].weights.dtype
    if not types:
        problem = f"every one of {len(modules)} modules is skipped"
        raise SpecError(
            [SpecProblem(section.model_path, "quantize.layers", problem, "Skip fewer modules")]
        )
    return Selection(types, skipped)


def matches(pattern: str, name: str, kind: str) -> bool:
    """Whether a shell pattern, case-sensitive, fits the name of a module or its class."""
    return fnmatchcase(name, pattern) or fnmatchcase(kind, pattern)


def _first(patterns: Iterable[str], name: str, kind: str) -> str | None:
    return next((pattern for pattern in patterns if matches(pattern, name, kind)), None)


def _require_matches(
    key: str, patterns: Sequence[str], modules: Mapping[str, str], operators: str
) -> None:
    unused = [
        pattern
        for pattern in patterns
        if not any(matches(pattern, name, kind) for name, kind in modules.items())
    ]
    problems = [
        SpecProblem(
            "spec",
            f"quantize.{key}",
            f"{pattern!r} matches none of {len(modules)} modules ({operators})",
            f"Nearest: {', '.join(near(pattern, modules))}",
        )
        for pattern in unused
    ]
    if problems:
        raise SpecError(problems)


def near(pattern: str, names: Iterable[str]) -> list[str]:
    """Up to three names that a pattern may have meant; the first ones where none is near."""
    known = list(names)
    return get_close_matches(pattern.strip("*"), known, 3, cutoff=0.4) or known[:3]


def modules_of_network(network: nn.Module, operators: Sequence[str]) -> dict[str, str]:
    """Qualified name -> class of every layer of a network that becomes one of the operators."""
    wanted = {"MatMul" if operator == "Gemm" else operator for operator in operators}
    return {
        name: type(module).__name__
        for name, module in network.named_modules()
        for kind, operator in _OPERATORS.items()
        if isinstance(module, kind) and operator in wanted
    }


def modules_of_graph(
    model: onnx.ModelProto, operators: Sequence[str]
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Modules of a graph as `select` takes them, and the nodes that compute each.

    Only nodes whose weight is a constant count: the products of an attention have none.
    """
    weights = {
        tensor.name: len(tensor.dims)
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1
    }
    kinds: dict[str, str] = {}
    nodes: dict[str, list[str]] = {}
    for node in model.graph.node:
        if node.op_type not in operators or len(node.input) < 2 or node.input[1] not in weights:
            continue
        name = _module_name(node)
        is_conv = node.op_type == "Conv"
        kinds[name] = f"Conv{weights[node.input[1]] - 2}d" if is_conv else _LINEAR
        nodes.setdefault(name, []).append(node.name)
    return kinds, nodes


def _module_name(node: NodeProto) -> str:
    """`/network/a/b.0/MatMul` -> `a.b.0`, unless the name of the weight says it better.

    The exporter names a weight after its parameter where it stores it unchanged, and a node after
    the modules that were entered; a Sequential then repeats its name in that of its members.
    """
    weight = node.input[1]
    if weight.endswith(".weight"):
        return weight.removesuffix(".weight").removeprefix("network.")
    parts: list[str] = []
    for part in node.name.strip("/").split("/")[:-1]:
        if parts and part.startswith(f"{parts[-1]}."):
            parts.pop()
        parts.append(part)
    return ".".join(parts[1:] if parts[:1] == ["network"] else parts) or node.name
