"""The program `depth_net`: exit codes, console, what is written and what is not."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from stereo.checkpoints import files
from stereo.cli import VERBS, main
from stereo.data.encodings import read_image
from stereo.data.generator import EmbeddedSet


@pytest.fixture
def spec_file(small_values: dict, tmp_path: Path) -> Path:
    path = tmp_path / "any name.yaml"
    path.write_text(yaml.safe_dump({"results_dir": str(tmp_path / "runs"), **small_values}))
    return path


def test_evaluate_prints_numbers_with_units_and_ends_with_the_status(
    spec_file: Path, small_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["evaluate", "-e", str(spec_file), f"evaluate.checkpoint={small_weights}"])
    lines = capsys.readouterr().out.splitlines()
    assert code == 0
    epe = json.loads((tmp_path / "runs" / "evaluate" / "results.json").read_text())["epe"]
    assert f"val/epe: {epe:.6g} px" in lines
    assert next(line for line in lines if line.startswith("val/bp1: ")).endswith(" %")
    assert lines[-2].startswith("scored by PyTorch")
    assert lines[-1] == "Execution status: PASS"


def test_a_failed_run_says_why_and_ends_with_the_status(
    spec_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["evaluate", "-e", str(spec_file), f"evaluate.checkpoint={tmp_path}/gone.pth"])
    shown = capsys.readouterr()
    assert code == 2
    assert "gone.pth: no such checkpoint" in shown.err
    assert shown.out.splitlines()[-1] == "Execution status: FAIL"


def test_all_mistakes_are_told_before_anything_is_written(
    spec_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["train", "-e", str(spec_file), "train.lr=1", "model.corr_radius=99"])
    shown = capsys.readouterr()
    assert code == 2
    assert "train.optim.lr" in shown.err
    assert "model.corr_radius: got 99" in shown.err
    assert shown.out == "Execution status: FAIL\n"
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_prints_a_spec_that_can_be_used_and_writes_nothing(
    spec_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "-e", str(spec_file), "train.num_epochs=7", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert yaml.safe_load(shown)["train"]["num_epochs"] == 7
    assert f"# would write to {tmp_path}/runs/train; nothing was run" in shown
    assert not (tmp_path / "runs").exists()


def test_inferred_values_are_shown_with_their_parent(
    spec_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = tmp_path / "parent"
    parent.mkdir()
    (parent / "experiment.yaml").write_text(yaml.safe_dump({"model": {"corr_radius": 3}}))
    (parent / "dn_model_best.pth").touch()
    command = ["evaluate", "-e", str(spec_file), "--set-from", str(parent), "--dry-run"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert yaml.safe_load(shown)["evaluate"]["checkpoint"] == str(parent / "dn_model_best.pth")
    assert yaml.safe_load(shown)["model"]["corr_radius"] == 3
    assert f"# model.corr_radius: model section of the training run {parent}" in shown


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Two scene folders with empty files, and a spec that lists them."""
    for scene in ("a", "b"):
        for name in ("im0.png", "im1.png", "disp0GT.pfm"):
            path = tmp_path / "left data" / scene / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    convert = {
        "data_root": str(tmp_path / "left data"),
        "image_dir_pattern": ["im0"],
        "right_dir_pattern": ["im1"],
        "depth_dir_pattern": ["disp0GT"],
        "depth_extension": ".pfm",
    }
    path = tmp_path / "lists.yaml"
    path.write_text(yaml.safe_dump({"results_dir": str(tmp_path / "runs"), "convert": convert}))
    return path


