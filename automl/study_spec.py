"""Study files: `studies/<key>[_purpose].yaml` -> `StudySpec`.

A study file says what is searched, by what algorithm, within which budget, starting from which
spec. Ranges normally stay in the trainer's schema; a study narrows them only when it must.
The two profiles `cpu` and `gpu` are mappings merged over the rest, chosen once.

All mistakes of a file and its options are collected into one `StudySpecError`.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import yaml

from automl.errors import Problem, StudySpecError
from automl.typed import build

STUDIES = Path(__file__).resolve().parent.parent / "studies"
EMBEDDED = "embedded"
PARTIAL_LOAD_KEY = "train.allow_partial_load"

DataOption: TypeAlias = str | Sequence[str] | None
"""`[CLASS:]FILE`, or several of them; FILE may be an address such as `s3://bucket/train.txt`."""

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


@dataclass(frozen=True)
class DataChoice:
    """Annotation files, each `[CLASS:]FILE`, or `embedded` for the trainer's own small set."""

    train: str | tuple[str, ...] = EMBEDDED
    val: str | tuple[str, ...] = EMBEDDED


@dataclass(frozen=True)
class SearchChoice:
    """Changes to the default search space; dotted paths of the trainer's spec."""

    parameters: tuple[str, ...] | None = None
    add: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    ranges: Mapping[str, tuple[float, float]] = field(
        default_factory=dict[str, tuple[float, float]]
    )
    choices: Mapping[str, tuple[Any, ...]] = field(default_factory=dict[str, tuple[Any, ...]])


@dataclass(frozen=True)
class AlgorithmChoice:
    """A name of `automl.algorithms.table`, with the settings of its parts.

    Attributes:
        name: see `automl.algorithms.table.NAMES`.
        sampler: another sampler than the name's.
        pruner: another pruner than the name's.
        rungs: epochs at which trials are compared; None: R/9, R/3, R of the full run R.
        factor: at a rung one in `factor` goes on; with forecasts, a chance of 1 in `factor`.
        min_complete: so many trials reach full length, trial 0 included, unless trials fail.
    """

    name: str = "auto"
    sampler: str | None = None
    pruner: str | None = None
    rungs: tuple[int, ...] | None = None
    factor: int = 3
    min_complete: int = 1


@dataclass(frozen=True)
class BudgetChoice:
    """When to stop; at least one limit.

    Attributes:
        trials: trials started.
        epochs: finished epochs of all trials together.
        hours: wall time of all sessions together.
        cost: money for the machine, all sessions together, at `cost_per_hour`.
        cost_per_hour: of the machine or machines; without `cost` it is only reported.
        target: value of the objective that is good enough.
        no_improvement: the study ends when its last so many trials, complete or not, improved
            the best by less than 0.1 % of it, so that no improvement is to be expected.
    """

    trials: int | None = None
    epochs: int | None = None
    hours: float | None = None
    cost: float | None = None
    cost_per_hour: float | None = None
    target: float | None = None
    no_improvement: int | None = None


@dataclass(frozen=True)
class ResourceChoice:
    """Per trial: cpus and gpus (a fraction shares one GPU), threads; None: measured."""

    cpus: float | None = None
    gpus: float | None = None
    max_concurrent: int | None = None
    threads: int | None = None


@dataclass(frozen=True)
class TrialLimits:
    """A trial beyond a limit is ended as `failed`."""

    hours: float | None = None
    minutes_without_report: float = 30.0


