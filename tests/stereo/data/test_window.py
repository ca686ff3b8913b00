from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stereo.data.datasets import StereoSample
from stereo.data.generator import generate
from stereo.data.window import Axis, Window, right_view_disparity

Build = Callable[..., StereoSample]

INF = np.float32(np.inf)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def axis(source: int, size: int, scale: float, *, start: int = 0, mirrored: bool = False) -> Axis:
    return replace(Axis.unscaled(size, source, mirrored=mirrored), scale=scale, start=start)


def sparse_map(seed: int, height: int, width: int, share: float = 0.3) -> np.ndarray:
    generator = rng(seed)
    values = generator.uniform(0.5, 60, (height, width)).astype(np.float32)
    return np.where(generator.random((height, width)) < share, values, INF)


@settings(deadline=None, max_examples=60)
@given(
    source=st.integers(3, 90),
    size=st.integers(1, 90),
    scale=st.floats(0.5, 2),
    mirrored=st.booleans(),
    position=st.floats(0, 1),
)
def test_axis_stays_in_the_image_and_takes_the_nearest_pixel(
    source: int, size: int, scale: float, mirrored: bool, position: float
) -> None:
    unscaled = Axis.unscaled(size, source, mirrored=mirrored)
    scaled = replace(unscaled, scale=max(scale, size / unscaled.padded))
    drawn = replace(scaled, start=round(position * (scaled.scaled - size)))

    index = drawn.nearest()

    inside = (index >= -drawn.padding) & (index < drawn.padded - drawn.padding)
    assert inside.all()
    slope, offset = drawn.map()
    coordinates = slope * np.arange(size) + offset
    assert np.abs(index - coordinates).max() <= 0.5 + 1e-9
    if drawn.scale == 1:
        assert (np.abs(np.diff(index)) == 1).all()
    shown = index[(index >= 0) & (index < source)]
    landing = drawn.landing()
    landed = np.flatnonzero((landing >= 0) & (landing < size))
    for indices in (shown, landed):
        assert ((indices >= drawn.extent.start) & (indices < drawn.extent.stop)).all()


def test_scale_is_geometric_and_half_pixel_aligned() -> None:
    """Enlarging by 2 shows source (u + 0.5) / 2 - 0.5; OpenCV's resize has the same centres."""
    image = rng(3).integers(0, 256, (32, 48, 3), np.uint8)

    warped = Window(
        replace(axis(32, 64, 2.0), padded=32), replace(axis(48, 96, 2.0), padded=48)
    ).left(image)

    resized = cv2.resize(image, (96, 64), interpolation=cv2.INTER_LINEAR)
    assert np.abs(warped.astype(int) - resized).max() <= 2


RAMP = np.broadcast_to(np.arange(64, dtype=np.float32), (48, 64))
RAMP_IMAGE = np.repeat((4 * RAMP)[..., None], 3, axis=2).astype(np.uint8)


def assert_aligned(image: np.ndarray, disparity: np.ndarray, scale: float) -> None:
    """The image shows 4 x and the map x + 1 of the source: both must mean the same column x."""
    difference = image[..., 0] / 4 - (disparity / np.float32(scale) - 1)
    assert np.abs(difference).max() <= 0.5 + 0.25  # nearest, and grey levels of 1/4 px
    assert abs(difference.mean()) < 0.13


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("is_sparse", [False, True])
@pytest.mark.parametrize("scale", [0.55, 0.7, 1.0, 1.4, 2.3])
def test_views_and_disparity_show_the_same_source_coordinate(
    scale: float, is_sparse: bool, mirrored: bool
) -> None:
    columns = axis(64, 32, scale, start=2, mirrored=mirrored)
    window = Window(axis(48, 24, scale), columns, is_sparse=is_sparse)

    disparity = window.disparity(RAMP + 1)

    if not (is_sparse and scale < 1):  # the larger of the columns that land together wins
        assert_aligned(window.left(RAMP_IMAGE), disparity, scale)
    assert np.isfinite(disparity).all()


def test_plain_nearest_of_opencv_is_caught() -> None:
    size, scale = (45, 34), 45 / 64  # W', H' and the actual column scale
    image = cv2.resize(RAMP_IMAGE, size, interpolation=cv2.INTER_LINEAR)
    exact, plain = (
        cv2.resize(RAMP + 1, size, interpolation=method) * np.float32(scale)
        for method in (cv2.INTER_NEAREST_EXACT, cv2.INTER_NEAREST)
    )

    assert_aligned(image, exact, scale)
    with pytest.raises(AssertionError):
        assert_aligned(image, plain, scale)


def test_disparity_of_two_surfaces_is_never_mixed() -> None:
    disparity = np.full((48, 64), 5, np.float32)
    disparity[10:30, 20:41] = 40

    sampled = Window(axis(48, 40, 1.3, start=3), axis(64, 48, 0.9, start=1)).disparity(disparity)

    assert set(np.unique(sampled)) == {np.float32(5) * np.float32(0.9), np.float32(40 * 0.9)}


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 99),
    sx=st.floats(0.4, 1.6),
    sy=st.floats(0.4, 1.6),
    flips=st.tuples(st.booleans(), st.booleans()),
    shift=st.integers(-4, 4),
)
def test_sparse_points_land_nearest_and_the_largest_wins(
    seed: int, sx: float, sy: float, flips: tuple[bool, bool], shift: int
) -> None:
    source = sparse_map(seed, 30, 40)
    rows, columns = axis(30, 11, sy, mirrored=flips[0]), axis(40, 13, sx, mirrored=flips[1])
    rows, columns = (
        replace(a, start=int(rng(seed).integers(0, a.scaled - a.size + 1))) for a in (rows, columns)
    )

    sampled = Window(rows, columns, column_shift=shift, is_sparse=True).disparity(source)

    turned = source[:: -1 if flips[0] else 1, :: -1 if flips[1] else 1]
    expected = np.full((11, 13), INF)
    for y in range(11):
        for x in range(13):
            places = []
            for place, scale, start in ((y, sy, rows.start), (x, sx, columns.start)):
                first = (place + start) / scale  # shown by [first, last) in half-open pixel areas
                last = (place + start + 1) / scale
                if scale < 1:
                    places.append([u for u in range(40) if first <= u + 0.5 < last])
                else:
                    places.append([int((place + start + 0.5) / scale)])
            points = [turned[v, u] for v in places[0] for u in places[1] if v < 30 and u < 40]
            known = [p for p in points if np.isfinite(p)]
            if known and max(known) * np.float32(sx) - np.float32(shift) > 0:
                expected[y, x] = max(known) * np.float32(sx) - np.float32(shift)
    np.testing.assert_allclose(sampled, expected, rtol=1e-6)


