"""Four images are learnt by heart: data, loss, gradients, rates and scores fit each other."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stereo.data.encodings import write_pfm, write_png
from stereo.data.generator import EMBEDDED_IMAGES, write_embedded_images
from stereo.registry import MODELS
from stereo.spec.data import MonoSource
from stereo.spec.networks import MonoBackboneSpec
from stereo.status import StatusLog
from stereo.train.trainer import fit

CLASSES = {"mono_metric": "MetricMonoDataset", "mono_relative": "RelativeMonoDataset"}
HEIGHT, WIDTH = 56, 84


def write_images(directory: Path, *, is_depth: bool) -> Path:
    """Four slanted planes with a bump; the nearer, the brighter. Returns the annotation file."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0 : 1 : HEIGHT * 1j, 0 : 1 : WIDTH * 1j]
    lines: list[str] = []
    for number in range(4):
        slope, middle = rng.uniform(-3, 3, 2), rng.uniform(0.2, 0.8, 2)
        bump = np.exp(-((y - middle[0]) ** 2 + (x - middle[1]) ** 2) / 0.05)
        inverse = 8 + slope[0] * y + slope[1] * x + 4 * bump  # about 2 to 18
        shade = 14 * inverse[..., None] * rng.uniform(0.6, 1.0, 3)
        image = np.clip(shade + rng.normal(0, 10, shade.shape), 0, 255).astype(np.uint8)
        write_png(directory / f"{number}.png", image)
        truth = 16 / inverse if is_depth else inverse  # m; px
        write_pfm(directory / f"{number}.pfm", truth.astype(np.float32))
        lines.append(f"{number}.png {number}.pfm\n")
    listing = directory / "list.txt"
    listing.write_text("".join(lines))
    return listing


def sixty_steps(
    key: str,
    listing: Path,
    directory: Path,
    *,
    crop: list[int],
    lr: float,
    head_lr_ratio: float = 10.0,
    **backbone: int,
) -> tuple[list[float], list[float]]:
    """Loss and abs_rel of every step on the images of a list, with the packaged optimiser."""
    entry = MODELS[key]
    spec: Any = entry.experiment()
    spec.model.encoder = "vits"
    spec.model.mono_backbone = MonoBackboneSpec(**backbone)
    spec.dataset.cache = "off"
    for split in (spec.dataset.train_dataset, spec.dataset.val_dataset):
        split.data_sources = [MonoSource(CLASSES[key], str(listing))]  # type: ignore[arg-type]
        split.batch_size, split.workers = 4, 0
        split.augmentation.crop_size = crop
    spec.train.num_epochs = spec.train.checkpoint_interval = 60  # of one step
    # Nothing is loaded, so the rates are higher; all else is the packaged optimiser.
    spec.train.optim.lr, spec.train.optim.head_lr_ratio = lr, head_lr_ratio
    fit(spec, entry, directory, status=StatusLog(directory))

    with (directory / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 60
    losses, errors = ([float(row[name]) for row in rows] for name in ("train_loss", "val/abs_rel"))
    return losses, errors


@pytest.mark.slow
@pytest.mark.parametrize("key", CLASSES)
def test_sixty_steps_learn_four_images(key: str, tmp_path: Path) -> None:
    listing = write_images(tmp_path, is_depth=key == "mono_metric")
    crop = [HEIGHT, WIDTH]
    losses, errors = sixty_steps(key, listing, tmp_path / "train", crop=crop, lr=1e-4)
    assert losses[-1] < losses[0] / 5
    assert errors[-1] < errors[0] / 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "crop", "rates"),
    [
        ("mono_metric", [98, 126], {"lr": 3e-4}),
        ("mono_relative", [126, 168], {"lr": 8e-4, "head_lr_ratio": 5.0}),
    ],
)
def test_sixty_steps_learn_four_embedded_images(
    key: str, crop: list[int], rates: dict[str, float], tmp_path: Path
) -> None:
    """With the thin network of the packaged studies."""
    layout = replace(EMBEDDED_IMAGES, train_pairs=4, val_pairs=1)
    listing, _ = write_embedded_images(tmp_path, CLASSES[key], layout)
    spec: Any = {**rates, "blocks": 4, "width": 192}
    losses, errors = sixty_steps(key, listing, tmp_path / "train", crop=crop, **spec)
    assert losses[-1] < losses[0] / 5
    assert errors[-1] < errors[0] / 2
