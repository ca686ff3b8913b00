"""Golden values: tests/golden/losses.npz, computed independently in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from stereo.losses import masked_mean, refinement_weights, sequence_loss, smooth_l1

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
