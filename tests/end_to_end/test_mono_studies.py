"""Studies of monocular depth on the embedded images, to a bundle; CPU only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from automl.cli import main
from automl.plan import prepare
from automl.study_spec import load_study
from stereo.spec.load import load_spec
from stereo.trainable import DepthNet

MODELS = ("mono_metric", "mono_relative")
ACTIVE = {
    "mono_metric": {"train.silog_form", "train.silog_lambda"},
    "mono_relative": {"train.relative_loss", "train.gradient_loss_weight"},
}
BOTH = {
    "dataset.train_dataset.augmentation.h_flip_prob",
    "train.optim.lr",
    "train.optim.weight_decay",
    "train.optim.head_lr_ratio",
}


@pytest.mark.parametrize("model", MODELS)
def test_the_packaged_study_searches_every_default_field_that_acts(model: str) -> None:
    space = prepare(model).resolved.space
    assert {parameter.path for parameter in space.parameters} == BOTH | ACTIVE[model]
    assert len(space.parameters) + len(space.dropped) == 10
    assert None not in [parameter.default for parameter in space.parameters]


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_trial_0_of_a_packaged_study_is_a_valid_spec(
    model: str, gpu: bool, caplog: pytest.LogCaptureFixture
) -> None:
    study = load_study(model, gpu=gpu)
    spec = {**study.spec, "model": {**study.spec["model"]}}
    source = {"dataset_name": load_metadata(model)["default_dataset"], "data_file": "a.txt"}
    overrides = [f"dataset.{split}_dataset.data_sources=[{source}]" for split in ("train", "val")]
    load_spec(spec, ["results_dir=out", *overrides], action="train", model=model)
    assert caplog.messages == []


def load_metadata(model: str) -> dict[str, str]:
    return json.loads((DepthNet.schema_dir / model / "model.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_a_study_ends_in_an_accepted_bundle(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    crop = {"augmentation": {"crop_size": [42, 56]}, "workers": 0}
    study = {
        "model": model,
        "spec": {
            "model": {"encoder": "vits"},
            "dataset": {
                "train_dataset": {**crop, "batch_size": 8},
                "val_dataset": {**crop, "batch_size": 8},
                "test_dataset": {**crop, "batch_size": 8},
            },
            "train": {
                "num_epochs": 1,
                "optim": {"lr": 1e-4, "lr_scheduler": "OneCycleLR"},
            },
        },
        "algorithm": {"name": "auto", "rungs": [1]},
        "budget": {"trials": 2},
        "runner": "local",
    }
    Path("tiny.yaml").write_text(yaml.safe_dump(study))

    assert main(["study", "tiny.yaml"]) == 0

    bundle = json.loads(Path("results/studies/tiny/bundle/bundle.json").read_text())
    assert bundle["accepted"] is True
