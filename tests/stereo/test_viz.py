from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stereo import viz

BLACK = [0, 0, 0]


def test_disparity_runs_through_turbo_up_to_the_largest_or_the_given_value() -> None:
    disparity = np.array([[0.0, 5.0, 10.0]], np.float32)
    picture = viz.color_disparity(disparity)
    assert picture.shape == (1, 3, 3)
    assert picture.dtype == np.uint8
    first, middle, last = picture[0].tolist()
    assert first[2] > first[1] > 0, "turbo starts dark blue"
    assert max(middle) == middle[1], "its middle is green"
    assert last[0] > last[1] >= last[2], "its end is red"
    np.testing.assert_array_equal(viz.color_disparity(disparity, 5.0)[0, 1], last)
    np.testing.assert_array_equal(viz.color_disparity(disparity, 5.0)[0, 2], last)


def test_unknown_disparity_is_black_and_does_not_set_the_scale() -> None:
    picture = viz.color_disparity(np.array([[np.inf, np.nan, 3.0]], np.float32))
    assert picture[0, 0].tolist() == picture[0, 1].tolist() == BLACK
    np.testing.assert_array_equal(
        picture[0, 2], viz.color_disparity(np.ones((1, 1), np.float32))[0, 0]
    )


def test_a_map_without_a_scale_is_the_middle_colour() -> None:
    zero = viz.color_disparity(np.zeros((2, 2), np.float32))
    middle = viz.color_disparity(np.array([[1.0, 2.0]], np.float32))[0, 0]
    assert (zero == middle).all()
    assert (viz.color_disparity(np.full((1, 1), np.inf, np.float32)) == 0).all()


@settings(deadline=None)
@given(error=st.floats(-9, 9, width=32), truth=st.floats(0, 50, width=32))
def test_the_error_colour_depends_on_the_absolute_error_up_to_3_px(
    error: float, truth: float
) -> None:
    picture = viz.color_error(
        np.array([[truth + error]], np.float32),
        np.array([[truth]], np.float32),
        np.array([[True]]),
    )
    measured = abs(float(np.float32(truth + error)) - float(np.float32(truth)))
    expected = viz.color_disparity(np.array([[min(measured, 3.0)]], np.float32), 3.0)
    assert np.abs(picture.astype(int) - expected.astype(int)).max() <= 12  # one level of 256


def test_the_error_is_black_without_ground_truth_and_red_where_the_prediction_is_nan() -> None:
    picture = viz.color_error(
        np.array([[1.0, np.nan]], np.float32),
        np.array([[np.inf, 1.0]], np.float32),
        np.array([[False, True]]),
    )
    assert picture[0, 0].tolist() == BLACK
    assert picture[0, 1, 0] > 100


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_denormalize_undoes_the_normalisation(seed: int) -> None:
    picture = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    normalised = ((picture / 255 - mean) / std).transpose(2, 0, 1).astype(np.float32)
    np.testing.assert_array_equal(viz.denormalize(normalised, mean, std), picture)


def test_panels_lie_side_by_side() -> None:
    panels = [np.full((2, 3, 3), value, np.uint8) for value in (1, 2)]
    np.testing.assert_array_equal(viz.side_by_side(panels)[0, :, 0], [1, 1, 1, 2, 2, 2])
