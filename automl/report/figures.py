"""The charts of a report, as plotly figures.

Every value of the objective in a chart is the number in `trials.csv`, unrounded. Colours are
those of Okabe and Ito (told apart by colour-blind readers) with at least 3:1 on white, and every
state has a marker of its own as well.
"""

# pyright: standard
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from automl.algorithms.table import make_rungs
from automl.contract import Objective
from automl.objectives import Point, covered, in_words
from automl.report.importance import Importance, Share, common_epoch, compared, position
from automl.report.markup import FRACTION, named, number, score
from automl.space import Parameter
from automl.store import Study, TrialRecord

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

INK, GREY, GRID = "#1b1f24", "#767676", "#dfe3e8"
BLUE, GREEN, VERMILION, PURPLE = "#0072B2", "#00835d", "#c75000", "#a8558a"
GOOD_TO_BAD = ("#00204d", "#31446b", "#666970", "#8f8670", "#ab9f73")  # cividis, dark is good
LOG_FROM = 5.0  # largest over smallest value from which an axis is logarithmic


@dataclass(frozen=True)
class Look:
    """How the trials of one kind are drawn."""

    label: str
    color: str
    symbol: str
    width: float = 1.5
    dash: str = "solid"
    size: int = 10


LOOKS = {
    "stopped": Look("stopped early", GREY, "circle-open"),
    "running": Look("running", PURPLE, "triangle-up"),
    "failed": Look("failed", VERMILION, "x", dash="dot"),
    "complete": Look("complete", GREEN, "circle", 2.0),
    "baseline": Look("baseline (trial 0)", INK, "square", 3.0, "dash"),
    "best": Look("best", BLUE, "star", 3.5, size=14),
}


def kind(study: Study, trial: TrialRecord) -> str:
    """Return the key of `LOOKS` for a trial."""
    best = study.best()
    if best is not None and trial.id == best.id:
        return "best"
    if trial.id == 0:
        return "baseline"
    return trial.state if trial.state in LOOKS else "failed"


def history(study: Study) -> Figure:
    """Every trial at its last epoch, and the best complete value so far."""
    figure = _figure(study)
    found = [(trial, _last(study, trial)) for trial in study.trials]
    for name, look in LOOKS.items():
        points = [(t, v) for t, v in found if v is not None and kind(study, t) == name]
        if points:
            figure.add_scatter(
                x=[trial.id for trial, _ in points],
                y=[value for _, value in points],
                mode="markers",
                name=look.label,
                marker={"color": look.color, "symbol": look.symbol, "size": look.size,
                        "line": {"width": 2, "color": look.color}},
                text=[_hover(study, trial) for trial, _ in points],
                hovertemplate="%{text}<extra></extra>",
            )  # fmt: skip
    _best_so_far(figure, study)
    for trial, value in found:
        if value is None:
            figure.add_annotation(x=trial.id, y=0, yref="paper", yanchor="bottom",
                                  text=trial.state, textangle=-90, bgcolor="#ffffff",
                                  showarrow=False, hovertext=_hover(study, trial),
                                  font={"color": VERMILION, "size": 11})  # fmt: skip
    figure.update_xaxes(title_text="trial", tickformat="d", range=[-0.7, len(found) - 0.3])
    if len(found) <= 30:
        figure.update_xaxes(dtick=1)
    _value_axis(figure, study, [value for _, value in found if value is not None])
    return figure


def _best_so_far(figure: Figure, study: Study) -> None:
    steps: list[tuple[int, float]] = []
    for trial in study.trials:
        value = study.value(trial)
        loss = study.objective.loss
        if value is not None and (not steps or loss(value) < loss(steps[-1][1])):
            steps.append((trial.id, value))
    if steps:
        steps.append((len(study.trials) - 1, steps[-1][1]))
        figure.add_scatter(
            x=[trial for trial, _ in steps],
            y=[value for _, value in steps],
            mode="lines",
            name="best complete so far",
            line={"color": BLUE, "width": 2, "shape": "hv"},
            hoverinfo="skip",
        )


