"""Studies to show: real trials of the quadratic, run by the local runner."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

from automl.algorithms.table import make_algorithm
from automl.promote.chain import promote
from automl.report.page import CSV
from automl.runners import local
from automl.store import Study, open_study
from tests.automl.quadratic import NAME
from tests.automl.studies import resolved


def new(directory: Path, **keys: Any) -> Study:
    """A study without trials."""
    keys = {"algorithm": {"rungs": [2, 5], "min_complete": 4}, "runner": "local", **keys}
    return open_study(resolved(directory, **keys), directory / "study")


def finished(directory: Path, trials: int = 8, *, promoted: bool = False, **keys: Any) -> Study:
    """A study at the end of its budget; some trials are stopped, some diverge."""
    study = new(directory, budget={"trials": trials}, **keys)
    settings = study.resolved
    local.run(study, make_algorithm(settings.study, settings.space, study), NAME)
    if promoted:
        promote(study, NAME)
    return study


def charts(page: str) -> dict[str, Any]:
    """The figures as the page carries them."""
    found = re.search(
        r'<script type="application/json" id="charts">(.*?)</script>', page, re.DOTALL
    )
    assert found is not None
    return json.loads(found[1])


def rows(directory: Path) -> list[dict[str, str]]:
    """The lines of trials.csv, as written."""
    with (directory / CSV).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def compare(figures: dict[str, Any], table: list[dict[str, str]], metric: str) -> int:
    """Assert that all plotted values are those of the table; returns how many there were."""
    count = 0
    values = {int(row["trial"]): float(row["value"]) for row in table if row["value"]}
    for trace in figures["history"]["data"]:
        for trial, value in zip(trace["x"], trace["y"], strict=True):
            assert value == values[trial] or trace["mode"] == "lines"
            assert value in values.values()
            count += 1
    for trace in figures["learning_curves"]["data"]:
        row = table[trace["meta"]]
        for epoch, value in zip(trace["x"], trace["y"], strict=True):
            assert value == float(row[f"{metric}@{epoch}"])
            count += 1
    for trace in figures["parallel"]["data"]:
        for path, value in zip(trace["y"], trace.get("customdata", []), strict=False):
            assert value == float(table[trace["meta"]][path])
            count += 1
    return count
