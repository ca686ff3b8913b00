"""What a weight file is, on the networks themselves and on the lists of the owner's kits."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from stereo.checkpoints import files
from stereo.checkpoints.identify import (
    contradictions,
    expected,
    expected_state,
    identify,
    refusal,
    table,
)
from stereo.errors import CheckpointError
from stereo.nets.fast_foundation_stereo import FastFoundationStereo
from stereo.nets.foundation_stereo import FoundationStereo
from stereo.nets.names import rename_fast_foundation_stereo
from stereo.registry import MODELS
from stereo.spec.networks import FastFoundationStereoSpec, FoundationStereoSpec

GOLDEN = Path(__file__).parents[2] / "golden"


def listed(kit: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Manifest of a kit, and its tensors without memory."""
    manifest = json.loads((GOLDEN / f"{kit}.manifest.json").read_text())
    state = {t["name"]: torch.empty(t["shape"], device="meta") for t in manifest["tensors"]}
    return manifest, state


def values(section: Any) -> dict[str, Any]:
    """Fields of a section, those of sections below it under dotted names."""
    found: dict[str, Any] = {}
    for key, value in asdict(section).items():
        found |= (
            {f"{key}.{k}": v for k, v in value.items()} if type(value) is dict else {key: value}
        )
    return found


WIDE = {
    "motion_encoder_widths": [20, 24, 8, 6],
    "motion_encoder_final": 30,
    "gru_hidden": 40,
    "gru_gating_conv_widths": [50, 70],
    "disp_head_intermediate": 18,
    "disp_head_pwconv1_widths": [30, 44],
    "mask_widths": [20, 10],
    "stem_2_widths": [6, 14],
    "spx_2_gru_widths": [10, 8, 14, 18],
    "cnet_conv04_widths": [40, 26],
    "cam_mid_channels": 5,
}


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"encoder": "vits", "cv_group": 4, "corr_levels": 1, "corr_radius": 8},
        {"encoder": "vitb", "cv_group": 16, "corr_levels": 2, "corr_radius": 2},
        {"volume_dim": 16, "concat_channel": 12, "corr_levels": 1, "corr_radius": 2},
        {"volume_dim": 64, "hidden_dims": [96], **WIDE},
    ],
)
def test_every_width_of_fast_foundation_stereo_follows_from_shapes(changed: dict) -> None:
    spec = FastFoundationStereoSpec(**changed)

    found = identify(expected_state(FastFoundationStereo, spec))

    assert found.network == spec.model_type
    given = values(spec)
    assert found.fields == {key: given[key] for key in found.fields}
    unseen = {"model_type", "n_gru_layers", "n_downsample", "max_disparity", "train_iters"}
    unseen |= {"valid_iters", "low_memory", "mixed_precision", "compile", "gwc_feature_normalize"}
    unseen |= {"disp_head_input_dim", "classifier_mid", "cost_agg_conv_patch_padding"}
    assert {key for key in given if "stereo_backbone" not in key} - found.fields.keys() == unseen


@pytest.mark.parametrize("variant", ["tao", "public"])
@pytest.mark.parametrize(
    "changed",
    [
        {"encoder": "vits", "n_gru_layers": 3},
        {"encoder": "vitb", "n_gru_layers": 2, "corr_levels": 1, "corr_radius": 6, "cv_group": 4},
        {"encoder": "vitl", "n_gru_layers": 2, "corr_radius": 3, "volume_dim": 16},
    ],
)
def test_the_fields_of_foundation_stereo_follow_from_shapes(variant: str, changed: dict) -> None:
    spec = FoundationStereoSpec(variant=variant, **changed)  # pyright: ignore[reportArgumentType]

    found = identify(expected_state(FoundationStereo, spec))

    assert found.network == spec.model_type
    given = values(spec)
    assert found.fields == {key: given[key] for key in found.fields}
    named = {"encoder", "variant", "n_gru_layers", "corr_levels", "corr_radius", "volume_dim"}
    assert named | {"cv_group"} <= found.fields.keys()


