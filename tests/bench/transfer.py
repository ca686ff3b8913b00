"""What earlier studies are worth: a study with `warm_start` beside a cold one.

    python tests/bench/transfer.py --benchmark search_quality.py [--seeds 10] [--record]

An earlier study runs on a seeded objective of the benchmark, then the new one on another:
`related` has every optimum moved a little, other levels, noise and curves (another data set);
`unrelated` is an instance of `core_edge` with its own optima, at the other ends of the ranges.
Cold and warm differ in nothing but what was taken from the earlier study.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from automl.lock import PriorTrial
from automl.transfer import prior_of
from tests.bench.search import Searcher

BUDGET = 20  # full runs
HALF_AT_MOST, HARM_AT_MOST = 0.5, 1.05


def related(module: Any, seed: int) -> Any:
    """The objective of a seed on another data set."""
    objective = module.Objective(seed, "core")
    g = np.random.default_rng(50_000 + seed)
    objective.noise = np.random.default_rng(51_000 + seed)
    objective.lr_opt += g.uniform(-0.25, 0.25)
    objective.lr_div = objective.lr_opt + g.uniform(0.9, 1.4)
    objective.wd_opt += g.uniform(-0.4, 0.4)
    objective.dec_opt = min(max(objective.dec_opt + g.uniform(-0.1, 0.1), 0.05), 1.0)
    objective.step_opt += g.uniform(-0.3, 0.3)
    objective.r_opt += g.integers(-1, 2)
    objective.cv_opt += g.integers(-2, 3)
    objective.aug_opt = np.clip(objective.aug_opt + g.normal(0, 0.12, 9), 0.0, 1.0)
    objective.aug_w = objective.aug_w * g.uniform(0.7, 1.3, 9)
    objective.sched = objective.sched + g.normal(0, 0.02, 5)
    objective.e0 *= g.uniform(0.6, 1.6)
    objective.alpha = g.uniform(1.7, 2.3)
    objective.f_def = objective.true({**module.DEFAULTS})
    objective.f_star = objective._solve(g)
    return objective


def unrelated(module: Any, seed: int) -> Any:
    """Another objective altogether."""
    return module.Objective(seed + 500, "core_edge")


TARGETS = {"related": related, "unrelated": unrelated}


class Ledger:
    """Promoted configuration after every full run's worth of epochs."""

    def __init__(self) -> None:
        self.spent, self.best = 0.0, (-1, float("inf"), None)
        self.curve: list[Any] = []

    def add(self, cost: float, params: Any, epoch: int, value: float | None, full: int) -> None:
        self.spent += cost
        if value is not None and (epoch, -value) > (self.best[0], -self.best[1]):
            self.best = (epoch, value, params)
        while len(self.curve) < min(BUDGET, self.spent / full):
            self.curve.append(self.best[2])


def run(
    module: Any, objective: Any, seed: int, prior: tuple[PriorTrial, ...] = ()
) -> tuple[Searcher, list[Any]]:
    """One study of `BUDGET` full runs; what it would promote after each of them."""
    searcher, ledger, runs = (
        Searcher(objective.space, module.R, seed, "auto", 1, prior),
        Ledger(),
        {},
    )
    while len(ledger.curve) < BUDGET:
        trial, params, epoch = searcher.ask()
        training = runs.setdefault(trial, objective.start(params))
        value, cost = training.advance(epoch)
        ledger.add(cost, training.c, epoch, value, module.R)
        searcher.tell(trial, epoch, value)
    return searcher, ledger.curve


def compare(module: Any, name: str, seed: int, earlier: Searcher) -> dict[str, list[float]]:
    """Regret and noise-free value of cold and warm after 1 to `BUDGET` full runs."""
    prior = prior_of(earlier.study, earlier.study.resolved.space).trials
    found = {}
    for way, given in (("cold", ()), ("warm", prior)):
        objective = TARGETS[name](module, seed)
        _, curve = run(module, objective, seed + 7, given)
        found[f"{way} regret"] = [objective.regret(c) if c else module.CAP for c in curve]
        found[f"{way} value"] = [objective.true(c) / objective.f_def if c else 1.0 for c in curve]
    return found


def lines(name: str, results: Sequence[dict[str, list[float]]]) -> list[str]:
    """Mean regret at several budgets, and what is asked for."""
    mean = {
        key: [statistics.mean(each) for each in zip(*(r[key] for r in results), strict=True)]
        for key in results[0]
    }
    cold, warm = mean["cold regret"], mean["warm regret"]
    reached = next((run for run, regret in enumerate(warm, 1) if regret <= cold[-1]), None)
    harm = mean["warm value"][-1] / mean["cold value"][-1]
    asked = (
        f"cold result after {reached or f'more than {BUDGET}'} of {BUDGET} runs"
        f" (bar {BUDGET * HALF_AT_MOST:.0f})"
        if name == "related"
        else f"value {100 * (harm - 1):+.1f} % (bar {100 * (HARM_AT_MOST - 1):+.0f} %)"
    )
    return [
        f"| {name} | {way} | {' | '.join(f'{regret[at - 1]:.2f}' for at in (5, 10, 15, 20))}"
        f" | {asked if way == 'warm' else ''} |"
        for way, regret in (("cold", cold), ("warm", warm))
    ]


def load(path: Path) -> Any:
    """Import the benchmark by its path."""
    spec = importlib.util.spec_from_file_location("search_quality", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["search_quality"] = module
    spec.loader.exec_module(module)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--benchmark", type=Path, required=True, help="search_quality.py")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--record", action="store_true", help="write docs/performance.md")
    arguments = parser.parse_args()
    module = load(arguments.benchmark)
    results: dict[str, list[dict[str, list[float]]]] = {name: [] for name in TARGETS}
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        earlier, _ = run(module, module.Objective(seed, "core"), seed)
        for name in TARGETS:
            results[name].append(compare(module, name, seed, earlier))
            print(seed, *lines(name, results[name][-1:]), sep="\n", flush=True)
    table = [
        f"| new study | start | 5 runs | 10 | 15 | {BUDGET} | asked for |",
        "|---|---|---|---|---|---|---|",
        *(line for name in TARGETS for line in lines(name, results[name])),
    ]
    print("\n".join(table))
    if arguments.record:
        from record import record

        record("transfer", table, f"python tests/bench/transfer.py ({arguments.seeds} seeds)")


if __name__ == "__main__":
    main()
