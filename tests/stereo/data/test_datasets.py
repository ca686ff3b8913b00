from __future__ import annotations

import io
import os
from dataclasses import replace
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import pytest

from stereo.data.annotations import Row, parse, read_rows
from stereo.data.datasets import (
    DATASETS,
    MONO_FORMATS,
    STEREO_FORMATS,
    EvalCrop,
    MonoSample,
    StereoSample,
    eval_crop,
    find_format,
    sample_name,
)
from stereo.data.encodings import FSD_PNG, PFM, write_pfm, write_png
from stereo.data.remote import RemoteFile
from stereo.errors import DataError
from stereo.spec.data import STEREO_DATASETS

# What lies in a file and what it means, without the project's encodings.
PFM_FILE = ("d.pfm", [[0, 7.25, 999], [1000, 0.5, np.nan]])
PFM_VALUES = np.float32([[np.inf, 7.25, 999], [1000, 0.5, np.inf]])
UINT16_FILE = ("d.png", np.uint16([[0, 256, 1], [9984, 65535, 32]]))
UINT8_FILE = ("d.png", np.uint8([[0, 255, 1], [39, 99, 32]]))
RGB_FILE = (
    "d.png",
    np.uint8([[[0, 0, 0], [0, 0, 7], [0, 1, 0]], [[1, 2, 3], [15, 9, 9], [3, 0, 9]]]),
)
RGB_VALUES = np.float32(
    [[np.inf, 0.007, 0.255], [65.538, (15 * 65025 + 9 * 255 + 9) / 1000, 195.084]]
)
NPY_FILE = ("d.npy", np.float32([[0, 2, 0.5], [np.nan, 4, -1]]))


def unknown_at_0(stored: np.ndarray, steps: float) -> np.ndarray:
    return np.where(stored > 0, stored / np.float32(steps), np.float32(np.inf)).astype(np.float32)


def below_1000(values: np.ndarray) -> np.ndarray:
    return np.where(values < 1000, values, np.float32(np.inf))


STEREO_ROWS = [
    ("FSD", PFM_FILE, PFM_VALUES),
    ("FSD", RGB_FILE, RGB_VALUES),
    ("IsaacRealDataset", PFM_FILE, PFM_VALUES),
    ("IsaacRealDataset", RGB_FILE, RGB_VALUES),
    ("Crestereo", UINT16_FILE, unknown_at_0(UINT16_FILE[1], 32)),
    ("Middlebury", PFM_FILE, PFM_VALUES),
    ("Middlebury", RGB_FILE, RGB_VALUES),
    ("Eth3d", PFM_FILE, PFM_VALUES),
    ("Eth3d", RGB_FILE, RGB_VALUES),
    ("Kitti", UINT16_FILE, unknown_at_0(UINT16_FILE[1], 256)),
    ("GenericDataset", PFM_FILE, PFM_VALUES),
    ("GenericDataset", RGB_FILE, RGB_VALUES),
]
MONO_ROWS = [
    ("RelativeMonoDataset", PFM_FILE, below_1000(PFM_VALUES)),
    ("RelativeMonoDataset", UINT16_FILE, below_1000(unknown_at_0(UINT16_FILE[1], 1))),
    ("RelativeMonoDataset", UINT8_FILE, unknown_at_0(UINT8_FILE[1], 1)),
    ("FSD", RGB_FILE, RGB_VALUES),
    ("Crestereo", UINT16_FILE, below_1000(unknown_at_0(UINT16_FILE[1], 32))),
    ("Middlebury", PFM_FILE, below_1000(PFM_VALUES)),
    ("Middlebury", UINT8_FILE, unknown_at_0(UINT8_FILE[1], 1)),
    ("IssacStereo", PFM_FILE, below_1000(PFM_VALUES)),
    ("NvCLIP", PFM_FILE, below_1000(PFM_VALUES)[::-1]),
    ("ThreeDVLM", NPY_FILE, np.float32([[np.inf, 0.0005, 0.002], [np.inf, 0.00025, np.inf]])),
    (
        "NYUDV2Relative",
        UINT16_FILE,
        np.float32([[np.inf, 1 / 0.256, np.inf], [1 / 9.984, np.inf, 1 / 0.032]]),
    ),
    ("NYUDV2", UINT16_FILE, unknown_at_0(UINT16_FILE[1], 1000)),
    ("MetricMonoDataset", PFM_FILE, PFM_VALUES),
    ("MetricMonoDataset", UINT16_FILE, unknown_at_0(UINT16_FILE[1], 1)),
]
STEREO_COLUMNS = {
    "FSD": {3},
    "IsaacRealDataset": {3},
    "Crestereo": {3},
    "Middlebury": {3, 4},
    "Eth3d": {3, 4},
    "Kitti": {3},
    "GenericDataset": {2, 3, 4},
}
MONO_NAMES = {name for name, _, _ in MONO_ROWS}


