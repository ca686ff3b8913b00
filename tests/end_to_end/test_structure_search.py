"""Studies over the structure of the real network: from scratch, and from weights of one structure.

Two epochs on four generated pairs, as in `test_first_study.py`: scores mean nothing, every link is
the real one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from automl.store import Study, read_study
from stereo.checkpoints import files
from stereo.checkpoints.load import State, network_state
from stereo.checkpoints.taps import WEIGHT, lookup_of
from stereo.nets.fast_foundation_stereo import FastFoundationStereo
from stereo.spec.networks import FastFoundationStereoSpec
from tests.end_to_end.small_ffs import Place

pytestmark = pytest.mark.slow

STRUCTURE = ("corr_radius", "corr_levels", "cv_group", "volume_dim")
CHOICES: dict[str, list[Any]] = {
    "model.motion_encoder_widths": [[56, 96, 16, 12], [20, 24, 8, 6]],
    "model.motion_encoder_final": [48, 21],
    "model.disp_head_intermediate": [36, 19],
    "model.mask_widths": [[32, 16], [20, 16]],
    "model.cam_mid_channels": [8, 3],
}
COMMON: dict[str, Any] = {"runner": "local", "algorithm": {"name": "random"}, "seed": 5}
SCRATCH = {
    **COMMON,
    "spec": {"train": {"num_epochs": 1}},
    "search": {
        "parameters": [*(f"model.{name}" for name in STRUCTURE), *CHOICES],
        "choices": CHOICES,
    },
    "budget": {"trials": 4},
}
STEADY = 1e-9  # a learning rate at which weights stay what they were


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Place, Study]]:
    place = Place(tmp_path_factory.mktemp("structure"))
    yield place, finished(place, SCRATCH)
    assert place.left_over() == []


def finished(place: Place, changes: Mapping[str, Any]) -> Study:
    place.write(changes)
    code, output = place.automl("study", f"{place.name}.yaml")
    assert code == 0, output
    return read_study(place.study)


def weights(study: Study) -> Iterator[tuple[dict[str, Any], State]]:
    """Parameters and weights of the trials whose weights a study keeps."""
    for trial in study.trials:
        for path in study.trial_directory(trial.id).glob("dn_model_epoch_*.pth"):
            yield trial.params, network_state(files.read(path))


def test_every_trial_from_scratch_builds_trains_and_the_best_becomes_an_engine(
    scratch: tuple[Place, Study],
) -> None:
    _, study = scratch
    assert [trial.state for trial in study.trials] == ["complete"] * 4
    for name in (*STRUCTURE, "mask_widths"):
        assert len({str(trial.params[f"model.{name}"]) for trial in study.trials}) > 1, name
    kept = list(weights(study))
    assert kept
    for drawn, state in kept:
        lookup = tuple(drawn[f"model.{name}"] for name in ("volume_dim", *STRUCTURE[1::-1]))
        assert lookup_of(state) == lookup
        assert [state["update_block.mask.0.weight"].shape[0], 16] == drawn["model.mask_widths"]
    bundle = yaml.safe_load((study.directory / "bundle" / "bundle.json").read_text())
    assert bundle["accepted"]


def from_weights(checkpoint: Path, **keys: Any) -> dict[str, Any]:
    """A study that starts from a network of radius 4; its baseline has radius 3."""
    return {
        **COMMON,
        "spec": {
            "model": {"corr_radius": 3},
            "train": {
                "num_epochs": 1,
                "pretrained_model_path": str(checkpoint),
                "optim": {"lr": STEADY},
            },
        },
        "search": {
            "parameters": ["model.corr_radius", "model.mask_widths", "train.clip_grad_norm"],
            "ranges": {"train.clip_grad_norm": [0.1, 1.0]},
            "choices": {"model.mask_widths": CHOICES["model.mask_widths"]},
        },
        "budget": {"trials": 4},
        "promote": {"enabled": False},
        **keys,
    }


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = FastFoundationStereo(FastFoundationStereoSpec())
    path = tmp_path_factory.mktemp("released") / "radius4.pth"
    files.write(path, {"model": network.state_dict()})
    return path


def test_with_weights_loaded_the_structure_is_fixed_and_the_plan_says_why(
    released: Path, tmp_path: Path
) -> None:
    place = Place(tmp_path, name="fixed")
    place.write(from_weights(released))
    code, output = place.automl("plan", "fixed.yaml")
    assert code == 0, output
    dropped = output.partition("Not searched (2):")[2]
    for field in ("model.corr_radius", "model.mask_widths"):
        assert re.search(rf"{field} +changes the shape of weights, and weights are", dropped)


def test_with_partial_loading_taps_are_copied_and_the_rest_is_listed(
    released: Path, tmp_path: Path
) -> None:
    study = finished(
        Place(tmp_path, name="partial"), from_weights(released, allow_partial_load=True)
    )

    assert [trial.state for trial in study.trials] == ["complete"] * 4
    assert len({trial.params["model.corr_radius"] for trial in study.trials}) > 1
    assert len({str(trial.params["model.mask_widths"]) for trial in study.trials}) > 1
    report = (study.directory / "report.html").read_text("utf-8")
    assert "Tensors without stored values" in report
    for trial in study.trials:
        names = {WEIGHT} if trial.params["model.corr_radius"] != 4 else set()
        if trial.params["model.mask_widths"] != [32, 16]:
            names |= {f"update_block.mask.{name}" for name in MASK}
        file = study.trial_directory(trial.id) / "not_loaded.txt"
        lines = file.read_text().splitlines() if file.exists() else []
        assert {re.split(r"[: ]", line)[0] for line in lines} == names
        assert all(line in report for line in lines)
    kept = list(weights(study))
    assert kept
    for drawn, state in kept:
        assert_kept(state, network_state(files.read(released)), drawn["model.corr_radius"])


MASK = ("0.weight", "0.bias", "2.weight")


def assert_kept(trained: State, source: State, radius: int) -> None:
    """Both levels hold the stored taps around the middle, and every other tensor is the stored."""
    shared = min(radius, 4)
    new, old = (
        state[WEIGHT].view(56, 2, 29, 2 * r + 1)[..., r - shared : r + shared + 1]
        for state, r in ((trained, radius), (source, 4))
    )
    torch.testing.assert_close(new, old, atol=1e-6, rtol=0)
    untouched = "update_block.encoder.convc2.weight"
    torch.testing.assert_close(trained[untouched], source[untouched], atol=1e-6, rtol=0)
