from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from automl.contract import Objective
from automl.errors import NoResultError, PromotionError, TrainableError
from automl.objectives import Goals
from automl.promote.chain import StepChoiceError, promote
from automl.promote.isolated import run_action
from automl.space import Parameter, SearchSpace
from automl.store import ResolvedStudy, Study, open_study
from automl.study_spec import BudgetChoice, PromoteChoice, StudySpec, merge, set_path
from tests.automl.quadratic import NAME, Quadratic

EPOCHS = 3
SPACE = SearchSpace((Parameter("train.flip", "float", 0.0, 0.0, 1.0),))


def make_study(
    root: Path,
    behaviour: dict[str, Any] | None = None,
    *,
    flips: tuple[float, ...] = (0.0, 0.3),
    limits: dict[str, float] | None = None,
) -> Study:
    """A study whose trials really trained, one after another."""
    trainer = Quadratic()
    files = trainer.embedded_data("quadratic", root / "data")
    base = trainer.template("quadratic", "train")
    base = merge(base, {"train": {"num_epochs": EPOCHS}, "behaviour": behaviour or {}})
    for split, file in files.items():
        dataset, _, path = file.partition(":")
        set_path(base, f"dataset.{split}_files", [{"dataset_name": dataset, "data_file": path}])
    spec = StudySpec(
        name="study",
        model="quadratic",
        profile="cpu",
        budget=BudgetChoice(trials=4),
        promote=PromoteChoice(limits=limits or {}),
    )
    resolved = ResolvedStudy(
        spec, base, SPACE, Goals(Objective("val/epe", "minimize", "px")), EPOCHS
    )
    study = open_study(resolved, root / "study")
    for number, flip in enumerate(flips):
        train(study, number, {"train.flip": flip})
    return study


def train(study: Study, number: int, params: dict[str, Any]) -> None:
    def report(epoch: int, metrics: Any, checkpoint: Path | None) -> bool:
        decision = "complete" if epoch == EPOCHS else "continue"
        event = {"kind": "epoch", "trial": number, "epoch": epoch, "metrics": dict(metrics)}
        assert checkpoint is not None
        stored = {"checkpoint": study.relative(checkpoint), "decision": decision, "rung": None}
        study.append(event | stored)
        return False

    study.append(
        {"kind": "trial_started", "trial": number, "params": params, "seed": 0, "attempt": 1}
    )
    spec = study.resolved.space.apply(study.resolved.base_spec, params)
    Quadratic().run("train", spec, study.trial_directory(number), report)
    study.append({"kind": "trial_ended", "trial": number, "state": "complete"})


def statuses(study: Study) -> list[str]:
    return [event["step"] for event in study.events if event["kind"] == "promotion_step"]


def test_the_best_trial_becomes_a_verified_bundle(tmp_path: Path) -> None:
    study = make_study(tmp_path)

    bundle = promote(study, NAME)

    assert bundle.accepted
    assert bundle.directory == study.directory / "bundle"
    content = json.loads((bundle.directory / "bundle.json").read_text())
    assert content["format_version"] == 1
    assert content["trial"] == 1
    assert content["params"] == {"train.flip": 0.3}
    assert content["metrics"]["epe"]["difference"] == 0.0
    assert content["metrics"]["epe"]["unit"] == "px"
    assert set(content["files"]) == {
        "checkpoint", "graph", "graph_sidecar", "engine", "engine_sidecar", "spec",
        "model_card",
    }  # fmt: skip
    for facts in content["files"].values():
        copy = bundle.directory / facts["path"]
        assert copy.stat().st_size == facts["bytes"]
    assert "engine.bin" in content["backends"]["engine"]
    assert content["backends"]["checkpoint"] != content["backends"]["graph"]
    for role in ("baseline", "best", "engine"):
        assert (study.directory / "pictures" / role / "pictures.json").is_file()
    assert not (study.directory / "bundle.partial").exists()


