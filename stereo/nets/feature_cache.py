"""Features of a frozen encoder, kept for images that come again.

An image is known by its content, so that a feature never belongs to another picture, crop or size.
Features are computed image by image: then they do not depend on the others of a batch, and a run
gives the same numbers with the cache and without its first epoch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

BUDGET = 1 << 30  # bytes of host memory


class FeatureCache:
    """Features by image, until the budget is spent; later images are computed every time.

    A pass over the data in a new order would find little in a cache that forgets the oldest.

    Args:
        compute: image (1, 3, H, W) -> features (1, C, h, w).
        budget: bytes of features that are kept.

    Attributes:
        hits: images that were known.
    """

    def __init__(self, compute: Callable[[Tensor], Tensor], budget: int = BUDGET) -> None:
        self._compute = compute
        self._budget = budget
        self._features: dict[bytes, Tensor] = {}
        self.bytes = 0
        self.hits = 0

    def __call__(self, images: Tensor) -> Tensor:
        """Return the features (B, C, h, w) of images (B, 3, H, W)."""
        return torch.cat([self._of(image) for image in images.split(1)])

    def forget(self) -> None:
        """Drop all features: the weights are others."""
        self._features.clear()
        self.bytes = 0

    def _of(self, image: Tensor) -> Tensor:
        key = _key(image)
        if key in self._features:
            self.hits += 1
            return self._features[key].to(image.device)
        features = self._compute(image)
        size = features.numel() * features.element_size()
        if self.bytes + size <= self._budget:
            self._features[key] = features.detach().to("cpu", copy=True)
            self.bytes += size
        return features


def _key(image: Tensor) -> bytes:
    """Content and size of an image, and the arithmetic in which its features are computed."""
    kind = image.device.type
    arithmetic = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)
    digest = hashlib.blake2b(f"{tuple(image.shape)} {image.dtype} {arithmetic}".encode())
    digest.update(image.contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return digest.digest()
