"""Disparity of image batches from a checkpoint, a graph or an engine: one class for all three.

Images are normalised (B, 3, H, W), disparity is (B, H, W) in px of the image as it came in. A
network sees images of sizes it can take: padded to its stride (borders repeated, cropped back), or
resized to one size, with the disparity scaled by the ratio of the widths. The choice depends on
sizes only, so every backend scores the same pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stereo import engines
from stereo.engines import base
from stereo.errors import EngineError, SpecError, SpecProblem
from stereo.geometry import Padding, centred_padding, crop
from stereo.registry import entry_for, load_weights

if TYPE_CHECKING:
    from stereo.spec.experiment import ExperimentSpec

Size = tuple[int, int]  # height, width in px
Network = Callable[[Tensor, Tensor], Tensor]  # two (B, 3, H, W) -> (B, H, W)

# Fields of `model` that a graph does not fix: its own iterations are in its sidecar.
FREE_FIELDS = ("train_iters", "valid_iters", "low_memory", "mixed_precision")


class Predictor:
    """Callable on a normalised pair of batches.

    Attributes:
        backend: who computes, in words for tables.
        source: the file it was loaded from.
        warnings: what a reader of the scores must know.
    """

    def __init__(
        self,
        network: Network,
        *,
        backend: str,
        source: Path,
        stride: int,
        size: Size | None = None,
        native_padded: bool = False,
        warnings: tuple[str, ...] = (),
    ) -> None:
        """Wrap a network.

        Args:
            network: normalised images of one size to disparity in px of that size.
            backend: see the class.
            source: see the class.
            stride: sides the network takes are multiples of it.
            size: the only size the network is given; None: each image's own.
            native_padded: pad smaller images to `size` instead of resizing them.
            warnings: see the class.
        """
        self.backend = backend
        self.source = source
        self.warnings = warnings
        self._network = network
        self._stride = stride
        self._size = size
        self._native_padded = native_padded

    def __call__(self, left: Tensor, right: Tensor) -> Tensor:
        """Disparity (B, H, W) in px of the images.

        Raises:
            SpecError: `native_padded`, and the image is larger than the network's only size.
        """
        native = (left.shape[-2], left.shape[-1])
        padded = tuple(-(-side // self._stride) * self._stride for side in native)
        size = self._size or (padded[0], padded[1])
        if size == padded or self._native_padded:
            padding = self._padding(native, size)
            images = (F.pad(image, padding, mode="replicate") for image in (left, right))
            return crop(self._network(*images), padding)
        images = (_resize(image, size) for image in (left, right))
        disparity = self._network(*images)
        return _resize(disparity[:, None], native)[:, 0] * (native[1] / size[1])

    def _padding(self, native: Size, size: Size) -> Padding:
        vertical, horizontal = size[0] - native[0], size[1] - native[1]
        if min(vertical, horizontal) < 0:
            problem = f"the image is {native[0]}x{native[1]}, the network takes {size[0]}x{size[1]}"
            remedy = "Set native_padded=false to resize, or export a larger graph"
            raise SpecError([SpecProblem(str(self.source), "native_padded", problem, remedy)])
        return centred_padding(vertical, horizontal)


def _resize(image: Tensor, size: Size) -> Tensor:
    """Bilinear (B, C, *size); smoothed when it becomes smaller, so that fine texture survives."""
    return F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True)


def load_predictor(
    path: Path,
    spec: ExperimentSpec,
    *,
    input_size: Size | None = None,
    native_padded: bool = False,
    threads: int | None = None,
) -> Predictor:
    """A predictor from a checkpoint (.pth), a graph (.onnx) or an engine.

    Args:
        path: the file.
        spec: its `model` section is the network of a checkpoint, and must be the graph's.
        input_size: the size the network sees; None: each image's own, or a fixed graph's.
        native_padded: pad smaller images to a fixed size instead of resizing them.
        threads: threads of ONNX Runtime; None uses every core this process may use.

    Raises:
        SpecError: the spec contradicts the graph.
        CheckpointError: the weights do not fit the network.
        EngineError: neither the engine nor its graph can run here.
    """
    stride = entry_for(spec).stride
    if path.suffix == ".pth":
        network, backend, warnings = _checkpoint(path, spec), _torch_backend(), ()
    else:
        loaded = engines.runnable(path, threads=threads)
        _refuse_contradictions(path, loaded.facts, spec)
        input_size = _graph_size(path, loaded.engine, input_size)
        network = _EngineNetwork(path, loaded)
        backend, warnings = loaded.backend, loaded.warnings
    return Predictor(
        network,
        backend=backend,
        source=path,
        stride=stride,
        size=input_size,
        native_padded=native_padded,
        warnings=warnings,
    )


def load_network(checkpoint: Path, spec: ExperimentSpec) -> nn.Module:
    """The network of `spec.model` with the weights of a checkpoint, in eval mode on the CPU."""
    entry = entry_for(spec)
    network = entry.build(spec.model)
    load_weights(network, checkpoint, entry, spec)
    return network.eval()


def _checkpoint(path: Path, spec: ExperimentSpec) -> Network:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = load_network(path, spec).to(device)
    iters = spec.model.valid_iters

    def run(left: Tensor, right: Tensor) -> Tensor:
        with torch.inference_mode(), _float32():
            output = network(left.to(device), right.to(device), iters=iters, last_only=True)
        return output.refined[-1][:, 0].cpu()

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

    def __init__(self, path: Path, loaded: engines.Runnable) -> None:
        self._path = path
        self._engine = loaded.engine
        self._largest = loaded.largest_batch
        self._is_static = self._engine.inputs[0].shape[0] != -1

    def __call__(self, left: Tensor, right: Tensor) -> Tensor:
        largest = self._largest or len(left)
        parts = zip(left.split(largest), right.split(largest), strict=True)
        return torch.cat([self._run(*part) for part in parts])

    def _run(self, left: Tensor, right: Tensor) -> Tensor:
        count = len(left)
        if self._is_static:
            left, right = (_repeat_last(image, self._largest or count) for image in (left, right))
        inputs = {base.LEFT: left.cpu().numpy(), base.RIGHT: right.cpu().numpy()}
        shapes = {name: values.shape for name, values in inputs.items()}
        base.check_shapes(self._path, self._engine.inputs, shapes)
        return torch.from_numpy(self._engine(inputs)[base.DISPARITY])[:count, 0]


def _repeat_last(image: Tensor, batch: int) -> Tensor:
    """Fill a batch up with copies of its last image."""
    return torch.cat((image, image[-1:].expand(batch - len(image), -1, -1, -1)))


def _graph_size(path: Path, engine: base.Engine, wanted: Size | None) -> Size:
    names = {tensor.name for tensor in engine.inputs}
    if names != {base.LEFT, base.RIGHT}:
        raise EngineError(
            f"{path}: inputs are {', '.join(sorted(names))}, expected {base.LEFT} and "
            f"{base.RIGHT}. Export the graph with depth_net export"
        )
    height, width = engine.inputs[0].shape[2:]
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
    splits = (spec.dataset.test_dataset.augmentation, spec.dataset.infer_dataset.augmentation)
    graph = (facts["input_mean"], facts["input_std"])
    if graph not in [(list(split.input_mean), list(split.input_std)) for split in splits]:
        problem = f"the graph expects images normalised by mean {graph[0]} and std {graph[1]}"
        key = "dataset.test_dataset.augmentation.input_mean, input_std"
        problems.append(SpecProblem(str(path), key, problem, remedy))
    if problems:
        raise SpecError(problems)
