from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stereo.errors import NoResultError
from stereo.evaluation.evaluator import evaluate
from stereo.predict import Predictor
from stereo.spec.data import DatasetSpec
from stereo.spec.experiment import ExperimentSpec, RelativeDepthExperiment
from stereo.tasks import RELATIVE, STEREO

LIMIT = 64
SPEC = ExperimentSpec(dataset=DatasetSpec(max_disparity=LIMIT))


def _batch(start: int, count: int, *, height: int = 32, width: int = 64) -> dict[str, Any]:
    """Images whose first channel is the true disparity plus 1 px."""
    generator = torch.Generator().manual_seed(start)
    truth = 1 + 20 * torch.rand(count, 1, height, width, generator=generator)
    valid = torch.rand(truth.shape, generator=generator) > 0.3
    return {
        "left": truth.expand(-1, 3, -1, -1) + 1.0,
        "right": torch.zeros(count, 3, height, width),
        "disparity": torch.where(valid, truth, torch.inf),
        "valid": valid,
        "truth_pixels": 2 * valid.sum(dim=(1, 2, 3)),
        "has_gt": torch.ones(count, dtype=torch.bool),
        "from_cache": torch.zeros(count, dtype=torch.bool),
        "name": [f"pair_{start + i}.png" for i in range(count)],
        "index": torch.arange(start, start + count),
    }


def _predictor(add: float = 0.0) -> Predictor:
    def network(left: Tensor, _right: Tensor) -> Tensor:
        return left[:, 0] + add

    return Predictor(
        network,
        STEREO,
        backend="test fp32",
        source=Path("a.pth"),
        stride=32,
        warnings=("be careful",),
    )


def test_scores_are_those_of_a_plain_computation_for_mixed_sizes() -> None:
    batches = [_batch(0, 2), _batch(2, 1, height=40, width=50)]
    found = evaluate(_predictor(0.5), batches, SPEC)

    errors = [
        (b["left"][i, 0] + 0.5 - b["disparity"][i, 0])[b["valid"][i, 0]].abs().numpy()
        for b in batches
        for i in range(len(b["name"]))
    ]
    assert found.metrics["epe"] == pytest.approx(np.mean([e.mean() for e in errors]))
    assert found.pixel["epe"] == pytest.approx(np.concatenate(errors).mean())
    assert found.metrics == found.image
    assert found.metrics["bp1"] == 1.0
    assert found.coverage == pytest.approx(0.5)
    assert (found.images, found.skipped) == (3, 0)
    assert found.backend == "test fp32"
    assert found.warnings == ("be careful",)
    assert found.limits == {"max_disparity": LIMIT}


def test_every_sample_has_a_row_in_order_and_all_of_it_is_json() -> None:
    batches = [_batch(0, 2), _batch(2, 2)]
    batches[1]["valid"][1] = False
    found = evaluate(_predictor(), batches, SPEC)

    assert [row["index"] for row in found.rows] == [0, 1, 2, 3]
    assert [row["name"] for row in found.rows][3] == "pair_3.png"
    assert found.rows[0]["epe"] == pytest.approx(1.0)
    assert found.rows[3]["epe"] is None
    assert (found.images, found.skipped) == (3, 1)
    json.dumps(asdict(found), allow_nan=False)


def test_batch_size_does_not_change_the_scores() -> None:
    whole = _batch(0, 4)
    single = [
        {key: value[i : i + 1] for key, value in whole.items()} for i in range(len(whole["name"]))
    ]
    one = evaluate(_predictor(0.2), single, SPEC)
    four = evaluate(_predictor(0.2), [whole], SPEC)
    assert one.rows == four.rows
    assert one.metrics == four.metrics


def test_without_a_valid_pixel_there_is_no_result() -> None:
    batch = _batch(0, 2)
    batch["valid"][:] = False
    with pytest.raises(NoResultError, match=r"none of 2 samples has a valid pixel.*64") as error:
        evaluate(_predictor(), [batch], SPEC)
    assert error.value.exit_code == 3


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_prediction_that_is_not_finite_is_no_result(value: float) -> None:
    batches = [_batch(0, 1), _batch(1, 1)]
    batches[1]["left"][:] = value
    with pytest.raises(NoResultError, match=r"not finite in 1 samples, first pair_1\.png.*epe"):
        evaluate(_predictor(), batches, SPEC)


def test_a_constant_prediction_cannot_be_aligned_and_is_no_result() -> None:
    truth = 1 + torch.rand(2, 1, 8, 8)
    batch = _batch(0, 2) | {"image": torch.zeros(2, 3, 8, 8), "target": truth}
    batch |= {"valid": torch.ones_like(truth, dtype=torch.bool)}
    constant = Predictor(
        lambda image: image[:, 0], RELATIVE, backend="", source=Path("a.pth"), stride=14
    )
    with pytest.raises(NoResultError, match=r"inverse depth of each of 2 samples is the same"):
        evaluate(constant, [batch], RelativeDepthExperiment())


def test_a_pipe_sees_no_bar(capfd: pytest.CaptureFixture[str]) -> None:
    evaluate(_predictor(), [_batch(0, 1)], SPEC)
    assert capfd.readouterr() == ("", "")
