"""Checkpoint files: written atomically, read without running code.

A checkpoint is a `.pth` file with one dictionary of tensors and plain values, or a pickled module,
which is read as one. Ours carry `format_version`; files of other programs do not and are read as
they are, objects of unknown classes as inert records.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from stereo.checkpoints import archive, public_config
from stereo.checkpoints.inert_pickle import (
    InertPickleError,
    Record,
    is_module,
    module_settings,
    module_state,
)
from stereo.errors import CheckpointError

SUFFIX = ".pth"
FORMAT_VERSION = 1
LAYERS = "layers"
QUANTIZED_BY = "quantized_by"  # whose tensors a payload holds, where they are not PyTorch's own


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

    A pickled module comes back as `model`, its state dict, `args`, what it was built with, and
    `LAYERS`, the plain attributes of its layers. The `cfg.yaml` beside a file of another program
    comes back as `public_config.NAME`.

    Raises:
        CheckpointError: no such file, another suffix, not a whole checkpoint, written by a newer
            version, quantised by another library, or beyond the limits of `inert_pickle`.
    """
    _require_suffix(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint. Check the path")
    try:
        payload = _states(archive.read(path))
    except (InertPickleError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a whole checkpoint ({path.stat().st_size} bytes): {error}. It is "
            "truncated, changed, or not written by PyTorch: copy or download it again"
        ) from error
    if not isinstance(payload, dict):
        kind = payload.path if isinstance(payload, Record) else type(payload).__name__
        raise CheckpointError(f"{path}: holds a {kind}, expected a dictionary of tensors")
    version = payload.get("format_version", FORMAT_VERSION)
    if type(version) is not int or not 0 <= version <= FORMAT_VERSION:
        shown = version if type(version) is int and abs(version) < 2**53 else "that is no number"
        raise CheckpointError(
            f"{path}: format_version {shown}, this program reads up to {FORMAT_VERSION}. "
            "Update the program"
        )
    library = "modelopt" if "modelopt_state" in payload else payload.get(QUANTIZED_BY)
    if isinstance(library, str) and library in ("modelopt", "torchao"):
        raise CheckpointError(
            f"{path}: weights quantised by {library}, which only that library restores. To score "
            "quantised weights, use quantize.backend=onnxruntime and set trt_engine to the graph"
        )
    if "format_version" in payload:
        return payload
    return {**payload, public_config.NAME: public_config.beside(path)}


def _states(payload: Any) -> Any:
    """Replace pickled modules by their state dicts."""
    if is_module(payload):
        return {
            "model": module_state(payload),
            "args": payload.state.get("args"),
            LAYERS: module_settings(payload),
        }
    if type(payload) is dict:
        return {
            key: module_state(value) if is_module(value) else value
            for key, value in payload.items()
        }
    return payload


def _require_suffix(path: Path) -> None:
    if path.suffix != SUFFIX:
        raise CheckpointError(
            f"{path}: a checkpoint ends in {SUFFIX}, got {path.suffix or 'no suffix'!r}. "
            "Graphs (.onnx) and engines go to trt_engine"
        )
