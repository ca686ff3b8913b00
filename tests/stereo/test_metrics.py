"""Golden values: tests/golden/losses.npz, computed independently in float64 NumPy."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stereo.geometry import align
from stereo.metrics import METRICS, DepthMetrics, DisparityMetrics, Metrics, RelativeMetrics

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "losses.npz")
COUNTS = ("bp1", "bp2", "bp3", "d1")


def golden_maps(group: str) -> tuple[torch.Tensor, ...]:
    keys = {"stereo": ("stereo_metrics/pred", "stereo/gt", "stereo/valid")}
    names = keys.get(group, tuple(f"{group}/{name}" for name in ("pred", "gt", "valid")))
    return tuple(torch.from_numpy(GOLDEN[name].reshape(3, 32, 48).copy()) for name in names)


def scorer(group: str) -> Metrics:
    if group == "metric":
        return DepthMetrics(float(GOLDEN["metric/min_depth"]), float(GOLDEN["metric/max_depth"]))
    return DisparityMetrics(192) if group == "stereo" else RelativeMetrics()


@pytest.fixture
def maps() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return golden_maps("stereo")


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


@given(split=st.integers(0, 3), group=st.sampled_from(["stereo", "metric", "relative"]))
@settings(deadline=None)
def test_batches_do_not_matter(split: int, group: str) -> None:
    whole, parts = scorer(group), scorer(group)
    prediction, truth, valid = golden_maps(group)
    valid[1, :16] = False
    valid[2] = False
    whole.update(prediction, truth, valid)
    for part in (slice(0, split), slice(split, 3)):
        parts.update(prediction[part], truth[part], valid[part])
    one, other = whole.compute(), parts.compute()
    for key in ("image", "pixel"):
        assert one.pop(key) == pytest.approx(other.pop(key), rel=1e-12)
    assert one == other
    assert one["skipped"] == 1


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


@pytest.mark.parametrize("group", ["metric", "relative"])
def test_mono_values_equal_the_goldens(group: str) -> None:
    metrics = scorer(group)
    rows = metrics.update(*golden_maps(group))
    result = metrics.compute()
    for name in metrics.table:
        rtol = 1e-12 if name in ("d1", "d2", "d3") else 1e-8
        for key, folder in (("image", "image_mean"), ("pixel", "pixel_pooled")):
            value = float(GOLDEN[f"{group}_metrics/{folder}/{name}"])
            assert result[key][name] == pytest.approx(value, rel=rtol), name
        expected = GOLDEN[f"{group}_metrics/per_image/{name}"].tolist()
        assert [row[name] for row in rows] == pytest.approx(expected, rel=rtol), name
    assert list(result["pixel"]) == list(rows[0]) == list(metrics.table)
    assert result["images"] == 3
    assert metrics.flat == "pixel"


def test_alignment_equals_the_golden() -> None:
    prediction, truth, valid = golden_maps("relative")
    alignment = align(prediction.double(), truth.double(), valid)
    found = torch.stack((alignment.scale, alignment.shift), dim=-1).numpy()
    assert np.allclose(found, GOLDEN["relative_metrics/scale_shift"], rtol=1e-9, atol=0)
    restored = alignment.scale[:, None, None] * prediction + alignment.shift[:, None, None]
    assert torch.allclose(alignment.aligned[valid], restored[valid], rtol=1e-9)


def plain_numpy(p: np.ndarray, g: np.ndarray, relative: bool) -> dict[str, float]:
    """The table of training.md 3.2 for the valid pixels of one image, pixel by pixel."""
    p, g = p.astype(float), g.astype(float)
    if relative:
        matrix = np.stack([p, np.ones_like(p)], axis=1)
        scale, shift = np.linalg.lstsq(matrix, g, rcond=None)[0]
        p, g = np.maximum(scale * p + shift, 1e-8), np.maximum(g, 1e-8)
    else:
        p, g = np.clip(p, 0.5, 8.0), np.clip(g, 0.5, 8.0)
    e, ratio = np.log(p) - np.log(g), np.maximum(p / g, g / p)
    values = {f"d{k}": np.mean(ratio < 1.25**k) for k in (1, 2, 3)}
    values |= {"abs_rel": np.mean(abs(p - g) / g), "sq_rel": np.mean((p - g) ** 2 / g)}
    values |= {"rmse": np.mean((p - g) ** 2) ** 0.5, "rmse_log": np.mean(e**2) ** 0.5}
    values |= {"log10": np.mean(abs(np.log10(p) - np.log10(g)))}
    values |= {"silog": (np.mean(e**2) - 0.5 * np.mean(e) ** 2) ** 0.5}
    return values | {"silog_kitti": 100 * np.std(e)}


@given(seed=st.integers(0, 999), share=st.floats(0.1, 1.0), relative=st.booleans())
@settings(deadline=None, max_examples=30)
def test_mono_metrics_equal_a_short_numpy_script(seed: int, share: float, relative: bool) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0.6, 7.9, (2, 12, 10)).astype(np.float32)
    prediction = (truth * rng.uniform(0.6, 1.7, truth.shape) - 0.5).astype(np.float32)
    valid = rng.random(truth.shape) < share
    valid[:, 0, :5] = True
    truth[~valid] = rng.choice([np.nan, np.inf, 0.0, -1.0], int((~valid).sum()))
    metrics = RelativeMetrics() if relative else DepthMetrics(0.5, 8.0)
    rows = metrics.update(*map(torch.from_numpy, (prediction, truth, valid)))
    for row, p, g, m in zip(rows, prediction, truth, valid, strict=True):
        assert row == pytest.approx(plain_numpy(p[m], g[m], relative), rel=1e-7, abs=1e-9)


def test_metric_depth_is_clipped_to_its_range() -> None:
    prediction = torch.tensor([[[-5.0, 0.0, 99.0, torch.inf]]])
    truth = torch.tensor([[[1.0, 1.0, 8.0, 8.0]]])
    metrics = DepthMetrics(0.5, 10.0)
    (row,) = metrics.update(prediction, truth, torch.ones(1, 1, 4, dtype=torch.bool))
    assert row["abs_rel"] == pytest.approx((0.5 + 0.5 + 0.25 + 0.25) / 4)
    assert row["rmse_log"] == pytest.approx(((np.log(2) ** 2 + np.log(1.25) ** 2) / 2) ** 0.5)
    assert row["d1"] == 0.0  # the ratio 1.25 itself is not below 1.25
    assert row["d2"] == 0.5
    result = metrics.compute()
    assert (result["min_depth"], result["max_depth"]) == (0.5, 10.0)


def test_a_perfect_prediction_has_no_error() -> None:
    _, truth, valid = golden_maps("metric")
    metrics = DepthMetrics(0.001, 10.0)
    metrics.update(torch.where(valid, truth, 0.0), truth, valid)
    pixel = metrics.compute()["pixel"]
    assert [pixel.pop(name) for name in ("d1", "d2", "d3")] == [1.0] * 3
    assert set(pixel.values()) == {0.0}


def test_a_depth_of_0_has_finite_errors_where_min_depth_is_0() -> None:
    metrics = DepthMetrics(0.0, 10.0)
    prediction = torch.tensor([[[0.0, 1.0]]])  # a sigmoid in float16 underflows
    (row,) = metrics.update(prediction, torch.ones(1, 1, 2), torch.ones(1, 1, 2, dtype=torch.bool))
    assert row is not None
    assert row["rmse_log"] == pytest.approx(math.log(1e6) / math.sqrt(2))
    assert (row["d1"], row["abs_rel"]) == (0.5, pytest.approx(0.5, abs=1e-6))


@given(factor=st.floats(0.5, 2.0))
@settings(deadline=None)
def test_a_common_factor_is_no_scale_invariant_error(factor: float) -> None:
    _, truth, valid = golden_maps("metric")
    metrics = DepthMetrics(1e-3, 1e3)
    metrics.update(truth.double() * factor, truth, valid)
    pixel = metrics.compute()["pixel"]
    assert pixel["silog_kitti"] == pytest.approx(0, abs=1e-4)  # a difference of rounded means
    assert pixel["rmse_log"] == pytest.approx(abs(math.log(factor)), rel=1e-6, abs=1e-7)


@given(scale=st.floats(0.01, 100), shift=st.floats(-100, 100))
@settings(deadline=None)
def test_relative_scores_ignore_scale_and_shift(scale: float, shift: float) -> None:
    prediction, truth, valid = golden_maps("relative")
    metrics, moved = RelativeMetrics(), RelativeMetrics()
    metrics.update(prediction, truth, valid)
    moved.update(prediction.double() * scale + shift, truth, valid)
    assert moved.compute()["pixel"] == pytest.approx(metrics.compute()["pixel"], rel=1e-6)


def test_relative_depth_is_raised_to_its_floor() -> None:
    prediction = torch.tensor([[[0.0, 1.0, 2.0, 3.0, 4.0]]])
    truth = torch.tensor([[[1e-12, 1e-12, 1e-12, 1e-12, 1.0]]])  # aligned: -0.2, 0, 0.2, 0.4, 0.6
    (row,) = RelativeMetrics().update(prediction, truth, torch.ones(1, 1, 5, dtype=torch.bool))
    assert row["d1"] == pytest.approx(2 / 5)
    assert row["abs_rel"] == pytest.approx((0.2e8 + 0.4e8) / 5, rel=1e-6)


def test_relative_images_that_cannot_be_aligned_are_skipped_and_counted() -> None:
    truth = torch.rand(4, 6, 7, generator=torch.Generator().manual_seed(0)) + 0.1
    prediction = 2 * truth - 1
    valid = torch.ones_like(truth, dtype=torch.bool)
    valid[0] = False
    valid[1] = False
    valid[1, 2, 3] = True
    prediction[2] = 0.1  # whose mean over 42 pixels is not exactly 0.1
    metrics = RelativeMetrics()
    rows = metrics.update(prediction, truth, valid)
    result = metrics.compute()
    assert rows[:3] == [None] * 3
    assert rows[3]["abs_rel"] == pytest.approx(0, abs=1e-6)
    assert (result["images"], result["skipped"], result["pixels"]) == (1, 3, 42)
    assert result["coverage"] == pytest.approx(42 / 85)


@pytest.mark.parametrize("group", ["metric", "relative"])
def test_mono_predictions_that_are_not_numbers_are_bad_and_not_skipped(group: str) -> None:
    prediction, truth, valid = (tensor[:1] for tensor in golden_maps(group))
    prediction[valid] = math.nan
    metrics = scorer(group)
    metrics.update(prediction, truth, valid)
    result = metrics.compute()
    assert math.isnan(result["image"]["abs_rel"])
    assert math.isnan(result["image"]["silog_kitti"])
    assert result["pixel"]["d3"] == 0.0
    assert result["images"] == 1


@pytest.mark.parametrize("metrics", [DepthMetrics(0.1, 10), RelativeMetrics()], ids=["m", "r"])
def test_an_empty_batch_changes_nothing(metrics: Metrics) -> None:
    empty = torch.zeros(0, 4, 5)
    assert metrics.update(empty, empty, empty.bool()) == []
    assert metrics.compute()["images"] == metrics.compute()["skipped"] == 0


def test_accuracies_are_better_when_larger_and_relative_depth_has_no_metres() -> None:
    for table in (DepthMetrics.table, RelativeMetrics.table):
        larger = {name for name, metric in table.items() if metric.direction == "maximize"}
        assert larger == {"d1", "d2", "d3"}
    assert {m.name for m in DepthMetrics.table.values() if m.unit == "m"} == {"sq_rel", "rmse"}
    assert {m.unit for m in RelativeMetrics.table.values()} == {"", "fraction"}
    meaningful = {name for name, metric in RelativeMetrics.table.items() if metric.meaningful}
    assert meaningful == {"d1", "d2", "d3", "abs_rel"}
