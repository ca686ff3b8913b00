"""`train.cache_vit_features` in real runs of FoundationStereo."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from stereo.data.generator import EmbeddedSet
from stereo.nets.feature_cache import FeatureCache
from stereo.registry import MODELS
from stereo.spec.data import DatasetSpec
from stereo.spec.experiment import FoundationStereoExperiment
from stereo.spec.networks import FoundationStereoSpec
from stereo.spec.train import FoundationStereoTrainSpec, OptimSpec
from stereo.train.trainer import TrainOutcome
from tests.stereo.train.conftest import split_of

THIN = FoundationStereoSpec(
    n_gru_layers=1,
    corr_radius=2,
    corr_levels=1,
    volume_dim=16,
    cv_group=4,
    max_disparity=32,
    train_iters=1,
    valid_iters=1,
)
STEADY = {
    "crop_size": [96, 160],
    "yjitter_prob": 0.0,
    "color_aug_brightness": 0.0,
    "color_aug_contrast": 0.0,
    "color_aug_saturation": [1.0, 1.0],
    "color_aug_hue_range": [0.0, 0.0],
    "eraser_aug_prob": 0.0,
    "spatial_aug_prob": 0.0,
}


@pytest.fixture
def experiment(pairs: EmbeddedSet, tmp_path: Path) -> Callable[..., object]:
    def make(cache: str, **augmentation: object) -> FoundationStereoExperiment:
        split = split_of(pairs.val, 2)  # two pairs of 70x130
        steady = replace(split.augmentation, **{**STEADY, **augmentation})
        return FoundationStereoExperiment(
            results_dir=str(tmp_path),
            model=THIN,
            dataset=DatasetSpec(
                max_disparity=32, train_dataset=replace(split, augmentation=steady)
            ),
            train=FoundationStereoTrainSpec(
                num_epochs=2,
                cache_vit_features=cache,  # pyright: ignore[reportArgumentType]
                optim=OptimSpec(lr=1e-9),  # AdamW would turn rounding into steps
            ),
        )

    return make


@pytest.fixture
def hits(monkeypatch: pytest.MonkeyPatch) -> list[FeatureCache]:
    """The caches that a run makes."""
    made: list[FeatureCache] = []
    start = FeatureCache.__init__

    def note(self: FeatureCache, *given: object) -> None:
        start(self, *given)  # pyright: ignore[reportArgumentType]
        made.append(self)

    monkeypatch.setattr(FeatureCache, "__init__", note)
    return made


@pytest.mark.slow
def test_the_second_epoch_finds_every_image_and_learns_the_same(
    experiment: Callable[..., FoundationStereoExperiment],
    run: Callable[..., TrainOutcome],
    hits: list[FeatureCache],
    tmp_path: Path,
) -> None:
    kept, computed = (
        run(experiment(cache), tmp_path / cache, entry=MODELS["fs"]).metrics["train_loss"]
        for cache in ("auto", "off")
    )

    (cache,) = hits
    assert cache.hits == 4  # both views of both pairs, in the second epoch
    assert kept == pytest.approx(computed, rel=1e-4)


@pytest.mark.parametrize(
    ("augmentation", "field"),
    [({"crop_size": [64, 128]}, "crop_size"), ({"eraser_aug_prob": 0.5}, "eraser_aug_prob")],
)
def test_images_that_change_are_not_kept_and_the_log_says_why(
    experiment: Callable[..., FoundationStereoExperiment],
    run: Callable[..., object],
    hits: list[FeatureCache],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    augmentation: dict[str, object],
    field: str,
) -> None:
    spec = experiment("auto", **augmentation)
    spec = replace(spec, train=replace(spec.train, is_dry_run=True))
    with caplog.at_level(logging.INFO, "stereo.train"):
        run(spec, tmp_path / "run", entry=MODELS["fs"])

    assert hits == []
    assert (
        f"differ from epoch to epoch by dataset.train_dataset.augmentation.{field}" in caplog.text
    )
