from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from stereo.data.encodings import write_pfm, write_png
from stereo.data.generator import EmbeddedLayout, EmbeddedSet, write_embedded
from stereo.data.loaders import StereoDataModule, evaluation_loader, preflight
from stereo.errors import DataError
from stereo.spec.data import DatasetSpec, DataSource, SplitSpec, StereoAugmentSpec
from stereo.spec.experiment import ExperimentSpec
from stereo.spec.networks import FastFoundationStereoSpec

LAYOUT = EmbeddedLayout(
    train_pairs=7, train_size=(96, 128), val_pairs=3, val_size=(64, 96), max_disparity=64.0
)
Batch = dict[str, object]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> EmbeddedSet:
    return write_embedded(tmp_path_factory.mktemp("pairs"), LAYOUT)


def split(
    *sources: tuple[str, Path],
    batch_size: int = 2,
    workers: int = 0,
    crop: Sequence[int] = (64, 96),
) -> SplitSpec:
    return SplitSpec(
        data_sources=[DataSource(name, str(path)) for name, path in sources],
        batch_size=batch_size,
        workers=workers,
        augmentation=StereoAugmentSpec(crop_size=list(crop), do_flip=True, hshift_prob=0.5),
    )


def experiment(
    train: SplitSpec | None = None, val: SplitSpec | None = None, *, max_disparity: int = 64
) -> ExperimentSpec:
    return ExperimentSpec(
        results_dir="unused",
        model=FastFoundationStereoSpec(max_disparity=max_disparity),
        dataset=DatasetSpec(
            max_disparity=192,
            train_dataset=train or SplitSpec(),
            val_dataset=val or SplitSpec(),
        ),
    )


def training(
    pairs: EmbeddedSet, *, seed: int = 3, epoch: int = 0, **changes: int
) -> dict[int, Batch]:
    """All samples of an epoch by index."""
    sources = ("GenericDataset", pairs.train), ("Middlebury", pairs.train_middlebury)
    data = StereoDataModule(experiment(split(*sources, **changes)), seed)
    data.set_epoch(epoch)
    samples: dict[int, Batch] = {}
    for batch in data.train_dataloader():
        for place, index in enumerate(batch["index"].tolist()):
            samples[index] = {key: values[place] for key, values in batch.items()}
    return samples


def assert_same(one: dict[int, Batch], other: dict[int, Batch]) -> None:
    for index in set(one) & set(other):
        for key, value in one[index].items():
            assert np.array_equal(np.asarray(value), np.asarray(other[index][key])), (index, key)


def test_a_batch_has_the_documented_keys_types_and_shapes(pairs: EmbeddedSet) -> None:
    data = StereoDataModule(experiment(split(("GenericDataset", pairs.train))), 0)

    (batch, *_) = data.train_dataloader()

    shapes = {
        key: (value.dtype, tuple(value.shape)) for key, value in batch.items() if key != "name"
    }
    assert shapes == {
        "left": (torch.float32, (2, 3, 64, 96)),
        "right": (torch.float32, (2, 3, 64, 96)),
        "disparity": (torch.float32, (2, 1, 64, 96)),
        "valid": (torch.bool, (2, 1, 64, 96)),
        "truth_pixels": (torch.int64, (2,)),
        "has_gt": (torch.bool, (2,)),
        "index": (torch.int64, (2,)),
    }
    assert batch["name"][0].startswith("train/")


def test_sample_depends_on_seed_epoch_and_index_only(pairs: EmbeddedSet) -> None:
    alone = training(pairs, batch_size=1, epoch=2)

    assert len(alone) == 14
    assert_same(alone, training(pairs, batch_size=3, epoch=2))
    assert_same(alone, training(pairs, batch_size=4, workers=2, epoch=2))
    for other in (training(pairs, epoch=3), training(pairs, epoch=2, seed=4)):
        for index, sample in other.items():
            assert not np.array_equal(sample["left"], alone[index]["left"])


def test_order_is_shuffled_anew_each_epoch_and_workers_follow_the_epoch(pairs: EmbeddedSet) -> None:
    """Workers persist between epochs, yet see the new epoch."""
    spec = experiment(split(("GenericDataset", pairs.train), batch_size=1, workers=2))
    data, again = StereoDataModule(spec, 5), StereoDataModule(spec, 5)
    passes = []
    for epoch in (0, 1):
        data.set_epoch(epoch)
        passes.append({int(b["index"][0]): b["left"] for b in data.train_dataloader()})
    again.set_epoch(1)
    resumed = {int(b["index"][0]): b["left"] for b in again.train_dataloader()}

    assert list(passes[0]) != list(passes[1])
    assert list(passes[1]) == list(resumed)
    assert all(torch.equal(passes[1][index], resumed[index]) for index in resumed)
    assert not any(torch.equal(passes[0][index], passes[1][index]) for index in passes[0])