def test_the_bundle_shows_its_samples_and_says_what_it_is(tmp_path: Path) -> None:
    bundle = promote(make_study(tmp_path, limits={"epe": 0.04}), NAME).directory
    assert bundle is not None
    content = json.loads((bundle / "bundle.json").read_text())
    assert len(content["pictures"]) == 4 * 4 + 4, "of the engine only what it predicts"
    for item in content["pictures"]:
        file = bundle / item["path"]
        assert hashlib.sha256(file.read_bytes()).hexdigest() == item["sha256"]
    card = (bundle / "model_card.md").read_text()
    for words in (
        "# Model card: study",
        "trial 1 of the study `study`",
        "`train.flip` 0.3",
        "**Accepted**",
        "- Training data: Numbers `",
        "(4 samples)",
        "- Started from fresh weights",
        "3 epochs",
        "| epe |",
        "Allowed difference to the checkpoint: epe 0.04",
        "![pair 0: prediction](pictures/0_prediction.png)",
        "![pair 3: engine prediction](pictures/engine_3_prediction.png)",
        content["files"]["engine"]["sha256"],
    ):
        assert words in card
    assert "## Run it" not in card, "the trainer gives no program"


def test_the_card_of_a_rejected_bundle_says_so(tmp_path: Path) -> None:
    bundle = promote(make_study(tmp_path, {"engine_shift": 0.06}), NAME).directory
    assert bundle is not None
    card = (bundle / "model_card.md").read_text()
    assert "**Rejected**: epe: engine" in card
    assert "**Accepted**" not in card


class Blind(Quadratic):
    """Loses one prediction."""

    def run(self, action: str, spec: Any, results_dir: Path, report: Any = None) -> Any:
        result = super().run(action, spec, results_dir, report)
        if action == "pictures":
            (results_dir / "2_prediction.png").unlink()
        return result


def test_inference_counts_its_outputs(tmp_path: Path) -> None:
    with pytest.raises(PromotionError, match=r"step inference .*: 3 predictions of 4 samples"):
        promote(make_study(tmp_path), "tests.automl.test_promote:Blind")


