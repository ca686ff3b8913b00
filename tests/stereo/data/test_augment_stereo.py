from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stereo.data import augment_stereo
from stereo.data.augment_stereo import augment, varying_fields
from stereo.data.datasets import StereoSample
from stereo.data.generator import generate
from stereo.data.window import Axis, right_view_disparity
from stereo.spec.data import StereoAugmentSpec
from stereo.spec.fields import leaves

Build = Callable[..., StereoSample]
Measure = Callable[..., float]
Faults = Callable[[Sequence[StereoSample]], set[str]]

INF = np.float32(np.inf)

NO_CHANGE = {
    "min_scale": 0.0,
    "max_scale": 0.0,
    "yjitter_prob": 0.0,
    "color_aug_prob": 0.0,
    "color_aug_brightness": 0.0,
    "color_aug_contrast": 0.0,
    "color_aug_saturation": [1.0, 1.0],
    "color_aug_hue_range": [0.0, 0.0],
    "eraser_aug_prob": 0.0,
    "spatial_aug_prob": 0.0,
    "stretch_prob": 0.0,
    "hshift_prob": 0.0,
}


def spec(**changes: object) -> StereoAugmentSpec:
    """A spec that crops 96x160 and changes nothing but `changes`."""
    return StereoAugmentSpec(**{"crop_size": [96, 160], **NO_CHANGE, **changes})


def flips(*, h: float = 0.0, v: float = 0.0) -> dict[str, object]:
    return {"do_flip": True, "h_flip_prob": h, "v_flip_prob": v}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def scales(low: float, high: float, **changes: object) -> dict[str, object]:
    return {"spatial_aug_prob": 1.0, "min_scale": low, "max_scale": high, **changes}


def points(sample: StereoSample, share: float = 0.3, seed: int = 0) -> StereoSample:
    """The sample as a laser would have measured it."""
    seen = rng(seed).random(sample.disparity.shape) < share
    return replace(sample, disparity=np.where(seen, sample.disparity, INF), is_sparse=True)


GEOMETRY = {
    "nothing": {},
    "h-flip": flips(h=1.0),
    "v-flip": flips(v=1.0),
    "both flips": flips(h=1.0, v=1.0),
    "shift": {"hshift_prob": 1.0},
    "shift and flip": {"hshift_prob": 1.0, **flips(h=1.0)},
    "shrink": scales(-0.6, -0.3),
    "shrink and flip": scales(-0.6, -0.3, **flips(h=1.0)),
    "enlarge": scales(0.5, 0.9),
    "stretch": scales(0.0, 0.0, stretch_prob=1.0, max_stretch=0.4),
    "everything": scales(
        -0.3,
        0.5,
        stretch_prob=1.0,
        max_stretch=0.2,
        hshift_prob=1.0,
        crop_min_valid_disp_ratio=0.5,
        **flips(h=0.5, v=0.5),
    ),
    "padding": scales(0.0, 0.3, crop_size=[224, 320]),
    "padding and flips": scales(0.0, 0.3, crop_size=[224, 320], **flips(h=1.0, v=1.0)),
}


@pytest.fixture(scope="session")
def faults(warp_error: Measure) -> Faults:
    """What is wrong with crops whose right view, warped by the disparity, should be the left one.

    Measured 0.36 to 0.55 grey levels, offsets up to 0.005 px and factors up to 0.0007.
    """

    def lowest(crop: StereoSample, name: str, step: float, neutral: float) -> float:
        before, here, after = (
            warp_error(crop, **{name: neutral + change}, power=2) for change in (-step, 0, step)
        )
        return step * (before - after) / (2 * (before - 2 * here + after))

    def measure(crops: Sequence[StereoSample]) -> set[str]:
        found = {
            "error": np.mean([warp_error(crop) for crop in crops]) > 0.75,
            "offset": abs(np.mean([lowest(crop, "offset", 0.3, 0.0) for crop in crops])) > 0.1,
            "factor": abs(np.mean([lowest(crop, "factor", 0.02, 1.0) for crop in crops])) > 0.002,
        }
        return {name for name, is_wrong in found.items() if is_wrong}

    return measure


@pytest.mark.parametrize("is_sparse", [False, True])
@pytest.mark.parametrize("name", GEOMETRY)
def test_right_warped_by_disparity_is_left_after_every_transform(
    name: str, is_sparse: bool, clean_sample: Build, faults: Faults
) -> None:
    samples = [clean_sample(index) for index in range(6)]
    if is_sparse:
        samples = [points(sample) for sample in samples]

    crops = [augment(s, spec(**GEOMETRY[name]), rng(seed)) for seed, s in enumerate(samples)]

    assert faults(crops) == set()


