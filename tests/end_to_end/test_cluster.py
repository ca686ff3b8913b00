"""Studies on a Ray cluster of two nodes: two raylets on this machine, each with its own workers.

The studies are the program `automl study` over the quadratic trainer.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.cluster_utils import Cluster

from automl.store import Study, read_study
from tests.automl.quadratic import NAME
from tests.end_to_end.test_chaos import check_log

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]
ROOT = Path(__file__).resolve().parents[2]
MEMORY = 80 * 2**20
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
STUDY: dict[str, Any] = {
    "model": "quadratic",
    "budget": {"trials": 12},
    "spec": {"train": {"num_epochs": 6}, "behaviour": {"seconds_per_epoch": 0.2}},
    "algorithm": {"name": "asha", "rungs": [2, 4]},
    "promote": {"enabled": False},
}


@pytest.fixture
def head() -> Iterator[Cluster]:
    """One node with two cores; tests add another."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)  # for the workers
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": MEMORY}
    )
    try:
        yield cluster
    finally:
        cluster.shutdown()
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def start(folder: Path, name: str, address: str, **changes: Any) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(STUDY | changes))
    return subprocess.Popen(
        [sys.executable, "-m", "automl.cli", "study", file.name, "--trainable", NAME,
         "--address", address],
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def lines_until(program: subprocess.Popen[str], word: str, times: int = 1) -> list[str]:
    """Read what a program says until so many of its lines have the word."""
    assert program.stdout is not None
    lines: list[str] = []
    while sum(word in line for line in lines) < times:
        line = program.stdout.readline()
        assert line, "".join(lines)
        lines.append(line)
    return lines


def finished(program: subprocess.Popen[str], folder: Path, name: str) -> Study:
    output, _ = program.communicate(timeout=180)
    assert program.returncode == 0, output
    return read_study(folder / "results" / "studies" / name)


def check_nothing_lost(study: Study, trials: int) -> None:
    assert study.state == "finished"
    assert [trial.id for trial in study.trials] == list(range(trials))
    assert len({trial.identity for trial in study.trials}) == trials
    assert all(trial.state in ("complete", "stopped", "diverged") for trial in study.trials)
    check_log(study.events)


def placed_on(study: Study) -> list[str]:
    return [event["node"] for event in study.events if event["kind"] == "trial_placed"]


def test_a_study_on_two_nodes_goes_on_when_one_is_killed(head: Cluster, tmp_path: Path) -> None:
    node = head.add_node(num_cpus=2, object_store_memory=MEMORY)
    program = start(tmp_path, "tiny", head.address)
    lines = lines_until(program, "epoch 1/6", times=4)
    assert any("2 nodes, 4 trials at a time" in line for line in lines)

    node.kill_raylet()

    study = finished(program, tmp_path, "tiny")
    check_nothing_lost(study, 12)
    joined = next(event for event in study.events if event["kind"] == "cluster_joined")
    assert {each["id"] for each in joined["nodes"]} == set(placed_on(study))
    assert len(set(placed_on(study))) == 2
    again = [event for event in study.events if event.get("attempt", 1) > 1]
    assert {event["cause"] for event in again} == {"moved"}
    assert all(event["detail"] == f"node {node.node_id} died" for event in again)
    after = study.events.index(again[-1])
    late = [e["node"] for e in study.events[after:] if e["kind"] == "trial_placed"]
    assert node.node_id not in late


def test_several_studies_share_one_cluster(head: Cluster, tmp_path: Path) -> None:
    head.add_node(num_cpus=2, object_store_memory=MEMORY)
    resources = {"max_concurrent": 2}
    programs = {
        name: start(tmp_path / name, name, head.address, resources=resources, seed=seed)
        for seed, name in enumerate(("one", "two"))
    }
    studies = [finished(program, tmp_path / name, name) for name, program in programs.items()]

    for study in studies:
        check_nothing_lost(study, 12)
    spans = [(study.trials[0].started, study.trials[-1].ended or 0.0) for study in studies]
    assert max(begin for begin, _ in spans) < min(end for _, end in spans)


def test_an_interrupted_study_goes_on_with_another_cluster_or_without_one(
    head: Cluster, tmp_path: Path
) -> None:
    program = start(tmp_path, "tiny", head.address)
    lines_until(program, "epoch 2/6")
    program.send_signal(signal.SIGTERM)
    program.communicate(timeout=60)
    assert program.returncode == 143

    again = subprocess.run(
        [sys.executable, "-m", "automl.cli", "study", "tiny.yaml", "--trainable", NAME],
        cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=180,
    )  # fmt: skip

    assert again.returncode == 0, again.stderr
    study = read_study(tmp_path / "results" / "studies" / "tiny")
    check_nothing_lost(study, 12)
    assert study.resolved.study.address is None


@pytest.fixture
def blind_node(head: Cluster, tmp_path: Path) -> Iterator[Path]:
    """A folder that a second node does not see: there it is another, empty file system."""
    folder = tmp_path / "unshared"
    folder.mkdir()
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("mount namespaces need root")
    join = f"{sys.executable} -m ray.scripts.scripts start --address={head.address} --num-cpus=2"
    command = f"mount -t tmpfs none {folder} && exec {join} --object-store-memory={MEMORY} --block"
    raylet = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", command],
        env=ENVIRONMENT,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        lines_until(raylet, "Ray runtime started")
        yield folder
    finally:
        with suppress(ProcessLookupError):
            os.killpg(raylet.pid, signal.SIGTERM)
        raylet.communicate()


def test_a_node_that_does_not_see_the_study_is_named_before_the_first_trial(
    head: Cluster, blind_node: Path
) -> None:
    program = start(blind_node, "tiny", head.address)

    output, _ = program.communicate(timeout=120)

    assert program.returncode == 2, output
    directory = blind_node / "results" / "studies" / "tiny"
    error = next(line for line in output.splitlines() if line.startswith("error: "))
    assert error.startswith("error: node ")
    assert f"{directory}: is not seen by this node" in error
    assert "Start from a directory on a file system that all nodes mount" in error
    assert f"{blind_node / 'results' / 'data' / 'train.txt'}: is not seen by this node" in output
    assert not (directory / "events.jsonl").exists()
    assert not list(directory.glob(".seen-by*"))
