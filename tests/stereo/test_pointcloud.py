from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stereo.geometry import disparity_to_depth
from stereo.pointcloud import write_ply


def read_ply(path: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Header lines, points (N, 3) and colours (N, 3), read without the code under test."""
    head, _, body = path.read_bytes().partition(b"end_header\n")
    rows = np.frombuffer(body, np.uint8).reshape(-1, 15)
    points = np.ascontiguousarray(rows[:, :12]).view("<f4")
    return head.decode("ascii").splitlines(), points, rows[:, 12:]


@settings(deadline=None)
@given(seed=st.integers(0, 99), focal=st.floats(5, 500), baseline=st.floats(0.05, 1))
def test_points_project_onto_their_pixels_and_keep_their_colours(
    seed: int, focal: float, baseline: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rng = np.random.default_rng(seed)
    height, width = int(rng.integers(1, 9)), int(rng.integers(1, 9))
    disparity = rng.uniform(-2, 20, (height, width)).astype(np.float32)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    depth = disparity_to_depth(disparity, baseline=baseline, focal_x=focal)
    path = tmp_path_factory.getbasetemp() / "cloud.ply"

    count = write_ply(path, depth, image, focal_x=focal)

    head, points, colours = read_ply(path)
    assert count == len(points) == int((disparity > 0).sum())
    assert f"element vertex {count}" in head
    u = np.rint(points[:, 0] * focal / points[:, 2] + (width - 1) / 2).astype(int)
    v = np.rint(points[:, 1] * focal / points[:, 2] + (height - 1) / 2).astype(int)
    np.testing.assert_array_equal(image[v, u], colours)
    np.testing.assert_allclose(points[:, 2], baseline * focal / disparity[v, u], rtol=1e-5)


def test_the_header_is_what_readers_of_ply_expect_and_unknown_depth_is_left_out(
    tmp_path: Path,
) -> None:
    depth = np.array([[2.0, 0.0, np.inf], [np.nan, 4.0, -1.0]], np.float32)
    path = tmp_path / "deep" / "a.ply"

    assert write_ply(path, depth, np.full((2, 3, 3), 7, np.uint8), focal_x=10.0) == 2

    head, points, _ = read_ply(path)
    assert head[:2] == ["ply", "format binary_little_endian 1.0"]
    assert [line for line in head if line.startswith("property")] == [
        *(f"property float {axis}" for axis in "xyz"),
        *(f"property uchar {band}" for band in ("red", "green", "blue")),
    ]
    np.testing.assert_allclose(points, [[-0.2, -0.1, 2.0], [0.0, 0.2, 4.0]], rtol=1e-6)
    assert [file.name for file in path.parent.iterdir()] == ["a.ply"], "no temporary file is left"
