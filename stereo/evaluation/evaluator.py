"""The only scorer: predictor and samples to metrics, the same for checkpoint, graph and engine."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from stereo.data.loaders import Reads
from stereo.errors import NoResultError
from stereo.metrics import DisparityMetrics
from stereo.predict import Predictor
from stereo.progress import progress_bar


@dataclass(frozen=True)
class Evaluation:
    """Scores of one predictor on one data set.

    Attributes:
        metrics: the flat result, per-image means: `epe` px, `bp1` fraction, ...
        image: the same numbers, beside `pixel`.
        pixel: means over the pixels of all images together.
        coverage: evaluated pixels / pixels with ground truth, 0..1.
        max_disparity: px; ground truth at or above it is not evaluated.
        images: images with at least one evaluated pixel.
        skipped: images without.
        seconds: wall time, reading included.
        backend: who computed the disparity.
        warnings: what a reader of the numbers must know.
        rows: per sample `index`, `name` and its metrics, None for a sample without valid pixels.
    """

    metrics: dict[str, float]
    image: dict[str, float]
    pixel: dict[str, float]
    coverage: float
    max_disparity: float
    images: int
    skipped: int
    seconds: float
    backend: str
    warnings: tuple[str, ...]
    rows: list[dict[str, Any]]


def evaluate(
    predictor: Predictor,
    loader: Iterable[Mapping[str, Any]],
    *,
    max_disparity: float,
    progress: bool = True,
) -> Evaluation:
    """Score a predictor.

    Args:
        predictor: disparity of a normalised pair of batches.
        loader: batches of `stereo.data.loaders.evaluation_loader`.
        max_disparity: px; the limit that the batches' `valid` already applies.
        progress: show a bar with the time left when stderr is a terminal.

    Raises:
        NoResultError: no valid pixel in any sample, or a metric that is not finite.
    """
    scores, reads = Scores(predictor, max_disparity), Reads()
    with progress_bar(progress) as bar:
        for batch in bar.track(loader, description=f"evaluating ({predictor.backend})"):
            reads.add(batch["from_cache"])
            scores.add(batch, predictor(batch["left"], batch["right"]))
    reads.log("pairs of the evaluation")
    return scores.result()


class Scores:
    """Collects the scores of predictions, batch by batch."""

    def __init__(self, predictor: Predictor, max_disparity: float) -> None:
        self._predictor = predictor
        self._metrics = DisparityMetrics(max_disparity)
        self._rows: list[dict[str, Any]] = []
        self._started = time.perf_counter()

    def add(self, batch: Mapping[str, Any], disparity: Tensor) -> None:
        """Score the samples of a batch that have ground truth; disparity (B, H, W), px."""
        known = batch["has_gt"]
        per_image = self._metrics.update(
            disparity[known],
            batch["disparity"][known, 0],
            batch["valid"][known, 0],
            batch["truth_pixels"][known],
        )
        places = known.nonzero()[:, 0].tolist()
        for place, values in zip(places, per_image, strict=True):
            index, name = int(batch["index"][place]), batch["name"][place]
            self._rows.append({"index": index, "name": name, **(values or {"epe": None})})

    @property
    def images(self) -> int:
        """Samples with at least one evaluated pixel so far."""
        return self._metrics.compute()["images"]

    def result(self) -> Evaluation:
        """The evaluation of everything added.

        Raises:
            NoResultError: no valid pixel in any sample, or a metric that is not finite.
        """
        result = self._metrics.compute()
        _require_result(self._predictor, result, self._rows)
        return Evaluation(
            metrics=result["image"],
            image=result["image"],
            pixel=result["pixel"],
            coverage=result["coverage"],
            max_disparity=result["max_disparity"],
            images=result["images"],
            skipped=result["skipped"],
            seconds=time.perf_counter() - self._started,
            backend=self._predictor.backend,
            warnings=self._predictor.warnings,
            rows=self._rows,
        )


def _require_result(
    predictor: Predictor,
    result: Mapping[str, Any],
    rows: list[dict[str, Any]],
) -> None:
    if result["images"] == 0:
        raise NoResultError(
            f"{predictor.source}: none of {len(rows)} samples has a valid pixel with ground truth "
            f"between 0 and {result['max_disparity']:g} px. Check dataset_name (the encoding of "
            "the disparity files) and max_disparity"
        )
    bad = [name for name, value in result["image"].items() if not math.isfinite(value)]
    if bad:
        names = [row["name"] for row in rows if not math.isfinite(row["epe"] or 0.0)]
        raise NoResultError(
            f"{predictor.source}: the prediction is not finite in {len(names)} samples, first "
            f"{names[0]}; no value for {', '.join(bad)}. Use an earlier checkpoint"
        )
