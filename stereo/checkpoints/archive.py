"""Containers of PyTorch files: where the pickle and the bytes of the tensors are.

Current files are zip archives: `ROOT/data.pkl` and one stored entry `ROOT/data/KEY` per storage
(little-endian). Files of before PyTorch 1.6 are five pickles followed by the storages. Tensors are
views of a storage; nothing is believed about sizes that the file does not hold.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from stereo.checkpoints.inert_pickle import (
    DAMAGE,
    MAX_TENSORS,
    Functions,
    Global,
    InertPickleError,
    InertUnpickler,
    Record,
)

MAX_PICKLE = 64 * 2**20  # bytes
MAX_READ = 8 * 2**20  # bytes at once; bounds the zip directory, which is read in one piece
MAX_DIMENSIONS = 16
SMALL_VIEW = 2**20  # numbers that a view may repeat its storage to, as expanded tensors do
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001

DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}


@dataclass(frozen=True)
class Storage:
    """A block of numbers that a persistent id names."""

    key: str
    dtype: torch.dtype
    numel: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.numel * self.dtype.itemsize


def read(path: Path) -> Any:
    """Return what a PyTorch file holds: tensors on the CPU, plain values, and `Record`s.

    Raises:
        InertPickleError: no whole PyTorch file, or one that no honest program writes.
        OSError: the file cannot be read.
    """
    with _BoundedFile(path) as stream:
        is_zip = stream.read(4) == b"PK\x03\x04"
        stream.seek(0)
        return _read_zip(stream) if is_zip else _read_legacy(stream)


class _BoundedFile(io.FileIO):
    """A file that is read in pieces of at most `MAX_READ` bytes."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            here = self.tell()
            size = self.seek(0, io.SEEK_END) - here
            self.seek(here)
        if size > MAX_READ:
            raise InertPickleError(f"an index of more than {MAX_READ} bytes")
        return super().read(size)


def _read_zip(stream: BinaryIO) -> Any:
    try:
        with zipfile.ZipFile(stream) as archive:
            entries = _entries(archive, stream)
            root = _root(entries)
            order = _bytes(archive, entries, f"{root}/byteorder", 16, default=b"little")
            if order != b"little":
                raise InertPickleError("its tensors are big-endian, which is not read")
            program = _bytes(archive, entries, f"{root}/data.pkl", MAX_PICKLE)

            def raw(storage: Storage) -> Tensor:
                entry = entries.get(f"{root}/data/{storage.key}")
                if entry is None:
                    raise InertPickleError("a tensor names a storage that is not in the file")
                with archive.open(entry) as source:
                    return _filled(source, entry.file_size)

            machine = InertUnpickler(_persistent, _Tensors(raw).functions)
            return machine.load(io.BytesIO(program))
    except InertPickleError:
        raise
    except (zipfile.BadZipFile, struct.error, EOFError, *DAMAGE) as error:
        raise InertPickleError("damaged archive") from error


def _entries(archive: zipfile.ZipFile, stream: BinaryIO) -> dict[str, zipfile.ZipInfo]:
    """Entries by name, after checking that they are honest ones."""
    found: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        # `orig_filename`: zipfile turns what lies behind a NUL and other separators into others.
        name = PurePosixPath(entry.orig_filename)
        if ".." in name.parts or name.is_absolute() or "\\" in entry.orig_filename:
            raise InertPickleError(f"an entry of the archive has the name {str(name)[:80]!r}")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise InertPickleError("an entry of the archive is compressed or encrypted")
        if entry.filename in found:
            raise InertPickleError("two entries of the archive have the same name")
        found[entry.filename] = entry
    if sum(entry.file_size for entry in found.values()) > stream.seek(0, io.SEEK_END):
        raise InertPickleError("its entries claim more bytes than the file has")
    return found


