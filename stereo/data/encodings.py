"""Files to arrays and back: images, PFM and FSD PNG disparity, masks.

Owns every file format and its scale. Disparity readers return px with +inf where the file knows
nothing (0, negative, NaN or inf in the file). A file that cannot be read completely is a
`DataError` that names it.

| format | value |
|---|---|
| PFM, one channel | float32 px, rows stored bottom-up; the sign of the scale gives the byte order |
| FSD RGB PNG | 8-bit RGB, (R * 255^2 + G * 255 + B) / 1000 px; the base is 255, not 256 |
| mask | first channel: 255 visible in both views, 128 occluded, 0 unknown |

Source: PFM as written by netpbm and Middlebury; FSD PNG as published with that data set.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from stereo.errors import DataError
from stereo.files import write_bytes

Image: TypeAlias = npt.NDArray[np.uint8]
FloatMap: TypeAlias = npt.NDArray[np.float32]
BoolMap: TypeAlias = npt.NDArray[np.bool_]

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".webp"}
)
VISIBLE, OCCLUDED = 255, 128  # values of a mask file

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PFM_HEADER = re.compile(
    rb"(Pf|PF)\s+([0-9]{1,7})\s+([0-9]{1,7})\s+([-+]?[0-9.]{1,40}(?:[eE][-+]?[0-9]{1,3})?)(?:\r\n|\s)"
)
_FSD_BASE = 255
_FSD_SCALE = 1000.0  # steps per px
# Noise defeats deflate's matching: Huffman coding alone is a third faster and smaller here.
_PNG_OPTIONS = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, 2]


def read_image(path: Path) -> Image:
    """An image file as uint8 (H, W, 3) RGB; grey is repeated, alpha dropped, 16 bit cut to 8."""
    return _decode(path, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION).astype(
        np.uint8, copy=False
    )


def read_image_size(path: Path) -> tuple[int, int]:
    """Height and width in px; a PNG is not decoded for it."""
    with _opened(path) as file:
        head = file.read(24)
    if head.startswith(_PNG_SIGNATURE) and len(head) == 24:
        width, height = struct.unpack(">II", head[16:24])
        return height, width
    return read_image(path).shape[:2]


def read_mask(path: Path) -> BoolMap:
    """True where the mask file says visible in both views (first channel 255), (H, W)."""
    mask = _decode(path, cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if mask.dtype != np.uint8:
        raise DataError(f"{path}: mask has {mask.dtype} samples, a mask is 8-bit (255 = visible)")
    channel = mask if mask.ndim == 2 else mask[..., min(2, mask.shape[2] - 1)]  # OpenCV: BGR
    return channel == VISIBLE


def read_pfm(path: Path) -> FloatMap:
    """The values of a one-channel PFM file, float32 (H, W), first row on top, not interpreted."""
    data = _bytes(path)
    header = _PFM_HEADER.match(data)
    if header is None:
        raise DataError(f"{path}: not a PFM file (no header 'Pf', width, height, scale)")
    kind, width, height = header[1], int(header[2]), int(header[3])
    if kind == b"PF":
        raise DataError(f"{path}: PFM with three channels, a disparity map has one ('Pf')")
    needed, found = 4 * width * height, len(data) - header.end()
    if needed == 0 or found != needed:
        raise DataError(
            f"{path}: PFM of {width}x{height} needs {needed} bytes of values, has {found}"
        )
    try:
        scale = float(header[4])
    except ValueError:
        scale = 0.0
    if scale == 0:
        raise DataError(f"{path}: PFM scale {header[4].decode()} is not a number other than 0")
    order = "<f4" if scale < 0 else ">f4"
    values = np.frombuffer(data, order, offset=header.end()).reshape(height, width)
    return values[::-1].astype(np.float32)


def write_pfm(path: Path, values: FloatMap) -> None:
    """Write a float map (H, W) as little-endian one-channel PFM."""
    height, width = values.shape
    rows = np.ascontiguousarray(values[::-1], "<f4")
    write_bytes(path, b"Pf\n%d %d\n-1.0\n" % (width, height) + rows.tobytes())


def read_pfm_disparity(path: Path) -> FloatMap:
    """Disparity of a PFM file in px, +inf where unknown."""
    return _unknown_to_inf(read_pfm(path))


def read_fsd_png(path: Path) -> FloatMap:
    """Disparity of an FSD RGB PNG in px, +inf where unknown (code 0)."""
    bgr = _decode(path, cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if bgr.dtype != np.uint8 or bgr.ndim != 3 or bgr.shape[2] != 3:
        channels = 1 if bgr.ndim == 2 else bgr.shape[2]
        raise DataError(
            f"{path}: PNG with {channels} channel(s) of {bgr.dtype}; a disparity PNG of this "
            f"class is FSD-encoded, 3 channels of 8 bit. Write the disparity as PFM instead"
        )
    code = bgr.astype(np.int32) @ np.array([1, _FSD_BASE, _FSD_BASE**2], np.int32)
    return _unknown_to_inf((code / _FSD_SCALE).astype(np.float32))


def write_fsd_png(path: Path, disparity: FloatMap) -> None:
    """Write disparity in px (H, W) as FSD RGB PNG, in steps of 1/1000 px; unknown becomes 0.

    Raises:
        ValueError: a finite value is negative or too large for the code (16 646.399 px).
    """
    known = np.isfinite(disparity)
    code = np.rint(np.where(known, disparity, 0).astype(np.float64) * _FSD_SCALE).astype(np.int64)
    if code.min(initial=0) < 0 or code.max(initial=0) >= (_FSD_BASE + 1) * _FSD_BASE**2:
        raise ValueError(f"{path}: disparity outside 0..16646.399 px cannot be FSD-encoded")
    red, rest = np.divmod(code, _FSD_BASE**2)
    green, blue = np.divmod(rest, _FSD_BASE)
    write_png(path, np.stack([red, green, blue], axis=-1).astype(np.uint8))


def write_png(path: Path, image: Image) -> None:
    """Write uint8 grey (H, W) or RGB (H, W, 3) as PNG."""
    ordered = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".png", ordered, _PNG_OPTIONS)
    write_bytes(path, encoded.tobytes())


def write_depth_png(path: Path, depth: FloatMap) -> None:
    """Write depth in m (H, W) as 16-bit mm; 0 where it is not known or beyond 65.535 m."""
    millimetres = np.rint(depth.astype(np.float64) * 1000)
    kept = np.where((millimetres > 0) & (millimetres < 2**16), millimetres, 0).astype(np.uint16)
    _, encoded = cv2.imencode(".png", kept, _PNG_OPTIONS)
    write_bytes(path, encoded.tobytes())


PFM_OR_FSD_PNG: dict[str, Callable[[Path], FloatMap]] = {
    ".pfm": read_pfm_disparity,
    ".png": read_fsd_png,
}


def _unknown_to_inf(disparity: FloatMap) -> FloatMap:
    """Replace NaN, 0, negative and infinite values by +inf."""
    known = np.isfinite(disparity) & (disparity > 0)
    return np.where(known, disparity, np.float32(np.inf))


def _decode(path: Path, flags: int) -> npt.NDArray[Any]:
    """Decode a whole image file with OpenCV, channels as the flags say."""
    data = _bytes(path)
    _require_complete(path, data)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise DataError(f"{path}: cannot decode the image ({error.err})") from error
    if image is None:
        raise DataError(f"{path}: cannot decode the image; it is damaged or of another format")
    return image


def _require_complete(path: Path, data: bytes) -> None:
    """Refuse what decoders let pass: damaged PNG chunks, cut JPEGs (filled with grey)."""
    if data.startswith(_PNG_SIGNATURE):
        _check_png_chunks(path, data)
    elif data.startswith(b"\xff\xd8") and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        raise DataError(f"{path}: JPEG ends before its end marker; the file is cut off")


def _check_png_chunks(path: Path, data: bytes) -> None:
    """Check the checksum of every PNG chunk up to IEND."""
    position = len(_PNG_SIGNATURE)
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4])
        body_end = position + 8 + length
        kind = data[position + 4 : position + 8]
        checksum = data[body_end : body_end + 4]
        if zlib.crc32(memoryview(data)[position + 4 : body_end]).to_bytes(4) != checksum:
            raise DataError(f"{path}: PNG is damaged or cut off (checksum of chunk {kind!r})")
        if kind == b"IEND":
            return
        position = body_end + 4
    raise DataError(f"{path}: PNG ends before its end chunk; the file is cut off")


def _bytes(path: Path) -> bytes:
    with _opened(path) as file:
        return file.read()


def _opened(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot open the file ({error.strerror})") from error
