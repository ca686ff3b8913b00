"""The gain of a study's winner over its baseline, from runs that had no part in choosing it.

The winner of a search is also the luckiest of its trials, so its score there says too much about
it. Baseline and winner are trained again on further seeds (`automl.confirm`), and only these
scores are compared: mean against mean, with Student's interval for two samples of one variance.

An interval covers the true difference in 93 % of studies, so a winner that is no better is called
improved in at most 3.5 % of them. With three seeds each a true gain of three standard deviations
is found in 85 % of studies; the usual 95 % would find it in 78 %.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Literal

from automl.contract import Objective
from automl.objectives import as_read, score
from automl.store import ConfirmRecord, Study

CONFIDENCE = 0.93

Verdict = Literal["improved", "not_shown", "worse"]


@dataclass(frozen=True)
class Gain:
    """Winner against baseline on further seeds; values in the unit of the objective.

    Attributes:
        trial: the winner.
        wanted: repetitions asked for, of each.
        baseline: scores of the baseline's complete repetitions at full length.
        winner: the same of the winner.
        failed: repetitions of the winner that did not become complete.
        difference: mean of the winner minus mean of the baseline; None without two scores.
        low: lower end of the interval of the difference; None without two scores of each.
        high: its upper end.
        verdict: `improved` or `worse` when the interval excludes no difference.
    """

    trial: int
    wanted: int
    baseline: tuple[float, ...]
    winner: tuple[float, ...]
    failed: int
    difference: float | None
    low: float | None
    high: float | None
    verdict: Verdict
    confidence: float = CONFIDENCE

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as in `bundle.json`."""
        return asdict(self)


def gain(study: Study) -> Gain | None:
    """Return the confirmed gain; None when there is none to report, or not yet."""
    best, wanted = study.best(), study.resolved.study.confirm
    if not wanted or best is None or best.id == 0 or not study.is_confirmed():
        return None
    of_baseline, of_winner = (study.confirmations_of(trial) for trial in (0, best.id))
    baseline, winner = _scores(study, of_baseline), _scores(study, of_winner)
    failed = len(of_winner) - len(winner)
    difference = fmean(winner) - fmean(baseline) if baseline and winner else None
    ends = interval(baseline, winner)
    verdict: Verdict = "not_shown"
    if ends is not None:
        verdict = _verdict(study.objective, *ends)
        if verdict == "improved" and failed:
            verdict = "not_shown"  # a spec that may fail is no improvement, whatever the others say
    low, high = ends or (None, None)
    return Gain(best.id, wanted, baseline, winner, failed, difference, low, high, verdict)


def interval(
    baseline: tuple[float, ...], winner: tuple[float, ...], confidence: float = CONFIDENCE
) -> tuple[float, float] | None:
    """Return the ends of the interval of the difference of two means; None below two scores each.

    Source: two-sample t interval with pooled variance.
    """
    if min(len(baseline), len(winner)) < 2:
        return None
    from scipy.special import stdtrit  # pyright: ignore[reportMissingTypeStubs]

    freedom = len(baseline) + len(winner) - 2
    squares = sum((x - fmean(side)) ** 2 for side in (baseline, winner) for x in side)
    error = math.sqrt(squares / freedom * (1 / len(baseline) + 1 / len(winner)))
    half = float(stdtrit(freedom, (1 + confidence) / 2)) * error
    difference = fmean(winner) - fmean(baseline)
    return difference - half, difference + half


def in_words(found: Gain, objective: Objective) -> str:
    """Return the gain in one sentence."""
    name, metric = f"trial {found.trial}", objective.metric
    if found.difference is None or found.low is None or found.high is None:
        return (
            f"The gain of {name} could not be confirmed: {len(found.baseline)} repetitions of the"
            f" baseline and {len(found.winner)} of {name} are complete, needed are 2 of each"
        )
    words = {
        "improved": f"{name} is better than the baseline",
        "worse": f"{name} is worse than the baseline",
        "not_shown": f"{name} is not shown to be better than the baseline",
    }[found.verdict]
    low, unit = as_read(found.low, objective.unit)
    high, _ = as_read(found.high, objective.unit)
    change = as_read(found.difference, objective.unit)[0]
    return (
        f"{words[0].upper()}{words[1:]}: {metric} {change:+.3g} {unit}".rstrip()
        + f" ({100 * found.confidence:g} % interval {low:+.3g} to {high:+.3g}; means"
        f" {score(objective, fmean(found.winner))} and {score(objective, fmean(found.baseline))}"
        f" of {len(found.winner)} and {len(found.baseline)} further seeds)"
        + (f"; {found.failed} repetitions of {name} failed" if found.failed else "")
    )


def _scores(study: Study, runs: list[ConfirmRecord]) -> tuple[float, ...]:
    values = [study.value(run) for run in runs]
    return tuple(value for value in values if value is not None)


def _verdict(objective: Objective, low: float, high: float) -> Verdict:
    losses = sorted((objective.loss(low), objective.loss(high)))
    if losses[1] < 0:
        return "improved"
    return "worse" if losses[0] > 0 else "not_shown"
