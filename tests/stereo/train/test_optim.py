"""Golden curves: tests/golden/schedules.json, 20 steps, base rates 1e-3 and 1e-2."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stereo.spec.experiment import ExperimentSpec
from stereo.spec.train import OptimSpec
from stereo.tasks import STEREO
from stereo.train.optim import (
    SCHEDULES,
    build_optimizer,
    effective_warmup,
    learning_rate,
    warn_about_unused,
)

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "schedules.json").read_text("utf-8"))
CURVES = [(warmup, name) for warmup in (0, 4) for name in GOLDEN[f"warmup_steps_{warmup}"]]


def spec_of(name: str, warmup: int) -> OptimSpec:
    parameters = GOLDEN["parameters"]
    keys = ("lr_steps", "lr_step_size", "lr_decay", "min_lr")
    values = {key: parameters[key] for key in keys} | parameters.get(name, {})
    return OptimSpec(lr_scheduler=name, warmup_steps=warmup, lr=1e-3, **values)


@pytest.mark.parametrize(("warmup", "name"), CURVES)
def test_curves_equal_the_goldens(warmup: int, name: str) -> None:
    total = GOLDEN["parameters"]["total_steps"]
    for step, rates in enumerate(GOLDEN[f"warmup_steps_{warmup}"][name]):
        for base, expected in zip(GOLDEN["parameters"]["lr_groups"], rates, strict=True):
            found = learning_rate(spec_of(name, warmup), base, step, total)
            assert found == pytest.approx(expected, rel=1e-9, abs=1e-18), step


def test_all_seven_schedules_have_a_golden() -> None:
    assert set(GOLDEN["warmup_steps_0"]) == set(SCHEDULES)
    assert len(SCHEDULES) == 7


@given(
    name=st.sampled_from(sorted(SCHEDULES)),
    total=st.integers(1, 200),
    warmup=st.integers(0, 300),
    step=st.integers(0, 400),
)
@settings(deadline=None)
def test_rates_stay_between_zero_and_the_base_for_any_length(
    name: str, total: int, warmup: int, step: int
) -> None:
    rate = learning_rate(spec_of(name, warmup), 1e-3, step, total)
    assert 0.0 <= rate <= 1e-3 * (1 + 1e-12)
    assert (
        rate == learning_rate(spec_of(name, warmup), 1e-3, max(step, total), total) or step < total
    )


def test_a_warm_up_longer_than_half_of_the_run_is_cut_with_a_warning(caplog) -> None:
    optim = spec_of("LambdaLR", 30)
    assert effective_warmup(optim, 20) == 10
    with caplog.at_level(logging.WARNING):
        warn_about_unused(optim, 20)
    assert "train.optim.warmup_steps: 30 of 20" in caplog.text


def test_one_cycle_brings_its_own_warm_up() -> None:
    assert effective_warmup(spec_of("OneCycleLR", 10), 20) == 0


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_optimisers_read_their_settings_and_leave_frozen_parameters_out(name: str) -> None:
    layer = torch.nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    optim = OptimSpec(optimizer=name, lr=0.5, momentum=0.3)
    groups = STEREO.parameter_groups(layer, ExperimentSpec())
    (group,) = build_optimizer(groups, optim).param_groups
    assert group["lr"] == 0.5
    assert len(group["params"]) == 1
    assert group["weight_decay"] == 1e-4
    if name == "SGD":
        assert group["momentum"] == 0.3
    else:
        assert group["betas"] == (0.9, 0.999)


@pytest.mark.parametrize(
    ("optim", "key"),
    [
        (OptimSpec(momentum=0.5), "train.optim.momentum"),
        (OptimSpec(lr_decay=0.9, lr_scheduler="PolynomialLR"), "train.optim.lr_decay"),
    ],
)
def test_settings_that_nothing_reads_are_named(optim: OptimSpec, key: str, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        warn_about_unused(optim, 1000)
    assert key in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        warn_about_unused(OptimSpec(), 1000)
    assert caplog.text == ""
