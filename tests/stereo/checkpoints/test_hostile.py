"""Hostile weight files: nothing of them runs, and reading them is bounded in time and memory."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from stereo.checkpoints import files
from stereo.errors import CheckpointError
from tests.stereo.checkpoints import hostile_files
from tests.stereo.checkpoints.hostile_files import BOMBS, HARMLESS, Called, Stored, held, zipped

SECONDS, MEGABYTES = 20, 1024  # an honest file of 70 MB takes 0.3 s


def read_bounded(
    folder: Path, contents: Mapping[str, bytes], *, importable: Path | None = None
) -> dict[str, dict[str, Any]]:
    """Outcome by name, of files read one by one under limits."""
    names = {folder / f"{index}.pth": name for index, name in enumerate(contents)}
    for path, name in names.items():
        path.write_bytes(contents[name])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if importable is not None:
        environment["PYTHONPATH"] = f"{importable}:{os.environ.get('PYTHONPATH', '')}"
    result = subprocess.run(
        [sys.executable, hostile_files.__file__, str(SECONDS), str(MEGABYTES), *map(str, names)],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env=environment,
    )
    lines = map(json.loads, result.stdout.splitlines())
    return {names[Path(line["path"])]: line for line in lines}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    contents = {name: make() for name, (_, make) in BOMBS.items()}
    contents |= {name: make() for name, make in HARMLESS.items()}
    return read_bounded(tmp_path_factory.mktemp("bombs"), contents)


@pytest.mark.parametrize("name", list(BOMBS))
def test_a_bomb_is_refused_within_the_limits(name: str, outcomes: dict[str, Any]) -> None:
    reason, _ = BOMBS[name]
    message = outcomes[name].get("refused", outcomes[name])
    assert reason in message
    assert len(message) < 1000


@pytest.mark.parametrize("name", list(HARMLESS))
def test_what_would_cost_hours_costs_seconds(name: str, outcomes: dict[str, Any]) -> None:
    assert outcomes[name].get("tensors") == 0, outcomes[name]


EVIL = """
from pathlib import Path
import torch

Path("trace").touch()

def run(text="trace", *_):
    Path(text).touch()
    return torch.zeros(1)

class Reduced:
    def __reduce__(self):
        return run, ("trace",)

class Module(torch.nn.Linear):
    def __setstate__(self, state):
        run()
        super().__setstate__(state)

class Outer:
    class Inner(Module):
        pass

class New:
    def __new__(cls):
        run()
        return super().__new__(cls)

class Text(dict):
    def __setitem__(self, key, value):
        run()
        super().__setitem__(key, value)

class Row(list):
    def extend(self, items):
        run()
        super().extend(items)
"""
TRACE = "trace"


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module that leaves a trace in the working directory when it is imported or used."""
    (tmp_path / "evil.py").write_text(EVIL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    import evil  # pyright: ignore[reportMissingImports]

    yield evil
    del sys.modules["evil"]


def saved(path: Path, value: Any, **options: Any) -> bytes:
    torch.save(value, path, **options)
    return path.read_bytes()


def traps(evil: Any) -> dict[str, tuple[int, bytes]]:
    """Number of honest tensors, and a file that a careless reader would run."""
    state = {"a": torch.ones(2)}

    def beside(value: Any, **options: Any) -> tuple[int, bytes]:
        return 1, saved(Path("made"), {"model": state, "x": value}, **options)

    def module(value: Any, **options: Any) -> tuple[int, bytes]:
        return 2, saved(Path("made"), value, **options)

    rebuild = torch._tensor._rebuild_from_type_v2
    nested = saved(Path("made"), evil.Reduced(), _use_new_zipfile_serialization=False)
    found = {
        "reduce": beside(evil.Reduced()),
        "reduce of an older format": beside(evil.Reduced(), _use_new_zipfile_serialization=False),
        "setstate": module(evil.Module(2, 2)),
        "setstate of an older format": module(
            evil.Module(2, 2), _use_new_zipfile_serialization=False
        ),
        "nested subclass": module(evil.Outer.Inner(2, 2)),
        "nested subclass, protocol 4": module(evil.Outer.Inner(2, 2), pickle_protocol=4),
        "part of a network": (
            4,
            saved(Path("made"), torch.nn.Sequential(torch.nn.Linear(2, 2), evil.Module(2, 2))),
        ),
        "new": beside(evil.New()),
        "items": beside(evil.Text(a=1)),
        "elements": beside(evil.Row([1, 2, 3])),
        "eval": beside(Called(eval, "__import__('evil').run()")),
        "file": beside(Called(open, TRACE, "w")),
        "pickle in a pickle": beside(Called(torch.storage._load_from_bytes, nested)),
        "call for a tensor": beside(Called(rebuild, evil.run, torch.Tensor, (TRACE,), {})),
        "attribute": beside(Called(getattr, evil.Outer, "Inner")),
        "hash of a key": beside({Called(evil.run): 1}),
        "weights themselves": (1, zipped(held(Called(evil.run, TRACE)))),
    }
    return found


def test_nothing_of_a_file_is_run(evil: Any, tmp_path: Path) -> None:
    made = traps(evil)
    (tmp_path / TRACE).unlink()

    outcomes = read_bounded(
        tmp_path, {name: content for name, (_, content) in made.items()}, importable=tmp_path
    )

    assert not (tmp_path / TRACE).exists()
    found = {name: outcome.get("tensors") for name, outcome in outcomes.items()}
    honest = {name: count for name, (count, _) in made.items()}
    assert found == honest | {"weights themselves": 0}


def test_a_storage_id_is_not_run_either(evil: Any, tmp_path: Path) -> None:
    (tmp_path / TRACE).unlink()
    content = zipped(held(hostile_files.tensor(storage=Stored(key=evil.Reduced()))))

    outcomes = read_bounded(tmp_path, {"id": content}, importable=tmp_path)

    assert "a storage of an unknown kind" in outcomes["id"]["refused"]
    assert not (tmp_path / TRACE).exists()


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_the_traps_do_catch_a_careless_reader(evil: Any, tmp_path: Path) -> None:
    for name, (_, content) in traps(evil).items():
        (tmp_path / TRACE).unlink(missing_ok=True)
        sys.modules.pop("evil")
        (tmp_path / "trap.pth").write_bytes(content)
        with contextlib.suppress(Exception):
            torch.load(tmp_path / "trap.pth", weights_only=False)
        sys.modules["evil"] = evil
        assert (tmp_path / TRACE).exists(), name


@pytest.fixture(scope="module", params=[True, False], ids=["archive", "legacy"])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("small") / "small.pth"
    state = {"model": torch.nn.Linear(3, 2).state_dict(), "epoch": 3}
    return saved(path, state, _use_new_zipfile_serialization=request.param)


def test_every_truncated_file_is_refused(small: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cut.pth"
    for length in range(len(small)):
        path.write_bytes(small[:length])
        with pytest.raises(CheckpointError, match=r"cut\.pth: not a whole checkpoint"):
            files.read(path)


def test_a_changed_byte_is_refused_or_read(small: bytes, tmp_path: Path) -> None:
    path = tmp_path / "changed.pth"
    generator = random.Random(0)
    refused = 0
    for _ in range(1500):
        content = bytearray(small)
        content[generator.randrange(len(content))] = generator.randrange(256)
        path.write_bytes(content)
        try:
            assert isinstance(files.read(path), dict)
        except CheckpointError:
            refused += 1
    assert refused > 100