def test_a_step_with_unchanged_inputs_is_kept(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    promote(study, NAME)
    before = statuses(study)
    said: list[str] = []

    promote(study, NAME, say=said.append)

    assert statuses(study)[len(before) :] == ["bundle"]
    assert "export: unchanged, kept" in said


def test_a_moved_study_keeps_its_steps(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    promote(study, NAME)
    study.close()
    study = open_study(study.resolved, study.directory.rename(tmp_path / "elsewhere"))
    before = statuses(study)

    assert promote(study, NAME).directory == tmp_path / "elsewhere/bundle"
    assert statuses(study) == [*before, "bundle"]
    study.close()


def test_a_changed_artifact_is_made_again_and_what_follows_from_it(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    promote(study, NAME)
    before = statuses(study)
    (study.directory / "promotion" / "gen_trt_engine" / "engine.bin").write_text("exchanged")

    promote(study, NAME)

    assert statuses(study)[len(before) :] == ["gen_trt_engine", "bundle"]


def test_a_new_best_trial_is_promoted_from_the_start(tmp_path: Path) -> None:
    study = make_study(tmp_path, flips=(0.0, 0.5))
    promote(study, NAME)
    before = statuses(study)
    train(study, 2, {"train.flip": 0.3})

    bundle = promote(study, NAME)

    redone = statuses(study)[len(before) :]
    assert "export" in redone
    assert "pictures_baseline" not in redone
    content = json.loads(((bundle.directory or tmp_path) / "bundle.json").read_text())
    assert content["trial"] == 2


def test_scores_outside_the_limits_reject_the_bundle(tmp_path: Path) -> None:
    study = make_study(tmp_path, {"engine_shift": 0.06})

    bundle = promote(study, NAME)

    assert not bundle.accepted
    assert "epe: engine" in bundle.problems[0]
    assert "by 0.06 px, allowed 0.05" in bundle.problems[0]
    assert bundle.directory is not None
    assert json.loads((bundle.directory / "bundle.json").read_text())["accepted"] is False
    assert study.promotion["bundle"]["status"] == "rejected"


def test_a_study_sets_its_own_limits(tmp_path: Path) -> None:
    assert promote(
        make_study(tmp_path, {"engine_shift": 0.06}, limits={"epe": 0.1, "bp1": 0.5}), NAME
    ).accepted


def test_a_limit_on_something_unscored_is_not_kept(tmp_path: Path) -> None:
    bundle = promote(make_study(tmp_path, limits={"d1": 0.1}), NAME)

    assert bundle.problems == ("d1: promote.limits names it, but it was not scored",)


def test_mixed_sizes_are_compared_at_the_engines_size(tmp_path: Path) -> None:
    study = make_study(tmp_path, {"mixed_sizes": True})

    bundle = promote(study, NAME)

    row = bundle.metrics["epe"]
    assert bundle.accepted
    assert row["checkpoint"] == row["native"] + 1.0  # quadratic: resized scores are 1 px worse
    assert row["engine"] == row["graph"] == row["checkpoint"]
    spec = study.promotion["evaluate_at_engine_size"]
    assert spec["status"] == "ok"


def test_a_failed_step_names_itself_and_is_tried_again(tmp_path: Path) -> None:
    study = make_study(tmp_path, {"engine_fails": True})

    with pytest.raises(PromotionError, match=r"gen_trt_engine of trial 1: failed: no engine today"):
        promote(study, NAME)

    assert study.promotion["gen_trt_engine"]["status"] == "failed"
    before = statuses(study)
    with pytest.raises(PromotionError):
        promote(study, NAME)
    assert statuses(study)[len(before) :] == ["gen_trt_engine"]


def test_parts_of_the_chain_can_be_chosen(tmp_path: Path) -> None:
    study = make_study(tmp_path)

    assert promote(study, NAME, to="export").directory is None
    assert statuses(study) == ["check", "evaluate", "inference", "export"]

    promote(study, NAME, only="graph_evaluate")
    assert statuses(study)[4:] == ["graph_evaluate"]

    assert promote(study, NAME, from_="gen_trt_engine").accepted


def test_a_skipped_step_that_never_succeeded_is_asked_for(tmp_path: Path) -> None:
    study = make_study(tmp_path)

    with pytest.raises(StepChoiceError, match=r"step check: has not succeeded.*--from check"):
        promote(study, NAME, only="export")


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"from_": "expört"}, "--from: got 'expört', allowed check, evaluate"),
        ({"from_": "export", "to": "evaluate"}, "--from export comes after --to evaluate"),
        ({"only": "export", "to": "bundle"}, "--only: cannot be combined"),
    ],
)
def test_a_wrong_choice_is_refused(tmp_path: Path, choice: dict[str, str], message: str) -> None:
    with pytest.raises(StepChoiceError, match=message) as error:
        promote(make_study(tmp_path), NAME, **choice)
    assert error.value.exit_code == 2


def test_another_trainer_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(TrainableError, match=r"does not know the study's model.*--trainable"):
        promote(make_study(tmp_path), "depth_net")


def test_without_a_complete_trial_there_is_nothing_to_promote(tmp_path: Path) -> None:
    with pytest.raises(NoResultError, match="no trial is complete") as error:
        promote(make_study(tmp_path, flips=()), NAME)
    assert error.value.exit_code == 3


class Dies(Quadratic):
    def run(self, *arguments: Any) -> Any:
        import os

        os._exit(7)


def test_an_action_that_dies_is_an_outcome(tmp_path: Path) -> None:
    outcome = run_action("tests.automl.test_promote:Dies", "evaluate", {}, tmp_path)

    assert outcome.status == "failed"
    assert "the process of evaluate ended with exit code 7" in outcome.detail