def test_a_negative_seed_draws_its_own(pairs: EmbeddedSet) -> None:
    spec = experiment(split(("GenericDataset", pairs.train)))

    first, second = (next(iter(StereoDataModule(spec, -1).train_dataloader())) for _ in range(2))

    assert not torch.equal(first["left"], second["left"])


def test_training_drops_the_last_batch_and_needs_a_whole_one(pairs: EmbeddedSet) -> None:
    source = ("GenericDataset", pairs.train)

    loader = StereoDataModule(experiment(split(source, batch_size=3)), 0).train_dataloader()

    assert len(loader) == len(list(loader)) == 2
    with pytest.raises(DataError, match=r"train\.txt: 7 pairs, fewer than .*batch_size \(8\)") as e:
        StereoDataModule(experiment(split(source, batch_size=8)), 0)
    assert e.value.exit_code == 2


def test_whole_pairs_come_normalised_at_native_size_with_the_limit_applied(
    pairs: EmbeddedSet,
) -> None:
    val = split(("Middlebury", pairs.val_middlebury), crop=(32, 32))
    train = split(("GenericDataset", pairs.train))
    spec = experiment(train, val, max_disparity=32)
    data = StereoDataModule(spec, 0)

    batches = list(data.val_dataloader())

    assert [batch["index"].tolist() for batch in batches] == [[0, 1], [2]]
    batch = batches[0]
    assert tuple(batch["left"].shape) == (2, 3, 64, 96)
    known = torch.isfinite(batch["disparity"])
    assert torch.equal(batch["valid"], known & (batch["disparity"] < 32))
    assert batch["truth_pixels"].tolist() == known.sum(dim=(1, 2, 3)).tolist()
    assert not torch.equal(known, batch["valid"])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (batch["left"] * std[:, None, None] + mean[:, None, None]) * 255
    assert (pixels - pixels.round()).abs().max() < 1e-3
    again = list(data.val_dataloader())
    assert all(torch.equal(a["left"], b["left"]) for a, b in zip(batches, again, strict=True))


def test_without_validation_data_there_are_no_validation_batches(pairs: EmbeddedSet) -> None:
    data = StereoDataModule(experiment(split(("GenericDataset", pairs.train))), 0)

    assert list(data.val_dataloader()) == []


@pytest.fixture
def mixed(tmp_path: Path) -> Callable[..., Path]:
    """Writes pairs of the given sizes and their annotation file."""

    def write(*sizes: tuple[int, int], columns: int = 3, disparity: float = 5.0) -> Path:
        lines = []
        for number, (height, width) in enumerate(sizes):
            image = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
            write_png(tmp_path / f"l{number}.png", image)
            write_png(tmp_path / f"r{number}.png", image)
            write_pfm(tmp_path / f"d{number}.pfm", np.full((height, width), disparity, np.float32))
            lines.append(" ".join(f"{k}{number}.{e}" for k, e in _COLUMNS[:columns]))
        (tmp_path / "a.txt").write_text("\n".join(lines))
        return tmp_path / "a.txt"

    return write


_COLUMNS = [("l", "png"), ("r", "png"), ("d", "pfm")]


def test_evaluation_batches_hold_neighbours_of_one_size(mixed: Callable[..., Path]) -> None:
    path = mixed((8, 12), (8, 12), (8, 12), (6, 12), (8, 12), (1, 1))
    test = split(("GenericDataset", path))

    loader = evaluation_loader(test, experiment(), batch_size=2)

    assert [batch["index"].tolist() for batch in loader] == [[0, 1], [2], [3], [4], [5]]
    assert len(loader) == 5
    single = evaluation_loader(test, experiment(), batch_size=1)
    assert [tuple(batch["left"].shape[-2:]) for batch in single][3:] == [(6, 12), (8, 12), (1, 1)]


def test_inference_needs_no_truth_but_evaluation_does(mixed: Callable[..., Path]) -> None:
    test = split(("GenericDataset", mixed((8, 12), (8, 12), columns=2)))

    (batch,) = evaluation_loader(test, experiment(), batch_size=2, inference=True)

    assert not batch["has_gt"].any()
    assert not batch["valid"].any()
    assert batch["truth_pixels"].tolist() == [0, 0]
    with pytest.raises(DataError, match=r"a\.txt:1: no ground truth"):
        evaluation_loader(test, experiment(), batch_size=2)


def test_workers_are_capped_to_the_cores_with_a_warning(
    pairs: EmbeddedSet, caplog: pytest.LogCaptureFixture
) -> None:
    cores = len(os.sched_getaffinity(0))
    with caplog.at_level(logging.WARNING):
        spec = experiment(split(("GenericDataset", pairs.train), workers=cores + 6))
        loader = StereoDataModule(spec, 0).train_dataloader()

    assert loader.num_workers == cores
    assert f"{cores + 6} asked, this machine has {cores} cores" in caplog.text


