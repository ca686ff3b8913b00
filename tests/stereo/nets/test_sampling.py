from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stereo.nets.sampling import LinearTable, convex_upsample, halve


def sample(rows: Tensor, position: float) -> Tensor:
    """Linear interpolation of (D, C) rows, zero outside."""
    lower = int(torch.tensor(position).floor())

    def row(index: int) -> Tensor:
        return rows[index] if 0 <= index < len(rows) else torch.zeros_like(rows[0])

    fraction = position - lower
    return (1 - fraction) * row(lower) + fraction * row(lower + 1)


@given(position=st.floats(-1e6, 1e6) | st.floats(-8, 14), radius=st.integers(0, 3))
@settings(deadline=None, max_examples=60)
def test_reading_interpolates_and_is_zero_outside(position: float, radius: int) -> None:
    position = float(torch.tensor(position))
    rows = torch.randn(1, 6, 1, 2, generator=torch.Generator().manual_seed(0))

    found = LinearTable(rows, radius).read(torch.tensor([position]))

    expected = [sample(rows[0, :, 0], position + k) for k in range(-radius, radius + 1)]
    torch.testing.assert_close(found[0], torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_gradients_of_several_readings_add_up() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2, 5, 2, 3, generator=generator, dtype=torch.double, requires_grad=True)
    positions = [torch.tensor([x, x + 2.5, -x, 3.2]).double() for x in (0.3, 1.6, 9.0)]

    def read_all(rows: Tensor) -> tuple[Tensor, ...]:
        table = LinearTable(rows, 1)
        return tuple(table.read(position) for position in positions)

    torch.autograd.gradcheck(read_all, (rows,))


def test_a_reading_that_the_loss_ignores_adds_no_gradient() -> None:
    rows = torch.ones(1, 4, 1, 1, requires_grad=True)
    table = LinearTable(rows, 0)
    first = table.read(torch.tensor([1.0]))
    table.read(torch.tensor([2.0]))

    first.sum().backward()

    assert rows.grad is not None
    assert rows.grad.flatten().tolist() == [0.0, 1.0, 0.0, 0.0]


def test_an_odd_last_sample_is_dropped() -> None:
    rows = torch.tensor([1.0, 3.0, 5.0, 7.0, 100.0]).view(1, 5, 1, 1)

    assert halve(rows).flatten().tolist() == [2.0, 6.0]


def test_upsampling_blends_the_nine_neighbours_of_the_coarse_pixel() -> None:
    generator = torch.Generator().manual_seed(0)
    disparity = torch.rand(2, 1, 3, 4, generator=generator)
    weights = torch.softmax(torch.randn(2, 9, 12, 16, generator=generator), dim=1)

    found = convex_upsample(disparity, weights)

    padded = F.pad(4 * disparity, (1, 1, 1, 1))
    for y, x in ((0, 0), (5, 9), (11, 15)):
        window = padded[:, 0, y // 4 : y // 4 + 3, x // 4 : x // 4 + 3].flatten(1)
        torch.testing.assert_close(found[:, 0, y, x], (window * weights[:, :, y, x]).sum(1))