@dataclass(frozen=True)
class PromoteChoice:
    """Whether the best trial is promoted, and how far scores may differ between backends."""

    enabled: bool = True
    limits: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class StudySpec:
    """One study, checked; the attributes are the keys of a study file plus name and profile.

    `confirm` is how often baseline and winner are trained again on further seeds, 0: not at all;
    `warm_start` names earlier studies (or their directories) to learn from.
    """

    name: str
    model: str
    profile: Literal["cpu", "gpu"]
    budget: BudgetChoice
    spec: Mapping[str, Any] = field(default_factory=dict[str, Any])
    data: DataChoice = field(default_factory=DataChoice)
    objectives: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    search: SearchChoice = field(default_factory=SearchChoice)
    algorithm: AlgorithmChoice = field(default_factory=AlgorithmChoice)
    resources: ResourceChoice = field(default_factory=ResourceChoice)
    trial_limits: TrialLimits = field(default_factory=TrialLimits)
    runner: Literal["ray", "local"] = "ray"
    address: str | None = None
    seed: int = 0
    confirm: int = 0
    warm_start: tuple[str, ...] = ()
    allow_partial_load: bool = False
    promote: PromoteChoice = field(default_factory=PromoteChoice)

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, mappings and scalars, as stored in `study.lock.yaml`."""
        return _plain(asdict(self))


def load_study(
    target: str | Path,
    overrides: Sequence[str] = (),
    *,
    name: str | None = None,
    data: DataOption = None,
    val: DataOption = None,
    address: str | None = None,
    gpu: bool = False,
) -> StudySpec:
    """Read a study file and apply the options of the command line.

    Args:
        target: a model key (`ffs` means `studies/ffs.yaml`) or a study file.
        overrides: `key.path=value` changes of the base spec.
        name: the study's name; default: the file's stem, with `-<stem of data>` when data is given.
        data: `[CLASS:]FILE` for training, one or several.
        val: `[CLASS:]FILE` for validation, one or several.
        address: `HOST:PORT` of a running Ray cluster.
        gpu: merge `profiles.gpu`, else `profiles.cpu`.

    Raises:
        StudySpecError: all mistakes together.
    """
    path = _find(target)
    tree = _read(path)
    profile = "gpu" if gpu else "cpu"
    problems: list[Problem] = []
    tree = _merge_profile(tree, profile, str(path), problems)
    if data is not None or val is not None:
        tree["data"] = {**tree.get("data", {}), **data_choice(data, val)}
    base = tree.setdefault("spec", {})
    for override in overrides:
        _override(base, override, problems)
    tree["name"] = name or "-".join(filter(None, (path.stem, data_stem(data))))
    tree["profile"] = profile
    if address is not None:
        tree["address"] = address
    if isinstance(tree.get("algorithm"), str):
        tree["algorithm"] = {"name": tree["algorithm"]}
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", tree["name"]):
        rule = "is not a name: letters, digits, dot, dash and underscore are allowed"
        problems.append(Problem("--name", tree["name"], rule, "It becomes a folder's name"))
    study = build(StudySpec, tree, str(path), "", problems)
    if study is not None:
        _check_rules(study, str(path), problems)
    if problems or study is None:
        raise StudySpecError(problems)
    return study


def data_choice(data: DataOption, val: DataOption) -> dict[str, Any]:
    """Return the section `data` of a study file that names these files."""
    given = {split: list(_each(option)) for split, option in (("train", data), ("val", val))}
    return {split: files if len(files) > 1 else files[0] for split, files in given.items() if files}


def data_stem(data: DataOption) -> str:
    """Return the part of a default name that tells the data: the stems of the files, "" if none."""
    stems = [Path(split_class(entry)[1].partition("?")[0]).stem for entry in _each(data)]
    return "-".join(dict.fromkeys(stems))


def split_class(entry: str) -> tuple[str, str]:
    """Split `[CLASS:]FILE`, no class being "".

    Neither a Windows drive nor the scheme of an address is a class.
    """
    head, colon, tail = entry.partition(":")
    if colon and len(head) > 1 and head.isidentifier() and not _ADDRESS.match(entry):
        return head, tail
    return "", entry


def study_from_dict(tree: Mapping[str, Any], source: str) -> StudySpec:
    """Rebuild a study from `StudySpec.to_dict`, e.g. from a lock file.

    Raises:
        StudySpecError: the mapping was not made by this release.
    """
    problems: list[Problem] = []
    study = build(StudySpec, dict(tree), source, "", problems)
    if problems or study is None:
        raise StudySpecError(problems)
    return study


def base_spec(
    study: StudySpec,
    template: Mapping[str, Any],
    model: Mapping[str, Any],
    embedded: Mapping[str, str],
) -> dict[str, Any]:
    """Return the complete spec of trial 0.

    Args:
        study: its `spec` is merged over the template; its `data` fills the data sources.
        template: the trainer's packaged train spec.
        model: `model.json`; `data_keys.train` and `.val` name the lists of data sources and
            `default_dataset` the class of a file given without one.
        embedded: `{"train": "CLASS:FILE", "val": "CLASS:FILE"}` of the trainer's own data; may be
            empty when the study names files.
    """
    spec = merge(template, study.spec)
    for split in ("train", "val"):
        files: str | tuple[str, ...] = getattr(study.data, split)
        if files == EMBEDDED:
            files = embedded[split]
        entries = (files,) if isinstance(files, str) else files
        sources = [_data_source(entry, model["default_dataset"]) for entry in entries]
        set_path(spec, model["data_keys"][split], sources)
    if study.allow_partial_load:
        set_path(spec, PARTIAL_LOAD_KEY, True)
    return spec


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return `above` merged over `below`: mappings by key, everything else replaced."""
    merged = copy.deepcopy(dict(below))
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            merged[key] = merge(cast("Mapping[str, Any]", old), cast("Mapping[str, Any]", value))
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def set_path(spec: dict[str, Any], path: str, value: Any) -> None:
    """Set a dotted path in nested mappings and lists, making missing mappings.

    Raises:
        KeyError: a list is indexed by something else than one of its positions, or a scalar has
            no parts.
    """
    *parents, last = path.split(".")
    holder: Any = spec
    for part in parents:
        holder = _child(holder, part)
    if isinstance(holder, list):
        holder[_position(cast("list[Any]", holder), last)] = value
    elif isinstance(holder, dict):
        holder[last] = value
    else:
        raise KeyError(last)


