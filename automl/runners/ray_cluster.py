"""An existing Ray cluster: what its nodes offer, and whether they can run a study's trials.

The driver of a study runs on a machine of the cluster. A trial runs on any node and writes into
the study's directory, so every node must see that directory and the data under the same paths (a
shared file system), have the same release of this program, and find the trainer. This is looked
at before the first trial: a node that lacks something would end trial after trial.
"""

# pyright: basic, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# Ray's types are partial.
from __future__ import annotations

import logging
import secrets
import signal
import socket
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from automl.contract import find_trainable
from automl.errors import AutoMLError, ClusterError, Problem
from automl.lock import code_version
from automl.resources import Machine, TrialResources
from automl.runners.environment import quiet_ray

PATIENCE_S = 60.0  # for a node to look at the paths; a dead network drive never answers
CONNECT_PATIENCE_S, ANSWER_PATIENCE_S = 10.0, 2.0
MARK = ".seen-by"  # files in the study's directory while it is looked at


@dataclass(frozen=True)
class Node(Machine):
    """One living node.

    Attributes:
        id: Ray's, hexadecimal.
        host: name and address for a person.
    """

    id: str
    host: str

    def __str__(self) -> str:
        return f"node {self.host} ({self.id[:8]})"


@contextmanager
def joined(address: str) -> Generator[list[Node]]:
    """Yield the nodes that can run trials while this process belongs to the cluster.

    Raises:
        ClusterError: nothing answers there, or this machine is not part of the cluster.
    """
    _refuse_silence(address)
    handler = signal.getsignal(signal.SIGTERM)
    with quiet_ray():
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, RuntimeError, ValueError, RayError) as error:
            reason = " ".join(str(error).split())
            remedy = (
                f"On this machine, `ray start --address={address}` joins the cluster; Ray and"
                " Python must have the same versions, and ~/.ray/auth_token the same content, on"
                " all of its machines"
            )
            problem = f"cannot be used from this machine: {reason}"
            raise ClusterError(str(Problem("Ray cluster", address, problem, remedy))) from error
        try:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)  # Ray has installed its own
            yield living_nodes()
        finally:
            ray.shutdown()


def living_nodes() -> list[Node]:
    """Return the nodes of the joined cluster that have cores for trials."""
    return [
        Node(
            cores=int(facts["Resources"].get("CPU", 0)),
            gpus=int(facts["Resources"].get("GPU", 0)),
            id=facts["NodeID"],
            host=f"{facts['NodeManagerHostname']} {facts['NodeManagerAddress']}",
        )
        for facts in ray.nodes()
        if facts["Alive"] and facts["Resources"].get("CPU", 0) >= 1
    ]


def answers(node: str) -> bool:
    """Whether a node of the joined cluster takes connections; Ray itself notices seconds later."""
    for facts in ray.nodes():
        if facts["NodeID"] == node and facts["Alive"]:
            with suppress(OSError):
                at = (facts["NodeManagerAddress"], facts["NodeManagerPort"])
                socket.create_connection(at, ANSWER_PATIENCE_S).close()
                return True
    return False


def refuse_unfit_nodes(
    nodes: Sequence[Node],
    share: TrialResources,
    directory: Path,
    files: Sequence[str],
    trainable: str,
) -> None:
    """Raise unless a trial fits somewhere, and every node where it fits can run it.

    Args:
        nodes: of the joined cluster.
        share: what a trial needs.
        directory: of the study, absolute.
        files: more paths that trials read.
        trainable: name of the trainer.

    Raises:
        ClusterError: one line per fault: node, path, remedy.
    """
    hosts = [node for node in nodes if node.cores >= share.cpus and node.gpus >= share.gpus]
    if not hosts:
        sizes = "; ".join(f"{node}: {node.cores} cores, {node.gpus} GPUs" for node in nodes)
        raise ClusterError(
            f"No node of the Ray cluster has {share.cpus:g} cores and {share.gpus:g} GPUs for a"
            f" trial ({sizes or 'none has a core'}). Start a larger node, or lower resources.cpus"
            " and resources.gpus"
        )
    faults = _faults(hosts, directory, files, trainable)
    if faults:
        raise ClusterError("\n".join(faults))


def _refuse_silence(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_PATIENCE_S).close()
    except (OSError, OverflowError) as error:
        remedy = (
            "Start the cluster (`ray start --head --port=6379`), or leave the address out to run on"
            " this machine"
        )
        reason = getattr(error, "strerror", None) or str(error)
        problem = f"nothing answers there ({reason})"
        raise ClusterError(str(Problem("Ray cluster", address, problem, remedy))) from error


# --- what a node sees ---------------------------------------------------------------------------


def _faults(
    hosts: Sequence[Node], directory: Path, files: Sequence[str], trainable: str
) -> list[str]:
    word = secrets.token_hex(8)
    mark = directory / MARK
    mark.write_text(word)
    try:
        asked = {node: _ask(node, mark, files, trainable) for node in hosts}
        return [
            str(Problem(str(node), *fault))
            for node, answer in asked.items()
            for fault in _faults_of(node, answer, mark, word)
        ]
    finally:
        for file in directory.glob(f"{MARK}*"):
            file.unlink(missing_ok=True)


def _ask(node: Node, mark: Path, files: Sequence[str], trainable: str) -> Any:
    where: Any = NodeAffinitySchedulingStrategy(node.id, soft=False)
    look = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=where)(look_around)
    return look.remote(str(mark), node.id, list(files), trainable)


def look_around(mark: str, node: str, files: Sequence[str], trainable: str) -> dict[str, Any]:
    """Return what a node sees; runs there."""
    seen: dict[str, Any] = {"version": code_version(), "word": "", "trainer": ""}
    with suppress(OSError):
        seen["word"] = Path(mark).read_text()
    with suppress(OSError):
        Path(f"{mark}.{node}").write_text(seen["word"])
    seen["missing"] = [file for file in files if not Path(file).exists()]
    try:
        find_trainable(trainable)
    except AutoMLError as error:
        seen["trainer"] = str(error)
    return seen


def _faults_of(node: Node, answer: Any, mark: Path, word: str) -> Generator[tuple[str, str, str]]:
    """Yield key, problem and remedy of everything that is wrong on a node."""
    directory = str(mark.parent)
    share = "Start from a directory on a file system that all nodes mount at the same path"
    same = "Install the same release of depthtune on every node, in the same environment"
    try:
        seen: Mapping[str, Any] = ray.get(answer, timeout=PATIENCE_S)
    except GetTimeoutError:
        problem = f"did not answer within {PATIENCE_S:.0f} s: a network drive may be gone"
        yield directory, problem, share
        return
    except RayError as error:
        yield "", f"cannot run this program: {_last_line(error)}", same
        return
    if seen["word"] != word:
        yield directory, "is not seen by this node, so its trials would be lost", share
    elif not Path(f"{mark}.{node.id}").is_file():
        yield directory, "cannot be written by this node", f"{share}, with the same user"
    for file in seen["missing"]:
        yield file, "is not seen by this node", "Mount the data at the same path on every node"
    if seen["trainer"]:
        yield "", seen["trainer"], same
    if seen["version"] != code_version():
        versions = f"has release {seen['version']} of depthtune, this is {code_version()}"
        yield "", versions, same


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
