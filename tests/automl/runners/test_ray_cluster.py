"""What can be said of a cluster without one; `tests/end_to_end/test_cluster.py` starts one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from automl.errors import ClusterError
from automl.lock import code_version
from automl.resources import TrialResources
from automl.runners.ray_cluster import Node, joined, look_around, refuse_unfit_nodes
from tests.automl.quadratic import NAME

pytestmark = pytest.mark.xdist_group("ray")

INTERRUPTED = """
from pathlib import Path
from automl.runners.ray_tune import StudyWorker
from automl.trial import Job
from tests.automl.quadratic import NAME, Quadratic

spec = Quadratic().template("quadratic", "train")
job = Job(0, NAME, spec, Path("trial"))
worker = StudyWorker(config={"job": job, "names_node": False})
for epoch in (1, 2):
    assert worker.step()["message"][0] == epoch
    if epoch == 1:
        worker.answer(False)
worker.cleanup()  # epoch 2 was not decided about: the driver may never have seen it
"""


def test_a_trainer_that_is_interrupted_keeps_the_checkpoint_before_its_last(tmp_path: Path) -> None:
    (tmp_path / "trial").mkdir()
    root = str(Path(__file__).parents[3])

    worker = subprocess.run(
        [sys.executable, "-c", INTERRUPTED],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": root}, capture_output=True, timeout=120,
    )  # fmt: skip

    assert worker.returncode == 1
    files = sorted(file.name for file in (tmp_path / "trial").glob("*.json"))
    assert files == ["epoch_001.json", "epoch_002.json"], (
        tmp_path / "trial/worker.log"
    ).read_text()


def test_an_address_where_nothing_answers_is_said_with_its_remedy() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = rf"Ray cluster: 127\.0\.0\.1:{port}: nothing answers there \(Connection refused\)"
    with pytest.raises(ClusterError, match=words) as caught, joined(f"127.0.0.1:{port}"):
        pass
    assert "ray start --head" in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_trial_that_fits_nowhere_is_refused(tmp_path: Path) -> None:
    nodes = [Node(8, 0, "1" * 56, "cpu 10.0.0.1"), Node(2, 1, "2" * 56, "gpu 10.0.0.2")]
    with pytest.raises(ClusterError, match=r"No node .* has 4 cores and 0\.5 GPUs") as caught:
        refuse_unfit_nodes(nodes, TrialResources(4, 0.5, 1, 4), tmp_path, [], NAME)
    assert "node gpu 10.0.0.2 (22222222): 2 cores, 1 GPUs" in str(caught.value)


def test_a_node_tells_what_it_sees(tmp_path: Path) -> None:
    mark, data = tmp_path / "mark", tmp_path / "data.txt"
    mark.write_text("word")
    data.touch()

    seen = look_around(str(mark), "n", [str(data), str(tmp_path / "more")], "nowhere:Trainer")

    assert (seen["word"], seen["version"]) == ("word", code_version())
    assert seen["missing"] == [str(tmp_path / "more")]
    assert "nowhere" in seen["trainer"]
    assert Path(f"{mark}.n").read_text() == "word"
    assert look_around(str(tmp_path / "gone" / "mark"), "n", [], NAME)["word"] == ""