def get_path(spec: Mapping[str, Any], path: str, default: Any = None) -> Any:
    """Return the value at a dotted path, or the default when a part is missing."""
    value: Any = spec
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return default
        value = cast("Mapping[str, Any]", value)[part]
    return value


def parse_yaml(text: str) -> Any:
    """Parse YAML; `1e-5` is a number, as in a spec."""
    return yaml.load(text, Loader=_Loader)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads `1e-5` as text; this loader reads it as a number."""


_Loader.add_implicit_resolver(  # pyright: ignore[reportUnknownMemberType]
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?\d[\d_]*(\.[\d_]*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def _find(target: str | Path) -> Path:
    path = Path(target)
    if path.suffix in (".yaml", ".yml"):
        return path
    packaged = STUDIES / f"{target}.yaml"
    if not packaged.is_file():
        known = sorted(file.stem for file in STUDIES.glob("*.yaml"))
        near = difflib.get_close_matches(str(target), known, n=1)
        hint = f"Did you mean {near[0]}?" if near else "Give one of them, or a study file (.yaml)"
        problem = f"is not a packaged study (there are: {', '.join(known) or 'none'})"
        raise StudySpecError([Problem("target", str(target), problem, hint)])
    return packaged


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        problem = Problem(str(path), "", f"cannot be read: {error.strerror}")
        raise StudySpecError([problem]) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = Problem(str(path), "", f"is not YAML: {' '.join(str(error).split())}")
        raise StudySpecError([problem]) from error
    if not isinstance(tree, dict):
        raise StudySpecError([Problem(str(path), "", "is not a mapping of keys")])
    reserved = {"name", "profile"} & set(cast("dict[str, Any]", tree))
    if reserved:
        problem = "is not a key of a study file"
        remedy = "Use --name; the profile follows from the machine"
        raise StudySpecError([Problem(str(path), key, problem, remedy) for key in sorted(reserved)])
    return cast("dict[str, Any]", tree)


def _merge_profile(
    tree: dict[str, Any], profile: str, source: str, problems: list[Problem]
) -> dict[str, Any]:
    profiles: Any = tree.pop("profiles", {})
    if not isinstance(profiles, Mapping):
        problems.append(Problem(source, "profiles", f"got {profiles!r}, expected a mapping"))
        return tree
    known = cast("Mapping[str, Any]", profiles)
    for key in sorted(set(known) - {"cpu", "gpu"}):
        problems.append(Problem(source, f"profiles.{key}", "unknown profile, allowed cpu and gpu"))
    return merge(tree, known.get(profile) or {})


def _override(spec: dict[str, Any], override: str, problems: list[Problem]) -> None:
    path, equals, text = override.removeprefix("+").partition("=")
    if not equals or not path:
        remedy = "Write key.path=value"
        problems.append(Problem("override", override, "is not key.path=value", remedy))
        return
    try:
        set_path(spec, path, parse_yaml(text))
    except KeyError:
        remedy = "Give the whole list or mapping"
        problems.append(Problem("override", path, "cannot be set by parts here", remedy))
    except yaml.YAMLError:
        problems.append(Problem("override", path, f"{text!r} is not YAML"))


def _child(holder: Any, part: str) -> Any:
    if isinstance(holder, list):
        items = cast("list[Any]", holder)
        return items[_position(items, part)]
    if not isinstance(holder, dict):
        raise KeyError(part)
    mapping = cast("dict[str, Any]", holder)
    if mapping.get(part) is None:
        mapping[part] = {}
    return mapping[part]


def _position(items: list[Any], part: str) -> int:
    if not part.isdigit() or int(part) >= len(items):
        raise KeyError(part)
    return int(part)


def _each(option: DataOption) -> Sequence[str]:
    return [option] if isinstance(option, str) else option or []


def _data_source(entry: str, default_class: str) -> dict[str, str]:
    dataset, file = split_class(entry)
    place = file if _ADDRESS.match(file) else str(Path(file).expanduser().resolve())
    return {"dataset_name": dataset or default_class, "data_file": place}


def _check_rules(study: StudySpec, source: str, problems: list[Problem]) -> None:
    budget = asdict(study.budget)
    limits_given = [key for key, limit in budget.items() if limit is not None]
    if not set(limits_given) - {"cost_per_hour"}:
        keys = ", ".join(f"budget.{key}" for key in budget if key != "cost_per_hour")
        problems.append(Problem(source, "budget", f"has no limit; set at least one of {keys}"))
    positive = {f"budget.{key}": limit for key, limit in budget.items() if key != "target"}
    if study.budget.cost is not None and study.budget.cost_per_hour is None:
        problem = "needs budget.cost_per_hour, the price of this machine"
        problems.append(Problem(source, "budget.cost", problem))
    if study.confirm < 0 or study.confirm == 1:
        got = f"got {study.confirm}, allowed 0 (off), 2 or more: an interval needs two runs"
        problems.append(Problem(source, "confirm", got))
    resources, limits = asdict(study.resources), asdict(study.trial_limits)
    positive |= {f"resources.{key}": each for key, each in resources.items() if key != "gpus"}
    positive |= {f"trial_limits.{key}": limit for key, limit in limits.items()}
    for key, number in positive.items():
        if number is not None and number <= 0:
            problems.append(Problem(source, key, f"got {number}, allowed above 0"))
    if study.resources.gpus is not None and study.resources.gpus < 0:
        got = f"got {study.resources.gpus}, allowed 0 or more"
        problems.append(Problem(source, "resources.gpus", got))
    if study.algorithm.factor < 2:
        got = f"got {study.algorithm.factor}, allowed 2 or more"
        problems.append(Problem(source, "algorithm.factor", got))
    if study.algorithm.min_complete < 1:
        got = f"got {study.algorithm.min_complete}, allowed 1 or more"
        problems.append(Problem(source, "algorithm.min_complete", got))
    rungs = study.algorithm.rungs or (1,)
    if list(rungs) != sorted(set(rungs)) or rungs[0] < 1:
        got = f"got {list(rungs)}, allowed rising epochs from 1"
        problems.append(Problem(source, "algorithm.rungs", got))
    if study.address is not None:
        _check_address(study, source, problems)
    for path, (low, high) in study.search.ranges.items():
        if low > high:
            got = f"got [{low}, {high}], the low end is above the high end"
            problems.append(Problem(source, f"search.ranges.{path}", got))


def _check_address(study: StudySpec, source: str, problems: list[Problem]) -> None:
    if not re.fullmatch(r"([\w.-]+|\[[0-9A-Fa-f:]+\]):\d{1,5}", study.address or ""):
        remedy = (
            "`ray start --head` prints it (port 6379); the study itself runs on a machine that has"
            " joined the cluster"
        )
        got = f"got {study.address}, expected HOST:PORT of a running Ray cluster"
        problems.append(Problem(source, "address", got, remedy))
    if study.runner == "local":
        problem = "needs runner: ray; the local runner trains in this process"
        problems.append(Problem(source, "address", problem))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        items = cast("Mapping[str, Any]", value).items()
        return {key: _plain(item) for key, item in items}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast("Sequence[Any]", value)]
    return value
