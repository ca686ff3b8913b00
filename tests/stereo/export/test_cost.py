"""What networks cost: the graphs are real, times are only checked for being there."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from stereo import actions
from stereo.export.graph import export_graph
from stereo.registry import entry_for
from stereo.spec.load import load_spec

STEPS = 4


@pytest.mark.slow
def test_a_refining_network_is_measured_after_every_refinement(
    small_values: dict[str, Any], tmp_path: Path
) -> None:
    values = {**small_values, "model": {**small_values["model"], "valid_iters": STEPS}}

    result = actions.run("measure", values, tmp_path / "measure")

    assert (result.status, result.detail) == ("ok", "timed in ONNX Runtime, one thread")
    spec = load_spec({**values, "results_dir": str(tmp_path)}, action="train")
    network = entry_for(spec).build(spec)
    found = result.metrics
    assert found["model/parameters"] == sum(p.numel() for p in network.parameters())
    assert all(value > 0 for value in found.values())
    for name in ("engine/latency_ms", "engine/size_mb"):
        line = [found[f"model.valid_iters={steps}/{name}"] for steps in range(1, STEPS + 1)]
        assert line[-1] == found[name]
        steps = [b - a for a, b in pairwise(line)]
        assert steps == pytest.approx([steps[0]] * (STEPS - 1))
    assert [path.name for path in (tmp_path / "measure").iterdir() if "cost" in path.name] == []


@pytest.mark.slow
def test_every_refinement_is_the_same_piece_of_graph(
    small_values: dict[str, Any], tmp_path: Path
) -> None:
    """The reason why the graphs between the first and the last need not be made."""
    counts: list[int] = []
    sizes: list[int] = []
    for steps in (1, 2, 3):
        values = {**small_values, "export": {**small_values["export"], "valid_iters": steps}}
        spec = load_spec({**values, "results_dir": str(tmp_path)}, action="train")
        torch.manual_seed(0)
        info = export_graph(entry_for(spec).build(spec), spec, tmp_path / f"{steps}.onnx")
        counts.append(len(onnx.load(info.path).graph.node))
        sizes.append(info.bytes)
    assert counts[2] - counts[1] == counts[1] - counts[0] > 0
    assert sizes[2] - sizes[1] == pytest.approx(sizes[1] - sizes[0], rel=0.02)


def test_a_network_that_does_not_refine_has_one_cost(tmp_path: Path) -> None:
    values = {
        "model": {
            "model_type": "MetricDepthAnything",
            "encoder": "vits",
            "mono_backbone": {"blocks": 4, "width": 64},
        },
        "dataset": {"dataset_name": "MonoDataset", "min_depth": 0.001, "max_depth": 10.0},
        "export": {"input_height": 42, "input_width": 56},
    }
    for split in ("train", "val"):
        source = {"dataset_name": "MetricMonoDataset", "data_file": "unused.txt"}
        values["dataset"] |= {f"{split}_dataset": {"data_sources": [source]}}
    result = actions.run("measure", values, tmp_path)
    assert result.status == "ok", result.detail
    assert set(result.metrics) == {"model/parameters", "engine/latency_ms", "engine/size_mb"}
