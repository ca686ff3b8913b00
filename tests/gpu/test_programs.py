"""The programs on a machine with a GPU: an engine of TensorRT, and a study of the gpu profile."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from automl.store import read_study
from stereo.engines.build import build_engine
from stereo.export.graph import export_graph
from stereo.spec.deploy import EngineSpec
from tests.end_to_end.small_ffs import Place
from tests.stereo.tiny_stereo import TinyStereo, tiny_spec

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def needs_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    assert place.left_over() == []


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is None, reason="needs tensorrt")
@pytest.mark.parametrize("data_type", ["fp32", "fp16"])
def test_tensorrt_builds_an_engine_that_runs_here(tmp_path: Path, data_type: str) -> None:
    graph = export_graph(TinyStereo(), tiny_spec(), tmp_path / "tiny.onnx").path
    section = EngineSpec(onnx_file=str(graph), backend="tensorrt")
    section.tensorrt.data_type = data_type  # type: ignore[assignment]

    info = build_engine(section, tmp_path / "engine")

    assert info.backend == "tensorrt"
    assert info.engine.stat().st_size > 0


def test_a_study_trains_on_the_gpu_and_promotes_its_best(place: Place) -> None:
    place.write({"spec": {"train": {"precision": "fp16"}}, "budget": {"trials": 2}})

    code, output = place.automl("study", f"{place.name}.yaml")

    assert code == 0, output
    assert "profile gpu" in place.automl("plan", f"{place.name}.yaml")[1]
    study = read_study(place.study)
    assert [trial.state for trial in study.trials] == ["complete", "complete"]
