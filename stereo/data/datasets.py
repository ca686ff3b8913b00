"""Dataset classes: one table row per class, over the readers of `encodings`.

| class | columns | disparity file |
|---|---|---|
| GenericDataset | 2, 3, 4 | PFM or FSD RGB PNG; two columns: no ground truth |
| Middlebury | 3, 4 | the same |

A fourth column is a mask image; only its value 255 (visible in both views) counts, all else is
unknown. The table of design page data.md, section 4, is the source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stereo.data.encodings import (
    PFM_OR_FSD_PNG,
    BoolMap,
    FloatMap,
    Image,
    read_image,
    read_mask,
)
from stereo.errors import DataError

if TYPE_CHECKING:
    from stereo.data.annotations import Row


@dataclass(frozen=True)
class StereoSample:
    """A decoded rectified pair.

    Attributes:
        left: uint8 (H, W, 3) RGB.
        right: uint8 (H, W, 3) RGB.
        disparity: float32 (H, W) px of the left view, +inf where unknown.
        has_gt: False when the sample came without ground truth.
        name: left image, relative to the annotation file where possible.
        row: where the sample came from.
        right_disparity: float32 (H, W) px of the right view, +inf where unknown, if it is known.
        is_sparse: the ground truth is scattered points (laser), not a dense map.
    """

    left: Image
    right: Image
    disparity: FloatMap
    has_gt: bool
    name: str
    row: Row
    right_disparity: FloatMap | None = None
    is_sparse: bool = False

    @property
    def valid(self) -> BoolMap:
        """Bool (H, W), True where the ground truth is known (and the mask says visible)."""
        return np.isfinite(self.disparity)


@dataclass(frozen=True)
class Format:
    """What a dataset class accepts and how it is read.

    Attributes:
        name: public class name.
        columns: column counts a line may have.
        disparity: reader in px by file suffix (lower case, with the dot).
    """

    name: str
    columns: tuple[int, ...]
    disparity: Mapping[str, Callable[[Path], FloatMap]]

    def read(self, row: Row) -> StereoSample:
        """Read all files of a row.

        Raises:
            DataError: a file cannot be read or the sizes differ; names annotation, line and path.
        """
        try:
            left, right = read_image(row.left), read_image(row.right)
            _require_size(row.right, right.shape[:2], left.shape[:2])
            disparity = self._read_disparity(row, left.shape[:2])
        except DataError as error:
            raise DataError(f"{row.where}: {error}") from error
        return StereoSample(
            left=left,
            right=right,
            disparity=disparity,
            has_gt=row.disparity is not None,
            name=_name(row),
            row=row,
        )

    def _read_disparity(self, row: Row, size: tuple[int, int]) -> FloatMap:
        """Disparity (H, W) in px, +inf where unknown or masked out."""
        if row.disparity is None:
            return np.full(size, np.inf, np.float32)
        disparity = self.disparity[row.disparity.suffix.lower()](row.disparity)
        _require_size(row.disparity, disparity.shape, size)
        if row.occlusion is None:
            return disparity
        visible = read_mask(row.occlusion)
        _require_size(row.occlusion, visible.shape, size)
        return np.where(visible, disparity, np.float32(np.inf))


DATASETS: dict[str, Format] = {
    form.name: form
    for form in (
        Format("GenericDataset", (2, 3, 4), PFM_OR_FSD_PNG),
        Format("Middlebury", (3, 4), PFM_OR_FSD_PNG),
    )
}


def find_format(name: str) -> Format:
    """The class called `name`, in any case.

    Raises:
        DataError: unknown name; lists the valid ones.
    """
    by_lower_case = {known.lower(): form for known, form in DATASETS.items()}
    form = by_lower_case.get(name.lower())
    if form is not None:
        return form
    near = get_close_matches(name.lower(), by_lower_case, n=1)
    hint = f"; did you mean {by_lower_case[near[0]].name}?" if near else ""
    valid = ", ".join(sorted(DATASETS))
    raise DataError(f"dataset_name: got '{name}', stereo classes are {valid}{hint}", exit_code=2)


def _require_size(path: Path, found: tuple[int, ...], left: tuple[int, ...]) -> None:
    if found != left:
        raise DataError(
            f"{path}: size {found[1]}x{found[0]} differs from the left image's {left[1]}x{left[0]}"
        )


def _name(row: Row) -> str:
    """The left image's path, relative to the annotation file where it lies below it."""
    parent = row.source.parent
    return str(row.left.relative_to(parent) if row.left.is_relative_to(parent) else row.left)
