"""Numbers as words and rows as HTML; every text that enters the page is escaped here.

Files keep fractions; the page shows them as percent, with the sign.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from automl.objectives import FRACTION, as_read

NOTHING = "\N{EN DASH}"


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


@dataclass(frozen=True)
class Column:
    """One column of a table; `numeric` columns are aligned on the right."""

    title: str
    numeric: bool = False


def text(value: object) -> Html:
    """Return a value as HTML: escaped unless it is HTML already."""
    return value if isinstance(value, Html) else Html(escape(str(value)))


def tag(name: str, content: object, **attributes: str) -> Html:
    """Return an element; `class_` is written `class`, other names with dashes."""
    pairs = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    written = "".join(f' {key}="{escape(value)}"' for key, value in pairs)
    return Html(f"<{name}{written}>{text(content)}</{name}>")


def join(parts: Iterable[object]) -> Html:
    """Return parts one after the other."""
    return Html("\n".join(text(part) for part in parts))


def table(
    caption: str,
    columns: Sequence[Column],
    rows: Iterable[Sequence[object]],
    *,
    marked: Mapping[int, str] | None = None,
) -> Html:
    """Return a table that scrolls on its own, by keyboard too.

    Args:
        caption: shown above it, and its name for a screen reader.
        columns: one per cell of a row; the first cell of a row is its heading.
        rows: text or `Html`.
        marked: row number -> CSS class.
    """
    classes = ["number" if column.numeric else "words" for column in columns]
    head = join(
        tag("th", column.title, scope="col", class_=name)
        for column, name in zip(columns, classes, strict=True)
    )
    body: list[Html] = []
    for position, row in enumerate(rows):
        first, *rest = zip(row, classes, strict=True)
        cells = [tag("th", first[0], scope="row", class_=first[1])]
        cells += [tag("td", cell, class_=name) for cell, name in rest]
        body.append(tag("tr", join(cells), class_=(marked or {}).get(position, "")))
    inner = join([tag("caption", caption), tag("thead", tag("tr", head)), tag("tbody", join(body))])
    return tag(
        "div", tag("table", inner), class_="scroll", role="region", tabindex="0", aria_label=caption
    )


def facts(rows: Iterable[tuple[str, object]]) -> Html:
    """Return names with their values."""
    return tag("dl", join(join([tag("dt", name), tag("dd", value)]) for name, value in rows))


def number(value: Any, unit: str = "") -> str:
    """Return a value with at most four digits and its unit."""
    if value is None:
        return NOTHING
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    value, unit = as_read(value, unit)
    digits = f"{value:.4g}" if isinstance(value, float) else f"{value}"
    return _written(digits, unit)


def score(value: float | None, unit: str = "") -> str:
    """Return a value with exactly four digits, so that a column lines up, and its unit."""
    if value is None:
        return NOTHING
    value, unit = as_read(value, unit)
    return _written(f"{value:#.4g}".rstrip("."), unit)


def difference(value: float | None, unit: str = "") -> str:
    """Return a difference with its sign; of fractions in percentage points."""
    if value is None:
        return NOTHING
    if unit == FRACTION:
        value, unit = 100 * value, "points"
    return _written(f"{value:+.4g}" if value else "0", unit)


def percent(share: float | None) -> str:
    """Return a signed share of something as percent."""
    return NOTHING if share is None else _written(f"{100 * share:+.1f}", "%")


def _written(digits: str, unit: str) -> str:
    return f"{digits} {unit}".rstrip().replace("-", "\N{MINUS SIGN}")


def named(metric: str, unit: str) -> str:
    """Return a metric with the unit its numbers have on the page."""
    shown = as_read(0.0, unit)[1]
    return f"{metric} [{shown}]" if shown else metric
