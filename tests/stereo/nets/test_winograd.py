from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stereo.nets import winograd
from stereo.nets.blocks import conv_of_parts, tiled


def maps(*widths: int, batch: int = 2, size: tuple[int, int] = (6, 4)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, width, *size) for width in widths]
    return [torch.randn(s, dtype=torch.double, generator=generator) for s in shapes]


@pytest.mark.parametrize("strip", [1, 4, 512])
@pytest.mark.parametrize(("batch", "size"), [(1, (2, 2)), (2, (6, 4)), (3, (4, 10))])
def test_it_is_the_convolution(
    batch: int, size: tuple[int, int], strip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and every gradient, whatever strips the map is cut into."""
    monkeypatch.setattr(winograd, "STRIP", strip)
    parts = [x.requires_grad_() for x in maps(3, 2, batch=batch, size=size)]
    weight = torch.randn(4, 5, 3, 3, dtype=torch.double, requires_grad=True)
    bias = torch.randn(4, dtype=torch.double, requires_grad=True)
    inputs = (*parts, weight, bias)
    expected = F.conv2d(torch.cat(parts, dim=1), weight, bias, padding=1)
    goal = torch.randn_like(expected)

    found = winograd.convolve(parts, winograd.transformed(weight), bias)

    torch.testing.assert_close(found, expected)
    for one, other in zip(
        torch.autograd.grad(found, inputs, goal),
        torch.autograd.grad(expected, inputs, goal),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_parts_may_need_no_gradient_and_the_bias_may_be_missing() -> None:
    first, second = maps(3, 2)
    kernel = torch.randn(16, 4, 5, dtype=torch.double, requires_grad=True)

    torch.autograd.gradcheck(
        lambda x, kernel: winograd.convolve([x, second], kernel, None),
        (first.requires_grad_(), kernel),
    )


def test_in_float32_it_is_as_exact_as_the_framework() -> None:
    (x,) = maps(256, batch=1, size=(16, 32))
    weight = torch.randn(128, 256, 3, 3, dtype=torch.double) / 48
    exact = F.conv2d(x, weight, padding=1)

    kernel = winograd.transformed(weight.float())
    error = (winograd.convolve([x.float()], kernel, None) - exact).abs()
    usual = (F.conv2d(x.float(), weight.float(), padding=1) - exact).abs()

    assert error.mean() < 2 * usual.mean()
    assert error.max() < 2 * usual.max()


def test_wide_3x3_kernels_are_tiled_and_no_others() -> None:
    wide = torch.randn(winograd.MIN_CHANNELS, winograd.MIN_CHANNELS, 3, 3)

    tiles = tiled(wide)

    assert tiles is not None
    assert tiles.shape == (16, *wide.shape[:2])
    assert tiled(wide[:, 1:]) is None
    assert tiled(wide[1:]) is None
    assert tiled(wide[..., :1, :1]) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert tiled(wide) is None


@pytest.mark.parametrize("size", [(4, 6), (4, 5), (5, 4)])
def test_maps_of_odd_size_are_convolved_as_usual(size: tuple[int, int]) -> None:
    parts = maps(winograd.MIN_CHANNELS, 3, size=size)
    weight = torch.randn(64, 67, 3, 3, dtype=torch.double)

    found = conv_of_parts(parts, weight, None, tiled(weight))

    expected = F.conv2d(torch.cat(parts, dim=1), weight, padding=1)
    torch.testing.assert_close(found, expected)
