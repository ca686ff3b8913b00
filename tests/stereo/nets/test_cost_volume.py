from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stereo.nets.cost_volume import (
    GeometryLookup,
    all_pairs_correlation,
    channel_order,
    concatenation_volume,
    group_wise_correlation,
    lookup_channels,
)


def features(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(shift=st.integers(0, 6), groups=st.sampled_from([1, 2, 4]), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_volume_peaks_at_the_true_shift(shift: int, groups: int, seed: int) -> None:
    right = F.normalize(features(1, 32, 4, 24, seed=seed), dim=1)
    left = torch.roll(right, shifts=shift, dims=-1)

    volume = group_wise_correlation(
        left, right, num_groups=groups, max_disparity=8, normalize=False
    )

    assert (volume.mean(dim=1).argmax(dim=1)[..., 8:] == shift).all()


def definition(left: Tensor, right: Tensor, groups: int, candidates: int) -> Tensor:
    batch, _, height, width = left.shape
    volume = torch.zeros(batch, groups, candidates, height, width)
    for d in range(min(candidates, width)):
        product = left[..., d:] * right[..., : width - d]
        volume[:, :, d, :, d:] = product.unflatten(1, (groups, -1)).sum(2)
    return volume


@given(
    width=st.integers(1, 9),
    candidates=st.integers(1, 12),
    groups=st.sampled_from([1, 2, 6]),
    normalize=st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_correlation_equals_its_definition_also_beyond_the_border(
    width: int, candidates: int, groups: int, normalize: bool
) -> None:
    left, right = features(2, 12, 3, width), features(2, 12, 3, width, seed=1)

    volume = group_wise_correlation(
        left, right, num_groups=groups, max_disparity=candidates, normalize=normalize
    )

    if normalize:
        left, right = (
            F.normalize(x.unflatten(1, (groups, -1)), dim=2).flatten(1, 2) for x in (left, right)
        )
    torch.testing.assert_close(volume, definition(left, right, groups, candidates))


@given(width=st.integers(1, 9), candidates=st.integers(1, 12))
@settings(deadline=None, max_examples=30)
def test_concatenation_repeats_left_and_shifts_right(width: int, candidates: int) -> None:
    left, right = features(1, 3, 2, width), features(1, 3, 2, width, seed=1)

    volume = concatenation_volume(left, right, max_disparity=candidates)

    for d in range(candidates):
        assert torch.equal(volume[:, :3, d], left)
        shifted = F.pad(right, (d, 0))[..., :width]
        assert torch.equal(volume[:, 3:, d], shifted)


def test_volumes_pass_their_gradients_to_both_views() -> None:
    left, right = features(1, 4, 2, 5).double(), features(1, 4, 2, 5, seed=1).double()
    left.requires_grad_()
    right.requires_grad_()

    def volumes(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        correlation = group_wise_correlation(a, b, num_groups=2, max_disparity=4, normalize=True)
        return correlation, concatenation_volume(a, b, max_disparity=4)

    torch.autograd.gradcheck(volumes, (left, right))


def test_lookup_reads_geometry_at_the_disparity_and_appearance_at_the_match() -> None:
    volume, left, right = features(1, 3, 8, 2, 10), features(1, 5, 2, 10), features(1, 5, 2, 10)
    lookup = GeometryLookup(volume, left, right, levels=1, radius=2)
    disparity = torch.full((1, 1, 2, 10), 3.0)

    found = lookup(disparity)[:, channel_order(channels=3, levels=1, radius=2).argsort()]

    assert found.shape[1] == lookup_channels(channels=3, levels=1, radius=2)
    geometry = volume[:, :, 1:6]  # (1, 3, taps, h, w)
    torch.testing.assert_close(found[:, :15], geometry.flatten(1, 2))
    pairs = all_pairs_correlation(left, right)
    assert torch.allclose(found[0, 15 + 2, 1, 7], pairs[0, 1, 7, 4])  # middle tap: x - d
    assert torch.allclose(found[0, 15 + 4, 1, 7], pairs[0, 1, 7, 6])  # taps ascend in x
    assert found[0, 15 + 2, 1, 1] == 0  # the match lies left of the image


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_volume_of_half_precision_is_read_in_float32(dtype: torch.dtype) -> None:
    width = 600  # bfloat16 counts to 256
    volume = features(1, 3, 8, 1, width).to(dtype).requires_grad_()
    left, right = (features(1, 5, 1, width, seed=seed).to(dtype) for seed in (1, 2))
    options = {"levels": 2, "radius": 1}
    disparity = torch.full((1, 1, 1, width), 2.3)
    lookup = GeometryLookup(volume, left, right, **options)
    exact = GeometryLookup(volume.detach().float(), left.float(), right.float(), **options)

    readings = [lookup(disparity + step) for step in (0, 1)]

    for step, found in enumerate(readings):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, exact(disparity + step), rtol=0, atol=2e-2)
    (readings[0] + readings[1]).sum().backward()  # as many iterations of a training step do
    assert volume.grad is not None
    assert volume.grad.isfinite().all()
