"""What every engine backend is: protocols, build options, and the sidecar beside each file.

A *graph* is an ONNX file: inputs `left_image`, `right_image` (N, 3, H, W), output `disparity`
(N, 1, H, W); or input `images` (N, 3, H, W), output `outputs` (N, H, W). An *engine* is what a
backend makes of it. Beside each lies `<file>.json`, its sidecar: facts that the file does not give
(an engine cannot be opened without its GPU).
"""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from numpy.typing import NDArray

from stereo.errors import EngineError, SpecError, SpecProblem
from stereo.files import sha256, write_json

FORMAT_VERSION = 1
LEFT, RIGHT, DISPARITY = "left_image", "right_image", "disparity"
IMAGES, OUTPUTS = "images", "outputs"
DataType = Literal["fp32", "fp16", "bf16", "int8"]
Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output; -1 in `shape` is an axis that each call chooses."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ShapeRange:
    """Shapes of one input: the smallest and largest accepted, and the one to tune for."""

    minimum: tuple[int, ...]
    optimum: tuple[int, ...]
    maximum: tuple[int, ...]


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built.

    Attributes:
        data_type: arithmetic of most layers; the graph is in its final types already.
        profiles: inputs whose batch axis is open.
        workspace_gib: limit of the builder's scratch memory, GiB.
        compute_capabilities: GPUs that an engine built ahead of time is for.
        timing_cache: read before and written after a build, where a backend has one.
        gpu_id: device that builds.
        verbose: log everything the builder says.
        progress: told (phase, steps done, steps in all).
    """

    data_type: DataType = "fp32"
    profiles: Mapping[str, ShapeRange] = field(default_factory=dict[str, ShapeRange])
    workspace_gib: float = 4.0
    compute_capabilities: tuple[str, ...] = ("SM80", "SM86", "SM89", "SM120")
    timing_cache: Path | None = None
    gpu_id: int = 0
    verbose: bool = False
    progress: Callable[[str, int, int | None], None] = lambda _what, _done, _total: None


@dataclass(frozen=True)
class Compiled:
    """What a backend made of a graph: the bytes of the engine, and facts for its sidecar."""

    content: bytes
    facts: dict[str, Any]


@dataclass(frozen=True)
class EngineInfo:
    """A finished engine: where it is, who built it, what its sidecar says."""

    engine: Path
    sidecar: Path
    backend: str
    facts: dict[str, Any]


class Engine(Protocol):
    """A loaded graph or engine."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    device: str

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        """Run once; arrays by tensor name in, arrays by tensor name out."""
        ...


class EngineBackend(Protocol):
    """Builds and runs engines; `tests/contracts/test_engine_backends.py` is what it must pass."""

    name: str
    suffix: str
    has_bfloat16: bool  # else the precision pass emulates it

    def available(self) -> str | None:
        """None when this machine can build with it, else the reason and the remedy."""
        ...

    def compile(self, graph: bytes, options: BuildOptions) -> Compiled:
        """Make an engine of a serialised graph whose types are final."""
        ...

    def load(self, engine: Path, *, runtime_cache: Path | None = None) -> Engine:
        """Load an engine; EngineError with the reason when this machine cannot run it.

        Args:
            engine: the file.
            runtime_cache: kernels compiled on this machine, read and written by TensorRT-RTX.
        """
        ...


def sidecar_path(path: Path) -> Path:
    """`model.onnx` -> `model.onnx.json`."""
    return path.with_name(path.name + ".json")


def read_sidecar(path: Path) -> dict[str, Any] | None:
    """Facts about a graph or engine; None when it has no sidecar.

    Raises:
        EngineError: the sidecar is no JSON object, or written by a newer release.
    """
    file = sidecar_path(path)
    if not file.exists():
        return None
    try:
        facts = json.loads(file.read_text())
    except ValueError as error:
        raise EngineError(f"{file}: not JSON ({error}). Write {path.name} again") from error
    if not isinstance(facts, dict):
        raise EngineError(f"{file}: expected a JSON object. Write {path.name} again")
    found = cast("dict[str, Any]", facts)
    if found.get("format_version", 0) > FORMAT_VERSION:
        raise EngineError(
            f"{file}: format_version {found['format_version']}, this release reads up to "
            f"{FORMAT_VERSION}. Update depthtune"
        )
    return found


def write_sidecar(path: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write the sidecar of a graph or engine, and return it with the file's hash and size added."""
    complete = {
        "format_version": FORMAT_VERSION,
        "sha256": sha256(path),
        "bytes": path.stat().st_size,
        **facts,
    }
    write_json(sidecar_path(path), complete)
    return complete


def relative_to(path: Path, directory: Path) -> str:
    """POSIX path of `path` seen from `directory`, with `..` where needed."""
    return Path(os.path.relpath(path.resolve(), directory.resolve())).as_posix()


def peak_memory_mb() -> int:
    """Largest resident size this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def check_shapes(
    source: Path,
    inputs: Sequence[TensorSpec],
    shapes: Mapping[str, tuple[int, ...]],
    profile: Mapping[str, ShapeRange] | None = None,
) -> None:
    """Refuse an input that an axis of the engine cannot take.

    Args:
        source: the engine, for messages.
        inputs: of the engine.
        shapes: given, by input.
        profile: what the engine was built for, by input, where it has open axes.

    Raises:
        SpecError: every wrong axis, with the size given and the size needed.
    """
    problems = [
        SpecProblem(
            source=str(source),
            key=f"{tensor.name} axis {axis}",
            problem=f"got {given}, the engine takes {needed}",
            remedy="Set the input size of the verb to the engine's, or build for this size",
        )
        for tensor in inputs
        for axis, (given, needed) in enumerate(zip(shapes[tensor.name], tensor.shape, strict=True))
        if needed not in (-1, given)
    ]
    problems += [
        SpecProblem(
            source=str(source),
            key=f"{name} axis {axis}",
            problem=f"got {given}, the engine's profile is {low}..{high}",
            remedy="Set the input size of the verb to one within it, or build a wider profile",
        )
        for name, built in (profile or {}).items()
        for axis, (given, low, high) in enumerate(
            zip(shapes[name], built.minimum, built.maximum, strict=True)
        )
        if not low <= given <= high
    ]
    if problems:
        raise SpecError(problems)
