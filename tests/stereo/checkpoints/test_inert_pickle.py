"""Pickles as data: plain values as Python reads them, everything else as records."""

from __future__ import annotations

import argparse
import io
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from stereo.checkpoints import archive
from stereo.checkpoints.inert_pickle import (
    Global,
    InertPickleError,
    InertUnpickler,
    Record,
    is_module,
    module_state,
)

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
)
KEYS = st.text(max_size=8) | st.integers(-(2**60), 2**60) | st.booleans() | st.none()
PLAIN = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=20,
)


def read(pickled: bytes) -> Any:
    return InertUnpickler(lambda pid: pid, {}).load(io.BytesIO(pickled))


@given(value=PLAIN, protocol=st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_values_are_read_as_python_reads_them(value: Any, protocol: int) -> None:
    assert read(pickle.dumps(value, protocol)) == value


@given(value=st.binary() | st.sets(KEYS) | st.frozensets(KEYS))
def test_bytes_and_sets_are_read_from_protocol_4_on(value: Any) -> None:
    assert read(pickle.dumps(value, 4)) == value


def test_a_value_that_is_used_twice_stays_one() -> None:
    inner = [1]
    found = read(pickle.dumps([inner, inner]))
    assert found[0] is found[1]


class Holder:
    def __init__(self, value: int) -> None:
        self.value = value


class Slots:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 3


class Row(list):
    pass


class Text(dict):
    pass


class Keywords:
    def __new__(cls, *args: Any, **keywords: Any) -> Keywords:
        return super().__new__(cls)

    def __getnewargs_ex__(self) -> tuple[tuple[int, ...], dict[str, int]]:
        return (1,), {"two": 2}


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_instances_become_records(protocol: int) -> None:
    holder, slots, row, text, keywords = read(
        pickle.dumps([Holder(7), Slots(), Row([1, 2]), Text(a=1), Keywords()], protocol)
    )
    assert holder.path == f"{__name__}.Holder"
    assert holder.state == {"value": 7}
    assert slots.state == (None, {"value": 3})
    assert row.items == [1, 2]
    assert text.entries == {"a": 1}
    assert isinstance(keywords, Record)


@pytest.mark.parametrize("protocol", [0, 1])
def test_instances_of_old_protocols_become_records(protocol: int) -> None:
    found = read(pickle.dumps(Holder(7), protocol))
    assert found.state == {"value": 7}
    assert found.args[0] == Global(__name__, "Holder")


def test_opcodes_that_only_old_programs_write_become_records() -> None:
    assert read(b"(I1\nios\nsystem\n.").path == "os.system"
    assert read(b"(cos\nsystem\nI1\no.").args == [1]


def test_a_file_of_one_class_is_told_by_its_name(tmp_path: Path) -> None:
    torch.save(argparse.Namespace(a=1), tmp_path / "a.pth")
    assert archive.read(tmp_path / "a.pth").path == "argparse.Namespace"


@pytest.mark.parametrize(
    "pickled",
    [b"", b".", b"(.", b"}K\x01s.", b"}(K\x01u.", b"]K\x01a", b"h\x05.", b"K\x01K\x02a.", b"\x85."],
)
def test_damaged_pickles_are_refused(pickled: bytes) -> None:
    with pytest.raises(InertPickleError):
        read(b"\x80\x04" + pickled)


class Network(nn.Module):
    """Everything that decides what a state dict holds."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Identity())
        self.head = nn.Linear(4, 2, bias=False)
        self.same = self.head
        self.register_buffer("kept", torch.arange(5, dtype=torch.int8))
        self.register_buffer("left_out", torch.ones(3), persistent=False)
        self.register_buffer("nothing", None)
        self.register_parameter("absent", None)
        self.scale = nn.Parameter(torch.tensor(2.0))


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("is_archive", [True, False])
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_a_pickled_module_gives_its_state_dict(
    tmp_path: Path, protocol: int, is_archive: bool
) -> None:
    network = Network()
    path = tmp_path / "network.pth"
    torch.save(network, path, pickle_protocol=protocol, _use_new_zipfile_serialization=is_archive)

    found = module_state(archive.read(path))

    assert list(found) == list(network.state_dict())
    for name, tensor in network.state_dict().items():
        assert torch.equal(found[name], tensor), name
        assert found[name].dtype == tensor.dtype


def test_only_a_record_with_parameters_and_modules_is_a_module() -> None:
    record = Record(Global("a", "b"), ())
    assert not is_module(record)
    record.state = {"_parameters": {}, "_modules": OrderedDict()}
    assert not is_module(record), "a subclass of dict is nothing this program makes"
    record.state = {"_parameters": {}, "_modules": {}}
    assert is_module(record)
    assert not is_module({"_parameters": {}, "_modules": {}})
