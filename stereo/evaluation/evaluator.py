"""The only scorer: predictor and samples to metrics, the same for checkpoint, graph and engine."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from stereo.errors import NoResultError
from stereo.metrics import DisparityMetrics
from stereo.predict import Predictor


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
    metrics = DisparityMetrics(max_disparity)
    rows: list[dict[str, Any]] = []
    started = time.perf_counter()
    with _bar(progress) as bar:
        for batch in bar.track(loader, description=f"evaluating ({predictor.backend})"):
            disparity = predictor(batch["left"], batch["right"])
            truth, valid = batch["disparity"][:, 0], batch["valid"][:, 0]
            per_image = metrics.update(disparity, truth, valid, batch["truth_pixels"])
            named = zip(batch["index"].tolist(), batch["name"], per_image, strict=True)
            rows += [
                {"index": index, "name": name, **(values or {"epe": None})}
                for index, name, values in named
            ]
    result = metrics.compute()
    _require_result(predictor, result, rows, max_disparity)
    return Evaluation(
        metrics=result["image"],
        image=result["image"],
        pixel=result["pixel"],
        coverage=result["coverage"],
        max_disparity=max_disparity,
        images=result["images"],
        skipped=result["skipped"],
        seconds=time.perf_counter() - started,
        backend=predictor.backend,
        warnings=predictor.warnings,
        rows=rows,
    )


def _require_result(
    predictor: Predictor,
    result: Mapping[str, Any],
    rows: list[dict[str, Any]],
    max_disparity: float,
) -> None:
    if result["images"] == 0:
        raise NoResultError(
            f"{predictor.source}: none of {len(rows)} samples has a valid pixel with ground truth "
            f"between 0 and {max_disparity} px. Check dataset_name (the encoding of the disparity "
            "files) and max_disparity"
        )
    bad = [name for name, value in result["image"].items() if not math.isfinite(value)]
    if bad:
        names = [row["name"] for row in rows if not math.isfinite(row["epe"] or 0.0)]
        raise NoResultError(
            f"{predictor.source}: the prediction is not finite in {len(names)} samples, first "
            f"{names[0]}; no value for {', '.join(bad)}. Use an earlier checkpoint"
        )


def _bar(progress: bool) -> Progress:
    """A bar with the time left on a terminal; silent in a pipe."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not (progress and console.is_terminal),
    )
