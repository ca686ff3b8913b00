"""Predictions for batches from a checkpoint, a graph or an engine: one class for all three.

Images are normalised (B, 3, h, w); a prediction is (B, H, W) in the units and at the size of the
image as it came in. What that needs beyond the network (padding, resizing) is the business of its
task, and the same for every backend.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stereo import engines
from stereo.checkpoints import files
from stereo.engines import base
from stereo.errors import EngineError, SpecError, SpecProblem
from stereo.geometry import Tiles
from stereo.nets.folding import fold_norms
from stereo.registry import entry_for, load_weights, other_meanings
from stereo.spec.experiment import NOT_IN_GRAPH
from stereo.spec.rules import value_at
from stereo.tasks import InputSizes, Network, Size, Task

if TYPE_CHECKING:
    from stereo.spec.experiment import ExperimentSpec

# Fields of `model` that a graph does not fix: its own iterations are in its sidecar.
FREE_FIELDS = (*NOT_IN_GRAPH, "valid_iters")

PERCENTILES = (50, 90, 99)  # of the latency


class Pace:
    """How long predictions take, padding and resizing included, reading and writing not."""

    def __init__(self) -> None:
        self._calls: list[tuple[int, float]] = []  # samples, seconds

    def add(self, samples: int, seconds: float) -> None:
        """Record a call."""
        self._calls.append((samples, seconds))

    def summary(self) -> dict[str, float]:
        """Throughput in samples per s, and percentiles of the latency of a call in ms.

        The first call, which also allocates and compiles, is left out where there are more.
        """
        if not self._calls:
            return {}
        calls = np.array(self._calls[1:] or self._calls)
        samples, seconds = calls.T
        named = zip(PERCENTILES, np.percentile(1000 * seconds, PERCENTILES), strict=True)
        return {
            "throughput": float(samples.sum() / seconds.sum()),
            **{f"latency_p{share}_ms": float(value) for share, value in named},
            "first_call_ms": 1000 * self._calls[0][1],
            "largest_batch": float(samples.max()),
        }


class Predictor:
    """Callable on a batch.

    Attributes:
        task: what is predicted.
        backend: who computes, in words for tables.
        source: the file it was loaded from.
        warnings: what a reader of the scores must know.
        size: the only size the network is given; None: any.
        pace: how long the calls so far took.
    """

    def __init__(
        self,
        network: Network,
        task: Task[Any],
        *,
        backend: str,
        source: Path,
        stride: int,
        size: Size | None = None,
        native_padded: bool = False,
        first_pass: float | None = None,
        tiles: Tiles | None = None,
        warnings: tuple[str, ...] = (),
    ) -> None:
        """Wrap a network.

        Args:
            network: normalised images of one size to the prediction at that size.
            task: see the class.
            backend: see the class.
            source: see the class.
            stride: sides the network takes are multiples of it.
            size: see the class.
            native_padded: pad smaller images to `size` instead of resizing them.
            first_pass: predict pairs twice, first at this share of their size; the network takes
                `initial`.
            tiles: what larger images are predicted in; None: an image at once.
            warnings: see the class.
        """
        self.task = task
        self.backend = backend
        self.source = source
        self.warnings = warnings
        self.size = size
        self.pace = Pace()
        self._network = network
        self._sizes = InputSizes(stride, size, native_padded, first_pass, tiles, source)

    def __call__(self, batch: Mapping[str, Any]) -> Tensor:
        """Prediction (B, H, W) for a batch of `stereo.data.loaders`.

        Raises:
            SpecError: an image does not fit the network's only size.
        """
        started = time.perf_counter()
        found = self.task.at_native_size(self._network, batch, self._sizes)
        self.pace.add(len(found), time.perf_counter() - started)
        return found


def load_predictor(
    path: Path,
    spec: ExperimentSpec,
    *,
    input_size: Size | None = None,
    native_padded: bool = False,
    first_pass: float | None = None,
    tiles: Tiles | None = None,
    threads: int | None = None,
) -> Predictor:
    """A predictor from a checkpoint (.pth), a graph (.onnx) or an engine.

    Args:
        path: the file.
        spec: its `model` section is the network of a checkpoint, and must be the graph's.
        input_size: the size the network sees; None: each image's own, or a fixed graph's.
        native_padded: pad smaller images to a fixed size instead of resizing them.
        first_pass: predict pairs twice, first at this share of their size; checkpoints only.
        tiles: what larger images are predicted in; None: an image at once.
        threads: threads of ONNX Runtime; None uses every core this process may use.

    Raises:
        SpecError: the spec contradicts the graph.
        CheckpointError: the weights do not fit the network.
        EngineError: neither the engine nor its graph can run here.
    """
    entry = entry_for(spec)
    network: Network
    if path.suffix == ".pth":
        network, backend, warnings = _checkpoint(path, spec, entry.task), _torch_backend(), ()
    else:
        cache = spec.gen_trt_engine.runtime_cache
        kernels = None if cache is None else Path(cache)
        loaded = engines.runnable(path, threads=threads, runtime_cache=kernels)
        _refuse_contradictions(path, loaded.facts, spec)
        input_size = _graph_size(path, loaded.engine, input_size, entry.task)
        network = _EngineNetwork(path, loaded, entry.task)
        backend, warnings = loaded.backend, loaded.warnings
    return Predictor(
        network,
        entry.task,
        backend=backend,
        source=path,
        stride=entry.stride,
        size=input_size,
        native_padded=native_padded,
        first_pass=first_pass,
        tiles=tiles,
        warnings=warnings,
    )


def load_network(checkpoint: Path, spec: ExperimentSpec) -> nn.Module:
    """The network of `spec.model` with the weights of a checkpoint, in eval mode on the CPU."""
    entry = entry_for(spec)
    if entry.task.bound and (
        problems := other_meanings(checkpoint, files.read(checkpoint), entry, spec)
    ):
        raise SpecError(problems)
    network = entry.build(spec)
    load_weights(network, checkpoint, entry, spec)
    return network.eval()


def _checkpoint(path: Path, spec: ExperimentSpec, task: Task[Any]) -> Network:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = fold_norms(load_network(path, spec)).to(device)
    if spec.model.compile:
        network.compile()

    def run(*images: Tensor, initial: Tensor | None = None) -> Tensor:
        start = None if initial is None else initial.to(device)
        with torch.inference_mode(), _float32():
            found = task.predict(network, [image.to(device) for image in images], spec, start)
            return found.cpu()

    return run


@contextmanager
def _float32() -> Iterator[None]:
    """Switch TF32 off, so that fp32 on a GPU is what the graph computes."""
    previous = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = previous


def _torch_backend() -> str:
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return f"PyTorch {name} fp32"


class _EngineNetwork:
    """An engine as a network: batches are cut to the size the engine takes, and filled up to it."""

    def __init__(self, path: Path, loaded: engines.Runnable, task: Task[Any]) -> None:
        self._path = path
        self._task = task
        self._engine = loaded.engine
        self._facts = loaded.facts
        self._profile = loaded.profile
        self._largest = loaded.largest_batch
        self._is_static = self._engine.inputs[0].shape[0] != -1

    def __call__(self, *images: Tensor) -> Tensor:
        largest = self._largest or len(images[0])
        parts = zip(*(image.split(largest) for image in images), strict=True)
        return torch.cat([self._run(part) for part in parts])

    def _run(self, images: tuple[Tensor, ...]) -> Tensor:
        count, size = len(images[0]), images[0].shape[-2:]
        if self._is_static:
            images = tuple(_repeat_last(image, self._largest or count) for image in images)
        names = self._task.graph_inputs
        inputs = {n: image.cpu().numpy() for n, image in zip(names, images, strict=True)}
        shapes = {name: values.shape for name, values in inputs.items()}
        base.check_shapes(self._path, self._engine.inputs, shapes, self._profile)
        if self._engine.inputs[0].dtype == "uint8":
            inputs = {name: self._pixels(values) for name, values in inputs.items()}
        output = torch.from_numpy(self._engine(inputs)[self._task.graph_output])
        return output.reshape(-1, *size)[:count]

    def _pixels(self, images: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Images as they were before their normalisation, which is part of this graph."""
        if not self._facts:
            raise EngineError(
                f"{self._path}: takes uint8 images, and without its sidecar nothing says how the "
                "images were normalised. Put the .json file of the export beside it"
            )
        mean, std = (
            np.array(self._facts[f"input_{name}"], np.float32).reshape(-1, 1, 1)
            for name in ("mean", "std")
        )
        return np.rint(np.clip(images * std + mean, 0, 1) * 255).astype(np.uint8)


