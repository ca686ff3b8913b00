"""Golden values: tests/golden/losses.npz, computed independently in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from stereo.losses import (
    masked_mean,
    refinement_weights,
    relative_loss,
    sequence_loss,
    silog_loss,
    smooth_l1,
)

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "losses.npz")


def golden(key: str, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[f"stereo/{key}"]).to(dtype)


@pytest.fixture(params=[torch.float64, torch.float32], ids=str)
def inputs(request):
    dtype = request.param
    initial = golden("init_quarter", dtype).requires_grad_()
    refined = [prediction.requires_grad_() for prediction in golden("preds", dtype)]
    return initial, refined, golden("gt", dtype), torch.from_numpy(GOLDEN["stereo/valid"])


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    return {"rtol": 1e-8 if dtype == torch.float64 else 1e-5, "atol": 0.0}


def test_values_and_gradients_equal_the_goldens(inputs) -> None:
    initial, refined, truth, valid = inputs
    loss = sequence_loss(initial, refined, truth, valid)
    loss.total.backward()

    limits = tolerance(initial.dtype)
    assert_close(loss.total.double(), golden("loss"), **limits)
    assert_close(loss.initial.double(), golden("loss_init"), **limits)
    assert_close(loss.last.double(), golden("terms")[-1], **limits)
    assert_close(torch.tensor(refinement_weights(5)).double(), golden("weights"), rtol=1e-6, atol=0)
    for gradient, key in ((initial.grad, "grad_init"), (refined[-1].grad, "grad_last")):
        expected = golden(key)
        limit = limits["rtol"] * float(expected.abs().max())
        assert_close(gradient.double(), expected, rtol=0, atol=limit)


def test_a_single_refinement_trains(inputs) -> None:
    initial, refined, truth, valid = inputs
    loss = sequence_loss(initial, refined[-1:], truth, valid)
    loss.total.backward()
    expected = golden("loss_single_prediction")
    assert_close(loss.total.double(), expected, **tolerance(initial.dtype))
    assert refined[-1].grad.abs().sum() > 0


def test_no_valid_pixel_gives_zero_with_zero_gradients(inputs) -> None:
    initial, refined, truth, valid = inputs
    loss = sequence_loss(initial, refined, truth, torch.zeros_like(valid))
    loss.total.backward()
    assert loss.total.item() == float(golden("loss_no_valid_pixels")) == 0.0
    assert float(initial.grad.abs().sum()) == 0.0
    assert float(refined[0].grad.abs().sum()) == 0.0


def test_validation_loss_is_smooth_l1_of_the_last_refinement(inputs) -> None:
    _, refined, truth, valid = inputs
    error = smooth_l1(refined[-1], torch.where(valid, truth, 0.0))
    value = masked_mean(error, valid).double()
    assert_close(value, golden("val_loss"), **tolerance(truth.dtype))


def test_half_precision_predictions_are_compared_in_float32() -> None:
    truth = torch.full((1, 1, 8, 8), 2000.5)
    prediction = torch.full_like(truth, 2000).half()
    valid = torch.ones_like(truth, dtype=torch.bool)
    loss = sequence_loss(torch.zeros(1, 1, 2, 2).half(), [prediction], truth, valid)
    assert loss.last.dtype == torch.float32
    assert loss.last.item() == 0.5


DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
FORMS = ["variance", "sqrt", "ssi", "trimmed"]


def mono(group: str, dtype: torch.dtype, mask: str = "valid") -> tuple[torch.Tensor, ...]:
    """Prediction, ground truth and mask of a group, (3, 1, H, W)."""
    pred, gt, valid = (torch.from_numpy(GOLDEN[f"{group}/{key}"]) for key in ("pred", "gt", mask))
    return pred.to(dtype)[:, None].requires_grad_(), gt.to(dtype)[:, None], valid[:, None]


def expected(key: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[key]).double()


def mono_loss(form: str, *maps: torch.Tensor) -> torch.Tensor:
    if form in ("ssi", "trimmed"):
        return relative_loss(*maps, form=form)
    return silog_loss(*maps, form=form)


@DTYPES
def test_silog_equals_the_goldens(dtype: torch.dtype) -> None:
    prediction, truth, valid = mono("metric", dtype)
    loss = silog_loss(prediction, truth, valid)
    loss.backward()
    limits = tolerance(dtype)
    assert_close(loss.double(), expected("metric/silog"), **limits)
    gradient = expected("metric/silog_grad")
    limit = limits["rtol"] * float(gradient.abs().max())
    assert_close(prediction.grad[:, 0].double(), gradient, rtol=0, atol=limit)
    root = silog_loss(prediction, truth, valid, form="sqrt")
    assert_close(root.double(), expected("metric/silog_sqrt_public"), **limits)


@DTYPES
def test_silog_of_one_pixel_has_no_variance(dtype: torch.dtype) -> None:
    maps = mono("metric", dtype, "one_pixel_mask")
    value = silog_loss(*maps).double()
    assert_close(value, expected("metric/silog_one_pixel"), **tolerance(dtype))
    assert_close(silog_loss(*maps, form="sqrt").double(), value.sqrt(), **tolerance(dtype))
    assert silog_loss(*maps, weight=0.0).item() == 0.0


def test_the_weight_of_silog_is_that_of_the_squared_mean() -> None:
    prediction, truth, valid = mono("metric", torch.float64)
    error = prediction.detach().clamp(min=1e-6).log()[valid] - truth[valid].log()
    for weight in (0.0, 0.15, 0.95):
        variance = error.var(correction=1) + weight * error.mean() ** 2
        assert_close(silog_loss(prediction, truth, valid, weight=weight), variance)
        root = (error.square().mean() - weight * error.mean() ** 2).sqrt()
        assert_close(silog_loss(prediction, truth, valid, form="sqrt", weight=weight), root)


@DTYPES
@pytest.mark.parametrize("suffix", ["", "_empty_image"])
def test_ssi_equals_the_goldens(dtype: torch.dtype, suffix: str) -> None:
    mask = "valid_with_empty_image" if suffix else "valid"
    maps = mono("relative", dtype, mask)
    limits = tolerance(dtype)
    total, data = relative_loss(*maps), relative_loss(*maps, gradient_weight=0.0)
    assert_close(total.double(), expected(f"relative/ssi{suffix}"), **limits)
    assert_close(data.double(), expected(f"relative/ssi_data{suffix}"), **limits)
    scales = expected(f"relative/ssi_grad_scales{suffix}").sum()
    assert_close((total - data).double() / 2, scales, **limits)
    images = zip(*(values.split(1) for values in maps), strict=True)
    mean = torch.stack([relative_loss(*image) for image in images]).mean()
    assert_close(mean.double(), expected(f"relative/ssi_image_based{suffix}"), **limits)


@DTYPES
def test_trimmed_equals_the_goldens(dtype: torch.dtype) -> None:
    maps = mono("relative", dtype)
    total = relative_loss(*maps, form="trimmed")
    data = relative_loss(*maps, form="trimmed", gradient_weight=0.0)
    assert_close(total.double(), expected("relative/trimmed_total"), **tolerance(dtype))
    assert_close(data.double(), expected("relative/trimmed_mae"), **tolerance(dtype))
    scales = expected("relative/trimmed_grad_scales").sum()
    assert_close((total - data).double() * 2, scales, **tolerance(dtype))


def test_images_without_valid_pixels_add_nothing_to_the_trimmed_loss() -> None:
    maps = mono("relative", torch.float64, "valid_with_empty_image")
    rest = [values[[0, 2]] for values in maps]
    assert_close(relative_loss(*maps, form="trimmed"), relative_loss(*rest, form="trimmed"))


@pytest.mark.parametrize("form", FORMS)
def test_gradients_equal_finite_differences(form: str) -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, truth = 1 + torch.rand(2, 3, 1, 5, 7, generator=generator, dtype=torch.float64)
    valid = torch.rand(3, 1, 5, 7, generator=generator) > 0.3
    prediction.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: mono_loss(form, p, truth, valid), prediction)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("pixels", [0, 1])
def test_hardly_any_valid_pixel_gives_finite_values_and_gradients(form: str, pixels: int) -> None:
    prediction = torch.full((2, 1, 8, 8), torch.nan)
    truth = torch.full_like(prediction, torch.inf)
    valid = torch.zeros_like(prediction, dtype=torch.bool)
    prediction[0, 0, 3, 3], truth[0, 0, 3, 3] = 2.0, 2.0
    valid[0, 0, 3, 3] = bool(pixels)
    prediction.requires_grad_()
    loss = mono_loss(form, prediction, truth, valid)
    loss.backward()
    assert torch.isfinite(loss)
    assert pixels or loss.item() == 0.0
    assert prediction.grad.abs().sum() == 0.0


@pytest.mark.parametrize("value", [0.0, 0.1, 30.0])
def test_a_constant_prediction_counts_as_zero_in_ssi(value: float) -> None:
    _, truth, valid = mono("relative", torch.float32)
    prediction = torch.full_like(truth, value).requires_grad_()
    data = relative_loss(prediction, truth, valid, gradient_weight=0.0)
    relative_loss(prediction, truth, valid).backward()
    assert_close(data, truth[valid].square().mean() / 2)
    assert prediction.grad.abs().sum() == 0.0


def test_a_spread_whose_square_is_zero_counts_as_constant() -> None:
    prediction, truth, valid = mono("relative", torch.float32)
    faint = (prediction.detach() * 1e-25).requires_grad_()
    loss = relative_loss(faint, truth, valid)
    loss.backward()
    assert torch.isfinite(loss)
    assert faint.grad.abs().sum() == 0.0


@pytest.mark.parametrize("form", FORMS)
def test_a_prediction_that_is_not_a_number_is_not_hidden(form: str) -> None:
    prediction, truth, valid = mono("relative", torch.float32)
    broken = prediction.detach().clone()
    broken[0, 0][valid[0, 0]] = torch.nan
    assert torch.isnan(mono_loss(form, broken, truth, valid))


@given(
    scale=st.floats(0.01, 100),
    shift=st.floats(-100, 100),
    form=st.sampled_from(["ssi", "trimmed"]),
    mirrored=st.booleans(),
)
@settings(deadline=None)
def test_scale_and_shift_of_the_prediction_do_not_matter(
    scale: float, shift: float, form: str, mirrored: bool
) -> None:
    prediction, truth, valid = mono("relative", torch.float64)
    if mirrored and form == "ssi":  # least squares finds negative scales too
        scale = -scale
    moved = relative_loss(scale * prediction + shift, truth, valid, form=form)
    assert_close(moved, relative_loss(prediction, truth, valid, form=form), rtol=1e-9, atol=0)


@given(scale=st.floats(0.01, 100))
@settings(deadline=None)
def test_silog_without_weight_ignores_the_scale(scale: float) -> None:
    prediction, truth, valid = mono("metric", torch.float64)
    prediction = prediction.detach().clamp(min=0.1)
    free = silog_loss(prediction, truth, valid, weight=0.0)
    assert_close(silog_loss(scale * prediction, truth, valid, weight=0.0), free)


@pytest.mark.parametrize("spread", [0.1, 0.01])
def test_ssi_in_float32_keeps_its_accuracy_far_from_zero(spread: float) -> None:
    generator = torch.Generator().manual_seed(0)
    noise, truth = torch.randn(2, 1, 1, 259, 259, generator=generator, dtype=torch.float64)
    prediction = (30 + spread * (noise + truth)).float()
    valid = torch.ones_like(truth, dtype=torch.bool)
    exact = relative_loss(prediction.double(), truth, valid)
    value = relative_loss(prediction, truth.float(), valid)
    assert_close(value.double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_half_precision_is_not_used(form: str) -> None:
    prediction, truth, valid = mono("relative", torch.float32)
    half = prediction.detach().half()
    loss = mono_loss(form, half, truth, valid)
    assert loss.dtype == torch.float32
    assert_close(loss, mono_loss(form, half.float(), truth, valid), rtol=0, atol=0)
