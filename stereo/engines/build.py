"""The recipe of `gen_trt_engine`: graph, precision pass, check, build, sidecar."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from stereo.engines import backend, base, precision
from stereo.engines.base import (
    BuildOptions,
    DataType,
    EngineBackend,
    EngineInfo,
    ShapeRange,
    Tensors,
    TensorSpec,
)
from stereo.engines.ort import GraphEngine
from stereo.errors import EngineError, SpecError, SpecProblem
from stereo.files import sha256, write_bytes
from stereo.progress import bar_when_slow
from stereo.spec.deploy import EngineSpec
from stereo.spec.models import MODELS
from stereo.spec.rules import RULES, VALUE_HINTS

LOG = logging.getLogger(__name__)
KEY = "gen_trt_engine.tensorrt.data_type"


def build_engine(
    section: EngineSpec, directory: Path, *, progress: Callable[[str], None] | None = None
) -> EngineInfo:
    """Build the engine that a spec asks for, and its sidecar.

    Args:
        section: `gen_trt_engine` of a spec.
        directory: where the engine goes when `section.trt_engine` names no file.
        progress: told in words what happens next.

    Raises:
        SpecError: the graph is missing, or the batch of the spec is not the graph's.
        BackendMissingError: the backend or its device is not on this machine.
        EngineError: the graph gives no finite output, or the build failed.
    """
    tell = progress or LOG.info
    graph = Path(section.onnx_file)
    if not graph.is_file():
        problem = SpecProblem(
            str(graph), "gen_trt_engine.onnx_file", "no such file", "Export first"
        )
        raise SpecError([problem])
    builder = backend(section.backend)
    data_type, layers = section.tensorrt.data_type, section.tensorrt.layers_precision
    exported, source = graph.read_bytes(), base.read_sidecar(graph)
    _require_precision(graph, exported, source, data_type, layers)
    computable = precision.convert(exported, data_type, layers, emulate_bfloat16=True)
    converted = (
        precision.convert(exported, data_type, layers) if builder.has_bfloat16 else computable
    )
    reference = GraphEngine(exported)
    options = build_options(section, reference.inputs)
    if data_type == "fp16" and -1 in reference.inputs[0].shape[2:]:
        LOG.warning("%s=fp16 with open sides: may drift or give NaN; fp32 is safe", KEY)
    tell(f"checking the {data_type} graph in ONNX Runtime")
    probe = _probe(reference.inputs, options)
    rounding = _difference(reference(probe), GraphEngine(computable)(probe), graph)
    tell(f"building with {builder.name}")
    with bar_when_slow() as show:
        compiled = builder.compile(converted, replace(options, progress=show))
    engine = (
        Path(section.trt_engine)
        if section.trt_engine
        else directory / engine_name(graph, data_type, reference.inputs, builder)
    )
    write_bytes(engine, compiled.content)
    facts: dict[str, Any] = {
        "kind": "engine",
        "backend": builder.name,
        "data_type": data_type,
        "layers_precision": list(layers),
        **({"int8_share": precision.int8_share(exported)} if data_type == "int8" else {}),
        "profiles": {name: asdict(shapes) for name, shapes in options.profiles.items()},
        **compiled.facts,
        "process_peak_memory_mb": base.peak_memory_mb(),
        "graph": {
            "file": base.relative_to(graph, engine.parent),
            "sha256": sha256(graph),
            "converted_sha256": hashlib.sha256(converted).hexdigest(),
        },
        "precision_pass_max_difference": rounding,
        "device_check": _device_check(builder, engine, section.runtime_cache, probe, reference),
        "source": source,
    }
    complete = base.write_sidecar(engine, facts)
    return EngineInfo(engine, base.sidecar_path(engine), builder.name, complete)


def _require_precision(
    graph: Path,
    exported: bytes,
    source: Mapping[str, Any] | None,
    data_type: DataType,
    layers: Sequence[str],
) -> None:
    """Refuse a type that the graph or its network cannot have.

    Raises:
        SpecError: int8 without quantised weights or the other way round; fp16 or bf16 where the
            values of the network do not survive it.
    """
    kind = precision.quantized_as(exported)
    fault: tuple[str, str] | None = None
    if kind == "dynamic":
        fault = (
            "inputs are quantised while the graph runs, which only ONNX Runtime does",
            "Give it to evaluate or inference as it is, or quantise with mode static_ptq",
        )
    elif kind == "qdq" and (data_type != "int8" or layers):
        fault = "the graph has int8 weights", f"Set {KEY}=int8 and no layers_precision"
    elif kind is None and data_type == "int8":
        fault = (
            "the graph has float weights",
            "Quantise it first: depth_net quantize with mode static_ptq",
        )
    elif source is not None and data_type in ("fp16", "bf16"):
        fault = _network_fault(source, data_type)
    if fault is not None:
        problem, remedy = fault
        raise SpecError([SpecProblem(str(graph), KEY, f"got {data_type}: {problem}", remedy)])


def _network_fault(source: Mapping[str, Any], data_type: DataType) -> tuple[str, str] | None:
    """What the rules of the spec say about the network that the graph really holds."""
    model = next((m for m in MODELS.values() if m.model_type == source["model_type"]), None)
    if model is None:
        return None
    if data_type == "bf16" and model.dataset_name == "StereoDataset":
        return VALUE_HINTS[KEY, "bf16"], "Use fp16 or fp32"
    spec = model.spec_class()
    spec.model.encoder = source["model"]["encoder"]
    spec.gen_trt_engine.tensorrt.data_type = data_type  # type: ignore[assignment]
    for rule in RULES[model.key]:
        problem = rule.broken(spec) if KEY in rule.keys else None
        if problem and rule.warning:
            LOG.warning("%s: %s. %s", KEY, problem, rule.remedy)
        elif problem:
            return problem, rule.remedy
    return None


def engine_name(
    graph: Path, data_type: str, inputs: Sequence[TensorSpec], builder: EngineBackend
) -> str:
    """File name of an engine: `<graph stem>.<precision>.<HxW or dyn>.<suffix>`."""
    height, width = inputs[0].shape[2:]
    size = "dyn" if -1 in (height, width) else f"{height}x{width}"
    return f"{graph.stem}.{data_type}.{size}.{builder.suffix}"


def build_options(section: EngineSpec, inputs: Sequence[TensorSpec]) -> BuildOptions:
    """Options for a graph with these inputs; open axes get a profile.

    Raises:
        SpecError: the batch that the spec fixes is not the one the graph has, or it gives no
            profile for open sides.
        EngineError: another axis than batch, height and width is open.
    """
    batch, tensorrt = section.batch_size, section.tensorrt
    sizes = (tensorrt.min_batch_size, tensorrt.opt_batch_size, tensorrt.max_batch_size)
    sizes = (batch,) * 3 if batch > 0 else sizes
    profiles: dict[str, ShapeRange] = {}
    for tensor in inputs:
        if tensor.shape[1] == -1 or (-1 in tensor.shape[2:] and tensor.shape[2:] != (-1, -1)):
            raise EngineError(
                f"{section.onnx_file}: input {tensor.name} has shape {list(tensor.shape)}; only "
                "the batch, or height and width together, may be dynamic. Export again"
            )
        is_open = tensor.shape[2:] == (-1, -1)
        if tensor.shape[0] == -1 or is_open:
            sides = _sides(section) if is_open else (tensor.shape[2:],) * 3
            batches = sizes if tensor.shape[0] == -1 else (tensor.shape[0],) * 3
            shapes = zip(batches, sides, strict=True)
            profiles[tensor.name] = ShapeRange(*((n, tensor.shape[1], *hw) for n, hw in shapes))
        if tensor.shape[0] != -1 and batch not in (-1, tensor.shape[0]):
            raise SpecError(
                [
                    SpecProblem(
                        section.onnx_file,
                        "gen_trt_engine.batch_size",
                        f"got {batch}, the graph has a fixed batch of {tensor.shape[0]}",
                        "Use -1 or the graph's batch, or export with export.batch_size=-1",
                    )
                ]
            )
    return BuildOptions(
        data_type=section.tensorrt.data_type,
        profiles=profiles,
        workspace_gib=section.tensorrt.workspace_size,
        compute_capabilities=tuple(section.compute_capabilities),
        timing_cache=Path(section.timing_cache) if section.timing_cache else None,
        gpu_id=section.gpu_id,
        verbose=section.verbose,
    )


def _sides(section: EngineSpec) -> tuple[tuple[int, int], ...]:
    """Smallest, best and largest height and width that the spec gives for an open graph.

    Raises:
        SpecError: it gives none.
    """
    names = [f"{end}_{side}" for end in ("min", "opt", "max") for side in ("height", "width")]
    given = [getattr(section, name, None) for name in names]
    if None in given:
        problem = f"height and width of the graph are open, {', '.join(names)} are not all set"
        remedy = "Set the six, multiples of 32, or export with export.dynamic_hw=false"
        key = f"gen_trt_engine.{names[given.index(None)]}"
        raise SpecError([SpecProblem(section.onnx_file, key, problem, remedy)])
    sides: list[int] = [int(side) for side in given if side is not None]
    return tuple(zip(sides[::2], sides[1::2], strict=True))


def _probe(inputs: Sequence[TensorSpec], options: BuildOptions) -> Tensors:
    """Noise at the shapes the engine is tuned for, another for each input."""
    generator = np.random.default_rng(0)
    shapes = {
        tensor.name: options.profiles[tensor.name].optimum
        if tensor.name in options.profiles
        else tensor.shape
        for tensor in inputs
    }
    if inputs[0].dtype == "uint8":
        return {n: generator.integers(0, 256, s, dtype=np.uint8) for n, s in shapes.items()}
    return {n: generator.standard_normal(s, dtype=np.float32) for n, s in shapes.items()}


def _difference(reference: Tensors, candidate: Tensors, graph: Path) -> float:
    """Largest absolute difference of any output.

    Raises:
        EngineError: an output is not finite.
    """
    for name, values in {**reference, **candidate}.items():
        if not np.isfinite(values).all():
            raise EngineError(
                f"{graph}: output {name} is not finite on normalised noise. Check the checkpoint; "
                "if only fp16 fails, build with gen_trt_engine.tensorrt.data_type=fp32"
            )
    return max(float(np.abs(values - candidate[name]).max()) for name, values in reference.items())


def _device_check(
    builder: EngineBackend,
    engine: Path,
    runtime_cache: str | None,
    probe: Tensors,
    reference: GraphEngine,
) -> dict[str, Any]:
    """Run the new engine once where its device is present."""
    cache = None if runtime_cache is None else Path(runtime_cache)
    try:
        loaded = builder.load(engine, runtime_cache=cache)
    except EngineError as error:
        return {"run": False, "reason": str(error).splitlines()[0]}
    difference = _difference(reference(probe), loaded(probe), engine)
    return {"run": True, "device": loaded.device, "max_difference": difference}
