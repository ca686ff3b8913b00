from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch

from stereo.engines import base
from stereo.export.example import example
from stereo.export.graph import export_graph
from stereo.predict import load_predictor
from stereo.spec.experiment import ExperimentSpec
from stereo.tasks import METRIC, STEREO
from tests.stereo.tiny_stereo import HEIGHT, WIDTH, TinyStereo, tiny_spec

FACTS: dict[str, Any] = {
    "height": 28,
    "width": 42,
    "batch_size": 2,
    "input_mean": [0.5, 0.4, 0.3],
    "input_std": [0.2, 0.3, 0.4],
    "normalizes_inside": False,
}


def run(lines: list[str], directory: Path, *images: str) -> None:
    """Run a program as it is printed, without this package in reach."""
    (directory / "run.py").write_text("\n".join(lines))
    subprocess.run(
        [sys.executable, "-I", "run.py", *images], cwd=directory, check=True, capture_output=True
    )


def picture(path: Path, height: int, width: int, seed: int) -> np.ndarray:
    """A smooth RGB image, written as PNG."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(path), image[..., ::-1])
    return image


def batch(*images: np.ndarray, spec: ExperimentSpec) -> dict[str, torch.Tensor]:
    look = spec.dataset.test_dataset.augmentation
    normal = [(image / 255 - look.input_mean) / look.input_std for image in images]
    tensors = [torch.from_numpy(each).permute(2, 0, 1)[None].float() for each in normal]
    return dict(zip(STEREO.inputs, tensors, strict=True))


@pytest.mark.parametrize("batch_size", [-1, 1, 3])
def test_the_lines_of_a_sidecar_predict_what_the_package_predicts(
    tmp_path: Path, batch_size: int
) -> None:
    spec = tiny_spec(batch_size=batch_size)
    graph = export_graph(TinyStereo().eval(), spec, tmp_path / "a.onnx").path
    images = [picture(tmp_path / f"{n}.png", HEIGHT, WIDTH, n) for n in range(2)]

    lines = json.loads(base.sidecar_path(graph).read_text())["example"]
    assert len(lines) == 10
    run(lines, tmp_path, "0.png", "1.png")

    expected = load_predictor(graph, spec)(batch(*images, spec=spec))[0].numpy()
    np.testing.assert_allclose(np.load(tmp_path / "disparity.npy"), expected, atol=1e-4)


def test_larger_images_get_their_own_size_and_disparities_in_their_own_pixels(
    tmp_path: Path,
) -> None:
    spec = tiny_spec()
    graph = export_graph(TinyStereo().eval(), spec, tmp_path / "a.onnx").path
    for number in range(2):
        image = picture(tmp_path / f"{number}.png", HEIGHT, WIDTH, number)
        larger = cv2.resize(image, (3 * WIDTH, 2 * HEIGHT), interpolation=cv2.INTER_NEAREST)
        cv2.imwrite(str(tmp_path / f"large_{number}.png"), larger[..., ::-1])
    lines = json.loads(base.sidecar_path(graph).read_text())["example"]

    run(lines, tmp_path, "0.png", "1.png")
    small = np.load(tmp_path / "disparity.npy")
    run(lines, tmp_path, "large_0.png", "large_1.png")
    large = np.load(tmp_path / "disparity.npy")

    assert large.shape == (2 * HEIGHT, 3 * WIDTH)
    assert large.mean() == pytest.approx(3 * small.mean(), rel=0.02)


def test_a_single_image_in_and_metres_out(tmp_path: Path) -> None:
    float32 = onnx.TensorProto.FLOAT
    red = onnx.helper.make_graph(
        [onnx.helper.make_node("Gather", [METRIC.graph_inputs[0], "first"], ["outputs"], axis=1)],
        "red",
        [onnx.helper.make_tensor_value_info(METRIC.graph_inputs[0], float32, [2, 3, 28, 42])],
        [onnx.helper.make_tensor_value_info("outputs", float32, [2, 28, 42])],
        [onnx.helper.make_tensor("first", onnx.TensorProto.INT64, [], [0])],
    )
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(
        onnx.helper.make_model(red, opset_imports=[opset], ir_version=10), tmp_path / "a.onnx"
    )
    pixels = picture(tmp_path / "a.png", 28, 42, 0)

    lines = example(METRIC, tmp_path / "a.onnx", FACTS)
    run(lines, tmp_path, "a.png")

    expected = (pixels[..., 0] / 255 - 0.5) / 0.2
    np.testing.assert_allclose(np.load(tmp_path / "depth.npy"), expected, atol=1e-5)
    assert lines[-1].endswith("# depth, m")