@settings(deadline=None, max_examples=40)
@given(
    index=st.integers(0, 7),
    seed=st.integers(0, 999),
    exponents=st.tuples(st.floats(-1, 1), st.floats(0, 0.5)),
    stretch=st.floats(0, 0.3),
    chances=st.tuples(*(st.sampled_from([0.0, 1.0]) for _ in range(4))),
    crop_size=st.sampled_from([(64, 128), (96, 160), (160, 224), (224, 288)]),
    ratio=st.sampled_from([0.0, 0.9]),
    is_sparse=st.booleans(),
    knows_right=st.booleans(),
)
def test_any_combination_of_transforms_keeps_the_pair_consistent(
    index: int,
    seed: int,
    exponents: tuple[float, float],
    stretch: float,
    chances: tuple[float, ...],
    crop_size: tuple[int, int],
    ratio: float,
    is_sparse: bool,
    knows_right: bool,
    clean_sample: Build,
    warp_error: Measure,
) -> None:
    sample = clean_sample(index)
    if knows_right:
        sample = replace(sample, right_disparity=right_view_disparity(sample.disparity))
    if is_sparse:
        sample = replace(points(sample), right_disparity=sample.right_disparity)
    h, v, shift, jitter = chances
    low = exponents[0]
    changes = scales(
        low, min(1.0, low + exponents[1]), stretch_prob=1.0, max_stretch=stretch, **flips(h=h, v=v)
    )
    changes |= {"hshift_prob": shift, "yjitter_prob": jitter, "crop_min_valid_disp_ratio": ratio}

    crop = augment(sample, spec(crop_size=list(crop_size), **changes), rng(seed))

    known = crop.disparity[crop.valid]
    assert crop.left.shape == crop.right.shape == (*crop_size, 3)
    assert crop.disparity.shape == crop_size
    assert crop.right_disparity is None
    assert (known > 0).all()
    if known.size > 500:
        assert min(warp_error(crop, rows=rows) for rows in range(-2 * bool(jitter), 3)) < 1.5


def by_hand(sample: StereoSample, wrong: str = "", *, flip: bool = False) -> StereoSample:
    """Pad, flip, scale and shift in steps on the whole image; `wrong` plants one known mistake.

    Padded by 20 rows above and below, scaled from 256x232 to 160x200, shifted by 3 px.
    """
    shift, drawn, size = 3, 160.49 / 256, (160, 200)
    pad = ((20, 20), (0, 0))
    left, right = (
        np.pad(view, (*pad, (0, 0)), mode="edge") for view in (sample.left, sample.right)
    )
    truth = 0.0 if wrong == "padding counted as valid" else np.inf
    disparity = np.pad(sample.disparity, pad, constant_values=truth)
    if flip:
        left, right = right[:, ::-1], left[:, ::-1]
        if wrong != "left disparity unmirrored on a flip":
            source = disparity if wrong == "left disparity mirrored on a flip" else None
            disparity = (right_view_disparity(disparity) if source is None else source)[:, ::-1]
    left, right = (cv2.resize(v, size, interpolation=cv2.INTER_LINEAR) for v in (left, right))
    disparity = cv2.resize(disparity, size, interpolation=cv2.INTER_NEAREST_EXACT)
    factors = {"not scaled": 1.0, "scaled by sy": 200 / 232, "drawn scale": drawn}
    disparity = np.float32(factors.get(wrong, 160 / 256)) * disparity
    right = np.pad(right, ((0, 0), (shift, 0), (0, 0)), mode="edge")[:, :160]
    if wrong != "shift not subtracted":
        disparity = disparity - np.float32(shift)
        if wrong != "padding counted as valid":
            disparity[disparity <= 0] = INF
    return replace(sample, left=left, right=right, disparity=disparity)


MISTAKES = {
    "not scaled": "error",
    "scaled by sy": "error",
    "drawn scale": "factor",
    "left disparity unmirrored on a flip": "error",
    "left disparity mirrored on a flip": "error",
    "shift not subtracted": "error",
    "padding counted as valid": "error",
}


@pytest.mark.parametrize("flip", [False, True])
def test_the_steps_by_hand_are_right_without_a_mistake(
    flip: bool, clean_sample: Build, faults: Faults
) -> None:
    assert faults([by_hand(clean_sample(index), flip=flip) for index in range(8)]) == set()


@pytest.mark.parametrize("wrong", MISTAKES)
def test_each_planted_mistake_is_caught(wrong: str, clean_sample: Build, faults: Faults) -> None:
    flip = "flip" in wrong

    found = faults([by_hand(clean_sample(index), wrong, flip=flip) for index in range(8)])

    assert MISTAKES[wrong] in found


def padded_crop(clean_sample: Build) -> tuple[StereoSample, StereoSample]:
    """A 40x50 sample and its crop of 64x96: 12 rows above, 23 columns to the left of it."""
    sample = clean_sample(1, height=40, width=50, whole=True)
    return sample, augment(sample, spec(crop_size=[64, 96]), rng())


def assert_only_the_source_is_truth(crop: StereoSample) -> None:
    inside = np.zeros((64, 96), bool)
    inside[12:52, 23:73] = True
    np.testing.assert_array_equal(crop.valid, inside)
    np.testing.assert_array_equal(np.isinf(crop.disparity), ~inside)


def test_padding_is_replicated_and_never_truth(clean_sample: Build) -> None:
    sample, crop = padded_crop(clean_sample)

    assert_only_the_source_is_truth(crop)
    np.testing.assert_array_equal(crop.left[12:52, 23:73], sample.left)
    np.testing.assert_array_equal(crop.left[:12, 23], np.tile(sample.left[0, 0], (12, 1)))
    np.testing.assert_array_equal(crop.right[60, 90], sample.right[39, 49])


