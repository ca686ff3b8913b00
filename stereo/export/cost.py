"""What a network costs where it runs, without training it: parameters, graph size, latency.

A graph's size and speed follow from the structure of the network, not from its weights, so a fresh
network is exported at the size and with the refinements of the spec and timed in ONNX Runtime: one
pair or image at a time, one thread, warmed up, the median. That is no engine on its device, but it
ranks structures as the device does, on any machine. Sizes in MB (1e6 bytes).
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from stereo.engines.ort import GraphEngine
from stereo.export.graph import export_graph
from stereo.registry import entry_for
from stereo.spec.experiment import ExperimentSpec
from stereo.spec.rules import value_at

WARM_UP = 2
FEWEST_RUNS, MOST_RUNS, ENOUGH_S = 5, 50, 2.0  # until either is reached, but not fewer


class GraphCost(NamedTuple):
    """Of one graph: median time of a run, size of the file."""

    latency_ms: float
    size_mb: float


def measure_costs(
    spec: ExperimentSpec, directory: Path, tell: Callable[[str], None] = lambda _: None
) -> dict[str, float]:
    """Return `model/parameters`, `engine/latency_ms` and `engine/size_mb` of a spec's network.

    Of a network that refines its prediction also `<field>=<number>/engine/...` for fewer
    refinements. Each one is the same piece of graph, so only the graphs of one and of all are
    made; those in between lie on the line through them.

    Args:
        spec: its `export` section gives the size of the images.
        directory: for graphs, which are removed again.
        tell: told in words what happens next.
    """
    entry = entry_for(spec)
    torch.manual_seed(0)
    network = entry.build(spec).eval()
    parameters = float(sum(parameter.numel() for parameter in network.parameters()))
    field = entry.task.steps
    count = int(value_at(spec, field)) if field else 1
    costs: dict[int, GraphCost] = {}
    with tempfile.TemporaryDirectory(dir=directory, prefix=".cost-") as scratch:
        for steps in sorted({1, count}):
            graph = Path(scratch) / f"{steps}.onnx"
            costs[steps] = _cost(network, _with_steps(spec, steps if field else None), graph, tell)
    metrics = {"model/parameters": parameters, **_named(costs[count])}
    for steps in range(1, count + 1) if field else ():
        metrics |= _named(_between(costs, steps, count), f"{field}={steps}/")
    return metrics


def _with_steps(spec: ExperimentSpec, steps: int | None) -> ExperimentSpec:
    section = replace(spec.export, batch_size=1, onnx_file=None, overwrite=True)
    if steps is not None:
        section = replace(section, valid_iters=steps)
    return replace(spec, export=section)


def _named(cost: GraphCost, prefix: str = "") -> dict[str, float]:
    return {
        f"{prefix}engine/latency_ms": cost.latency_ms,
        f"{prefix}engine/size_mb": cost.size_mb,
    }


def _between(costs: dict[int, GraphCost], steps: int, count: int) -> GraphCost:
    if count == 1:
        return costs[1]
    share = (steps - 1) / (count - 1)
    ends = zip(costs[1], costs[count], strict=True)
    return GraphCost(*(first + share * (last - first) for first, last in ends))


def _cost(
    network: nn.Module, spec: ExperimentSpec, graph: Path, tell: Callable[[str], None]
) -> GraphCost:
    info = export_graph(network, spec, graph, progress=tell)
    engine = GraphEngine(graph.read_bytes(), threads=1)
    generator = np.random.default_rng(0)
    images = {
        tensor.name: generator.standard_normal(tensor.shape, dtype=np.float32)
        for tensor in engine.inputs
    }
    tell(f"timing the graph on {engine.device}")
    for _ in range(WARM_UP):
        engine(images)
    times: list[float] = []
    while len(times) < FEWEST_RUNS or (len(times) < MOST_RUNS and sum(times) < ENOUGH_S):
        started = time.perf_counter()
        engine(images)
        times.append(time.perf_counter() - started)
    return GraphCost(1e3 * statistics.median(times), info.bytes / 1e6)
