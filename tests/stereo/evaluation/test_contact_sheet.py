from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from stereo import viz
from stereo.evaluation.contact_sheet import WORST, WorstSamples
from stereo.spec.data import MonoAugmentSpec, StereoAugmentSpec
from stereo.tasks import METRIC, STEREO

H, W = 40, 80
ROW = viz.LINE_HEIGHT + 160 + viz.GAP  # a title and thumbnails of 320 x 160


def _batch(indices: list[int], truth: float = 10.0) -> dict[str, Any]:
    count = len(indices)
    images = torch.zeros(count, 3, H, W) + torch.tensor(indices).view(-1, 1, 1, 1) / 50
    return {
        "left": images,
        "image": images,
        "disparity": torch.full((count, 1, H, W), truth),
        "target": torch.full((count, 1, H, W), truth),
        "valid": torch.ones(count, 1, H, W, dtype=torch.bool),
        "has_gt": torch.ones(count, dtype=torch.bool),
        "index": torch.tensor(indices),
        "name": [f"{index}.png" for index in indices],
    }


def _row(index: int, metric: str, score: float | None) -> dict[str, Any]:
    return {"index": index, "name": f"{index}.png", metric: score}


def _order(sheet: np.ndarray, preprocessing: Any, count: int) -> list[int]:
    """Which sample each row shows, told by the grey of its image."""
    greys = {}
    for index in range(50):
        image = np.full((3, 1, 1), index / 50, np.float32)
        greys[tuple(viz.denormalize(image, preprocessing.input_mean, preprocessing.input_std)[0, 0])
              ] = index  # fmt: skip
    first = 2 * viz.LINE_HEIGHT + 80
    return [greys[tuple(sheet[first + ROW * row, 100])] for row in range(count)]


def test_the_sheet_holds_the_worst_samples_worst_first_whatever_the_batches() -> None:
    scores = [float(value) for value in np.random.default_rng(0).permutation(12)]
    worst = WorstSamples(STEREO, StereoAugmentSpec())
    for start in range(0, 12, 4):
        indices = list(range(start, start + 4))
        rows = [_row(index, "epe", scores[index]) for index in indices]
        worst.add(_batch(indices), torch.full((4, H, W), 9.0), rows)

    sheet = worst.sheet()

    assert sheet.shape == (viz.LINE_HEIGHT + WORST * ROW, 4 * (viz.THUMBNAIL_WIDTH + viz.GAP), 3)
    expected = sorted(range(12), key=lambda index: -scores[index])[:WORST]
    assert _order(sheet, StereoAugmentSpec(), WORST) == expected


def test_a_prediction_that_is_not_finite_is_the_worst_and_no_truth_is_no_sample() -> None:
    worst = WorstSamples(STEREO, StereoAugmentSpec())
    rows = [_row(0, "epe", 50.0), _row(1, "epe", math.nan), _row(2, "epe", None)]
    predictions = torch.full((3, H, W), 9.0)
    predictions[1] = math.nan
    worst.add(_batch([0, 1, 2]), predictions, rows)
    sheet = worst.sheet()
    assert sheet.shape[0] == viz.LINE_HEIGHT + 2 * ROW
    assert _order(sheet, StereoAugmentSpec(), 2) == [1, 0]


def test_the_error_panel_is_that_of_the_task() -> None:
    worst = WorstSamples(METRIC, MonoAugmentSpec())
    batch = _batch([3], truth=2.0)
    prediction = torch.full((1, H, W), 2.2)
    worst.add(batch, prediction, [_row(3, "abs_rel", 0.1)])
    error = viz.color_ratio(
        prediction[0].numpy(), batch["target"][0, 0].numpy(), batch["valid"][0, 0].numpy()
    )
    column = 3 * (viz.THUMBNAIL_WIDTH + viz.GAP) + 100
    np.testing.assert_array_equal(worst.sheet()[2 * viz.LINE_HEIGHT + 80, column], error[0, 0])