def test_shrinking_keeps_most_sparse_points_where_nearest_loses_half() -> None:
    source = sparse_map(0, 200, 300, share=0.15)
    window = Window(axis(200, 140, 0.7), axis(300, 210, 0.7))

    def kept(is_sparse: bool) -> float:
        shown = replace(window, is_sparse=is_sparse).disparity(source)
        return np.isfinite(shown).sum() / np.isfinite(source).sum()

    assert kept(True) > 0.8
    assert kept(False) < 0.55


def test_enlarged_sparse_map_is_nearest() -> None:
    source = sparse_map(1, 40, 60)
    window = Window(axis(40, 40, 1.5, start=4), axis(60, 60, 1.2, start=3))

    np.testing.assert_array_equal(
        replace(window, is_sparse=True).disparity(source), window.disparity(source)
    )


def loop_forward_warp(disparity: np.ndarray) -> np.ndarray:
    """`right_view_disparity`, pixel by pixel as section 6.5 says it."""
    height, width = disparity.shape
    landed = np.zeros((height, width), np.float32)
    for y in range(height):
        for x in range(width):
            if np.isfinite(disparity[y, x]):
                column = round(x - float(disparity[y, x]))
                if 0 <= column < width:
                    landed[y, column] = max(landed[y, column], disparity[y, x])
    warped = landed.copy()
    for y in range(height):
        for x in range(width):
            before, after = landed[y, max(0, x - 2) : x], landed[y, x + 1 : x + 3]
            if before.max(initial=0) > landed[y, x] + 1 and after.max(initial=0) > landed[y, x] + 1:
                warped[y, x] = 0
    return np.where(warped == 0, INF, warped)


@settings(deadline=None, max_examples=60)
@given(
    source=arrays(
        np.float32, (3, 14), elements=st.one_of(st.floats(0.25, 12, width=16), st.just(np.inf))
    )
)
def test_forward_warp_agrees_with_the_loop(source: np.ndarray) -> None:
    np.testing.assert_array_equal(right_view_disparity(source), loop_forward_warp(source))


def test_forward_warp_of_some_rows_is_that_part_of_the_whole() -> None:
    disparity = generate(6, 0, height=96, width=128).disparity

    part = right_view_disparity(disparity, slice(20, 50))

    np.testing.assert_array_equal(part[20:50], right_view_disparity(disparity)[20:50])
    assert np.isinf(part[:20]).all()
    assert np.isinf(part[50:]).all()


def wrong_and_filled(*, masked: bool = False, holes: bool = False) -> tuple[float, float]:
    """Shares of forward-warped pixels wrong by > 1 px, and of pixels filled, over 8 scenes."""
    wrong, filled, pixels = 0, 0, 0
    for index in range(8):
        pair = generate(6, index, height=192, width=256)
        disparity = pair.disparity
        if masked:
            disparity = np.where(pair.occluded, INF, disparity)
        if holes:  # the truth of one front surface is missing
            disparity = np.where(pair.ids == pair.ids.max(), INF, disparity)
        warped = right_view_disparity(disparity)
        known = np.isfinite(warped)
        wrong += int((np.abs(warped - pair.right_disparity)[known] > 1).sum())
        filled += int(known.sum())
        pixels += warped.size
    return wrong / filled, filled / pixels


def test_forward_warped_disparity_is_the_right_views() -> None:
    wrong, filled = wrong_and_filled()

    assert filled > 0.75
    assert wrong < 0.006


def test_occluded_pixels_do_not_show_through_surfaces_without_truth() -> None:
    """The left mask acts before the warp: what it hides would fill the hole of an occluder."""
    assert wrong_and_filled(masked=True, holes=True)[0] < 0.006
    assert wrong_and_filled(masked=False, holes=True)[0] > 0.012


def test_background_seen_through_a_gap_is_dropped() -> None:
    disparity = np.full((1, 12), np.inf, np.float32)
    disparity[0, 2] = 1.0  # lands in column 1, between two pixels at 6 px
    disparity[0, 6], disparity[0, 8] = 6.0, 6.0

    warped = right_view_disparity(disparity)

    assert warped[0, 0] == warped[0, 2] == 6
    assert np.isinf(warped[0, 1])


def test_four_channels_change_no_byte(clean_sample: Build) -> None:
    """The views pass through OpenCV with an alpha channel for speed only."""
    view = clean_sample(0).left
    window = Window(axis(192, 90, 1.17, start=8), axis(256, 130, 0.83, start=5))

    (row_slope, row_offset), (slope, offset) = window.rows.map(), window.columns.map()
    plain = cv2.warpAffine(
        view,
        np.array([[slope, 0, offset], [0, row_slope, row_offset]]),
        (130, 90),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )

    np.testing.assert_array_equal(window.left(view), plain)
