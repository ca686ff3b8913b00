"""A Gaussian process over points of a cube, small enough to be fitted anew for every proposal.

Kernel: Matern 5/2 of the distance r, r^2 = sum of weight_j * (difference in column j)^2, where two
different choices are 1 apart. The weights (one per column), the signal and the noise variance
maximise the posterior density; the prior expects smoother functions the more columns there are
(Hvarfner et al., Vanilla Bayesian Optimization Performs Great in High Dimensions, ICML 2024).
Observations may have known variances of their own, which add to the noise.

An answer must not depend on the number of threads of the linear algebra, so it gets one.
"""

# pyright: basic, reportMissingTypeStubs=false
# SciPy's types are partial.
from __future__ import annotations

import copy
import math

import numpy as np
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from automl.algorithms.cube import Array

ITERATIONS = 40
# Normal priors of logarithms, mean and deviation; values are standardised.
LENGTH = (0.0, 0.75)  # of the length scale divided by the square root of the number of columns
SIGNAL = (0.0, 1.0)
NOISE = (math.log(0.02), 1.0)
# Of the logarithms; they keep the matrix of the kernel well conditioned.
WEIGHT_BOUNDS, SIGNAL_BOUNDS, NOISE_BOUNDS = (-12, 8), (-6, 6), (-9, 4)


class GaussianProcess:
    """A fitted process.

    Attributes:
        evidence: logarithm of the posterior density of the fit, up to a constant for these points.
    """

    def __init__(self, points: Array, values: Array, variances: Array, choices: Array) -> None:
        """Fit.

        Args:
            points: rows of a cube.
            values: one per row.
            variances: known variance of each value.
            choices: `Cube.choices`.
        """
        self._choices = choices
        self._mean = float(values.mean())
        self._scale = float(values.std()) or 1.0
        self._points = points
        self._values = (values - self._mean) / self._scale
        self._variances = variances / self._scale**2
        with threadpool_limits(1, user_api="blas"):
            self._theta, fit = self._fit()
            self._condition()
        self.evidence = -fit - len(values) * math.log(self._scale)

    @property
    def noise(self) -> float:
        """Standard deviation of values around the function, beside their known variances."""
        return self._scale * math.sqrt(_unpacked(self._theta)[2])

    def predict(self, points: Array) -> tuple[Array, Array]:
        """Return mean and standard deviation of the function, without noise, at points."""
        weights, signal, _ = _unpacked(self._theta)
        encoded, known = (_encoded(p, weights, self._choices) for p in (points, self._points))
        with threadpool_limits(1, user_api="blas"):
            covariance = signal * _matern(_squared(encoded, known))
            mean = covariance @ self._solved
            rest = solve_triangular(self._factor, covariance.T, lower=True)
        variance = np.maximum(signal - (rest**2).sum(axis=0), 1e-10)
        return self._mean + self._scale * mean, self._scale * np.sqrt(variance)

    def believing(self, points: Array) -> GaussianProcess:
        """Return the process after its own predictions were seen at more points."""
        believer = copy.copy(self)
        mean, _ = self.predict(points)
        believer._points = np.concatenate([self._points, points])
        believer._values = np.concatenate([self._values, (mean - self._mean) / self._scale])
        believer._variances = np.concatenate([self._variances, np.zeros(len(points))])
        with threadpool_limits(1, user_api="blas"):
            believer._condition()
        return believer

    def _condition(self) -> None:
        weights, signal, noise = _unpacked(self._theta)
        encoded = _encoded(self._points, weights, self._choices)
        kernel = signal * _matern(_squared(encoded, encoded))
        kernel[np.diag_indices_from(kernel)] += noise + self._variances
        factor = cho_factor(kernel, lower=True)
        self._factor: Array = factor[0]
        self._solved: Array = cho_solve(factor, self._values)

    def _fit(self) -> tuple[Array, float]:
        columns = self._points.shape[1]
        weight = -2 * (LENGTH[0] + 0.5 * math.log(columns))
        start = np.array([weight] * columns + [SIGNAL[0], NOISE[0]])
        spreads = np.array([2 * LENGTH[1]] * columns + [SIGNAL[1], NOISE[1]])
        differences = np.abs(self._points[:, None, :] - self._points[None, :, :])
        squares = np.where(self._choices > 0, differences > 0, differences**2)
        squares = squares.reshape(-1, columns)
        found = minimize(
            lambda theta: self._loss(theta, squares, start, spreads),
            start,
            jac=True,
            method="L-BFGS-B",
            bounds=[WEIGHT_BOUNDS] * columns + [SIGNAL_BOUNDS, NOISE_BOUNDS],
            options={"maxiter": ITERATIONS},
        )
        return found.x, float(found.fun)

    def _loss(
        self, theta: Array, squares: Array, means: Array, spreads: Array
    ) -> tuple[float, Array]:
        """Return minus the logarithm of the posterior density, and its gradient."""
        count = len(self._values)
        weights, signal, noise = _unpacked(theta)
        distance = np.sqrt(5.0 * (squares @ weights).reshape(count, count))
        decay = np.exp(-distance)
        kernel = signal * (1 + distance + distance**2 / 3) * decay
        noisy = kernel.copy()
        noisy[np.diag_indices_from(noisy)] += noise + self._variances
        factor = cho_factor(noisy, lower=True)
        inverse = cho_solve(factor, np.eye(count))
        solved = inverse @ self._values
        log_determinant = 2 * np.log(np.diag(factor[0])).sum()
        deviation = (theta - means) / spreads
        value = 0.5 * (self._values @ solved + log_determinant + deviation @ deviation)
        outer = inverse - np.outer(solved, solved)  # twice the derivative by the kernel
        by_square = outer * (-5 / 6 * signal) * (1 + distance) * decay
        gradient = np.empty_like(theta)
        gradient[:-2] = 0.5 * weights * (by_square.ravel() @ squares)
        gradient[-2] = 0.5 * (outer * kernel).sum()
        gradient[-1] = 0.5 * noise * np.trace(outer)
        return float(value), gradient + deviation / spreads


def _unpacked(theta: Array) -> tuple[Array, float, float]:
    return np.exp(theta[:-2]), float(np.exp(theta[-2])), float(np.exp(theta[-1]))


def _encoded(points: Array, weights: Array, choices: Array) -> Array:
    """Return columns whose squared distance is r^2; a choice has one column per option."""
    parts: list[Array] = []
    for values, weight, options in zip(points.T, weights, choices, strict=True):
        if options:
            hot = values[:, None] == np.arange(options)[None, :]
            parts.append(hot * math.sqrt(weight / 2))
        else:
            parts.append(values[:, None] * math.sqrt(weight))
    return np.concatenate(parts, axis=1)


def _squared(left: Array, right: Array) -> Array:
    squared = (left**2).sum(1)[:, None] + (right**2).sum(1)[None, :] - 2 * left @ right.T
    return np.maximum(squared, 0.0)


def _matern(squared: Array) -> Array:
    distance = np.sqrt(5.0 * squared)
    return (1 + distance + distance**2 / 3) * np.exp(-distance)
