"""`cfg.yaml` beside released weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stereo.checkpoints import files
from stereo.checkpoints.identify import Identity, identify
from stereo.checkpoints.load import network_state
from stereo.checkpoints.public_config import MAX_BYTES, beside
from stereo.nets.foundation_stereo import FoundationStereo
from stereo.spec.networks import FoundationStereoSpec
from tests.stereo.checkpoints.released_files import numbered, written

CONFIG = """\
corr_implementation: reg
corr_levels: 2
corr_radius: 4
hidden_dims: [128, 128, 128]
low_memory: 0
max_disp: 416
mixed_precision: true
n_downsample: 2
n_gru_layers: 3
some_training_option: 0.5
valid_iters: 32
vit_size: vits
"""


@pytest.fixture(scope="module")
def shapes() -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        network = FoundationStereo(FoundationStereoSpec(variant="public"))
    return network.state_dict()


@pytest.fixture
def public(tmp_path: Path, shapes: dict[str, torch.Tensor]) -> Path:
    small = {n: t for n, t in shapes.items() if t.numel() <= 2**20}
    return written(tmp_path / "model_best_bp2.pth", {"model": numbered(small), "epoch": 11})


def found(path: Path) -> Identity:
    payload = files.read(path)
    return identify(network_state(payload), payload)


def test_the_configuration_tells_what_tensors_do_not_show(public: Path) -> None:
    public.with_name("cfg.yaml").write_text(CONFIG.replace("416", "320"))

    told = found(public)

    assert told.settings == {
        "max_disparity": 320,
        "valid_iters": 32,
        "low_memory": 0,
        "mixed_precision": True,
        "n_downsample": 2,
    }
    assert told.fields["encoder"] == "vits"
    assert told.remark == ""
    assert "model.max_disparity                 320 (as stated)" in str(told)


def test_without_a_configuration_the_published_range_counts_with_a_notice(public: Path) -> None:
    told = found(public)
    assert told.settings == {"max_disparity": 416}
    assert told.remark == "max_disparity 416 as published: no cfg.yaml says more"
    shown = {"encoder": "vits", "n_gru_layers": 3, "corr_levels": 2, "corr_radius": 4}
    assert shown.items() <= told.fields.items()


def test_an_older_configuration_names_no_vit(public: Path) -> None:
    public.with_name("cfg.yaml").write_text(CONFIG.replace("vit_size: vits\n", ""))
    told = found(public)
    assert (told.fields["encoder"], told.remark) == ("vits", "")


def test_tensors_count_more_than_the_configuration(public: Path) -> None:
    wrong = CONFIG.replace("corr_radius: 4", "corr_radius: 6").replace("vits", "vitl")
    public.with_name("cfg.yaml").write_text(wrong)
    told = found(public)
    assert (told.fields["corr_radius"], told.fields["encoder"]) == (4, "vits")
    assert told.remark.splitlines() == [
        "cfg.yaml says encoder vitl, the tensors show vits",
        "cfg.yaml says corr_radius 6, the tensors show 4",
    ]


def test_our_own_checkpoints_do_not_read_it(public: Path) -> None:
    public.with_name("cfg.yaml").write_text(CONFIG)
    files.write(public, {"model": network_state(files.read(public))})
    assert found(public).settings == {}


def merges(levels: int) -> bytes:
    """A mapping that merges nine times what merges nine times ...: 9 ** levels entries."""
    lines = ["a0: &a0 {k: 1}"]
    for level in range(1, levels):
        parts = ", ".join([f"*a{level - 1}"] * 9)
        lines.append(f"a{level}: &a{level} {{<<: [{parts}]}}")
    return "\n".join(lines).encode()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (merges(30), "it repeats parts of itself"),
        (b"- a\n- b\n", "no mapping"),
        (b"a: [1,\n", "while parsing"),
        (b"!!python/object/apply:os.system ['touch hacked']\n", "could not determine"),
        (b"a: " + b"x" * MAX_BYTES, f"more than {MAX_BYTES} bytes"),
        (b"\xff\xfe\x00", ""),
        (b"[" * 5000, ""),
    ],
    ids=["bomb", "list", "broken", "code", "large", "binary", "deep"],
)
def test_a_configuration_that_is_none_is_left_out_with_a_warning(
    content: bytes, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cfg.yaml").write_bytes(content)
    assert beside(tmp_path / "model.pth") == {}
    (record,) = caplog.records
    assert "cfg.yaml is not read" in record.getMessage()
    assert said in record.getMessage()
    assert not (tmp_path / "hacked").exists()


def test_only_the_public_network_was_published_with_that_range() -> None:
    with torch.device("meta"):
        tao = FoundationStereo(FoundationStereoSpec(variant="tao")).state_dict()
    told = identify(tao, {"cfg.yaml": {}})
    assert (told.settings, told.remark) == ({}, "")