def test_padding_taken_as_truth_is_caught(
    clean_sample: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Axis.nearest
    monkeypatch.setattr(Axis, "nearest", lambda self: original(self).clip(0, self.source - 1))

    with pytest.raises(AssertionError):
        assert_only_the_source_is_truth(padded_crop(clean_sample)[1])


def test_horizontal_flip_uses_a_given_right_view_disparity(clean_sample: Build) -> None:
    """Whole, also where the left view is masked: that mask is of other pixels."""
    pair = generate(5, 3, height=192, width=256, photometric=False)
    sample = replace(clean_sample(3), right_disparity=pair.right_disparity)

    crop = augment(sample, spec(crop_size=[192, 256], **flips(h=1.0)), rng())

    assert not sample.valid.all()
    np.testing.assert_array_equal(crop.disparity, pair.right_disparity[:, ::-1])
    np.testing.assert_array_equal(crop.left, sample.right[:, ::-1])
    np.testing.assert_array_equal(crop.right, sample.left[:, ::-1])


def test_horizontal_flip_without_one_warps_what_the_mask_left(clean_sample: Build) -> None:
    sample = clean_sample(3)

    crop = augment(sample, spec(crop_size=[192, 256], **flips(h=1.0)), rng())

    np.testing.assert_array_equal(crop.disparity, right_view_disparity(sample.disparity)[:, ::-1])


@pytest.mark.parametrize("is_sparse", [False, True])
def test_a_flipped_window_warps_all_the_rows_it_shows(is_sparse: bool, clean_sample: Build) -> None:
    """Only the window's rows are warped forward, for speed: the result is that of all rows."""
    sample = clean_sample(2, whole=True)
    sample = points(sample) if is_sparse else sample
    right = replace(sample, right_disparity=right_view_disparity(sample.disparity))
    for seed in range(20):
        chosen = spec(crop_size=[64, 96], **scales(-0.9, 0.6, **flips(h=1.0, v=0.5)))
        np.testing.assert_array_equal(
            augment(sample, chosen, rng(seed)).disparity,
            augment(right, chosen, rng(seed)).disparity,
        )


def test_vertical_flip_reverses_rows_and_nothing_else(clean_sample: Build) -> None:
    sample = clean_sample(1)

    crop = augment(sample, spec(crop_size=[192, 256], **flips(v=1.0)), rng())

    for name in ("left", "right", "disparity"):
        np.testing.assert_array_equal(getattr(crop, name), getattr(sample, name)[::-1])


def test_every_crop_position_is_drawn(clean_sample: Build) -> None:
    sample = clean_sample(0, height=98, width=163, whole=True)
    sample = replace(sample, disparity=np.arange(98 * 163, dtype=np.float32).reshape(98, 163) + 1)

    corners = {augment(sample, spec(), rng(seed)).disparity[0, 0] for seed in range(200)}

    assert corners == {float(y * 163 + x + 1) for y in range(3) for x in range(4)}


def test_row_jitter_shifts_only_the_right_view_by_at_most_two_rows(clean_sample: Build) -> None:
    sample = clean_sample(0, whole=True)
    rows = np.arange(192, dtype=np.uint8)[:, None, None]
    marked = np.broadcast_to(rows, (192, 256, 3)).copy()
    sample = replace(sample, left=marked, right=marked)

    shifts = set()
    for seed in range(60):
        crop = augment(sample, spec(yjitter_prob=1.0), rng(seed))
        difference = crop.right.astype(int) - crop.left
        assert (difference == difference[0, 0, 0]).all()
        shifts.add(int(difference[0, 0, 0]))
    assert shifts == {-2, -1, 0, 1, 2}

    full = augment(sample, spec(yjitter_prob=1.0, crop_size=[192, 256]), rng(1))
    jitter = full.right[100, 0, 0].astype(int) - 100
    assert jitter != 0
    border = full.right[-1 if jitter > 0 else 0, 0, 0]
    assert border == (191 if jitter > 0 else 0)


def coordinates(height: int = 64, width: int = 64) -> StereoSample:
    """Red holds 4 x, green 4 y of the pixel; the right view the same with blue 255."""
    y, x = np.mgrid[:height, :width]
    left = np.stack([4 * x, 4 * y, 0 * x], axis=-1).astype(np.uint8)
    right = left + np.array([0, 0, 255], np.uint8)
    truth = np.full((height, width), 20, np.float32)
    row = None  # never read
    return StereoSample(left, right, truth, True, "im0.png", row, right_disparity=truth)


def shown_scales(crop: StereoSample) -> tuple[float, float]:
    """(sx, sy) by which a crop of `coordinates` was scaled; negative: mirrored."""
    view = crop.left.astype(float)
    height, width = view.shape[:2]
    sx = 4 * (width - 1) / (view[5, -1, 0] - view[5, 0, 0])
    sy = 4 * (height - 1) / (view[-1, 5, 1] - view[0, 5, 1])
    return sx, sy


def shown_shift(crop: StereoSample) -> tuple[int, int]:
    """(columns, rows) between the views of an unscaled crop of `coordinates`."""
    difference = (crop.right.astype(int) - crop.left)[8:-8, 8:-8, :2]
    assert (difference == difference[0, 0]).all()
    columns, rows = difference[0, 0] // 4
    return -int(columns), int(rows)


def coordinate_crops(count: int = 60, **changes: object) -> list[StereoSample]:
    chosen = spec(**{"crop_size": [24, 32], **changes})
    return [augment(coordinates(), chosen, rng(seed)) for seed in range(count)]


def test_scale_exponents_span_their_range() -> None:
    crops = coordinate_crops(200, **scales(-0.7, 0.9))

    exponents = np.log2([shown_scales(crop) for crop in crops])

    np.testing.assert_allclose(exponents[:, 0], exponents[:, 1], atol=0.05)
    assert exponents.min() == pytest.approx(-0.7, abs=0.06)
    assert exponents.max() == pytest.approx(0.9, abs=0.06)


def test_stretch_exponents_span_their_range_each_way() -> None:
    crops = coordinate_crops(300, **scales(0.2, 0.2, stretch_prob=1.0, max_stretch=0.4))

    exponents = np.log2([shown_scales(crop) for crop in crops]) - 0.2

    assert exponents.min(axis=0) == pytest.approx(-0.4, abs=0.06)
    assert exponents.max(axis=0) == pytest.approx(0.4, abs=0.06)
    assert abs(np.corrcoef(exponents.T)[0, 1]) < 0.2


def test_scale_never_goes_below_what_the_crop_needs() -> None:
    (crop,) = coordinate_crops(1, **scales(-1.0, -1.0, crop_size=[48, 60]))
    assert shown_scales(crop) == pytest.approx((60 / 64, 48 / 64), rel=0.02)

    with_room = coordinate_crops(9, **scales(-1.0, -1.0, crop_size=[48, 60], yjitter_prob=1.0))
    for crop in with_room:
        assert shown_scales(crop) == pytest.approx((60 / 64, 52 / 64), rel=0.02)


def test_disparity_is_multiplied_by_the_column_scale() -> None:
    for crop in coordinate_crops(20, **scales(-0.3, 0.5, stretch_prob=1.0, max_stretch=0.3)):
        assert crop.disparity.min() == crop.disparity.max()
        assert crop.disparity[0, 0] == pytest.approx(20 * shown_scales(crop)[0], rel=0.03)


def test_shift_moves_the_right_view_by_every_integer_up_to_four() -> None:
    crops = coordinate_crops(100, hshift_prob=1.0)

    assert {shown_shift(crop) for crop in crops} == {(k, 0) for k in range(-4, 5)}
    for crop in crops:
        assert (crop.disparity == 20 - shown_shift(crop)[0]).all()


ACTED = {
    "yjitter_prob": (lambda crop: shown_shift(crop)[1] != 0, {}, 4 / 5),
    "hshift_prob": (lambda crop: shown_shift(crop)[0] != 0, {}, 8 / 9),
    "spatial_aug_prob": (lambda crop: abs(shown_scales(crop)[0] - 1) > 0.1, scales(0.4, 0.4), 1),
    "stretch_prob": (
        lambda crop: abs(np.subtract(*shown_scales(crop))) > 0.02,
        scales(0.0, 0.0, max_stretch=0.5),
        0.9,
    ),
    "h_flip_prob": (lambda crop: shown_scales(crop)[0] < 0, flips(), 1),
    "v_flip_prob": (lambda crop: shown_scales(crop)[1] < 0, flips(), 1),
    "eraser_aug_prob": (lambda crop: not is_ramp(crop.right), {}, 1),
    "color_aug_prob": (
        lambda crop: (crop.left[..., :2] != crop.right[..., :2]).any(),
        {"color_aug_brightness": 0.4},
        1,
    ),
}


def is_ramp(view: np.ndarray) -> bool:
    """Red grows by 4 per column, green by 4 per row, everywhere."""
    steps = [np.diff(view[..., axis].astype(int), axis=1 - axis) for axis in (0, 1)]
    return all((step == 4).all() for step in steps)


@pytest.mark.parametrize("name", ACTED)
def test_probability_0_never_acts_1_always_and_between_by_chance(name: str) -> None:
    acted, changes, share = ACTED[name]

    def seen(probability: float) -> float:
        crops = coordinate_crops(**{**changes, name: probability})
        return float(np.mean([acted(crop) for crop in crops]))

    assert seen(0.0) == 0
    assert abs(seen(1.0) - share) < (0.1 if share < 1 else 1e-9)
    assert abs(seen(0.5) - share / 2) < 0.2


def test_blur_changes_neither_geometry_nor_disparity() -> None:
    """Shrunk by s, at least (crop + 8) / side, and enlarged again, as the reference does."""
    image = rng(4).integers(0, 256, (200, 256, 3), np.uint8)
    place = np.arange(200 * 256, dtype=np.float32).reshape(200, 256) + 1
    sample = replace(coordinates(200, 256), left=image, right=image, disparity=place)
    chosen = spec(blur_scale=True, **scales(-1.0, -1.0))  # 2^-1 is below (160 + 8) / 256
    small = cv2.resize(image, (168, 131), interpolation=cv2.INTER_LINEAR)
    blurred = cv2.resize(small, (256, 200), interpolation=cv2.INTER_LINEAR)

    for seed in range(5):
        crop = augment(sample, chosen, rng(seed))

        y, x = divmod(int(crop.disparity[0, 0]) - 1, 256)
        rows, columns = slice(y, y + 96), slice(x, x + 160)
        np.testing.assert_array_equal(crop.disparity, place[rows, columns])
        np.testing.assert_array_equal(crop.left, blurred[rows, columns])
        np.testing.assert_array_equal(crop.right, blurred[rows, columns])


def test_blur_never_enlarges() -> None:
    image = rng(4).integers(0, 256, (200, 256, 3), np.uint8)
    sample = replace(coordinates(200, 256), left=image, right=image)
    chosen = spec(crop_size=[192, 256], blur_scale=True, **scales(0.3, 0.9, stretch_prob=1.0))

    crop = augment(sample, chosen, rng(1))

    assert any((crop.left == image[y : y + 192]).all() for y in range(9))


def test_row_jitter_leaves_room_when_scaling(clean_sample: Build) -> None:
    sample = clean_sample(0, whole=True)
    changes = {"spatial_aug_prob": 1.0, "min_scale": -1.0, "max_scale": -1.0}
    for seed in range(20):
        crop = augment(sample, spec(yjitter_prob=1.0, crop_size=[192, 256], **changes), rng(seed))
        assert (crop.right[0] != crop.right[1]).any()
        assert (crop.right[-1] != crop.right[-2]).any()


def test_shift_makes_nonpositive_disparity_unknown(clean_sample: Build) -> None:
    sample = clean_sample(0, whole=True)
    sample = replace(sample, disparity=np.full((192, 256), 2.0, np.float32))

    values = [augment(sample, spec(hshift_prob=1.0), rng(s)).disparity for s in range(60)]

    drawn = {float(value[5, 5]) for value in values}
    assert drawn == {1.0, 2.0, 3.0, 4.0, 5.0, 6.0, np.inf}


def test_crop_with_enough_truth_is_preferred(clean_sample: Build) -> None:
    """Truth only in the right third: a random crop seldom reaches half."""
    sample = clean_sample(0, width=480, whole=True)
    disparity = np.full_like(sample.disparity, np.inf)
    disparity[:, 320:] = 5.0
    sample = replace(sample, disparity=disparity)

    def shares(ratio: float, **changes: object) -> np.ndarray:
        chosen = spec(crop_min_valid_disp_ratio=ratio, **changes)
        return np.array([augment(sample, chosen, rng(s)).valid.mean() for s in range(60)])

    assert (shares(0.0) >= 0.5).mean() < 0.6
    assert (shares(0.5) >= 0.5).all()
    scaled = {"spatial_aug_prob": 1.0, "min_scale": -0.2, "max_scale": 0.4, **flips(v=0.5)}
    assert (shares(0.5, **scaled) >= 0.5).mean() > 0.95
    assert shares(1.0).mean() > 0.85  # unreachable by most draws: the best of twenty


def test_the_ratio_counts_only_disparity_below_the_limit(clean_sample: Build) -> None:
    sample = clean_sample(0, width=480, whole=True)
    disparity = np.full_like(sample.disparity, 500)
    disparity[:, 320:] = 5
    sample = replace(sample, disparity=disparity)
    chosen = spec(crop_min_valid_disp_ratio=0.5)

    def shares(limit: float) -> list[float]:
        crops = [augment(sample, chosen, rng(seed), limit=limit) for seed in range(30)]
        return [float((crop.disparity < 192).mean()) for crop in crops]

    assert min(shares(192.0)) >= 0.5
    assert min(shares(1000.0)) < 0.5


class CountingGenerator(np.random.Generator):
    """Counts the integers drawn: two per position of the crop, nothing else in these specs."""

    drawn = 0

    def integers(self, *args: object, **kwargs: object) -> object:
        self.drawn += 1
        return super().integers(*args, **kwargs)


@pytest.mark.parametrize(("known_from", "draws"), [(0, 1), (400, 20)])
def test_positions_are_drawn_until_enough_is_known_at_most_twenty(
    known_from: int, draws: int, clean_sample: Build
) -> None:
    sample = clean_sample(0, width=480, whole=True)
    disparity = np.where(np.arange(480) >= known_from, np.float32(5), INF)
    sample = replace(sample, disparity=np.broadcast_to(disparity, (192, 480)))
    generator = CountingGenerator(np.random.PCG64(3))

    augment(sample, spec(crop_min_valid_disp_ratio=1.0), generator)

    assert generator.drawn == 2 * draws


def test_the_best_of_twenty_keeps_its_row_jitter() -> None:
    """Truth nowhere: the ratio is out of reach, and the jitter is there as without it."""
    sample = replace(coordinates(), disparity=np.full((64, 64), INF))
    chosen = spec(crop_size=[24, 32], yjitter_prob=1.0, crop_min_valid_disp_ratio=1.0)

    rows = {shown_shift(augment(sample, chosen, rng(seed)))[1] for seed in range(60)}

    assert rows == {-2, -1, 0, 1, 2}


def test_colour_changes_are_symmetric_or_not_as_the_probability_says(clean_sample: Build) -> None:
    sample = clean_sample(0, whole=True)
    sample = replace(sample, right=sample.left)
    strong = {"color_aug_brightness": 0.4, "color_aug_hue_range": [-0.1, 0.1]}
    strong["gamma"] = [0.8, 1.2, 0.9, 1.1]

    both = augment(sample, spec(color_aug_prob=0.0, **strong), rng(1))
    apart = augment(sample, spec(color_aug_prob=1.0, **strong), rng(1))
    off = augment(sample, spec(color_aug_prob=1.0), rng(1))

    np.testing.assert_array_equal(both.left, both.right)
    assert (both.left != off.left).mean() > 0.5
    assert (apart.left != apart.right).mean() > 0.5
    np.testing.assert_array_equal(off.left, off.right)


def colours(image: np.ndarray, **changes: object) -> np.ndarray:
    change = augment_stereo._draw_colour_change(
        rng(0), spec(**changes), augment_stereo._mean_colour(image)
    )
    return change.apply(image).astype(float)


def test_each_colour_operation_does_what_its_name_says() -> None:
    image = rng(2).integers(60, 180, (64, 64, 3), np.uint8)
    grey = image @ np.array([0.299, 0.587, 0.114])

    saturated = colours(image, color_aug_saturation=[0.0, 0.0])
    np.testing.assert_allclose(saturated, np.repeat(grey[..., None], 3, -1), atol=1)

    brighter = colours(image, color_aug_brightness=0.4)
    factor = brighter.mean() / image.mean()
    assert 0.6 <= factor <= 1.4
    np.testing.assert_allclose(brighter, np.clip(image * factor, 0, 255), atol=1.5)

    flatter = colours(image, color_aug_contrast=0.4)
    assert flatter.mean() == pytest.approx(image.mean(), rel=0.1)
    assert abs(flatter.std() / image.std() - 1) > 0.02

    turned = colours(image, color_aug_hue_range=[1 / 3, 1 / 3])
    np.testing.assert_allclose(turned, image[..., [2, 0, 1]], atol=1)

    gamma = colours(image, gamma=[2.0, 2.0, 0.5, 0.5])
    np.testing.assert_allclose(gamma, 127.5 * (image / 255) ** 2, atol=0.6)


FACTORS = {
    "color_aug_brightness": (0.4, lambda image, new: new.mean() / image.mean(), 0.6, 1.4),
    "color_aug_contrast": (0.3, lambda image, new: new.std() / image.std(), 0.7, 1.3),
    "color_aug_saturation": (
        [0.2, 1.4],
        lambda image, new: np.ptp(new, axis=-1).mean() / np.ptp(image, axis=-1).mean(),
        0.2,
        1.4,
    ),
    "color_aug_hue_range": ([-0.1, 0.05], lambda image, new: turns(image, new), -0.1, 0.05),
    "gamma": ([0.5, 2.0, 1.0, 1.0], lambda _, new: np.log(new[0, 0, 0] / 255) / LOG_GREY, 0.5, 2.0),
}
LOG_GREY = np.log(100 / 255)


def turns(image: np.ndarray, new: np.ndarray) -> float:
    """Rotation about the grey axis in turns, from the part of the colours across it."""
    flat, turned = (view - view.mean(axis=-1, keepdims=True) for view in (image, new))
    across = np.cross(np.ones(3) / np.sqrt(3), flat)
    return float(np.arctan2((turned * across).sum(), (turned * flat).sum()) / (2 * np.pi))


@pytest.mark.parametrize("name", FACTORS)
@pytest.mark.parametrize("asymmetric", [0.0, 1.0])
def test_colour_strengths_are_drawn_from_their_range_in_both_branches(
    name: str, asymmetric: float
) -> None:
    value, measure, low, high = FACTORS[name]
    image = rng(2).integers(80, 130, (32, 64, 3), np.uint8)
    image[0, 0] = 100
    sample = replace(coordinates(32, 64), left=image, right=image)
    chosen = spec(crop_size=[32, 64], color_aug_prob=asymmetric, **{name: value})

    crops = [augment(sample, chosen, rng(seed)) for seed in range(200)]

    views = [crop.left for crop in crops] + [crop.right for crop in crops]
    found = [measure(image.astype(float), view.astype(float)) for view in views]
    assert min(found) == pytest.approx(low, abs=0.05 * (high - low) + 0.02)
    assert max(found) == pytest.approx(high, abs=0.05 * (high - low) + 0.02)


def test_gain_multiplies_after_the_power() -> None:
    image = np.full((32, 64, 3), 100, np.uint8)
    sample = replace(coordinates(32, 64), left=image, right=image)
    chosen = spec(crop_size=[32, 64], gamma=[2.0, 2.0, 0.5, 1.5])

    found = [augment(sample, chosen, rng(seed)).left[0, 0, 0] for seed in range(200)]

    power = 255 * (100 / 255) ** 2
    assert min(found) == pytest.approx(0.5 * power, abs=2)
    assert max(found) == pytest.approx(1.5 * power, abs=2)


def test_all_strengths_0_leave_the_colours_alone() -> None:
    for crop in coordinate_crops(20, color_aug_prob=0.5):
        assert (crop.left[..., 2] == 0).all()
        assert (crop.left % 4 == 0).all()


def test_contrast_blends_with_the_mean_of_both_views_in_the_symmetric_branch() -> None:
    dark, light = (np.full((32, 64, 3), grey, np.uint8) for grey in (60, 180))
    sample = replace(coordinates(32, 64), left=dark, right=light)

    for seed in range(10):
        together = augment(sample, spec(crop_size=[32, 64], color_aug_contrast=0.4), rng(seed))
        apart = augment(
            sample,
            spec(crop_size=[32, 64], color_aug_contrast=0.4, color_aug_prob=1.0),
            rng(seed),
        )
        assert abs(int(together.left[0, 0, 0]) + int(together.right[0, 0, 0]) - 240) <= 1
        assert (int(apart.left[0, 0, 0]), int(apart.right[0, 0, 0])) == (60, 180)


def test_the_order_of_the_operations_is_drawn() -> None:
    """A saturation and a hue turn of fixed size give one of two results: they do not commute."""
    image = rng(2).integers(60, 180, (32, 64, 3), np.uint8)
    sample = replace(coordinates(32, 64), left=image, right=image)
    turn, saturation = [0.25, 0.25], [0.2, 0.2]
    chosen = spec(crop_size=[32, 64], color_aug_hue_range=turn, color_aug_saturation=saturation)

    results = {augment(sample, chosen, rng(seed)).left[:4, :4].tobytes() for seed in range(30)}

    assert len(results) == 2


def erased(seed: int, height: int, width: int) -> np.ndarray:
    """Where the eraser acted on an image of extreme colours, so that the mean is none of them."""
    image = 255 * rng(0).integers(0, 2, (height, width, 3), np.uint8)
    return (augment_stereo._erase(rng(seed), image) != image).any(axis=-1)


def rectangles(height: int, width: int) -> Iterable[tuple[int, int]]:
    """(columns, rows) of erased rectangles that neither meet nor touch the border."""
    for seed in range(300):
        changed = erased(seed, height, width).astype(np.uint8)
        _, _, stats, _ = cv2.connectedComponentsWithStats(changed)
        for left, top, columns, rows, area in stats[1:]:
            inside = left > 0 and top > 0 and left + columns < width and top + rows < height
            if inside and area == rows * columns:
                yield int(columns), int(rows)


@pytest.mark.parametrize(("size", "sides"), [((320, 640), (50, 99)), ((96, 160), (15, 30))])
def test_eraser_sides_are_50_to_99_px_less_on_small_crops(
    size: tuple[int, int], sides: tuple[int, int]
) -> None:
    """96 / 320 of 50..99 is 15..30."""
    found = [side for place in rectangles(*size) for side in place]

    assert (min(found), max(found)) == sides


def test_eraser_draws_one_or_two_rectangles_anywhere() -> None:
    numbers, tops, lefts = set(), [], []
    for seed in range(150):
        changed = erased(seed, 96, 160)
        y, x = np.nonzero(changed)
        tops.append(y.min())
        lefts.append(x.min())
        numbers.add(cv2.connectedComponents(changed.astype(np.uint8))[0] - 1)

    assert numbers == {1, 2}
    assert min(tops) < 5
    assert max(tops) > 85
    assert min(lefts) < 5
    assert max(lefts) > 145


def test_eraser_fills_with_the_mean_colour() -> None:
    image = rng(1).integers(0, 100, (96, 160, 3), np.uint8)
    image[:, :80] += 100

    filled = augment_stereo._erase(rng(1), image)

    (colour,) = np.unique(filled[(filled != image).any(axis=-1)], axis=0)
    np.testing.assert_allclose(colour, image.mean(axis=(0, 1)), atol=3)


def test_eraser_fills_rectangles_of_the_right_view_only(clean_sample: Build) -> None:
    sample = clean_sample(0, whole=True)
    kept = augment(sample, spec(), rng(0))
    shares = []
    for seed in range(30):
        crop = augment(sample, spec(eraser_aug_prob=1.0), rng(seed))
        plain = augment(sample, spec(), rng(seed))
        np.testing.assert_array_equal(crop.left, plain.left)
        np.testing.assert_array_equal(crop.disparity, plain.disparity)
        shares.append((crop.right != plain.right).any(axis=-1).mean())
    assert min(shares) > 0
    # sides of 50..99 px shrink by 96 / 320: at most two of 30x30 in 96x160
    assert max(shares) <= 2 * 30 * 30 / (96 * 160)
    assert kept.left.shape == (96, 160, 3)


PROBABILITIES = {
    "yjitter_prob": {},
    "color_aug_prob": {"color_aug_brightness": 0.4},
    "eraser_aug_prob": {},
    "spatial_aug_prob": {"min_scale": -0.2, "max_scale": 0.4},
    "stretch_prob": {"spatial_aug_prob": 1.0, "max_stretch": 0.2},
    "h_flip_prob": flips(),
    "v_flip_prob": flips(),
    "hshift_prob": {},
    "crop_min_valid_disp_ratio": {},
}


def test_the_searched_fields_are_the_ones_measured() -> None:
    searched = {leaf.path for leaf in leaves(StereoAugmentSpec) if leaf.facts.automl_enabled}

    assert searched == set(PROBABILITIES)


@pytest.mark.parametrize("name", PROBABILITIES)
def test_each_searched_field_changes_samples(name: str, clean_sample: Build) -> None:
    sample = clean_sample(2)

    def crops(value: float) -> list[StereoSample]:
        chosen = spec(**{**PROBABILITIES[name], name: value})
        return [augment(sample, chosen, rng(seed)) for seed in range(12)]

    changed = [
        any(
            (getattr(off, view) != getattr(on, view)).mean() > 0.002
            for view in ("left", "right", "disparity")
        )
        for off, on in zip(crops(0.0), crops(0.99), strict=True)
    ]

    assert np.mean(changed) > 0.5


def test_do_flip_switches_both_flips_off(clean_sample: Build) -> None:
    sample = clean_sample(0)
    plain = augment(sample, spec(crop_size=[192, 256]), rng(0))
    off = {"do_flip": False, "h_flip_prob": 1.0, "v_flip_prob": 1.0}

    crop = augment(sample, spec(crop_size=[192, 256], **off), rng(0))

    np.testing.assert_array_equal(crop.left, plain.left)


def test_equal_generators_give_equal_crops_and_the_sample_is_untouched(clean_sample: Build) -> None:
    sample = clean_sample(0)
    before = [array.copy() for array in (sample.left, sample.right, sample.disparity)]
    everything = StereoAugmentSpec(crop_size=[96, 160], do_flip=True, hshift_prob=1.0)

    first, second = (augment(sample, everything, rng(9)) for _ in range(2))

    for one, other in ((first.left, second.left), (first.disparity, second.disparity)):
        np.testing.assert_array_equal(one, other)
    for array, copy in zip((sample.left, sample.right, sample.disparity), before, strict=True):
        np.testing.assert_array_equal(array, copy)
    assert first.left.shape == (96, 160, 3)
    assert first.disparity.shape == (96, 160)


def test_read_only_maps_of_a_cache_are_enough(clean_sample: Build) -> None:
    sample = clean_sample(1)
    for array in (sample.left, sample.right, sample.disparity):
        array.setflags(write=False)
    for seed in range(8):
        chosen = StereoAugmentSpec(crop_size=[96, 160], do_flip=True, blur_scale=bool(seed % 2))
        crop = augment(replace(sample, is_sparse=seed > 3), chosen, rng(seed))
        assert crop.left.flags.writeable


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3, 2), (33, 5000)])
def test_images_of_any_size_give_a_crop(size: tuple[int, int]) -> None:
    image = rng(1).integers(0, 256, (*size, 3), np.uint8)
    truth = rng(2).uniform(1, 50, size).astype(np.float32)
    for seed in range(6):
        chosen = StereoAugmentSpec(crop_size=[32, 64], do_flip=True, hshift_prob=0.5)
        sample = replace(coordinates(), left=image, right=image, disparity=truth)
        sample = replace(sample, right_disparity=None, is_sparse=seed % 2 == 1)
        crop = augment(sample, chosen, rng(seed))
        assert crop.left.shape == crop.right.shape == (32, 64, 3)
        assert crop.disparity.shape == (32, 64)


