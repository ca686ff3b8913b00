"""`convert`: one test for every row of the pitfall table (data.md, section 2), and what follows."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stereo import actions, progress
from stereo.data.annotations import read_rows
from stereo.data.convert import ConvertResult, convert
from stereo.data.generator import generate
from stereo.data.layouts import LAYOUTS
from stereo.data.loaders import DataModule
from stereo.errors import DataError
from stereo.spec.data import ConvertSpec
from stereo.spec.load import load_spec

STEREO: Mapping[str, Any] = {
    "image_dir_pattern": ["left"],
    "right_dir_pattern": ["right"],
    "depth_dir_pattern": ["disparity"],
    "image_extension": ".png",
}
IMAGES: Mapping[str, Any] = {"image_dir_pattern": ["left"], "image_extension": ".png"}
SCENES: Mapping[str, Any] = {
    "image_dir_pattern": ["im0"],
    "right_dir_pattern": ["im1"],
    "depth_dir_pattern": ["disp0GT"],
    "nocc_dir_pattern": ["mask0nocc"],
    "image_extension": ".png",
    "depth_extension": ".pfm",
}
KITTI: Mapping[str, Any] = {
    "image_dir_pattern": ["image_2"],
    "right_dir_pattern": ["image_3"],
    "depth_dir_pattern": ["disp_noc_0"],
    "image_extension": "_10.png",
    "depth_extension": "_10.png",
}
ENCODING: Mapping[str, Any] = {**STEREO, "image_dir_pattern": ["im0"], "right_dir_pattern": ["im1"]}
# Folders of shared/data/real: fields, and the annotation file that is shipped with them.
REAL_ROOTS: tuple[tuple[str, Mapping[str, Any], str], ...] = (
    ("Middlebury", SCENES, "middlebury.txt"),
    ("Eth3d", SCENES, "eth3d.txt"),
    (
        "Eth3d",
        {
            "image_dir_pattern": ["im0"],
            "depth_dir_pattern": ["depth0GT"],
            "image_extension": ".png",
            "depth_extension": ".pfm",
        },
        "mono_metric.txt",
    ),
    ("Kitti", KITTI, "kitti.txt"),
    (
        "NYUDV2",
        {"image_dir_pattern": ["rgb_"], "depth_dir_pattern": ["sync_depth_"]},
        "mono_nyudv2.txt",
    ),
    ("Encodings", {**ENCODING, "depth_dir_pattern": ["disp_crestereo_u16x32"]}, "crestereo.txt"),
    ("Encodings", {**ENCODING, "depth_dir_pattern": ["disp_fsd_rgb"]}, "fsd.txt"),
    (
        "Encodings",
        {**ENCODING, "depth_dir_pattern": ["disp_generic"], "depth_extension": ".pfm"},
        "isaacreal.txt",
    ),
)


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def pairs(root: Path, *names: str) -> Path:
    """Empty left and right images and ground truth, as `STEREO` names them."""
    for name in names:
        sides = {"left": ".png", "right": ".png", "disparity": ".png"}
        touch(root, *(f"{name.replace('left', side)}{end}" for side, end in sides.items()))
    return root


def run(root: Path, out: Path, **fields: Any) -> ConvertResult:
    return convert(ConvertSpec(data_root=str(root), **fields), out)


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines()


def listed(root: Path, out: Path, **fields: Any) -> list[list[str]]:
    """The columns of test.txt, relative to the root; no path here holds a space."""
    made = lines(run(root, out, **fields).files["test"])
    return [[os.path.relpath(path, root) for path in line.split(" ")] for line in made]


def fault(root: Path, out: Path, **fields: Any) -> str:
    with pytest.raises(DataError) as caught:
        run(root, out, **fields)
    assert caught.value.exit_code == 2
    assert not list(out.glob("*.txt*"))
    return str(caught.value)


# -- what is listed -------------------------------------------------------------------------------


def test_left_images_hold_every_pattern_and_end_with_the_extension(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "a/cam/left/0.png",
        "a/cam/left/deep/er/1.png",
        "a/cam/right/0.png",
        "a/left/0.png",  # without cam
        "a/cam/left/0.png.bak",
        "a/cam/left/2.PNG",
        "b/cam_left.png",
        "cam_left.png",  # directly in the root
    )
    patterns = {"image_dir_pattern": ["left", "cam"], "image_extension": ".png"}

    assert listed(tmp_path, tmp_path / "out", **patterns) == [
        ["a/cam/left/0.png"],
        ["a/cam/left/deep/er/1.png"],
        ["b/cam_left.png"],
    ]


def test_an_empty_extension_filters_nothing_and_is_kept(tmp_path: Path) -> None:
    touch(tmp_path, *(f"a/{side}/0.{end}" for side in ("left", "right") for end in ("jpg", "png")))
    fields = {**STEREO, "depth_dir_pattern": [], "image_extension": ""}
    assert listed(tmp_path, tmp_path / "out", **fields) == [
        ["a/left/0.jpg", "a/right/0.jpg"],
        ["a/left/0.png", "a/right/0.png"],
    ]


def test_columns_are_left_right_disparity_mask(tmp_path: Path) -> None:
    touch(tmp_path, *(f"a/{role}.png" for role in ("left", "right", "disparity", "seen")))
    assert listed(tmp_path, tmp_path / "out", **STEREO, nocc_dir_pattern=["seen"]) == [
        ["a/left.png", "a/right.png", "a/disparity.png", "a/seen.png"]
    ]


def test_mono_has_image_and_depth(tmp_path: Path) -> None:
    touch(tmp_path, "room/rgb/1.jpg", "room/depth/1.png")
    fields = {"image_dir_pattern": ["rgb"], "depth_dir_pattern": ["depth"]}
    assert listed(tmp_path, tmp_path / "out", **fields) == [["room/rgb/1.jpg", "room/depth/1.png"]]


def test_paths_are_sorted_whatever_the_order_of_the_file_system(tmp_path: Path) -> None:
    names = [f"scene_{(7 * i) % 20:02d}/{(3 * i) % 10}_left" for i in range(60)]
    pairs(tmp_path, *names)
    made = [row[0] for row in listed(tmp_path, tmp_path / "out", **STEREO)]
    assert made == sorted(made)
    assert len(made) == len(set(names))


def test_linked_folders_are_followed_and_keep_their_names(tmp_path: Path) -> None:
    root = pairs(tmp_path / "root", "a/left")
    pairs(tmp_path / "elsewhere", "deep/left")
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "other").symlink_to(root / "a")  # has been listed as a
    (tmp_path / "link").symlink_to(root)

    made = [row[0] for row in listed(tmp_path / "link", tmp_path / "out", **STEREO)]

    assert made == ["a/left.png", "b/deep/left.png"]
    assert all(str(tmp_path / "link") in line for line in lines(tmp_path / "out" / "test.txt"))


@pytest.mark.parametrize("order", [1, -1])
def test_a_scene_reached_under_two_names_is_listed_once_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, order: int
) -> None:
    """Links such as `latest` would put one scene into both splits."""
    root = pairs(tmp_path / "root", *(f"{i:04d}/cam/left" for i in range(4)))
    (root / "best").symlink_to("0001")
    for name in ("latest", "0")[::order]:
        (root / name).symlink_to("0000")

    result = run(root, tmp_path / "out", **STEREO, split_ratio=0.5)

    made = sorted(line for file in result.files.values() for line in lines(file))
    assert [line.split()[0] for line in made] == [f"{root}/{i:04d}/cam/left.png" for i in range(4)]
    assert sorted(caplog.messages) == [
        f"{root}/{link}/cam/: 1 images are listed as those of {scene}/cam/, "
        f"which is the same folder"
        for link, scene in (("0", "0000"), ("best", "0001"), ("latest", "0000"))
    ]


def test_two_links_to_a_folder_elsewhere_list_it_once_under_the_first(tmp_path: Path) -> None:
    pairs(tmp_path / "elsewhere", "a/left")
    (tmp_path / "root").mkdir()
    for name in ("c", "b", "d"):
        (tmp_path / "root" / name).symlink_to(tmp_path / "elsewhere")
    rows = listed(tmp_path / "root", tmp_path / "out", **STEREO)
    assert rows == [["b/a/left.png", "b/a/right.png", "b/a/disparity.png"]]


def test_a_pattern_may_stand_in_the_name_of_a_link_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "raw/0/cam0/1.png", "raw/0/cam1/1.png")
    (tmp_path / "scene").mkdir()
    (tmp_path / "scene" / "left").symlink_to("../raw/0/cam0")
    (tmp_path / "scene" / "right").symlink_to("../raw/0/cam1")
    fields = {**STEREO, "depth_dir_pattern": []}
    rows = listed(tmp_path, tmp_path / "out", **fields)
    assert rows == [["scene/left/1.png", "scene/right/1.png"]]
    assert not caplog.messages


@pytest.mark.parametrize("target", ["root", "root/a", "elsewhere"])
def test_a_link_that_leads_back_is_told_and_not_followed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, target: str
) -> None:
    root = pairs(tmp_path / "root", "a/left")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "back").symlink_to(root / "a")
    (root / "a" / "up").symlink_to(tmp_path / target)

    made = [row[0] for row in listed(root, tmp_path / "out", **STEREO)]

    assert made == ["a/left.png"]
    back = "up/back" if target == "elsewhere" else "up"
    assert f"{root}/a/{back}/: a link to a folder above it, not followed" in caplog.text


def test_an_image_link_that_leads_nowhere_is_missing(tmp_path: Path) -> None:
    pairs(tmp_path, "a/left")
    (tmp_path / "a" / "left.png").unlink()
    (tmp_path / "a" / "left.png").symlink_to("gone.png")
    said = fault(tmp_path, tmp_path / "out", **STEREO)
    assert "1 files are missing" in said
    assert "a/left.png: a link that leads nowhere" in said


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    pairs(tmp_path, "a/left")
    (tmp_path / "a" / "self").symlink_to("self")
    said = fault(tmp_path, tmp_path / "out", **STEREO)
    assert "1 folders cannot be read" in said
    assert "a/: Too many levels of symbolic links" in said


def test_a_companion_may_lie_outside_the_scenes(tmp_path: Path) -> None:
    root = touch(tmp_path / "images", "a/left.png", "gt.png")
    touch(tmp_path, "truth/a/left.png")
    fields = {"image_dir_pattern": ["a/left"], "image_extension": ".png"}
    outside = listed(root, tmp_path / "o", **fields, depth_dir_pattern=["../truth/a/left"])
    assert outside == [["a/left.png", "../truth/a/left.png"]]
    beside = listed(root, tmp_path / "o", **fields, depth_dir_pattern=["gt"])
    assert beside == [["a/left.png", "gt.png"]]


@pytest.mark.parametrize(("name", "said"), [("gone", "no such folder"), ("file", "is a file")])
def test_the_root_is_a_folder(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "file").touch()
    assert f"{tmp_path}/{name}: {said}" in fault(tmp_path / name, tmp_path / "out", **STEREO)


def test_the_root_may_be_relative_and_below_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs(tmp_path / "data", "a/left")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for root in ("data", "./x/../data/", "~/data"):
        (tmp_path / "x").mkdir(exist_ok=True)
        files = convert(ConvertSpec(data_root=root, **STEREO), Path("out")).files
        assert lines(files["test"])[0].startswith(f"{tmp_path}/data/a/left.png ")


def test_the_unused_field_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pairs(tmp_path, "a/left", "b/left")
    run(tmp_path, tmp_path / "out", **STEREO, nocc_mask_dir_name="mask")
    (message,) = caplog.messages
    assert "convert.nocc_mask_dir_name has no effect" in message


# -- the pitfalls ---------------------------------------------------------------------------------


def test_the_path_of_the_root_is_neither_matched_nor_rewritten(tmp_path: Path) -> None:
    root = pairs(tmp_path / "left_data", "a/left")
    touch(root, "a/other.png")
    assert listed(root, tmp_path / "out", **STEREO) == [
        ["a/left.png", "a/right.png", "a/disparity.png"]
    ]


def test_patterns_are_replaced_at_once(tmp_path: Path) -> None:
    """One after the other, the second would hit what the first put in: depth/depth."""
    touch(tmp_path, "a/left/rgb/0.png", "a/rgb/depth/0.png")
    fields = {"image_dir_pattern": ["left", "rgb"], "image_extension": ".png"}
    for order in (1, -1):
        swapped = {
            "image_dir_pattern": ["left", "rgb"][::order],
            "depth_dir_pattern": ["rgb", "depth"][::order],
        }
        assert listed(tmp_path, tmp_path / "out", **{**fields, **swapped}) == [
            ["a/left/rgb/0.png", "a/rgb/depth/0.png"]
        ]


@pytest.mark.parametrize(
    ("name", "patterns", "said"),
    [
        ("left_a/left.png", ["left"], "'left' occurs more than once"),
        ("a/llleft/x.png", ["ll"], "'ll' occurs more than once"),
        ("a/left_rgb/x.png", ["left", "left_rgb"], "'left' and 'left_rgb' overlap"),
        ("a/leftright/x.png", ["ftri", "left"], "'left' and 'ftri' overlap"),
    ],
)
def test_a_pattern_that_is_not_clear_in_a_path_is_an_error(
    tmp_path: Path, name: str, patterns: list[str], said: str
) -> None:
    touch(tmp_path, name)
    fields = {"image_dir_pattern": patterns, "image_extension": ".png"}
    replaced = ["x" * (i + 1) for i in range(len(patterns))]

    found = fault(tmp_path, tmp_path / "out", **fields, right_dir_pattern=replaced)

    assert f"{name}: {said}" in found
    assert "1 paths are ambiguous. Give longer strings" in found
    # Without companions nothing is replaced, and nothing is unclear.
    assert listed(tmp_path, tmp_path / "out", **fields) == [[name]]


@pytest.mark.parametrize(
    ("image", "image_extension", "depth_extension", "expected"),
    [
        ("a.png_set/left/0.png", ".png", ".pfm", "a.png_set/depth/0.pfm"),
        ("a.png_set/left/0.png", "png", "pfm", "a.png_set/depth/0.pfm"),
        ("a/left/0.png.png", ".png", ".pfm", "a/depth/0.png.pfm"),
        ("a/left/000001_10.png", "_10.png", "_10.png", "a/depth/000001_10.png"),
        ("a/left/000001_10.png", "_10.png", ".pfm", "a/depth/000001.pfm"),
        ("a/left/0_left.png", ".png", ".disp.png", None),
        ("a/left/0.jpg", ".jpg", ".disp.png", "a/depth/0.disp.png"),
        ("a/left/0.png", ".png", "", "a/depth/0.png"),
    ],
)
def test_only_the_suffix_is_swapped(
    tmp_path: Path, image: str, image_extension: str, depth_extension: str, expected: str | None
) -> None:
    touch(tmp_path, image, *([expected] if expected else []))
    fields = {
        "image_dir_pattern": ["left"],
        "depth_dir_pattern": ["depth"],
        "image_extension": image_extension,
        "depth_extension": depth_extension,
    }
    if expected is None:
        assert "'left' occurs more than once" in fault(tmp_path, tmp_path / "out", **fields)
    else:
        assert listed(tmp_path, tmp_path / "out", **fields) == [[image, expected]]


def test_the_right_image_keeps_its_extension(tmp_path: Path) -> None:
    touch(tmp_path, "a/left.jpg", "a/right.jpg", "a/disparity.png")
    fields = {**STEREO, "image_extension": ".jpg"}
    assert listed(tmp_path, tmp_path / "out", **fields) == [
        ["a/left.jpg", "a/right.jpg", "a/disparity.png"]
    ]


def test_a_pattern_may_replace_the_suffix_itself(tmp_path: Path) -> None:
    touch(tmp_path, "a/left.png", "a/truth.pfm")
    fields = {"image_dir_pattern": ["left.png"], "depth_dir_pattern": ["truth.pfm"]}
    made = listed(
        tmp_path, tmp_path / "out", **fields, image_extension=".png", depth_extension=".pfm"
    )
    assert made == [["a/left.png", "a/truth.pfm"]]


def test_missing_companions_are_listed_with_their_image_and_counted(tmp_path: Path) -> None:
    pairs(tmp_path, *(f"s{i:02d}/left" for i in range(30)))
    for i in range(12):
        (tmp_path / f"s{i:02d}/right.png").unlink()
        (tmp_path / f"s{i:02d}/disparity.png").unlink()

    said = fault(tmp_path, tmp_path / "out", **STEREO).splitlines()

    assert said[0].startswith(f"{tmp_path}: 24 files are missing. Check the patterns")
    assert said[0].endswith("the first 20:")
    assert said[1] == "  s00/left.png: no right image s00/right.png"
    assert said[2] == "  s00/left.png: no ground truth s00/disparity.png"
    assert len(said) == 21


def test_a_folder_is_no_companion(tmp_path: Path) -> None:
    pairs(tmp_path, "a/left")
    (tmp_path / "a/right.png").unlink()
    (tmp_path / "a/right.png").mkdir()
    assert "a/left.png: no right image a/right.png" in fault(tmp_path, tmp_path / "out", **STEREO)


def test_faults_of_every_kind_come_together(tmp_path: Path) -> None:
    pairs(tmp_path, "a/left")
    touch(tmp_path, "b/left.png", "left/left.png", "c\nd/left.png")
    said = fault(tmp_path, tmp_path / "out", **STEREO)
    for part in (
        "1 paths are ambiguous",
        "left/left.png: 'left' occurs more than once",
        "2 files are missing",
        "b/left.png: no right image b/right.png",
        "1 names hold a line break",
        r"'c\nd/left.png'",
    ):
        assert part in said


def test_no_match_names_what_was_sought_and_the_nearest_paths(tmp_path: Path) -> None:
    for folder in ("Left", "Right", "depth"):
        touch(tmp_path, *(f"city/{folder}/{i:04d}.png" for i in range(30)))
    touch(tmp_path, "city/readme.txt")

    said = fault(tmp_path, tmp_path / "out", **STEREO)

    assert f"convert.data_root: {tmp_path}: no path" in said
    assert "image_dir_pattern ['left']" in said
    assert "image_extension '.png'" in said
    assert said.splitlines()[1:] == [f"  city/Left/{i:04d}.png" for i in range(3)]


@pytest.mark.parametrize(
    ("names", "nearest"),
    [
        ((), ["none, there is no file"]),
        (("a/left/0.jpg", "a/right/0.png", "a/0.txt"), ["a/left/0.jpg", "a/right/0.png"]),
        (("a/left/0.PNG", "a/left/0.jpg"), ["a/left/0.PNG", "a/left/0.jpg"]),
    ],
)
def test_the_nearest_fulfil_most(tmp_path: Path, names: Iterable[str], nearest: list[str]) -> None:
    said = fault(touch(tmp_path, *names), tmp_path / "out", **STEREO)
    assert [line.strip() for line in said.splitlines()[1:]][: len(nearest)] == nearest


def test_a_full_folder_hides_no_nearer_path_of_another(tmp_path: Path) -> None:
    touch(tmp_path, *(f"a/depth/{i:04d}.png" for i in range(2100)), "z/Left/0.png")
    said = fault(tmp_path, tmp_path / "out", **STEREO)
    assert said.splitlines()[1] == "  z/Left/0.png"


@pytest.mark.parametrize("scene", ["Teddy", "left"])
def test_a_single_scene_as_the_root_is_told(tmp_path: Path, scene: str) -> None:
    """Also where only the name of the folder itself holds the pattern."""
    names = ("left.png", "right.png") if scene == "Teddy" else ("0.png", "1.png")
    root = touch(tmp_path / scene, *names, "sub/readme.txt")
    said = fault(root, tmp_path / "out", **STEREO)
    assert "matching files lie directly in it" in said
    assert f"give its parent {tmp_path}" in said


def test_images_beside_the_scenes_are_told_and_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pairs(tmp_path, "a/left", "left")
    assert [row[0] for row in listed(tmp_path, tmp_path / "out", **STEREO)] == ["a/left.png"]
    assert "1 matching files directly in it are not read" in caplog.text


def test_a_split_is_shuffled_by_its_seed_alone(tmp_path: Path) -> None:
    def split(root: Path, seed: int) -> tuple[list[str], list[str]]:
        result = run(root, tmp_path / "out", **IMAGES, split_ratio=0.6, seed=seed)
        return tuple(
            [os.path.relpath(line, root) for line in lines(result.files[name])]
            for name in ("train", "val")
        )

    names = [f"s{i}/left.png" for i in range(10)]
    first, second = touch(tmp_path / "a", *names), touch(tmp_path / "b", *names[::-1])
    train, val = split(first, 1234)
    assert split(second, 1234) == (train, val)
    assert split(first, 1235) != (train, val)
    assert train != sorted(train)
    assert sorted(train + val) == names
    # Fixed numbers: another order of the standard library or a change here would move samples.
    assert [int(name[1]) for name in train + val] == [2, 7, 9, 1, 5, 6, 8, 3, 4, 0]


@pytest.mark.parametrize(
    ("ratio", "count", "train"),
    [(0.5, 5, 2), (0.29, 100, 29), (0.7, 10, 7), (0.999, 3, 2), (1e-3, 1999, 1)],
)
def test_the_ratio_is_the_train_share_rounded_down(
    tmp_path: Path, ratio: float, count: int, train: int
) -> None:
    touch(tmp_path, *(f"a/left_{i}.png" for i in range(count)))
    result = run(tmp_path, tmp_path / "out", **IMAGES, split_ratio=ratio)
    assert result.counts == {"train": train, "val": count - train}
    assert {name: len(lines(file)) for name, file in result.files.items()} == result.counts


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_a_ratio_of_0_or_1_writes_one_sorted_test_file(tmp_path: Path, ratio: float) -> None:
    touch(tmp_path, "b/left.png", "a/left.png")
    result = run(tmp_path, tmp_path / "out", **IMAGES, split_ratio=ratio)
    assert result.counts == {"test": 2}
    assert lines(result.files["test"]) == [f"{tmp_path}/a/left.png", f"{tmp_path}/b/left.png"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["test.txt"]


@pytest.mark.parametrize(("ratio", "count"), [(0.2, 4), (0.9, 1)])
def test_an_empty_split_is_an_error(tmp_path: Path, ratio: float, count: int) -> None:
    touch(tmp_path, *(f"a/left_{i}.png" for i in range(count)))
    said = fault(tmp_path, tmp_path / "out", **IMAGES, split_ratio=ratio)
    assert f"convert.split_ratio: {ratio} of {count} samples leaves none for train" in said


def test_a_rerun_replaces_what_it_wrote(tmp_path: Path) -> None:
    root = touch(tmp_path / "root", "a/left.png", "b/left.png")
    first = run(root, tmp_path / "out", **IMAGES)
    touch(root, "c/left.png")
    second = run(root, tmp_path / "out", **IMAGES)
    assert len(lines(first.files["test"])) == len(lines(second.files["test"])) == 3
    assert second.moved == ()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["test.txt"]


def test_the_output_of_the_other_mode_is_moved_aside_and_told(tmp_path: Path) -> None:
    root, out = touch(tmp_path / "root", "a/left.png", "b/left.png"), tmp_path / "out"
    before = run(root, out, **IMAGES).files["test"].read_text()

    split = run(root, out, **IMAGES, split_ratio=0.5)

    assert sorted(path.name for path in out.iterdir()) == [
        "test.txt.previous",
        "train.txt",
        "val.txt",
    ]
    assert split.moved == (out / "test.txt.previous",)
    assert split.moved[0].read_text() == before
    back = run(root, out, **IMAGES)
    assert back.moved == (out / "train.txt.previous", out / "val.txt.previous")
    assert list(out.glob("*.txt")) == [out / "test.txt"]


def test_a_failed_run_leaves_the_earlier_output(tmp_path: Path) -> None:
    root, out = pairs(tmp_path / "root", "a/left", "b/left"), tmp_path / "out"
    before = run(root, out, **STEREO).files["test"].read_text()
    (root / "b/right.png").unlink()
    with pytest.raises(DataError):
        run(root, out, **STEREO)
    assert (out / "test.txt").read_text() == before
    assert [path.name for path in out.iterdir()] == ["test.txt"]


NAMES = st.text(
    st.characters(exclude_characters="/\0\n", exclude_categories=["Cs"]), min_size=1, max_size=12
).filter(lambda name: name not in (".", "..", "test.txt"))


@pytest.mark.parametrize("relative", [False, True])
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(scene=NAMES, name=NAMES)
def test_any_name_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, relative: bool, scene: str, name: str
) -> None:
    root = tmp_path_factory.mktemp("names")
    image = f"{scene}/{name}.png"
    touch(root, image)
    fields = {"image_dir_pattern": [".png"], "right_dir_pattern": [".png"]}
    if image.count(".png") > 1:
        fields = {"image_dir_pattern": [image], "right_dir_pattern": [image]}

    file = run(root, root, **fields, image_extension=".png", relative=relative).files["test"]

    (row,) = read_rows(file, dataset="GenericDataset", inference=True)
    assert row.left == row.right
    assert Path(os.path.normpath(str(row.left))) == root / image


@pytest.mark.parametrize(
    "name", ["a b/x left.png", 'say "hi"/left.png', "tab\there/left.png", "plain/left.png"]
)
def test_white_space_and_quotes_are_quoted(tmp_path: Path, name: str) -> None:
    touch(tmp_path, name)
    (line,) = lines(run(tmp_path, tmp_path / "out", **IMAGES).files["test"])
    if name == "plain/left.png":
        assert line == f"{tmp_path}/{name}"
    else:
        doubled = name.replace('"', '""')
        assert line == f'"{tmp_path}/{doubled}"'


@pytest.mark.parametrize("scene", ["#1", "~", "~root", '"', " ", "\ufeff", "a\rb"])
def test_no_scene_name_changes_the_meaning_of_a_line(tmp_path: Path, scene: str) -> None:
    touch(tmp_path, f"{scene}/left.png", f"{scene}/right.png")
    fields = {**STEREO, "depth_dir_pattern": [], "relative": True}
    file = run(tmp_path, tmp_path, **fields).files["test"]
    (row,) = read_rows(file, dataset="GenericDataset", inference=True)
    assert Path(os.path.normpath(str(row.left))) == tmp_path / scene / "left.png"


@pytest.mark.parametrize("name", [b"a/left\xff.png", b"a/left\n.png"])
def test_names_that_no_line_can_hold_are_errors(tmp_path: Path, name: bytes) -> None:
    touch(tmp_path, os.fsdecode(name))
    said = fault(tmp_path, tmp_path / "out", **IMAGES)
    assert "1 names hold a line break or are not UTF-8. Rename them" in said
    assert repr(os.fsdecode(name)) in said


def test_paths_are_absolute_unless_relative_to_the_output_file(tmp_path: Path) -> None:
    root = pairs(tmp_path / "data" / "root", "a/left")
    absolute = run(root, tmp_path / "lists", **STEREO).files["test"]
    assert all(Path(path).is_absolute() for path in lines(absolute)[0].split())
    relative = run(root, tmp_path / "lists", **STEREO, relative=True).files["test"]
    assert lines(relative)[0].split()[0] == "../data/root/a/left.png"
    inside = run(root, root, **STEREO, relative=True).files["test"]
    assert lines(inside) == ["a/left.png a/right.png a/disparity.png"]


def test_relative_paths_lead_out_of_a_linked_folder(tmp_path: Path) -> None:
    """`..` in a linked folder starts where the link leads to."""
    root = pairs(tmp_path / "root", "a/left")
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "lists").symlink_to(tmp_path / "far" / "away")
    file = run(root, tmp_path / "lists", **STEREO, relative=True).files["test"]
    assert lines(file)[0].split()[0] == "../../root/a/left.png"
    (row,) = read_rows(file, dataset="FSD")
    assert row.left.samefile(root / "a/left.png")


def test_progress_counts_files_and_images(tmp_path: Path) -> None:
    touch(tmp_path, *(f"a/{i}_left.png" for i in range(1100)), *(f"a/{i}" for i in range(1000)))
    told: list[tuple[str, int, int | None]] = []
    spec = ConvertSpec(data_root=str(tmp_path), **IMAGES)
    convert(spec, tmp_path / "out", lambda *progress: told.append(progress))
    assert told == [
        ("files seen", 1000, None),
        ("files seen", 2000, None),
        ("images checked", 0, 1100),
        ("images checked", 1000, 1100),
    ]


# -- as an action ---------------------------------------------------------------------------------


def status_lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "status.json").read_text().splitlines()]


def test_the_status_is_started_before_and_counts_the_splits(tmp_path: Path) -> None:
    root, out = pairs(tmp_path / "root", "a/left", "b/left", "c/left"), tmp_path / "out"
    spec = {"convert": {"data_root": str(root), **STEREO, "split_ratio": 0.5, "seed": 7}}

    result = actions.run("convert", spec, out)

    assert (result.status, result.exit_code) == ("ok", 0)
    assert result.metrics == {"samples_train": 1, "samples_val": 2}
    started, written, verdict = status_lines(out)
    assert started["status"] == "STARTED"
    assert written["seed"] == 7
    assert verdict["status"] == "SUCCESS"
    assert verdict["kpi"] == {"samples_train": 1.0, "samples_val": 2.0}
    assert verdict["artifacts"] == ["train.txt", "val.txt"]
    assert json.loads((out / "provenance.json").read_text())["seed"] == 7


def test_a_failure_is_a_status_and_writes_no_list(tmp_path: Path) -> None:
    root, out = pairs(tmp_path / "root", "a/left"), tmp_path / "out"
    (root / "a/right.png").unlink()
    result = actions.run("convert", {"convert": {"data_root": str(root), **STEREO}}, out)
    assert (result.status, result.exit_code) == ("failed", 2)
    started, verdict = status_lines(out)
    assert started["status"] == "STARTED"
    assert (verdict["status"], verdict["exit_code"]) == ("FAILURE", 2)
    assert verdict["message"].startswith("Configuration error: ")
    assert "no right image a/right.png" in verdict["message"]
    assert not list(out.glob("*.txt"))


def test_a_list_of_pairs_needs_right_images(tmp_path: Path) -> None:
    """A line of left image and ground truth would be read as a pair."""
    root, out = pairs(tmp_path / "root", "a/left"), tmp_path / "out"
    spec = {"convert": {"data_root": str(root), **STEREO, "right_dir_pattern": []}}

    result = actions.run("convert", spec, out)

    assert (result.status, result.exit_code) == ("failed", 2)
    assert result.detail.startswith("convert.right_dir_pattern: got []")
    assert "set dataset.dataset_name=MonoDataset" in result.detail
    assert not list(out.glob("*.txt"))
    mono = actions.run("convert", {**spec, "dataset": {"dataset_name": "MonoDataset"}}, out)
    assert mono.status == "ok"
    assert lines(out / "test.txt") == [f"{root}/a/left.png {root}/a/disparity.png"]


def test_mistakes_of_the_spec_come_together(tmp_path: Path) -> None:
    fields = {
        "data_root": str(tmp_path),
        "image_dir_pattern": ["left", "rgb"],
        "right_dir_pattern": ["right"],
        "depth_dir_pattern": [],
        "nocc_dir_pattern": ["a", "b"],
        "nocc_extension": "png",
        "split_ratio": 1.5,
    }
    result = actions.run("convert", {"convert": fields}, tmp_path / "out")
    assert (result.status, result.exit_code) == ("invalid_spec", 2)
    for said in (
        "convert.right_dir_pattern: got 1 strings, convert.image_dir_pattern has 2",
        "nocc_dir_pattern needs depth_dir_pattern",
        "convert.nocc_extension: got 'png', but convert.image_extension is '.png'",
        "convert.split_ratio: got 1.5",
    ):
        assert said in result.detail
    assert not (tmp_path / "out").exists()


def test_a_moved_output_is_told_in_the_log_and_the_result(tmp_path: Path) -> None:
    root, out = pairs(tmp_path / "root", "a/left", "b/left"), tmp_path / "out"
    spec = {"convert": {"data_root": str(root), **STEREO}}
    assert actions.run("convert", spec, out).detail == ""
    moved = actions.run("convert", {"convert": {**spec["convert"], "split_ratio": 0.5}}, out)
    assert f"kept the file of an earlier run as {out}/test.txt.previous" in moved.detail
    assert "test.txt.previous" in (out / "convert.log").read_text()


def test_a_slow_walk_shows_its_count_on_a_terminal_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    touch(tmp_path / "root", *(f"a/{i}_left.png" for i in range(1000)))
    fields = {**IMAGES, "data_root": str(tmp_path / "root")}
    spec = {
        "convert": {**fields, "right_dir_pattern": [], "depth_dir_pattern": []},
        "dataset": {"dataset_name": "MonoDataset"},
    }
    monkeypatch.setattr(progress, "SLOW_SECONDS", 0.0)

    def shown() -> str:
        assert actions.run("convert", spec, tmp_path / "out").status == "ok"
        return capfd.readouterr().err

    assert "files seen" not in shown()
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    assert "files seen" in shown()
    monkeypatch.setattr(progress, "SLOW_SECONDS", 3600.0)
    assert "files seen" not in shown()


# -- as data --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written_layouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five small pairs as Middlebury scenes, as a Kitti folder, in folders with spaces."""
    root = tmp_path_factory.mktemp("real data")
    for index in range(5):
        pair = generate(3, index, height=64, width=128)
        for name in ("middlebury", "kitti"):
            LAYOUTS[name].write(root / name, index, pair)
    return root


