"""The promotion of a study's best trial, as a list of steps.

A step is data: the action it runs, the files it reads, the values it sets in the trial's spec.
Its outcome is an event of the study with a hash of everything it depended on, so a step that
succeeded with the same inputs is skipped and an interrupted promotion goes on where it was.

Checkpoint, graph and engine are scored on the same validation data. An engine has one input
size; where the validation images differ in size, the checkpoint is scored once more at that size,
and that score is the one the engine is compared with. Scores keep the trainer's units.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml

from automl.contract import Status, Trainable, find_trainable
from automl.errors import AutoMLError, NoResultError, PromotionError, TrainableError
from automl.events import BUNDLE_FORMAT_VERSION
from automl.gain import gain
from automl.objectives import Point, in_words
from automl.promote.isolated import ActionProcess, Outcome
from automl.promote.model_card import model_card
from automl.store import Study, TrialRecord, code_version
from automl.study_spec import get_path, merge, set_path

KNEE = "knee"  # of the front: what is promoted unless the user selects something else
PRECISION_KEY = "gen_trt_engine.tensorrt.data_type"
VERSIONED = ("torch", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "optuna", "ray")


class StepChoiceError(AutoMLError):
    """`--from`, `--to` or `--only` names no step, or skips one that never succeeded."""

    exit_code = 2


@dataclass(frozen=True)
class Materials:
    """What the steps so far have produced.

    Attributes:
        files: role (`checkpoint`, `baseline_checkpoint`, `graph`, `engine`, ...) -> file.
        metrics: step -> its metrics.
    """

    files: dict[str, Path] = field(default_factory=dict[str, Path])
    metrics: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the engine's input, in pixels: those of the validation images."""
        return int(self.metrics["check"]["height"]), int(self.metrics["check"]["width"])

    @property
    def mixed_sizes(self) -> bool:
        """Whether validation images reach the network in different sizes."""
        return bool(self.metrics["check"].get("mixed_sizes", 0.0))

    def engine_input(self) -> dict[str, Any]:
        """How images get to the engine's size where they do not get to it by themselves."""
        if not self.mixed_sizes:
            return {}
        height, width = self.size
        return {"evaluate.input_height": height, "evaluate.input_width": width}


@dataclass(frozen=True)
class Step:
    """One link of the chain.

    Attributes:
        name: as recorded, and as `--from`, `--to` and `--only` accept it.
        action: what the trainer is asked to do.
        does: sentence for plan and help.
        needs: roles of the files it reads.
        gives: role of a file it leaves -> role of the same file in `Materials.files`.
        sets: values it puts into the spec, by dotted path.
        copies: path of the spec -> path whose value it takes, where the spec has one.
        applies: whether it is part of this promotion.
        missing: what its files lack, in words; empty when they are as expected.
    """

    name: str
    action: str
    does: str
    needs: tuple[str, ...] = ()
    gives: Mapping[str, str] = field(default_factory=dict[str, str])
    sets: Callable[[Materials], dict[str, Any]] = lambda _: {}
    copies: Mapping[str, str] = field(default_factory=dict[str, str])
    applies: Callable[[Materials], bool] = lambda _: True
    missing: Callable[[Materials, Mapping[str, Path]], str] = lambda _materials, _files: ""


def _missing_pictures(materials: Materials, files: Mapping[str, Path]) -> str:
    """Each of the first validation samples has a prediction."""
    wanted = min(SAMPLES, int(materials.metrics["check"]["samples_val"]))
    items = _listed(files["pictures"]) if "pictures" in files else []
    made = sum((files["pictures"].parent / item["prediction"]).is_file() for item in items)
    return "" if made == wanted else f"{made} predictions of {wanted} samples"


def _listed(file: Path) -> list[dict[str, Any]]:
    """What `pictures.json` says of each sample."""
    return json.loads(file.read_text(encoding="utf-8"))


def _export_values(materials: Materials) -> dict[str, Any]:
    height, width = materials.size
    return {
        "export.checkpoint": str(materials.files["checkpoint"]),
        "export.input_height": height,
        "export.input_width": width,
    }


