"""Files to arrays and back: images, masks and every encoding of ground truth.

Owns every file format and its scale. A map comes back as float32 (H, W), +inf where the file knows
nothing (0, negative, NaN or inf in the file), in the unit that the encoding has: px of disparity,
m of depth, or a disparity of unknown scale. A file that cannot be read completely, or that holds
something else than the encoding, is a `DataError` that names it; so is what the head of a file and
its length tell of that, where only the size is read.

| encoding | samples of the file | value |
|---|---|---|
| `PFM` | one channel of float32, rows bottom-up; sign of the scale: byte order | as stored |
| `PFM_TOP_DOWN` | the same with rows top-down | as stored |
| `FSD_PNG` | 3 channels of uint8 | (R * 255^2 + G * 255 + B) / 1000 px; base 255, not 256 |
| `KITTI_PNG` | 1 channel of uint16 | / 256 px |
| `CRESTEREO_PNG` | 1 channel of uint16 | / 32 px |
| `MIDDLEBURY_PNG` | 1 channel of uint8 | px |
| `NYU_PNG` | 1 channel of uint16 | / 1000 m |
| `RAW_PNG` | 1 channel of uint16 or uint8 | as stored |
| `THREE_DVLM_NPY` | v: (H, W) of float16, 32 or 64 | 1 / (1000 v), disparity of unknown scale |

A mask's first channel is 255 visible in both views, 128 occluded, 0 unknown.

Source: design page data.md, section 3; PFM as written by netpbm and Middlebury.
"""

from __future__ import annotations

import io
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from stereo.data.image_head import Size, declared_size
from stereo.data.remote import stamp
from stereo.errors import DataError
from stereo.files import write_bytes

if TYPE_CHECKING:
    from stereo.data.remote import Location

Image: TypeAlias = npt.NDArray[np.uint8]
FloatMap: TypeAlias = npt.NDArray[np.float32]
BoolMap: TypeAlias = npt.NDArray[np.bool_]

DECODER_VERSION = 1  # part of the decoded cache's key: raise it when any decoded value changes
IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".webp"}
)
VISIBLE, OCCLUDED = 255, 128  # values of a mask file

_HEAD_BYTES = 2**16  # nearly always enough to tell the size of an image
_MAX_PIXELS = 2**28  # a map of that many pixels takes 1 GiB
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # by colour type; 3 is a palette
_PFM_HEADER = re.compile(
    rb"(Pf|PF)\s+([0-9]{1,7})\s+([0-9]{1,7})\s+([-+]?[0-9.]{1,40}(?:[eE][-+]?[0-9]{1,3})?)(?:\r\n|\s)"
)
_NPY_MAGIC = b"\x93NUMPY"
_NPY_TYPE = re.compile(rb"'descr'\s*:\s*'([<>=|]?f[248])'")
_NPY_ORDER = re.compile(rb"'fortran_order'\s*:\s*(True|False)")
_NPY_SHAPE = re.compile(rb"'shape'\s*:\s*\(\s*([0-9]{1,7})\s*,\s*([0-9]{1,7})\s*,?\s*\)")
# Noise defeats deflate's matching: Huffman coding alone is a third faster and smaller here.
_PNG_OPTIONS = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, 2]
_AS_STORED = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
_AS_RGB = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION


class PngContentError(DataError):
    """A PNG with other samples than the encoding has.

    Attributes:
        found: the samples, for example "1 channel of uint16".
    """

    def __init__(self, message: str, found: str) -> None:
        super().__init__(message)
        self.found = found

    def __reduce__(self) -> tuple[type[PngContentError], tuple[str, str]]:
        return type(self), (str(self), self.found)


class MapEncoding(Protocol):
    """How a map is stored in a file."""

    @property
    def label(self) -> str:
        """Short name in messages."""
        ...

    def read(self, path: Location) -> FloatMap:
        """Float32 (H, W), +inf where unknown."""
        ...

    def read_size(self, path: Location) -> Size:
        """Height and width in px from the head, refusing what head and length show to be wrong."""
        ...

    def write(self, path: Path, values: FloatMap) -> None:
        """Write a map (H, W); what is not finite becomes unknown."""
        ...


