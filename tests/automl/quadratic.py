"""A real, small Trainable: a quadratic with learning curves, for whole studies in seconds.

`val/epe` after epoch e is 0.5 + distance to the optimum + 4 * 0.7^e. Every epoch writes a
checkpoint from which training resumes; the section `behaviour` of the spec makes runs slow,
fail, hang, die or diverge. The name for `find_trainable` is `tests.automl.quadratic:Quadratic`.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema

NAME = "tests.automl.quadratic:Quadratic"
SCHEMAS = Path(__file__).parent / "quadratic_schemas"
Report = Callable[[int, Mapping[str, float], Path | None], bool]


@dataclass(frozen=True)
class Objective:
    metric: str
    direction: str
    unit: str


@dataclass(frozen=True)
class Result:
    status: str
    metrics: dict[str, float] = field(default_factory=dict)
    artifacts: dict[str, Path] = field(default_factory=dict)
    detail: str = ""


class Quadratic:
    schema_dir = SCHEMAS

    def objective(self, model: str) -> Objective:
        return Objective(**json.loads((SCHEMAS / model / "model.json").read_text())["objective"])

    def template(self, model: str, action: str) -> dict[str, Any]:
        schema = json.loads((SCHEMAS / model / "train.schema.json").read_text())
        return _defaults(schema)

    def embedded_data(self, model: str, directory: Path, profile: str = "cpu") -> dict[str, str]:
        directory.mkdir(parents=True, exist_ok=True)
        for split in ("train", "val"):
            (directory / f"{split}.txt").write_text("1\n2\n3\n4\n")
        return {split: f"Numbers:{directory / split}.txt" for split in ("train", "val")}

    def run(
        self,
        action: str,
        spec: Mapping[str, Any],
        results_dir: Path,
        report: Report | None = None,
    ) -> Result:
        schema = json.loads((SCHEMAS / "quadratic" / "train.schema.json").read_text())
        errors = jsonschema.Draft202012Validator(schema).iter_errors(spec)
        faults = "\n".join(f"{error.json_path}: {error.message}" for error in errors)
        if faults:
            return Result("invalid_spec", detail=faults)
        results_dir.mkdir(parents=True, exist_ok=True)
        full = _merged(_defaults(schema), spec)
        steps: dict[str, Any] = {
            "check": _check,
            "measure": _measure,
            "evaluate": _evaluate,
            "export": _export,
            "gen_trt_engine": _engine,
            "pictures": _pictures,
        }
        if action == "train":
            return _train(full, results_dir, report)
        return steps[action](full, results_dir)


def distance(spec: Mapping[str, Any]) -> float:
    """How far a spec is from the best one (0)."""
    train, optim = spec["train"], spec["train"]["optim"]
    terms = [
        (math.log10(optim["lr"]) + 3) / 2,
        (spec["model"]["width"] - 16) / 16,
        train["flip"] - 0.3,
        optim["momentum"] - 0.5 if optim["optimizer"] == "SGD" else 0.2,
    ]
    return sum(term * term for term in terms)


def _train(spec: dict[str, Any], directory: Path, report: Report | None) -> Result:
    train, behaviour = spec["train"], _behaviour(spec, directory)
    start, checkpoint = 0, None
    if train["resume_training_checkpoint_path"]:
        checkpoint = Path(train["resume_training_checkpoint_path"])
        start = json.loads(checkpoint.read_text())["epoch"]
    metrics: dict[str, float] = {}
    for epoch in range(start + 1, train["num_epochs"] + 1):
        began = time.perf_counter()
        _misbehave(behaviour, epoch, directory)
        value = 0.5 + distance(spec) + 4 * 0.7**epoch + _noise(spec, epoch)
        if train["optim"]["lr"] > 0.05 or epoch == behaviour["diverge_at"]:
            return Result("diverged", metrics, detail=f"epoch {epoch}: the loss became NaN")
        old, checkpoint = checkpoint, directory / f"epoch_{epoch:03d}.json"
        content = {"epoch": epoch, "value": value, "padding": "x" * behaviour["checkpoint_bytes"]}
        with _turn():
            checkpoint.with_suffix(".tmp").write_text(json.dumps(content))
            if behaviour["count_checkpoints"]:
                _count(directory)
            checkpoint.with_suffix(".tmp").replace(checkpoint)
            seconds = time.perf_counter() - began
            metrics = {"val/epe": value, "val/bp1": value / (1 + value), "train_loss": value * 1.1}
            told = metrics | {"seconds": seconds}
            if epoch == train["num_epochs"]:
                told |= _settings(behaviour["steps"], metrics)
            stop = report and report(epoch, told, checkpoint)
            if report and old is not None and old.parent == directory:
                old.unlink(missing_ok=True)
        if stop:
            break
    artifacts = {"checkpoint": checkpoint} if checkpoint else {}
    return Result("ok", metrics, artifacts)


@contextmanager
def _turn() -> Iterator[None]:
    """Replace checkpoints in turn with the other trials of a study, where one asks for it."""
    named = os.environ.get("DEPTHTUNE_CHECKPOINT_TURN")
    with Path(named).open("ab") if named else nullcontext() as file:
        if file is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _count(directory: Path) -> None:
    """Note how many checkpoints every trial has at this moment, unfinished ones included."""
    trials = directory.parent
    found = [file.parent for end in ("json", "tmp") for file in trials.glob(f"*/epoch_*.{end}")]
    with (trials.parent / "counts.txt").open("a") as counts:
        counts.write(f"{json.dumps(list(Counter(found).values()))}\n")


def _settings(steps: int, metrics: Mapping[str, float]) -> dict[str, float]:
    """What fewer steps would have scored: each costs half of what the one before it did."""
    return {
        f"behaviour.steps={step}/{name}": value + 0.5**step - 0.5**steps
        for step in range(1, steps + 1)
        for name, value in metrics.items()
        if name.startswith("val/")
    }


def _noise(spec: Mapping[str, Any], epoch: int) -> float:
    """A normal number that follows from the seed and what is searched."""
    train = {**spec["train"], "resume_training_checkpoint_path": None}
    told = f"{spec['model']} {train} {epoch}"
    return spec["behaviour"]["noise"] * random.Random(told).gauss(0.0, 1.0)


def _misbehave(behaviour: Mapping[str, Any], epoch: int, directory: Path) -> None:
    time.sleep(behaviour["seconds_per_epoch"])
    if epoch == behaviour["hang_at"]:
        time.sleep(3600)
    failures = directory / "failures.txt"
    count = len(failures.read_text()) if failures.exists() else 0
    if epoch in (behaviour["fail_at"], behaviour["exit_at"]) and count < behaviour["fail_times"]:
        failures.write_text("x" * (count + 1))
        if epoch == behaviour["exit_at"]:
            os._exit(9)
        raise RuntimeError(f"epoch {epoch} fails because the spec says so")


def _behaviour(spec: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    behaviour = spec["behaviour"]
    names = {directory.name, directory.parent.name}
    if any(re.fullmatch(behaviour["fail_trials"] or ".*", name) for name in names):
        return behaviour
    return behaviour | {"hang_at": None, "fail_at": None, "exit_at": None, "diverge_at": None}


def _check(spec: Mapping[str, Any], directory: Path) -> Result:
    counts: dict[str, float] = {}
    for split in ("train", "val"):
        for source in spec["dataset"][f"{split}_files"]:
            path = Path(source["data_file"])
            if not path.is_file():
                return Result("failed", detail=f"{path}: no such file")
            for number, line in enumerate(path.read_text().splitlines(), start=1):
                if not line.isdigit():
                    return Result("failed", detail=f"{path}:{number}: {line!r} is not a number")
                counts[f"samples_{split}"] = number
    mixed = float(spec["behaviour"]["mixed_sizes"])
    return Result("ok", {**counts, "height": 64.0, "width": 96.0, "mixed_sizes": mixed})


def _measure(spec: Mapping[str, Any], directory: Path) -> Result:
    """A wider model is slower, and so is one more step."""
    width, steps = spec["model"]["width"], spec["behaviour"]["steps"]
    if width in spec["behaviour"]["unmeasurable"]:
        return Result("failed", detail=f"a width of {width} cannot be exported")
    metrics = {"model/parameters": 10.0 * width, "engine/latency_ms": float(width + 4 * steps)}
    for step in range(1, steps + 1):
        metrics[f"behaviour.steps={step}/engine/latency_ms"] = float(width + 4 * step)
    return Result("ok", metrics)


def _evaluate(spec: Mapping[str, Any], directory: Path) -> Result:
    chosen = [spec["evaluate"][key] for key in ("checkpoint", "trt_engine")]
    value = json.loads(Path(next(filter(None, chosen))).read_text())["value"]
    if spec["evaluate"].get("input_height"):
        value += 1.0  # resized images score worse
    (directory / "results.json").write_text(json.dumps({"backend": f"quadratic {chosen}"}))
    metrics = {"val/epe": value, "val/bp1": value / (1 + value)}
    return Result("ok", metrics, {"results": directory / "results.json"})


def _export(spec: Mapping[str, Any], directory: Path) -> Result:
    target = spec["export"]["onnx_file"] or directory / "graph.onnx"
    return _copy("graph", spec["export"]["checkpoint"], target, 0.0)


def _engine(spec: Mapping[str, Any], directory: Path) -> Result:
    if spec["behaviour"]["engine_fails"]:
        return Result("failed", detail="no engine today")
    engine = spec["gen_trt_engine"]
    target = engine["trt_engine"] or directory / "engine.bin"
    return _copy("engine", engine["onnx_file"], target, spec["behaviour"]["engine_shift"])


def _copy(role: str, source: str, target: str | Path, shift: float) -> Result:
    content = json.loads(Path(source).read_text())
    Path(target).write_text(json.dumps(content | {"value": content["value"] + shift}))
    sidecar = Path(f"{target}.json")
    sidecar.write_text(json.dumps({"backend": "quadratic"}))
    return Result("ok", {}, {role: Path(target), "sidecar": sidecar})


def _pictures(spec: Mapping[str, Any], directory: Path) -> Result:
    import cv2
    import numpy as np

    rows = []
    for index in range(4):
        bar = {"low": 0.0, "high": 3.0, "unit": "px", "colors": ["#30123b", "#7a0403"]}
        row: dict[str, Any] = {"name": f"pair {index}", "quantity": "disparity"}
        row |= {"score": 1.0 + index, "metric": "epe", "unit": "px"}
        row |= {"scale": bar, "error_scale": bar}
        for shade, role in enumerate(("image", "truth", "prediction", "error")):
            row[role] = f"{index}_{role}.png"
            picture = np.full((24, 32, 3), 60 * shade + 10 * index, np.uint8)
            cv2.imwrite(str(directory / row[role]), picture)
        rows.append(row)
    (directory / "pictures.json").write_text(json.dumps(rows))
    return Result("ok", {}, {"pictures": directory / "pictures.json"})


def _defaults(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _defaults(child) if "properties" in child else child.get("default")
        for name, child in schema["properties"].items()
    }


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if nested else value
    return merged