def row_id(value: object) -> str | None:
    if isinstance(value, str):
        return value
    return f"{value[0]}-{np.asarray(value[1]).dtype}" if isinstance(value, tuple) else ""


def write_truth(folder: Path, file: tuple[str, object]) -> Path:
    """Write the stored values of `file` without the project's encodings."""
    path = folder / file[0]
    values = np.asarray(file[1])
    if path.suffix == ".png":
        cv2.imwrite(str(path), values[..., ::-1] if values.ndim == 3 else values)
    elif path.suffix == ".npy":
        np.save(path, values)
    else:
        rows = values[::-1].astype("<f4").tobytes()
        path.write_bytes(b"Pf\n%d %d\n-1\n" % (values.shape[1], values.shape[0]) + rows)
    return path


def write_images(folder: Path, height: int, width: int) -> tuple[Path, Path]:
    rng = np.random.default_rng(1)
    for name in ("l.png", "r.png"):
        write_png(folder / name, rng.integers(0, 256, (height, width, 3), np.uint8))
    return folder / "l.png", folder / "r.png"


def row_of(truth: Path, *, mask: Path | None = None, mono: bool = False) -> Row:
    folder = truth.parent
    right = None if mono else folder / "r.png"
    return Row(folder / "l.png", right, truth, mask, folder / "a.txt", 1)


@pytest.mark.parametrize(("name", "file", "expected"), STEREO_ROWS, ids=row_id)
def test_a_stereo_class_reads_its_encodings(tmp_path: Path, name, file, expected) -> None:
    write_images(tmp_path, 2, 3)

    sample = find_format(name).read(row_of(write_truth(tmp_path, file)))

    assert isinstance(sample, StereoSample)
    assert sample.disparity.dtype == np.float32
    np.testing.assert_array_equal(sample.disparity, expected)
    np.testing.assert_array_equal(sample.valid, np.isfinite(expected))
    assert sample.has_gt
    assert sample.is_sparse == (name == "Kitti")
    assert find_format(name).heads(sample.row) == (2, 3)
    assert (sample.left.dtype, sample.left.shape) == (np.uint8, (2, 3, 3))
    assert not np.array_equal(sample.left, sample.right)


@pytest.mark.parametrize(("name", "file", "expected"), MONO_ROWS, ids=row_id)
def test_a_mono_class_reads_its_encodings(tmp_path: Path, name, file, expected) -> None:
    write_images(tmp_path, 2, 3)

    sample = find_format(name, "mono").read(row_of(write_truth(tmp_path, file), mono=True))

    assert isinstance(sample, MonoSample)
    assert sample.target.dtype == np.float32
    np.testing.assert_allclose(sample.target, expected, rtol=1e-6)
    np.testing.assert_array_equal(sample.valid, np.isfinite(expected))
    assert sample.has_gt
    assert (sample.image.dtype, sample.image.shape) == (np.uint8, (2, 3, 3))
    assert find_format(name, "mono").heads(sample.row) == (2, 3)


def test_the_tables_hold_the_classes_of_the_design_and_of_the_spec() -> None:
    assert set(DATASETS["stereo"]) == set(STEREO_DATASETS) == {name for name, _, _ in STEREO_ROWS}
    assert set(DATASETS["mono"]) == MONO_NAMES
    for family, formats in DATASETS.items():
        assert all(form.family == family and form.name == name for name, form in formats.items())


def test_no_class_reads_an_encoding_without_a_test() -> None:
    for formats, rows in ((STEREO_FORMATS, STEREO_ROWS), (MONO_FORMATS, MONO_ROWS)):
        tested = {(name, Path(file[0]).suffix) for name, file, _ in rows}
        assert tested == {(name, suffix) for name, form in formats.items() for suffix in form.truth}


@pytest.mark.parametrize("name", STEREO_COLUMNS)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_a_stereo_class_takes_its_column_counts_only(tmp_path: Path, name: str, count: int) -> None:
    form = find_format(name)
    write_images(tmp_path, 2, 3)
    (tmp_path / "d.png").touch()
    annotation = tmp_path / "a.txt"
    annotation.write_text(" ".join(["l.png", "r.png", "d.png", "l.png", "l.png"][:count]))

    rows, faults = parse(annotation, form, inference=False)

    assert len(rows) == (count in STEREO_COLUMNS[name])
    assert len(faults) == (not rows or count == 2)  # without ground truth, of use to inference only


