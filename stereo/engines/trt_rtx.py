"""TensorRT-RTX: builds ahead of time on a CPU for named compute capabilities; runs on a GPU."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

from stereo.engines import nvinfer
from stereo.engines.base import BuildOptions, Compiled, Engine
from stereo.errors import BackendMissingError, EngineError

LOG = logging.getLogger(__name__)


class TensorRTRTX:
    """The backend `tensorrt_rtx`."""

    name = "tensorrt_rtx"
    suffix = "rtx"
    has_bfloat16 = True

    def available(self) -> str | None:
        """None when the package is installed; building needs no GPU."""
        if importlib.util.find_spec("tensorrt_rtx") is None:
            return "the package tensorrt_rtx is not installed. Run: pip install 'depthtune[rtx]'"
        return None

    def compile(self, graph: bytes, options: BuildOptions) -> Compiled:
        """Build for the compute capabilities of the options; none named: Ampere and later.

        Raises:
            EngineError: an unknown compute capability, or a failed build.
        """
        trt = self._module()
        targets = [_capability(trt, name) for name in options.compute_capabilities]
        if options.timing_cache is not None:
            LOG.warning("timing_cache is ignored: TensorRT-RTX tunes on the target, not here")

        def configure(config: Any) -> None:
            config.num_compute_capabilities = len(targets)
            for index, target in enumerate(targets):
                config.set_compute_capability(target, index)

        compiled = nvinfer.build(trt, graph, options, configure)
        facts = {"compute_capabilities": list(options.compute_capabilities), **compiled.facts}
        return Compiled(compiled.content, facts)

    def load(self, engine: Path, *, runtime_cache: Path | None = None) -> Engine:
        """Load onto the GPU; kernels that `runtime_cache` does not hold are compiled.

        Raises:
            EngineError: no GPU, or none that the engine was built for.
        """
        trt = self._module()
        gpu = nvinfer.gpu_missing()
        if gpu:
            raise BackendMissingError(gpu)
        return nvinfer.DeviceEngine(trt, engine, runtime_cache)

    def _module(self) -> Any:
        reason = self.available()
        if reason:
            raise BackendMissingError(f"backend tensorrt_rtx: {reason}")
        import tensorrt_rtx  # pyright: ignore[reportMissingTypeStubs]

        return tensorrt_rtx


def _capability(trt: Any, name: str) -> Any:
    known: dict[str, Any] = dict(trt.ComputeCapability.__members__)
    if name not in known:
        raise EngineError(
            f"gen_trt_engine.compute_capabilities: {name!r} is not a target of TensorRT-RTX "
            f"{trt.__version__}, allowed {', '.join(known)}"
        )
    return known[name]
