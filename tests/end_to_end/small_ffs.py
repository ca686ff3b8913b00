"""Small studies of the real network, as programs of their own, and what they leave running."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from automl.study_spec import merge
from stereo.data.generator import EmbeddedLayout, write_embedded

LAYOUT = EmbeddedLayout(
    train_pairs=4, train_size=(64, 128), val_pairs=2, val_size=(64, 96), max_disparity=24
)
PATIENCE_S = 240.0  # for one program, on a machine that others use
MARK = "DEPTHTUNE_TEST"  # in the environment of every process of one test

STUDY: Mapping[str, Any] = {
    "model": "ffs",
    "data": {
        "train": "Middlebury:data/train_middlebury.txt",
        "val": "Middlebury:data/val_middlebury.txt",
    },
    "spec": {
        "model": {"train_iters": 2, "valid_iters": 2, "max_disparity": 64},
        "dataset": {
            "max_disparity": 64,
            "train_dataset": {
                "batch_size": 2,
                "workers": 0,
                "augmentation": {"crop_size": [64, 96]},
            },
            "val_dataset": {"batch_size": 2, "workers": 0},
            "test_dataset": {"batch_size": 2, "workers": 0},
        },
        "train": {"num_epochs": 2, "optim": {"lr": 1e-3, "lr_scheduler": "OneCycleLR"}},
    },
    "search": {"parameters": ["train.optim.lr", "train.optim.weight_decay"]},
    "algorithm": {"name": "auto", "rungs": [1]},
    "budget": {"trials": 4},
    "resources": {"cpus": 1, "max_concurrent": 2, "threads": 1},
}


@dataclass
class Place:
    """A working directory with its own data and a study file; every process in it is known."""

    root: Path
    name: str = "first"
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    sessions: list[int] = field(default_factory=list)

    @property
    def study(self) -> Path:
        return self.root / "results" / "studies" / self.name

    @property
    def val(self) -> Path:
        return self.root / "data" / "val_middlebury.txt"

    def write(self, changes: Mapping[str, Any] | None = None) -> None:
        """Write the data and the study file, with changes merged over `STUDY`."""
        write_embedded(self.root / "data", LAYOUT)
        tree = merge(STUDY, changes or {})
        (self.root / f"{self.name}.yaml").write_text(yaml.safe_dump(tree))

    def start(self, module: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start `python -m module` here in a session of its own; its output is one pipe."""
        variables = {key: value for key, value in os.environ.items() if key != "DEPTHTUNE_TRIAL"}
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=self.root,
            env=variables | {"OMP_NUM_THREADS": "1", MARK: self.mark} | environment,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self.sessions.append(process.pid)
        return process

    def run(self, module: str, *arguments: str, **environment: str) -> tuple[int, str]:
        """Run a program to its end; returns its exit code and all it said."""
        process = self.start(module, *arguments, **environment)
        try:
            output, _ = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
        return process.returncode, output

    def automl(self, *arguments: str, **environment: str) -> tuple[int, str]:
        return self.run("automl.cli", *arguments, **environment)

    def depth_net(self, *arguments: str, **environment: str) -> tuple[int, str]:
        return self.run("stereo.cli", *arguments, **environment)

    def processes(self) -> list[psutil.Process]:
        """Whatever still lives of all programs started here, in their sessions or outside."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, ProcessLookupError):
                ours = os.getsid(process.pid) in self.sessions
                marked = process.pid != os.getpid() and process.environ().get(MARK) == self.mark
                if (ours or marked) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def left_over(self, patience: float = 10.0) -> list[str]:
        """Names of the processes that are still there when they had time to end."""
        end = time.monotonic() + patience
        while (found := self.processes()) and time.monotonic() < end:
            psutil.wait_procs(found, timeout=0.2)
        return [process.name() for process in found]
