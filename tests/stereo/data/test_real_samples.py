"""Every real sample decodes to the values of an independent decoder (`EXPECTED.json`).

The files are no part of the repository: `../shared/data/real` beside it, or the folder that
`DEPTHTUNE_REAL_DATA` names.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stereo.data.annotations import Row, parse
from stereo.data.datasets import Family, Format, MonoSample, StereoSample, eval_crop, find_format
from stereo.data.encodings import MIDDLEBURY_PNG
from stereo.data.loaders import evaluation_loader
from stereo.spec.data import MonoSource
from stereo.spec.experiment import MetricDepthExperiment

# Annotation file -> further classes that read the same content to the same values.
STEREO_FILES = {
    "middlebury": ("Middlebury", "Eth3d", "GenericDataset"),
    "eth3d": ("Eth3d", "Middlebury", "GenericDataset"),
    "kitti": ("Kitti",),
    "generic": ("GenericDataset", "FSD", "IsaacRealDataset", "Middlebury", "Eth3d"),
    "fsd": ("FSD", "IsaacRealDataset", "GenericDataset", "Middlebury", "Eth3d"),
    "crestereo": ("Crestereo",),
    "kitti_encoding": ("Kitti",),
    "isaacreal": ("IsaacRealDataset", "FSD", "GenericDataset", "Middlebury", "Eth3d"),
}
# (annotation file, class, section of EXPECTED.json with the same content)
MONO_DISPARITY_FILES = [
    ("mono_relative", "RelativeMonoDataset", "generic"),
    ("mono_relative", "IssacStereo", "generic"),
    ("mono_relative", "Middlebury", "generic"),
    ("middlebury", "Middlebury", "middlebury"),
    ("eth3d", "Middlebury", "eth3d"),
    ("fsd", "FSD", "fsd"),
    ("crestereo", "Crestereo", "crestereo"),
]


def rows_and_values(
    real_data: Path, name: str, form: Format, section: str = ""
) -> list[tuple[Row, dict[str, Any]]]:
    """Rows of an annotation file with the expected values of their images."""
    expected = json.loads((real_data / "EXPECTED.json").read_text())[section or name]
    values = {sample.get("left") or sample["image"]: sample for sample in expected["samples"]}
    rows, faults = parse(real_data / f"{name}.txt", form, inference=False)
    assert not faults
    paired = [(row, values[str(row.left.relative_to(real_data))]) for row in rows]
    assert paired
    assert section or len(paired) == len(values)
    return paired


def require_values(found: np.ndarray, values: dict[str, Any]) -> None:
    """Statistics and single pixels of a decoded map, +inf where unknown."""
    assert found.dtype == np.float32
    assert found.shape == (values["height"], values["width"])
    known = np.isfinite(found)
    assert known.sum() == values["valid_after_mask"]
    seen = found[known].astype(np.float64)
    statistics = (seen.mean(), seen.min(), seen.max())
    assert statistics == pytest.approx((values["mean"], values["min"], values["max"]), abs=1e-5)
    for y, x, value in values["points_y_x_value"]:
        assert found[y, x] == pytest.approx(value, abs=1e-5)


def test_every_section_of_the_expected_values_is_tested(real_data: Path) -> None:
    sections = json.loads((real_data / "EXPECTED.json").read_text())
    declared = {name: section["dataset_name"] for name, section in sections.items()}
    tested = {name: classes[0] for name, classes in STEREO_FILES.items()}
    tested |= {"mono_nyudv2": "NYUDV2", "mono_metric": "MetricMonoDataset"}
    assert declared == tested


@pytest.mark.parametrize(
    ("name", "dataset"),
    [(name, dataset) for name, datasets in STEREO_FILES.items() for dataset in datasets],
)
def test_stereo_classes_decode_every_sample(real_data: Path, name: str, dataset: str) -> None:
    form = find_format(dataset)
    for row, values in rows_and_values(real_data, name, form):
        sample = form.read(row)
        assert isinstance(sample, StereoSample)
        assert sample.name == values["left"]
        assert sample.left.shape == sample.right.shape == (*sample.disparity.shape, 3)
        assert sample.has_gt
        require_values(sample.disparity, values)
        unmasked = form.read(replace(row, occlusion=None))
        assert unmasked.valid.sum() == values["valid"]


@pytest.mark.parametrize(("name", "dataset", "section"), MONO_DISPARITY_FILES)
def test_mono_disparity_classes_decode_every_sample(
    real_data: Path, name: str, dataset: str, section: str
) -> None:
    form = find_format(dataset, "mono")
    for row, values in rows_and_values(real_data, name, form, section):
        sample = form.read(row)
        assert isinstance(sample, MonoSample)
        assert sample.image.shape == (values["height"], values["width"], 3)
        require_values(sample.target, values)
        assert form.read(replace(row, occlusion=None)).valid.sum() == values["valid"]


@pytest.mark.parametrize(
    ("name", "dataset"), [("mono_nyudv2", "NYUDV2"), ("mono_metric", "MetricMonoDataset")]
)
def test_mono_depth_classes_decode_every_sample(real_data: Path, name: str, dataset: str) -> None:
    form = find_format(dataset, "mono")
    for row, values in rows_and_values(real_data, name, form):
        sample = form.read(row)
        counted = (sample.target > 0.001) & (sample.target < 10)
        assert sample.target.shape == (values["height"], values["width"])
        assert counted.sum() == values["valid_0p001_to_10m"]
        mean = sample.target[counted].mean(dtype=np.float64)
        assert mean == pytest.approx(values["mean_m"], abs=1e-5)
        if values["valid_with_eigen_crop"] is not None:
            assert form.eval_crop is not None
            crop = eval_crop(form.eval_crop, *sample.target.shape)
            assert counted[crop].sum() == values["valid_with_eigen_crop"]


def test_nyu_relative_is_the_reciprocal_of_the_depth_in_range(real_data: Path) -> None:
    depth_form, form = find_format("NYUDV2", "mono"), find_format("NYUDV2Relative", "mono")
    ((row, values),) = rows_and_values(real_data, "mono_nyudv2", form)

    sample, depth = form.read(row), depth_form.read(row).target

    assert sample.valid.sum() == values["valid_0p001_to_10m"]
    np.testing.assert_allclose(sample.target[sample.valid] * depth[sample.valid], 1, rtol=1e-6)


def test_8_bit_disparity_is_that_of_the_scene_in_whole_px(real_data: Path) -> None:
    folder = real_data / "Encodings" / "Teddy"
    ((row, _),) = rows_and_values(real_data, "isaacreal", find_format("IsaacRealDataset"))
    exact = find_format("IsaacRealDataset").read(row).disparity

    found = MIDDLEBURY_PNG.read(folder / "disp_middlebury_u8.png")
    mono_row = replace(row, right=None, disparity=folder / "disp_middlebury_u8.png")

    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(exact))
    known = np.isfinite(found)
    assert np.abs(found[known] - exact[known]).max() <= 0.5
    mono = find_format("Middlebury", "mono").read(mono_row)
    np.testing.assert_array_equal(mono.target, found)


@pytest.mark.parametrize(
    ("name", "family", "dataset"),
    [("generic_no_gt", "stereo", "GenericDataset"), ("mono_no_gt", "mono", "RelativeMonoDataset")],
)
def test_lines_without_ground_truth_have_none(
    real_data: Path, name: str, family: Family, dataset: str
) -> None:
    form = find_format(dataset, family)
    rows, faults = parse(real_data / f"{name}.txt", form, inference=True)

    assert not faults
    assert len(rows) == 4
    for sample in map(form.read, rows):
        assert not sample.has_gt
        assert not sample.valid.any()


def test_the_nyu_frame_is_scored_at_native_size_inside_its_box(real_data: Path) -> None:
    values = json.loads((real_data / "EXPECTED.json").read_text())["mono_nyudv2"]["samples"][0]
    spec = MetricDepthExperiment()
    spec.dataset.cache, split = "off", spec.dataset.test_dataset
    split.workers = 0
    split.data_sources = [MonoSource("NYUDV2", str(real_data / "mono_nyudv2.txt"))]

    (batch,) = evaluation_loader(split, spec, batch_size=1)

    assert batch["image"].shape == (1, 3, 518, 686)  # networks-mono.md 5
    assert batch["target"].shape == (1, 1, values["height"], values["width"])
    assert int(batch["valid"].sum()) == values["valid_with_eigen_crop"]
