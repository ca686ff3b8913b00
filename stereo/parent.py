"""`--set-from PARENT`: what a run inherits from an earlier run, a bundle or a study.

A parent gives its model file (checkpoint, graph or engine) and every value of its `model` section.
Nothing overrides a value the user wrote; a contradiction is an error, since that is how scores
drift apart unnoticed. Rules: `interface.md` 6 of the design pages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stereo.errors import SpecError, SpecProblem
from stereo.spec.load import given_values, named_model
from stereo.spec.models import DEFAULT, MODELS
from stereo.spec.rules import is_open, value_at

BUNDLE_FORMAT_VERSION = 1  # the newest that is read; automl writes it
CHECKPOINT = re.compile(r"(?:dn_)?model_epoch_(?P<epoch>\d+)_step_(?P<step>\d+)\.pth")
_NETWORK = "model.model_type"
# Which field takes which file of the parent, best first.
TAKES = {
    "evaluate": {"checkpoint": "evaluate.checkpoint", "engine": "evaluate.trt_engine"},
    "inference": {"checkpoint": "inference.checkpoint", "engine": "inference.trt_engine"},
    "export": {"checkpoint": "export.checkpoint"},
    "gen_trt_engine": {"graph": "gen_trt_engine.onnx_file"},
    "train": {"checkpoint": "train.pretrained_model_path"},
    "quantize": {"checkpoint": "quantize.model_path", "graph": "quantize.model_path"},
}


@dataclass(frozen=True)
class Inferred:
    """Values taken from a parent, each with the reason that goes into provenance.json."""

    parent: Path
    action: str
    values: Mapping[str, Any]
    reasons: Mapping[str, str]

    def open_fields(
        self, spec_file: Path, overrides: Sequence[str], model: str | None = None
    ) -> dict[str, Any]:
        """The inferred values the user left open; a model file of the user's own replaces all.

        A value of the spec file that is the packaged one counts as open: `default_specs` writes
        them all. An override never does, nor does the network that the spec file names.

        Args:
            spec_file: what the user wrote.
            overrides: what the user wrote on the command line.
            model: model key; default: that of the network the user or else the parent names.

        Raises:
            SpecError: the spec or an override sets a `model` value the parent contradicts.
        """
        key = model or named_model(spec_file, overrides) or named_model(self._spec()) or DEFAULT
        packaged, defaults = MODELS[key].packaged_values(self.action), MODELS[key].spec_class()
        written = given_values(spec_file, action=self.action, model=key)
        explicit = {
            path: value
            for path, value in written.items()
            if not is_open(value)
            and (path == _NETWORK or value not in (packaged.get(path), value_at(defaults, path)))
        }
        orders = given_values({}, overrides, action=self.action, model=key)
        explicit |= {key: value for key, value in orders.items() if not is_open(value)}
        problems = [
            SpecProblem(
                str(spec_file),
                key,
                f"got {explicit[key]!r}, but the parent {self.parent} was made with {value!r}",
                "Remove the key or take another parent",
            )
            for key, value in self.values.items()
            if key.startswith("model.") and key in explicit and explicit[key] != value
        ]
        if problems:
            raise SpecError(problems)
        sources = set(TAKES[self.action].values())
        closed = explicit.keys() | (sources if sources & explicit.keys() else set())
        return {key: value for key, value in self.values.items() if key not in closed}

    def _spec(self) -> dict[str, Any]:
        return {"model": {"model_type": self.values.get(_NETWORK)}}


def infer(parent: Path, action: str, select: str = "best") -> Inferred:
    """Read a parent directory.

    Args:
        parent: a run directory, a bundle, or a study directory or its name.
        action: verb that inherits.
        select: `best`, `latest`, `epoch=E` or `step=S`, for parents with several checkpoints.

    Raises:
        SpecError: no such parent, or it holds nothing that `action` can take.
    """
    directory = _resolve(parent)
    files, spec, origin = _contents(directory, select)
    takes = TAKES[action]
    kind = next((kind for kind in _preference(origin, takes) if kind in files), None)
    if kind is None:
        have = ", ".join(sorted(files)) or "no model file"
        problem = f"{action} needs a {' or '.join(takes)}; this {origin} has {have}"
        raise SpecError([SpecProblem(str(directory), "--set-from", problem, "Name another parent")])
    values = {takes[kind]: str(files[kind])}
    reasons = {takes[kind]: f"{kind} of the {origin} {directory} ({select})"}
    for key, value in _leaves({"model": spec.get("model", {})}):
        values[key] = value
        reasons[key] = f"model section of the {origin} {directory}"
    if action == "export" and "model.valid_iters" in values:
        # a graph unrolls its iterations: with others its scores would not be the checkpoint's
        values["export.valid_iters"] = values["model.valid_iters"]
        reasons["export.valid_iters"] = reasons["model.valid_iters"]
    return Inferred(directory, action, values, reasons)


def _preference(origin: str, takes: Mapping[str, str]) -> list[str]:
    """An engine parent or a bundle is scored as engine, a training run as checkpoint."""
    return sorted(takes, key=lambda kind: (kind == "checkpoint") == (origin != "training run"))


def _resolve(parent: Path) -> Path:
    candidates = [parent, Path("results/studies") / parent]
    directory = next((path for path in candidates if path.is_dir()), None)
    if directory is None:
        problem = f"no such directory, and no study results/studies/{parent}"
        raise SpecError([SpecProblem(str(parent), "--set-from", problem, "Check the path")])
    if (directory / "events.jsonl").is_file():
        if not (directory / "bundle" / "bundle.json").is_file():
            problem = "this study has no bundle yet"
            remedy = f"Run `automl promote {directory.name}` first"
            raise SpecError([SpecProblem(str(directory), "--set-from", problem, remedy)])
        return directory / "bundle"
    return directory


def _contents(directory: Path, select: str) -> tuple[dict[str, Path], dict[str, Any], str]:
    """Model files by kind, the resolved spec, and what the directory is."""
    if (directory / "bundle.json").is_file():
        bundle = json.loads((directory / "bundle.json").read_text("utf-8"))
        if bundle["format_version"] > BUNDLE_FORMAT_VERSION:
            problem = f"format_version {bundle['format_version']}, read are {BUNDLE_FORMAT_VERSION}"
            remedy = "Use the release of depthtune that wrote this bundle"
            source = str(directory / "bundle.json")
            raise SpecError([SpecProblem(source, "--set-from", problem, remedy)])
        names = ("checkpoint", "graph", "engine")
        files = {
            name: directory / bundle["files"][name]["path"]
            for name in names
            if name in bundle["files"]
        }
        return files, bundle["spec"], "bundle"
    experiment = directory / "experiment.yaml"
    if not experiment.is_file() and (directory / "train" / "experiment.yaml").is_file():
        return _contents(directory / "train", select)
    if not experiment.is_file():
        problem = "neither bundle.json nor experiment.yaml is here"
        remedy = "Name a run, a bundle or a study"
        raise SpecError([SpecProblem(str(directory), "--set-from", problem, remedy)])
    spec = yaml.safe_load(experiment.read_text("utf-8"))
    for file in _artifacts(directory):
        kind = _kind(file)
        if kind == "engine":
            return {"engine": file}, spec, "engine run"
        if kind == "graph":
            return {"graph": file, "engine": file}, spec, "export run"
    return {"checkpoint": select_checkpoint(directory, select)}, spec, "training run"


def _artifacts(directory: Path) -> list[Path]:
    """The files that the last successful run in a directory made, wherever it put them."""
    status = directory / "status.json"
    lines = status.read_text("utf-8").splitlines() if status.is_file() else []
    for line in reversed(lines):
        if '"SUCCESS"' in line:
            return [directory / name for name in json.loads(line)["artifacts"]]
    return []


def _kind(file: Path) -> str:
    """`graph` or `engine`, as the sidecar beside a file says; empty without one."""
    sidecar = file.with_name(f"{file.name}.json")
    return json.loads(sidecar.read_text("utf-8"))["kind"] if sidecar.is_file() else ""


def select_checkpoint(directory: Path, select: str) -> Path:
    """One checkpoint of a training run.

    Raises:
        SpecError: the run has no such checkpoint; the message lists those it has.
    """
    epochs = {path: CHECKPOINT.fullmatch(path.name) for path in sorted(directory.glob("*.pth"))}
    found = {path: match for path, match in epochs.items() if match}
    if select in ("best", "latest"):
        link = directory / f"dn_model_{select}.pth"
        if link.is_file():
            return link.resolve()
    elif wanted := re.fullmatch(r"(epoch|step)=(\d+)", select):
        for path, match in found.items():
            if int(match[wanted[1]]) == int(wanted[2]):
                return path
    have = ", ".join(path.name for path in found) or "none"
    problem = f"no checkpoint for --select {select}; it has: {have}"
    remedy = "Use best, latest, epoch=E or step=S"
    raise SpecError([SpecProblem(str(directory), "--select", problem, remedy)])


def _leaves(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
