"""A decoded sample as the arrays of a batch: what each family cuts, resizes and counts.

| key of a batch | content |
|---|---|
| left, right | float32 (B, 3, H, W), (x / 255 - mean) / std |
| disparity | float32 (B, 1, H, W) px, +inf where unknown |
| image | float32 (B, 3, h, w), the same of a single image at the size of the network |
| native_image | float32 (B, 3, H, W), the same at native size; only for tiles |
| target | float32 (B, 1, H, W), +inf where unknown or outside the limits |
| valid | bool (B, 1, H, W): the truth is known, within the limits, and counts in the evaluation |
| truth_pixels | int64 (B,): known pixels before the limits |
| has_gt | bool (B,): the sample came with ground truth |
| name | list of B texts |
| index | int64 (B,): place in the split, 0-based, in file order |
| from_cache | bool (B,): the files did not have to be decoded |

A pair has `left`, `right` and `disparity`, a single image has `image` and `target`: depth in m, or
disparity of any scale. In training h, w and H, W are the crop; otherwise H, W is the native size,
at which predictions are scored.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, ClassVar, TypeAlias

import cv2
import numpy as np

from stereo.data.augment_mono import (
    augment_mono,
    limit_depth,
    normalize_depth,
    resize_exactly,
    resize_image,
)
from stereo.data.augment_stereo import augment
from stereo.data.datasets import (
    RELATIVE_LIMIT,
    Family,
    Format,
    MonoFormat,
    MonoSample,
    StereoSample,
    eval_crop,
    family_of,
)
from stereo.data.encodings import BoolMap, FloatMap, Image
from stereo.errors import DataError
from stereo.spec.data import AugmentSpec
from stereo.spec.experiment import ExperimentSpec, disparity_limit
from stereo.spec.rules import value_at

Batch: TypeAlias = dict[str, Any]
Sample: TypeAlias = StereoSample | MonoSample
Size: TypeAlias = tuple[int, int]  # height, width in px


class Preparation(ABC):
    """Turns samples of a family into the arrays of a batch of one.

    Attributes:
        family: of the dataset classes.
        samples: what a split consists of, in words.
        whole_words: how they are scored, for the log.
        quantity: what the ground truth is, in words.
        unit: of the ground truth with a space before it, empty for a disparity of any scale.
        limits: of usable ground truth, both exclusive.
        limit_keys: fields of the spec that set them, as the rest of a list in words.
    """

    family: ClassVar[Family]
    samples: ClassVar[str]
    whole_words: ClassVar[str]
    quantity: str
    unit: str
    limits: tuple[float, float]
    limit_keys: str

    def __init__(self, augmentation: AugmentSpec) -> None:
        values = np.arange(256)[:, None] / 255
        mean, std = np.array(augmentation.input_mean), np.array(augmentation.input_std)
        table = ((values - mean) / std).astype(np.float32)  # (256, 3)
        self._tables = [np.ascontiguousarray(table[:, channel]) for channel in range(3)]

    @abstractmethod
    def crop(self, sample: Any, rng: np.random.Generator) -> Batch:
        """An augmented crop for training."""

    @abstractmethod
    def whole(self, sample: Any, form: Any) -> Batch:
        """The sample as it is scored; see `usable`."""

    @abstractmethod
    def usable(self, sample: Any, form: Any, *, scored: bool) -> BoolMap:
        """Bool (H, W): the truth counts, in scores (`scored`) or in training.

        Raises:
            DataError: the part that counts in scores is not defined for this size.
        """

    @property
    def usable_words(self) -> str:
        """Which ground truth counts, in words."""
        low, high = self.limits
        return f"above {low:g} and below {high:g}{self.unit}"

    @property
    def outside_words(self) -> str:
        """Which ground truth counts nowhere, in words."""
        low, high = self.limits
        end = f"{high:g}{self.unit}"
        return f"not {low:g}..{end}" if low else f"at or above {end}"

    def _normalised(self, image: Image) -> FloatMap:
        """Float32 (3, H, W); a table look-up is four times as fast as arithmetic."""
        planes = np.empty((3, *image.shape[:2]), np.float32)
        for channel, values in enumerate(cv2.split(image)):
            cv2.LUT(values, self._tables[channel], dst=planes[channel])
        return planes


def preparation(
    spec: ExperimentSpec,
    augmentation: AugmentSpec,
    input_size: Size | None = None,
    *,
    keep_native: bool = False,
) -> Preparation:
    """What turns the samples of an experiment into arrays.

    Args:
        spec: the experiment, for the limits of the ground truth.
        augmentation: of the split.
        input_size: [height, width] px of single images outside training; None: whatever covers
            `augmentation.crop_size` and keeps the aspect.
        keep_native: whole single images are wanted at native size, too.
    """
    if family_of(spec.dataset.dataset_name) == "stereo":
        return _Pairs(spec, augmentation)
    return _Images(spec, augmentation, input_size, keep_native=keep_native)


class _Pairs(Preparation):
    """Pairs: the same window of both views; whole at native size."""

    family = "stereo"
    samples = "pairs"
    whole_words = "pairs are read at native size; crop_size acts on training only"
    quantity = "disparity"
    unit = " px"
    limit_keys = " and max_disparity"

    def __init__(self, spec: ExperimentSpec, augmentation: Any) -> None:
        super().__init__(augmentation)
        self._augmentation = augmentation
        self.limits = (0.0, disparity_limit(spec))

    def crop(self, sample: StereoSample, rng: np.random.Generator) -> Batch:
        return self._arrays(augment(sample, self._augmentation, rng, limit=self.limits[1]))

    def whole(self, sample: StereoSample, form: Format) -> Batch:
        return self._arrays(sample)

    def usable(self, sample: StereoSample, form: Format, *, scored: bool) -> BoolMap:
        return self._valid(sample)

    def _valid(self, sample: StereoSample) -> BoolMap:
        return sample.disparity < self.limits[1]

    def _arrays(self, sample: StereoSample) -> Batch:
        return {
            "left": self._normalised(sample.left),
            "right": self._normalised(sample.right),
            "disparity": sample.disparity[None],
            "valid": self._valid(sample)[None],
            "truth_pixels": np.count_nonzero(sample.valid),
        }


class _Images(Preparation):
    """Single images: a crop of the resized image, or all of it with the target at native size."""

    family = "mono"
    samples = "images"
    whole_words = "images are resized for the network and scored at native size"

    def __init__(
        self,
        spec: ExperimentSpec,
        augmentation: Any,
        input_size: Size | None,
        *,
        keep_native: bool,
    ) -> None:
        super().__init__(augmentation)
        self._augmentation = augmentation
        self._input_size = input_size
        self._keep_native = keep_native
        low, high = (value_at(spec, f"dataset.{end}_depth") for end in ("min", "max"))
        is_metric = low is not None
        self.limits = (low, high) if is_metric else (0.0, RELATIVE_LIMIT)
        self.limit_keys = ", min_depth and max_depth" if is_metric else ""
        self.quantity, self.unit = ("depth", " m") if is_metric else ("disparity", "")
        self._normalize: bool = value_at(spec, "dataset.normalize_depth")
        crop: str = value_at(spec, "dataset.eval_crop")
        self._eval_crop: Any = None if crop == "none" else crop

    def crop(self, sample: MonoSample, rng: np.random.Generator) -> Batch:
        part = augment_mono(replace(sample, target=self._target(sample)), self._augmentation, rng)
        return {
            "image": self._normalised(part.image),
            "target": part.target[None],
            "valid": part.valid[None],
            "truth_pixels": np.count_nonzero(part.valid),
        }

    def whole(self, sample: MonoSample, form: MonoFormat) -> Batch:
        target, scored = self._target(sample), self._scored(sample, form)
        native = {"native_image": self._normalised(sample.image)} if self._keep_native else {}
        return {
            "image": self._normalised(self._resized(sample.image)),
            **native,
            "target": target[None],
            # The farthest pixel is 0 once normalised, and an error relative to 0 is no score.
            "valid": (np.isfinite(target) & (target > 0) & scored)[None],
            "truth_pixels": np.count_nonzero(sample.valid & scored),
        }

    def usable(self, sample: MonoSample, form: MonoFormat, *, scored: bool) -> BoolMap:
        inside = np.isfinite(limit_depth(sample.target, *self.limits))
        return inside & self._scored(sample, form) if scored else inside

    def _target(self, sample: MonoSample) -> FloatMap:
        target = limit_depth(sample.target, *self.limits)
        return normalize_depth(target) if self._normalize else target

    def _resized(self, image: Image) -> Image:
        if self._input_size is None:
            return resize_image(image, self._augmentation.crop_size)
        return resize_exactly(image, self._input_size)

    def _scored(self, sample: MonoSample, form: MonoFormat) -> BoolMap:
        """Bool (H, W): the part that counts in scores, the class's own or that of the spec."""
        crop = form.eval_crop or self._eval_crop
        counts = np.ones(sample.target.shape, bool)
        if crop is None or not sample.has_gt:
            return counts
        try:
            rows, columns = eval_crop(crop, *sample.target.shape)
        except DataError as error:
            raise DataError(f"{sample.row.where}: {error}") from error
        counts[:] = False
        counts[rows, columns] = True
        return counts
