"""The verbs, each a short recipe of calls; `ACTIONS` names them.

Three actions serve a study and are no verbs: `check` reads everything a training run will read,
`measure` finds what a network costs on the device, `pictures` writes the panels of the report.
Every action leaves experiment.yaml, provenance.json, status.json and a log in its directory,
failures included.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stereo.data.remote import Location, find, is_remote
from stereo.errors import (
    BackendMissingError,
    DataError,
    NoResultError,
    SpecError,
    SpecProblem,
    StereoError,
    interrupt_exit_code,
)
from stereo.files import write_json
from stereo.progress import bar_when_slow, progress_bar
from stereo.registry import entry_for, settled
from stereo.spec.data import DatasetSpec
from stereo.spec.deploy import InferenceSpec
from stereo.spec.experiment import unit_words
from stereo.spec.load import given_values, load_spec, to_dict
from stereo.spec.models import model_of
from stereo.spec.rules import is_open, value_at
from stereo.status import StatusLog, log_file, write_experiment, write_provenance

if TYPE_CHECKING:
    from stereo.data.preflight import SplitFacts
    from stereo.evaluation.evaluator import Evaluation
    from stereo.geometry import Tiles
    from stereo.predict import Predictor
    from stereo.spec.data import SplitSpec
    from stereo.spec.deploy import MonoEvaluateSpec, MonoInferenceSpec
    from stereo.spec.experiment import ExperimentSpec
    from stereo.viz import Map, Picture

LOG = logging.getLogger(__name__)
Report = Callable[[int, Mapping[str, float], Path | None], bool]
Tell = Callable[[str], None]
PICTURES = 4  # validation pairs shown in a report


@dataclass(frozen=True)
class ActionResult:
    """What an action leaves behind.

    Attributes:
        status: `ok`, `diverged`, `out_of_memory`, `invalid_spec` or `failed`.
        metrics: numbers under the names of the interface (`val/epe`, px; fractions 0..1).
        artifacts: files written, by kind.
        detail: what a person should read; all faults when the status is not `ok`.
        exit_code: exit status of the program.
    """

    status: str
    metrics: dict[str, float]
    artifacts: dict[str, Path]
    detail: str = ""
    exit_code: int = 0


@dataclass(frozen=True)
class Job:
    """One run of one action."""

    spec: ExperimentSpec
    directory: Path
    status: StatusLog
    report: Report | None
    tell: Tell  # says in words what takes seconds
    given: Collection[str]  # fields that the user set


def run(
    action: str, spec: Mapping[str, Any], results_dir: Path, report: Report | None = None
) -> ActionResult:
    """Run an action from a plain mapping; a wrong spec is the status `invalid_spec`."""
    complete = {**spec, "results_dir": str(results_dir)}
    verb = SPEC_OF.get(action, action)
    try:
        resolved = load_spec(complete, action=verb)
    except SpecError as error:
        return ActionResult("invalid_spec", {}, {}, str(error), error.exit_code)
    given = given_values(complete, action=verb)
    return run_resolved(action, resolved, results_dir, report=report, given=given.keys())


def run_resolved(
    action: str,
    spec: ExperimentSpec,
    directory: Path,
    *,
    report: Report | None = None,
    inferred: Mapping[str, str] | None = None,
    tell: Tell | None = None,
    given: Collection[str] = (),
) -> ActionResult:
    """Run an action with its files in `directory`; every outcome ends in status.json.

    Args:
        action: key of `ACTIONS`.
        spec: the resolved experiment.
        directory: where the action writes, used as it is.
        report: see `stereo.trainable.DepthNet.run`.
        inferred: keys that were filled from a parent, with the reason.
        tell: told in words what takes seconds, beside the log.
        given: paths of the fields that the user set; the others have packaged values.
    """
    directory.mkdir(parents=True, exist_ok=True)
    status = StatusLog(directory, action)
    write_experiment(directory, to_dict(spec))
    write_provenance(
        directory,
        action=action,
        seed=value_at(spec, SEEDS.get(action, "train.seed")),
        inferred=inferred,
        inputs=input_files(action, spec),
    )
    status.started()

    def say(text: str) -> None:
        LOG.info("%s", text)
        if tell is not None:
            tell(text)

    verbose = action == "train" and spec.train.verbose
    with log_file(directory, action, verbose=verbose):
        try:
            spec = _settled(action, spec, directory)
            result = ACTIONS[action](Job(spec, directory, status, report, say, given))
            category = CATEGORIES.get(result.status, "")
        except KeyboardInterrupt as interrupt:
            status.failure("Interrupted.", interrupt_exit_code(interrupt))
            raise
        except Exception as error:  # noqa: BLE001  a bug ends in a verdict too, with its traceback
            category, result = _failed(error)
    if result.exit_code == 0:
        status.success(artifacts=list(result.artifacts.values()), kpi=result.metrics)
    else:
        status.failure(f"{category}: {result.detail}", result.exit_code)
    return result


def _settled(action: str, spec: ExperimentSpec, directory: Path) -> ExperimentSpec:
    """The spec with what it leaves to the weights; experiment.yaml gets it too."""
    weights = [value_at(spec, path) for path in WEIGHTS.get(action, ())]
    given = [Path(path) for path in weights if not is_open(path) and path.endswith(".pth")]
    if not given and action != "train":
        return spec
    decided = settled(spec, given[0] if given else None)
    if decided != spec:
        write_experiment(directory, to_dict(decided))
    return decided


def input_files(action: str, spec: ExperimentSpec) -> list[Location]:
    """The annotation files, weights, graphs and engines that an action is given and that exist."""
    names: list[str] = []
    for given in model_of(spec).inputs(SPEC_OF.get(action, action)):
        value = value_at(spec, given.path)
        named = [source.data_file for source in value] if isinstance(value, list) else [value]
        names += [name for name in named if not is_open(name)]
    files: list[Location] = []
    for name in names:
        if is_remote(name):
            with suppress(DataError):  # the action says what is wrong with it
                files.append(find(name))
        elif (path := Path(name).expanduser()).is_file():
            files.append(path)
    return files


# Where an action finds its weights, the first that is set; training needs none.
WEIGHTS = {
    "train": ("train.resume_training_checkpoint_path", "train.pretrained_model_path"),
    "evaluate": ("evaluate.checkpoint",),
    "pictures": ("evaluate.checkpoint",),
    "inference": ("inference.checkpoint",),
    "export": ("export.checkpoint",),
    "quantize": ("quantize.model_path",),
}
SEEDS = {"convert": "convert.seed"}  # where it is not the seed of training
CATEGORIES = {"diverged": "No usable result", "out_of_memory": "Out of memory"}


def _failed(error: Exception) -> tuple[str, ActionResult]:
    """First words of the FAILURE line, and the outcome that an error stands for."""
    if isinstance(error, StereoError):
        word = "diverged" if isinstance(error, NoResultError) else "failed"
        word = "invalid_spec" if isinstance(error, SpecError) else word
        found_before = "Configuration error" if error.exit_code == 2 else "Runtime error"
        return CATEGORIES.get(word, found_before), _without_result(word, error, error.exit_code)
    from stereo.train.trainer import is_out_of_memory, out_of_memory_detail

    if is_out_of_memory(error):
        detail = out_of_memory_detail(error)
        return CATEGORIES["out_of_memory"], _without_result("out_of_memory", detail)
    if isinstance(error, OSError):
        return "File system error", _without_result("failed", error)
    return "Runtime error", _without_result("failed", traceback.format_exc())  # a bug


def _without_result(status: str, detail: object, exit_code: int = 1) -> ActionResult:
    return ActionResult(status, {}, {}, str(detail), exit_code)


def convert(job: Job) -> ActionResult:
    """Write the annotation files of a folder of scenes; nothing is written when one is faulty."""
    from stereo.data.convert import convert as write_splits

    spec = job.spec.convert
    pairs = job.spec.dataset.dataset_name == "StereoDataset"
    with bar_when_slow() as show:
        result = write_splits(spec, job.directory, show, pairs=pairs)
    metrics = {f"samples_{name}": float(count) for name, count in result.counts.items()}
    job.status.running("Annotation files written.", kpi=metrics, seed=spec.seed)
    moved = [f"kept the file of an earlier run as {path}" for path in result.moved]
    return ActionResult("ok", metrics, result.files, "\n".join(moved))


def train(job: Job) -> ActionResult:
    """Train; see `stereo.train.trainer.fit` for checkpoints, resuming and reporting.

    A faulty file is found now rather than epochs later; a study has looked before its trials.
    """
    from stereo.train.trainer import fit

    if job.report is None:
        job.status.running("Reading all files of training and validation once.")
        validated = bool(job.spec.dataset.val_dataset.data_sources)
        _read_all(job.spec, ("train_dataset", *["val_dataset"] * validated))
    entry = entry_for(job.spec)
    outcome = fit(job.spec, entry, job.directory, report=job.report, status=job.status)
    files = {"best": outcome.best, "latest": outcome.latest}
    artifacts = {name: path for name, path in files.items() if path is not None}
    exit_code = {"ok": 0, "stopped": 0, "diverged": 3}.get(outcome.status, 1)
    word = "ok" if outcome.status == "stopped" else outcome.status
    return ActionResult(word, dict(outcome.metrics), artifacts, outcome.detail, exit_code)


def evaluate(job: Job) -> ActionResult:
    """Score a checkpoint, a graph or an engine at native size on the test split."""
    from stereo.data.encodings import write_png
    from stereo.data.loaders import evaluation_loader
    from stereo.evaluation.contact_sheet import WorstSamples
    from stereo.evaluation.evaluator import evaluate as score

    section = job.spec.evaluate
    split = job.spec.dataset.test_dataset
    predictor = _predictor(job.spec, section, split)
    batch_size = section.batch_size if section.batch_size > 0 else split.batch_size
    loader = evaluation_loader(split, job.spec, batch_size=batch_size, input_size=predictor.size)
    worst = WorstSamples(predictor.task, split.augmentation)
    evaluation = score(predictor, loader, job.spec, watch=worst.add)
    files = _write_evaluation(job.directory, evaluation, predictor)
    files["worst_samples"] = job.directory / "worst_samples.png"
    write_png(files["worst_samples"], worst.sheet())
    names = {f"val/{name}": value for name, value in evaluation.metrics.items()}
    bare = evaluation.metrics if section.trt_engine else {}
    job.status.running("Test metrics generated.", kpi={**names, **bare})
    return ActionResult("ok", names, files, f"scored by {predictor.backend}")


def _write_evaluation(
    directory: Path, evaluation: Evaluation, predictor: Predictor
) -> dict[str, Path]:
    summary = asdict(evaluation)
    rows = summary.pop("rows")
    flat = summary.pop("metrics") | summary.pop("limits")
    declared = predictor.task.declared
    units = {name: unit_words(declared[f"val/{name}"]) for name in evaluation.metrics}
    summary = {**flat, "units": units, **summary, "source": str(predictor.source)}
    files = {
        "results": directory / "results.json",
        "per_sample_results": directory / "per_sample_results.json",
    }
    write_json(files["results"], summary)
    write_json(files["per_sample_results"], rows)
    return files


def inference(job: Job) -> ActionResult:
    """Write the prediction and a picture for every sample of the inference split."""
    from stereo.data.loaders import evaluation_loader
    from stereo.evaluation.evaluator import Scores
    from stereo.evaluation.pictures import write_predictions

    section = job.spec.inference
    split = job.spec.dataset.infer_dataset
    depth, write_points = _depth(job), _point_cloud(job)
    predictor = _predictor(job.spec, section, split)
    batch_size = section.batch_size if section.batch_size > 0 else split.batch_size
    loader = evaluation_loader(
        split, job.spec, batch_size=batch_size, inference=True, input_size=predictor.size
    )
    scores = Scores(predictor, job.spec)
    written = write_predictions(
        predictor,
        loader,
        job.directory,
        split.augmentation,
        job.spec,
        save_raw_pfm=section.save_raw_pfm,
        save_raw_npy=section.save_raw_npy,
        depth=depth,
        write_points=write_points,
        scores=scores,
    )
    if written == 0:
        raise NoResultError(f"{job.directory}: inference wrote no prediction")
    speed = {f"inference/{name}": value for name, value in predictor.pace.summary().items()}
    metrics = {predictor.task.samples: float(written), **speed}
    files = {"inference_images": job.directory / "inference_images"}
    if scores.images:
        evaluation = scores.result()
        files |= _write_evaluation(job.directory, evaluation, predictor)
        metrics |= {f"val/{name}": value for name, value in evaluation.metrics.items()}
    return ActionResult("ok", metrics, files, f"predicted by {predictor.backend}")


CAMERA = ("dataset.baseline", "dataset.focal_x")  # without them disparity gives no depth


def _unknown_camera(job: Job) -> list[str]:
    """What the user did not say about the camera: the packaged values are one camera's."""
    return [path for path in CAMERA if path not in job.given or value_at(job.spec, path) <= 0]