@dataclass(frozen=True)
class PfmEncoding:
    """The values of a one-channel PFM file, rows bottom-up unless `top_down`."""

    label: str
    top_down: bool = False

    def read(self, path: Location) -> FloatMap:
        """Float32 (H, W), +inf where unknown."""
        values = read_pfm(path)
        return _unknown_to_inf(values[::-1] if self.top_down else values)

    def read_size(self, path: Location) -> Size:
        """Height and width in px of a file that is neither cut off nor too long."""
        _, size, _ = _pfm_head(path, *_head(path))
        return size

    def write(self, path: Path, values: FloatMap) -> None:
        """Write a map (H, W), unknown as +inf."""
        known = _unknown_to_inf(values)
        write_pfm(path, known[::-1] if self.top_down else known)


@dataclass(frozen=True)
class PngEncoding:
    """Whole numbers in the channels of a PNG: sum(channel * weight) / steps; 0 is unknown.

    Attributes:
        label: short name in messages.
        types: sample types that are read; the first one is written.
        weights: of the channels, in RGB order.
        steps: per unit of the value.
    """

    label: str
    types: tuple[str, ...]
    weights: tuple[int, ...]
    steps: int

    @property
    def contents(self) -> tuple[str, ...]:
        """What such a file holds, in the words of `PngContentError.found`."""
        return tuple(_content(len(self.weights), kind) for kind in self.types)

    @property
    def largest(self) -> float:
        """The largest value that can be written."""
        return (self._code_end - 1) / self.steps

    @property
    def _code_end(self) -> int:
        return (int(np.iinfo(self.types[0]).max) + 1) * self.weights[0]

    def read(self, path: Location) -> FloatMap:
        """Float32 (H, W), +inf where unknown.

        Raises:
            PngContentError: other channels or sample type.
            DataError: not a PNG, damaged, or too large.
        """
        data = _bytes(path)
        self._require_content(path, data)
        code = _decode(path, data, _AS_STORED).astype(np.float32)
        if code.ndim == 3:  # OpenCV: BGR, and alpha where the PNG declares a transparent colour
            weights = np.zeros((1, code.shape[2]), np.float32)
            weights[0, : len(self.weights)] = self.weights[::-1]
            code = cv2.transform(code, weights)  # exact: every code is below 2^24
        return _unknown_to_inf(code / np.float32(self.steps))

    def read_size(self, path: Location) -> Size:
        """Height and width in px of a PNG with the samples of the encoding.

        Raises:
            PngContentError: other channels or sample type.
            DataError: not a PNG, or too large.
        """
        data, _ = _head(path)
        self._require_content(path, data)
        return _size(path, data)

    def _require_content(self, path: Location, data: bytes) -> None:
        found = _png_content(path, data)
        if found not in self.contents:
            expected = " or ".join(self.contents)
            raise PngContentError(
                f"{path}: PNG with {found}, expected {expected} ({self.label})", found
            )

    def write(self, path: Path, values: FloatMap) -> None:
        """Write a map (H, W), rounded to steps; unknown and less than half a step become 0.

        Raises:
            ValueError: a finite value is negative or larger than `largest`.
        """
        known = np.isfinite(values)
        code = np.rint(np.where(known, values, 0).astype(np.float64) * self.steps).astype(np.int64)
        if code.min(initial=0) < 0 or code.max(initial=0) >= self._code_end:
            raise ValueError(
                f"{path}: values outside 0..{self.largest:.6g} cannot be stored as {self.label}"
            )
        channels: list[npt.NDArray[np.int64]] = []
        for weight in self.weights:
            channel, code = np.divmod(code, weight)
            channels.append(channel)
        image = channels[0] if len(channels) == 1 else np.stack(channels, axis=-1)
        write_png(path, image.astype(self.types[0]))


@dataclass(frozen=True)
class ReciprocalNpyEncoding:
    """A float array in an NPY file that holds depth v: the value is 1 / (scale v)."""

    label: str
    scale: float

    def read(self, path: Location) -> FloatMap:
        """Float32 (H, W), +inf where unknown (v not above 0 or not finite)."""
        stored = read_npy(path).astype(np.float64)
        with np.errstate(divide="ignore", over="ignore", under="ignore"):
            values = (1 / (self.scale * stored)).astype(np.float32)
        return _unknown_to_inf(values)

    def read_size(self, path: Location) -> Size:
        """Height and width in px of a file that is neither cut off nor too long."""
        return _npy_head(path, *_head(path)).size

    def write(self, path: Path, values: FloatMap) -> None:
        """Write a map (H, W) as float64 array, unknown as 0."""
        stored = 1 / (self.scale * _unknown_to_inf(values).astype(np.float64))
        stream = io.BytesIO()
        np.save(stream, stored, allow_pickle=False)
        write_bytes(path, stream.getvalue())


