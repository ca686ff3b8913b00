"""Annotation files as they should not be: right rows or faults with their place, nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from stereo.data.annotations import Row, parse, read_rows
from stereo.data.datasets import DATASETS, Family, Format
from stereo.errors import DataError

NAMES = ("l.png", "r.jpg", "d.pfm", "m.png", "d.npy", "d.png", "a b.png", "é.png", "sub/x.png")
TRAPS = (
    "gone.png",
    "folder.png",
    "loop.png",
    "dangling.png",
    "pipe.png",
    "link.png",
    "no/x.png",
    "a\0/x.png",
)
NO_LISTS = ("gone.txt", "folder.png", "loop.png", "pipe.png", "a\0b", "x" * 5000, "~nobody_here/a")
FORMS = [(family, form) for family, forms in DATASETS.items() for form in forms.values()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real files, and what looks like one."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "sub").mkdir()
    (folder / "folder.png").mkdir()
    for name in NAMES:
        (folder / name).touch()
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "dangling.png").symlink_to("nowhere")
    (folder / "link.png").symlink_to("l.png")
    os.mkfifo(folder / "pipe.png")
    return folder


def field() -> st.SearchStrategy[str]:
    """A field of a line: mostly a file, in some spelling, or a trap, or anything."""
    plain = st.sampled_from(NAMES + TRAPS)
    spelling = st.sampled_from(
        ["{}", "./{}", "sub/../{}", ".//{}", "~/{}", "~nobody_here/{}", "\0{}"]
    )
    anything = st.one_of(
        st.text(max_size=12),
        st.sampled_from(["", ".", "..", "/", "~", "x" * 5000 + ".png", "warp://b/x.png", "://"]),
    )
    spelled = st.builds(str.format, spelling, plain)
    return st.one_of(plain, plain, plain, spelled, anything)


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def line() -> st.SearchStrategy[str]:
    """Any number of fields, a comment or nothing."""
    written = st.one_of(field(), field().map(quoted), st.sampled_from(['"', '"l.png"x', '""']))
    joined = st.builds(
        str.join, st.sampled_from([" ", "\t", "  \t "]), st.lists(written, max_size=6)
    )
    comment = st.builds("#{}".format, st.text(max_size=20))
    return st.one_of(joined, joined, comment, st.sampled_from(["", " \t ", "\ufeff"]))


def sound_line(family: Family, form: Format, columns: int) -> str:
    truth = f"d{sorted(form.truth)[0]}"
    if family == "mono" and columns == 2:
        return f"l.png {truth}"
    return "\t".join(["l.png", "r.jpg", truth, "m.png"][:columns])


@st.composite
def damaged(draw: st.DrawFn) -> tuple[bytes, tuple[Family, Format]]:
    """A file for a class: sound lines among others, any line ends, some files in another code."""
    family, form = draw(st.sampled_from(FORMS))
    sound = st.just(sound_line(family, form, draw(st.sampled_from(form.columns))))
    others = draw(st.booleans())
    lines = draw(st.lists(st.one_of(sound, sound, line()) if others else sound, max_size=8))
    start = draw(st.sampled_from(["", "", "\ufeff", "\ufeff\ufeff"]))
    end = draw(st.sampled_from(["\n", "\n", "\r\n", "\n\n", "\r"]))
    code = draw(st.sampled_from(["utf-8"] * 8 + ["utf-16"]))
    content = (start + end.join(lines)).encode(code, "surrogatepass")
    noise = draw(st.sampled_from([b""] * 8 + [b"\xff", b"\0", b'"']))
    place = draw(st.integers(0, len(content)))
    return content[:place] + noise + content[place:], (family, form)


def check_row(row: Row, source: Path, family: Family, form: Format, content: bytes) -> None:
    """The row says what its line says, by another reading of the line."""
    text = content.decode("utf-8-sig").split("\n")[row.line - 1]
    paths = [path for path in (row.left, row.right, row.disparity, row.occlusion) if path]
    assert row.source == source
    assert all(path.is_file() for path in paths)
    assert (row.right is None) == (family == "mono")
    assert row.disparity is None or row.disparity.suffix.lower() in form.truth
    if '"' not in text:
        fields = text.strip(" \t\r").replace("\t", " ").split()
        kept = fields[:1] + fields[2:] if family == "mono" and len(fields) > 2 else fields
        assert [path.name for path in paths] == [Path(field).name for field in kept]


BYTES = st.tuples(st.binary(max_size=200), st.sampled_from(FORMS))


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(file=st.one_of(*[damaged()] * 9, BYTES), inference=st.booleans())
@example(file=(b"", FORMS[0]), inference=True)
@example(file=(b"l.png r.jpg d.pfm\n" * 100, FORMS[0]), inference=False)
@example(file=(b"l.png\n" * 10**4, FORMS[0]), inference=False)
@example(file=(b"x" * 10**6, FORMS[0]), inference=False)
@example(file=(b'"' * 10**5, FORMS[0]), inference=False)
def test_a_damaged_file_gives_right_rows_or_faults_with_their_place(
    folder: Path, file: tuple[bytes, tuple[Family, Format]], inference: bool
) -> None:
    content, (family, form) = file
    source = folder / "list.txt"
    source.write_bytes(content)

    rows, faults = parse(source, form, inference=inference)

    assert rows or faults
    assert all(fault.startswith(f"{source}:") for fault in faults)
    for row in rows:
        check_row(row, source, family, form, content)
    if faults:
        with pytest.raises(DataError) as caught:
            read_rows(source, dataset=form.name, family=family, inference=inference)
        assert str(source) in str(caught.value)
    else:
        found = read_rows(source, dataset=form.name, family=family, inference=inference)
        assert found == rows


@pytest.mark.parametrize("trap", TRAPS)
def test_what_only_looks_like_a_file_is_refused(folder: Path, trap: str) -> None:
    source = folder / "list.txt"
    source.write_text(f"l.png {trap} d.pfm\n" * 40)  # also when the folder has been listed
    form = DATASETS["stereo"]["GenericDataset"]

    rows, faults = parse(source, form, inference=False)

    assert len(rows) == (40 if trap == "link.png" else 0)
    reason = "is a folder, not a file" if trap == "folder.png" else "no such file"
    lines = range(1, 41 - len(rows))
    assert faults == [f"{source}:{line}: {folder / trap}: {reason}" for line in lines]


@pytest.mark.parametrize("trap", NO_LISTS)
def test_an_annotation_file_that_is_none_is_refused(folder: Path, trap: str) -> None:
    form = DATASETS["stereo"]["GenericDataset"]
    for file in (folder / trap, str(folder / trap), trap):
        rows, faults = parse(file, form, inference=False)

        assert rows == []
        assert len(faults) == 1
        assert faults[0].startswith(f"{file}: cannot read the annotation file (")
