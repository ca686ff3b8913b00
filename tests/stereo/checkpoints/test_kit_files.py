"""The released formats, as the owner's scripts write them beside the repository.

`../shared/parity`, or the folder that `DEPTHTUNE_PARITY` names; without it the same formats are
covered by the files that the other tests make themselves.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stereo.checkpoints import files
from stereo.checkpoints.identify import expected, expected_state, identify
from stereo.checkpoints.load import compare, network_state, require_network
from stereo.errors import CheckpointError
from stereo.nets.foundation_stereo import FoundationStereo
from stereo.nets.names import rename_fast_foundation_stereo
from stereo.registry import MODELS
from stereo.spec.networks import FoundationStereoSpec
from tests.golden.fill import checksum
from tests.stereo.checkpoints.test_hostile import read_bounded

REPOSITORY = Path(__file__).resolve().parents[3]
PARITY = Path(os.environ.get("DEPTHTUNE_PARITY", REPOSITORY.parent / "shared" / "parity"))
pytestmark = pytest.mark.skipif(not PARITY.is_dir(), reason=f"{PARITY} is not there")


def write(script: str, *arguments: Any) -> None:
    subprocess.run([sys.executable, PARITY / script, *map(str, arguments)], check=True)


def loaded(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Payload and tensors under our names."""
    payload = files.read(path)
    return payload, rename_fast_foundation_stereo(network_state(payload))


def filled(state: dict[str, Any]) -> str:
    """Fingerprint of the floating-point tensors."""
    return checksum({n: t.numpy() for n, t in state.items() if t.is_floating_point()})


def header(kit: str) -> dict[str, Any]:
    return json.loads((PARITY / f"{kit}.manifest.json").read_text())["header"]


@pytest.fixture(scope="module")
def serialized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("serialized") / "model_best_bp2_serialize.pth"
    write("make_serialized_fixture.py", PARITY / "ffs_bp2.manifest.json", path)
    return path


def test_a_serialized_network_gives_every_tensor(serialized: Path) -> None:
    payload, state = loaded(serialized)

    assert len(state) == 721
    assert filled(state) == header("ffs_bp2")["fill_checksum"]
    found = identify(state, payload)
    assert found.network == "FastFoundationStereo"
    assert found.parameters == header("ffs_bp2")["n_params"]
    assert found.settings["max_disparity"] == 192
    require_network(state, found, expected(MODELS["ffs"]))
    assert "core.submodule" not in sys.modules


def test_a_hostile_serialized_network_leaves_no_trace(tmp_path: Path) -> None:
    path, marker = tmp_path / "made.pth", tmp_path / "marker.txt"
    kit = PARITY / "ffs_bp2.manifest.json"
    write("make_serialized_fixture.py", kit, path, "--hostile", marker)

    outcomes = read_bounded(tmp_path, {"hostile": path.read_bytes()})

    assert outcomes["hostile"]["tensors"] == 721
    assert not marker.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--training-state"],
        ["--no-vit-size"],
        ["--prefix", "module."],
        ["--as", "ours"],
        ["--training-state", "--prefix", "model.module."],
    ],
)
def test_a_public_foundation_stereo_gives_every_tensor(tmp_path: Path, options: list[str]) -> None:
    kit = "fs_public_vits"
    write("make_public_fixture.py", PARITY / f"{kit}.manifest.json", tmp_path, *options)

    payload, state = loaded(tmp_path / "model_best_bp2.pth")

    assert filled(state) == header(kit)["fill_checksum"]
    found = identify(state, payload)
    model = header(kit)["model"]
    assert found.fields["variant"] == "public"
    shared = found.fields.keys() & model.keys()
    assert {key: found.fields[key] for key in shared} == {key: model[key] for key in shared}
    assert (found.epoch, found.step, found.tensors) == (11, 200000, 1192)
    (tmp_path / "model_best_bp2.pth").unlink()  # 250 MB each


@pytest.mark.slow
def test_a_public_file_without_a_tensor_is_told_by_its_name(tmp_path: Path) -> None:
    name = "update_block.gru04.conv0.0.weight"
    kit = PARITY / "fs_public_vits.manifest.json"
    write("make_public_fixture.py", kit, tmp_path, "--break", name)

    _, state = loaded(tmp_path / "model_best_bp2.pth")
    needed = expected_state(FoundationStereo, FoundationStereoSpec(variant="public"))

    assert compare(state, needed).missing == (name,)
    with pytest.raises(CheckpointError, match=rf"1 are missing \(first: {name}\)"):
        require_network(state, identify(state), expected(MODELS["fs"]))
    (tmp_path / "model_best_bp2.pth").unlink()
