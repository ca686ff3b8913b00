"""The AutoML policy through the real program: real processes, exit codes and files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests" / "automl"

OFF = [
    "turn off AutoML",
    "Please turn AutoML off.",
    "disable AutoML and train",
    "train with AutoML off",
    "train it without AutoML",
    "No AutoML, please",
    "no HPO today",
    "train without HPO!",
    "just a plain training",
    "plain train",
    "Do not use AutoML.",
    "don't run HPO",
    "never tune hyperparameters",
]
ON = [
    "use AutoML",
    "Train with AutoML",
    "run HPO overnight",
    "please tune hyperparameters",
    "Use   AutoML, and do not disable AutoML",
    "with automl",
    "Could you run HPO?",
]
NEITHER = [
    "train the model",
    "do not disable AutoML",
    "don't turn off AutoML",
    "Don't turn AutoML off",
    "never train without AutoML",
    "what is AutoML?",
    "automl offline",
    "reuse automls",
    "plain trainings are slow",
    "train on the plain",
    "outrun hpo",
    "noautoml",
    "tune the hyperparameters",
    "turn off the light and train",
    "disabled automl",
    "train without a validation set",
    "without any automl",
    "run the hpo",
    "user automl",
    "do not train without HPO",
]


@dataclass(frozen=True)
class Workplace:
    """A folder with a copy of a model that belongs to this test alone."""

    root: Path

    @property
    def metadata(self) -> Path:
        return self.root / "lib" / "quadratic_schemas" / "quadratic" / "model.json"

    @property
    def schema(self) -> Path:
        return self.metadata.with_name("train.schema.json")

    @property
    def template(self) -> Path:
        return self.root / "lib" / "spec_templates" / "quadratic" / "train.yaml"

    def disable(self) -> None:
        content = json.loads(self.metadata.read_text())
        self.metadata.write_text(json.dumps({**content, "automl_enabled": False}))

    def train(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        target = str(self.root / "tiny.yaml")
        return program(
            self.root, "train", target, "--trainable", "quadratic:Quadratic", *arguments,
            PYTHONPATH=str(self.root / "lib"), **environment,
        )  # fmt: skip

    def row(self, kind: str) -> int:
        """The row in status.json and provenance.json of the run."""
        place = "results/studies/tiny" if kind == "study" else f"results/{kind}/tiny"
        return recorded_row(self.root / place)

    def hashes(self) -> dict[str, str]:
        files = [path for path in (self.root / "lib").rglob("*") if path.suffix != ".pyc"]
        return {
            str(path): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
            if path.is_file()
        }


def program(
    directory: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    variables = {key: value for key, value in os.environ.items() if key != "DEPTHTUNE_TRIAL"}
    return subprocess.run(
        [sys.executable, "-m", "automl.cli", *arguments],
        cwd=directory,
        env=variables | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
    )


def recorded_row(directory: Path) -> int:
    lines = [json.loads(line) for line in (directory / "status.json").read_text().splitlines()]
    policy = json.loads((directory / "provenance.json").read_text())["automl_policy"]
    said = [line for line in lines if line["message"].startswith("AutoML policy row")]
    assert f"row {policy['row']}:" in said[-1]["message"]
    assert policy["inputs"].keys() >= {"explicit", "request", "automl_enabled", "missing"}
    assert said[-1]["verbosity"] == ("WARNING" if policy["row"] == 4 else "INFO")
    return policy["row"]


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    lib = tmp_path / "lib"
    shutil.copytree(TESTS / "quadratic_schemas", lib / "quadratic_schemas")
    shutil.copytree(TESTS / "spec_templates", lib / "spec_templates")
    shutil.copy(TESTS / "quadratic.py", lib)
    (tmp_path / "tiny.yaml").write_text(
        "model: quadratic\nrunner: local\nbudget: {trials: 2}\n"
        "promote: {enabled: false}\nspec: {train: {num_epochs: 2}}\n"
    )
    (tmp_path / "spec.yaml").write_text("train: {num_epochs: 1}\n")
    return Workplace(tmp_path)


def test_sentences_for_and_against_automl_are_understood(place: Workplace) -> None:
    place.disable()
    before = place.hashes()

    for sentence in OFF:
        done = place.train("--request", sentence)
        assert (done.returncode, "AutoML off for this run" in done.stdout) == (0, True), sentence
        assert place.row("train") == 2, sentence
    for sentence in ON:
        done = place.train("--request", sentence)
        assert done.returncode == 2, sentence
        assert "model is not AutoML-enabled" in done.stderr

    assert place.hashes() == before


def test_sentences_without_a_wish_are_left_alone(place: Workplace) -> None:
    place.disable()

    for sentence in NEITHER:
        done = place.train("--request", sentence)
        assert (done.returncode, place.row("train")) == (0, 5), (sentence, done.stderr)


@pytest.mark.parametrize(("wish", "row"), [("auto", 3), ("on", 6)])
def test_an_enabled_model_is_studied(place: Workplace, wish: str, row: int) -> None:
    before = place.hashes()

    done = place.train("--automl-policy", wish)

    assert done.returncode == 0, done.stderr
    assert place.row("study") == row
    assert not (place.root / "results" / "train").exists()
    assert place.hashes() == before


def test_off_is_one_plain_run(place: Workplace) -> None:
    done = place.train("--automl-policy", "off", "--request", "use AutoML", "train.flip=0.3")

    assert done.returncode == 0
    assert "AutoML off for this run" in done.stdout
    assert place.row("train") == 2
    assert (place.root / "results/train/tiny/epoch_002.json").is_file()
    assert not (place.root / "results" / "studies").exists()


def test_a_missing_template_needs_a_spec_for_the_plain_run(place: Workplace) -> None:
    place.template.unlink()

    refused = place.train()
    assert refused.returncode == 2
    assert f"enabled but not runnable: missing {place.template}" in refused.stderr
    assert "needs a spec" in refused.stderr

    done = place.train("-e", str(place.root / "spec.yaml"))
    assert done.returncode == 0, done.stderr
    assert recorded_row(place.root / "results/train/tiny-spec") == 4


def test_on_without_schema_or_template_stops(place: Workplace) -> None:
    place.schema.write_text("{")
    place.template.unlink()

    done = place.train("--automl-policy", "on")

    assert done.returncode == 2
    assert f"enabled but not runnable: missing {place.schema}, {place.template}" in done.stderr
    assert not (place.root / "results").exists()


def test_another_verb_is_done_directly(place: Workplace) -> None:
    place.train("--automl-policy", "off")
    checkpoint = place.root / "results/train/tiny/epoch_002.json"
    arguments = ["-e", str(place.root / "spec.yaml"), f"evaluate.checkpoint={checkpoint}"]

    done = place.train("--request", "use AutoML to evaluate it", *arguments)

    assert done.returncode == 0, done.stderr
    assert "policy applies to train only" in done.stdout
    assert "val/epe" in done.stdout
    assert recorded_row(place.root / "results/evaluate/tiny-spec") == 1


def test_a_trial_trains_plainly_and_cannot_start_a_study(place: Workplace) -> None:
    done = place.train("--automl-policy", "on", DEPTHTUNE_TRIAL="3")
    assert done.returncode == 0, done.stderr
    assert place.row("train") == 9

    study = program(
        place.root, "study", "tiny.yaml", "--trainable", "quadratic:Quadratic",
        PYTHONPATH=str(place.root / "lib"), DEPTHTUNE_TRIAL="3",
    )  # fmt: skip
    assert study.returncode == 2
    assert "a study never starts a study" in study.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--automl-policy", "maybe"], "'maybe', allowed auto, on, off"),
        (["--request", "use AutoML, but no HPO"], "--automl-policy on or --automl-policy off"),
    ],
)
def test_an_unclear_wish_is_refused(place: Workplace, arguments: list[str], message: str) -> None:
    done = place.train(*arguments)

    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (place.root / "results").exists()


# --- the packaged network -----------------------------------------------------------------------

CHEAPEST = (
    "train.is_dry_run=true",
    "model.train_iters=1",
    "model.valid_iters=1",
    "dataset.train_dataset.batch_size=1",
    "dataset.val_dataset.batch_size=1",
)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of the packages and of what is packaged with them."""
    for name in ("automl", "stereo", "schemas", "spec_templates", "studies"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_ffs_without_a_schema_warns_and_trains_plainly(repository: Path) -> None:
    schema = repository / "schemas" / "ffs" / "train.schema.json"
    schema.unlink()

    done = program(repository, "train", "ffs", *CHEAPEST, PYTHONPATH=str(repository))

    assert done.returncode == 0, done.stderr
    assert f"enabled but not runnable: missing {schema}" in done.stderr
    assert recorded_row(repository / "results/train/ffs") == 4
    lines = (repository / "results/train/ffs/status.json").read_text().splitlines()
    assert json.loads(lines[-1])["status"] == "SUCCESS"


def test_ffs_on_stops_when_it_cannot_be_studied(repository: Path) -> None:
    template = repository / "spec_templates" / "ffs" / "train.yaml"
    content = template.read_text()
    template.unlink()
    for command in (["train", "ffs", "--automl-policy", "on"], ["study", "ffs"]):
        done = program(repository, *command, PYTHONPATH=str(repository))
        assert done.returncode == 2
        assert f"enabled but not runnable: missing {template}" in done.stderr

    template.write_text(content)
    metadata = repository / "schemas" / "ffs" / "model.json"
    facts = json.loads(metadata.read_text()) | {"automl_enabled": False}
    metadata.write_text(json.dumps(facts))
    for command in (["train", "ffs", "--automl-policy", "on"], ["study", "ffs"]):
        done = program(repository, *command, PYTHONPATH=str(repository))
        assert done.returncode == 2
        assert "model is not AutoML-enabled" in done.stderr
    assert not (repository / "results").exists()
