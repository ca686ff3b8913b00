from __future__ import annotations

import gc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stereo.data.annotations import parse, read_rows
from stereo.data.datasets import find_format
from stereo.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("l.png", "r.png", "d.pfm", "m.png", "d.npy", "l.exr", "a b.png", 'q"q.png'):
        (tmp_path / name).touch()
    return tmp_path


def annotate(folder: Path, text: str) -> Path:
    path = folder / "a.txt"
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize(
    "text",
    [
        "l.png r.png d.pfm m.png",
        "l.png\tr.png  \t d.pfm m.png\n",
        "\t\n\t# comment\n\tl.png r.png d.pfm m.png\t\n",
        "\ufeffl.png r.png d.pfm m.png\r\n\r\n   \n",
        '# comment\n  # another "one\n"l.png" "r.png" d.pfm m.png',
    ],
)
def test_a_line_gives_its_paths_and_place(folder: Path, text: str) -> None:
    (row,) = read_rows(annotate(folder, text), dataset="middlebury")

    names = [row.left, row.right, row.disparity, row.occlusion]
    assert names == [folder / "l.png", folder / "r.png", folder / "d.pfm", folder / "m.png"]
    assert row.where.startswith(f"{folder / 'a.txt'}:")


def test_quotes_hold_spaces_and_doubled_quotes(folder: Path) -> None:
    (row,) = read_rows(annotate(folder, '"a b.png" "q""q.png" d.pfm'), dataset="GenericDataset")

    assert (row.left.name, row.right.name) == ("a b.png", 'q"q.png')


def test_paths_may_be_absolute_or_start_at_home(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder))
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    path = annotate(elsewhere, f"~/l.png {folder}/r.png ~/d.pfm")

    (row,) = read_rows(path, dataset="GenericDataset")

    assert row.left == folder / "l.png"
    assert row.right == folder / "r.png"


@pytest.mark.parametrize(
    ("dataset", "line", "reason"),
    [
        ("Middlebury", "l.png r.png", r"a\.txt:2: 2 column\(s\), Middlebury takes 3 or 4"),
        ("GenericDataset", "l.png", r"a\.txt:2: 1 column\(s\), GenericDataset takes 2 or 3 or 4"),
        ("Middlebury", "l.png r.png d.pfm m.png m.png", r"a\.txt:2: 5 column"),
        ("Middlebury", 'l.png "r.png d.pfm', r"a\.txt:2: unterminated quote"),
        ("Middlebury", 'l.png "r.png"d.pfm', r"a\.txt:2: .*behind a closing quote"),
        ("Middlebury", "l.png r.png gone.pfm", r"a\.txt:2: .*gone\.pfm: no such file"),
        ("Middlebury", "l.png r.png m.jpg", r"a\.txt:2: .*extension '\.jpg'.*\.pfm, \.png"),
        ("Middlebury", "l.exr r.png d.pfm", r"a\.txt:2: .*extension '\.exr'"),
        ("Middlebury", "l.png r.png d.pfm d.pfm", r"a\.txt:2: .*extension '\.pfm'"),
        ("Middlebury", "l.png " + "x" * 300 + ".png d.pfm", r"a\.txt:2: .*x+\.png: no such file"),
        ("Middlebury", "l.png a\0b.png d.pfm", r"a\.txt:2: .*no such file"),
        ("Middlebury", "~nobody_here/l.png r.png d.pfm", r"a\.txt:2: .*l\.png: no such file"),
        ("Middlebury", "~\0/l.png r.png d.pfm", r"a\.txt:2: .*l\.png: no such file"),
        ("GenericDataset", "l.png r.png", r"a\.txt:2: no ground truth, but other lines"),
    ],
)
def test_a_faulty_line_is_named_with_file_line_and_reason(
    folder: Path, dataset: str, line: str, reason: str
) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        read_rows(annotate(folder, f"l.png r.png d.pfm\n{line}\n"), dataset=dataset)

    assert caught.value.exit_code == 2


