"""Golden values: tests/golden/losses.npz, computed independently in float64 NumPy."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stereo.metrics import METRICS, DisparityMetrics

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "losses.npz")
COUNTS = ("bp1", "bp2", "bp3", "d1")


@pytest.fixture
def maps() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    keys = ("stereo_metrics/pred", "stereo/gt", "stereo/valid")
    return tuple(torch.from_numpy(GOLDEN[key])[:, 0] for key in keys)


def test_image_pixel_and_per_image_values_equal_the_goldens(maps) -> None:
    metrics = DisparityMetrics(192)
    rows = metrics.update(*maps)
    result = metrics.compute()
    for name in METRICS:
        rtol = 1e-12 if name in COUNTS else 1e-6
        image = float(GOLDEN[f"stereo_metrics/image_mean/{name}"])
        pixel = float(GOLDEN[f"stereo_metrics/pixel_pooled/{name}"])
        assert result["image"][name] == pytest.approx(image, rel=rtol), name
        assert result["pixel"][name] == pytest.approx(pixel, rel=rtol), name
        expected = GOLDEN[f"stereo_metrics/per_image/{name}"].tolist()
        assert [row[name] for row in rows] == pytest.approx(expected, rel=rtol), name
    assert result["images"] == 3
    assert result["pixels"] == int(GOLDEN["stereo_metrics/num_valid"].sum())


@given(split=st.integers(0, 3))
@settings(deadline=None)
def test_batches_do_not_matter(split: int) -> None:
    prediction, truth, valid = (
        torch.from_numpy(GOLDEN[key])[:, 0]
        for key in ("stereo_metrics/pred", "stereo/gt", "stereo/valid")
    )
    whole, parts = DisparityMetrics(192), DisparityMetrics(192)
    whole.update(prediction, truth, valid)
    for part in (slice(0, split), slice(split, 3)):
        parts.update(prediction[part], truth[part], valid[part])
    one, other = whole.compute(), parts.compute()
    for group in ("image", "pixel"):
        assert one[group] == pytest.approx(other[group], rel=1e-12)


def test_images_without_valid_pixels_are_skipped_and_counted(maps) -> None:
    prediction, truth, valid = maps
    valid = valid.clone()
    valid[1] = False
    metrics = DisparityMetrics(192)
    rows = metrics.update(prediction, truth, valid, torch.tensor([1536, 10, 1536]))
    result = metrics.compute()
    assert rows[1] is None
    assert (result["images"], result["skipped"]) == (2, 1)
    epe = GOLDEN["stereo_metrics/per_image/epe"]
    assert result["image"]["epe"] == pytest.approx((epe[0] + epe[2]) / 2)
    assert result["coverage"] == pytest.approx(int(valid.sum()) / (1536 * 2 + 10))


def test_nothing_valid_is_nan_and_not_zero(maps) -> None:
    prediction, truth, valid = maps
    metrics = DisparityMetrics(192)
    metrics.update(prediction, truth, torch.zeros_like(valid))
    result = metrics.compute()
    assert math.isnan(result["image"]["epe"])
    assert math.isnan(result["pixel"]["bp1"])
    assert result["coverage"] == 0.0


def test_a_prediction_that_is_not_a_number_counts_as_bad(maps) -> None:
    prediction, truth, valid = (tensor[:1].clone() for tensor in maps)
    prediction[valid] = math.nan
    metrics = DisparityMetrics(192)
    metrics.update(prediction, truth, valid)
    image = metrics.compute()["image"]
    assert math.isnan(image["epe"])
    assert [image[name] for name in COUNTS] == [1.0] * 4


def test_every_metric_is_better_when_smaller_and_depth_measures_are_marked() -> None:
    assert {metric.direction for metric in METRICS.values()} == {"minimize"}
    doubtful = {name for name, metric in METRICS.items() if not metric.meaningful}
    assert doubtful == {"abs_rel", "sq_rel", "rmse_log"}
