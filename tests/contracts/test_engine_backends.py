"""What every engine backend must do; a new backend passes this before it is registered."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from stereo.engines import BACKENDS, backend_for, base, runnable
from stereo.engines.base import EngineBackend
from stereo.engines.build import build_engine
from stereo.engines.ort import GraphEngine
from stereo.errors import BackendMissingError, EngineError, SpecError
from stereo.export.graph import export_graph
from stereo.spec.deploy import EngineSpec
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


def test_a_backend_that_is_missing_names_the_remedy() -> None:
    missing = [found for found in BACKENDS.values() if found.available()]
    for found in missing:
        with pytest.raises(BackendMissingError, match=rf"{found.name}.*(pip install|Set)") as error:
            found.compile(b"", base.BuildOptions())
        assert error.value.exit_code == 4
