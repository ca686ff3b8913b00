"""Studies of the quadratic for tests: a resolved study, and a runner of a few lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from automl.algorithms.table import make_algorithm
from automl.budget import Budget
from automl.objectives import resolve_goals
from automl.space import build_space, read_fields
from automl.store import ResolvedStudy, Study
from automl.study_spec import StudySpec, base_spec, get_path, study_from_dict
from tests.automl.quadratic import Quadratic

MODEL_DIR = Quadratic.schema_dir / "quadratic"


def study_spec(**keys: Any) -> StudySpec:
    tree = {"name": "s", "model": "quadratic", "profile": "cpu", "budget": {"trials": 6}, **keys}
    if isinstance(tree.get("algorithm"), str):
        tree["algorithm"] = {"name": tree["algorithm"]}
    return study_from_dict(tree, "test")


def resolved(directory: Path, **keys: Any) -> ResolvedStudy:
    trainer, study = Quadratic(), study_spec(**keys)
    model = json.loads((MODEL_DIR / "model.json").read_text())
    data = trainer.embedded_data("quadratic", directory / "data")
    base = base_spec(study, trainer.template("quadratic", "train"), model, data)
    schema = json.loads((MODEL_DIR / "train.schema.json").read_text())
    space = build_space(read_fields(schema), study, base, model["weight_keys"])
    full = get_path(base, model["fidelity"])
    return ResolvedStudy(study, base, space, resolve_goals(study, model), full)


def start(study: Study, trial: int, params: dict[str, Any], resumed_from: int = 0) -> None:
    study.append({"kind": "trial_started", "trial": trial, "params": params, "seed": 0,
                  "attempt": 1, "resumed_from_epoch": resumed_from, "cause": "new"})  # fmt: skip


def finish_epoch(study: Study, trial: int, epoch: int, value: float, **more: Any) -> None:
    study.append({"kind": "epoch", "trial": trial, "epoch": epoch, "rung": None,
                  "metrics": {"val/epe": value, "seconds": 2.0}, "checkpoint": f"{epoch}.pth",
                  "decision": "continue", **more})  # fmt: skip


def end(study: Study, trial: int, state: str, detail: str = "") -> None:
    study.append({"kind": "trial_ended", "trial": trial, "state": state, "detail": detail})


class Killed(Exception):
    """The driver is gone."""


def run(study: Study, kill_after: int | None = None) -> None:
    """Run trials one after another, resuming what is running; `kill_after` events, be gone."""
    algorithm = make_algorithm(study.resolved.study, study.resolved.space, study)
    budget = Budget.of(study.resolved.study)
    limit = None if kill_after is None else len(study.events) + kill_after
    while study.running() or budget.exhausted(study) is None:
        if study.running():
            trial = study.running()[0]
            start(study, trial.id, trial.params, trial.last_epoch)
        else:
            proposal = algorithm.ask()
            if proposal is None:
                return
            start(study, *proposal)
        _train(study, algorithm, limit)


def _train(study: Study, algorithm: Any, limit: int | None) -> None:
    trial = study.running()[0]
    spec = study.resolved.space.apply(study.resolved.base_spec, trial.params)
    spec["train"]["resume_training_checkpoint_path"] = trial.checkpoint and str(trial.checkpoint)

    def report(epoch: int, metrics: Any, checkpoint: Path | None) -> bool:
        if limit is not None and len(study.events) >= limit:
            raise Killed
        decision = algorithm.stop(trial.id, epoch, metrics["val/epe"])
        study.append({"kind": "epoch", "trial": trial.id, "epoch": epoch, "metrics": metrics,
                      "checkpoint": checkpoint, "decision": decision.action,
                      "rung": decision.rung})  # fmt: skip
        return decision.action == "stop"

    if study.goals.costs and trial.costs is None:
        costs = Quadratic().run("measure", spec, study.trial_directory(trial.id)).metrics
        study.append({"kind": "trial_measured", "trial": trial.id, "metrics": costs, "detail": ""})
    if not trial.epochs or trial.epochs[-1].decision == "continue":
        result = Quadratic().run("train", spec, study.trial_directory(trial.id), report)
        if result.status != "ok":
            end(study, trial.id, result.status, result.detail)
            return
    states = {"stop": "stopped", "complete": "complete"}
    end(study, trial.id, states[trial.epochs[-1].decision])
