from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from stereo.checkpoints import files
from stereo.engines import base
from stereo.engines.build import build_engine
from stereo.errors import CheckpointError, EngineError, SpecError
from stereo.export.graph import export_graph
from stereo.nets.blocks import BatchNorm
from stereo.nets.fast_foundation_stereo import FastFoundationStereo
from stereo.predict import Predictor, load_network, load_predictor
from stereo.spec.deploy import EngineSpec
from stereo.spec.experiment import ExperimentSpec
from stereo.tasks import STEREO
from tests.stereo.tiny_stereo import HEIGHT, WIDTH, TinyStereo, tiny_spec

SOURCE = Path("network.pth")


def _first_channel(left: Tensor, _right: Tensor) -> Tensor:
    """A network whose disparity is the first channel of the left image."""
    assert left.shape[-2] % 32 == left.shape[-1] % 32 == 0
    return left[:, 0]


def _pair(height: int, width: int, batch: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(height + width)
    left, right = torch.rand(2, batch, 3, height, width, generator=generator)
    return {"left": left, "right": right}


def _predictor(**options: object) -> Predictor:
    return Predictor(_first_channel, STEREO, backend="test", source=SOURCE, stride=32, **options)  # type: ignore[arg-type]


@settings(deadline=None)
@given(height=st.integers(1, 70), width=st.integers(1, 70))
def test_padding_to_the_stride_and_cropping_is_the_identity(height: int, width: int) -> None:
    pair = _pair(height, width)
    torch.testing.assert_close(_predictor()(pair), pair["left"][:, 0], rtol=0, atol=0)


def test_resizing_scales_disparity_by_the_ratio_of_the_widths() -> None:
    left = torch.full((1, 3, 50, 100), 4.0)
    predictor = _predictor(size=(64, 256))
    pair = {"left": left, "right": left}
    torch.testing.assert_close(predictor(pair), torch.full((1, 50, 100), 4.0 * 100 / 256))


def test_native_padded_keeps_the_pixels_of_smaller_images_and_refuses_larger_ones() -> None:
    predictor = _predictor(size=(64, 96), native_padded=True)
    pair = _pair(40, 50)
    torch.testing.assert_close(predictor(pair), pair["left"][:, 0], rtol=0, atol=0)
    with pytest.raises(SpecError, match=r"native_padded: the image is 65x96, .* 64x96"):
        predictor(_pair(65, 96))


def test_an_image_that_fits_after_padding_is_not_resized() -> None:
    pair = _pair(60, 90)
    found = _predictor(size=(64, 96))(pair)
    torch.testing.assert_close(found, pair["left"][:, 0], rtol=0, atol=0)


@pytest.mark.parametrize("batch_size", [1, 3, -1])
def test_batches_are_cut_and_filled_to_what_a_graph_takes(tmp_path: Path, batch_size: int) -> None:
    network = TinyStereo().eval()
    spec = tiny_spec(batch_size=batch_size)
    graph = export_graph(network, spec, tmp_path / "a.onnx").path
    pair = _pair(HEIGHT, WIDTH, batch=5)

    found = load_predictor(graph, spec)(pair)

    with torch.no_grad():
        expected = network(**pair, iters=2).refined[-1][:, 0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_a_spec_that_contradicts_the_graph_lists_every_difference(tmp_path: Path) -> None:
    spec = tiny_spec()
    graph = export_graph(TinyStereo(), spec, tmp_path / "a.onnx").path
    spec.model.train_iters += 1
    load_predictor(graph, spec)  # iterations of training do not shape the graph

    spec.model.corr_radius, spec.model.max_disparity = 3, 64
    spec.dataset.test_dataset.augmentation.input_mean = [0.0, 0.0, 0.0]
    spec.dataset.infer_dataset.augmentation.input_mean = [0.0, 0.0, 0.0]
    with pytest.raises(SpecError) as error:
        load_predictor(graph, spec)
    text = str(error.value)
    assert "model.corr_radius: got 3, the graph has 4" in text
    assert "model.max_disparity: got 64, the graph has 192" in text
    assert "normalised by mean [0.485, 0.456, 0.406]" in text
    assert error.value.exit_code == 2


def test_an_input_size_other_than_the_graphs_is_refused(tmp_path: Path) -> None:
    spec = tiny_spec()
    graph = export_graph(TinyStereo(), spec, tmp_path / "a.onnx").path
    load_predictor(graph, spec, input_size=(HEIGHT, WIDTH))
    with pytest.raises(SpecError, match=rf"got \(64, 64\), the graph takes \({HEIGHT}, {WIDTH}\)"):
        load_predictor(graph, spec, input_size=(64, 64))


def test_a_graph_of_another_kind_is_refused(tmp_path: Path) -> None:
    spec = tiny_spec()
    graph = export_graph(TinyStereo(), spec, tmp_path / "a.onnx").path
    other = graph.read_bytes().replace(base.LEFT.encode(), b"left_other")
    (tmp_path / "other.onnx").write_bytes(other)
    with pytest.raises(
        EngineError, match="inputs are left_other, right_image, expected left_image"
    ):
        load_predictor(tmp_path / "other.onnx", spec)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExperimentSpec]:
    """A checkpoint of the real network with fresh weights."""
    spec = ExperimentSpec()
    spec.model.max_disparity = spec.dataset.max_disparity = 64
    spec.model.valid_iters = spec.export.valid_iters = 2
    spec.export.input_height, spec.export.input_width = 64, 96
    torch.manual_seed(0)
    network = FastFoundationStereo(spec.model)
    state = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    checkpoint = tmp_path_factory.mktemp("trained") / "dn_model_best.pth"
    files.write(checkpoint, {"state_dict": state})
    return checkpoint, spec


def test_checkpoint_graph_and_engine_predict_the_same_disparity(
    trained: tuple[Path, ExperimentSpec],
) -> None:
    checkpoint, spec = trained
    network = load_network(checkpoint, spec)
    graph = export_graph(network, spec, checkpoint.with_suffix(".onnx"), checkpoint=checkpoint).path
    engine = build_engine(EngineSpec(onnx_file=str(graph)), checkpoint.parent).engine
    pair = _pair(60, 90, batch=3)

    predictors = [load_predictor(path, spec) for path in (checkpoint, graph, engine)]
    expected, *found = (predictor(pair) for predictor in predictors)

    assert expected.shape == (3, 60, 90)
    for disparity in found:
        torch.testing.assert_close(disparity, expected, rtol=0, atol=1e-3)
    backends = [predictor.backend for predictor in predictors]
    assert backends[0].startswith("PyTorch")
    assert backends[1].startswith("ONNX Runtime")
    assert "engine" in backends[2]
    assert [predictor.source for predictor in predictors] == [checkpoint, graph, engine]


def test_a_checkpoint_predicts_without_batch_norms(trained: tuple[Path, ExperimentSpec]) -> None:
    checkpoint, spec = trained
    called: set[type[nn.Module]] = set()
    predictor, pair = load_predictor(checkpoint, spec), _pair(64, 96)
    hook = register_module_forward_hook(lambda module, *_: called.add(type(module)))
    try:
        found = predictor(pair)
    finally:
        hook.remove()

    assert nn.Conv3d in called
    assert BatchNorm not in called
    with torch.no_grad():
        expected = load_network(checkpoint, spec)(**pair, iters=2).refined[-1][:, 0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_weights_of_another_network_are_refused(trained: tuple[Path, ExperimentSpec]) -> None:
    checkpoint, _ = trained
    with pytest.raises(CheckpointError, match="do not fit this network"):
        load_predictor(
            checkpoint, ExperimentSpec(model=type(ExperimentSpec().model)(corr_radius=2))
        )
