from __future__ import annotations

import os
from pathlib import Path

import pytest

from automl import resources
from automl.resources import Machine, cores, gpus, of_study, on_machines, per_trial
from automl.study_spec import ResourceChoice
from tests.automl.studies import study_spec


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


@pytest.mark.parametrize(
    ("visible", "count"),
    [(None, 2), ("0", 1), ("0,1", 2), ("GPU-5a, GPU-7b", 2), ("", 0), ("-1", 0), ("1,-1,0", 1)],
)
def test_visible_gpus_are_counted_as_cuda_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, count: int
) -> None:
    for bus in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / bus).mkdir()
    monkeypatch.setattr(resources, "_NVIDIA_GPUS", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    assert gpus() == count


def test_the_local_runner_runs_one_trial_at_a_time() -> None:
    two = {"max_concurrent": 2}
    assert of_study(study_spec(runner="ray", resources=two)).max_concurrent == 2
    assert of_study(study_spec(runner="local", resources=two)).max_concurrent == 1


@pytest.mark.parametrize(
    ("machines", "wanted", "share"),
    [
        ([(2, 0), (3, 0)], {}, (1, 0.0, 5, 1)),  # a trial per core of every node
        ([(2, 0), (3, 0)], {"cpus": 2}, (2, 0.0, 2, 2)),  # a trial does not span nodes
        ([(64, 0), (8, 2), (24, 2)], {}, (4, 1.0, 4, 4)),  # the head has no GPU: no trials there
        ([(8, 1), (8, 1)], {"gpus": 0.5}, (4, 0.5, 4, 4)),
        ([(8, 1), (8, 1)], {"gpus": 0}, (1, 0.0, 16, 1)),
        ([(8, 1), (8, 1)], {"max_concurrent": 1}, (8, 1.0, 1, 8)),
    ],
)
def test_a_cluster_offers_what_its_nodes_offer_one_by_one(
    machines: list[tuple[int, int]], wanted: dict[str, float], share: tuple[float, ...]
) -> None:
    filled = on_machines(ResourceChoice(**wanted), [Machine(*machine) for machine in machines])
    assert (filled.cpus, filled.gpus, filled.max_concurrent, filled.threads) == share
