from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stereo.nets.blocks import BatchNorm, ConvBlock
from stereo.nets.depth_anything_v2 import RelativeDepthAnything
from stereo.nets.fast_foundation_stereo import FastFoundationStereo
from stereo.nets.folding import fold_norms
from stereo.nets.foundation_stereo import FoundationStereo
from stereo.spec.networks import (
    FastFoundationStereoSpec,
    FoundationStereoSpec,
    MonoBackboneSpec,
    RelativeDepthSpec,
    StereoBackboneSpec,
)


def with_statistics(network: nn.Module) -> nn.Module:
    """Give every batch norm numbers as after a training, and switch to evaluation mode."""
    generator = torch.Generator().manual_seed(0)

    def between(low: float, high: float, like: Tensor) -> Tensor:
        return low + (high - low) * torch.rand(like.shape, generator=generator)

    for module in network.modules():
        if isinstance(module, BatchNorm):
            mean, variance, _ = module.buffers()
            mean.copy_(between(-0.2, 0.2, mean))
            variance.copy_(between(0.5, 2.0, variance))
            module.weight.data.copy_(between(0.5, 1.5, mean))
            module.bias.data.copy_(between(-0.2, 0.2, mean))
    return network.eval()


def called(network: nn.Module, run: Callable[[], object]) -> set[type[nn.Module]]:
    """Classes of the modules that take part in a run."""
    found: set[type[nn.Module]] = set()
    hooks = [
        module.register_forward_hook(lambda module, *_: found.add(type(module)))
        for module in network.modules()
    ]
    run()
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize(
    ("conv", "shape", "options"),
    [
        (nn.Conv2d, (2, 4, 6, 7), {"kernel_size": 3, "padding": 1, "bias": False}),
        (nn.Conv2d, (2, 4, 6, 7), {"kernel_size": 3, "groups": 2}),
        (nn.Conv3d, (2, 4, 5, 6, 7), {"kernel_size": 3, "stride": 2}),
        (nn.Conv3d, (2, 4, 8, 8, 8), {"kernel_size": 4, "stride": 4, "groups": 4}),
        (nn.ConvTranspose2d, (2, 4, 6, 7), {"kernel_size": 4, "stride": 2, "bias": False}),
        (nn.ConvTranspose3d, (2, 4, 3, 4, 5), {"kernel_size": 4, "stride": 2, "padding": 1}),
    ],
)
def test_a_folded_convolution_gives_what_the_norm_gave(
    conv: type[nn.Module], shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    out_channels = 4 if options.get("groups") else 6
    layers = with_statistics(
        nn.Sequential(conv(4, out_channels, **options), BatchNorm(out_channels))
    )
    x = torch.randn(shape)
    with torch.no_grad():
        expected = layers.double()(x.double())
        found = fold_norms(copy.deepcopy(layers).float())
        assert not any(isinstance(module, BatchNorm) for module in found.modules())
        torch.testing.assert_close(found(x), expected.float(), rtol=1e-5, atol=1e-6)


SMALL: dict[str, Any] = {"volume_dim": 16, "max_disparity": 32}
WITH_BN = StereoBackboneSpec(use_bn=True)


@pytest.mark.parametrize(
    "build",
    [
        lambda: FastFoundationStereo(FastFoundationStereoSpec(**SMALL)),
        lambda: FoundationStereo(FoundationStereoSpec(encoder="vits", **SMALL)),
        lambda: FoundationStereo(
            FoundationStereoSpec(encoder="vits", variant="public", stereo_backbone=WITH_BN, **SMALL)
        ),
    ],
    ids=["ffs", "fs", "fs_public"],
)
def test_a_folded_network_predicts_the_same_without_a_norm(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    network = with_statistics(build())
    left, right = torch.randn(2, 1, 3, 64, 96)

    def predicted(network: nn.Module) -> Tensor:
        with torch.inference_mode():
            return network(left, right, iters=2, last_only=True).refined[0]

    expected = predicted(network)
    assert BatchNorm in called(network, lambda: predicted(network))
    folded = fold_norms(network)
    assert BatchNorm not in called(folded, lambda: predicted(folded))
    torch.testing.assert_close(predicted(folded), expected, rtol=0, atol=1e-3)


def test_the_norms_of_the_depth_head_are_folded() -> None:
    torch.manual_seed(0)
    spec = RelativeDepthSpec(encoder="vits", mono_backbone=MonoBackboneSpec(use_bn=True))
    network = with_statistics(RelativeDepthAnything(spec))
    image = torch.randn(1, 3, 28, 42)
    with torch.inference_mode():
        expected = network(image)
        folded = fold_norms(network)
        assert BatchNorm not in called(folded, lambda: folded(image))
        torch.testing.assert_close(folded(image), expected, rtol=1e-4, atol=1e-4)


def test_norms_of_another_kind_and_those_without_a_convolution_stay() -> None:
    network = nn.Sequential(
        ConvBlock(nn.Conv2d, 3, 4, 1, norm=nn.InstanceNorm2d), nn.ReLU(), BatchNorm(4)
    ).eval()
    kept = [type(module) for module in network.modules()]
    assert [type(module) for module in fold_norms(network).modules()] == kept
