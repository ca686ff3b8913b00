"""The monocular networks, and the head that the stereo network shares with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from stereo.nets.depth_anything_v2 import MetricDepthAnything, RelativeDepthAnything
from stereo.spec.networks import MetricDepthSpec, MonoBackboneSpec, RelativeDepthSpec
from tests.parity.kit import open_kit

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
COUNTS = {"vits": 24_785_089, "vitb": 97_470_785, "vitl": 335_315_649}


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


@pytest.mark.parametrize("kind", ["metric", "relative"])
def test_every_part_and_the_depth_equal_the_reference(kind: str) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    checks = list(open_kit(GOLDEN / f"{kind}_vits").checks())

    torch.set_num_threads(threads)
    assert [str(check) for check in checks if not check.ok] == []
    assert len(checks) > 140


def test_one_tensor_off_by_five_percent_is_found() -> None:
    kit = open_kit(GOLDEN / "relative_vits")
    with torch.no_grad():
        kit.network.pretrained.blocks[4].mlp.fc1.weight *= 1.05

    assert not all(check.ok for check in kit.checks())


@pytest.mark.parametrize("kind", ["metric", "relative"])
def test_the_large_network_has_the_names_of_the_released_one(kind: str) -> None:
    manifest = json.loads((GOLDEN / f"{kind}_vitl.manifest.json").read_text())
    with torch.device("meta"):
        network = (
            MetricDepthAnything(MetricDepthSpec(encoder="vitl"), max_depth=10.0)
            if kind == "metric"
            else RelativeDepthAnything(RelativeDepthSpec(encoder="vitl"))
        )

    assert shapes(network) == {t["name"]: tuple(t["shape"]) for t in manifest["tensors"]}


@pytest.mark.parametrize(("encoder", "count"), COUNTS.items())
def test_parameters_are_as_many_as_released(encoder: str, count: int) -> None:
    with torch.device("meta"):
        network = RelativeDepthAnything(RelativeDepthSpec(encoder=encoder))

    assert sum(parameter.numel() for parameter in network.parameters()) == count


def test_the_giant_network_has_gated_feed_forward_parts() -> None:
    with torch.device("meta"):
        network = RelativeDepthAnything(RelativeDepthSpec(encoder="vitg"))
        depth = network(torch.zeros(1, 3, 28, 42))

    found = shapes(network)
    assert found["pretrained.blocks.39.mlp.w12.weight"] == (8192, 1536)
    assert found["pretrained.blocks.39.mlp.w3.weight"] == (1536, 4096)
    assert found["depth_head.projects.0.weight"] == (1536, 1536, 1, 1)
    assert found["depth_head.scratch.layer1_rn.weight"] == (384, 1536, 3, 3)
    assert not any("fc1" in name for name in found)
    assert 1.2e9 < sum(parameter.numel() for parameter in network.parameters()) < 1.4e9
    assert depth.shape == (1, 1, 28, 42)


@pytest.mark.parametrize(("use_bn", "unused"), [(False, 5), (True, 9)])
def test_what_the_forward_pass_leaves_out_is_no_trainable_parameter(
    use_bn: bool, unused: int
) -> None:
    backbone = MonoBackboneSpec(use_bn=use_bn, use_clstoken=True)
    network = RelativeDepthAnything(RelativeDepthSpec(encoder="vits", mono_backbone=backbone))
    parameters = dict(network.named_parameters())

    network(torch.randn(2, 3, 28, 42)).sum().backward()

    without = {name for name, parameter in parameters.items() if parameter.grad is None}
    fixed = {name for name, parameter in parameters.items() if not parameter.requires_grad}
    assert without == fixed
    assert len(fixed) == unused


def test_the_class_token_reaches_every_patch_when_asked() -> None:
    backbone = MonoBackboneSpec(use_clstoken=True)
    network = RelativeDepthAnything(RelativeDepthSpec(encoder="vits", mono_backbone=backbone))

    found = {name: shape for name, shape in shapes(network).items() if "readout" in name}

    assert found == {
        f"depth_head.readout_projects.{level}.0.{leaf}": (384, 768)[: 2 - (leaf == "bias")]
        for level in range(4)
        for leaf in ("weight", "bias")
    }


@pytest.mark.parametrize("seed", range(4))
def test_fresh_relative_depth_is_alive(seed: int) -> None:
    torch.manual_seed(seed)
    network = RelativeDepthAnything(RelativeDepthSpec(encoder="vits"))

    depth = network(torch.randn(1, 3, 28, 42))
    depth.square().mean().backward()

    assert depth.min() > 0
    assert depth.std() > 0
    gradient = network.pretrained.patch_embed.proj.weight.grad
    assert gradient is not None
    assert gradient.abs().max() > 0


def test_metric_depth_lies_between_zero_and_the_limit() -> None:
    torch.manual_seed(0)
    network = MetricDepthAnything(MetricDepthSpec(encoder="vits"), max_depth=20.0).eval()

    with torch.no_grad():
        depth = network(torch.randn(2, 3, 28, 42))

    assert depth.shape == (2, 1, 28, 42)
    assert 0 < depth.min() < depth.max() < 20
    torch.testing.assert_close(depth.mean().item(), 10.0, atol=3, rtol=0)  # a fresh head scores 0


def test_items_of_a_batch_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    network = RelativeDepthAnything(RelativeDepthSpec(encoder="vits")).eval()
    images = torch.randn(2, 3, 42, 28)

    with torch.no_grad():
        torch.testing.assert_close(network(images)[1:], network(images[1:]))


def thin(**sizes: int) -> RelativeDepthAnything:
    backbone = MonoBackboneSpec(**sizes)
    with torch.device("meta"):
        return RelativeDepthAnything(RelativeDepthSpec(encoder="vits", mono_backbone=backbone))


def test_a_thinner_network_has_the_proportions_of_the_full_one() -> None:
    """Half the tokens of vitb are those of vits, in the transformer and in the head."""
    half = MonoBackboneSpec(width=384)
    with torch.device("meta"):
        of_vitb = RelativeDepthAnything(RelativeDepthSpec(encoder="vitb", mono_backbone=half))
    assert shapes(of_vitb) == shapes(thin()) == shapes(thin(blocks=12, width=384))

    found = shapes(thin(blocks=4, width=192))

    assert found["pretrained.blocks.3.attn.qkv.weight"] == (576, 192)
    assert not any(name.startswith("pretrained.blocks.4.") for name in found)
    widths = {index: found[f"depth_head.projects.{index}.weight"] for index in range(4)}
    assert widths == {i: (24 * 2**i, 192, 1, 1) for i in range(4)}
    assert found["depth_head.scratch.layer1_rn.weight"] == (32, 24, 3, 3)
    assert thin(blocks=4, width=64)(torch.zeros(1, 3, 28, 42, device="meta")).shape[1:] == (
        *(1, 28, 42),
    )


def test_the_last_activation_is_computed_in_float32_under_autocast() -> None:
    metric = MetricDepthAnything(MetricDepthSpec("MetricDepthAnything", "vits"), max_depth=80.0)
    relative = RelativeDepthAnything(RelativeDepthSpec("RelativeDepthAnything", "vits"))
    for network in (metric, relative):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            depth = network(torch.randn(1, 3, 28, 42))
        assert depth.dtype == torch.float32
