from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from stereo.data.annotations import read_rows
from stereo.data.appearance import _texture_atlas
from stereo.data.datasets import find_format
from stereo.data.encodings import read_image
from stereo.data.generator import (
    EMBEDDED,
    EMBEDDED_IMAGES,
    EmbeddedLayout,
    GeneratedPair,
    embedded_sources,
    generate,
    main,
    write_embedded,
    write_embedded_images,
)
from stereo.data.layouts import LAYOUTS
from stereo.data.scenes import draw_scene
from stereo.data.surfaces import BASELINE, Camera, Sphere

SMALL = EmbeddedLayout(train_pairs=3, train_size=(48, 64), val_pairs=2, val_size=(32, 48))

VAL_0001_TRUTH = "02de46949ffcd3941f288c568db0cba0ee57fa594c349fe01db1015b14f0d8af"


@pytest.fixture(scope="module")
def pairs() -> list[GeneratedPair]:
    return [generate(3, i, height=192, width=256, photometric=False) for i in range(8)]


def right_at(pair: GeneratedPair, values: np.ndarray) -> np.ndarray:
    """Right-view values, bilinear at column x - d of every left pixel."""
    width = pair.disparity.shape[1]
    x = np.clip(np.arange(width)[None, :] - pair.disparity.astype(np.float64), 0, width - 1)
    column = np.minimum(np.floor(x).astype(int), width - 2)
    share = x - column
    rows = np.arange(len(x))[:, None]
    if values.ndim == 3:
        share = share[..., None]
    return values[rows, column] * (1 - share) + values[rows, column + 1] * share


def test_equal_seed_and_index_give_equal_bytes_and_others_differ() -> None:
    first, again = (generate(4, 2, height=64, width=96) for _ in range(2))
    for field in fields(GeneratedPair):
        if field.name != "camera":
            assert getattr(first, field.name).tobytes() == getattr(again, field.name).tobytes()
    for seed, index in ((4, 3), (5, 2)):
        other = generate(seed, index, height=64, width=96)
        assert (other.left != first.left).mean() > 0.5


def interior(pair: GeneratedPair) -> np.ndarray:
    """Visible pixels around whose match the right view shows the same surface."""
    width = pair.ids.shape[1]
    column = np.floor(np.arange(width)[None, :] - pair.disparity).astype(int)
    rows = np.arange(len(column))[:, None]
    inside = ~pair.occluded
    for dx in (-1, 0, 1, 2):
        near = pair.right_ids[rows, np.clip(column + dx, 0, width - 1)]
        inside = inside & (near == pair.ids)
    return inside


def on_spheres(pair: GeneratedPair, index: int) -> np.ndarray:
    """Pixels of the left view that show a sphere; the scene is drawn again."""
    height, width = pair.ids.shape
    scene = draw_scene(np.random.default_rng((3, index)), Camera(height, width), width / 4)
    return np.array([isinstance(surface, Sphere) for surface in scene.surfaces])[pair.ids]


def test_right_image_at_the_disparity_shows_the_left_pixel(pairs: list[GeneratedPair]) -> None:
    matching, hidden, shares = [], [], []
    for pair in pairs:
        difference = np.abs(right_at(pair, pair.right.astype(np.float64)) - pair.left).mean(-1)
        inside = np.arange(256)[None, :] - pair.disparity >= 0
        matching.append(difference[interior(pair)])
        hidden.append(difference[pair.occluded & inside])
        shares.append(interior(pair).sum() / (~pair.occluded).sum())
    matching, hidden = np.concatenate(matching), np.concatenate(hidden)

    assert np.mean(shares) > 0.95
    assert matching.mean() < 1
    assert np.percentile(matching, 99) < 4
    assert hidden.mean() > 15


def test_the_best_global_offset_is_zero(pairs: list[GeneratedPair]) -> None:
    offsets = np.linspace(-0.5, 0.5, 41)
    errors = np.zeros(41)
    for number, offset in enumerate(offsets):
        for pair in pairs[:4]:
            moved = replace(pair, disparity=pair.disparity - np.float32(offset))
            difference = np.abs(right_at(moved, pair.right.astype(np.float64)) - pair.left)
            errors[number] += difference[interior(pair)].mean()

    assert abs(offsets[int(np.argmin(errors))]) <= 0.1


def test_both_views_agree_on_disparity(pairs: list[GeneratedPair]) -> None:
    planes, spheres = [], []
    for index, pair in enumerate(pairs):
        difference = np.abs(right_at(pair, pair.right_disparity) - pair.disparity)
        is_sphere = on_spheres(pair, index)
        planes.append(difference[interior(pair) & ~is_sphere])
        spheres.append(difference[interior(pair) & is_sphere])

    assert np.concatenate(planes).max() < 0.001
    assert np.percentile(np.concatenate(spheres), 99) < 0.1