@pytest.mark.parametrize("name", sorted(MONO_NAMES))
def test_a_mono_class_takes_its_own_lines_and_those_of_stereo(name: str) -> None:
    assert find_format(name, "mono").columns == (1, 2, 3, 4)


QUANTITIES = {"NYUDV2": "depth", "MetricMonoDataset": "depth"}
CROPS = {"NYUDV2": "nyu_eigen", "NYUDV2Relative": "nyu_eigen"}


@pytest.mark.parametrize("name", sorted(MONO_NAMES))
def test_a_mono_class_has_its_quantity_and_crop(name: str) -> None:
    form = find_format(name, "mono")

    assert form.quantity == QUANTITIES.get(name, "disparity")
    assert form.eval_crop == CROPS.get(name)


@pytest.mark.parametrize("name", sorted(MONO_NAMES - QUANTITIES.keys() - {"NYUDV2Relative"}))
def test_a_relative_target_counts_below_1000_only(tmp_path: Path, name: str) -> None:
    form = find_format(name, "mono")
    suffix, encoding = next(iter(form.truth.items()))
    top = min(getattr(encoding, "largest", np.inf), 1010.0)
    values = np.float32([[min(top, 999), min(top, 1000), min(top, 1001)]])
    write_images(tmp_path, 1, 3)
    encoding.write(tmp_path / f"d{suffix}", values)

    sample = form.read(row_of(tmp_path / f"d{suffix}", mono=True))

    np.testing.assert_array_equal(sample.valid, values < 1000)


def test_nyu_relative_depth_counts_between_1_mm_and_10_m_exclusive(tmp_path: Path) -> None:
    write_images(tmp_path, 1, 5)
    truth = write_truth(tmp_path, ("d.png", np.uint16([[0, 1, 2, 9999, 10000]])))

    sample = find_format("NYUDV2Relative", "mono").read(row_of(truth, mono=True))

    np.testing.assert_allclose(sample.target, [[np.inf, np.inf, 500, 1 / 9.999, np.inf]], rtol=1e-6)


def masked(folder: Path, name: str, family: str) -> np.ndarray:
    """Valid pixels of a sample that is known everywhere, its mask 255, 254, 128, 0."""
    write_images(folder, 1, 4)
    PFM.write(folder / "d.pfm", np.float32([[1, 2, 3, 4]]))
    write_png(folder / "m.png", np.uint8([[255, 254, 128, 0]]))
    row = row_of(folder / "d.pfm", mask=folder / "m.png", mono=family == "mono")
    return find_format(name, family).read(row).valid


@pytest.mark.parametrize("name", ["Middlebury", "Eth3d", "GenericDataset"])
def test_a_stereo_mask_keeps_255_only(tmp_path: Path, name: str) -> None:
    assert masked(tmp_path, name, "stereo").tolist() == [[True, False, False, False]]


@pytest.mark.parametrize("name", ["Middlebury", "RelativeMonoDataset", "MetricMonoDataset"])
def test_the_mask_of_a_reused_stereo_line_is_applied(tmp_path: Path, name: str) -> None:
    assert masked(tmp_path, name, "mono").tolist() == [[True, False, False, False]]


def test_the_right_image_of_a_reused_stereo_line_is_not_read(tmp_path: Path) -> None:
    write_images(tmp_path, 2, 3)
    (tmp_path / "r.png").write_bytes(b"no image")
    row = row_of(write_truth(tmp_path, PFM_FILE))

    assert find_format("IssacStereo", "mono").read(row).valid.any()
    with pytest.raises(DataError, match=r"r\.png"):
        find_format("FSD").read(row)


def test_without_ground_truth_nothing_is_valid(tmp_path: Path) -> None:
    write_images(tmp_path, 2, 3)
    row = replace(row_of(tmp_path / "d.pfm"), disparity=None)

    pair = find_format("GenericDataset").read(row)
    image = find_format("NYUDV2", "mono").read(row)

    assert not pair.has_gt
    assert not image.has_gt
    np.testing.assert_array_equal(pair.disparity, np.full((2, 3), np.inf))
    np.testing.assert_array_equal(image.target, np.full((2, 3), np.inf))
    assert not pair.valid.any()
    assert not image.valid.any()


