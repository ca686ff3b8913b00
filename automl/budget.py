"""When a study ends, and how long it will take. Times in seconds, epochs of all trials together."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from automl.store import Study
from automl.study_spec import BudgetChoice


@dataclass(frozen=True)
class Forecast:
    """What a study will cost.

    Attributes:
        trials: trials it starts at most; None when no limit says so.
        epochs: expected finished epochs; None when no limit bounds them.
        seconds: expected wall time; None while the time of an epoch is unknown.
        origin: where the numbers come from, in words for the user.
    """

    trials: int | None
    epochs: float | None
    seconds: float | None
    origin: str


@dataclass(frozen=True)
class Budget:
    """The limits of one study."""

    limits: BudgetChoice

    def exhausted(self, study: Study, now: float | None = None) -> str | None:
        """Return why no new trial may start, in words, or None.

        Args:
            study: what has happened.
            now: seconds since 1970; default: the clock.
        """
        limits = self.limits
        reason = self.overrun(study, now)
        if reason is not None:
            return reason
        if limits.trials is not None and len(study.trials) >= limits.trials:
            return f"{len(study.trials)} trials started (budget.trials {limits.trials})"
        epochs = sum(trial.last_epoch for trial in study.trials)
        if limits.epochs is not None and epochs >= limits.epochs:
            return f"{epochs} epochs finished (budget.epochs {limits.epochs})"
        idle = _without_improvement(study)
        if limits.no_improvement is not None and idle >= limits.no_improvement:
            return (
                f"{idle} complete trials in a row without a better one"
                f" (budget.no_improvement {limits.no_improvement})"
            )
        return None

    def overrun(self, study: Study, now: float | None = None) -> str | None:
        """Return why running trials should end too (time is up, target reached), or None."""
        limits = self.limits
        hours = study.active_seconds(time.time() if now is None else now) / 3600
        if limits.hours is not None and hours >= limits.hours:
            return f"{hours:.2f} hours passed (budget.hours {limits.hours:g})"
        best = study.best()
        value = study.value(best) if best is not None else None
        if limits.target is None or best is None or value is None:
            return None
        if study.objective.loss(value) > study.objective.loss(limits.target):
            return None
        return (
            f"trial {best.id} reached {study.objective.metric} {value:g}"
            f" (budget.target {limits.target:g})"
        )

    def forecast(
        self,
        expected_epochs: Callable[[int], float],
        *,
        concurrency: int,
        study: Study | None = None,
        seconds_per_epoch: float | None = None,
    ) -> Forecast:
        """Return the expected cost of the whole study.

        Args:
            expected_epochs: trials -> epochs (`Rungs.expected_epochs`).
            concurrency: trials at a time.
            study: its finished epochs give the time of an epoch, when there are any.
            seconds_per_epoch: a measurement from elsewhere, used before the first epoch.
        """
        limits = self.limits
        bounds = [] if limits.trials is None else [expected_epochs(limits.trials)]
        if limits.epochs is not None:
            bounds.append(float(limits.epochs))
        epochs = min(bounds) if bounds else None
        per_epoch, source = _seconds_per_epoch(study, seconds_per_epoch)
        seconds = epochs * per_epoch / concurrency if epochs and per_epoch else None
        if limits.hours is not None:
            seconds = min(seconds or limits.hours * 3600, limits.hours * 3600)
        origin = self._origin(epochs, source, concurrency)
        return Forecast(limits.trials, epochs, seconds, origin)

    def _origin(self, epochs: float | None, source: str, concurrency: int) -> str:
        limits = self.limits
        parts: list[str] = []
        if epochs is not None and limits.trials is not None:
            text = (
                f"{limits.trials} trials in random order of quality give about {epochs:.0f} epochs"
            )
            parts.append(text)
        parts.append(source)
        parts.append(f"{concurrency} trial{'s' if concurrency > 1 else ''} at a time")
        if limits.hours is not None:
            parts.append(f"at most {limits.hours:g} hours (budget.hours)")
        if limits.target is not None or limits.no_improvement is not None:
            parts.append("ends earlier when its target or no-improvement limit is reached")
        return "; ".join(parts)


def _seconds_per_epoch(study: Study | None, given: float | None) -> tuple[float | None, str]:
    times = [record.seconds for trial in study.trials for record in trial.epochs] if study else []
    if times:
        mean = sum(times) / len(times)
        return (
            mean,
            f"{mean:.2g} s per epoch, the mean of {len(times)} finished epochs of this study",
        )
    if given is not None:
        return given, f"{given:.2g} s per epoch, as measured before"
    return None, "the time of an epoch is not known before the first one has finished"


def _without_improvement(study: Study) -> int:
    """Return how many complete trials have ended since the best one."""
    best = study.best()
    if best is None or best.ended is None:
        return 0
    complete = [trial for trial in study.trials if trial.state == "complete" and trial.ended]
    return sum((trial.ended or 0.0) > best.ended for trial in complete)
