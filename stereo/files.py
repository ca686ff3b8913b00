"""Small files that are whole or not there, and the hash that names a file's content.

A reader never sees half a file: it is written under a temporary name in the same folder, then
renamed. Checkpoints are streamed by `stereo.checkpoints.files` instead.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal, Protocol


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON.

    Raises:
        ValueError: a number in `value` is not finite.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


class Readable(Protocol):
    """A file by its path, or a remote one."""

    def open(self, mode: Literal["rb"], /) -> BufferedReader:
        """The content of the file."""
        ...


@contextmanager
def turn(path: Path | None) -> Generator[None]:
    """Inside, no other process is inside with the same file; None, or a file that cannot lock: go.

    The system ends the turn of a process that dies.
    """
    if path is None:
        yield
        return
    import fcntl  # not on Windows, where no study asks for turns

    with path.open("ab") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sha256(path: Readable) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
