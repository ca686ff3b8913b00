"""The recipe of one study: check, open, run the trials, promote the best, write the report.

The driver never loads a network library: trials run in the runner's workers, and the trainer's
other actions in processes of their own. Whatever interrupts it, the same command goes on.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from automl.algorithms.table import make_algorithm
from automl.budget import Budget
from automl.confirm import confirm
from automl.contract import Status, Trainable, find_trainable
from automl.errors import AutoMLError, PromotionError, StudyLockedError, UnreadableError
from automl.gain import gain, in_words
from automl.live import front_lines
from automl.measure import measurer
from automl.objectives import as_read, score
from automl.plan import (
    RESULTS,
    SPLITS,
    Prepared,
    duration,
    forecast_of,
    prepare,
    seconds_per_epoch,
    table,
)
from automl.policy import (
    Decision,
    append_status,
    decide,
    read_model_facts,
    record_provenance,
)
from automl.promote.chain import Bundle, promote, record_check
from automl.promote.isolated import Outcome, run_action
from automl.resources import of_study
from automl.runners import run_driver
from automl.store import ResolvedStudy, Study, open_study, owner_of, read_lock
from automl.study_spec import DataOption, get_path, load_study
from automl.trial import TRIAL_VARIABLE, Measure, TrialDriver

if TYPE_CHECKING:
    from automl.runners.ray_cluster import Node

LOG_BYTES = 16 * 2**20  # room for logs, reports and TensorBoard events of a study
FRONT_CHECKPOINTS = 10  # of further trials on the front of several objectives
SPARE_CHECKPOINTS = 6  # best, baseline, one being replaced; copy, graph and engine in the bundle
INTERRUPTED = {signal.SIGINT: 130, signal.SIGTERM: 143}

Say = Callable[[str], None]


class RefusedError(AutoMLError):
    """The study cannot start; nothing was run."""

    exit_code = 2


def run_study(
    target: str | Path,
    overrides: Sequence[str] = (),
    *,
    name: str | None = None,
    data: DataOption = None,
    val: DataOption = None,
    spec_file: Path | None = None,
    address: str | None = None,
    progress: bool = True,
    decision: Decision | None = None,
    trainable: str = "depth_net",
    say: Say = lambda _: None,
) -> int:
    """Run or resume a study, promote its best trial and write its report.

    Args:
        target: model key or study file.
        overrides: `key.path=value` changes of the base spec.
        name: the study's name.
        data: `[CLASS:]FILE` for training, one or several.
        val: `[CLASS:]FILE` for validation, one or several.
        spec_file: a spec merged over the base spec.
        address: `HOST:PORT` of a running Ray cluster.
        progress: show the live table while trials run.
        decision: of the policy; made here with the wish `on` when left out.
        trainable: name for `find_trainable`.
        say: told in words what happens.

    Returns:
        Exit code: 0 with an accepted bundle, 3 without a usable result, 130 or 143 when
        interrupted; errors before the first trial are raised.
    """
    if os.environ.get(TRIAL_VARIABLE):
        raise RefusedError(
            f"{TRIAL_VARIABLE} is set: this process is a trial, and a study never starts a study. "
            "Unset it to start one yourself"
        )
    decision = decision or _explicit_wish(target, trainable)
    with _cluster(load_study(target, address=address).address) as nodes:
        prepared = prepare(
            target,
            overrides,
            name=name,
            data=data,
            val=val,
            spec_file=spec_file,
            address=address,
            nodes=nodes,
            trainable=trainable,
            embedded=write_embedded_data,
        )
        checked = _check(prepared, nodes, say)
    study = open_study(prepared.resolved, prepared.directory.resolve())
    try:
        record_check(study, checked)
        append_status(study.directory, decision)
        record_provenance(study.directory, decision)
        _run_trials(study, prepared, progress, say)
        return finish(study, trainable, say)
    except (KeyboardInterrupt, SystemExit) as interrupt:
        code = exit_code_of(interrupt)
        say(
            f"Interrupted (exit {code}); every finished epoch is kept in {study.directory}. "
            "The same command goes on from here."
        )
        return code
    finally:
        study.close()


def exit_code_of(interrupt: KeyboardInterrupt | SystemExit) -> int:
    """Return 130 for SIGINT and 143 for SIGTERM."""
    if isinstance(interrupt, SystemExit):
        return int(interrupt.code or 0)
    number = interrupt.args[0] if interrupt.args else signal.SIGINT
    return INTERRUPTED.get(number, 130)


def finish(study: Study, trainable: str, say: Say) -> int:
    """Promote the best trial, write the report, say how it went; returns the exit code."""
    from automl.report.page import write_report

    bundle, failure = None, None
    if study.best() is not None and study.resolved.study.promote.enabled:
        try:
            bundle = promote(study, trainable, say=say)
        except PromotionError as error:
            failure = error
    report = write_report(study)
    say(conclusion(study, bundle))
    say(f"report: {report}")
    if failure is not None:
        raise failure
    if study.best() is None:
        say("No trial is complete, so there is no result (exit 3).")
        return 3
    return 0 if bundle is None or bundle.accepted else 3


def promote_study(
    directory: Path,
    trainable: str,
    say: Say,
    *,
    from_: str | None = None,
    to: str | None = None,
    only: str | None = None,
    select: str | None = None,
) -> int:
    """Promote an existing study again and renew its report; returns the exit code."""
    from automl.report.page import write_report

    study = reopen(directory)
    try:
        bundle = promote(study, trainable, from_=from_, to=to, only=only, select=select, say=say)
        if bundle.directory is not None:
            say(conclusion(study, bundle))
            say(f"report: {write_report(study)}")
        return 0 if bundle.accepted else 3
    finally:
        study.close()


def reopen(directory: Path) -> Study:
    """Open an existing study for writing, with the settings it was created with.

    Raises:
        UnreadableError: there is no study.
    """
    resolved: ResolvedStudy | None = read_lock(directory)
    if resolved is None:
        raise UnreadableError(
            f"{directory}: holds no study. `automl list` shows the studies there are"
        )
    return open_study(resolved, directory)


def conclusion(study: Study, bundle: Bundle | None) -> str:
    """Return the outcome in a few lines: best against baseline, scores by backend, files."""
    objective, best, baseline = study.objective, study.best(), study.baseline()
    states = [trial.state for trial in study.trials]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    spent = Budget.of(study.resolved.study).spent(study)
    price = f", cost {spent:.2f}" if spent is not None else ""
    lines = [f"{len(states)} trials: {counts}; {duration(study.active_seconds())} in all{price}"]
    if study.goals.weighs:
        lines += front_lines(study)
    elif best is not None:
        lines.append(f"best      trial {best.id}: {score(objective, study.value(best))}")
        value = study.value(baseline) if baseline is not None else None
        shown = score(objective, value) if value is not None else "no score at full length"
        lines.append(f"baseline  trial 0: {shown}")
    lines += _confirmed(study)
    if bundle is not None and bundle.metrics:
        lines += ["", _parity_table(bundle)]
    if bundle is not None and bundle.directory is not None:
        verdict = "accepted" if bundle.accepted else "REJECTED"
        lines += ["", f"bundle: {bundle.directory} ({verdict})"]
        lines += [f"  {problem}" for problem in bundle.problems]
    epochs = study.resolved.full_epochs
    return "\n".join([f"{objective.metric} after {epochs} epochs, {objective.direction}d:", *lines])


def _confirmed(study: Study) -> list[str]:
    """What the repetitions say, or what a single score of each does not."""
    best, found = study.best(), gain(study)
    if found is not None:
        return [in_words(found, study.objective)]
    if best is None or best.id == 0:
        return []
    return ["one run of each: whether the difference repeats on other seeds was not measured"]


def _parity_table(bundle: Bundle) -> str:
    rescaled = any(row["native"] != row["checkpoint"] for row in bundle.metrics.values())
    roles = ["native"] if rescaled else []  # images of several sizes: compared at the engine's
    roles += [role for role in ("checkpoint", "graph", "engine") if role in bundle.backends]
    rows: list[tuple[str, ...]] = []
    for metric, row in bundle.metrics.items():
        values = (f"{as_read(row[role], row['unit'])[0]:.4f}" for role in roles)
        difference, unit = as_read(row["difference"], row["unit"])
        rows.append((f"{metric} {unit}".strip(), *values, f"{difference:+.4f}"))
    titles = {"native": "checkpoint, native size"}
    head = ("metric", *(titles.get(role, role) for role in roles), "engine - checkpoint")
    backends = [(role, bundle.backends[role]) for role in roles]
    return f"{table(rows, head)}\n{table(backends)}"


# --- before the first trial ---------------------------------------------------------------------


def _explicit_wish(target: str | Path, trainable: str) -> Decision:
    """`automl study` is the wish `on`."""
    schema_dir = find_trainable(trainable).schema_dir
    return decide(read_model_facts(schema_dir, load_study(target).model), explicit="on")


def write_embedded_data(trainer: Trainable, model: str, profile: str) -> Mapping[str, str]:
    """Write the trainer's own data set where all studies share it; for `embedded`."""
    return trainer.embedded_data(model, (RESULTS / "data").resolve(), profile)


