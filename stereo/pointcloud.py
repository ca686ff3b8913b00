"""Coloured point clouds of depth maps, as PLY files.

x right, y down, z forward, in m, from the left camera. The spec knows one focal length and no
principal point: pixels are square and the optical axis meets the middle of the image.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stereo.files import write_bytes
from stereo.viz import Map, Picture

_VERTEX = np.dtype(
    [(axis, "<f4") for axis in ("x", "y", "z")]
    + [(band, "u1") for band in ("red", "green", "blue")]
)
_TYPE_WORDS = {"<f4": "float", "|u1": "uchar"}


def write_ply(path: Path, depth: Map, image: Picture, *, focal_x: float) -> int:
    """Write the points of a depth map, binary little-endian, and return their number.

    Args:
        path: the file; folders are made.
        depth: (H, W), m; pixels that are not positive and finite are left out.
        image: RGB of the same pixels, uint8 (H, W, 3).
        focal_x: focal length, px of this width.
    """
    seen = np.isfinite(depth) & (depth > 0)
    rows, columns = np.nonzero(seen)
    z = depth[seen].astype(np.float64)
    points = np.empty(len(z), _VERTEX)
    points["x"] = (columns - (depth.shape[1] - 1) / 2) * z / focal_x
    points["y"] = (rows - (depth.shape[0] - 1) / 2) * z / focal_x
    points["z"] = z
    points["red"], points["green"], points["blue"] = image[seen].T
    write_bytes(path, _header(len(points)).encode("ascii") + points.tobytes())
    return len(points)


def _header(count: int) -> str:
    properties = [
        f"property {_TYPE_WORDS[_VERTEX[name].str]} {name}" for name in _VERTEX.names or ()
    ]
    lines = (
        "ply",
        "format binary_little_endian 1.0",
        "comment metres; x right, y down, z forward from the left camera",
        f"element vertex {count}",
        *properties,
        "end_header",
    )
    return "\n".join(lines) + "\n"
