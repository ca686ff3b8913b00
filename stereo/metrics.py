"""Metrics over valid pixels, per image and pooled over pixels, of the three kinds of networks.

p prediction, g ground truth, e = |p - g|. Stereo: disparity in px; metric: depth in m; relative:
inverse depth, p aligned to g per image. bp1, bp2, bp3, d1, d2, d3 are fractions 0..1; d1 is an
error rate in stereo and an accuracy elsewhere. Sums are kept in float64, so that batches and their
order do not matter. `image` aggregation is the mean over images of the per-image value, images
without a score skipped; `pixel` pools the pixels of all images, as the KITTI server does. A
prediction that is not a number counts as a bad pixel and makes the means NaN.

Source: training.md 3; D1 of stereo as in KITTI 2015: more than 3 px and more than 5 % off.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from stereo.geometry import align
from stereo.spec import experiment


class Metric(NamedTuple):
    """What a reader must know to compare two values of a metric.

    Attributes:
        name: key, without a prefix such as `val/`.
        direction: whether smaller or larger is better.
        unit: `px`, `m`, `fraction` or empty.
        meaningful: False where the values of two data sets cannot be compared.
        of: what a value without unit is a share of, where that needs saying.
    """

    name: str
    direction: Literal["minimize", "maximize"]
    unit: str
    meaningful: bool
    of: str = ""


def _declared(table: Mapping[str, Mapping[str, Any]]) -> dict[str, Metric]:
    metrics = (Metric(path.removeprefix("val/"), **facts) for path, facts in table.items())
    return {metric.name: metric for metric in metrics if metric.name != "loss"}


METRICS = _declared(experiment.METRICS)
ROOTS = ("rmse", "rmse_log")  # accumulated as squares
LOG_FLOOR = 1e-3  # px; disparities are raised to it before the logarithm
DEPTH_FLOOR = 1e-6  # m; where min_depth is 0, depths are raised to it before the logarithm
RELATIVE_FLOOR = 1e-8  # aligned and true inverse depths are raised to it
RATIO = 1.25  # d1; its square and cube are d2 and d3


class Metrics(ABC):
    """Accumulates every metric of `table` over any number of batches.

    Attributes:
        table: name -> metric, in the order of the results.
        flat: which aggregation is meant where only one is given.
        limits: of the ground truth, for readers of the results.
    """

    table: ClassVar[Mapping[str, Metric]]
    flat: ClassVar[Literal["image", "pixel"]]

    def __init__(self, **limits: float) -> None:
        self.limits = limits
        self.reset()

    def reset(self) -> None:
        """Forget everything seen."""
        self._image_sums = torch.zeros(len(self.table), dtype=torch.float64)
        self._pixel_sums = torch.zeros((), dtype=torch.float64)
        self._images = 0
        self._skipped = 0
        self._pixels = 0
        self._truth_pixels = 0

    def update(
        self, prediction: Tensor, gt: Tensor, valid: Tensor, truth_pixels: Tensor | None = None
    ) -> list[dict[str, float] | None]:
        """Add a batch.

        Args:
            prediction: (B, H, W).
            gt: ground truth (B, H, W); any value where `valid` is False.
            valid: bool (B, H, W): usable and within the limits.
            truth_pixels: (B,) finite positive pixels before the limits, for the coverage;
                default: the valid ones.

        Returns:
            Per image its metrics, or None where it has no score.
        """
        counts = valid.sum(dim=(-2, -1))
        self._truth_pixels += int((counts if truth_pixels is None else truth_pixels).sum())
        sums, scored = self._sums(prediction.double(), gt.double(), valid)
        counts = torch.where(scored, counts, 0)
        return [
            self._add_image(image, count)
            for image, count in zip(sums.cpu(), counts.tolist(), strict=True)
        ]

    def _add_image(self, sums: Tensor, count: int) -> dict[str, float] | None:
        if count == 0:
            self._skipped += 1
            return None
        values = self._values(sums / count)
        self._image_sums += torch.tensor([values[name] for name in self.table], dtype=torch.float64)
        self._pixel_sums = self._pixel_sums + sums
        self._images += 1
        self._pixels += count
        return values

    def compute(self) -> dict[str, Any]:
        """Results so far.

        Returns:
            `image` and `pixel` (metric -> value, NaN when no image has a score), `coverage`
            (evaluated / finite positive pixels, 0..1), `images`, `skipped` (images without a
            score), `pixels` and the limits.
        """
        if self._images:
            image = dict(zip(self.table, (self._image_sums / self._images).tolist(), strict=True))
            pixel = self._values(self._pixel_sums / self._pixels)
        else:
            image = dict.fromkeys(self.table, math.nan)
            pixel = dict.fromkeys(self.table, math.nan)
        return {
            "image": image,
            "pixel": pixel,
            "coverage": self._pixels / self._truth_pixels if self._truth_pixels else 0.0,
            "images": self._images,
            "skipped": self._skipped,
            "pixels": self._pixels,
            **self.limits,
        }

    @abstractmethod
    def _sums(self, prediction: Tensor, gt: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over the valid pixels of each image (B, sums), and (B,) whether it has a score."""

    @abstractmethod
    def _values(self, means: Tensor) -> dict[str, float]:
        """Metrics from the means of what `_sums` adds up, in the order of `table`."""


