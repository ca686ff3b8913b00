"""Engines by name and by file, and running one, or its graph where the engine cannot run.

An engine and its graph are the same arithmetic: the backend was given the graph after the precision
pass, and ONNX Runtime runs the result of the same pass where the engine's device is missing. The
engine's sidecar names the graph file; that file, as it is now, gives the scores.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stereo.engines import base, precision
from stereo.engines.base import Engine, EngineBackend, ShapeRange
from stereo.engines.ort import GraphEngine, OnnxRuntime
from stereo.engines.trt import TensorRT
from stereo.engines.trt_rtx import TensorRTRTX
from stereo.errors import BackendMissingError, EngineError
from stereo.files import sha256

LOG = logging.getLogger(__name__)
BACKENDS: dict[str, EngineBackend] = {
    backend.name: backend for backend in (TensorRT(), TensorRTRTX(), OnnxRuntime())
}  # in the order in which `auto` tries them
# On a CPU values are rounded where they are stored; what a GPU computes with differs further.
STORAGE_ROUNDING = " (storage rounding)"
SUFFIXES = {".engine": "tensorrt", ".plan": "tensorrt", ".rtx": "tensorrt_rtx"}


def backend(name: str) -> EngineBackend:
    """The backend `name`; `auto` is the first one that can build here.

    Raises:
        BackendMissingError: it cannot build on this machine.
    """
    if name == "auto":
        return next(found for found in BACKENDS.values() if found.available() is None)
    reason = BACKENDS[name].available()
    if reason:
        raise BackendMissingError(f"gen_trt_engine.backend={name}: {reason}")
    return BACKENDS[name]


def backend_for(path: Path) -> EngineBackend:
    """The backend that an engine or graph file is for: what its sidecar says, else its suffix."""
    facts = base.read_sidecar(path) or {}
    return BACKENDS[facts.get("backend", SUFFIXES.get(path.suffix, "onnxruntime"))]


@dataclass(frozen=True)
class Runnable:
    """A loaded engine or graph and what to tell about it.

    Attributes:
        engine: callable on arrays by tensor name.
        backend: who computes, in words for tables.
        facts: sidecar of the graph (model, size, iterations); empty without one.
        warnings: what a reader of the scores must know, for example exchanged files.
        profile_batch: largest batch of an engine with an open batch axis.
        profile: inputs of an engine with open sides -> the shapes it was built for.
    """

    engine: Engine
    backend: str
    facts: dict[str, Any]
    warnings: tuple[str, ...] = ()
    profile_batch: int | None = None
    profile: Mapping[str, ShapeRange] = field(default_factory=dict[str, ShapeRange])

    @property
    def largest_batch(self) -> int | None:
        """Pairs it takes in one call; None: any number."""
        fixed = self.engine.inputs[0].shape[0]
        return self.profile_batch if fixed == -1 else fixed


def runnable(
    path: Path, *, threads: int | None = None, runtime_cache: Path | None = None
) -> Runnable:
    """Load an engine where this machine can run it, else the graph that it was built from.

    Args:
        path: an engine or a graph (.onnx).
        threads: threads of ONNX Runtime; None uses every core this process may use.
        runtime_cache: kernels of TensorRT-RTX, read and written where the engine itself runs.

    Raises:
        EngineError: no such file, or neither the engine nor its graph can run here.
    """
    if not path.is_file():
        raise EngineError(f"{path}: no such file. Build it with depth_net gen_trt_engine")
    facts = base.read_sidecar(path)
    if facts is None:
        return _without_sidecar(path, threads, runtime_cache)
    warnings = _changed(path, facts["sha256"], base.sidecar_path(path))
    if facts["kind"] == "graph":
        engine = GraphEngine(path.read_bytes(), threads=threads)
        arithmetic = "int8" if facts.get("quantization") else "fp32"
        words = f"ONNX Runtime {engine.device} {arithmetic}"
        found = Runnable(engine, words, facts, warnings)
    else:
        found = _engine_or_graph(path, facts, warnings, threads, runtime_cache)
    for warning in found.warnings:
        LOG.warning(warning)
    return found


def _without_sidecar(path: Path, threads: int | None, runtime_cache: Path | None) -> Runnable:
    warning = f"{path}: no sidecar {base.sidecar_path(path).name}, so nothing about it is checked"
    LOG.warning(warning)
    owner = backend_for(path)
    if owner.name == "onnxruntime":
        engine: Engine = GraphEngine(path.read_bytes(), threads=threads)
        return Runnable(engine, f"ONNX Runtime {engine.device}", {}, (warning,))
    engine = owner.load(path, runtime_cache=runtime_cache)
    return Runnable(engine, f"{owner.name} {engine.device}", {}, (warning,))


def _engine_or_graph(
    path: Path,
    facts: dict[str, Any],
    warnings: tuple[str, ...],
    threads: int | None,
    runtime_cache: Path | None,
) -> Runnable:
    owner = backend_for(path)
    source: dict[str, Any] = facts.get("source") or {}
    layers: list[str] = facts.get("layers_precision", [])
    kind = f"{owner.name} {facts['data_type']} engine"
    recorded = facts["graph"]
    changed = recorded["converted_sha256"] != recorded["sha256"]
    rounds = STORAGE_ROUNDING if changed else ""
    profile = {
        name: ShapeRange(*(tuple(shapes[end]) for end in ("minimum", "optimum", "maximum")))
        for name, shapes in facts.get("profiles", {}).items()
    }
    sides = {name: _any_batch(shapes) for name, shapes in profile.items()}
    if owner.name == "onnxruntime":
        engine: Engine = GraphEngine(path.read_bytes(), threads=threads)
        words = f"ONNX Runtime {engine.device}, {kind}{rounds}"
        return Runnable(engine, words, source, warnings, profile=sides)
    try:
        engine = owner.load(path, runtime_cache=runtime_cache)
    except EngineError as error:
        reason = str(error).splitlines()[0]
    else:
        largest = next((shapes.maximum[0] for shapes in profile.values()), None)
        return Runnable(engine, f"{kind} on {engine.device}", source, warnings, largest, profile)
    graph = _graph_of(path, facts, reason)
    converted = precision.convert(
        graph.read_bytes(), facts["data_type"], layers, emulate_bfloat16=True
    )
    warnings += _changed(graph, recorded["sha256"], base.sidecar_path(path))
    engine = GraphEngine(converted, threads=threads)
    words = f"ONNX Runtime {engine.device}, graph of {kind}{rounds}"
    words += f" (engine not runnable here: {reason})"
    return Runnable(engine, words, source, warnings, profile=sides)


def _any_batch(shapes: ShapeRange) -> ShapeRange:
    """The shapes without limits of the batch, which ONNX Runtime does not have."""
    return ShapeRange((1, *shapes.minimum[1:]), shapes.optimum, (sys.maxsize, *shapes.maximum[1:]))


def _graph_of(engine: Path, facts: dict[str, Any], reason: str) -> Path:
    """The engine's graph: beside it (a copied bundle) before the place it was built from."""
    recorded = Path(facts["graph"]["file"])
    places = (engine.parent / recorded.name, engine.parent / recorded)
    graph = next((place for place in places if place.is_file()), None)
    if graph is None:
        raise BackendMissingError(
            f"{engine}: the engine cannot run here ({reason}), and its graph {recorded.name} is "
            "not beside it. Copy the graph there, or run on a machine with an NVIDIA GPU"
        )
    return graph


def _changed(path: Path, recorded: str, sidecar: Path) -> tuple[str, ...]:
    """A warning when a file is not the one that a sidecar describes."""
    found = sha256(path)
    if found == recorded:
        return ()
    return (
        f"{path}: sha256 {found} is not {recorded}, which {sidecar.name} records. The file was "
        "exchanged or changed; scores are those of the file as it is now",
    )
