"""The four kinds of files that a monocular network may start from, and what each may fill."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stereo.checkpoints.load import LoadReport, load_into, load_part
from stereo.errors import CheckpointError
from stereo.nets import names
from stereo.nets.depth_anything_v2 import MetricDepthAnything, RelativeDepthAnything
from stereo.registry import mono_encoder, recognised
from stereo.spec.networks import MetricDepthSpec, MonoBackboneSpec, RelativeDepthSpec
from tests.stereo.checkpoints.released_files import (
    State,
    assert_holds,
    changed,
    names_starting,
    numbered,
    prefixed,
    snapshot,
    written,
)

(ENCODER,) = mono_encoder()
RENAMES = {"relative": names.rename_relative_depth, "metric": names.rename_metric_depth}
HEADS = {"relative": "depth_head.", "metric": "metric_depth_head."}


BLOCKS = 2  # of the encoder: the others have the same names behind another number


def build(kind: str, encoder: str = "vits", blocks: int = BLOCKS) -> nn.Module:
    with torch.device("meta"):
        if kind == "relative":
            network = RelativeDepthAnything(RelativeDepthSpec(encoder=encoder))  # pyright: ignore[reportArgumentType]
        else:
            network = MetricDepthAnything(MetricDepthSpec(encoder=encoder), max_depth=20.0)  # pyright: ignore[reportArgumentType]
    del network.pretrained.blocks[blocks:]
    return network


RELATIVE = numbered(build("relative").state_dict())
DINO = {k.removeprefix("pretrained."): v for k, v in RELATIVE.items() if "depth_head" not in k}


def under(head: str, state: State) -> State:
    return {name.replace("depth_head.", head): tensor for name, tensor in state.items()}


FILES: dict[str, tuple[str, Any]] = {
    "dinov2": ("dinov2_vits14_pretrain.pth", DINO),
    "relative": ("depth_anything_v2_vits.pth", RELATIVE),
    "metric": ("depth_anything_v2_metric_hypersim_vits.pth", RELATIVE),
    "metric_script": ("latest.pth", {"model": prefixed("module.", RELATIVE), "epoch": 3}),
    "relative_trainer": (
        "dn_model_epoch_003_step_00100.pth",
        {"state_dict": prefixed("model.", RELATIVE), "epoch": 3, "global_step": 100},
    ),
    "metric_trainer": (
        "dn_model_epoch_004_step_00100.pth",
        {"state_dict": prefixed("model.", under("metric_depth_head.", RELATIVE))},
    ),
}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    folder = tmp_path_factory.mktemp("mono")
    yield {kind: written(folder / name, payload) for kind, (name, payload) in FILES.items()}
    for file in folder.iterdir():
        file.unlink()


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    return {kind: build(kind).to_empty(device="cpu") for kind in RENAMES}


def full(network: nn.Module, kind: str, path: Path, *, partial: bool = False) -> LoadReport:
    return load_into(network, path, partial=partial, rename=RENAMES[kind])


@pytest.fixture
def target(networks: dict[str, nn.Module]) -> Callable[[str], nn.Module]:
    """A network whose weights are those of no file."""

    def reset(kind: str) -> nn.Module:
        with torch.no_grad():
            for tensor in networks[kind].state_dict().values():
                tensor.fill_(-1)
        return networks[kind]

    return reset


FULL = [
    ("relative", "relative"),
    ("relative", "relative_trainer"),
    ("relative", "metric_script"),
    ("metric", "metric"),
    ("metric", "metric_script"),
    ("metric", "metric_trainer"),
]


@pytest.mark.parametrize(("kind", "file"), FULL)
def test_a_whole_network_of_the_same_depth_loads_every_tensor(
    kind: str, file: str, paths: dict[str, Path], target: Callable[[str], nn.Module]
) -> None:
    network = target(kind)

    assert full(network, kind, paths[file]).complete

    assert_holds(network, under(HEADS[kind], RELATIVE))


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("metric", "relative"),
        ("metric", "relative_trainer"),
        ("relative", "metric"),
        ("relative", "metric_trainer"),
    ],
)
def test_a_head_of_the_other_depth_loads_only_when_asked(
    kind: str, file: str, paths: dict[str, Path], target: Callable[[str], nn.Module]
) -> None:
    network = target(kind)
    before = snapshot(network)
    with pytest.raises(CheckpointError, match=r"holds the head of \w+DepthAnything") as caught:
        full(network, kind, paths[file])
    assert "train.allow_partial_load=true" in str(caught.value)
    assert "model.mono_backbone.pretrained_path" in str(caught.value)
    assert changed(network, before) == set()

    assert full(network, kind, paths[file], partial=True).complete
    assert_holds(network, under(HEADS[kind], RELATIVE))


@pytest.mark.parametrize(
    ("kind", "file", "warned"),
    [("relative", "metric_script", True), ("metric", "metric_script", False)],
)
def test_a_file_of_the_public_script_is_not_taken_for_relative_depth_without_a_word(
    kind: str,
    file: str,
    warned: bool,
    paths: dict[str, Path],
    target: Callable[[str], nn.Module],
    caplog: pytest.LogCaptureFixture,
) -> None:
    full(target(kind), kind, paths[file])
    assert [record.levelname for record in caplog.records] == ["WARNING"] * warned
    assert ("which trains metric depth; RelativeDepthAnything" in caplog.text) == warned


@pytest.mark.parametrize("kind", RENAMES)
def test_an_encoder_alone_is_no_whole_network(
    kind: str, paths: dict[str, Path], target: Callable[[str], nn.Module]
) -> None:
    network = target(kind)
    with pytest.raises(CheckpointError, match="file is DINOv2") as caught:
        full(network, kind, paths["dinov2"])
    assert "encoder only: model.mono_backbone.pretrained_path takes it" in str(caught.value)
    assert "64 missing from the file" in str(caught.value)

    lines = full(network, kind, paths["dinov2"], partial=True).lines()
    assert lines == [
        f"{n} (missing from the file)" for n in network.state_dict() if HEADS[kind] in n
    ]
    assert len(lines) == 64
    assert_holds(network, prefixed("pretrained.", DINO))


@pytest.mark.parametrize("kind", RENAMES)
@pytest.mark.parametrize("file", FILES)
def test_every_file_gives_its_encoder_and_leaves_the_head(
    kind: str, file: str, paths: dict[str, Path], target: Callable[[str], nn.Module]
) -> None:
    network = target(kind)
    before = snapshot(network)

    assert load_part(network, paths[file], ENCODER).complete

    assert changed(network, before) == names_starting(["pretrained."], before)
    assert_holds(network, prefixed("pretrained.", DINO))


@pytest.mark.parametrize("encoder", ["vitb", "vitl", "vitg"])
def test_an_encoder_of_another_size_is_named(
    encoder: str, tmp_path: Path, target: Callable[[str], nn.Module]
) -> None:
    theirs = build("relative", encoder).state_dict()
    theirs = {n: t for n, t in theirs.items() if t.numel() <= 2**20}  # what takes no room
    path = written(tmp_path / f"depth_anything_v2_{encoder}.pth", numbered(theirs))
    network = target("relative")
    before = snapshot(network)
    said = rf"encoder mismatch\? file looks like {encoder};"

    with pytest.raises(CheckpointError, match=said) as caught:
        full(network, "relative", path)
    assert "model.encoder" in str(caught.value)
    listed = str(caught.value).partition("of another shape: ")[2].partition(", ...")[0]
    assert listed.count(": file (") == 10, "the first ten"
    with pytest.raises(CheckpointError, match=f"model.mono_backbone.pretrained_path: {said}"):
        load_part(network, path, ENCODER)
    assert changed(network, before) == set()


def test_registers_of_a_newer_dinov2_have_no_place(
    tmp_path: Path, target: Callable[[str], nn.Module]
) -> None:
    path = written(tmp_path / "reg4.pth", DINO | {"register_tokens": torch.zeros(1, 4, 384)})
    with pytest.raises(CheckpointError, match=r"1 without a place.*pretrained\.register_tokens"):
        load_part(target("metric"), path, ENCODER)


def test_a_file_without_an_encoder_is_told_what_it_is(
    tmp_path: Path, target: Callable[[str], nn.Module]
) -> None:
    path = written(tmp_path / "edgenext.pth", {"fc.weight": torch.zeros(3)})
    with pytest.raises(CheckpointError, match="needs a DINOv2 encoder or a Depth Anything V2"):
        load_part(target("metric"), path, ENCODER)


def test_nothing_that_fits_is_refused_even_when_a_part_would_do(
    tmp_path: Path, target: Callable[[str], nn.Module]
) -> None:
    path = written(tmp_path / "other.pth", {"fc.weight": torch.zeros(3)})
    with pytest.raises(CheckpointError, match="nothing of it fits this network"):
        full(target("metric"), "metric", path, partial=True)


def test_our_own_checkpoint_says_itself_what_its_head_means(
    tmp_path: Path, target: Callable[[str], nn.Module]
) -> None:
    state = {"model": RELATIVE, "spec": {"model": {"model_type": "MetricDepthAnything"}}}
    path = written(tmp_path / "dn_model_best.pth", state)
    assert full(target("metric"), "metric", path).complete
    with pytest.raises(CheckpointError, match="head of MetricDepthAnything"):
        full(target("relative"), "relative", path)


@pytest.mark.parametrize(
    ("file", "network"),
    [
        ("dinov2", "DINOv2"),
        ("relative", "RelativeDepthAnything"),
        ("metric", "MetricDepthAnything"),
        ("metric_script", "MetricDepthAnything"),
        ("relative_trainer", "RelativeDepthAnything"),
        ("metric_trainer", "MetricDepthAnything"),
    ],
)
def test_a_file_is_recognised_for_what_it_was_trained(
    file: str, network: str, paths: dict[str, Path]
) -> None:
    found, state = recognised(paths[file])
    assert (found.network, found.fields["encoder"]) == (network, "vits")
    head = {"DINOv2": "blocks.", "MetricDepthAnything": "metric_depth_head."}
    assert names_starting([head.get(network, "depth_head.")], state)


@pytest.mark.parametrize(("blocks", "width"), [(4, 192), (6, 64), (12, 320)])
def test_a_thinner_network_is_recognised_and_never_mixed_up_with_the_released_one(
    blocks: int, width: int, tmp_path: Path, target: Callable[[str], nn.Module]
) -> None:
    backbone = MonoBackboneSpec(blocks=blocks, width=width)
    with torch.device("meta"):
        network = RelativeDepthAnything(RelativeDepthSpec(encoder="vits", mono_backbone=backbone))
    path = written(tmp_path / "dn_model_best.pth", numbered(network.state_dict()))

    found, _ = recognised(path)

    fields = {"blocks": blocks, "width": width, "use_bn": False, "use_clstoken": False}
    shown = {f"mono_backbone.{name}": value for name, value in fields.items()}
    assert found.fields == {"encoder": "vits", **shown}
    with pytest.raises(CheckpointError, match=rf"model.mono_backbone.width +384 +{width}"):
        full(target("relative"), "relative", path)
