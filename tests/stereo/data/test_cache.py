from __future__ import annotations

import logging
import os
import pickle
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from pathlib import Path
from subprocess import Popen

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stereo.data import cache as module
from stereo.data.annotations import Row, parse
from stereo.data.cache import SampleCache, default_directory, open_cache, read_sample, sample_key
from stereo.data.datasets import find_format
from stereo.data.encodings import write_pfm, write_png
from stereo.data.remote import RemoteFile
from stereo.errors import DataError
from stereo.spec.data import DatasetSpec
from tests.stereo.data.stored import NUMBERS, check, key, store

HOUR, DAY, MIB = 3600.0, 86400.0, 2**20
ROOT = Path(__file__).resolve().parents[3]


def on_disk(directory: Path) -> int:
    """Bytes of all samples and files being written."""
    return sum(
        path.stat().st_size
        for path in directory.rglob("*")
        if path.is_file() and path.name != "total"
    )


@pytest.fixture
def cache(tmp_path: Path) -> SampleCache:
    return SampleCache(tmp_path / "samples", 50 * 2**20)


# --- content --------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(
    shapes=st.lists(
        st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple), min_size=1, max_size=4
    ),
    kinds=st.lists(st.sampled_from(["u1", "<f4", ">f4", "<u2", "?"]), min_size=4, max_size=4),
    fact=st.booleans(),
)
def test_what_was_put_comes_back(tmp_path_factory, shapes, kinds, fact) -> None:
    cache = SampleCache(tmp_path_factory.mktemp("cache"), 2**20)
    rng = np.random.default_rng(0)
    given_arrays = {
        f"a{n}": rng.integers(0, 200, shape).astype(kind)
        for n, (shape, kind) in enumerate(zip(shapes, kinds, strict=False))
    }

    cache.put(key(1), given_arrays, {"fact": fact})

    values, facts = cache.get(key(1))
    assert facts == {"fact": fact}
    assert values.keys() == given_arrays.keys()
    for name, value in given_arrays.items():
        assert values[name].dtype == value.dtype
        np.testing.assert_array_equal(values[name], value)
        assert not values[name].flags.writeable
    assert cache.total == on_disk(cache.directory)


def test_an_array_that_is_not_contiguous_is_stored_as_it_reads(cache: SampleCache) -> None:
    whole = np.arange(60, dtype=np.float32).reshape(6, 10)

    cache.put(key(1), {"part": whole[::-2, 1::3]}, {})

    np.testing.assert_array_equal(cache.get(key(1))[0]["part"], whole[::-2, 1::3])


def test_no_file_stays_open(cache: SampleCache) -> None:
    store(cache, 1)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        store(cache, 2)
        assert check(cache, 1)

    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_pickled_cache_reads_and_writes_the_same_files(cache: SampleCache) -> None:
    store(cache, 1)
    other = pickle.loads(pickle.dumps(cache))

    assert check(other, 1)
    store(other, 2)
    assert check(cache, 2)
    assert cache.total == other.total == on_disk(cache.directory)


def damages() -> dict[str, Callable[[bytes], bytes]]:
    return {
        "cut": lambda data: data[:-1],
        "cut within its prefix": lambda data: data[:20],
        "empty": lambda _: b"",
        "longer": lambda data: data + b"x",
        "foreign": lambda _: b"not one of ours" * 100,
        "zeros": lambda data: bytes(len(data)),
        "a bit of the arrays": lambda data: data[:-80] + bytes([data[-80] ^ 1]) + data[-79:],
        "a bit of the header": lambda data: data[:60] + bytes([data[60] ^ 1]) + data[61:],
        "another version": lambda data: data[:8] + b"\xff" + data[9:],
    }


@pytest.mark.parametrize("damage", damages())
def test_a_damaged_file_is_missing_and_replaced(tmp_path: Path, damage: str) -> None:
    store(SampleCache(tmp_path, MIB), 1)
    path = tmp_path / key(1)[:2] / key(1)
    path.write_bytes(damages()[damage](path.read_bytes()))
    cache = SampleCache(tmp_path, MIB)  # another process: it has not verified the file

    assert not check(cache, 1)
    store(cache, 1)

    assert check(cache, 1)
    assert cache.total == on_disk(tmp_path)


