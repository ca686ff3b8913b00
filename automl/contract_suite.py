"""The checks every trainer must pass before it is studied; third parties run them on their own.

    python -m automl.contract_suite my_package:MyTrainer --model my_model train.batch_size=1

runs them on the trainer's own data and template, three epochs long. In a test:

    from automl.contract_suite import check_trainable
    check_trainable(MyTrainer(), "my_model", spec, tmp_path)

`spec` is a complete, quick training spec of at least three epochs. Nothing here needs a test
framework: a broken rule raises `ContractError`, whose message says which rule and what was seen.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from automl.contract import (
    PEAK_MEMORY,
    RESUME_KEY,
    SEED_KEY,
    ActionResult,
    Status,
    Trainable,
    find_trainable,
    split_settings,
)
from automl.errors import AutoMLError, TrainableError
from automl.space import read_fields
from automl.study_spec import base_spec, get_path, merge, parse_yaml, set_path, study_from_dict

EPOCHS = 3


class ContractError(TrainableError):
    """A trainer breaks a rule of `automl.contract`."""


@dataclass
class Recorder:
    """A report that remembers what it was told and stops after `stop_after` epochs."""

    stop_after: int | None = None
    epochs: list[int] = field(default_factory=list[int])
    metrics: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    checkpoints: list[Path | None] = field(default_factory=list["Path | None"])
    existed: list[bool] = field(default_factory=list[bool])

    def __call__(self, epoch: int, metrics: Mapping[str, float], checkpoint: Path | None) -> bool:
        """Remember one epoch."""
        self.epochs.append(epoch)
        self.metrics.append(dict(metrics))
        self.checkpoints.append(checkpoint)
        self.existed.append(checkpoint is not None and checkpoint.is_file())
        return epoch == self.stop_after


def check_trainable(
    trainable: Trainable,
    model: str,
    spec: Mapping[str, Any],
    directory: Path,
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Run every check.

    Args:
        trainable: the trainer.
        model: one of its model keys.
        spec: a complete training spec of at least three epochs that takes seconds.
        directory: scratch space.
        say: told the rule that is checked next.

    Raises:
        ContractError: the first broken rule.
    """
    checks: dict[Callable[..., None], tuple[Any, ...]] = {
        check_declarations: (trainable, model),
        check_data: (trainable, spec, directory / "data"),
        check_reports: (trainable, model, spec, directory / "reports"),
        check_stop_and_resume: (trainable, model, spec, directory / "resume"),
        check_seed: (trainable, model, spec, directory / "seed"),
        check_costs: (trainable, model, spec, directory / "costs"),
        check_invalid_spec: (trainable, spec, directory / "invalid"),
    }
    for check, arguments in checks.items():
        say((check.__doc__ or "").partition("\n")[0])
        check(*arguments)


def check_declarations(trainable: Trainable, model: str) -> None:
    """Schema, model file, template and objective exist and agree with each other."""
    model_file = trainable.schema_dir / model / "model.json"
    declared = json.loads(model_file.read_text(encoding="utf-8"))
    schema_file = trainable.schema_dir / model / "train.schema.json"
    fields = read_fields(json.loads(schema_file.read_text(encoding="utf-8")))
    _require(any(item.searched_by_default for item in fields), f"{schema_file} searches nothing")
    objective = trainable.objective(model)
    words = ("minimize", "maximize")
    _require(objective.direction in words, f"objective direction is {objective.direction!r}")
    metrics = declared["metrics"]
    _require(objective.metric in metrics, f"objective {objective.metric} is not a declared metric")
    same = metrics[objective.metric]["direction"] == objective.direction
    _require(same, f"{model_file} and objective() declare different directions")
    paths = {item.path for item in fields}
    known = declared["fidelity"] in paths
    _require(known, f"fidelity {declared['fidelity']} is not a field of {schema_file}")
    template = trainable.template(model, "train")
    _require(isinstance(get_path(template, declared["fidelity"]), int), "template has no epochs")


