"""How far two computations of the same map are apart, in units of the map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Difference:
    """Absolute differences of two maps; `output_range` is max minus min of the first."""

    mean: float
    maximum: float
    output_range: float

    @property
    def allowed(self) -> float:
        """Largest difference of a faithful graph: a thousandth of the range, at least of 1."""
        return 1e-3 * max(self.output_range, 1.0)

    def within_limit(self) -> bool:
        """Whether the second computation is a faithful copy; never with a NaN in either."""
        return self.maximum <= self.allowed


def compare(reference: NDArray[np.float32], candidate: NDArray[np.float32]) -> Difference:
    """Compare two outputs of the same shape for the same input."""
    difference = np.abs(reference.astype(np.float64) - candidate)
    return Difference(
        mean=float(difference.mean()),
        maximum=float(difference.max()),
        output_range=float(reference.max() - reference.min()),
    )
