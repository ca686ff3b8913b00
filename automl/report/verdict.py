"""The first thing on the page: best against baseline, and what to know before using it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from automl.gain import gain, in_words
from automl.objectives import in_words as point_in_words
from automl.report.markup import (
    Column,
    Html,
    difference,
    join,
    percent,
    score,
    table,
    tag,
)
from automl.store import Study


def state_of(study: Study) -> str:
    """Return how far the study is; a driver that writes its last report has finished."""
    ended = study.end_reason is not None and study.is_confirmed()
    return "finished" if ended else study.state


def headline(study: Study) -> str:
    """Return the outcome in one sentence."""
    best, baseline = study.best(), study.baseline()
    metric, unit = study.objective.metric, study.objective.unit
    if (knee := study.knee()) is not None:
        return (
            f"Front of {len(study.front())} points; its knee is {point_in_words(knee, study.goals)}"
        )
    if best is None and study.points():
        return "No result: no complete trial keeps the constraints"
    if best is None:
        return (
            "No result yet" if state_of(study) != "finished" else "No result: no trial is complete"
        )
    value = study.value(best)
    before = study.value(baseline) if baseline is not None else None
    if before is None:
        return f"Trial {best.id} reached {metric} {score(value, unit)}; the baseline has no score"
    if best.id == 0:
        others = sum(trial.state == "complete" for trial in study.trials) - 1
        return (
            f"None of {others} other complete trials beat the baseline"
            if others
            else "Only the baseline is complete: nothing to compare yet"
        )
    found = gain(study)
    if found is not None:
        return in_words(found, study.objective)
    part = change(value, before)
    words = "lower" if study.objective.direction == "minimize" else "higher"
    share = f"{100 * abs(part):.1f} % " if part is not None else ""
    return (
        f"Trial {best.id} scored best: {metric} is {share}{words} than the baseline's, in one run"
        " of each"
    )


def verdict(study: Study, bundle: Mapping[str, Any] | None) -> Html:
    """Best against baseline, the bundle, the trials."""
    unit, metric = study.objective.unit, study.objective.metric
    best, baseline = study.best(), study.baseline()
    value = study.value(best) if best else None
    if (knee := study.knee()) is not None:
        value = knee.values[metric]  # with its setting
    before = study.value(baseline) if baseline else None
    apart = value - before if value is not None and before is not None else None
    counts = Counter(trial.state for trial in study.trials)
    full = study.resolved.full_epochs
    tiles = [
        _tile("Baseline (trial 0)", score(before, unit), f"{metric} after {full} epochs"),
        _tile(
            "Best" + (f" (trial {best.id})" if best else ""),
            score(value, unit),
            f"{metric} after {full} epochs"
            + (f", {knee.setting}" if knee is not None and knee.setting is not None else ""),
        ),
        _tile(
            "Difference",
            difference(apart, unit),
            f"{percent(change(value, before))} of the baseline"
            if apart is not None
            else "needs both complete",
        ),
        *_confirmed_tile(study),
        _bundle_tile(study, bundle),
        _tile(
            "Trials",
            str(len(study.trials)),
            ", ".join(f"{n} {state}" for state, n in counts.items()) or "none started",
        ),
    ]
    shown = tag("div", join(tiles), class_="tiles")
    repeated = _repetitions(study)
    return join([shown, *_cautions(study, bundle), repeated, _other_metrics(study, bundle)])


def _confirmed_tile(study: Study) -> list[Html]:
    found, unit = gain(study), study.objective.unit
    if found is None:
        return []
    looks = {"improved": "good", "worse": "bad", "not_shown": ""}
    note = "too few complete repetitions"
    if found.low is not None and found.high is not None:
        ends = f"{difference(found.low, unit)} to {difference(found.high, unit)}"
        note = f"{100 * found.confidence:g} % interval {ends}"
    value = difference(found.difference, unit)
    look = looks[found.verdict]
    return [_tile(f"Difference on {found.wanted} further seeds", value, note, look)]


def _repetitions(study: Study) -> Html:
    """Every run of the confirmation."""
    if not study.confirmations:
        return Html("")
    unit = study.objective.unit
    rows = [
        (
            f"{run.trial}" + (" (baseline)" if run.trial == 0 else ""),
            str(run.seed),
            run.state,
            score(study.value(run), unit),
            f"{run.seconds:.1f}",
        )
        for run in study.confirmations
    ]
    columns = [
        Column("Trial", numeric=True),
        Column("Seed", numeric=True),
        Column("State"),
        Column(study.objective.metric, numeric=True),
        Column("Time [s]", numeric=True),
    ]
    told = (
        "Baseline and winner were trained again on further seeds. Only these runs are compared: the"
        " winner's score in the search helped to choose it and is left out."
    )
    return join([tag("p", told), table("Confirmation on further seeds", columns, rows)])


def _other_metrics(study: Study, bundle: Mapping[str, Any] | None) -> Html:
    """Every validation metric of baseline and best; the bundle knows the units."""
    best, baseline = study.best(), study.baseline()
    if bundle is None or best is None or baseline is None or study.value(baseline) is None:
        return Html("")
    prefix = study.objective.metric.rpartition("/")[0] + "/"
    knee = study.knee()
    setting = knee.setting if knee is not None else None
    rows: list[tuple[object, ...]] = []
    for name, row in bundle["metrics"].items():
        before = baseline.value_at(study.resolved.full_epochs, prefix + name)
        after = best.value_at(study.resolved.full_epochs, prefix + name)
        if setting is not None:
            after = best.settings[setting].get(prefix + name)
        if before is None or after is None:
            continue
        unit = row["unit"]
        rows.append(
            (
                tag("code", prefix + name),
                score(before, unit),
                score(after, unit),
                difference(after - before, unit),
                percent(change(after, before)),
            )
        )
    columns = [
        Column("Metric"),
        Column("Baseline (trial 0)", numeric=True),
        Column(f"Best (trial {best.id}{f', {setting}' if setting else ''})", numeric=True),
        Column("Difference", numeric=True),
        Column("Of the baseline", numeric=True),
    ]
    return table(f"All validation metrics after {study.resolved.full_epochs} epochs", columns, rows)


def _tile(name: str, value: str, note: str, look: str = "") -> Html:
    parts = [tag("p", name, class_="name"), tag("p", value, class_="value"), tag("p", note)]
    return tag("div", join(parts), class_=f"tile {look}".strip())


def change(value: float | None, before: float | None) -> float | None:
    """Return the difference as a share of the earlier value."""
    if value is None or before is None or before == 0:
        return None
    return (value - before) / abs(before)


def _bundle_tile(study: Study, bundle: Mapping[str, Any] | None) -> Html:
    failed = _failed_step(study)
    if failed is not None:
        return _tile("Bundle", "not made", f"step {failed['step']} failed", "bad")
    if bundle is None:
        return _tile("Bundle", "none", "the best trial has not been promoted")
    if bundle["accepted"]:
        return _tile("Bundle", "accepted", "engine and checkpoint agree within the limits", "good")
    return _tile("Bundle", "rejected", "; ".join(bundle.get("rejected", ())), "bad")


def _failed_step(study: Study) -> Mapping[str, Any] | None:
    last = max(study.promotion.values(), key=lambda event: event["time"], default=None)
    return last if last is not None and last["status"] == "failed" else None


def _cautions(study: Study, bundle: Mapping[str, Any] | None) -> list[Html]:
    """What a reader must know before using the result."""
    best, state = study.best(), state_of(study)
    notes: list[object] = []
    if state == "running":
        notes.append("The study is running: this page is a snapshot, and everything may change.")
    if state == "interrupted":
        notes.append("The study was interrupted; the same command resumes it.")
    if study.end_reason:
        notes.append(f"The study ended: {study.end_reason}.")
    found = gain(study)
    if found is not None:
        notes.append(f"{in_words(found, study.objective)}.")
    elif best is not None and best.id != 0:
        notes.append(
            "Baseline and best were each trained once. How much a score varies between seeds was "
            "not measured, and the best of several trials is also the luckiest of them: small "
            "differences may not repeat. A study with confirm: 3 measures it."
        )
    if best is not None and bundle is not None and bundle["trial"] != best.id:
        notes.append(f"The bundle is of trial {bundle['trial']}, which was the best before.")
    failed = _failed_step(study)
    if failed is not None:
        notes.append(f"Promotion step {failed['step']} failed: {failed.get('detail', '')}")
    return [tag("ul", join(tag("li", note) for note in notes), class_="notes")] if notes else []
