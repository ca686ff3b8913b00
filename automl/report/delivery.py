"""What the study delivers: the bundle with the scores of each backend, and the spec to copy."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Any

import yaml

from automl.errors import UnreadableError
from automl.events import BUNDLE_FORMAT_VERSION
from automl.report.markup import (
    NOTHING,
    Column,
    Html,
    difference,
    facts,
    join,
    number,
    score,
    table,
    tag,
)
from automl.store import Study

ROLES = ("checkpoint", "graph", "engine")


def read_bundle(study: Study) -> dict[str, Any] | None:
    """Return `bundle.json`, None without a bundle.

    Raises:
        UnreadableError: damaged, or of a newer format.
    """
    path = study.directory / "bundle" / "bundle.json"
    try:
        bundle = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UnreadableError(f"{path}: is damaged: {error}. Promote the study again") from error
    if bundle["format_version"] > BUNDLE_FORMAT_VERSION:
        raise UnreadableError(
            f"{path}: format_version {bundle['format_version']}, this program reads up to "
            f"{BUNDLE_FORMAT_VERSION}. Use the newer release of depthtune that wrote it"
        )
    return bundle


def specs(study: Study) -> tuple[str, str | None]:
    """Return the base spec and the best trial's spec (None without one) as YAML."""
    base: dict[str, Any] = study.resolved.to_dict()["base_spec"]
    point = study.chosen()
    return _yaml(base), None if point is None else _yaml(study.spec_of(point))


def _yaml(spec: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(spec), sort_keys=False, allow_unicode=True)


def parity(study: Study, bundle: Mapping[str, Any] | None) -> Html:
    """Scores of checkpoint, graph and engine with their backends, and the files."""
    if bundle is None:
        return tag("p", "There is no bundle: nothing was exported, so there is nothing to compare.")
    scores, limits = bundle["metrics"], bundle["limits"]
    native = any(
        row.get("native", row["checkpoint"]) != row["checkpoint"] for row in scores.values()
    )
    roles = ("native", *ROLES) if native else ROLES
    titles = {"native": "Checkpoint, images at their own size", "checkpoint": "Checkpoint",
              "graph": "ONNX graph", "engine": "Engine"}  # fmt: skip
    if native:
        titles["checkpoint"] = "Checkpoint, at the engine's size"
    columns = [
        Column("Metric"),
        *(Column(titles[role], numeric=True) for role in roles),
        Column("Engine − checkpoint", numeric=True),  # noqa: RUF001 - a minus on the page
        Column("Limit", numeric=True),
    ]
    rows = [
        (
            tag("code", metric),
            *(score(row[role], row["unit"]) for role in roles),
            difference(row["difference"], row["unit"]),
            number(limits[metric], row["unit"]) if metric in limits else NOTHING,
        )
        for metric, row in scores.items()
    ]
    backends = [(titles[role], bundle["backends"].get(role, NOTHING)) for role in roles]
    files = [
        (tag("code", item["path"]), f"{item['bytes'] / 2**20:.2f}", tag("code", item["sha256"]))
        for item in bundle["files"].values()
    ]
    refused = [tag("p", reason, class_="callout bad") for reason in bundle.get("rejected", ())]
    return join(
        [
            *refused,
            table("Scores on the same validation data", columns, rows),
            tag("p", "Who computed each score:"),
            facts(backends),
            table(
                "Files of the bundle",
                [Column("File"), Column("Size [MiB]", numeric=True), Column("SHA-256")],
                files,
            ),
        ]
    )


def best_spec(study: Study) -> Html:
    """The spec of the best trial to copy, and what it changes."""
    base, best = specs(study)
    if best is None:
        return tag("p", "There is no complete trial, so there is no spec to recommend.")
    changes = _diff(base, best)
    shown = (
        tag(
            "pre",
            Html("".join(changes)),
            class_="diff",
            tabindex="0",
            aria_label="Changes of the base spec",
        )
        if changes
        else tag("p", "The best spec is the base spec: nothing changes.")
    )
    button = tag("button", "Copy the spec", type="button", data_copies="spec")
    return join(
        [
            tag("h3", "Changes of the base spec"),
            shown,
            tag("h3", "The whole spec"),
            tag("p", join([button, tag("span", "", id="copied", role="status")])),
            tag("pre", best, id="spec", tabindex="0", aria_label="The best spec as YAML"),
            tag(
                "p",
                "The same text is in best_spec.yaml beside this page; "
                "depth_net train -e best_spec.yaml results_dir=DIR trains it again.",
            ),
        ]
    )


def _diff(base: str, best: str) -> list[Html]:
    looks = {"+": "added", "-": "removed", "@": "place"}
    lines = difflib.unified_diff(
        base.splitlines(), best.splitlines(), "base", "best", "", "", 2, ""
    )
    return [
        tag("span", line, class_=looks.get(line[:1], "same"))
        for line in lines
        if not line.startswith(("---", "+++"))
    ]
