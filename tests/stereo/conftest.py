"""Two real pairs and a checkpoint of the real network, as a spec file would name them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stereo.checkpoints import files
from stereo.data.generator import EmbeddedLayout, EmbeddedSet, write_embedded
from stereo.nets.fast_foundation_stereo import FastFoundationStereo
from stereo.spec.networks import FastFoundationStereoSpec

LAYOUT = EmbeddedLayout(train_pairs=2, train_size=(64, 128), val_pairs=2, val_size=(60, 120))
MODEL = {"max_disparity": 64, "train_iters": 1, "valid_iters": 1}


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> EmbeddedSet:
    return write_embedded(tmp_path_factory.mktemp("small"), LAYOUT)


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = FastFoundationStereo(FastFoundationStereoSpec(**MODEL))
    state = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    path = tmp_path_factory.mktemp("weights") / "dn_model_best.pth"
    files.write(path, {"state_dict": state})
    return path


@pytest.fixture
def small_values(small_data: EmbeddedSet) -> dict[str, Any]:
    """A combined spec for every verb, without results_dir and without weights."""

    def split(file: Path) -> dict[str, Any]:
        return {
            "data_sources": [{"dataset_name": "GenericDataset", "data_file": str(file)}],
            "batch_size": 2,
            "workers": 0,
            "augmentation": {"crop_size": [64, 128]},
        }

    return {
        "model": dict(MODEL),
        "dataset": {
            "max_disparity": 64,
            "train_dataset": split(small_data.train),
            "val_dataset": split(small_data.val),
            "test_dataset": split(small_data.val),
            "infer_dataset": split(small_data.val),
        },
        "train": {"num_epochs": 1},
        "export": {"input_height": 64, "input_width": 128, "valid_iters": 1},
    }