def _scores(role: str) -> Callable[[Materials], dict[str, Any]]:
    def values(materials: Materials) -> dict[str, Any]:
        file = str(materials.files[role])
        if role.endswith("checkpoint"):
            return {"evaluate.checkpoint": file, "evaluate.trt_engine": None}
        engine = {"evaluate.checkpoint": None, "evaluate.trt_engine": file}
        return engine | materials.engine_input()

    return values


STEPS = (
    Step("check", "check", "read all validation data and find the input size of the engine"),
    Step(
        "evaluate",
        "evaluate",
        "score the best trial's checkpoint on all validation data",
        needs=("checkpoint",),
        sets=_scores("checkpoint"),
    ),
    Step(
        "inference",
        "pictures",
        "predict the first validation samples with the best trial's checkpoint",
        needs=("checkpoint",),
        gives={"pictures": "pictures"},
        sets=_scores("checkpoint"),
        missing=_missing_pictures,
    ),
    Step(
        "evaluate_at_engine_size",
        "evaluate",
        "score the checkpoint at the engine's size (only where validation images differ in size)",
        needs=("checkpoint",),
        sets=lambda materials: _scores("checkpoint")(materials) | materials.engine_input(),
        applies=lambda materials: materials.mixed_sizes,
    ),
    Step(
        "export",
        "export",
        "write the ONNX graph and check it against the checkpoint",
        needs=("checkpoint",),
        gives={"graph": "graph", "sidecar": "graph_sidecar"},
        sets=_export_values,
        copies={"export.valid_iters": "model.valid_iters"},  # the graph does what was scored
    ),
    Step(
        "graph_evaluate",
        "evaluate",
        "score the graph on the same data",
        needs=("graph",),
        sets=_scores("graph"),
    ),
    Step(
        "gen_trt_engine",
        "gen_trt_engine",
        "build the engine from the graph",
        needs=("graph",),
        gives={"engine": "engine", "sidecar": "engine_sidecar"},
        sets=lambda materials: {"gen_trt_engine.onnx_file": str(materials.files["graph"])},
    ),
    Step(
        "trt_inference",
        "pictures",
        "predict the same samples with the engine",
        needs=("engine", "graph"),
        gives={"pictures": "engine_pictures"},
        sets=_scores("engine"),
        missing=_missing_pictures,
    ),
    Step(
        "trt_evaluate",
        "evaluate",
        "score the engine on the same data",
        needs=("engine", "graph"),
        sets=_scores("engine"),
    ),
    Step(
        "pictures_baseline",
        "pictures",
        "predict the same samples with the checkpoint of trial 0",
        needs=("baseline_checkpoint",),
        sets=_scores("baseline_checkpoint"),
        applies=lambda materials: "baseline_checkpoint" in materials.files,
    ),
)
BUNDLE_STEP = "bundle"
STEP_NAMES = (*(step.name for step in STEPS), BUNDLE_STEP)
STEP_SENTENCES = (
    *((step.name, step.does) for step in STEPS),
    (BUNDLE_STEP, "copy checkpoint, graph, engine and pictures with hashes; write the model card"),
)
PICTURE_DIRECTORIES = {
    "pictures_baseline": "baseline",
    "inference": "best",
    "trt_inference": "engine",
}
SAMPLES = 4  # that are drawn: `pictures` of the trainer


@dataclass(frozen=True)
class Bundle:
    """What a promotion leaves behind.

    Attributes:
        directory: the bundle, or None when the selected steps end before it.
        accepted: whether the scores of the engine are inside the limits.
        metrics: metric -> {native, checkpoint, graph, engine, difference, unit}.
        backends: who computed the scores of native, checkpoint, graph and engine.
        problems: why it was rejected, one sentence each.
    """

    directory: Path | None
    accepted: bool
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    backends: dict[str, str] = field(default_factory=dict[str, str])
    problems: tuple[str, ...] = ()


