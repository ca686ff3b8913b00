"""Pictures of disparity and of its error, and panels beside each other.

Arrays are (H, W) or (H, W, 3) with rows first; pictures are uint8 RGB. The colour map is turbo.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
Map = NDArray[np.float32]
Mask = NDArray[np.bool_]

ERROR_FULL_SCALE = 3.0  # px; larger errors have the last colour
COLOR_STOPS = 7  # of a legend
MIDDLE = 0.5  # shown where a map has no scale of its own


def color_disparity(disparity: Map, scale: float | None = None) -> Picture:
    """Turbo over `disparity / scale`, black where the disparity is not finite.

    Args:
        disparity: (H, W), px.
        scale: px of the last colour; None takes the largest finite disparity.
    """
    known = np.isfinite(disparity)
    if scale is None:
        scale = float(disparity[known].max(initial=0.0))
    shares = np.where(known, disparity, 0.0) / scale if scale > 0 else np.full(known.shape, MIDDLE)
    return _turbo(shares, known)


def color_error(prediction: Map, truth: Map, valid: Mask) -> Picture:
    """Turbo over `|prediction - truth|` up to 3 px, black where there is no ground truth."""
    error = np.abs(prediction - np.where(valid, truth, 0.0))
    return _turbo(np.nan_to_num(error / ERROR_FULL_SCALE, nan=1.0), valid)


def turbo_colors() -> list[str]:
    """Colours from the first to the last of turbo, `#rrggbb`."""
    shares = np.linspace(0.0, 1.0, COLOR_STOPS)[None]
    return ["#" + bytes(c).hex() for c in _turbo(shares, np.ones(shares.shape, bool))[0]]


def side_by_side(panels: Sequence[Picture]) -> Picture:
    """Panels of one size from left to right."""
    return np.concatenate(list(panels), axis=1)


def denormalize(image: Map, mean: Sequence[float], std: Sequence[float]) -> Picture:
    """The uint8 RGB picture (H, W, 3) of a normalised image (3, H, W)."""
    values = image.transpose(1, 2, 0) * np.asarray(std) + np.asarray(mean)
    return np.rint(np.clip(values, 0.0, 1.0) * 255).astype(np.uint8)


def _turbo(shares: NDArray[np.floating], known: NDArray[np.bool_]) -> Picture:
    """Colours of shares 0..1; values outside take the first or last colour."""
    levels = np.rint(np.clip(shares, 0.0, 1.0) * 255).astype(np.uint8)
    picture = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    picture[~known] = 0
    return np.asarray(picture, dtype=np.uint8)
