"""What this machine, or the nodes of a cluster, offer to trials, without importing torch.

Cores of this machine are those this process may use (affinity mask and cgroup quota); GPUs are
those the NVIDIA driver shows and CUDA_VISIBLE_DEVICES leaves visible.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from pathlib import Path

from automl.study_spec import ResourceChoice, StudySpec

_NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")
_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # cgroup v2: "<microseconds|max> <period>"
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


@dataclass(frozen=True)
class Machine:
    """What one machine offers."""

    cores: int
    gpus: int


@dataclass(frozen=True)
class TrialResources:
    """What one trial gets, and how many run at once.

    Attributes:
        cpus: cores reserved per trial.
        gpus: GPUs per trial; a fraction shares one GPU (memory is not limited by it).
        max_concurrent: trials that run at the same time.
        threads: threads of the numerical libraries in one trial.
    """

    cpus: float
    gpus: float
    max_concurrent: int
    threads: int

    def environment(self) -> dict[str, str]:
        """Return the variables that numerical libraries read when they are first imported."""
        return dict.fromkeys(_THREAD_VARIABLES, str(self.threads))


def cores() -> int:
    """Return how many cores this process may use, at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(allowed or 1, _quota()))


def gpus() -> int:
    """Return the number of visible NVIDIA GPUs."""
    installed = len(list(_NVIDIA_GPUS.iterdir())) if _NVIDIA_GPUS.is_dir() else 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return installed
    names = [name.strip() for name in visible.split(",")]
    shown = takewhile(lambda name: name and not name.startswith("-"), names)  # -1 hides the rest
    return min(installed, len(list(shown)))


def of_study(study: StudySpec) -> TrialResources:
    """Return what each trial of a study gets here; the local runner runs one at a time."""
    share = per_trial(study.resources)
    return replace(share, max_concurrent=1) if study.runner == "local" else share


def per_trial(wanted: ResourceChoice, machines: Sequence[Machine] = ()) -> TrialResources:
    """Fill what a study leaves open from the machines that it runs on; default: this one.

    With GPUs a trial gets one, and one trial runs per GPU; without, one core per trial. Threads
    are the cores of a trial. A trial runs on one machine, and on one with GPUs when it needs one.
    """
    machines = machines or [Machine(cores(), gpus())]
    with_gpus = [machine for machine in machines if machine.gpus]
    share = (1.0 if with_gpus else 0.0) if wanted.gpus is None else wanted.gpus
    hosts = with_gpus if share and with_gpus else machines
    slots = [max(1, int(host.gpus / share) if share else host.cores) for host in hosts]
    fair = min(max(1, host.cores // count) for host, count in zip(hosts, slots, strict=True))
    cpus = wanted.cpus or (fair if share else 1)
    at_once = sum(min(n, int(host.cores / cpus)) for host, n in zip(hosts, slots, strict=True))
    concurrent = wanted.max_concurrent or max(1, at_once)
    return TrialResources(cpus, share, concurrent, wanted.threads or max(1, int(cpus)))


def on_machines(wanted: ResourceChoice, machines: Sequence[Machine]) -> ResourceChoice:
    """Return the choice with everything that it leaves open filled from these machines."""
    return ResourceChoice(**asdict(per_trial(wanted, machines)))


def _quota() -> int:
    try:
        quota, period = _CGROUP_QUOTA.read_text().split()
    except (OSError, ValueError):
        return 1 << 16
    return 1 << 16 if quota == "max" else max(1, int(quota) // int(period))