def _depth(job: Job) -> Callable[[Map], Map] | None:
    """Disparity to depth, for a camera that the user described."""
    data = job.spec.dataset
    if not isinstance(data, DatasetSpec):
        return None  # not of pairs
    unknown = _unknown_camera(job)
    if unknown:
        if len(unknown) < len(CAMERA):
            LOG.warning("no depth is written: it needs %s", " and ".join(CAMERA))
        return None
    from stereo.geometry import disparity_to_depth

    camera = {"baseline": data.baseline, "focal_x": data.focal_x, "doffs": data.doffs}
    return partial(disparity_to_depth, **camera)


def _point_cloud(job: Job) -> Callable[[Path, Map, Picture], int] | None:
    """Writes the point cloud of a depth map, where the spec asks for it.

    Raises:
        SpecError: it asks for them and leaves the camera open.
    """
    section = job.spec.inference
    if not isinstance(section, InferenceSpec) or not section.save_ply:
        return None
    problem = "not set by the spec, and inference.save_ply needs it"
    remedy = "Describe the camera of the images, or remove inference.save_ply"
    source = str(job.directory / "experiment.yaml")
    problems = [SpecProblem(source, path, problem, remedy) for path in _unknown_camera(job)]
    if problems:
        raise SpecError(problems)
    from stereo.pointcloud import write_ply

    return partial(write_ply, focal_x=job.spec.dataset.focal_x)


