"""Studies on a simulated clock: real algorithms and real logs, no training and no waiting.

Trials run on a few slots; an epoch takes the time that `Work.seconds` says for its parameters,
and the log's events carry the simulated time.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from automl.algorithms.table import make_algorithm
from automl.budget import Budget
from automl.store import Study

BEGIN = 1.7e9  # seconds since 1970
STATES = {"stop": "stopped", "complete": "complete"}


@dataclass(frozen=True)
class Work:
    """What a trial does: `value` after an epoch, `seconds` of an epoch, both by parameters."""

    value: Callable[[Mapping[str, Any], int], float]
    seconds: Callable[[Mapping[str, Any]], float]
    between: float = 0.0


def at(study: Study, now: float, **event: Any) -> None:
    """Append an event that happens at a simulated time."""
    stamp = datetime.fromtimestamp(BEGIN + now, UTC).isoformat(timespec="microseconds")
    study.append({**event, "time": stamp})


def simulate(
    study: Study, work: Work, slots: int = 1, each: Callable[[float], None] = lambda now: None
) -> float:
    """Run a study to its end; `each` is called after every trial. Returns its wall time."""
    algorithm = make_algorithm(study.resolved.study, study.resolved.space, study)
    budget = Budget.of(study.resolved.study)
    at(study, 0.0, kind="session_started", pid=1, host="simulated")
    ahead: list[tuple[float, int, int]] = []  # when, trial, epoch
    now = 0.0
    while True:
        while len(ahead) < slots and budget.exhausted(study, BEGIN + now) is None:
            proposal = algorithm.ask()
            if proposal is None:
                break
            number, params = proposal
            at(study, now, kind="trial_started", trial=number, params=params, seed=0, attempt=1,
               resumed_from_epoch=0, cause="new")  # fmt: skip
            heapq.heappush(ahead, (now + work.between + work.seconds(params), number, 1))
        if not ahead:
            return now
        now, number, epoch = heapq.heappop(ahead)
        params = study.trials[number].params
        value, seconds = work.value(params, epoch), work.seconds(params)
        decision = algorithm.stop(number, epoch, value)
        at(study, now, kind="epoch", trial=number, epoch=epoch, checkpoint=None, rung=decision.rung,
           metrics={study.objective.metric: value, "seconds": seconds},
           decision=decision.action)  # fmt: skip
        if decision.action == "continue":
            heapq.heappush(ahead, (now + seconds, number, epoch + 1))
        else:
            at(study, now, kind="trial_ended", trial=number, state=STATES[decision.action])
            each(now)
