from __future__ import annotations

import pytest
import torch
from torch import nn

from stereo.nets.blocks import (
    AxialConv3d,
    BatchNorm,
    DepthConv3d,
    PartsConv2d,
    PlaneConv3d,
    ScoreConv3d,
    WideScoreConv3d,
    channels_last,
    recomputed,
)


@pytest.mark.parametrize("shape", [(2, 5, 3, 4), (2, 5, 2, 3, 4)])
def test_layout_changes_in_memory_only(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)

    moved = channels_last(x)

    assert torch.equal(moved, x)
    assert moved.stride(1) == 1
    assert channels_last(moved).data_ptr() == moved.data_ptr()


@pytest.mark.parametrize(("depth", "size"), [(3, 1), (3, 6), (17, 4)])
def test_convolution_along_disparity_equals_the_3d_one(depth: int, size: int) -> None:
    conv = DepthConv3d(6, depth)
    volume = channels_last(torch.randn(2, 6, size, 3, 5))

    torch.testing.assert_close(conv(volume), nn.Conv3d.forward(conv, volume), atol=1e-5, rtol=1e-5)


def test_convolution_within_planes_equals_the_3d_one() -> None:
    conv = PlaneConv3d(6, 4)
    volume = channels_last(torch.randn(2, 6, 3, 4, 5))

    torch.testing.assert_close(conv(volume), nn.Conv3d.forward(conv, volume), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(1, 1, 1), (3, 4, 5)])
def test_score_convolution_equals_the_3d_one(size: tuple[int, int, int]) -> None:
    conv = ScoreConv3d(6)
    volume = channels_last(torch.randn(2, 6, *size))

    torch.testing.assert_close(conv(volume), nn.Conv3d.forward(conv, volume), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(1, 1, 1), (5, 3, 8)])
def test_wide_score_convolution_equals_the_3d_one(size: tuple[int, int, int]) -> None:
    conv = WideScoreConv3d(6, 7)
    volume = channels_last(torch.randn(2, 6, *size))

    torch.testing.assert_close(conv(volume), nn.Conv3d.forward(conv, volume), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_convolution_of_parts_equals_that_of_the_whole(kernel_size: int) -> None:
    conv = PartsConv2d(5, 4, kernel_size, padding=kernel_size // 2).double()
    parts = [torch.randn(2, n, 3, 4, dtype=torch.double, requires_grad=True) for n in (2, 3)]

    whole = nn.Conv2d.forward(conv, torch.cat(parts, dim=1))
    torch.testing.assert_close(conv(parts), whole)
    with torch.no_grad():
        torch.testing.assert_close(conv(parts), whole)
    torch.autograd.gradcheck(lambda *parts: conv(parts), parts)


def test_what_is_recomputed_keeps_gradients_and_statistics() -> None:
    torch.manual_seed(0)
    axial = AxialConv3d(4, 4, 3)
    x = torch.randn(1, 4, 3, 4, 5)
    found = []
    for run in (axial, lambda x: recomputed(axial, x)):
        axial.zero_grad()
        axial.conv1[1].reset_running_stats()
        leaf = x.clone().requires_grad_()
        run(leaf).square().sum().backward()
        norm = axial.conv1[1]
        found.append((leaf.grad, norm.weight.grad.clone(), norm.running_var.clone()))
        assert norm.num_batches_tracked == 1

    torch.testing.assert_close(*found)


def test_axial_convolution_keeps_the_layout() -> None:
    axial = AxialConv3d(32, 40, 5).eval()

    found = axial(channels_last(torch.randn(1, 32, 16, 48, 8)))

    assert found.shape == (1, 40, 16, 48, 8)
    assert found.stride(1) == 1


def test_batch_statistics_equal_those_of_double_precision() -> None:
    """The framework's own sums are off by 1e-4 here."""
    torch.manual_seed(0)
    x = channels_last(torch.randn(1, 3, 48, 64, 64) * 3 + 5)
    norm, exact = BatchNorm(3), BatchNorm(3).double()

    torch.testing.assert_close(norm(x).double(), exact(x.double()), atol=2e-6, rtol=0)

    torch.testing.assert_close(norm.running_mean.double(), exact.running_mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(norm.running_var.double(), exact.running_var, rtol=1e-6, atol=0)
    assert norm.num_batches_tracked == 1


def test_batch_norm_trains_and_evaluates_like_the_framework() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = BatchNorm(3).double(), nn.BatchNorm3d(3).double()
    x = torch.randn(2, 3, 4, 5, 6, generator=generator, dtype=torch.double)

    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_a_large_volume_equal_those_of_double_precision(training: bool) -> None:
    """The framework's own sums are off by 5e-5 here."""
    torch.manual_seed(0)
    x = channels_last(torch.randn(1, 3, 48, 64, 64) + 5)
    norms = BatchNorm(3).train(training), BatchNorm(3).double().train(training)

    for norm, dtype in zip(norms, (torch.float32, torch.float64), strict=True):
        norm.running_mean.fill_(5)
        output = norm(x.to(dtype))
        (output * (output + 1)).sum().backward()

    ours, exact = norms
    torch.testing.assert_close(ours.weight.grad.double(), exact.weight.grad, rtol=2e-6, atol=0)
    torch.testing.assert_close(ours.bias.grad.double(), exact.bias.grad, rtol=2e-6, atol=0)


@pytest.mark.parametrize("training", [True, False])
def test_gradients_through_statistics_are_exact(training: bool) -> None:
    norm = BatchNorm(3).double().train(training)
    x = torch.randn(2, 3, 2, 4, dtype=torch.double, requires_grad=True)

    def normalise(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(norm, {"weight": weight, "bias": bias}, (x,))

    torch.autograd.gradcheck(normalise, (x, norm.weight, norm.bias))
