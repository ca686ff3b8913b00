"""Procedural stereo pairs with exact disparity and occlusion; the data a bare machine trains on.

A scene is a slanted background and 5 to 8 objects: plane patches, boxes, spheres (`surfaces`).
Everything follows from (seed, index).

Symbols: those of `surfaces`; D largest disparity px.

Source: design page data.md, section 9.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from stereo.data.appearance import Painter, expose, to_uint8
from stereo.data.encodings import (
    OCCLUDED,
    VISIBLE,
    BoolMap,
    FloatMap,
    Image,
    write_pfm,
    write_png,
)
from stereo.data.surfaces import (
    BASELINE,
    BoxSide,
    Camera,
    Ids,
    Patch,
    Plane,
    Sphere,
    StereoScene,
    Surface,
)
from stereo.files import write_text

GENERATOR_VERSION = 1  # part of the written data's identity: raise it when any pixel changes

_NEAREST = 0.95  # largest disparity of any surface, in units of D
_FARTHEST = 0.02  # smallest, in units of D
_MIN_BOX_OFFSET = 1.3  # |X| of a box's side plane in baselines; below, one view cannot see it


@dataclass(frozen=True)
class GeneratedPair:
    """One rendered pair.

    Attributes:
        left: uint8 (H, W, 3) RGB.
        right: uint8 (H, W, 3) RGB.
        disparity: float32 (H, W) px, left view, known everywhere.
        right_disparity: float32 (H, W) px of the right view's own pixels.
        occluded: bool (H, W), True where the right camera does not see the left pixel.
        ids: uint8 (H, W), surface seen at each left pixel, 0 = background.
        right_ids: uint8 (H, W), the same for the right view.
        camera: the left camera.
    """

    left: Image
    right: Image
    disparity: FloatMap
    right_disparity: FloatMap
    occluded: BoolMap
    ids: Ids
    right_ids: Ids
    camera: Camera


@dataclass(frozen=True)
class EmbeddedLayout:
    """What `write_embedded` writes; the only home of these numbers."""

    train_pairs: int = 30
    train_size: tuple[int, int] = (128, 192)  # H, W px
    train_seed: int = 1
    val_pairs: int = 16
    val_size: tuple[int, int] = (96, 128)
    val_seed: int = 2
    max_disparity: float = 32.0  # a quarter of the smaller width


EMBEDDED = EmbeddedLayout()
EMBEDDED_LARGE = EmbeddedLayout(
    train_pairs=120, train_size=(384, 768), val_size=(320, 736), max_disparity=184.0
)  # for crops of 320x736 on a GPU


@dataclass(frozen=True)
class EmbeddedSet:
    """Annotation files of the written data; the `middlebury` ones also name the masks."""

    train: Path
    val: Path
    train_middlebury: Path
    val_middlebury: Path


def generate(
    seed: int,
    index: int,
    *,
    height: int,
    width: int,
    max_disparity: float | None = None,
    photometric: bool = True,
) -> GeneratedPair:
    """The pair number `index` of the set `seed`; equal arguments give equal bytes.

    Args:
        seed: of the set; it also fixes the pool of textures.
        index: of the pair within the set.
        height: H in px.
        width: W in px.
        max_disparity: D in px; every disparity is below it. None = W / 4.
        photometric: give the views different exposure, blur, vignette and noise.
    """
    rng = np.random.default_rng((seed, index))
    scene = _draw_scene(rng, Camera(height, width), max_disparity or width / 4)
    disparity, ids = scene.trace(right=False)
    right_disparity, right_ids = scene.trace(right=True)
    painter = Painter(rng, len(scene.surfaces), seed)
    x, y = scene.grid
    views = [painter.paint(ids, x, y), painter.paint(right_ids, x + right_disparity, y)]
    if photometric:
        views = expose(rng, views)
    left, right = (to_uint8(view) for view in views)
    return GeneratedPair(
        left=left,
        right=right,
        disparity=disparity.astype(np.float32),
        right_disparity=right_disparity.astype(np.float32),
        occluded=scene.occluded(disparity),
        ids=ids,
        right_ids=right_ids,
        camera=scene.camera,
    )


def write_embedded(directory: Path, layout: EmbeddedLayout = EMBEDDED) -> EmbeddedSet:
    """Write the embedded training and validation pairs below `directory`, once.

    Every file is written under a temporary name and has the same bytes whoever writes it, so
    several processes may call this at the same time; a killed call is finished by the next one.
    """
    marker = directory / "embedded.json"
    identity = json.dumps({"generator": GENERATOR_VERSION, **asdict(layout)}, sort_keys=True)
    embedded = EmbeddedSet(
        train=directory / "train.txt",
        val=directory / "val.txt",
        train_middlebury=directory / "train_middlebury.txt",
        val_middlebury=directory / "val_middlebury.txt",
    )
    if marker.is_file() and marker.read_text() == identity:
        return embedded
    for split, seed, pairs, (height, width) in (
        ("train", layout.train_seed, layout.train_pairs, layout.train_size),
        ("val", layout.val_seed, layout.val_pairs, layout.val_size),
    ):
        scenes = [f"{split}/{index:04d}" for index in range(pairs)]
        for index, scene in enumerate(scenes):
            pair = generate(
                seed, index, height=height, width=width, max_disparity=layout.max_disparity
            )
            write_middlebury(directory / scene, pair)
        write_annotations(directory / f"{split}.txt", scenes, masks=False)
        write_annotations(directory / f"{split}_middlebury.txt", scenes, masks=True)
    write_text(marker, identity)
    return embedded


def write_middlebury(scene: Path, pair: GeneratedPair) -> None:
    """Write a pair as a Middlebury scene folder: im0, im1, disp0GT, mask0nocc, calib."""
    scene.mkdir(parents=True, exist_ok=True)
    write_png(scene / "im0.png", pair.left)
    write_png(scene / "im1.png", pair.right)
    write_pfm(scene / "disp0GT.pfm", pair.disparity)
    mask = np.where(pair.occluded, OCCLUDED, VISIBLE).astype(np.uint8)
    write_png(scene / "mask0nocc.png", mask)
    camera = pair.camera
    matrix = f"[{camera.focal} 0 {camera.cx}; 0 {camera.focal} {camera.cy}; 0 0 1]"
    write_text(
        scene / "calib.txt",
        f"cam0={matrix}\ncam1={matrix}\ndoffs=0\nbaseline={BASELINE * 1000}\n"
        f"width={camera.width}\nheight={camera.height}\n",
    )


def write_annotations(path: Path, scenes: Sequence[str], *, masks: bool) -> None:
    """Write the annotation file of Middlebury scene folders, relative to its own folder."""
    names = ["im0.png", "im1.png", "disp0GT.pfm", "mask0nocc.png"][: 4 if masks else 3]
    lines = [" ".join(f"{scene}/{name}" for name in names) for scene in scenes]
    write_text(path, "\n".join(lines) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m stereo.data.generator DIRECTORY`: write the embedded data there."""
    parser = argparse.ArgumentParser(
        prog="python -m stereo.data.generator", description=main.__doc__
    )
    parser.add_argument("directory", type=Path, help="folder to write to")
    embedded = write_embedded(parser.parse_args(arguments).directory)
    for name, path in asdict(embedded).items():
        sys.stdout.write(f"{name}: {path}\n")


