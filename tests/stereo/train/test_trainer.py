"""Trainer mechanics on a small real network; every file is a real file."""

from __future__ import annotations

import csv
import json
import math
import os
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from stereo.checkpoints import files
from stereo.data.encodings import read_image
from stereo.errors import CheckpointError, DataError, SpecError
from stereo.nets.stereo_network import StereoOutput
from stereo.registry import MODELS
from stereo.status import StatusLog
from stereo.train.checkpoint import BEST, LATEST, PATTERN
from stereo.train.trainer import _network, fit
from tests.stereo.test_files import is_held
from tests.stereo.train.tiny import TINY, TinyStereo


def refuse(constant: str) -> float:
    raise AssertionError(f"{constant} is not JSON")


def status_lines(directory: Path) -> list[dict]:
    text = (directory / "status.json").read_text("utf-8")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def table(directory: Path) -> list[dict[str, str]]:
    with (directory / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def checkpoints(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob(PATTERN))


def curve(directory: Path) -> list[list[float]]:
    names = ("train_loss", "val/loss", "lr")
    return [[float(row[name]) for name in names] for row in table(directory)]


class FaultyStereo(TinyStereo):
    """Answers NaN in the training steps `faults` (counted from 1)."""

    def __init__(self, faults: range) -> None:
        super().__init__()
        self.faults = faults
        self.steps = 0

    def forward(self, left, right, *, iters, last_only=False, init_disparity=None):
        output = super().forward(left, right, iters=iters, last_only=last_only)
        self.steps += self.training
        if self.training and self.steps in self.faults:
            return StereoOutput(output.initial * math.nan, output.refined)
        return output


def faulty(*arguments: int):
    return replace(TINY, build=lambda _spec: FaultyStereo(range(*arguments)))


def empty_masks(pairs_file: Path, target: Path, lines: slice) -> Path:
    """Annotations in which the disparities of the chosen lines are +inf everywhere."""
    rows = [line.split() for line in pairs_file.read_text("utf-8").splitlines()]
    rows = [[str((pairs_file.parent / name).resolve()) for name in row] for row in rows]
    for number, row in list(enumerate(rows))[lines]:
        height, width = cv2.imread(row[0]).shape[:2]
        row[2] = str(target.parent / f"empty{number}.pfm")
        body = np.full((height, width), np.inf, "<f4").tobytes()
        Path(row[2]).write_bytes(f"Pf\n{width} {height}\n-1\n".encode() + body)
    target.write_text("".join(" ".join(row) + "\n" for row in rows), "utf-8")
    return target


@pytest.mark.parametrize("key", ["ffs", pytest.param("fs", marks=pytest.mark.slow)])
def test_deterministic_training_gives_the_same_losses_twice(make_spec, run, tmp_path, key) -> None:
    spec = make_spec(num_epochs=1, deterministic=True, log_every_n_steps=1)
    small = {"volume_dim": 16, "max_disparity": 64, "train_iters": 2, "valid_iters": 2}
    spec = replace(spec, model=MODELS[key].spec_class(**small))

    for name in ("one", "two"):
        run(spec, tmp_path / name, entry=MODELS[key])

    first, second = (files.read(tmp_path / name / LATEST) for name in ("one", "two"))
    assert first["metrics"]["train_loss"] == second["metrics"]["train_loss"]
    assert first["metrics"]["val/loss"] == second["metrics"]["val/loss"]
    for name, tensor in first["state_dict"].items():
        assert torch.equal(tensor, second["state_dict"][name]), name


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")
def test_model_compile_compiles_the_network(make_spec, tmp_path) -> None:
    spec = make_spec()
    compiled = replace(spec, model=replace(spec.model, compile=True))

    networks = (_network(given, TINY, None, tmp_path) for given in (spec, compiled))

    assert [network._compiled_call_impl is not None for network in networks] == [False, True]


def test_a_plain_run_leaves_checkpoints_links_and_records(make_spec, run, tmp_path) -> None:
    outcome = run(make_spec(log_every_n_steps=500), tmp_path)

    assert outcome.status == "ok"
    names = [f"dn_model_epoch_{epoch:03d}_step_{3 * (epoch + 1):05d}.pth" for epoch in range(3)]
    assert checkpoints(tmp_path) == names
    assert (tmp_path / LATEST).resolve().name == outcome.latest.name == names[-1]
    losses = [float(row["val/loss"]) for row in table(tmp_path)]
    best = names[losses.index(min(losses))]
    assert (tmp_path / BEST).resolve().name == outcome.best.name == best
    assert [row["epoch"] for row in table(tmp_path)] == ["1", "2", "3"]
    assert outcome.metrics["val/epe"] == pytest.approx(float(table(tmp_path)[-1]["val/epe"]))
    assert list(tmp_path.glob("events.out.tfevents.*"))
    assert not (tmp_path / "lightning_logs").exists()

    payload = files.read(outcome.latest)
    assert payload["format_version"] == 1
    assert (payload["epoch"], payload["global_step"]) == (2, 9)
    assert all(name.startswith("model.") for name in payload["state_dict"])
    assert payload["spec"]["train"]["num_epochs"] == 3


def test_status_lines_carry_their_own_kpi_only(make_spec, run, tmp_path) -> None:
    run(make_spec(num_epochs=2), tmp_path)
    lines = status_lines(tmp_path)
    assert lines[0]["message"] == "Starting Training Loop."
    loops = [line for line in lines if line["message"] == "Training loop in progress"]
    assert [(line["epoch"], line["step"]) for line in loops] == [(0, 3), (1, 6)]
    assert {line["max_epoch"] for line in loops} == {1}
    assert {line["max_step"] for line in loops} == {6}
    assert "kpi" not in loops[0]
    scores = [line for line in lines if line["message"] == "Eval metrics generated."]
    assert scores[0]["kpi"]["val_loss"] == scores[0]["kpi"]["val/loss"]
    assert 0 <= scores[0]["kpi"]["val/bp1"] <= 1
    assert lines[-1]["message"] == "Training loop complete."


def test_resume_equals_an_uninterrupted_run(make_spec, run, tmp_path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(make_spec(num_epochs=4), whole)

    class Cut(Exception):
        pass

    def report(epoch: int, metrics, checkpoint) -> bool:
        if epoch == 2:
            raise Cut
        return False

    with pytest.raises(Cut):
        run(make_spec(num_epochs=4), parts, report)
    second = checkpoints(parts)[-1]
    resumed = make_spec(num_epochs=4, resume_training_checkpoint_path=str(parts / second))
    run(resumed, parts)

    np.testing.assert_allclose(curve(parts), curve(whole), rtol=1e-6)
    ends = [files.read(directory / LATEST)["state_dict"] for directory in (whole, parts)]
    for name, tensor in ends[0].items():
        torch.testing.assert_close(tensor, ends[1][name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_an_epoch_saves_and_the_same_command_continues(
    make_spec, run, tmp_path, number: signal.Signals, accumulate: int
) -> None:
    class Signalling(TinyStereo):
        steps = 0

        def forward(self, *images, **options):
            type(self).steps += self.training
            if self.training and self.steps == 5:
                os.kill(os.getpid(), number)
            return super().forward(*images, **options)

    spec = make_spec(num_epochs=3, accumulate_grad_batches=accumulate)
    run(spec, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt) as interrupt:
        run(spec, tmp_path / "parts", entry=replace(TINY, build=lambda _spec: Signalling()))
    assert interrupt.value.args == (number,)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    latest = files.read(tmp_path / "parts" / LATEST)
    assert (latest["loops"]["epoch"], latest["loops"]["batch"]) == (1, 2)

    run(spec, tmp_path / "parts")
    np.testing.assert_allclose(curve(tmp_path / "parts"), curve(tmp_path / "whole"), rtol=1e-6)


def test_a_signal_during_validation_continues_with_the_validation(make_spec, run, tmp_path) -> None:
    class Signalling(TinyStereo):
        scored = 0

        def forward(self, *images, **options):
            type(self).scored += not self.training
            if self.scored == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().forward(*images, **options)

    spec = make_spec(num_epochs=3)
    run(spec, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(spec, tmp_path / "parts", entry=replace(TINY, build=lambda _spec: Signalling()))
    run(spec, tmp_path / "parts")
    np.testing.assert_allclose(curve(tmp_path / "parts"), curve(tmp_path / "whole"), rtol=1e-6)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_between_two_epochs_is_not_a_success(make_spec, tmp_path, number) -> None:
    class Killed(StatusLog):
        def running(self, message, kpi=None, **fields):
            super().running(message, kpi, **fields)
            if message.startswith("Eval metrics"):
                os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt) as caught:
        fit(make_spec(), TINY, tmp_path, status=Killed(tmp_path))
    assert caught.value.args == (number,)
    assert (tmp_path / LATEST).exists()


def test_checkpoints_by_step_and_a_finished_run_has_nothing_to_do(make_spec, run, tmp_path) -> None:
    spec = make_spec(num_epochs=2, checkpoint_interval=2, checkpoint_interval_unit="step")
    run(spec, tmp_path)
    steps = {int(name[-9:-4]) for name in checkpoints(tmp_path)}
    assert {2, 4, 6} <= steps
    before = checkpoints(tmp_path)
    outcome = run(spec, tmp_path)
    assert outcome.status == "ok"
    assert "nothing to do" in outcome.detail
    assert outcome.metrics["val/epe"] > 0
    assert checkpoints(tmp_path) == before
    assert status_lines(tmp_path)[-1]["status"] == "SKIPPED"


def test_steps_are_saved_and_shown_beside_the_epochs(make_spec, run, tmp_path) -> None:
    spec = make_spec(
        num_epochs=2, checkpoint_interval_steps=2, dataloader_visualize=True, vis_step_interval=3
    )
    run(spec, tmp_path)
    steps = {path.stem.rpartition("_")[2] for path in tmp_path.glob("dn_model_epoch_*.pth")}
    assert steps >= {"00002", "00004", "00006"}, "three steps an epoch"
    pictures = sorted(path.name for path in (tmp_path / "visualizations").iterdir())
    assert pictures == [f"step_{step:06d}_{place}.png" for step in (3, 6) for place in (0, 1)]
    shown = read_image(tmp_path / "visualizations" / pictures[0])
    assert shown.shape == (64, 3 * 128, 3), "left, right and ground truth of a crop"
    assert len({int(shown[:, x : x + 128].mean()) for x in (0, 256)}) == 2


def test_a_best_checkpoint_off_the_interval_is_kept_until_a_better_one(
    make_spec, run, tmp_path
) -> None:
    run(make_spec(num_epochs=4, checkpoint_interval=4), tmp_path)
    losses = [float(row["val/loss"]) for row in table(tmp_path)]
    best = losses.index(min(losses))
    kept = {int(name.split("_")[3]) for name in checkpoints(tmp_path)}
    assert kept == {best, 3}
    assert int((tmp_path / BEST).resolve().name.split("_")[3]) == best


def test_without_validation_data_the_best_checkpoint_is_that_of_the_training_loss(
    make_spec, run, tmp_path, caplog
) -> None:
    spec = make_spec()
    spec.dataset.val_dataset.data_sources = None
    outcome = run(spec, tmp_path)
    losses = [float(row["train_loss"]) for row in table(tmp_path)]
    best = f"dn_model_epoch_{losses.index(min(losses)):03d}_"
    assert outcome.best is not None
    assert outcome.best.resolve().name.startswith(best)
    assert "smallest training loss" in caplog.text


def test_a_study_keeps_one_checkpoint_and_stops_the_run(make_spec, run, tmp_path) -> None:
    seen: list[tuple[int, str, int]] = []

    def report(epoch: int, metrics, checkpoint: Path) -> bool:
        assert files.read(checkpoint)["epoch"] == epoch - 1
        assert {"val/epe", "val/loss", "train_loss", "lr", "seconds", "peak_memory_mb"} <= set(
            metrics
        )
        seen.append((epoch, checkpoint.name, len(checkpoints(tmp_path))))
        return epoch == 2

    (tmp_path / "dn_model_epoch_007_step_00099.pth").write_bytes(b"of an earlier attempt")
    outcome = run(make_spec(num_epochs=5), tmp_path, report)
    assert outcome.status == "stopped"
    assert [(epoch, count) for epoch, _, count in seen] == [(1, 2), (2, 2)]
    assert checkpoints(tmp_path) == [seen[-1][1]] == [outcome.latest.name]
    assert outcome.best is None
    assert not (tmp_path / BEST).exists()


def test_trials_of_a_study_replace_their_checkpoints_in_turn(
    make_spec, run, tmp_path, monkeypatch
) -> None:
    turn = tmp_path / "turn.lock"
    monkeypatch.setenv("DEPTHTUNE_CHECKPOINT_TURN", str(turn))
    held: list[bool] = []

    def report(epoch: int, metrics, checkpoint: Path) -> bool:
        held.append(is_held(turn))
        return epoch == 2

    run(make_spec(num_epochs=5), tmp_path / "study", report)
    assert held == [True, True]
    assert not is_held(turn)
    turn.unlink()
    run(make_spec(num_epochs=1), tmp_path / "plain")
    assert not turn.exists()


def test_a_study_gets_a_sweep_with_the_last_epoch_and_no_score_changes(
    make_spec, run, tmp_path
) -> None:
    seen: list[dict[str, float]] = []

    def report(epoch: int, metrics, checkpoint: Path) -> bool:
        seen.append(metrics)
        return False

    spec = make_spec(num_epochs=2)
    studied, plain = run(spec, tmp_path / "study", report), run(spec, tmp_path / "plain")
    timed = ("seconds", "peak_memory_mb")
    assert {k: v for k, v in studied.metrics.items() if k not in timed} == {
        k: v for k, v in plain.metrics.items() if k not in timed
    }
    assert [name for name in seen[0] if "=" in name] == []
    assert {name.partition("/")[0] for name in seen[1] if "=" in name} == {
        "model.valid_iters=1",
        "model.valid_iters=2",
    }
    for directory in ("study", "plain"):  # records hold what every epoch has
        assert not any("=" in name for name in table(tmp_path / directory)[-1])


def test_a_study_is_asked_after_validations_only_and_never_resumes_by_itself(
    make_spec, run, tmp_path
) -> None:
    epochs: list[int] = []

    def report(epoch: int, metrics, checkpoint) -> bool:
        epochs.append(epoch)
        return False

    for _ in range(2):
        outcome = run(make_spec(num_epochs=4, validation_interval=2), tmp_path, report)
    assert outcome.status == "ok"
    assert epochs == [2, 4, 2, 4]
    assert [row["epoch"] for row in table(tmp_path)] == ["1", "2", "3", "4"]


def test_too_many_steps_without_a_finite_loss_diverge(make_spec, run, tmp_path) -> None:
    spec = make_spec(num_epochs=6, max_nonfinite_steps=2)
    outcome = run(spec, tmp_path, entry=faulty(5, 99))
    assert outcome.status == "diverged"
    assert "3 steps in a row" in outcome.detail
    assert "train.optim.lr" in outcome.detail
    names = ["dn_model_epoch_000_step_00003.pth", "dn_model_epoch_001_step_00004.pth"]
    assert checkpoints(tmp_path) == names
    assert (tmp_path / LATEST).resolve().name == names[-1]


def test_an_epoch_without_a_finite_loss_diverges(make_spec, run, tmp_path) -> None:
    outcome = run(make_spec(max_nonfinite_steps=100), tmp_path, entry=faulty(4, 99))
    assert outcome.status == "diverged"
    assert "epoch 2 had no finite loss" in outcome.detail
    kpis = [line for line in status_lines(tmp_path) if line["message"].startswith("Train metrics")]
    assert kpis[-1]["kpi"] == {"train_loss": None}
    assert kpis[-1]["nonfinite"] == ["train_loss"]
    assert table(tmp_path)[-1]["train_loss"] == ""
    assert checkpoints(tmp_path) == ["dn_model_epoch_000_step_00003.pth"]


def test_a_few_bad_steps_are_left_out(make_spec, run, tmp_path) -> None:
    outcome = run(make_spec(max_nonfinite_steps=2), tmp_path, entry=faulty(4, 6))
    assert outcome.status == "ok"
    progress = files.read(outcome.latest)["loops"]
    assert (progress["step"], progress["nonfinite"], progress["nonfinite_run"]) == (7, 2, 0)


def test_a_wild_learning_rate_diverges(make_spec, run, tmp_path) -> None:
    spec = make_spec(
        num_epochs=20, clip_grad_norm=0.0, optim={"lr": 1e4, "optimizer": "SGD", "warmup_steps": 0}
    )
    reports: list[float] = []

    def report(epoch: int, metrics, checkpoint) -> bool:
        reports.append(metrics["val/epe"])
        return False

    outcome = run(spec, tmp_path, report)
    assert outcome.status == "diverged"
    assert all(map(math.isfinite, reports))


def test_ground_truth_that_is_empty_everywhere_ends_the_run(
    make_spec, run, tmp_path, pairs
) -> None:
    file = empty_masks(pairs.train, tmp_path / "empty.txt", slice(None))
    outcome = run(make_spec(train_file=file), tmp_path)
    assert outcome.status == "diverged"
    assert "no valid pixel in 3 batches" in outcome.detail
    assert "dataset class" in outcome.detail
    assert not checkpoints(tmp_path)


def test_one_sample_without_ground_truth_is_counted_and_left_out(
    make_spec, run, tmp_path, pairs, caplog
) -> None:
    file = empty_masks(pairs.train, tmp_path / "partly.txt", slice(0, 1))
    spec = make_spec(train_file=file)
    spec.dataset.train_dataset.batch_size = 1
    outcome = run(spec, tmp_path)
    assert outcome.status == "ok"
    assert files.read(outcome.latest)["global_step"] == 15
    assert caplog.text.count("no valid pixel in batch") == 3


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradients_are_clipped_before_the_update(make_spec, run, tmp_path, algorithm: str) -> None:
    limit = 1e-3
    spec = make_spec(
        num_epochs=1,
        clip_grad_norm=limit,
        clip_grad_algorithm=algorithm,
        optim={"optimizer": "SGD", "momentum": 0.0, "weight_decay": 0.0, "lr_scheduler": "StepLR"},
    )
    spec.train.optim.warmup_steps = 0
    torch.manual_seed(spec.train.seed)
    start = torch.cat([p.detach().flatten() for p in TinyStereo().parameters()])
    outcome = run(spec, tmp_path)
    state = files.read(outcome.latest)["state_dict"]
    moved = torch.cat([tensor.flatten() for tensor in state.values()]) - start
    steps, lr = 3, spec.train.optim.lr
    size = moved.norm() if algorithm == "norm" else moved.abs().max()
    assert 0 < size.item() <= steps * lr * limit * 1.01


def test_a_dry_run_leaves_no_checkpoint(make_spec, run, tmp_path) -> None:
    outcome = run(make_spec(is_dry_run=True), tmp_path)
    assert outcome.status == "ok"
    assert outcome.metrics["val/epe"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_terminal_lines_have_no_carriage_return(make_spec, run, tmp_path, capfd) -> None:
    run(make_spec(num_epochs=1), tmp_path / "plain")
    error = capfd.readouterr().err
    assert "epoch 1/1: train loss" in error
    assert "\r" not in error
    run(make_spec(num_epochs=1), tmp_path / "study", lambda *_: False)
    assert capfd.readouterr().err == ""


def test_a_disk_without_room_ends_the_run_and_keeps_the_last_checkpoint(
    make_spec, run, tmp_path
) -> None:
    run(make_spec(num_epochs=1), tmp_path)
    before = checkpoints(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # acts like a full disk
        with pytest.raises(OSError, match="File too large"):
            run(make_spec(num_epochs=2), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoints(tmp_path) == before
    assert (tmp_path / LATEST).resolve().name == before[-1]
    assert not list(tmp_path.glob("*.tmp"))
    run(make_spec(num_epochs=2), tmp_path)
    assert len(checkpoints(tmp_path)) == 2


def test_on_a_terminal_a_bar_shows_the_time_left(make_spec, run, tmp_path, monkeypatch) -> None:
    master, slave = os.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with os.fdopen(slave, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        run(make_spec(num_epochs=2), tmp_path)
    shown = b""
    with suppress(OSError):  # the other end is closed
        while part := os.read(master, 65536):
            shown += part
    os.close(master)
    text = shown.decode()
    assert "6/6 batches, loss" in text
    assert "time left" in text
    assert "epoch 2/2: train loss" in text


def test_running_out_of_memory_is_an_outcome(make_spec, run, tmp_path) -> None:
    class Greedy(TinyStereo):
        def forward(self, *images, **options):
            torch.empty(2**60, dtype=torch.uint8)
            return super().forward(*images, **options)

    outcome = run(make_spec(), tmp_path, entry=replace(TINY, build=lambda _spec: Greedy()))
    assert outcome.status == "out_of_memory"
    assert "memory" in outcome.detail


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"num_gpus": 2}, SpecError, r"train\.num_gpus.*one device"),
        ({"precision": "fp16"}, SpecError, r"train\.precision.*GPU"),
        ({"resume_training_checkpoint_path": "gone.pth"}, CheckpointError, "no such checkpoint"),
        ({"resume_training_checkpoint_path": "model.onnx"}, CheckpointError, "ends in .pth"),
    ],
)
def test_what_cannot_run_is_refused_first(
    make_spec, run, tmp_path, change: dict, error: type[Exception], text: str
) -> None:
    if change == {"precision": "fp16"} and torch.cuda.is_available():
        pytest.skip("fp16 runs here")
    with pytest.raises(error, match=text):
        run(make_spec(**change), tmp_path)


def test_a_data_set_smaller_than_a_batch_is_refused(make_spec, run, tmp_path) -> None:
    spec = make_spec()
    spec.dataset.train_dataset.batch_size = 7
    with pytest.raises(DataError, match=r"6 pairs, fewer.*batch_size \(7\)") as error:
        run(spec, tmp_path)
    assert error.value.exit_code == 2


def test_weights_alone_cannot_be_resumed_but_pretrain(make_spec, run, tmp_path) -> None:
    weights = tmp_path / "weights.pth"
    files.write(weights, {"state_dict": TinyStereo().state_dict()})
    with pytest.raises(CheckpointError, match=r"pretrained_model_path"):
        run(make_spec(resume_training_checkpoint_path=str(weights)), tmp_path / "run")
    spec = make_spec(pretrained_model_path=str(weights), optim={"lr": 1e-9})
    outcome = run(spec, tmp_path / "run")
    trained = files.read(outcome.latest)["state_dict"]
    for name, tensor in files.read(weights)["state_dict"].items():
        torch.testing.assert_close(trained[f"model.{name}"], tensor, rtol=0, atol=1e-6)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_the_seed_decides(make_spec: Callable, run, tmp_path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        run(make_spec(num_epochs=1, seed=seed), tmp_path / name)
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    assert curve(tmp_path / "a") != curve(tmp_path / "c")
