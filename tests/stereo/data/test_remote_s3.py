"""Data in a real local S3 server: the same batches, no needless request, errors that help."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from hashlib import md5
from pathlib import Path

import pytest
import torch
import yaml

from stereo.data.annotations import parse, read_rows
from stereo.data.batches import Batch
from stereo.data.datasets import find_format
from stereo.data.generator import EmbeddedLayout, EmbeddedSet, write_embedded
from stereo.data.loaders import DataModule
from stereo.data.preflight import preflight
from stereo.data.remote import find, find_all, stamp
from stereo.errors import DataError
from stereo.spec.data import DatasetSpec, DataSource, SplitSpec, StereoAugmentSpec
from stereo.spec.experiment import ExperimentSpec
from stereo.spec.networks import FastFoundationStereoSpec

moto_server = pytest.importorskip("moto.server", reason="needs moto, of the development tools")
s3fs = pytest.importorskip("s3fs", reason="needs the extra [s3]")

GENERIC = find_format("GenericDataset")
LAYOUT = EmbeddedLayout(
    train_pairs=3, train_size=(64, 96), val_pairs=2, val_size=(64, 96), max_disparity=64.0
)


class Requests(logging.Handler):
    """What the server was asked for, as `METHOD /bucket/key`."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.made: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        words = record.getMessage().split('"')[1].split()  # werkzeug may colour the line
        self.made.append(f"{words[-3].rpartition('m')[2]} {words[-2].partition('?')[0]}")

    def of_files(self, *suffixes: str) -> list[str]:
        return sorted(line for line in self.made if line.endswith(suffixes))


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    running = moto_server.ThreadedMotoServer("127.0.0.1", 0)
    running.start()
    yield "http://{}:{}".format(*running.get_host_and_port())
    running.stop()