def promote(
    study: Study,
    trainable: str | Trainable = "depth_net",
    *,
    from_: str | None = None,
    to: str | None = None,
    only: str | None = None,
    select: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Run the chain for the study's best complete trial, or for the knee of its front.

    Args:
        study: opened for writing.
        trainable: name for `find_trainable`; actions run in processes of their own.
        from_: first step; the steps before it must have succeeded earlier.
        to: last step.
        only: the one step to run.
        select: `knee`, an objective whose best point is taken, or `TRIAL` or `TRIAL:SETTING`.
        say: told in words what happens.

    Raises:
        NoResultError: the study has no complete trial.
        PromotionError: a step failed.
        StepChoiceError: unknown step, or one that was skipped has never succeeded.
        TrainableError: it is not the trainer of this study.
    """
    name = trainable if isinstance(trainable, str) else _name_of(trainable)
    point = selected_point(study, select)
    if point.setting is not None:
        say(f"promoting {in_words(point, study.goals)}")
    with ActionProcess(name) as process:
        return _Promotion(study, point, process, name, say).run(_selected(from_, to, only))


def selected_point(study: Study, select: str | None = None) -> Point:
    """Return the trial, and its setting, that a selection means; see `promote`.

    Raises:
        NoResultError: there is nothing to promote.
        StepChoiceError: the selection names nothing that could be promoted.
    """
    point = study.chosen()
    if point is None:
        limits = ", ".join(map(str, study.goals.constraints))
        fault = f"no complete trial keeps {limits}" if study.points() else "no trial is complete"
        raise NoResultError(
            f"{study.directory}: {fault}, so there is nothing to promote. "
            "See `automl status` for how the trials ended"
        )
    if select in (None, KNEE):
        return point
    front = study.front() or [point]
    ends = {
        each.metric: min(front, key=lambda one: one.losses(study.goals)[place])
        for place, each in enumerate(study.goals.objectives)
        if study.goals.weighs
    }
    named = {one.name: one for one in study.points()} | ends
    whole = {str(trial.id): trial.id for trial in study.trials if study.value(trial) is not None}
    if select in whole:
        return Point(whole[select], None)
    if select not in named:
        allowed = [KNEE, *ends, *(one.name for one in front)]
        raise StepChoiceError(
            f"--select: got {select!r}; there are {', '.join(dict.fromkeys(allowed))} and every "
            "complete TRIAL or TRIAL:SETTING. Name one of them."
        )
    return named[select]


def record_check(study: Study, outcome: Outcome) -> None:
    """Record a successful `check` of the base spec, so that a promotion need not repeat it."""
    inputs_hash = _check_hash(study)
    before = study.promotion.get("check")
    if before is None or before["status"] != "ok" or before["inputs_hash"] != inputs_hash:
        study.append(
            {
                "kind": "promotion_step",
                "step": "check",
                "trial": None,
                "status": "ok",
                "inputs_hash": inputs_hash,
                "artifacts": {},
                "metrics": outcome.metrics,
                "detail": outcome.detail,
            }
        )


def _check_hash(study: Study) -> str:
    """Hash of what `check` depends on: the base spec and every annotation file it names."""
    spec = study.resolved.base_spec
    files = sorted({path for path in _data_files(spec) if path.is_file()})
    return _hash({"spec": spec, "files": [_digest(path) for path in files]})


def _data_files(tree: Any) -> Iterator[Path]:
    if isinstance(tree, Mapping):
        for key, value in cast("Mapping[str, Any]", tree).items():
            if key == "data_file":
                yield Path(str(value))
            yield from _data_files(value)
    elif isinstance(tree, list | tuple):
        for item in cast("Sequence[Any]", tree):
            yield from _data_files(item)


def _hash(depends_on: Mapping[str, Any]) -> str:
    text = json.dumps({**depends_on, "version": code_version()}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _name_of(trainable: Trainable) -> str:
    kind = type(trainable)
    return f"{kind.__module__}:{kind.__qualname__}"


def _selected(from_: str | None, to: str | None, only: str | None) -> tuple[str, ...]:
    for option, name in (("--from", from_), ("--to", to), ("--only", only)):
        if name is not None and name not in STEP_NAMES:
            raise StepChoiceError(
                f"{option}: got {name!r}, allowed {', '.join(STEP_NAMES)}. Name one of these steps."
            )
    if only is not None:
        if from_ is not None or to is not None:
            raise StepChoiceError(
                "--only: cannot be combined with --from or --to. Use one of them."
            )
        from_ = to = only
    first = STEP_NAMES.index(from_) if from_ else 0
    last = STEP_NAMES.index(to) if to else len(STEP_NAMES) - 1
    if first > last:
        raise StepChoiceError(f"--from {from_} comes after --to {to}. Exchange them.")
    return STEP_NAMES[first : last + 1]


class _Promotion:
    """One pass over the chain."""

    def __init__(
        self,
        study: Study,
        point: Point,
        process: ActionProcess,
        trainable: str,
        say: Callable[[str], None],
    ) -> None:
        self.study = study
        self.point = point
        self.best = study.trials[point.trial]
        self.process = process
        self.say = say
        self.materials = Materials()
        self.backends: dict[str, str] = {}
        self.hashes: dict[Path, str] = {}
        self.model = _model_facts(trainable, study.resolved.study.model)

    def run(self, selected: Sequence[str]) -> Bundle:
        self.materials.files["checkpoint"] = _final_checkpoint(self.study, self.best)
        baseline = self.study.baseline()
        if baseline is not None and baseline.checkpoint and baseline.checkpoint.is_file():
            self.materials.files["baseline_checkpoint"] = baseline.checkpoint
        for step in STEPS:
            if STEP_NAMES.index(step.name) > STEP_NAMES.index(selected[-1]):
                break
            if step.applies(self.materials):
                self._do(step, may_run=step.name in selected)
        if selected[-1] != BUNDLE_STEP:
            return Bundle(None, accepted=True)
        return self._bundle()

    # --- steps ---

    def _do(self, step: Step, *, may_run: bool) -> None:
        spec = self._spec(step)
        inputs_hash = self._inputs_hash(step, spec)
        event = self.study.promotion.get(step.name)
        if event is None or not self._still_holds(event, inputs_hash):
            if not may_run:
                raise StepChoiceError(
                    f"step {step.name}: has not succeeded with the present inputs, and the "
                    f"selected steps need it. Run `automl promote {self.study.name} --from "
                    f"{step.name}`"
                )
            event = self._run(step, spec, inputs_hash)
        else:
            self.say(f"{step.name}: unchanged, kept")
        self._take(step, event)

    def _run(self, step: Step, spec: dict[str, Any], inputs_hash: str) -> Mapping[str, Any]:
        self.say(f"{step.name}: {step.does}")
        directory = self._directory(step)
        shutil.rmtree(directory, ignore_errors=True)
        self.hashes = {
            path: digest
            for path, digest in self.hashes.items()
            if not path.is_relative_to(directory.resolve())
        }
        outcome = self.process.run(step.action, spec, directory)
        problem = _problem_of(step, outcome, self.materials)
        self.study.append(
            {
                "kind": "promotion_step",
                "step": step.name,
                "trial": self.best.id,
                "status": "failed" if problem else "ok",
                "inputs_hash": inputs_hash,
                "artifacts": {
                    role: {"path": self.study.relative(path), "sha256": self._sha256(path)}
                    for role, path in outcome.artifacts.items()
                    if path.is_file()
                },
                "metrics": outcome.metrics,
                "detail": problem or outcome.detail,
            }
        )
        if problem:
            raise PromotionError(
                f"promotion step {step.name} of trial {self.best.id}: {problem}\n"
                f"Files: {directory}. Try again with `automl promote {self.study.name}`"
            )
        return self.study.promotion[step.name]

    def _take(self, step: Step, event: Mapping[str, Any]) -> None:
        """Make an outcome, new or recorded, available to the steps after it."""
        artifacts = event["artifacts"].items()
        files = {role: self.study.absolute(item["path"]) for role, item in artifacts}
        for role, kept_as in step.gives.items():
            if role in files:
                self.materials.files[kept_as] = files[role]
        self.materials.metrics[step.name] = {
            name.removeprefix("val/"): value for name, value in event["metrics"].items()
        }
        self.backends[step.name] = _backend(files, event["detail"])

    def _still_holds(self, event: Mapping[str, Any], inputs_hash: str) -> bool:
        if event["status"] != "ok" or event["inputs_hash"] != inputs_hash:
            return False
        files = event["artifacts"].values()
        paths = [(self.study.absolute(item["path"]), item["sha256"]) for item in files]
        return all(path.is_file() and self._sha256(path) == digest for path, digest in paths)

    def _spec(self, step: Step) -> dict[str, Any]:
        """The best trial's spec, scored on the validation data, with the step's own values."""
        resolved = self.study.resolved
        if step.name == "check":
            return merge(resolved.base_spec, {})
        spec = self.study.spec_of(
            Point(0, None) if step.name == "pictures_baseline" else self.point
        )
        self._score_validation_data(spec)
        for path, source in step.copies.items():
            if (value := get_path(spec, source)) is not None:
                set_path(spec, path, value)
        for path, value in step.sets(self.materials).items():
            set_path(spec, path, value)
        return spec

    def _score_validation_data(self, spec: dict[str, Any]) -> None:
        """Let the test split be the validation split, with its batch size and workers."""
        keys: Mapping[str, str] = self.model["data_keys"]
        sections = {split: keys[split].rpartition(".")[0] for split in ("val", "test")}
        if sections["val"] != sections["test"]:
            test: dict[str, Any] = get_path(spec, sections["test"]) or {}
            set_path(spec, sections["test"], merge(test, get_path(spec, sections["val"])))
        set_path(spec, keys["test"], get_path(spec, keys["val"]))

    def _inputs_hash(self, step: Step, spec: Mapping[str, Any]) -> str:
        if step.name == "check":
            return _check_hash(self.study)
        sources: list[dict[str, str]] = get_path(spec, self.model["data_keys"]["val"])
        files = [self.materials.files[role] for role in step.needs]
        files += [Path(source["data_file"]) for source in sources]
        hashes = [self._sha256(file) for file in files if file.is_file()]
        text = json.dumps(spec, sort_keys=True, default=str)
        place = json.dumps(str(self.study.absolute("")))[1:-1]  # a moved study hashes the same
        return _hash({"action": step.action, "spec": text.replace(place, ""), "files": hashes})

    def _directory(self, step: Step) -> Path:
        if step.name in PICTURE_DIRECTORIES:
            return self.study.directory / "pictures" / PICTURE_DIRECTORIES[step.name]
        return self.study.directory / "promotion" / step.name

    def _sha256(self, path: Path) -> str:
        """Hash of a file; each file is read once per promotion."""
        path = path.resolve()
        if path not in self.hashes:
            with path.open("rb") as file:
                self.hashes[path] = hashlib.file_digest(file, "sha256").hexdigest()
        return self.hashes[path]

    # --- the bundle ---

    def _bundle(self) -> Bundle:
        resolved = self.study.resolved
        spec = self.study.spec_of(self.point)
        precision = get_path(spec, PRECISION_KEY) or "fp32"
        usual = self.model.get("parity_limits", {}).get(precision, {})
        limits = {**usual, **resolved.study.promote.limits}
        table = self._parity()
        problems = tuple(_outside(table, limits, asked_for=resolved.study.promote.limits))
        directory = self.study.directory / "bundle"
        self.say(f"{BUNDLE_STEP}: copy the files and verify their hashes")
        partial = directory.with_name("bundle.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        found = gain(self.study)
        content: dict[str, Any] = {
            "format_version": BUNDLE_FORMAT_VERSION,
            "model": resolved.study.model,
            "study": self.study.name,
            "trial": self.best.id,
            "params": self.best.params,
            **self._weighed(),
            "accepted": not problems,
            "rejected": list(problems),
            "gain": found.to_dict() if found is not None else None,
            "steps": [self._step_record(name) for name in self.materials.metrics],
            "metrics": table,
            "limits": {"precision": precision, **limits},
            "backends": {role: self.backends[name] for role, name in self._scored().items()},
            "files": self._copy(partial, spec),
            "pictures": self._copy_pictures(partial),
            "versions": dict(_versions()),
            "spec": spec,
        }
        content["files"]["model_card"] = self._write_card(partial, content)
        _write_text(partial / "bundle.json", json.dumps(content, indent=2, default=str) + "\n")
        _exchange(partial, directory)
        self.study.append(
            {
                "kind": "promotion_step",
                "step": BUNDLE_STEP,
                "trial": self.best.id,
                "status": "rejected" if problems else "ok",
                "inputs_hash": "",
                "artifacts": {"bundle": {"path": "bundle/bundle.json"}},
                "metrics": {},
                "detail": "; ".join(problems),
            }
        )
        return Bundle(directory, not problems, table, content["backends"], problems)

    def _weighed(self) -> dict[str, Any]:
        """The setting that is promoted, what it is worth, and the front it was chosen from."""
        goals, setting = self.study.goals, self.point.setting
        content: dict[str, Any] = {}
        if setting is not None:
            content["setting"] = {setting.field: setting.value}
        if goals.weighs:
            found = [each for each in self.study.points() if each.name == self.point.name]
            content["values"] = dict(found[0].values) if found else {}
            content["constraints"] = [str(limit) for limit in goals.constraints]
            content["front"] = [{"point": each.name, **each.values} for each in self.study.front()]
        return content

    def _scored(self) -> dict[str, str]:
        """What was scored -> the step whose score is compared."""
        scored = {
            "native": "evaluate",
            "checkpoint": "evaluate_at_engine_size" if self.materials.mixed_sizes else "evaluate",
            "graph": "graph_evaluate",
            "engine": "trt_evaluate",
        }
        return {role: step for role, step in scored.items() if step in self.materials.metrics}

    def _parity(self) -> dict[str, dict[str, Any]]:
        """Metric -> values of checkpoint, graph and engine at the engine's size, and difference.

        `native` is the checkpoint's score at the images' own sizes.
        """
        scores = {role: self.materials.metrics[step] for role, step in self._scored().items()}
        declared = self.model.get("metrics", {})
        table: dict[str, dict[str, Any]] = {}
        for metric in scores["checkpoint"]:
            if all(metric in values for values in scores.values()):
                values = {role: of[metric] for role, of in scores.items()}
                difference = values["engine"] - values["checkpoint"]
                facts = declared.get(f"val/{metric}", {})
                unit = {key: facts.get(key, "") for key in ("unit", "of")}
                table[metric] = {**values, "difference": difference, **unit}
        return table

    def _step_record(self, name: str) -> dict[str, Any]:
        event = self.study.promotion[name]
        keys = ("step", "status", "time", "inputs_hash", "detail")
        return {key: event[key] for key in keys}

    def _copy(self, target: Path, spec: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Copy the files, verify the copies, and describe them by role."""
        roles = ("checkpoint", "graph", "graph_sidecar", "engine", "engine_sidecar")
        files: dict[str, dict[str, Any]] = {}
        for role in roles:
            source = self.materials.files.get(role)
            if source is None:
                continue
            name = "checkpoint" + source.suffix if role == "checkpoint" else source.name
            files[role] = self._copied(source, target, name)
        _write_text(target / "spec.yaml", yaml.safe_dump(dict(spec), sort_keys=False))
        files["spec"] = _describe(target, "spec.yaml")
        return files

    def _copied(self, source: Path, target: Path, name: str) -> dict[str, Any]:
        copy = target / name
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, copy)
        if _digest(copy) != self._sha256(source):
            raise PromotionError(
                f"{copy}: the copy differs from {source}. Check the disk and promote again"
            )
        return _describe(target, name)

    def _copy_pictures(self, target: Path) -> list[dict[str, Any]]:
        """Copy the pictures of every sample: what the checkpoint made of it, and the engine."""
        roles: dict[str, tuple[str, ...]] = {
            "pictures": ("image", "truth", "prediction", "error"),
            "engine_pictures": ("prediction",),
        }
        copies: list[dict[str, Any]] = []
        for role, kinds in roles.items():
            listed = self.materials.files.get(role)
            for item in _listed(listed) if listed else ():
                for kind in kinds:
                    source = cast("Path", listed).parent / item[kind]
                    who = "engine_" if role == "engine_pictures" else ""
                    name = f"pictures/{who}{source.name}"
                    title = f"{item['name']}: {who.replace('_', ' ')}{kind}"
                    copies.append({"title": title, **self._copied(source, target, name)})
        return copies

    def _write_card(self, target: Path, content: Mapping[str, Any]) -> dict[str, Any]:
        sidecar = self.materials.files.get("graph_sidecar")
        card = model_card(
            content,
            facts=self.model,
            counts=self.materials.metrics["check"],
            sidecar=json.loads(sidecar.read_text(encoding="utf-8")) if sidecar else {},
        )
        _write_text(target / "model_card.md", card)
        return _describe(target, "model_card.md")


