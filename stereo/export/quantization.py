"""The recipe of `quantize`: a checkpoint or graph in fewer bits, and what that changes.

Written are the quantised model, its sidecar where it is a graph, and `quantize.json`: sizes, drift,
latency, modules, and the scores on the validation split before and after. Drift compares both
models on the calibration images: mean of |after - before| / |before| over all pixels, where
|before| counts as at least a tenth of its mean.

Source: training.md 10 of the design pages.
"""

from __future__ import annotations

import copy
import logging
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from stereo.data.loaders import evaluation_loader
from stereo.engines import base, precision
from stereo.engines.ort import GraphEngine
from stereo.errors import EngineError, SpecError, SpecProblem
from stereo.evaluation.evaluator import evaluate
from stereo.export import quantize
from stereo.export.calibration import Images, calibration_images
from stereo.export.graph import export_graph
from stereo.export.selection import Selection, modules_of_graph, modules_of_network, select
from stereo.files import sha256, write_bytes, write_json
from stereo.predict import Predictor, load_network, load_predictor
from stereo.registry import entry_for
from stereo.tasks import Size

if TYPE_CHECKING:
    from stereo.spec.experiment import ExperimentSpec

LOG = logging.getLogger(__name__)
WARN_DRIFT = 0.05
LEAST_SHARE = 0.1  # of the mean |before|; a change is divided by no less: inverse depth may be 0
Run = Callable[[Images], NDArray[Any]]


@dataclass(frozen=True)
class QuantizeInfo:
    """What was written, and the numbers of `quantize.json` by dotted name."""

    model: Path
    sidecar: Path | None
    report: Path
    metrics: dict[str, float]


@dataclass(frozen=True)
class _Model:
    """One side of the comparison."""

    file: Path
    run: Run
    predictor: Predictor
    size: Size | None = None  # the only one it takes


@dataclass(frozen=True)
class Drift:
    """How far two models are apart on the same images.

    Attributes:
        mean_relative: mean of |after - before| / |before|, see `LEAST_SHARE`.
        correlation: of all pixels of all images; None for a constant output.
        images: samples compared.
    """

    mean_relative: float
    correlation: float | None
    images: int


def quantize_model(
    spec: ExperimentSpec, directory: Path, *, progress: Callable[[str], None] | None = None
) -> QuantizeInfo:
    """Quantise `quantize.model_path`, write and measure it.

    Args:
        spec: the experiment; a checkpoint is exported by section `export` first.
        directory: where everything is written.
        progress: told in words what happens next.

    Raises:
        SpecError: a pattern matches nothing, or the graph is quantised already.
        BackendMissingError: the library or device is not here.
        DataError: calibration images are missing.
        EngineError: the drift is above `backend_kwargs.max_drift`, or the output is not finite.
    """
    tell = progress or LOG.info
    quantize.require(spec.quantize)
    of_graph = spec.quantize.backend in quantize.OF_GRAPHS
    make = _quantized_graph if of_graph else _quantized_network
    before, after, selection, images = make(spec, directory, tell)
    tell("comparing both models")
    drift, latency = _compare(before.run, after.run, images)
    tell("scoring both models" if spec.dataset.val_dataset.data_sources else "writing the report")
    report = {
        "backend": spec.quantize.backend,
        "mode": spec.quantize.mode,
        "before": {**_file_facts(before.file), "latency_ms": latency[0]},
        "after": {**_file_facts(after.file), "latency_ms": latency[1]},
        "size_ratio": after.file.stat().st_size / before.file.stat().st_size,
        "drift": None if drift is None else asdict(drift),
        "accuracy": _accuracy(spec, before, after),
        "modules": {"matched": selection.types, "skipped": selection.skipped},
    }
    file = directory / "quantize.json"
    write_json(file, report)
    _judge(drift, spec, file)
    sidecar = base.sidecar_path(after.file)
    return QuantizeInfo(after.file, sidecar if sidecar.exists() else None, file, _metrics(report))


# -- graphs ---------------------------------------------------------------------------------------


