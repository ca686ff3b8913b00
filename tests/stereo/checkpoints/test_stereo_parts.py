"""Files for a part of a stereo network: EdgeNeXt-small, and Depth Anything V2 for the ViT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stereo import actions
from stereo.checkpoints import files
from stereo.checkpoints.identify import expected_state
from stereo.checkpoints.load import network_state
from stereo.errors import CheckpointError
from stereo.nets.depth_anything_v2 import RelativeDepthAnything
from stereo.nets.fast_foundation_stereo import FastFoundationStereo
from stereo.registry import MODELS, load_start
from stereo.spec.experiment import ExperimentSpec, FoundationStereoExperiment
from stereo.spec.models import MODELS as ROWS
from stereo.spec.networks import (
    FastFoundationStereoSpec,
    FoundationStereoSpec,
    RelativeDepthSpec,
    StereoBackboneSpec,
)
from tests.stereo.checkpoints.released_files import (
    State,
    assert_holds,
    below,
    changed,
    names_starting,
    numbered,
    prefixed,
    snapshot,
    written,
)

SMALL: dict[str, Any] = {"encoder": "vits", "volume_dim": 16, "max_disparity": 32}
ENCODER = ("downsample_layers.", "stages.")
VIT = "feature.dino.depth_anything."

FFS = numbered(expected_state(FastFoundationStereo, FastFoundationStereoSpec(**SMALL)))
EDGENEXT = {n: t for n, t in below("feature.", FFS).items() if n.startswith(ENCODER)}
HEAD = {  # of the classifier that both publish
    "head.norm.weight": torch.zeros(304),
    "head.fc.weight": torch.zeros(1000, 304),
    "head.fc.bias": torch.zeros(1000),
}


GOLDEN = Path(__file__).parents[2] / "golden" / "ffs_serialized_names.json"
PUBLISHED = {ours: theirs for theirs, ours in json.loads(GOLDEN.read_text())["changed"].items()}


def timm(state: State) -> State:
    """The same tensors under the names of `timm`'s `edgenext_small`."""
    full = {f"feature.{name}": tensor for name, tensor in state.items()}
    return below("feature.", {PUBLISHED.get(name, name): t for name, t in full.items()})


def fast(**backbone: Any) -> ExperimentSpec:
    model = FastFoundationStereoSpec(**SMALL, stereo_backbone=StereoBackboneSpec(**backbone))
    return ExperimentSpec(model=model)


def full(**backbone: Any) -> FoundationStereoExperiment:
    model = FoundationStereoSpec(**SMALL, stereo_backbone=StereoBackboneSpec(**backbone))
    return FoundationStereoExperiment(model=model)


@pytest.fixture(scope="module")
def ffs() -> nn.Module:
    return MODELS["ffs"].build(fast())


@pytest.fixture(scope="module")
def fs() -> nn.Module:
    return MODELS["fs"].build(full())


@pytest.mark.parametrize(
    "payload",
    [
        timm(EDGENEXT) | HEAD,
        {"state_dict": EDGENEXT | {"norm.weight": torch.zeros(304)}, "epoch": 300},
        {"model": prefixed("module.", timm(EDGENEXT))},
    ],
    ids=["timm", "authors", "distributed"],
)
def test_edgenext_small_fills_the_encoder_and_nothing_else(
    payload: dict[str, Any], ffs: nn.Module, tmp_path: Path
) -> None:
    path = written(tmp_path / "edgenext_small.pth", payload)
    with torch.no_grad():
        for tensor in ffs.state_dict().values():
            tensor.zero_()
    before = snapshot(ffs)

    (report,) = load_start(ffs, MODELS["ffs"], fast(edgenext_pretrained_path=str(path))).values()

    assert report.complete
    assert_holds(ffs, prefixed("feature.", EDGENEXT))
    assert changed(ffs, before) == names_starting([f"feature.{n}" for n in ENCODER], before)
    assert "stages.1.blocks.2.xca.temperature" in timm(EDGENEXT)
    assert len(EDGENEXT) == len(changed(ffs, before)) > 200


def test_an_edgenext_of_another_size_is_refused_by_name_and_shape(
    ffs: nn.Module, tmp_path: Path
) -> None:
    state = timm(EDGENEXT) | {"stem.0.weight": torch.zeros(80, 3, 4, 4)}
    del state["stages.3.blocks.2.gamma"]
    path = written(tmp_path / "edgenext_base.pth", state)
    before = snapshot(ffs)

    with pytest.raises(CheckpointError, match="edgenext_pretrained_path") as caught:
        load_start(ffs, MODELS["ffs"], fast(edgenext_pretrained_path=str(path)))

    said = str(caught.value)
    assert "1 missing from the file: stages.3.2.gamma" in said
    assert "downsample_layers.0.0.weight: file (80, 3, 4, 4), network (48, 3, 4, 4)" in said
    assert changed(ffs, before) == set()


