from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from stereo import actions
from stereo.errors import SpecError
from stereo.parent import Inferred, infer, select_checkpoint
from stereo.spec.load import template

MODEL = {"corr_radius": 3, "stereo_backbone": {"use_bn": True}}


def training_run(directory: Path, names: tuple[str, ...] = ()) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "experiment.yaml").write_text(yaml.safe_dump({"model": MODEL}))
    for name in names or ("dn_model_epoch_000_step_00010.pth", "model_epoch_001_step_00020.pth"):
        (directory / name).touch()
    return directory


def refusal(parent: Path, action: str, select: str = "best") -> str:
    with pytest.raises(SpecError) as caught:
        infer(parent, action, select)
    return str(caught.value)


def test_a_training_run_gives_its_best_checkpoint_and_its_model_section(tmp_path: Path) -> None:
    run = training_run(tmp_path)
    (run / "dn_model_best.pth").symlink_to("dn_model_epoch_000_step_00010.pth")

    found = infer(run, "evaluate")

    checkpoint = run / "dn_model_epoch_000_step_00010.pth"
    assert found.values == {
        "evaluate.checkpoint": str(checkpoint),
        "model.corr_radius": 3,
        "model.stereo_backbone.use_bn": True,
    }
    assert found.reasons["evaluate.checkpoint"] == f"checkpoint of the training run {run} (best)"


def test_the_folder_above_a_training_run_stands_for_it(tmp_path: Path) -> None:
    run = training_run(tmp_path / "train", ("dn_model_best.pth",))
    assert infer(tmp_path, "export").values["export.checkpoint"] == str(run / "dn_model_best.pth")


@pytest.mark.parametrize(
    ("select", "name"),
    [
        ("epoch=0", "dn_model_epoch_000_step_00010.pth"),
        ("epoch=1", "model_epoch_001_step_00020.pth"),
        ("step=20", "model_epoch_001_step_00020.pth"),
    ],
)
def test_a_checkpoint_is_selected_by_epoch_or_step(select: str, name: str, tmp_path: Path) -> None:
    assert select_checkpoint(training_run(tmp_path), select).name == name


@pytest.mark.parametrize("select", ["epoch=7", "latest", "newest", "epoch=1.5"])
def test_a_checkpoint_that_is_not_there_is_refused_with_those_that_are(
    select: str, tmp_path: Path
) -> None:
    said = refusal(training_run(tmp_path), "evaluate", select)
    assert f"no checkpoint for --select {select}" in said
    assert "model_epoch_001_step_00020.pth" in said
    assert "Use best, latest, epoch=E or step=S" in said


def test_a_parent_that_cannot_serve_is_refused(tmp_path: Path) -> None:
    assert "no study results/studies/gone" in refusal(Path("gone"), "evaluate")
    assert "neither bundle.json nor experiment.yaml" in refusal(tmp_path, "evaluate")
    run = training_run(tmp_path / "run", ("dn_model_best.pth",))
    said = refusal(run, "gen_trt_engine")
    assert "gen_trt_engine needs a graph; this training run has checkpoint" in said
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "events.jsonl").touch()
    assert "Run `automl promote study` first" in refusal(tmp_path / "study", "evaluate")


def bundle(directory: Path) -> Path:
    directory.mkdir(parents=True)
    files = {"checkpoint": "a.pth", "graph": "a.onnx", "engine": "a.rtx", "spec": "spec.yaml"}
    content = {
        "format_version": 1,
        "files": {role: {"path": name} for role, name in files.items()},
    }
    (directory / "bundle.json").write_text(json.dumps({**content, "spec": {"model": MODEL}}))
    return directory


@pytest.mark.parametrize(
    ("action", "key", "name"),
    [
        ("evaluate", "evaluate.trt_engine", "a.rtx"),
        ("inference", "inference.trt_engine", "a.rtx"),
        ("export", "export.checkpoint", "a.pth"),
        ("gen_trt_engine", "gen_trt_engine.onnx_file", "a.onnx"),
        ("train", "train.pretrained_model_path", "a.pth"),
    ],
)
def test_a_bundle_serves_every_verb(action: str, key: str, name: str, tmp_path: Path) -> None:
    found = infer(bundle(tmp_path / "bundle"), action)
    assert found.values[key] == str(tmp_path / "bundle" / name)


def test_a_newer_bundle_is_refused(tmp_path: Path) -> None:
    made = bundle(tmp_path / "bundle") / "bundle.json"
    made.write_text(made.read_text().replace('"format_version": 1', '"format_version": 2'))
    assert "format_version 2, read are 1" in refusal(tmp_path / "bundle", "evaluate")


def test_an_exported_graph_has_the_iterations_of_its_parent(tmp_path: Path) -> None:
    run = training_run(tmp_path, ("dn_model_best.pth",))
    (run / "experiment.yaml").write_text(yaml.safe_dump({"model": {"valid_iters": 4}}))
    assert infer(run, "export").values["export.valid_iters"] == 4
    assert "export.valid_iters" not in infer(run, "evaluate").values


