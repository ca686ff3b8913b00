from __future__ import annotations

import json
from pathlib import Path

import pytest

from automl.cli import COMMANDS, SENTENCES, TEACHING, main
from tests.automl.quadratic import NAME

STUDY = """\
model: quadratic
runner: local
budget: {trials: 3}
algorithm: random
spec: {train: {num_epochs: 2}}
"""
TRAINABLE = ("--trainable", NAME)


@pytest.fixture(autouse=True)
def _work_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(STUDY)


def output(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    """What a command prints, both streams together."""
    assert main(words) == code
    captured = capsys.readouterr()
    return captured.out + captured.err


def test_every_command_has_a_sentence() -> None:
    assert set(COMMANDS) == set(SENTENCES)


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["--help"])

    text = capsys.readouterr().out
    assert done.value.code == 0
    assert "examples:" in text
    assert "exit codes: 0 success" in text
    assert all(name in text for name in SENTENCES)


@pytest.mark.parametrize("command", sorted(TEACHING))
def test_the_help_of_a_command_teaches_it(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])

    text = capsys.readouterr().out
    assert TEACHING[command] in text
    assert all(len(line) <= 100 for line in text.splitlines())


def test_data_may_be_given_twice_and_be_remote(capsys: pytest.CaptureFixture[str]) -> None:
    data = ("--data", "a.txt", "--data", "Numbers:s3://bucket/b.txt")
    text = output(capsys, "plan", "tiny.yaml", *data, "--val", "s3://bucket/v.txt", *TRAINABLE)

    assert "Study tiny-a-b:" in text
    assert "train a.txt, Numbers:s3://bucket/b.txt; validation s3://bucket/v.txt" in text


def test_overrides_may_stand_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    text = output(
        capsys, "plan", "tiny.yaml", "train.flip=0.5", "--json", "train.optim.lr=1e-3", *TRAINABLE
    )

    first = json.loads(text)["first_trials"][0]
    assert (first["train.flip"], first["train.optim.lr"]) == (0.5, 1e-3)


@pytest.mark.parametrize("words", [("plan", "tiny.yaml", "--jsn"), ("list", "x=1"), ("nope",), ()])
def test_a_usage_error_is_exit_2(words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as done:
        main(words)

    assert done.value.code == 2


def test_an_error_has_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, "plan", "fsf", code=2)

    assert text.startswith("error: target: fsf: is not a packaged study")
    assert "Traceback" not in text


def test_a_spec_key_that_is_an_option_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    Path("tiny.yaml").write_text(STUDY + "automl_policy: off\n")

    text = output(capsys, "plan", "tiny.yaml", *TRAINABLE, code=2)

    assert "automl train TARGET --automl-policy auto|on|off" in text


def test_a_finished_study_can_be_read_in_every_way(capsys: pytest.CaptureFixture[str]) -> None:
    assert "report:" in output(capsys, "study", "tiny.yaml", "--name", "one", *TRAINABLE)

    listed = json.loads(output(capsys, "list", "--json"))
    assert [(row["study"], row["state"], row["trials"]) for row in listed] == [
        ("one", "finished", 3)
    ]
    assert "val/epe" in output(capsys, "list")
    assert "finished" in output(capsys, "status")
    assert "finished" in output(capsys, "status", "one", "--watch")
    status = json.loads(output(capsys, "status", "results/studies/one", "--json"))
    assert (status["trials"], len(status["every_trial"])) == (3, 3)
    assert status["objective"] == {"metric": "val/epe", "direction": "minimize", "unit": "px"}
    assert status["best"]["value"] == min(trial["value"] for trial in status["every_trial"])
    assert "report.html" in output(capsys, "report", "one")
    assert "unchanged, kept" in output(capsys, "promote", "one", *TRAINABLE)
    assert "export" in output(capsys, "promote", "one", "--only", "bild", *TRAINABLE, code=2)


def test_an_unknown_study_lists_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert "holds no study" in output(capsys, "status", code=2)
    output(capsys, "study", "tiny.yaml", "promote.enabled=false", *TRAINABLE, code=2)
    Path("tiny.yaml").write_text(STUDY + "promote: {enabled: false}\n")
    output(capsys, "study", "tiny.yaml", *TRAINABLE)

    assert "There are: tiny" in output(capsys, "status", "other", code=2)


def test_a_damaged_study_is_listed_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    directory = Path("results/studies/broken")
    directory.mkdir(parents=True)
    (directory / "events.jsonl").write_text("{}\n")

    assert "unreadable" in output(capsys, "list")
    assert json.loads(output(capsys, "list", "--json"))[0]["state"] == "unreadable"


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_commands_and_targets(
    capsys: pytest.CaptureFixture[str], shell: str
) -> None:
    text = output(capsys, "completion", shell)

    assert "complete -F _automl automl" in text
    assert "promote" in text
    assert "ffs" in text
