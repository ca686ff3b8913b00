"""Pictures of validation samples, from files that the trainer wrote, as parts of the page.

`<study>/pictures/{baseline,best}/pictures.json` lists the samples in one order. Of each it has a
`name`, the files `image`, `truth`, `prediction`, `error`, a `score` with its `metric` and `unit`,
what is shown (`quantity`), and the bars `scale` and `error_scale`, each with `low`, `high`, `unit`
and the `colors` between them. The page stays small: a picture larger than the page shows it is
reduced, and all have a limit in bytes.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from automl.report.markup import Html, join, number, score, tag
from automl.store import Study

SAMPLES = 4
MAX_SIDE = 480  # px
MAX_BYTES = 60_000  # of one picture: 4 samples of 6 pictures are below 2 MB as base64
QUALITIES = (85, 70, 50, 30, 10)


@dataclass(frozen=True)
class Panel:
    """One picture with its sentence."""

    title: str
    file: Path


def gallery(study: Study) -> Html:
    """Return the samples one below the other; empty without pictures."""
    best = _listed(study, "best")
    baseline = _listed(study, "baseline")
    figures: list[Html] = []
    for index, item in enumerate(best[:SAMPLES]):
        before = baseline[index] if index < len(baseline) else None
        figures.append(_sample(study, item, before))
    return join(figures)


def _sample(study: Study, best: dict[str, Any], baseline: dict[str, Any] | None) -> Html:
    folder = study.directory / "pictures"
    shown = folder / "best"
    sides = [("Best", shown, best)]
    if baseline is not None:
        sides.insert(0, ("Baseline", folder / "baseline", baseline))
    panels = [
        Panel("Image", shown / best["image"]),
        Panel("Ground truth", shown / best["truth"]),
    ]
    for side, place, item in sides:
        error = f"{side}, error ({item['metric']} {score(item['score'], item['unit'])})"
        panels += [Panel(side, place / item["prediction"]), Panel(error, place / item["error"])]
    return tag(
        "figure",
        join(
            [
                tag("figcaption", join([tag("strong", best["name"]), _scales(best)])),
                tag("div", join(_image(panel) for panel in panels), class_="panels"),
            ]
        ),
        class_="pair",
    )


def _scales(item: dict[str, Any]) -> Html:
    """The colour scales in words; the pictures are drawn by the trainer."""
    bars = ((item["quantity"], item["scale"]), ("error", item["error_scale"]))
    return tag("span", join(_scale(name, bar) for name, bar in bars), class_="scale")


def _scale(name: str, bar: dict[str, Any]) -> Html:
    colors = f"background: linear-gradient(90deg, {', '.join(bar['colors'])})"
    ends = [number(float(bar[end]), bar["unit"]) for end in ("low", "high")]
    words = f" {name.capitalize()} {' to '.join(ends)}"
    return join([tag("span", "", class_="colors", style=colors, aria_hidden="true"), words])


def _image(panel: Panel) -> Html:
    source = data_uri(panel.file)
    if source is None:
        content = tag("p", "The picture is missing.", class_="missing")
    else:
        content = Html(f'<img src="{source}" alt="{escape(panel.title)}">')
    return tag("div", join([content, tag("p", panel.title)]), class_="panel")


def _listed(study: Study, which: str) -> list[dict[str, Any]]:
    path = study.directory / "pictures" / which / "pictures.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []


def data_uri(path: Path) -> str | None:
    """Return a picture for `src`, the file itself when small, else reduced; None: unreadable."""
    import cv2

    picture = cv2.imread(str(path)) if path.is_file() else None
    if picture is None:
        return None
    side, size = max(picture.shape[:2]), path.stat().st_size
    if side <= MAX_SIDE and size <= MAX_BYTES:
        return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    factor = min(1.0, MAX_SIDE / side)
    picture = cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    packed = b""
    for quality in QUALITIES:
        packed = cv2.imencode(".webp", picture, [cv2.IMWRITE_WEBP_QUALITY, quality])[1].tobytes()
        if len(packed) <= MAX_BYTES:
            break
    return f"data:image/webp;base64,{base64.b64encode(packed).decode()}"