def learning_curves(study: Study) -> Figure:
    """The objective over epochs of every trial; rungs are dotted lines."""
    figure = _figure(study)
    seen: list[float] = []
    for name, look in LOOKS.items():
        members = [trial for trial in study.trials if kind(study, trial) == name and trial.epochs]
        for index, trial in enumerate(members):
            epochs = [record.epoch for record in trial.epochs]
            values = [trial.value_at(epoch, study.objective.metric) for epoch in epochs]
            seen += [value for value in values if value is not None]
            figure.add_scatter(
                x=epochs,
                y=values,
                mode="lines+markers",
                name=look.label,
                legendgroup=name,
                showlegend=index == 0,
                meta=trial.id,
                line={"color": look.color, "width": look.width, "dash": look.dash},
                marker={"symbol": look.symbol, "size": 5 if look.width < 3 else 8},
                hovertemplate=f"trial {trial.id}, epoch %{{x}}: %{{y:.4~g}}<extra></extra>",
            )
    full = study.resolved.full_epochs
    for rung in make_rungs(study.resolved.study.algorithm, full).rungs:
        figure.add_vline(x=rung, line={"color": GREY, "width": 1, "dash": "dot"},
                         annotation={"text": f"rung {rung}", "font": {"size": 11, "color": GREY}},
                         annotation_position="top right")  # fmt: skip
    figure.update_xaxes(title_text="finished epochs", tickformat="d", range=[0.5, full + 0.5])
    if full <= 20:
        figure.update_xaxes(dtick=1)
    _value_axis(figure, study, seen)
    return figure


def sweep(study: Study) -> Figure | None:
    """The objective of complete trials over the settings they can be run with, where they can."""
    metric = study.objective.metric
    lines = [
        (trial, [(setting, values[metric]) for setting, values in trial.settings.items()])
        for trial in study.trials
        if trial.settings
    ]
    if not lines:
        return None
    figure, shown = _figure(study), set[str]()
    for trial, points in lines:
        name = kind(study, trial)
        look = LOOKS[name]
        figure.add_scatter(
            x=[setting.value for setting, _ in points],
            y=[value for _, value in points],
            mode="lines+markers",
            name=look.label,
            legendgroup=name,
            showlegend=name not in shown,
            meta=trial.id,
            line={"color": look.color, "width": look.width, "dash": look.dash},
            marker={"symbol": look.symbol, "size": 6 if look.width < 3 else 9},
            hovertemplate=f"trial {trial.id}, %{{x}}: %{{y:.4~g}}<extra></extra>",
        )
        shown.add(name)
    figure.update_xaxes(title_text=escape(lines[0][1][0][0].field), tickformat="d", dtick=1)
    _value_axis(figure, study, [value for _, points in lines for _, value in points])
    return figure


def front(study: Study) -> Figure | None:
    """The leading objective over the first other one; the settings of a trial are joined.

    Other objectives have their columns in `front.csv`. None without points.
    """
    points, best = study.points(), study.front()
    if not points or not study.goals.others:
        return None
    cost, figure = study.goals.others[0], _figure(study)
    along: dict[int, list[Point]] = {}
    for point in points:
        along.setdefault(point.trial, []).append(point)
    for index, (trial, group) in enumerate(along.items()):
        look = LOOKS["baseline" if trial == 0 else "complete"]
        _points(figure, study, cost, group, mode="lines+markers", meta=trial,
                name="a complete trial and its settings", showlegend=index == 0,
                line={"color": GREY, "width": 1, "dash": look.dash},
                marker={"color": GREY, "symbol": look.symbol, "size": 6})  # fmt: skip
    if best:
        _points(figure, study, cost, best, mode="lines+markers", name="front", meta="front",
                line={"color": BLUE, "width": 2, "shape": "vh"},
                marker={"color": BLUE, "size": 8})  # fmt: skip
    knee = study.knee()
    if knee is not None:
        _points(figure, study, cost, [knee], mode="markers", name="knee", meta="knee",
                marker={"color": VERMILION, "symbol": "star", "size": 15})  # fmt: skip
    for limit in study.goals.constraints:
        if limit.metric == cost.metric:
            figure.add_vline(
                x=limit.limit,
                line={"color": VERMILION, "dash": "dot", "width": 1},
                annotation={"text": escape(str(limit)), "font": {"size": 11}},
            )
    figure.update_xaxes(title_text=escape(named(cost.metric, cost.unit)), tickformat=".3~g")
    _value_axis(figure, study, [point.values[study.objective.metric] for point in points])
    return figure


def _points(
    figure: Figure, study: Study, cost: Objective, points: Sequence[Point], **look: Any
) -> None:
    figure.add_scatter(
        x=[point.values[cost.metric] for point in points],
        y=[point.values[study.objective.metric] for point in points],
        text=[escape(in_words(point, study.goals)) for point in points],
        hovertemplate="%{text}<extra></extra>",
        **look,
    )


