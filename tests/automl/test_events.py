"""The event log: strict JSON, one write per event, nothing lost but a torn last line."""

import json
import math
import os
import resource
import signal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automl.errors import StoreError
from automl.events import EventLog, read, write_error

CREATED = {"kind": "study_created", "format_version": 1, "name": "s", "model": "m"}

numbers = st.floats(allow_nan=True, allow_infinity=True)
leaves = st.none() | st.booleans() | st.integers() | numbers | st.text(max_size=8)
trees = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)
payloads = st.dictionaries(
    st.text(min_size=1, max_size=6).filter(lambda key: key not in ("kind", "time", "nonfinite")),
    trees,
    max_size=4,
)


def write(path: Path, *events: dict) -> bytes:
    log = EventLog(path)
    for event in events:
        log.append(event)
    log.close()
    return path.read_bytes()


def same(a: object, b: object) -> bool:
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)  # NaN equals NaN


@given(events=st.lists(payloads, max_size=3))
@settings(deadline=None, max_examples=60)
def test_what_was_appended_is_read_back(tmp_path_factory, events: list[dict]) -> None:
    path = tmp_path_factory.mktemp("log") / "events.jsonl"
    written = [CREATED, *({"kind": "note", **event} for event in events)]
    data = write(path, *written)

    found = read(path)

    assert same([{k: v for k, v in e.items() if k != "time"} for e in found], written)
    for line in data.splitlines():
        json.loads(line, parse_constant=pytest.fail)  # strict: neither NaN nor Infinity


@given(payload=payloads, data=st.data())
@settings(deadline=None, max_examples=60)
def test_a_line_torn_at_any_byte_is_cut_off_and_kept_aside(tmp_path_factory, payload, data):
    path = tmp_path_factory.mktemp("log") / "events.jsonl"
    whole = write(path, CREATED, {"kind": "note", "n": 1}, {"kind": "note", "n": 2, **payload})
    last = whole.rindex(b"\n", 0, -1) + 1
    cut = data.draw(st.integers(last, len(whole)))
    path.write_bytes(whole[:cut])
    complete = cut >= len(whole) - 1

    assert len(read(path)) == 2 + complete  # a reader meanwhile leaves the torn line out
    log = EventLog(path)
    log.append({"kind": "note", "n": 3})
    log.close()

    assert log.repaired_bytes == (0 if complete else cut - last)
    kinds = [event.get("n") for event in read(path)]
    assert kinds == ([None, 1, payload.get("n", 2), 3] if complete else [None, 1, 3])
    aside = path.with_name("events.jsonl.torn")
    if not complete and cut > last:
        assert aside.read_bytes() == whole[last:cut] + b"\n"
    else:
        assert not aside.exists()


def test_a_first_line_torn_leaves_an_empty_log(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"kind": "study_cre')
    log = EventLog(path)
    assert (log.events, log.repaired_bytes) == ([], 19)
    log.close()


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "events.jsonl"
    whole = write(path, CREATED, {"kind": "note"}, {"kind": "note"})
    first, second, third = whole.splitlines(keepends=True)
    path.write_bytes(first + second[:9] + b"\n" + third)
    with pytest.raises(StoreError, match=r"events\.jsonl:2: .*not an event"):
        read(path)
    with pytest.raises(StoreError, match=r"events\.jsonl:2: .*not an event"):
        EventLog(path)
    assert path.read_bytes() == first + second[:9] + b"\n" + third


def test_a_newer_format_is_refused(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text(json.dumps({**CREATED, "format_version": 2}) + "\n")
    for opened in (read, EventLog):
        with pytest.raises(StoreError, match="format_version 2, this program reads up to 1"):
            opened(path)


def test_not_finite_numbers_are_null_with_a_note(tmp_path):
    path = tmp_path / "events.jsonl"
    event = {"kind": "epoch", "metrics": {"val/epe": math.nan, "lr": [1.0, -math.inf]}}
    line = write(path, CREATED, event).splitlines()[1]
    stored = json.loads(line)
    assert stored["metrics"] == {"val/epe": None, "lr": [1.0, None]}
    assert stored["nonfinite"] == [
        {"at": ["metrics", "val/epe"], "was": "nan"},
        {"at": ["metrics", "lr", 1], "was": "-inf"},
    ]
    assert math.isnan(read(path)[1]["metrics"]["val/epe"])


@pytest.mark.parametrize("room", [0, 1, 40])
def test_a_full_disk_in_the_middle_of_an_event_leaves_the_log_as_it_was(tmp_path, room):
    """The limit on a file's size makes the kernel write a part of the line, as a full disk does."""
    path = tmp_path / "events.jsonl"
    before = write(path, CREATED)
    log = EventLog(path)
    old_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    old_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + room, old_limit[1]))
    try:
        with pytest.raises(StoreError, match=r"events\.jsonl: "):
            log.append({"kind": "note", "text": "x" * 100})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old_limit)
        signal.signal(signal.SIGXFSZ, old_handler)

    assert path.read_bytes() == before
    log.append({"kind": "note", "text": "after"})
    log.close()
    assert [event["kind"] for event in read(path)] == ["study_created", "note"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the Linux device /dev/full")
def test_a_full_disk_says_so():
    with pytest.raises(OSError, match="space") as caught:
        os.write(os.open("/dev/full", os.O_WRONLY), b"x")
    message = str(write_error(Path("events.jsonl"), caught.value))
    assert "disk is full" in message
    assert "resume" in message
