"""What the tasks of the monocular networks do with batches; stereo is tested by its users."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from stereo import viz
from stereo.checkpoints import files
from stereo.errors import SpecError
from stereo.export.graph import export_graph
from stereo.losses import relative_loss, silog_loss
from stereo.predict import Predictor, load_network, load_predictor
from stereo.registry import MODELS, entry_for
from stereo.spec.experiment import (
    ExperimentSpec,
    MetricDepthExperiment,
    RelativeDepthExperiment,
)
from stereo.spec.load import to_dict
from stereo.tasks import METRIC, RELATIVE, STEREO
from stereo.train.optim import build_optimizer

MONO = {"mono_metric": METRIC, "mono_relative": RELATIVE}
H, W = 20, 30  # native size


def small(key: str) -> Any:
    """An experiment with the smallest encoder and graph."""
    spec: Any = MODELS[key].experiment()
    spec.model.encoder = "vits"
    spec.model.mono_backbone.blocks, spec.model.mono_backbone.width = 4, 64
    spec.export.input_height, spec.export.input_width = 28, 42
    return spec


@pytest.fixture(scope="module", params=list(MONO))
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """Key of a network and a checkpoint of it, as training writes them."""
    torch.manual_seed(0)
    spec = small(request.param)
    network = MODELS[request.param].build(spec)
    state = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    path = tmp_path_factory.mktemp(request.param) / "dn_model_best.pth"
    files.write(path, {"state_dict": state, "spec": to_dict(spec)})
    return request.param, path


def batch(count: int, seed: int = 0) -> dict[str, Any]:
    """Images at 28x42 with targets of 0.5 to 9.5 at native size, some of them unknown."""
    generator = torch.Generator().manual_seed(seed)
    truth = 0.5 + 9 * torch.rand(count, 1, H, W, generator=generator)
    valid = torch.rand(truth.shape, generator=generator) > 0.3
    return {
        "image": torch.randn(count, 3, 28, 42, generator=generator),
        "target": torch.where(valid, truth, torch.inf),
        "valid": valid,
        "name": [f"{seed}_{index}.png" for index in range(count)],
    }


class Ramp(nn.Module):
    """Depth that rises from left to right."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.linspace(1, 2, image.shape[-1]).expand(len(image), 1, *image.shape[-2:])


def test_each_network_has_the_task_of_its_family() -> None:
    found = {key: entry.task for key, entry in MODELS.items()}
    assert found == {"fs": STEREO, "ffs": STEREO, **MONO}


@pytest.mark.parametrize("task", MONO.values())
def test_a_prediction_is_brought_to_native_size_corner_on_corner(task: Any) -> None:
    predictor = Predictor(
        lambda image: Ramp()(image)[:, 0], task, backend="", source=Path("a"), stride=14
    )
    found = predictor(batch(2))
    assert found.shape == (2, H, W)
    expected = torch.linspace(1, 2, W).expand(2, H, W)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_the_losses_read_their_fields() -> None:
    given, network = batch(2), nn.Conv2d(3, 1, 1)
    given["image"] = torch.rand(2, 3, H, W)
    output = network(given["image"])
    truth, valid = given["target"], given["valid"]

    metric = MetricDepthExperiment()
    metric.train.silog_form, metric.train.silog_lambda = "sqrt", 0.85
    expected = silog_loss(output, truth, valid, form="sqrt", weight=0.85)
    assert METRIC.loss(network, given, metric) == expected

    relative = RelativeDepthExperiment()
    assert RELATIVE.loss(network, given, relative) == relative_loss(output, truth, valid)
    relative.train.relative_loss, relative.train.gradient_loss_weight = "trimmed", 0.25
    expected = relative_loss(output, truth, valid, form="trimmed", gradient_weight=0.25)
    assert RELATIVE.loss(network, given, relative) == expected


@pytest.mark.parametrize("key", MONO)
def test_the_validation_loss_does_not_depend_on_the_batches(key: str) -> None:
    spec, task, whole = MODELS[key].experiment(), MODELS[key].task, batch(3)
    whole["valid"][1] = False  # not counted
    prediction = whole["target"].nan_to_num(posinf=1.0)[:, 0] * torch.rand(3, H, W)
    total, count = task.validation_terms(prediction, whole, spec)
    parts = [
        task.validation_terms(prediction[[i]], {k: v[i : i + 1] for k, v in whole.items()}, spec)
        for i in range(3)
    ]
    assert [terms for _, terms in parts] == [1, 0, 1]
    assert count == 2
    assert float(total) == pytest.approx(float(sum(part for part, _ in parts)), rel=1e-12)
    assert math.isfinite(total)


