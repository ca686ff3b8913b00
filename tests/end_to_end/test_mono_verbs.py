"""The verbs one after the other for both monocular networks, on images of the generator.

By default with a thin encoder and small images; the slow form has the released vits.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from stereo.checkpoints import files
from stereo.cli import main
from stereo.data.encodings import read_image, read_pfm
from stereo.data.generator import write_layouts

KEYS = ("mono_metric", "mono_relative")
CLASSES = {"mono_metric": "MetricMonoDataset", "mono_relative": "RelativeMonoDataset"}
FOLDERS = {"mono_metric": "depth", "mono_relative": "disparity"}
THIN = ("model.mono_backbone.blocks=4", "model.mono_backbone.width=64")
RANGE = ("dataset.min_depth=0.1", "dataset.max_depth=80.0")
H, W = 60, 80  # of the images


@dataclass
class Run:
    """One network with its data and results."""

    key: str
    root: Path
    crop: tuple[int, int]
    is_thin: bool

    @property
    def size(self) -> tuple[int, int]:
        """Of what the network sees: covers the crop and keeps the aspect."""
        from stereo.data.augment_mono import network_size

        return network_size((H, W), self.crop)

    def spec(self, verb: str) -> Path:
        path = self.root / f"{verb}.yaml"
        command = ["default_specs", "--model", self.key, "--action", verb, "-o", str(path)]
        assert path.exists() or main(command) == 0
        return path

    def source(self, split: str, file: Path) -> list[str]:
        section = f"dataset.{split}_dataset"
        entry = f"[{{dataset_name: {CLASSES[self.key]}, data_file: {file}}}]"
        return [
            f"{section}.data_sources={entry}",
            f"{section}.workers=0",
            f"{section}.batch_size=2",
            f"{section}.augmentation.crop_size=[{self.crop[0]}, {self.crop[1]}]",
        ]

    def verb(self, verb: str, folder: str, *values: str) -> int:
        shared = [f"results_dir={self.root}", "dataset.cache=off"]
        shared += [] if verb == "convert" else ["model.encoder=vits"]
        shared += THIN if self.is_thin and verb != "convert" else []
        if self.key == "mono_metric" and verb != "convert":
            shared += RANGE
        section = [f"{verb}.results_dir={self.root / folder}"]
        return main([verb, "-e", str(self.spec(verb)), *shared, *section, *values])

    def results(self, folder: str) -> dict[str, Any]:
        return json.loads((self.root / folder / "results.json").read_text())

    @property
    def checkpoint(self) -> Path:
        return self.root / "train" / "dn_model_best.pth"


CASES = [
    pytest.param((key, thin), id=f"{key}-{'thin' if thin else 'vits'}", marks=marks)
    for thin, marks in ((True, ()), (False, pytest.mark.slow))
    for key in KEYS
]


@pytest.fixture(scope="module", params=CASES)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A network after convert and two epochs of training."""
    key, is_thin = request.param
    root = tmp_path_factory.mktemp(key)
    run = Run(key, root, (42, 56) if is_thin else (98, 126), is_thin)
    write_layouts(root, [key], pairs=8, size=(H, W), seed=3)
    assert (
        run.verb(
            "convert",
            "lists",
            f"convert.data_root={root / key}",
            f"convert.results_dir={root / 'lists'}",
            "convert.image_dir_pattern=[/rgb/]",
            f"convert.depth_dir_pattern=[/{FOLDERS[key]}/]",
            "convert.depth_extension=.pfm",
            "convert.split_ratio=0.75",
        )
        == 0
    )
    assert run.verb("train", "train", *training(run)) == 0
    return run


def training(run: Run, *, epochs: int = 2) -> list[str]:
    return [
        *run.source("train", run.root / "lists" / "train.txt"),
        *run.source("val", run.root / "lists" / "val.txt"),
        f"train.num_epochs={epochs}",
        "train.optim.lr=1e-4",
        "train.optim.warmup_steps=0",
    ]


def evaluation(run: Run, folder: str, *values: str) -> dict[str, Any]:
    source = run.source("test", run.root / "lists" / "val.txt")
    assert run.verb("evaluate", folder, *source, *values) == 0
    return run.results(folder)


