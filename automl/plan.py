"""What a study would do, without doing it.

`prepare` turns a target and its options into everything that is fixed about a study; a study
starts from the same object. `make_plan` adds what follows from it: the first trials, the cost,
the resources and what happens at the end. Nothing here writes a file or starts a process.
Times in seconds, memory in GiB.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import psutil
import yaml

from automl.algorithms.table import first_batch, make_rungs, row_of
from automl.contract import SEED_KEY, Objective, Trainable, find_trainable
from automl.errors import AutoMLError, Problem, SchemaError, StudySpecError
from automl.forecast import Forecast, forecast
from automl.objectives import Goals, resolve_goals
from automl.resources import Machine, TrialResources, cores, gpus, of_study, on_machines
from automl.space import build_space, read_fields, with_numbers_for_nulls
from automl.store import EVENTS_FILE, ResolvedStudy, Study, read_lock, read_study
from automl.study_spec import (
    EMBEDDED,
    DataOption,
    StudySpec,
    base_spec,
    data_choice,
    data_stem,
    get_path,
    load_study,
    parse_yaml,
    set_path,
    split_class,
    study_from_dict,
)
from automl.study_spec import (
    STUDIES as STUDY_FILES,
)
from automl.transfer import Taken, in_words, take

RESULTS = Path("results")
STUDIES = RESULTS / "studies"
SPLITS = ("train", "val")
FIRST_TRIALS = 4
OPEN = "???"  # a value that a spec leaves to the user


@dataclass(frozen=True)
class Prepared:
    """A study ready to be planned or started.

    Attributes:
        resolved: what will be fixed when the study is created.
        trainable: name for `find_trainable`.
        metadata: `model.json`.
        directory: where the study lives.
        taken: from earlier studies; empty when the study exists and has taken it before.
    """

    resolved: ResolvedStudy
    trainable: str
    metadata: Mapping[str, Any]
    directory: Path
    taken: tuple[Taken, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What `automl plan` shows; plain values only."""

    study: str
    model: str
    profile: str
    directory: str
    resumes: str
    objective: str
    objectives: list[str]
    constraints: list[str]
    costs: str
    weights: str
    data: dict[str, Any]
    parameters: list[dict[str, Any]]
    dropped: list[dict[str, str]]
    algorithm: str
    rungs: list[int]
    full_epochs: int
    first_trials: list[dict[str, Any]]
    warm_start: list[str]
    budget: dict[str, Any]
    machine: dict[str, Any]
    resources: dict[str, Any]
    where: str
    forecast: dict[str, Any]
    confirm: int
    at_the_end: list[dict[str, str]]
    engine: str

    def to_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return asdict(self)


def prepare(
    target: str | Path,
    overrides: Sequence[str] = (),
    *,
    name: str | None = None,
    data: DataOption = None,
    val: DataOption = None,
    spec_file: Path | None = None,
    address: str | None = None,
    nodes: Sequence[Machine] = (),
    trainable: str = "depth_net",
    embedded: Callable[[Trainable, str, str], Mapping[str, str]] | None = None,
) -> Prepared:
    """Resolve a study: study file, profile, options, base spec, search space, objective.

    Args:
        target: model key or study file.
        overrides: `key.path=value` changes of the base spec; they win over `spec_file`.
        name: the study's name.
        data: `[CLASS:]FILE` for training, one or several.
        val: `[CLASS:]FILE` for validation, one or several.
        spec_file: a spec merged over the base spec.
        address: `HOST:PORT` of a running Ray cluster.
        nodes: of this cluster; they decide about profile and resources instead of this machine.
        trainable: name for `find_trainable`.
        embedded: returns the trainer's own data for a profile; None, when planning, keeps the
            word `embedded`.

    Raises:
        AutoMLError: whatever is wrong with the study file, the options or the schema.
    """
    trainer = find_trainable(trainable)
    if spec_file is not None:
        overrides = [*spec_as_overrides(spec_file), *overrides]
        name = name or default_name(target, data, spec_file)
    gpu = any(node.gpus for node in nodes) if nodes else gpus() > 0
    study = load_study(target, overrides, name=name, data=data, val=val, address=address, gpu=gpu)
    if nodes:
        study = replace(study, resources=on_machines(study.resources, nodes))
    folder = trainer.schema_dir / study.model
    metadata = read_json(folder / "model.json")
    fields = read_fields(read_json(folder / "train.schema.json"))
    _refuse_wrong_keys(study, folder, metadata)
    if study.confirm and not any(field.path == SEED_KEY for field in fields):
        problem = f"needs the field {SEED_KEY}, which {study.model} does not have"
        raise StudySpecError([Problem(f"study {study.name}", "confirm", problem)])
    spec = with_numbers_for_nulls(fields, complete_spec(study, trainer, metadata, embedded))
    resolved = ResolvedStudy(
        study=study,
        base_spec=spec,
        space=build_space(fields, study, spec, metadata["weight_keys"], metadata.get("part_keys")),
        goals=resolve_goals(study, metadata),
        full_epochs=_full_epochs(study, spec, metadata["fidelity"]),
    )
    make_rungs(study.algorithm, resolved.full_epochs)  # refuses rungs beyond the full run
    return _warm(Prepared(resolved, trainable, metadata, STUDIES / study.name))