def export(job: Job) -> ActionResult:
    """Write the ONNX graph of a checkpoint and check it against PyTorch."""
    from stereo.export.graph import export_graph
    from stereo.predict import load_network

    section = job.spec.export
    checkpoint = Path(section.checkpoint)
    graph = Path(section.onnx_file or job.directory / f"{checkpoint.resolve().stem}.onnx")
    network = load_network(checkpoint, job.spec)
    info = export_graph(network, job.spec, graph, checkpoint=checkpoint, progress=job.tell)
    metrics = {
        "export/max_difference": info.max_difference,
        "export/nodes": float(info.nodes),
        "export/bytes": float(info.bytes),
    }
    return ActionResult("ok", metrics, {"graph": info.path, "sidecar": info.sidecar})


def gen_trt_engine(job: Job) -> ActionResult:
    """Build an engine from a graph with the chosen backend."""
    from stereo.engines.build import build_engine

    info = build_engine(job.spec.gen_trt_engine, job.directory, progress=job.tell)
    metrics = {
        "engine/bytes": float(info.engine.stat().st_size),
        "engine/build_seconds": float(info.facts.get("build_seconds", 0.0)),
    }
    files = {"engine": info.engine, "sidecar": info.sidecar}
    return ActionResult("ok", metrics, files, f"built by {info.backend}")


