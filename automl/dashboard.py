"""Ray's dashboard for a study that is running now, on 127.0.0.1.

A study starts Ray without its dashboard (it costs about 1 GB); this module attaches one to the
running session, as long as it is wanted. Its API asks for Ray's token, which stays in a file that
only its owner can read and is never printed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from automl.errors import AutoMLError
from automl.store import owner_of

HOST = "127.0.0.1"
PORT = 8265
START_PATIENCE_S = 60.0
NEEDED = ("aiohttp", "aiohttp_cors", "opencensus", "prometheus_client")  # of ray[default]


class DashboardMissingError(AutoMLError):
    """The packages of Ray's dashboard are not installed."""

    exit_code = 4


class NothingToShowError(AutoMLError):
    """The study has no running Ray session."""


def show(directory: Path, say: Callable[[str], None] = print) -> int:
    """Attach a dashboard to a study's Ray session until the session ends or SIGINT arrives.

    Args:
        directory: of the study.
        say: told the address and the token's file.

    Returns:
        Exit code 0.

    Raises:
        DashboardMissingError: `ray[default]` is not installed.
        NothingToShowError: the study is not running on Ray here.
    """
    session = _running_session(directory)
    require_packages()
    from automl.runners.ray_tune import token_file

    port = _free_port()
    url = f"http://{HOST}:{port}"
    process = _start(session, port)
    try:
        _wait_for_page(process, url, session["log-dir"])
        say(f"Ray dashboard of {directory.name}: {url}")
        say(f"It asks for the token in {token_file()} (cat it, or: ray get-auth-token)")
        say("It shows processes, resources and logs; trials: automl status --watch. Ctrl-C ends it")
        while process.poll() is None and owner_of(directory) is not None:
            time.sleep(1)
    except KeyboardInterrupt:
        pass
    finally:
        _stop(process)
    return 0


def require_packages() -> None:
    """Raise `DashboardMissingError` unless Ray's dashboard can run here."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise DashboardMissingError(
            f"Ray's dashboard is not installed (missing: {', '.join(missing)})."
            " Install it: pip install 'depthtune[dashboard]'"
        )


def _running_session(directory: Path) -> Mapping[str, str]:
    hint = "Start or resume it, then try again; `automl status` shows how it stands"
    if owner_of(directory) is None:
        raise NothingToShowError(f"{directory}: no process runs this study. {hint}")
    try:
        facts: dict[str, Any] = json.loads((directory / "ray" / "session.json").read_text())
        return facts["dashboard"]
    except (OSError, ValueError, KeyError):
        raise NothingToShowError(f"{directory}: Ray is not running for it now. {hint}") from None


def _start(session: Mapping[str, str], port: int) -> subprocess.Popen[bytes]:
    import ray

    program = Path(ray.__file__).parent / "dashboard" / "dashboard.py"
    options = {"host": HOST, "port": str(port), "port-retries": "0", **session}
    return subprocess.Popen(
        [sys.executable, str(program), *(f"--{name}={value}" for name, value in options.items())],
        env={"RAY_AUTH_MODE": "token", **os.environ},  # a local session asks for its token
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C reaches this process only, which ends it in order
    )


def _free_port() -> int:
    """Return Ray's usual port, or another one when it is taken."""
    for port in (PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise NothingToShowError(f"no port is free on {HOST}")


def _wait_for_page(process: subprocess.Popen[bytes], url: str, log: str) -> None:
    deadline = time.monotonic() + START_PATIENCE_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise NothingToShowError(f"Ray's dashboard did not start. See {log}/dashboard.log")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the dashboard and the modules it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
