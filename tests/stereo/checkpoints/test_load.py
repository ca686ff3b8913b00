from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from stereo.checkpoints import files, identify
from stereo.checkpoints.load import LoadReport, State, load_into, network_state
from stereo.errors import CheckpointError
from stereo.nets.fast_foundation_stereo import FastFoundationStereo
from stereo.nets.foundation_stereo import FoundationStereo
from stereo.registry import MODELS
from stereo.spec.networks import FastFoundationStereoSpec, FoundationStereoSpec
from tests.stereo.checkpoints.released_files import (
    assert_holds,
    changed,
    names_starting,
    numbered,
    snapshot,
    written,
)


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


# FastFoundationStereo: which of the refusals of a released file

SMALL = FastFoundationStereoSpec(encoder="vits", volume_dim=16, max_disparity=32)
ENTRY = MODELS["ffs"]


@pytest.fixture(scope="module")
def stereo() -> FastFoundationStereo:
    return FastFoundationStereo(SMALL)


def load_stereo(
    path: Path, state: State, target: FastFoundationStereo, *, fields: bool = True
) -> LoadReport:
    return load_into(
        target,
        saved(path, state),
        rename=ENTRY.load_release,
        expected=identify.expected(ENTRY) if fields else None,
    )


@pytest.mark.parametrize(
    ("dropped", "added", "sentence"),
    [
        (
            "cost_agg.post8_to_4.",
            {"corr_stem.0.weight": (16, 32, 1, 1, 1)},
            "is an undistilled FastFoundationStereo.",
        ),
        (
            "cost_agg.post16_to_8.out.2.",
            {"cost_agg.post16_to_8.out.3.conv.weight": (3,)},
            "is a searched variant with other cost-filtering blocks.",
        ),
        ("classifier.0.bias", {}, "is a searched variant with other cost-filtering blocks."),
        (
            "cost_agg.conv3.0.conv.weight",
            {"cost_agg.conv3.0.conv.weight": (90, 64, 3, 3, 3)},
            "is pruned to widths this model cannot express.",
        ),
    ],
)
@pytest.mark.parametrize("changed", [{}, {"corr_radius": 3}])
def test_weights_that_fit_no_fields_are_refused_for_the_right_reason(
    tmp_path: Path,
    stereo: FastFoundationStereo,
    dropped: str,
    added: dict[str, tuple[int, ...]],
    sentence: str,
    changed: dict[str, int],
) -> None:
    state = {n: t for n, t in stereo.state_dict().items() if not n.startswith(dropped)}
    state |= {name: torch.zeros(shape) for name, shape in added.items()}
    target = FastFoundationStereo(replace(SMALL, **changed))

    with pytest.raises(CheckpointError, match="unsupported FastFoundationStereo") as caught:
        load_stereo(tmp_path / "searched.pth", state, target)

    assert f"The file {sentence}" in str(caught.value)
    assert "corr_radius" not in str(caught.value), "no field would make these weights fit"


def test_weights_that_other_fields_fit_are_refused_with_those_fields(
    tmp_path: Path, stereo: FastFoundationStereo
) -> None:
    target = FastFoundationStereo(replace(SMALL, corr_radius=3, mask_widths=[20, 16]))
    before = {name: value.clone() for name, value in target.state_dict().items()}

    with pytest.raises(CheckpointError, match="do not fit this network") as caught:
        load_stereo(tmp_path / "other.pth", stereo.state_dict(), target)

    lines = str(caught.value).splitlines()
    assert [line.split()[0] for line in lines[-3:]] == [
        "field",
        "model.corr_radius",
        "model.mask_widths",
    ]
    assert lines[-2].split()[1:] == ["3", "4"]
    assert all(torch.equal(before[name], value) for name, value in target.state_dict().items())


def test_without_the_registry_other_widths_are_still_told_as_fields(
    tmp_path: Path, stereo: FastFoundationStereo
) -> None:
    target = FastFoundationStereo(replace(SMALL, corr_radius=3))
    with pytest.raises(CheckpointError, match=r"model\.corr_radius +3 +4"):
        load_stereo(tmp_path / "other.pth", stereo.state_dict(), target, fields=False)


