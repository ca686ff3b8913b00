"""The libraries that quantise: graphs by ONNX Runtime and modelopt, networks by torchao, modelopt.

Each is imported when it is used; all but ONNX Runtime are optional. Weights are int8 or fp8, one
scale per output channel. What is chosen by whom: `stereo.export.selection`.

A graph of `static_ptq` has QuantizeLinear and DequantizeLinear nodes in front of each chosen node
and nowhere else. Inputs are int8 with zero point 0, because TensorRT-RTX 1.7 refuses any other; the
vits kit at 98x126 then changes by 2.1 %, with uint8 inputs it would be 1.5 %.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from stereo.checkpoints import files
from stereo.engines.base import Tensors
from stereo.errors import BackendMissingError
from stereo.files import write_bytes
from stereo.spec.deploy import QuantizeSpec

LOG = logging.getLogger(__name__)
OF_GRAPHS = ("onnxruntime", "modelopt.onnx")  # the others quantise a network of PyTorch
_PACKAGES = {"torchao": "torchao", "modelopt.pytorch": "modelopt", "modelopt.onnx": "modelopt"}
_ORT_METHODS = {"minmax": "MinMax", "max": "MinMax", "entropy": "Entropy"}
_ORT_METHODS |= {"percentile": "Percentile"}
HISTOGRAM_BINS = 2048
CUDA = "CUDAExecutionProvider"


def require(section: QuantizeSpec) -> None:
    """Check that the library and the device of a spec are here.

    Raises:
        BackendMissingError: with the name of the extra to install.
    """
    package = _PACKAGES.get(section.backend)
    if package is not None and importlib.util.find_spec(package) is None:
        raise BackendMissingError(
            f"quantize.backend={section.backend}: the package {package} is not installed. "
            f"Run: pip install 'depthtune[{package}]', or use quantize.backend=onnxruntime"
        )
    if section.device not in ("auto", "cpu"):
        missing = None if torch.cuda.is_available() else "no NVIDIA GPU"
        if section.backend == "onnxruntime" and _provider(section) != CUDA:
            missing = missing or "this ONNX Runtime computes on the CPU only"
        if missing:
            remedy = "Set quantize.device=auto"
            raise BackendMissingError(f"quantize.device={section.device}: {missing}. {remedy}")


def device(section: QuantizeSpec) -> torch.device:
    """Where a network is calibrated."""
    if section.device in ("auto", "trt"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(section.device)


def _provider(section: QuantizeSpec) -> str:
    """Who runs a graph for ONNX Runtime's quantiser."""
    import onnxruntime

    available: Any = onnxruntime.get_available_providers()  # pyright: ignore[reportAttributeAccessIssue]
    wanted = device(section).type == "cuda" and CUDA in available
    return CUDA if wanted else "CPUExecutionProvider"


def quantize_graph(
    graph: bytes, section: QuantizeSpec, nodes: Mapping[str, str], samples: Sequence[Tensors]
) -> bytes:
    """A graph with the weights of some nodes quantised.

    Args:
        graph: serialised float32 model.
        section: library, mode, algorithm and device.
        nodes: name of a node -> type of its weight.
        samples: inputs of the graph to calibrate with; used by `static_ptq` only.
    """
    with tempfile.TemporaryDirectory() as scratch, _quiet():
        target = Path(scratch) / "quantized.onnx"
        if section.backend == "modelopt.onnx":
            _by_modelopt(graph, section, nodes, samples, target)
        elif section.mode == "static_ptq":
            _statically(graph, section, list(nodes), samples, target)
        else:
            _dynamically(graph, section, list(nodes), target)
        model = onnx.load(target)
    return model.SerializeToString(deterministic=True)


def _dynamically(graph: bytes, section: QuantizeSpec, nodes: list[str], target: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        _prepared(graph),
        target,
        op_types_to_quantize=section.backend_kwargs.op_types,
        nodes_to_quantize=nodes,
        per_channel=True,
        weight_type=QuantType.QInt8,
    )


def _statically(
    graph: bytes,
    section: QuantizeSpec,
    nodes: list[str],
    samples: Sequence[Tensors],
    target: Path,
) -> None:
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import create_calibrator
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(samples)

        def get_next(self) -> Any:
            return next(self.left, None)

    operators, model = section.backend_kwargs.op_types, _prepared(graph)
    source = target.with_name("float.onnx")
    onnx.save(model, source)
    method = _ORT_METHODS[section.algorithm]
    calibrator = create_calibrator(
        source,
        operators,
        target.with_name("calibrated.onnx").as_posix(),
        getattr(CalibrationMethod, method),
        providers=[_provider(section)],
        # The default of Entropy is as many bins as levels, which clips nothing (1.31).
        extra_options={} if method == "MinMax" else {"num_bins": HISTOGRAM_BINS},
    )
    calibrator.collect_data(Reader())
    quantizer = QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8,
        tensors_range=calibrator.compute_data(),
        nodes_to_quantize=nodes,
        nodes_to_exclude=[],
        op_types_to_quantize=operators,
        extra_options={
            "ActivationSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": operators,
        },
    )
    quantizer.quantize_model()
    onnx.save(quantizer.model.model, target)