def test_the_real_suffix_counts_in_any_case(tmp_path: Path) -> None:
    """Not one that occurs elsewhere in the path."""
    folder = tmp_path / "set.pfm.npy"
    folder.mkdir()
    write_images(folder, 2, 3)
    path = write_truth(folder, RGB_FILE).rename(folder / "d.pfm.PNG")

    sample = find_format("GenericDataset").read(row_of(path))
    mono = find_format("FSD", "mono").read(row_of(path, mono=True))

    np.testing.assert_array_equal(sample.disparity, RGB_VALUES)
    np.testing.assert_array_equal(mono.target, RGB_VALUES)


@pytest.mark.parametrize(
    ("family", "name", "stored", "message"),
    [
        (
            "stereo",
            "GenericDataset",
            UINT16_FILE[1],
            "1 channel of uint16 is read by Crestereo (uint16 / 32), Kitti (uint16 / 256)",
        ),
        (
            "stereo",
            "Kitti",
            RGB_FILE[1],
            "3 channels of uint8 is read by FSD (FSD RGB code), IsaacRealDataset (FSD RGB code), "
            "Middlebury (FSD RGB code), Eth3d (FSD RGB code), GenericDataset (FSD RGB code)",
        ),
        (
            "stereo",
            "Middlebury",
            UINT8_FILE[1],
            "No stereo class reads a PNG with 1 channel of uint8",
        ),
        (
            "mono",
            "FSD",
            UINT8_FILE[1],
            "1 channel of uint8 is read by RelativeMonoDataset (raw value), Middlebury (uint8 px), "
            "MetricMonoDataset (raw value)",
        ),
        (
            "mono",
            "Middlebury",
            UINT16_FILE[1],
            "is read by RelativeMonoDataset (raw value), Crestereo (uint16 / 32), "
            "NYUDV2Relative (uint16 mm), NYUDV2 (uint16 mm), MetricMonoDataset (raw value)",
        ),
    ],
)
def test_a_png_of_another_class_names_the_classes_that_read_it(
    tmp_path: Path, family, name: str, stored: np.ndarray, message: str
) -> None:
    write_images(tmp_path, 2, 3)
    row = row_of(write_truth(tmp_path, ("d.png", stored)), mono=family == "mono")

    with pytest.raises(DataError) as caught:
        find_format(name, family).read(row)

    assert str(caught.value).startswith(f"{tmp_path}/a.txt:1: {tmp_path}/d.png: PNG with ")
    assert message in str(caught.value)


ONE_CHANNEL_OR_16_BIT = {
    "1 channel of uint8": ((2, 3), "u1"),
    "1 channel of uint16": ((2, 3), "u2"),
    "3 channels of uint16": ((2, 3, 3), "u2"),
    "4 channels of uint8": ((2, 3, 4), "u1"),
}


@pytest.mark.parametrize("found", ONE_CHANNEL_OR_16_BIT)
@pytest.mark.parametrize("name", sorted(STEREO_COLUMNS.keys() - {"Kitti", "Crestereo"}))
def test_only_rgb_bytes_go_through_the_fsd_formula(tmp_path: Path, name: str, found: str) -> None:
    shape, kind = ONE_CHANNEL_OR_16_BIT[found]
    write_images(tmp_path, 2, 3)
    cv2.imwrite(str(tmp_path / "d.png"), np.ones(shape, kind))

    with pytest.raises(DataError, match=rf"d\.png: PNG with {found}"):
        find_format(name).read(row_of(tmp_path / "d.png"))


@pytest.mark.parametrize(
    ("family", "name"),
    [
        (family, name)
        for family, formats in DATASETS.items()
        for name, form in formats.items()
        if ".pfm" in form.truth
    ],
)
def test_a_three_channel_pfm_is_an_error_for_every_class(tmp_path: Path, family, name) -> None:
    write_images(tmp_path, 2, 3)
    (tmp_path / "d.pfm").write_bytes(b"PF\n3 2\n-1\n" + bytes(72))

    with pytest.raises(DataError, match=r"a\.txt:1: .*d\.pfm: PFM with three channels"):
        find_format(name, family).read(row_of(tmp_path / "d.pfm", mono=family == "mono"))


