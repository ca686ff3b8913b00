"""Study files: what is read, and what is said about mistakes."""

import json
from pathlib import Path

import pytest
import yaml

from automl.errors import StudySpecError
from automl.study_spec import (
    BudgetChoice,
    base_spec,
    get_path,
    load_study,
    parse_yaml,
    set_path,
    study_from_dict,
)
from tests.automl import studies

MODEL = json.loads((studies.MODEL_DIR / "model.json").read_text())


def write(directory: Path, text: str) -> Path:
    path = directory / "mine.yaml"
    path.write_text(text)
    return path


def test_a_study_file_with_overrides(tmp_path):
    path = write(
        tmp_path,
        """
        model: quadratic
        spec: {train: {num_epochs: 4, optim: {lr: 1e-4}}}
        search: {ranges: {train.flip: [0, 1]}, choices: {train.optim.optimizer: [SGD]}}
        algorithm: asha
        budget: {trials: 5}
        """,
    )
    study = load_study(path, ["train.optim.lr=3e-3", "+train.seed=5"])
    assert (study.name, study.model, study.profile) == ("mine", "quadratic", "cpu")
    assert study.spec == {"train": {"num_epochs": 4, "optim": {"lr": 3e-3}, "seed": 5}}
    assert study.search.ranges == {"train.flip": (0.0, 1.0)}
    assert (study.algorithm.name, study.algorithm.factor) == ("asha", 3)
    assert study_from_dict(yaml.safe_load(yaml.safe_dump(study.to_dict())), "lock") == study


def test_the_profile_is_merged_over_the_rest(tmp_path):
    path = write(
        tmp_path,
        """
        model: quadratic
        spec: {a: 1, b: {c: 1, d: [1, 2]}}
        budget: {trials: 5}
        profiles:
          cpu: {spec: {b: {d: [3]}}}
          gpu: {spec: {b: {c: 2}}, budget: {trials: 40, hours: 3}}
        """,
    )
    assert load_study(path).spec == {"a": 1, "b": {"c": 1, "d": [3]}}
    gpu = load_study(path, gpu=True)
    assert gpu.spec == {"a": 1, "b": {"c": 2, "d": [1, 2]}}
    assert (gpu.profile, gpu.budget) == ("gpu", BudgetChoice(trials=40, hours=3.0))


def test_all_mistakes_are_said_together(tmp_path):
    path = write(
        tmp_path,
        """
        model: 3
        bugdet: {trials: 5}
        automl_policy: on
        budget: {trials: x}
        algorithm: {name: asha, factr: 3}
        search: {ranges: {a: [1]}, parameters: a}
        runner: slurm
        """,
    )
    with pytest.raises(StudySpecError) as caught:
        load_study(path, ["nonsense"])
    lines = str(caught.value).splitlines()
    expected = [
        "override: nonsense: is not key.path=value",
        "bugdet: unknown key. Did you mean budget?",
        "automl_policy: unknown key. It is an option of one run: automl train TARGET --automl-pol",
        "model: got 3, expected text",
        "budget.trials: got 'x', expected a whole number",
        "algorithm.factr: unknown key. Did you mean factor?",
        "search.ranges.a: got [1], expected a list of 2",
        "search.parameters: got 'a', expected a list",
        "runner: got 'slurm', expected one of ray, local",
    ]
    assert len(lines) == len(expected)
    for words in expected:
        assert any(words in line for line in lines), words
    assert all(str(path) in line for line in lines[1:])
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: q", "budget: is missing"),
        ("{model: q, budget: {}}", r"budget: has no limit; set at least one of budget\.trials"),
        ("{model: q, budget: {trials: 0}}", r"budget\.trials: got 0, allowed above 0"),
        (
            "{model: q, budget: {trials: 1}, resources: {max_concurrent: 0}}",
            r"resources\.max_concurrent: got 0",
        ),
        ("{model: q, budget: {trials: 1}, resources: {gpus: -1}}", r"resources\.gpus: got -1"),
        (
            "{model: q, budget: {trials: 1}, trial_limits: {hours: 0}}",
            r"trial_limits\.hours: got 0",
        ),
        ("{model: q, budget: {trials: true}}", r"budget\.trials: got True, expected a whole"),
        (
            "{model: q, budget: {trials: 1}, algorithm: {rungs: [4, 2]}}",
            r"algorithm\.rungs: got \[4, 2\], allowed rising epochs",
        ),
        ("{model: q, budget: {trials: 1}, name: x}", "name: is not a key of a study file"),
        ("{model: q, budget: {trials: 1}, profiles: {tpu: {}}}", r"profiles\.tpu: unknown profile"),
        (
            "{model: q, budget: {trials: 1}, address: 'ray://head:10001'}",
            r"address: got ray://head:10001, expected HOST:PORT of a running Ray cluster",
        ),
        (
            "{model: q, budget: {trials: 1}, address: 'head:6379', runner: local}",
            "address: needs runner: ray",
        ),
        ("- a", "is not a mapping"),
        ("a: [", "is not YAML"),
    ],
)
def test_each_rule_has_its_message(tmp_path, text, words):
    with pytest.raises(StudySpecError, match=words):
        load_study(write(tmp_path, text))


