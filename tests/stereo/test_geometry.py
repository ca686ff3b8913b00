from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stereo.geometry import (
    Tiles,
    align,
    centred_padding,
    crop,
    disparity_to_depth,
    gaussian_weights,
    pad,
    tile_starts,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "schedules.json").read_text("utf-8"))


@given(
    sides=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    more=st.tuples(st.integers(0, 31), st.integers(0, 31)),
)
@settings(deadline=None)
def test_padding_then_cropping_is_the_identity(
    sides: tuple[int, int], more: tuple[int, int]
) -> None:
    image = torch.arange(sides[0] * sides[1], dtype=torch.float32).reshape(1, 1, *sides)
    padding = centred_padding(*more)
    padded = pad(image, padding)
    assert padded.shape[-2:] == (sides[0] + more[0], sides[1] + more[1])
    assert torch.equal(crop(padded, padding), image)


def test_the_border_is_repeated_and_the_smaller_half_comes_first() -> None:
    image = torch.arange(3.0).reshape(1, 1, 1, 3)
    padding = centred_padding(3, 1)
    padded = pad(image, padding)
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


def test_positions_and_weights_of_tiles_equal_the_goldens() -> None:
    for case in GOLDEN["tiles"]:
        starts = tile_starts(case["length"], case["tile"], case["min_overlap"])
        assert starts == case["starts"], case
    for length in (8, 14):
        expected = GOLDEN[f"tile_weight_gaussian_{length}"]
        assert gaussian_weights(length).tolist() == pytest.approx(expected, rel=1e-12)
    assert gaussian_weights(518).min() == 1e-3


@given(length=st.integers(1, 400), tile=st.integers(1, 120), data=st.data())
@settings(deadline=None)
def test_tiles_cover_every_pixel_and_overlap_enough(length: int, tile: int, data) -> None:
    overlap = data.draw(st.integers(0, tile - 1))
    starts = tile_starts(length, tile, overlap)
    steps = np.diff(starts)
    assert starts[0] == 0
    assert starts[-1] + tile == max(length, tile)
    assert all(0 < step <= tile - overlap for step in steps)
    fewer = tile + (len(starts) - 2) * (tile - overlap)
    assert len(starts) == 1 or fewer < length


@pytest.mark.parametrize("weights", ["gaussian", "uniform"])
def test_blended_tiles_that_agree_have_no_seam(weights: str) -> None:
    field = torch.rand(2, 50, 33, generator=torch.Generator().manual_seed(0))
    tiles = Tiles((20, 14), (3, 5), weights)
    windows = []

    def predict(rows: slice, columns: slice) -> torch.Tensor:
        windows.append((rows.start, columns.start))
        return field[:, rows, columns]

    assert torch.allclose(tiles.blend((2, 50, 33), predict), field, rtol=1e-6)
    assert windows == [(y, x) for y in (0, 15, 30) for x in (0, 6, 12, 19)]


def test_a_tile_counts_most_in_its_middle() -> None:
    values = {0: 0.0, 6: 1.0}
    blended = {
        weights: Tiles((8, 4), (2, 0), weights).blend(
            (1, 14, 4), lambda rows, _: torch.full((1, 8, 4), values[rows.start])
        )[0, :, 0]
        for weights in ("gaussian", "uniform")
    }
    assert blended["uniform"].tolist() == [0.0] * 6 + [0.5] * 2 + [1.0] * 6
    first, second = GOLDEN["tile_weight_gaussian_8"][6:], GOLDEN["tile_weight_gaussian_8"][:2]
    expected = [b / (a + b) for a, b in zip(first, second, strict=True)]
    assert blended["gaussian"][6:8].tolist() == pytest.approx(expected)
    assert blended["gaussian"][:6].sum() == 0
