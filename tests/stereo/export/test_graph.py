from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from stereo.engines import base
from stereo.engines.ort import GraphEngine
from stereo.errors import EngineError, OutputExistsError
from stereo.export.graph import export_graph
from stereo.export.parity import compare
from stereo.files import sha256
from stereo.nets.fast_foundation_stereo import FastFoundationStereo
from stereo.predict import load_predictor
from stereo.registry import MODELS
from stereo.spec.experiment import ExperimentSpec
from tests.stereo.tiny_stereo import HEIGHT, WIDTH, Output, TinyStereo, tiny_spec


def _shape(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize("opset", [16, 17, 18])
def test_a_static_graph_has_the_documented_inputs_and_output(tmp_path: Path, opset: int) -> None:
    info = export_graph(TinyStereo(), tiny_spec(opset=opset), tmp_path / "deep" / "a.onnx")

    graph = onnx.load(info.path).graph
    assert [value.name for value in graph.input] == ["left_image", "right_image"]
    assert [value.name for value in graph.output] == ["disparity"]
    assert _shape(graph.input[0]) == [1, 3, HEIGHT, WIDTH]
    assert _shape(graph.output[0]) == [1, 1, HEIGHT, WIDTH]
    assert onnx.load(info.path).opset_import[0].version == opset == info.opset
    assert info.max_difference < 1e-4


def test_a_dynamic_batch_is_labelled_and_runs_at_other_sizes(tmp_path: Path) -> None:
    network = TinyStereo().eval()
    info = export_graph(network, tiny_spec(batch_size=-1), tmp_path / "a.onnx")

    graph = onnx.load(info.path).graph
    assert _shape(graph.input[0])[0] == _shape(graph.output[0])[0] == "batch_size"
    left, right = torch.randn(2, 3, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = network(left, right, iters=2).refined[-1]
    found = GraphEngine(info.path.read_bytes())(
        {base.LEFT: left.numpy(), base.RIGHT: right.numpy()}
    )
    np.testing.assert_allclose(found[base.DISPARITY], expected.numpy(), atol=1e-4)


def test_repeated_export_gives_the_same_bytes_and_no_unused_weights(tmp_path: Path) -> None:
    network = TinyStereo()
    first = export_graph(network, tiny_spec(), tmp_path / "first.onnx")
    second = export_graph(network, tiny_spec(), tmp_path / "second.onnx")

    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.bytes < 20_000 < 4 * sum(p.numel() for p in network.unused.parameters())
    assert network.training, "the caller's network is left as it was"


def test_the_sidecar_says_what_the_file_does_not(tmp_path: Path) -> None:
    checkpoint = tmp_path / "weights.pth"
    checkpoint.write_bytes(b"weights")
    spec = tiny_spec(batch_size=-1)
    info = export_graph(TinyStereo(), spec, tmp_path / "a.onnx", checkpoint=checkpoint)

    facts = json.loads(info.sidecar.read_text())
    assert info.sidecar == tmp_path / "a.onnx.json"
    assert facts["kind"] == "graph"
    assert facts["format_version"] == 1
    assert facts["sha256"] == sha256(info.path)
    assert facts["checkpoint"] == {"file": "weights.pth", "sha256": sha256(checkpoint)}
    assert facts["model"]["max_disparity"] == spec.model.max_disparity
    assert (facts["height"], facts["width"], facts["iterations"]) == (HEIGHT, WIDTH, 2)
    assert facts["dynamic_axes"] == {"0": "batch_size"}
    assert facts["input_mean"] == [0.485, 0.456, 0.406]


def test_an_existing_graph_is_kept_unless_overwrite_is_set(tmp_path: Path) -> None:
    file = tmp_path / "a.onnx"
    file.write_bytes(b"mine")
    with pytest.raises(OutputExistsError, match=r"a\.onnx: exists.*export\.overwrite=true"):
        export_graph(TinyStereo(), tiny_spec(), file)
    assert file.read_bytes() == b"mine"

    spec = tiny_spec()
    spec.export.overwrite = True
    assert export_graph(TinyStereo(), spec, file).bytes == file.stat().st_size


class _Unfaithful(nn.Module):
    """Counts its calls, which a traced graph cannot know."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, left: Tensor, right: Tensor, *, iters: int, last_only: bool) -> Output:
        self.calls += 1
        disparity = (left - right).mean(1, keepdim=True) + self.calls * iters
        return Output(disparity, [disparity])


def test_a_graph_that_differs_from_pytorch_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"differs from PyTorch by up to .* px, allowed"):
        export_graph(_Unfaithful(), tiny_spec(), tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


def test_nan_is_never_within_the_limit() -> None:
    reference = np.zeros((2, 2), np.float32)
    assert compare(reference, reference).within_limit()
    assert not compare(reference, np.full((2, 2), np.nan, np.float32)).within_limit()


def test_the_real_network_exports_its_weights_once_and_without_scatter(tmp_path: Path) -> None:
    spec = ExperimentSpec()
    spec.model.max_disparity = 64
    spec.export.input_height, spec.export.input_width, spec.export.valid_iters = 64, 96, 2
    network = FastFoundationStereo(spec.model)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    info = export_graph(network, spec, tmp_path / "ffs.onnx")

    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    graph = onnx.load(info.path).graph
    weights = 4 * sum(p.numel() for p in network.parameters())
    assert info.bytes <= 1.15 * weights
    assert not {n.op_type for n in graph.node} & {"ScatterND", "ScatterElements", "GridSample"}
    assert "BatchNormalization" not in {n.op_type for n in graph.node}
    used = 4 * sum(p.numel() for n, p in network.named_parameters() if _is_used(network, n))
    assert sum(numpy_helper.to_array(t).nbytes for t in graph.initializer) <= 1.01 * used
    assert info.max_difference < 1e-3


def _small_ffs(iters: int, opset: int) -> tuple[nn.Module, ExperimentSpec]:
    torch.manual_seed(0)
    spec = ExperimentSpec()
    spec.model.max_disparity = 64
    spec.export.input_height, spec.export.input_width = 64, 128
    spec.export.valid_iters, spec.export.opset_version = iters, opset
    return FastFoundationStereo(spec.model).eval(), spec


def test_a_graph_of_open_sides_computes_what_pytorch_computes_at_any_size(tmp_path: Path) -> None:
    network, spec = _small_ffs(iters=2, opset=17)
    spec.export.dynamic_hw, spec.export.batch_size = True, -1

    info = export_graph(network, spec, tmp_path / "a.onnx")

    graph = onnx.load(info.path).graph
    assert _shape(graph.input[1]) == ["batch_size", 3, "height", "width"]
    assert _shape(graph.output[0]) == ["batch_size", 1, "height", "width"]
    assert not {n.op_type for n in graph.node} & {"ScatterND", "ScatterElements", "GridSample"}
    assert info.bytes <= 1.15 * 4 * sum(p.numel() for p in network.parameters())
    facts = json.loads(info.sidecar.read_text())
    assert facts["dynamic_axes"] == {"0": "batch_size", "2": "height", "3": "width"}
    generator = torch.Generator().manual_seed(1)
    engine, predictor = GraphEngine(info.path.read_bytes()), load_predictor(info.path, spec)
    for batch, height, width in ((1, 96, 160), (3, 32, 64)):
        left, right = torch.randn(2, batch, 3, height, width, generator=generator)
        with torch.no_grad():
            expected = network(left, right, iters=2, last_only=True).refined[-1]
        found = engine({base.LEFT: left.numpy(), base.RIGHT: right.numpy()})[base.DISPARITY]
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-3)
        told = predictor({"left": left[..., :-3], "right": right[..., :-3]})
        assert told.shape == (batch, height, width - 3), "images have their own size, padded"


def test_only_a_network_that_can_leaves_its_sides_open(tmp_path: Path) -> None:
    spec = MODELS["fs"].experiment()
    spec.export.input_height, spec.export.input_width = HEIGHT, WIDTH
    spec.export.dynamic_hw, spec.export.valid_iters, spec.export.batch_size = True, 2, 1
    info = export_graph(TinyStereo(), spec, tmp_path / "a.onnx")
    assert _shape(onnx.load(info.path).graph.input[0]) == [1, 3, HEIGHT, WIDTH]


def test_a_graph_with_its_normalisation_takes_pixels(tmp_path: Path) -> None:
    network, spec = TinyStereo().eval(), tiny_spec(batch_size=-1)
    plain = export_graph(network, spec, tmp_path / "plain.onnx").path
    spec.export.include_normalization = True
    info = export_graph(network, spec, tmp_path / "a.onnx")

    inputs = onnx.load(info.path).graph.input
    assert [(v.name, v.type.tensor_type.elem_type) for v in inputs] == [
        (name, onnx.TensorProto.UINT8) for name in (base.LEFT, base.RIGHT)
    ]
    assert json.loads(info.sidecar.read_text())["normalizes_inside"] is True
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (2, 2, 3, HEIGHT, WIDTH), generator=generator)
    look = spec.dataset.test_dataset.augmentation
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (look.input_mean, look.input_std))
    left, right = (pixels / 255 - mean) / std
    expected = load_predictor(plain, spec)({"left": left, "right": right})
    found = load_predictor(info.path, spec)({"left": left, "right": right})
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    names = zip((base.LEFT, base.RIGHT), pixels.numpy().astype(np.uint8), strict=True)
    direct = GraphEngine(info.path.read_bytes())(dict(names))[base.DISPARITY]
    np.testing.assert_allclose(direct[:, 0], expected.numpy(), atol=1e-4)

    base.sidecar_path(info.path).unlink()
    with pytest.raises(EngineError, match=r"a\.onnx: takes uint8 images, and without its sidecar"):
        load_predictor(info.path, spec)({"left": left, "right": right})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "iters", "opset", "dynamic"),
    [
        ("ffs", 8, 16, True),
        ("ffs", 22, 18, True),
        ("ffs", 22, 17, False),
        ("fs", 8, 16, False),
        ("fs", 22, 18, False),
    ],
)
def test_size_and_operators_hold_for_every_count_and_opset(
    tmp_path: Path, key: str, iters: int, opset: int, dynamic: bool
) -> None:
    entry = MODELS[key]
    spec = entry.experiment()
    spec.model.encoder, spec.model.max_disparity = "vits", 64
    spec.export.input_height, spec.export.input_width = 64, 128
    spec.export.valid_iters, spec.export.opset_version = iters, opset
    spec.export.dynamic_hw = dynamic
    network = entry.build(spec).eval()
    info = export_graph(network, spec, tmp_path / "a.onnx")
    assert info.opset == opset
    assert info.bytes <= 1.15 * 4 * sum(p.numel() for p in network.parameters())
    operators = {node.op_type for node in onnx.load(info.path).graph.node}
    assert not operators & {"ScatterND", "ScatterElements", "GridSample", "BatchNormalization"}


def _is_used(network: nn.Module, name: str) -> bool:
    """Whether a parameter can reach the output, told by its gradient."""
    if not any(p.grad is not None for p in network.parameters()):
        left, right = torch.randn(2, 1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
        output = network.eval()(left, right, iters=2)
        (output.refined[-1].sum() + output.initial.sum()).backward()
    return network.get_parameter(name).grad is not None
