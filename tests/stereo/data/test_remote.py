from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from stereo.data.annotations import parse, read_rows
from stereo.data.datasets import find_format
from stereo.data.encodings import PFM, read_image_size, write_png
from stereo.data.remote import (
    RemoteFile,
    find,
    find_all,
    folder_of,
    is_remote,
    join,
    stamp,
    suffix_of,
)
from stereo.errors import DataError

GENERIC = find_format("GenericDataset")
PAIR = {"left/0.png": b"left", "right/0.png": b"right", "truth/0.pfm": b"truth"}
LINE = "left/0.png right/0.png truth/0.pfm"


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    """A remote folder `memory://data` with one pair."""
    system = fsspec.filesystem("memory")
    for name, content in PAIR.items():
        system.pipe(f"/data/{name}", content)
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.fixture
def calls(memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every request to `memory://`, as `method path`."""
    made: list[str] = []
    for method in ("ls", "info", "cat_file"):
        original = getattr(MemoryFileSystem, method)

        def counted(self, path, *args, method=method, original=original, **kwargs):
            limits = [str(kwargs[key]) for key in ("start", "end") if key in kwargs]
            made.append(" ".join([method, path, *limits]))
            return original(self, path, *args, **kwargs)

        monkeypatch.setattr(MemoryFileSystem, method, counted)
    return made


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """Address of a web server over `tmp_path`."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path)) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("text", "remote"),
    [
        ("s3://bucket/a.png", True),
        ("https://host/a.png", True),
        ("abfs+x.y-z://a", True),
        ("/data/a.png", False),
        ("~/a.png", False),
        ("a.png", False),
        ("C://a.png", False),
        ("s3:/bucket/a.png", False),
        ("./s3://bucket/a.png", False),
    ],
)
def test_an_address_begins_with_a_scheme(text: str, remote: bool) -> None:
    assert is_remote(text) is remote


@pytest.mark.parametrize(
    ("folder", "path", "address"),
    [
        ("s3://bucket", "a.png", "s3://bucket/a.png"),
        ("s3://bucket/x", "y/a.png", "s3://bucket/x/y/a.png"),
        ("s3://bucket/x", "./y//../a.png", "s3://bucket/x/a.png"),
        ("s3://bucket/x", "../../../a.png", "s3://bucket/a.png"),
        ("file:///x/y", "../a.png", "file:///x/a.png"),
    ],
)
def test_a_relative_path_starts_at_its_folder_and_ends_in_its_bucket(
    folder: str, path: str, address: str
) -> None:
    assert join(folder, path) == address


@pytest.mark.parametrize(
    ("uri", "folder", "name", "suffix"),
    [
        ("s3://b/x/a.PNG", "s3://b/x", "a.PNG", ".PNG"),
        ("s3://b/x/a?b#c.png", "s3://b/x", "a?b#c.png", ".png"),
        ("https://h/x/a.png?sig=q/r.txt", "https://h/x", "a.png", ".png"),
        ("s3://b/x.y/a", "s3://b/x.y", "a", ""),
        ("s3://b/.png", "s3://b", ".png", ""),
    ],
)
def test_an_address_has_a_folder_a_name_and_a_suffix(
    uri: str, folder: str, name: str, suffix: str
) -> None:
    file = RemoteFile(uri, 1, "")

    assert (folder_of(uri), file.name, file.suffix) == (folder, name, suffix)
    assert suffix_of(uri) == suffix


def test_relative_paths_start_at_the_remote_folder_of_the_annotation_file(
    memory: MemoryFileSystem,
) -> None:
    memory.pipe("/data/lists/train.txt", b"../left/0.png ../right/0.png ../truth/0.pfm")

    (row,) = read_rows("memory://data/lists/train.txt", dataset="GenericDataset")

    assert row.where == "memory://data/lists/train.txt:1"
    assert [str(file) for file in (row.left, row.right, row.disparity)] == [
        f"memory://data/{name}" for name in PAIR
    ]
    assert row.left.open("rb").read() == b"left"


def test_a_local_file_may_name_remote_files_and_the_other_way_round(
    memory: MemoryFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "l.png").touch()
    (tmp_path / "local.txt").write_text("l.png memory://data/right/0.png memory://data/truth/0.pfm")
    memory.pipe("/data/remote.txt", f"~/l.png {tmp_path}/l.png truth/0.pfm".encode())

    (local,) = read_rows(tmp_path / "local.txt", dataset="GenericDataset")
    (remote,) = read_rows("memory://data/remote.txt", dataset="GenericDataset")

    assert (local.left, str(local.right)) == (tmp_path / "l.png", "memory://data/right/0.png")
    assert (remote.left, remote.right) == (tmp_path / "l.png", tmp_path / "l.png")
    assert str(remote.disparity) == "memory://data/truth/0.pfm"


