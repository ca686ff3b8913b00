from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from automl.contract import find_trainable
from automl.errors import SchemaError, StudySpecError
from automl.plan import default_name, duration, make_plan, plain_spec, prepare, render
from automl.promote.chain import STEP_SENTENCES
from tests.automl.quadratic import NAME, SCHEMAS, Quadratic

STUDY = """\
model: quadratic
runner: local
budget: {trials: 6, hours: 1.5}
seed: 3
"""
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(STUDY)
    return path


def plan_of(study_file: Path, *overrides: str, **options: str) -> str:
    prepared = prepare(study_file, overrides, trainable=NAME, **options)  # pyright: ignore
    return render(make_plan(prepared, STEP_SENTENCES))


def test_the_plan_says_what_is_searched_and_what_is_not(study_file: Path) -> None:
    text = plan_of(study_file, "train.flip=0.25")

    assert "train.optim.lr  1e-06..0.1 log  0.0001" in text
    assert "train.flip      0..1            0.25" in text
    assert "train.optim.momentum  acts only with train.optim.optimizer = SGD" in text


def test_the_plan_says_what_confirmation_adds_and_what_it_costs(study_file: Path) -> None:
    study_file.write_text(STUDY.replace("hours: 1.5", "cost_per_hour: 2.5") + "confirm: 3\n")

    text = plan_of(study_file)

    assert "After the search: baseline and winner again on 3 further seeds each." in text
    assert "baseline and winner 3 times more (confirm)" in text
    assert "cost_per_hour 2.5" in text


def test_confirm_needs_a_seed_to_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schemas = tmp_path / "schemas" / "quadratic"
    shutil.copytree(SCHEMAS / "quadratic", schemas)
    file = schemas / "train.schema.json"
    file.write_text(file.read_text().replace('"seed"', '"grain"'))
    monkeypatch.setattr(Quadratic, "schema_dir", schemas.parent)
    (tmp_path / "s.yaml").write_text("model: quadratic\nbudget: {trials: 2}\nconfirm: 2\n")
    with pytest.raises(
        StudySpecError, match=r"confirm: needs the field train\.seed, which quadrat"
    ):
        prepare(tmp_path / "s.yaml", trainable=NAME)


def test_the_plan_says_objective_budget_resources_and_what_follows(study_file: Path) -> None:
    text = plan_of(study_file)

    assert "val/epe minimize, px" in text
    assert "trials 6, hours 1.5" in text
    assert "in the driver's process, one trial after another" in text
    assert "compared after epochs 2, 3, 9 (a full run has 9)" in text
    for name, _ in STEP_SENTENCES:
        assert f"\n  {name} " in text
    assert "Nothing was run or written." in text


def test_the_first_trial_is_the_spec_as_given(study_file: Path) -> None:
    prepared = prepare(study_file, ["train.flip=0.25"], trainable=NAME)
    plan = make_plan(prepared, STEP_SENTENCES)

    assert plan.first_trials[0] == {
        "model.width": 8, "train.flip": 0.25, "train.optim.lr": 1e-4,
    }  # fmt: skip
    assert len({json.dumps(trial) for trial in plan.first_trials}) == 4


def test_the_plan_touches_no_file(study_file: Path) -> None:
    plan_of(study_file)

    assert list(Path.cwd().iterdir()) == []


def test_a_data_file_names_another_study(study_file: Path) -> None:
    text = plan_of(study_file, data="Numbers:somewhere/pairs.txt", val="val.txt")

    assert "Study tiny-pairs:" in text
    assert "train Numbers:somewhere/pairs.txt; validation val.txt" in text


@pytest.mark.parametrize("data", ["s3://bucket/pairs.txt", ["Numbers:s3://bucket/pairs.txt"]])
def test_a_remote_file_reaches_study_and_plain_run_untouched(study_file: Path, data) -> None:
    spec_file = Path("mine.yaml")
    spec_file.write_text("train: {flip: 0.5}\n")
    trainer = find_trainable(NAME)
    options = {"data": data, "val": None, "trainer": trainer, "embedded": None}

    study = prepare(study_file, data=data, trainable=NAME)
    plain = plain_spec(
        study_file, [], model="quadratic", action="train", spec_file=spec_file, **options
    )

    source = {"dataset_name": "Numbers", "data_file": "s3://bucket/pairs.txt"}
    for spec in (study.resolved.base_spec, plain):
        assert spec["dataset"]["train_files"] == [source]
    assert study.resolved.study.name == default_name(study_file, data, None) == "tiny-pairs"