def check_costs(trainable: Trainable, model: str, spec: Mapping[str, Any], directory: Path) -> None:
    """A trainer that declares costs measures them without training."""
    declared = json.loads((trainable.schema_dir / model / "model.json").read_text("utf-8"))
    names = set(declared.get("costs", {})) - {PEAK_MEMORY}
    if not names:
        return
    _require("sections" in declared.get("structure", {}), "model.json has costs but no structure")
    directory.mkdir(parents=True, exist_ok=True)
    result = trainable.run("measure", spec, directory, None)
    _require(result.status == Status.OK, f"measure ended {result.status}: {result.detail}")
    plain, others = split_settings(result.metrics)
    _require(set(plain) == names, f"measure told {sorted(plain)}, declared are {sorted(names)}")
    unknown = {name for metrics in others.values() for name in metrics} - names
    _require(not unknown, f"measure told {sorted(unknown)} of settings, which are not declared")


def check_reports(
    trainable: Trainable, model: str, spec: Mapping[str, Any], directory: Path
) -> None:
    """A full run reports every epoch once, from 1, with a complete checkpoint and its objective."""
    recorder = Recorder()
    result = _train(trainable, spec, directory, recorder)
    _require(result.status == Status.OK, f"training ended {result.status}: {result.detail}")
    full = get_path(spec, _fidelity(trainable, model))
    expected = list(range(1, full + 1))
    _require(recorder.epochs == expected, f"reported epochs {recorder.epochs}, not {expected}")
    _require(all(recorder.existed), "a reported checkpoint did not exist during the report")
    metric = trainable.objective(model).metric
    for epoch, metrics in zip(recorder.epochs, recorder.metrics, strict=True):
        value = metrics.get(metric, math.nan)
        _require(math.isfinite(value), f"epoch {epoch}: {metric} is {value}")
        numbers = all(type(item) in (float, int) for item in metrics.values())
        _require(numbers, f"epoch {epoch}: metrics must be plain numbers, got {metrics}")
        _require(metrics.get("seconds", -1.0) >= 0, f"epoch {epoch}: seconds is missing")
    again = Recorder()
    _train(trainable, spec, directory.with_name("reports_again"), again)
    values = [[run[metric] for run in record.metrics] for record in (recorder, again)]
    _require(values[0] == values[1], f"two runs of one spec differ: {values}")


def check_stop_and_resume(
    trainable: Trainable, model: str, spec: Mapping[str, Any], directory: Path
) -> None:
    """A report that says stop ends training; from its checkpoint the epochs go on."""
    first = Recorder(stop_after=1)
    result = _train(trainable, spec, directory, first)
    _require(result.status == Status.OK, f"a stopped run ended {result.status}: {result.detail}")
    _require(first.epochs == [1], f"told to stop after epoch 1, reported {first.epochs}")
    checkpoint = first.checkpoints[0]
    _require(checkpoint is not None and checkpoint.is_file(), "the last checkpoint is gone")
    resumed_spec = merge(spec, {})
    set_path(resumed_spec, RESUME_KEY, str(checkpoint))
    second = Recorder()
    result = _train(trainable, resumed_spec, directory, second)
    _require(result.status == Status.OK, f"a resumed run ended {result.status}: {result.detail}")
    full = get_path(spec, _fidelity(trainable, model))
    expected = list(range(2, full + 1))
    _require(second.epochs == expected, f"resumed after 1, reported {second.epochs}")


def check_seed(trainable: Trainable, model: str, spec: Mapping[str, Any], directory: Path) -> None:
    """Where the spec has a seed, training on another one works (a study repeats runs so)."""
    used = get_path(spec, SEED_KEY)
    if used is None:
        return
    other = merge(spec, {})
    set_path(other, SEED_KEY, used + 1)
    recorder = Recorder(stop_after=1)
    result = _train(trainable, other, directory, recorder)
    _require(result.status == Status.OK, f"with {SEED_KEY} {used + 1} training ended"
             f" {result.status}: {result.detail}")  # fmt: skip
    _require(recorder.epochs == [1], f"with {SEED_KEY} {used + 1}: reported {recorder.epochs}")