def _quantized_graph(
    spec: ExperimentSpec, directory: Path, tell: Callable[[str], None]
) -> tuple[_Model, _Model, Selection, list[Images]]:
    section, task = spec.quantize, entry_for(spec).task
    source = Path(section.model_path)
    if source.suffix == ".pth":
        source = _export(spec, source, directory, tell)
    if not source.is_file():
        problem = SpecProblem(str(source), "quantize.model_path", "no such file", "Check the path")
        raise SpecError([problem])
    content = source.read_bytes()
    model = onnx.load_model_from_string(content)
    if precision.quantized_as(content) is not None:
        problem = "the graph is quantised already"
        key = "quantize.model_path"
        raise SpecError([SpecProblem(str(source), key, problem, "Name the float graph")])
    kinds, nodes = modules_of_graph(model, section.backend_kwargs.op_types)
    selection = select(kinds, section)
    before = _of_graph(source, spec)
    tell("reading calibration images")
    assert before.size is not None
    images = calibration_images(spec, task, before.size, entry_for(spec).stride)
    chosen = {node: kind for name, kind in selection.types.items() for node in nodes[name]}
    samples = [_tensors(task.graph_inputs, sample) for sample in images]
    tell(f"quantising {len(selection.types)} of {len(kinds)} modules with {section.backend}")
    target = directory / "quantized_model.onnx"
    write_bytes(target, quantize.quantize_graph(content, section, chosen, samples))
    _write_sidecar(target, source, spec)
    return before, _of_graph(target, spec), selection, images


def _export(
    spec: ExperimentSpec, checkpoint: Path, directory: Path, tell: Callable[[str], None]
) -> Path:
    graph = directory / f"{checkpoint.resolve().stem}.onnx"
    own = replace(spec, export=replace(spec.export, overwrite=True))
    network = load_network(checkpoint, spec)
    return export_graph(network, own, graph, checkpoint=checkpoint, progress=tell).path


def _write_sidecar(target: Path, source: Path, spec: ExperimentSpec) -> None:
    """The float graph's sidecar with what was done; none where that has none."""
    facts = base.read_sidecar(source)
    if facts is None:
        LOG.warning("%s has no sidecar, so %s gets none either", source, target.name)
        return
    own = {key: value for key, value in facts.items() if key not in ("sha256", "bytes")}
    quantization = {
        "backend": spec.quantize.backend,
        "mode": spec.quantize.mode,
        "float_graph": {"file": base.relative_to(source, target.parent), "sha256": sha256(source)},
    }
    base.write_sidecar(target, {**own, "quantization": quantization})


def _of_graph(path: Path, spec: ExperimentSpec) -> _Model:
    engine, task = GraphEngine(path.read_bytes()), entry_for(spec).task
    if engine.inputs[0].dtype == "uint8":
        raise EngineError(
            f"{path}: takes uint8 images. Quantise a graph that was exported with "
            "export.include_normalization=false"
        )

    def run(images: Images) -> NDArray[Any]:
        return engine(_tensors(task.graph_inputs, images))[task.graph_output]

    height, width = engine.inputs[0].shape[2:]
    if -1 in (height, width):  # any size: the one that the spec exports
        height, width = spec.export.input_height, spec.export.input_width
    return _Model(path, run, load_predictor(path, spec), (height, width))


def _tensors(names: Sequence[str], images: Images) -> base.Tensors:
    return {name: image.numpy() for name, image in zip(names, images, strict=True)}


# -- networks -------------------------------------------------------------------------------------


def _quantized_network(
    spec: ExperimentSpec, directory: Path, tell: Callable[[str], None]
) -> tuple[_Model, _Model, Selection, list[Images]]:
    section, entry = spec.quantize, entry_for(spec)
    checkpoint = Path(section.model_path)
    network = load_network(checkpoint, spec).to(quantize.device(section))
    before = _of_network(checkpoint, network, spec, f"PyTorch {quantize.device(section)} fp32")
    kinds = modules_of_network(network, section.backend_kwargs.op_types)
    selection = select(kinds, section)
    tell("reading calibration images")
    size = (spec.export.input_height, spec.export.input_width)
    images = calibration_images(spec, entry.task, size, entry.stride)
    tell(f"quantising {len(selection.types)} of {len(kinds)} modules with {section.backend}")

    def calibrate(module: nn.Module) -> None:
        model = _of_network(checkpoint, module, spec, "")
        for sample in images:
            model.run(sample)

    changed = quantize.quantize_network(copy.deepcopy(network), section, selection.types, calibrate)
    target = directory / f"quantized_model_{section.backend}.pth"
    quantize.write_network(changed, section, target)
    backend = f"PyTorch {quantize.device(section)}, weights by {section.backend}"
    return before, _of_network(target, changed, spec, backend), selection, images