def _warm(prepared: Prepared) -> Prepared:
    """Add what earlier studies give; a study that exists has it in its lock."""
    resolved, directory = prepared.resolved, prepared.directory
    if not resolved.study.warm_start:
        return prepared
    locked = read_lock(directory)
    if locked is not None:
        return replace(prepared, resolved=replace(resolved, prior=locked.prior))
    taken = take(resolved.study, resolved.space, resolved.objective, directory)
    prior = tuple(trial for each in taken for trial in each.trials)
    return replace(prepared, resolved=replace(resolved, prior=prior), taken=tuple(taken))


def _full_epochs(study: StudySpec, spec: Mapping[str, Any], key: str) -> int:
    epochs = get_path(spec, key)
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        problem = Problem(f"spec of study {study.name}", key, f"got {epochs!r}, allowed 1 or more")
        raise StudySpecError([problem])
    return epochs


def complete_spec(
    study: StudySpec,
    trainer: Trainable,
    metadata: Mapping[str, Any],
    embedded: Callable[[Trainable, str, str], Mapping[str, str]] | None,
) -> dict[str, Any]:
    """Return the base spec; data sources written in the study's spec stay as they are."""
    keys: Mapping[str, str] = metadata["data_keys"]
    written = {
        split: sources
        for split in SPLITS
        if getattr(study.data, split) == EMBEDDED
        and (sources := get_path(study.spec, keys[split])) not in (None, OPEN, [])
    }
    uses_embedded = any(
        getattr(study.data, split) == EMBEDDED and split not in written for split in SPLITS
    )
    files: Mapping[str, str] = dict.fromkeys(SPLITS, EMBEDDED)
    if uses_embedded and embedded is not None:
        files = embedded(trainer, study.model, study.profile)
    spec = base_spec(study, trainer.template(study.model, "train"), metadata, files)
    for split, sources in written.items():
        set_path(spec, keys[split], sources)
    return spec


def plain_spec(
    target: str | Path,
    overrides: Sequence[str],
    *,
    model: str,
    action: str,
    data: DataOption,
    val: DataOption,
    spec_file: Path | None,
    trainer: Trainable,
    embedded: Callable[[Trainable, str, str], Mapping[str, str]],
) -> dict[str, Any]:
    """Return the spec of a run outside a study: the given file, else trial 0, else the template.

    Raises:
        StudySpecError: an unreadable file or a wrong override.
    """
    metadata = read_json(trainer.schema_dir / model / "model.json")
    if spec_file is None and action == "train" and has_study_file(target):
        study = load_study(target, overrides, data=data, val=val, gpu=gpus() > 0)
        return complete_spec(study, trainer, metadata, embedded)
    spec = read_spec(spec_file) if spec_file else dict(trainer.template(model, action))
    given = data_choice(data, val)
    if given:
        choice = {"name": model, "model": model, "profile": "cpu", "budget": {"trials": 1}}
        one = study_from_dict({**choice, "data": given}, str(spec_file or target))
        filled = base_spec(one, {}, metadata, dict.fromkeys(SPLITS, EMBEDDED))
        for split in given:
            key = metadata["data_keys"][split]
            set_path(spec, key, get_path(filled, key))
    for override in overrides:
        path, equals, text = override.removeprefix("+").partition("=")
        try:
            if not (path and equals):
                raise KeyError(override)
            set_path(spec, path, parse_yaml(text))
        except (KeyError, yaml.YAMLError) as error:
            problem = Problem("override", override, "is not key.path=value for this spec")
            raise StudySpecError([problem]) from error
    return spec


