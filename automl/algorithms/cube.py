"""The search space as a table of numbers: what surrogate models and evolution work on.

A point has one column per parameter: the position 0..1 in its range (or in the logarithm of its
range), or the index of a choice. A parameter that does not act in a trial stands at its default.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from automl.space import Parameter, SearchSpace

Array: TypeAlias = NDArray[np.float64]


class Cube:
    """Points of one search space.

    Attributes:
        choices: number of choices of a column, 0 for a range.
        default: the point of the base spec, moved inside.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self.choices = np.array([len(item.choices) for item in space.parameters])
        self._levels = np.array([_levels(item) for item in space.parameters])
        self.default = np.array([self._position(item, item.default) for item in space.parameters])

    @property
    def columns(self) -> int:
        """Number of parameters."""
        return len(self.choices)

    def point(self, params: Mapping[str, Any]) -> Array:
        """Return the point of a trial's parameters."""
        return np.array(
            [
                self._position(item, params[item.path]) if item.path in params else default
                for item, default in zip(self.space.parameters, self.default, strict=True)
            ]
        )

    def points(self, all_params: Sequence[Mapping[str, Any]]) -> Array:
        """Return one row per trial."""
        rows = [self.point(params) for params in all_params]
        return np.array(rows).reshape(len(rows), self.columns)

    def params(self, point: Array) -> dict[str, Any]:
        """Return the parameters at a point; inactive ones are left out."""
        params: dict[str, Any] = {}
        for item, position in zip(self.space.parameters, point, strict=True):
            if self.space.is_active(item, params):
                params[item.path] = item.limited(value_at(item, float(position)), params)
        return params

    def uniform(self, generator: np.random.Generator, count: int) -> Array:
        """Return random points."""
        points = generator.random((count, self.columns))
        return np.where(self.choices > 0, np.floor(points * np.maximum(self.choices, 1)), points)

    def near(self, generator: np.random.Generator, centres: Array, scale: Array) -> Array:
        """Return points near centres (one each): some columns moved by about `scale`."""
        count = len(centres)
        share = generator.uniform(1.0 / self.columns, 1.0, (count, 1)) ** 2
        moved = generator.random(centres.shape) < np.maximum(share, 1.0 / self.columns)
        moved[np.arange(count), generator.integers(self.columns, size=count)] = True
        steps = centres + scale * generator.standard_normal(centres.shape)
        steps = 1 - np.abs(1 - np.abs(steps) % 2)  # reflected at both ends
        turn = 1 + np.floor(generator.random(centres.shape) * np.maximum(self.choices - 1, 0))
        others = (centres + turn) % np.maximum(self.choices, 1)
        return np.where(moved, np.where(self.choices > 0, others, steps), centres)

    def snapped(self, points: Array) -> Array:
        """Return points moved to the positions that parameters can have: whole numbers, steps."""
        cells = np.minimum(np.floor(points * self._levels), self._levels - 1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self._levels > 0, (cells + 0.5) / self._levels, points)

    def _position(self, item: Parameter, value: Any) -> float:
        inside = item.nearest(value)
        if item.type == "choice":
            known = inside in item.choices
            return float(item.choices.index(inside)) if known else 0.0
        if inside is None:
            return 0.5
        low, high = _ends(item)
        if item.log:
            low, high, inside = math.log(low), math.log(high), math.log(inside)
        return (inside - low) / (high - low) if high > low else 0.5


def value_at(item: Parameter, position: float) -> Any:
    """Return the value at a position 0..1 of a range, or the choice of an index."""
    if item.type == "choice":
        return item.choices[int(position)]
    if position in (0.0, 1.0):
        return item.nearest(item.high if position else item.low)
    low, high = _ends(item)
    if item.log:
        value = math.exp(math.log(low) + position * (math.log(high) - math.log(low)))
    else:
        value = low + position * (high - low)
    return item.nearest(value)


def _ends(item: Parameter) -> tuple[float, float]:
    """Return the range; every whole number gets an equal part of it."""
    low, high = cast(float, item.low), cast(float, item.high)
    half = (item.step or 1) / 2 if item.type == "int" else 0.0
    return low - half, high + half


def _levels(item: Parameter) -> int:
    """Return the number of values of a linear whole-number range, else 0."""
    if item.type != "int" or item.log:
        return 0
    return round((cast(float, item.high) - cast(float, item.low)) / (item.step or 1)) + 1