def test_data_sources_in_the_spec_are_kept(study_file: Path) -> None:
    sources = '[{"dataset_name": "Numbers", "data_file": "/my/own.txt"}]'
    prepared = prepare(study_file, [f"dataset.train_files={sources}"], trainable=NAME)

    dataset = prepared.resolved.base_spec["dataset"]
    assert dataset["train_files"] == json.loads(sources)
    assert dataset["val_files"][0]["data_file"].endswith("embedded")


def test_a_spec_file_is_merged_below_the_overrides(study_file: Path, tmp_path: Path) -> None:
    spec_file = tmp_path / "mine.yaml"
    spec_file.write_text("results_dir: ???\ntrain: {flip: 0.5, optim: {lr: 1e-3}}\n")

    prepared = prepare(study_file, ["train.flip=0.75"], trainable=NAME, spec_file=spec_file)

    train = prepared.resolved.base_spec["train"]
    assert (train["flip"], train["optim"]["lr"]) == (0.75, 1e-3)
    assert prepared.resolved.study.name == "tiny-mine"


def test_an_unknown_key_names_its_neighbour(study_file: Path) -> None:
    with pytest.raises(StudySpecError, match=r"train\.optim\.lrr.*Did you mean train\.optim\.lr"):
        prepare(study_file, ["train.optim.lrr=1"], trainable=NAME)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.num_epochs=abc", "train.num_epochs: got 'abc', allowed integer 1 or more"),
        ("train.num_epochs=null", "train.num_epochs: got None, allowed 1 or more"),
        ("train.num_epochs=0", "train.num_epochs: got 0, allowed integer 1 or more"),
        ("dataset.train_files=5", "dataset.train_files: got 5, allowed array or null"),
        ("train.optim=5", "train.optim: got 5, expected the keys of this section"),
    ],
)
def test_a_wrong_value_is_refused_in_words(study_file: Path, override: str, message: str) -> None:
    with pytest.raises(StudySpecError, match=message):
        prepare(study_file, [override], trainable=NAME)


def test_all_wrong_keys_and_values_are_refused_together(study_file: Path) -> None:
    overrides = ["train.flop=1", "train.flip=1.5", "train.optim.lr=fast", "model.width=8.5"]

    with pytest.raises(StudySpecError) as error:
        prepare(study_file, overrides, trainable=NAME)

    assert [problem.key for problem in error.value.problems] == [
        override.partition("=")[0] for override in overrides
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("Depth:pairs.txt", "data.train, pairs.txt: got class Depth, allowed Numbers, Letters"),
        (["Numbers:a.txt", "Number:b.txt"], "data.train, b.txt: .* Did you mean Numbers"),
    ],
)
def test_a_class_that_the_schema_does_not_list_is_refused(
    study_file: Path, data: str | list[str], message: str
) -> None:
    with pytest.raises(StudySpecError, match=message):
        prepare(study_file, data=data, trainable=NAME)
    prepare(study_file, val=data, trainable=NAME)  # for these the schema lists no classes


@pytest.mark.parametrize("data", ["numbers:a.txt", "a.txt", "C:/a.txt", "s3://bucket/a.txt"])
def test_case_and_files_without_a_class_are_left_to_the_trainer(
    study_file: Path, data: str
) -> None:
    prepare(study_file, data=data, trainable=NAME)


def test_classes_written_in_the_spec_are_checked_where_they_count(study_file: Path) -> None:
    wrong = '[{"dataset_name": "Depth", "data_file": "/my/own.txt"}]'
    override = f"dataset.train_files={wrong}"
    with pytest.raises(StudySpecError, match=r"dataset\.train_files\.0\.dataset_name: got class"):
        prepare(study_file, [override], trainable=NAME)
    prepare(study_file, [override], data="Numbers:a.txt", trainable=NAME)
    for open_or_other in ("???", "${results_dir}"):
        prepare(study_file, [override.replace("Depth", open_or_other)], trainable=NAME)