def test_occlusion_is_what_a_dense_right_view_shows(pairs: list[GeneratedPair]) -> None:
    """A pixel is hidden where the right view, sampled beside its match, is nearer on both sides."""
    for pair in pairs:
        width = pair.ids.shape[1]
        x = np.arange(width)[None, :] - pair.disparity.astype(np.float64)
        column = np.clip(np.floor(x).astype(int), 0, width - 2)
        rows = np.arange(len(x))[:, None]
        beside = np.stack([pair.right_disparity[rows, column + step] for step in (0, 1)])
        nearer = (beside > pair.disparity + 1).all(axis=0)
        inside = (x >= 0) & (x <= width - 1)

        assert pair.occluded[inside & nearer].mean() > 0.99
        assert pair.occluded[~inside].all()


def test_depth_is_focal_length_times_baseline_over_disparity(pairs: list[GeneratedPair]) -> None:
    for pair in pairs:
        assert pair.depth.dtype == np.float32
        np.testing.assert_allclose(pair.depth * pair.disparity, 0.9 * 256 * BASELINE, rtol=1e-6)
        assert 0.3 < pair.depth.min() < pair.depth.max() < 10


def test_disparity_stays_inside_its_limit(pairs: list[GeneratedPair]) -> None:
    for pair in pairs:
        for disparity in (pair.disparity, pair.right_disparity):
            assert disparity.min() > 0
            assert disparity.max() < 64


def test_the_calibration_file_holds_focal_length_and_baseline(tmp_path: Path) -> None:
    embedded = write_embedded(tmp_path, SMALL)
    text = (embedded.train.parent / "train/0000/calib.txt").read_text()

    assert f"cam0=[{0.9 * 64} 0 31.5; 0 {0.9 * 64} 23.5; 0 0 1]" in text
    assert f"baseline={BASELINE * 1000}" in text
    assert "doffs=0" in text


def test_embedded_set_reads_back_as_generated(tmp_path: Path) -> None:
    embedded = write_embedded(tmp_path, SMALL)
    pair = generate(SMALL.val_seed, 1, height=32, width=48, max_disparity=SMALL.max_disparity)

    row = read_rows(embedded.val, dataset="GenericDataset")[1]
    sample = find_format("GenericDataset").read(row)
    masked_row = read_rows(embedded.val_middlebury, dataset="Middlebury")[1]
    masked = find_format("Middlebury").read(masked_row)

    np.testing.assert_array_equal(sample.left, pair.left)
    np.testing.assert_array_equal(sample.right, pair.right)
    np.testing.assert_array_equal(sample.disparity, pair.disparity)
    np.testing.assert_array_equal(masked.valid, ~pair.occluded)
    assert len(read_rows(embedded.train_middlebury, dataset="Middlebury")) == SMALL.train_pairs


def snapshot(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def test_writing_twice_and_from_two_processes_gives_one_set(tmp_path: Path) -> None:
    write_embedded(tmp_path / "alone", SMALL)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for future in [pool.submit(write_embedded, tmp_path / "shared", SMALL) for _ in range(2)]:
            future.result()

    assert snapshot(tmp_path / "alone") == snapshot(tmp_path / "shared")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "alone").rglob("*.png")}
    write_embedded(tmp_path / "alone", SMALL)
    assert times == {path: path.stat().st_mtime_ns for path in times}


def test_an_unfinished_or_differently_laid_out_set_is_written_anew(tmp_path: Path) -> None:
    complete = snapshot_of_new_set(tmp_path / "complete")
    write_embedded(tmp_path / "cut", SMALL)
    (tmp_path / "cut/embedded.json").unlink()
    (tmp_path / "cut/val/0001/im0.png").unlink()
    write_embedded(tmp_path / "cut", SMALL)
    write_embedded(tmp_path / "other", replace(SMALL, val_seed=9))
    write_embedded(tmp_path / "other", SMALL)

    assert snapshot(tmp_path / "cut") == complete
    assert snapshot(tmp_path / "other") == complete


def snapshot_of_new_set(directory: Path) -> dict[str, bytes]:
    write_embedded(directory, SMALL)
    return snapshot(directory)


def test_training_and_validation_pairs_come_from_different_seeds() -> None:
    assert EMBEDDED.train_seed != EMBEDDED.val_seed
    assert EMBEDDED.val_pairs >= 16


def test_the_embedded_pairs_are_those_of_every_measured_study(tmp_path: Path) -> None:
    """Truth by its hash; images by their mean, which another CPU's rounding cannot move so far."""
    embedded = write_embedded(tmp_path, replace(EMBEDDED, train_pairs=1, val_pairs=2))

    truth = (tmp_path / "val/0001/disp0GT.pfm").read_bytes()
    image = read_image(tmp_path / "val/0001/im1.png")
    assert hashlib.sha256(truth).hexdigest() == VAL_0001_TRUTH
    np.testing.assert_allclose(image.mean(axis=(0, 1)), [91.699, 96.914, 142.13], atol=0.01)
    assert embedded.val.read_text().splitlines() == [
        f"val/{scene}/im0.png val/{scene}/im1.png val/{scene}/disp0GT.pfm"
        for scene in ("0000", "0001")
    ]


