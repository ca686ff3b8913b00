"""The refinement sweep of the real network, and when training makes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stereo import actions
from stereo.evaluation.sweep import StepScores
from stereo.nets.fast_foundation_stereo import FastFoundationStereo
from stereo.registry import MODELS
from stereo.spec.load import load_spec
from stereo.status import StatusLog
from stereo.tasks import METRIC, RELATIVE
from stereo.train.trainer import fit

STEPS = 3


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class Study:
    """Remembers what a trial reports."""

    def __init__(self) -> None:
        self.epochs: list[Mapping[str, float]] = []
        self.checkpoint = Path()

    def __call__(self, epoch: int, metrics: Mapping[str, float], checkpoint: Path | None) -> bool:
        assert checkpoint is not None
        self.epochs.append(metrics)
        self.checkpoint = checkpoint
        return False


def trained(values: dict[str, Any], directory: Path, study: Study | None) -> list[tuple[int, bool]]:
    """Train the real network two epochs; returns batch size and training mode of every pass."""
    spec = {**values, "model": {**values["model"], "valid_iters": STEPS}}
    spec["dataset"]["val_dataset"]["batch_size"] = 1
    spec["train"] = {"num_epochs": 2, "optim": {"lr": 1e-4, "lr_scheduler": "OneCycleLR"}}
    loaded = load_spec({**spec, "results_dir": str(directory)}, action="train")
    passes: list[tuple[int, bool]] = []

    def build(spec: Any) -> nn.Module:
        network = FastFoundationStereo(spec.model)
        network.register_forward_hook(
            lambda module, images, _: passes.append((len(images[0]), module.training))
        )
        return network

    entry = replace(MODELS["ffs"], build=build)
    outcome = fit(loaded, entry, directory, report=study, status=StatusLog(directory))
    assert outcome.status == "ok"
    return passes


def test_one_pass_per_pair_scores_the_real_network_after_every_refinement(
    small_values: dict[str, Any], tmp_path: Path
) -> None:
    study = Study()

    passes = trained(small_values, tmp_path / "train", study)

    first, last = study.epochs
    assert [count for count, training in passes if not training] == [1, 1] * 2  # two pairs, epochs
    assert not any("=" in name for name in first)
    names = {name for name in last if name.startswith("val/")}
    sweep = {name: value for name, value in last.items() if "=" in name}
    assert set(sweep) == {
        f"model.valid_iters={steps}/{name}" for steps in range(1, STEPS + 1) for name in names
    }
    assert {name: last[f"model.valid_iters={STEPS}/{name}"] for name in names} == {
        name: last[name] for name in names
    }
    for steps in (1, 2):  # as a network that was asked for so many
        spec = {**small_values, "evaluate": {"checkpoint": str(study.checkpoint)}}
        spec["model"] = {**small_values["model"], "valid_iters": steps}
        alone = actions.run("evaluate", spec, tmp_path / f"evaluate{steps}")
        swept = last[f"model.valid_iters={steps}/val/epe"]
        assert swept == pytest.approx(alone.metrics["val/epe"], rel=1e-5)
        assert swept != last["val/epe"]


@pytest.mark.parametrize(("task", "key"), [(METRIC, "mono_metric"), (RELATIVE, "mono_relative")])
def test_a_network_that_does_not_refine_has_no_sweep(task: Any, key: str) -> None:
    scores = StepScores(task, MODELS[key].experiment())
    truth = torch.rand(2, 1, 8, 8) + 1
    valid = torch.ones_like(truth, dtype=torch.bool)
    batch = {task.target: truth, "valid": valid, "truth_pixels": torch.tensor([64, 64])}

    scores.add([truth[:, 0] + torch.rand(2, 8, 8)], batch)

    assert (scores.images, scores.sweep()) == (2, {})
    assert scores.last()["val/abs_rel"] > 0