def _cluster(address: str | None) -> AbstractContextManager[Sequence[Node]]:
    """Join the study's cluster to look at its nodes; there are none without an address."""
    if address is None:
        return nullcontext(())
    from automl.runners.ray_cluster import joined

    return joined(address)


def _check(prepared: Prepared, nodes: Sequence[Node], say: Say) -> Outcome:
    """Refuse what would fail later: no room, another driver, a wrong spec, unreadable data.

    On a cluster also nodes on which trials would fail.
    """
    refuse_without_space(prepared)
    refuse_second_driver(prepared.directory)
    if nodes:
        _check_nodes(prepared, nodes, say)
    say(f"{prepared.directory}: checking the spec and all training and validation data ...")
    spec = prepared.resolved.base_spec
    outcome = run_action(prepared.trainable, "check", spec, prepared.directory / "check")
    if outcome.status != Status.OK:
        raise RefusedError(f"{outcome.detail}\nNothing was run. Repair this and start again")
    counts = {split: outcome.metrics.get(f"samples_{split}", 0) for split in ("train", "val")}
    say(f"data: {counts['train']:.0f} samples for training, {counts['val']:.0f} for validation")
    return outcome


def _check_nodes(prepared: Prepared, nodes: Sequence[Node], say: Say) -> None:
    from automl.runners.ray_cluster import refuse_unfit_nodes

    directory, study = prepared.directory.resolve(), prepared.resolved.study
    directory.mkdir(parents=True, exist_ok=True)
    share = of_study(study)
    say(f"Ray cluster {study.address}: {len(nodes)} nodes, {share.max_concurrent} trials at a time")
    refuse_unfit_nodes(nodes, share, directory, _files(prepared), prepared.trainable)


