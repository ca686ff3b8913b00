"""What the harness costs: studies of a trainer that does nothing, each from a cold process.

    python tests/bench/overhead.py [--record] [--trials 10 200 1000] [--runner local ray]

A study is the command `automl study`, end to end, promotion switched off. Its log says when the
first trial started and how long each took (three epochs each); memory is the driver's, seen from
outside. Proposals are random, so a sampler's time is not in it; the row `auto` adds it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from automl.events import read  # noqa: E402
from tests.bench.noop import NAME  # noqa: E402
from tests.bench.record import record  # noqa: E402

EPOCHS = 3
SAMPLE_S = 0.1
FIRST_S, LOCAL_S, RAY_S, GROWTH_MB = 1.0, 0.1, 0.2, 100  # targets


@dataclass(frozen=True)
class Cost:
    """One study: seconds from the cold start, per trial early and late, at the end; memory, MB."""

    first: float
    trial: float
    early: float
    late: float
    after: float
    growth: float


class Memory(threading.Thread):
    """Watches a process until it ends."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        super().__init__(daemon=True)
        self._process = process
        self.seen: list[tuple[float, float]] = []

    def run(self) -> None:
        """Sample time and resident memory."""
        watched = psutil.Process(self._process.pid)
        while self._process.poll() is None:
            try:
                self.seen.append((time.time(), watched.memory_info().rss / 2**20))
            except psutil.Error:
                return
            time.sleep(SAMPLE_S)


def measure(trials: int, runner: str, algorithm: str = "random") -> Cost:
    """Run one study and read its log."""
    with tempfile.TemporaryDirectory() as place:
        study = {
            "model": "quadratic",
            "runner": runner,
            "algorithm": {"name": algorithm},
            "budget": {"trials": trials},
            "resources": {"cpus": 1, "max_concurrent": 2},
            "spec": {"train": {"num_epochs": EPOCHS}},
            "promote": {"enabled": False},
        }
        (Path(place) / "noop.yaml").write_text(json.dumps(study))
        command = [sys.executable, "-m", "automl.cli", "study", "noop.yaml", "--trainable", NAME]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        start = time.time()
        process = subprocess.Popen(
            command,
            cwd=place,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        memory = Memory(process)
        memory.start()
        output, _ = process.communicate()
        end = time.time()
        if process.returncode:
            raise SystemExit(output)
        events = read(Path(place) / "results" / "studies" / "noop" / "events.jsonl")
    times = {kind: [_at(e) for e in events if e["kind"] == kind] for kind in
             ("trial_started", "trial_ended")}  # fmt: skip
    first, ended = times["trial_started"][0], times["trial_ended"]
    part = min(100, trials // 2)
    before = [mb for at, mb in memory.seen if at <= ended[part - 1]]
    peak = max(mb for at, mb in memory.seen if at <= ended[-1] + SAMPLE_S)
    return Cost(
        first=first - start,
        trial=(ended[-1] - ended[0]) / (trials - 1),
        early=(ended[part - 1] - ended[0]) / (part - 1),
        late=(ended[-1] - ended[-part]) / (part - 1),
        after=end - ended[-1],
        growth=peak - before[-1],
    )


def _at(event: dict[str, str]) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--record", action="store_true", help="write docs/performance.md")
    parser.add_argument("--trials", type=int, nargs="+", default=[10, 200, 1000])
    parser.add_argument("--runner", nargs="+", default=["local", "ray"])
    arguments = parser.parse_args(argv)
    lines = [
        "| study of no-op trials | first trial s | ms per trial | first / last 100 | then s | MB |",
        "|---|---|---|---|---|---|",
    ]
    rows = [(n, runner, "random") for runner in arguments.runner for n in arguments.trials]
    if "local" in arguments.runner:
        rows.append((min(200, max(arguments.trials)), "local", "auto"))
    for trials, runner, algorithm in rows:
        cost = measure(trials, runner, algorithm)
        target = LOCAL_S if runner == "local" else RAY_S
        good = cost.trial <= target and (runner != "local" or cost.first <= FIRST_S)
        lines.append(
            f"| {trials}, {runner}, {algorithm} | {cost.first:.2f} | {1000 * cost.trial:.0f} |"
            f" {1000 * cost.early:.0f} / {1000 * cost.late:.0f} | {cost.after:.1f} |"
            f" {cost.growth:+.0f} |{'' if good and cost.growth < GROWTH_MB else ' missed |'}"
        )
        print(lines[-1], flush=True)
    if arguments.record:
        words = " ".join(sys.argv[1:] if argv is None else argv)
        record("overhead", lines, f"python tests/bench/overhead.py {words}".rstrip())


if __name__ == "__main__":
    main()
