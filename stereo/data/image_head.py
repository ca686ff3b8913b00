"""The size that an image file declares in its head, without decoding it.

Knows the formats of `encodings.IMAGE_SUFFIXES` by their content: PNG, JPEG, BMP, TIFF, PNM, WebP.
Used to group pairs by size and to refuse an image that would not fit into memory.

Sources: the specifications of the formats (JPEG: ITU-T T.81, B.2; TIFF 6.0, section 2; WebP: RFC
9649).
"""

from __future__ import annotations

import re
import struct
from typing import IO

Size = tuple[int, int]
"""Height and width in px."""

_HEAD_BYTES = 512  # enough for all but JPEG and TIFF, whose size may stand anywhere
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNM_HEADER = re.compile(rb"P[1-6]\s+(?:#[^\n]*\n\s*)*([0-9]+)\s+(?:#[^\n]*\n\s*)*([0-9]+)\s")
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257
# SOF0..SOF15 start a frame and hold its size; three numbers of that range mean something else.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def declared_size(stream: IO[bytes]) -> Size | None:
    """Height and width in px that the file declares; None when its head does not tell."""
    stream.seek(0)
    head = stream.read(_HEAD_BYTES)
    try:
        if head.startswith(_PNG_SIGNATURE):
            width, height = struct.unpack_from(">II", head, 16)
            return height, width
        if head.startswith(b"\xff\xd8"):
            return _jpeg(stream)
        if head.startswith((b"II*\0", b"MM\0*")):
            return _tiff(stream, "<" if head.startswith(b"II") else ">")
        if head.startswith(b"BM"):
            return _bmp(head)
        if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
            return _webp(head)
    except struct.error:  # the file ends within its head
        return None
    match = _PNM_HEADER.match(head)
    return (int(match[2]), int(match[1])) if match else None


def _jpeg(stream: IO[bytes]) -> Size | None:
    """Walk the segments up to the start of the frame."""
    stream.seek(2)
    while True:
        prefix, kind, length = struct.unpack(">BBH", stream.read(4))
        if prefix != 0xFF or length < 2:
            return None
        if kind == 0xFF:  # a fill byte in front of the marker
            stream.seek(-3, 1)
            continue
        if kind in _JPEG_FRAMES:
            _, height, width = struct.unpack(">BHH", stream.read(5))
            return height, width
        stream.seek(length - 2, 1)


def _tiff(stream: IO[bytes], order: str) -> Size | None:
    """Look the two tags up in the first directory."""
    stream.seek(4)
    (directory,) = struct.unpack(order + "I", stream.read(4))
    stream.seek(directory)
    (count,) = struct.unpack(order + "H", stream.read(2))
    found: dict[int, int] = {}
    for _ in range(count):
        entry = stream.read(12)
        tag, kind = struct.unpack_from(order + "HH", entry)
        (found[tag],) = struct.unpack_from(order + ("H" if kind == 3 else "I"), entry, 8)
    if _TIFF_WIDTH not in found or _TIFF_HEIGHT not in found:
        return None
    return found[_TIFF_HEIGHT], found[_TIFF_WIDTH]


def _bmp(head: bytes) -> Size:
    (header_size,) = struct.unpack_from("<I", head, 14)
    width, height = struct.unpack_from("<HH" if header_size == 12 else "<ii", head, 18)
    return abs(height), abs(width)  # a negative height means rows top-down


def _webp(head: bytes) -> Size | None:
    """The canvas of an extended file, or the frame of a lossless or lossy one."""
    kind = head[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(head[at : at + 3], "little") + 1 for at in (24, 27))
        return height, width
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", head, 21)
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", head, 26)
        return height & 0x3FFF, width & 0x3FFF
    return None
