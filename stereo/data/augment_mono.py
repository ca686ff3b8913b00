"""Sizes that the mono networks see, and training augmentation of an image with its target.

The networks read whole patches of 14 px, so every side is a multiple of 14. Image and target are
resized with the same pixel centres; target values do not change with the size.

Source: design pages data.md, section 7, and networks-mono.md, section 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil

import cv2
import numpy as np

from stereo.data.datasets import MonoSample
from stereo.data.encodings import FloatMap, Image
from stereo.data.window import as_image
from stereo.errors import SpecError, SpecProblem
from stereo.spec.data import MonoAugmentSpec
from stereo.spec.rules import multiple_fault

PATCH = 14  # px, side of the patches that the encoder reads


def network_size(size: Sequence[int], crop_size: Sequence[int]) -> tuple[int, int]:
    """[height, width] of an image that keeps its aspect and covers the crop, multiples of 14.

    Args:
        size: [height, width] of the image, px.
        crop_size: least [height, width], px.
    """
    scale = max(least / side for side, least in zip(size, crop_size, strict=True))
    height, width = (
        _patches(scale * side, least) * PATCH for side, least in zip(size, crop_size, strict=True)
    )
    return height, width


def resize_image(image: Image, crop_size: Sequence[int]) -> Image:
    """The image at its network size, bicubic; of validation, test and inference, and before a crop.

    Args:
        image: uint8 (H, W, 3).
        crop_size: least [height, width], px.
    """
    return resize_exactly(image, network_size(image.shape[:2], crop_size))


def resize_exactly(image: Image, size: Sequence[int]) -> Image:
    """The image (H, W, 3) uint8 at [height, width] px, bicubic; a fixed graph takes no other."""
    height, width = size
    return as_image(cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC))


def augment_mono(sample: MonoSample, spec: MonoAugmentSpec, rng: np.random.Generator) -> MonoSample:
    """A random training crop (`spec.crop_size`) of the resized sample, mirrored by chance.

    Args:
        sample: the decoded image; not changed.
        spec: size and probability.
        rng: decides everything; equal states give equal samples.

    Raises:
        SpecError: a side of the crop is no multiple of 14.
    """
    _require_patches(spec.crop_size)
    height, width = spec.crop_size
    size = network_size(sample.image.shape[:2], spec.crop_size)
    image = resize_image(sample.image, spec.crop_size)
    target = _resize_target(sample.target, size)
    top = int(rng.integers(0, size[0] - height, endpoint=True))
    left = int(rng.integers(0, size[1] - width, endpoint=True))
    if spec.do_flip and rng.random() < spec.h_flip_prob:
        image, target = np.fliplr(image), np.fliplr(target)
    rows, columns = slice(top, top + height), slice(left, left + width)
    return replace(
        sample,
        image=np.ascontiguousarray(image[rows, columns]),
        target=np.ascontiguousarray(target[rows, columns]),
    )


def limit_depth(target: FloatMap, min_depth: float, max_depth: float) -> FloatMap:
    """The depth in m where min_depth < depth < max_depth, +inf elsewhere."""
    inside = (target > min_depth) & (target < max_depth)
    return np.where(inside, target, np.float32(np.inf))


def normalize_depth(target: FloatMap) -> FloatMap:
    """The target as 0..1 between the least and the largest valid value; +inf stays.

    The least and largest are of the valid pixels only; where they are equal all become 0.
    """
    valid = np.isfinite(target)
    low = target.min(initial=np.inf, where=valid)
    high = target.max(initial=-np.inf, where=valid)
    span = high - low if high > low else np.float32(1)
    return np.where(valid, (target - low) / span, np.float32(np.inf)) if valid.any() else target


def _patches(length: float, least: int) -> int:
    """Whole patches nearest to a length in px, but enough to cover `least` px."""
    patches = round(length / PATCH)
    return patches if patches * PATCH >= least else ceil(length / PATCH)


def _resize_target(target: FloatMap, size: Sequence[int]) -> FloatMap:
    """Nearest by pixel centres; OpenCV's plain INTER_NEAREST is off by up to half a pixel."""
    height, width = size
    resized = cv2.resize(target, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return np.asarray(resized, np.float32)


def _require_patches(crop_size: Sequence[int]) -> None:
    problem = multiple_fault(list(crop_size), PATCH)
    if problem is not None:
        key = "dataset.train_dataset.augmentation.crop_size"
        remedy = f"The encoder reads patches of {PATCH} px"
        raise SpecError([SpecProblem("", key, problem, remedy)])
