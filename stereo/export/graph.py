"""A trained network as an ONNX graph, checked against PyTorch before it gets its name.

Inputs (N, 3, H, W) are RGB, float32 and normalised outside, or uint8 with
`export.include_normalization`; their names, and name and shape of the output, are those of the task
(`stereo.tasks`). Height and width are fixed unless the network can leave them open and
`export.dynamic_hw` says so. Refinement iterations are unrolled, all arithmetic is float32, batch
norms are part of the convolutions before them. The same weights and spec give the same bytes.
"""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stereo.engines import base
from stereo.engines.ort import GraphEngine
from stereo.errors import BackendMissingError, EngineError, OutputExistsError
from stereo.export.example import example
from stereo.export.parity import Difference, compare
from stereo.files import sha256, write_bytes
from stereo.nets.blocks import computed_sizes
from stereo.nets.folding import fold_norms
from stereo.registry import entry_for
from stereo.spec.deploy import MonoExportSpec
from stereo.spec.experiment import ExperimentSpec
from stereo.tasks import Size, Task

LOG = logging.getLogger(__name__)
DYNAMIC_BATCH = "batch_size"
DYNAMIC_SIDES = ("height", "width")
PROBE_BATCH = 2  # of a graph with a dynamic batch
OTHER_SIDES = (3, 4)  # of the second check of a graph with dynamic sides, in strides


@dataclass(frozen=True)
class GraphInfo:
    """A finished graph; `max_difference` is the largest one to PyTorch, in units of the output."""

    path: Path
    sidecar: Path
    height: int
    width: int
    opset: int
    nodes: int
    bytes: int
    max_difference: float


class _Graph(nn.Module):
    """The network as the graph shows it: images in, the task's output out."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, task: Task[Any], spec: ExperimentSpec) -> None:
        super().__init__()
        self.network = network
        self.task = task
        self.spec = spec
        look = spec.dataset.test_dataset.augmentation
        for name, values in (("mean", look.input_mean), ("std", look.input_std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1))

    def forward(self, *images: Tensor) -> Tensor:
        if self.spec.export.include_normalization:
            images = tuple((image.float() / 255 - self.mean) / self.std for image in images)
        return self.task.graph(self.network, images, self.spec)


def export_graph(
    network: nn.Module,
    spec: ExperimentSpec,
    onnx_file: Path,
    *,
    checkpoint: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> GraphInfo:
    """Write `onnx_file` and its sidecar.

    Args:
        network: one that the task of the spec's network can call.
        spec: `export` gives size, batch and opset; the rest goes into the sidecar.
        onnx_file: must not exist unless `export.overwrite`.
        checkpoint: file the weights came from, for the sidecar.
        progress: told in words what happens next.

    Raises:
        OutputExistsError: `onnx_file` exists.
        BackendMissingError: the device of `export.gpu_id` is not there.
        EngineError: ONNX Runtime does not reproduce PyTorch.
    """
    section, tell, entry = spec.export, progress or LOG.info, entry_for(spec)
    task, dynamic = entry.task, section.dynamic_hw and entry.dynamic_size
    if onnx_file.exists() and not section.overwrite:
        raise OutputExistsError(
            f"{onnx_file}: exists. Name another export.onnx_file or set export.overwrite=true"
        )
    device = _device(section)
    # A copy, because the caller's network keeps its device and its mode.
    module = _Graph(copy.deepcopy(network), task, spec).to(device).eval()
    batch = section.batch_size if section.batch_size > 0 else PROBE_BATCH
    size = (section.input_height, section.input_width)
    task.prepare_graph(module.network, *size)
    sizes = [size, *([tuple(entry.stride * n for n in OTHER_SIDES)] if dynamic else [])]
    probes = [
        tuple(image.to(device) for image in _probe(task, section, batch, each)) for each in sizes
    ]
    expected = [_values(module, images) for images in probes]
    fold_norms(module)
    onnx_file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=onnx_file.parent, prefix=".export-") as scratch:
        temporary = Path(scratch) / onnx_file.name
        tell(f"tracing at {size}")
        _trace(module, probes[0], temporary, spec, dynamic)
        model = _label(onnx.load(temporary), task, spec, dynamic)
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString(deterministic=True)
    tell("comparing ONNX Runtime with PyTorch")
    difference = _check(task, content, probes, expected, onnx_file)
    write_bytes(onnx_file, content)
    facts = _facts(task, spec, model, difference, checkpoint, dynamic)
    base.write_sidecar(onnx_file, {**facts, "example": example(task, onnx_file, facts)})
    return GraphInfo(
        path=onnx_file,
        sidecar=base.sidecar_path(onnx_file),
        height=section.input_height,
        width=section.input_width,
        opset=section.opset_version,
        nodes=len(model.graph.node),
        bytes=len(content),
        max_difference=difference.maximum,
    )


def _device(section: MonoExportSpec) -> torch.device:
    if section.on_cpu or not torch.cuda.is_available():
        return torch.device("cpu")
    if section.gpu_id >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise BackendMissingError(f"export.gpu_id={section.gpu_id}: this machine has {count} GPUs")
    return torch.device("cuda", section.gpu_id)


def _probe(task: Task[Any], section: MonoExportSpec, batch: int, size: Size) -> list[Tensor]:
    """Noise as the graph takes it; the images differ, or the exporter could merge the inputs."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch, 3, *size)
    if section.include_normalization:
        kinds = {"dtype": torch.uint8, "generator": generator}
        return [torch.randint(0, 256, shape, **kinds) for _ in task.graph_inputs]
    return [torch.randn(shape, generator=generator) for _ in task.graph_inputs]


