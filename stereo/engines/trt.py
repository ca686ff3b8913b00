"""TensorRT: builds on the GPU that the engine will run on, and runs there."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from stereo.engines import nvinfer
from stereo.engines.base import BuildOptions, Compiled, Engine
from stereo.errors import BackendMissingError
from stereo.files import write_bytes


class TensorRT:
    """The backend `tensorrt`."""

    name = "tensorrt"
    suffix = "engine"
    has_bfloat16 = True

    def available(self) -> str | None:
        """None when the package is installed and a GPU is present."""
        if importlib.util.find_spec("tensorrt") is None:
            return "the package tensorrt is not installed. Run: pip install 'depthtune[tensorrt]'"
        gpu = nvinfer.gpu_missing()
        return f"{gpu}. Set gen_trt_engine.backend=tensorrt_rtx" if gpu else None

    def compile(self, graph: bytes, options: BuildOptions) -> Compiled:
        """Build for the GPU of this machine; the timing cache is read before and written after."""
        trt = self._module()
        configs: list[Any] = []

        def configure(config: Any) -> None:
            if options.timing_cache is not None:
                known = options.timing_cache.read_bytes() if options.timing_cache.exists() else b""
                config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
                configs.append(config)

        compiled = nvinfer.build(trt, graph, options, configure)
        if options.timing_cache is not None:
            timings = bytes(configs[0].get_timing_cache().serialize())
            write_bytes(options.timing_cache, timings)
        return compiled

    def load(self, engine: Path, *, runtime_cache: Path | None = None) -> Engine:
        """Load onto the GPU."""
        del runtime_cache  # of TensorRT-RTX: TensorRT compiles nothing when an engine is loaded
        return nvinfer.DeviceEngine(self._module(), engine)

    def _module(self) -> Any:
        reason = self.available()
        if reason:
            raise BackendMissingError(f"backend tensorrt: {reason}")
        import tensorrt  # pyright: ignore[reportMissingImports]

        return tensorrt