def _of_network(path: Path, network: nn.Module, spec: ExperimentSpec, backend: str) -> _Model:
    entry, device = entry_for(spec), next(network.parameters()).device

    def predict(*images: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return entry.task.predict(network, [image.to(device) for image in images], spec).cpu()

    predictor = Predictor(predict, entry.task, backend=backend, source=path, stride=entry.stride)
    return _Model(path, lambda images: predict(*images).numpy(), predictor)


# -- what it changes ------------------------------------------------------------------------------


def _compare(
    before: Run, after: Run, images: Sequence[Images]
) -> tuple[Drift | None, tuple[float | None, float | None]]:
    """Drift over the images, and the median time of one sample in ms; nothing without images."""
    if not images:
        return None, (None, None)
    outputs: list[list[NDArray[Any]]] = []
    medians: list[float] = []
    for run in (before, after):
        run(images[0])  # the first call prepares memory
        seconds: list[float] = []
        outputs.append([])
        for sample in images:
            started = time.perf_counter()
            outputs[-1].append(run(sample))
            seconds.append(time.perf_counter() - started)
        medians.append(round(1e3 * statistics.median(seconds), 3))
    if not all(np.isfinite(values).all() for values in outputs[1]):
        raise EngineError("the quantised model gives values that are not finite. Skip modules")
    return drift_of(*outputs), (medians[0], medians[1])


def drift_of(before: Sequence[NDArray[Any]], after: Sequence[NDArray[Any]]) -> Drift:
    """Compare outputs for the same images."""
    reference = np.concatenate([values.ravel() for values in before]).astype(np.float64)
    changed = np.concatenate([values.ravel() for values in after]).astype(np.float64)
    sizes = np.abs(reference)
    scale = np.maximum(sizes, LEAST_SHARE * sizes.mean() or 1.0)
    constant = reference.std() == 0 or changed.std() == 0
    return Drift(
        mean_relative=float((np.abs(changed - reference) / scale).mean()),
        correlation=None if constant else float(np.corrcoef(reference, changed)[0, 1]),
        images=len(before),
    )


def _accuracy(
    spec: ExperimentSpec, before: _Model, after: _Model
) -> dict[str, dict[str, float]] | None:
    """Scores of both on the validation split, None without one."""
    split = spec.dataset.val_dataset
    if not split.data_sources:
        return None
    scores: dict[str, dict[str, float]] = {}
    for name, model in (("before", before), ("after", after)):
        loader = evaluation_loader(split, spec, batch_size=split.batch_size, input_size=model.size)
        scores[name] = evaluate(model.predictor, loader, spec).metrics
    return scores


def _judge(drift: Drift | None, spec: ExperimentSpec, report: Path) -> None:
    limit = spec.quantize.backend_kwargs.max_drift
    if drift is None:
        if limit is not None:
            LOG.warning("max_drift is not checked: there are no calibration images")
        return
    found = drift.mean_relative
    said = f"{report}: the output changes by {100 * found:.2f} % on {drift.images} images"
    if limit is not None and found > limit:
        raise EngineError(
            f"{said}, allowed {100 * limit:g} % (max_drift). Skip more modules "
            "(quantize.skip_names), calibrate with more images, or raise max_drift"
        )
    if found > WARN_DRIFT:
        LOG.warning("%s, more than %g %%", said, 100 * WARN_DRIFT)


def _file_facts(path: Path) -> dict[str, Any]:
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)}


def _metrics(report: Mapping[str, Any]) -> dict[str, float]:
    """The numbers that a reader of status.json wants."""
    metrics = {
        "quantize/bytes": float(report["after"]["bytes"]),
        "quantize/size_ratio": report["size_ratio"],
    }
    if report["drift"] is not None:
        metrics["quantize/drift"] = report["drift"]["mean_relative"]
    for name, value in (report["accuracy"] or {}).get("after", {}).items():
        metrics[f"val/{name}"] = value
        metrics[f"before/{name}"] = report["accuracy"]["before"][name]
    return metrics