@pytest.mark.parametrize("family", ["stereo", "mono"])
def test_a_class_is_found_in_its_family_in_any_case(family) -> None:
    for name, form in DATASETS[family].items():
        assert find_format(name.upper(), family) is form
    with pytest.raises(DataError) as caught:
        find_format("Kity", family)
    assert caught.value.exit_code == 2
    assert f"{family} classes are {', '.join(sorted(DATASETS[family]))}" in str(caught.value)
    assert ("did you mean Kitti?" in str(caught.value)) == (family == "stereo")


def test_the_same_name_reads_otherwise_in_the_other_family() -> None:
    assert find_format("Middlebury").truth[".png"] is FSD_PNG
    assert find_format("Middlebury", "mono").truth[".png"] is not FSD_PNG


def test_eval_crops_are_the_half_open_ranges_of_the_design() -> None:
    assert eval_crop("nyu_eigen", 480, 640) == (slice(45, 471), slice(41, 601))
    assert eval_crop("kitti_garg", 375, 1242) == (slice(153, 371), slice(44, 1197))
    assert eval_crop("kitti_eigen", 375, 1242) == (slice(124, 342), slice(44, 1197))
    assert eval_crop("kitti_garg", 1000, 1000) == (slice(408, 991), slice(35, 964))
    assert set(get_args(EvalCrop)) == {"nyu_eigen", "kitti_eigen", "kitti_garg"}


@pytest.mark.parametrize("size", [(481, 640), (480, 641), (375, 1242), (640, 480)])
def test_the_nyu_crop_is_refused_for_other_sizes(size: tuple[int, int]) -> None:
    with pytest.raises(DataError, match=rf"nyu_eigen.*640x480.*has {size[1]}x{size[0]}"):
        eval_crop("nyu_eigen", *size)


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    disparity = rng.uniform(1, 9, (6, 8)).astype(np.float32)
    write_images(tmp_path, 6, 8)
    PFM.write(tmp_path / "d.pfm", disparity)
    write_png(tmp_path / "m.png", np.full((6, 8), 255, np.uint8))
    return tmp_path


def read(scene: Path, line: str) -> StereoSample:
    path = scene / "a.txt"
    path.write_text(line)
    (row,) = read_rows(path, dataset="GenericDataset")
    return find_format("GenericDataset").read(row)


@pytest.mark.parametrize("wrong", ["r.png", "d.pfm", "m.png"])
def test_a_different_size_is_an_error_with_both_sizes_and_the_line(scene: Path, wrong: str) -> None:
    if wrong == "d.pfm":
        write_pfm(scene / wrong, np.ones((6, 7), np.float32))
    else:
        write_png(scene / wrong, np.zeros((6, 7, 3), np.uint8))

    with pytest.raises(
        DataError, match=rf"a\.txt:1: .*{wrong}: size 7x6 differs .*left image's 8x6"
    ):
        read(scene, "l.png r.png d.pfm m.png")


@pytest.mark.parametrize("wrong", ["d.pfm", "m.png"])
def test_a_target_or_mask_of_another_size_than_the_image_is_an_error(
    scene: Path, wrong: str
) -> None:
    if wrong == "d.pfm":
        write_pfm(scene / wrong, np.ones((8, 6), np.float32))
    else:
        write_png(scene / wrong, np.full((5, 8), 255, np.uint8))
    row = row_of(scene / "d.pfm", mask=scene / "m.png", mono=True)

    with pytest.raises(DataError, match=rf"{wrong}: size .* differs from the image's 8x6"):
        find_format("MetricMonoDataset", "mono").read(row)


@pytest.mark.parametrize("family", ["stereo", "mono"])
def test_a_broken_file_names_annotation_line_and_path(scene: Path, family) -> None:
    (scene / "d.pfm").write_bytes((scene / "d.pfm").read_bytes()[:-1])
    name = "GenericDataset" if family == "stereo" else "RelativeMonoDataset"

    with pytest.raises(DataError, match=r"a\.txt:1: .*d\.pfm: PFM of 8x6 needs 192 .*has 191"):
        find_format(name, family).read(row_of(scene / "d.pfm", mono=family == "mono"))


def png(values: np.ndarray) -> bytes:
    return cv2.imencode(".png", values)[1].tobytes()