def covered_share(study: Study) -> Figure | None:
    """The share of the objectives' ranges that the front covers, after each ended trial."""
    points = study.points()
    if not points or not study.goals.others:
        return None
    ended = sorted((t for t in study.trials if t.ended is not None), key=lambda t: (t.ended, t.id))
    shares = [
        covered(study.points(ended[: count + 1]), points, study.goals)
        for count in range(len(ended))
    ]
    figure = _figure(study)
    figure.add_scatter(
        x=list(range(1, len(ended) + 1)),
        y=shares,
        customdata=[trial.id for trial in ended],
        mode="lines+markers",
        line={"color": BLUE, "width": 2, "shape": "hv"},
        hovertemplate="trial %{customdata}: %{y:.1%}<extra></extra>",
    )
    figure.update_xaxes(title_text="ended trials", tickformat="d")
    if len(ended) <= 30:
        figure.update_xaxes(dtick=1)
    figure.update_yaxes(title_text="covered by the front (hypervolume)", tickformat=".0%",
                        rangemode="tozero")  # fmt: skip
    return figure


def parallel(study: Study) -> Figure | None:
    """One line per trial through its parameters, coloured by the value after a common epoch.

    Drawn top to bottom, one row per parameter, so that its name can be read. `customdata` holds
    the parameters' values; `x` is where a value lies in its range. None without a common epoch.
    """
    parameters = study.resolved.space.parameters
    loss = study.objective.loss
    found = sorted(compared(study), key=lambda item: -loss(item[1]))
    if not found:
        return None
    figure = _figure(study)
    rows = [escape(parameter.path) for parameter in parameters]
    values = [value for _, value in found]
    for trial, value in found:
        look = LOOKS.get(kind(study, trial), LOOKS["complete"])
        special = look.label in ("best", LOOKS["baseline"].label)
        acting = [
            (row, p) for row, p in zip(rows, parameters, strict=True) if p.path in trial.params
        ]
        figure.add_scatter(
            x=[position(parameter, trial.params[parameter.path]) for _, parameter in acting],
            y=[row for row, _ in acting],
            customdata=[trial.params[parameter.path] for _, parameter in acting],
            mode="lines+markers",
            meta=trial.id,
            name=look.label,
            showlegend=special,
            line={"color": _shade(value, values, loss), "width": 4 if special else 1.3,
                  "dash": look.dash if special else "solid"},
            marker={"symbol": look.symbol if special else "circle", "size": 10 if special else 6},
            hovertemplate=f"trial {trial.id}: %{{y}} = %{{customdata}}, "
            f"{escape(_score(study, value))}<extra></extra>",
        )  # fmt: skip
    figure.add_scatter(x=[None], y=[rows[0]], mode="markers", showlegend=False, hoverinfo="skip",
                       marker=_color_bar(study, values))  # fmt: skip
    for row, parameter in zip(rows, parameters, strict=True):
        for end, (place, anchor) in enumerate(((0, "left"), (1, "right"))):
            figure.add_annotation(x=place, y=row, text=escape(_ends(parameter)[end]), yshift=11,
                                  xanchor=anchor, showarrow=False,
                                  font={"size": 11, "color": GREY})  # fmt: skip
    figure.update_xaxes(range=[-0.03, 1.03], showticklabels=False, title_text="", zeroline=False,
                        tickvals=[0, 1])  # fmt: skip
    _name_rows(figure, [parameter.path for parameter in parameters])
    figure.update_yaxes(range=[-0.5, len(rows) - 0.3])
    figure.update_layout(height=150 + 56 * len(rows), hovermode="closest")
    return figure


def _color_bar(study: Study, values: Sequence[float]) -> dict[str, Any]:
    minimize = study.objective.direction == "minimize"
    colors = GOOD_TO_BAD if minimize else GOOD_TO_BAD[::-1]
    last = len(colors) - 1
    title = (
        f"{named(study.objective.metric, study.objective.unit_words)}, epoch {common_epoch(study)}"
    )
    return {
        "color": [values[0]],
        "cmin": min(values),
        "cmax": max(values),
        "colorscale": [[i / last, color] for i, color in enumerate(colors)],
        "showscale": True,
        "colorbar": {"orientation": "h", "thickness": 10, "len": 0.6, "y": -0.02, "yanchor": "top",
                     "title": {"text": escape(title), "side": "bottom"},
                     "tickformat": _tick_format(study)},
    }  # fmt: skip


def _shade(value: float, values: Sequence[float], loss: Any) -> str:
    """The colour of a value between the best and the worst."""
    losses = [loss(each) for each in values]
    low, high = min(losses), max(losses)
    at = (loss(value) - low) / (high - low) * (len(GOOD_TO_BAD) - 1) if high > low else 0.0
    index = min(int(at), len(GOOD_TO_BAD) - 2)
    pairs = zip(_channels(GOOD_TO_BAD[index]), _channels(GOOD_TO_BAD[index + 1]), strict=True)
    mixed = [round(a + (b - a) * (at - index)) for a, b in pairs]
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def _channels(color: str) -> list[int]:
    return [int(color[start : start + 2], 16) for start in (1, 3, 5)]


