from __future__ import annotations

import importlib.util
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from stereo import actions
from stereo.checkpoints import files
from stereo.data.generator import EMBEDDED_IMAGES, EmbeddedSet, write_embedded_images
from stereo.engines import BACKENDS, base, precision
from stereo.errors import BackendMissingError, CheckpointError, EngineError, SpecError
from stereo.export.graph import export_graph
from stereo.export.quantization import drift_of, quantize_model
from stereo.files import sha256
from stereo.parent import infer
from stereo.predict import load_predictor
from stereo.registry import MODELS
from stereo.spec import models
from stereo.spec.data import DataSource
from stereo.spec.experiment import ExperimentSpec
from stereo.spec.load import to_dict
from stereo.spec.networks import MonoBackboneSpec
from tests.stereo.tiny_stereo import CHANNELS, TinyStereo, tiny_spec


class _Mix(nn.Module):
    """A product of a constant, per pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(CHANNELS, CHANNELS)

    def forward(self, features: Tensor) -> Tensor:
        mixed = self.linear(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return features + mixed


class Mixing(TinyStereo):
    def __init__(self) -> None:
        super().__init__()
        self.features.append(_Mix())


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_graph(Mixing(), tiny_spec(), tmp_path_factory.mktemp("g") / "tiny.onnx").path


@pytest.fixture
def spec(graph: Path, small_data: EmbeddedSet) -> ExperimentSpec:
    spec = tiny_spec()
    spec.quantize.model_path = str(graph)
    spec.dataset.val_dataset.data_sources = [DataSource("GenericDataset", str(small_data.val))]
    spec.dataset.val_dataset.workers = 0
    spec.dataset.quant_calibration_dataset.images_dir = str(small_data.train)
    return spec


def test_a_graph_gets_int8_products_a_sidecar_and_a_report(
    spec: ExperimentSpec, graph: Path, tmp_path: Path
) -> None:
    info = quantize_model(spec, tmp_path)

    report = json.loads(info.report.read_text())
    assert info.model == tmp_path / "quantized_model.onnx"
    assert report["modules"] == {"matched": {"features.3.linear": "int8"}, "skipped": {}}
    assert report["before"]["sha256"] == sha256(graph)
    assert report["after"]["bytes"] == info.model.stat().st_size == info.metrics["quantize/bytes"]
    assert report["size_ratio"] == report["after"]["bytes"] / report["before"]["bytes"]
    assert report["drift"]["images"] == 2
    assert 0 < report["drift"]["mean_relative"] == info.metrics["quantize/drift"] < 0.05
    assert 0.99 < report["drift"]["correlation"] < 1
    assert min(report[side]["latency_ms"] for side in ("before", "after")) > 0
    scores = report["accuracy"]
    assert scores["before"].keys() == scores["after"].keys() >= {"epe", "bp1"}
    assert 0 < abs(scores["before"]["epe"] - scores["after"]["epe"]) < 0.5
    assert info.metrics["val/epe"] == scores["after"]["epe"]

    facts = base.read_sidecar(info.model)
    assert facts is not None
    assert info.sidecar == base.sidecar_path(info.model)
    assert facts["sha256"] == sha256(info.model)
    assert facts["quantization"]["float_graph"]["sha256"] == sha256(graph)
    kinds = {node.op_type for node in onnx.load(info.model).graph.node}
    assert {"DynamicQuantizeLinear", "MatMulInteger"} <= kinds
    assert load_predictor(info.model, spec).backend == "ONNX Runtime CPU int8"


def test_static_graphs_quantise_inputs_symmetrically_in_front_of_the_chosen_nodes_only(
    spec: ExperimentSpec, tmp_path: Path
) -> None:
    spec.quantize.mode = "static_ptq"
    spec.quantize.backend_kwargs.op_types = ["MatMul", "Conv"]
    spec.quantize.skip_names = ["features.0"]

    info = quantize_model(spec, tmp_path)

    modules = json.loads(info.report.read_text())["modules"]
    assert set(modules["matched"]) == {"features.3.linear", "refine"}
    assert modules["skipped"] == {"features.0": "skip_names features.0"}
    content = info.model.read_bytes()
    assert precision.quantized_as(content) == "qdq"
    assert precision.int8_share(content) == 1.0
    model = onnx.load(info.model).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.initializer}
    makers = {name: node for node in model.node for name in node.output}
    small = [
        n for n in model.node if n.op_type in ("MatMul", "Conv") and "features.0" not in n.name
    ]
    for node in small:
        for name in node.input[:2]:
            assert makers[name].op_type == "DequantizeLinear"
            zero = stored[makers[name].input[2]]
            assert zero.dtype == np.int8
            assert not zero.any()
    weights = [stored[makers[node.input[1]].input[1]] for node in small]
    assert weights[0].shape == (CHANNELS,), "one scale per output channel"
    pairs = sum(node.op_type == "QuantizeLinear" for node in model.node)
    assert pairs == 3, "one product, two refinements; outputs are left as they are"
    assert quantize_model(spec, tmp_path / "again").model.read_bytes() == content


@pytest.mark.parametrize("algorithm", ["entropy", "percentile"])
def test_other_calibration_methods_change_the_scales(
    spec: ExperimentSpec, tmp_path: Path, algorithm: str, capfd: pytest.CaptureFixture[str]
) -> None:
    spec.quantize.mode = "static_ptq"
    widest = quantize_model(spec, tmp_path / "minmax").model.read_bytes()
    spec.quantize.algorithm = algorithm  # type: ignore[assignment]
    other = quantize_model(spec, tmp_path / algorithm).model.read_bytes()
    assert other != widest
    assert capfd.readouterr().out == "", "what the library prints goes to the log"


def test_without_images_and_truth_the_report_says_so(spec: ExperimentSpec, tmp_path: Path) -> None:
    spec.dataset.quant_calibration_dataset.images_dir = ""
    spec.dataset.val_dataset.data_sources = None
    report = json.loads(quantize_model(spec, tmp_path).report.read_text())
    assert report["drift"] is report["accuracy"] is report["after"]["latency_ms"] is None


def test_more_drift_than_allowed_fails_with_the_report_written(
    spec: ExperimentSpec, tmp_path: Path
) -> None:
    spec.quantize.backend_kwargs.max_drift = 1e-6
    with pytest.raises(EngineError, match=r"changes by .* % on 2 images, allowed 0\.0001 %"):
        quantize_model(spec, tmp_path)
    assert (tmp_path / "quantize.json").is_file()
    spec.quantize.backend_kwargs.max_drift = 0.5
    quantize_model(spec, tmp_path)


def test_drift_is_the_mean_relative_change_of_all_pixels() -> None:
    before = [np.array([1.0, 2.0]), np.array([-4.0])]
    found = drift_of(before, [np.array([1.0, 2.0]), np.array([-4.4])])
    assert found.mean_relative == pytest.approx(0.1 / 3)
    assert found.images == 2
    assert drift_of(before, before).correlation == pytest.approx(1)
    assert drift_of([np.ones(2)], [np.ones(2)]).correlation is None


def test_pixels_of_no_inverse_depth_do_not_decide_the_drift() -> None:
    before, after = np.array([0.0, 1.0, 1.0, 2.0]), np.array([0.001, 1.0, 1.0, 2.0])
    assert drift_of([before], [after]).mean_relative == pytest.approx(0.001 / 0.1 / 4)
    assert drift_of([np.zeros(2)], [np.zeros(2)]).mean_relative == 0


def test_a_quantised_graph_a_missing_one_and_an_unknown_module_are_refused(
    spec: ExperimentSpec, tmp_path: Path
) -> None:
    once = quantize_model(spec, tmp_path).model
    spec.quantize.model_path = str(once)
    with pytest.raises(SpecError, match=r"model_path: the graph is quantised already"):
        quantize_model(spec, tmp_path)
    spec.quantize.model_path = str(tmp_path / "none.onnx")
    with pytest.raises(SpecError, match=r"model_path: no such file"):
        quantize_model(spec, tmp_path)


def test_a_graph_without_a_sidecar_gives_one_without(
    spec: ExperimentSpec, graph: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bare = tmp_path / "bare.onnx"
    bare.write_bytes(graph.read_bytes())
    spec.quantize.model_path = str(bare)
    info = quantize_model(spec, tmp_path)
    assert info.sidecar is None
    assert "quantized_model.onnx gets none either" in caplog.text


@pytest.mark.parametrize(
    ("backend", "package"),
    [("torchao", "torchao"), ("modelopt.onnx", "modelopt"), ("modelopt.pytorch", "modelopt")],
)
def test_a_library_that_is_missing_is_named_with_its_extra(
    spec: ExperimentSpec, tmp_path: Path, backend: str, package: str
) -> None:
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is here")
    spec.quantize.backend = backend  # type: ignore[assignment]
    with pytest.raises(
        BackendMissingError, match=rf"pip install 'depthtune\[{package}\]'"
    ) as error:
        quantize_model(spec, tmp_path)
    assert error.value.exit_code == 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_missing_is_named(spec: ExperimentSpec, tmp_path: Path) -> None:
    spec.quantize.device = "cuda:1"
    with pytest.raises(BackendMissingError, match=r"quantize\.device=cuda:1: no NVIDIA GPU"):
        quantize_model(spec, tmp_path)


def test_a_graph_is_quantised_by_the_verb_and_taken_up_by_its_children(
    graph: Path, small_data: EmbeddedSet, tmp_path: Path
) -> None:
    images = {"images_dir": str(small_data.train)}
    section = {"model_path": str(graph), "mode": "static_ptq"}
    values = {"dataset": {"quant_calibration_dataset": images}, "quantize": section}
    result = actions.run("quantize", values, tmp_path)
    assert result.status == "ok", result.detail
    status = [json.loads(line) for line in (tmp_path / "status.json").read_text().splitlines()]
    assert status[-1]["kpi"]["quantize/drift"] == result.metrics["quantize/drift"]
    for action, key in (
        ("evaluate", "evaluate.trt_engine"),
        ("inference", "inference.trt_engine"),
        ("gen_trt_engine", "gen_trt_engine.onnx_file"),
    ):
        assert infer(tmp_path, action).values[key] == str(tmp_path / "quantized_model.onnx")


def test_a_graph_is_not_asked_for_what_a_checkpoint_tells(graph: Path, tmp_path: Path) -> None:
    model = {"model_type": "FoundationStereo", "variant": "auto"}
    values = {"model": model, "quantize": {"model_path": str(graph)}}
    result = actions.run("quantize", values, tmp_path)
    assert result.status == "invalid_spec"
    assert "'FoundationStereo', the graph has 'FastFoundationStereo'" in result.detail


# -- from a checkpoint ----------------------------------------------------------------------------


@pytest.fixture
def values(
    small_values: dict[str, Any], small_weights: Path, small_data: EmbeddedSet
) -> dict[str, Any]:
    small_values["dataset"]["quant_calibration_dataset"] = {"images_dir": str(small_data.train)}
    return {**small_values, "quantize": {"model_path": str(small_weights)}}


@pytest.mark.parametrize(
    "key", ["mono_metric", pytest.param("mono_relative", marks=pytest.mark.slow)]
)
def test_a_monocular_checkpoint_becomes_an_int8_graph_with_scores_and_an_engine(
    key: str, tmp_path: Path
) -> None:
    entry, dataset = MODELS[key], models.MODELS[key].default_dataset
    experiment: Any = entry.experiment()
    experiment.model.encoder, backbone = "vits", {"blocks": 4, "width": 64}
    experiment.model.mono_backbone = MonoBackboneSpec(**backbone)
    torch.manual_seed(0)
    network = entry.build(experiment)
    weights = tmp_path / "dn_model_best.pth"
    state = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    files.write(weights, {"state_dict": state, "spec": to_dict(experiment)})
    layout = replace(EMBEDDED_IMAGES, train_pairs=2, val_pairs=2, train_size=(40, 60))
    _, truth = write_embedded_images(tmp_path / "data", dataset, replace(layout, val_size=(40, 60)))
    images = {"images_dir": str(truth.parent / "train")}
    sources = [{"dataset_name": dataset, "data_file": str(truth)}]
    values: dict[str, Any] = {
        "model": {
            "model_type": entry.model_type,
            "encoder": "vits",
            "mono_backbone": backbone,
        },
        "dataset": {
            "val_dataset": {"data_sources": sources, "workers": 0},
            "test_dataset": {"data_sources": sources, "workers": 0},
            "quant_calibration_dataset": images,
        },
        "export": {"input_height": 42, "input_width": 56, "batch_size": 1},
        "quantize": {"model_path": str(weights), "mode": "static_ptq"},
    }
    result = actions.run("quantize", values, tmp_path / "quantize")
    assert result.status == "ok", result.detail
    report = json.loads(result.artifacts["report"].read_text())
    assert 0 < report["drift"]["mean_relative"] < 0.05
    assert report["drift"]["images"] > 1
    assert set(report["modules"]["matched"]) >= {"pretrained.blocks.0.mlp.fc1"}
    assert report["accuracy"]["before"].keys() == report["accuracy"]["after"].keys() >= {"abs_rel"}

    graph = str(result.artifacts["model"])
    again = actions.run("evaluate", {**values, "evaluate": {"trt_engine": graph}}, tmp_path / "e")
    assert again.metrics["val/abs_rel"] == result.metrics["val/abs_rel"]
    section = {"onnx_file": graph, "tensorrt": {"data_type": "int8"}}
    built = actions.run(
        "gen_trt_engine", {**values, "gen_trt_engine": section}, tmp_path / "engine"
    )
    assert built.status == "ok", built.detail
    facts = base.read_sidecar(built.artifacts["engine"])
    assert facts is not None
    assert facts["int8_share"] >= 0.8


@pytest.mark.slow
def test_a_checkpoint_is_exported_quantised_and_scored_as_a_verb(
    values: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        result = actions.run("quantize", values, tmp_path / "quantize")
    assert result.status == "ok", result.detail
    assert not [record for record in caplog.records if record.name == "root"]
    assert sorted(result.artifacts) == ["model", "report", "sidecar"]
    assert 0 < result.metrics["quantize/drift"] < 0.05
    scores = {name: value for name, value in result.metrics.items() if name.startswith("val/")}

    evaluate = {**values, "evaluate": {"trt_engine": str(result.artifacts["model"])}}
    again = actions.run("evaluate", evaluate, tmp_path / "evaluate")
    assert again.metrics == scores
    assert "ONNX Runtime CPU int8" in again.detail


@pytest.mark.slow
def test_a_quantised_stereo_network_builds_ahead_of_time_with_int8_products(
    values: dict[str, Any], tmp_path: Path
) -> None:
    if BACKENDS["tensorrt_rtx"].available() is not None:
        pytest.skip("tensorrt_rtx is not installed")
    values["quantize"]["mode"] = "static_ptq"
    result = actions.run("quantize", values, tmp_path / "quantize")
    assert result.status == "ok", result.detail
    graph = str(result.artifacts["model"])
    engine = {"onnx_file": graph, "backend": "tensorrt_rtx", "tensorrt": {"data_type": "int8"}}
    built = actions.run("gen_trt_engine", {**values, "gen_trt_engine": engine}, tmp_path / "engine")
    assert built.status == "ok", built.detail
    facts = base.read_sidecar(built.artifacts["engine"])
    assert facts is not None
    assert facts["int8_share"] >= 0.8
    assert facts["layer_types"]["DEQUANTIZE"] > 50


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "ratio"), [("int8", 0.81), ("fp8_e4m3fn", 0.81)])
def test_torchao_stores_linear_weights_in_8_bits(
    values: dict[str, Any], tmp_path: Path, kind: str, ratio: float
) -> None:
    pytest.importorskip("torchao")
    values["quantize"] |= {
        "backend": "torchao",
        "layers": [{"module_name": "*", "weights": {"dtype": kind}}],
    }
    result = actions.run("quantize", values, tmp_path)
    assert result.status == "ok", result.detail
    model = result.artifacts["model"]
    assert model.name == "quantized_model_torchao.pth"
    assert result.metrics["quantize/size_ratio"] < ratio
    assert 0 < result.metrics["quantize/drift"] < 0.05
    with pytest.raises(CheckpointError, match="quantised by torchao, which only"):
        files.read(model)
    state = torch.load(model, weights_only=False)["state_dict"]
    kinds = {type(tensor).__name__ for tensor in state.values()}
    assert kinds == {"Tensor", "Int8Tensor" if kind == "int8" else "Float8Tensor"}


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["modelopt.pytorch", "modelopt.onnx"])
def test_modelopt_calibrates_and_writes_its_own_form(
    values: dict[str, Any], tmp_path: Path, backend: str
) -> None:
    pytest.importorskip("modelopt")
    values["quantize"] |= {"backend": backend, "mode": "static_ptq"}
    result = actions.run("quantize", values, tmp_path)
    assert result.status == "ok", result.detail
    assert 0 < result.metrics["quantize/drift"] < 0.05
    if backend == "modelopt.onnx":
        assert precision.quantized_as(result.artifacts["model"].read_bytes()) == "qdq"
    else:
        assert result.artifacts["model"].name == "quantized_model_modelopt.pytorch.pth"
        with pytest.raises(CheckpointError, match="quantised by modelopt, which only"):
            files.read(result.artifacts["model"])
