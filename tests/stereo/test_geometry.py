from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stereo.geometry import align, crop, disparity_to_depth, pad_to_multiple


@given(height=st.integers(1, 70), width=st.integers(1, 70), stride=st.sampled_from([1, 14, 32]))
@settings(deadline=None)
def test_padding_then_cropping_is_the_identity(height: int, width: int, stride: int) -> None:
    image = torch.arange(height * width, dtype=torch.float32).reshape(1, 1, height, width)
    padded, padding = pad_to_multiple(image, stride)
    assert padded.shape[-2] % stride == padded.shape[-1] % stride == 0
    assert padded.shape[-2] - height < stride
    assert torch.equal(crop(padded, padding), image)


def test_the_border_is_repeated_and_the_smaller_half_comes_first() -> None:
    image = torch.arange(3.0).reshape(1, 1, 1, 3)
    padded, padding = pad_to_multiple(image, 4)
    assert padding == (0, 1, 1, 2)
    assert padded[0, 0, 0].tolist() == [0.0, 1.0, 2.0, 2.0]


@given(disparity=st.floats(0.01, 800), baseline=st.floats(0.01, 2), focal=st.floats(10, 5000))
@settings(deadline=None)
def test_disparity_and_depth_are_inverses(disparity: float, baseline: float, focal: float) -> None:
    depth = disparity_to_depth(np.float32([disparity]), baseline=baseline, focal_x=focal)
    assert baseline * focal / float(depth[0]) == pytest.approx(disparity, rel=1e-5)


def test_depth_is_zero_where_there_is_no_disparity() -> None:
    disparity = np.float32([0.0, -1.0, np.inf, np.nan, 4.0])
    depth = disparity_to_depth(disparity, baseline=0.1, focal_x=100.0, doffs=1.0)
    assert depth.tolist() == [0.0, 0.0, 0.0, 0.0, 2.0]
    assert depth.dtype == np.float32


@given(scale=st.floats(-50, 50), shift=st.floats(-50, 50), seed=st.integers(0, 99))
@settings(deadline=None)
def test_alignment_finds_the_map_of_each_image(scale: float, shift: float, seed: int) -> None:
    source = torch.rand(2, 1, 5, 6, generator=torch.Generator().manual_seed(seed)).double()
    target = torch.stack((scale * source[0] + shift, source[1]))
    valid = source < 0.8
    target[~valid] = torch.nan
    alignment = align(source, target, valid)
    assert alignment.scale.tolist() == pytest.approx([scale, 1], abs=1e-9)
    assert alignment.shift.tolist() == pytest.approx([shift, 0], abs=1e-9)
    assert torch.allclose(alignment.aligned[valid], target[valid])


def test_alignment_in_float32_keeps_its_accuracy_far_from_zero() -> None:
    noise, other = torch.randn(2, 1, 259, 259, generator=torch.Generator().manual_seed(0))
    source, target = 30 + 0.01 * (noise + other), other
    valid = torch.ones_like(target, dtype=torch.bool)
    exact = align(source.double(), target.double(), valid)
    found = align(source, target, valid)
    assert found.scale.item() == pytest.approx(exact.scale.item(), rel=1e-5)
    assert torch.allclose(found.aligned.double(), exact.aligned, rtol=0, atol=1e-4)
