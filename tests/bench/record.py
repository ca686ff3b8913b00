"""Puts the tables of a bench into docs/performance.md, with machine, date, commit and command.

A table stands between `<!-- bench NAME -->` and `<!-- end NAME -->`; the text around it is kept.
"""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "performance.md"


def record(name: str, lines: Sequence[str], command: str) -> None:
    """Replace the table `name` of the page.

    Raises:
        ValueError: the page has no place for it.
    """
    page = PAGE.read_text("utf-8")
    start, end = f"<!-- bench {name} -->", f"<!-- end {name} -->"
    block = "\n".join([start, origin(command), "", *lines, end])
    pattern = re.compile(f"{start}.*?{end}", re.DOTALL)
    page, count = pattern.subn(lambda _: block, page)
    if count != 1:
        raise ValueError(f"{PAGE}: {count} places '{start}', needed is one")
    PAGE.write_text(page, "utf-8")


def origin(command: str) -> str:
    """Where and when numbers were measured."""
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    load = f"load {os.getloadavg()[0]:.1f} at the end"
    machine = f"{_processor()}, {os.cpu_count()} cores, torch {torch.__version__}, {load}"
    return f"`{command}`, {datetime.date.today()}, commit {commit or 'unknown'}; {machine}."


def _processor() -> str:
    """Name of the processor; Linux tells it in a file only."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
