"""Decoded samples on disk, shared by all processes of a node that read the same files.

Decoding takes most of the time of a training sample, and every trial of a study reads the same
files. So a sample is decoded once and its arrays are stored; workers and trials map that file into
memory, where the system's page cache holds it once for all of them.

| path below the directory | content |
|---|---|
| `<first 2 of key>/<key>` | one sample: `_PREFIX`, a JSON header, arrays at multiples of 64 bytes |
| `writing/*` | files being written, each locked by its writer for as long as that lives |
| `total` | bytes of all of the above, decimal; locked by whoever changes any of them |

A key names the class, the decoder's version, the fields of the sample, and path, size and version
of every file of the row: a changed file has another key. A file gets its name when it is complete,
so a process that is killed leaves at most a file in `writing` that nobody locks; opening the cache
removes those and measures the total anew. What is not a whole file of this format under the right
key, or has a wrong checksum, counts as missing and is replaced.

The version of a local file is its time. Whoever changes its content and gives it back its size and
its time (`cp -p`, `touch -r`, an archive with fixed times) still gets the old sample. Then delete
the directory: that clears the cache, at any time and also during a run.

The byte budget holds at every moment. When it is used up, samples make room that nobody has used
for an hour, or 45 minutes where the time of the last use was not noted. None of those goes that was
used since this process, or the one that started it, opened the cache: what an earlier study left
makes room, what the running one reads stays even where its epoch takes hours, because a pass in
random order finds more in a store that keeps its content than in one that evicts. The hour protects
other runs that share the directory.

A directory that can be read but not written, for example another user's, is read.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import math
import mmap
import os
import re
import shutil
import struct
import time
import zlib
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, overload
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from stereo.data.annotations import Row
from stereo.data.datasets import (
    Family,
    Format,
    MonoFormat,
    MonoSample,
    StereoFormat,
    StereoSample,
    sample_name,
)
from stereo.data.encodings import DECODER_VERSION
from stereo.data.remote import Location, stamp
from stereo.errors import DataError
from stereo.spec.data import DatasetSpec

Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]
Facts: TypeAlias = Mapping[str, bool]

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
# An hour together: the time of a file in use is renewed at most once per interval.
UNUSED_AFTER = 2700.0  # s
TOUCH_INTERVAL = 900.0  # s
RESERVE = 2**30  # bytes of the disk that stay free, but at most a tenth of it

_CLASSES: dict[Family, type[StereoSample | MonoSample]] = {
    "stereo": StereoSample,
    "mono": MonoSample,
}
_FIELDS = {family: [field.name for field in fields(_CLASSES[family])] for family in _CLASSES}
_MAGIC = b"DTSAMPLE"
_PREFIX = struct.Struct("<8sIIQI")  # magic, version, header bytes, file bytes, CRC-32 of the rest
_ALIGNMENT = 64
_TOTAL = re.compile(rb"[0-9]{20}\n")

_reported_full: set[Path] = set()  # directories of which this process has said so


def open_cache(spec: DatasetSpec, *, quiet: bool = False) -> SampleCache | None:
    """The cache that `dataset` asks for; None when it is off or, with `auto`, cannot be used.

    Args:
        spec: mode, folder and budget.
        quiet: whoever reads next will say that it is off.

    Raises:
        DataError: with exit code 2, when `cache` is `on` and nothing can be written.
    """
    if spec.cache == "off":
        return None
    directory: Path | str = spec.cache_dir or "the user's cache directory"
    try:
        directory = Path(spec.cache_dir).expanduser() if spec.cache_dir else default_directory()
        cache = SampleCache(directory, int(spec.cache_size * 2**30))
        problem = cache.stopped
    except (OSError, RuntimeError) as error:  # nobody's home is a RuntimeError
        cache, problem = None, getattr(error, "strerror", None) or str(error)
    require(spec, directory, problem)
    if problem and not quiet:
        log.warning("decoded cache off: %s takes no samples: %s", directory, problem)
    return cache


def require(spec: DatasetSpec, directory: Path | str, problem: str) -> None:
    """Raise a `DataError` with exit code 2 if there is a problem and `cache` is `on`."""
    if problem and spec.cache == "on":
        raise DataError(
            f"dataset.cache: on, but {directory} takes no more samples: {problem}. Make room, "
            "raise dataset.cache_size, name another folder in dataset.cache_dir, or use auto",
            exit_code=2,
        )


def default_directory() -> Path:
    """`depthtune/samples` in the user's cache directory (`$XDG_CACHE_HOME`, else `~/.cache`)."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    home = given if given.is_absolute() else Path.home() / ".cache"
    return home / "depthtune" / "samples"


