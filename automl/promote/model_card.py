"""`model_card.md` of a bundle: what a model was made of, how good it is, and how to run it.

Everything on it comes from `bundle.json`, the `check` of the data and the sidecar of the graph;
the program is the trainer's and is printed as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from automl.study_spec import get_path

COLUMNS = ("checkpoint", "graph", "engine")


def model_card(
    content: Mapping[str, Any],
    *,
    facts: Mapping[str, Any],
    counts: Mapping[str, float],
    sidecar: Mapping[str, Any],
) -> str:
    """The card, in Markdown.

    Args:
        content: of `bundle.json`.
        facts: of `model.json`: where a spec keeps its data and weights.
        counts: metrics of the action `check`.
        sidecar: of the graph; `example` holds the lines of a program.
    """
    sections = {
        f"Model card: {content['study']}": _identity(content, facts),
        "Trained on": _training(content, facts, counts),
        "Scores": _scores(content, counts),
        "Limits": _limits(content, sidecar),
        "Run it": _program(sidecar),
        "Pictures": _pictures(content),
        "Files": _files(content),
    }
    parts: list[str] = []
    for title, lines in sections.items():
        text = "\n".join(lines)
        if text:
            parts.append(f"{'##' if parts else '#'} {title}\n\n{text}\n")
    return "\n".join(parts)


def _identity(content: Mapping[str, Any], facts: Mapping[str, Any]) -> Iterator[str]:
    network = facts.get("model_type", content["model"])
    yield (
        f"{network} (model key `{content['model']}`), "
        f"trial {content['trial']} of the study `{content['study']}`."
    )
    params = content["params"].items()
    changed = ", ".join(
        f"`{k}` {v:.4g}" if isinstance(v, float) else f"`{k}` {v}" for k, v in params
    )
    if changed:
        yield f"Found by search: {changed}."
    yield ""
    yield (
        "**Accepted**: graph and engine are inside the limits."
        if content["accepted"]
        else f"**Rejected**: {'; '.join(content['rejected'])}."
    )


def _training(
    content: Mapping[str, Any], facts: Mapping[str, Any], counts: Mapping[str, float]
) -> Iterator[str]:
    spec: Mapping[str, Any] = content["spec"]
    for split, words in (("train", "Training"), ("val", "Validation")):
        sources: list[dict[str, str]] = get_path(spec, facts["data_keys"][split]) or []
        named = ", ".join(f"{each['dataset_name']} `{each['data_file']}`" for each in sources)
        count = counts.get(f"samples_{split}")
        number = "" if count is None else f" ({count:.0f} samples)"
        yield f"- {words} data: {named or 'not recorded'}{number}"
    weights = [key for key in facts.get("weight_keys", ()) if get_path(spec, key)]
    start = ", ".join(f"`{key}` {get_path(spec, key)}" for key in weights)
    yield f"- Started from {start or 'fresh weights'}"
    epochs, seed = get_path(spec, facts["fidelity"]), get_path(spec, "train.seed")
    if epochs is not None:
        yield f"- {epochs} epochs" + (f", seed {seed}" if seed is not None else "")


def _scores(content: Mapping[str, Any], counts: Mapping[str, float]) -> Iterator[str]:
    samples = counts.get("samples_val")
    number = "" if samples is None else f" of {samples:.0f} samples"
    yield f"On the validation data{number}, at the size of the engine's input."
    yield ""
    yield f"| metric | {' | '.join(COLUMNS)} | difference | unit |"
    yield f"|---|{'---|' * (len(COLUMNS) + 2)}"
    for metric, row in content["metrics"].items():
        values = " | ".join(f"{row[column]:.5g}" for column in (*COLUMNS, "difference"))
        share = f"of {row['of']}" if row["of"] else ""
        yield f"| {metric} | {values} | {row['unit'] or share} |"
    yield ""
    for column in COLUMNS:
        if column in content["backends"]:
            yield f"- {column}: {content['backends'][column]}"
    if content["gain"] is not None:
        yield f"- against the baseline: {_gain(content['gain'])}"


def _gain(gain: Mapping[str, Any]) -> str:
    difference = gain["difference"]
    told = "" if difference is None else f", difference {difference:+.4g}"
    return f"{gain['verdict'].replace('_', ' ')} on {gain['wanted']} seeds{told}"


def _limits(content: Mapping[str, Any], sidecar: Mapping[str, Any]) -> Iterator[str]:
    limits = dict(content["limits"])
    precision = limits.pop("precision")
    allowed = ", ".join(f"{metric} {limit:g}" for metric, limit in limits.items())
    yield f"- Engine precision {precision}"
    yield f"- Allowed difference to the checkpoint: {allowed or 'any'}"
    if "height" in sidecar:
        yield f"- Input {sidecar['height']}x{sidecar['width']} px (height x width)"
    for key, words in (("max_disparity", "px of disparity"), ("max_depth", "m of depth")):
        largest = sidecar.get(key) or sidecar.get("model", {}).get(key)
        if largest is not None:
            yield f"- Up to {largest:g} {words}"
    yield "- The scores hold for data like the validation data; other scenes were not measured"


def _program(sidecar: Mapping[str, Any]) -> Iterator[str]:
    lines: Sequence[str] = sidecar.get("example", ())
    if not lines:
        return
    yield "In this folder, with onnxruntime, numpy and opencv only; arguments are the image files:"
    yield ""
    yield "```python"
    yield from lines
    yield "```"
    yield ""
    yield "With depthtune: `depth_net inference -e SPEC.yaml --set-from THIS_FOLDER`."


def _pictures(content: Mapping[str, Any]) -> Iterator[str]:
    for item in content["pictures"]:
        yield f"![{item['title']}]({item['path']})"


def _files(content: Mapping[str, Any]) -> Iterator[str]:
    yield "| file | bytes | sha256 |"
    yield "|---|---|---|"
    for file in content["files"].values():
        yield f"| `{file['path']}` | {file['bytes']} | `{file['sha256']}` |"