def _model_facts(trainable: str, model: str) -> dict[str, Any]:
    path = find_trainable(trainable).schema_dir / model / "model.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainableError(
            f"{path}: cannot be read, so the trainer {trainable} does not know the study's model "
            f"{model}: {error}. Name the trainer of this study with --trainable"
        ) from error


def _final_checkpoint(study: Study, trial: TrialRecord) -> Path:
    """The checkpoint of exactly the epoch that made the trial the best."""
    if trial.checkpoint is None or not trial.checkpoint.is_file():
        raise PromotionError(
            f"{study.directory}: the checkpoint of trial {trial.id} ({trial.checkpoint}) is gone. "
            "Restore it, or run the study again under another --name"
        )
    return trial.checkpoint


def _problem_of(step: Step, outcome: Outcome, materials: Materials) -> str:
    """Why an outcome does not count as success; empty when it does."""
    if outcome.status != Status.OK:
        return f"{outcome.status}: {outcome.detail}"
    wrong = [name for name, value in outcome.metrics.items() if not math.isfinite(value)]
    if wrong:
        return f"not finite: {', '.join(wrong)}"
    missing = [role for role in step.gives if role not in outcome.artifacts]
    missing = [role for role in missing if role != "sidecar"]
    if missing:
        return f"the trainer left no {', '.join(missing)}"
    return step.missing(materials, outcome.artifacts)


