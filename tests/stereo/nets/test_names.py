from __future__ import annotations

import json
from pathlib import Path

import torch

from stereo.nets.names import (
    rename_fast_foundation_stereo,
    rename_metric_depth,
    rename_relative_depth,
)

GOLDEN = Path(__file__).resolve().parents[2] / "golden"


def our_names() -> list[str]:
    manifest = json.loads((GOLDEN / "ffs_bp2.manifest.json").read_text())
    return [tensor["name"] for tensor in manifest["tensors"]]


def test_serialized_names_become_ours() -> None:
    changed = json.loads((GOLDEN / "ffs_serialized_names.json").read_text())["changed"]
    unchanged = set(our_names()) - set(changed.values())
    theirs = {name: torch.tensor(index) for index, name in enumerate([*changed, *unchanged])}

    renamed = rename_fast_foundation_stereo(theirs)

    expected = {changed.get(name, name): value for name, value in theirs.items()}
    assert renamed == expected


def test_our_names_stay() -> None:
    ours = {name: torch.zeros(()) for name in our_names()}

    assert rename_fast_foundation_stereo(ours) == ours


def test_the_head_of_a_monocular_file_gets_the_name_of_the_network() -> None:
    tensor = torch.zeros(())
    public = {"depth_head.projects.0.weight": tensor, "pretrained.norm.bias": tensor}
    metric = {"metric_depth_head.projects.0.weight": tensor, "pretrained.norm.bias": tensor}

    for state in (public, metric):
        assert rename_relative_depth(state) == public
        assert rename_metric_depth(state) == metric