def check_invalid_spec(trainable: Trainable, spec: Mapping[str, Any], directory: Path) -> None:
    """An unknown key is an outcome named invalid_spec that says the key; nothing is raised."""
    wrong = merge(spec, {"no_such_section": {"key": 1}})
    for action in ("train", "check"):
        result = trainable.run(action, wrong, directory, None)
        invalid = result.status == Status.INVALID_SPEC
        _require(invalid, f"{action} with an unknown key ended {result.status}")
        _require("no_such_section" in result.detail, f"detail hides the key: {result.detail}")


def check_data(trainable: Trainable, spec: Mapping[str, Any], directory: Path) -> None:
    """`check` counts the samples of both splits."""
    result = trainable.run("check", spec, directory, None)
    _require(result.status == Status.OK, f"check ended {result.status}: {result.detail}")
    for name in ("samples_train", "samples_val"):
        _require(result.metrics.get(name, 0) > 0, f"check counted no {name}")


def _train(
    trainable: Trainable, spec: Mapping[str, Any], directory: Path, report: Recorder
) -> ActionResult:
    directory.mkdir(parents=True, exist_ok=True)
    return trainable.run("train", spec, directory, report)


def _fidelity(trainable: Trainable, model: str) -> str:
    return _model_file(trainable, model)["fidelity"]


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise ContractError(problem)


# --- on the command line ------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Check a trainer by name; returns 0 when it passes, 1 with the first broken rule."""
    parser = argparse.ArgumentParser(
        prog="python -m automl.contract_suite",
        description="Check that a trainer can be studied. It trains a few times, three epochs each",
    )
    parser.add_argument("trainable", metavar="NAME", help="module:Class, or an entry point")
    parser.add_argument("--model", help="one of its model keys (default: the only one)")
    parser.add_argument("override", nargs="*", metavar="key.path=value", help="change of the spec")
    arguments = parser.parse_intermixed_args(argv)
    try:
        trainable = find_trainable(arguments.trainable)
        model = arguments.model or _only_model(trainable)
        with tempfile.TemporaryDirectory() as scratch:
            spec = quick_spec(trainable, model, Path(scratch), arguments.override)
            check_trainable(trainable, model, spec, Path(scratch), _say)
    except AutoMLError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    _say(f"{arguments.trainable} fulfils the contract with model {model}.")
    return 0


def quick_spec(
    trainable: Trainable, model: str, directory: Path, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the spec that a study of the trainer's own data starts from, three epochs long.

    Raises:
        ContractError: an override is not `key.path=value`.
    """
    declared = _model_file(trainable, model)
    plain = {"name": model, "model": model, "profile": "cpu", "budget": {"trials": 1}}
    data = trainable.embedded_data(model, directory / "embedded")
    template = trainable.template(model, "train")
    spec = base_spec(study_from_dict(plain, "contract suite"), template, declared, data)
    set_path(spec, declared["fidelity"], EPOCHS)
    for override in overrides:
        path, equals, value = override.partition("=")
        _require(bool(path and equals), f"{override}: write key.path=value")
        set_path(spec, path, parse_yaml(value))
    return spec


def _only_model(trainable: Trainable) -> str:
    models = sorted(file.parent.name for file in trainable.schema_dir.glob("*/model.json"))
    _require(len(models) == 1, f"{trainable.schema_dir} has the models {models}: choose by --model")
    return models[0]


def _model_file(trainable: Trainable, model: str) -> dict[str, Any]:
    path = trainable.schema_dir / model / "model.json"
    _require(path.is_file(), f"{path} is missing")
    return json.loads(path.read_text(encoding="utf-8"))


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