def has_study_file(target: str | Path) -> bool:
    """Whether a target names a study file, packaged or its own."""
    path = Path(target)
    return path.suffix in (".yaml", ".yml") or (STUDY_FILES / f"{target}.yaml").is_file()


def default_name(target: str | Path, data: DataOption, spec_file: Path | None) -> str:
    """Return the name of a run: stems of the target, the spec file and the data file."""
    parts = [Path(target).stem]
    parts += [spec_file.stem] if spec_file is not None else []
    return "-".join(filter(None, (*parts, data_stem(data))))


def spec_as_overrides(path: Path) -> list[str]:
    """Return a spec file as `key.path=value` lines, open values left out.

    Raises:
        StudySpecError: unreadable, or not a mapping.
    """
    spec = read_spec(path)
    return [f"{key}={json.dumps(value)}" for key, value in leaves(spec) if value != OPEN]


def read_spec(path: Path) -> dict[str, Any]:
    """Read a spec file.

    Raises:
        StudySpecError: unreadable, or not a mapping.
    """
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise StudySpecError([Problem(str(path), "", f"cannot be read: {reason}")]) from error
    if not isinstance(content, dict):
        raise StudySpecError([Problem(str(path), "", "is not a mapping of keys")])
    return cast("dict[str, Any]", content)


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted path and value of everything that is not a mapping."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(cast("Mapping[str, Any]", value), f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def read_json(path: Path) -> dict[str, Any]:
    """Read one generated file of a model.

    Raises:
        SchemaError: missing or damaged.
    """
    try:
        content: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SchemaError(f"{path}: cannot be read: {error}. `make schemas` writes it") from error
    if not isinstance(content, dict):
        raise SchemaError(f"{path}: is not a JSON object. `make schemas` writes it")
    return cast("dict[str, Any]", content)


def _refuse_wrong_keys(study: StudySpec, folder: Path, metadata: Mapping[str, Any]) -> None:
    """Raise for all unknown keys, impossible values and dataset classes that a study names."""
    whole = folder / "experiment.schema.json"
    schema = read_json(whole if whole.is_file() else folder / "train.schema.json")
    known = [field.path for field in read_fields({**schema, "automl_default_parameters": []})]
    source = f"spec of study {study.name}"
    problems: list[Problem] = []
    for path, value in leaves(study.spec):
        field = next((key for key in known if path == key or path.startswith(f"{key}.")), None)
        if any(key.startswith(f"{path}.") for key in known):
            problem = f"got {value!r}, expected the keys of this section"
            problems.append(Problem(source, path, problem))
        elif field is None:
            near = difflib.get_close_matches(path, known, n=1)
            remedy = f"Did you mean {near[0]}?" if near else "See docs/spec-reference.md"
            problems.append(Problem(source, path, "unknown key", remedy))
        elif field == path and value is not None:  # the trainer knows which keys may be null
            faults = _value_faults(value, _schema_of(schema, path))
            problems += [Problem(source, f"{path}{place}", fault) for place, fault in faults]
    problems += _class_problems(study, schema, metadata)
    if problems:
        raise StudySpecError(problems)


def _class_problems(
    study: StudySpec, schema: dict[str, Any], metadata: Mapping[str, Any]
) -> Iterator[Problem]:
    """The dataset classes that the schema does not list, in any case; `${...}` is the trainer's."""
    for split in SPLITS:
        key: str = metadata["data_keys"][split]
        field = f"properties.{key.replace('.', '.properties.')}"
        known = get_path(schema, f"{field}.items.properties.dataset_name.enum", [])
        usual = {name.lower(): name for name in known}
        for place, name in _classes(study, split, key):
            if known and name.lower() not in usual and "${" not in name:
                near = difflib.get_close_matches(name.lower(), usual, n=1)
                remedy = f"Did you mean {usual[near[0]]}?" if near else ""
                problem = f"got class {name}, allowed {', '.join(known)}"
                yield Problem(f"study {study.name}", place, problem, remedy)


