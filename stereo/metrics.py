"""Stereo metrics over valid pixels, per image and pooled over pixels.

p prediction, g ground truth, e = |p - g|, all px. bp1, bp2, bp3 and d1 are fractions 0..1. Sums are
kept in float64. `image` aggregation is the mean over images of the per-image value, images without
valid pixels skipped; `pixel` pools the pixels of all images, as the KITTI server does. A prediction
that is not a number counts as a bad pixel and makes the means NaN.

Source: training.md 3.1; D1 as in KITTI 2015: more than 3 px and more than 5 % off.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from stereo.spec.experiment import METRICS as DECLARED


class Metric(NamedTuple):
    """What a reader must know to compare two values of a metric.

    Attributes:
        name: key, without a prefix such as `val/`.
        direction: whether smaller or larger is better.
        unit: `px`, `fraction` or empty.
        meaningful: False for measures of depth that are computed on disparity here.
    """

    name: str
    direction: Literal["minimize", "maximize"]
    unit: str
    meaningful: bool


METRICS: dict[str, Metric] = {
    name: Metric(name, **facts)
    for name, facts in ((path.removeprefix("val/"), facts) for path, facts in DECLARED.items())
    if name != "loss"
}
ROOTS = ("rmse", "rmse_log")  # accumulated as squares
LOG_FLOOR = 1e-3  # px; predictions are raised to it before the logarithm


class DisparityMetrics:
    """Accumulates every metric of `METRICS` over any number of batches."""

    def __init__(self, max_disparity: float) -> None:
        self.max_disparity = max_disparity
        self.reset()

    def reset(self) -> None:
        """Forget everything seen."""
        self._image_sums = torch.zeros(len(METRICS), dtype=torch.float64)
        self._pixel_sums = torch.zeros(len(METRICS), dtype=torch.float64)
        self._images = 0
        self._skipped = 0
        self._pixels = 0
        self._truth_pixels = 0

    def update(
        self, disparity: Tensor, gt: Tensor, valid: Tensor, truth_pixels: Tensor | None = None
    ) -> list[dict[str, float] | None]:
        """Add a batch.

        Args:
            disparity: predictions (B, H, W), px.
            gt: ground truth (B, H, W), px; any value where `valid` is False.
            valid: bool (B, H, W): usable and below `max_disparity`.
            truth_pixels: (B,) finite positive pixels before the disparity limit, for the coverage;
                default: the valid ones.

        Returns:
            Per image its metrics, or None where no pixel is valid.
        """
        counts = valid.sum(dim=(-2, -1))
        self._truth_pixels += int((counts if truth_pixels is None else truth_pixels).sum())
        sums = _sums(disparity, gt, valid).cpu()
        return [
            self._add_image(image, count)
            for image, count in zip(sums, counts.tolist(), strict=True)
        ]

    def _add_image(self, sums: Tensor, count: int) -> dict[str, float] | None:
        if count == 0:
            self._skipped += 1
            return None
        values = _named(sums / count)
        self._image_sums += torch.tensor(list(values.values()), dtype=torch.float64)
        self._pixel_sums += sums
        self._images += 1
        self._pixels += count
        return values

    def compute(self) -> dict[str, Any]:
        """Results so far.

        Returns:
            `image` and `pixel` (metric -> value, NaN when no image had a valid pixel), `coverage`
            (evaluated / finite positive pixels, 0..1), `images`, `skipped` (images without a valid
            pixel), `pixels` and `max_disparity`.
        """
        if self._images:
            image = dict(zip(METRICS, (self._image_sums / self._images).tolist(), strict=True))
            pixel = _named(self._pixel_sums / self._pixels)
        else:
            image = dict.fromkeys(METRICS, math.nan)
            pixel = dict.fromkeys(METRICS, math.nan)
        return {
            "image": image,
            "pixel": pixel,
            "coverage": self._pixels / self._truth_pixels if self._truth_pixels else 0.0,
            "images": self._images,
            "skipped": self._skipped,
            "pixels": self._pixels,
            "max_disparity": self.max_disparity,
        }


def _sums(disparity: Tensor, gt: Tensor, valid: Tensor) -> Tensor:
    """Sums per image (B, metrics) in the order of METRICS; an invalid pixel adds 0 to each."""
    truth = torch.where(valid, gt, 1.0).double()
    prediction = torch.where(valid, disparity, 1.0).double()
    error = (prediction - truth).abs()
    relative = error / truth
    log_error = prediction.clamp(min=LOG_FLOOR).log() - truth.log()
    terms = (
        error,
        ~(error <= 1),  # so that NaN counts as bad
        ~(error <= 2),
        ~(error <= 3),
        ~((error <= 3) | (relative <= 0.05)),
        error.square(),
        relative,
        error * relative,
        log_error.square(),
    )
    return torch.stack([term.sum(dim=(-2, -1), dtype=torch.float64) for term in terms], dim=-1)


def _named(means: Tensor) -> dict[str, float]:
    values = dict(zip(METRICS, means.tolist(), strict=True))
    return {name: math.sqrt(v) if name in ROOTS else v for name, v in values.items()}
