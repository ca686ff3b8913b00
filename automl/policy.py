"""Whether a training request becomes a study, a plain run or another action.

The wish is auto, on or off: an explicit value wins over the request text, which is read for a
few phrases (whole words, negations understood). The wish, the model's `automl_enabled` and what
is packaged for it select one of nine rows; the row gives the route and the sentence to report.
Model metadata is only ever opened for reading: a wish holds for one run.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast

from automl.errors import AutoMLError
from automl.trial import TRIAL_VARIABLE

Wish = Literal["auto", "on", "off"]
WISHES: tuple[Wish, ...] = ("auto", "on", "off")

OFF_PHRASES = (
    "turn off automl",
    "turn automl off",
    "disable automl",
    "automl off",
    "without automl",
    "no automl",
    "no hpo",
    "without hpo",
    "plain training",
    "plain train",
)
ON_PHRASES = ("use automl", "with automl", "run hpo", "tune hyperparameters")

# Words between the negation and the phrase that leave the negation in force.
_NEGATION = r"(?:do not|does not|did not|dont|doesnt|didnt|not|never|cannot|cant)"
_FILLER = (
    r"(?:ever|please|just|simply|want to|wish to|need to|have to|try to|to|(?:run|train)(?: it)?)"
)

# An on-phrase that runs into "off" ("with automl off") is the off-phrase inside it.
_OFF = "(?:(?:with|use) automl off|" + "|".join(sorted(OFF_PHRASES, key=len, reverse=True)) + ")"
_ON = "(?:" + "|".join(sorted(ON_PHRASES, key=len, reverse=True)) + ")"
_PHRASE = re.compile(rf"\b(?P<no>{_NEGATION} (?:{_FILLER} )*)?(?:(?P<off>{_OFF})|(?P<on>{_ON}))\b")

_TRAIN = re.compile(r"\b(?:train|retrain|finetune|fine tune|tune|study)\b")
_VERBS = re.compile(
    r"\b(?:(?P<train>training)|(?P<convert>convert)|(?P<evaluate>evaluate)"
    r"|(?P<inference>inference|infer|predict)|(?P<quantize>quantize|quantise)"
    r"|(?P<gen_trt_engine>gen trt engine|build (?:an? |the )?(?:tensorrt |trt )?engine)"
    r"|(?P<export>export))\b"
)


class PolicyError(AutoMLError):
    """The request cannot be followed; found before anything ran."""

    exit_code = 2


@dataclass(frozen=True)
class ModelFacts:
    """What is packaged for a model, read without changing it.

    Attributes:
        model: model key, for example `ffs`.
        automl_enabled: the flag of `model.json`.
        missing: schema and template paths that are absent, or unusable.
    """

    model: str
    automl_enabled: bool
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Decision:
    """The route of one request.

    Attributes:
        kind: `study`, `plain` (train once) or `direct` (another action, asked for by name).
        row: row of the policy table, 1 to 9 from the top.
        report: sentence for the user; empty when there is nothing to say.
        level: level of that sentence in the status file.
        wish: the resolved wish.
        action: the action that was asked for.
        inputs: what was decided on, for the provenance file.
    """

    kind: Literal["study", "plain", "direct"]
    row: int
    report: str
    level: Literal["INFO", "WARNING"]
    wish: Wish
    action: str
    inputs: dict[str, Any]


def resolve_wish(explicit: str | None, request: str | None) -> Wish:
    """The wish of a request: the explicit value, else what its text says, else auto.

    Raises:
        PolicyError: unknown explicit value, or a text that asks for both.
    """
    if explicit is not None:
        if explicit not in WISHES:
            raise PolicyError(
                f"--automl-policy: got {explicit!r}, allowed {', '.join(WISHES)}. "
                "Use one of them, or leave the option out for auto."
            )
        return explicit
    wishes = _wishes_of(_plain_words(request or ""))
    if len(wishes) > 1:
        raise PolicyError(
            f"--request: the text {request!r} asks for AutoML and against it. "
            "Say which with --automl-policy on or --automl-policy off."
        )
    return wishes.pop() if wishes else "auto"


def requested_action(request: str | None) -> str:
    """The action a text asks for; `train` unless it only names another one."""
    text = _plain_words(request or "")
    if _TRAIN.search(text):
        return "train"
    verb = _VERBS.search(text)
    return verb.lastgroup or "train" if verb else "train"


def _plain_words(text: str) -> str:
    """Lower case, apostrophes dropped, other punctuation and repeated spaces to one space."""
    text = re.sub(r"['\u2019\u02bc`]", "", text.lower())
    return " ".join(re.sub(r"[\W_]+", " ", text).split())


def _wishes_of(text: str) -> set[Wish]:
    wishes: set[Wish] = set()
    for match in _PHRASE.finditer(text):
        negated = match["no"] is not None
        if match["on"]:
            wishes.add("off" if negated else "on")
        elif not negated:
            wishes.add("off")
    return wishes


def read_model_facts(schema_dir: Path, model: str) -> ModelFacts:
    """What the model folder says about AutoML.

    Args:
        schema_dir: folder that holds `<model>/model.json`; templates lie beside it in
            `spec_templates/`.
        model: model key.

    Raises:
        PolicyError: the model has no readable `model.json`.
    """
    metadata = schema_dir / model / "model.json"
    try:
        content: object = json.loads(metadata.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PolicyError(
            f"{metadata}: cannot be read as the metadata of model {model!r} ({error}). "
            f"Models here: {', '.join(known_models(schema_dir)) or 'none'}."
        ) from error
    enabled = (
        cast("Mapping[str, Any]", content).get("automl_enabled")
        if isinstance(content, dict)
        else None
    )
    if not isinstance(enabled, bool):
        raise PolicyError(
            f"{metadata}: automl_enabled: got {enabled!r}, allowed true or false. "
            "Regenerate the file with `make schemas`."
        )
    schema = schema_dir / model / "train.schema.json"
    template = schema_dir.parent / "spec_templates" / model / "train.yaml"
    missing = [str(schema)] if not _is_usable_schema(schema) else []
    missing += [str(template)] if not template.is_file() else []
    return ModelFacts(model, enabled, tuple(missing))


def known_models(schema_dir: Path) -> list[str]:
    """Keys of the models that have metadata, sorted."""
    return sorted(path.parent.name for path in schema_dir.glob("*/model.json"))


def _is_usable_schema(path: Path) -> bool:
    from jsonschema import Draft202012Validator, SchemaError

    try:
        schema: object = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(schema, dict):
            return False
        Draft202012Validator.check_schema(cast("dict[str, Any]", schema))
    except (OSError, ValueError, SchemaError):
        return False
    return True


def decide(
    facts: ModelFacts,
    *,
    explicit: str | None = None,
    request: str | None = None,
    action: str | None = None,
    in_trial: bool | None = None,
) -> Decision:
    """Select the row of the policy table.

    Args:
        facts: what is packaged for the model.
        explicit: value of `--automl-policy`.
        request: request in plain words.
        action: action asked for by the caller; read from the text when left out.
        in_trial: whether this process is a trial; read from the environment when left out.

    Raises:
        PolicyError: rows 7 and 8, an unknown explicit value, or a text that asks for both.
    """
    wish = resolve_wish(explicit, request)
    action = requested_action(request) if action is None else action
    in_trial = bool(os.environ.get(TRIAL_VARIABLE)) if in_trial is None else in_trial
    inputs: dict[str, Any] = {
        "explicit": explicit,
        "request": request,
        "automl_enabled": facts.automl_enabled,
        "missing": list(facts.missing),
        "in_trial": in_trial,
    }
    not_runnable = f"enabled but not runnable: missing {', '.join(facts.missing)}"

    def row(
        kind: Literal["study", "plain", "direct"],
        number: int,
        report: str = "",
        level: Literal["INFO", "WARNING"] = "INFO",
    ) -> Decision:
        return Decision(kind, number, report, level, wish, action, inputs)

    if action != "train":
        return row("direct", 1, "policy applies to train only" if wish == "on" else "")
    if in_trial:
        return row("plain", 9)
    if wish == "off":
        return row("plain", 2, "AutoML off for this run")
    if not facts.automl_enabled:
        if wish == "on":
            raise PolicyError(
                f"{facts.model}: model is not AutoML-enabled (policy row 8). "
                f"For a plain run: automl train {facts.model} --automl-policy off."
            )
        return row("plain", 5)
    if facts.missing:
        if wish == "on":
            raise PolicyError(
                f"{facts.model}: {not_runnable} (policy row 7). "
                "Restore them with `make schemas`, or make a plain run: "
                f"automl train {facts.model} --automl-policy off."
            )
        return row("plain", 4, not_runnable, "WARNING")
    return row("study", 6 if wish == "on" else 3)


def status_line(decision: Decision) -> str:
    """The decision as one line of `status.json`."""
    now = datetime.now().astimezone()
    route = {"study": "AutoML study", "plain": "plain training", "direct": "direct action"}
    message = f"AutoML policy row {decision.row}: {route[decision.kind]}"
    return json.dumps(
        {
            "date": f"{now.month}/{now.day}/{now.year}",
            "time": f"{now.hour}:{now.minute}:{now.second}",
            "status": "RUNNING",
            "verbosity": decision.level,
            "message": f"{message}: {decision.report}" if decision.report else message,
            "timestamp": now.astimezone(UTC).isoformat(),
        }
    )


def append_status(directory: Path, decision: Decision) -> None:
    """Append the decision to the run's `status.json`."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "status.json").open("a", encoding="utf-8") as file:
        file.write(status_line(decision) + "\n")


def record_provenance(directory: Path, decision: Decision) -> None:
    """Add the decision, its inputs and its row to the run's `provenance.json`."""
    path = directory / "provenance.json"
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    content["automl_policy"] = asdict(decision)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(path)