def test_another_network_is_named(tmp_path: Path, stereo: FastFoundationStereo) -> None:
    encoder = {"patch_embed.proj.weight": torch.ones(384, 3, 14, 14), "blocks.0.a": torch.ones(1)}
    with pytest.raises(
        CheckpointError, match=r"file is DINOv2 \(encoder only: .*\), the network Fast"
    ):
        load_stereo(tmp_path / "dino.pth", encoder, stereo)
    with pytest.raises(CheckpointError, match=r"none of the networks this program knows"):
        load_stereo(tmp_path / "fc.pth", {"fc.weight": torch.ones(1)}, stereo)


UNUSED = ("context_zqr_convs.", "cost_agg.agg_0.", "cost_agg.atts.cost_vol_disp.")


def test_modules_that_nothing_reads_may_be_missing_and_become_zero(
    tmp_path: Path, stereo: FastFoundationStereo, caplog: pytest.LogCaptureFixture
) -> None:
    state = {n: t for n, t in stereo.state_dict().items() if not n.startswith(UNUSED)}
    target = FastFoundationStereo(SMALL)

    report = load_stereo(tmp_path / "lean.pth", state, target)

    assert report.complete
    assert set(report.zeroed) == stereo.state_dict().keys() - state.keys()
    loaded = target.state_dict()
    assert all(not loaded[name].any() for name in report.zeroed)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    (line,) = [record.getMessage() for record in caplog.records]
    assert f"lacks {len(report.zeroed)} tensors" in line


def test_a_part_that_is_used_must_not_be_missing(
    tmp_path: Path, stereo: FastFoundationStereo
) -> None:
    state = {n: t for n, t in stereo.state_dict().items() if not n.startswith("spx_gru.")}
    with pytest.raises(CheckpointError, match=r"lacks or adds blocks outside the cost filtering"):
        load_stereo(tmp_path / "cut.pth", state, stereo)


def test_layers_of_a_pickled_network_that_compute_otherwise_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = nn.Sequential(nn.Conv2d(2, 2, 3, stride=2, padding=1), nn.BatchNorm2d(2, eps=1e-3))
    path = tmp_path / "network.pth"
    torch.save(source, path)

    load_into(source, path)
    assert not caplog.records, "the same layers"

    load_into(nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)), path)

    assert caplog.records[0].getMessage().splitlines()[1:] == [
        "field     given   needed",
        "0.stride  (1, 1)  (2, 2)",
        "1.eps     1e-05   0.001",
    ]


def test_a_whole_pickled_network_of_ours_shows_no_difference(
    tmp_path: Path, stereo: FastFoundationStereo, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "whole.pth"
    torch.save(stereo, path)

    assert load_into(FastFoundationStereo(SMALL), path, rename=ENTRY.load_release).complete

    assert not caplog.records


# FoundationStereo: the other variant as a start


def test_a_partial_load_of_the_other_variant_leaves_what_means_something_else(
    tmp_path: Path,
) -> None:
    """`spx_2_gru.conv2` and the transformer have equal names and shapes in both."""
    thin = {"volume_dim": 16, "max_disparity": 32, "n_gru_layers": 1, "corr_levels": 1}
    shapes = identify.expected_state(
        FoundationStereo,
        FoundationStereoSpec(variant="public", **thin),  # pyright: ignore[reportArgumentType]
    )
    public = numbered(shapes)
    path = written(tmp_path / "public.pth", {"model": public})
    target = FoundationStereo(FoundationStereoSpec(variant="tao", **thin))  # pyright: ignore[reportArgumentType]
    before = snapshot(target)

    with pytest.raises(CheckpointError, match=r"model\.variant +tao +public"):
        load_into(target, path)
    assert changed(target, before) == set()

    report = load_into(target, path, partial=True)

    bound = names_starting(identify.VARIANT_BOUND, before)
    assert "spx_2_gru.conv2.conv.weight" in bound
    common = {n for n in before if n in public and n not in bound}
    assert_holds(target, {name: public[name] for name in common})
    assert changed(target, before) == common
    assert {line.partition(" (")[0].partition(":")[0] for line in report.lines()} == {
        *bound,
        *(public.keys() - before.keys()),
    }
    path.unlink()