@overload
def read_sample(
    form: StereoFormat, row: Row, cache: SampleCache | None
) -> tuple[StereoSample, bool]: ...
@overload
def read_sample(
    form: MonoFormat, row: Row, cache: SampleCache | None
) -> tuple[MonoSample, bool]: ...
@overload
def read_sample(
    form: Format, row: Row, cache: SampleCache | None
) -> tuple[StereoSample | MonoSample, bool]: ...
def read_sample(
    form: Format, row: Row, cache: SampleCache | None
) -> tuple[StereoSample | MonoSample, bool]:
    """The sample of a row, and whether the cache had it; its arrays must not be changed.

    Raises:
        DataError: a file cannot be read; names annotation, line and path.
    """
    key = sample_key(form, row) if cache is not None else None
    if cache is None or key is None:
        return form.read(row), False
    found = cache.get(key)
    if found is not None:
        arrays, facts = found
        values: dict[str, Any] = {"name": sample_name(row), "row": row, **arrays, **facts}
        return _CLASSES[form.family](**values), True
    sample = form.read(row)
    if sample_key(form, row) == key:  # else a file changed while it was read
        cache.put(key, *_contents(sample))
    return sample, False


def _contents(sample: StereoSample | MonoSample) -> tuple[Arrays, Facts]:
    """What all rows share that name the same files."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    facts: dict[str, bool] = {}
    for name, value in vars(sample).items():
        if isinstance(value, bool):
            facts[name] = value
        elif isinstance(value, np.ndarray):
            arrays[name] = value
    return arrays, facts


def sample_key(form: Format, row: Row) -> str | None:
    """Name of the decoded sample, hexadecimal; None when a file is not there or has no version."""
    files = (row.left, row.right, row.disparity, row.occlusion)
    try:
        named = [_named(file) if file is not None else None for file in files]
    except OSError:
        return None
    if any(name is not None and not name[2] for name in named):
        return None  # a web server that does not say when the file changes
    parts = [DECODER_VERSION, form.name, _FIELDS[form.family], named]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def _named(file: Location) -> tuple[str, int, str]:
    """Path or address, size in bytes and version of a file."""
    size, version = stamp(file)
    return str(file.absolute() if isinstance(file, Path) else file), size, version


class SampleCache:
    """Arrays and facts by key.

    Holds no file open, so it may be pickled and used by any number of processes at once.

    Args:
        directory: made if it is not there.
        budget: bytes that all files together may have.

    Attributes:
        stopped: why nothing more is written, "" while all is well; reading goes on.
        full: why a sample was not stored although others may be, "" while all were.

    Raises:
        OSError: the directory is not there and cannot be made.
    """

    def __init__(self, directory: Path, budget: int) -> None:
        self.directory = directory
        self.budget = budget
        self.stopped = ""
        self.full = ""
        self._opened = time.time()
        self._writing = directory / "writing"
        self._verified: set[str] = set()
        self._next_search = 0.0  # for unused files, by the clock of `time.monotonic`
        try:
            self._prepare()
            self.stopped = self._lack_of_room(0)
        except OSError as error:
            if not directory.is_dir():
                raise
            self.stopped = _said(error)

    @property
    def total(self) -> int:
        """Bytes of all files, as counted by all processes together."""
        with self._locked() as total:
            return total.value

    def get(self, key: str) -> tuple[Arrays, Facts] | None:
        """Read-only arrays that are parts of the mapped file, and the facts; None when missing."""
        path = self._path(key)
        try:
            with path.open("rb") as file:
                used = os.fstat(file.fileno()).st_mtime
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):  # an empty file is a ValueError
            return None
        found = self._parse(content, key)
        if found is not None and used < time.time() - TOUCH_INTERVAL:
            with suppress(OSError):
                os.utime(path)
        return found

    def put(self, key: str, arrays: Arrays, facts: Facts) -> None:
        """Store a sample if there is room; a failing disk stops the writing, not the caller."""
        if self.stopped:
            return
        path, parts = self._path(key), _parts(key, arrays, facts)
        try:
            try:
                self._write(path, parts)
            except FileNotFoundError:  # somebody deleted the directory
                self._prepare()
                self._write(path, parts)
        except OSError as error:
            self._stop(_said(error))
            with suppress(OSError), self._locked() as total:
                total.set(self._measure())

    def _prepare(self) -> None:
        """Make the folders and measure what they hold."""
        self._writing.mkdir(parents=True, exist_ok=True)
        with self._locked() as total:
            total.set(self._measure())

    def _path(self, key: str) -> Path:
        return self.directory / key[:2] / key

    def _parse(self, content: mmap.mmap, key: str) -> tuple[Arrays, Facts] | None:
        """Arrays and facts of a whole file of this format with this key, else None."""
        if len(content) < _PREFIX.size:
            return None
        magic, version, header_bytes, file_bytes, checksum = _PREFIX.unpack_from(content)
        if (magic, version, file_bytes) != (_MAGIC, FORMAT_VERSION, len(content)):
            return None
        if key not in self._verified:  # reading the file whole is worth it once per process
            with memoryview(content) as view:
                if zlib.crc32(view[_PREFIX.size :]) != checksum:
                    return None
            self._verified.add(key)
        start = _PREFIX.size + header_bytes
        header = json.loads(content[_PREFIX.size : start])
        if header["key"] != key:
            return None
        arrays = {
            name: np.frombuffer(content, kind, math.prod(shape), start + offset).reshape(shape)
            for name, (kind, shape, offset) in header["arrays"].items()
        }
        return arrays, header["facts"]

    def _write(self, path: Path, parts: list[memoryview]) -> None:
        """Count, write and name a file, in this order."""
        size = sum(map(len, parts))
        with self._locked() as total:
            if not self._make_room(total, size):
                return
            total.set(total.value + size)
            file = self._new_file(size)
        with file:
            file.writelines(parts)
            file.flush()
            with self._locked() as total:
                path.parent.mkdir(exist_ok=True)
                replaced = path.stat().st_size if path.exists() else 0
                Path(file.name).replace(path)
                total.set(total.value - replaced)

    def _new_file(self, size: int) -> BinaryIO:
        """A file in `writing` with its final size, locked until it is closed."""
        file = (self._writing / uuid4().hex).open("xb")
        fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(size)
        return file

    def _make_room(self, total: _Total, size: int) -> bool:
        """Whether a file of the size may be written now."""
        problem = self._lack_of_room(size)
        if problem:
            self._stop(problem)
            return False
        if total.value + size <= self.budget:
            return True
        now = time.monotonic()
        if size <= self.budget and now >= self._next_search:
            self._remove_unused(total, self.budget - max(size, self.budget // 8))
        fits = total.value + size <= self.budget
        if not fits:
            self._next_search = now + TOUCH_INTERVAL
            self._report_full(total.value)
        return fits

    def _report_full(self, used: int) -> None:
        """Note that a sample found no room; a process says so once."""
        budget = self.budget / 2**30
        self.full = f"{used / 2**30:.4g} of the {budget:.4g} GiB of dataset.cache_size are used"
        if self.directory not in _reported_full:
            _reported_full.add(self.directory)
            log.warning(
                "decoded cache %s is full: %s; what does not fit is decoded again in every pass. "
                "Raise dataset.cache_size",
                self.directory,
                self.full,
            )

    def _lack_of_room(self, size: int) -> str:
        """Why the disk has no room for a file of the size; "" when it has."""
        disk = shutil.disk_usage(self.directory)
        reserve = min(RESERVE, disk.total // 10)
        if disk.free - size >= reserve:
            return ""
        free, needed, kept = disk.free / 2**20, (size + reserve) / 2**20, reserve / 2**20
        return f"{free:.1f} MiB of the disk are free, needed {needed:.1f}, of which {kept:.1f} stay"

    def _remove_unused(self, total: _Total, target: int) -> None:
        """Remove files that are not in use, the oldest first, down to the target."""
        limit = min(time.time() - UNUSED_AFTER, self._opened) - TOUCH_INTERVAL
        files = [(status.st_mtime, status.st_size, path) for path, status in self._samples()]
        for used, size, path in sorted(files):
            if used >= limit or total.value <= target:
                return
            path.unlink(missing_ok=True)
            total.set(total.value - size)

    def _measure(self) -> int:
        """Bytes of all files; those in `writing` whose writer is gone are removed."""
        for path in self._writing.iterdir():
            if _is_abandoned(path):
                path.unlink(missing_ok=True)
        being_written = sum(status.st_size for _, status in _files(self._writing))
        return being_written + sum(status.st_size for _, status in self._samples())

    def _samples(self) -> Iterator[tuple[Path, os.stat_result]]:
        for folder in self.directory.glob("[0-9a-f][0-9a-f]/"):
            yield from _files(folder)

    def _stop(self, problem: str) -> None:
        self.stopped = problem
        log.warning("decoded cache %s takes no more samples: %s", self.directory, problem)

    @contextmanager
    def _locked(self) -> Generator[_Total]:
        """The total, while no other process changes a file."""
        descriptor = os.open(self.directory / "total", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            total = _Total(descriptor)
            if not total.is_known:  # new or damaged, or somebody cleared the folder meanwhile
                total.set(self._measure())
            yield total
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child forked meanwhile would keep it
            os.close(descriptor)


class _Total:
    """The number in the file `total`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @property
    def is_known(self) -> bool:
        return _TOTAL.fullmatch(os.pread(self._descriptor, 32, 0)) is not None

    @property
    def value(self) -> int:
        return int(os.pread(self._descriptor, 32, 0))

    def set(self, value: int) -> None:
        os.ftruncate(self._descriptor, os.pwrite(self._descriptor, b"%020d\n" % value, 0))