class DisparityMetrics(Metrics):
    """Of stereo networks; `gt` and prediction in px."""

    table = METRICS
    flat = "image"

    def __init__(self, max_disparity: float) -> None:
        super().__init__(max_disparity=max_disparity)

    def _sums(self, prediction: Tensor, gt: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        error = (prediction - gt).abs()
        relative = error / gt
        log_error = prediction.clamp(min=LOG_FLOOR).log() - gt.log()
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
        return _summed(terms, valid), valid.any(dim=-1).any(dim=-1)

    def _values(self, means: Tensor) -> dict[str, float]:
        values = dict(zip(METRICS, means.tolist(), strict=True))
        return {name: math.sqrt(v) if name in ROOTS else v for name, v in values.items()}


class _MonoMetrics(Metrics):
    """Formulas of depth, metric or not; both maps must be positive."""

    flat = "pixel"

    def _depth_sums(self, prediction: Tensor, gt: Tensor, valid: Tensor) -> Tensor:
        ratio = torch.maximum(prediction / gt, gt / prediction)
        error = (prediction - gt).abs()
        log_error = prediction.log() - gt.log()
        terms = (
            ratio < RATIO,
            ratio < RATIO**2,
            ratio < RATIO**3,
            error / gt,
            error.square() / gt,
            error.square(),
            log_error.square(),
            log_error.abs() / math.log(10),
            log_error,
        )
        return _summed(terms, valid)

    def _values(self, means: Tensor) -> dict[str, float]:
        d1, d2, d3, abs_rel, sq_rel, square, log_square, log10, log = means.tolist()
        return {
            "d1": d1,
            "d2": d2,
            "d3": d3,
            "abs_rel": abs_rel,
            "sq_rel": sq_rel,
            "rmse": math.sqrt(square),
            "rmse_log": math.sqrt(log_square),
            "log10": log10,
            "silog": _root(log_square - 0.5 * log**2),
            "silog_kitti": 100 * _root(log_square - log**2),
        }


class DepthMetrics(_MonoMetrics):
    """Of metric depth in m; ground truth and prediction are clipped to the range first."""

    table = _declared(experiment.MONO_METRICS)

    def __init__(self, min_depth: float, max_depth: float) -> None:
        super().__init__(min_depth=min_depth, max_depth=max_depth)

    def _sums(self, prediction: Tensor, gt: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        low, high = max(self.limits["min_depth"], DEPTH_FLOOR), self.limits["max_depth"]
        sums = self._depth_sums(prediction.clamp(low, high), gt.clamp(low, high), valid)
        return sums, valid.any(dim=-1).any(dim=-1)


class RelativeMetrics(_MonoMetrics):
    """Of inverse depth up to scale and shift: the prediction is aligned per image in float64.

    An image with fewer than two valid pixels, or with a constant prediction, has no score.
    """

    table = _declared(experiment.RELATIVE_METRICS)

    def _sums(self, prediction: Tensor, gt: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        alignment = align(prediction, gt, valid)
        aligned = alignment.aligned.clamp(min=RELATIVE_FLOOR)
        return self._depth_sums(aligned, gt.clamp(min=RELATIVE_FLOOR), valid), alignment.found


def _summed(terms: tuple[Tensor, ...], valid: Tensor) -> Tensor:
    """Sums (B, terms) over the valid pixels of each image."""
    sums = [torch.where(valid, term, 0).sum((-2, -1), dtype=torch.float64) for term in terms]
    return torch.stack(sums, dim=-1)


def _root(difference: float) -> float:
    """Square root of a difference of means, which rounding may leave just below 0."""
    return math.sqrt(difference) if not difference < 0 else 0.0
