from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from stereo.data import preflight as checks
from stereo.data.encodings import write_pfm, write_png
from stereo.data.generator import EmbeddedLayout, EmbeddedSet, write_embedded
from stereo.data.loaders import DataModule, evaluation_loader
from stereo.data.preflight import preflight
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
    pairs: EmbeddedSet,
    *,
    seed: int = 3,
    epoch: int = 0,
    start_method: str | None = None,
    **changes: int,
) -> dict[int, Batch]:
    """All samples of an epoch by index."""
    sources = ("GenericDataset", pairs.train), ("Middlebury", pairs.train_middlebury)
    data = DataModule(experiment(split(*sources, **changes)), seed)
    data.set_epoch(epoch)
    loader = data.train_dataloader()
    loader.multiprocessing_context = start_method
    return samples_of(loader)


def samples_of(loader: Iterable[Batch]) -> dict[int, Batch]:
    """The samples of all batches by index."""
    samples: dict[int, Batch] = {}
    for batch in loader:
        for place, index in enumerate(batch["index"].tolist()):
            samples[index] = {key: values[place] for key, values in batch.items()}
    return samples


def assert_same(one: dict[int, Batch], other: dict[int, Batch]) -> None:
    for index in set(one) & set(other):
        for key in one[index].keys() - {"from_cache"}:
            value = one[index][key]
            assert np.array_equal(np.asarray(value), np.asarray(other[index][key])), (index, key)


def test_a_batch_has_the_documented_keys_types_and_shapes(pairs: EmbeddedSet) -> None:
    data = DataModule(experiment(split(("GenericDataset", pairs.train))), 0)

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
        "from_cache": (torch.bool, (2,)),
    }
    assert batch["name"][0].startswith("train/")


@pytest.fixture(scope="module")
def alone(pairs: EmbeddedSet) -> dict[int, Batch]:
    """Every sample of epoch 2, read one by one in this process."""
    samples = training(pairs, batch_size=1, epoch=2)
    assert len(samples) == 14
    return samples


@pytest.mark.parametrize(
    ("workers", "batch_size", "start_method"),
    [(0, 3, None), (1, 5, None), (2, 4, None), (2, 1, "fork"), (1, 7, "spawn")],
)
def test_a_sample_is_the_same_for_any_workers_and_batches(
    pairs: EmbeddedSet,
    alone: dict[int, Batch],
    workers: int,
    batch_size: int,
    start_method: str | None,
) -> None:
    again = training(
        pairs, batch_size=batch_size, workers=workers, start_method=start_method, epoch=2
    )

    assert len(again) == 14 // batch_size * batch_size
    assert_same(alone, again)


@settings(deadline=None, max_examples=10)
@given(ranks=st.integers(1, 4), batch_size=st.integers(1, 4), order=st.permutations(range(14)))
def test_a_sample_is_the_same_on_any_rank(
    pairs: EmbeddedSet,
    alone: dict[int, Batch],
    ranks: int,
    batch_size: int,
    order: list[int],
) -> None:
    sources = ("GenericDataset", pairs.train), ("Middlebury", pairs.train_middlebury)
    loader = DataModule(experiment(split(*sources)), 3).train_dataloader()
    for rank in range(ranks):
        share = [(2, index) for index in order[rank::ranks]]
        parts = DataLoader(loader.dataset, batch_size, sampler=share, collate_fn=loader.collate_fn)
        mine = samples_of(parts)

        assert mine.keys() == set(order[rank::ranks])
        assert_same(alone, mine)


def test_a_sample_depends_on_its_source_and_its_place_there(
    pairs: EmbeddedSet, tmp_path: Path
) -> None:
    two = tmp_path / "two.txt"
    left, right, truth = pairs.train.read_text().splitlines()[-1].split()
    two.write_text(" ".join(str(pairs.train.parent / path) for path in (left, right, truth)) + "\n")

    def samples(*files: Path) -> dict[int, Batch]:
        train = split(*(("GenericDataset", file) for file in files), batch_size=1)
        return samples_of(DataModule(experiment(train), 3).train_dataloader())

    twice, after_one = samples(pairs.train, pairs.train), samples(two, pairs.train)

    for index in range(7):
        assert not torch.equal(twice[index]["left"], twice[7 + index]["left"])
        assert torch.equal(twice[7 + index]["left"], after_one[1 + index]["left"])


