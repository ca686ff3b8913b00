"""Environment variables of this process while Ray is used in it, and afterwards as before."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager

_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no telemetry
    "RAY_AIR_NEW_OUTPUT": "0",  # with verbose=0 this prints nothing; the new engine prints boxes
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}


@contextmanager
def quiet_ray() -> Generator[None]:
    """Set Ray's variables; afterwards take back whatever was set, by Ray too."""
    before = dict(os.environ)
    os.environ.update(_RAY)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