PFM = PfmEncoding("PFM")
PFM_TOP_DOWN = PfmEncoding("PFM, rows top-down", top_down=True)
FSD_PNG = PngEncoding("FSD RGB code", ("uint8",), (255**2, 255, 1), 1000)
KITTI_PNG = PngEncoding("uint16 / 256", ("uint16",), (1,), 256)
CRESTEREO_PNG = PngEncoding("uint16 / 32", ("uint16",), (1,), 32)
MIDDLEBURY_PNG = PngEncoding("uint8 px", ("uint8",), (1,), 1)
NYU_PNG = PngEncoding("uint16 mm", ("uint16",), (1,), 1000)
RAW_PNG = PngEncoding("raw value", ("uint16", "uint8"), (1,), 1)
THREE_DVLM_NPY = ReciprocalNpyEncoding("1 / (1000 v)", 1000.0)


def read_image(path: Location) -> Image:
    """An image file as uint8 (H, W, 3) RGB; grey is repeated, alpha dropped, 16 bit cut to 8."""
    return _decode(path, _bytes(path), _AS_RGB).astype(np.uint8, copy=False)


def read_image_size(path: Location) -> Size:
    """Height and width in px from the head of an image file, which is not decoded."""
    try:
        with path.open("rb") as file:
            data = file.read(_HEAD_BYTES)
            if declared_size(data) is None:
                data += file.read()
    except OSError as error:
        raise _unreadable(path, error) from error
    return _size(path, data)


def read_mask(path: Location) -> BoolMap:
    """True where the mask file says visible in both views (first channel 255), (H, W)."""
    mask = _decode(path, _bytes(path), _AS_STORED)
    _require_mask_type(path, str(mask.dtype))
    channel = mask if mask.ndim == 2 else mask[..., min(2, mask.shape[2] - 1)]  # OpenCV: BGR
    return channel == VISIBLE


def read_mask_size(path: Location) -> Size:
    """Height and width in px from the head of a mask file, refusing a PNG of 16 bit."""
    data, _ = _head(path)
    if not data.startswith(_PNG_SIGNATURE):
        return read_image_size(path)
    if data[24:25] == b"\x10":
        _require_mask_type(path, "uint16")
    return _size(path, data)


def read_pfm(path: Location) -> FloatMap:
    """The values of a one-channel PFM file, float32 (H, W), last row first, not interpreted."""
    data = _bytes(path)
    start, size, order = _pfm_head(path, data, len(data))
    return np.frombuffer(data, order, offset=start).reshape(size)[::-1].astype(np.float32)


def write_pfm(path: Path, values: FloatMap) -> None:
    """Write a float map (H, W) as little-endian one-channel PFM, last row first."""
    height, width = values.shape
    rows = np.ascontiguousarray(values[::-1], "<f4")
    write_bytes(path, b"Pf\n%d %d\n-1.0\n" % (width, height) + rows.tobytes())


def read_npy(path: Location) -> npt.NDArray[np.floating[Any]]:
    """The array of an NPY file, floating point (H, W), not interpreted."""
    data = _bytes(path)
    head = _npy_head(path, data, len(data))
    return np.frombuffer(data, head.dtype, offset=head.end).reshape(head.size, order=head.order)


def write_png(path: Path, image: Image | npt.NDArray[np.uint16]) -> None:
    """Write uint8 or uint16, grey (H, W) or RGB (H, W, 3), as PNG."""
    ordered = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".png", ordered, _PNG_OPTIONS)
    write_bytes(path, encoded.tobytes())


def write_depth_png(path: Path, depth: FloatMap) -> None:
    """Write depth in m (H, W) as 16-bit mm; 0 where it is not known or beyond 65.535 m."""
    kept = (depth > 0) & (depth <= NYU_PNG.largest)
    NYU_PNG.write(path, np.where(kept, depth, np.float32(np.inf)))


class _NpyHead(NamedTuple):
    """Where the values of an NPY file start and how they lie."""

    end: int
    size: Size
    dtype: np.dtype[np.floating[Any]]
    order: Literal["C", "F"]


def _pfm_head(path: Location, data: bytes, length: int) -> tuple[int, Size, str]:
    """Where the values start, height and width, and the type of a value.

    Args:
        path: for messages.
        data: the file, or its start.
        length: bytes of the file.
    """
    header = _PFM_HEADER.match(data)
    if header is None:
        raise DataError(f"{path}: not a PFM file (no header 'Pf', width, height, scale)")
    kind, width, height = header[1], int(header[2]), int(header[3])
    if kind == b"PF":
        raise DataError(f"{path}: PFM with three channels, ground truth has one ('Pf')")
    needed, found = 4 * width * height, length - header.end()
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
    return header.end(), (height, width), "<f4" if scale < 0 else ">f4"


