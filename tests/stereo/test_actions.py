from __future__ import annotations

import json
import logging
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stereo import actions
from stereo.data.encodings import read_image
from stereo.data.generator import EmbeddedSet
from stereo.files import sha256


def status_lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "status.json").read_text().splitlines()]


def test_evaluate_scores_and_leaves_its_records(
    small_values: dict, small_weights: Path, small_data: EmbeddedSet, tmp_path: Path
) -> None:
    spec = {**small_values, "evaluate": {"checkpoint": str(small_weights)}}

    result = actions.run("evaluate", spec, tmp_path)

    assert (result.status, result.exit_code) == ("ok", 0)
    written = json.loads((tmp_path / "results.json").read_text())
    assert result.metrics["val/epe"] == written["epe"] == written["image"]["epe"]
    rows = json.loads((tmp_path / "per_sample_results.json").read_text())
    assert len(rows) == written["images"] == 2
    provenance = json.loads((tmp_path / "provenance.json").read_text())
    assert provenance["inputs"] == {str(f): sha256(f) for f in (small_data.val, small_weights)}
    *_, scores, verdict = status_lines(tmp_path)
    assert scores["message"] == "Test metrics generated."
    assert "epe" not in scores["kpi"], "the bare names are those of engines"
    assert (verdict["status"], verdict["exit_code"]) == ("SUCCESS", 0)
    files = ["results.json", "per_sample_results.json", "worst_samples.png"]
    assert verdict["artifacts"] == files
    assert read_image(tmp_path / "worst_samples.png").shape[1] == 4 * 324


def test_a_wrong_spec_is_a_status_and_writes_nothing(small_values: dict, tmp_path: Path) -> None:
    spec = {**small_values, "evaluate": {"checkpoint": "a.pth", "chekpoint": 1}}
    result = actions.run("evaluate", spec, tmp_path / "run")
    assert (result.status, result.exit_code) == ("invalid_spec", 2)
    assert "evaluate.chekpoint: unknown key" in result.detail
    assert not (tmp_path / "run").exists()


def test_weights_that_are_not_there_are_a_configuration_error(
    small_values: dict, tmp_path: Path
) -> None:
    spec = {**small_values, "evaluate": {"checkpoint": str(tmp_path / "gone.pth")}}
    result = actions.run("evaluate", spec, tmp_path / "run")
    assert (result.status, result.exit_code) == ("failed", 2)
    verdict = status_lines(tmp_path / "run")[-1]
    assert (verdict["status"], verdict["exit_code"]) == ("FAILURE", 2)
    assert verdict["message"].startswith("Configuration error: ")
    assert "gone.pth: no such checkpoint" in verdict["message"]


