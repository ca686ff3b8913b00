from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from automl import live
from automl.store import read_study
from tests.automl.runners.driving import open_quadratic, run_study

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
from pathlib import Path
from automl import live
from tests.automl.runners.driving import open_quadratic, run_study
study = open_quadratic(Path(sys.argv[1]), trials=6, behaviour={"seconds_per_epoch": 0.2})
with live.show(study, seconds_per_epoch=0.2) as shown:
    run_study(study, live=shown)
"""


def on_a_terminal(argument: str) -> str:
    """Run the program under a pseudo-terminal; everything it wrote there."""
    terminal, end = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "110", "LINES": "40"}
    command = [sys.executable, "-W", "error", "-c", PROGRAM, argument]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=end, stdout=end, stderr=end
    )
    os.close(end)
    written = b""
    with suppress(OSError):  # Linux reports the end of a pseudo-terminal as an error
        while chunk := os.read(terminal, 1 << 16):
            written += chunk
    os.close(terminal)
    assert process.wait() == 0, written.decode()
    return written.decode()


def seconds(text: str) -> list[int]:
    times = re.findall(r"time left (\d+):(\d\d)", text)
    return [60 * int(minutes) + int(rest) for minutes, rest in times]


def test_on_a_terminal_the_time_left_falls_and_the_table_shows_the_trials(tmp_path: Path) -> None:
    text = on_a_terminal(str(tmp_path))
    left = seconds(text)
    assert len(left) > 8
    assert left[0] >= 2
    assert left[-1] == 0
    assert sum(later > earlier for earlier, later in pairwise(left)) <= 1
    assert re.search(r"0\s+6/6\s+[\d.]+\s+\d+\s+complete", text)
    assert re.search(r"best so far: trial \d+, val/epe", text)


def test_in_a_pipe_there_are_plain_lines(tmp_path: Path) -> None:
    study = open_quadratic(tmp_path, trials=4)
    pipe = io.StringIO()
    with live.show(study, pipe) as shown:
        run_study(study, live=shown)
    lines = pipe.getvalue()
    assert "\r" not in lines
    assert "\x1b" not in lines
    assert "trial 0 started: width 8, flip 0, lr 0.0001" in lines
    assert "trial 0 epoch 6/6: val/epe 1.601 px, 0.0 s, complete" in lines
    assert re.search(r"trial 0 complete  \[\d+%, time left \d+:\d\d\]", lines)
    assert "best so far: trial 0, val/epe 1.601 px (baseline 1.601 px)" in lines
    assert lines.endswith("study ended: 4 trials started (budget.trials 4)\n")


def test_status_is_read_from_the_files_alone(tmp_path: Path) -> None:
    study = open_quadratic(tmp_path, trials=20)
    before = live.status_text(study)
    assert "time left ?" in before
    assert "0 of 20 trials" in before
    run_study(study)

    text = live.status_text(read_study(tmp_path / "study"))

    assert "finished: 20 trials started (budget.trials 20)" in text
    assert "100%" in text
    assert "time left 0:00" in text
    assert "(best)" in text
    assert "\x1b" not in text
    assert len(text.splitlines()) < 30


def test_watch_in_a_pipe_ends_with_the_study(tmp_path: Path) -> None:
    run_study(open_quadratic(tmp_path, trials=2))
    pipe = io.StringIO()
    assert live.watch(tmp_path / "study", pipe) == 0
    assert "finished" in pipe.getvalue()


def test_a_study_bounded_by_time_counts_down_to_its_limit(tmp_path: Path) -> None:
    study = open_quadratic(tmp_path, trials=1000, budget={"hours": 1.0})
    how_far = live.progress(study, now=0.0, seconds_per_epoch=100.0)
    assert how_far.left is not None
    assert how_far.left == pytest.approx(3600, abs=5)
    study.close()


@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0, 500)), min_size=1, max_size=30))
def test_the_countdown_never_rises_without_a_much_longer_estimate(
    steps: list[tuple[float, float]],
) -> None:
    countdown, now = live.Countdown(), 0.0
    for passed, estimate in steps:
        now += passed
        before = countdown.at(now)
        after = countdown.update(estimate, now)
        assert after is not None
        assert after >= 0
        if before is not None and after > before:
            assert estimate > 1.3 * before + 5


@pytest.mark.parametrize(
    ("value", "text"), [(None, "?"), (0, "0:00"), (61.4, "1:01"), (3725, "1:02:05")]
)
def test_times_read_as_clocks(value: float | None, text: str) -> None:
    assert live.clock(value) == text