def quantize(job: Job) -> ActionResult:
    """Write a model in fewer bits and measure what that changes."""
    from stereo.export.quantization import quantize_model

    info = quantize_model(job.spec, job.directory, progress=job.tell)
    files = {"model": info.model, "report": info.report}
    if info.sidecar is not None:
        files["sidecar"] = info.sidecar
    return ActionResult("ok", info.metrics, files)


def check(job: Job) -> ActionResult:
    """Read every file that training and validation will read; all faults come together."""
    facts = _read_all(job.spec, ("train_dataset", "val_dataset"))
    entry = entry_for(job.spec)
    sizes = entry.task.network_sizes(facts["val_dataset"].sizes, job.spec, entry.stride)
    height, width = (max(side) for side in zip(*sizes, strict=True))
    metrics = {
        "samples_train": float(facts["train_dataset"].samples),
        "samples_val": float(facts["val_dataset"].samples),
        "height": float(height),
        "width": float(width),
        "mixed_sizes": float(len(sizes) > 1),
    }
    write_json(job.directory / "data.json", {name: _plain(fact) for name, fact in facts.items()})
    return ActionResult("ok", metrics, {"data": job.directory / "data.json"})


def measure(job: Job) -> ActionResult:
    """Find out what the network costs where it runs, without training it."""
    from stereo.export.cost import measure_costs

    metrics = measure_costs(job.spec, job.directory, job.tell)
    return ActionResult("ok", metrics, {}, "timed in ONNX Runtime, one thread")


