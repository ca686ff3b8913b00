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
from stereo.spec.data import MonoAugmentSpec, StereoAugmentSpec
from stereo.spec.experiment import ExperimentSpec
from stereo.tasks import Task
from stereo.viz import Map, Picture

Preprocessing = StereoAugmentSpec | MonoAugmentSpec  # says how the images were normalised


@dataclass(frozen=True)
class Shown:
    """One sample at native size; `truth` is +inf and `valid` False where nothing is known."""

    name: str
    index: int
    image: Picture
    prediction: Map
    truth: Map
    valid: viz.Mask
    has_gt: bool


def write_predictions(
    predictor: Predictor,
    loader: Iterable[Mapping[str, Any]],
    directory: Path,
    preprocessing: Preprocessing,
    spec: ExperimentSpec,
    *,
    save_raw_pfm: bool,
    save_raw_npy: bool,
    depth: Callable[[Map], Map] | None = None,
    write_points: Callable[[Path, Map, Picture], object] | None = None,
    scores: Scores | None = None,
) -> int:
    """Write the outputs of inference and return the number of samples.

    `inference_images/<name>.png` shows image, ground truth if there is one, prediction and error;
    `<quantity>_pfm/<name>.pfm` and `<quantity>_npy/<name>.npy` hold float32 at native size,
    `depth/<name>.npy` float32 m and `depth/<name>.png` 16-bit mm; 0 is no depth. `ply/<name>.ply`
    is what `write_points` makes of it.

    Args:
        predictor: see `stereo.predict`.
        loader: batches of `stereo.data.loaders.evaluation_loader`.
        directory: the folders are made in it.
        preprocessing: says how the images were normalised.
        spec: of the network.
        save_raw_pfm: write `<quantity>_pfm`.
        save_raw_npy: write `<quantity>_npy`.
        depth: disparity in px to depth in m; None writes no depth.
        write_points: writes the point cloud of that depth and the image; None writes none.
        scores: receives the samples that have ground truth.
    """
    stems: set[str] = set()
    task, folder = predictor.task, predictor.task.folder
    scale = task.fixed_scale(spec)
    with progress_bar() as bar:
        batches = bar.track(loader, description=f"predicting ({predictor.backend})")
        for sample in _samples(predictor, batches, preprocessing, scores):
            stem = _unused_stem(sample.name, stems)
            panel = _panel(sample, task, scale)
            write_png(directory / "inference_images" / f"{stem}.png", panel)
            if save_raw_pfm:
                write_pfm(directory / f"{folder}_pfm" / f"{stem}.pfm", sample.prediction)
            if save_raw_npy:
                _write_npy(directory / f"{folder}_npy" / f"{stem}.npy", sample.prediction)
            if depth is not None:
                metres = depth(sample.prediction)
                write_depth_png(directory / "depth" / f"{stem}.png", metres)
                _write_npy(directory / "depth" / f"{stem}.npy", metres)
                if write_points is not None:
                    write_points(directory / "ply" / f"{stem}.ply", metres, sample.image)
    return len(stems)


def _panel(sample: Shown, task: Task[Any], scale: tuple[float, float] | None) -> Picture:
    parts = [sample.image, task.color(sample.prediction, scale)]
    if sample.has_gt:
        parts.insert(1, task.color(sample.truth, scale))
        parts.append(task.color_error(sample.prediction, sample.truth, sample.valid))
    return viz.side_by_side(parts)


def _write_npy(path: Path, values: Map) -> None:
    content = io.BytesIO()
    np.save(content, values)
    write_bytes(path, content.getvalue())


def write_batch(
    stem: Path, batch: Mapping[str, Any], task: Task[Any], preprocessing: Preprocessing
) -> None:
    """Write the samples of a training batch as the network sees them, `<stem>_<place>.png` each.

    A panel has the images and the ground truth, black where it does not count.
    """
    mean, std = preprocessing.input_mean, preprocessing.input_std
    for place in range(len(batch["name"])):
        images = [batch[name][place].cpu().numpy() for name in task.inputs]
        truth, valid = (batch[name][place, 0].cpu().numpy() for name in (task.target, "valid"))
        panels = [viz.denormalize(image, mean, std) for image in images]
        panels.append(task.color(np.where(valid, truth, np.float32(np.inf))))
        write_png(stem.with_name(f"{stem.name}_{place}.png"), viz.side_by_side(panels))


