"""A search space with every kind of parameter, and trials in it with given curves."""

from __future__ import annotations

from typing import Any

from automl.space import Parameter, SearchSpace
from automl.store import EpochRecord, TrialRecord

SPACE = SearchSpace(
    (
        Parameter("lr", "float", 1e-4, 1e-6, 1e-1, log=True),
        Parameter("min_lr", "float", 1e-7, 1e-7, 1e-1, log=True, below="lr"),
        Parameter("width", "int", 8, 4, 32, step=4),
        Parameter("steps", "int", 10, 1, 1000, log=True),
        Parameter("optimizer", "choice", "AdamW", choices=("AdamW", "SGD")),
        Parameter("momentum", "float", 0.9, 0.0, 0.99, condition={"optimizer": ("SGD",)}),
        Parameter("steps_at", "choice", None, choices=(None, [1, 2], [3])),
    )
)


def trial(number: int, params: dict[str, Any], state: str = "complete", *values: float):
    epochs = [
        EpochRecord(epoch, {"epe": value}, 1.0, None, "continue", None)
        for epoch, value in enumerate(values, start=1)
    ]
    return TrialRecord(number, params, 0, 0.0, state, epochs)