def test_a_study_stands_for_its_bundle(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "events.jsonl").touch()
    made = bundle(tmp_path / "study" / "bundle")
    assert infer(tmp_path / "study", "evaluate").parent == made


def test_an_export_and_an_engine_run_give_their_file_wherever_it_is(
    small_values: dict, small_weights: Path, tmp_path: Path
) -> None:
    """Also an engine of ONNX Runtime, which has the suffix of a graph."""
    graph = tmp_path / "graphs" / "a.onnx"
    export = {**small_values["export"], "checkpoint": str(small_weights), "onnx_file": str(graph)}
    result = actions.run("export", {**small_values, "export": export}, tmp_path / "export")
    assert result.exit_code == 0, result.detail
    section = {"onnx_file": str(graph), "backend": "onnxruntime"}
    result = actions.run("gen_trt_engine", {"gen_trt_engine": section}, tmp_path / "engine")
    assert result.exit_code == 0, result.detail

    given = infer(tmp_path / "export", "gen_trt_engine").values["gen_trt_engine.onnx_file"]
    assert Path(given).samefile(graph)
    scored = infer(tmp_path / "engine", "evaluate").values["evaluate.trt_engine"]
    assert Path(scored).samefile(result.artifacts["engine"])
    assert "gen_trt_engine needs a graph; this engine run" in refusal(
        tmp_path / "engine", "gen_trt_engine"
    )


def open_fields(inferred: Inferred, values: Any, tmp_path: Path, *overrides: str) -> dict:
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(values))
    return inferred.open_fields(path, overrides)


def test_only_open_fields_are_filled(tmp_path: Path) -> None:
    inferred = infer(bundle(tmp_path / "bundle"), "evaluate")
    spec = {"evaluate": {"checkpoint": "???"}, "model": {"corr_radius": 3}}
    assert open_fields(inferred, spec, tmp_path) == {
        "evaluate.trt_engine": str(tmp_path / "bundle" / "a.rtx"),
        "model.stereo_backbone.use_bn": True,
    }


@pytest.mark.parametrize("action", ["evaluate", "inference", "export", "gen_trt_engine", "train"])
def test_a_packaged_spec_leaves_everything_to_the_parent(action: str, tmp_path: Path) -> None:
    inferred = infer(bundle(tmp_path / "bundle"), action)
    assert open_fields(inferred, template("ffs", action), tmp_path) == inferred.values


def test_the_network_is_the_parents_unless_the_user_names_another(tmp_path: Path) -> None:
    run = training_run(tmp_path / "run", ("dn_model_best.pth",))
    model = {"model_type": "FoundationStereo", "variant": "public", "volume_dim": 16}
    (run / "experiment.yaml").write_text(yaml.safe_dump({"model": model}))
    inferred = infer(run, "evaluate")
    taken = {f"model.{name}": value for name, value in model.items()}

    assert open_fields(inferred, {}, tmp_path).items() >= taken.items()
    assert open_fields(inferred, template("fs", "evaluate"), tmp_path).keys() >= {
        "model.variant",
        "model.volume_dim",
    }
    with pytest.raises(SpecError, match=r"got 'FastFoundationStereo', but the parent .* was made"):
        open_fields(inferred, template("ffs", "evaluate"), tmp_path)


@pytest.mark.parametrize(
    "override", ["evaluate.checkpoint=mine.pth", "evaluate.trt_engine=mine.rtx", "trt_engine=a.rtx"]
)
def test_a_model_file_of_the_user_replaces_the_one_of_the_parent(
    override: str, tmp_path: Path
) -> None:
    inferred = infer(bundle(tmp_path / "bundle"), "evaluate")
    fresh = open_fields(inferred, {}, tmp_path, override)
    assert set(fresh) == {"model.corr_radius", "model.stereo_backbone.use_bn"}


def test_a_contradiction_to_the_parents_model_is_refused(tmp_path: Path) -> None:
    inferred = infer(bundle(tmp_path / "bundle"), "evaluate")
    with pytest.raises(SpecError, match=r"model.corr_radius: got 4, but the parent .* with 3"):
        open_fields(inferred, {}, tmp_path, "model.corr_radius=4")
    with pytest.raises(SpecError, match=r"model.corr_radius: got 5, but the parent"):
        open_fields(inferred, {"model": {"corr_radius": 5}}, tmp_path)
    with pytest.raises(SpecError, match=r"use_bn: got False"):
        open_fields(inferred, {}, tmp_path, "model.stereo_backbone.use_bn=false")


def test_a_spec_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    inferred = infer(bundle(tmp_path / "bundle"), "evaluate")
    with pytest.raises(SpecError, match=r"gone.yaml: cannot be read"):
        inferred.open_fields(tmp_path / "gone.yaml", ())