def _open_axes(spec: ExperimentSpec, dynamic: bool, rank: int) -> dict[int, str]:
    """Axes of a tensor that each call chooses, by name; height and width are the last two."""
    batch = {0: DYNAMIC_BATCH} if spec.export.batch_size == -1 else {}
    sides = {rank - 2: DYNAMIC_SIDES[0], rank - 1: DYNAMIC_SIDES[1]} if dynamic else {}
    return batch | sides


def _trace(
    module: _Graph, images: tuple[Tensor, ...], file: Path, spec: ExperimentSpec, dynamic: bool
) -> None:
    inputs, output = module.task.graph_inputs, module.task.graph_output
    ranks = {**dict.fromkeys(inputs, 4), output: 1 + len(module.task.graph_shape(1, 1))}
    axes = {name: _open_axes(spec, dynamic, rank) for name, rank in ranks.items()}
    sizes = computed_sizes() if dynamic else nullcontext()
    with warnings.catch_warnings(), torch.no_grad(), sizes:
        # The exporter announces its successor, and warns at each shape that is fixed on purpose.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            images,
            str(file),
            input_names=list(inputs),
            output_names=[output],
            opset_version=spec.export.opset_version,
            dynamic_axes=axes,
            do_constant_folding=True,
            verbose=spec.export.verbose,
            dynamo=False,
        )


def _label(
    model: onnx.ModelProto, task: Task[Any], spec: ExperimentSpec, dynamic: bool
) -> onnx.ModelProto:
    """Write the output's true shape, which the exporter leaves open or gets wrong."""
    section = spec.export
    sides = task.graph_shape(section.input_height, section.input_width)
    shape: list[int | str] = [section.batch_size, *sides]
    for axis, name in _open_axes(spec, dynamic, len(shape)).items():
        shape[axis] = name
    output = onnx.helper.make_tensor_value_info(task.graph_output, onnx.TensorProto.FLOAT, shape)
    del model.graph.output[:]
    model.graph.output.append(output)
    return model


def _values(module: _Graph, images: tuple[Tensor, ...]) -> NDArray[np.float32]:
    with torch.no_grad():
        return module(*images).cpu().numpy()


def _check(
    task: Task[Any],
    content: bytes,
    probes: Sequence[tuple[Tensor, ...]],
    expected: Sequence[NDArray[np.float32]],
    file: Path,
) -> Difference:
    """The largest difference of any probe.

    Raises:
        EngineError: it is too large.
    """
    engine = GraphEngine(content)
    differences: list[Difference] = []
    for images, wanted in zip(probes, expected, strict=True):
        arrays = (image.cpu().numpy() for image in images)
        found = engine(dict(zip(task.graph_inputs, arrays, strict=True)))
        difference = compare(wanted, found[task.graph_output].astype(np.float32))
        if not difference.within_limit():
            unit = f" {task.unit}".rstrip()
            raise EngineError(
                f"{file}: ONNX Runtime differs from PyTorch by up to {difference.maximum:.3g}{unit}"
                f", allowed {difference.allowed:.3g}{unit}. The graph was not written"
            )
        differences.append(difference)
    return max(differences, key=lambda difference: difference.maximum)


def _facts(
    task: Task[Any],
    spec: ExperimentSpec,
    model: onnx.ModelProto,
    difference: Difference,
    checkpoint: Path | None,
    dynamic: bool,
) -> dict[str, Any]:
    section, preprocessing = spec.export, spec.dataset.test_dataset.augmentation
    return {
        "kind": "graph",
        "model_type": spec.model.model_type,
        "model": asdict(spec.model),
        "height": section.input_height,
        "width": section.input_width,
        "batch_size": section.batch_size,
        "dynamic_axes": {str(a): name for a, name in _open_axes(spec, dynamic, 4).items()},
        **task.graph_facts(spec),
        "input_mean": list(preprocessing.input_mean),
        "input_std": list(preprocessing.input_std),
        "normalizes_inside": section.include_normalization,
        "opset": section.opset_version,
        "nodes": len(model.graph.node),
        "max_difference": difference.maximum,
        "output_range": difference.output_range,
        "output_unit": task.unit,
        "checkpoint": None
        if checkpoint is None
        else {"file": checkpoint.name, "sha256": sha256(checkpoint)},
        "versions": {"torch": torch.__version__, "onnx": onnx.__version__},
    }