def _parts(key: str, arrays: Arrays, facts: Facts) -> list[memoryview]:
    """The content of a file, without copies of the arrays."""
    body: list[memoryview] = []
    layout: dict[str, tuple[str, tuple[int, ...], int]] = {}
    offset = 0
    for name, array in arrays.items():
        layout[name] = (array.dtype.str, array.shape, offset)
        padding = -array.nbytes % _ALIGNMENT
        body += [_bytes(array), memoryview(bytes(padding))]
        offset += array.nbytes + padding
    header = json.dumps({"key": key, "facts": dict(facts), "arrays": layout}).encode()
    header += b" " * (-(_PREFIX.size + len(header)) % _ALIGNMENT)
    body = [memoryview(header), *body]
    checksum = 0
    for part in body:
        checksum = zlib.crc32(part, checksum)
    size = _PREFIX.size + len(header) + offset
    prefix = _PREFIX.pack(_MAGIC, FORMAT_VERSION, len(header), size, checksum)
    return [memoryview(prefix), *body]


def _bytes(array: npt.NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _said(error: OSError) -> str:
    return error.strerror or str(error)


def _is_abandoned(path: Path) -> bool:
    """Whether no process has the file locked."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Files of a folder; one that vanishes meanwhile is left out."""
    with os.scandir(folder) as found:
        for entry in found:
            with suppress(FileNotFoundError):
                yield Path(entry.path), entry.stat()