def _repeat_last(image: Tensor, batch: int) -> Tensor:
    """Fill a batch up with copies of its last image."""
    return torch.cat((image, image[-1:].expand(batch - len(image), -1, -1, -1)))


def _graph_size(
    path: Path, engine: base.Engine, wanted: Size | None, task: Task[Any]
) -> Size | None:
    names = {tensor.name for tensor in engine.inputs}
    if names != set(task.graph_inputs):
        raise EngineError(
            f"{path}: inputs are {', '.join(sorted(names))}, expected "
            f"{' and '.join(task.graph_inputs)}. Export the graph with depth_net export"
        )
    height, width = engine.inputs[0].shape[2:]
    if -1 in (height, width):
        return wanted  # open: each image has its own
    if wanted not in (None, (height, width)):
        problem = f"got {wanted}, the graph takes ({height}, {width})"
        remedy = "Leave both unset to take the graph's size, or export at this size"
        raise SpecError([SpecProblem(str(path), "input_height, input_width", problem, remedy)])
    return height, width


def _refuse_contradictions(path: Path, facts: Mapping[str, Any], spec: ExperimentSpec) -> None:
    """Compare the graph's sidecar with the spec; no sidecar, nothing to compare."""
    if not facts:
        return
    recorded: dict[str, Any] = {"model_type": facts["model_type"], **facts["model"]}
    given = asdict(spec.model)
    remedy = "Use the spec the graph was exported with, for example by --set-from"
    problems = [
        SpecProblem(
            str(path), f"model.{key}", f"got {given[key]!r}, the graph has {value!r}", remedy
        )
        for key, value in recorded.items()
        if key in given and key not in FREE_FIELDS and not isinstance(value, dict)
        if given[key] not in (value, "auto")  # auto follows the file
    ]
    for key in entry_for(spec).task.bound:
        value = facts.get(key.rpartition(".")[2])
        if value is not None and value != value_at(spec, key):
            problem = f"got {value_at(spec, key)}, the graph has {value}"
            problems.append(SpecProblem(str(path), key, problem, remedy))
    splits = (spec.dataset.test_dataset.augmentation, spec.dataset.infer_dataset.augmentation)
    graph = (facts["input_mean"], facts["input_std"])
    if graph not in [(list(split.input_mean), list(split.input_std)) for split in splits]:
        problem = f"the graph expects images normalised by mean {graph[0]} and std {graph[1]}"
        key = "dataset.test_dataset.augmentation.input_mean, input_std"
        problems.append(SpecProblem(str(path), key, problem, remedy))
    if problems:
        raise SpecError(problems)