def test_a_file_that_is_cut_after_it_was_read_is_missing(cache: SampleCache) -> None:
    store(cache, 1)
    assert check(cache, 1)
    path = cache.directory / key(1)[:2] / key(1)
    path.write_bytes(path.read_bytes()[:-5])

    assert not check(cache, 1)


def test_a_sample_under_another_key_is_missing(cache: SampleCache) -> None:
    store(cache, 1)
    other = cache.directory / key(2)[:2] / key(2)
    other.parent.mkdir()
    (cache.directory / key(1)[:2] / key(1)).rename(other)

    assert cache.get(key(2)) is None


# --- budget ---------------------------------------------------------------------------------------


def stored(cache: SampleCache, number: int) -> Path:
    """Where a sample lies when it is there."""
    return cache.directory / key(number)[:2] / key(number)


def used(cache: SampleCache, number: int, seconds_ago: float) -> Path:
    """Pretend that a sample was last used then."""
    path = stored(cache, number)
    os.utime(path, (time.time() - seconds_ago,) * 2)
    return path


def one_size(tmp_path: Path) -> int:
    cache = SampleCache(tmp_path / "one", MIB)
    store(cache, 1)
    return cache.total


def test_a_full_cache_takes_nothing_that_would_exceed_its_budget(tmp_path: Path) -> None:
    size = one_size(tmp_path)
    cache = SampleCache(tmp_path / "c", 3 * size)
    for number in range(6):
        store(cache, number)

    assert [number for number in range(6) if check(cache, number)] == [0, 1, 2]
    assert cache.total == on_disk(cache.directory) == 3 * size
    assert cache.stopped == ""


def test_replacing_a_sample_counts_it_once(cache: SampleCache) -> None:
    for size in (4000, 8000, 2000, 2000):
        store(cache, 1, size)

    assert cache.total == on_disk(cache.directory)


def test_what_nobody_used_for_an_hour_makes_room_the_oldest_first(tmp_path: Path) -> None:
    size = one_size(tmp_path)
    cache = SampleCache(tmp_path / "c", 4 * size)
    for number, hours in enumerate((30.0, 1.1, 40.0, 0.9)):
        store(cache, number)
        used(cache, number, hours * HOUR)

    store(cache, 10)
    assert [number for number in range(4) if check(cache, number)] == [0, 1, 3]
    for number, hours in ((0, 30.0), (1, 1.1), (3, 0.9)):  # check has touched them
        used(cache, number, hours * HOUR)
    store(cache, 11)
    store(cache, 12)
    store(cache, 13)  # only samples of this hour are left

    assert [number for number in (0, 1, 2, 3, 10, 11, 12, 13) if check(cache, number)] == [
        3, 10, 11, 12,
    ]  # fmt: skip
    assert cache.total == on_disk(cache.directory) == 4 * size


def test_an_eighth_of_the_budget_is_cleared_at_a_time(tmp_path: Path) -> None:
    """So that the folders are not searched again for the next sample."""
    size = one_size(tmp_path)
    cache = SampleCache(tmp_path / "c", 16 * size)
    for number in range(16):
        store(cache, number)
        used(cache, number, (40 - number) * HOUR)

    store(cache, 20)

    assert cache.total == on_disk(cache.directory) == 15 * size
    assert [number for number in range(21) if check(cache, number)] == [*range(2, 16), 20]


def test_what_was_used_since_the_cache_was_opened_stays(tmp_path: Path) -> None:
    """A run whose epoch takes longer than an hour."""
    size = one_size(tmp_path)
    cache = SampleCache(tmp_path / "c", 3 * size)
    cache._opened -= 5 * HOUR
    for number, hours in enumerate((5.1, 5.4, 1.5)):  # the first one without a new time
        store(cache, number)
        used(cache, number, hours * HOUR)

    for number in (10, 11):
        store(pickle.loads(pickle.dumps(cache)), number)  # as in a worker

    there = [path for number in (0, 1, 2, 10, 11) if (path := stored(cache, number)).exists()]
    assert there == [stored(cache, number) for number in (0, 2, 10)]


