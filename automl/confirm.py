"""Baseline and winner once more, on further seeds, after the search (`confirm: k`).

The repetitions are full runs of the same specs with another `train.seed`. They are recorded in
the study's log like trials, resume like trials, and run in the study's runner; they never take
part in the search. What follows from them is in `automl.gain`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from automl.algorithms.rungs import Decision
from automl.contract import SEED_KEY
from automl.runners import run_driver
from automl.store import Study, TrialRecord
from automl.study_spec import get_path, set_path
from automl.trial import Driver


def confirm(
    study: Study,
    trainable: str,
    *,
    live: Callable[[Mapping[str, Any]], None] | None = None,
) -> None:
    """Run or resume the repetitions that the study asks for.

    Args:
        study: opened for writing, its search ended.
        trainable: name of the trainer.
        live: sees every event after it was recorded.

    Raises:
        AutoMLError: the study cannot go on (full disk, Ray broke).
        KeyboardInterrupt: SIGINT arrived; SystemExit(143): SIGTERM. Both resume.
    """
    driver = ConfirmDriver(study, trainable, live)
    if driver.has_work():
        run_driver(driver)


class ConfirmDriver(Driver):
    """The driver of the repetitions."""

    word = "confirmation"
    events = ("confirm_started", "confirm_epoch", "confirm_ended", "confirm_placed", "run")
    failures_in_a_row = None  # a spec that fails again and again is a result here

    def __init__(
        self,
        study: Study,
        trainable: str,
        on_event: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        """Close or queue what an earlier session left running."""
        best = study.best()
        wanted = study.resolved.study.confirm if best is not None and best.id != 0 else 0
        self._trials = (0, best.id) if best is not None else ()
        seeds = further_seeds(study, wanted)
        self._planned = [(trial, seed) for seed in seeds for trial in self._trials]
        for run in study.confirmations:
            if run.state == "running" and (run.trial, run.seed) not in self._planned:
                detail = f"trial {run.trial} is no longer the best"
                ended = {"kind": "confirm_ended", "run": run.id, "state": "stopped"}
                study.append({**ended, "detail": detail})
        super().__init__(study, trainable, on_event)

    def records(self) -> Sequence[TrialRecord]:
        """Return the repetitions so far."""
        return self.study.confirmations

    def directory(self, number: int) -> Path:
        """Return where a repetition writes."""
        return self.study.confirm_directory(number)

    def end_reason(self) -> str | None:
        """Return that every repetition has been started, or None."""
        return None if self._open() else f"{len(self._planned)} repetitions started"

    def end_study(self) -> None:
        """Nothing to record: the last repetition's end says it."""

    def _open(self) -> list[tuple[int, int]]:
        begun = {(run.trial, run.seed) for run in self.study.confirmations}
        return [pair for pair in self._planned if pair not in begun]

    def _proposal(self) -> Mapping[str, Any] | None:
        trial, seed = self._open()[0]
        return {"trial": trial, "params": dict(self.study.trials[trial].params), "seed": seed}

    def _decide(self, number: int, epoch: int, value: float) -> Decision:
        full = self.study.resolved.full_epochs
        return Decision("complete", full) if epoch >= full else Decision("continue", None)

    def _spec(self, record: TrialRecord) -> dict[str, Any]:
        resolved = self.study.resolved
        spec = resolved.space.apply(resolved.base_spec, record.params)
        set_path(spec, SEED_KEY, record.seed)
        return spec


def further_seeds(study: Study, count: int) -> list[int]:
    """Return seeds after the one that every trial of the search used."""
    used = get_path(study.resolved.base_spec, SEED_KEY, 0)
    first = max(0, used if isinstance(used, int) else 0) + 1
    return list(range(first, first + count))
