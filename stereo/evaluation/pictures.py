"""Files that show predictions: the outputs of inference, and the panels of a report."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from stereo import viz
from stereo.data.encodings import write_depth_png, write_pfm, write_png
from stereo.data.loaders import Reads
from stereo.evaluation.evaluator import Scores
from stereo.files import write_bytes
from stereo.predict import Predictor
from stereo.progress import progress_bar
from stereo.spec.data import StereoAugmentSpec
from stereo.viz import Map, Picture

SCALE_QUANTILE = 0.98  # of the ground truth; the disparity that gets the last colour of a panel


@dataclass(frozen=True)
class Shown:
    """One sample at native size; `truth` is +inf and `valid` False where nothing is known."""

    name: str
    left: Picture
    prediction: Map
    truth: Map
    valid: viz.Mask
    has_gt: bool


def write_predictions(
    predictor: Predictor,
    loader: Iterable[Mapping[str, Any]],
    directory: Path,
    preprocessing: StereoAugmentSpec,
    *,
    save_raw_pfm: bool,
    save_raw_npy: bool,
    depth: Callable[[Map], Map] | None = None,
    scores: Scores | None = None,
) -> int:
    """Write the outputs of inference and return the number of pairs.

    `inference_images/<name>.png` shows left, ground truth if there is one, prediction and error;
    `disparity_pfm/<name>.pfm` and `disparity_npy/<name>.npy` hold float32 px at native size,
    `depth/<name>.npy` float32 m and `depth/<name>.png` 16-bit mm; 0 is no depth.

    Args:
        predictor: disparity of a normalised pair of batches.
        loader: batches of `stereo.data.loaders.evaluation_loader`.
        directory: the folders are made in it.
        preprocessing: says how the images were normalised.
        save_raw_pfm: write `disparity_pfm`.
        save_raw_npy: write `disparity_npy`.
        depth: disparity in px to depth in m; None writes no depth.
        scores: receives the samples that have ground truth.
    """
    stems: set[str] = set()
    with progress_bar() as bar:
        batches = bar.track(loader, description=f"predicting ({predictor.backend})")
        for sample in _samples(predictor, batches, preprocessing, scores):
            stem = _unused_stem(sample.name, stems)
            _write_prediction(directory, stem, sample)
            if save_raw_pfm:
                write_pfm(directory / "disparity_pfm" / f"{stem}.pfm", sample.prediction)
            if save_raw_npy:
                _write_npy(directory / "disparity_npy" / f"{stem}.npy", sample.prediction)
            if depth is not None:
                metres = depth(sample.prediction)
                write_depth_png(directory / "depth" / f"{stem}.png", metres)
                _write_npy(directory / "depth" / f"{stem}.npy", metres)
    return len(stems)


def _write_prediction(directory: Path, stem: str, sample: Shown) -> None:
    panels = [sample.left, viz.color_disparity(sample.prediction)]
    if sample.has_gt:
        panels.insert(1, viz.color_disparity(sample.truth))
        panels.append(viz.color_error(sample.prediction, sample.truth, sample.valid))
    write_png(directory / "inference_images" / f"{stem}.png", viz.side_by_side(panels))


def _write_npy(path: Path, values: Map) -> None:
    content = io.BytesIO()
    np.save(content, values)
    write_bytes(path, content.getvalue())


def write_pictures(
    predictor: Predictor,
    loader: Iterable[Mapping[str, Any]],
    directory: Path,
    preprocessing: StereoAugmentSpec,
    *,
    count: int,
) -> list[dict[str, Any]]:
    """Write four pictures of each of the first `count` samples.

    Ground truth and prediction share one colour scale, which depends on the ground truth only, so
    that pictures of two checkpoints can be compared.

    Returns:
        Per sample its `name`, the file names `left`, `truth`, `prediction` and `error`, its `epe`
        in px (None without valid pixels), and the values of the last colour: `scale_px` of a
        disparity, `error_scale_px` of an error.
    """
    items: list[dict[str, Any]] = []
    for index, sample in zip(
        range(count), _samples(predictor, loader, preprocessing), strict=False
    ):
        known = sample.truth[sample.valid]
        scale = float(np.quantile(known if known.size else sample.prediction, SCALE_QUANTILE))
        pictures = {
            "left": sample.left,
            "truth": viz.color_disparity(sample.truth, scale),
            "prediction": viz.color_disparity(sample.prediction, scale),
            "error": viz.color_error(sample.prediction, sample.truth, sample.valid),
        }
        for kind, picture in pictures.items():
            write_png(directory / f"{index}_{kind}.png", picture)
        error = np.abs(sample.prediction - sample.truth)[sample.valid]
        items.append(
            {
                "name": sample.name,
                **{kind: f"{index}_{kind}.png" for kind in pictures},
                "epe": float(error.mean()) if error.size else None,
                "scale_px": scale,
                "error_scale_px": viz.ERROR_FULL_SCALE,
            }
        )
    return items


def _samples(
    predictor: Predictor,
    loader: Iterable[Mapping[str, Any]],
    preprocessing: StereoAugmentSpec,
    scores: Scores | None = None,
) -> Iterator[Shown]:
    reads = Reads()
    try:
        for batch in loader:
            reads.add(batch["from_cache"])
            disparity = predictor(batch["left"], batch["right"])
            if scores is not None:
                scores.add(batch, disparity)
            for position in range(len(batch["name"])):
                yield _shown(batch, position, disparity[position].numpy(), preprocessing)
    finally:  # who shows the first samples leaves the rest
        reads.log("pairs of the prediction")


def _shown(
    batch: Mapping[str, Any], position: int, prediction: Map, preprocessing: StereoAugmentSpec
) -> Shown:
    valid = batch["valid"][position, 0].numpy()
    left = batch["left"][position].numpy()
    return Shown(
        name=batch["name"][position],
        left=viz.denormalize(left, preprocessing.input_mean, preprocessing.input_std),
        prediction=prediction,
        truth=np.where(valid, batch["disparity"][position, 0].numpy(), np.float32(np.inf)),
        valid=valid,
        has_gt=bool(batch["has_gt"][position]),
    )


def _unused_stem(name: str, used: set[str]) -> str:
    """The sample's relative path without suffix, numbered when two samples share it."""
    parts = [part for part in PurePath(name).with_suffix("").parts if part not in ("/", "..")]
    wanted = "/".join(parts)
    stem, number = wanted, 1
    while stem in used:
        number += 1
        stem = f"{wanted}_{number}"
    used.add(stem)
    return stem