def test_depth_cues_change_the_colours_only() -> None:
    size = {"height": 64, "width": 96, "photometric": False}
    plain, cued = (generate(4, 2, **size, depth_cues=on) for on in (False, True))
    for name in ("disparity", "right_disparity", "occluded", "ids", "right_ids"):
        assert getattr(plain, name).tobytes() == getattr(cued, name).tobytes()
    assert (plain.left != cued.left).mean() > 0.5


def test_both_views_show_the_same_depth_cues() -> None:
    for index in (0, 1):
        pair = generate(3, index, height=192, width=256, photometric=False, depth_cues=True)
        difference = np.abs(right_at(pair, pair.right.astype(np.float64)) - pair.left).mean(-1)
        assert difference[interior(pair)].mean() < 1


def test_haze_takes_the_colours_of_what_is_far() -> None:
    near, far = [], []
    for index in range(12):
        pair = generate(3, index, height=126, width=168, photometric=False, depth_cues=True)
        spread = pair.left.max(-1).astype(float) - pair.left.min(-1)
        near.append(spread[pair.depth < 1])
        far.append(spread[pair.depth > 4])
    assert np.concatenate(near).mean() > 3 * np.concatenate(far).mean()


@pytest.mark.parametrize(("depth", "step"), [(1.0, 0.25), (4.0, 1.0), (8.0, 2.0)])
def test_a_texture_of_fixed_size_in_metres_shrinks_with_distance(depth: float, step: float) -> None:
    camera = Camera(126, 168)
    x, y = np.arange(168.0)[None, :], np.arange(126.0)[:, None]
    disparity = np.full((126, 168), camera.focal * BASELINE / depth)
    u, v = camera.on_surface(x, y, disparity)
    np.testing.assert_allclose(np.diff(u, axis=1), step)
    np.testing.assert_allclose(np.diff(v, axis=0), step)


def test_images_that_tell_depth_share_their_textures_with_a_few_others_only() -> None:
    _texture_atlas.cache_clear()
    for index, pools in ((0, 1), (31, 1), (32, 2)):
        generate(9, index, height=16, width=32, depth_cues=True)
        assert _texture_atlas.cache_info().misses == pools


@pytest.mark.parametrize("dataset", ["MetricMonoDataset", "RelativeMonoDataset"])
def test_embedded_images_hold_the_depth_or_the_disparity_of_the_scenes(
    tmp_path: Path, dataset: str
) -> None:
    layout = replace(EMBEDDED_IMAGES, train_pairs=1, val_pairs=2)
    train, val = write_embedded_images(tmp_path, dataset, layout)
    rows = read_rows(val, dataset=dataset, family="mono")
    sample = find_format(dataset, "mono").read(rows[1])
    size = {"height": 126, "width": 168, "max_disparity": 42.0}
    pair = generate(layout.val_seed, 1, **size, depth_cues=True)

    assert (len(read_rows(train, dataset=dataset, family="mono")), len(rows)) == (1, 2)
    np.testing.assert_array_equal(sample.image, pair.left)
    truth = pair.depth if dataset == "MetricMonoDataset" else pair.disparity
    np.testing.assert_array_equal(sample.target, truth)
    if dataset == "MetricMonoDataset":
        assert 0.3 < sample.target.min() < sample.target.max() < 10


def test_both_kinds_of_embedded_images_and_the_pairs_share_a_folder(tmp_path: Path) -> None:
    layout = replace(EMBEDDED_IMAGES, train_pairs=1, val_pairs=1)
    classes = ("MetricMonoDataset", "RelativeMonoDataset")
    written = {file for name in classes for file in write_embedded_images(tmp_path, name, layout)}
    before = snapshot(tmp_path)
    write_embedded(tmp_path, SMALL)
    for name in classes:
        write_embedded_images(tmp_path, name, layout)
    assert len(written) == 4
    assert before.items() <= snapshot(tmp_path).items()


@pytest.mark.parametrize(
    ("dataset", "read_as"),
    [("GenericDataset", "Middlebury"), ("MetricMonoDataset", "MetricMonoDataset")],
)
def test_embedded_sources_are_of_the_class_that_a_model_reads(
    tmp_path: Path, dataset: str, read_as: str
) -> None:
    sources = embedded_sources(dataset, tmp_path, large=False)
    for part in ("train", "val"):
        name, _, file = sources[part].partition(":")
        assert name == read_as
        family = "stereo" if read_as == "Middlebury" else "mono"
        assert len(read_rows(Path(file), dataset=name, family=family)) in (
            EMBEDDED.val_pairs,
            EMBEDDED.train_pairs,
            EMBEDDED_IMAGES.train_pairs,
        )