@pytest.mark.parametrize(
    ("kit", "network", "parameters"),
    [
        ("ffs_bp2", "FastFoundationStereo", 17_654_857),
        ("fs_vits", "FoundationStereo", 62_333_607),
        ("fs_vitl", "FoundationStereo", 374_515_175),
        ("fs_public_vits", "FoundationStereo", 62_335_403),
        ("fs_public_vitl", "FoundationStereo", 374_517_067),
        ("metric_vits", "MetricDepthAnything", 24_785_089),
        ("metric_vitl", "MetricDepthAnything", 335_315_649),
        ("relative_vits", "RelativeDepthAnything", 24_785_089),
        ("relative_vitl", "RelativeDepthAnything", 335_315_649),
    ],
)
def test_the_kits_are_recognised_and_counted(kit: str, network: str, parameters: int) -> None:
    manifest, state = listed(kit)
    model = {"encoder": manifest.get("encoder"), **manifest.get("header", manifest)["model"]}

    found = identify(state)

    assert found.network == network
    assert found.parameters == parameters
    assert found.tensors == len(state)
    assert found.fields["encoder"] == model["encoder"]
    shared = found.fields.keys() & model.keys()
    assert {key: found.fields[key] for key in shared} == {key: model[key] for key in shared}
    assert f"{parameters:,}" in str(found)


def test_released_names_lead_to_the_same(tmp_path: Path) -> None:
    _, state = listed("fs_public_vits")
    theirs = json.loads((GOLDEN / "fs_public_names.json").read_text())["changed"]
    ours = {mine: public for public, mine in theirs.items()}
    released = {ours.get(name, name): tensor for name, tensor in state.items()}
    assert released.keys() != state.keys()
    assert identify(rename_fast_foundation_stereo(released)) == identify(state)


def dino(width: int, prefix: str = "") -> dict[str, Tensor]:
    return {
        f"{prefix}cls_token": torch.empty(1, 1, width, device="meta"),
        f"{prefix}patch_embed.proj.weight": torch.empty(width, 3, 14, 14, device="meta"),
        f"{prefix}blocks.0.norm1.weight": torch.empty(width, device="meta"),
    }


@pytest.mark.parametrize("prefix", ["", "pretrained."])
@pytest.mark.parametrize(
    ("width", "encoder"), [(384, "vits"), (768, "vitb"), (1024, "vitl"), (1536, "vitg")]
)
def test_encoders_of_the_monocular_networks(width: int, encoder: str, prefix: str) -> None:
    found = identify(dino(width, prefix))
    assert (found.network, found.fields) == ("DINOv2", {"encoder": encoder})
    assert "mono_backbone.pretrained_path" in found.remark


@pytest.mark.parametrize("head", ["depth_head.", "metric_depth_head."])
def test_options_of_the_depth_head(head: str) -> None:
    _, state = listed("relative_vits")
    state = {name.replace("depth_head.", head): tensor for name, tensor in state.items()}
    plain = identify(state)
    assert plain.fields["mono_backbone.use_bn"] is False
    assert plain.fields["mono_backbone.use_clstoken"] is False
    one = torch.empty(1)
    normed = {f"{head}scratch.refinenet1.resConfUnit1.bn1.weight": one}
    assert identify(state | normed).fields["mono_backbone.use_bn"] is True
    token = {f"{head}readout_projects.0.0.weight": one}
    assert identify(state | token).fields["mono_backbone.use_clstoken"] is True


def test_edgenext_small_is_recognised_under_both_published_names() -> None:
    ours = {
        name.removeprefix("feature."): tensor
        for name, tensor in listed("ffs_bp2")[1].items()
        if name.startswith(("feature.downsample_layers.", "feature.stages."))
    }
    assert identify(ours).network == "edgenext_small"
    assert "edgenext_pretrained_path" in identify(ours).remark
    published = json.loads((GOLDEN / "ffs_serialized_names.json").read_text())["changed"]
    theirs = {mine: public for public, mine in published.items()}
    timm = {
        theirs.get(f"feature.{name}", f"feature.{name}").removeprefix("feature."): tensor
        for name, tensor in ours.items()
    }
    assert "stages.0.blocks.0.conv_dw.weight" in timm
    assert identify(timm).network == "edgenext_small"
    wide = timm | {"stem.0.weight": torch.empty(80, 3, 4, 4, device="meta")}
    assert "(80, 96, 160, 304)" in identify(wide).remark


def test_other_tensors_are_refused_by_their_first_name() -> None:
    with pytest.raises(CheckpointError, match=r"none of the networks.*first tensor fc\.weight"):
        identify({"fc.weight": torch.empty(1)})


@pytest.mark.parametrize(("kit", "other"), [("fs_vits", 56), ("fs_public_vits", 112)])
def test_tensors_of_both_variants_in_one_file_are_refused(kit: str, other: int) -> None:
    _, state = listed(kit)
    state["cost_agg.agg_1.0.conv.weight"] = torch.empty(other, 1, 1, 1, 1, device="meta")
    with pytest.raises(CheckpointError, match=rf"both variants mixed.*has {other} rows"):
        identify(state)


