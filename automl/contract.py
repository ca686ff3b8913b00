"""What a trainer offers to a study, and what a study offers to a trainer.

The contract is structural: a trainer imports nothing from here. It returns any object with the
attributes of `ActionResult`; `Status` crosses the boundary as its lower-case word. An epoch is
the number of finished epochs, counted from 1. `automl.contract_suite` checks a trainer.

Actions a study uses: `train`, `evaluate`, `export`, `gen_trt_engine` (verbs of the trainer),
`measure` (parameters, graph size and latency of a structure, without training; names below),
`check` (validates the spec and reads all training and validation data; metrics `samples_train`,
`samples_val`, `height`, `width`, `mixed_sizes`; all faults in `detail`) and `pictures` (writes
pictures of the first validation samples and `pictures.json`).

A trainer that knows, without training again, what a metric would be with another value of a field
of the spec reports it as `<field>=<value>/<metric>` with its last epoch: a network that refines its
prediction step by step is scored after each step in one pass. A study may promote such a setting.

A `train` that starts from weights which fit only in part (`allow_partial_load`) writes `NOT_LOADED`
beside its checkpoints: the tensors that did not get stored values, one per line.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from automl.errors import TrainableError

ENTRY_POINT_GROUP = "automl.trainables"
RESUME_KEY = "train.resume_training_checkpoint_path"  # a study sets it: train on from this file
SEED_KEY = "train.seed"  # a study sets it to repeat a run on another seed
NOT_LOADED = "not_loaded.txt"
PEAK_MEMORY = "train/peak_memory_mb"  # the largest `peak_memory_mb` that a trial reports


class Status(StrEnum):
    """How one action ended."""

    OK = "ok"
    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out_of_memory"
    INVALID_SPEC = "invalid_spec"
    FAILED = "failed"


@dataclass(frozen=True)
class Objective:
    """A metric with the direction and unit its trainer declares.

    Attributes:
        metric: name as reported, e.g. `val/epe`.
        direction: whether smaller or larger values are better.
        unit: e.g. `px`; empty when the metric has none.
        of: what a metric without unit is a share of, e.g. `depth`; empty where it needs no saying.
    """

    metric: str
    direction: Literal["minimize", "maximize"]
    unit: str = ""
    of: str = ""

    @property
    def unit_words(self) -> str:
        """`px`, `of depth` or nothing; for titles, not beside every number."""
        return self.unit or (f"of {self.of}" if self.of else "")

    def to_dict(self) -> dict[str, str]:
        """Return its attributes, `of` only where there is something to say."""
        return {key: value for key, value in vars(self).items() if value or key != "of"}

    def loss(self, value: float) -> float:
        """Return the value turned so that smaller is better."""
        return value if self.direction == "minimize" else -value


class Setting(NamedTuple):
    """A value of a field of the spec that a finished trial can be run with."""

    field: str
    value: int

    def __str__(self) -> str:
        return f"{self.field}={self.value}"


_SETTING = re.compile(r"([\w.]+)=(\d+)/(.+)")


def split_settings(
    metrics: Mapping[str, float],
) -> tuple[dict[str, float], dict[Setting, dict[str, float]]]:
    """Return the metrics of the spec as it is, and those of its other settings."""
    plain: dict[str, float] = {}
    others: dict[Setting, dict[str, float]] = {}
    for name, value in metrics.items():
        match = _SETTING.fullmatch(name)
        if match is None:
            plain[name] = value
        else:
            setting = Setting(match[1], int(match[2]))
            others.setdefault(setting, {})[match[3]] = value
    return plain, others


class Report(Protocol):
    """Called by the trainer after each validation; its answer True means: stop training now."""

    def __call__(self, epoch: int, metrics: Mapping[str, float], checkpoint: Path | None) -> bool:
        """Record one finished epoch.

        Args:
            epoch: finished epochs, from 1, consecutive (a resumed run continues the count).
            metrics: the objective and whatever else is known; `seconds` is the wall time of the
                epoch including validation. `<field>=<value>/<metric>`: see above.
            checkpoint: written completely before the call; training resumes from it.
        """
        ...


class ActionResult(Protocol):
    """What one action leaves behind."""

    @property
    def status(self) -> str:
        """A value of `Status`."""
        ...

    @property
    def metrics(self) -> dict[str, float]:
        """Scores of the action, under the names the trainer declares."""
        ...

    @property
    def artifacts(self) -> dict[str, Path]:
        """Files written, by role (`checkpoint`, `graph`, `engine`, ...)."""
        ...

    @property
    def detail(self) -> str:
        """One or more lines for the user: the reason when the status is not ok."""
        ...


@runtime_checkable
class Trainable(Protocol):
    """A trainer whose hyperparameters can be studied."""

    @property
    def schema_dir(self) -> Path:
        """Folder with `manifest.json` and `<model>/{model.json, train.schema.json}`."""
        ...

    def run(
        self, action: str, spec: Mapping[str, Any], results_dir: Path, report: Report | None
    ) -> ActionResult:
        """Do one action with a complete spec; never raises for what the spec or data cause."""
        ...

    def objective(self, model: str) -> Objective:
        """Return the declared objective (any object with metric, direction, unit)."""
        ...

    def template(self, model: str, action: str) -> dict[str, Any]:
        """Return the packaged spec of an action: what a study's base spec starts from."""
        ...

    def embedded_data(self, model: str, directory: Path, profile: str = "cpu") -> dict[str, str]:
        """Write the trainer's own small data for a model when missing; `gpu` may be larger.

        Returns:
            `{"train": "CLASS:FILE", "val": "CLASS:FILE"}`.
        """
        ...


def find_trainable(name: str = "depth_net") -> Trainable:
    """Load and construct a trainer.

    Args:
        name: an entry point of the group `automl.trainables`, or `module:Class`.

    Raises:
        TrainableError: unknown name, or the class does not fulfil the contract.
    """
    trainable = _load(name)()
    if not isinstance(trainable, Trainable):
        raise TrainableError(
            f"trainable {name}: {type(trainable).__name__} lacks a part of the contract"
            " automl.contract.Trainable (schema_dir, run, objective, template, embedded_data)."
            " Add the missing part"
        )
    return trainable


def _load(name: str) -> Any:
    if ":" in name:
        module, _, attribute = name.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise TrainableError(f"trainable {name}: cannot be imported: {error}") from error
    known = entry_points(group=ENTRY_POINT_GROUP)
    if name not in known.names:
        names = ", ".join(sorted(known.names)) or "none"
        raise TrainableError(
            f"trainable {name}: not installed (installed: {names})."
            " Install the package that offers it, for this project: pip install -e ."
        )
    return known[name].load()
