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
from stereo.predict import Pace, Predictor, load_network, load_predictor
from stereo.spec.deploy import EngineSpec
from stereo.spec.experiment import ExperimentSpec
from stereo.spec.load import load_spec
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


class _TwoPasses:
    """Answers the first call with a ramp over the columns, and keeps what it is given."""

    def __init__(self, low: float, high: float) -> None:
        self.ends = low, high
        self.calls: list[tuple[Tensor, Tensor | None]] = []

    def __call__(self, left: Tensor, _right: Tensor, initial: Tensor | None = None) -> Tensor:
        assert left.shape[-2] % 32 == left.shape[-1] % 32 == 0
        self.calls.append((left, initial))
        batch, _, height, width = left.shape
        if initial is not None:
            return left[:, 0]
        return torch.linspace(*self.ends, width).expand(batch, height, width)


def _twice(network: _TwoPasses) -> Predictor:
    return Predictor(network, STEREO, backend="test", source=SOURCE, stride=32, first_pass=0.5)


def test_the_first_of_two_passes_starts_the_second_in_quarter_pixels() -> None:
    network = _TwoPasses(3.0, 9.0)
    pair = _pair(64, 128)

    found = _twice(network)(pair)

    torch.testing.assert_close(found, pair["left"][:, 0], rtol=0, atol=0)
    (small, nothing), (full, initial) = network.calls
    assert (small.shape[-2:], nothing, full.shape[-2:]) == ((32, 64), None, (64, 128))
    assert initial is not None
    # Twice as wide images have twice the disparity, and the map is in px of a quarter.
    expected = torch.linspace(2 * 3 / 4, 2 * 9 / 4, 32).expand(2, 1, 16, 32)
    torch.testing.assert_close(initial, expected)


def test_two_passes_pad_clamp_and_sample_as_the_released_code_does() -> None:
    network = _TwoPasses(-5.0, -5.0)
    left = torch.arange(101.0).expand(1, 3, 65, 101).contiguous()

    _twice(network)({"left": left, "right": left})

    (small, _), (full, initial) = network.calls
    assert (small.shape[-2:], full.shape[-2:]) == ((32, 64), (96, 128))
    # 32 x 50, halved by the factor and not by the ratio of the sizes, 7 columns added on each side.
    torch.testing.assert_close(small[0, 0, 0, 7:57], 2 * torch.arange(50.0) + 0.5)
    # Below 0 is no disparity; the 13 columns of padding on the left are added.
    torch.testing.assert_close(initial, torch.full((1, 1, 24, 32), 13 / 4))


def test_the_share_of_the_first_pass_is_free() -> None:
    network = _TwoPasses(6.0, 6.0)
    pair = _pair(128, 128, batch=1)
    Predictor(network, STEREO, backend="test", source=SOURCE, stride=32, first_pass=0.25)(pair)
    (small, _), (_, initial) = network.calls
    assert small.shape[-2:] == (32, 32)
    torch.testing.assert_close(initial, torch.full((1, 1, 32, 32), 6 / 0.25 / 4))


def test_two_passes_see_resized_images_where_a_size_is_given() -> None:
    network = _TwoPasses(4.0, 4.0)
    predictor = Predictor(
        network, STEREO, backend="test", source=SOURCE, stride=32, size=(64, 96), first_pass=0.5
    )
    left = torch.full((1, 3, 50, 48), 6.0)
    found = predictor({"left": left, "right": left})
    assert [call[0].shape[-2:] for call in network.calls] == [(32, 64), (64, 96)]
    torch.testing.assert_close(found, torch.full((1, 50, 48), 6.0 * 48 / 96))


def test_two_passes_of_the_real_network_are_another_prediction(
    small_values: dict, small_weights: Path
) -> None:
    spec = load_spec({**small_values, "results_dir": "a"}, action="train")
    pair = _pair(60, 120, batch=1)
    once = load_predictor(small_weights, spec)(pair)
    twice = load_predictor(small_weights, spec, first_pass=0.5)(pair)
    assert once.shape == twice.shape == (1, 60, 120)
    assert twice.isfinite().all()
    assert (once - twice).abs().max() > 1e-3


def test_the_pace_leaves_the_first_call_out() -> None:
    pace = Pace()
    assert pace.summary() == {}
    pace.add(2, 9.0)
    assert pace.summary()["throughput"] == pytest.approx(2 / 9), "nothing else is known"
    for milliseconds in range(100, 201):
        pace.add(4, milliseconds / 1000)
    found = pace.summary()
    assert found["throughput"] == pytest.approx(4 * 101 / 15.15)
    assert [found[f"latency_p{share}_ms"] for share in (50, 90, 99)] == [
        pytest.approx(value) for value in (150, 190, 199)
    ]
    assert (found["first_call_ms"], found["largest_batch"]) == (9000, 4)


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
