"""Batches of single images: metric and relative depth, training, scores, inference, the check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from stereo.data.augment_mono import network_size, resize_image
from stereo.data.check import SourceReport, check_data
from stereo.data.check_report import contact_sheet, report_text
from stereo.data.encodings import write_pfm, write_png
from stereo.data.loaders import DataModule, evaluation_loader
from stereo.data.preflight import preflight
from stereo.errors import DataError
from stereo.spec.data import (
    MetricDatasetSpec,
    MonoAugmentSpec,
    MonoDatasetSpec,
    MonoSource,
    MonoSplitSpec,
)
from stereo.spec.experiment import (
    ExperimentSpec,
    MetricDepthExperiment,
    RelativeDepthExperiment,
)

MEAN, STD = MonoAugmentSpec().input_mean, MonoAugmentSpec().input_std


def split(
    file: Path,
    dataset: str,
    *,
    batch_size: int = 1,
    crop: tuple[int, int] = (28, 42),
    **augmentation: Any,
) -> MonoSplitSpec:
    return MonoSplitSpec(
        data_sources=[MonoSource(dataset, str(file))],  # pyright: ignore[reportArgumentType]
        batch_size=batch_size,
        workers=0,
        augmentation=MonoAugmentSpec(crop_size=list(crop), **augmentation),
    )


def metric(train: MonoSplitSpec | None = None, **settings: Any) -> MetricDepthExperiment:
    dataset = MetricDatasetSpec(cache="off", **settings)
    dataset.train_dataset = dataset.val_dataset = dataset.test_dataset = train or MonoSplitSpec()
    dataset.infer_dataset = dataset.test_dataset
    return MetricDepthExperiment(dataset=dataset)


def relative(train: MonoSplitSpec, **settings: Any) -> RelativeDepthExperiment:
    dataset = MonoDatasetSpec(cache="off", **settings)
    dataset.train_dataset = dataset.val_dataset = dataset.test_dataset = train
    dataset.infer_dataset = dataset.test_dataset
    return RelativeDepthExperiment(dataset=dataset)


def scored(spec: ExperimentSpec, **how: Any) -> list[dict[str, Any]]:
    how = {"batch_size": 4, **how}
    return list(evaluation_loader(spec.dataset.test_dataset, spec, **how))


Make = Callable[..., Path]


@pytest.fixture
def images(tmp_path: Path) -> Make:
    """Write images of the sizes with a target of 0..12 in steps of 0.25 and an annotation file."""

    def write(*sizes: tuple[int, int], targets: bool = True, name: str = "a.txt") -> Path:
        rng = np.random.default_rng(3)
        lines: list[str] = []
        for number, (height, width) in enumerate(sizes):
            write_png(
                tmp_path / f"i{number}.png",
                rng.integers(0, 255, (height, width, 3), dtype=np.uint8),
            )
            lines.append(f"i{number}.png")
            if targets:
                values = rng.integers(0, 49, (height, width)).astype(np.float32) / 4
                write_pfm(tmp_path / f"d{number}.pfm", values)
                lines[-1] += f" d{number}.pfm"
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


def depth_of(path: Path, number: int) -> np.ndarray:
    from stereo.data.encodings import PFM

    return PFM.read(path.parent / f"d{number}.pfm")


def picture_of(path: Path, number: int) -> np.ndarray:
    return cv2.cvtColor(cv2.imread(str(path.parent / f"i{number}.png")), cv2.COLOR_BGR2RGB)


def normalised(picture: np.ndarray) -> np.ndarray:
    return ((picture / 255 - MEAN) / STD).transpose(2, 0, 1)


def test_scores_are_of_the_native_target_and_the_image_covers_the_crop(images: Make) -> None:
    path = images((50, 61), (50, 61))
    (batch,) = scored(metric(split(path, "MetricMonoDataset")))

    assert batch["image"].dtype == torch.float32
    assert batch["image"].shape == (2, 3, *network_size((50, 61), (28, 42)))
    assert batch["target"].shape == batch["valid"].shape == (2, 1, 50, 61)
    assert batch["valid"].dtype == torch.bool
    assert (batch["name"], batch["index"].tolist()) == (["i0.png", "i1.png"], [0, 1])
    for number in (0, 1):
        depth = depth_of(path, number)
        inside = (depth > 0.001) & (depth < 10)
        expected = np.where(inside, depth, np.float32(np.inf))
        np.testing.assert_array_equal(batch["target"][number, 0], expected)
        np.testing.assert_array_equal(batch["valid"][number, 0], inside)
        assert batch["truth_pixels"][number] == np.isfinite(depth).sum() > inside.sum()
        resized = resize_image(picture_of(path, number), (28, 42))
        np.testing.assert_allclose(batch["image"][number], normalised(resized), atol=1e-5)


def test_the_limits_of_depth_exclude_their_ends(images: Make) -> None:
    path = images((30, 40))
    (batch,) = scored(metric(split(path, "MetricMonoDataset"), min_depth=1.0, max_depth=3.0))
    assert set(batch["target"][batch["valid"]].tolist()) == {1.25 + n / 4 for n in range(7)}


def test_relative_truth_is_positive_and_below_a_thousand(tmp_path: Path, images: Make) -> None:
    path = images((28, 42))
    values = np.full((28, 42), 7.0, np.float32)
    values[0, :4] = (0.0, -1.0, 1000.0, 999.5)
    write_pfm(tmp_path / "d0.pfm", values)

    (batch,) = scored(relative(split(path, "RelativeMonoDataset")))

    assert batch["valid"][0, 0, 0, :5].tolist() == [False, False, False, True, True]
    assert torch.isinf(batch["target"][0, 0, 0, :3]).all()


@pytest.mark.parametrize("size", [(28, 28), (56, 98)])
def test_a_fixed_network_gets_its_size_whatever_the_aspect(
    images: Make, size: tuple[int, int]
) -> None:
    path = images((50, 61))
    (batch,) = scored(metric(split(path, "MetricMonoDataset")), input_size=size)
    assert batch["image"].shape == (1, 3, *size)
    assert batch["target"].shape == (1, 1, 50, 61)
    resized = cv2.resize(picture_of(path, 0), size[::-1], interpolation=cv2.INTER_CUBIC)
    np.testing.assert_allclose(batch["image"][0], normalised(resized), atol=1e-5)


def test_tiles_need_the_image_at_native_size_too(images: Make) -> None:
    path = images((50, 61), (50, 61))
    spec = metric(split(path, "MetricMonoDataset"))
    (without,) = scored(spec)
    spec.train.inference_tile = True
    (batch,) = scored(spec)
    assert set(batch) - set(without) == {"native_image"}
    assert torch.equal(batch["image"], without["image"])
    for number in (0, 1):
        expected = normalised(picture_of(path, number))
        np.testing.assert_allclose(batch["native_image"][number], expected, atol=1e-5)


def test_only_images_of_one_native_size_share_a_batch(images: Make) -> None:
    path = images((50, 61), (50, 61), (40, 61), (50, 61))
    batches = scored(metric(split(path, "MetricMonoDataset")))
    assert [tuple(batch["target"].shape) for batch in batches] == [
        (2, 1, 50, 61),
        (1, 1, 40, 61),
        (1, 1, 50, 61),
    ]
    assert [number for batch in batches for number in batch["index"].tolist()] == [0, 1, 2, 3]


def test_lines_without_truth_are_predicted(images: Make) -> None:
    path = images((50, 61), targets=False)
    spec = metric(split(path, "NYUDV2"))
    (batch,) = scored(spec, inference=True)
    assert batch["has_gt"].tolist() == [False]
    assert not batch["valid"].any()
    assert torch.isinf(batch["target"]).all()
    with pytest.raises(DataError, match=r"a\.txt:1: no ground truth"):
        scored(spec)


def nyu(folder: Path, size: tuple[int, int] = (480, 640)) -> Path:
    """One NYU frame: depth 4.5 m everywhere."""
    write_png(folder / "rgb.png", np.full((*size, 3), 90, np.uint8))
    cv2.imwrite(str(folder / "depth.png"), np.full(size, 4500, np.uint16))
    path = folder / "nyu.txt"
    path.write_text("rgb.png depth.png\n")
    return path


@pytest.mark.parametrize("make", [metric, relative])
def test_nyu_is_scored_inside_its_box_only(tmp_path: Path, make: Callable[..., Any]) -> None:
    dataset = "NYUDV2" if make is metric else "NYUDV2Relative"
    (batch,) = scored(make(split(nyu(tmp_path), dataset)))
    rows, columns = np.nonzero(batch["valid"][0, 0].numpy())
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (45, 470, 41, 600)
    assert batch["truth_pixels"].item() == 426 * 560
    value = 4.5 if make is metric else 1 / 4.5
    assert batch["target"][0, 0, 100, 100].item() == pytest.approx(value)


def test_the_box_acts_neither_in_training_nor_without_truth(tmp_path: Path) -> None:
    spec = metric(split(nyu(tmp_path), "NYUDV2", crop=(476, 630)))
    (batch,) = DataModule(spec, 0).train_dataloader()
    assert batch["valid"].all()
    (tmp_path / "nyu.txt").write_text("rgb.png\n")
    assert scored(spec, inference=True)[0]["has_gt"].tolist() == [False]


def test_a_crop_of_the_spec_acts_on_classes_without_one(images: Make) -> None:
    path = images((100, 200))
    spec = relative(split(path, "RelativeMonoDataset"), eval_crop="kitti_garg")
    (batch,) = scored(spec)
    rows, columns = np.nonzero(batch["valid"][0, 0].numpy())
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (40, 98, 7, 191)


def test_a_frame_of_another_size_than_nyu_is_named_before_training(tmp_path: Path) -> None:
    spec = metric(split(nyu(tmp_path, (240, 320)), "NYUDV2"))
    with pytest.raises(DataError, match=r"nyu\.txt:1: eval_crop: nyu_eigen is defined for"):
        preflight(spec, ["val_dataset"])
    assert preflight(spec, ["train_dataset"])["train_dataset"].valid_share == 1


def crops(spec: ExperimentSpec, seed: int = 5) -> list[dict[str, Any]]:
    return list(DataModule(spec, seed).train_dataloader())


def test_a_training_batch_holds_crops_with_their_targets(images: Make) -> None:
    path = images((50, 61), (40, 80))
    (batch,) = crops(metric(split(path, "MetricMonoDataset", batch_size=2)))
    assert batch["image"].shape == (2, 3, 28, 42)
    assert batch["target"].shape == (2, 1, 28, 42)
    assert torch.equal(batch["valid"], batch["target"].isfinite())
    assert float(batch["target"][batch["valid"]].max()) < 10


def test_a_training_sample_depends_on_seed_and_epoch_alone(images: Make) -> None:
    path = images(*[(60, 90)] * 4)
    spec = metric(split(path, "MetricMonoDataset", batch_size=2))
    data = DataModule(spec, 5)
    first = list(data.train_dataloader())
    data.set_epoch(1)
    second = list(data.train_dataloader())
    data.set_epoch(0)
    again = list(data.train_dataloader())
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one["image"], other["image"])
    assert not all(torch.equal(a["image"], b["image"]) for a, b in zip(first, second, strict=True))


def test_flips_act_when_switched_on(images: Make) -> None:
    path = images((28, 42))
    plain, off, on = (
        crops(metric(split(path, "MetricMonoDataset", do_flip=flip, h_flip_prob=1.0 * flip)))[0]
        for flip in (False, False, True)
    )
    assert torch.equal(plain["image"], off["image"])
    assert torch.equal(on["image"], plain["image"].flip(-1))
    assert torch.equal(on["target"], plain["target"].flip(-1))


def test_normalised_truth_spans_zero_to_one_over_usable_pixels(
    tmp_path: Path, images: Make
) -> None:
    path = images((28, 42))
    values = np.full((28, 42), 5.0, np.float32)
    values[0, :3] = (2.0, 2000.0, 6.0)
    write_pfm(tmp_path / "d0.pfm", values)
    spec = relative(split(path, "RelativeMonoDataset"), normalize_depth=True)
    trained, whole = crops(spec)[0], scored(spec)[0]
    assert sorted(set(trained["target"][trained["valid"]].tolist())) == [0.0, 0.75, 1.0]
    assert int(trained["valid"].sum()) == 28 * 42 - 1
    # Nothing is relative to 0, so that the farthest pixel has no score.
    assert sorted(set(whole["target"][whole["valid"]].tolist())) == [0.75, 1.0]
    assert int(whole["valid"].sum()) == 28 * 42 - 2


# --- the check ------------------------------------------------------------------------------------


def millimetres(folder: Path, values: Sequence[int], name: str = "mm") -> Path:
    lines: list[str] = []
    for number, value in enumerate(values):
        image, depth = f"{name}{number}.png", f"{name}{number}_depth.png"
        pixels = np.random.default_rng(number).integers(0, 255, (30, 40, 3), dtype=np.uint8)
        write_png(folder / image, pixels)
        ramp = np.linspace(713, value, 30 * 40).reshape(30, 40).astype(np.uint16)
        cv2.imwrite(str(folder / depth), ramp)
        lines.append(f"{image} {depth}")
    path = folder / f"{name}.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("part", ["train_dataset", "val_dataset", "test_dataset"])
def test_raw_millimetres_in_a_generic_class_are_refused_naming_nyu(
    tmp_path: Path, part: str
) -> None:
    spec = metric(split(millimetres(tmp_path, [9995, 4000]), "MetricMonoDataset"))
    with pytest.raises(DataError) as caught:
        preflight(spec, [part])
    said = str(caught.value)
    assert caught.value.exit_code == 2
    assert "mm.txt: no usable ground truth: depth 713..9995 m" in said
    assert "above 0.001 and below 10 m" in said
    assert "mm0_depth.png holds 713..9995, which looks like millimetres: use NYUDV2." in said
    assert "Check dataset_name (the encoding), min_depth and max_depth" in said


def test_raw_millimetres_as_relative_truth_are_refused_naming_the_relative_class(
    tmp_path: Path,
) -> None:
    path = millimetres(tmp_path, [9995])
    depth = tmp_path / "mm0_depth.png"
    cv2.imwrite(str(depth), np.full((30, 40), 4321, np.uint16))
    with pytest.raises(DataError, match=r"looks like millimetres: use NYUDV2Relative\."):
        preflight(relative(split(path, "RelativeMonoDataset")), ["train_dataset"])


def relative_split(folder: Path) -> RelativeDepthExperiment:
    return relative(split(millimetres(folder, [4000]), "RelativeMonoDataset"))


def wide_metric_split(folder: Path) -> MetricDepthExperiment:
    return metric(split(millimetres(folder, [4000]), "MetricMonoDataset"), max_depth=1000.0)


@pytest.mark.parametrize(
    ("experiment", "reader"),
    [(relative_split, "NYUDV2Relative"), (wide_metric_split, "NYUDV2")],
)
def test_millimetres_of_which_some_pass_are_refused_naming_their_class(
    tmp_path: Path, experiment: Callable[[Path], ExperimentSpec], reader: str
) -> None:
    spec = experiment(tmp_path)
    told = rf"mm\.txt: .*mm0_depth\.png holds 713\.\.4000, .* millimetres .*: use {reader}$"
    for part in ("train_dataset", "val_dataset"):
        with pytest.raises(DataError, match=told) as caught:
            preflight(spec, [part])
        assert caught.value.exit_code == 2
    with pytest.raises(DataError, match=told) as caught:
        evaluation_loader(spec.dataset.test_dataset, spec, batch_size=1)
    assert caught.value.exit_code == 2
    evaluation_loader(spec.dataset.infer_dataset, spec, batch_size=1, inference=True)


def test_raw_truth_that_mostly_lies_within_the_limits_is_taken_at_its_word(tmp_path: Path) -> None:
    spec = relative(split(millimetres(tmp_path, [1200]), "RelativeMonoDataset"))
    preflight(spec, ["train_dataset"])
    assert len(scored(spec)) == 1


def test_a_source_without_a_usable_pixel_is_refused_beside_a_good_one(
    tmp_path: Path, images: Make
) -> None:
    good = split(images((30, 40), (30, 40)), "MetricMonoDataset")
    bad = MonoSource("MetricMonoDataset", str(millimetres(tmp_path, [9000])))
    good.data_sources = [*(good.data_sources or []), bad]
    with pytest.raises(DataError) as caught:
        preflight(metric(good), ["train_dataset"])
    assert "mm.txt: no usable" in str(caught.value)
    assert "a.txt" not in str(caught.value)


def test_depth_beyond_the_limits_is_refused_without_a_guess(tmp_path: Path, images: Make) -> None:
    path = images((30, 40))
    write_pfm(tmp_path / "d0.pfm", np.full((30, 40), 55.0, np.float32))
    with pytest.raises(DataError) as caught:
        preflight(metric(split(path, "MetricMonoDataset")), ["train_dataset"])
    assert "d0.pfm holds 55..55. Check" in str(caught.value)
    assert "millimetres" not in str(caught.value)


def test_the_check_says_what_it_found(images: Make) -> None:
    spec = metric(split(images((30, 40), (50, 60)), "MetricMonoDataset"))
    facts = preflight(spec, ["train_dataset"])["train_dataset"]
    assert (facts.samples, facts.sizes) == (2, {(30, 40): 1, (50, 60): 1})
    assert (facts.least, facts.greatest) == (0.25, 12.0)
    assert 0.7 < facts.valid_share < 0.9


def test_fewer_images_than_a_batch_are_refused(images: Make) -> None:
    spec = metric(split(images((30, 40)), "MetricMonoDataset", batch_size=2))
    with pytest.raises(DataError, match=r"1 images, fewer than dataset\.train_dataset\.batch_size"):
        DataModule(spec, 0)


def test_a_stereo_class_is_no_mono_class(images: Make) -> None:
    spec = metric(split(images((30, 40)), "Kitti"))
    with pytest.raises(DataError, match="mono classes are Crestereo"):
        DataModule(spec, 0)


def test_the_cache_serves_single_images(images: Make, tmp_path: Path) -> None:
    spec = metric(split(images((30, 40)), "MetricMonoDataset"))
    spec.dataset.cache, spec.dataset.cache_dir = "on", str(tmp_path / "cache")
    first, second = scored(spec)[0], scored(spec)[0]
    assert (first["from_cache"].item(), second["from_cache"].item()) == (False, True)
    assert torch.equal(first["image"], second["image"])
    assert torch.equal(first["target"], second["target"])


# --- validate --data ------------------------------------------------------------------------------


def checked(spec: ExperimentSpec, part: str = "train_dataset") -> SourceReport:
    (report,) = check_data(spec, [part]).sources
    return report


def test_validate_describes_images_with_their_depth(images: Make) -> None:
    spec = metric(split(images((30, 40), (50, 60)), "MetricMonoDataset"))
    report = check_data(spec, ["train_dataset"])
    text = report_text(report)
    assert report.sources[0].truth == (0.25, 12.0)
    assert "images             2, all read completely" in text
    assert "depth              0.25..12 m" in text
    assert "not 0.001..10 m" in text
    assert "photo-consistency" not in text
    assert "% of the truth is not used: usable is above 0.001 and below 10 m" in text
    sheet = contact_sheet(report)
    assert sheet is not None
    assert sheet.shape[1] == 2 * 324


def test_validate_warns_of_millimetres_that_partly_pass_for_disparity(tmp_path: Path) -> None:
    path = millimetres(tmp_path, [1400])  # half of them below the limit of a disparity
    report = checked(relative(split(path, "RelativeMonoDataset")))
    (warning,) = report.warnings
    assert "looks like millimetres in 1 of 1 images (first" in warning
    assert "Use dataset_name NYUDV2Relative" in warning


def test_validate_says_nothing_about_good_nyu_frames(tmp_path: Path) -> None:
    spec = metric(split(nyu(tmp_path), "NYUDV2"))
    report = checked(spec, "val_dataset")
    assert (report.faults, report.warnings) == ((), ("an image has a single colour in 1 of 1 images"
        f" (first {tmp_path / 'nyu.txt'}:1). Check the image files",))  # fmt: skip
    assert report.valid_share == 1


def test_validate_finds_frames_that_cannot_be_scored(tmp_path: Path) -> None:
    spec = metric(split(nyu(tmp_path, (240, 320)), "NYUDV2"))
    assert "nyu_eigen is defined for targets of 640x480" in checked(spec, "val_dataset").faults[0]
    assert checked(spec).faults == ()


def test_validate_warns_of_depth_beyond_the_limits(tmp_path: Path, images: Make) -> None:
    path = images((30, 40))
    values = np.full((30, 40), 55.0, np.float32)
    values[0, :3] = 5.0
    write_pfm(tmp_path / "d0.pfm", values)
    outside, few = checked(metric(split(path, "MetricMonoDataset"))).warnings
    assert outside.startswith("99.8 % of the truth is not used")
    assert "the truth spans 5..55 m" in outside
    assert few.startswith("only 0.25 % of the pixels have usable truth")
    assert few.endswith("Check dataset_name (the encoding), masks, min_depth and max_depth")


def test_validate_accepts_lines_without_truth_for_inference(images: Make) -> None:
    spec = metric(split(images((30, 40), targets=False), "MetricMonoDataset"))
    report = checked(spec, "infer_dataset")
    assert (report.faults, report.warnings, report.truth) == ((), (), None)


def test_validate_suspects_no_millimetres_in_a_raw_disparity(tmp_path: Path) -> None:
    path = millimetres(tmp_path, [9995])
    ramp = np.linspace(3, 240, 30 * 40).reshape(30, 40).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "mm0_depth.png"), ramp)
    assert checked(relative(split(path, "RelativeMonoDataset"))).warnings == ()
