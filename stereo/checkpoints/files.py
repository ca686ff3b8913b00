"""Checkpoint files: written atomically, read without running code.

A checkpoint is a `.pth` file with one dictionary of tensors and plain values. Ours carry
`format_version`; files of other programs do not and are read as they are.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from stereo.errors import CheckpointError

SUFFIX = ".pth"
FORMAT_VERSION = 1


def write(path: Path, payload: Mapping[str, Any]) -> None:
    """Write `payload` and `format_version` to `path`; the file is whole or not there.

    Raises:
        OSError: the disk is full or the folder cannot be written; `path` is left as it was.
    """
    _require_suffix(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            torch.save({**payload, "format_version": FORMAT_VERSION}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except RuntimeError as error:  # torch's writer hides what the stream said
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path) -> dict[str, Any]:
    """Return the dictionary stored at `path`, its tensors on the CPU.

    Raises:
        CheckpointError: no such file, another suffix, not a whole checkpoint, written by a newer
            version, or a file that could only be read by running code.
    """
    _require_suffix(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint. Check the path")
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the reader raises whatever the damaged bytes lead it to
        raise CheckpointError(f"{path}: {_reason(path)}") from error
    if not isinstance(payload, dict):
        kind = type(payload).__name__
        raise CheckpointError(f"{path}: holds a {kind}, expected a dictionary of tensors")
    version = payload.get("format_version", FORMAT_VERSION)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format_version {version}, this program reads up to {FORMAT_VERSION}. "
            "Update the program"
        )
    return payload


def _require_suffix(path: Path) -> None:
    if path.suffix != SUFFIX:
        raise CheckpointError(
            f"{path}: a checkpoint ends in {SUFFIX}, got {path.suffix or 'no suffix'!r}. "
            "Graphs (.onnx) and engines go to trt_engine"
        )


def _reason(path: Path) -> str:
    """Say why a file that the reader refused is unusable, and what to do."""
    try:
        torch._C.PyTorchFileReader(str(path))
    except RuntimeError:
        return (
            f"not a whole checkpoint ({path.stat().st_size} bytes): truncated, or not written by "
            "PyTorch. Copy or download it again"
        )
    return (
        "holds objects besides tensors and plain values, which would run code when read. "
        "Export its state dict with torch.save in the program that wrote it"
    )
