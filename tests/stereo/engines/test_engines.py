from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stereo.engines import BACKENDS, backend, backend_for, base, runnable
from stereo.engines.base import ShapeRange, TensorSpec
from stereo.engines.build import build_engine, build_options
from stereo.engines.nvinfer import gpu_missing
from stereo.engines.ort import GraphEngine
from stereo.errors import BackendMissingError, EngineError, SpecError
from stereo.export.graph import export_graph
from stereo.files import sha256
from stereo.spec.deploy import DynamicEngineSpec, EngineSpec
from tests.stereo.tiny_stereo import HEIGHT, WIDTH, TinyStereo, tiny_spec

NEEDS_RTX = pytest.mark.skipif(
    BACKENDS["tensorrt_rtx"].available() is not None, reason="tensorrt_rtx is not installed"
)
NO_GPU = pytest.mark.skipif(gpu_missing() is None, reason="here the engine itself runs")


def _probe() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(3)
    shape = (1, 3, HEIGHT, WIDTH)
    return {name: generator.standard_normal(shape, np.float32) for name in (base.LEFT, base.RIGHT)}


@pytest.fixture
def export(tmp_path: Path) -> Callable[[str, int], Path]:
    """A graph `<name>.onnx` with the weights of a seed."""

    def write(name: str, seed: int) -> Path:
        return export_graph(TinyStereo(seed), tiny_spec(), tmp_path / name).path

    return write


@pytest.fixture
def bundle(export: Callable[[str, int], Path], tmp_path: Path) -> Path:
    """Graph and RTX engine side by side in one directory, as promotion leaves them."""
    directory = tmp_path / "bundle"
    graph = export("bundle/model.onnx", 0)
    build_engine(EngineSpec(onnx_file=str(graph), backend="tensorrt_rtx"), directory)
    return directory


def _engine(directory: Path) -> Path:
    return next(directory.glob("*.rtx"))


def test_auto_takes_the_first_backend_that_can_build_here() -> None:
    able = [found for found in BACKENDS.values() if found.available() is None]
    assert backend("auto") is able[0]
    assert list(BACKENDS) == ["tensorrt", "tensorrt_rtx", "onnxruntime"]


def test_a_named_backend_that_is_missing_ends_with_exit_code_4() -> None:
    reason = BACKENDS["tensorrt"].available()
    if reason is None:
        pytest.skip("TensorRT and a GPU are here")
    with pytest.raises(BackendMissingError, match=r"gen_trt_engine\.backend=tensorrt: ") as error:
        backend("tensorrt")
    assert error.value.exit_code == 4


def test_the_sidecar_decides_about_the_backend_then_the_suffix(tmp_path: Path) -> None:
    file = tmp_path / "model.engine"
    file.write_bytes(b"engine")
    assert backend_for(file).name == "tensorrt"
    assert backend_for(tmp_path / "model.rtx").name == "tensorrt_rtx"
    assert backend_for(tmp_path / "model.onnx").name == "onnxruntime"
    base.write_sidecar(file, {"kind": "engine", "backend": "tensorrt_rtx"})
    assert backend_for(file).name == "tensorrt_rtx"


@NEEDS_RTX
def test_an_ahead_of_time_engine_is_real_and_bit_identical_when_rebuilt(
    bundle: Path, tmp_path: Path
) -> None:
    engine = _engine(bundle)
    content = engine.read_bytes()
    assert content[:4] == b"vtrt"
    assert int.from_bytes(content[16:24], "little") == len(content)
    facts = base.read_sidecar(engine)
    assert facts is not None
    assert facts["compute_capabilities"] == ["SM80", "SM86", "SM89", "SM120"]
    assert sum(facts["layer_types"].values()) == facts["layers"] > 10

    copied = shutil.copy(bundle / "model.onnx", tmp_path / "elsewhere.onnx")
    section = EngineSpec(onnx_file=str(copied), backend="tensorrt_rtx")
    assert build_engine(section, tmp_path).engine.read_bytes() == content


