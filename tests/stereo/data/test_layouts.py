from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from stereo.data.annotations import read_rows
from stereo.data.convert import convert
from stereo.data.datasets import MONO_FORMATS, STEREO_FORMATS, find_format
from stereo.data.generator import GeneratedPair, generate, write_layouts
from stereo.data.layouts import LAYOUTS
from stereo.errors import OutputExistsError
from stereo.spec.data import ConvertSpec

PAIRS, SIZE, SEED = 3, (48, 64), 6
STEREO = [(name, known) for name, layout in LAYOUTS.items() for known in layout.stereo]
MONO = [(name, known) for name, layout in LAYOUTS.items() for known in layout.mono]

# Pair number 1 in each layout: the files of its annotation line, as published.
FILES = {
    "middlebury": "0001/im0.png 0001/im1.png 0001/disp0GT.pfm 0001/mask0nocc.png",
    "eth3d": "0001/im0.png 0001/im1.png 0001/disp0GT.pfm 0001/mask0nocc.png",
    "kitti": " ".join(
        f"training/{folder}/000001_10.png" for folder in ("image_2", "image_3", "disp_noc_0")
    ),
    "fsd": "data/left/rgb/0001.png data/right/rgb/0001.png data/left/disparity/0001.png",
    "isaac_real": "data/left/rgb/0001.png data/right/rgb/0001.png data/left/disparity/0001.png",
    "crestereo": "set/1_left.png set/1_right.png set/1_left.disp.png",
    "nyu": "scene/rgb_00001.jpg scene/sync_depth_00001.png",
    "mono_metric": "scenes/rgb/0001.png scenes/depth/0001.pfm",
    "mono_relative": "scenes/rgb/0001.png scenes/disparity/0001.pfm",
    "nvclip": "scenes/rgb/0001.png scenes/disparity/0001.pfm",
    "three_d_vlm": "scenes/rgb/0001.png scenes/depth/0001.npy",
}

# Patterns and suffixes of `convert` for the same: image, right, depth, mask.
PATTERNS = {
    "middlebury": (["im0"], ["im1"], ["disp0GT"], ["mask0nocc"], ".png", ".pfm"),
    "eth3d": (["im0"], ["im1"], ["disp0GT"], ["mask0nocc"], ".png", ".pfm"),
    "kitti": (["image_2"], ["image_3"], ["disp_noc_0"], [], "_10.png", "_10.png"),
    "fsd": (["left/rgb"], ["right/rgb"], ["left/disparity"], [], ".png", ".png"),
    "isaac_real": (["left/rgb"], ["right/rgb"], ["left/disparity"], [], ".png", ".png"),
    "crestereo": (["_left.png"], ["_right.png"], ["_left.disp.png"], [], ".png", ".png"),
    "nyu": (["rgb_"], [], ["sync_depth_"], [], ".jpg", ".png"),
    "mono_metric": (["rgb"], [], ["depth"], [], ".png", ".pfm"),
    "mono_relative": (["rgb"], [], ["disparity"], [], ".png", ".pfm"),
    "nvclip": (["rgb"], [], ["disparity"], [], ".png", ".pfm"),
    "three_d_vlm": (["rgb"], [], ["depth"], [], ".png", ".npy"),
}

# Largest difference between a pair's disparity and what a class reads: half a step, float32.
STEREO_STEP = {"Kitti": 1 / 512, "Crestereo": 1 / 64, "FSD": 0.0005, "IsaacRealDataset": 0.0005}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pairs")
    write_layouts(directory, pairs=PAIRS, size=SIZE, seed=SEED)
    return directory


@pytest.fixture(scope="module")
def pair_of() -> Callable[[str, int], GeneratedPair]:
    """The generated pair that a layout stores under a number."""

    def build(layout: str, index: int) -> GeneratedPair:
        height, width = LAYOUTS[layout].size or SIZE
        return generate(SEED, index, height=height, width=width)

    return build


def grey(image: np.ndarray) -> np.ndarray:
    return np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)


