from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from automl.policy import (
    ModelFacts,
    PolicyError,
    append_status,
    decide,
    read_model_facts,
    record_provenance,
    requested_action,
    resolve_wish,
)

OFF_SENTENCES = [
    "Please turn off AutoML and train ffs",
    "Train it, but turn AutoML off.",
    "Disable AutoML for this run",
    "train fast foundation stereo with AutoML off",
    "AutoML off",
    "train without AutoML",
    "no AutoML, please",
    "No HPO: I know my learning rate",
    "train the model without HPO",
    "just plain training",
    "plain train ffs",
    "Do not use AutoML",
    "don't run HPO",
    "I don\u2019t want to use automl today",
    "never tune hyperparameters",
]
ON_SENTENCES = [
    "use AutoML to train ffs",
    "Train with AutoML!",
    "run   HPO on my pairs",
    "Please tune hyperparameters for the stereo model",
    "Do not disable AutoML, use AutoML",
]
NO_WISH_SENTENCES = [
    "train ffs",
    "",
    "Do not disable AutoML",
    "don't turn off AutoML",
    "Don't turn AutoML off",
    "never train without automl",
    "please do not train without HPO",
    "not without AutoML",
    "reuse automls of last week",
    "I like plain trainings",
    "tell me about automl",
    "automl offline mode",
    "what does hpo stand for?",
    "the noautoml branch",
    "plainly train ffs",
    "tune the hyperparameters of nothing",
    "train without a validation set",
    "outrun HPO baselines",
    "disabled AutoML is boring",
    "turn off the lights, then train",
]


@pytest.mark.parametrize("sentence", OFF_SENTENCES)
def test_a_sentence_against_automl_means_off(sentence: str) -> None:
    assert resolve_wish(None, sentence) == "off"


@pytest.mark.parametrize("sentence", ON_SENTENCES)
def test_a_sentence_for_automl_means_on(sentence: str) -> None:
    assert resolve_wish(None, sentence) == "on"


@pytest.mark.parametrize("sentence", NO_WISH_SENTENCES)
def test_a_sentence_without_a_wish_means_auto(sentence: str) -> None:
    assert resolve_wish(None, sentence) == "auto"


@pytest.mark.parametrize("explicit", ["auto", "on", "off"])
def test_the_explicit_value_wins_over_the_text(explicit: str) -> None:
    assert resolve_wish(explicit, "no AutoML. Use AutoML.") == explicit


def test_a_text_that_says_both_asks_for_the_option() -> None:
    with pytest.raises(PolicyError, match="--automl-policy on or --automl-policy off") as error:
        resolve_wish(None, "Use AutoML for the big one but no HPO for the small one")
    assert error.value.exit_code == 2


def test_an_unknown_explicit_value_is_refused() -> None:
    with pytest.raises(PolicyError, match="'yes', allowed auto, on, off"):
        resolve_wish("yes", None)


@pytest.mark.parametrize(
    ("sentence", "action"),
    [
        ("train ffs and then export it", "train"),
        ("Evaluate ffs on my pairs, no AutoML", "evaluate"),
        ("export the trained model", "export"),
        ("build an engine for the graph", "gen_trt_engine"),
        ("infer disparity for these images", "inference"),
        ("quantize it", "quantize"),
        ("convert my folder", "convert"),
        ("after training, export", "train"),
        ("no hpo", "train"),
        ("", "train"),
    ],
)
def test_the_text_names_the_action(sentence: str, action: str) -> None:
    assert requested_action(sentence) == action


READY = ModelFacts("ffs", automl_enabled=True, missing=())
BROKEN = ModelFacts("ffs", automl_enabled=True, missing=("schemas/ffs/train.schema.json",))
DISABLED = ModelFacts("ffs", automl_enabled=False, missing=())


@pytest.mark.parametrize(
    ("facts", "wish", "row", "kind", "report"),
    [
        (READY, "off", 2, "plain", "AutoML off for this run"),
        (BROKEN, "off", 2, "plain", "AutoML off for this run"),
        (READY, "auto", 3, "study", ""),
        (
            BROKEN,
            "auto",
            4,
            "plain",
            "enabled but not runnable: missing schemas/ffs/train.schema.json",
        ),
        (DISABLED, "auto", 5, "plain", ""),
        (READY, "on", 6, "study", ""),
    ],
)
def test_training_follows_the_table(
    facts: ModelFacts, wish: str, row: int, kind: str, report: str
) -> None:
    decision = decide(facts, explicit=wish, in_trial=False)

    assert (decision.row, decision.kind, decision.report) == (row, kind, report)
    assert decision.level == ("WARNING" if row == 4 else "INFO")