def relative(encoder: Any) -> State:
    return expected_state(RelativeDepthAnything, RelativeDepthSpec(encoder=encoder))


@pytest.mark.parametrize("wrapped", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_depth_anything_fills_the_frozen_vit_and_nothing_else(
    wrapped: bool, fs: nn.Module, tmp_path: Path
) -> None:
    state = numbered(relative("vits"))
    released = {"state_dict": prefixed("model.", state)} if wrapped else state
    path = written(tmp_path / "depth_anything_v2_vits.pth", released)
    with torch.no_grad():
        for tensor in fs.state_dict().values():
            tensor.zero_()
    before = snapshot(fs)
    spec = full(depth_anything_v2_pretrained_path=str(path))

    (report,) = load_start(fs, MODELS["fs"], spec).values()

    assert report.complete
    assert_holds(fs, prefixed(VIT, state))
    assert changed(fs, before) == names_starting([VIT], before)
    assert len(state) == 239


def test_depth_anything_of_another_size_is_named(fs: nn.Module, tmp_path: Path) -> None:
    small = {n: t for n, t in relative("vitl").items() if t.numel() <= 2**20}
    path = written(tmp_path / "depth_anything_v2_vitl.pth", numbered(small))
    with pytest.raises(CheckpointError, match=r"encoder mismatch\? file looks like vitl"):
        load_start(fs, MODELS["fs"], full(depth_anything_v2_pretrained_path=str(path)))


def test_an_encoder_without_the_head_does_not_fill_the_vit(fs: nn.Module, tmp_path: Path) -> None:
    """Nothing would ever train the head: the branch is frozen."""
    state = {n.removeprefix("pretrained."): t for n, t in numbered(relative("vits")).items()}
    state = {n: t for n, t in state.items() if not n.startswith("depth_head.")}
    path = written(tmp_path / "dinov2_vits14_pretrain.pth", state)
    with pytest.raises(CheckpointError, match=r"file is DINOv2.*64 missing"):
        load_start(fs, MODELS["fs"], full(depth_anything_v2_pretrained_path=str(path)))


@pytest.mark.slow
def test_both_parts_are_filled_and_a_whole_network_wins_over_them(
    fs: nn.Module, tmp_path: Path
) -> None:
    paths = {
        "edgenext_pretrained_path": str(written(tmp_path / "edgenext.pth", timm(EDGENEXT))),
        "depth_anything_v2_pretrained_path": str(
            written(tmp_path / "vits.pth", numbered(relative("vits"), first=5000))
        ),
    }
    spec = full(**paths)
    assert list(load_start(fs, MODELS["fs"], spec)) == list(paths.values())
    assert_holds(fs, prefixed("feature.", EDGENEXT))
    assert fs.state_dict()[f"{VIT}pretrained.cls_token"].unique().tolist() == [5000]

    whole = {name: torch.zeros_like(tensor) for name, tensor in fs.state_dict().items()}
    files.write(tmp_path / "whole.pth", {"model": whole})
    spec.train.pretrained_model_path = str(tmp_path / "whole.pth")
    assert list(load_start(fs, MODELS["fs"], spec)) == [str(tmp_path / "whole.pth")]
    assert not any(tensor.any() for tensor in fs.state_dict().values())
    (tmp_path / "whole.pth").unlink()


def test_training_from_scratch_reads_no_file(ffs: nn.Module) -> None:
    assert load_start(ffs, MODELS["ffs"], fast()) == {}


@pytest.mark.parametrize("key", list(MODELS))
def test_every_part_of_a_network_is_a_field_that_its_row_declares(key: str) -> None:
    assert {part.key for part in MODELS[key].parts()} == set(ROWS[key].part_keys)


@pytest.mark.slow
def test_a_training_starts_from_the_file_and_records_it(
    small_values: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(7)
    section = FastFoundationStereoSpec(**small_values["model"])
    encoder = below("feature.", FastFoundationStereo(section).state_dict())
    encoder = {name: tensor for name, tensor in encoder.items() if name.startswith(ENCODER)}
    path = written(tmp_path / "edgenext_small.pth", timm(encoder))
    small_values["model"]["stereo_backbone"] = {"edgenext_pretrained_path": str(path)}
    small_values["train"] |= {"optim": {"lr": 1e-9}}

    result = actions.run("train", small_values, tmp_path / "train")

    assert result.status == "ok"
    trained = network_state(files.read(result.artifacts["best"]))
    for name, tensor in encoder.items():
        torch.testing.assert_close(trained[f"feature.{name}"], tensor, atol=1e-6, rtol=1e-6)
    provenance = json.loads((tmp_path / "train" / "provenance.json").read_text())
    assert str(path) in json.dumps(provenance["inputs"])
    log = (tmp_path / "train" / "train.log").read_text()
    assert f"weights from {path}, 0 tensors not loaded" in log