def snapshot(directory: Path) -> dict[str, bytes]:
    """Files by name, without the hidden ones that a killed writer may leave."""
    files = (path for path in directory.rglob("[!.]*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def test_every_dataset_class_has_a_layout() -> None:
    assert {known for _, known in STEREO} == set(STEREO_FORMATS)
    assert {known for _, known in MONO} == set(MONO_FORMATS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_lie_where_the_published_layout_has_them(root: Path, layout: str) -> None:
    comment, *lines = (root / layout / f"{layout}.txt").read_text().splitlines()

    assert lines[1] == FILES[layout]
    assert len(lines) == PAIRS
    assert all((root / layout / file).is_file() for line in lines for file in line.split())
    assert comment.startswith("# dataset_name: ")
    assert all(f"{known} (stereo)" in comment for known in LAYOUTS[layout].stereo)
    assert all(f"{known} (mono)" in comment for known in LAYOUTS[layout].mono)


@pytest.mark.parametrize("layout", ["middlebury", "eth3d"])
def test_scene_folders_hold_the_calibration(root: Path, layout: str) -> None:
    text = (root / layout / "0001/calib.txt").read_text()

    assert f"cam0=[{0.9 * 64} 0 31.5; 0 {0.9 * 64} 23.5; 0 0 1]" in text
    assert "baseline=100" in text


@pytest.mark.parametrize(("layout", "dataset"), STEREO)
def test_a_stereo_class_reads_back_what_was_generated(
    root: Path, pair_of: Callable[[str, int], GeneratedPair], layout: str, dataset: str
) -> None:
    rows = read_rows(root / layout / f"{layout}.txt", dataset=dataset, family="stereo")
    assert len(rows) == PAIRS
    for index, row in enumerate(rows):
        sample, pair = find_format(dataset).read(row), pair_of(layout, index)
        is_masked = layout in ("middlebury", "eth3d", "kitti")
        known = ~pair.occluded if is_masked else np.ones(SIZE, bool)
        shown = grey if layout == "eth3d" else np.asarray

        np.testing.assert_array_equal(sample.left, shown(pair.left))
        np.testing.assert_array_equal(sample.right, shown(pair.right))
        np.testing.assert_array_equal(sample.valid, known)
        difference = np.abs(sample.disparity[known] - pair.disparity[known])
        assert difference.max() <= STEREO_STEP.get(dataset, 0) + 1e-6


@pytest.mark.parametrize(("layout", "dataset"), MONO)
def test_a_mono_class_reads_back_what_was_generated(
    root: Path, pair_of: Callable[[str, int], GeneratedPair], layout: str, dataset: str
) -> None:
    rows = read_rows(root / layout / f"{layout}.txt", dataset=dataset, family="mono")
    assert len(rows) == PAIRS
    for index, row in enumerate(rows):
        sample, pair = find_format(dataset, "mono").read(row), pair_of(layout, index)
        known = ~pair.occluded if dataset == "Middlebury" else np.ones(pair.ids.shape, bool)
        expected, step = expected_target(dataset, pair)

        np.testing.assert_array_equal(sample.valid, known)
        difference = np.abs(sample.target[known] - expected[known])
        assert (difference <= step[known] + 1e-6 * expected[known]).all()
        lossy = 6 if layout == "nyu" else 0
        assert np.abs(sample.image.astype(int) - pair.left).mean() <= lossy


def expected_target(dataset: str, pair: GeneratedPair) -> tuple[np.ndarray, np.ndarray]:
    """What a mono class should give, and half the step of its encoding there."""
    depth = 0.9 * pair.ids.shape[1] * 0.1 / pair.disparity.astype(np.float64)  # f B / d, m
    values, step = {
        "NYUDV2": (depth, 0.0005),
        "NYUDV2Relative": (1 / depth, 0.00051 / depth**2),
        "MetricMonoDataset": (depth, 0),
        "FSD": (pair.disparity, 0.0005),
        "Crestereo": (pair.disparity, 1 / 64),
    }.get(dataset, (pair.disparity, 0))
    return np.asarray(values), np.broadcast_to(step, depth.shape)


def test_grey_pairs_are_stored_with_one_channel(root: Path) -> None:
    for view in ("im0.png", "im1.png"):
        assert cv2.imread(str(root / "eth3d/0001" / view), cv2.IMREAD_UNCHANGED).ndim == 2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_convert_finds_exactly_the_pairs(root: Path, tmp_path: Path, layout: str) -> None:
    image, right, depth, mask, image_extension, depth_extension = PATTERNS[layout]
    spec = ConvertSpec(
        data_root=str(root / layout),
        results_dir=str(tmp_path),
        image_dir_pattern=image,
        right_dir_pattern=right,
        depth_dir_pattern=depth,
        nocc_dir_pattern=mask,
        image_extension=image_extension,
        depth_extension=depth_extension,
    )

    result = convert(spec, tmp_path)

    family = "stereo" if LAYOUTS[layout].stereo else "mono"
    dataset = (LAYOUTS[layout].stereo or LAYOUTS[layout].mono)[0]
    written = read_rows(root / layout / f"{layout}.txt", dataset=dataset, family=family)
    found = read_rows(result.files["test"], dataset=dataset, family=family)
    assert {columns(row) for row in found} == {columns(row) for row in written}
    assert len(found) == PAIRS


def columns(row: object) -> tuple[object, ...]:
    return tuple(getattr(row, name) for name in ("left", "right", "disparity", "occlusion"))


def test_writing_twice_gives_the_same_bytes_and_touches_nothing(root: Path, tmp_path: Path) -> None:
    names = ["kitti", "three_d_vlm"]
    write_layouts(tmp_path, names, pairs=PAIRS, size=SIZE, seed=SEED)
    for name in names:
        assert snapshot(tmp_path / name) == snapshot(root / name)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    again = write_layouts(tmp_path, names, pairs=PAIRS, size=SIZE, seed=SEED)

    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert again == {name: tmp_path / name / f"{name}.txt" for name in names}


def test_a_killed_program_leaves_no_annotations_and_the_next_call_finishes_it(
    tmp_path: Path,
) -> None:
    options = ["--layout", "fsd", "--pairs", "60", "--size", "48x64", "--seed", str(SEED)]
    command = [sys.executable, "-m", "stereo.data.generator", str(tmp_path / "killed"), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as program:
        assert program.stderr is not None
        assert program.stderr.readline() == b"6 of 60 pairs\n"
        program.kill()
    assert not list(tmp_path.rglob("*.txt"))
    (tmp_path / "killed/fsd/data/left/rgb/0001.png").unlink()

    for directory in ("killed", "whole"):
        write_layouts(tmp_path / directory, ["fsd"], pairs=60, size=SIZE, seed=SEED)

    assert snapshot(tmp_path / "killed") == snapshot(tmp_path / "whole")


def test_two_writers_at_once_give_one_set(root: Path, tmp_path: Path) -> None:
    def work() -> dict[str, Path]:
        return write_layouts(tmp_path, ["crestereo"], pairs=PAIRS, size=SIZE, seed=SEED)

    with ThreadPoolExecutor(2) as pool:
        first, second = [future.result() for future in [pool.submit(work), pool.submit(work)]]

    assert first == second
    assert snapshot(tmp_path / "crestereo") == snapshot(root / "crestereo")


@pytest.mark.parametrize(
    "other", [{"pairs": 2}, {"size": (48, 96)}, {"seed": 7}], ids=lambda other: next(iter(other))
)
def test_other_pairs_are_not_written_over(root: Path, other: dict[str, object]) -> None:
    before = snapshot(root / "kitti")
    wanted = {"pairs": PAIRS, "size": SIZE, "seed": SEED, **other}

    with pytest.raises(OutputExistsError, match=r"kitti: holds the pairs .*Name another directory"):
        write_layouts(root, ["kitti"], **wanted)

    assert snapshot(root / "kitti") == before


@pytest.mark.parametrize("marker", [None, "{", json.dumps({"pairs": 3}), "[]"])
def test_a_folder_of_another_origin_is_never_written_to(tmp_path: Path, marker: str | None) -> None:
    image = tmp_path / "kitti/training/image_2/000000_10.png"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"a real one")
    if marker is not None:
        (tmp_path / "kitti/generated.json").write_text(marker)

    with pytest.raises(OutputExistsError, match="kitti: holds"):
        write_layouts(tmp_path, ["fsd", "kitti"], pairs=1, size=SIZE, seed=SEED)

    assert image.read_bytes() == b"a real one"
    assert not (tmp_path / "fsd").exists()


def test_an_empty_folder_is_used_also_with_hidden_files_in_it(tmp_path: Path) -> None:
    """Another process that starts at the same moment is seen by its temporary file only."""
    (tmp_path / "fsd").mkdir()
    (tmp_path / "kitti").mkdir()
    (tmp_path / "kitti" / ".generated.json.1.2").touch()

    files = write_layouts(tmp_path, ["fsd", "kitti"], pairs=1, size=SIZE, seed=SEED)

    assert all(file.is_file() for file in files.values())


def test_wide_pairs_stay_within_what_every_layout_can_hold(tmp_path: Path) -> None:
    """A quarter of 1248 px is 312, beyond the 255 of KITTI's encoding."""
    files = write_layouts(tmp_path, ["kitti"], pairs=2, size=(32, 1248), seed=SEED)

    for row in read_rows(files["kitti"], dataset="Kitti", family="stereo"):
        sample = find_format("Kitti").read(row)
        assert sample.disparity[sample.valid].max() < 255
