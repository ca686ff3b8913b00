"""A trained network as an ONNX graph, checked against PyTorch before it gets its name.

Inputs `left_image`, `right_image` (N, 3, H, W), RGB normalised outside; output `disparity`
(N, 1, H, W), px. Height and width are fixed, the refinement iterations are unrolled, all arithmetic
is float32. The same weights and spec give the same bytes.
"""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from stereo.engines import base
from stereo.engines.ort import GraphEngine
from stereo.errors import EngineError, OutputExistsError
from stereo.export.parity import Difference, compare
from stereo.files import sha256, write_bytes
from stereo.spec.experiment import ExperimentSpec

LOG = logging.getLogger(__name__)
DYNAMIC_BATCH = "batch_size"
PROBE_BATCH = 2  # of a graph with a dynamic batch


@dataclass(frozen=True)
class GraphInfo:
    """A finished graph; `max_difference` is the largest one to PyTorch, px."""

    path: Path
    sidecar: Path
    height: int
    width: int
    opset: int
    nodes: int
    bytes: int
    max_difference: float


class _LastDisparity(nn.Module):
    """The network as the graph shows it: two images in, the last disparity out."""

    def __init__(self, network: nn.Module, iters: int) -> None:
        super().__init__()
        self.network = network
        self.iters = iters

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.network(left, right, iters=self.iters, last_only=True).refined[-1]


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
        network: `network(left, right, iters=, last_only=)` gives an output with `.refined`.
        spec: `export` gives size, batch, iterations and opset; the rest goes into the sidecar.
        onnx_file: must not exist unless `export.overwrite`.
        checkpoint: file the weights came from, for the sidecar.
        progress: told in words what happens next.

    Raises:
        OutputExistsError: `onnx_file` exists.
        EngineError: ONNX Runtime does not reproduce PyTorch.
    """
    section, tell = spec.export, progress or LOG.info
    if onnx_file.exists() and not section.overwrite:
        raise OutputExistsError(
            f"{onnx_file}: exists. Name another export.onnx_file or set export.overwrite=true"
        )
    on_gpu = torch.cuda.is_available() and not section.on_cpu
    device = torch.device("cuda" if on_gpu else "cpu")
    # A copy, because the caller's network keeps its device and its mode.
    module = _LastDisparity(copy.deepcopy(network), section.valid_iters).to(device).eval()
    batch = section.batch_size if section.batch_size > 0 else PROBE_BATCH
    left, right = (
        image.to(device) for image in _probe(batch, section.input_height, section.input_width)
    )
    onnx_file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=onnx_file.parent, prefix=".export-") as scratch:
        temporary = Path(scratch) / onnx_file.name
        tell(f"tracing {section.valid_iters} iterations at {tuple(left.shape[2:])}")
        _trace(module, left, right, temporary, spec)
        model = _label(onnx.load(temporary), spec)
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString(deterministic=True)
    tell("comparing ONNX Runtime with PyTorch")
    difference = _check(module, content, left, right, onnx_file)
    write_bytes(onnx_file, content)
    base.write_sidecar(onnx_file, _facts(spec, model, difference, checkpoint))
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


def _probe(batch: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Normalised noise; left and right differ, or the exporter could merge the two inputs."""
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(batch, 3, height, width, generator=generator)
    right = torch.randn(batch, 3, height, width, generator=generator)
    return left, right


def _trace(
    module: nn.Module, left: Tensor, right: Tensor, file: Path, spec: ExperimentSpec
) -> None:
    dynamic = {name: {0: DYNAMIC_BATCH} for name in (base.LEFT, base.RIGHT, base.DISPARITY)}
    with warnings.catch_warnings(), torch.no_grad():
        # The exporter announces its successor, and warns at each shape that is fixed on purpose.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (left, right),
            str(file),
            input_names=[base.LEFT, base.RIGHT],
            output_names=[base.DISPARITY],
            opset_version=spec.export.opset_version,
            dynamic_axes=dynamic if spec.export.batch_size == -1 else None,
            do_constant_folding=True,
            verbose=spec.export.verbose,
            dynamo=False,
        )


def _label(model: onnx.ModelProto, spec: ExperimentSpec) -> onnx.ModelProto:
    """Write the output's true shape, which the exporter leaves open or gets wrong."""
    section = spec.export
    batch = section.batch_size if section.batch_size > 0 else DYNAMIC_BATCH
    shape = [batch, 1, section.input_height, section.input_width]
    output = onnx.helper.make_tensor_value_info(base.DISPARITY, onnx.TensorProto.FLOAT, shape)
    del model.graph.output[:]
    model.graph.output.append(output)
    return model


def _check(
    module: nn.Module, content: bytes, left: Tensor, right: Tensor, file: Path
) -> Difference:
    with torch.no_grad():
        expected = module(left, right).cpu().numpy()
    engine = GraphEngine(content)
    found = engine({base.LEFT: left.cpu().numpy(), base.RIGHT: right.cpu().numpy()})[base.DISPARITY]
    difference = compare(expected, found.astype(np.float32))
    if not difference.within_limit():
        raise EngineError(
            f"{file}: ONNX Runtime differs from PyTorch by up to {difference.maximum:.3g} px, "
            f"allowed {difference.allowed:.3g} px. The graph was not written"
        )
    return difference


def _facts(
    spec: ExperimentSpec,
    model: onnx.ModelProto,
    difference: Difference,
    checkpoint: Path | None,
) -> dict[str, Any]:
    section, preprocessing = spec.export, spec.dataset.test_dataset.augmentation
    return {
        "kind": "graph",
        "model_type": spec.model.model_type,
        "model": asdict(spec.model),
        "height": section.input_height,
        "width": section.input_width,
        "batch_size": section.batch_size,
        "dynamic_axes": {"0": DYNAMIC_BATCH} if section.batch_size == -1 else {},
        "iterations": section.valid_iters,
        "input_mean": list(preprocessing.input_mean),
        "input_std": list(preprocessing.input_std),
        "normalizes_inside": False,
        "opset": section.opset_version,
        "nodes": len(model.graph.node),
        "max_difference_px": difference.maximum,
        "output_range_px": difference.output_range,
        "checkpoint": None
        if checkpoint is None
        else {"file": checkpoint.name, "sha256": sha256(checkpoint)},
        "versions": {"torch": torch.__version__, "onnx": onnx.__version__},
    }
