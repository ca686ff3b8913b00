"""The recipe of `gen_trt_engine`: graph, precision pass, check, build, sidecar."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from stereo.engines import backend, base, precision
from stereo.engines.base import (
    BuildOptions,
    EngineBackend,
    EngineInfo,
    ShapeRange,
    Tensors,
    TensorSpec,
)
from stereo.engines.ort import GraphEngine
from stereo.errors import EngineError, SpecError, SpecProblem
from stereo.files import sha256, write_bytes
from stereo.spec.deploy import EngineSpec

LOG = logging.getLogger(__name__)


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
    data_type = section.tensorrt.data_type
    exported = graph.read_bytes()
    converted = precision.convert(exported, data_type)
    tell(f"checking the {data_type} graph in ONNX Runtime")
    reference = GraphEngine(exported)
    options = build_options(section, reference.inputs)
    probe = _probe(reference.inputs, options)
    rounding = _difference(reference(probe), GraphEngine(converted)(probe), graph)
    tell(f"building with {builder.name}")
    compiled = builder.compile(converted, options)
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
        "profiles": {name: asdict(shapes) for name, shapes in options.profiles.items()},
        **compiled.facts,
        "process_peak_memory_mb": base.peak_memory_mb(),
        "graph": {
            "file": base.relative_to(graph, engine.parent),
            "sha256": sha256(graph),
            "converted_sha256": hashlib.sha256(converted).hexdigest(),
        },
        "precision_pass_max_difference_px": rounding,
        "device_check": _device_check(builder, engine, probe, reference, graph),
        "source": base.read_sidecar(graph),
    }
    complete = base.write_sidecar(engine, facts)
    return EngineInfo(engine, base.sidecar_path(engine), builder.name, complete)


def engine_name(
    graph: Path, data_type: str, inputs: Sequence[TensorSpec], builder: EngineBackend
) -> str:
    """File name of an engine: `<graph stem>.<precision>.<HxW>.<suffix>`."""
    height, width = inputs[0].shape[2:]
    return f"{graph.stem}.{data_type}.{height}x{width}.{builder.suffix}"


def build_options(section: EngineSpec, inputs: Sequence[TensorSpec]) -> BuildOptions:
    """Options for a graph with these inputs; an open batch axis gets a profile.

    Raises:
        SpecError: the batch that the spec fixes is not the one the graph has.
        EngineError: another axis than the batch is open.
    """
    batch, tensorrt = section.batch_size, section.tensorrt
    sizes = (tensorrt.min_batch_size, tensorrt.opt_batch_size, tensorrt.max_batch_size)
    sizes = (batch,) * 3 if batch > 0 else sizes
    profiles: dict[str, ShapeRange] = {}
    for tensor in inputs:
        if -1 in tensor.shape[1:]:
            raise EngineError(
                f"{section.onnx_file}: input {tensor.name} has shape {list(tensor.shape)}; only "
                "the batch may be dynamic. Export again with fixed height and width"
            )
        if tensor.shape[0] == -1:
            profiles[tensor.name] = ShapeRange(*((size, *tensor.shape[1:]) for size in sizes))
        elif batch not in (-1, tensor.shape[0]):
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
        verbose=section.verbose,
    )


def _probe(inputs: Sequence[TensorSpec], options: BuildOptions) -> Tensors:
    """Normalised noise at the shapes the engine is tuned for, another for each input."""
    generator = np.random.default_rng(0)
    shapes = {
        tensor.name: options.profiles[tensor.name].optimum
        if tensor.name in options.profiles
        else tensor.shape
        for tensor in inputs
    }
    return {
        name: generator.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()
    }


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
    builder: EngineBackend, engine: Path, probe: Tensors, reference: GraphEngine, graph: Path
) -> dict[str, Any]:
    """Run the new engine once where its device is present."""
    try:
        loaded = builder.load(engine)
    except EngineError as error:
        return {"run": False, "reason": str(error).splitlines()[0]}
    difference = _difference(reference(probe), loaded(probe), graph)
    return {"run": True, "device": loaded.device, "max_difference_px": difference}