def test_another_seed_or_epoch_gives_other_samples(
    pairs: EmbeddedSet, alone: dict[int, Batch]
) -> None:
    for other in (training(pairs, epoch=3), training(pairs, epoch=2, seed=4)):
        for index, sample in other.items():
            assert not np.array_equal(sample["left"], alone[index]["left"])


def test_order_is_shuffled_anew_each_epoch_and_workers_follow_the_epoch(pairs: EmbeddedSet) -> None:
    """Workers persist between epochs, yet see the new epoch."""
    spec = experiment(split(("GenericDataset", pairs.train), batch_size=1, workers=2))
    data, again = DataModule(spec, 5), DataModule(spec, 5)
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

    first, second = (next(iter(DataModule(spec, -1).train_dataloader())) for _ in range(2))

    assert not torch.equal(first["left"], second["left"])


def test_training_drops_the_last_batch_and_needs_a_whole_one(pairs: EmbeddedSet) -> None:
    source = ("GenericDataset", pairs.train)

    loader = DataModule(experiment(split(source, batch_size=3)), 0).train_dataloader()

    assert len(loader) == len(list(loader)) == 2
    with pytest.raises(DataError, match=r"train\.txt: 7 pairs, fewer than .*batch_size \(8\)") as e:
        DataModule(experiment(split(source, batch_size=8)), 0)
    assert e.value.exit_code == 2


def test_whole_pairs_come_normalised_at_native_size_with_the_limit_applied(
    pairs: EmbeddedSet,
) -> None:
    val = split(("Middlebury", pairs.val_middlebury), crop=(32, 32))
    train = split(("GenericDataset", pairs.train))
    spec = experiment(train, val, max_disparity=32)
    data = DataModule(spec, 0)

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


def test_a_disparity_of_the_limit_itself_does_not_count(mixed: Callable[..., Path]) -> None:
    path = mixed((8, 12))
    truth = np.float32([63.999, 64, 64.001, np.inf] * 24).reshape(8, 12)
    write_pfm(path.parent / "d0.pfm", truth)
    spec = experiment(split(("GenericDataset", path), batch_size=1))

    (batch,) = evaluation_loader(spec.dataset.train_dataset, spec, batch_size=1)

    np.testing.assert_array_equal(batch["valid"][0, 0].numpy(), truth < 64)
    assert batch["valid"].sum() == 24
    assert preflight(spec, ["train_dataset"])["train_dataset"].valid_share == 0.25


def test_without_validation_data_there_are_no_validation_batches(pairs: EmbeddedSet) -> None:
    data = DataModule(experiment(split(("GenericDataset", pairs.train))), 0)

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
        loader = DataModule(spec, 0).train_dataloader()

    assert loader.num_workers == cores
    assert f"{cores + 6} asked, this machine has {cores} cores" in caplog.text


def test_memory_is_pinned_only_with_a_gpu(pairs: EmbeddedSet) -> None:
    data = DataModule(experiment(split(("GenericDataset", pairs.train))), 0)

    assert data.train_dataloader().pin_memory == torch.cuda.is_available()


def test_a_file_that_breaks_later_is_named_with_its_line(mixed: Callable[..., Path]) -> None:
    path = mixed((8, 12), (8, 12))
    loader = evaluation_loader(split(("GenericDataset", path)), experiment(), batch_size=1)
    (path.parent / "r1.png").write_bytes(b"not an image")

    with pytest.raises(DataError, match=r"a\.txt:2: .*r1\.png: no image") as caught:
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
    assert facts["train_dataset"].samples == 7
    assert facts["train_dataset"].sizes == {(96, 128): 7}
    assert facts["train_dataset"].valid_share == 1
    assert facts["val_dataset"].sizes == {(64, 96): 3}
    assert 0.5 < facts["val_dataset"].valid_share < 1
    assert 0 < facts["val_dataset"].least < facts["val_dataset"].greatest < 64


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


