"""Builder and runtime calls shared by TensorRT (10 and later) and TensorRT-RTX.

Both Python packages have the same surface; every function takes the imported module as `trt`.
Networks are strongly typed: the types in the graph are the arithmetic of the engine, and TF32 is
off, so that fp32 means float32.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stereo.engines.base import BuildOptions, Compiled, Tensors, TensorSpec
from stereo.errors import BackendMissingError, EngineError
from stereo.files import write_bytes

LOG = logging.getLogger(__name__)
REPORTED_RECORDS = 5


@cache
def process_logger(trt: Any) -> Any:
    """The one logger of this process, which keeps the last warnings and errors.

    The library goes on using the first logger it was ever given (TensorRT-RTX 1.7), and says why a
    build failed only there.
    """

    class RecordingLogger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.records: deque[str] = deque(maxlen=100)
            self.verbose = False

        def log(self, severity: Any, msg: str) -> None:
            if int(severity) <= int(trt.ILogger.Severity.ERROR):
                self.records.append(msg)
            if self.verbose:
                LOG.info("%s: %s", severity.name, msg)

    return RecordingLogger()


def _progress_monitor(trt: Any, tell: Callable[[str, int, int | None], None]) -> Any:
    """What the builder tells about its phases, which it enters one inside the other."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            tell(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            tell(phase_name, step + 1, self.steps[phase_name])
            return True  # go on

        def phase_finish(self, phase_name: str) -> None:
            tell(phase_name, self.steps[phase_name], self.steps[phase_name])

    return Monitor()


def build(
    trt: Any, graph: bytes, options: BuildOptions, configure: Callable[[Any], None]
) -> Compiled:
    """Parse a graph and build it.

    Args:
        trt: the imported package.
        graph: serialised ONNX model, already in its final types.
        options: profiles and workspace.
        configure: sets what only one flavour has on the builder configuration.

    Raises:
        EngineError: with the last errors that the library logged.
    """
    _use_gpu(options.gpu_id)
    logger = process_logger(trt)
    logger.records.clear()
    logger.verbose = options.verbose
    started = time.perf_counter()
    builder = trt.Builder(logger)
    flags = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flags is None else 1 << int(flags))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph):
        errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise _failure(trt, "the graph cannot be parsed", errors)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(options.workspace_gib * 2**30))
    config.clear_flag(trt.BuilderFlag.TF32)
    config.progress_monitor = _progress_monitor(trt, options.progress)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    configure(config)
    _add_profile(builder, config, options)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise _failure(trt, "the build gave no engine")
    facts = {
        "backend_version": trt.__version__,
        **_network_facts(network),
        "build_seconds": round(time.perf_counter() - started, 2),
    }
    return Compiled(bytes(serialized), facts)


def _use_gpu(index: int) -> None:
    """Build on a device; an ahead-of-time build on a machine without one needs none.

    Raises:
        BackendMissingError: there are devices, but not so many.
    """
    import torch

    count = torch.cuda.device_count()
    if count and index >= count:
        raise BackendMissingError(f"gen_trt_engine.gpu_id={index}: this machine has {count} GPUs")
    if count:
        torch.cuda.set_device(index)


def _add_profile(builder: Any, config: Any, options: BuildOptions) -> None:
    if not options.profiles:
        return
    profile = builder.create_optimization_profile()
    for name, shapes in options.profiles.items():
        profile.set_shape(name, shapes.minimum, shapes.optimum, shapes.maximum)
    config.add_optimization_profile(profile)