def _draw_scene(rng: np.random.Generator, camera: Camera, max_disparity: float) -> StereoScene:
    """A background and 5 to 8 objects, all with 0 < d < D."""
    surfaces: list[Surface] = [_draw_background(rng, camera, max_disparity)]
    for _ in range(rng.integers(5, 9)):
        centre = rng.uniform(0.15, 0.9) * max_disparity
        x, y = rng.uniform(0, camera.width), rng.uniform(0, camera.height)
        half_width = rng.uniform(0.05, 0.2) * camera.width
        half_height = rng.uniform(0.06, 0.25) * camera.height
        kind = rng.random()
        if kind < 0.5:
            patch = _draw_patch(rng, centre, x, y, half_width, half_height, max_disparity)
            surfaces.append(patch)
        elif kind < 0.75:
            face = Patch(0.0, 0.0, centre, x, y, half_width, half_height)
            surfaces += _box(rng, camera, face, max_disparity)
        else:
            surfaces.append(_sphere(camera, centre, x, y, half_width))
    return StereoScene(camera, surfaces)


def _draw_background(rng: np.random.Generator, camera: Camera, max_disparity: float) -> Plane:
    """A far plane with a slight slant, positive also where only the right view looks."""
    farthest = max_disparity * rng.uniform(0.04, 0.15)
    reach = camera.width + max_disparity
    a = rng.uniform(-0.25, 0.25) * farthest / reach
    b = rng.uniform(-0.1, 1.2) * farthest / camera.height
    return Plane(a, b, farthest - min(0.0, a * reach) - min(0.0, b * camera.height))


