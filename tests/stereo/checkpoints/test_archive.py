"""Containers: every tensor as torch.load reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stereo.checkpoints import archive
from stereo.checkpoints.inert_pickle import InertPickleError, Record

BASE = torch.arange(24.0).reshape(2, 3, 4)
TENSORS = {
    "contiguous": BASE,
    "transposed": BASE.transpose(0, 2),
    "part": BASE[1, 1:, ::2],
    "scalar": torch.tensor(5),
    "empty": torch.empty(0, 3),
    "expanded": torch.ones(1).expand(7),
    "parameter": nn.Parameter(torch.ones(2)),
    "bool": torch.tensor([True, False]),
    **{
        str(dtype): torch.tensor([1, 2, 3], dtype=dtype)
        for dtype in archive.DTYPES.values()
        if dtype != torch.bool
    },
}


@pytest.mark.parametrize("is_archive", [True, False], ids=["archive", "legacy"])
def test_tensors_are_read_as_torch_reads_them(tmp_path: Path, is_archive: bool) -> None:
    path = tmp_path / "tensors.pth"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=is_archive)

    found = archive.read(path)

    expected = torch.load(path, weights_only=True)
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].stride() == tensor.stride(), name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("is_archive", [True, False], ids=["archive", "legacy"])
def test_views_of_one_storage_still_share_it(tmp_path: Path, is_archive: bool) -> None:
    path = tmp_path / "shared.pth"
    torch.save({"all": BASE, "row": BASE[1]}, path, _use_new_zipfile_serialization=is_archive)

    found = archive.read(path)

    found["row"].zero_()
    assert found["all"][1].eq(0).all()
    assert found["all"][0].sum() == BASE[0].sum()


def test_a_tensor_that_carries_attributes_is_read_without_them(tmp_path: Path) -> None:
    tensor = torch.ones(3)
    tensor.note = "trained on Tuesday"  # pyright: ignore[reportAttributeAccessIssue]
    torch.save({"a": tensor, "b": nn.Parameter(torch.ones(2))}, tmp_path / "a.pth")

    found = archive.read(tmp_path / "a.pth")

    assert torch.equal(found["a"], torch.ones(3))


@pytest.mark.parametrize("tensor", [torch.ones(3).to_sparse(), torch.ones(3, device="meta")])
def test_a_tensor_without_a_plain_storage_is_a_record(tmp_path: Path, tensor: Tensor) -> None:
    torch.save({"a": tensor}, tmp_path / "a.pth")
    assert isinstance(archive.read(tmp_path / "a.pth")["a"], Record)


def test_the_state_of_a_training_run_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    network = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    payload = {
        "state_dict": network.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "rng": {"torch": torch.get_rng_state(), "numpy": (1, [2, 3], 2**100)},
        "epoch": 3,
        "metrics": {"val/epe": float("inf")},
    }
    torch.save(payload, tmp_path / "run.pth")
    assert shown(archive.read(tmp_path / "run.pth")) == shown(payload)


def shown(value: Any) -> Any:
    """A value with lists for tensors, so that it can be compared."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: shown(entry) for key, entry in value.items()}
    return [shown(entry) for entry in value] if isinstance(value, list) else value


@pytest.mark.parametrize("content", [b"", b"P", b"PK\x03\x04", b"hello", b"\x80\x02.", b"\x89PNG"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.pth"
    path.write_bytes(content)
    with pytest.raises(InertPickleError):
        archive.read(path)