@pytest.mark.parametrize("key", MONO)
def test_the_head_is_trained_at_a_multiple_of_the_rate_of_the_encoder(key: str) -> None:
    spec = small(key)
    spec.train.optim.lr, spec.train.optim.head_lr_ratio = 1e-4, 7.0
    network = MODELS[key].build(spec)
    groups = MODELS[key].task.parameter_groups(network, spec)

    optimizer = build_optimizer(groups, spec.train.optim)

    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-4, 7e-4])
    encoder, head = ({id(p) for p in group["params"]} for group in optimizer.param_groups)
    for name, parameter in network.named_parameters():
        expected = encoder if name.startswith("pretrained.") else head
        assert (id(parameter) in expected) == parameter.requires_grad, name
    assert len(encoder | head) == sum(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("key", MONO)
def test_recomputed_activations_give_the_same_gradients(key: str) -> None:
    spec, gradients = small(key), []
    for spec.train.activation_checkpoint in (False, True):
        torch.manual_seed(0)
        network = MODELS[key].build(spec).train()
        calls = []
        block = network.pretrained.blocks[3]
        block.register_forward_pre_hook(lambda *_, seen=calls: seen.append(1))
        network(batch(1)["image"]).square().mean().backward()
        assert len(calls) == 1 + spec.train.activation_checkpoint
        gradients.append({n: p.grad for n, p in network.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=0)


def shapes(values: Iterable[Any]) -> dict[str, list[int | str]]:
    """Name -> shape of inputs or outputs of a graph."""
    return {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in values
    }


@pytest.mark.parametrize(("opset", "batch_size"), [(16, -1), (17, 2), (18, -1)])
def test_a_graph_has_the_documented_names_shapes_and_size(
    trained: tuple[str, Path], tmp_path: Path, opset: int, batch_size: int
) -> None:
    key, checkpoint = trained
    spec = small(key)
    spec.export.opset_version, spec.export.batch_size = opset, batch_size
    network = load_network(checkpoint, spec)

    info = export_graph(network, spec, tmp_path / "a.onnx", checkpoint=checkpoint)

    model = onnx.load(info.path)
    first = "batch_size" if batch_size == -1 else batch_size
    assert shapes(model.graph.input) == {"images": [first, 3, 28, 42]}
    assert shapes(model.graph.output) == {"outputs": [first, 28, 42]}
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    assert shapes(inferred.graph.output) == shapes(model.graph.output)
    assert info.bytes <= 1.15 * 4 * sum(p.numel() for p in network.parameters())
    modes = [
        attribute.s
        for node in model.graph.node
        if node.op_type == "Resize"
        for attribute in node.attribute
        if attribute.name == "mode"
    ]
    assert set(modes) == {b"linear"}, "the position code is a constant"
    assert network.pretrained.fixed_position is None, "the caller's network is left as it was"
    assert info.max_difference < 1e-4

    predictor = load_predictor(info.path, spec)
    given = batch(3)
    torch.testing.assert_close(
        predictor(given), load_predictor(checkpoint, spec)(given), rtol=0, atol=1e-4
    )


def test_the_range_of_depth_is_part_of_weights_and_graph(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = small("mono_metric")
    spec.dataset.max_depth = 20.0
    network = entry_for(spec).build(spec)
    state = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    checkpoint, released = tmp_path / "ours.pth", tmp_path / "metric_vits.pth"
    files.write(checkpoint, {"state_dict": state, "spec": to_dict(spec)})
    files.write(released, {"model": network.state_dict()})
    graph = export_graph(network, spec, tmp_path / "a.onnx").path
    assert json.loads((tmp_path / "a.onnx.json").read_text())["max_depth"] == 20.0
    for path in (checkpoint, released, graph):
        load_predictor(path, spec)
    assert [str(released) in message for message in caplog.messages] == [True]
    caplog.clear()

    spec.dataset.max_depth = 10.0
    load_predictor(released, spec)
    (said,) = caplog.messages
    assert "does not say which dataset.max_depth its weights were trained with" in said
    assert said.endswith("that of the spec, 10.0, counts")
    with pytest.raises(SpecError, match=r"max_depth: got 10.0, the weights were trained with 20.0"):
        load_predictor(checkpoint, spec)
    with pytest.raises(SpecError, match=r"max_depth: got 10.0, the graph has 20.0") as error:
        load_predictor(graph, spec)
    assert error.value.exit_code == 2


def test_near_is_red_for_depth_and_for_inverse_depth() -> None:
    ramp = np.linspace(1, 2, 5, dtype=np.float32)[None]
    near, far = viz.SPECTRAL[0], viz.SPECTRAL[-1]
    assert near[0] > near[2]
    assert far[2] > far[0]
    depth, inverse = METRIC.color(ramp), RELATIVE.color(ramp)
    np.testing.assert_array_equal(depth[0, [0, -1]], [near, far])
    np.testing.assert_array_equal(inverse[0, [0, -1]], [far, near])
    assert METRIC.colors[0] == RELATIVE.colors[-1] == "#" + bytes(near).hex()


def test_relative_depth_is_compared_after_alignment() -> None:
    truth = np.linspace(1, 9, 12, dtype=np.float32).reshape(3, 4)
    valid = np.ones((3, 4), bool)
    valid[0] = False
    prediction = (truth - 5) / 3
    aligned = RELATIVE.comparable(prediction, truth, valid)
    np.testing.assert_allclose(aligned, truth, atol=1e-5)
    first = viz.TURBO[0]
    assert (RELATIVE.color_error(prediction, truth, valid)[1:] == first).all()
    assert (METRIC.color_error(prediction, truth, valid)[1:] != first).any()
    constant = np.ones((3, 4), np.float32)
    np.testing.assert_array_equal(RELATIVE.comparable(constant, truth, valid), constant)


def test_targets_between_0_and_1_keep_their_colours() -> None:
    spec = RelativeDepthExperiment()
    assert RELATIVE.fixed_scale(spec) is None
    spec.dataset.normalize_depth = True
    assert RELATIVE.fixed_scale(spec) == (0, 1)
    assert STEREO.fixed_scale(ExperimentSpec()) is None
