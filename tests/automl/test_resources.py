from __future__ import annotations

import os

import pytest

from automl.resources import cores, gpus, per_trial
from automl.study_spec import ResourceChoice


def test_what_a_study_names_is_taken_as_it_is() -> None:
    share = per_trial(ResourceChoice(cpus=3.0, gpus=0.5, max_concurrent=4, threads=2))
    assert (share.cpus, share.gpus, share.max_concurrent, share.threads) == (3.0, 0.5, 4, 2)


def test_every_numerical_library_gets_the_threads() -> None:
    environment = per_trial(ResourceChoice(threads=2)).environment()
    assert environment["OMP_NUM_THREADS"] == "2"
    assert set(environment.values()) == {"2"}


def test_without_gpus_one_core_trains_one_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    share = per_trial(ResourceChoice())
    assert gpus() == 0
    assert (share.cpus, share.gpus, share.threads) == (1, 0.0, 1)
    assert share.max_concurrent == cores()


def test_only_cores_this_process_may_use_are_counted() -> None:
    assert 1 <= cores() <= len(os.sched_getaffinity(0))
