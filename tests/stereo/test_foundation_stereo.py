"""FoundationStereo as a model of the program: its specs, and the verbs one after the other.

The chain trains the thinnest valid network from scratch for one epoch on two generated pairs.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from stereo.checkpoints import files
from stereo.cli import VERBS, main
from stereo.data.generator import EmbeddedSet
from stereo.registry import MODELS
from stereo.spec.networks import FoundationStereoSpec

THIN = (
    "model.n_gru_layers=1",
    "model.corr_radius=2",
    "model.corr_levels=1",
    "model.volume_dim=16",
    "model.cv_group=4",
    "model.max_disparity=32",
    "model.train_iters=1",
    "model.valid_iters=1",
)


def packaged(verb: str, tmp_path: Path) -> Path:
    """The packaged spec of a verb, as a user writes it."""
    path = tmp_path / f"{verb}.yaml"
    command = ["default_specs", "--model", "fs", "--action", verb, "-o", str(path)]
    assert path.exists() or main(command) == 0
    return path


def source(split: str, file: Path) -> list[str]:
    section = f"dataset.{split}_dataset"
    entry = f"[{{dataset_name: GenericDataset, data_file: {file}}}]"
    return [
        f"{section}.data_sources={entry}",
        f"{section}.workers=0",
        f"{section}.augmentation.crop_size=[64, 128]",
    ]


@pytest.mark.parametrize("verb", list(VERBS))
def test_a_packaged_spec_only_lacks_its_open_values(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = packaged(verb, tmp_path)

    assert main(["validate", "-e", str(path), "--action", verb]) == 2

    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert lines
    open_value = ("not set", "left open", "neither it nor")
    assert [line for line in lines if not any(words in line for words in open_value)] == []


def test_validate_names_what_belongs_to_the_other_network(
    tmp_path: Path, small_data: EmbeddedSet, capsys: pytest.CaptureFixture[str]
) -> None:
    path = packaged("train", tmp_path)
    given = [f"results_dir={tmp_path}", *source("train", small_data.train)]
    assert main(["validate", "-e", str(path), *given]) == 0
    assert main(["validate", "-e", str(path), *given, "model.mask_widths=[32, 16]"]) == 2
    assert "model.mask_widths: belongs to ffs, not to fs" in capsys.readouterr().err
    assert main(["validate", "-e", str(path), *given, "--model", "ffs"]) == 2
    assert "FoundationStereo, but the model key is ffs" in capsys.readouterr().err


def test_a_dry_run_starts_from_the_template_of_the_model_asked_for(
    tmp_path: Path, small_data: EmbeddedSet, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("model: {variant: public}\n")
    given = [f"results_dir={tmp_path}", *source("train", small_data.train)]

    assert main(["train", "-e", str(path), *given, "--model", "fs", "--dry-run"]) == 0

    spec = yaml.safe_load(capsys.readouterr().out)
    assert spec["model"]["model_type"] == "FoundationStereo"
    assert spec["model"]["max_disparity"] == spec["dataset"]["max_disparity"] == 416
    assert spec["train"]["num_epochs"] == 6


def test_validate_says_whether_weights_fit_a_spec_that_follows_them(
    tmp_path: Path, small_data: EmbeddedSet, capsys: pytest.CaptureFixture[str]
) -> None:
    public = replace(FoundationStereoSpec(), variant="public", volume_dim=16, corr_levels=1)
    weights = tmp_path / "public.pth"
    entry = MODELS["fs"]
    files.write(weights, {"model": entry.build(entry.experiment(public)).state_dict()})
    given = [*source("train", small_data.train), "model.volume_dim=16", "model.corr_levels=1"]
    check = ["validate", "-e", str(packaged("train", tmp_path)), "--checkpoint", str(weights)]

    assert main([*check, *given, f"results_dir={tmp_path}", "model.variant=auto"]) == 0
    assert "fits the spec" in capsys.readouterr().out
    assert main([*check, *given, f"results_dir={tmp_path}"]) == 2
    assert "model.variant  tao    public" in capsys.readouterr().err


@pytest.mark.slow
def test_the_verbs_one_after_the_other(tmp_path: Path, small_data: EmbeddedSet) -> None:
    """About a minute: 250 MB of weights are written, read and traced again and again."""
    torch.set_num_threads(1)
    root = f"results_dir={tmp_path / 'out'}"

    def run(verb: str, *arguments: str) -> int:
        return main([verb, "-e", str(packaged(verb, tmp_path)), *arguments, root])

    def scored(directory: str) -> float:
        return json.loads((tmp_path / "out" / directory / "results.json").read_text())["epe"]

    splits = [*source("train", small_data.train), *source("val", small_data.val)]
    assert run("train", *THIN, *splits, "model.variant=auto", "train.num_epochs=1") == 0
    made = yaml.safe_load((tmp_path / "out" / "train" / "experiment.yaml").read_text())
    assert (made["model"]["variant"], made["model"]["attention_layout"]) == ("tao", "rows")

    parent = ("--set-from", str(tmp_path / "out"))
    test, infer = source("test", small_data.val), source("infer", small_data.val)
    assert run("evaluate", *parent, *test, "model.variant=tao") == 0
    assert run("inference", *parent, *infer) == 0
    assert len(list((tmp_path / "out" / "inference" / "disparity_pfm").rglob("*.pfm"))) == 2

    size = ("export.input_height=64", "export.input_width=128")
    assert run("export", *parent, *size) == 0
    graph = ("--set-from", str(tmp_path / "out" / "export"))
    assert run("evaluate", *graph, *test, f"evaluate.results_dir={tmp_path}/out/graph") == 0
    assert scored("graph") == pytest.approx(scored("evaluate"), abs=1e-3)

    assert run("gen_trt_engine", *graph) == 0
    engine = ("--set-from", str(tmp_path / "out" / "gen_trt_engine"))
    assert run("evaluate", *engine, *test, f"evaluate.results_dir={tmp_path}/out/engine") == 0
    assert scored("engine") == pytest.approx(scored("evaluate"), abs=1e-2)
