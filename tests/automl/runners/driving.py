"""Whole studies over the quadratic trainer, in this process or as a program of its own.

`python -m tests.automl.runners.driving '{"root": DIR, ...}'` opens or resumes a study and runs it
to its end, as `automl study` does; the keys are the arguments of `open_quadratic`, plus `runner`.
It ends with the exit code of `automl study`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from automl.algorithms.table import Algorithm, make_algorithm
from automl.errors import AutoMLError
from automl.objectives import resolve_goals
from automl.space import build_space, read_fields
from automl.store import ResolvedStudy, Study, open_study
from automl.study_spec import base_spec, merge, set_path, study_from_dict
from tests.automl.quadratic import NAME, SCHEMAS, Quadratic

MODEL = "quadratic"


def open_quadratic(
    root: Path,
    *,
    trials: int = 6,
    epochs: int = 6,
    rungs: tuple[int, ...] = (2, 4),
    behaviour: Mapping[str, Any] | None = None,
    spec: Mapping[str, Any] | None = None,
    **study_keys: Any,
) -> Study:
    """Create or resume a study in `root/study`; its trials are those of the quadratic."""
    trainer = Quadratic()
    tree = {
        "name": "study",
        "model": MODEL,
        "profile": "cpu",
        "budget": {"trials": trials},
        "algorithm": {"name": "asha", "rungs": list(rungs)},
        "resources": {"max_concurrent": 2},
    }
    study = study_from_dict(merge(tree, study_keys), "test")
    model = json.loads((SCHEMAS / MODEL / "model.json").read_text())
    schema = json.loads((SCHEMAS / MODEL / "train.schema.json").read_text())
    template = merge(trainer.template(MODEL, "train"), spec or {})
    base = base_spec(study, template, model, trainer.embedded_data("quadratic", root / "data"))
    set_path(base, "train.num_epochs", epochs)
    base = merge(base, {"behaviour": behaviour or {}})
    space = build_space(read_fields(schema), study, base, model["weight_keys"])
    resolved = ResolvedStudy(study, base, space, resolve_goals(study, model), epochs)
    return open_study(resolved, root / "study")


def algorithm_of(study: Study) -> Algorithm:
    return make_algorithm(study.resolved.study, study.resolved.space, study)


def run_study(
    study: Study,
    runner: str = "local",
    live: Callable[[Mapping[str, Any]], None] | None = None,
) -> None:
    """Run a study to its end and close it."""
    try:
        if runner == "ray":
            from automl.runners import ray_tune as runner_module
        else:
            from automl.runners import local as runner_module
        runner_module.run(study, algorithm_of(study), NAME, live=live)
    finally:
        study.close()


def main(text: str) -> int:
    options = json.loads(text)
    runner = options.pop("runner", "ray")
    study = open_quadratic(Path(options.pop("root")), **options)
    try:
        run_study(study, runner)
    except AutoMLError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
