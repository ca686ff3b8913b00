"""Annotation files: one sample per line, with columns by the family of its class.

| columns | stereo | mono |
|---|---|---|
| 1 | | image |
| 2 | left right | image ground_truth |
| 3 | left right disparity | image (ignored) ground_truth |
| 4 | left right disparity mask | image (ignored) ground_truth mask |

UTF-8; fields are separated by spaces or tabs, a field in double quotes may hold white space (`""`
is a quote), `#` starts a comment line, blank lines are skipped. Relative paths start at the
annotation file's folder, also when that is remote; `~` is the home directory; a field may be an
address (see `stereo.data.remote`). All faults of a file are collected and raised together as
`file:line: reason`.
"""

from __future__ import annotations

import gc
import os
import re
import stat
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, cast

from stereo.data import remote
from stereo.data.datasets import Family, Format, find_format
from stereo.data.encodings import IMAGE_SUFFIXES
from stereo.data.remote import Location, RemoteFile, folder_of, is_remote, join, suffix_of
from stereo.errors import DataError

_SHOWN_FAULTS = 20
_COLUMNS: dict[Family, tuple[int, ...]] = {"stereo": (2, 3, 4), "mono": (1, 2, 3, 4)}
_FIELD = re.compile(r'[ \t]*(?:"((?:[^"]|"")*)"(?=[ \t]|$)|([^" \t][^ \t]*))')
# A folder is listed once it was asked for so many files; below that, asking for each is cheaper.
_LISTED_FROM = 32

# Left, right, disparity and occlusion of a line; no fields at all when the line is faulty.
_Paths: TypeAlias = tuple[str | None, ...]
_Found: TypeAlias = tuple[Location, Location | None, Location | None, Location | None]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of an annotation file with its paths resolved; every file exists.

    Attributes:
        left: left image; the image of a mono class.
        right: right image, None for a mono class.
        disparity: ground truth, None when the line has none.
        occlusion: mask file (255 = visible in both views), None without a fourth column.
        source: the annotation file.
        line: its line number, 1-based.
    """

    left: Location
    right: Location | None
    disparity: Location | None
    occlusion: Location | None
    source: Location
    line: int

    @property
    def where(self) -> str:
        """`annotation.txt:line`, the start of every message about this row."""
        return f"{self.source}:{self.line}"


def read_rows(
    file: str | Path, *, dataset: str, family: Family = "stereo", inference: bool = False
) -> list[Row]:
    """All rows of an annotation file.

    Args:
        file: path or address of the annotation file.
        dataset: class name, in any case; it decides the columns and file types.
        family: whose class that is.
        inference: accept every column count of the family, also mixed.

    Raises:
        DataError: with exit code 2, listing every fault as `file:line: reason`.
    """
    rows, faults = parse(file, find_format(dataset, family), inference=inference)
    raise_faults(faults)
    return rows


def parse(file: str | Path, form: Format, *, inference: bool) -> tuple[list[Row], list[str]]:
    """Rows and faults (`file:line: reason`) of an annotation file."""
    try:
        source, text = _read(file)
    except DataError as error:
        return [], [str(error)]
    with _collector_paused():
        return _parse(source, text, form, inference=inference)


def raise_faults(faults: Sequence[str]) -> None:
    """Raise one `DataError` (exit code 2) with the first 20 faults and their total, if any."""
    if not faults:
        return
    shown = list(faults[:_SHOWN_FAULTS])
    if len(faults) > _SHOWN_FAULTS:
        shown.append(f"... {len(faults)} faults in total, the first {_SHOWN_FAULTS} shown")
    raise DataError("\n".join(shown), exit_code=2)


def _parse(
    source: Location, text: str, form: Format, *, inference: bool
) -> tuple[list[Row], list[str]]:
    files = _Files(source, form)
    lines = _lines(text, form, inference=inference)
    if isinstance(source, RemoteFile) or "://" in text:
        lines = list(lines)
        files.list_remote(path for _, paths, _ in lines for path in paths if path is not None)
    suffixes = (IMAGE_SUFFIXES, IMAGE_SUFFIXES, frozenset(form.truth), IMAGE_SUFFIXES)
    rows: list[Row] = []
    faults: list[str] = []
    for number, paths, reason in lines:
        answers = [
            files.find(path, allowed) for path, allowed in zip(paths, suffixes, strict=False)
        ]
        reasons = [answer for answer in answers if isinstance(answer, str)] if answers else [reason]
        if reasons:
            faults += [f"{source}:{number}: {reason}" for reason in reasons if reason]
        else:
            rows.append(Row(*cast("_Found", answers), source, number))
    if not rows and not faults:
        columns = "left right disparity" if form.family == "stereo" else "image ground_truth"
        faults.append(f"{source}: no samples; write one '{columns}' line per sample")
    return rows, faults if inference else faults + _missing_truth(rows, form.family)


@contextmanager
def _collector_paused() -> Generator[None]:
    """Keep Python from looking for garbage among rows that all stay: a quarter of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _read(file: str | Path) -> tuple[Location, str]:
    """Where an annotation file is, and its text."""
    if isinstance(file, str) and is_remote(file):
        source = remote.find(file)
        content = source.open().read()
    else:
        try:
            source = _expanded(file)
            if not stat.S_ISREG(source.stat().st_mode):  # reading a pipe might never end
                raise DataError(f"{file}: cannot read the annotation file (not a regular file)")
            content = source.read_bytes()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"{file}: cannot read the annotation file ({reason})") from error
    try:
        return source, content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: not UTF-8 text (byte {error.start})") from error


