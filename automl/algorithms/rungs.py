"""Which trials go on, as a function of the log: a resumed study decides as an uninterrupted one.

Trial 0, the baseline, always goes on, and no trial is stopped that is needed for `min_complete`
trials of full length. For the others the pruner decides at rungs (numbers of finished epochs):

    asha          A trial is compared with every trial that has reached this rung before it, and
                  goes on when its rank is within the best 1/factor. The first arrivals have
                  little to be compared with: until `factor` trials have reached the rung, the
                  comparison is repeated after each of their epochs.
    hyperband     asha in several brackets, each without the first rung of the one before, the last
                  without any; a trial is compared with those of its bracket.
    hyperband_es  hyperband, and from the first rung on a trial ends whose forecast at full length
                  has next to no chance (HOPELESS) to beat the best.
    median        From the first rung on, after every epoch: a trial goes on that is not worse than
                  the median of those that were there before.
    forecast      A trial goes on whose forecast has a chance of at least 1/factor to beat the best;
                  asha while no trial is complete, since nothing can be forecast then.

Sources: Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys 2020 (ASHA, the
stopping variant); Li et al., Hyperband, JMLR 2018; Golovin et al., Google Vizier, KDD 2017 (median
rule). First rung at R/9: a rung after one epoch stops good trials whose curves start slowly
(regret 0.59 instead of 0.37 at 50 full runs, synthetic objectives, 20 seeds).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from automl.store import TrialRecord

WHO_ENDS = {
    "forecast": "one whose chance to beat the best is below 1 in {factor} ends",
    "asha": "about one in {factor} goes on",
    "hyperband": "about one in {factor} goes on, from a first epoch that differs between trials",
    "hyperband_es": "about one in {factor} goes on, and a hopeless one ends at any epoch",
    "median": "one worse than half of them ends",
}
"""Pruner -> its rule for a person."""
PRUNERS = (*WHO_ENDS, "none")
HOPELESS = 0.05


class Decision(NamedTuple):
    """What happens to a trial after an epoch, and the rung where it was decided."""

    action: Literal["continue", "stop", "complete"]
    rung: int | None


@dataclass(frozen=True)
class Rungs:
    """The rule of one study.

    Attributes:
        full_epochs: R, where a trial is complete.
        rungs: rising epochs below R; empty: every trial runs to R.
        factor: one trial in `factor` goes on.
        min_complete: so many trials reach R, trial 0 included, unless trials fail.
        pruner: the rule; without rungs it never acts.
    """

    full_epochs: int
    rungs: tuple[int, ...] = ()
    factor: int = 3
    min_complete: int = 1
    pruner: str = "asha"

    @property
    def brackets(self) -> int:
        """How many groups of trials are compared among themselves."""
        return len(self.rungs) + 1 if self.pruner.startswith("hyperband") else 1

    def bracket(self, trial: int) -> int:
        """Return the bracket of a trial: how many of the first rungs it skips.

        As in Hyperband, the more a bracket stops, the more trials it gets; here they alternate.
        """
        count = self.brackets
        sizes = [
            math.ceil(count / (count - b) * self.factor ** (count - 1 - b)) for b in range(count)
        ]
        turns = sorted(((k + 0.5) / size, b) for b, size in enumerate(sizes) for k in range(size))
        return turns[trial % len(turns)][1]

    def of(self, trial: int) -> Rungs:
        """Return the rule with the rungs of a trial's bracket."""
        return replace(self, rungs=self.rungs[self.bracket(trial) :])

    def compared_at(self, epoch: int) -> int | None:
        """Return the epoch whose losses count after a finished epoch; None: nothing is compared."""
        rung = max((rung for rung in self.rungs if rung <= epoch), default=None)
        return epoch if self.pruner == "median" and rung is not None else rung

    def forecasts(self, epoch: int) -> bool:
        """Whether the decision after this epoch needs the trial's chance to beat the best."""
        if self.pruner == "hyperband_es":
            return bool(self.rungs) and epoch >= self.rungs[0]
        return self.pruner == "forecast" and self.compared_at(epoch) is not None

    def decide(
        self,
        trial: int,
        epoch: int,
        own: Mapping[int, float],
        reached: Mapping[int, Sequence[float]],
        others: float = math.inf,
        chance: float | None = None,
    ) -> Decision:
        """Decide after a finished epoch.

        Args:
            trial: its number; 0 is never stopped.
            epoch: finished epochs.
            own: `compared_at(epoch)` -> the trial's loss there (the objective turned so that
                smaller is better); one that is not finite counts as worst.
            reached: the same epoch -> losses of the other trials that have reached it.
            others: how many other trials are complete or may still become so.
            chance: that the trial's forecast at full length beats the best, where `forecasts` asks
                for it; None: unknown, since no trial is complete.
        """
        if epoch >= self.full_epochs:
            return Decision("complete", self.full_epochs)
        at = self.compared_at(epoch)
        if at is None:
            return Decision("continue", None)
        on = Decision("continue", epoch if epoch in self.rungs else None)
        if trial == 0:
            return on
        if not math.isfinite(own[at]):
            return Decision("stop", at)
        goes_on = self._goes_on(epoch, at, own[at], reached.get(at, ()), chance)
        return on if goes_on or others < self.min_complete else Decision("stop", at)

    def _goes_on(
        self, epoch: int, at: int, own: float, seen: Sequence[float], chance: float | None
    ) -> bool:
        arrived = len(seen) + 1
        if self.pruner == "median":
            return arrived <= self.factor or own <= statistics.median(seen)
        if self.pruner == "hyperband_es" and chance is not None and chance < HOPELESS:
            return False
        if self.pruner == "forecast" and chance is not None:
            return epoch != at or chance >= 1 / self.factor
        if epoch != at and arrived > self.factor:
            return True
        return 1 + sum(other <= own for other in seen) <= self.survivors(arrived)

    def survivors(self, arrived: int) -> int:
        """Return the worst rank that goes on after so many arrivals."""
        return max(1, arrived // (2 if self.pruner == "median" else self.factor))

    def expected_epochs(self, trials: int) -> float:
        """Return the epochs of a study whose trials arrive in random order of quality."""
        numbers = [self.bracket(trial) for trial in range(1, trials)]
        total = float(self.full_epochs)
        for bracket in range(self.brackets):
            arriving, before = float(numbers.count(bracket)), 0
            for rung in self.rungs[bracket:]:
                total += arriving * (rung - before)
                arriving = self._expected_survivors(arriving)
                before = rung
            total += arriving * (self.full_epochs - before)
        return total

    def _expected_survivors(self, arriving: float) -> float:
        whole = max(1, round(arriving))
        chances = [min(1.0, self.survivors(n) / n) for n in range(1, whole + 1)]
        needed = min(arriving, self.min_complete - 1)
        return max(needed, arriving * sum(chances) / whole)


def default_rungs(full_epochs: int) -> tuple[int, ...]:
    """Return R/9 (at least 2 epochs) and R/3, as far as they are below R."""
    rungs = {max(2, full_epochs // 9), full_epochs // 3}
    return tuple(sorted(rung for rung in rungs if 1 < rung < full_epochs))


def may_complete(trials: Sequence[TrialRecord], without: int) -> int:
    """Return how many trials but one are complete or on their way to it."""
    return sum(
        trial.state == "complete"
        or (trial.state == "running" and not (trial.epochs and trial.epochs[-1].decision == "stop"))
        for trial in trials
        if trial.id != without
    )


def losses_at(
    trials: Sequence[TrialRecord], rungs: Sequence[int], metric: str, sign: int, without: int
) -> dict[int, list[float]]:
    """Return rung -> losses of every trial but one, as far as they have reached it."""
    return {
        rung: [
            sign * value
            for trial in trials
            if trial.id != without and (value := trial.value_at(rung, metric)) is not None
        ]
        for rung in rungs
    }
