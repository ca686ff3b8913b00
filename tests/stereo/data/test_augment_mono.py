from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stereo.data.annotations import Row
from stereo.data.augment_mono import (
    PATCH,
    augment_mono,
    limit_depth,
    network_size,
    normalize_depth,
    resize_image,
)
from stereo.data.datasets import MonoSample, find_format
from stereo.errors import SpecError
from stereo.spec.data import MonoAugmentSpec
from stereo.spec.fields import leaves

ROW = Row(Path("rgb.jpg"), None, Path("depth.png"), None, Path("train.txt"), 1)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def ramps(height: int, width: int) -> MonoSample:
    """The image holds x in red and y in green, the target x + 1; sides up to 255."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    image = np.stack([x, y, 0 * x], axis=-1)
    return MonoSample(image.astype(np.uint8), x + 1, True, "rgb.jpg", ROW)


def flips(probability: float, *, do_flip: bool = True) -> MonoAugmentSpec:
    return MonoAugmentSpec(crop_size=[70, 98], do_flip=do_flip, h_flip_prob=probability)


@pytest.mark.parametrize(
    ("size", "crop_size", "network"),
    [
        ((480, 640), (518, 518), (518, 686)),  # 690.7 columns, rounded to a multiple of 14
        ((375, 1242), (518, 518), (518, 1722)),
        ((1080, 1920), (518, 518), (518, 924)),
        ((720, 480), (518, 518), (784, 518)),
        ((518, 518), (518, 518), (518, 518)),
        ((120, 160), (98, 126), (98, 126)),
        ((133, 101), (112, 126), (168, 126)),
        ((400, 400), (518, 686), (686, 686)),
        ((1024, 768), (266, 266), (350, 266)),
        ((1000, 37), (70, 70), (1890, 70)),
        ((480, 640), (495, 495), (504, 658)),  # 490 is nearer to 495 but would not cover it
    ],
)
def test_network_size_of_the_recorded_cases(
    size: tuple[int, int], crop_size: tuple[int, int], network: tuple[int, int]
) -> None:
    assert network_size(size, crop_size) == network


@given(
    size=st.tuples(st.integers(1, 4000), st.integers(1, 4000)),
    patches=st.tuples(st.integers(1, 60), st.integers(1, 60)),
)
def test_network_size_covers_the_crop_in_whole_patches_and_keeps_the_aspect(
    size: tuple[int, int], patches: tuple[int, int]
) -> None:
    crop_size = tuple(PATCH * count for count in patches)

    network = network_size(size, crop_size)

    scale = max(least / side for side, least in zip(size, crop_size, strict=True))
    for side, least, length in zip(size, crop_size, network, strict=True):
        assert length % PATCH == 0
        assert length >= least
        assert abs(length - scale * side) < PATCH
    assert any(length < least + PATCH for least, length in zip(crop_size, network, strict=True))


def test_other_splits_resize_the_image_with_bicubic_weights() -> None:
    image = rng(1).integers(0, 256, (48, 64, 3), np.uint8)

    resized = resize_image(image, [70, 70])

    expected = cv2.resize(image, (98, 70), interpolation=cv2.INTER_CUBIC)
    np.testing.assert_array_equal(resized, expected)


@settings(deadline=None, max_examples=40)
@given(
    size=st.tuples(st.integers(40, 160), st.integers(40, 200)),
    seed=st.integers(0, 99),
    mirrored=st.booleans(),
)
def test_image_and_target_of_a_crop_show_the_same_source_pixels(
    size: tuple[int, int], seed: int, mirrored: bool
) -> None:
    """Both are linear in x, so at every pixel they mean the same source column."""
    sample = ramps(*size)

    crop = augment_mono(sample, flips(float(mirrored)), rng(seed))

    assert crop.image.shape == (70, 98, 3)
    assert crop.target.shape == (70, 98)
    assert crop.valid.all()
    column = crop.image[..., 0].astype(float)
    inner = (column > 3) & (column < size[1] - 4)  # bicubic weights flatten a ramp at its ends
    difference = (column - (crop.target - 1))[inner]
    assert np.abs(difference).max() < 1.01  # nearest and rounding, half a column each
    assert abs(difference.mean()) < 0.2
    steps = np.diff(crop.target[0])
    assert (steps <= 0).all() if mirrored else (steps >= 0).all()
    assert set(np.unique(crop.target)) <= set(np.unique(sample.target))  # values do not scale


def test_plain_nearest_of_opencv_is_caught() -> None:
    """What the test above is for: INTER_NEAREST is off by up to a whole pixel."""
    sample = ramps(40, 60)
    column = resize_image(sample.image, [28, 42])[..., 0].astype(float)

    def error(method: int) -> float:
        target = cv2.resize(sample.target, (42, 28), interpolation=method)
        return abs(float((column - (target - 1))[:, 3:-3].mean()))

    assert error(cv2.INTER_NEAREST_EXACT) < 0.2
    assert error(cv2.INTER_NEAREST) > 0.2


def test_crop_is_height_by_width_anywhere_to_the_last_pixel() -> None:
    spec = MonoAugmentSpec(crop_size=[70, 98])

    crops = [augment_mono(ramps(70, 126), spec, rng(seed)) for seed in range(300)]

    assert {crop.target.shape for crop in crops} == {(70, 98)}
    assert {float(crop.target[0, 0]) for crop in crops} == set(range(1, 126 - 98 + 2))


def test_flip_mirrors_image_and_target_with_the_probability_when_switched_on() -> None:
    sample = ramps(70, 98)

    def mirrored(spec: MonoAugmentSpec) -> float:
        crops = [augment_mono(sample, spec, rng(seed)) for seed in range(60)]
        for crop in crops:
            step = -1 if crop.target[0, 0] > 1 else 1
            np.testing.assert_array_equal(crop.image[:, ::step], sample.image)
            np.testing.assert_array_equal(crop.target[:, ::step], sample.target)
        return float(np.mean([crop.target[0, 0] > 1 for crop in crops]))

    assert mirrored(flips(0.0)) == 0
    assert mirrored(flips(1.0)) == 1
    assert 0.3 < mirrored(flips(0.5)) < 0.7
    assert mirrored(flips(1.0, do_flip=False)) == 0


def test_unknown_target_stays_unknown_and_does_not_spread() -> None:
    sample = ramps(140, 196)
    target = sample.target.copy()
    target[:, 50:80] = np.inf
    target[0, 0] = np.inf

    crop = augment_mono(
        replace(sample, target=target), MonoAugmentSpec(crop_size=[140, 196]), rng()
    )

    np.testing.assert_array_equal(crop.target, target)
    np.testing.assert_array_equal(crop.valid, np.isfinite(target))


@pytest.mark.parametrize(
    ("crop_size", "nearest"), [([518, 500], r"\[518, 504\]"), ([100, 98], r"\[98, 98\]")]
)
def test_a_crop_of_broken_patches_is_refused(crop_size: list[int], nearest: str) -> None:
    with pytest.raises(
        SpecError, match=f"crop_size: got .* multiple of 14; the nearest is {nearest}"
    ):
        augment_mono(ramps(60, 80), MonoAugmentSpec(crop_size=crop_size), rng())


def test_equal_generators_give_equal_crops_and_the_sample_is_untouched() -> None:
    sample = ramps(100, 150)
    sample.image.setflags(write=False)
    sample.target.setflags(write=False)

    first, second = (augment_mono(sample, flips(0.5), rng(4)) for _ in range(2))

    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.target, second.target)
    assert first.image.flags.c_contiguous
    assert first.target.flags.c_contiguous
    assert first.target.dtype == np.float32


def test_the_crop_is_518_square_by_default_and_only_the_flip_is_searched() -> None:
    assert MonoAugmentSpec().crop_size == [518, 518]
    fields = leaves(MonoAugmentSpec)
    assert [field.path for field in fields if field.facts.automl_enabled] == ["h_flip_prob"]


def test_normalised_depth_spans_0_to_1_over_the_valid_pixels() -> None:
    target = np.array([[2.0, 3.0], [np.inf, 6.0]], np.float32)

    normalised = normalize_depth(target)

    np.testing.assert_array_equal(normalised, np.float32([[0, 0.25], [np.inf, 1]]))
    assert normalised.dtype == np.float32


@pytest.mark.parametrize("value", [5.0, np.inf])
def test_normalised_constant_or_unknown_depth_divides_by_nothing(value: float) -> None:
    target = np.full((2, 3), value, np.float32)
    target[0, 0] = np.inf

    expected = np.where(np.isfinite(target), np.float32(0), np.float32(np.inf))
    np.testing.assert_array_equal(normalize_depth(target), expected)


@pytest.mark.parametrize("name", ["NYUDV2", "MetricMonoDataset"])
def test_depth_of_a_metric_class_counts_between_the_limits_only(tmp_path: Path, name: str) -> None:
    depth = np.float32([[0.5, 0.501, 9.999], [10, 10.5, np.inf]])
    form = find_format(name, "mono")
    suffix, encoding = next(iter(form.truth.items()))
    encoding.write(tmp_path / f"depth{suffix}", depth)

    limited = limit_depth(encoding.read(tmp_path / f"depth{suffix}"), 0.5, 10)

    expected = np.float32([[np.inf, 0.501, 9.999], [np.inf, np.inf, np.inf]])
    np.testing.assert_allclose(limited, expected, atol=1e-6)
    assert limited.dtype == np.float32