def _lines(text: str, form: Format, *, inference: bool) -> Iterator[tuple[int, _Paths, str]]:
    """Number and paths of every line that is meant as a sample, or the reason why it is none."""
    columns = _COLUMNS[form.family] if inference else form.columns
    for number, line in enumerate(text.split("\n"), start=1):
        stripped = line.strip(" \t\r")
        if not stripped or stripped.startswith("#"):
            continue
        fields = _split(stripped)
        if fields is None:
            yield number, (), "unterminated quote, or text right behind a closing quote"
        elif len(fields) not in columns:
            allowed = " or ".join(str(count) for count in columns)
            yield number, (), f"{len(fields)} column(s), {form.name} takes {allowed}"
        else:
            yield number, _paths(fields, form.family), ""


def _split(text: str) -> list[str] | None:
    """The fields of a stripped line; None when the quoting is wrong."""
    if '"' not in text:
        return [field for field in text.replace("\t", " ").split(" ") if field]
    fields: list[str] = []
    position = 0
    while position < len(text):
        match = _FIELD.match(text, position)
        if match is None:
            return None
        quoted, plain = match.groups()
        fields.append(plain if quoted is None else quoted.replace('""', '"'))
        position = match.end()
    return fields


def _paths(fields: list[str], family: Family) -> _Paths:
    """Left, right, disparity and occlusion of a line, of which a line may lack the last ones."""
    if family == "mono":
        image, *others = fields
        truth = others[1:] if len(others) > 1 else others  # a stereo line has the right in between
        return (image, None, *truth, None, None)[:4]
    return (*fields, None, None)[:4]


def _missing_truth(rows: Sequence[Row], family: Family) -> list[str]:
    """A fault when lines have no ground truth; the first one is named."""
    without = [row for row in rows if row.disparity is None]
    if not without:
        return []
    remedy = f"add it as {'third' if family == 'stereo' else 'second'} column"
    if len(without) < len(rows):
        remedy = "but other lines of the file have it"
    return [f"{without[0].where}: no ground truth, {remedy}"]


class _Files:
    """The files that the fields of one annotation file mean."""

    def __init__(self, source: Location, form: Format) -> None:
        self._form = form
        self._remote_base = folder_of(source.uri) if isinstance(source, RemoteFile) else ""
        self._base = Path() if isinstance(source, RemoteFile) else source.parent
        self._folders: dict[str, _Folder] = {}
        self._remote: dict[str, RemoteFile | str] = {}

    def list_remote(self, fields: Iterable[str]) -> None:
        """Look up the remote ones of all fields together; `find` then knows them."""
        self._remote = remote.find_all(filter(is_remote, map(self._address, fields)))

    def find(self, field: str | None, suffixes: frozenset[str]) -> Location | str | None:
        """The file that a field means, or the reason why it cannot be used; None for None."""
        if field is None:
            return None
        suffix = suffix_of(field)
        if suffix.lower() not in suffixes:
            known = ", ".join(sorted(suffixes))
            reads = f"is not one {self._form.name} reads ({known})"
            return f"{self._address(field)}: extension '{suffix}' {reads}"
        if self._remote and is_remote(address := self._address(field)):
            return self._remote[address]
        folder, name = self._split(field)
        path = folder.path / name
        if folder.has(name):
            return path
        return f"{path}: {'is a folder, not a file' if _is_folder(path) else 'no such file'}"

    def _address(self, field: str) -> str:
        """Path or address that a field means."""
        if is_remote(field):
            return field
        if self._remote_base and not field.startswith(("/", "~")):
            return join(self._remote_base, field)
        folder, name = self._split(field)
        return str(folder.path / name)

    def _split(self, field: str) -> tuple[_Folder, str]:
        """The local folder that a field means, and the name in it."""
        head, slash, name = field.rpartition("/")
        head += slash
        folder = self._folders.get(head)
        if folder is None:
            folder = self._folders[head] = _Folder(self._base / _expanded(head))
        return folder, name


class _Folder:
    """A local folder and which of its names are files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._text = f"{path}/"
        self._asked = 0
        self._listed: set[str] = set()

    def has(self, name: str) -> bool:
        """Whether a name is a file or a link to one."""
        self._asked += 1
        if self._asked == _LISTED_FROM:
            self._listed = _files_in(self._text)
        if name in self._listed:
            return True
        # Not listed yet, or a link, or another spelling that the file system takes for the same.
        return os.path.isfile(self._text + name)  # noqa: PTH113  takes any text, Path.is_file not


def _files_in(folder: str) -> set[str]:
    """Names of the files of a folder, without links; none if it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
    except (OSError, ValueError):
        return set()


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that is too long
        return False


def _expanded(path: str | Path) -> Path:
    """The path with `~` at its start replaced where that means a home directory."""
    if not str(path).startswith("~"):
        return Path(path)  # `Path.expanduser` would take `./~` for the home directory too
    try:
        return Path(path).expanduser()
    except (RuntimeError, ValueError):  # no such user, a NUL in its name
        return Path(path)
