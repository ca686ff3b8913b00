"""ONNX Runtime: runs graphs on every machine; its engine is the graph after the precision pass."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stereo.engines.base import BuildOptions, Compiled, Engine, Tensors, TensorSpec
from stereo.errors import EngineError

PROVIDERS = {"CUDAExecutionProvider": "CUDA", "CPUExecutionProvider": "CPU"}


class GraphEngine:
    """A graph in ONNX Runtime; the same inputs on the same machine give the same bits."""

    def __init__(self, graph: bytes, *, threads: int | None = None) -> None:
        """Load a serialised graph.

        Args:
            graph: serialised ONNX model.
            threads: threads of one operator; None uses every core this process may use.
        """
        ort = _library()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
        options.use_deterministic_compute = True
        # Waiting threads sleep: spinning ones would take the cores of trials that run beside us.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        providers = [name for name in PROVIDERS if name in ort.get_available_providers()]
        try:
            self._session: Any = ort.InferenceSession(graph, options, providers=providers)
        except Exception as error:  # ONNX Runtime has its own C++ exception types
            raise EngineError(f"ONNX Runtime cannot load the graph: {error}") from error
        self.device = PROVIDERS[self._session.get_providers()[0]]
        self.inputs = tuple(_tensor(node) for node in self._session.get_inputs())
        self.outputs = tuple(_tensor(node) for node in self._session.get_outputs())

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        """Run once; arrays by tensor name."""
        names = [tensor.name for tensor in self.outputs]
        results: list[NDArray[Any]] = self._session.run(
            names, {name: np.ascontiguousarray(values) for name, values in inputs.items()}
        )
        return dict(zip(names, results, strict=True))


class OnnxRuntime:
    """The backend `onnxruntime`."""

    name = "onnxruntime"
    suffix = "onnx"
    has_bfloat16 = False

    def available(self) -> str | None:
        """None when the package is installed."""
        if importlib.util.find_spec("onnxruntime") is None:
            return "the package onnxruntime is not installed. Run: pip install depthtune"
        return None

    def compile(self, graph: bytes, options: BuildOptions) -> Compiled:
        """The graph itself, proven to load."""
        loaded = GraphEngine(graph)
        facts = {
            "backend_version": _library().__version__,
            "inputs": [asdict(tensor) for tensor in loaded.inputs],
            "outputs": [asdict(tensor) for tensor in loaded.outputs],
        }
        return Compiled(graph, facts)

    def load(self, engine: Path, *, runtime_cache: Path | None = None) -> Engine:
        """Load onto a GPU where ONNX Runtime has one, else onto the CPU."""
        del runtime_cache  # of TensorRT-RTX
        return GraphEngine(engine.read_bytes())


def _library() -> Any:
    import onnxruntime  # pyright: ignore[reportMissingTypeStubs]

    return onnxruntime


def _tensor(node: Any) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else -1 for size in node.shape)
    return TensorSpec(node.name, node.type.removeprefix("tensor(").removesuffix(")"), shape)