# --- cache ----------------------------------------------------------------------------------------


def cached(spec: ExperimentSpec, folder: Path, mode: str = "auto") -> ExperimentSpec:
    spec.dataset.cache, spec.dataset.cache_dir = mode, str(folder)
    return spec


def hits(loader: Iterable[Batch]) -> list[bool]:
    """By index, whether the cache had the sample."""
    found = samples_of(loader)
    return [bool(found[index]["from_cache"]) for index in sorted(found)]


def test_the_check_fills_the_cache_for_training_validation_and_evaluation(
    pairs: EmbeddedSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = split(("GenericDataset", pairs.train), batch_size=1, workers=1)
    val = split(("Middlebury", pairs.val_middlebury), workers=1)
    spec = cached(experiment(train, val), tmp_path)
    with caplog.at_level(logging.INFO):
        facts = [preflight(spec, ["train_dataset", "val_dataset"]) for _ in range(2)]
    data, other = DataModule(spec, 1), DataModule(spec, 2)

    assert facts[0] == facts[1]
    assert "data: 0 of 10 samples of the check from the cache, 10 decoded" in caplog.text
    assert "data: 10 of 10 samples of the check from the cache, 0 decoded" in caplog.text
    for trial in (data, other):  # two trials of one study
        assert hits(trial.train_dataloader()) == [True] * 7
        assert hits(trial.val_dataloader()) == [True] * 3
    assert hits(evaluation_loader(val, spec, batch_size=2)) == [True] * 3
    assert hits(evaluation_loader(val, spec, batch_size=2, inference=True)) == [True] * 3


def test_workers_fill_the_cache_too_and_a_touched_file_is_decoded_alone(
    mixed: Callable[..., Path], tmp_path: Path
) -> None:
    train = split(("GenericDataset", mixed(*[(70, 99)] * 5)), batch_size=1, workers=1)
    data = DataModule(cached(experiment(train), tmp_path / "c"), 0)

    assert hits(data.train_dataloader()) == [False] * 5
    assert hits(data.train_dataloader()) == [True] * 5
    (tmp_path / "r3.png").touch()
    assert hits(data.train_dataloader()) == [True, True, True, False, True]
    assert hits(data.train_dataloader()) == [True] * 5


def test_without_the_cache_every_sample_is_decoded(
    pairs: EmbeddedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    spec = cached(experiment(split(("GenericDataset", pairs.train), batch_size=1)), tmp_path, "off")

    preflight(spec, ["train_dataset"])

    assert hits(DataModule(spec, 0).train_dataloader()) == [False] * 7
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_fails_goes_without_or_refuses_before_the_run(
    pairs: EmbeddedSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    spec = experiment(split(("GenericDataset", pairs.train), batch_size=1))
    cached(spec, tmp_path / "file")

    preflight(spec, ["train_dataset"])
    assert hits(DataModule(spec, 0).train_dataloader()) == [False] * 7
    assert caplog.text.count("decoded cache off: ") == 1
    spec.dataset.cache = "on"
    for start in (
        lambda: preflight(spec, ["train_dataset"]),
        lambda: DataModule(spec, 0),
        lambda: evaluation_loader(spec.dataset.train_dataset, spec, batch_size=1),
    ):
        with pytest.raises(DataError, match=r"dataset\.cache: on, but .*file.*auto") as caught:
            start()
        assert caught.value.exit_code == 2


def test_a_cache_that_fails_within_the_check_is_refused_if_it_must_work(
    pairs: EmbeddedSet, tmp_path: Path
) -> None:
    """Something stands where the sample's folder belongs."""
    spec = cached(experiment(split(("GenericDataset", pairs.train))), tmp_path, "on")
    for number in range(256):
        (tmp_path / f"{number:02x}").symlink_to(tmp_path / "nowhere")

    with pytest.raises(DataError, match=r"dataset\.cache: on, but .*File exists") as caught:
        preflight(spec, ["train_dataset"])
    assert caught.value.exit_code == 2


def test_a_budget_that_the_check_exceeds_is_refused_if_the_cache_must_work(
    pairs: EmbeddedSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = cached(experiment(split(("GenericDataset", pairs.train))), tmp_path / "c", "on")
    spec.dataset.cache_size = 3e5 / 2**30  # bytes; a pair takes 0.1 million

    for _ in range(2):  # also when what fits is there
        with pytest.raises(
            DataError, match=r"cache: on, but .*GiB of dataset\.cache_size are used"
        ) as caught:
            preflight(spec, ["train_dataset"])
        assert caught.value.exit_code == 2
    spec.dataset.cache = "auto"
    preflight(spec, ["train_dataset"])
    assert caplog.text.count("Raise dataset.cache_size") == 1


def test_no_decoded_sample_stays_in_the_process(pairs: EmbeddedSet, tmp_path: Path) -> None:
    """Neither as arrays nor mapped, with the cache and without."""
    for mode in ("auto", "off"):
        spec = experiment(split(("GenericDataset", pairs.train), batch_size=1))
        loader = DataModule(cached(spec, tmp_path, mode), 0).train_dataloader()
        samples_of(loader)
        assert str(tmp_path) not in Path("/proc/self/maps").read_text()
        assert len(pickle.dumps(loader.dataset)) < 20_000


def test_of_a_large_split_a_sample_is_decoded_and_all_heads_are_read(
    mixed: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(checks, "_DECODED_BEFOREHAND", 4)
    train = split(("GenericDataset", mixed(*[(8, 12)] * 8, (6, 12))))
    spec = cached(experiment(train), tmp_path / "c")
    with caplog.at_level(logging.INFO):
        facts = [preflight(spec, ["train_dataset"])["train_dataset"] for _ in range(2)]

    assert facts[0] == facts[1]
    assert (facts[0].samples, facts[0].sizes) == (9, {(8, 12): 8, (6, 12): 1})
    assert facts[0].valid_share == 1
    assert "of the 9 pairs of train_dataset a sample of 4 is decoded beforehand" in caplog.text
    assert "data: 0 of 4 samples of the check from the cache, 4 decoded" in caplog.text
    assert "data: 4 of 4 samples of the check from the cache, 0 decoded" in caplog.text
    decoded = hits(DataModule(spec, 0).train_dataloader())
    headless = [index for index, hit in enumerate(decoded) if not hit][:3]
    write_png(tmp_path / f"r{headless[0]}.png", np.zeros((9, 9, 3), np.uint8))
    (tmp_path / f"l{headless[1]}.png").write_bytes(b"nonsense")
    truth = tmp_path / f"d{headless[2]}.pfm"
    truth.write_bytes(truth.read_bytes()[:-1])
    with pytest.raises(DataError) as caught:
        preflight(spec, ["train_dataset"])
    line = str(caught.value).splitlines()
    assert f"a.txt:{headless[0] + 1}: {tmp_path}/r{headless[0]}.png: size 9x9 differs" in str(line)
    assert f"a.txt:{headless[1] + 1}: {tmp_path}/l{headless[1]}.png: " in str(line)
    assert f"a.txt:{headless[2] + 1}: {truth}: PFM of " in str(line)


# --- what users have ------------------------------------------------------------------------------


def test_two_sources_of_different_classes_and_sizes_train_together(
    mixed: Callable[..., Path], tmp_path: Path
) -> None:
    generic = mixed((40, 50), (70, 200))
    rng = np.random.default_rng(1)
    for name in ("kl", "kr"):
        write_png(tmp_path / f"{name}.png", rng.integers(0, 256, (90, 130, 3), np.uint8))
    truth = np.where(rng.random((90, 130)) < 0.3, 7 * 256, 0).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "kd.png"), truth)
    (tmp_path / "kitti.txt").write_text("kl.png kr.png kd.png\n")
    train = split(("Kitti", tmp_path / "kitti.txt"), ("GenericDataset", generic), batch_size=3)

    data = DataModule(experiment(train), 0)
    for _ in range(2):
        (batch,) = data.train_dataloader()

        assert batch["left"].shape == (3, 3, 64, 96)
        places = {int(index): place for place, index in enumerate(batch["index"])}
        share = batch["valid"].float().mean(dim=(1, 2, 3))
        assert 0.02 < share[places[0]] < 0.6 < share[places[2]]
        assert 0.1 < share[places[1]] <= 0.5  # padded to the crop: what is added is no truth
        assert batch["from_cache"].all() == (_ == 1)


def test_crops_are_placed_where_the_truth_is_below_the_limit(tmp_path: Path) -> None:
    """Above it in the left two thirds, so that few positions have enough."""
    for name in ("l", "r"):
        write_png(tmp_path / f"{name}.png", np.zeros((64, 288, 3), np.uint8))
    columns = np.where(np.arange(288) < 190, 100, 5).astype(np.float32)
    write_pfm(tmp_path / "d.pfm", np.tile(columns, (64, 1)))
    (tmp_path / "a.txt").write_text("l.png r.png d.pfm\n" * 20)
    spec = experiment(split(("GenericDataset", tmp_path / "a.txt"), batch_size=20))
    augmentation = spec.dataset.train_dataset.augmentation
    augmentation.crop_min_valid_disp_ratio, augmentation.spatial_aug_prob = 0.9, 0.0
    augmentation.do_flip = False

    (batch,) = DataModule(spec, 0).train_dataloader()

    share = batch["valid"].float().mean(dim=(1, 2, 3))
    assert share.mean() > 0.7  # about 0.27 where every known pixel counts


@pytest.mark.parametrize(
    "image",
    [
        np.full((70, 100), 60, np.uint8),
        np.full((70, 100, 4), 60, np.uint8),
        np.full((70, 100, 3), 60 * 257, np.uint16),
        np.full((70, 100), 60 * 257, np.uint16),
        np.full((1, 1, 3), 60, np.uint8),
        np.full((1, 3000, 3), 60, np.uint8),
    ],
    ids=["grey", "alpha", "16 bit", "16 bit grey", "one pixel", "one row"],
)
def test_odd_images_train_and_are_scored(tmp_path: Path, image: np.ndarray) -> None:
    for name in ("l", "r"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), image)
    write_pfm(tmp_path / "d.pfm", np.full(image.shape[:2], 3, np.float32))
    (tmp_path / "a.txt").write_text("l.png r.png d.pfm\n" * 2)
    spec = experiment(split(("GenericDataset", tmp_path / "a.txt")))

    (crops,) = DataModule(spec, 0).train_dataloader()
    (whole,) = evaluation_loader(spec.dataset.train_dataset, spec, batch_size=2)

    assert crops["left"].shape == (2, 3, 64, 96)
    assert crops["left"].isfinite().all()
    assert crops["valid"].any()
    assert whole["left"].shape == (2, 3, *image.shape[:2])
    pixels = whole["left"][0, :, 0, 0] * torch.tensor([0.229, 0.224, 0.225])
    pixels = 255 * (pixels + torch.tensor([0.485, 0.456, 0.406]))
    torch.testing.assert_close(pixels, torch.full((3,), 60.0), atol=1e-3, rtol=0)
    assert bool(whole["valid"].all())


def test_workers_leave_the_cores_to_the_network(pairs: EmbeddedSet) -> None:
    loader = DataModule(experiment(split(("GenericDataset", pairs.train), workers=1)), 0)
    threads = DataLoader(
        _Threads(),
        num_workers=1,
        worker_init_fn=loader.train_dataloader().worker_init_fn,
        multiprocessing_context="fork",
    )

    cv2.setNumThreads(4)
    assert [int(count) for count in threads] == [1]
    assert loader.train_dataloader().persistent_workers
    cv2.setNumThreads(0)


class _Threads(Dataset[int]):
    """Threads of OpenCV in a worker."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, _index: int) -> int:
        return cv2.getNumThreads()
