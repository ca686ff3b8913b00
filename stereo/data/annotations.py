"""Annotation files: one sample per line, columns `left right [disparity [mask]]`.

UTF-8; fields are separated by spaces or tabs, a field in double quotes may hold white space (`""`
is a quote), `#` starts a comment line, blank lines are skipped. Relative paths start at the
annotation file's directory, `~` is the home directory. All faults of a file are collected and
raised together as `file:line: reason`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stereo.data.datasets import Format, find_format
from stereo.data.encodings import IMAGE_SUFFIXES
from stereo.errors import DataError

_SHOWN_FAULTS = 20
_STEREO_COLUMNS = (2, 3, 4)
_FIELD = re.compile(r'[ \t]*(?:"((?:[^"]|"")*)"(?=[ \t]|$)|([^" \t][^ \t]*))')


@dataclass(frozen=True)
class Row:
    """One line of an annotation file with its paths resolved.

    Attributes:
        left: left image.
        right: right image.
        disparity: ground truth, None when the line has two columns.
        occlusion: mask file (255 = visible in both views), None without a fourth column.
        source: the annotation file.
        line: its line number, 1-based.
    """

    left: Path
    right: Path
    disparity: Path | None
    occlusion: Path | None
    source: Path
    line: int

    @property
    def where(self) -> str:
        """`annotation.txt:line`, the start of every message about this row."""
        return f"{self.source}:{self.line}"


def read_rows(path: Path, *, dataset: str, inference: bool = False) -> list[Row]:
    """All rows of an annotation file.

    Args:
        path: the annotation file.
        dataset: class name, in any case; it decides the columns and file types.
        inference: accept every column count of the stereo family, also mixed.

    Raises:
        DataError: with exit code 2, listing every fault as `file:line: reason`.
    """
    rows, faults = parse(path, find_format(dataset), inference=inference)
    raise_faults(faults)
    return rows


def parse(path: Path, form: Format, *, inference: bool) -> tuple[list[Row], list[str]]:
    """Rows and faults (`file:line: reason`) of an annotation file."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        return [], [f"{path}: cannot read the annotation file ({error.strerror})"]
    except UnicodeDecodeError as error:
        return [], [f"{path}: not UTF-8 text (byte {error.start})"]
    columns = _STEREO_COLUMNS if inference else form.columns
    rows: list[Row] = []
    faults: list[str] = []
    for number, line in enumerate(text.split("\n"), start=1):
        stripped = line.strip(" \t\r")
        if not stripped or stripped.startswith("#"):
            continue
        row, reasons = _parse_line(stripped, path, number, form, columns)
        faults += [f"{path}:{number}: {reason}" for reason in reasons]
        if row is not None:
            rows.append(row)
    if not rows and not faults:
        faults.append(f"{path}: no samples; write one 'left right disparity' line per sample")
    if not inference:
        faults += _mixed_truth(rows)
    return rows, faults


def raise_faults(faults: Sequence[str]) -> None:
    """Raise one `DataError` (exit code 2) with the first 20 faults and their total, if any."""
    if not faults:
        return
    shown = list(faults[:_SHOWN_FAULTS])
    if len(faults) > _SHOWN_FAULTS:
        shown.append(f"... {len(faults)} faults in total, the first {_SHOWN_FAULTS} shown")
    raise DataError("\n".join(shown), exit_code=2)


def _parse_line(
    text: str, source: Path, number: int, form: Format, columns: tuple[int, ...]
) -> tuple[Row | None, list[str]]:
    """The row of one line, or None and the reasons why not."""
    fields = _split(text)
    if fields is None:
        return None, ["unterminated quote, or text right behind a closing quote"]
    if len(fields) not in columns:
        allowed = " or ".join(str(count) for count in columns)
        return None, [f"{len(fields)} column(s), {form.name} takes {allowed}"]
    paths: list[Path] = []
    reasons: list[str] = []
    allowed_suffixes = (IMAGE_SUFFIXES, IMAGE_SUFFIXES, frozenset(form.truth), IMAGE_SUFFIXES)
    for field, suffixes in zip(fields, allowed_suffixes, strict=False):
        path, reason = _resolve(field, source, suffixes, form)
        paths.append(path)
        if reason:
            reasons.append(reason)
    if reasons:
        return None, reasons
    left, right, *truth = paths
    disparity = truth[0] if truth else None
    return Row(left, right, disparity, truth[1] if len(truth) > 1 else None, source, number), []


def _split(text: str) -> list[str] | None:
    """The fields of a stripped line; None when the quoting is wrong."""
    fields: list[str] = []
    position = 0
    while position < len(text):
        match = _FIELD.match(text, position)
        if match is None:
            return None
        quoted, plain = match.groups()
        fields.append(plain if quoted is None else quoted.replace('""', '"'))
        position = match.end()
    return fields


def _resolve(field: str, source: Path, suffixes: frozenset[str], form: Format) -> tuple[Path, str]:
    """The path a field means and what is wrong with it ("" when nothing)."""
    path = Path(field)
    try:
        path = source.parent / path.expanduser()
        exists = path.is_file()
    except (OSError, RuntimeError, ValueError) as error:
        return path, f"{field}: not a usable path ({error})"
    if path.suffix.lower() not in suffixes:
        allowed = ", ".join(sorted(suffixes))
        return path, f"{path}: extension '{path.suffix}' is not one {form.name} reads ({allowed})"
    return path, "" if exists else f"{path}: no such file"


def _mixed_truth(rows: Sequence[Row]) -> list[str]:
    """A fault when some lines have ground truth and others not."""
    without = [row for row in rows if row.disparity is None]
    if not without or len(without) == len(rows):
        return []
    return [f"{without[0].where}: no ground truth, but other lines of the file have it"]
