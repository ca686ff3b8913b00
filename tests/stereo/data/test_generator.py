from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from stereo.data.annotations import read_rows
from stereo.data.datasets import StereoSample, find_format
from stereo.data.generator import (
    EMBEDDED,
    EmbeddedLayout,
    GeneratedPair,
    generate,
    main,
    write_embedded,
)
from stereo.data.surfaces import BASELINE

SMALL = EmbeddedLayout(train_pairs=3, train_size=(48, 64), val_pairs=2, val_size=(32, 48))


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


def test_right_image_at_the_disparity_shows_the_left_pixel(
    pairs: list[GeneratedPair], interior_of: Callable[[GeneratedPair], np.ndarray]
) -> None:
    matching, hidden = [], []
    for pair in pairs:
        difference = np.abs(right_at(pair, pair.right.astype(np.float64)) - pair.left).mean(-1)
        matching.append(difference[interior_of(pair)])
        inside = np.arange(256)[None, :] - pair.disparity >= 0
        hidden.append(difference[pair.occluded & inside])
    matching, hidden = np.concatenate(matching), np.concatenate(hidden)

    assert matching.mean() < 1
    assert np.percentile(matching, 99) < 4
    assert hidden.mean() > 15


def test_the_best_global_offset_is_zero(
    clean_sample: Callable[..., StereoSample], warp_error: Callable[..., float]
) -> None:
    sample = clean_sample(0)
    offsets = np.linspace(-0.5, 0.5, 11)

    errors = [warp_error(sample, offset=offset) for offset in offsets]

    assert abs(offsets[int(np.argmin(errors))]) < 0.11


def test_both_views_agree_on_disparity(
    pairs: list[GeneratedPair], interior_of: Callable[[GeneratedPair], np.ndarray]
) -> None:
    for pair in pairs:
        difference = np.abs(right_at(pair, pair.right_disparity) - pair.disparity)
        assert np.percentile(difference[interior_of(pair)], 99) < 0.1


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


def test_the_program_names_the_files_it_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(tmp_path)])

    assert f"train: {tmp_path / 'train.txt'}" in capsys.readouterr().out
    assert (tmp_path / "val_middlebury.txt").is_file()