def test_training_records_the_scores_of_depth(run: Run) -> None:
    with (run.root / "train" / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(float(row[f"val/{name}"]) >= 0 for row in rows for name in ("loss", "abs_rel", "d1"))
    assert "val/epe" not in rows[0]
    payload = files.read(run.checkpoint.resolve())
    assert [len(group["params"]) for group in payload["optimizer_states"][0]["param_groups"]] != []
    rates = [group["lr"] for group in payload["optimizer_states"][0]["param_groups"]]
    assert rates[1] == pytest.approx(10 * rates[0]), "the last step's too"


def test_a_longer_run_continues_where_it_was(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run.root / "longer"
    folder.mkdir()
    latest = (run.root / "train" / "dn_model_latest.pth").resolve()
    value = f"train.resume_training_checkpoint_path={latest}"
    assert run.verb("train", "longer", *training(run, epochs=3), value) == 0
    assert [p.name for p in folder.glob("dn_model_epoch_*")] == [
        "dn_model_epoch_002_step_00009.pth"
    ]


def test_a_dry_run_of_training_leaves_no_weights(run: Run) -> None:
    assert run.verb("train", "dry", *training(run), "train.is_dry_run=true") == 0
    assert not list((run.root / "dry").glob("*.pth"))


def test_scores_are_those_of_the_saved_maps_at_native_size(run: Run) -> None:
    scores = evaluation(run, "evaluate", f"evaluate.checkpoint={run.checkpoint}")
    one = evaluation(
        run, "single", f"evaluate.checkpoint={run.checkpoint}", "evaluate.batch_size=1"
    )
    assert {k: one[k] for k in ("d1", "abs_rel", "rmse")} == pytest.approx(
        {k: scores[k] for k in ("d1", "abs_rel", "rmse")}, rel=1e-4
    )
    assert scores["abs_rel"] == scores["pixel"]["abs_rel"]
    of = {"mono_metric": "of depth", "mono_relative": "of inverse depth"}
    assert scores["units"]["abs_rel"] == of[run.key]
    assert scores["units"].keys() == scores["pixel"].keys()

    listed = (run.root / "lists" / "val.txt").read_text().split("\n")
    lines = [line.split() for line in listed if line and not line.startswith("#")]
    source = run.source("infer", run.root / "lists" / "val.txt")
    saved = ["inference.save_raw_pfm=true", "inference.save_raw_npy=true"]
    weights = f"inference.checkpoint={run.checkpoint}"
    assert run.verb("inference", "inference", *source, weights, *saved) == 0
    assert run.results("inference")["abs_rel"] == pytest.approx(scores["abs_rel"], rel=1e-6)
    panels = sorted((run.root / "inference" / "inference_images").rglob("*.png"))
    assert [read_image(panel).shape for panel in panels] == [(H, 4 * W, 3)] * len(lines)
    pfms = sorted((run.root / "inference" / "depth_pfm").rglob("*.pfm"))
    errors = []
    for line, pfm in zip(sorted(lines), pfms, strict=True):
        truth = read_pfm(run.root / "lists" / line[1])
        found = read_pfm(pfm)
        npy = np.load(str(pfm).replace("depth_pfm", "depth_npy").replace(".pfm", ".npy"))
        np.testing.assert_array_equal(found, npy)
        assert found.shape == truth.shape == (H, W)
        valid = np.isfinite(truth) & (truth > 0)
        if run.key == "mono_metric":
            valid &= (truth > 0.1) & (truth < 80)
            assert found.min() > 0
            assert found.max() < 80
            found = found.clip(0.1, 80)
        else:
            p, g = found[valid].astype(float), truth[valid].astype(float)
            scale, shift = np.polyfit(p, g, 1)
            found = (scale * found + shift).clip(1e-8)
        errors.append(np.abs(found - truth)[valid] / truth[valid])
    assert scores["abs_rel"] == pytest.approx(np.concatenate(errors).mean(), rel=1e-3)


def test_tiles_change_the_scores_of_images_larger_than_a_tile_only(run: Run) -> None:
    source = run.source("test", run.root / "lists" / "val.txt")
    weights = f"evaluate.checkpoint={run.checkpoint}"
    tiled = ["train.inference_tile=true", "train.tile_min_overlap=[8, 8]"]
    scores: dict[tuple[str, bool], float] = {}
    for size in ("[28, 42]", "[70, 84]"):
        crop = f"dataset.test_dataset.augmentation.crop_size={size}"
        for values in ([], tiled):
            assert run.verb("evaluate", "tiled", *source, weights, crop, *values) == 0
            result = run.results("tiled")
            assert result["images"] == 2
            scores[size, bool(values)] = result["abs_rel"]
    assert scores["[70, 84]", True] == scores["[70, 84]", False]
    assert scores["[28, 42]", True] != scores["[28, 42]", False]


def test_inference_needs_no_ground_truth_and_takes_sizes_as_they_come(run: Run) -> None:
    folder = run.root / "photos"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name, shape in (("a", (50, 90, 3)), ("b", (90, 50, 3)), ("c", (50, 90, 3))):
        cv2.imwrite(str(folder / f"{name}.png"), generator.integers(0, 255, shape, np.uint8))
    (folder / "list.txt").write_text("a.png\nb.png\nc.png\n")
    source = run.source("infer", folder / "list.txt")
    weights = f"inference.checkpoint={run.checkpoint}"
    assert run.verb("inference", "unknown", *source, weights, "inference.save_raw_npy=true") == 0
    shapes = {p.stem: np.load(p).shape for p in (run.root / "unknown" / "depth_npy").glob("*")}
    assert shapes == {"a": (50, 90), "b": (90, 50), "c": (50, 90)}
    panel = read_image(run.root / "unknown" / "inference_images" / "b.png")
    assert panel.shape == (90, 100, 3)
    assert not (run.root / "unknown" / "results.json").exists()


def test_graph_and_engine_score_as_the_checkpoint(run: Run) -> None:
    pytest.importorskip("tensorrt_rtx")
    sides = [f"export.input_height={run.size[0]}", f"export.input_width={run.size[1]}"]
    assert run.verb("export", "export", f"export.checkpoint={run.checkpoint}", *sides) == 0
    graph = run.root / "export" / f"{run.checkpoint.resolve().stem}.onnx"
    built = [f"gen_trt_engine.onnx_file={graph}", "gen_trt_engine.backend=tensorrt_rtx"]
    assert run.verb("gen_trt_engine", "engine", *built) == 0
    (engine,) = (run.root / "engine").glob("*.rtx")

    expected = evaluation(run, "checked", f"evaluate.checkpoint={run.checkpoint}")
    for name, file in (("graph", graph), ("trt_evaluate", engine)):
        scores = evaluation(run, name, "evaluate.checkpoint=null", f"evaluate.trt_engine={file}")
        for metric in ("d1", "abs_rel", "rmse", "silog"):
            assert scores[metric] == pytest.approx(expected[metric], abs=2e-3), (name, metric)
    source = run.source("infer", run.root / "lists" / "val.txt")
    weights = ["inference.checkpoint=null", f"inference.trt_engine={engine}"]
    assert run.verb("inference", "trt_inference", *source, *weights) == 0
    assert run.results("trt_inference")["abs_rel"] == pytest.approx(scores["abs_rel"], rel=1e-6)


def test_another_range_of_depth_is_refused(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    source = run.source("test", run.root / "lists" / "val.txt")
    values = [f"evaluate.checkpoint={run.checkpoint}", "dataset.max_depth=10.0"]
    assert run.verb("evaluate", "refused", *source, *values) == 2
    told = capsys.readouterr()
    reason = "the weights were trained with 80.0" if run.key == "mono_metric" else "no metres"
    assert "dataset.max_depth: got 10.0" in told.err + told.out
    assert reason in told.err + told.out


def test_training_goes_on_with_the_same_range_of_depth_only(
    run: Run, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    if run.key == "mono_relative":
        pytest.skip("has no range")
    other = "dataset.max_depth=10.0"
    value = f"train.resume_training_checkpoint_path={run.checkpoint.resolve()}"
    assert run.verb("train", "other", *training(run, epochs=3), value, other) == 2
    told = capsys.readouterr()
    assert "dataset.max_depth: got 10.0, the weights were trained with 80.0" in told.err + told.out
    value = f"train.pretrained_model_path={run.checkpoint}"
    assert run.verb("train", "new", *training(run), value, other, "train.is_dry_run=true") == 0
    assert "got 10.0, the weights were trained with 80.0" in caplog.text


def test_bfloat16_trains_and_scores(run: Run) -> None:
    values = [*training(run, epochs=1), "train.precision=bf16", "train.activation_checkpoint=true"]
    assert run.verb("train", "bf16", *values) == 0
    state = files.read(next((run.root / "bf16").glob("dn_model_epoch_*")))["state_dict"]
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