def test_memory_is_pinned_only_with_a_gpu(pairs: EmbeddedSet) -> None:
    data = StereoDataModule(experiment(split(("GenericDataset", pairs.train))), 0)

    assert data.train_dataloader().pin_memory == torch.cuda.is_available()


def test_a_file_that_breaks_later_is_named_with_its_line(mixed: Callable[..., Path]) -> None:
    path = mixed((8, 12), (8, 12))
    loader = evaluation_loader(split(("GenericDataset", path)), experiment(), batch_size=1)
    (path.parent / "r1.png").write_bytes(b"not an image")

    with pytest.raises(DataError, match=r"a\.txt:2: .*r1\.png: cannot decode") as caught:
        list(loader)
    assert caught.value.exit_code == 1


def test_preflight_reports_what_it_read(pairs: EmbeddedSet) -> None:
    train = split(("GenericDataset", pairs.train))
    val = split(("middlebury", pairs.val_middlebury))
    seen: list[tuple[int, int]] = []

    facts = preflight(
        experiment(train, val),
        ["train_dataset", "val_dataset"],
        lambda done, total: seen.append((done, total)),
    )

    assert seen == [(n, 10) for n in range(1, 11)]
    assert facts["train_dataset"].pairs == 7
    assert facts["train_dataset"].sizes == {(96, 128): 7}
    assert facts["train_dataset"].valid_share == 1
    assert facts["val_dataset"].sizes == {(64, 96): 3}
    assert 0.5 < facts["val_dataset"].valid_share < 1
    assert 0 < facts["val_dataset"].min_disparity < facts["val_dataset"].max_disparity < 64


def test_preflight_collects_every_fault_of_every_split(
    mixed: Callable[..., Path], tmp_path: Path
) -> None:
    path = mixed(*[(8, 12)] * 5)
    (tmp_path / "l0.png").write_bytes((tmp_path / "l0.png").read_bytes()[:-20])
    (tmp_path / "d1.pfm").write_bytes((tmp_path / "d1.pfm").read_bytes()[:-1])
    write_png(tmp_path / "r2.png", np.zeros((9, 12, 3), np.uint8))
    (tmp_path / "r3.png").unlink()
    (tmp_path / "other.txt").write_text("l4.png r4.png\n")
    train = split(("GenericDataset", path))
    val = split(("GenericDataset", tmp_path / "other.txt"), ("Nonsense", tmp_path / "gone.txt"))

    with pytest.raises(DataError) as caught:
        preflight(experiment(train, val), ["train_dataset", "val_dataset"])

    text = str(caught.value)
    assert caught.value.exit_code == 2
    for line in (
        f"{path}:1: {tmp_path / 'l0.png'}: PNG is damaged or cut off",
        f"{path}:2: {tmp_path / 'd1.pfm'}: PFM of 12x8 needs 384 bytes of values, has 383",
        f"{path}:3: {tmp_path / 'r2.png'}: size 12x9 differs from the left image's 12x8",
        f"{path}:4: {tmp_path / 'r3.png'}: no such file",
        f"{tmp_path / 'other.txt'}:1: no ground truth",
        f"{tmp_path / 'gone.txt'}: dataset_name: got 'Nonsense'",
    ):
        assert line in text


@pytest.mark.parametrize(
    ("disparity", "batch_size", "reason"),
    [
        (5.0, 3, r"a\.txt: 2 pairs, fewer than .*batch_size \(3\)"),
        (77.0, 1, r"a\.txt: no usable ground truth: disparity 77\.\.77 px, .* below 64 px"),
        (0.0, 1, r"a\.txt: no usable ground truth: no known disparity"),
    ],
)
def test_preflight_refuses_readable_files_without_use(
    mixed: Callable[..., Path], disparity: float, batch_size: int, reason: str
) -> None:
    train = split(
        ("GenericDataset", mixed((8, 12), (8, 12), disparity=disparity)), batch_size=batch_size
    )

    with pytest.raises(DataError, match=reason):
        preflight(experiment(train), ["train_dataset"])


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(DataError, match="data_sources: empty"):
        preflight(experiment(), ["train_dataset"])


def test_spawned_workers_give_the_same_samples(pairs: EmbeddedSet) -> None:
    """A spawned worker gets its dataset pickled."""
    spec = experiment(split(("GenericDataset", pairs.train)))
    dataset = StereoDataModule(spec, 1).train_dataloader().dataset

    copy = pickle.loads(pickle.dumps(dataset))

    assert np.array_equal(copy[(0, 3)]["left"], dataset[(0, 3)]["left"])