def test_a_file_that_cannot_be_written_is_a_file_system_error(
    small_values: dict, small_weights: Path, tmp_path: Path
) -> None:
    (tmp_path / "results.json").mkdir()
    spec = {**small_values, "evaluate": {"checkpoint": str(small_weights)}}
    result = actions.run("evaluate", spec, tmp_path)
    assert (result.status, result.exit_code) == ("failed", 1)
    message = status_lines(tmp_path)[-1]["message"]
    assert message.startswith("File system error: ")
    assert "results.json" in message


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (KeyError("no_such_name"), "failed", r"Runtime error: Traceback .*no_such_name"),
        (RuntimeError("CUDA out of memory"), "out_of_memory", "Out of memory: .*smaller batch"),
    ],
)
def test_an_error_that_nobody_foresaw_ends_in_a_verdict(
    error: Exception,
    status: str,
    words: str,
    small_values: dict,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(_job: actions.Job) -> actions.ActionResult:
        raise error

    monkeypatch.setitem(actions.ACTIONS, "check", broken)
    result = actions.run("check", small_values, tmp_path)
    assert (result.status, result.exit_code) == (status, 1)
    verdict = status_lines(tmp_path)[-1]
    assert verdict["status"] == "FAILURE"
    assert re.match(words, verdict["message"], re.DOTALL)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_leaves_a_verdict_with_its_exit_code(
    number: signal.Signals,
    code: int,
    small_values: dict,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(_job: actions.Job) -> actions.ActionResult:
        raise KeyboardInterrupt(number)

    monkeypatch.setitem(actions.ACTIONS, "check", interrupted)
    with pytest.raises(KeyboardInterrupt):
        actions.run("check", small_values, tmp_path)
    verdict = status_lines(tmp_path)[-1]
    assert (verdict["status"], verdict["exit_code"]) == ("FAILURE", code)


def test_check_counts_pairs_and_finds_the_size_of_the_graph(
    small_values: dict, tmp_path: Path
) -> None:
    result = actions.run("check", small_values, tmp_path)
    assert result.metrics == {
        "samples_train": 2.0,
        "samples_val": 2.0,
        "height": 64.0,
        "width": 128.0,
        "mixed_sizes": 0.0,
    }
    facts = json.loads((tmp_path / "data.json").read_text())
    assert facts["val_dataset"]["sizes"] == {"60x120": 2}


def test_checkpoint_becomes_graph_becomes_engine_becomes_scores(
    small_values: dict, small_weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    spec = {**small_values, "export": {**small_values["export"], "checkpoint": str(small_weights)}}
    exported = actions.run("export", spec, tmp_path / "export")
    assert exported.exit_code == 0, exported.detail
    graph = exported.artifacts["graph"]
    assert graph == tmp_path / "export" / "dn_model_best.onnx"
    assert "comparing ONNX Runtime with PyTorch" in caplog.text
    assert "comparing ONNX Runtime" in (tmp_path / "export" / "export.log").read_text()

    again = actions.run("export", spec, tmp_path / "export")
    assert again.exit_code == 2
    assert "export.overwrite" in again.detail

    section = {"onnx_file": str(graph), "backend": "onnxruntime"}
    built = actions.run("gen_trt_engine", {**small_values, "gen_trt_engine": section}, tmp_path)
    assert built.exit_code == 0, built.detail

    engine = str(built.artifacts["engine"])
    spec = {**small_values, "evaluate": {"trt_engine": engine}}
    scored = actions.run("evaluate", spec, tmp_path / "trt_evaluate")
    assert scored.exit_code == 0, scored.detail
    *_, scores, _verdict = status_lines(tmp_path / "trt_evaluate")
    assert scores["kpi"]["epe"] == scores["kpi"]["val/epe"] == scored.metrics["val/epe"]


def test_inference_writes_predictions_and_scores_but_no_depth_of_an_unknown_camera(
    small_values: dict, small_weights: Path, tmp_path: Path
) -> None:
    section = {"checkpoint": str(small_weights), "save_raw_npy": True}
    result = actions.run("inference", {**small_values, "inference": section}, tmp_path)
    assert result.exit_code == 0, result.detail
    assert result.metrics["pairs"] == 2
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["epe"] == result.metrics["val/epe"]
    assert len(list(tmp_path.rglob("disparity_npy/**/*.npy"))) == 2
    assert not (tmp_path / "depth").exists()


def test_inference_writes_depth_for_a_camera_that_the_user_describes(
    small_values: dict, small_weights: Path, tmp_path: Path
) -> None:
    camera = {"baseline": 0.193001, "focal_x": 100.0, "doffs": 2.0}  # a default value counts too
    section = {"checkpoint": str(small_weights), "save_raw_npy": True}
    spec = {**small_values, "dataset": {**small_values["dataset"], **camera}, "inference": section}
    result = actions.run("inference", spec, tmp_path)
    assert result.exit_code == 0, result.detail
    (first, _second) = sorted((tmp_path / "depth").rglob("*.npy"))
    disparity = np.load(tmp_path / "disparity_npy" / first.relative_to(tmp_path / "depth"))
    seen = disparity > 0
    expected = np.where(seen, 0.193001 * 100 / (np.where(seen, disparity, 1) + 2), 0)
    np.testing.assert_allclose(np.load(first), expected, rtol=1e-5)
    assert first.with_suffix(".png").is_file()


def test_inference_writes_coloured_points_and_its_speed(
    small_values: dict, small_weights: Path, tmp_path: Path
) -> None:
    camera = {"baseline": 0.1, "focal_x": 100.0, "doffs": 1.0}
    section = {"checkpoint": str(small_weights), "save_ply": True}
    spec = {**small_values, "dataset": {**small_values["dataset"], **camera}, "inference": section}
    result = actions.run("inference", spec, tmp_path)
    assert result.exit_code == 0, result.detail
    (first, _second) = sorted((tmp_path / "ply").rglob("*.ply"))
    depth = np.load(tmp_path / "depth" / first.relative_to(tmp_path / "ply").with_suffix(".npy"))
    assert f"element vertex {(depth > 0).sum()}\n".encode() in first.read_bytes()
    body = first.read_bytes().partition(b"end_header\n")[2]
    z = np.frombuffer(body, np.uint8).reshape(-1, 15)[:, 8:12].copy().view("<f4")[:, 0]
    np.testing.assert_allclose(z, depth[depth > 0], rtol=1e-6)
    assert result.metrics["inference/throughput"] > 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["speed"]["latency_p50_ms"] == result.metrics["inference/latency_p50_ms"] > 0


@pytest.mark.parametrize(
    ("camera", "missing"),
    [
        ({}, ["dataset.baseline", "dataset.focal_x"]),
        ({"focal_x": 100.0}, ["dataset.baseline"]),
        ({"baseline": 0.1, "focal_x": 0.0}, ["dataset.focal_x"]),
    ],
)
def test_points_of_an_unknown_camera_are_refused_by_name(
    camera: dict, missing: list[str], small_values: dict, small_weights: Path, tmp_path: Path
) -> None:
    section = {"checkpoint": str(small_weights), "save_ply": True}
    spec = {**small_values, "dataset": {**small_values["dataset"], **camera}, "inference": section}
    result = actions.run("inference", spec, tmp_path)
    assert (result.status, result.exit_code) == ("invalid_spec", 2)
    named = re.findall(r"(dataset\.\w+): not set", result.detail)
    assert named == missing
    assert "inference.save_ply" in result.detail
    assert not (tmp_path / "inference_images").exists()


def test_half_a_camera_is_worth_a_warning(
    small_values: dict, small_weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = {**small_values["dataset"], "focal_x": 100.0}
    section = {"checkpoint": str(small_weights)}
    spec = {**small_values, "dataset": data, "inference": section}
    assert actions.run("inference", spec, tmp_path).exit_code == 0
    assert "it needs dataset.baseline and dataset.focal_x" in caplog.text
    assert not (tmp_path / "depth").exists()
