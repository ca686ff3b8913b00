from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from stereo import viz
from stereo.data.encodings import read_image, read_pfm
from stereo.evaluation.evaluator import Scores
from stereo.evaluation.pictures import write_pictures, write_predictions
from stereo.geometry import disparity_to_depth
from stereo.predict import Predictor
from stereo.spec.data import StereoAugmentSpec
from stereo.spec.experiment import ExperimentSpec
from stereo.tasks import STEREO

H, W = 20, 30
SPEC = ExperimentSpec()


def _batch(names: list[str], *, has_gt: bool = True) -> dict[str, Any]:
    count = len(names)
    truth = torch.linspace(1, 10, W).expand(count, 1, H, W)
    valid = torch.full((count, 1, H, W), has_gt)
    valid[..., :5] = False
    return {
        "left": torch.zeros(count, 3, H, W),
        "right": torch.zeros(count, 3, H, W),
        "disparity": truth.clone(),
        "valid": valid,
        "truth_pixels": valid.sum(dim=(1, 2, 3)),
        "has_gt": torch.full((count,), has_gt),
        "from_cache": torch.zeros(count, dtype=torch.bool),
        "index": torch.arange(count),
        "name": names,
    }


@pytest.fixture
def predictor() -> Predictor:
    def ramp(left: Tensor, _right: Tensor) -> Tensor:
        return torch.linspace(0, 8, left.shape[-1]).expand(len(left), *left.shape[-2:])

    return Predictor(ramp, STEREO, backend="test", source=Path("a.pth"), stride=1)


def test_inference_writes_a_panel_and_raw_disparity_for_every_pair(
    predictor: Predictor, tmp_path: Path
) -> None:
    batches = [_batch(["a/left.png", "b/left.png"]), _batch(["/far/away/left.png"], has_gt=False)]
    count = write_predictions(
        predictor,
        batches,
        tmp_path,
        StereoAugmentSpec(),
        SPEC,
        save_raw_pfm=True,
        save_raw_npy=True,
    )

    assert count == 3
    written = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    stems = ["a/left", "b/left", "far/away/left"]
    assert written == sorted(
        f"{folder}/{stem}.{suffix}"
        for stem in stems
        for folder, suffix in (
            ("inference_images", "png"),
            ("disparity_pfm", "pfm"),
            ("disparity_npy", "npy"),
        )
    )
    expected = np.broadcast_to(np.linspace(0, 8, W, dtype=np.float32), (H, W))
    np.testing.assert_allclose(read_pfm(tmp_path / "disparity_pfm/a/left.pfm"), expected, atol=1e-6)
    np.testing.assert_allclose(np.load(tmp_path / "disparity_npy/a/left.npy"), expected, atol=1e-6)
    panels = read_image(tmp_path / "inference_images/a/left.png")
    assert panels.shape == (H, 4 * W, 3), "left, ground truth, prediction, error"
    np.testing.assert_array_equal(panels[:, 2 * W : 3 * W], viz.color_disparity(expected))
    assert read_image(tmp_path / "inference_images/far/away/left.png").shape == (H, 2 * W, 3)


def test_depth_is_written_in_metres_and_16_bit_millimetres(
    predictor: Predictor, tmp_path: Path
) -> None:
    def to_depth(disparity: np.ndarray) -> np.ndarray:
        return disparity_to_depth(disparity, baseline=0.1, focal_x=40.0)

    write_predictions(
        predictor,
        [_batch(["a/left.png"])],
        tmp_path,
        StereoAugmentSpec(),
        SPEC,
        save_raw_pfm=False,
        save_raw_npy=False,
        depth=to_depth,
    )
    metres = np.load(tmp_path / "depth/a/left.npy")
    millimetres = cv2.imread(str(tmp_path / "depth/a/left.png"), cv2.IMREAD_UNCHANGED)
    assert (metres[:, 0] == 0).all(), "no disparity, no depth"
    assert metres[0, -1] == pytest.approx(0.1 * 40 / 8)
    assert millimetres.dtype == np.uint16
    np.testing.assert_array_equal(millimetres, np.rint(metres.astype(float) * 1000))


def test_inference_scores_the_samples_with_ground_truth(
    predictor: Predictor, tmp_path: Path
) -> None:
    batches = [_batch(["a.png", "b.png"]), _batch(["c.png"], has_gt=False)]
    scores = Scores(predictor, SPEC)
    write_predictions(
        predictor,
        batches,
        tmp_path,
        StereoAugmentSpec(),
        SPEC,
        save_raw_pfm=False,
        save_raw_npy=False,
        scores=scores,
    )
    found = scores.result()
    assert [row["name"] for row in found.rows] == ["a.png", "b.png"]
    expected = np.abs(np.linspace(0, 8, W) - np.linspace(1, 10, W))[5:].mean()
    assert found.metrics["epe"] == pytest.approx(expected, rel=1e-5)
    assert (found.images, found.skipped) == (2, 0)


def test_samples_that_share_a_name_do_not_overwrite_each_other(
    predictor: Predictor, tmp_path: Path
) -> None:
    batches = [_batch(["left.png", "left.jpg"])]
    count = write_predictions(
        predictor,
        batches,
        tmp_path,
        StereoAugmentSpec(),
        SPEC,
        save_raw_pfm=False,
        save_raw_npy=False,
    )
    names = sorted(path.name for path in (tmp_path / "inference_images").iterdir())
    assert count == len(names) == 2
    assert names == ["left.png", "left_2.png"]


def test_report_pictures_share_the_scale_of_the_ground_truth(
    predictor: Predictor, tmp_path: Path
) -> None:
    batches = [_batch(["a.png"]), _batch(["b.png"]), _batch(["c.png"])]
    items = write_pictures(predictor, batches, tmp_path, StereoAugmentSpec(), SPEC, count=2)

    assert [item["name"] for item in items] == ["a.png", "b.png"]
    assert len(list(tmp_path.iterdir())) == 8
    item = items[1]
    known = np.linspace(1, 10, W, dtype=np.float32)[5:]
    assert item["error_scale"] == {
        "low": 0,
        "high": viz.ERROR_FULL_SCALE,
        "unit": "px",
        "colors": viz.legend(viz.TURBO),
    }
    assert item["scale"]["colors"] == viz.legend(viz.TURBO)
    assert item["quantity"] == "disparity"
    assert item["scale"]["high"] == pytest.approx(np.quantile(np.tile(known, H), 0.98))
    assert (item["scale"]["low"], item["scale"]["unit"]) == (0, "px")
    prediction = np.linspace(0, 8, W, dtype=np.float32)
    assert (item["metric"], item["unit"]) == ("epe", "px")
    assert item["score"] == pytest.approx(np.abs(prediction[5:] - known).mean(), rel=1e-5)
    truth = read_image(tmp_path / item["truth"])
    assert (truth[:, :5] == 0).all(), "unknown is black"
    expected = viz.color_disparity(np.tile(prediction, (H, 1)), item["scale"]["high"])
    np.testing.assert_array_equal(read_image(tmp_path / item["prediction"]), expected)
    assert {item["image"], item["error"]} == {"1_image.png", "1_error.png"}
