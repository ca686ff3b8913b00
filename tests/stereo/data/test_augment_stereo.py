from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stereo.data import augment_stereo
from stereo.data.augment_stereo import Axis, augment, right_view_disparity
from stereo.data.datasets import StereoSample
from stereo.data.generator import generate
from stereo.spec.data import StereoAugmentSpec
from stereo.spec.fields import leaves

Build = Callable[..., StereoSample]
Measure = Callable[..., float]

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


GEOMETRY = {
    "nothing": {},
    "h-flip": flips(h=1.0),
    "v-flip": flips(v=1.0),
    "both flips": flips(h=1.0, v=1.0),
    "shift": {"hshift_prob": 1.0},
    "shift and flip": {"hshift_prob": 1.0, **flips(h=1.0)},
    "shrink": {"spatial_aug_prob": 1.0, "min_scale": -0.6, "max_scale": -0.3},
    "enlarge": {"spatial_aug_prob": 1.0, "min_scale": 0.5, "max_scale": 0.9},
    "stretch": {"spatial_aug_prob": 1.0, "stretch_prob": 1.0, "max_stretch": 0.4},
    "everything": {
        "spatial_aug_prob": 1.0,
        "min_scale": -0.3,
        "max_scale": 0.5,
        "stretch_prob": 1.0,
        "max_stretch": 0.2,
        "hshift_prob": 1.0,
        **flips(h=0.5, v=0.5),
        "crop_min_valid_disp_ratio": 0.5,
    },
    "padding": {"crop_size": [224, 320], "spatial_aug_prob": 1.0, "max_scale": 0.3},
}


@pytest.mark.parametrize("name", GEOMETRY)
def test_right_warped_by_disparity_is_left_after_every_transform(
    name: str, clean_sample: Build, warp_error: Measure
) -> None:
    errors, offsets = [], []
    for index in range(8):
        crop = augment(clean_sample(index), spec(**GEOMETRY[name]), rng(index))
        errors.append(warp_error(crop))
        offsets.append([warp_error(crop, offset=offset) for offset in (-0.2, 0.2)])

    assert np.mean(errors) < 1
    assert np.mean(errors) < np.mean(offsets, axis=0).min()


def plant(monkeypatch: pytest.MonkeyPatch, wrong: str) -> dict[str, object]:
    """Put one known mistake into the module; returns the augmentation that must reveal it."""
    original = augment_stereo.Window.disparity
    if wrong == "left disparity kept unmirrored on a flip":
        monkeypatch.setattr(augment_stereo, "right_view_disparity", lambda d: d[:, ::-1])
        return flips(h=1.0)
    if wrong == "left disparity mirrored on a flip":
        monkeypatch.setattr(augment_stereo, "right_view_disparity", lambda d: d)
        return flips(h=1.0)
    if wrong == "shift not subtracted":
        monkeypatch.setattr(
            augment_stereo.Window,
            "disparity",
            lambda self, d: original(replace(self, column_shift=0), d),
        )
        return {"hshift_prob": 1.0}

    def rescaled(self: augment_stereo.Window, disparity: np.ndarray) -> np.ndarray:
        factor = {"not scaled": 1.0, "scaled by sy": self.rows.scale}[wrong]
        return original(self, disparity) * np.float32(factor / self.columns.scale)

    monkeypatch.setattr(augment_stereo.Window, "disparity", rescaled)
    scales = {"spatial_aug_prob": 1.0, "min_scale": -0.4, "max_scale": -0.2}
    return {**scales, "stretch_prob": 1.0, "max_stretch": 0.2}


@pytest.mark.parametrize(
    "wrong",
    [
        "left disparity kept unmirrored on a flip",
        "left disparity mirrored on a flip",
        "shift not subtracted",
        "not scaled",
        "scaled by sy",
    ],
)
def test_the_warp_test_catches_known_mistakes(
    wrong: str, clean_sample: Build, warp_error: Measure, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = plant(monkeypatch, wrong)

    errors = [
        warp_error(augment(clean_sample(index), spec(**changes), rng(index))) for index in range(8)
    ]

    assert np.mean(errors) > 3


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


def test_horizontal_flip_uses_a_given_right_view_disparity(
    clean_sample: Build, warp_error: Measure
) -> None:
    pair = generate(5, 3, height=192, width=256, photometric=False)
    sample = replace(clean_sample(3, whole=True), right_disparity=pair.right_disparity)

    crop = augment(sample, spec(crop_size=[192, 256], **flips(h=1.0)), rng())

    np.testing.assert_array_equal(crop.disparity, pair.right_disparity[:, ::-1])
    np.testing.assert_array_equal(crop.left, sample.right[:, ::-1])
    np.testing.assert_array_equal(crop.right, sample.left[:, ::-1])


def test_forward_warped_disparity_is_the_right_views() -> None:
    wrong, filled = 0, 0
    for index in range(8):
        pair = generate(6, index, height=192, width=256)
        warped = right_view_disparity(pair.disparity)
        known = np.isfinite(warped)
        wrong += int((np.abs(warped - pair.right_disparity)[known] > 1).sum())
        filled += int(known.sum())

    assert filled > 0.75 * 8 * 192 * 256
    assert wrong < 0.006 * filled


def test_background_seen_through_a_gap_is_dropped() -> None:
    disparity = np.full((1, 12), np.inf, np.float32)
    disparity[0, 2] = 1.0  # lands in column 1, between two pixels at 6 px
    disparity[0, 6], disparity[0, 8] = 6.0, 6.0

    warped = right_view_disparity(disparity)

    assert warped[0, 0] == warped[0, 2] == 6
    assert np.isinf(warped[0, 1])


@settings(deadline=None, max_examples=60)
@given(
    source=st.integers(3, 90),
    size=st.integers(1, 90),
    scale=st.floats(0.5, 2),
    mirrored=st.booleans(),
    position=st.floats(0, 1),
)
def test_window_stays_in_the_image_and_matches_opencv(
    source: int, size: int, scale: float, mirrored: bool, position: float
) -> None:
    axis = Axis.unscaled(size, source, mirrored=mirrored)
    axis = replace(axis, scale=max(scale, size / axis.padded))
    axis = replace(axis, start=round(position * (axis.scaled - size)))

    index = axis.nearest()

    inside = (index >= -axis.padding) & (index < axis.padded - axis.padding)
    assert inside.all()
    slope, offset = axis.map()
    coordinates = slope * np.arange(size) + offset
    assert np.abs(index - coordinates).max() <= 0.5 + 1e-9
    if axis.scale == 1:
        assert (np.abs(np.diff(index)) == 1).all()


def test_scale_is_geometric_and_half_pixel_aligned() -> None:
    """Enlarging by 2 shows source (u + 0.5) / 2 - 0.5; OpenCV's resize has the same centres."""
    image = rng(3).integers(0, 256, (32, 48, 3), np.uint8)
    axes = (Axis.unscaled(64, 32, mirrored=False), Axis.unscaled(96, 48, mirrored=False))
    rows, columns = (replace(a, scale=2.0, padded=a.source) for a in axes)

    warped = augment_stereo.Window(rows, columns, 0, 0).left(image)

    resized = cv2.resize(image, (96, 64), interpolation=cv2.INTER_LINEAR)
    assert np.abs(warped.astype(int) - resized).max() <= 2


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