def _npy_head(path: Location, data: bytes, length: int) -> _NpyHead:
    """The head of an NPY file with one float array (H, W); arguments as for `_pfm_head`.

    It is read here because NumPy's reader runs an expression parser over it, warns, and allocates
    what the head claims before it looks at the data. Nothing is ever unpickled.
    """
    start = 10 if data[6:7] == b"\1" else 12  # version 1 has a short length, 2 and 3 a long one
    end = start + int.from_bytes(data[8:start], "little")
    if not data.startswith(_NPY_MAGIC) or len(data) < end:
        raise DataError(f"{path}: not an NPY file, or cut off within its head")
    head = data[start:end]
    kind, order, shape = (p.search(head) for p in (_NPY_TYPE, _NPY_ORDER, _NPY_SHAPE))
    if kind is None or order is None or shape is None:
        shown = head.decode("latin-1").strip()[:200]
        raise DataError(f"{path}: NPY must hold one float array (H, W), its head says {shown!r}")
    dtype, height, width = np.dtype(kind[1].decode()), int(shape[1]), int(shape[2])
    needed, found = dtype.itemsize * height * width, length - end
    if needed == 0 or found != needed:
        raise DataError(
            f"{path}: NPY of {width}x{height} needs {needed} bytes of values, has {found}"
        )
    return _NpyHead(end, (height, width), dtype, "F" if order[1] == b"True" else "C")


def _require_mask_type(path: Location, found: str) -> None:
    if found != "uint8":
        raise DataError(f"{path}: mask has {found} samples, a mask is 8-bit (255 = visible)")


def _unknown_to_inf(values: FloatMap) -> FloatMap:
    """Replace NaN, 0, negative and infinite values by +inf."""
    known = np.isfinite(values) & (values > 0)
    return np.where(known, values, np.float32(np.inf))


def _content(channels: int, kind: str) -> str:
    """Name of the samples of a PNG, for example "1 channel of uint16"."""
    return f"{channels} channel{'' if channels == 1 else 's'} of {kind}"


def _png_content(path: Location, data: bytes) -> str:
    """The samples of a PNG as its head names them: decoders expand palettes and low bit depths."""
    if not data.startswith(_PNG_SIGNATURE) or len(data) < 26:
        raise DataError(f"{path}: not a PNG file, or cut off within its head")
    bits, colour_type = data[24], data[25]
    if colour_type not in _PNG_CHANNELS:
        return "a palette"
    kind = f"uint{bits}" if bits in (8, 16) else f"{bits} bit"
    return _content(_PNG_CHANNELS[colour_type], kind)


def _decode(path: Location, data: bytes, flags: int) -> npt.NDArray[Any]:
    """Decode a whole image file with OpenCV, channels as the flags say."""
    _size(path, data)  # before anything of that size is allocated
    _require_complete(path, data)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise DataError(f"{path}: cannot decode the image ({error.err})") from error
    if image is None:
        raise DataError(f"{path}: cannot decode the image; it is damaged or of another format")
    return image


def _size(path: Location, data: bytes) -> Size:
    """Height and width in px, of a format and size that are read."""
    size = declared_size(data)
    if size is None:
        known = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"{path}: no image of a format that is read ({known}), or cut off")
    height, width = size
    if height * width > _MAX_PIXELS:
        raise DataError(
            f"{path}: image of {width}x{height} px, at most {_MAX_PIXELS} px are read. Split it or "
            f"scale it down"
        )
    return size


def _require_complete(path: Location, data: bytes) -> None:
    """Refuse what decoders let pass: damaged PNG chunks, cut JPEGs (filled with grey)."""
    if data.startswith(_PNG_SIGNATURE):
        _check_png_chunks(path, data)
    elif data.startswith(b"\xff\xd8") and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        raise DataError(f"{path}: JPEG ends before its end marker; the file is cut off")


def _check_png_chunks(path: Location, data: bytes) -> None:
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


def _head(path: Location) -> tuple[bytes, int]:
    """The start of a file, or all of it where no size is known, and its length in bytes."""
    try:
        length, _ = stamp(path)
        with path.open("rb") as file:
            data = file.read(_HEAD_BYTES if length >= 0 else -1)
    except OSError as error:
        raise _unreadable(path, error) from error
    return data, length if length >= 0 else len(data)


def _bytes(path: Location) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Location, error: OSError) -> DataError:
    return DataError(f"{path}: cannot open the file ({error.strerror or error})")
