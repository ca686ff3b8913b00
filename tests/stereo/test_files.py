from __future__ import annotations

import fcntl
import hashlib
from pathlib import Path

import pytest

from stereo.files import sha256, turn, write_bytes, write_json, write_text


def test_a_file_is_written_with_the_folders_above_it_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    write_text(path, "ä\n")
    write_text(path, "ö\n")
    assert path.read_bytes() == "ö\n".encode()
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_neither_half_a_file_nor_a_temporary_one(tmp_path: Path) -> None:
    folder = tmp_path / "taken"
    folder.mkdir()
    with pytest.raises(OSError, match="taken"):
        write_bytes(folder, b"1")
    assert list(tmp_path.iterdir()) == [folder]


def test_json_is_strict(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"epe": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_the_hash_is_that_of_the_content(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_bytes(path, b"abc")
    assert sha256(path) == hashlib.sha256(b"abc").hexdigest()


def is_held(path: Path) -> bool:
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_one_process_at_a_time_has_the_turn(tmp_path: Path) -> None:
    path = tmp_path / "turn.lock"
    with turn(path):
        assert is_held(path)
    assert not is_held(path)
    with turn(None):
        pass
