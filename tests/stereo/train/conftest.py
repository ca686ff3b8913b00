"""Real files to train the small network of `tiny.py` on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from stereo.data.generator import EmbeddedLayout, EmbeddedSet, write_embedded
from stereo.spec.data import DatasetSpec, DataSource, SplitSpec, StereoAugmentSpec
from stereo.spec.experiment import ExperimentSpec
from stereo.spec.networks import FastFoundationStereoSpec
from stereo.spec.train import OptimSpec, TrainSpec
from stereo.status import StatusLog
from stereo.train.trainer import TrainOutcome, fit
from tests.stereo.train.tiny import TINY

LAYOUT = EmbeddedLayout(train_pairs=6, train_size=(72, 136), val_pairs=2, val_size=(70, 130))


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> EmbeddedSet:
    return write_embedded(tmp_path_factory.mktemp("pairs"), LAYOUT)


def split_of(file: Path, batch_size: int) -> SplitSpec:
    augmentation = StereoAugmentSpec(crop_size=[64, 128], min_scale=0.0, max_scale=0.1)
    return SplitSpec(
        data_sources=[DataSource("GenericDataset", str(file))],
        batch_size=batch_size,
        workers=0,
        pin_memory=False,
        augmentation=augmentation,
    )


@pytest.fixture
def make_spec(pairs: EmbeddedSet, tmp_path: Path) -> Callable[..., ExperimentSpec]:
    """Spec of a tiny run; keywords are fields of `train`, `optim` takes a mapping."""

    def make(
        *, optim: dict | None = None, train_file: Path | None = None, **train: object
    ) -> ExperimentSpec:
        rates = {"lr": 3e-3, "lr_scheduler": "OneCycleLR"} | (optim or {})
        return ExperimentSpec(
            results_dir=str(tmp_path),
            model=FastFoundationStereoSpec(max_disparity=64, train_iters=2, valid_iters=2),
            dataset=DatasetSpec(
                max_disparity=64,
                train_dataset=split_of(train_file or pairs.train, 2),
                val_dataset=split_of(pairs.val, 1),
            ),
            train=TrainSpec(**{"num_epochs": 3, **train}, optim=OptimSpec(**rates)),
        )

    return make


@pytest.fixture
def run() -> Callable[..., TrainOutcome]:
    """Train the tiny network in a directory."""

    def train(spec: ExperimentSpec, directory: Path, report=None, entry=TINY) -> TrainOutcome:
        return fit(spec, entry, directory, report=report, status=StatusLog(directory))

    return train