@NEEDS_RTX
@NO_GPU
def test_without_a_gpu_the_graph_gives_the_scores_and_the_name_says_so(bundle: Path) -> None:
    loaded = runnable(_engine(bundle))

    assert loaded.backend == (
        "ONNX Runtime CPU, graph of tensorrt_rtx fp32 engine "
        "(engine not runnable here: no NVIDIA GPU)"
    )
    expected = GraphEngine((bundle / "model.onnx").read_bytes())(_probe())
    np.testing.assert_array_equal(loaded.engine(_probe())[base.DISPARITY], expected[base.DISPARITY])


@NEEDS_RTX
@NO_GPU
def test_an_exchanged_graph_changes_the_scores_and_is_told_loudly(
    bundle: Path,
    tmp_path: Path,
    export: Callable[[str, int], Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = runnable(_engine(bundle)).engine(_probe())[base.DISPARITY]
    copied = Path(shutil.copytree(bundle, tmp_path / "copied"))
    shutil.copy(export("other.onnx", 1), copied / "model.onnx")

    loaded = runnable(_engine(copied))

    assert np.abs(loaded.engine(_probe())[base.DISPARITY] - before).max() > 0.1
    (warning,) = loaded.warnings
    assert sha256(copied / "model.onnx") in warning
    assert sha256(bundle / "model.onnx") in warning
    assert warning in caplog.messages
    assert runnable(_engine(bundle)).warnings == ()
    (of_graph,) = runnable(copied / "model.onnx").warnings
    assert "exchanged or changed" in of_graph


@NEEDS_RTX
@NO_GPU
def test_a_graph_in_another_directory_is_found_and_the_one_beside_the_engine_comes_first(
    export: Callable[[str, int], Path], tmp_path: Path
) -> None:
    graph = export("export/model.onnx", 0)
    section = EngineSpec(onnx_file=str(graph), backend="tensorrt_rtx")
    engine = build_engine(section, tmp_path / "gen_trt_engine").engine
    first = runnable(engine).engine(_probe())[base.DISPARITY]

    shutil.copy(export("other.onnx", 1), engine.parent / "model.onnx")
    assert (runnable(engine).engine(_probe())[base.DISPARITY] != first).any()

    (engine.parent / "model.onnx").unlink()
    graph.unlink()
    with pytest.raises(BackendMissingError, match=r"its graph model\.onnx is not beside it"):
        runnable(engine)


@NEEDS_RTX
def test_an_fp16_engine_is_smaller_and_its_graph_rounds(
    export: Callable[[str, int], Path], tmp_path: Path
) -> None:
    graph = export("model.onnx", 0)
    section = EngineSpec(onnx_file=str(graph), backend="tensorrt_rtx")
    section.tensorrt.data_type = "fp16"
    info = build_engine(section, tmp_path)

    assert info.facts["graph"]["converted_sha256"] != info.facts["graph"]["sha256"]
    assert 0 < info.facts["precision_pass_max_difference"] < 0.2
    found = runnable(info.engine).engine(_probe())[base.DISPARITY]
    expected = GraphEngine(graph.read_bytes())(_probe())[base.DISPARITY]
    assert 0 < np.abs(found - expected).max() < 0.2


@NEEDS_RTX
@NO_GPU
def test_a_target_that_cannot_compute_it_is_an_error_with_the_librarys_words(
    export: Callable[[str, int], Path], tmp_path: Path
) -> None:
    section = EngineSpec(onnx_file=str(export("model.onnx", 0)), backend="tensorrt_rtx")
    section.compute_capabilities = ["CURRENT"]
    with pytest.raises(EngineError, match=r"tensorrt_rtx .*: the build gave no engine\n  .+"):
        build_engine(section, tmp_path)


def test_files_without_a_sidecar_run_with_a_warning(export: Callable[[str, int], Path]) -> None:
    graph = export("model.onnx", 0)
    base.sidecar_path(graph).unlink()
    loaded = runnable(graph)
    assert loaded.backend.startswith("ONNX Runtime")
    assert "no sidecar model.onnx.json" in loaded.warnings[0]


def test_an_engine_that_cannot_run_and_has_no_sidecar_names_the_missing_backend(
    tmp_path: Path,
) -> None:
    if BACKENDS["tensorrt"].available() is None:
        pytest.skip("TensorRT and a GPU are here")
    engine = tmp_path / "model.engine"
    engine.write_bytes(b"engine")
    with pytest.raises(BackendMissingError, match="tensorrt"):
        runnable(engine)


def test_a_missing_file_and_a_file_that_is_no_graph_are_errors(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"nothing\.rtx: no such file"):
        runnable(tmp_path / "nothing.rtx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a graph")
    with pytest.raises(EngineError, match="ONNX Runtime cannot load the graph"):
        runnable(broken)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_sidecar_is_an_error_that_names_it(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.rtx.json").write_text(content)
    with pytest.raises(EngineError, match=r"a\.rtx\.json: .*JSON"):
        base.read_sidecar(tmp_path / "a.rtx")


def test_a_newer_sidecar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.rtx.json").write_text(json.dumps({"format_version": 2}))
    with pytest.raises(EngineError, match="format_version 2, this release reads up to 1"):
        base.read_sidecar(tmp_path / "a.rtx")


def test_the_profile_of_an_open_batch_is_the_fixed_batch_or_the_range() -> None:
    inputs = [TensorSpec(base.LEFT, "float", (-1, 3, HEIGHT, WIDTH))]
    section = EngineSpec(onnx_file="a.onnx", batch_size=2)
    size = (3, HEIGHT, WIDTH)
    assert build_options(section, inputs).profiles == {
        base.LEFT: ShapeRange((2, *size), (2, *size), (2, *size))
    }
    section.batch_size = -1
    section.tensorrt.opt_batch_size, section.tensorrt.max_batch_size = 2, 4
    assert build_options(section, inputs).profiles == {
        base.LEFT: ShapeRange((1, *size), (2, *size), (4, *size))
    }
    open_height = [TensorSpec(base.LEFT, "float", (1, 3, -1, WIDTH))]
    with pytest.raises(EngineError, match="only the batch, or height and width together, may be"):
        build_options(section, open_height)


def test_the_profile_of_open_sides_is_what_the_spec_gives() -> None:
    inputs = [TensorSpec(base.LEFT, "float", (1, 3, -1, -1))]
    with pytest.raises(SpecError, match=r"min_height: height and width of the graph are open"):
        build_options(EngineSpec(onnx_file="a.onnx"), inputs)  # of a network without such fields
    section = DynamicEngineSpec(onnx_file="a.onnx", min_height=32, opt_height=64, max_height=96)
    with pytest.raises(SpecError, match=r"gen_trt_engine\.min_width: .*Set the six"):
        build_options(section, inputs)
    section.min_width, section.opt_width, section.max_width = 64, 128, 256
    assert build_options(section, inputs).profiles == {
        base.LEFT: ShapeRange((1, 3, 32, 64), (1, 3, 64, 128), (1, 3, 96, 256))
    }


def test_a_shape_outside_a_profile_names_axis_and_limits() -> None:
    inputs = [TensorSpec(base.LEFT, "float", (-1, 3, -1, -1))]
    profile = {base.LEFT: ShapeRange((1, 3, 32, 64), (1, 3, 64, 64), (2, 3, 96, 128))}
    base.check_shapes(Path("a"), inputs, {base.LEFT: (2, 3, 96, 64)}, profile)
    with pytest.raises(
        SpecError, match=r"left_image axis 3: got 160, the engine's profile is 64\.\.128"
    ):
        base.check_shapes(Path("a"), inputs, {base.LEFT: (1, 3, 32, 160)}, profile)


def test_a_shape_that_a_fixed_axis_cannot_take_names_axis_and_sizes() -> None:
    inputs = [TensorSpec(base.LEFT, "float", (-1, 3, HEIGHT, WIDTH))]
    base.check_shapes(Path("a"), inputs, {base.LEFT: (7, 3, HEIGHT, WIDTH)})
    with pytest.raises(SpecError, match=rf"left_image axis 2: got 48, the engine takes {HEIGHT}"):
        base.check_shapes(Path("a"), inputs, {base.LEFT: (1, 3, 48, WIDTH)})


def test_a_missing_graph_is_found_before_anything_is_built(tmp_path: Path) -> None:
    section = EngineSpec(onnx_file=str(tmp_path / "none.onnx"))
    with pytest.raises(SpecError, match=r"gen_trt_engine\.onnx_file: no such file"):
        build_engine(section, tmp_path)