def _ends(parameter: Parameter) -> tuple[str, str]:
    if parameter.type == "choice":
        return str(parameter.choices[0]), str(parameter.choices[-1])
    return number(parameter.low), number(parameter.high) + (" (log)" if parameter.log else "")


def importances(study: Study, found: Importance) -> Figure | None:
    """Shares of the variance with their intervals over the probe's; None without a ranking."""
    if found.probe is None:
        return None
    figure = _figure(study)
    groups = (
        ("above the noise floor", BLUE, [s for s in found.shares if found.stands_out(s)]),
        ("not told apart from noise", GREY, [s for s in found.shares if not found.stands_out(s)]),
        ("noise floor", VERMILION, [found.probe]),
    )
    for label, color, shares in groups:
        if shares:
            figure.add_bar(
                x=[share.value for share in shares],
                y=[escape(share.path) for share in shares],
                orientation="h",
                name=label,
                marker={"color": color},
                error_x=_interval(shares),
                hovertemplate="%{y}: %{x:.1%}<extra></extra>",
            )
    names = [share.path for share in (*found.shares, found.probe)]
    figure.add_vrect(x0=0, x1=found.probe.high, fillcolor=VERMILION, opacity=0.1, line_width=0)
    figure.update_xaxes(title_text="share of the variance, with 90 % interval", tickformat=".0%",
                        rangemode="tozero")  # fmt: skip
    _name_rows(figure, names)
    figure.update_layout(height=140 + 28 * len(names), barmode="overlay", bargap=0.35)
    return figure


def _interval(shares: Iterable[Share]) -> dict[str, Any]:
    shares = list(shares)
    return {
        "type": "data",
        "symmetric": False,
        "array": [share.high - share.value for share in shares],
        "arrayminus": [share.value - share.low for share in shares],
        "color": INK,
        "thickness": 1.5,
        "width": 4,
    }


# --- what all charts share ----------------------------------------------------------------------


def _figure(study: Study) -> Figure:
    from plotly.graph_objects import Figure

    figure = Figure()
    figure.update_layout(
        template="none",
        height=430,
        margin={"l": 10, "r": 10, "t": 60, "b": 10},
        font={"family": "system-ui, sans-serif", "size": 13, "color": INK},
        paper_bgcolor="#ffffff",
        plot_bgcolor="#ffffff",
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        hoverlabel={"bgcolor": "#ffffff", "font": {"color": INK}},
    )
    axis: dict[str, Any] = {
        "gridcolor": GRID,
        "zeroline": False,
        "automargin": True,
        "linecolor": GREY,
    }
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    return figure


def _name_rows(figure: Figure, paths: Sequence[str]) -> None:
    """Rows from top to bottom, by the last part of a path where that is enough to tell it."""
    leaves = [path.rpartition(".")[2] for path in paths]
    short = [
        ".".join(path.split(".")[-2:]) if leaves.count(leaf) > 1 else leaf
        for path, leaf in zip(paths, leaves, strict=True)
    ]
    rows = [escape(path) for path in paths]
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=rows[::-1],
                        tickvals=rows, ticktext=[escape(name) for name in short])  # fmt: skip


def _value_axis(figure: Figure, study: Study, values: Sequence[float]) -> None:
    title = escape(named(study.objective.metric, study.objective.unit_words))
    figure.update_yaxes(title_text=title, tickformat=_tick_format(study))
    if values and min(values) > 0 and max(values) / min(values) > LOG_FROM:
        figure.update_yaxes(type="log", title_text=f"{title}, logarithmic", dtick="D2")


def _tick_format(study: Study) -> str:
    return ".3~%" if study.objective.unit == FRACTION else ".3~g"


def _last(study: Study, trial: TrialRecord) -> float | None:
    return trial.value_at(trial.last_epoch, study.objective.metric)


def _score(study: Study, value: float | None) -> str:
    return f"{study.objective.metric} {score(value, study.objective.unit)}"


def _hover(study: Study, trial: TrialRecord) -> str:
    comparable = "" if trial.state == "complete" else " (not comparable with complete trials)"
    lines = [
        f"trial {trial.id}: {trial.state} after {trial.last_epoch} epochs{comparable}",
        _score(study, _last(study, trial)),
        *(f"{path} = {number(value)}" for path, value in trial.params.items()),
    ]
    return "<br>".join(escape(line) for line in lines)