def _network_facts(network: Any) -> dict[str, Any]:
    """What a sidecar says about a network; without a GPU the engine cannot be asked later."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    layers = [network.get_layer(index).type.name for index in range(network.num_layers)]
    return {
        "inputs": [asdict(_tensor(tensor)) for tensor in inputs],
        "outputs": [asdict(_tensor(tensor)) for tensor in outputs],
        "layers": len(layers),
        "layer_types": dict(sorted(Counter(layers).items())),
    }


def _tensor(tensor: Any) -> TensorSpec:
    return TensorSpec(tensor.name, tensor.dtype.name.lower(), tuple(tensor.shape))


def _failure(trt: Any, what: str, errors: Sequence[str] = ()) -> EngineError:
    """The error of a failed call, with what the library logged about it."""
    records = [*errors, *process_logger(trt).records][-REPORTED_RECORDS:]
    detail = "".join(f"\n  {record}" for record in dict.fromkeys(records))
    return EngineError(f"{trt.__name__} {trt.__version__}: {what}{detail}")


class DeviceEngine:
    """An engine on an NVIDIA GPU; device memory is held in torch tensors."""

    def __init__(self, trt: Any, engine: Path, runtime_cache: Path | None = None) -> None:
        """Load an engine.

        Args:
            trt: the imported package.
            engine: the file.
            runtime_cache: file of kernels compiled on this machine; only with TensorRT-RTX.
        """
        import torch

        logger = process_logger(trt)
        logger.records.clear()
        self._runtime = trt.Runtime(logger)
        self._engine = self._runtime.deserialize_cuda_engine(engine.read_bytes())
        if self._engine is None:
            raise _failure(trt, f"{engine} cannot be loaded on this machine")
        self._cache_file = runtime_cache
        self._cached_shapes: set[tuple[tuple[int, ...], ...]] = set()
        self._context = self._execution_context()
        self._stream = torch.cuda.Stream()
        self.device = torch.cuda.get_device_name()
        self.inputs = self._tensors(trt.TensorIOMode.INPUT)
        self.outputs = self._tensors(trt.TensorIOMode.OUTPUT)

    def _execution_context(self) -> Any:
        """A context that takes kernels from the runtime cache and leaves new ones there."""
        if self._cache_file is None:
            return self._engine.create_execution_context()
        config = self._engine.create_runtime_config()
        self._cache = config.create_runtime_cache()
        known = self._cache_file.read_bytes() if self._cache_file.exists() else b""
        if known and not self._cache.deserialize(known):
            LOG.warning("%s is of another GPU or version: kernels are compiled", self._cache_file)
        config.set_runtime_cache(self._cache)
        return self._engine.create_execution_context(config)

    def _write_cache(self, shapes: tuple[tuple[int, ...], ...]) -> None:
        """Keep what was compiled for shapes that are new."""
        if self._cache_file is not None and shapes not in self._cached_shapes:
            self._cached_shapes.add(shapes)
            write_bytes(self._cache_file, bytes(self._cache.serialize()))

    def _tensors(self, mode: Any) -> tuple[TensorSpec, ...]:
        engine = self._engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        return tuple(
            TensorSpec(
                name,
                engine.get_tensor_dtype(name).name.lower(),
                tuple(engine.get_tensor_shape(name)),
            )
            for name in names
            if engine.get_tensor_mode(name) == mode
        )

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        """Run once; arrays by tensor name.

        Raises:
            EngineError: a shape outside the profile, or a failure on the device.
        """
        import torch

        with torch.cuda.stream(self._stream):
            device = {
                name: torch.as_tensor(np.ascontiguousarray(values), device="cuda")
                for name, values in inputs.items()
            }
            for name, tensor in device.items():
                if not self._context.set_input_shape(name, tuple(tensor.shape)):
                    raise EngineError(
                        f"input {name}: shape {list(tensor.shape)} is outside the engine's profile"
                    )
                self._context.set_tensor_address(name, tensor.data_ptr())
            results = {
                spec.name: torch.empty(
                    tuple(self._context.get_tensor_shape(spec.name)), device="cuda"
                )
                for spec in self.outputs
            }
            for name, tensor in results.items():
                self._context.set_tensor_address(name, tensor.data_ptr())
            if not self._context.execute_async_v3(self._stream.cuda_stream):
                raise EngineError("the engine failed to run")
            self._stream.synchronize()
        self._write_cache(tuple(tuple(values.shape) for values in inputs.values()))
        return {name: tensor.cpu().numpy() for name, tensor in results.items()}


def gpu_missing() -> str | None:
    """None when torch sees an NVIDIA GPU, else the reason."""
    import torch

    return None if torch.cuda.is_available() else "no NVIDIA GPU"