def write_pictures(
    predictor: Predictor,
    loader: Iterable[Mapping[str, Any]],
    directory: Path,
    preprocessing: Preprocessing,
    spec: ExperimentSpec,
    *,
    count: int,
) -> list[dict[str, Any]]:
    """Write four pictures of each of the first `count` samples.

    Ground truth and prediction share one colour scale, which depends on the ground truth only, so
    that pictures of two checkpoints can be compared.

    Returns:
        Per sample its `name`, the file names `image`, `truth`, `prediction` and `error`; `score`
        (None without valid pixels) with its `metric` and `unit`; and the values of the first and
        last colour with the `colors` between them: `scale` of a `quantity`, `error_scale` of an
        error.
    """
    task = predictor.task
    metric, errors = task.headline[0], viz.legend(viz.TURBO)
    scores = Scores(predictor, spec)
    items: list[dict[str, Any]] = []
    samples = _samples(predictor, loader, preprocessing, scores)
    for index, sample in zip(range(count), samples, strict=False):
        pictures, scale = compared(sample, task)
        for kind, picture in pictures.items():
            write_png(directory / f"{index}_{kind}.png", picture)
        found = next((row[metric] for row in scores.rows if row["index"] == sample.index), None)
        items.append(
            {
                "name": sample.name,
                **{kind: f"{index}_{kind}.png" for kind in pictures},
                "score": found,
                "metric": metric,
                "unit": task.declared[f"val/{metric}"]["unit"],
                "quantity": task.quantity,
                "scale": _bar(scale, task.unit, task.colors),
                "error_scale": _bar((0.0, task.error_scale), task.error_unit, errors),
            }
        )
    return items


def compared(sample: Shown, task: Task[Any]) -> tuple[dict[str, Picture], tuple[float, float]]:
    """Image, truth, prediction and error of a sample, and the scale of truth and prediction."""
    known = sample.truth[sample.valid]
    comparable = task.comparable(sample.prediction, sample.truth, sample.valid)
    scale = task.scale(known if known.size else comparable)
    pictures = {
        "image": sample.image,
        "truth": task.color(sample.truth, scale),
        "prediction": task.color(comparable, scale),
        "error": task.color_error(sample.prediction, sample.truth, sample.valid),
    }
    return pictures, scale


def _bar(ends: tuple[float, float], unit: str, colors: list[str]) -> dict[str, Any]:
    return {"low": ends[0], "high": ends[1], "unit": unit, "colors": colors}


def _samples(
    predictor: Predictor,
    loader: Iterable[Mapping[str, Any]],
    preprocessing: Preprocessing,
    scores: Scores | None = None,
) -> Iterator[Shown]:
    reads = Reads()
    try:
        for batch in loader:
            reads.add(batch["from_cache"])
            predictions = predictor(batch)
            if scores is not None:
                scores.add(batch, predictions)
            for position in range(len(batch["name"])):
                yield shown(
                    batch, position, predictions[position].numpy(), predictor.task, preprocessing
                )
    finally:  # who shows the first samples leaves the rest
        reads.log(f"{predictor.task.samples} of the prediction")


def shown(
    batch: Mapping[str, Any],
    position: int,
    prediction: Map,
    task: Task[Any],
    preprocessing: Preprocessing,
) -> Shown:
    """A sample of a batch as pictures need it."""
    valid = batch["valid"][position, 0].numpy()
    image = batch[task.inputs[0]][position].numpy()
    picture = viz.denormalize(image, preprocessing.input_mean, preprocessing.input_std)
    return Shown(
        name=batch["name"][position],
        index=int(batch["index"][position]),
        image=viz.resized(picture, (valid.shape[0], valid.shape[1])),
        prediction=prediction,
        truth=np.where(valid, batch[task.target][position, 0].numpy(), np.float32(np.inf)),
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