def test_all_faults_are_collected_and_the_first_20_shown(folder: Path) -> None:
    path = annotate(folder, "\n".join(f"l.png r.png gone{i}.pfm" for i in range(33)))

    with pytest.raises(DataError) as caught:
        read_rows(path, dataset="Middlebury")

    lines = str(caught.value).splitlines()
    assert len(lines) == 21
    assert "gone19" in lines[19]
    assert "33 faults in total" in lines[20]


@pytest.mark.parametrize("text", ["", "# only a comment\n\n"])
def test_a_file_without_samples_is_refused(folder: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"a\.txt: no samples"):
        read_rows(annotate(folder, text), dataset="Middlebury")


def test_a_missing_or_binary_annotation_file_is_refused(folder: Path) -> None:
    (folder / "binary.txt").write_bytes(b"\x80\xff l.png")

    with pytest.raises(DataError, match=r"gone\.txt: cannot read"):
        read_rows(folder / "gone.txt", dataset="Middlebury")
    with pytest.raises(DataError, match=r"binary\.txt: not UTF-8"):
        read_rows(folder / "binary.txt", dataset="Middlebury")


def test_inference_takes_any_column_count_also_mixed(folder: Path) -> None:
    path = annotate(folder, "l.png r.png\nl.png r.png d.pfm\nl.png r.png d.pfm m.png")

    rows = read_rows(path, dataset="Middlebury", inference=True)

    assert [row.disparity is not None for row in rows] == [False, True, True]


def test_an_unknown_class_lists_the_valid_ones_and_the_nearest(folder: Path) -> None:
    with pytest.raises(DataError, match=r"'middelbury'.*Crestereo, Eth3d.*mean Middlebury\?"):
        read_rows(annotate(folder, "l.png r.png d.pfm"), dataset="middelbury")


@pytest.mark.parametrize(
    ("line", "disparity", "occlusion"),
    [
        ("l.png", None, None),
        ("l.png d.pfm", "d.pfm", None),
        ("l.png r.png d.pfm", "d.pfm", None),
        ("l.png gone.exr d.pfm", "d.pfm", None),  # the right image of a stereo line is ignored
        ("l.png r.png d.pfm m.png", "d.pfm", "m.png"),
    ],
)
def test_a_mono_line_names_image_truth_and_mask(
    folder: Path, line: str, disparity: str | None, occlusion: str | None
) -> None:
    path = annotate(folder, line)

    (row,) = read_rows(path, dataset="middlebury", family="mono", inference=disparity is None)

    assert (row.left, row.right) == (folder / "l.png", None)
    assert row.disparity == (folder / disparity if disparity else None)
    assert row.occlusion == (folder / occlusion if occlusion else None)


@pytest.mark.parametrize(
    ("dataset", "line", "reason"),
    [
        ("Middlebury", "l.png d.npy", r"a\.txt:2: .*d\.npy: extension '\.npy'.*\(\.pfm, \.png\)"),
        ("Crestereo", "l.png d.pfm", r"a\.txt:2: .*Crestereo reads \(\.png\)"),
        ("Middlebury", "l.png r.png gone.pfm", r"a\.txt:2: .*gone\.pfm: no such file"),
        ("Middlebury", "l.png r.png d.pfm gone.png", r"a\.txt:2: .*gone\.png: no such file"),
        ("Middlebury", "l.png r.png d.pfm m.png m.png", r"a\.txt:2: 5 .* takes 1 or 2 or 3 or 4"),
        ("Middlebury", "l.png", r"a\.txt:2: no ground truth, but other lines"),
    ],
)
def test_a_faulty_mono_line_is_named(folder: Path, dataset: str, line: str, reason: str) -> None:
    path = annotate(folder, f"l.png {'m.png' if dataset == 'Crestereo' else 'd.pfm'}\n{line}\n")

    with pytest.raises(DataError, match=reason):
        read_rows(path, dataset=dataset, family="mono")