STEADY = {
    "crop_size": [192, 256],
    "color_aug_saturation": [0.8, 0.8],
    "gamma": [0.9, 0.9, 1.1, 1.1],
}
VARYING = {
    "crop_size": {"crop_size": [160, 256]},
    "yjitter_prob": {"yjitter_prob": 0.5},
    "color_aug_brightness": {"color_aug_brightness": 0.4},
    "color_aug_contrast": {"color_aug_contrast": 0.4},
    "color_aug_saturation": {"color_aug_saturation": [0.2, 1.4]},
    "color_aug_hue_range": {"color_aug_hue_range": [0.01, 0.01]},
    "gamma": {"gamma": [0.5, 1.5, 1.0, 1.0]},
    "gamma (gain)": {"gamma": [1.0, 1.0, 0.5, 1.5]},
    "eraser_aug_prob": {"eraser_aug_prob": 0.5},
    "spatial_aug_prob": scales(-0.4, 0.4, spatial_aug_prob=0.5),
    "hshift_prob": {"hshift_prob": 0.5},
    "h_flip_prob": flips(h=0.5),
    "v_flip_prob": flips(v=0.5),
}


def views(sample: StereoSample, augmentation: StereoAugmentSpec) -> set[bytes]:
    """Both views of a dozen crops, as many as differ."""
    crops = (augment(sample, augmentation, rng(seed)) for seed in range(12))
    return {crop.left.tobytes() + crop.right.tobytes() for crop in crops}


@pytest.mark.parametrize("crop_size", [[192, 256], [224, 288]])
def test_no_field_varies_where_all_crops_are_the_same(
    clean_sample: Build, crop_size: list[int]
) -> None:
    augmentation = spec(**{**STEADY, "crop_size": crop_size})

    assert varying_fields(augmentation, (192, 256)) == []
    assert len(views(clean_sample(3), augmentation)) == 1


@pytest.mark.parametrize("name", VARYING)
def test_a_field_by_which_crops_differ_is_named(clean_sample: Build, name: str) -> None:
    augmentation = spec(**{**STEADY, **VARYING[name]})

    assert varying_fields(augmentation, (192, 256)) == [name]
    assert len(views(clean_sample(3), augmentation)) > 1
