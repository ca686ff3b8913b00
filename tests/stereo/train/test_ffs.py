"""The real network through the real action: 64x128 crops, 2 iterations, generated pairs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stereo import actions
from stereo.checkpoints import files
from stereo.data.generator import EmbeddedLayout, EmbeddedSet, write_embedded
from stereo.registry import MODELS
from stereo.spec.load import load_spec
from stereo.status import StatusLog
from stereo.train.checkpoint import BEST, LATEST, PATTERN
from stereo.train.trainer import fit

LAYOUT = EmbeddedLayout(train_pairs=4, train_size=(72, 144), val_pairs=2, val_size=(60, 124))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> EmbeddedSet:
    return write_embedded(tmp_path_factory.mktemp("scenes"), LAYOUT)


def experiment(scenes: EmbeddedSet, **train: object) -> dict:
    def split(file: Path) -> dict:
        source = {"dataset_name": "GenericDataset", "data_file": str(file)}
        return {
            "data_sources": [source],
            "batch_size": 2,
            "workers": 0,
            "augmentation": {"crop_size": [64, 128]},
        }

    return {
        "model": {"max_disparity": 64, "train_iters": 2, "valid_iters": 2},
        "dataset": {
            "max_disparity": 64,
            "train_dataset": split(scenes.train),
            "val_dataset": split(scenes.val),
            "test_dataset": split(scenes.val),
        },
        "train": {"num_epochs": 1, **train},
    }


def lines(directory: Path) -> list[dict]:
    text = (directory / "status.json").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_training_and_evaluate_agree_on_the_score(scenes: EmbeddedSet, tmp_path: Path) -> None:
    spec = experiment(scenes, optim={"lr": 4e-4, "warmup_steps": 0})
    trained = actions.run("train", spec, tmp_path / "train")
    assert (trained.status, trained.exit_code) == ("ok", 0)
    assert trained.artifacts["best"].samefile(tmp_path / "train" / BEST)
    assert lines(tmp_path / "train")[-1]["status"] == "SUCCESS"
    assert "epoch 1/1" in (tmp_path / "train" / "train.log").read_text("utf-8")

    spec["evaluate"] = {"checkpoint": str(tmp_path / "train" / BEST)}
    scored = actions.run("evaluate", spec, tmp_path / "evaluate")
    assert scored.metrics["val/epe"] == pytest.approx(trained.metrics["val/epe"], rel=1e-4)
    assert scored.metrics["val/bp1"] == pytest.approx(trained.metrics["val/bp1"], abs=1e-3)


def test_a_wild_learning_rate_ends_as_diverged(scenes: EmbeddedSet, tmp_path: Path) -> None:
    optim = {"lr": 1e3, "lr_scheduler": "OneCycleLR"}
    spec = experiment(scenes, num_epochs=12, max_nonfinite_steps=2, optim=optim)
    result = actions.run("train", spec, tmp_path, report=lambda *_: False)
    assert (result.status, result.exit_code) == ("diverged", 3)
    assert "train.optim.lr (1000)" in result.detail
    last = lines(tmp_path)[-1]
    assert (last["status"], last["exit_code"]) == ("FAILURE", 3)
    for path in tmp_path.glob(PATTERN):
        state = files.read(path)["state_dict"]
        assert all(tensor.isfinite().all() for tensor in state.values())


@pytest.mark.slow
def test_four_pairs_can_be_learned_by_heart(scenes: EmbeddedSet, tmp_path: Path) -> None:
    mapping = experiment(scenes, num_epochs=60, validation_interval=60)
    mapping["train"] |= {"optim": {"lr": 4e-4, "lr_scheduler": "OneCycleLR"}}
    mapping["train"]["clip_grad_norm"] = 1.0
    names = ("spatial_aug_prob", "color_aug_prob", "eraser_aug_prob", "yjitter_prob")
    mapping["dataset"]["train_dataset"]["augmentation"] |= dict.fromkeys(names, 0.0)
    spec = load_spec({**mapping, "results_dir": str(tmp_path)}, action="train")
    losses: list[float] = []

    class Recording(StatusLog):
        def running(self, message, kpi=None, **fields) -> None:
            losses.extend((kpi or {}).values() if message.startswith("Train metrics") else ())
            super().running(message, kpi, **fields)

    outcome = fit(
        spec, MODELS["ffs"], tmp_path, report=lambda *_: False, status=Recording(tmp_path)
    )
    assert outcome.status == "ok"
    assert losses[0] >= 5 * losses[-1]


@pytest.mark.slow
def test_an_interrupted_run_has_the_weights_of_a_whole_one(
    scenes: EmbeddedSet, tmp_path: Path
) -> None:
    mapping = experiment(scenes, num_epochs=2, optim={"lr": 4e-4, "warmup_steps": 0})
    spec = load_spec({**mapping, "results_dir": str(tmp_path)}, action="train")
    fit(spec, MODELS["ffs"], tmp_path / "whole", status=StatusLog(tmp_path / "whole"))

    class Cut(Exception):
        pass

    def cut(*_: object) -> bool:
        raise Cut

    parts = tmp_path / "parts"
    with pytest.raises(Cut):
        fit(spec, MODELS["ffs"], parts, report=cut, status=StatusLog(parts))
    (first,) = parts.glob(PATTERN)
    train = replace(spec.train, resume_training_checkpoint_path=str(first))
    fit(replace(spec, train=train), MODELS["ffs"], parts, status=StatusLog(parts))
    whole, resumed = (
        files.read(path / LATEST)["state_dict"] for path in (tmp_path / "whole", parts)
    )
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=1e-6, atol=1e-6)