def test_convert_lists_a_folder_and_says_what_it_wrote(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", "-e", str(scenes)]) == 0
    shown = capsys.readouterr()
    written = tmp_path / "runs" / "convert" / "test.txt"
    assert shown.out.splitlines() == [
        "samples_test: 2",
        f"test: {written}",
        "Execution status: PASS",
    ]
    names = ("im0.png", "im1.png", "disp0GT.pfm")
    assert written.read_text() == "".join(
        " ".join(f'"{tmp_path}/left data/{scene}/{name}"' for name in names) + "\n"
        for scene in ("a", "b")
    )


def test_convert_writes_where_its_own_results_dir_says(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = f"convert.results_dir={tmp_path / 'own'}"
    assert main(["convert", "-e", str(scenes), own, "convert.split_ratio=0.5"]) == 0
    assert {path.name for path in (tmp_path / "own").iterdir()} == {
        "experiment.yaml",
        "provenance.json",
        "status.json",
        "train.txt",
        "val.txt",
    }
    assert not (tmp_path / "runs").exists()
    assert main(["convert", "-e", str(scenes), "results_dir=???"]) == 2
    assert "results_dir: not set, and convert.results_dir is not set" in capsys.readouterr().err


def test_a_faulty_folder_is_told_with_exit_code_2(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", "-e", str(scenes), "convert.depth_extension=.png"]) == 2
    shown = capsys.readouterr()
    assert "2 files are missing" in shown.err
    assert "a/im0.png: no ground truth a/disp0GT.png" in shown.err
    assert shown.out.splitlines() == ["Execution status: FAIL"]
    assert not list((tmp_path / "runs").rglob("*.txt"))


@pytest.mark.parametrize("late", [0, 1, 2])
def test_overrides_may_stand_before_and_behind_an_option(
    late: int, scenes: Path, tmp_path: Path
) -> None:
    overrides = [f"results_dir={tmp_path / 'runs'}", "convert.split_ratio=0.5"]
    split = len(overrides) - late
    command = ["convert", *overrides[:split], "-e", str(scenes), *overrides[split:]]
    assert main(command) == 0
    assert (tmp_path / "runs" / "convert" / "experiment.yaml").is_file()
    saved = yaml.safe_load((tmp_path / "runs" / "convert" / "experiment.yaml").read_text())
    assert saved["convert"]["split_ratio"] == 0.5


def test_convert_takes_nothing_from_a_parent(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["convert", "-e", str(scenes), "--set-from", str(tmp_path)])
    assert left.value.code == 2
    assert "unrecognized arguments: --set-from" in capsys.readouterr().err


def test_the_policy_of_automl_is_sent_to_automl(
    spec_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "-e", str(spec_file), "--automl-policy", "off"]) == 2
    assert "Use automl train MODEL --automl-policy" in capsys.readouterr().err


@pytest.mark.parametrize("action", list(VERBS))
def test_a_default_spec_is_written_once_and_its_open_fields_are_told(
    action: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "spec.yaml"
    command = ["default_specs", "--model", "ffs", "--action", action, "-o", str(path)]
    assert main(command) == 0
    assert main(command) == 2
    assert "exists and would be overwritten" in capsys.readouterr().err

    assert main(["validate", "-e", str(path), "--action", action]) == 2
    assert "results_dir: not set" in capsys.readouterr().err


def test_validate_checks_for_the_verb(spec_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "-e", str(spec_file)]) == 0
    assert "valid for train" in capsys.readouterr().out
    assert main(["validate", "-e", str(spec_file), "--action", "export"]) == 2
    assert "export.checkpoint: required by export" in capsys.readouterr().err


def test_validate_says_which_verb_it_takes_by_default(
    spec_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["validate", "--help"])
    assert "verb to check for (default: train)" in " ".join(capsys.readouterr().out.split())
    hint = "--action: not given, so checked for train. For another verb: --action VERB"
    command = ["validate", "-e", str(spec_file)]
    missing = "dataset.train_dataset.data_sources=[]"
    for options, hinted in (
        ([missing], True),
        ([missing, "--action", "train"], False),
        (["model.corr_radius=99"], False),
    ):
        assert main([*command, *options]) == 2
        assert (hint in capsys.readouterr().err) is hinted


def test_validate_reads_the_data_and_counts_warnings(
    spec_file: Path, small_data: EmbeddedSet, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = f"dataset.val_dataset.data_sources.0.data_file={small_data.train}"
    assert main(["validate", "-e", str(spec_file), "--data"]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[0] == f"{spec_file}: valid for train"
    assert f"train_dataset: GenericDataset {small_data.train}" in shown.out
    assert f"val_dataset: GenericDataset {small_data.val}" in shown.out
    assert "  pairs              2, all read completely\n" in shown.out
    assert shown.out.endswith("\nno warnings\n")
    assert shown.err == ""

    assert main(["validate", "-e", str(spec_file), "--data", shared]) == 0
    shown = capsys.readouterr().out
    assert "2 of 2 left images of val_dataset are also in train_dataset" in shown
    assert shown.endswith("\n1 warning\n")


def test_validate_shows_all_sources_and_ends_with_2_on_a_fault(
    spec_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faulty = tmp_path / "faulty.txt"
    faulty.write_text("left.png\n")
    override = f"dataset.train_dataset.data_sources.0.data_file={faulty}"
    assert main(["validate", "-e", str(spec_file), "--data", override]) == 2
    shown = capsys.readouterr()
    assert f"{faulty}:1: 1 column(s), GenericDataset takes 2 or 3 or 4" in shown.err
    assert "val_dataset: GenericDataset" in shown.out
    assert shown.out.splitlines()[-1] == "Execution status: FAIL"


def test_validate_checks_the_splits_of_the_verb(
    spec_file: Path, small_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["validate", "-e", str(spec_file), "--data", "--action"]
    weights = f"checkpoint={small_weights}"
    assert main([*command, "evaluate", f"evaluate.{weights}"]) == 0
    shown = capsys.readouterr().out
    assert "test_dataset: " in shown
    assert "train_dataset: " not in shown
    assert main([*command, "export", f"export.{weights}"]) == 2
    assert "nothing to check" in capsys.readouterr().err


def test_the_rules_of_the_spec_come_before_the_data(
    spec_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", "-e", str(spec_file), "--data", "model.corr_radius=99"]) == 2
    shown = capsys.readouterr()
    assert "model.corr_radius: got 99" in shown.err
    assert "pairs" not in shown.out


def test_validate_writes_a_preview(
    spec_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["validate", "-e", str(spec_file), "--data", "--preview"]
    for path, given in (
        (tmp_path / "runs" / "validate" / "data.png", []),
        (tmp_path / "sheet.png", [str(tmp_path / "sheet.png")]),
    ):
        assert main([*command, *given]) == 0
        assert f"preview: {path}" in capsys.readouterr().out
        assert read_image(path).shape[1] == 4 * 324
        assert [file.name for file in path.parent.glob("*.png*")] == [path.name]  # no leftovers


@pytest.mark.parametrize(
    "place", ["any name.yaml/x.png", "folder.png", "any name.yaml/below/x.png"]
)
def test_a_preview_that_cannot_be_written_is_told_before_anything_is_measured(
    place: str, spec_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.png").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert main(["validate", "-e", str(spec_file), "--data", f"--preview={tmp_path / place}"]) == 2
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert line.startswith(f"command line: --preview: cannot write '{tmp_path / place}' (")
    assert "pairs" not in shown.out
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("path", ["/proc/x.png", "/proc/below/x.png"])
def test_no_preview_is_written_where_nobody_can(
    path: str, spec_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", "-e", str(spec_file), "--data", f"--preview={path}"]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"command line: --preview: cannot write '{path}' (")
    assert "pairs" not in shown.out


def test_a_preview_that_fails_in_the_end_is_told(
    spec_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The name is short enough to exist, but not with what a file is called while written."""
    path = tmp_path / f"{'x' * 250}.png"
    assert main(["validate", "-e", str(spec_file), "--data", f"--preview={path}"]) == 2
    shown = capsys.readouterr()
    assert shown.err == (
        f"command line: --preview: cannot write '{path}' (File name too long). "
        "Name a file in a folder that can be written to\n"
    )
    assert "no warnings" in shown.out


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--pairs", "3"], "--pairs: needs --data"),
        (["--preview"], "--preview: needs --data"),
        (["--data", "--pairs", "0"], "--pairs: got '0'. Use a number above 0, or all"),
        (["--data", "--preview", "train.num_epochs=1"], "--preview: got 'train.num_epochs=1'"),
    ],
)
def test_options_of_the_data_check_are_checked(
    options: list[str], problem: str, spec_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", "-e", str(spec_file), *options]) == 2
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize(("pairs", "read"), [("1", "1"), ("all", "all")])
def test_the_number_of_pairs_is_taken(
    pairs: str, read: str, spec_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", "-e", str(spec_file), "--data", "--pairs", pairs]) == 0
    assert f"  pairs              2, {read} read completely\n" in capsys.readouterr().out


def test_the_data_check_starts_without_torch(spec_file: Path) -> None:
    code = "import sys; from stereo.cli import main; main(sys.argv[1:]); print(*sys.modules)"
    command = [sys.executable, "-c", code, "validate", "-e", str(spec_file), "--data", "--preview"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "stereo.data.check" in done.stdout.splitlines()[-1].split()
    assert "torch" not in done.stdout.splitlines()[-1].split()


@pytest.mark.slow
def test_a_slow_data_check_shows_the_time_left_on_a_terminal(spec_file: Path) -> None:
    code = (
        "import sys; from stereo import cli, progress; progress.SLOW_SECONDS = 0; "
        "sys.exit(cli.main(['validate', '-e', sys.argv[1], '--data']))"
    )
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb") as terminal:
        done = subprocess.run(
            [sys.executable, "-c", code, str(spec_file)],
            stdout=subprocess.PIPE,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
            check=False,
        )
        shown = terminal.read1(1 << 16).decode()
        os.close(theirs)
    assert done.returncode == 0
    assert b"no warnings" in done.stdout
    assert re.search(r"measuring pairs of val.txt.*2/2.*0:00:0", shown)


@pytest.mark.parametrize("verb", list(VERBS))
def test_help_names_required_fields_and_outputs(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main([verb, "--help"])
    shown = capsys.readouterr().out
    assert left.value.code == 0
    assert "required fields (ffs):" in shown
    assert "writes (ffs): " in shown


@pytest.mark.slow
def test_sigterm_ends_training_with_143_and_a_state_to_continue_from(
    spec_file: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "stereo.cli", "train", "-e", str(spec_file)]
    with subprocess.Popen(
        [*command, "train.num_epochs=1000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        first = next(line for line in process.stderr if "epoch 1/1000" in line)
        process.send_signal(signal.SIGTERM)
        out, rest = process.communicate()
    assert process.returncode == 143, first + rest
    assert "Interrupted (exit 143)" in rest
    assert out.splitlines()[-1] == "Execution status: FAIL"
    run = tmp_path / "runs" / "train"
    assert (run / "dn_model_latest.pth").is_file()
    verdict = json.loads((run / "status.json").read_text().splitlines()[-1])
    assert (verdict["status"], verdict["exit_code"]) == ("FAILURE", 143)


def test_validate_says_what_a_weight_file_is(
    small_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", "--checkpoint", str(small_weights)]) == 0
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[1:])
    assert rows["network"] == "FastFoundationStereo"
    assert rows["model.volume_dim"] == "28"
    assert rows["model.disp_head_pwconv1_widths"] == "[212, 244]"
    assert rows["parameters"] == "17,654,857"


def test_validate_compares_a_weight_file_with_a_spec(
    spec_file: Path, small_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["validate", "-e", str(spec_file), "--checkpoint", str(small_weights)]
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "fits the spec"
    assert main([*command, "model.corr_radius=3", "model.mask_widths=[24,16]"]) == 2
    captured = capsys.readouterr()
    assert "parameters" in captured.out, "what the file is comes first"
    assert [line.split(maxsplit=2)[0] for line in captured.err.splitlines()[-3:]] == [
        "field",
        "model.corr_radius",
        "model.mask_widths",
    ]


def test_validate_ends_with_2_on_a_file_that_is_no_weight_file(
    spec_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "broken.pth"
    path.write_bytes(b"hello")
    assert main(["validate", "--checkpoint", str(path)]) == 2
    assert re.search(r"broken\.pth: not a whole checkpoint \(5 bytes\)", capsys.readouterr().err)
    torch.save({"fc.weight": torch.ones(1)}, path)
    assert main(["validate", "--checkpoint", str(path)]) == 2
    assert "broken.pth: none of the networks this program knows" in capsys.readouterr().err


def test_validate_refuses_weights_that_fit_no_fields(
    small_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = files.read(small_weights)["state_dict"]
    state["model.corr_stem.0.weight"] = torch.ones(1)
    files.write(tmp_path / "undistilled.pth", {"state_dict": state})
    assert main(["validate", "--checkpoint", str(tmp_path / "undistilled.pth")]) == 2
    assert "The file is an undistilled FastFoundationStereo" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "named"),
    [([], "-e"), (["--checkpoint", "a.pth", "--data"], "--data")],
)
def test_validate_asks_for_the_spec_where_it_needs_one(
    options: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", *options]) == 2
    assert f"command line: {named}: " in capsys.readouterr().err


def test_an_override_without_a_spec_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "--checkpoint", "a.pth", "model.corr_radius=3"]) == 2
    assert "command line: key=value: needs -e" in capsys.readouterr().err