def _draw_patch(
    rng: np.random.Generator,
    centre: float,
    x: float,
    y: float,
    half_width: float,
    half_height: float,
    max_disparity: float,
) -> Patch:
    """A slanted patch with disparity `centre` in its middle, flattened until it stays in (0, D)."""
    a = float(np.clip(rng.uniform(-0.15, 0.15) * centre / half_width, -0.5, 0.5))
    b = rng.uniform(-0.15, 0.15) * centre / half_height
    angle = rng.uniform(-0.6, 0.6)
    is_ellipse = bool(rng.random() < 0.4)
    flat = Patch(0.0, 0.0, centre, x, y, half_width, half_height, angle, is_ellipse)
    box = flat.extent(right=False)
    swing = abs(a) * (box.right - x) + abs(b) * (box.bottom - y)
    room = min(_NEAREST * max_disparity - centre, centre - _FARTHEST * max_disparity)
    flatten = min(1.0, room / swing)
    a, b = a * flatten, b * flatten
    c = centre - a * x - b * y
    return Patch(a, b, c, x, y, half_width, half_height, angle, is_ellipse)


def _box(
    rng: np.random.Generator, camera: Camera, face: Patch, max_disparity: float
) -> list[Surface]:
    """A fronto-parallel face and, where both views can see one, the side behind its inner edge."""
    towards_axis = 1 if face.x < camera.cx else -1
    edge = face.x + towards_axis * face.half_width - camera.cx  # px from the axis
    nearest = -towards_axis * edge / _MIN_BOX_OFFSET  # disparity at which |X| is 1.3 baselines
    far_share = rng.uniform(0.4, 0.8)
    if nearest < 0.1 * max_disparity:
        return [face]
    near = min(face.c, nearest)
    slope = near / edge  # a = B / X
    face = Patch(0.0, 0.0, near, face.x, face.y, face.half_width, face.half_height)
    side = BoxSide(
        a=slope,
        b=0.0,
        c=-slope * camera.cx,
        near=near,
        far=far_share * near,
        top=face.y - face.half_height,
        bottom=face.y + face.half_height,
        cx=camera.cx,
        cy=camera.cy,
    )
    return [face, side]


def _sphere(camera: Camera, centre: float, x: float, y: float, half_width: float) -> Sphere:
    """A sphere whose nearest point has disparity `centre`."""
    depth = camera.focal * BASELINE / centre
    radius = min(0.45 * depth, depth * half_width / camera.focal)
    middle = ((x - camera.cx) * depth / camera.focal, (y - camera.cy) * depth / camera.focal)
    return Sphere((*middle, depth + radius), radius, camera)


if __name__ == "__main__":
    main()