def test_on_without_a_schema_stops() -> None:
    with pytest.raises(
        PolicyError, match=r"enabled but not runnable: missing schemas/ffs/train\.schema\.json"
    ) as error:
        decide(BROKEN, explicit="on", in_trial=False)
    assert error.value.exit_code == 2


def test_on_for_a_model_without_automl_stops() -> None:
    with pytest.raises(PolicyError, match="model is not AutoML-enabled") as error:
        decide(DISABLED, explicit="on", in_trial=False)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("wish", "report"), [("on", "policy applies to train only"), ("off", ""), ("auto", "")]
)
def test_another_action_is_direct(wish: str, report: str) -> None:
    for facts in (READY, BROKEN, DISABLED):
        decision = decide(facts, explicit=wish, action="export", in_trial=False)
        assert (decision.row, decision.kind, decision.report) == (1, "direct", report)


@pytest.mark.parametrize("wish", ["auto", "on", "off"])
def test_a_trial_never_starts_a_study(wish: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPTHTUNE_TRIAL", "3")
    for facts in (READY, BROKEN, DISABLED):
        decision = decide(facts, explicit=wish)
        assert (decision.row, decision.kind, decision.report) == (9, "plain", "")


def model_folder(root: Path, *, enabled: bool = True) -> Path:
    """A model folder as `make schemas` lays it out."""
    (root / "schemas" / "tiny").mkdir(parents=True)
    (root / "spec_templates" / "tiny").mkdir(parents=True)
    (root / "schemas" / "tiny" / "model.json").write_text(json.dumps({"automl_enabled": enabled}))
    (root / "schemas" / "tiny" / "train.schema.json").write_text('{"type": "object"}')
    (root / "spec_templates" / "tiny" / "train.yaml").write_text("x: 1\n")
    return root / "schemas"


def digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_facts_are_read_without_changing_a_file(tmp_path: Path) -> None:
    schemas = model_folder(tmp_path)
    before = digests(tmp_path)

    facts = read_model_facts(schemas, "tiny")

    assert facts == ModelFacts("tiny", automl_enabled=True, missing=())
    assert digests(tmp_path) == before


@pytest.mark.parametrize(
    "text", [None, "{", "[]", '{"type": "no such type"}'], ids=["gone", "cut", "list", "invalid"]
)
def test_an_unusable_schema_counts_as_missing(tmp_path: Path, text: str | None) -> None:
    schemas = model_folder(tmp_path)
    schema = schemas / "tiny" / "train.schema.json"
    schema.unlink()
    if text is not None:
        schema.write_text(text)

    assert read_model_facts(schemas, "tiny").missing == (str(schema),)


def test_both_missing_paths_are_named(tmp_path: Path) -> None:
    schemas = model_folder(tmp_path)
    schema = schemas / "tiny" / "train.schema.json"
    template = tmp_path / "spec_templates" / "tiny" / "train.yaml"
    schema.unlink()
    template.unlink()

    assert read_model_facts(schemas, "tiny").missing == (str(schema), str(template))


def test_an_unknown_model_lists_the_known_ones(tmp_path: Path) -> None:
    schemas = model_folder(tmp_path)

    with pytest.raises(PolicyError, match=r"model 'fsx'.*Models here: tiny"):
        read_model_facts(schemas, "fsx")


def test_the_decision_reaches_status_and_provenance(tmp_path: Path) -> None:
    (tmp_path / "provenance.json").write_text('{"seed": 7}')
    decision = decide(BROKEN, in_trial=False)

    append_status(tmp_path, decision)
    record_provenance(tmp_path, decision)

    line = json.loads((tmp_path / "status.json").read_text())
    assert line["verbosity"] == "WARNING"
    assert "row 4" in line["message"]
    assert "enabled but not runnable: missing" in line["message"]
    provenance = json.loads((tmp_path / "provenance.json").read_text())
    assert provenance["seed"] == 7
    assert provenance["automl_policy"]["row"] == 4
    assert provenance["automl_policy"]["inputs"]["automl_enabled"] is True