@pytest.mark.parametrize(
    ("layout", "dataset", "fields"),
    [("middlebury", "Middlebury", SCENES), ("kitti", "Kitti", KITTI)],
)
def test_the_output_feeds_training(
    written_layouts: Path, tmp_path: Path, layout: str, dataset: str, fields: Mapping[str, Any]
) -> None:
    spec = {"convert": {"data_root": str(written_layouts / layout), **fields, "split_ratio": 0.8}}
    assert actions.run("convert", spec, tmp_path).metrics == {"samples_train": 4, "samples_val": 1}

    def split(name: str) -> dict[str, Any]:
        source = {"dataset_name": dataset, "data_file": str(tmp_path / f"{name}.txt")}
        return {
            "data_sources": [source],
            "batch_size": 2,
            "workers": 0,
            "augmentation": {"crop_size": [64, 128]},
        }

    data = {"train_dataset": split("train"), "val_dataset": split("val")}
    spec = load_spec({"results_dir": str(tmp_path), "dataset": data}, action="train")
    module = DataModule(spec, 0)
    batches = [*module.train_dataloader(), *module.val_dataloader()]
    assert [len(batch["left"]) for batch in batches] == [2, 2, 1]
    assert all(bool(batch["has_gt"].all()) for batch in batches)
    assert all(float(batch["valid"].float().mean()) > 0.5 for batch in batches)