def _files(prepared: Prepared) -> list[str]:
    """Files on this machine that the base spec names: annotation files and weights."""
    spec, metadata = prepared.resolved.base_spec, prepared.metadata
    keys = (*metadata["weight_keys"], *metadata.get("part_keys", ()))
    named = [get_path(spec, key) for key in keys]
    for split in SPLITS:
        sources: list[Mapping[str, Any]] = get_path(spec, metadata["data_keys"][split]) or []
        named += [source.get("data_file") for source in sources]
    return [path for path in named if isinstance(path, str) and Path(path).is_absolute()]


def refuse_second_driver(directory: Path) -> None:
    """Say early that a study is open elsewhere; `open_study` takes the lock itself.

    Raises:
        StudyLockedError: a living process owns the study.
    """
    owner = owner_of(directory)
    if owner is not None:
        raise StudyLockedError(
            f"{directory}: the study is open in process {owner['pid']} on {owner['host']}. "
            "Wait for it, stop it, or watch it with `automl status`"
        )


def _checkpoint_mb(prepared: Prepared) -> float:
    """Size of a checkpoint: one for all, or by the value of a field of the base spec."""
    given = prepared.metadata.get("checkpoint_mb", 0.0)
    if not isinstance(given, Mapping):
        return float(given)
    ((path, sizes),) = cast("Mapping[str, Mapping[str, float]]", given).items()
    value = str(get_path(prepared.resolved.base_spec, path))
    return float(sizes.get(value, max(sizes.values())))


def refuse_without_space(prepared: Prepared) -> None:
    """Raise when the disk cannot hold what the study keeps at any one time.

    Raises:
        RefusedError: too little space; the message has both numbers.
    """
    place = prepared.directory.resolve()
    while not place.exists():
        place = place.parent
    one = int(_checkpoint_mb(prepared) * 2**20)
    concurrent = of_study(prepared.resolved.study).max_concurrent
    held = sum(
        file.stat().st_size
        for folder in ("trials", "promotion", "bundle")
        for file in (prepared.directory / folder).rglob("*")
        if file.is_file() and not file.is_symlink()
    )
    spare = SPARE_CHECKPOINTS + (FRONT_CHECKPOINTS if prepared.resolved.goals.others else 0)
    needed = LOG_BYTES + max(0, one * (concurrent + spare) - held)
    free = shutil.disk_usage(place).free
    if free < needed:
        raise RefusedError(
            f"{place}: {free / 2**20:.0f} MiB are free, the study needs about "
            f"{needed / 2**20:.0f} MiB there (checkpoints of {concurrent} running trials, of the "
            "best and the baseline, and the bundle). Free some space, or start from a directory on "
            "another disk. Nothing was lost"
        )


# --- trials -------------------------------------------------------------------------------------


def _run_trials(study: Study, prepared: Prepared, progress: bool, say: Say) -> None:
    settings = study.resolved.study
    ahead, source = forecast_of(prepared, study)
    time = f"about {duration(ahead.seconds)}" if ahead.seconds is not None else "unknown"
    price = f", cost {ahead.cost:.2f}" if ahead.cost is not None else ""
    say(f"study {study.name}: forecast {time}{price} ({source})")
    algorithm = make_algorithm(settings, study.resolved.space, study)
    with _shown(study, prepared, progress) as live:
        costs = _measurer(study, prepared, say) if study.goals.costs else None
        run_driver(TrialDriver(study, algorithm, prepared.trainable, live, costs))
        confirm(study, prepared.trainable, live=live)


def _measurer(study: Study, prepared: Prepared, say: Say) -> Measure:
    checked = study.promotion["check"]["metrics"]
    size = int(checked["height"]), int(checked["width"])
    return measurer(
        prepared.trainable, prepared.metadata, size, (RESULTS / "measured").resolve(), say
    )


def _shown(
    study: Study, prepared: Prepared, progress: bool
) -> AbstractContextManager[Callable[[Mapping[str, Any]], None] | None]:
    if not progress:
        return nullcontext()
    from automl.live import show

    return show(study, seconds_per_epoch=seconds_per_epoch(prepared)[0])
