"""A study on disk: one owner, one lock, and a state that is the fold of its log."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from automl.contract import Setting
from automl.errors import StoreError, StudyLockedError, UnreadableError
from automl.store import open_study, owner_of, read_lock, read_study
from automl.study_spec import BudgetChoice
from tests.automl import studies


def facts(study) -> list[tuple]:
    return [(t.id, t.params, t.state, t.epochs, t.attempts, t.detail) for t in study.trials]


def test_a_new_study_is_locked_logged_and_owned(tmp_path):
    resolved = studies.resolved(tmp_path)
    study = open_study(resolved, tmp_path / "s")
    assert [event["kind"] for event in study.events] == ["study_created", "session_started"]
    assert study.events[0]["format_version"] == 1
    assert (study.state, read_study(tmp_path / "s").state) == ("running", "running")
    assert owner_of(tmp_path / "s")["pid"] == os.getpid()
    lock = yaml.safe_load((tmp_path / "s" / "study.lock.yaml").read_text())
    assert lock["format_version"] == 1
    assert lock["base_spec"]["train"]["num_epochs"] == 9
    assert read_lock(tmp_path / "s") == resolved

    study.close()
    assert owner_of(tmp_path / "s") is None
    assert read_study(tmp_path / "s").state == "interrupted"


def test_best_compares_complete_trials_at_full_length_only(tmp_path):
    study = open_study(
        studies.resolved(tmp_path, spec={"train": {"num_epochs": 2}}), tmp_path / "s"
    )
    outcomes = [("complete", 2, 3.0), ("stopped", 1, 0.1), ("complete", 2, 2.0),
                ("diverged", 1, 0.2), ("complete", 2, 2.0)]  # fmt: skip
    assert study.best() is None
    for trial, (state, epochs, value) in enumerate(outcomes):
        studies.start(study, trial, {"train.optim.lr": 1e-4 * (trial + 1)})
        for epoch in range(1, epochs + 1):
            studies.finish_epoch(study, trial, epoch, value)
        studies.end(study, trial, state)
    assert study.best().id == 2  # of equals the earlier one
    assert study.baseline().id == 0
    assert [study.value(trial) for trial in study.trials] == [3.0, None, 2.0, None, 2.0]
    study.close()


def test_the_frames_hold_one_row_per_trial_and_per_epoch(tmp_path):
    study = open_study(studies.resolved(tmp_path), tmp_path / "s")
    studies.run(study)
    trials, epochs = study.dataframe(), study.epoch_frame()
    paths = [parameter.path for parameter in study.resolved.space.parameters]
    assert list(trials.columns[-len(paths) :]) == paths
    assert list(trials["trial"]) == list(range(6))
    assert list(trials["epochs"]) == [trial.last_epoch for trial in study.trials]
    assert len(epochs) == sum(trials["epochs"])
    last = epochs.groupby("trial")["val/epe"].last()
    assert list(last) == list(trials["value"].dropna())
    study.close()


@given(st.data())
@settings(deadline=None, max_examples=12)
def test_the_state_follows_from_any_prefix_of_the_log(tmp_path_factory, data):
    directory = tmp_path_factory.mktemp("study")
    study = open_study(studies.resolved(directory), directory / "s")
    studies.run(study)
    study.close()
    log = directory / "s" / "events.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    count = data.draw(st.integers(1, len(lines)))
    log.write_bytes(b"".join(lines[:count]))

    prefix = read_study(directory / "s")

    assert len(prefix.events) == count
    for trial in prefix.trials:
        assert [record.epoch for record in trial.epochs] == list(range(1, trial.last_epoch + 1))
    if count == len(lines):
        assert facts(prefix) == facts(study)


@given(st.data())
@settings(deadline=None, max_examples=8)
def test_a_killed_study_ends_as_an_uninterrupted_one(tmp_path_factory, data):
    directory = tmp_path_factory.mktemp("study")
    resolved = studies.resolved(directory, budget={"trials": 8})
    whole = open_study(resolved, directory / "whole")
    studies.run(whole)
    whole.close()

    for session in range(4):
        study = open_study(resolved, directory / "killed")
        try:
            kill = data.draw(st.integers(1, 20)) if session < 3 else None
            studies.run(study, kill_after=kill)
        except studies.Killed:
            continue
        finally:
            study.close()

    assert [t.params for t in study.trials] == [t.params for t in whole.trials]
    assert [t.state for t in study.trials] == [t.state for t in whole.trials]
    decisions = [[(e.epoch, e.decision, e.rung) for e in t.epochs] for t in study.trials]
    assert decisions == [[(e.epoch, e.decision, e.rung) for e in t.epochs] for t in whole.trials]
    assert study.best().id == whole.best().id


def test_a_restart_from_an_earlier_epoch_forgets_the_later_ones(tmp_path):
    study = open_study(studies.resolved(tmp_path), tmp_path / "s")
    studies.start(study, 0, {})
    for epoch in (1, 2, 3):
        studies.finish_epoch(study, 0, epoch, 4.0 - epoch)
    studies.start(study, 0, {}, resumed_from=1)
    studies.finish_epoch(study, 0, 2, 9.0)
    trial = study.trials[0]
    assert [(record.epoch, trial.value_at(record.epoch, "val/epe")) for record in trial.epochs] == [
        (1, 3.0),
        (2, 9.0),
    ]
    assert (trial.attempts, trial.checkpoint, trial.seconds) == (2, tmp_path / "s/2.pth", 4.0)
    study.close()


@pytest.mark.parametrize(
    ("event", "rule"),
    [
        ({"kind": "trial_started", "trial": 5, "params": {}}, "the next trial is 1"),
        ({"kind": "epoch", "trial": 0, "epoch": 1, "metrics": {}}, "its next epoch is 2"),
        ({"kind": "epoch", "trial": 3, "epoch": 1, "metrics": {}}, "has not started"),
        ({"kind": "trial_ended", "trial": 0, "state": "gone"}, "ends as one of complete"),
    ],
)
def test_impossible_events_are_refused(tmp_path, event, rule):
    study = open_study(studies.resolved(tmp_path), tmp_path / "s")
    studies.start(study, 0, {})
    studies.finish_epoch(study, 0, 1, 2.0)
    before = (tmp_path / "s" / "events.jsonl").read_bytes()
    with pytest.raises(StoreError, match=rule):
        study.append(event)
    assert (tmp_path / "s" / "events.jsonl").read_bytes() == before
    study.close()


def test_a_second_driver_is_refused_while_the_owner_lives(tmp_path):
    resolved = studies.resolved(tmp_path)
    study = open_study(resolved, tmp_path / "s")
    with pytest.raises(StudyLockedError, match=f"open in process {os.getpid()}"):
        open_study(resolved, tmp_path / "s")
    study.close()
    open_study(resolved, tmp_path / "s").close()


OWNER = """
import sys, time
from pathlib import Path
from automl.store import open_study, read_lock
directory = Path(sys.argv[1])
study = open_study(read_lock(directory), directory)
print("open", flush=True)
time.sleep(600)
"""


def test_an_owner_killed_with_sigkill_does_not_block(tmp_path):
    resolved = studies.resolved(tmp_path)
    open_study(resolved, tmp_path / "s").close()
    command = [sys.executable, "-c", OWNER, str(tmp_path / "s")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout.readline() == "open\n"
        assert read_study(tmp_path / "s").state == "running"
        with pytest.raises(StudyLockedError, match=f"process {owner.pid}"):
            open_study(resolved, tmp_path / "s")
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    assert read_study(tmp_path / "s").state == "interrupted"
    open_study(resolved, tmp_path / "s").close()


def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    resolved = studies.resolved(tmp_path)
    study = open_study(resolved, tmp_path / "s")
    context = multiprocessing.get_context("fork")
    started, release = context.Event(), context.Event()
    child = context.Process(target=lambda: (started.set(), release.wait()), daemon=True)
    child.start()
    assert started.wait(60)
    study.close()
    try:
        open_study(resolved, tmp_path / "s").close()
    finally:
        release.set()
        child.join()


def test_a_driver_that_died_in_another_container_does_not_block(tmp_path):
    study = open_study(studies.resolved(tmp_path), tmp_path / "s")
    owner = tmp_path / "s" / "owner.json"
    elsewhere = owner.read_text().replace(socket.gethostname(), "another-host")
    owner.write_text(elsewhere)
    assert owner_of(tmp_path / "s")["host"] == "another-host"
    study.close()
    owner.write_text(elsewhere)
    assert owner_of(tmp_path / "s") is None


def test_a_difference_on_resume_names_the_key_and_both_values(tmp_path):
    resolved = studies.resolved(tmp_path)
    open_study(resolved, tmp_path / "s").close()
    other = studies.resolved(tmp_path, spec={"train": {"optim": {"lr": 2e-4}}}, seed=7)
    with pytest.raises(StudyLockedError) as caught:
        open_study(other, tmp_path / "s")
    text = str(caught.value)
    assert "base_spec.train.optim.lr: 0.0001 -> 0.0002" in text
    assert "study.seed: 0 -> 7" in text
    assert caught.value.exit_code == 2
    assert owner_of(tmp_path / "s") is None


@pytest.mark.parametrize(
    ("old", "new", "allowed"),
    [
        ({"trials": 6}, {"trials": 9}, True),
        ({"trials": 6, "hours": 1.0}, {"trials": 6}, True),
        ({"trials": 6}, {"trials": 5}, False),
        ({"trials": 6}, {"trials": 6, "epochs": 3}, False),
        ({"trials": 6, "target": 1.0}, {"trials": 9, "target": 2.0}, False),
    ],
)
def test_a_budget_may_only_be_enlarged(tmp_path, old, new, allowed):
    open_study(studies.resolved(tmp_path, budget=old), tmp_path / "s").close()
    resolved = studies.resolved(tmp_path, budget=new)
    if not allowed:
        with pytest.raises(StudyLockedError, match=r"study\.budget\."):
            open_study(resolved, tmp_path / "s")
        return
    study = open_study(resolved, tmp_path / "s")
    assert study.events[-1]["kind"] == "budget_changed"
    assert study.events[-1]["old"]["trials"] == old["trials"]
    study.close()
    assert read_lock(tmp_path / "s").study.budget == BudgetChoice(**new)


def test_where_trials_run_may_change_with_every_session(tmp_path):
    there = {"address": "head:6379", "resources": {"max_concurrent": 8}}
    open_study(studies.resolved(tmp_path), tmp_path / "s").close()

    study = open_study(studies.resolved(tmp_path, **there), tmp_path / "s")

    assert [event["kind"] for event in study.events][-1] == "session_started"
    study.close()
    assert read_lock(tmp_path / "s").study.address == "head:6379"
    with pytest.raises(StudyLockedError, match=r"study\.seed: 0 -> 1") as caught:
        open_study(studies.resolved(tmp_path, **there, seed=1), tmp_path / "s")
    assert "address" not in str(caught.value)


def test_a_newer_lock_is_refused(tmp_path):
    resolved = studies.resolved(tmp_path)
    open_study(resolved, tmp_path / "s").close()
    lock = tmp_path / "s" / "study.lock.yaml"
    lock.write_text(lock.read_text().replace("format_version: 1", "format_version: 2"))
    for opened in (read_study, lambda directory: open_study(resolved, directory)):
        with pytest.raises(UnreadableError, match=r"study\.lock\.yaml: format_version 2") as caught:
            opened(tmp_path / "s")
        assert caught.value.exit_code == 2


def test_a_log_without_its_lock_is_refused(tmp_path):
    resolved = studies.resolved(tmp_path)
    open_study(resolved, tmp_path / "s").close()
    (tmp_path / "s" / "study.lock.yaml").unlink()
    with pytest.raises(StoreError, match=r"has events\.jsonl but no study\.lock\.yaml"):
        open_study(resolved, tmp_path / "s")
    with pytest.raises(StoreError, match="holds no study"):
        read_study(tmp_path / "s")


def test_another_code_version_is_a_difference(tmp_path):
    resolved = studies.resolved(tmp_path)
    open_study(resolved, tmp_path / "s").close()
    with pytest.raises(StudyLockedError, match="code_version"):
        open_study(replace(resolved, code_version="99.0"), tmp_path / "s")


def test_the_wall_time_of_sessions_leaves_out_the_pauses(tmp_path):
    study = open_study(studies.resolved(tmp_path), tmp_path / "s")
    study.close()
    log = tmp_path / "s" / "events.jsonl"
    created = json.loads(log.read_text().splitlines()[0])
    stamp = "2026-01-01T{}+00:00"
    session = {"kind": "session_started"}
    lines = [
        {**created, "time": stamp.format("00:00:00")},
        {**session, "time": stamp.format("00:00:00")},
        {"kind": "note", "time": stamp.format("00:10:00")},
        {**session, "time": stamp.format("05:00:00")},
        {"kind": "note", "time": stamp.format("05:05:00")},
    ]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_study(tmp_path / "s").active_seconds() == 15 * 60


def test_metrics_of_other_settings_are_kept_apart(tmp_path):
    study = open_study(studies.resolved(tmp_path), tmp_path / "study")
    studies.start(study, 0, {})
    metrics = {"val/epe": 2.0, "seconds": 1.0, "model.iters=1/val/epe": 3.0}
    studies.finish_epoch(study, 0, 1, 2.0, metrics=metrics)
    others = {Setting("model.iters", 1): {"val/epe": 3.0}}
    assert study.trials[0].epochs[0].metrics == {"val/epe": 2.0, "seconds": 1.0}
    assert study.trials[0].epochs[0].settings == others
    assert study.trials[0].settings == {}  # not complete
    studies.end(study, 0, "complete")
    assert study.trials[0].settings == others
    study.close()
