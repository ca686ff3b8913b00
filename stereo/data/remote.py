"""Remote files: `s3://` and every other address that fsspec reads (`gs://`, `https://`, ...).

An address is `scheme://` and a path. Which files exist, their sizes and versions come from one
listing per folder; only over http, which has no listing, each file is asked for by itself. Reading
a file is one request. Retries are the backend's.

Nothing about access is in a spec. For S3 it is the usual AWS environment and configuration:
`AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, or `AWS_PROFILE`, or the role of the machine;
`AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL` for a server other than Amazon's (MinIO, Ceph, moto).
Options of a backend are `FSSPEC_<SCHEME>_<OPTION>`: `FSSPEC_S3_ANON=true` reads a public bucket.
"""

from __future__ import annotations

import io
import posixpath
import re
from collections import defaultdict
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from stereo.errors import DataError

if TYPE_CHECKING:
    from typing_extensions import Buffer

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")  # one letter would be a Windows drive
_HTTP = ("http://", "https://")
# Backends name the version differently; an etag is preferred to a time.
_ETAGS = ("ETag", "etag", "md5Hash")
_TIMES = ("mtime", "Last-Modified", "LastModified", "last_modified", "updated", "created")
_REQUESTS_AT_A_TIME = 16
_HEAD_BYTES = 2**16  # fetched when only the start of a file is read


@dataclass(frozen=True)
class RemoteFile:
    """A remote file that exists; plain values, so it may be pickled.

    Attributes:
        uri: its address.
        size: bytes, -1 where the server does not say.
        version: changes with the content: etag or time of the listing, "" without either.
    """

    uri: str
    size: int
    version: str

    def __str__(self) -> str:
        return self.uri

    @property
    def name(self) -> str:
        """Last part of the path."""
        return _path_of(self.uri).rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """Extension with its dot, "" without one."""
        return suffix_of(self.uri)

    def open(self, _mode: Literal["rb"] = "rb") -> io.BufferedReader:
        """The content as a file; reading all of it is one request.

        Raises:
            DataError: on reading; names address, reason and remedy.
        """
        return io.BufferedReader(_Content(self), _HEAD_BYTES)


Location: TypeAlias = Path | RemoteFile


class _Content(io.RawIOBase):
    """The bytes of a remote file, fetched when they are read."""

    def __init__(self, file: RemoteFile) -> None:
        super().__init__()
        self._file = file
        self._position = 0

    def readable(self) -> bool:
        return True

    def readall(self) -> bytes:
        return self._fetch(None)

    def readinto(self, buffer: Buffer, /) -> int:
        view = memoryview(buffer).cast("B")
        content = self._fetch(self._position + len(view))
        view[: len(content)] = content
        return len(content)

    def _fetch(self, end: int | None) -> bytes:
        """The bytes from here to an end, that of the file by default."""
        start, size = self._position, self._file.size
        if start == size:  # S3 refuses a range that starts there
            return b""
        with _explained(self._file.uri):
            files, path = _backend(self._file.uri)
            # Without a start s3fs would ask for the size first; without a size ranges may not work.
            limits = {} if size < 0 else {"start": start, "end": end}
            content: bytes = files.cat_file(path, **limits)
        expected = (size if end is None else min(end, size)) - start
        if len(content) > expected:  # all of it: the server does not know ranges
            content = content[start:end]
        self._position += len(content)
        return content


def is_remote(text: str) -> bool:
    """Whether a text is an address and not a local path."""
    return _SCHEME.match(text) is not None


def join(folder: str, path: str) -> str:
    """Address of a path relative to the folder of a file; `..` ends at the bucket or host."""
    scheme, _, rest = folder.partition("://")
    host, _, below = rest.partition("/")
    return f"{scheme}://{host}{posixpath.normpath(posixpath.join('/', below, path))}"


def suffix_of(path: str) -> str:
    """Extension of a path or address with its dot, "" without one."""
    stem, dot, end = _path_of(path).rpartition("/")[2].rpartition(".")
    return dot + end if stem else ""


def folder_of(uri: str) -> str:
    """Address of the folder that a file lies in."""
    return _path_of(uri).rpartition("/")[0]


