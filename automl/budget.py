"""When a study ends. Times in seconds, epochs of all trials together, money in the user's unit."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from automl.objectives import covered
from automl.resources import of_study
from automl.store import Study, TrialRecord
from automl.study_spec import BudgetChoice, StudySpec

NEGLIGIBLE = 1e-3  # a gain below this share of the best value is no reason to expect another one


@dataclass(frozen=True)
class Budget:
    """The limits of one study.

    Attributes:
        limits: as the study file gives them.
        rounds: full runs one after another that follow the search (confirmation); hours and
            cost leave room for them.
    """

    limits: BudgetChoice
    rounds: int = 0

    @classmethod
    def of(cls, study: StudySpec) -> Budget:
        """Return the limits of a study."""
        return cls(study.budget, math.ceil(2 * study.confirm / of_study(study).max_concurrent))

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
        if limits.epochs is not None:
            epochs = sum(trial.last_epoch for trial in study.trials)
            if epochs >= limits.epochs:
                return f"{epochs} epochs finished (budget.epochs {limits.epochs})"
        return self._nothing_expected(study)

    def overrun(self, study: Study, now: float | None = None) -> str | None:
        """Return why running trials should end too (time or money is used, target reached)."""
        limits = self.limits
        if limits.hours is not None or limits.cost is not None:
            reason = self._used_up(study, time.time() if now is None else now)
            if reason is not None:
                return reason
        if limits.target is None:
            return None
        reached = study.reached()
        if reached is None:
            return None
        best, value = reached
        if study.objective.loss(value) > study.objective.loss(limits.target):
            return None
        return (
            f"trial {best.id} reached {study.objective.metric} {value:g}"
            f" (budget.target {limits.target:g})"
        )

    def hours(self) -> float | None:
        """Return the wall time that hours and cost allow together."""
        limits = self.limits
        given = [] if limits.hours is None else [limits.hours]
        if limits.cost is not None and limits.cost_per_hour is not None:
            given.append(limits.cost / limits.cost_per_hour)
        return min(given, default=None)

    def spent(self, study: Study) -> float | None:
        """Return what the machine has cost so far; None without its price."""
        price = self.limits.cost_per_hour
        return None if price is None else study.active_seconds() / 3600 * price

    def _used_up(self, study: Study, now: float) -> str | None:
        limits, allowed = self.limits, self.hours()
        assert allowed is not None
        passed = study.active_seconds(now) / 3600
        kept = min(allowed / 2, self._seconds_to_confirm(study) / 3600)
        if passed + kept < allowed:
            return None
        words = f"{passed:.2f} hours passed"
        if kept:
            words += f", about {kept:.2f} are kept for the confirmation"
        if allowed == limits.hours:
            return f"{words} (budget.hours {limits.hours:g})"
        return f"{words} at {limits.cost_per_hour:g} per hour (budget.cost {limits.cost:g})"

    def _seconds_to_confirm(self, study: Study) -> float:
        best = study.best()
        if best is None or best.id == 0:  # nothing to confirm so far
            return 0.0
        return self.rounds * max(best.seconds, study.trials[0].seconds)

    def _nothing_expected(self, study: Study) -> str | None:
        """Return that no improvement is expected, judged by what the last trials brought."""
        count = self.limits.no_improvement
        if count is None:
            return None
        ended = sorted((t.ended, t.id) for t in study.trials if t.ended is not None)
        earlier = [study.trials[number] for _, number in ended[:-count]]
        if study.goals.weighs:
            return self._front_stands(study, earlier)
        before = study.best(earlier)
        best = study.best()
        if before is None or best is None:
            return None
        old, new = study.value(before), study.value(best)
        if old is None or new is None or abs(old - new) > NEGLIGIBLE * abs(old):
            return None
        return (
            f"no improvement is expected: the last {count} ended trials brought"
            f" {study.objective.metric} from {old:.6g} to {new:.6g}"
            f" (budget.no_improvement {count})"
        )

    def _front_stands(self, study: Study, earlier: list[TrialRecord]) -> str | None:
        """Return that the last trials added next to nothing to what the front covers."""
        count, points = self.limits.no_improvement, study.points()
        if not study.points(earlier):
            return None
        old, new = (covered(each, points, study.goals) for each in (study.points(earlier), points))
        if new - old > NEGLIGIBLE * new:
            return None
        return (
            f"no improvement is expected: the last {count} ended trials brought the share that the"
            f" front covers from {100 * old:.4g} % to {100 * new:.4g} %"
            f" (budget.no_improvement {count})"
        )
