from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from stereo.checkpoints import files
from stereo.checkpoints.load import load_into, network_state
from stereo.errors import CheckpointError


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def saved(path: Path, state: dict[str, torch.Tensor]) -> Path:
    files.write(path, {"state_dict": {f"model.{name}": value for name, value in state.items()}})
    return path


@pytest.mark.parametrize("container", ["model", "state_dict", "model_state_dict", None])
@pytest.mark.parametrize("prefix", ["", "model.", "module.", "model.module."])
def test_containers_and_wrapper_prefixes_are_taken_off(container: str | None, prefix: str) -> None:
    state = {f"{prefix}0.weight": torch.zeros(1), f"{prefix}0.bias": torch.ones(1)}
    payload = {container: state, "epoch": 3} if container else state

    assert set(network_state(payload)) == {"0.weight", "0.bias"}


def test_a_checkpoint_of_the_same_network_loads_every_tensor(tmp_path: Path) -> None:
    source, target = network(), network()

    report = load_into(target, saved(tmp_path / "a.pth", source.state_dict()))

    assert report.complete
    for name, value in source.state_dict().items():
        assert torch.equal(value, target.state_dict()[name])


def test_differences_are_refused_by_name_and_leave_the_network_unchanged(tmp_path: Path) -> None:
    target = network()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    state = {"0.weight": torch.zeros(4, 2), "0.bias": torch.zeros(3), "extra": torch.zeros(1)}
    path = saved(tmp_path / "b.pth", state)

    with pytest.raises(CheckpointError, match=r"b\.pth.*5 missing.*1\.weight.*extra.*\(4, 2\)"):
        load_into(target, path)

    assert all(torch.equal(before[name], value) for name, value in target.state_dict().items())


def test_a_partial_load_takes_what_fits_and_reports_the_rest(tmp_path: Path) -> None:
    target = network()
    state = {"0.weight": torch.zeros(4, 2), "0.bias": torch.full((3,), 7.0)}

    report = load_into(target, saved(tmp_path / "c.pth", state), partial=True)

    assert report.mismatched == ("0.weight: file (4, 2), network (3, 2)",)
    assert "1.weight" in report.missing
    assert target.state_dict()["0.bias"].tolist() == [7.0, 7.0, 7.0]


def test_names_are_renamed_before_they_are_compared(tmp_path: Path) -> None:
    source = network()
    path = saved(tmp_path / "d.pth", {f"old.{k}": v for k, v in source.state_dict().items()})

    report = load_into(
        network(), path, rename=lambda s: {k.removeprefix("old."): v for k, v in s.items()}
    )

    assert report.complete


def test_the_offset_buffer_may_be_absent_or_of_another_radius(tmp_path: Path) -> None:
    target = network()
    target.register_buffer("dx", torch.arange(3))
    state = network().state_dict()

    assert load_into(target, saved(tmp_path / "e.pth", state)).complete
    assert load_into(target, saved(tmp_path / "f.pth", state | {"dx": torch.arange(5)})).complete
    assert target.state_dict()["dx"].tolist() == [0, 1, 2]


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.pth"
    files.write(path, {"epoch": 3})

    with pytest.raises(CheckpointError, match=r"holds no network weights"):
        load_into(network(), path)
