from __future__ import annotations

import numpy as np
import pytest

from stereo.data.surfaces import BoxSide, Camera, Patch, Plane, Sphere, StereoScene


def test_both_views_agree_on_planes_and_spheres() -> None:
    camera = Camera(96, 128)
    plane = Plane(0.05, 0.03, 2.0)
    sphere = Sphere((0.02, -0.01, 0.8), 0.1, camera)
    for surface in (plane, sphere):
        box = surface.extent(right=False)
        x = np.linspace(max(box.left, 0) + 8, min(box.right, 127) - 8, 40)[None, :]
        y = np.linspace(max(box.top, 0) + 8, min(box.bottom, 95) - 8, 30)[:, None]
        disparity, inside = surface.hit(x, y, right=False)
        there, seen = surface.hit(x - disparity, y, right=True)
        usable = np.broadcast_to(inside, disparity.shape) & np.broadcast_to(seen, disparity.shape)
        visible = usable & (there <= disparity + 1e-3)
        assert visible.sum() > 500
        np.testing.assert_allclose(there[visible], disparity[visible], atol=1e-9)


def test_a_patch_hides_exactly_the_columns_it_covers_in_the_right_view() -> None:
    """A fronto-parallel patch, d = 20 over 30..49, before a wall at d = 5.

    In the right view the patch covers 10..29, so left wall columns 15..34 are hidden; those from
    30 on belong to the patch itself, and columns below 5 leave the image.
    """
    scene = StereoScene(Camera(20, 80), [Plane(0, 0, 5), Patch(0, 0, 20, 39.5, 9.5, 9.5, 99)])
    disparity, ids = scene.trace(right=False)

    occluded = scene.occluded(disparity)

    assert np.flatnonzero(ids[10]).tolist() == list(range(30, 50))
    assert np.flatnonzero(occluded[10]).tolist() == [*range(5), *range(15, 30)]


def test_a_box_side_continues_the_face_and_both_views_see_it() -> None:
    camera = Camera(60, 160)
    edge, near = 40.0, 20.0  # a face that ends left of the axis (79.5), d = 20
    slope = near / (edge - camera.cx)
    side = BoxSide(slope, 0, -slope * camera.cx, near, 10.0, 10.0, 50.0, camera.cx, camera.cy)
    face = Patch(0, 0, near, edge - 10, 30.0, 10.0, 20.0)
    scene = StereoScene(camera, [Plane(0, 0, 2), face, side])

    disparity, ids = scene.trace(right=False)

    assert slope < 0
    row = disparity[30]
    assert row[40] == pytest.approx(20)
    assert (np.diff(row[40:59]) < 0).all()
    assert set(np.unique(ids)) == {0, 1, 2}
    assert set(np.unique(scene.trace(right=True)[1])) == {0, 1, 2}
    far_edge = camera.cx + 10.0 / slope
    assert ids[30, int(far_edge) - 1] == 2
    assert ids[30, int(far_edge) + 2] == 0
