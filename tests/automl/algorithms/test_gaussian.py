"""The process: derivatives, interpolation, what it is told and what it believes."""

import numpy as np
from scipy.optimize import check_grad
from threadpoolctl import threadpool_limits

from automl.algorithms.gaussian import GaussianProcess

CHOICES = np.array([0, 0, 0, 4])


def data(count: int, seed: int = 0):
    generator = np.random.default_rng(seed)
    points = generator.random((count, 4))
    points[:, 3] = np.floor(points[:, 3] * 4)
    return points, truth(points)


def truth(points):
    return 5 + 3 * (points[:, 0] - 0.3) ** 2 + points[:, 1] + 0.4 * (points[:, 3] == 2)


def test_the_gradient_is_that_of_the_loss():
    points, values = data(15)
    process = GaussianProcess(points, values, np.full(15, 0.01), CHOICES)
    differences = np.abs(points[:, None] - points[None])
    squares = np.where(CHOICES > 0, differences > 0, differences**2).reshape(-1, 4)
    means, spreads = np.linspace(-1, 1, 6), np.linspace(1, 2, 6)

    def at(part: int):
        return lambda theta: process._loss(theta, squares, means, spreads)[part]

    theta = np.random.default_rng(1).normal(-1, 1, 6)
    assert check_grad(at(0), at(1), theta) < 1e-4 * np.linalg.norm(at(1)(theta))


def test_it_predicts_a_smooth_function_and_knows_where_it_does():
    points, values = data(60)
    process = GaussianProcess(points, values, np.zeros(60), CHOICES)
    fresh, expected = data(200, seed=1)
    mean, deviation = process.predict(fresh)
    assert np.sqrt(((mean - expected) ** 2).mean()) < 0.1 * expected.std()
    known = process.predict(points)[1].mean()
    assert known < deviation.mean() < process.predict(fresh + np.array([9, 9, 9, 0]))[1].min()


def test_uncertain_values_count_less():
    points, values = data(40)
    wrong = values.copy()
    wrong[:10] += 2.0
    variances = np.where(np.arange(40) < 10, 4.0, 0.0)
    trusted, doubted = (
        GaussianProcess(points, wrong, each, CHOICES) for each in (np.zeros(40), variances)
    )
    error = [np.abs(process.predict(points)[0] - values).mean() for process in (trusted, doubted)]
    assert error[1] < 0.2 * error[0]


def test_believing_narrows_the_spread_and_keeps_the_mean():
    points, values = data(20)
    process = GaussianProcess(points, values, np.zeros(20), CHOICES)
    there = data(1, seed=5)[0]
    before, after = process.predict(there), process.believing(there).predict(there)
    np.testing.assert_allclose(after[0], before[0], atol=1e-2)
    assert after[1] < before[1]


def test_equal_values_are_no_problem():
    points, _ = data(6)
    mean, _ = GaussianProcess(points, np.full(6, 2.0), np.zeros(6), CHOICES).predict(points)
    np.testing.assert_allclose(mean, 2.0, atol=1e-6)


def test_the_number_of_threads_does_not_matter():
    points, values = data(150)
    predicted = []
    for threads in (1, 2):
        with threadpool_limits(threads, user_api="blas"):
            process = GaussianProcess(points, values, np.zeros(150), CHOICES)
            predicted.append(process.predict(data(50, seed=2)[0]))
    np.testing.assert_array_equal(*predicted)
