"""One self-contained HTML page of a study, with `trials.csv` and `best_spec.yaml` beside it.

The page needs no network: plotly.js is inside, compressed, and a content policy forbids every
request. All files are written to a temporary name and renamed.
"""

# pyright: standard
from __future__ import annotations

import base64
import gzip
import json
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from automl.report import delivery, figures, sections, verdict
from automl.report.importance import Importance, common_epoch, importance
from automl.report.markup import Html, join, tag, text
from automl.store import Study

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure

PAGE, CSV, SPEC = "report.html", "trials.csv", "best_spec.yaml"
REPETITIONS, SWEEP, FRONT = "confirm.csv", "sweep.csv", "front.csv"


def write_report(study: Study, path: Path | None = None) -> Path:
    """Write the report of a study in any state and return the page's path.

    Args:
        study: running, interrupted or finished; open or read.
        path: the page; the other files go beside it. Default: `report.html` in the study.

    Raises:
        UnreadableError: `bundle.json` is damaged or newer.
    """
    page = path or study.directory / PAGE
    content = render(study)
    _write(page.with_name(CSV), trials_frame(study).to_csv(index=False))
    if study.confirmations:
        _write(page.with_name(REPETITIONS), study.confirm_frame().to_csv(index=False))
    if any(trial.settings for trial in study.trials):
        _write(page.with_name(SWEEP), study.sweep_frame().to_csv(index=False))
    if study.goals.weighs and study.points():
        _write(page.with_name(FRONT), study.front_frame().to_csv(index=False))
    spec = delivery.specs(study)[1]
    if spec is not None:
        _write(page.with_name(SPEC), spec)
    _write(page, content)
    return page


def trials_frame(study: Study) -> pd.DataFrame:
    """Return the study's table with peak memory and the objective after every epoch.

    Columns besides those of `Study.dataframe`: `peak_memory_mb`, and `<metric>@<epoch>` for each
    epoch up to a full run; every other metric after the trial's last epoch. Fractions stay
    fractions. Every value in a chart is in here.
    """
    frame = study.dataframe()
    metric = study.objective.metric
    for parameter in study.resolved.space.parameters:
        if parameter.type == "int":  # empty cells would turn whole numbers into 16.0
            frame[parameter.path] = frame[parameter.path].astype("Int64")
    frame["peak_memory_mb"] = [trial.peak_memory for trial in study.trials]
    for epoch in range(1, study.resolved.full_epochs + 1):
        frame[f"{metric}@{epoch}"] = [trial.value_at(epoch, metric) for trial in study.trials]
    names = {name for trial in study.trials for record in trial.epochs for name in record.metrics}
    for name in sorted(names - {metric, "seconds", "peak_memory_mb"}):
        frame[name] = [trial.value_at(trial.last_epoch, name) for trial in study.trials]
    return frame


def render(study: Study) -> str:
    """Return the page."""
    bundle = delivery.read_bundle(study)
    found = importance(study)
    charts = _charts(study, found)
    parts = {
        "Verdict": verdict.verdict(study, bundle),
        **_front(study, charts),
        "What was tuned": sections.tuned(study),
        "History": join([_chart(study, charts, "history"), sections.trials(study)])
        if study.trials
        else tag("p", "No trial has started."),
        "Learning curves": _chart(study, charts, "learning_curves"),
        **({"Sweep": _chart(study, charts, "sweep")} if "sweep" in charts else {}),
        "Parameters and results": _chart(study, charts, "parallel"),
        "Importance": join(
            [sections.importance_text(study, found), _chart(study, charts, "importances")]
            if "importances" in charts
            else [sections.importance_text(study, found)]
        ),
        "Failures": sections.failures(study),
        "Cost": sections.cost(study),
        "Pictures": sections.pictures(study),
        "Parity": delivery.parity(study, bundle),
        "Best spec": delivery.best_spec(study),
        "Machine": sections.machine(study, bundle),
    }
    title = f"{study.name}: {verdict.headline(study)}"
    written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    template = Template(resources.files("automl.report").joinpath("page.html").read_text("utf-8"))
    return template.substitute(
        title=text(title),
        headline=text(verdict.headline(study)),
        under=text(
            f"Study {study.name} of model {study.resolved.study.model}, "
            f"{verdict.state_of(study)}; written {written}"
        ),
        links=join(
            tag("li", tag("a", name, href=f"#{_identifier(name)}")) for name in parts
        ),
        sections=join(_section(name, content) for name, content in parts.items()),
        footer=text(f"depthtune {study.resolved.code_version}. All values are in {CSV}."),
        charts=_json({key: json.loads(str(figure.to_json())) for key, figure in charts.items()}),
        plotly=_library(),
    )  # fmt: skip


def _front(study: Study, charts: dict[str, Figure]) -> dict[str, Html]:
    """What several objectives and constraints leave to choose from."""
    if not study.goals.weighs:
        return {}
    drawn = [_chart(study, charts, key) for key in ("front", "covered") if key in charts]
    return {"Front": join([*drawn[:1], sections.front(study), *drawn[1:]])}


def _charts(study: Study, found: Importance) -> dict[str, Figure]:
    made = {
        "history": figures.history(study) if study.trials else None,
        "learning_curves": figures.learning_curves(study) if _has_epochs(study) else None,
        "sweep": figures.sweep(study),
        "front": figures.front(study) if study.goals.weighs else None,
        "covered": figures.covered_share(study) if study.goals.weighs else None,
        "parallel": figures.parallel(study),
        "importances": figures.importances(study, found),
    }
    return {key: figure for key, figure in made.items() if figure is not None}


def _has_epochs(study: Study) -> bool:
    return any(trial.epochs for trial in study.trials)


def _captions(study: Study) -> dict[str, str]:
    return {
        "history": sections.comparable_note(study),
        "learning_curves": "One line per trial. At a rung (dotted) the weaker trials are ended.",
        "front": (
            "Every way to use a complete trial. What lies below or left of the front does not "
            f"exist; the knee is the best trade. All values are in {FRONT}."
        ),
        "covered": (
            "The share of the box around all points that the front covers, after each ended trial: "
            "a line that stays flat means that more trials would bring little."
        ),
        "sweep": (
            "What each complete trial scores with other values of this field: measured in its last "
            f"validation, without further training. All metrics are in {SWEEP}."
        ),
        "parallel": (
            f"One line per trial, coloured by {study.objective.metric} after epoch "
            f"{common_epoch(study)}, the last that every ended trial without failure has reached; "
            "dark is better. Marks stand where a value lies in its range. A parameter whose dark "
            "marks lie together matters."
        ),
        "importances": "Bars are means over bootstrap samples; the shaded band is the noise floor.",
    }


def _chart(study: Study, charts: dict[str, Figure], key: str) -> Html:
    if key not in charts:
        return tag("p", "No trial has a value to show.")
    caption = _captions(study)[key]
    place = tag("div", "", id=key, class_="chart", role="img", aria_label=caption)
    return tag("figure", join([place, tag("figcaption", caption)]))


def _section(name: str, content: Html) -> Html:
    key = _identifier(name)
    title = tag("h2", name, id=f"{key}-title")
    return tag("section", join([title, content]), id=key, aria_labelledby=f"{key}-title")


def _identifier(name: str) -> str:
    return name.lower().replace(" ", "-")


def _json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")


def _library() -> str:
    plain = resources.files("plotly").joinpath("package_data", "plotly.min.js").read_bytes()
    return base64.b64encode(gzip.compress(plain, 9, mtime=0)).decode()


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(content, encoding="utf-8")
    temporary.replace(path)