def _prepared(graph: bytes) -> onnx.ModelProto:
    """The graph with the shapes that the quantiser looks up, and the mark that it has them."""
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(graph))
    add_pre_process_metadata(model)
    return model


def _by_modelopt(
    graph: bytes,
    section: QuantizeSpec,
    nodes: Mapping[str, str],
    samples: Sequence[Tensors],
    target: Path,
) -> None:
    from modelopt.onnx.quantization import quantize  # pyright: ignore[reportMissingImports]

    source = target.with_name("float.onnx")
    write_bytes(source, graph)
    mode = "fp8" if set(nodes.values()) == {"fp8_e4m3fn"} else "int8"
    quantize(
        str(source),
        quantize_mode=mode,
        calibration_data={
            name: np.concatenate([sample[name] for sample in samples]) for name in samples[0]
        },
        calibration_method="entropy" if section.algorithm == "entropy" else "max",
        calibration_eps=[{"auto": "cpu"}.get(section.device, section.device)],
        op_types_to_quantize=section.backend_kwargs.op_types,
        nodes_to_quantize=list(nodes),
        high_precision_dtype="fp32",
        disable_mha_qdq=True,
        output_path=str(target),
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the libraries print, warn of at import, and log without a name from the user."""
    printed, root = io.StringIO(), logging.getLogger()
    nameless = logging.Filter()
    nameless.filter = lambda record: False  # of a logger only what it is told itself
    root.addFilter(nameless)
    try:
        with contextlib.redirect_stdout(printed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.removeFilter(nameless)
    for line in printed.getvalue().splitlines():
        LOG.debug("%s", line)


def quantize_network(
    network: nn.Module,
    section: QuantizeSpec,
    types: Mapping[str, str],
    calibrate: Callable[[nn.Module], None],
) -> nn.Module:
    """The same network, changed: the weights of some modules are quantised.

    Args:
        network: in eval mode, on the device of the spec.
        section: library, mode and algorithm.
        types: name of a module -> type of its weight.
        calibrate: runs the network on every calibration image.
    """
    with _quiet():
        if section.backend == "torchao":
            return _by_torchao(network, types)
        import modelopt.torch.quantization as mtq  # pyright: ignore[reportMissingImports]

        bits = {"int8": 8, "fp8_e4m3fn": (4, 3)}
        rules: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
        for name, kind in types.items():
            for quantizer, axis in (("weight_quantizer", 0), ("input_quantizer", None)):
                config = {"num_bits": bits[kind], "axis": axis if kind == "int8" else None}
                rules.append({"quantizer_name": f"{name}.{quantizer}", "cfg": config})
        return mtq.quantize(network, {"quant_cfg": rules, "algorithm": "max"}, calibrate)


def _by_torchao(network: nn.Module, types: Mapping[str, str]) -> nn.Module:
    from torchao.quantization import (  # pyright: ignore[reportMissingImports]
        Float8WeightOnlyConfig,
        Int8WeightOnlyConfig,
        quantize_,
    )

    if "fp8_e5m2" in types.values():
        LOG.warning("torchao stores fp8 weights as e4m3: fp8_e5m2 is taken as fp8_e4m3fn")
    configs = {True: Int8WeightOnlyConfig, False: Float8WeightOnlyConfig}
    for is_int8, config in configs.items():
        chosen = {name for name, kind in types.items() if (kind == "int8") is is_int8}
        if chosen:
            quantize_(network, config(), filter_fn=partial(_is_chosen, chosen))
    return network


def _is_chosen(chosen: set[str], _module: nn.Module, name: str) -> bool:
    return name in chosen


def write_network(network: nn.Module, section: QuantizeSpec, path: Path) -> None:
    """Write what is needed to restore a quantised network with the library that made it."""
    if section.backend == "torchao":
        files.write(path, {"state_dict": network.state_dict(), files.QUANTIZED_BY: "torchao"})
        return
    content = io.BytesIO()
    with _quiet():
        import modelopt.torch.opt as mto  # pyright: ignore[reportMissingImports]

        mto.save(network, content)
    write_bytes(path, content.getvalue())
