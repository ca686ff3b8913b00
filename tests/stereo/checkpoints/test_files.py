from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from stereo.checkpoints import files
from stereo.errors import CheckpointError


def test_a_written_checkpoint_is_read_back_with_its_format_version(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "last.pth"
    payload = {"state_dict": {"model.a": torch.arange(3.0)}, "epoch": 4, "spec": {"a": [1, None]}}

    files.write(path, payload)

    found = files.read(path)
    assert torch.equal(found["state_dict"]["model.a"], torch.arange(3.0))
    assert found["epoch"] == 4
    assert found["spec"] == {"a": [1, None]}
    assert found["format_version"] == files.FORMAT_VERSION
    assert [entry.name for entry in path.parent.iterdir()] == ["last.pth"]


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "last.pth"
    files.write(path, {"epoch": 1})

    with pytest.raises((AttributeError, TypeError)):
        files.write(path, {"epoch": lambda: None})

    assert files.read(path)["epoch"] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.pth"]


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "new.pth"
    torch.save({"format_version": files.FORMAT_VERSION + 1}, path)

    with pytest.raises(CheckpointError, match=r"new\.pth: format_version 2, .* up to 1"):
        files.read(path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.pth"
    files.write(path, {"weights": torch.randn(1000)})
    path.write_bytes(path.read_bytes()[:2000])

    with pytest.raises(CheckpointError, match=r"cut\.pth: not a whole checkpoint .*truncated"):
        files.read(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x02."])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.pth"
    path.write_bytes(content)

    with pytest.raises(CheckpointError, match=r"other\.pth"):
        files.read(path)


def test_objects_beside_the_weights_are_read_as_data(tmp_path: Path) -> None:
    path = tmp_path / "object.pth"
    torch.save({"model": {"a": torch.ones(2)}, "meter": argparse.Namespace(best=1)}, path)

    found = files.read(path)

    assert torch.equal(found["model"]["a"], torch.ones(2))
    assert found["meter"].path == "argparse.Namespace"
    assert found["meter"].state == {"best": 1}


def test_a_missing_file_and_another_suffix_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.pth: no such checkpoint"):
        files.read(tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match=r"ends in \.pth, got '\.onnx'"):
        files.read(tmp_path / "graph.onnx")


def test_a_bare_tensor_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "tensor.pth"
    torch.save(torch.zeros(3), path)

    with pytest.raises(CheckpointError, match=r"holds a Tensor"):
        files.read(path)


@pytest.mark.parametrize(
    ("marks", "library"),
    [({files.QUANTIZED_BY: "torchao"}, "torchao"), ({"modelopt_state": {}}, "modelopt")],
)
def test_weights_in_the_form_of_another_library_name_it_and_what_can_be_scored(
    tmp_path: Path, marks: dict[str, object], library: str
) -> None:
    path = tmp_path / "quantized_model.pth"
    files.write(path, {"state_dict": {"weight": torch.zeros(1)}, **marks})
    with pytest.raises(CheckpointError, match=rf"model\.pth: weights quantised by {library}.*onnx"):
        files.read(path)
