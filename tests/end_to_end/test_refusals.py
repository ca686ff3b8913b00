"""What is refused before anything runs: the real programs, their exit codes and words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.end_to_end.small_ffs import Place


@pytest.fixture(scope="module")
def packaged_place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("whole"))
    place.write()
    return place


@pytest.fixture
def damaged(tmp_path: Path) -> Place:
    """Line 2 has one column, line 3 names no file, line 4 and the only other truth are cut off."""
    place = Place(tmp_path)
    place.write()
    train = tmp_path / "data" / "train_middlebury.txt"
    lines = train.read_text().splitlines()
    lines[1] = "train/0001/im0.png"
    lines[2] = lines[2].replace("im1.png", "im7.png")
    train.write_text("\n".join(lines) + "\n")
    for truth in ("train/0003", "val/0001"):
        file = tmp_path / "data" / truth / "disp0GT.pfm"
        file.write_bytes(file.read_bytes()[:-100])
    return place


def assert_faults_named(place: Place, output: str) -> None:
    train, val = (place.root / "data" / f"{split}_middlebury.txt" for split in ("train", "val"))
    for where, what in (
        (f"{train}:2", "column"),
        (f"{train}:3", "im7.png"),
        (f"{train}:4", "disp0GT.pfm"),
        (f"{val}:2", "disp0GT.pfm"),
    ):
        named = [line for line in output.splitlines() if where in line]
        assert len(named) == 1, output
        assert what in named[0]
    assert "Traceback" not in output


def test_a_study_of_damaged_data_is_refused_with_file_and_line(damaged: Place) -> None:
    code, output = damaged.automl("study", "first.yaml")

    assert code == 2, output
    assert_faults_named(damaged, output)
    assert not (damaged.study / "trials").exists()
    assert not (damaged.study / "events.jsonl").exists()


def test_training_on_damaged_data_is_refused_with_file_and_line(damaged: Place) -> None:
    code, output = damaged.automl("train", "first.yaml", "--automl-policy", "off")
    assert code == 2, output
    assert_faults_named(damaged, output)

    data = damaged.root / "data"
    sources = {
        split: json.dumps(
            [{"dataset_name": "Middlebury", "data_file": str(data / f"{split}_middlebury.txt")}]
        )
        for split in ("train", "val")
    }
    code, output = damaged.depth_net("default_specs", "--model", "ffs", "--action", "train",
                                     "-o", "train.yaml")  # fmt: skip
    assert code == 0, output
    code, output = damaged.depth_net(
        "train", "-e", "train.yaml", "results_dir=plain",
        f"dataset.train_dataset.data_sources={sources['train']}",
        f"dataset.val_dataset.data_sources={sources['val']}",
    )  # fmt: skip
    assert code == 2, output
    assert_faults_named(damaged, output)
    assert list(damaged.root.rglob("*.pth")) == []


def test_training_without_validation_data_is_not_refused(packaged_place: Place) -> None:
    train = packaged_place.root / "data" / "train_middlebury.txt"
    (packaged_place.root / "plain.yaml").write_text(
        "results_dir: plain\n"
        "model: {train_iters: 1, valid_iters: 1, max_disparity: 64}\n"
        "dataset:\n"
        "  max_disparity: 64\n"
        "  train_dataset:\n"
        f"    data_sources: [{{dataset_name: Middlebury, data_file: {train}}}]\n"
        "    augmentation: {crop_size: [64, 96]}\n"
        "    batch_size: 1\n"
        "    workers: 0\n"
        "train: {num_epochs: 1}\n"
    )

    code, output = packaged_place.depth_net("train", "-e", "plain.yaml", "--model", "ffs")

    assert code == 0, output
    assert "Execution status: PASS" in output
    assert len(list((packaged_place.root / "plain").rglob("dn_model_epoch_*.pth"))) == 1


def test_all_mistakes_of_a_spec_are_listed_and_nothing_runs(packaged_place: Place) -> None:
    place = packaged_place
    code, output = place.automl(
        "study", "first.yaml", "train.num_epoch=3", "train.optim.lr=fast",
        "dataset.train_dataset.augmentation.h_flip_prob=1.5",
        "dataset.test_dataset.data_sources=[{data_file: a.txt}]",
    )  # fmt: skip

    assert code == 2, output
    for key, what in (
        ("train.num_epoch:", "num_epochs"),
        ("train.optim.lr:", "fast"),
        ("h_flip_prob:", "got 1.5, allowed number 0..1"),
        ("dataset.test_dataset.data_sources.0:", "dataset_name"),
    ):
        assert any(key in line and what in line for line in output.splitlines()), (key, output)
    assert "Traceback" not in output
    assert not (place.study / "trials").exists()
    assert not (place.study / "events.jsonl").exists()


@pytest.mark.parametrize("file", ["events.jsonl", "study.lock.yaml"])
def test_files_of_a_newer_release_are_refused(tmp_path: Path, file: str) -> None:
    place = Place(tmp_path, "tiny")
    (tmp_path / "tiny.yaml").write_text(
        "model: quadratic\nrunner: local\nbudget: {trials: 2}\npromote: {enabled: false}\n"
    )
    study = ["study", "tiny.yaml", "--trainable", "tests.automl.quadratic:Quadratic"]
    root = Path(__file__).resolve().parents[2]
    assert place.automl(*study, PYTHONPATH=str(root))[0] == 0
    path = place.study / file
    text = path.read_text()
    newer = text.replace('"format_version": 1', '"format_version": 2', 1)
    newer = newer.replace("format_version: 1", "format_version: 2", 1)
    assert newer != text
    path.write_text(newer)

    for command in (study, ["status", "tiny"], ["report", "tiny"]):
        code, output = place.automl(*command, PYTHONPATH=str(root))
        assert (code != 0, "Traceback" in output) == (True, False), output
        assert f"{file}" in output
        assert "format_version 2" in output
        assert "newer release" in output
    assert path.read_text() == newer