def test_a_mono_line_names_an_image_and_skips_the_right_one(
    memory: MemoryFileSystem, calls: list[str]
) -> None:
    memory.pipe("/data/a.txt", b"left/0.png gone/0.png truth/0.pfm")

    (row,) = read_rows("memory://data/a.txt", dataset="NvCLIP", family="mono")

    assert (str(row.left), row.right) == ("memory://data/left/0.png", None)
    assert "ls /data/gone" not in calls


def test_each_folder_is_listed_once_and_no_file_is_asked_for(
    memory: MemoryFileSystem, calls: list[str]
) -> None:
    for i in range(50):
        memory.pipe({f"/data/{name.replace('0', str(i))}": b"x" for name in PAIR})
    lines = "\n".join(LINE.replace("0", str(i)) for i in range(50))
    memory.pipe("/data/a.txt", lines.encode())
    calls.clear()

    rows = read_rows("memory://data/a.txt", dataset="GenericDataset")

    assert len(rows) == 50
    assert sorted(calls) == [
        "cat_file /data/a.txt 0 None",
        "info /data/a.txt",
        "ls /data/left",
        "ls /data/right",
        "ls /data/truth",
    ]


def test_missing_files_and_folders_are_named_with_their_line(memory: MemoryFileSystem) -> None:
    memory.pipe(
        "/data/a.txt",
        b"left/1.png right/0.png truth/0.pfm\nleft/0.png gone/0.png truth/0.pfm\n"
        b"left/0.png gone/1.png truth/0.pfm\nleft right/0.png truth/0.pfm\n" + LINE.encode(),
    )

    rows, faults = parse("memory://data/a.txt", GENERIC, inference=False)

    assert [row.line for row in rows] == [5]
    assert faults[0] == "memory://data/a.txt:1: memory://data/left/1.png: no such file"
    assert faults[1].startswith(
        "memory://data/a.txt:2: memory://data/gone/0.png: no such file, folder or bucket"
    )
    assert faults[1].endswith("Check the address")
    assert faults[2].startswith("memory://data/a.txt:4: memory://data/left: extension ''")
    assert len(faults) == 3  # of a folder that cannot be listed the first file speaks


def test_a_folder_is_no_file(memory: MemoryFileSystem) -> None:
    memory.pipe("/data/odd.png/x", b"")
    memory.pipe("/data/a.txt", b"odd.png right/0.png truth/0.pfm")

    _, faults = parse("memory://data/a.txt", GENERIC, inference=False)

    assert faults == ["memory://data/a.txt:1: memory://data/odd.png: no such file"]
    with pytest.raises(DataError, match=r"memory://data/odd\.png: is a folder"):
        find("memory://data/odd.png")


def test_a_missing_annotation_file_is_named(memory: MemoryFileSystem) -> None:
    with pytest.raises(DataError, match=r"memory://data/gone\.txt: no such file") as caught:
        read_rows("memory://data/gone.txt", dataset="GenericDataset")

    assert caught.value.exit_code == 2


