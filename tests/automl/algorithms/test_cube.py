"""Points and parameters are two forms of the same thing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automl.algorithms.cube import Cube
from automl.algorithms.samplers import RandomSampler
from tests.automl.algorithms.trials import SPACE

CUBE = Cube(SPACE)


@given(seed=st.integers(0, 999))
@settings(deadline=None)
def test_parameters_come_back_from_their_point(seed):
    params = RandomSampler(SPACE, seed).suggest([], 1, 0)
    back = CUBE.params(CUBE.point(params))
    assert back.keys() == params.keys()
    for path, value in params.items():
        assert back[path] == (pytest.approx(value) if isinstance(value, float) else value)


@given(seed=st.integers(0, 999), scale=st.floats(0.01, 2.0))
@settings(deadline=None)
def test_random_and_neighbouring_points_are_inside(seed, scale):
    generator = np.random.default_rng(seed)
    centres = CUBE.uniform(generator, 5)
    near = CUBE.near(generator, centres, np.full((5, 1), scale))
    assert (near != centres).any(axis=1).all()
    for points in (centres, near, CUBE.snapped(near)):
        assert all(SPACE.contains(CUBE.params(point)) for point in points)


def test_snapping_moves_to_the_point_of_the_parameters():
    generator = np.random.default_rng(0)
    width = [item.path for item in SPACE.parameters].index("width")
    for point in CUBE.snapped(CUBE.uniform(generator, 20)):
        assert CUBE.point(CUBE.params(point))[width] == pytest.approx(point[width])


def test_whole_numbers_are_whole_at_every_point():
    for item in (item for item in SPACE.parameters if item.type == "int"):
        column = [other.path for other in SPACE.parameters].index(item.path)
        for position in (0.0, 1.0, *np.linspace(0.01, 0.99, 15)):
            point = CUBE.default.copy()
            point[column] = position
            for at in (point, CUBE.snapped(point[None])[0]):
                params = CUBE.params(at)
                assert type(params.get(item.path, 0)) is int, (item.path, position)
    width = next(item for item in SPACE.parameters if item.path == "width")
    assert type(width.nearest(8.0)) is int


def test_a_default_outside_the_range_stands_at_its_edge():
    assert Cube(SPACE).point({"lr": 0.5, "width": 1})[0] == 1.0
    assert 0 < Cube(SPACE).point({"width": 1})[2] < 0.1
    assert Cube(SPACE).point({"optimizer": "Lion"})[4] == 0.0
