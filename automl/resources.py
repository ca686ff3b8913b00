"""What this machine offers to trials, without importing torch.

Cores are those this process may use (affinity mask and cgroup quota); GPUs are those the NVIDIA
driver shows and CUDA_VISIBLE_DEVICES leaves visible.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
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


def per_trial(wanted: ResourceChoice) -> TrialResources:
    """Fill what a study leaves open from this machine.

    With GPUs a trial gets one, and one trial runs per GPU; without, one core per trial. Threads
    are the cores of a trial.
    """
    cpu_count, gpu_count = cores(), gpus()
    share = (1.0 if gpu_count else 0.0) if wanted.gpus is None else wanted.gpus
    slots = max(1, int(gpu_count / share)) if share else cpu_count
    cpus = wanted.cpus or (max(1, cpu_count // slots) if share else 1)
    concurrent = wanted.max_concurrent or max(1, min(slots, int(cpu_count / cpus)))
    return TrialResources(cpus, share, concurrent, wanted.threads or max(1, int(cpus)))


def _quota() -> int:
    try:
        quota, period = _CGROUP_QUOTA.read_text().split()
    except (OSError, ValueError):
        return 1 << 16
    return 1 << 16 if quota == "max" else max(1, int(quota) // int(period))
