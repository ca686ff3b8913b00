"""Damaged files through the class readers: refused with a `DataError`, or read right.

Every example damages one file of a sample: its image (PNG, JPEG), ground truth (PFM, PNG of every
code, NPY) or mask. Damage in the head is made believable: a changed number of a PNG head gets a
right checksum again.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stereo.data.annotations import Row
from stereo.data.datasets import DATASETS, Format, MonoSample, StereoSample
from stereo.data.encodings import write_png
from stereo.errors import DataError

EXAMPLES = 1000
HEIGHT, WIDTH = 9, 12
KINDS = ("cut", "flip", "number", "insert", "remove", "type")


@dataclass(frozen=True)
class Subject:
    """A class, one of its files as it is when whole, and the samples of the other files."""

    form: Format
    row: Row
    role: str  # attribute of the row: the file that gets damaged
    content: bytes
    head: int  # bytes before the values

    @property
    def path(self) -> Path:
        return getattr(self.row, self.role)


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> list[Subject]:
    """Ground truth of every class and suffix, images as PNG and JPEG, and a mask."""
    folder = tmp_path_factory.mktemp("whole")
    rng = np.random.default_rng(3)
    for name in ("left", "right"):
        image = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        write_png(folder / f"{name}.png", image)
        (folder / f"{name}.jpg").write_bytes(cv2.imencode(".jpg", image)[1].tobytes())
    write_png(folder / "mask.png", rng.choice(np.uint8([0, 128, 255]), (HEIGHT, WIDTH)))
    found: list[Subject] = []
    for family, formats in DATASETS.items():
        for form in formats.values():
            for suffix, encoding in form.truth.items():
                top = min(getattr(encoding, "largest", 60.0), 60.0)
                truth = folder / f"{family}_{form.name}{suffix}"
                encoding.write(truth, rng.uniform(1, top, (HEIGHT, WIDTH)).astype(np.float32))
                right = folder / "right.jpg" if family == "stereo" else None
                row = Row(folder / "left.jpg", right, truth, None, folder / "a.txt", 1)
                found.append(subject(form, row, "disparity"))
    generic = next(item for item in found if item.form.name == "GenericDataset")
    masked = replace(generic.row, occlusion=folder / "mask.png", left=folder / "left.png")
    found += [subject(generic.form, masked, role) for role in ("left", "right", "occlusion")]
    assert {item.path.suffix for item in found} == {".jpg", ".npy", ".pfm", ".png"}
    return found


def subject(form: Format, row: Row, role: str) -> Subject:
    path = getattr(row, role)
    content = path.read_bytes()
    ends = {".png": b"IDAT", ".npy": b"\n", ".jpg": b"\xff\xda"}
    head = (
        content.index(b"-1.0\n") + 5 if path.suffix == ".pfm" else content.index(ends[path.suffix])
    )
    return Subject(form, row, role, content, head)


@dataclass(frozen=True)
class Damage:
    """What was done, and the first byte that differs."""

    kind: str
    content: bytes
    first: int


@st.composite
def damages(draw: st.DrawFn, whole: Subject, others: list[bytes]) -> Damage:
    content = whole.content
    kind = draw(st.sampled_from(KINDS))
    if kind == "type":
        return Damage(kind, draw(st.sampled_from([*others, b"", b"\x80\x04K\x01."])), 0)
    if kind == "number":
        position, changed = draw(head_numbers(whole))
        return Damage(kind, changed, position)
    position = draw(st.integers(whole.head, len(content) - 1) | st.integers(0, len(content) - 1))
    before, rest = content[:position], content[position:]
    if kind == "cut":
        return Damage(kind, before, position)
    if kind == "insert":
        return Damage(kind, before + draw(st.binary(min_size=1, max_size=9)) + rest, position)
    if kind == "remove":
        return Damage(kind, before + rest[draw(st.integers(1, 9)) :], position)
    count = draw(st.integers(1, min(4, len(rest))))
    mask = draw(st.binary(min_size=count, max_size=count).filter(any))
    flipped = bytes(a ^ b for a, b in zip(rest, mask, strict=False))
    return Damage(kind, before + flipped + rest[count:], position)


@st.composite
def head_numbers(draw: st.DrawFn, whole: Subject) -> tuple[int, bytes]:
    """Another number in the head of the file, consistent otherwise."""
    content, number = whole.content, st.sampled_from([0, 1, 2, 8, 9, 12, 16, 100, 2**16, 2**31 - 1])
    if whole.path.suffix == ".png":
        field, layout = draw(st.sampled_from([(16, ">I"), (20, ">I"), (24, "B"), (25, "B")]))
        value = draw(number) % 256 ** struct.calcsize(layout)
        head = bytearray(content[12:29])
        struct.pack_into(layout, head, field - 12, value)
        checksum = struct.pack(">I", zlib.crc32(head))
        return field, content[:12] + bytes(head) + checksum + content[33:]
    if whole.path.suffix == ".jpg":
        frame = content.index(b"\xff\xc0")
        field = frame + draw(st.sampled_from([2, 5, 7]))  # length, height, width
        value = struct.pack(">H", draw(number) % 2**16)
        return field, content[:field] + value + content[field + 2 :]
    digits = list(re.finditer(rb"[0-9]+", content[: whole.head]))
    chosen = draw(st.sampled_from(digits))
    text = b"%d" % draw(number)
    return chosen.start(), content[: chosen.start()] + text + content[chosen.end() :]


def test_damaged_files_are_refused_or_read_right(tmp_path: Path, subjects: list[Subject]) -> None:
    seen: Counter[str] = Counter()
    contents = [whole.content for whole in subjects]
    suffixes = sorted({whole.path.suffix for whole in subjects})

    @settings(deadline=None, max_examples=EXAMPLES, derandomize=True, database=None)
    @given(data=st.data())
    def damage_one(data: st.DataObject) -> None:
        suffix = data.draw(st.sampled_from(suffixes))
        whole = data.draw(
            st.sampled_from([item for item in subjects if item.path.suffix == suffix])
        )
        damage = data.draw(damages(whole, contents))
        path = tmp_path / whole.path.name
        path.write_bytes(damage.content)
        seen.update(["all", damage.kind, path.suffix])
        seen["behind the head"] += damage.first >= whole.head
        try:
            sample = whole.form.read(replace(whole.row, **{whole.role: path}))
        except DataError as error:
            assert str(path) in str(error)  # noqa: PT017
            seen["refused"] += 1
            return
        require_right(sample)
        if path.suffix == ".png" and damage.kind not in {"type", "number"}:
            require_equal(sample, whole.form.read(whole.row))  # its checksums leave no choice

    damage_one()

    assert seen["all"] >= 500
    assert seen["behind the head"] >= 0.3 * seen["all"]
    assert 0 < seen["refused"] < seen["all"]
    assert min(seen[kind] for kind in (*KINDS, *suffixes)) >= 50, seen


def arrays(sample: StereoSample | MonoSample) -> tuple[list[np.ndarray], np.ndarray]:
    """Images and ground truth."""
    if isinstance(sample, StereoSample):
        return [sample.left, sample.right], sample.disparity
    return [sample.image], sample.target


def require_right(sample: StereoSample | MonoSample) -> None:
    images, truth = arrays(sample)
    for image in images:
        assert (image.dtype, image.shape) == (np.uint8, (HEIGHT, WIDTH, 3))
    assert (truth.dtype, truth.shape) == (np.float32, (HEIGHT, WIDTH))
    assert (truth > 0).all()  # and hence no NaN


def require_equal(sample: StereoSample | MonoSample, whole: StereoSample | MonoSample) -> None:
    for found, expected in zip(arrays(sample)[0], arrays(whole)[0], strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(arrays(sample)[1], arrays(whole)[1])


def test_the_whole_files_are_read(subjects: list[Subject]) -> None:
    for whole in subjects:
        require_right(whole.form.read(whole.row))