def test_a_full_cache_says_so_once_in_a_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    size = one_size(tmp_path)
    directory = tmp_path / "c"
    cache = SampleCache(directory, 3 * size)
    for number in range(3):
        store(cache, number)
    assert cache.full == caplog.text == ""
    for _ in range(2):
        cache = SampleCache(directory, 3 * size)
        store(cache, 4)
        store(cache, 5)
        assert cache.full.endswith("GiB of dataset.cache_size are used")

    used_gib = f"{3 * size / 2**30:.4g}"
    said = f"cache {directory} is full: {used_gib} of the {used_gib} GiB of dataset.cache_size are"
    assert caplog.text.count(said) == caplog.text.count(" is full: ") == 1
    assert caplog.text.count("Raise dataset.cache_size") == 1


def test_a_sample_larger_than_the_budget_moves_nothing_out(tmp_path: Path) -> None:
    cache = SampleCache(tmp_path, 3 * one_size(tmp_path))
    store(cache, 1)
    used(cache, 1, 9 * DAY)

    store(cache, 2, 400_000)

    assert check(cache, 1)
    assert not check(cache, 2)


def test_use_is_noted_at_most_four_times_an_hour(cache: SampleCache) -> None:
    store(cache, 1)
    path = used(cache, 1, 0.2 * HOUR)
    before = path.stat().st_mtime
    assert check(cache, 1)
    assert path.stat().st_mtime == before
    used(cache, 1, 0.3 * HOUR)
    assert check(cache, 1)

    assert path.stat().st_mtime > time.time() - 60


def test_opening_measures_anew_and_removes_what_dead_writers_left(tmp_path: Path) -> None:
    cache = SampleCache(tmp_path, MIB)
    store(cache, 1)
    (tmp_path / "writing" / "left").write_bytes(b"x" * 5000)
    (tmp_path / "total").write_text("not a number")

    again = SampleCache(tmp_path, MIB)

    assert not list((tmp_path / "writing").iterdir())
    assert again.total == cache.total == on_disk(tmp_path)
    (tmp_path / "total").unlink()
    store(cache, 2)
    assert cache.total == on_disk(tmp_path)


@pytest.mark.parametrize("content", ["not a number", "", "-5", "7" * 40])
def test_a_damaged_total_is_measured_anew_by_a_running_process(
    tmp_path: Path, content: str
) -> None:
    cache = SampleCache(tmp_path, MIB)
    store(cache, 1)
    (tmp_path / "total").write_text(content)

    store(cache, 2)

    assert check(cache, 2)
    assert cache.total == on_disk(tmp_path)
    assert (tmp_path / "total").stat().st_size == 21


@pytest.mark.parametrize("removed", [".", "writing", "total"])
def test_a_cache_that_is_removed_meanwhile_is_made_again(
    cache: SampleCache, caplog: pytest.LogCaptureFixture, removed: str
) -> None:
    store(cache, 1)
    subprocess.run(["rm", "-r", str(cache.directory.joinpath(removed))], check=True)

    store(cache, 2)
    store(cache, 3)

    assert [check(cache, number) for number in (1, 2, 3)] == [removed != ".", True, True]
    assert cache.stopped == caplog.text == ""
    assert cache.total == on_disk(cache.directory)


# --- processes ------------------------------------------------------------------------------------


@contextmanager
def writers(directory: Path, budget: int, seeds: range, count: int) -> Iterator[list[Popen[str]]]:
    """Processes that store random samples and say which; killed at the end."""
    with ExitStack() as stack:
        started = []
        for seed in seeds:
            numbers = map(str, (budget, seed, count))
            process = Popen(
                [sys.executable, "-m", "tests.stereo.data.stored", str(directory), *numbers],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
            )
            started.append(stack.enter_context(process))
            stack.callback(process.kill)
        yield started


def test_writers_share_one_budget_and_never_exceed_it(tmp_path: Path) -> None:
    budget, counted = 3 * MIB, []
    cache = SampleCache(tmp_path, budget)
    with writers(tmp_path, budget, range(3), 100) as processes:
        for process in processes:
            assert process.stdout is not None
            for _ in process.stdout:
                with cache._locked() as total:
                    assert total.value == on_disk(tmp_path) <= budget
                    counted.append(total.value)
        assert [process.wait() for process in processes] == [0, 0, 0]

    assert max(counted) > 0.8 * budget
    assert SampleCache(tmp_path, budget).total == on_disk(tmp_path) == counted[-1]