@pytest.fixture(autouse=True)
def access(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The usual environment, and no client that another environment made."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "me",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_S3": server,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def requests() -> Iterator[Requests]:
    log = logging.getLogger("werkzeug")
    handler, level = Requests(), log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield handler
    log.removeHandler(handler)
    log.setLevel(level)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> EmbeddedSet:
    return write_embedded(tmp_path_factory.mktemp("pairs"), LAYOUT)


@pytest.fixture
def bucket(pairs: EmbeddedSet) -> str:
    """Address of a copy of the pairs."""
    system = s3fs.S3FileSystem()
    if not system.exists("data"):
        system.mkdir("data")
        system.put(f"{pairs.train.parent}/", "data/set/", recursive=True)
    return "s3://data/set"


def experiment(folder: str, workers: int = 0, **cache: str) -> ExperimentSpec:
    """Both splits from the annotation files in a folder."""

    def split(name: str, batch_size: int) -> SplitSpec:
        return SplitSpec(
            data_sources=[DataSource("Middlebury", f"{folder}/{name}_middlebury.txt")],
            batch_size=batch_size,
            workers=workers,
            augmentation=StereoAugmentSpec(crop_size=[64, 96]),
        )

    return ExperimentSpec(
        results_dir="unused",
        model=FastFoundationStereoSpec(max_disparity=64),
        dataset=DatasetSpec(
            train_dataset=split("train", 3),
            val_dataset=split("val", 2),
            **{"cache": "off", **cache},
        ),
    )


def batches(spec: ExperimentSpec, start_method: str | None = None) -> list[Batch]:
    data = DataModule(spec, seed=5)
    loaders = [data.train_dataloader(), data.val_dataloader()]
    for loader in loaders:
        loader.multiprocessing_context = start_method
    return [batch for loader in loaders for batch in loader]


@pytest.mark.parametrize(("workers", "start"), [(0, None), (1, "spawn"), (1, "fork")])
def test_batches_are_those_of_local_copies(
    bucket: str, pairs: EmbeddedSet, workers: int, start: str | None
) -> None:
    local = batches(experiment(str(pairs.train.parent)))
    remote = batches(experiment(bucket, workers), start)

    assert len(remote) == len(local) == 2
    for one, other in zip(remote, local, strict=True):
        assert one["name"] == other["name"]
        for key in ("left", "right", "disparity", "valid", "index"):
            assert torch.equal(one[key], other[key]), key


def test_every_file_is_fetched_once_and_a_second_pass_fetches_none(
    bucket: str, tmp_path: Path, requests: Requests
) -> None:
    spec = experiment(bucket, cache="on", cache_dir=str(tmp_path))
    requests.made.clear()
    first = preflight(spec, ["train_dataset", "val_dataset"])
    fetched = requests.of_files(".png", ".pfm")
    requests.made.clear()
    second = preflight(spec, ["train_dataset", "val_dataset"])

    assert len(fetched) == len(set(fetched)) == 5 * 4
    assert {line.split()[0] for line in fetched} == {"GET"}
    assert requests.of_files(".png", ".pfm") == []
    assert second == first
    assert all(batch["from_cache"].all() for batch in batches(spec))


def test_a_changed_object_is_fetched_again(bucket: str, tmp_path: Path, requests: Requests) -> None:
    spec = experiment(bucket, cache="on", cache_dir=str(tmp_path))
    row = read_rows(f"{bucket}/val_middlebury.txt", dataset="Middlebury")[0]
    preflight(spec, ["val_dataset"])
    stamps = [stamp(row.left)]
    system = s3fs.S3FileSystem(skip_instance_cache=True)  # another client, of another program
    before = system.cat_file(str(row.left))
    system.pipe_file(str(row.left), before + b"x")  # behind the end of the PNG
    stamps.append(stamp(find(str(row.left))))
    requests.made.clear()
    try:
        preflight(spec, ["val_dataset"])
    finally:
        system.pipe_file(str(row.left), before)

    fetched = [line for line in requests.made if line.startswith("GET /data/set/val/")]
    assert len(fetched) == 4  # the files of that sample
    etags = [f'"{md5(content).hexdigest()}"' for content in (before, before + b"x")]
    assert stamps == [(len(before), etags[0]), (len(before) + 1, etags[1])]


def test_a_listing_is_as_new_as_the_bucket(bucket: str) -> None:
    other = s3fs.S3FileSystem(skip_instance_cache=True)  # another client, of another program
    uris = [f"{bucket}/new/{name}.png" for name in "ab"]
    other.pipe_file(uris[0], b"1")
    before = find_all(uris)
    other.pipe_file(uris[1], b"22")

    assert before[uris[1]] == f"{uris[1]}: no such file"
    assert find_all(uris)[uris[1]] == find(uris[1])


def test_rows_take_one_listing_per_folder(bucket: str, requests: Requests) -> None:
    requests.made.clear()
    rows = read_rows(f"{bucket}/train_middlebury.txt", dataset="Middlebury")

    assert len(rows) == 3
    assert requests.made.count("GET /data") == 3  # each pair has a folder
    assert requests.of_files(".png", ".pfm") == []


def test_the_other_name_of_the_endpoint_works_too(
    bucket: str, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    s3fs.S3FileSystem.clear_instance_cache()

    assert find(f"{bucket}/train.txt").size > 0


def test_faults_of_the_check_name_address_and_line(bucket: str) -> None:
    system = s3fs.S3FileSystem()
    system.pipe_file("data/set/cut.png", b"\x89PNG")
    system.pipe_file("data/set/bad.txt", b"cut.png cut.png cut.png\ncut.png gone.png cut.png\n")
    spec = experiment(bucket)
    spec.dataset.train_dataset.data_sources = [DataSource("Middlebury", f"{bucket}/bad.txt")]

    with pytest.raises(DataError) as caught:
        preflight(spec, ["train_dataset"])

    assert f"{bucket}/bad.txt:2: {bucket}/gone.png: no such file" in str(caught.value)

    system.pipe_file("data/set/bad.txt", b"cut.png cut.png cut.png\n" * 3)
    with pytest.raises(DataError, match=rf"^{bucket}/bad\.txt:1: {bucket}/cut\.png: ") as caught:
        preflight(spec, ["train_dataset"])
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None},
            r"no credentials \(.*\)\. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        ),
        ({"AWS_PROFILE": "nobody"}, r"no credentials \(.*nobody.*\).*AWS_PROFILE"),
        (
            {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"},
            r"cannot be read \(EndpointConnectionError: .*\)\. Check the network, and AWS_ENDPOINT",
        ),
    ],
)
def test_what_is_in_the_way_is_named_with_its_remedy(
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, str | None],
    words: str,
) -> None:
    for name, value in changes.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    local = tmp_path / "a.txt"
    local.write_text(f"{bucket}/l.png {bucket}/r.png {bucket}/d.pfm")

    with pytest.raises(DataError, match=rf"^{bucket}/train\.txt: {words}"):
        read_rows(f"{bucket}/train.txt", dataset="Middlebury")
    rows, faults = parse(local, GENERIC, inference=False)
    assert rows == []
    assert len(faults) == 1
    with pytest.raises(DataError, match=rf"^{local}:1: {bucket}/l\.png: {words}"):
        read_rows(local, dataset="GenericDataset")


def test_a_missing_bucket_is_named() -> None:
    with pytest.raises(DataError, match=r"s3://nobody/a\.txt: no such file, folder or bucket"):
        find("s3://nobody/a.txt")


@pytest.mark.slow
def test_train_runs_on_remote_data(
    bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from stereo.cli import main

    def split(name: str) -> dict[str, object]:
        source = {"dataset_name": "Middlebury", "data_file": f"{bucket}/{name}_middlebury.txt"}
        return {
            "data_sources": [source],
            "batch_size": 1,
            "workers": 1,
            "augmentation": {"crop_size": [64, 96]},
        }

    values = {
        "results_dir": str(tmp_path / "runs"),
        "model": {"max_disparity": 64, "train_iters": 1, "valid_iters": 1},
        "dataset": {
            "max_disparity": 64,
            "train_dataset": split("train"),
            "val_dataset": split("val"),
        },
        "train": {"num_epochs": 1},
    }
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(values))

    assert main(["train", "--model", "ffs", "-e", str(tmp_path / "spec.yaml")]) == 0

    written = tmp_path / "runs" / "train"
    assert (written / "dn_model_best.pth").exists()
    inputs = json.loads((written / "provenance.json").read_text())["inputs"]
    assert set(inputs) == {f"{bucket}/train_middlebury.txt", f"{bucket}/val_middlebury.txt"}
    resolved = yaml.safe_load((written / "experiment.yaml").read_text())
    assert resolved["dataset"]["train_dataset"]["data_sources"][0]["data_file"] == (
        f"{bucket}/train_middlebury.txt"
    )
    assert "PASS" in capsys.readouterr().out
