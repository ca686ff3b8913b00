"""The decoded cache between programs: who comes second decodes nothing, as its log says."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from automl.study_spec import merge
from tests.end_to_end.small_ffs import STUDY, Place

pytestmark = pytest.mark.xdist_group("ray")
LINE = re.compile(r"data: (\d+) of (\d+) (.+) from the cache, (\d+) decoded")
PAIRS = {"train": "training pairs", "val": "validation pairs"}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    place.write({"spec": {"train": {"num_epochs": 1}}, "budget": {"trials": 2}})
    yield place
    assert place.left_over() == []


def reads(folder: Path) -> dict[str, list[tuple[int, int]]]:
    """(samples from the cache, samples decoded) of every pass that the logs below a folder name."""
    found: dict[str, list[tuple[int, int]]] = {}
    for file in sorted(folder.rglob("*.log")):
        for cached, total, what, decoded in LINE.findall(file.read_text()):
            assert int(cached) + int(decoded) == int(total)
            found.setdefault(what, []).append((int(cached), int(decoded)))
    return found


def train(place: Place, results: str, *arguments: str) -> dict[str, list[tuple[int, int]]]:
    """Train one epoch; what was read."""
    sources = {
        f"{split}_dataset": {
            "data_sources": [
                {
                    "dataset_name": "Middlebury",
                    "data_file": str(place.root / "data" / f"{split}_middlebury.txt"),
                }
            ]
        }
        for split in ("train", "val")
    }
    changes = {"dataset": sources, "train": {"num_epochs": 1}}
    (place.root / "spec.yaml").write_text(yaml.safe_dump(merge(STUDY["spec"], changes)))
    code, output = place.depth_net(
        "train", "-e", "spec.yaml", f"results_dir={results}", *arguments,
        XDG_CACHE_HOME=str(place.root / "cache"),
    )  # fmt: skip
    assert code == 0, output
    return reads(place.root / results)


def test_a_second_run_decodes_nothing(place: Place) -> None:
    first = train(place, "first")
    second = train(place, "second", "dataset.train_dataset.workers=1")

    assert first == {
        "samples of the check": [(0, 6)],
        "training pairs": [(4, 0)],
        "validation pairs": [(2, 0)],
    }
    assert second == first | {"samples of the check": [(6, 0)]}


@pytest.mark.slow
def test_the_trials_of_two_studies_share_one_decoded_set(place: Place) -> None:
    for number, name in enumerate(("first", "again")):
        study = place.root / f"{name}.yaml"
        study.write_text((place.root / "first.yaml").read_text())
        code, output = place.automl("study", study.name, XDG_CACHE_HOME=str(place.root / "cache"))
        assert code == 0, output
        found = reads(place.root / "results" / "studies" / name)

        assert found.pop("samples of the check") == [(6, 0) if number else (0, 6)]
        assert len(found["training pairs"]) == 2
        assert all(decoded == 0 for passes in found.values() for _, decoded in passes), found
    os.utime(sorted((place.root / "data" / "train").rglob("im0.png"))[1])
    assert train(place, "touched")["samples of the check"] == [(5, 1)]
