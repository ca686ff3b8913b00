"""Sections of the page, each a function from the study to HTML, in the order of the page.

Written for the owner of a model who decides whether the best spec replaces the present one.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping
from typing import Any

import psutil

from automl.algorithms.rungs import WHO_ENDS
from automl.algorithms.table import make_rungs, row_of
from automl.budget import Budget
from automl.contract import NOT_LOADED
from automl.report.figures import kind
from automl.report.importance import Importance, common_epoch
from automl.report.markup import (
    NOTHING,
    Column,
    Html,
    facts,
    join,
    named,
    number,
    percent,
    score,
    table,
    tag,
)
from automl.report.pictures import gallery
from automl.report.verdict import change
from automl.resources import cores, gpus, of_study
from automl.space import Parameter
from automl.store import Study, TrialRecord

FAILURES = ("diverged", "out_of_memory", "invalid_spec", "failed")
DETAIL_LINES = 6  # of a failure shown at once; the rest unfolds


# --- what was tuned -----------------------------------------------------------------------------


def tuned(study: Study) -> Html:
    """The search space with its default and best values, and what was left out and why."""
    best = study.best()
    columns = [
        Column("Parameter"),
        Column("Unit"),
        Column("Range or choices", numeric=True),
        Column("Scale"),
        Column("Baseline", numeric=True),
        Column("Best" + (f" (trial {best.id})" if best else ""), numeric=True),
    ]
    space = study.resolved.space
    baseline = space.defaults(study.resolved.base_spec)
    rows = [_parameter_row(item, baseline, best) for item in space.parameters]
    shown = table("Searched parameters", columns, rows)
    settings = study.resolved.study
    row, rungs = row_of(study.resolved), make_rungs(settings.algorithm, _full(study)).rungs
    meets = ", ".join(map(str, rungs))
    early = (
        f"trials are compared after {meets} epochs: "
        f"{WHO_ENDS[row.pruner].format(factor=settings.algorithm.factor)}; the baseline never ends"
        if rungs
        else "every trial runs to the end"
    )
    better = "lower" if study.objective.direction == "minimize" else "higher"
    limits = {key: value for key, value in vars(settings.budget).items() if value is not None}
    settled = [
        ("Objective", f"{_objective(study)} after {_full(study)} epochs, {better} is better"),
        *(("Objective", f"{named(each.metric, each.unit)}, {each.direction}")
          for each in study.goals.others),
        *(("Constraint", str(limit)) for limit in study.goals.constraints),
        ("Model", settings.model),
        ("Data", f"training {_data(settings.data.train)}; validation {_data(settings.data.val)}"),
        ("Algorithm", f"{settings.algorithm.name}: {row.sampler} proposes; {early}"),
        ("Budget", ", ".join(f"{key} {value}" for key, value in limits.items())),
        ("Confirmation", _confirmation(settings.confirm)),
    ]  # fmt: skip
    return join(
        [
            tag(
                "p",
                "A study changes the fields of the training spec that the trainer's schema names "
                "as candidates, inside the schema's ranges. Trial 0 is the spec as given.",
            ),
            facts(settled),
            shown,
            _dropped(study),
            _not_loaded(study),
        ]
    )


def _not_loaded(study: Study) -> Html:
    """What every trial of a study with partial loading started without, tensor by tensor."""
    if not study.resolved.study.allow_partial_load:
        return Html("")
    found: dict[str, list[int]] = {}
    for trial in study.trials:
        file = study.trial_directory(trial.id) / NOT_LOADED
        if file.is_file():
            found.setdefault(file.read_text("utf-8"), []).append(trial.id)
    parts: list[object] = [
        tag(
            "p",
            "Partial loading is allowed: a trial takes from the start weights what fits its "
            "structure; the tensors listed here start new.",
        )
    ]
    rows = [
        (", ".join(map(str, trials)), str(len(lines.splitlines())), _detail(lines))
        for lines, trials in found.items()
    ]
    columns = [Column("Trials"), Column("Tensors", numeric=True), Column("Not loaded")]
    parts.append(
        table("Tensors without stored values", columns, rows)
        if rows
        else tag("p", "Every trial so far found a value for every tensor.")
    )
    return join(parts)


def _confirmation(count: int) -> str:
    if not count:
        return "none: baseline and best are trained once"
    return f"baseline and best are trained again on {count} further seeds"


def _full(study: Study) -> int:
    return study.resolved.full_epochs


def _objective(study: Study) -> str:
    return named(study.objective.metric, study.objective.unit_words)


def _data(chosen: str | tuple[str, ...]) -> str:
    return chosen if isinstance(chosen, str) else ", ".join(chosen)


def _parameter_row(
    item: Parameter, baseline: Mapping[str, Any], best: TrialRecord | None
) -> list[object]:
    if item.type == "choice":
        values, scale = ", ".join(map(str, item.choices)), "choice"
    else:
        values = f"{number(item.low)} to {number(item.high)}"
        scale = "logarithmic" if item.log else "linear"
        scale += f", multiples of {item.step}" if item.step else ""
    before = baseline.get(item.path)
    inside = before is None or item.contains(before)
    after = best.params.get(item.path) if best else None
    changed = best is not None and after != before
    name = tag("code", item.path)
    if item.condition:
        needs = " and ".join(
            f"{path} = {' or '.join(map(str, values))}" for path, values in item.condition.items()
        )
        name = join([name, tag("span", f"acts when {needs}", class_="remark")])
    return [
        name,
        item.unit or NOTHING,
        values,
        scale,
        number(before) + ("" if inside else " (outside)"),
        tag("strong", number(after)) if changed else number(after),
    ]


def _dropped(study: Study) -> Html:
    dropped = study.resolved.space.dropped
    if not dropped:
        return tag("p", "No candidate was left out.")
    rows = [(tag("code", item.path), item.reason) for item in dropped]
    inner = table("Candidates that are not searched", [Column("Field"), Column("Reason")], rows)
    summary = tag("summary", f"{len(rows)} left out")
    return tag("details", join([summary, inner]), open="")


# --- the front ---------------------------------------------------------------------------------


def front(study: Study) -> Html:
    """The points of the front, and the limits that they keep."""
    goals, knee = study.goals, study.knee()
    limits = ", ".join(str(limit) for limit in goals.constraints)
    kept = f" Only points that keep {limits} are on it." if limits else ""
    columns = [
        Column("Point"),
        Column("Setting"),
        *(Column(named(name, unit), numeric=True) for name, unit in goals.units.items()),
    ]
    rows = [
        (
            f"{point.name}" + (" (knee)" if point == knee else ""),
            str(point.setting) if point.setting is not None else NOTHING,
            *(score(point.values[name], unit) for name, unit in goals.units.items()),
        )
        for point in study.front()
    ]
    if not rows:
        return tag("p", "No complete trial is on the front yet." + kept)
    marked = {index: "best" for index, point in enumerate(study.front()) if point == knee}
    told = (
        "Of these points none beats another in all objectives. The knee is promoted unless "
        "`automl promote --select POINT` names another." + kept
    )
    return join([tag("p", told), table("The front", columns, rows, marked=marked)])


# --- trials -------------------------------------------------------------------------------------


def trials(study: Study) -> Html:
    """Every trial with what it reached and what it cost; the best first."""
    loss = study.objective.loss
    unit, metric = study.objective.unit, study.objective.metric

    def order(trial: TrialRecord) -> tuple[int, float, int]:
        value = trial.value_at(trial.last_epoch, metric)
        return -trial.last_epoch, loss(value) if value is not None else float("inf"), trial.id

    ranked = sorted(study.trials, key=order)
    columns = [
        Column("Trial", numeric=True),
        Column("State"),
        Column("Epochs", numeric=True),
        Column(_objective(study), numeric=True),
        Column("Against the baseline at the same epoch", numeric=True),
        Column("Time [s]", numeric=True),
        Column("Time per epoch [s]", numeric=True),
        Column("Peak memory [MiB]", numeric=True),
        Column("Times started", numeric=True),
    ]
    rows: list[tuple[object, ...]] = []
    marked: dict[int, str] = {}
    for trial in ranked:
        value = trial.value_at(trial.last_epoch, metric)
        before = _baseline_at(study, trial.last_epoch)
        look = kind(study, trial)
        if look in ("best", "baseline"):
            marked[len(rows)] = look
        peak = trial.peak_memory
        rows.append(
            (
                str(trial.id),
                trial.state + (f" ({look})" if look in ("best", "baseline") else ""),
                f"{trial.last_epoch} of {_full(study)}",
                score(value, unit).removesuffix(f" {unit}").removesuffix(" %"),
                percent(change(value, before)) if trial.id else NOTHING,
                f"{trial.seconds:.1f}",
                f"{trial.seconds / trial.last_epoch:.2f}" if trial.last_epoch else NOTHING,
                NOTHING if peak is None else f"{peak:.0f}",
                str(trial.attempts),
            )
        )
    return table("All trials, furthest and best first", columns, rows, marked=marked)


def _baseline_at(study: Study, epoch: int) -> float | None:
    baseline = study.baseline()
    return baseline.value_at(epoch, study.objective.metric) if baseline else None


def cost(study: Study) -> Html:
    """Time, epochs and memory of the whole study."""
    share = of_study(study.resolved.study)
    device, per = ("GPU", share.gpus) if share.gpus else ("core", share.cpus)
    seconds = sum(trial.seconds for trial in study.trials)
    again = sum(run.seconds for run in study.confirmations)
    epochs = sum(trial.last_epoch for trial in study.trials)
    failed = sum(trial.seconds for trial in study.trials if trial.state in FAILURES)
    peaks = [peak for trial in study.trials if (peak := trial.peak_memory) is not None]
    full = len(study.trials) * _full(study)
    hours = number((seconds + again) * per / 3600)
    spent = Budget.of(study.resolved.study).spent(study)
    price = study.resolved.study.budget.cost_per_hour
    repeated = [("Confirmation", f"{again:.1f} s of training")] if again else []
    paid = [("Cost", f"{spent:.2f} at {price:g} per hour")] if spent is not None else []
    return facts(
        [
            ("Device time", f"{hours} {device}-hours ({seconds + again:.1f} s of training)"),
            *repeated,
            ("Wall time", f"{study.active_seconds() / 60:.1f} min, all sessions together"),
            *paid,
            ("Epochs", f"{epochs} finished; {full} if every trial had run to the end"),
            ("Spent on failed trials", f"{failed:.1f} s"),
            ("Peak memory of one trial", f"{max(peaks):.0f} MiB" if peaks else "not reported"),
        ]
    )  # fmt: skip


def failures(study: Study) -> Html:
    """What failed, by class, with the reason of each trial."""
    failed = [trial for trial in study.trials if trial.state in FAILURES]
    retried = [trial for trial in study.trials if trial.retries]
    parts: list[object] = []
    if not failed:
        parts.append(tag("p", "No trial failed."))
    else:
        counts = Counter(trial.state for trial in failed)
        columns = [
            Column("Class"),
            Column("Trials of the class", numeric=True),
            Column("Trial", numeric=True),
            Column("Finished epochs", numeric=True),
            Column("Reason"),
        ]
        failed.sort(key=lambda trial: (FAILURES.index(trial.state), trial.id))
        rows = [
            (t.state, str(counts[t.state]), str(t.id), str(t.last_epoch), _detail(t.detail))
            for t in failed
        ]
        parts.append(table("Failed trials by class", columns, rows))
    if retried:
        names = ", ".join(f"trial {trial.id} ({trial.retries} times)" for trial in retried)
        parts.append(tag("p", f"Started again after a failure: {names}."))
    return join(parts)


def _detail(detail: str) -> Html:
    lines = detail.strip().splitlines() or [NOTHING]
    if len(lines) <= DETAIL_LINES:
        return tag("pre", "\n".join(lines))
    summary = tag("summary", f"{lines[0]} … ({len(lines)} lines)")
    return tag("details", join([summary, tag("pre", "\n".join(lines))]))


# --- importance ---------------------------------------------------------------------------------


def importance_text(study: Study, found: Importance) -> Html:
    """What the ranking rests on, or why there is none."""
    if found.probe is None and found.trials < found.needed:
        return tag(
            "p",
            join(
                [
                    tag("strong", "Too few trials to rank."),
                    f"{found.trials} trials have a value at an equal epoch ({found.epoch}); with "
                    f"{len(study.resolved.space.parameters)} parameters a ranking needs at least "
                    f"{found.needed}. Any order shown here would be mostly chance.",
                ]
            ),
            class_="callout",
        )
    if found.probe is None:
        return tag("p", "All trials have the same value, so there is nothing to rank.")
    above = [share.path for share in found.shares if found.stands_out(share)]
    told = ", ".join(above) if above else "no parameter"
    rows = [
        (
            tag("code", share.path),
            f"{100 * share.value:.1f} %",
            f"{100 * share.low:.1f} % to {100 * share.high:.1f} %",
            "above the noise floor" if found.stands_out(share) else NOTHING,
        )
        for share in (*found.shares, found.probe)
    ]
    columns = [
        Column("Parameter"),
        Column("Share of the variance", numeric=True),
        Column("90 % interval", numeric=True),
        Column("Verdict"),
    ]
    return join(
        [
            tag(
                "p",
                f"fANOVA of {study.objective.metric} after epoch {found.epoch}, from "
                f"{found.trials} trials, repeated on bootstrap samples of them. The probe is a "
                f"parameter of random numbers: what does not rise above it cannot be told from "
                f"noise. Above the noise floor: {told}.",
            ),
            tag("details", join([tag("summary", "Numbers"), table("Importance", columns, rows)])),
        ]
    )


# --- pictures and machine -----------------------------------------------------------------------


def pictures(study: Study) -> Html:
    """Validation samples as baseline and best see them."""
    shown = gallery(study)
    if not shown:
        return tag("p", "No pictures: they are drawn when the best trial is promoted.")
    step = study.promotion.get("inference", {})
    trial = f" (trial {step['trial']})" if "trial" in step else ""
    return join(
        [
            tag(
                "p",
                f"The first validation samples. Best{trial} and baseline share one colour scale "
                "per sample; black is unknown.",
            ),
            shown,
        ]
    )


def machine(study: Study, bundle: Mapping[str, Any] | None) -> Html:
    """Where, with what and from which seed."""
    sessions = [event for event in study.events if event["kind"] == "session_started"]
    hosts = dict.fromkeys(event.get("host", "unknown") for event in sessions)
    share = of_study(study.resolved.study)
    trials = f"{share.max_concurrent} at once, cores of each: {number(share.cpus)}"
    trials += f", GPUs of each: {number(share.gpus)}"
    memory = f"{psutil.virtual_memory().total / 2**30:.0f} GiB memory"
    here = f"{platform.node()}, {platform.system()} {platform.machine()}"
    rows: list[tuple[str, object]] = [
        ("Seed", str(study.resolved.study.seed)),
        ("Profile", study.resolved.study.profile),
        ("Sessions", f"{len(sessions)} on {', '.join(hosts) or 'no host'}"),
        ("Trials", trials),
        ("Page written on", f"{here}, cores: {cores()}, GPUs: {gpus()}, {memory}"),
        ("depthtune", study.resolved.code_version),
    ]
    versions = dict(bundle["versions"]) if bundle else {"python": platform.python_version()}
    versions.pop("depthtune", None)
    rows += list(versions.items())
    return facts(rows)


def comparable_note(study: Study) -> str:
    """Return which values of the page may be compared."""
    epoch = common_epoch(study)
    return (
        f"Filled marks are complete trials ({_full(study)} epochs) and comparable with each other. "
        "Hollow marks ended earlier and stand at their last epoch"
        + (
            f"; all ended trials without failure have a value after epoch {epoch}."
            if epoch
            else "."
        )
    )