@pytest.mark.slow
def test_training_runs_on_the_output(
    written_layouts: Path, tmp_path: Path, small_values: dict[str, Any]
) -> None:
    root = str(written_layouts / "middlebury")
    spec = {"convert": {"data_root": root, **SCENES, "split_ratio": 0.6, "relative": True}}
    actions.run("convert", spec, tmp_path / "lists")
    for name in ("train", "val"):
        source = {"dataset_name": "Middlebury", "data_file": str(tmp_path / f"lists/{name}.txt")}
        small_values["dataset"][f"{name}_dataset"]["data_sources"] = [source]
    result = actions.run("train", small_values, tmp_path / "train")
    assert (result.status, result.exit_code) == ("ok", 0)
    assert result.artifacts["best"].is_file()


@pytest.mark.parametrize(("root", "fields", "shipped"), REAL_ROOTS)
def test_real_folders_give_their_shipped_lists(
    real_data: Path, tmp_path: Path, root: str, fields: Mapping[str, Any], shipped: str
) -> None:
    made = run(real_data / root, tmp_path, **fields).files["test"]

    def paths(file: Path) -> set[tuple[Path, ...]]:
        rows = (line.split() for line in lines(file) if not line.startswith("#"))
        return {tuple((file.parent / path).resolve() for path in row) for row in rows}

    assert paths(made) == paths(real_data / shipped)