def _read_all(spec: ExperimentSpec, splits: Sequence[str]) -> dict[str, SplitFacts]:
    """Read every file of the splits once, with a bar on a terminal."""
    from stereo.data.preflight import preflight

    with progress_bar() as bar:
        task = bar.add_task("reading all samples")
        return preflight(
            spec, splits, lambda done, total: bar.update(task, completed=done, total=total)
        )


def _plain(facts: Any) -> dict[str, Any]:
    sizes = {f"{height}x{width}": count for (height, width), count in facts.sizes.items()}
    return {**asdict(facts), "sizes": sizes}


def pictures(job: Job) -> ActionResult:
    """Write image, truth, prediction and error pictures of the first test samples."""
    from stereo.data.loaders import evaluation_loader
    from stereo.evaluation.pictures import write_pictures

    split = job.spec.dataset.test_dataset
    predictor = _predictor(job.spec, job.spec.evaluate, split)
    loader = evaluation_loader(split, job.spec, batch_size=1, input_size=predictor.size)
    items = write_pictures(
        predictor, loader, job.directory, split.augmentation, job.spec, count=PICTURES
    )
    write_json(job.directory / "pictures.json", items)
    return ActionResult("ok", {}, {"pictures": job.directory / "pictures.json"})


def _predictor(
    spec: ExperimentSpec, section: MonoEvaluateSpec | MonoInferenceSpec, split: SplitSpec
) -> Predictor:
    """The predictor of `checkpoint` or of `trt_engine`, whichever is set."""
    from stereo.predict import load_predictor

    size = None
    if section.input_height and section.input_width:
        size = (section.input_height, section.input_width)
    file = section.checkpoint or section.trt_engine
    assert file is not None  # a rule of the spec
    _use_gpu(section.gpu_ids[0])
    task = entry_for(spec).task
    return load_predictor(
        Path(file),
        spec,
        input_size=size,
        native_padded=task.pads_to_size(section),
        first_pass=task.first_pass(section),
        tiles=_tiles(spec, split),
    )


def _use_gpu(index: int) -> None:
    """Predict on a device, where there is one.

    Raises:
        BackendMissingError: there are devices, but not so many.
    """
    import torch

    count = torch.cuda.device_count()
    if count and index >= count:
        raise BackendMissingError(f"gpu_ids=[{index}]: this machine has {count} GPUs")
    if count:
        torch.cuda.set_device(index)


def _tiles(spec: ExperimentSpec, split: SplitSpec) -> Tiles | None:
    """Tiles of the size of the crop, when the spec asks for them."""
    from stereo.geometry import Tiles

    if not spec.train.inference_tile:
        return None
    height, width = split.augmentation.crop_size
    rows, columns = spec.train.tile_min_overlap
    return Tiles((height, width), (rows, columns), spec.train.tile_wtype)


ACTIONS: dict[str, Callable[[Job], ActionResult]] = {
    "convert": convert,
    "train": train,
    "evaluate": evaluate,
    "inference": inference,
    "export": export,
    "gen_trt_engine": gen_trt_engine,
    "quantize": quantize,
    "check": check,
    "measure": measure,
    "pictures": pictures,
}
# The verb whose required fields an internal action shares.
SPEC_OF = {"check": "train", "measure": "train", "pictures": "evaluate"}