def npy(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


WHOLE_NPY = npy(np.ones((6, 8)))
FAULTS_IN_HEADS = {
    "an image of another size": ("r.png", png(np.zeros((6, 7, 3), np.uint8))),
    "no image": ("l.png", b"nonsense"),
    "a cut PFM": ("d.pfm", b"Pf\n8 6\n-1\n" + bytes(191)),
    "a long PFM": ("d.pfm", b"Pf\n8 6\n-1\n" + bytes(193)),
    "a large PFM that is cut": ("d.pfm", b"Pf\n800 600\n-1\n" + bytes(1_000_000)),
    "a PFM of another size": ("d.pfm", b"Pf\n6 8\n-1\n" + bytes(192)),
    "a PFM with colours": ("d.pfm", b"PF\n8 6\n-1\n" + bytes(576)),
    "no PFM": ("d.pfm", b""),
    "a PNG of another class": ("d.png", png(np.ones((6, 8), np.uint8))),
    "a PNG truth of another size": ("d.png", png(np.ones((6, 7, 3), np.uint8))),
    "no PNG": ("d.png", b"Pf\n8 6\n-1\n" + bytes(192)),
    "a mask of another size": ("m.png", png(np.ones((7, 8), np.uint8))),
    "a mask of 16 bit": ("m.png", png(np.ones((6, 8), np.uint16))),
    "no mask": ("m.png", b"GIF89a"),
    "a cut NPY": ("d.npy", WHOLE_NPY[:-1]),
    "an NPY of another size": ("d.npy", npy(np.ones((6, 7)))),
    "an NPY of whole numbers": ("d.npy", npy(np.ones((6, 8), np.int64))),
}


@pytest.mark.parametrize("fault", FAULTS_IN_HEADS)
def test_the_heads_of_a_row_tell_what_reading_it_would(scene: Path, fault: str) -> None:
    wrong, content = FAULTS_IN_HEADS[fault]
    (scene / wrong).write_bytes(content)
    truth = scene / (wrong if wrong.startswith("d.") else "d.pfm")
    mono = truth.suffix == ".npy"
    form = find_format("ThreeDVLM", "mono") if mono else find_format("Middlebury")
    row = row_of(truth, mask=scene / "m.png", mono=mono)

    with pytest.raises(DataError) as read:
        form.read(row)
    with pytest.raises(DataError) as heads:
        form.heads(row)

    assert str(heads.value) == str(read.value)
    assert f"a.txt:1: {scene / wrong}: " in str(heads.value)


@pytest.mark.parametrize("suffix", [".pfm", ".png", ".npy"])
def test_heads_do_not_take_the_whole_file(scene: Path, suffix: str) -> None:
    """Behind the start of each file lies a terabyte of nothing."""
    height, width = 524_288, 524_288
    starts = {
        ".pfm": b"Pf\n%d %d\n-1\n" % (width, height),
        ".npy": WHOLE_NPY[:128].replace(b"(6, 8), }" + 12 * b" ", b"(524288, 524288), }  "),
    }
    if suffix not in starts:
        height, width = 6, 8
        starts[suffix] = png(np.ones((6, 8, 3), np.uint8))
    truth = scene / f"d{suffix}"
    truth.write_bytes(starts[suffix])
    bytes_each = {".pfm": 4, ".npy": 8, ".png": 2**20}[suffix]
    os.truncate(truth, len(starts[suffix]) + bytes_each * height * width)
    form = find_format("ThreeDVLM", "mono") if suffix == ".npy" else find_format("FSD")

    assert form.truth[suffix].read_size(truth) == (height, width)


def test_heads_of_a_row_without_truth_and_of_a_jpeg_mask(scene: Path) -> None:
    form = find_format("GenericDataset")
    row = row_of(scene / "d.pfm")
    cv2.imwrite(str(scene / "m.jpg"), np.full((6, 8), 255, np.uint8))

    assert form.heads(replace(row, disparity=None)) == (6, 8)
    assert form.heads(replace(row, occlusion=scene / "m.jpg")) == (6, 8)


def test_a_sample_is_named_relative_to_its_annotation_file(scene: Path) -> None:
    (scene / "sub").mkdir()
    assert read(scene, "l.png r.png d.pfm").name == "l.png"
    row = replace(row_of(scene / "d.pfm"), source=scene / "sub" / "a.txt")
    assert find_format("GenericDataset").read(row).name == str(scene / "l.png")
    assert find_format("NYUDV2", "mono").read(replace(row, disparity=None)).name == str(
        scene / "l.png"
    )


def test_a_remote_sample_is_named_relative_to_its_annotation_file() -> None:
    source, below, beside = (
        RemoteFile(f"s3://bucket/{path}", 1, "") for path in ("set/a.txt", "set/x/l.png", "l.png")
    )

    assert sample_name(Row(below, None, None, None, source, 1)) == "x/l.png"
    assert sample_name(Row(beside, None, None, None, source, 1)) == "s3://bucket/l.png"