SETTINGS = {"max_disp": 160, "normalize": False, "valid_iters": 8, "deep": {"max_disparity": 7}}


@pytest.mark.parametrize(
    "args", [SETTINGS, argparse.Namespace(**SETTINGS), OmegaConf.create(SETTINGS)]
)
def test_settings_stored_beside_the_weights_are_told(args: Any, tmp_path: Path) -> None:
    _, state = listed("ffs_bp2")
    torch.save({"model": {}, "args": args, "epoch": 11, "global_step": 200}, tmp_path / "a.pth")

    found = identify(state, files.read(tmp_path / "a.pth"))

    assert found.settings == {
        "max_disparity": 160,
        "gwc_feature_normalize": False,
        "valid_iters": 8,
    }
    assert (found.epoch, found.step) == (11, 200)
    assert "160 (as stated)" in str(found)


def test_settings_of_our_own_checkpoints_come_from_their_spec() -> None:
    _, state = listed("ffs_bp2")
    found = identify(state, {"spec": {"model": {"max_disparity": 64}}, "epoch": 2})
    assert found.settings == {"max_disparity": 64}


@pytest.mark.parametrize("value", ["12", -1, True, 2**60, [1], None])
def test_an_epoch_that_is_no_count_is_not_told(value: Any) -> None:
    _, state = listed("ffs_bp2")
    assert identify(state, {"epoch": value}).epoch is None


def test_a_spec_that_contradicts_the_weights_is_told_field_by_field() -> None:
    _, state = listed("ffs_bp2")
    spec = FastFoundationStereoSpec(corr_radius=3, mask_widths=[24, 16], gru_hidden=60)
    given = identify(
        expected_state(FastFoundationStereo, spec),
        {"spec": {"model": {"gwc_feature_normalize": False, "max_disparity": 64}}},
    )
    needed = identify(state, {"args": {"normalize": True, "max_disp": 192}})

    rows = contradictions(given, needed)

    assert table(rows).splitlines() == [
        "field                        given     needed",
        "model.corr_radius            3         4",
        "model.mask_widths            [24, 16]  [32, 16]",
        "model.gwc_feature_normalize  False     True",
    ]
    assert contradictions(needed, needed) == ()


def test_another_network_is_the_only_contradiction() -> None:
    (row,) = contradictions(identify(listed("fs_vits")[1]), identify(listed("ffs_bp2")[1]))
    assert str(row) == ("model.model_type: given FoundationStereo, needed FastFoundationStereo")


def test_the_other_variant_is_a_contradiction() -> None:
    rows = contradictions(identify(listed("fs_vits")[1]), identify(listed("fs_public_vits")[1]))
    assert [str(row) for row in rows] == ["model.variant: given tao, needed public"]


@pytest.mark.parametrize("key", list(MODELS))
def test_the_fields_of_a_network_build_it_again(key: str) -> None:
    entry = MODELS[key]
    state = expected_state(entry.build, entry.experiment())
    again = expected(entry)(identify(state).fields)
    assert {n: t.shape for n, t in again.items()} == {n: t.shape for n, t in state.items()}


@pytest.mark.parametrize(
    ("missing", "unexpected", "mismatched", "reason"),
    [
        (["cost_agg.x"], ["cost_agg.y", "corr_stem.0.weight"], [], "is an undistilled"),
        (["cost_agg.x"], [], [], "a searched variant"),
        ([], ["classifier.2.weight"], ["m"], "a searched variant"),
        ([], [], ["cost_agg.x: file (1,), network (2,)"], "pruned to widths"),
        (["spx_gru.0.bias"], [], [], "outside the cost filtering"),
    ],
)
def test_the_reason_of_a_refusal(
    missing: list[str], unexpected: list[str], mismatched: list[str], reason: str
) -> None:
    found = identify(listed("ffs_bp2")[1])
    text = refusal(found, missing, unexpected, mismatched)
    assert text.startswith("unsupported FastFoundationStereo checkpoint: ")
    assert reason in text
    assert text.endswith("Supported: the bp2 structure (23-36-37 and the commercial bp2 file)")
    for names in (missing, unexpected, mismatched):
        assert not names or f"{len(names)} " in text
        assert not names or f"(first: {names[0]})" in text
