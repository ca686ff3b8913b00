"""Search quality of our algorithms, through the code path of a study, beside Optuna and random.

    python tests/bench/search.py --benchmark search_quality.py [--seeds 20] [--record]

The benchmark is a script that scores methods on seeded objectives; `tests.bench.search:NAME` is
a method for it (its `module:factory`), NAME being a name of `automl.algorithms.table`, and NAME_4
the same with four trials at a time. The rows of a scenario become a `SearchSpace`, suggestions and
stop decisions come from `Algorithm`, and every answer is an event of a `Study` in memory.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from automl.algorithms.table import make_algorithm
from automl.contract import Objective
from automl.lock import PriorTrial
from automl.objectives import Goals
from automl.replay import memory_study
from automl.space import Parameter, SearchSpace
from automl.store import ResolvedStudy
from automl.study_spec import set_path, study_from_dict

ROOT = Path(__file__).resolve().parents[2]
PEERS = ("optuna_tpe", "random")
# Scenario -> full runs -> what `auto` must reach (mean normalised regret).
TARGETS: Mapping[str, Mapping[int, float]] = {
    "core": {20: 0.53, 50: 0.37, 100: 0.30},
    "core_nofail": {20: 0.48},
    "core_edge": {20: 0.10, 50: 0.07},
    "ffs2": {20: 0.19},
}
Row = tuple[str, str, Any, Any, Any, bool]  # name, kind, low, high, default, log
METRIC = "val/epe"


class Searcher:
    """One study: `workers` trials at a time, an epoch each in turn."""

    def __init__(
        self,
        space: Sequence[Row],
        full_epochs: int,
        seed: int,
        name: str,
        workers: int = 1,
        prior: tuple[PriorTrial, ...] = (),
    ) -> None:
        base: dict[str, Any] = {}
        for row in space:
            set_path(base, row[0], row[4])
        tree = {"name": "bench", "model": "bench", "profile": "cpu", "seed": seed,
                "budget": {"hours": 1e6}, "algorithm": {"name": name}}  # fmt: skip
        resolved = ResolvedStudy(
            study=study_from_dict(tree, "bench"),
            base_spec=base,
            space=SearchSpace(tuple(parameter(row) for row in space)),
            goals=Goals(Objective(METRIC, "minimize")),
            full_epochs=full_epochs,
            prior=prior,
            code_version="bench",
        )
        self.study = memory_study(Path(), resolved)
        self._algorithm = make_algorithm(resolved.study, resolved.space, self.study)
        self._workers = workers
        self._running: list[int] = []

    def ask(self) -> tuple[int, dict[str, Any], int]:
        if len(self._running) < self._workers:
            proposal = self._algorithm.ask()
            if proposal is not None:
                trial, params = proposal
                self.study.append({"kind": "trial_started", "trial": trial, "params": params})
                self._running.append(trial)
        record = self.study.trials[self._running[0]]
        return record.id, record.params, record.last_epoch + 1

    def tell(self, trial: int, epoch: int, value: float | None) -> None:
        self._running.remove(trial)
        if value is None:
            return self._end(trial, "diverged")
        decision = self._algorithm.stop(trial, epoch, value)
        self.study.append({"kind": "epoch", "trial": trial, "epoch": epoch, "checkpoint": None,
                           "metrics": {METRIC: value}, "decision": decision.action,
                           "rung": decision.rung})  # fmt: skip
        if decision.action == "continue":
            return self._running.append(trial)
        return self._end(trial, {"stop": "stopped", "complete": "complete"}[decision.action])

    def _end(self, trial: int, state: str) -> None:
        self.study.append({"kind": "trial_ended", "trial": trial, "state": state})


def parameter(row: Row) -> Parameter:
    """Return a row of the benchmark as a parameter of ours."""
    name, kind, low, high, default, log = row
    if kind == "cat":
        return Parameter(name, "choice", default, choices=tuple(low))
    return Parameter(name, "float" if kind == "float" else "int", default, low, high, log=log)


def __getattr__(name: str) -> Callable[..., Searcher]:
    """A factory for each algorithm; NAME_4 has four workers."""
    if name.startswith("__"):
        raise AttributeError(name)
    algorithm, _, workers = name.rpartition("_")
    if not workers.isdigit():
        algorithm, workers = name, "1"
    return lambda space, full, seed: Searcher(space, full, seed, algorithm, int(workers))


def measure(benchmark: Path, scenario: str, method: str, seeds: int) -> list[dict[str, str]]:
    """Run the benchmark in a process of its own; returns its rows."""
    variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "rows.csv"
        command = [sys.executable, str(benchmark), "--scenario", scenario, "--methods", method,
                   "--seeds", str(seeds), "--budget", str(max(TARGETS[scenario])),
                   "--out", str(out)]  # fmt: skip
        subprocess.run(command, env=os.environ | variables, check=True, cwd=ROOT)
        return list(csv.DictReader(out.open()))


def line(scenario: str, method: str, rows: Sequence[Mapping[str, str]]) -> str:
    """One line of the table: mean regret at every budget, beside the bar of `auto`."""
    cells: list[str] = []
    for budget in (20, 50, 100):
        at = [row for row in rows if float(row["budget_full_runs"]) == budget]
        if not at:
            cells.append("")
            continue
        regret = statistics.mean(float(row["norm_regret"]) for row in at)
        bar = f" ({TARGETS[scenario][budget]:.2f})" if method == "auto" else ""
        cells.append(f"{regret:.2f}{bar}")
    last = max(float(row["budget_full_runs"]) for row in rows)
    ends = [row for row in rows if float(row["budget_full_runs"]) == last]
    trials, failed, seconds = (
        sum(float(row[key]) for row in ends) for key in ("n_trials", "n_failed", "sampler_s")
    )
    facts = f"{100 * failed / trials:.1f} % | {1000 * seconds / trials:.0f}"
    return f"| {scenario} | {method} | {' | '.join(cells)} | {facts} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--benchmark", type=Path, required=True, help="search_quality.py")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--record", action="store_true", help="write docs/performance.md")
    arguments = parser.parse_args()
    lines = [
        "| scenario | method | 20 runs (bar) | 50 | 100 | failed trials | ms per trial |",
        "|---|---|---|---|---|---|---|",
    ]
    for scenario in TARGETS:
        for method in ("auto", *PEERS):
            name = "tests.bench.search:auto" if method == "auto" else method
            rows = measure(arguments.benchmark, scenario, name, arguments.seeds)
            lines.append(line(scenario, method, rows))
            print(lines[-1], flush=True)
    if arguments.record:
        from record import record

        record("search", lines, f"make bench-search ({arguments.seeds} seeds)")


if __name__ == "__main__":
    main()