def _classes(study: StudySpec, split: str, key: str) -> Iterator[tuple[str, str]]:
    """Where the data of a split names a class, and the class."""
    files: str | tuple[str, ...] = getattr(study.data, split)
    if files != EMBEDDED:
        for given in (files,) if isinstance(files, str) else files:
            name, file = split_class(given)
            if name:
                yield f"data.{split}, {file}", name
        return
    written: Any = get_path(study.spec, key)
    for index, source in enumerate(cast("list[Any]", written) if isinstance(written, list) else []):
        entry = cast("dict[str, Any]", source) if isinstance(source, dict) else {}
        name = entry.get("dataset_name")
        if isinstance(name, str) and name != OPEN:
            yield f"{key}.{index}.dataset_name", name


def _schema_of(schema: dict[str, Any], path: str) -> dict[str, Any]:
    for part in path.split("."):
        schema = schema["properties"][part]
    return schema


def _value_faults(value: Any, schema: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Where inside a value a fault is, and what it is; options are left to the trainer.

    A trainer may take an option in any case, and texts that refer to other keys.
    """
    from jsonschema import Draft202012Validator

    validator: Any = Draft202012Validator(schema)
    for error in validator.iter_errors(value):
        place = "".join(f".{part}" for part in error.absolute_path)
        if error.validator in ("type", "minimum", "maximum"):
            yield place, f"got {error.instance!r}, allowed {_allowed(error.schema)}"
        elif error.validator != "enum":
            yield place, error.message


def _allowed(rule: Mapping[str, Any]) -> str:
    """Type and range of a schema in words."""
    kind: str | list[str] = rule["type"]
    words = kind if isinstance(kind, str) else " or ".join(kind)
    low, high = rule.get("minimum"), rule.get("maximum")
    if low is None and high is None:
        return words
    if high is None:
        return f"{words} {low:g} or more"
    return f"{words} {high:g} or less" if low is None else f"{words} {low:g}..{high:g}"


# --- the plan -----------------------------------------------------------------------------------


def make_plan(prepared: Prepared, promotion: Sequence[tuple[str, str]]) -> Plan:
    """Return what the study would do.

    Args:
        prepared: the study.
        promotion: name and sentence of the steps that follow the last trial.
    """
    resolved = prepared.resolved
    study = resolved.study
    existing = _existing(prepared.directory)
    share = of_study(study)
    rungs = make_rungs(study.algorithm, resolved.full_epochs)
    row = row_of(resolved)
    ahead, source = forecast_of(prepared, existing)
    count = min(study.budget.trials or FIRST_TRIALS, max(FIRST_TRIALS, share.max_concurrent))
    objectives = [_objective_words(each) for each in resolved.goals.objectives]
    steps = [{"step": name, "does": sentence} for name, sentence in promotion]
    return Plan(
        study=study.name,
        model=study.model,
        profile=study.profile,
        directory=str(prepared.directory),
        resumes=_resumes(existing),
        objective=objectives[0],
        objectives=objectives,
        constraints=[str(limit) for limit in resolved.goals.constraints],
        costs=_costs(resolved.goals),
        weights=_weights(prepared),
        data={split: _words(getattr(study.data, split)) for split in SPLITS},
        parameters=[
            {
                "path": parameter.path,
                "range": parameter.domain(),
                "default": parameter.default,
                "unit": parameter.unit,
                "condition": {key: list(of) for key, of in parameter.condition.items()},
            }
            for parameter in resolved.space.parameters
        ],
        dropped=[{"path": item.path, "reason": item.reason} for item in resolved.space.dropped],
        algorithm=f"{study.algorithm.name}: {row.sampler} + {row.pruner} ({row.when})",
        rungs=[*rungs.rungs, rungs.full_epochs],
        full_epochs=resolved.full_epochs,
        first_trials=first_batch(resolved, count),
        warm_start=in_words(resolved, prepared.taken, row.sampler),
        budget={key: limit for key, limit in asdict(study.budget).items() if limit is not None},
        machine={
            "cores": cores(),
            "gpus": gpus(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "memory_free_gib": round(psutil.virtual_memory().available / 2**30, 1),
        },
        resources=asdict(share),
        where=_where(study, share),
        forecast={**asdict(ahead), "seconds_per_epoch_from": source},
        confirm=study.confirm,
        at_the_end=steps if study.promote.enabled else [],
        engine=engine_in_words(resolved.base_spec),
    )


def _objective_words(objective: Objective) -> str:
    unit = f", {objective.unit_words}" if objective.unit_words else ""
    return f"{objective.metric} {objective.direction}{unit}"


def _costs(goals: Goals) -> str:
    """How the costs of a structure are found out, and what is promoted."""
    if not goals.weighs:
        return ""
    measured = (
        f"{', '.join(goals.costs)} before a trial trains, once for each structure on this machine"
        if goals.costs
        else "nothing beside the training"
    )
    return f"{measured}; the knee of the front is promoted"


def _weights(prepared: Prepared) -> str:
    """What every trial starts from, and what happens to weights that do not fit a trial."""
    spec, metadata = prepared.resolved.base_spec, prepared.metadata
    keys = (*metadata["weight_keys"], *metadata.get("part_keys", ()))
    loaded = [f"{value} ({key})" for key in keys if (value := get_path(spec, key))]
    if loaded and prepared.resolved.study.allow_partial_load:
        loaded.append("allow_partial_load: what does not fit a trial starts new and is listed")
    return "; ".join(loaded)


def forecast_of(prepared: Prepared, existing: Study | None) -> tuple[Forecast, str]:
    """Return what is still to come and where the time of an epoch comes from."""
    measured, source = seconds_per_epoch(prepared)
    if existing is not None and any(trial.epochs for trial in existing.trials):
        source = "this study's finished epochs"
    return forecast(prepared.resolved, existing, seconds_per_epoch=measured), source


def seconds_per_epoch(prepared: Prepared) -> tuple[float | None, str]:
    """Return the mean of earlier like studies here, else the packaged one, and its source."""
    study = prepared.resolved.study
    times: list[float] = []
    names: list[str] = []
    for log in sorted(prepared.directory.parent.glob(f"*/{EVENTS_FILE}")):
        other = _existing(log.parent)
        if other is None or other.directory == prepared.directory:
            continue
        settings = other.resolved.study
        if (settings.model, settings.spec, settings.data) != (study.model, study.spec, study.data):
            continue
        seconds = [record.seconds for trial in other.trials for record in trial.epochs]
        times += seconds
        names += [other.name] if seconds else []
    if times:
        return sum(times) / len(times), f"earlier studies on this machine: {', '.join(names)}"
    packaged: Mapping[str, float] = prepared.metadata.get("seconds_per_epoch", {})
    if study.profile in packaged:
        return packaged[study.profile], f"the packaged profile {study.profile}"
    return None, "no epoch has been measured yet"


def _existing(directory: Path) -> Study | None:
    if not (directory / EVENTS_FILE).is_file():
        return None
    try:
        return read_study(directory)
    except AutoMLError:
        return None  # the study itself says what is wrong with it when it is opened


def _resumes(existing: Study | None) -> str:
    if existing is None:
        return ""
    epochs = sum(trial.last_epoch for trial in existing.trials)
    return f"{existing.state}: {len(existing.trials)} trials and {epochs} epochs are kept"


def _words(files: str | tuple[str, ...]) -> str:
    return files if isinstance(files, str) else ", ".join(files)


def _where(study: StudySpec, share: TrialResources) -> str:
    if study.runner == "local":
        return "in the driver's process, one trial after another"
    at = f"Ray cluster {study.address}" if study.address else "this machine"
    workers = f"{share.max_concurrent} Ray worker{'s' if share.max_concurrent > 1 else ''}"
    return f"{workers} on {at}, one trial each; the driver only schedules"


def engine_in_words(spec: Mapping[str, Any]) -> str:
    """Return which engine the promotion builds, as far as it is known without building it."""
    from importlib.util import find_spec

    chosen = get_path(spec, "gen_trt_engine.backend") or "auto"
    precision = get_path(spec, "gen_trt_engine.tensorrt.data_type") or "fp32"
    if chosen != "auto":
        return f"{chosen}, {precision}"
    if find_spec("tensorrt") and gpus():
        found = "tensorrt"
    elif find_spec("tensorrt_rtx"):
        found = "tensorrt_rtx, built ahead of time"
        found += "" if gpus() else "; without a GPU its scores come from ONNX Runtime"
    else:
        found = "onnxruntime"
    return f"{found}, {precision}"


# --- words --------------------------------------------------------------------------------------


def render(plan: Plan) -> str:
    """Return the plan as text for a terminal or a pipe."""
    sections = [
        _head(plan),
        _space_section(plan),
        _dropped_section(plan),
        _warm_section(plan),
        _trials_section(plan),
        _cost_section(plan),
        _end_section(plan),
        "Nothing was run or written.",
    ]
    return "\n\n".join(section for section in sections if section)


def _head(plan: Plan) -> str:
    lines = [
        f"Study {plan.study}: {plan.model}, profile {plan.profile}, in {plan.directory}/",
        *(f"  objective   {words}" for words in plan.objectives),
        *(f"  constraint  {words}" for words in plan.constraints),
        *([f"  measured    {plan.costs}"] if plan.costs else []),
        f"  data        train {plan.data['train']}; validation {plan.data['val']}",
        f"  algorithm   {plan.algorithm}",
        f"  rungs       compared after epochs {', '.join(map(str, plan.rungs))}"
        f" (a full run has {plan.full_epochs})",
    ]
    lines += [f"  weights     {plan.weights}"] if plan.weights else []
    lines += [f"  resumes     {plan.resumes}"] if plan.resumes else []
    return "\n".join(lines)


def _space_section(plan: Plan) -> str:
    rows = [
        (
            parameter["path"],
            parameter["range"],
            _short(parameter["default"]),
            parameter["unit"],
            _condition(parameter["condition"]),
        )
        for parameter in plan.parameters
    ]
    head = ("parameter", "range", "default", "unit", "only with")
    return f"Searched ({len(rows)}):\n" + table(rows, head)


def _dropped_section(plan: Plan) -> str:
    if not plan.dropped:
        return ""
    rows = [(item["path"], item["reason"]) for item in plan.dropped]
    return f"Not searched ({len(rows)}):\n" + table(rows)


def _warm_section(plan: Plan) -> str:
    return (
        "Warm start:\n" + "\n".join(f"  {line}" for line in plan.warm_start)
        if plan.warm_start
        else ""
    )


def _trials_section(plan: Plan) -> str:
    paths = [parameter["path"] for parameter in plan.parameters]
    head = ("parameter", *(f"trial {number}" for number in range(len(plan.first_trials))))
    rows = [
        (path, *(_short(trial[path]) if path in trial else "-" for trial in plan.first_trials))
        for path in paths
    ]
    return "First trials (trial 0 is the spec as given):\n" + table(rows, head)


def _cost_section(plan: Plan) -> str:
    machine, share, ahead = plan.machine, plan.resources, plan.forecast
    limits = ", ".join(f"{key} {limit:g}" for key, limit in plan.budget.items())
    known = ahead["seconds"] is not None
    time = f"about {duration(ahead['seconds'])}" if known else "unknown"
    time += f", cost {ahead['cost']:.2f}" if ahead["cost"] is not None else ""
    source = f"; measured in {ahead['seconds_per_epoch_from']}" if known else ""
    return "\n".join(
        [
            "Cost:",
            f"  budget      {limits}",
            f"  forecast    {time} ({ahead['origin']}{source})",
            f"  machine     {machine['cores']} cores, {machine['gpus']} GPUs,"
            f" {machine['memory_gib']} GiB memory ({machine['memory_free_gib']} free)",
            f"  per trial   {share['cpus']:g} cores, {share['gpus']:g} GPUs,"
            f" {share['threads']} threads; {share['max_concurrent']} at a time",
            f"  trials run  {plan.where}",
        ]
    )


def _end_section(plan: Plan) -> str:
    repeat = (
        f"After the search: baseline and winner again on {plan.confirm} further seeds each.\n\n"
        if plan.confirm
        else ""
    )
    return repeat + _promotion_section(plan)


def _promotion_section(plan: Plan) -> str:
    if not plan.at_the_end:
        return "At the end: the report; promotion is switched off (promote.enabled)."
    rows = [(step["step"], step["does"]) for step in plan.at_the_end]
    return f"At the end, for the best complete trial (engine: {plan.engine}):\n" + table(rows)


def table(rows: Sequence[Sequence[str]], head: Sequence[str] = ()) -> str:
    """Return rows as aligned columns, indented by two; columns without content are left out."""
    kept = [index for index in range(len(rows[0])) if any(row[index] for row in rows)]
    lines = [head, *rows] if head else rows
    widths = {index: max(len(line[index]) for line in lines) for index in kept}
    return "\n".join(
        "  " + "  ".join(line[index].ljust(widths[index]) for index in kept).rstrip()
        for line in lines
    )


def duration(seconds: float) -> str:
    """Return a time in words, for example `1 h 05 min`."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _condition(condition: Mapping[str, Sequence[Any]]) -> str:
    return "; ".join(f"{path} = {' or '.join(map(str, of))}" for path, of in condition.items())
