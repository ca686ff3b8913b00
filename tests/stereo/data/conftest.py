"""Pairs with exact truth, the warp test and the real data folder, for the tests of stereo.data."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from stereo.data.annotations import Row
from stereo.data.datasets import StereoSample
from stereo.data.generator import GeneratedPair, generate

REPOSITORY = Path(__file__).parents[3]
REAL = Path(os.environ.get("DEPTHTUNE_REAL_DATA", REPOSITORY.parent / "shared" / "data" / "real"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    if not REAL.is_dir():
        pytest.skip(f"no real data at {REAL} (DEPTHTUNE_REAL_DATA names another folder)")
    return REAL


@pytest.fixture(scope="session")
def interior_of() -> Callable[[GeneratedPair], np.ndarray]:
    return _interior


@pytest.fixture(scope="session")
def clean_sample() -> Callable[..., StereoSample]:
    """A sample without photometric noise whose truth is only known at visible interior pixels."""

    @cache
    def build(index: int, *, height: int = 192, width: int = 256, whole: bool = False):
        pair = generate(5, index, height=height, width=width, photometric=False)
        known = np.ones_like(pair.occluded) if whole else _interior(pair)
        disparity = np.where(known, pair.disparity, np.float32(np.inf))
        row = Row(Path("im0.png"), Path("im1.png"), None, None, Path("train.txt"), 1)
        return StereoSample(pair.left, pair.right, disparity, True, "im0.png", row)

    return build


@pytest.fixture(scope="session")
def warp_error() -> Callable[..., float]:
    """Mean grey-level difference between left and the right image sampled at x - disparity."""

    def measure(
        sample: StereoSample,
        *,
        offset: float = 0.0,
        factor: float = 1.0,
        rows: int = 0,
        power: int = 1,
    ) -> float:
        """With the disparity changed, or the right view `rows` higher; power 2: mean square."""
        left = sample.left.astype(np.float64)
        right = sample.right.astype(np.float64)
        height, width = sample.disparity.shape
        known = np.isfinite(sample.disparity)
        x = np.arange(width)[None, :] - factor * np.where(known, sample.disparity, 0) + offset
        y = np.arange(height)[:, None] - rows
        usable = known & (x >= 0) & (x <= width - 1) & (y >= 0) & (y < height)
        column = np.clip(np.floor(x).astype(int), 0, width - 2)
        share = (x - column)[..., None]
        y = np.clip(y, 0, height - 1)
        sampled = right[y, column] * (1 - share) + right[y, column + 1] * share
        return float((np.abs(sampled - left)[usable] ** power).mean())

    return measure


def _interior(pair: GeneratedPair) -> np.ndarray:
    """Visible pixels whose neighbourhood in both views shows the same surface."""
    height, width = pair.ids.shape
    column = np.floor(np.arange(width)[None, :] - pair.disparity).astype(int)
    rows = np.arange(height)[:, None]
    inside = ~pair.occluded
    for dx in (-2, -1, 0, 1, 2, 3):
        for dy in (-1, 0, 1):
            neighbour_row = np.clip(rows + dy, 0, height - 1)
            right = pair.right_ids[neighbour_row, np.clip(column + dx, 0, width - 1)]
            left = pair.ids[neighbour_row, np.clip(np.arange(width)[None, :] + dx, 0, width - 1)]
            inside = inside & (right == pair.ids) & (left == pair.ids)
    return inside
