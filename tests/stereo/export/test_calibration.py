from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from stereo.data.encodings import write_png
from stereo.errors import DataError
from stereo.export.calibration import Images, calibration_images
from stereo.spec.experiment import ExperimentSpec
from stereo.tasks import STEREO

SIZE = (32, 64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pairs in left/ and right/, one of them in a folder of its own and larger."""
    generator = np.random.default_rng(0)
    for name, size in (("a.png", SIZE), ("b/c.png", (40, 80)), ("d.png", SIZE)):
        for side in ("left", "right"):
            path = tmp_path / "images" / side / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_png(path, generator.integers(0, 256, (*size, 3), np.uint8))
    return tmp_path / "images"


def images(path: Path | str, count: int = 64) -> list[Images]:
    spec = ExperimentSpec()
    spec.dataset.quant_calibration_dataset.images_dir = str(path)
    spec.quantize.backend_kwargs.num_images = count
    return calibration_images(spec, STEREO, SIZE, 32)


def test_no_folder_gives_no_images() -> None:
    assert images("") == []


def test_pairs_come_in_sorted_order_normalised_and_at_the_size_of_the_network(folder: Path) -> None:
    found = images(folder)

    assert [tuple(image.shape for image in pair) for pair in found] == [((1, 3, *SIZE),) * 2] * 3
    assert found[0][0].dtype == torch.float32
    assert -3 < found[0][0].min() < -1 < 1 < found[0][0].max() < 3
    assert not torch.equal(*found[0])
    for first, again in zip(found, images(folder, count=2), strict=False):
        assert torch.equal(first[0], again[0])
    assert len(images(folder, count=2)) == 2


def test_an_archive_and_an_annotation_file_give_the_same_images(
    folder: Path, tmp_path: Path
) -> None:
    expected = images(folder)
    archive = tmp_path / "images.tar.gz"
    with tarfile.open(archive, "w:gz") as stream:
        stream.add(folder, "somewhere/images")
    rows = folder / "pairs.txt"
    names = ("a.png", "b/c.png", "d.png")
    rows.write_text("".join(f"left/{name} right/{name}\n" for name in names))
    for given in (archive, rows):
        found = images(given)
        assert all(
            torch.equal(one, other)
            for pair, same in zip(expected, found, strict=True)
            for one, other in zip(pair, same, strict=True)
        )


def test_ground_truth_of_an_annotation_file_is_not_read(folder: Path) -> None:
    (folder / "broken.pfm").write_bytes(b"no map")
    rows = folder / "pairs.txt"
    rows.write_text("left/a.png right/a.png broken.pfm\n")
    assert len(images(rows)) == 1


def test_what_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "right" / "d.png").unlink()
    with pytest.raises(DataError, match=r"1 of 3 left images have no right one: .*d\.png") as error:
        images(folder)
    assert error.value.exit_code == 2
    shutil.rmtree(folder / "left")
    with pytest.raises(DataError, match=r"no image \(.*\.png.*left/ and right/"):
        images(folder)
    with pytest.raises(DataError, match=r"images_dir: .*nowhere: no such file or folder"):
        images(tmp_path / "nowhere")
    broken = tmp_path / "broken.tar.gz"
    broken.write_bytes(b"no archive")
    with pytest.raises(DataError, match="cannot be unpacked"):
        images(broken)


def test_an_archive_writes_nothing_outside_its_folder(tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("x")
    archive = tmp_path / "evil.tar.gz"
    with tarfile.open(archive, "w:gz") as stream:
        stream.add(outside, "../../evil.txt")
    with pytest.raises(DataError, match="cannot be unpacked"):
        images(archive)
