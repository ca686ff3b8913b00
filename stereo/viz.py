"""Pictures of disparity, depth and errors, and panels beside each other.

Arrays are (H, W) or (H, W, 3) with rows first; pictures are uint8 RGB. Disparity and errors have
the colours of turbo, depth those of ColorBrewer's Spectral with red for what is near.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
Map = NDArray[np.float32]
Mask = NDArray[np.bool_]

ERROR_FULL_SCALE = 3.0  # px; larger errors have the last colour
RATIO_FULL_SCALE = 0.25  # error / truth of depth; larger ones have the last colour
MIDDLE = 0.5  # shown where a map has no scale of its own
COLOR_STOPS = 7  # of a legend
THUMBNAIL_WIDTH, THUMBNAIL_HEIGHT = 320, 480  # px, the largest on a contact sheet
LINE_HEIGHT, GAP = 18, 4  # px of a contact sheet
INK, PAPER = (230, 230, 230), 24


def _turbo_table() -> Picture:
    levels = np.arange(256, dtype=np.uint8)[None]
    table = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)[0]
    return np.asarray(table, np.uint8)


def _spectral_table() -> Picture:
    """The eleven colours of Spectral, red to violet, and linear steps between them."""
    stops = "9e0142 d53e4f f46d43 fdae61 fee08b ffffbf e6f598 abdda4 66c2a5 3288bd 5e4fa2"
    known = np.array([list(bytes.fromhex(stop)) for stop in stops.split()], float)
    places = np.linspace(0, len(known) - 1, 256)
    channels = [np.interp(places, np.arange(len(known)), known[:, c]) for c in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


TURBO, SPECTRAL = _turbo_table(), _spectral_table()  # (256, 3), from the first to the last colour


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
    return _colored(shares, known, TURBO)


def color_depth(
    depth: Map, ends: tuple[float, float] | None = None, *, is_inverse: bool = False
) -> Picture:
    """Spectral from near (red) to far, black where the depth is not finite.

    Args:
        depth: depth or inverse depth (H, W).
        ends: smallest and largest value with a colour of its own; None: those of the map.
        is_inverse: larger is nearer.
    """
    known = np.isfinite(depth)
    low, high = ends or _ends(depth[known])
    shares = np.full(known.shape, MIDDLE)
    if high > low:
        shares = (np.where(known, depth, low) - low) / (high - low)
    return _colored(1 - shares if is_inverse else shares, known, SPECTRAL)


def _ends(values: Map) -> tuple[float, float]:
    return (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)


def color_error(prediction: Map, truth: Map, valid: Mask) -> Picture:
    """Turbo over `|prediction - truth|` up to 3 px, black where there is no ground truth."""
    error = np.abs(prediction - np.where(valid, truth, 0.0))
    return _colored(np.nan_to_num(error / ERROR_FULL_SCALE, nan=1.0), valid, TURBO)


def color_ratio(prediction: Map, truth: Map, valid: Mask) -> Picture:
    """Turbo over `|prediction - truth| / truth` up to 25 %, black without ground truth."""
    known = np.where(valid, truth, 1.0)
    error = np.abs(prediction - known) / known
    return _colored(np.nan_to_num(error / RATIO_FULL_SCALE, nan=1.0), valid, TURBO)


def legend(table: Picture) -> list[str]:
    """Some colours of a table from the first to the last, `#rrggbb`."""
    places = np.linspace(0, len(table) - 1, COLOR_STOPS).round().astype(int)
    return ["#" + bytes(color).hex() for color in table[places]]


def side_by_side(panels: Sequence[Picture]) -> Picture:
    """Panels of one size from left to right."""
    return np.concatenate(list(panels), axis=1)


def contact_sheet(rows: Sequence[tuple[str, Mapping[str, Picture]]]) -> Picture | None:
    """Small pictures in rows under their titles, and their names on top; None without rows.

    Args:
        rows: title of a row, and its pictures by name; all rows have the same names.
    """
    if not rows:
        return None
    blocks: list[Picture] = []
    for title, pictures in rows:
        line = side_by_side([_framed(thumbnail(picture)) for picture in pictures.values()])
        blocks += [_caption(title, line.shape[1]), line]
    names = [_caption(name, THUMBNAIL_WIDTH + GAP) for name in rows[0][1]]
    return np.concatenate([side_by_side(names), *blocks])


def thumbnail(picture: Picture) -> Picture:
    """The picture as large as a contact sheet shows it."""
    height, width = picture.shape[:2]
    scale = min(THUMBNAIL_WIDTH / width, THUMBNAIL_HEIGHT / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


def _framed(picture: Picture) -> Picture:
    """A thumbnail on paper of full width, with a gap on two sides."""
    height, width = picture.shape[:2]
    panel = np.full((height + GAP, THUMBNAIL_WIDTH + GAP, 3), PAPER, np.uint8)
    panel[:height, :width] = picture
    return panel


def _caption(text: str, width: int) -> Picture:
    """A line of text; the end is kept where it is too long, for that is where names differ."""
    strip = np.full((LINE_HEIGHT, width, 3), PAPER, np.uint8)
    font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.4
    while cv2.getTextSize(text, font, size, 1)[0][0] > width - 2 * GAP:
        text = f"..{text[3:]}"
    cv2.putText(strip, text, (GAP, LINE_HEIGHT - 5), font, size, INK, 1, cv2.LINE_AA)
    return strip


def denormalize(image: Map, mean: Sequence[float], std: Sequence[float]) -> Picture:
    """The uint8 RGB picture (H, W, 3) of a normalised image (3, H, W)."""
    values = image.transpose(1, 2, 0) * np.asarray(std) + np.asarray(mean)
    return np.rint(np.clip(values, 0.0, 1.0) * 255).astype(np.uint8)


def resized(picture: Picture, size: tuple[int, int]) -> Picture:
    """The picture at another size (height, width)."""
    if picture.shape[:2] == size:
        return picture
    smaller = size[0] < picture.shape[0]
    method = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(picture, size[::-1], interpolation=method), np.uint8)


def _colored(shares: NDArray[np.floating], known: Mask, table: Picture) -> Picture:
    """Colours of shares 0..1; values outside take the first or last colour."""
    levels = np.rint(np.clip(shares, 0.0, 1.0) * 255).astype(np.uint8)
    picture = table[levels]
    picture[~known] = 0
    return picture