def _backend(files: Mapping[str, Path], detail: str) -> str:
    """Who computed a score, in the trainer's words."""
    results = files.get("results")
    if results is not None:
        recorded: dict[str, Any] = json.loads(results.read_text(encoding="utf-8"))
        if "backend" in recorded:
            return str(recorded["backend"])
    return detail


def _outside(
    table: Mapping[str, Mapping[str, Any]],
    limits: Mapping[str, float],
    *,
    asked_for: Mapping[str, float],
) -> Iterator[str]:
    """One sentence for each limit that is not kept, or cannot be judged."""
    for metric, limit in limits.items():
        if metric not in table:
            if metric in asked_for:
                yield f"{metric}: promote.limits names it, but it was not scored"
            continue
        row = table[metric]
        for role in ("graph", "engine"):
            difference = abs(row[role] - row["checkpoint"])
            if not difference <= limit:
                yield (
                    f"{metric}: {role} {row[role]:.4g} differs from the checkpoint's "
                    f"{row['checkpoint']:.4g} by {difference:.4g} {row['unit']}, allowed {limit:g}"
                )


def _versions() -> Iterator[tuple[str, str]]:
    yield "depthtune", code_version()
    yield "python", platform.python_version()
    for name in VERSIONED:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _describe(directory: Path, name: str) -> dict[str, Any]:
    path = directory / name
    return {"path": name, "sha256": _digest(path), "bytes": path.stat().st_size}


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _exchange(new: Path, place: Path) -> None:
    """Put a finished directory in place of an older one; a kill leaves one of the two."""
    old = place.with_name(place.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    new.rename(place)
    shutil.rmtree(old, ignore_errors=True)