def test_the_program_writes_everything_and_prints_options_that_can_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(tmp_path), "--pairs", "1", "--size", "32x48"])

    output = capsys.readouterr()
    heading, *shown = output.out.splitlines()
    lines = [shlex.split(line) for line in shown if line.startswith(("stereo ", "mono "))]
    assert str(tmp_path) in heading
    assert output.err.splitlines()[-1] == "2 of 2 pairs"
    mono = [words for words in lines if words[0] == "mono"]
    assert len(mono) == sum(len(form.mono) for form in LAYOUTS.values())
    for family, dataset, file in mono:
        assert read_rows(Path(file), dataset=dataset, family=family)
    for family, *options in lines[: -len(mono)]:
        for flag, value in zip(options[::2], options[1::2], strict=True):
            assert flag in ("--data", "--val")
            dataset, _, file = value.partition(":")
            assert read_rows(Path(file), dataset=dataset, family=family)
    embedded = {"train_middlebury.txt", "val_middlebury.txt", "train.txt", "val.txt"}
    assert {path.name for path in tmp_path.glob("*.txt")} == embedded
    assert len(lines) == 2 + sum(len(form.stereo + form.mono) for form in LAYOUTS.values())


def test_the_program_writes_only_the_layouts_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "my pairs"
    main([str(folder), "--layout", "kitti", "--pairs", "1", "--size", "16x32", "--seed", "7"])

    heading, *lines = capsys.readouterr().out.splitlines()
    assert [path.name for path in folder.iterdir()] == ["kitti"]
    assert heading == f"Written below {folder}."
    assert lines == [
        "Dataset classes that read it, as options of `automl study MODEL`:",
        f"stereo  --data 'Kitti:{folder}/kitti/kitti.txt'",
    ]
    pair = generate(7, 0, height=16, width=32)
    image = read_image(folder / "kitti/training/image_2/000000_10.png")
    np.testing.assert_array_equal(image, pair.left)


def test_mono_classes_are_not_offered_as_options_of_a_study(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A study of today refuses them."""
    (name,) = (name for name, layout in LAYOUTS.items() if "NYUDV2" in layout.mono)
    folder = tmp_path / "my pairs"
    main([str(folder), "--layout", name, "--pairs", "1"])

    assert capsys.readouterr().out.splitlines()[1:] == [
        "For networks of monocular depth, the dataset class and the annotation file:",
        f"mono    NYUDV2  '{folder}/{name}/{name}.txt'",
        f"mono    NYUDV2Relative  '{folder}/{name}/{name}.txt'",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pairs", "0"], "--pairs: got '0', allowed 1.."),
        (["--size", "192"], "--size: got '192', wanted height x width in px like 192x256"),
        (["--size", "15x64"], "16..4096"),
        (["--seed", "-1"], "--seed"),
        (["--layout", "sintel"], "--layout: invalid choice: 'sintel'"),
    ],
)
def test_the_program_refuses_wrong_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / "new"), *arguments])

    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_the_program_ends_with_code_2_where_something_else_lies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kitti").mkdir()
    (tmp_path / "kitti" / "calib.zip").touch()

    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path), "--layout", "fsd", "kitti"])

    assert stopped.value.code == 2
    assert f"{tmp_path / 'kitti'}: holds files of another origin" in capsys.readouterr().err
    assert not (tmp_path / "fsd").exists()


def test_the_help_names_every_layout_with_its_classes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])

    text = capsys.readouterr().out
    for name, layout in LAYOUTS.items():
        assert f"  {name} " in text
        assert all(known in text for known in (*layout.stereo, *layout.mono))


@pytest.mark.parametrize(("quiet_seconds", "shows_bar"), [(0, True), (60, False)])
def test_a_terminal_shows_a_bar_with_the_time_left_when_it_takes_long(
    tmp_path: Path, quiet_seconds: int, shows_bar: bool
) -> None:
    program = (
        f"import sys, stereo.data.generator as g; from stereo import progress; "
        f"progress.SLOW_SECONDS = {quiet_seconds}; "
        "g.main([sys.argv[1], '--layout', 'fsd', '--pairs', '3', '--size', '16x32'])"
    )
    reader, terminal = os.openpty()
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], stderr=terminal, stdout=subprocess.PIPE
    )
    os.write(terminal, b"end")
    os.close(terminal)
    shown = os.read(reader, 2**16).decode()
    os.close(reader)

    assert done.returncode == 0
    assert all((text in shown) == shows_bar for text in ("writing pairs", "3/3", "0:00:00"))