def test_a_backend_that_refuses_is_quoted(
    memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("not yours")

    file = find("memory://data/left/0.png")
    monkeypatch.setattr(MemoryFileSystem, "ls", refuse)
    monkeypatch.setattr(MemoryFileSystem, "cat_file", refuse)

    words = "memory://data/left/0.png: access denied (not yours). Check the credentials"
    assert find_all([file.uri]) == {file.uri: words}
    with pytest.raises(DataError, match="access denied"):
        file.open().read()


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(DataError, match=r"warp://b/a\.txt: cannot be read .*not known: warp"):
        find("warp://b/a.txt")


def test_a_file_is_read_with_one_request_and_its_head_with_another(
    memory: MemoryFileSystem, calls: list[str], tmp_path: Path
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    write_png(tmp_path / "x.png", image)
    content = (tmp_path / "x.png").read_bytes()
    assert len(content) > 2**16
    memory.pipe("/data/x.png", content)
    file = find("memory://data/x.png")
    calls.clear()

    assert file.open().read() == content
    assert read_image_size(file) == (200, 300)
    assert calls == ["cat_file /data/x.png 0 None", f"cat_file /data/x.png 0 {2**16}"]


def test_the_head_of_a_map_is_one_request(memory: MemoryFileSystem, calls: list[str]) -> None:
    memory.pipe("/data/x.pfm", b"Pf\n300 200\n-1\n" + bytes(240_000))
    file = find("memory://data/x.pfm")
    calls.clear()

    assert PFM.read_size(file) == (200, 300)
    assert PFM.read_size(replace(file, size=-1)) == (200, 300)  # the server does not tell it
    assert calls == [f"cat_file /data/x.pfm 0 {2**16}", "cat_file /data/x.pfm"]


def test_a_file_is_read_in_parts_up_to_its_end(memory: MemoryFileSystem, calls: list[str]) -> None:
    memory.pipe({"/data/x": b"0123456789", "/data/empty": b""})
    with find("memory://data/x").open() as stream:
        parts = [stream.read(3), stream.read(), stream.read()]
    calls.clear()

    assert parts == [b"012", b"3456789", b""]
    assert find("memory://data/empty").open().read(5) == b""
    assert calls == ["info /data/empty"]  # a server may refuse a range of nothing


def test_a_remote_file_is_plain_data(memory: MemoryFileSystem) -> None:
    file = find("memory://data/left/0.png")
    copy = pickle.loads(pickle.dumps(file))

    assert copy == file
    assert copy.open("rb").read() == b"left"


def test_the_stamp_is_size_and_version(memory: MemoryFileSystem, tmp_path: Path) -> None:
    local = tmp_path / "x"
    local.write_bytes(b"12345")
    listed = find_all([f"file://{local}"])[f"file://{local}"]

    assert stamp(local) == (5, str(local.stat().st_mtime_ns))
    assert isinstance(listed, RemoteFile)
    assert stamp(listed) == (5, str(local.stat().st_mtime))
    with pytest.raises(FileNotFoundError):
        stamp(tmp_path / "gone")


def test_another_content_has_another_stamp(memory: MemoryFileSystem) -> None:
    before = stamp(find("memory://data/left/0.png"))
    memory.pipe("/data/left/0.png", b"LEFT")

    assert stamp(find("memory://data/left/0.png")) != before


def test_over_http_each_file_is_asked_for(web: str, tmp_path: Path) -> None:
    for name, content in PAIR.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(content)
    (tmp_path / "a.txt").write_text(f"{LINE}\nleft/1.png right/0.png {web}/truth/0.pfm?key=/x.y")

    rows, faults = parse(f"{web}/a.txt", GENERIC, inference=False)

    assert [row.line for row in rows] == [1]
    assert stamp(rows[0].left)[0] == 4
    assert stamp(rows[0].left)[1].endswith("GMT")  # Last-Modified
    assert rows[0].left.open("rb").read() == b"left"
    assert len(faults) == 1
    assert faults[0].startswith(f"{web}/a.txt:2: {web}/left/1.png: no such file")


@pytest.mark.parametrize("size", [100_000, -1])
def test_a_server_without_ranges_is_read_in_parts_too(web: str, tmp_path: Path, size: int) -> None:
    content = bytes(range(250)) * 400
    (tmp_path / "x").write_bytes(content)
    file = replace(find(f"{web}/x"), size=size)

    with file.open() as stream:
        parts = [stream.read(70_000), stream.read(1), stream.read()]
    with file.open() as stream:
        more = [stream.read(10), stream.read(10**6)]

    assert [len(part) for part in parts] == [70_000, 1, 29_999]
    assert b"".join(parts) == b"".join(more) == content


def test_a_file_of_unknown_size_is_read_in_parts_too(memory: MemoryFileSystem) -> None:
    content = bytes(range(250)) * 400
    memory.pipe("/data/x", content)

    with replace(find("memory://data/x"), size=-1).open() as stream:
        assert stream.read(10) + stream.read() == content


def test_over_http_the_reason_is_behind_the_first_error() -> None:
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:9/a\.txt: .*Cannot connect to host"):
        find("http://127.0.0.1:9/a.txt")


def run_python(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("package", "address", "words"),
    [
        ("s3fs", "s3://b/a.txt", "Install s3fs to access S3: pip install 'depthtune[s3]'"),
        ("gcsfs", "gs://b/a.txt", "Please install gcsfs to access Google Storage"),
    ],
)
def test_a_missing_package_is_named(package: str, address: str, words: str) -> None:
    told = run_python(
        f"import sys; sys.modules[{package!r}] = None\n"
        "from stereo.data.annotations import parse\n"
        "from stereo.data.datasets import find_format\n"
        f"print(parse({address!r}, find_format('Kitti'), inference=False)[1][0])"
    )

    assert told == f"{address}: {words}"


def test_local_files_do_not_load_fsspec(tmp_path: Path) -> None:
    (tmp_path / "l.png").touch()
    (tmp_path / "a.txt").write_text("l.png l.png")

    told = run_python(
        "import sys\n"
        "from stereo.data.annotations import read_rows\n"
        f"rows = read_rows({str(tmp_path / 'a.txt')!r}, dataset='GenericDataset', "
        "inference=True)\n"
        "print(len(rows), 'fsspec' in sys.modules)"
    )

    assert told == "1 False"
