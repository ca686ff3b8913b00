"""Weight files that no honest program writes, and a reader of files under limits.

As a program, `python hostile_files.py LIMIT_S LIMIT_MB FILE...` reads each file in a process of its
own that may use so much CPU time and so much memory above what an idle one has, and prints one
JSON line per file.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

ROOT = "archive"
PROTO = b"\x80\x02"
Make = Callable[[], bytes]


class Stored:
    """A storage, pickled as a persistent id."""

    def __init__(self, key: Any = "0", numel: Any = 4, kind: Any = torch.FloatStorage) -> None:
        self.pid = ("storage", kind, key, "cpu", numel)


class Called:
    """Pickled as the call of a function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


class FakeModule:
    """Pickled as a network would be."""

    def __init__(self, children: Mapping[str, Any], **tensors: Any) -> None:
        self._modules = dict(children)
        self._parameters = tensors
        self._buffers: dict[str, Any] = {}


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return obj.pid if isinstance(obj, Stored) else None


def program(value: Any, protocol: int = 2) -> bytes:
    stream = io.BytesIO()
    _Pickler(stream, protocol).dump(value)
    return stream.getvalue()


def tensor(
    size: tuple[int, ...] = (4,),
    stride: tuple[int, ...] = (1,),
    offset: int = 0,
    storage: Stored | None = None,
) -> Called:
    rebuild = torch._utils._rebuild_tensor_v2
    return Called(rebuild, storage or Stored(), offset, size, stride, False, OrderedDict())


