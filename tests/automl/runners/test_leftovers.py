"""What the next session ends of an earlier one, and what it leaves alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from automl.runners.ray_tune import PREFIX, SESSION_FILE, SESSIONS, end_leftovers

HOLD = "import sys; file = open(sys.argv[1], 'w'); print('open', flush=True); sys.stdin.read()"


@pytest.fixture
def session() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=SESSIONS))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def process(session: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the session, as far as anybody can see: it has a log there."""
    command = [sys.executable, "-c", HOLD, str(session / "ray.log")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == b"open\n"
        yield started
        started.kill()


def write(scratch: Path, directory: Path, pid: int, started: float) -> None:
    facts = {"directory": str(directory), "driver": {"pid": pid, "started": started}}
    (scratch / SESSION_FILE).write_text(json.dumps(facts))


def test_processes_and_files_of_a_dead_driver_are_ended(
    tmp_path: Path, session: Path, process: subprocess.Popen[bytes]
) -> None:
    write(tmp_path, session, process.pid, started=0.0)  # the number was given to another process

    end_leftovers(tmp_path)

    assert not psutil.pid_exists(process.pid)
    assert not session.exists()
    assert not (tmp_path / SESSION_FILE).exists()


def test_a_copy_of_a_running_study_leaves_its_session_alone(
    tmp_path: Path, session: Path, process: subprocess.Popen[bytes]
) -> None:
    write(tmp_path, session, process.pid, psutil.Process(process.pid).create_time())

    end_leftovers(tmp_path)

    assert process.poll() is None
    assert session.exists()


def test_a_directory_that_is_not_a_sessions_is_never_removed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    write(tmp_path, precious, 1, started=0.0)

    end_leftovers(tmp_path)

    assert precious.exists()
