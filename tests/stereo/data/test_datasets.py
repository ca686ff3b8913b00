from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from stereo.data.annotations import read_rows
from stereo.data.datasets import DATASETS, StereoSample, find_format
from stereo.data.encodings import FSD_PNG, write_pfm, write_png
from stereo.errors import DataError
from stereo.spec.data import STEREO_DATASETS


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    disparity = rng.uniform(1, 9, (6, 8)).astype(np.float32)
    disparity[0, 0] = 0
    write_pfm(tmp_path / "d.pfm", disparity)
    FSD_PNG.write(tmp_path / "d.png", disparity)
    mask = np.full((6, 8), 255, np.uint8)
    mask[1, :2] = 128, 0
    for name in ("l.png", "r.png"):
        write_png(tmp_path / name, rng.integers(0, 256, (6, 8, 3), np.uint8))
    write_png(tmp_path / "m.png", mask)
    return tmp_path


def read(scene: Path, line: str, dataset: str = "GenericDataset") -> StereoSample:
    path = scene / "a.txt"
    path.write_text(line)
    (row,) = read_rows(path, dataset=dataset)
    return find_format(dataset).read(row)


def test_the_spec_and_the_table_know_the_same_classes() -> None:
    assert set(DATASETS["stereo"]) == set(STEREO_DATASETS)


@pytest.mark.parametrize("dataset", ["Middlebury", "GENERICDATASET"])
@pytest.mark.parametrize("disparity", ["d.pfm", "d.png"])
def test_masked_and_unknown_pixels_are_inf(scene: Path, dataset: str, disparity: str) -> None:
    sample = read(scene, f"l.png r.png {disparity} m.png", dataset)

    unknown = [(0, 0), (1, 0), (1, 1)]
    assert np.argwhere(~sample.valid).tolist() == [list(place) for place in unknown]
    assert np.isinf(sample.disparity[~sample.valid]).all()
    assert (sample.left.dtype, sample.left.shape) == (np.uint8, (6, 8, 3))
    assert sample.disparity.dtype == np.float32
    assert sample.name == "l.png"


def test_two_columns_have_no_ground_truth(scene: Path) -> None:
    sample = read(scene, "l.png r.png")

    assert not sample.has_gt
    assert not sample.valid.any()


@pytest.mark.parametrize("wrong", ["r.png", "d.pfm", "m.png"])
def test_a_different_size_is_an_error_with_both_sizes_and_the_line(scene: Path, wrong: str) -> None:
    if wrong == "d.pfm":
        write_pfm(scene / wrong, np.ones((6, 7), np.float32))
    else:
        write_png(scene / wrong, np.zeros((6, 7, 3), np.uint8))

    with pytest.raises(DataError, match=rf"a\.txt:1: .*{wrong}: size 7x6 differs .*8x6"):
        read(scene, "l.png r.png d.pfm m.png")


def test_a_broken_file_names_annotation_line_and_path(scene: Path) -> None:
    (scene / "d.pfm").write_bytes((scene / "d.pfm").read_bytes()[:-1])

    with pytest.raises(DataError, match=r"a\.txt:1: .*d\.pfm: PFM of 8x6 needs 192 .*has 191"):
        read(scene, "l.png r.png d.pfm")


@pytest.mark.parametrize("name", ["middlebury", "generic"])
def test_real_samples_have_the_expected_values(real_data: Path, name: str) -> None:
    expected = json.loads((real_data / "EXPECTED.json").read_text())[name]
    form = find_format(expected["dataset_name"])
    rows = read_rows(real_data / f"{name}.txt", dataset=form.name)
    assert len(rows) == len(expected["samples"])
    for row, values in zip(rows, expected["samples"], strict=True):
        sample = form.read(row)
        assert sample.name == values["left"]
        assert sample.left.shape == (values["height"], values["width"], 3)
        assert int(sample.valid.sum()) == values["valid_after_mask"]
        known = sample.disparity[sample.valid].astype(np.float64)
        measured = (known.mean(), known.min(), known.max())
        assert measured == pytest.approx((values["mean"], values["min"], values["max"]), abs=1e-4)
        for y, x, value in values["points_y_x_value"]:
            assert sample.disparity[y, x] == pytest.approx(value, abs=1e-4)