def zipped(
    pickled: bytes,
    storages: Mapping[str, bytes] | None = None,
    *,
    others: Mapping[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> bytes:
    """A PyTorch archive with this pickle and by default one storage of 4 float32."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        archive.writestr(f"{ROOT}/data.pkl", pickled)
        archive.writestr(f"{ROOT}/version", b"3\n")
        for key, content in ({"0": bytes(16)} if storages is None else storages).items():
            archive.writestr(f"{ROOT}/data/{key}", content)
        for name, content in (others or {}).items():
            archive.writestr(name, content)
    return stream.getvalue()


def weights(**beside: Any) -> bytes:
    """Pickle of one honest tensor and something beside it."""
    return program({"model": {"a": tensor()}, **beside})


def held(value: Any) -> bytes:
    """Pickle in which `value` stands where a tensor is expected."""
    return program({"model": {"a": value}})


def legacy(value: Any, keys: list[str], storages: bytes) -> bytes:
    parts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, value, keys)
    return b"".join(map(program, parts)) + storages


def nested(push: bytes, wrap: bytes, depth: int) -> bytes:
    return PROTO + push + wrap * depth + b"."


def doubling(levels: int) -> bytes:
    """Opcodes that leave a tuple of two equal tuples of two equal tuples."""
    return b"N" + b"2\x86" * levels


def doubling_modules(levels: int) -> FakeModule:
    module = FakeModule({}, a=tensor())
    for _ in range(levels):
        module = FakeModule({"a": module, "b": module})
    return module


def cyclic_module() -> FakeModule:
    module = FakeModule({}, a=tensor())
    module._modules["again"] = module
    return module


def crowded_modules() -> FakeModule:
    """2,000 modules that share one dictionary of 1,000 names."""
    tensors = dict.fromkeys(map(str, range(1000)))
    parts = {str(index): FakeModule({}) for index in range(2000)}
    for part in parts.values():
        part._parameters = tensors
    return FakeModule(parts)


def many_names() -> bytes:
    """An archive whose directory alone would fill the memory."""
    entry = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", *[0] * 9, 1, *[0] * 4, 0, 0) + b"a"
    directory = entry * 400_000
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, len(directory), 4, 0)
    return b"PK\x03\x04" + directory + end


def overlapping() -> bytes:
    """100 entries that claim the same 1 MiB."""
    keys = [str(index) for index in range(100)]
    pickled = program([tensor((4,), (1,), 0, Stored(key)) for key in keys])
    content = zipped(pickled, {"0": bytes(2**20), **dict.fromkeys(keys[1:], b"")})
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        offset = archive.getinfo(f"{ROOT}/data/0").header_offset
    start = content.rindex(b"PK\x01\x02", 0, content.index(b"PK\x01\x02") + 100)
    head, directory = content[:start], bytearray(content[start:])
    at = 0
    while directory[at : at + 4] == b"PK\x01\x02":
        name, extra, note = struct.unpack_from("<3H", directory, at + 28)
        if b"/data/" in directory[at + 46 : at + 46 + name]:
            struct.pack_into("<2L", directory, at + 20, 2**20, 2**20)
            struct.pack_into("<L", directory, at + 42, offset)
        at += 46 + name + extra + note
    return head + bytes(directory)


def _numbers(count: int, step: int) -> bytes:
    """Opcodes of a dictionary with `count` keys, `step` apart."""
    items = b"".join(b"\x8a\x14" + (i * step).to_bytes(20, "little") + b"N" for i in range(count))
    return PROTO + b"}(" + items + b"u."


def _equal_texts(length: int, count: int) -> bytes:
    """Opcodes that set the same key `count` times, from two equal texts in turn."""
    text = b"X" + struct.pack("<L", length) + b"k" * length
    return PROTO + text + b"q\x00" + text + b"q\x01}" + b"h\x00Nsh\x01Ns" * count + b"."


def _claim(opcode: bytes, form: str, size: int) -> Make:
    return lambda: zipped(PROTO + b"}N" + opcode + struct.pack(form, size) + b"x.")


def _many_tensors() -> bytes:
    """Opcodes that repeat one tensor for 5 bytes each."""
    function = b"ctorch._utils\n_rebuild_tensor_v2\nq\x64"
    arguments = b"(" + program(Stored())[2:-1] + b"K\x00K\x04\x85K\x01\x85\x89Ntq\x65"
    return PROTO + function + arguments + b"R0" + b"hdheR0" * 100_001 + b"}."


BOMBS: dict[str, tuple[str, Make]] = {
    "10 TB in an archive": (
        "claims 10000000000000 bytes, the file holds 16",
        lambda: zipped(held(tensor(storage=Stored(numel=10**13 // 4)))),
    ),
    "10 TB view": (
        "shape (10000000000000,) claims more",
        lambda: zipped(held(tensor((10**13,), (0,)))),
    ),
    "10 TB in a legacy file": (
        "the file ends within a tensor",
        lambda: legacy(
            {"a": tensor(storage=Stored(numel=10**13 // 4))},
            ["0"],
            struct.pack("<q", 10**13 // 4),
        ),
    ),
    "more in a legacy view than in its storage": (
        "claims 32 bytes, the file holds 16",
        lambda: legacy(
            {"a": tensor(storage=Stored(numel=8))}, ["0"], struct.pack("<q", 4) + bytes(16)
        ),
    ),
    "legacy storage of negative size": (
        "the file ends within a tensor",
        lambda: legacy({"a": tensor()}, ["0"], struct.pack("<q", -4) + bytes(16)),
    ),
    "legacy storage that is not there": (
        "a storage that is not in the file",
        lambda: legacy({"a": tensor()}, [], b""),
    ),
    "legacy storage without an owner": (
        "damaged list of storages",
        lambda: legacy({"a": tensor()}, ["1"], struct.pack("<q", 4) + bytes(16)),
    ),
    "two sizes of one storage": (
        "claims 32 bytes, the file holds 16",
        lambda: zipped(held([tensor(), tensor(storage=Stored(numel=8))])),
    ),
    "negative storage": (
        "a storage of a negative or absurd size",
        lambda: zipped(held(tensor(storage=Stored(numel=-4)))),
    ),
    "absurd storage": (
        "a storage of a negative or absurd size",
        lambda: zipped(held(tensor(storage=Stored(numel=2**80)))),
    ),
    "offset beyond the storage": (
        "claims more than its 4 numbers",
        lambda: zipped(held(tensor(offset=1))),
    ),
    "negative offset": (
        "negative or absurd shape",
        lambda: zipped(held(tensor(offset=-1))),
    ),
    "stride beyond the storage": (
        "claims more than its 4 numbers",
        lambda: zipped(held(tensor((2, 2), (3, 1)))),
    ),
    "negative stride": (
        "negative or absurd shape",
        lambda: zipped(held(tensor((2,), (-1,), 3))),
    ),
    "absurd sides": (
        "negative or absurd shape",
        lambda: zipped(held(tensor((0, 2**62, 2**62), (1, 1, 1)))),
    ),
    "a thousand dimensions": (
        "does not fit its strides",
        lambda: zipped(held(tensor((1,) * 1000, (1,) * 1000))),
    ),
    "storage that is not there": (
        "a storage that is not in the file",
        lambda: zipped(held(tensor(storage=Stored("1")))),
    ),
    "storage outside the archive": (
        "a storage that is not in the file",
        lambda: zipped(held(tensor(storage=Stored("../../../etc/passwd")))),
    ),
    "storage of an unknown kind": (
        "a storage of an unknown kind",
        lambda: zipped(held(tensor(storage=Stored(kind=os.system)))),
    ),
    "persistent id of an unknown kind": (
        "a persistent id of an unknown kind",
        lambda: zipped(PROTO + b"}NK\x01Qs."),
    ),
    "tensor without a storage": (
        "a tensor without a storage",
        lambda: zipped(
            held(Called(torch._utils._rebuild_tensor_v2, None, 0, (1,), (1,), False, {}))
        ),
    ),
    "name that leaves the folder": (
        "an entry of the archive has the name",
        lambda: zipped(weights(), others={"../../evil": b""}),
    ),
    "name from the root": (
        "an entry of the archive has the name",
        lambda: zipped(weights(), others={"/evil": b""}),
    ),
    "name of Windows": (
        "an entry of the archive has the name",
        lambda: zipped(weights(), others={"..\\evil": b""}),
    ),
    "compressed storage": (
        "compressed or encrypted",
        lambda: zipped(weights(), {"0": bytes(2**24)}, compression=zipfile.ZIP_DEFLATED),
    ),
    "overlapping entries": ("claim more bytes than the file has", overlapping),
    "400,000 names": ("an index of more than", many_names),
    "two programs": (
        "exactly one data.pkl",
        lambda: zipped(weights(), others={"other/data.pkl": weights()}),
    ),
    "program of 65 MB": (
        "data.pkl has",
        lambda: zipped(PROTO + b"}B" + struct.pack("<L", 65 * 2**20) + bytes(65 * 2**20) + b"0."),
    ),
    "big-endian": (
        "big-endian",
        lambda: zipped(weights(), others={f"{ROOT}/byteorder": b"big"}),
    ),
    "memo at the largest index": (
        "remembered values",
        lambda: zipped(PROTO + b"}r" + b"\xff" * 4 + b"."),
    ),
    "bytes of a terabyte": ("damaged pickle", _claim(b"\x8e", "<Q", 2**40)),
    "text of a terabyte": ("damaged pickle", _claim(b"\x8d", "<Q", 2**40)),
    "frame of an exabyte": ("damaged pickle", _claim(b"\x95", "<Q", 2**60)),
    "integer of 2 GB": ("damaged pickle", _claim(b"\x8b", "<i", 2**31 - 1)),
    "integer of a million digits": (
        "damaged pickle",
        lambda: zipped(PROTO + b"}NI" + b"9" * 10**6 + b"\ns."),
    ),
    "4 million operations": (
        "pickle operations",
        lambda: zipped(PROTO + b"N0" * 2 * 10**6 + b"}."),
    ),
    "100,000 tensors and more": ("more than 100000 tensors", lambda: zipped(_many_tensors())),
    "modules that double 40 times": (
        "more than 100000 modules",
        lambda: zipped(program(doubling_modules(40))),
    ),
    "module inside itself": (
        "modules nested deeper than",
        lambda: zipped(program(cyclic_module())),
    ),
    "shared parts with many tensors": (
        "more than 100000 tensors",
        lambda: zipped(program(crowded_modules())),
    ),
    "parameter that is no tensor": (
        "a is no plain tensor but",
        lambda: zipped(program(FakeModule({}, a=Called(os.system, "")))),
    ),
    "tensor with a name of 2,000 letters": (
        "without a proper name",
        lambda: zipped(program(FakeModule({}, **{"a" * 2000: tensor()}))),
    ),
    "class with a name of 2,000 letters": (
        "without a proper name",
        lambda: zipped(PROTO + b"}Nca\n" + b"b" * 2000 + b"\ns."),
    ),
    "operation of a registry": (
        "operation EXT1 is not read",
        lambda: zipped(PROTO + b"}N\x82\x01s."),
    ),
    "stack that runs empty": ("damaged pickle", lambda: zipped(PROTO + b"00}.")),
    "doubled text as version": (
        "format_version that is no number",
        lambda: zipped(PROTO + b"}X\x0e\x00\x00\x00format_version" + doubling(40) + b"s."),
    ),
    "not PyTorch": (
        "not written by PyTorch",
        lambda: legacy({}, [], b"").replace(b"\x6c\xfc", b"\x6c\xfd"),
    ),
}
"""Files that must be refused: what the message says, and how to make one."""

HARMLESS: dict[str, Make] = {
    "keys that double 40 times": lambda: zipped(PROTO + b"}" + doubling(40) + b"Ns."),
    "members that double 40 times": lambda: zipped(PROTO + b"}N\x8f(" + doubling(40) + b"\x90s."),
    "lists in lists": lambda: zipped(PROTO + b"}N" + b"]" * 600_000 + b"a" * 599_999 + b"s."),
    "tuples in tuples": lambda: zipped(PROTO + b"}N" + nested(b"N", b"\x85", 10**6)[2:-1] + b"s."),
    "colliding keys": lambda: zipped(_numbers(60_000, 2**61 - 1)),
    "equal keys of 20 MB": lambda: zipped(_equal_texts(2 * 10**7, 20_000)),
}
"""Files that would cost a careless reader hours or its stack; ours reads them, to no tensors."""


def _read(path: Path) -> dict[str, Any]:
    from stereo.checkpoints import files, identify, load
    from stereo.errors import CheckpointError

    try:
        payload = files.read(path)
        state = load.network_state(payload)
        try:
            identify.identify(state, payload)
        except CheckpointError as error:
            return {"tensors": len(state), "unknown": str(error)}
    except CheckpointError as error:
        return {"refused": str(error)}
    return {"tensors": len(state)}


def _read_bounded(path: Path, seconds: int, megabytes: int) -> dict[str, Any]:
    """Read in a child process under limits."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        memory = pages * resource.getpagesize() + megabytes * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        try:
            outcome = _read(path)
        except BaseException as error:  # noqa: BLE001 - every other end is what we look for
            outcome = {"raised": repr(error)[:500]}
        os.write(sender, json.dumps(outcome).encode())
        os._exit(0)
    os.close(sender)
    _, status, usage = os.wait4(child, 0)
    with os.fdopen(receiver, "rb") as stream:
        text = stream.read()
    outcome = json.loads(text) if text else {"killed": os.waitstatus_to_exitcode(status)}
    return {**outcome, "seconds": usage.ru_utime + usage.ru_stime}


def main(seconds: str, megabytes: str, *paths: str) -> None:
    import stereo.checkpoints.load  # noqa: F401 - the children share what it loads

    torch.set_num_threads(1)
    for path in paths:
        outcome = _read_bounded(Path(path), int(seconds), int(megabytes))
        sys.stdout.write(json.dumps({"path": path, **outcome}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
