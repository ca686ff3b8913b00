from __future__ import annotations

import base64
from pathlib import Path

import cv2
import numpy as np

from automl.report.pictures import MAX_BYTES, MAX_SIDE, data_uri
from automl.report.sections import pictures
from tests.automl.report.examples import finished


def decoded(uri: str) -> np.ndarray:
    data = base64.b64decode(uri.partition(",")[2])
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    return picture


def test_a_small_picture_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "small.png"
    picture = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)
    cv2.imwrite(str(path), picture)
    uri = data_uri(path)
    assert uri is not None
    assert (decoded(uri) == picture).all()


def test_a_large_picture_is_reduced_below_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (1000, 2000, 3), np.uint8))
    uri = data_uri(path)
    assert uri is not None
    assert decoded(uri).shape == (MAX_SIDE // 2, MAX_SIDE, 3)
    assert len(base64.b64decode(uri.partition(",")[2])) <= MAX_BYTES


def test_a_missing_or_broken_picture_does_not_stop_the_report(tmp_path: Path) -> None:
    study = finished(tmp_path, trials=3, promoted=True)
    folder = study.directory / "pictures" / "best"
    (folder / "0_image.png").unlink()
    (folder / "1_error.png").write_bytes(b"\x89PNG")

    shown = pictures(study)

    assert shown.count("The picture is missing.") == 2
    assert shown.count("<img ") == 4 * 6 - 2
    study.close()
