"""The size that an image file declares in its head, without decoding it.

Knows the formats of `encodings.IMAGE_SUFFIXES` by their content: PNG, JPEG, BMP, TIFF, PNM, WebP.
Used to group pairs by size and to refuse an image that would not fit into memory.

Sources: the specifications of the formats (JPEG: ITU-T T.81, B.2; TIFF 6.0, section 2; WebP: RFC
9649).
"""

from __future__ import annotations

import re
import struct
from typing import TypeAlias

Size: TypeAlias = tuple[int, int]
"""Height and width in px."""

_PNM_HEAD = re.compile(rb"P[1-6]\s+(?:#[^\n]*\n\s*)*([0-9]{1,9})\s+(?:#[^\n]*\n\s*)*([0-9]{1,9})\s")
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_SHORT = 256, 257, 3  # two tags and a type
# SOF0..SOF15 start a frame and hold its size; three numbers of that range mean something else.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def declared_size(data: bytes) -> Size | None:
    """Height and width in px that a file declares.

    Args:
        data: the file, or its start: some hundred bytes, but for JPEG with long comments and TIFF,
            which may have the size anywhere.

    Returns:
        None when `data` does not tell.
    """
    try:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            width, height = struct.unpack_from(">II", data, 16)
            return height, width
        if data.startswith(b"\xff\xd8"):
            return _jpeg(data)
        if data.startswith((b"II*\0", b"MM\0*")):
            return _tiff(data, "<" if data.startswith(b"II") else ">")
        if data.startswith(b"BM"):
            return _bmp(data)
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return _webp(data)
    except struct.error:  # `data` ends within the head
        return None
    match = _PNM_HEAD.match(data)
    return (int(match[2]), int(match[1])) if match else None


def _jpeg(data: bytes) -> Size | None:
    """Walk the segments up to the start of the frame."""
    position = 2
    while True:
        prefix, kind, length = struct.unpack_from(">BBH", data, position)
        if prefix != 0xFF:
            return None
        if kind in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, position + 5)
            return height, width
        fill_byte = kind == 0xFF
        position += 1 if fill_byte else 2 + length


def _tiff(data: bytes, order: str) -> Size | None:
    """Look the two tags up in the first directory."""
    (directory,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, directory)
    found: dict[int, int] = {}
    for entry in range(directory + 2, directory + 2 + 12 * count, 12):
        tag, kind = struct.unpack_from(order + "HH", data, entry)
        layout = order + ("H" if kind == _TIFF_SHORT else "I")
        (found[tag],) = struct.unpack_from(layout, data, entry + 8)
    if _TIFF_WIDTH not in found or _TIFF_HEIGHT not in found:
        return None
    return found[_TIFF_HEIGHT], found[_TIFF_WIDTH]


def _bmp(data: bytes) -> Size:
    (header_size,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if header_size == 12 else "<ii", data, 18)
    return abs(height), abs(width)  # a negative height means rows top-down


def _webp(data: bytes) -> Size | None:
    """The canvas of an extended file, or the frame of a lossless or lossy one."""
    kind = data[12:16]
    if kind == b"VP8X":
        width, width_high, height, height_high = struct.unpack_from("<HBHB", data, 24)
        return (height_high << 16 | height) + 1, (width_high << 16 | width) + 1
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return height & 0x3FFF, width & 0x3FFF
    return None