def _root(entries: dict[str, zipfile.ZipInfo]) -> str:
    roots = [name.removesuffix("/data.pkl") for name in entries if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise InertPickleError("an archive without exactly one data.pkl")
    return roots[0]


def _bytes(
    archive: zipfile.ZipFile,
    entries: dict[str, zipfile.ZipInfo],
    name: str,
    limit: int,
    *,
    default: bytes = b"",
) -> bytes:
    entry = entries.get(name)
    if entry is None:
        return default
    if entry.file_size > limit:
        raise InertPickleError(f"{name[-80:]} has {entry.file_size} bytes, read are {limit}")
    with archive.open(entry) as source:
        return _filled(source, entry.file_size).numpy().tobytes()


def _filled(source: IO[bytes], size: int) -> Tensor:
    """Read `size` bytes into a fresh tensor."""
    tensor = torch.empty(size, dtype=torch.uint8)
    numbers = tensor.numpy()
    done = 0
    while done < size:
        piece = source.read(min(size - done, 2**20))
        if not piece:
            raise InertPickleError("the file ends within a tensor")
        numbers[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
        done += len(piece)
    return tensor


def _read_legacy(stream: BinaryIO) -> Any:
    """Five pickles (magic, protocol, system, value, keys), then a count and bytes per storage."""
    head = io.BytesIO(_head(stream))
    plain = InertUnpickler(lambda _: None, {})
    if plain.load(head) != LEGACY_MAGIC or plain.load(head) != LEGACY_PROTOCOL:
        raise InertPickleError("not written by PyTorch")
    system = plain.load(head)
    if type(system) is not dict or system.get("little_endian") is not True:
        raise InertPickleError("its tensors are big-endian, which is not read")
    start = head.tell()
    wanted: dict[str, Storage] = {}
    InertUnpickler(lambda pid: _noted(_persistent(pid), wanted), {}).load(head)
    keys = plain.load(head)
    if type(keys) is not list or len(keys) > MAX_TENSORS:
        raise InertPickleError("damaged list of storages")
    places = _places(stream, head.tell(), keys, wanted)

    def raw(storage: Storage) -> Tensor:
        place = places.get(storage.key)
        if place is None:
            raise InertPickleError("a tensor names a storage that is not in the file")
        stream.seek(place[0])
        return _filled(stream, place[1])

    head.seek(start)
    return InertUnpickler(_persistent, _Tensors(raw).functions).load(head)


def _head(stream: BinaryIO) -> bytes:
    pieces: list[bytes] = []
    while sum(map(len, pieces)) < MAX_PICKLE and (piece := stream.read(MAX_READ)):
        pieces.append(piece)
    return b"".join(pieces)


def _noted(value: Any, wanted: dict[str, Storage]) -> Any:
    if isinstance(value, Storage):
        wanted[value.key] = value
    return value


def _places(
    stream: BinaryIO, start: int, keys: list[Any], wanted: dict[str, Storage]
) -> dict[str, tuple[int, int]]:
    """Offset and size in bytes of every storage."""
    end = stream.seek(0, io.SEEK_END)
    places: dict[str, tuple[int, int]] = {}
    at = start
    for key in keys:
        if type(key) is not str or key not in wanted or key in places:
            raise InertPickleError("damaged list of storages")
        stream.seek(at)
        (count,) = struct.unpack("<q", stream.read(8).ljust(8, b"\xff"))
        size = count * wanted[key].dtype.itemsize
        if count < 0 or at + 8 + size > end:
            raise InertPickleError("the file ends within a tensor")
        places[key] = (at + 8, size)
        at += 8 + size
    return places


def _persistent(pid: Any) -> Any:
    """What `("storage", type, key, location, numel)` or `("module", class, file, text)` means."""
    if type(pid) is not tuple or not pid:
        raise InertPickleError("a persistent id of an unknown kind")
    if pid[0] == "module" and len(pid) == 4:  # before 1.6 classes came with their source text
        return pid[1]
    if pid[0] != "storage" or len(pid) not in (5, 6) or any(pid[5:]):
        raise InertPickleError("a persistent id of an unknown kind")
    kind, key, numel = pid[1], pid[2], pid[4]
    dtype = DTYPES.get(kind.name) if isinstance(kind, Global) else None
    if dtype is None or type(key) is not str or len(key) > 80 or type(numel) is not int:
        raise InertPickleError("a storage of an unknown kind")
    if not 0 <= numel < 2**62:
        raise InertPickleError("a storage of a negative or absurd size")
    return Storage(key, dtype, numel)


class _Tensors:
    """Meaning of the functions that PyTorch writes for tensors; each storage is read once."""

    def __init__(self, raw: Callable[[Storage], Tensor]) -> None:
        self._raw = raw
        self._read: dict[str, Tensor] = {}
        self._count = 0

    @property
    def functions(self) -> Functions:
        """Dotted name -> meaning, cheap whatever the arguments."""
        return {
            "collections.OrderedDict": _ordered_dict,
            "torch.Size": _first,
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": _first,
            "torch._utils._rebuild_parameter_with_state": _first,
            "torch._tensor._rebuild_from_type_v2": self._of_type,
        }

    def _of_type(self, args: tuple[Any, ...]) -> Any:
        """`(function, class, arguments, state)`: a tensor with attributes, which are dropped."""
        function, inner = args[0], args[2]
        meaning = self.functions.get(function.path) if isinstance(function, Global) else None
        if meaning is None or meaning == self._of_type or type(inner) is not tuple:
            return Record(function, inner)
        return meaning(inner)

    def _tensor(self, args: tuple[Any, ...]) -> Tensor:
        storage, offset, size, stride = args[:4]
        if not isinstance(storage, Storage):
            raise InertPickleError("a tensor without a storage")
        _check_view(storage.numel, offset, size, stride)
        self._count += 1
        if self._count > MAX_TENSORS:
            raise InertPickleError(f"more than {MAX_TENSORS} tensors")
        if storage.key not in self._read:
            self._read[storage.key] = self._raw(storage)
        raw = self._read[storage.key]
        if storage.size > len(raw):
            raise InertPickleError(
                f"a tensor claims {storage.size} bytes, the file holds {len(raw)} for it"
            )
        flat = raw[: storage.size].view(storage.dtype)
        return flat.as_strided(size, stride, offset)


def _ordered_dict(args: tuple[Any, ...]) -> Any:
    return Record(Global("collections", "OrderedDict"), args) if args else {}


def _first(args: tuple[Any, ...]) -> Any:
    return args[0]


def _check_view(numel: int, offset: Any, size: Any, stride: Any) -> None:
    """Refuse a view that reaches beyond its storage or repeats it to a size of its own choice."""
    if type(size) is not tuple or type(stride) is not tuple:
        raise InertPickleError("a tensor without a shape")
    if len(size) != len(stride) or len(size) > MAX_DIMENSIONS:
        raise InertPickleError("a tensor with a shape that does not fit its strides")
    if any(type(n) is not int or not 0 <= n < 2**62 for n in (offset, *size, *stride)):
        raise InertPickleError("a tensor with a negative or absurd shape")
    elements = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if elements > max(numel, SMALL_VIEW) or (elements and last >= numel):
        raise InertPickleError(f"a tensor of shape {size} claims more than its {numel} numbers")