@pytest.mark.parametrize(
    "rounds", [5, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.chaos])]
)
def test_killed_writers_harm_nothing(tmp_path: Path, rounds: int) -> None:
    """Every round kills two writers at random moments and reads all that is there."""
    draw, budget, there = random.Random(rounds), 4 * MIB, 0
    for number in range(rounds):
        with writers(tmp_path, budget, range(2 * number, 2 * number + 2), 10**9) as pair:
            for process in pair:
                assert process.stdout is not None
                for _ in range(draw.randrange(1, 40)):
                    process.stdout.readline()
                process.kill()
            assert [process.wait() for process in pair] == [-signal.SIGKILL] * 2

        cache = SampleCache(tmp_path, budget)

        assert not list((tmp_path / "writing").iterdir())
        assert cache.total == on_disk(tmp_path) <= budget
        there = sum(check(cache, sample) for sample in range(NUMBERS))
        lost = key(draw.randrange(NUMBERS))  # so that the next round has something to write
        (tmp_path / lost[:2] / lost).unlink(missing_ok=True)
    assert there > 5


def test_a_file_being_written_is_counted_and_not_removed(tmp_path: Path) -> None:
    """A second process opens the cache while the first one writes."""
    cache = SampleCache(tmp_path, MIB)
    with cache._locked() as total:
        file = cache._new_file(5000)
        total.set(total.value + 5000)

    other = SampleCache(tmp_path, MIB)

    assert other.total == on_disk(tmp_path) == 5000
    file.close()
    assert SampleCache(tmp_path, MIB).total == 0


# --- room -----------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of its own, with the mount options that the test's parameter says."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", request.param, "tmpfs", str(directory)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs is not allowed here")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


def spec(directory: Path, mode: str = "auto", size: float = 1.0) -> DatasetSpec:
    return DatasetSpec(cache=mode, cache_dir=str(directory), cache_size=size)


