"""What every engine backend must do; a new backend passes this before it is registered."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from stereo.engines import BACKENDS, backend_for, base, runnable
from stereo.engines.base import EngineBackend
from stereo.engines.build import build_engine
from stereo.engines.ort import GraphEngine
from stereo.errors import BackendMissingError, EngineError, SpecError
from stereo.export.graph import export_graph
from stereo.export.quantize import quantize_graph
from stereo.predict import load_predictor
from stereo.spec.deploy import DynamicEngineSpec, EngineSpec, MonoEngineSpec, QuantizeSpec
from stereo.spec.experiment import ExperimentSpec
from tests.stereo.tiny_mono import SIZE, write_tiny_mono
from tests.stereo.tiny_stereo import HEIGHT, WIDTH, TinyStereo, tiny_spec


@pytest.fixture(params=list(BACKENDS))
def backend(request: pytest.FixtureRequest) -> EngineBackend:
    found = BACKENDS[request.param]
    reason = found.available()
    if reason:
        pytest.skip(reason)
    return found


def _section(graph: Path, backend: EngineBackend) -> EngineSpec:
    section = EngineSpec(onnx_file=str(graph), backend=backend.name)  # type: ignore[arg-type]
    return section


def _probe(batch: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(3)
    shape = (batch, 3, HEIGHT, WIDTH)
    return {name: generator.standard_normal(shape, np.float32) for name in (base.LEFT, base.RIGHT)}


class TestEngineBackend:
    @pytest.fixture
    def graph(self, tmp_path: Path) -> Path:
        return export_graph(TinyStereo(), tiny_spec(), tmp_path / "tiny.onnx").path

    def test_it_is_registered_under_its_name_with_a_suffix(self, backend: EngineBackend) -> None:
        assert BACKENDS[backend.name] is backend
        assert backend.suffix.isalnum()

    @pytest.mark.parametrize("data_type", ["fp32", "fp16"])
    def test_an_engine_and_its_sidecar_are_written(
        self, backend: EngineBackend, graph: Path, tmp_path: Path, data_type: str
    ) -> None:
        section = _section(graph, backend)
        section.tensorrt.data_type = data_type  # type: ignore[assignment]

        info = build_engine(section, tmp_path / "out")

        expected = f"tiny.{data_type}.{HEIGHT}x{WIDTH}.{backend.suffix}"
        assert info.engine == tmp_path / "out" / expected
        facts = json.loads(info.sidecar.read_text())
        assert facts["backend"] == backend.name == info.backend
        assert facts["backend_version"]
        assert facts["sha256"] == base.sha256(info.engine)
        assert facts["bytes"] == info.engine.stat().st_size > 0
        assert facts["graph"]["sha256"] == base.sha256(graph)
        assert facts["graph"]["file"] == "../tiny.onnx"
        assert facts["source"]["iterations"] == 2
        assert [tensor["name"] for tensor in facts["inputs"]] == [base.LEFT, base.RIGHT]
        assert facts["outputs"][0]["shape"] == [1, 1, HEIGHT, WIDTH]
        assert backend_for(info.engine) is backend

    def test_its_numbers_are_those_of_the_graph(
        self, backend: EngineBackend, graph: Path, tmp_path: Path
    ) -> None:
        info = build_engine(_section(graph, backend), tmp_path)
        expected = GraphEngine(graph.read_bytes())(_probe(1))[base.DISPARITY]

        loaded = runnable(info.engine)

        np.testing.assert_allclose(loaded.engine(_probe(1))[base.DISPARITY], expected, atol=1e-3)
        assert f"{backend.name} fp32 engine" in loaded.backend
        assert loaded.warnings == ()

    def test_a_dynamic_batch_gets_a_profile(self, backend: EngineBackend, tmp_path: Path) -> None:
        graph = export_graph(TinyStereo(), tiny_spec(batch_size=-1), tmp_path / "tiny.onnx").path
        section = _section(graph, backend)
        section.batch_size, section.tensorrt.max_batch_size = -1, 4

        info = build_engine(section, tmp_path)

        assert info.facts["profiles"][base.LEFT] == {
            "minimum": (1, 3, HEIGHT, WIDTH),
            "optimum": (1, 3, HEIGHT, WIDTH),
            "maximum": (4, 3, HEIGHT, WIDTH),
        }
        assert runnable(info.engine).engine(_probe(4))[base.DISPARITY].shape[0] == 4

    def test_open_sides_get_a_profile_and_its_limits_hold(
        self, backend: EngineBackend, tmp_path: Path
    ) -> None:
        graph = _open_graph(tmp_path / "open.onnx")
        section = DynamicEngineSpec(
            onnx_file=str(graph), backend=backend.name, min_height=32, opt_height=32,
            max_height=64, min_width=32, opt_width=64, max_width=96,
        )  # fmt: skip

        info = build_engine(section, tmp_path)

        assert info.engine.name == f"open.fp32.dyn.{backend.suffix}"
        assert info.facts["profiles"][base.RIGHT] == {
            "minimum": (1, 3, 32, 32), "optimum": (1, 3, 32, 64), "maximum": (1, 3, 64, 96),
        }  # fmt: skip
        predictor = load_predictor(info.engine, ExperimentSpec())
        left, right = torch.rand(2, 1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
        expected = (left - right).mean(1)
        torch.testing.assert_close(predictor({"left": left, "right": right}), expected)
        wide = {"left": torch.cat((left, left), -1), "right": torch.cat((right, right), -1)}
        with pytest.raises(SpecError, match=r"left_image axis 3: got 192, .* 32\.\.96"):
            predictor(wide)

    def test_a_graph_that_it_cannot_build_is_an_error_that_says_why(
        self, backend: EngineBackend, graph: Path
    ) -> None:
        model = onnx.load(graph)
        model.graph.node[0].op_type = "Unheard"
        with pytest.raises(EngineError, match="Unheard"):
            backend.compile(model.SerializeToString(), base.BuildOptions())

    def test_a_build_replaces_the_engine_whole(
        self, backend: EngineBackend, graph: Path, tmp_path: Path
    ) -> None:
        section = _section(graph, backend)
        section.trt_engine = str(tmp_path / "named.engine")
        Path(section.trt_engine).write_bytes(b"old")
        info = build_engine(section, tmp_path / "unused")
        assert base.sha256(info.engine) == info.facts["sha256"]
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "named.engine",
            "named.engine.json",
            "tiny.onnx",
            "tiny.onnx.json",
        ]

    def test_a_batch_that_the_graph_does_not_have_is_refused_before_the_build(
        self, backend: EngineBackend, graph: Path, tmp_path: Path
    ) -> None:
        section = _section(graph, backend)
        section.batch_size = 3
        with pytest.raises(SpecError, match=r"gen_trt_engine\.batch_size: got 3.*fixed batch of 1"):
            build_engine(section, tmp_path)


class TestPrecisions:
    """Types beyond those of the stereo networks, on a graph of a monocular one."""

    @pytest.fixture
    def graph(self, tmp_path: Path) -> Path:
        return write_tiny_mono(tmp_path / "mono.onnx")

    def _build(self, graph: Path, backend: EngineBackend, *layers: str, **tensorrt: str) -> Path:
        section = MonoEngineSpec(onnx_file=str(graph), backend=backend.name)  # type: ignore[arg-type]
        section.tensorrt.data_type = tensorrt.get("data_type", "fp32")  # type: ignore[assignment]
        section.tensorrt.layers_precision = list(layers)
        return build_engine(section, graph.parent / "out").engine

    @pytest.mark.parametrize(
        ("data_type", "layers", "storage_rounding"),
        [
            ("fp32", (), False),
            ("fp16", (), True),
            ("bf16", (), True),
            ("fp32", ("/network/mix/MatMul:bf16", "/network/patches/*:fp16"), True),
            ("bf16", ("*:fp32",), False),
        ],
    )
    def test_it_builds_every_precision_and_the_label_says_what_a_cpu_shows(
        self,
        backend: EngineBackend,
        graph: Path,
        data_type: str,
        layers: tuple[str, ...],
        storage_rounding: bool,
    ) -> None:
        engine = self._build(graph, backend, *layers, data_type=data_type)

        loaded = runnable(engine)

        image = np.random.default_rng(3).standard_normal((1, 3, *SIZE), np.float32)
        expected = GraphEngine(graph.read_bytes())({"images": image})["outputs"]
        found = loaded.engine({"images": image})["outputs"]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=2e-2)
        assert base.read_sidecar(engine)["layers_precision"] == list(layers)  # type: ignore[index]
        if loaded.backend.startswith("ONNX Runtime"):
            assert ("storage rounding" in loaded.backend) is storage_rounding
            assert (found != expected).any() == storage_rounding

    def test_a_quantised_graph_is_an_int8_engine_and_a_float_one_is_not(
        self, backend: EngineBackend, graph: Path
    ) -> None:
        with pytest.raises(SpecError, match=r"data_type: got int8: the graph has float weights"):
            self._build(graph, backend, data_type="int8")
        section = QuantizeSpec(model_path=str(graph), mode="static_ptq")
        content = graph.read_bytes()
        image = np.random.default_rng(4).standard_normal((1, 3, *SIZE), np.float32)
        nodes = {"/network/mix/MatMul": "int8"}
        quantised = graph.with_name("int8.onnx")
        quantised.write_bytes(quantize_graph(content, section, nodes, [{"images": image}]))

        engine = self._build(quantised, backend, data_type="int8")

        facts = base.read_sidecar(engine)
        assert facts is not None
        assert facts["int8_share"] == 1.0
        expected = GraphEngine(content)({"images": image})["outputs"]
        found = runnable(engine).engine({"images": image})["outputs"]
        assert 0 < np.abs(found - expected).max() < 2e-2
        with pytest.raises(SpecError, match=r"got fp16: the graph has int8 weights.*=int8"):
            self._build(quantised, backend, data_type="fp16")

    def test_weights_that_only_onnx_runtime_multiplies_are_refused(
        self, backend: EngineBackend, graph: Path
    ) -> None:
        nodes = {"/network/mix/MatMul": "int8"}
        content = quantize_graph(graph.read_bytes(), QuantizeSpec(), nodes, [])
        quantised = graph.with_name("dynamic.onnx")
        quantised.write_bytes(content)
        for data_type in ("fp32", "int8"):
            with pytest.raises(SpecError, match=r"only ONNX Runtime does.*mode static_ptq"):
                self._build(quantised, backend, data_type=data_type)

    def test_progress_is_told_in_phases(self, backend: EngineBackend, graph: Path) -> None:
        told: list[tuple[str, int, int | None]] = []
        options = base.BuildOptions(progress=lambda *step: told.append(step))
        backend.compile(graph.read_bytes(), options)
        assert all(0 <= done <= (total or done) for _, done, total in told)
        if backend.name != "onnxruntime":  # which builds nothing
            assert len(told) > 10
            assert any(0 < done < (total or 0) for _, done, total in told)


@pytest.mark.parametrize(
    ("model", "encoder", "data_type", "said"),
    [
        ("MetricDepthAnything", "vitl", "fp16", "activations overflow"),
        ("RelativeDepthAnything", "vitg", "fp16", "activations overflow"),
        ("FoundationStereo", "vits", "bf16", "no bf16 engine"),
    ],
)
def test_a_precision_that_the_network_of_a_graph_does_not_survive_is_refused_whatever_the_spec_says(
    tmp_path: Path, model: str, encoder: str, data_type: str, said: str
) -> None:
    facts = {"model_type": model, "model": {"encoder": encoder}}
    graph = write_tiny_mono(tmp_path / "mono.onnx", facts)
    section = MonoEngineSpec(onnx_file=str(graph), backend="onnxruntime")
    section.tensorrt.data_type = data_type  # type: ignore[assignment]
    with pytest.raises(SpecError, match=rf"data_type: got {data_type}: .*{said}"):
        build_engine(section, tmp_path)


@pytest.mark.parametrize(("data_type", "warned"), [("fp16", True), ("bf16", False)])
def test_float16_of_a_small_encoder_is_worth_a_warning(
    tmp_path: Path, data_type: str, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    facts = {"model_type": "MetricDepthAnything", "model": {"encoder": "vits"}}
    graph = write_tiny_mono(tmp_path / "mono.onnx", facts)
    section = MonoEngineSpec(onnx_file=str(graph), backend="onnxruntime")
    section.tensorrt.data_type = data_type  # type: ignore[assignment]
    build_engine(section, tmp_path)
    assert any("may overflow. Use bf16" in line for line in caplog.messages) is warned


def test_a_backend_that_is_missing_names_the_remedy() -> None:
    missing = [found for found in BACKENDS.values() if found.available()]
    for found in missing:
        with pytest.raises(BackendMissingError, match=rf"{found.name}.*(pip install|Set)") as error:
            found.compile(b"", base.BuildOptions())
        assert error.value.exit_code == 4


def _open_graph(path: Path) -> Path:
    """Mean difference of a pair of any size, (1, 1, H, W)."""
    float32, shape = onnx.TensorProto.FLOAT, [1, 3, "height", "width"]
    nodes = [
        onnx.helper.make_node("Sub", [base.LEFT, base.RIGHT], ["difference"]),
        onnx.helper.make_node("ReduceMean", ["difference"], [base.DISPARITY], axes=[1]),
    ]
    inputs = [
        onnx.helper.make_tensor_value_info(n, float32, shape) for n in (base.LEFT, base.RIGHT)
    ]
    output = onnx.helper.make_tensor_value_info(base.DISPARITY, float32, [1, 1, *shape[2:]])
    made = onnx.helper.make_graph(nodes, "open", inputs, [output])
    opsets = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(made, opset_imports=opsets, ir_version=10), path)
    return path
