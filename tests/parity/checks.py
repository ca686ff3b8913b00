"""One compared quantity of a parity kit, and the ways to compare."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Check:
    """One compared quantity."""

    name: str
    deviation: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """True within the tolerance; NaN is not."""
        return self.deviation <= self.tolerance

    def __str__(self) -> str:
        verdict = "ok" if self.ok else "FAIL"
        return (
            f"{self.name:<58} {self.deviation:10.2e}  (tolerance {self.tolerance:.0e})  {verdict}"
        )


class KitError(Exception):
    """The kit cannot be compared: wrong checksum, or names and shapes differ."""


def maps(
    name: str,
    found: Tensor,
    expected: np.ndarray,
    limits: tuple[float, float],
    unit: str = "px",
) -> Iterator[Check]:
    """Compare whole arrays: largest and mean deviation."""
    difference = np.abs(found.detach().numpy() - expected)
    yield Check(f"{name} max {unit}", float(difference.max()), limits[0])
    if np.isfinite(limits[1]):
        yield Check(f"{name} mean {unit}", float(difference.mean()), limits[1])


def relative(name: str, found: float, expected: float, tolerance: float) -> Check:
    """Compare two numbers relative to the expected one."""
    return Check(name, abs(found - expected) / max(abs(expected), 1e-12), tolerance)