@pytest.mark.parametrize(("option", "split"), [("data", "train"), ("val", "val")])
def test_classes_of_monocular_depth_are_no_data_of_a_stereo_study(option: str, split: str) -> None:
    message = rf"data\.{split}, rooms.txt: got class NYUDV2, allowed Crestereo, .*Middlebury"
    with pytest.raises(StudySpecError, match=message):
        prepare("ffs", **{option: "NYUDV2:rooms.txt"})  # pyright: ignore


def test_rungs_beyond_the_full_run_are_refused(study_file: Path) -> None:
    study_file.write_text(STUDY + "algorithm: {rungs: [3, 12]}\n")

    with pytest.raises(StudySpecError, match="a full run has 9 epochs"):
        prepare(study_file, trainable=NAME)


def test_no_space_is_invented_without_a_schema(tmp_path: Path) -> None:
    study_file = tmp_path / "other.yaml"
    study_file.write_text("model: cubic\nbudget: {trials: 3}\n")

    with pytest.raises(SchemaError, match=r"cubic/model\.json: cannot be read"):
        prepare(study_file, trainable=NAME)


def test_switched_off_promotion_is_said(study_file: Path) -> None:
    study_file.write_text(STUDY + "promote: {enabled: false}\n")

    assert "promotion is switched off" in plan_of(study_file)


def test_times_are_said_in_words() -> None:
    assert [duration(seconds) for seconds in (12, 90, 3600, 3900)] == [
        "12 s",
        "2 min",
        "1 h 00 min",
        "1 h 05 min",
    ]


HEAVY = ("torch", "ray", "pandas", "pytorch_lightning", "plotly", "cv2", "onnx")


@pytest.mark.parametrize("target", ["tiny", "ffs", "fs"])
def test_the_program_plans_without_heavy_libraries(study_file: Path, target: str) -> None:
    arguments = [str(study_file), "--trainable", NAME] if target == "tiny" else [target]
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from automl.cli import main\n"
        f"code = main(['plan', '--json', *{arguments!r}])\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
        "sys.exit(code)\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "[]"
    assert json.loads(done.stdout)["first_trials"][0]
    assert list(Path.cwd().iterdir()) == []


def test_the_plan_says_what_trials_start_from(study_file: Path) -> None:
    assert "\n  weights " not in plan_of(study_file)
    given = "train.pretrained_model_path=released.pth"
    strict = plan_of(study_file, given)
    assert "weights     released.pth (train.pretrained_model_path)\n" in strict
    assert "weights are loaded (train.pretrained_model_path)" in strict.partition("Not searched")[2]
    study_file.write_text(STUDY + "allow_partial_load: true\n")
    partial = plan_of(study_file, given)
    assert "allow_partial_load: what does not fit a trial starts new and is listed" in partial
    assert "model.width" in partial.partition("Not searched")[0]


def test_the_plan_shows_objectives_constraints_and_how_costs_are_known(study_file: Path) -> None:
    before = plan_of(study_file)
    study_file.write_text(
        STUDY
        + "objectives: [engine/latency_ms, val/epe minimize]\n"
        + "constraints: [engine/latency_ms <= 33, model/parameters <= 1e5]\n"
    )

    text = plan_of(study_file)

    assert "  objective   val/epe minimize, px\n" in text
    assert "  objective   engine/latency_ms minimize, ms\n" in text
    assert "  constraint  engine/latency_ms <= 33 ms\n" in text
    assert "  constraint  model/parameters <= 100000\n" in text
    assert "measured    engine/latency_ms, model/parameters before a trial trains, once" in text
    assert "each proposal weighs the objectives anew" in text
    assert "the knee of the front is promoted" in text
    assert before.count("objective") == 1
    assert "constraint" not in before


def test_wrong_objectives_and_constraints_are_refused_before_anything_runs(
    study_file: Path,
) -> None:
    study_file.write_text(STUDY + "objectives: [val/epo]\nconstraints: [engine/latency_ms = 3]\n")
    with pytest.raises(StudySpecError, match=r"(?s)val/epo.*Did you mean val/epe.*latency_ms = 3"):
        plan_of(study_file)


def test_the_plan_says_of_what_an_objective_without_unit_is_a_share() -> None:
    text = {
        model: render(make_plan(prepare(model), STEP_SENTENCES))
        for model in ("mono_metric", "mono_relative")
    }
    assert "val/abs_rel minimize, of depth" in text["mono_metric"]
    assert "val/abs_rel minimize, of inverse depth" in text["mono_relative"]
