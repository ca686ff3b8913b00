from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stereo.nets.names import (
    rename_fast_foundation_stereo,
    rename_foundation_stereo,
    rename_metric_depth,
    rename_relative_depth,
)

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
Rename = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def our_names(kit: str) -> list[str]:
    manifest = json.loads((GOLDEN / f"{kit}.manifest.json").read_text())
    return [tensor["name"] for tensor in manifest["tensors"]]


CASES = pytest.mark.parametrize(
    ("rename", "table", "kit"),
    [
        (rename_fast_foundation_stereo, "ffs_serialized_names", "ffs_bp2"),
        (rename_foundation_stereo, "fs_public_names", "fs_public_vits"),
    ],
)


@CASES
def test_released_names_become_ours(rename: Rename, table: str, kit: str) -> None:
    changed = json.loads((GOLDEN / f"{table}.json").read_text())["changed"]
    unchanged = set(our_names(kit)) - set(changed.values())
    theirs = {name: torch.tensor(index) for index, name in enumerate([*changed, *unchanged])}

    expected = {changed.get(name, name): value for name, value in theirs.items()}
    assert rename(theirs) == expected


@CASES
def test_our_names_stay(rename: Rename, table: str, kit: str) -> None:
    ours = {name: torch.zeros(()) for name in our_names(kit)}

    assert rename(ours) == ours


def test_the_vit_keeps_the_names_of_its_mlp() -> None:
    """The encoder's MLP is called the same in released files, and is renamed."""
    tensor = torch.zeros(())
    vit = "feature.dino.depth_anything.pretrained.blocks.0.mlp.fc1.weight"
    cnn = "feature.stages.0.blocks.0.mlp.fc1.weight"

    renamed = rename_foundation_stereo({vit: tensor, cnn: tensor})

    assert list(renamed) == [vit, "feature.stages.0.0.pwconv1.weight"]


def test_the_head_of_a_monocular_file_gets_the_name_of_the_network() -> None:
    tensor = torch.zeros(())
    public = {"depth_head.projects.0.weight": tensor, "pretrained.norm.bias": tensor}
    metric = {"metric_depth_head.projects.0.weight": tensor, "pretrained.norm.bias": tensor}

    for state in (public, metric):
        assert rename_relative_depth(state) == public
        assert rename_metric_depth(state) == metric