@pytest.mark.parametrize("disk", ["size=4M"], indirect=True)
def test_a_tenth_of_a_small_disk_stays_free(disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = open_cache(spec(disk / "c"))
    assert cache is not None
    for number in range(8):
        store(cache, number, 500_000)

    assert [check(cache, number) for number in range(8)] == [True] * 7 + [False]
    assert caplog.text.count("takes no more samples: 0.6 MiB of the disk are free") == 1
    caplog.clear()
    again = open_cache(spec(disk / "c"))  # what is there is still read
    assert again is not None
    assert check(again, 1)
    assert caplog.text == ""


@pytest.mark.parametrize("disk", ["size=4M"], indirect=True)
def test_a_full_disk_turns_the_cache_off_or_is_refused(
    disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (disk / "other").write_bytes(bytes(4 * MIB - 200_000))

    cache = open_cache(spec(disk / "c"))

    assert cache is not None
    store(cache, 1)
    assert not check(cache, 1)
    assert caplog.text.count("decoded cache off: ") == 1
    assert "0.2 MiB of the disk are free, needed 0.4, of which 0.4 stay" in caplog.text
    with pytest.raises(
        DataError, match=r"dataset\.cache: on, but .* 0\.2 MiB of the disk are free"
    ) as caught:
        open_cache(spec(disk / "c", "on"))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("disk", ["size=16M,nr_inodes=12"], indirect=True)
def test_a_disk_that_fails_in_the_middle_stops_the_writing_only(
    disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Free bytes say nothing here: the file system has no more inodes (ENOSPC)."""
    cache = open_cache(spec(disk / "c"))
    assert cache is not None
    for number in range(20):
        store(cache, number)

    assert 0 < sum(check(cache, number) for number in range(20)) < 10
    assert cache.stopped == "No space left on device"
    assert caplog.text.count("takes no more samples") == 1
    assert cache.total == on_disk(disk / "c")


@pytest.mark.parametrize("disk", ["ro"], indirect=True)
def test_a_folder_that_cannot_be_written_turns_the_cache_off(
    disk: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    for directory, reason in (
        (disk / "c", "Read-only file system"),
        (tmp_path / "file" / "c", "Not a directory"),
    ):
        caplog.clear()
        assert open_cache(spec(directory)) is None
        assert caplog.text.count(f"decoded cache off: {directory} takes no samples: {reason}") == 1
        with pytest.raises(DataError, match=f"cache: on, but .*{reason}.*or use auto") as caught:
            open_cache(spec(directory, "on"))
        assert caught.value.exit_code == 2


def test_a_cache_of_another_user_is_read(caplog: pytest.LogCaptureFixture) -> None:
    """Without the right to write; root has every right, so it becomes somebody else."""
    with tempfile.TemporaryDirectory() as folder:  # others may pass through it, unlike tmp_path
        Path(folder).chmod(0o755)
        directory = Path(folder) / "c"
        store(SampleCache(directory, MIB), 1)
        with written_by_nobody(directory):
            cache = open_cache(spec(directory))
            assert cache is not None
            assert check(cache, 1)
            assert check(pickle.loads(pickle.dumps(cache)), 1)
            store(cache, 2)
            assert not check(cache, 2)
            assert cache.stopped == "Permission denied"
            with pytest.raises(DataError, match=r"cache: on, but .*Permission denied"):
                open_cache(spec(directory, "on"))
    assert caplog.text.count(f"{directory} takes no samples: Permission denied") == 1


@contextmanager
def written_by_nobody(directory: Path) -> Iterator[None]:
    paths = [directory, *directory.rglob("*")]
    modes = [path.stat().st_mode for path in paths]
    for path, mode in zip(paths, modes, strict=True):
        path.chmod(mode & ~0o222)
    user = os.geteuid()
    try:
        if not user:
            os.seteuid(65534)
        yield
    finally:
        os.seteuid(user)
        for path, mode in zip(paths, modes, strict=True):
            path.chmod(mode)


def test_the_spec_names_folder_budget_and_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert open_cache(spec(tmp_path / "none", "off")) is None
    assert not (tmp_path / "none").exists()
    cache = open_cache(spec(tmp_path / "c", "on", 0.5))
    assert cache is not None
    assert (cache.directory, cache.budget) == (tmp_path / "c", 2**29)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert default_directory() == tmp_path / "x" / "depthtune" / "samples"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_directory() == tmp_path / "home" / ".cache" / "depthtune" / "samples"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the standard: to be ignored
    assert default_directory() == tmp_path / "home" / ".cache" / "depthtune" / "samples"
    with caplog.at_level(logging.WARNING):
        assert open_cache(DatasetSpec()).directory == default_directory()
    assert caplog.text == ""


def test_a_process_without_a_home_goes_without_the_cache(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)  # of nobody

    assert open_cache(DatasetSpec()) is None
    assert (
        "decoded cache off: the user's cache directory takes no samples: Could not" in caplog.text
    )


# --- samples --------------------------------------------------------------------------------------


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    """Two pairs with truth and mask."""
    rng = np.random.default_rng(0)
    for number in range(2):
        for view in "lr":
            image = rng.integers(0, 256, (5, 7, 3), np.uint8)
            write_png(tmp_path / f"{view}{number}.png", image)
        write_png(tmp_path / f"m{number}.png", rng.choice([0, 255], (5, 7)).astype(np.uint8))
        write_pfm(tmp_path / f"d{number}.pfm", rng.random((5, 7)).astype(np.float32))
    lines = [f"l{n}.png r{n}.png d{n}.pfm m{n}.png" for n in range(2)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    parsed, faults = parse(tmp_path / "a.txt", find_format("Middlebury"), inference=False)
    assert not faults
    return parsed


def assert_same(one: object, other: object) -> None:
    for field in fields(one):
        first, second = getattr(one, field.name), getattr(other, field.name)
        if isinstance(first, np.ndarray):
            np.testing.assert_array_equal(first, second)
            assert first.dtype == second.dtype
        else:
            assert first == second


def test_a_cached_sample_is_the_decoded_one(
    cache: SampleCache, rows: list[Row], tmp_path: Path
) -> None:
    for name in ("Middlebury", "GenericDataset"):
        form = find_format(name)
        for row in rows:
            decoded, first = read_sample(form, row, cache)
            cached, second = read_sample(form, row, cache)

            assert (first, second) == (False, True)
            assert_same(decoded, cached)
            assert_same(cached, form.read(row))
            assert read_sample(form, row, None)[1] is False
    far = tmp_path / "elsewhere" / "b.txt"  # another annotation file shares the pixels only
    far.parent.mkdir()
    row = Row(rows[0].left, rows[0].right, rows[0].disparity, rows[0].occlusion, far, 7)
    sample, is_cached = read_sample(find_format("Middlebury"), row, cache)
    assert is_cached
    assert (sample.name, sample.row.where) == (str(rows[0].left), f"{far}:7")


def test_a_mono_sample_is_cached_like_a_stereo_one(cache: SampleCache, rows: list[Row]) -> None:
    form = find_format("Middlebury", "mono")

    decoded, first = read_sample(form, rows[0], cache)
    cached, second = read_sample(form, rows[0], cache)

    assert (first, second) == (False, True)
    assert_same(decoded, cached)
    assert read_sample(find_format("Middlebury"), rows[0], cache)[1] is False


@pytest.mark.parametrize("changed", ["left", "right", "disparity", "occlusion"])
def test_a_touched_file_is_decoded_again_and_nothing_else(
    cache: SampleCache, rows: list[Row], changed: str
) -> None:
    form = find_format("Middlebury")
    for row in rows:
        read_sample(form, row, cache)
    path = getattr(rows[1], changed)
    status = path.stat()

    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))

    assert [read_sample(form, row, cache)[1] for row in rows] == [True, False]
    assert [read_sample(form, row, cache)[1] for row in rows] == [True, True]
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert [read_sample(form, row, cache)[1] for row in rows] == [True, True]


def test_a_file_of_another_size_is_decoded_again(cache: SampleCache, rows: list[Row]) -> None:
    form, path = find_format("Middlebury"), rows[0].left
    read_sample(form, rows[0], cache)
    times = path.stat()
    write_png(path, np.full((5, 7, 3), 9, np.uint8))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    sample, is_cached = read_sample(form, rows[0], cache)

    assert not is_cached
    assert (sample.left == 9).all()


def test_the_key_names_class_decoder_and_fields(
    rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {sample_key(find_format(name), rows[0]) for name in ("Middlebury", "Eth3d")}
    keys.add(sample_key(find_format("Middlebury", "mono"), rows[0]))
    keys.add(sample_key(find_format("Middlebury"), rows[1]))
    monkeypatch.setattr(module, "DECODER_VERSION", module.DECODER_VERSION + 1)
    keys.add(sample_key(find_format("Middlebury"), rows[0]))
    monkeypatch.setitem(module._FIELDS, "stereo", ["left", "new"])
    keys.add(sample_key(find_format("Middlebury"), rows[0]))

    assert len(keys) == 6


def test_a_remote_file_without_a_version_has_no_key(rows: list[Row]) -> None:
    form = find_format("Middlebury")
    keys = {
        sample_key(form, replace(rows[0], left=RemoteFile("https://host/l.png", size, version)))
        for size, version in ((10, "a"), (10, "b"), (11, "a"), (11, ""))
    }

    assert None in keys
    assert len(keys) == 4


def test_a_missing_file_is_named_though_the_sample_is_cached(
    cache: SampleCache, rows: list[Row]
) -> None:
    form = find_format("Middlebury")
    read_sample(form, rows[0], cache)
    rows[0].left.unlink()

    with pytest.raises(DataError, match=r"a\.txt:1: .*l0\.png: cannot open"):
        read_sample(form, rows[0], cache)


def test_what_changed_while_it_was_read_is_not_stored(
    cache: SampleCache, rows: list[Row], tmp_path: Path
) -> None:
    """A named pipe as the truth: the image changes when the reader waits for it."""
    row, content = rows[0], tmp_path / "content"
    row.disparity.rename(content)
    os.mkfifo(row.disparity)
    change = f"exec 3>{row.disparity}; touch -d @1 {row.left}; cat {content} >&3"

    with Popen(["sh", "-c", change]):
        sample, _ = read_sample(find_format("Middlebury"), row, cache)

    assert sample.left.shape == (5, 7, 3)
    assert on_disk(cache.directory) == 0