@pytest.mark.parametrize("address", ["10.0.0.7:6379", "head.cluster.local:6379", "[fd00::7]:6379"])
def test_the_option_address_wins_over_the_file(tmp_path, address):
    path = write(tmp_path, "{model: q, budget: {trials: 1}, address: 'other:1'}")
    assert load_study(path).address == "other:1"
    assert load_study(path, address=address).address == address


def test_an_unknown_target_lists_the_packaged_studies():
    with pytest.raises(StudySpecError, match=r"fsf: is not a packaged study \(there are: .*ffs"):
        load_study("fsf")


def test_other_data_makes_another_study():
    study = load_study("ffs", data="Middlebury:/data/street.txt", val="/data/val.txt")
    assert study.name == "ffs-street"
    assert (study.data.train, study.data.val) == ("Middlebury:/data/street.txt", "/data/val.txt")
    assert load_study("ffs", name="night", data="/data/street.txt").name == "night"
    with pytest.raises(StudySpecError, match=r"--name: \.\./x: is not a name"):
        load_study("ffs", name="../x")


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("s3://bucket/scenes/train.txt", "ffs-train"),
        ("Kitti:s3://bucket/kitti.txt", "ffs-kitti"),
        ("https://host:8080/night.txt?signature=a/b", "ffs-night"),
        (["Kitti:s3://bucket/kitti.txt", "Eth3d:/data/eth3d.txt"], "ffs-kitti-eth3d"),
        (["/a/train.txt", "/b/train.txt"], "ffs-train"),
    ],
)
def test_a_study_is_named_after_the_stems_of_its_data(data, name):
    assert load_study("ffs", data=data).name == name


def test_addresses_and_several_files_reach_the_spec_as_given(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    remote = ["s3://bucket/a.txt", "Kitti:s3://bucket/b.txt", "Kitti:gs://x/c.txt", "Kitti:~/d.txt"]
    study = load_study("ffs", data=remote, val=["https://host:80/v.txt"])
    metadata = {**MODEL, "default_dataset": "Generic"}
    spec = base_spec(study, {}, metadata, {})
    assert spec["dataset"]["train_files"] == [
        {"dataset_name": "Generic", "data_file": "s3://bucket/a.txt"},
        {"dataset_name": "Kitti", "data_file": "s3://bucket/b.txt"},
        {"dataset_name": "Kitti", "data_file": "gs://x/c.txt"},
        {"dataset_name": "Kitti", "data_file": "/home/me/d.txt"},
    ]
    assert spec["dataset"]["val_files"] == [
        {"dataset_name": "Generic", "data_file": "https://host:80/v.txt"}
    ]
    assert study_from_dict(study.to_dict(), "lock") == study


def test_one_file_is_written_as_one_file():
    assert load_study("ffs", data=["a.txt"]).data == load_study("ffs", data="a.txt").data


def test_the_packaged_study_is_the_documented_profile():
    study = load_study("ffs")
    expected = {
        "dataset.train_dataset.augmentation.crop_size": [64, 128],
        "dataset.train_dataset.augmentation.do_flip": True,
        "dataset.train_dataset.augmentation.h_flip_prob": 0.0,
        "dataset.train_dataset.augmentation.v_flip_prob": 0.0,
        "dataset.train_dataset.batch_size": 2,
        "dataset.max_disparity": 64,
        "model.max_disparity": 64,
        "model.train_iters": 4,
        "model.valid_iters": 4,
        "train.optim.lr": 1e-4,
        "train.optim.lr_scheduler": "OneCycleLR",
        "train.num_epochs": 12,
    }
    assert {path: get_path(study.spec, path) for path in expected} == expected
    assert study.algorithm.rungs == (2, 6, 12)
    assert study.search.ranges == {}
    assert load_study("ffs", gpu=True).budget.trials > study.budget.trials


def test_the_base_spec_is_template_study_and_data(tmp_path):
    study = studies.study_spec(
        spec={"train": {"optim": {"lr": 0.5}}},
        data={"train": ["Numbers:a.txt", "b.txt"]},
        allow_partial_load=True,
    )
    template = {"train": {"optim": {"lr": 0.1, "momentum": 0.9}}, "dataset": {"val_files": None}}
    spec = base_spec(study, template, MODEL, {"val": "Numbers:/e/val.txt"})
    assert spec["train"] == {"optim": {"lr": 0.5, "momentum": 0.9}, "allow_partial_load": True}
    assert spec["dataset"] == {
        "train_files": [
            {"dataset_name": "Numbers", "data_file": str(Path("a.txt").resolve())},
            {"dataset_name": "Numbers", "data_file": str(Path("b.txt").resolve())},
        ],
        "val_files": [{"dataset_name": "Numbers", "data_file": "/e/val.txt"}],
    }
    assert template["train"]["optim"]["lr"] == 0.1


def test_paths_reach_into_lists():
    spec = {"sources": [{"file": "a"}, {"file": "b"}]}
    set_path(spec, "sources.1.file", "c")
    assert spec["sources"][1] == {"file": "c"}
    for path in ("sources.2.file", "sources.x", "sources.0.file.part"):
        with pytest.raises(KeyError):
            set_path(spec, path, 0)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-5", 1e-5), ("-2E3", -2000.0), ("1.5e+3", 1500.0), ("1e", "1e"), ("e5", "e5"), ("7", 7)],
)
def test_yaml_numbers_are_numbers(text, value):
    assert parse_yaml(text) == value
    assert type(parse_yaml(text)) is type(value)