def stamp(location: Location) -> tuple[int, str]:
    """Size in bytes and version of a file; changed content has another stamp.

    Raises:
        OSError: a local file is not there.
    """
    if isinstance(location, RemoteFile):
        return location.size, location.version
    status = location.stat()
    return status.st_size, str(status.st_mtime_ns)


def find(uri: str) -> RemoteFile:
    """The file at an address.

    Raises:
        DataError: it is not there or cannot be reached; names address, reason and remedy.
    """
    with _explained(uri):
        files, path = _backend(uri)
        files.invalidate_cache()
        entry = files.info(path)
    if entry["type"] != "file":
        raise DataError(f"{uri}: is a folder, not a file")
    return _described(uri, entry)


def find_all(uris: Iterable[str]) -> dict[str, RemoteFile | str]:
    """Every file, or the reason why it cannot be used, with one listing per folder.

    When a folder cannot be listed, its first file has the reason and the others have "".
    """
    folders: defaultdict[str, list[str]] = defaultdict(list)
    for uri in uris:
        folders[uri if uri.startswith(_HTTP) else folder_of(uri)].append(uri)
    with ThreadPoolExecutor(_REQUESTS_AT_A_TIME) as pool:
        answers = pool.map(_find_neighbours, folders.values())
        return {uri: answer for found in answers for uri, answer in found.items()}


def _find_neighbours(uris: Sequence[str]) -> dict[str, RemoteFile | str]:
    """The files of one folder; over http one file."""
    first = uris[0]
    try:
        with _explained(first):
            files, path = _backend(first)
            folder = posixpath.dirname(path)
            files.invalidate_cache(folder)
            is_http = first.startswith(_HTTP)
            entries = [files.info(path)] if is_http else files.ls(folder, detail=True)
    except DataError as error:
        return {**dict.fromkeys(uris, ""), first: str(error)}
    listed = {posixpath.basename(entry["name"]): entry for entry in entries}
    answers: dict[str, RemoteFile | str] = {}
    for uri in uris:
        entry = listed.get(posixpath.basename(uri))
        if entry is None or entry["type"] != "file":
            answers[uri] = f"{uri}: no such file"
        else:
            answers[uri] = _described(uri, entry)
    return answers


def _described(uri: str, entry: Mapping[str, Any]) -> RemoteFile:
    size = entry.get("size")
    version = next((str(entry[key]) for key in _ETAGS + _TIMES if entry.get(key)), "")
    return RemoteFile(uri, -1 if size is None else int(size), version)


def _backend(uri: str) -> tuple[Any, str]:
    """The file system of an address and the path in it; each process makes a system once."""
    import fsspec  # pyright: ignore[reportMissingTypeStubs]

    return cast("tuple[Any, str]", fsspec.url_to_fs(uri))  # pyright: ignore[reportUnknownMemberType]


def _path_of(uri: str) -> str:
    """The address without what may follow the path of a web address."""
    return re.split(r"[?#]", uri, maxsplit=1)[0] if uri.startswith(_HTTP) else uri


@contextmanager
def _explained(uri: str) -> Generator[None]:
    """Turn whatever a backend raises into a `DataError` with a remedy."""
    try:
        yield
    except Exception as error:
        raise DataError(f"{uri}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What is wrong and what to do; errors of optional packages are known by their names."""
    kind = type(error).__name__
    said = error.__cause__ or error  # over http everything is first a FileNotFoundError
    if isinstance(error, ImportError):
        return f"{error}" + (": pip install 'depthtune[s3]'" if "s3fs" in str(error) else "")
    if isinstance(error, FileNotFoundError):
        return f"no such file, folder or bucket ({said}). Check the address"
    if isinstance(error, PermissionError):
        return f"access denied ({said}). Check the credentials"
    if "Credential" in kind or "Profile" in kind:
        return (
            f"no credentials ({said}). Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "AWS_PROFILE, or for a public bucket FSSPEC_S3_ANON=true"
        )
    return (
        f"cannot be read ({kind}: {said}). Check the network, and AWS_ENDPOINT_URL_S3 when the "
        "server is not Amazon's"
    )
