"""What the structure of a spec costs on the device, measured once for all specs of that structure.

A trainer says in `model.json` what shapes the exported graph: `structure.sections` of the spec
without the fields `structure.without`. Specs that agree there, at the same size of image and on
the same machine, cost the same: the answer is kept in `results/measured/`, for all studies.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from automl.contract import Status
from automl.promote.isolated import run_action
from automl.study_spec import get_path, merge, set_path
from automl.trial import Costs, Measure

TIMED_BY = ("onnxruntime", "torch")  # another release may be faster


def measurer(
    trainable: str,
    metadata: Mapping[str, Any],
    size: tuple[int, int],
    directory: Path,
    say: Callable[[str], None] = lambda _: None,
) -> Measure:
    """Return what tells the costs of a complete spec.

    Args:
        trainable: name for `find_trainable`; it measures in a process of its own.
        metadata: `model.json`.
        size: height and width of the images that the graph is for.
        directory: of what was measured before.
        say: told in words what happens.
    """

    def measure(spec: Mapping[str, Any]) -> Costs:
        complete = merge(spec, {})
        for name, side in zip(("height", "width"), size, strict=True):
            set_path(complete, f"export.input_{name}", side)
        key = structure_key(complete, metadata, size)
        file = directory / f"{metadata['key']}-{key}.json"
        known = _read(file)
        if known is not None:
            return Costs(known)
        say("measuring what this structure costs on the device")
        place = directory / f"{file.stem}.{os.getpid()}.tmp"
        try:
            outcome = run_action(trainable, "measure", complete, place)
        finally:
            shutil.rmtree(place, ignore_errors=True)
        wrong = [name for name, value in outcome.metrics.items() if not math.isfinite(value)]
        if outcome.status != Status.OK or wrong:
            return Costs({}, f"{outcome.status}: {outcome.detail or ', '.join(wrong)}")
        content = {"metrics": outcome.metrics, "detail": outcome.detail, "machine": machine()}
        directory.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}.json.tmp")
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        temporary.replace(file)
        return Costs(outcome.metrics)

    return measure


def structure_key(
    spec: Mapping[str, Any], metadata: Mapping[str, Any], size: tuple[int, int]
) -> str:
    """Return a text that is the same for specs of the same structure on the same machine only."""
    facts = metadata["structure"]
    shape = {
        path: value
        for section in facts["sections"]
        for path, value in _leaves(get_path(spec, section, {}), section)
        if path not in facts["without"]
    }
    told = {"model": metadata["key"], "shape": shape, "size": size, "machine": machine()}
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:16]


def machine() -> dict[str, str]:
    """Return what decides how fast a graph is here."""
    facts = {"processor": _processor(), "machine": platform.machine()}
    for name in TIMED_BY:
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return facts


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        yield path, value
        return
    for key, child in cast("Mapping[str, Any]", value).items():
        yield from _leaves(child, f"{path}.{key}")


def _read(file: Path) -> dict[str, float] | None:
    """Return what was measured; a damaged file counts as none."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))["metrics"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