def test_the_declared_class_decides_the_columns_and_not_the_extension(folder: Path) -> None:
    path = annotate(folder, "l.png m.png")

    (stereo,) = read_rows(path, dataset="GenericDataset", inference=True)
    (mono,) = read_rows(path, dataset="MetricMonoDataset", family="mono")

    assert (stereo.right, stereo.disparity) == (folder / "m.png", None)
    assert (mono.right, mono.disparity) == (None, folder / "m.png")


def test_mono_inference_takes_any_column_count_also_mixed(folder: Path) -> None:
    path = annotate(folder, "l.png\nl.png d.pfm\nl.png r.png d.pfm\nl.png r.png d.pfm m.png")

    rows = read_rows(path, dataset="NvCLIP", family="mono", inference=True)

    assert [row.disparity is not None for row in rows] == [False, True, True, True]


def test_stereo_inference_needs_two_images(folder: Path) -> None:
    with pytest.raises(DataError, match=r"a\.txt:1: 1 column\(s\), Kitti takes 2 or 3 or 4"):
        read_rows(annotate(folder, "l.png"), dataset="Kitti", inference=True)
    assert read_rows(annotate(folder, "l.png r.png"), dataset="Kitti", inference=True)


def test_an_empty_mono_file_names_the_mono_columns(folder: Path) -> None:
    with pytest.raises(DataError, match=r"a\.txt: no samples; write one 'image ground_truth'"):
        read_rows(annotate(folder, "\n"), dataset="NvCLIP", family="mono")


def test_every_fault_of_a_line_is_collected(folder: Path) -> None:
    _, faults = parse(
        annotate(folder, "gone.png l.exr gone.pfm"), find_format("Eth3d"), inference=False
    )

    assert [fault.split(": ")[2][:9] for fault in faults] == ["no such f", "extension", "no such f"]


def test_only_a_tilde_at_the_start_is_the_home_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/nowhere")
    (folder / "~").mkdir()
    (folder / "~" / "l.png").touch()

    (row,) = read_rows(annotate(folder, "./~/l.png r.png d.pfm"), dataset="Middlebury")

    assert row.left == folder / "~" / "l.png"


def test_the_annotation_file_may_lie_in_the_home_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder))
    annotate(folder, "l.png r.png d.pfm")

    (row,) = read_rows("~/a.txt", dataset="Middlebury")

    assert row.where == f"{folder / 'a.txt'}:1"


@pytest.mark.parametrize("count", [20, 200])
def test_files_of_small_and_large_folders_are_found_whatever_their_spelling(
    tmp_path: Path, count: int
) -> None:
    for index in range(count):
        (tmp_path / f"{index}.PNG").touch()
    (tmp_path / "link.png").symlink_to("0.PNG")
    lines = [f"{index}.PNG ./{index}.PNG" for index in range(count)]

    path = annotate(tmp_path, "\n".join([*lines, "link.png link.png"]))

    rows = read_rows(path, dataset="GenericDataset", inference=True)

    assert [row.right.name for row in rows if row.right] == [
        *(f"{index}.PNG" for index in range(count)),
        "link.png",
    ]


def test_the_garbage_collector_goes_on_afterwards(folder: Path) -> None:
    read_rows(annotate(folder, "l.png r.png d.pfm"), dataset="Middlebury")

    assert gc.isenabled()


@settings(
    deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=st.text(st.sampled_from('lrdm.pngf "\t\n\r#\\~\0é'), max_size=60))
def test_any_text_gives_existing_files_or_faults_with_its_name(folder: Path, text: str) -> None:
    path = annotate(folder, text)
    rows, faults = parse(path, find_format("GenericDataset"), inference=False)

    assert rows or faults
    assert all(fault.startswith(f"{path}:") for fault in faults)
    assert all(row.left.is_file() and row.right.is_file() for row in rows)
