from __future__ import annotations

import json
from pathlib import Path

import torch

from stereo.nets.names import rename_fast_foundation_stereo

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
