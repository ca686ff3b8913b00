"""The only scorer: predictor and samples to metrics, the same for checkpoint, graph and engine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from stereo.data.loaders import Reads
from stereo.errors import NoResultError
from stereo.predict import Predictor
from stereo.progress import progress_bar
from stereo.spec.experiment import ExperimentSpec

Watch = Callable[[Mapping[str, Any], Tensor, list[dict[str, Any]]], None]
COUNTS = ("image", "pixel", "coverage", "images", "skipped", "pixels")  # the rest are limits


@dataclass(frozen=True)
class Evaluation:
    """Scores of one predictor on one data set.

    Attributes:
        metrics: the flat result, `image` or `pixel` as the task has it: `epe` px, `d1` fraction.
        image: means over the images.
        pixel: means over the pixels of all images together.
        coverage: evaluated pixels / pixels with ground truth, 0..1.
        limits: ground truth outside them is not evaluated; `max_disparity` px, `max_depth` m, ...
        images: images with at least one evaluated pixel.
        skipped: images without.
        seconds: wall time, reading included.
        speed: `throughput` in samples per s and latencies in ms, see `stereo.predict.Pace`.
        backend: who computed the predictions.
        warnings: what a reader of the numbers must know.
        rows: per sample `index`, `name` and its metrics, None for a sample without valid pixels.
    """

    metrics: dict[str, float]
    image: dict[str, float]
    pixel: dict[str, float]
    coverage: float
    limits: dict[str, float]
    images: int
    skipped: int
    seconds: float
    speed: dict[str, float]
    backend: str
    warnings: tuple[str, ...]
    rows: list[dict[str, Any]]


def evaluate(
    predictor: Predictor,
    loader: Iterable[Mapping[str, Any]],
    spec: ExperimentSpec,
    *,
    progress: bool = True,
    watch: Watch | None = None,
) -> Evaluation:
    """Score a predictor.

    Args:
        predictor: of the network that the spec describes.
        loader: batches of `stereo.data.loaders.evaluation_loader`.
        spec: its limits of the ground truth are those that the batches' `valid` applies.
        progress: show a bar with the time left when stderr is a terminal.
        watch: sees every batch, its predictions (B, H, W) and the rows of its scored samples.

    Raises:
        NoResultError: no valid pixel in any sample, or a metric that is not finite.
    """
    scores, reads = Scores(predictor, spec), Reads()
    with progress_bar(progress) as bar:
        for batch in bar.track(loader, description=f"evaluating ({predictor.backend})"):
            reads.add(batch["from_cache"])
            prediction = predictor(batch)
            rows = scores.add(batch, prediction)
            if watch is not None:
                watch(batch, prediction, rows)
    reads.log(f"{predictor.task.samples} of the evaluation")
    return scores.result()


class Scores:
    """Collects the scores of predictions, batch by batch."""

    def __init__(self, predictor: Predictor, spec: ExperimentSpec) -> None:
        self._predictor = predictor
        self._task = predictor.task
        self._spec = spec
        self._metrics = self._task.metrics(spec)
        self.rows: list[dict[str, Any]] = []
        self._has_valid = False
        self._started = time.perf_counter()

    def add(self, batch: Mapping[str, Any], prediction: Tensor) -> list[dict[str, Any]]:
        """Score the samples of a batch that have ground truth, and return their rows.

        Args:
            batch: see `stereo.data.loaders`.
            prediction: (B, H, W).
        """
        known = batch["has_gt"]
        self._has_valid |= bool(batch["valid"][known].any())
        per_image = self._metrics.update(
            prediction[known],
            batch[self._task.target][known, 0],
            batch["valid"][known, 0],
            batch["truth_pixels"][known],
        )
        places = known.nonzero()[:, 0].tolist()
        rows = [
            {
                "index": int(batch["index"][place]),
                "name": batch["name"][place],
                **(values or {self._task.headline[0]: None}),
            }
            for place, values in zip(places, per_image, strict=True)
        ]
        self.rows += rows
        return rows

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
        self._require_result(result)
        return Evaluation(
            metrics=result[self._metrics.flat],
            image=result["image"],
            pixel=result["pixel"],
            coverage=result["coverage"],
            limits={name: value for name, value in result.items() if name not in COUNTS},
            images=result["images"],
            skipped=result["skipped"],
            seconds=time.perf_counter() - self._started,
            speed=self._predictor.pace.summary(),
            backend=self._predictor.backend,
            warnings=self._predictor.warnings,
            rows=self.rows,
        )

    def _require_result(self, result: Mapping[str, Any]) -> None:
        if result["images"] == 0 and self._has_valid:
            raise NoResultError(
                f"{self._predictor.source}: the {self._task.quantity} of each of {len(self.rows)} "
                "samples is the same everywhere, so it cannot be compared with the ground truth. "
                "Use another checkpoint"
            )
        if result["images"] == 0:
            keys = ", ".join(("dataset_name (the encoding of the files)", self._task.limit_keys))
            raise NoResultError(
                f"{self._predictor.source}: none of {len(self.rows)} samples has a valid pixel with"
                f" ground truth {self._task.usable_truth(self._spec)}. Check {keys}"
            )
        bad = [name for name, value in result["image"].items() if not math.isfinite(value)]
        if bad:
            names = [row["name"] for row in self.rows if not _is_finite(row)]
            raise NoResultError(
                f"{self._predictor.source}: the prediction is not finite in {len(names)} samples, "
                f"first {names[0]}; no value for {', '.join(bad)}. Use an earlier checkpoint"
            )


def _is_finite(row: Mapping[str, Any]) -> bool:
    return all(math.isfinite(value) for value in row.values() if isinstance(value, float))
