"""`automl`: plan, run, watch, promote and report studies on the command line.

Exit codes: 0 success; 1 failed while running; 2 found before anything ran; 3 ran without a usable
result; 4 backend or device missing; 130 and 143 interrupted, state saved.
"""

from __future__ import annotations

import argparse
import errno
import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from automl.errors import AutoMLError, Problem, StudySpecError

if TYPE_CHECKING:
    from automl.policy import Decision
    from automl.store import Study

EPILOG = """\
examples:
  automl plan ffs                                what a study would do; runs and writes nothing
  automl study ffs                               tune, promote and report on the embedded data
  automl study ffs --data train.txt --val val.txt train.num_epochs=24
  automl train ffs --automl-policy off           one plain training run
  automl status --watch                          the newest study, from any terminal
  automl promote ffs                             graph, engine, bundle: what is out of date

TARGET is a model key (ffs means studies/ffs.yaml) or a study file. STUDY is a name under
results/studies/ or a directory; without one, the newest is meant.

outputs of a study, in results/studies/NAME/:
  report.html, trials.csv, best_spec.yaml        what was found
  bundle/                                        checkpoint, graph, engine, scores, hashes
  events.jsonl, study.lock.yaml, trials/         the log, the settings, the runs

exit codes: 0 success, 1 failed while running, 2 found before anything ran, 3 no usable result
(no complete trial, or a bundle outside its limits), 4 backend or device missing, 130/143
interrupted (the same command goes on)."""

SENTENCES = {
    "plan": "show what a study would search, cost and leave; run nothing",
    "study": "run or resume a study, promote its best trial, write the report",
    "train": "train a model: as a study or as a plain run, as the AutoML policy decides",
    "status": "show a study that runs or has ended",
    "promote": "turn the best trial of a study into graph, engine and bundle",
    "report": "write report.html, trials.csv and best_spec.yaml of studies again",
    "replay": "prove from the log that every suggestion and decision of a study follows",
    "list": "list the studies in results/studies",
    "dashboard": "show the Ray dashboard of a running study on 127.0.0.1",
    "completion": "print the shell completion of this program",
}
# What `automl COMMAND --help` adds to its options.
TEACHING = {
    "plan": """\
examples:
  automl plan ffs
  automl plan ffs --data pairs/train.txt --val Middlebury:pairs/val.txt
  automl plan ffs train.optim.lr=4e-4 train.num_epochs=24 --json""",
    "study": """\
examples:
  automl study ffs                                               on the embedded data
  automl study ffs --data pairs/train.txt --val pairs/val.txt    named ffs-train
  automl study ffs model.volume_dim=16 --name narrow             from another base spec
  automl study mine.yaml                                         your budget, algorithm, space

The same command resumes an interrupted study; what it was created with must not change, except
that its budget may grow. All data is read before the first trial. Exit 3: no complete trial, or
the scores of the engine are outside the limits.""",
    "train": """\
The policy: auto (default) makes a study of a model that is enabled for AutoML, and a plain run of
any other; on insists on a study; off makes a plain run. --request TEXT is read for phrases such
as "use AutoML" and "without AutoML". A plain run without -e trains trial 0 of the study.

examples:
  automl train ffs                                 a study, as the policy decides
  automl train ffs --automl-policy off             one run, in results/train/ffs
  automl train ffs --automl-policy off -e train.yaml train.optim.lr=4e-4""",
    "status": """\
examples:
  automl status                 the newest study
  automl status ffs --watch     a table on a terminal, a line per event in a pipe
  automl status ffs --json      objective, best and every trial""",
    "promote": """\
A step is one of those that `automl plan` lists at the end. A step that succeeded is kept while its
inputs and files are the same, so an interrupted promotion goes on. With --from or --only the steps
before must have succeeded.

examples:
  automl promote ffs                       what is missing or out of date
  automl promote ffs --to export           up to the graph
  automl promote ffs --from export         from the graph on
  automl promote ffs --select 4:2          trial 4 at setting 2, a point of the front""",
    "report": """\
examples:
  automl report            the newest study, running or not
  automl report ffs wide   a page for each""",
    "replay": """\
The algorithm is asked again for every trial and every stop decision, knowing only the events before
it. Exit 0: the log explains the study. Exit 1: the first answer that does not follow is shown.

examples:
  automl replay            the newest study, running or not
  automl replay ffs""",
    "dashboard": """\
It shows processes, resources and logs while a study runs, on 127.0.0.1 only, and asks for the token
in ~/.ray/auth_token. Trials are shown by `automl status --watch`.""",
    "completion": """\
examples:
  eval "$(automl completion bash)"     in ~/.bashrc
  eval "$(automl completion zsh)"      in ~/.zshrc""",
}
EXIT_CODES = {"ok": 0, "diverged": 3, "invalid_spec": 2}
REMEDIES = {
    errno.ENOSPC: "Free some space and run the same command again",
    errno.EDQUOT: "Free some space and run the same command again",
    errno.EACCES: "Start from a directory you may write to, or change its permissions",
    errno.EROFS: "Start from a directory you may write to",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    arguments, rest = parser.parse_known_args(words)
    arguments.overrides = _overrides(parser, arguments, rest)
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        return COMMANDS[arguments.command](arguments)
    except AutoMLError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except (KeyboardInterrupt, SystemExit) as interrupt:
        from automl.study import exit_code_of

        code = exit_code_of(interrupt)
        print(f"Interrupted (exit {code}).", file=sys.stderr)
        return code
    except BrokenPipeError:
        sys.stderr.close()  # the reader of the pipe has gone; nothing is left to be said to it
        return 1
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0)
        if remedy is None:
            raise
        place = f"{error.filename}: " if error.filename else ""
        print(f"error: {place}{error.strerror}. {remedy}; what was finished is kept",
              file=sys.stderr)  # fmt: skip
        return 1
    finally:
        signal.signal(signal.SIGTERM, previous)


def _terminate(_signal: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt(signal.SIGTERM)


def _say(text: str) -> None:
    print(text, flush=True)


# --- arguments ----------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="automl",
        description="Tune a model: plan a study, run it, promote its best trial, report.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    added = {name: _command(commands, name) for name in SENTENCES}
    for name in ("plan", "study", "train"):
        _add_target_arguments(added[name])
    added["plan"].add_argument("--json", action="store_true", help="print JSON")
    _add_run_arguments(added["study"])
    _add_run_arguments(added["train"])
    added["train"].add_argument(
        "-e",
        "--experiment_spec_file",
        dest="spec_file",
        type=Path,
        metavar="SPEC.yaml",
        help="spec of the plain run; merged over the base spec of a study",
    )
    added["train"].add_argument(
        "--automl-policy", metavar="auto|on|off", help="for this run only (default: auto)"
    )
    added["train"].add_argument(
        "--request", metavar="TEXT", help="the request in plain words; the option above wins"
    )
    for name in ("status", "promote", "dashboard", "replay"):
        added[name].add_argument(
            "study", nargs="?", metavar="STUDY", help="name or directory (default: the newest)"
        )
    added["report"].add_argument(
        "study", nargs="*", metavar="STUDY", help="names or directories (default: the newest)"
    )
    added["status"].add_argument("--watch", action="store_true", help="refresh until it ends")
    for name in ("status", "list"):
        added[name].add_argument("--json", action="store_true", help="print JSON")
    for option, sentence in (
        ("from", "first step to run"),
        ("to", "last step to run"),
        ("only", "the one step to run"),
    ):
        added["promote"].add_argument(f"--{option}", dest=f"{option}_", metavar="STEP",
                                      help=sentence)  # fmt: skip
    added["promote"].add_argument(
        "--select",
        metavar="POINT",
        help="knee (default), an objective whose best point is taken, TRIAL or TRIAL:SETTING",
    )
    _add_trainable(added["promote"])
    added["completion"].add_argument("shell", choices=("bash", "zsh"))
    return parser


def _command(commands: Any, name: str) -> argparse.ArgumentParser:
    sentence = SENTENCES[name]
    sub: argparse.ArgumentParser = commands.add_parser(
        name,
        help=sentence,
        description=f"{sentence[0].upper()}{sentence[1:]}.",
        epilog=TEACHING.get(name),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return sub


def _add_target_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="TARGET", help="model key or study file (.yaml)")
    parser.add_argument(
        "override",
        nargs="*",
        default=[],
        metavar="key.path=value",
        help="change of the base spec; the value is read as YAML",
    )
    for option, purpose in (("data", "training"), ("val", "validation")):
        parser.add_argument(
            f"--{option}",
            action="append",
            metavar="[CLASS:]FILE",
            help=f"annotation file for {purpose}, also s3:// or another address; may be given "
            "several times; CLASS is a dataset class, default GenericDataset",
        )
    parser.add_argument(
        "--name", help="name of the study or run (default: stems of TARGET and of the data file)"
    )
    _add_trainable(parser)


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--address", metavar="HOST:PORT", help="a running Ray cluster")


def _add_trainable(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trainable",
        default="depth_net",
        metavar="NAME",
        help="trainer: entry point of automl.trainables, or module:Class (default: depth_net)",
    )


def _overrides(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, rest: Sequence[str]
) -> list[str]:
    """Overrides may stand anywhere after the target; argparse leaves the later ones over."""
    takes_overrides = hasattr(arguments, "override")
    wrong = [
        word for word in rest if not takes_overrides or word.startswith("-") or "=" not in word
    ]
    if wrong:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    return [*getattr(arguments, "override", []), *rest]


# --- commands that start something --------------------------------------------------------------


def _plan(arguments: argparse.Namespace) -> int:
    from automl.plan import make_plan, prepare, render
    from automl.promote.chain import STEP_SENTENCES

    prepared = prepare(
        arguments.target,
        arguments.overrides,
        name=arguments.name,
        data=arguments.data,
        val=arguments.val,
        trainable=arguments.trainable,
    )
    plan = make_plan(prepared, STEP_SENTENCES)
    _say(json.dumps(plan.to_dict(), indent=2) if arguments.json else render(plan))
    return 0


def _study(arguments: argparse.Namespace) -> int:
    return _run_study(arguments, None, None)


def _run_study(
    arguments: argparse.Namespace, decision: Decision | None, spec_file: Path | None
) -> int:
    from automl.study import run_study

    return run_study(
        arguments.target,
        arguments.overrides,
        name=arguments.name,
        data=arguments.data,
        val=arguments.val,
        spec_file=spec_file,
        address=arguments.address,
        decision=decision,
        trainable=arguments.trainable,
        say=_say,
    )


def _train(arguments: argparse.Namespace) -> int:
    from automl.contract import find_trainable
    from automl.policy import decide, read_model_facts

    schema_dir = find_trainable(arguments.trainable).schema_dir
    facts = read_model_facts(schema_dir, _model_of(arguments, schema_dir))
    decision = decide(facts, explicit=arguments.automl_policy, request=arguments.request)
    if decision.report:
        stream = sys.stderr if decision.level == "WARNING" else sys.stdout
        print(f"{facts.model}: {decision.report}", file=stream, flush=True)
    if decision.kind == "study":
        return _run_study(arguments, decision, arguments.spec_file)
    return _run_action(arguments, facts.model, decision)


def _model_of(arguments: argparse.Namespace, schema_dir: Path) -> str:
    """A target that is a model key needs no study file for a plain run."""
    if (schema_dir / arguments.target / "model.json").is_file():
        return arguments.target
    from automl.study_spec import load_study

    return load_study(arguments.target).model


def _run_action(arguments: argparse.Namespace, model: str, decision: Decision) -> int:
    """One action of the trainer in this process: a plain training run, or a direct action."""
    from automl.contract import find_trainable
    from automl.plan import RESULTS, default_name
    from automl.policy import append_status, record_provenance

    spec = _plain_spec(arguments, model, decision)
    name = arguments.name or default_name(arguments.target, arguments.data, arguments.spec_file)
    directory = (RESULTS / decision.action / name).resolve()
    append_status(directory, decision)
    _say(f"{decision.action} {model} in {directory}")
    try:
        result = find_trainable(arguments.trainable).run(decision.action, spec, directory, None)
    finally:
        record_provenance(directory, decision)
    code = int(getattr(result, "exit_code", EXIT_CODES.get(result.status, 1)))
    if code:
        print(f"error: {result.status}: {result.detail}", file=sys.stderr)
        return code
    for metric, value in result.metrics.items():
        _say(f"  {metric}  {value:.6g}")
    for role, path in result.artifacts.items():
        _say(f"  {role}  {path}")
    return code


def _plain_spec(arguments: argparse.Namespace, model: str, decision: Decision) -> Mapping[str, Any]:
    """The spec of a plain run: the given file, else trial 0 of the study, else the template."""
    from automl.contract import find_trainable
    from automl.plan import plain_spec
    from automl.study import write_embedded_data

    trainer = find_trainable(arguments.trainable)
    template = trainer.schema_dir.parent / "spec_templates" / model / f"{decision.action}.yaml"
    if arguments.spec_file is None and not template.is_file():
        problem = "is missing, so the plain run needs a spec"
        remedy = "Give one with -e SPEC.yaml, or restore the template with `make schemas`"
        raise StudySpecError([Problem(str(template), "", problem, remedy)])
    return plain_spec(
        arguments.target,
        arguments.overrides,
        model=model,
        action=decision.action,
        data=arguments.data,
        val=arguments.val,
        spec_file=arguments.spec_file,
        trainer=trainer,
        embedded=write_embedded_data,
    )


def _promote(arguments: argparse.Namespace) -> int:
    from automl.study import promote_study

    return promote_study(
        _study_directory(arguments.study),
        arguments.trainable,
        _say,
        from_=arguments.from_,
        to=arguments.to_,
        only=arguments.only_,
        select=arguments.select,
    )


# --- commands that read -------------------------------------------------------------------------


def _report(arguments: argparse.Namespace) -> int:
    from automl.report.page import write_report
    from automl.store import read_study

    for name in arguments.study or [None]:
        _say(str(write_report(read_study(_study_directory(name)))))
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from automl.live import seconds_left, status_text, watch
    from automl.store import read_study

    directory = _study_directory(arguments.study)
    if arguments.watch:
        return watch(directory)
    study = read_study(directory)
    if arguments.json:
        left = {"seconds_left": seconds_left(study)}
        _say(json.dumps({**_facts(study), **left, "every_trial": _trial_facts(study)}, indent=2))
    else:
        _say(status_text(study))
    return 0


def _replay(arguments: argparse.Namespace) -> int:
    from automl.replay import replay
    from automl.store import read_study

    directory = _study_directory(arguments.study)
    found = replay(read_study(directory))
    _say(f"{found.suggestions} suggestions and {found.decisions} decisions follow from the log")
    if found.difference:
        print(f"error: {directory / 'events.jsonl'}: {found.difference}", file=sys.stderr)
        return 1
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from automl.plan import STUDIES, table
    from automl.store import Study

    found = [_read(directory) for directory in _studies()]
    if arguments.json:
        rows = [_facts(one) if isinstance(one, Study) else one for one in found]
        _say(json.dumps(rows, indent=2))
    elif not found:
        _say(f"{STUDIES} holds no study. Start one: automl study ffs")
    else:
        head = ("study", "model", "state", "trials", "best", "report")
        _say(table([_words(one) for one in found], head))
    return 0


def _dashboard(arguments: argparse.Namespace) -> int:
    from automl.dashboard import show

    return show(_study_directory(arguments.study), _say)


def _read(directory: Path) -> Study | dict[str, Any]:
    """A study, or what is known about one that cannot be read."""
    from automl.store import read_study

    try:
        return read_study(directory)
    except AutoMLError as error:
        return {"study": directory.name, "state": "unreadable", "detail": str(error)}


def _facts(study: Study) -> dict[str, Any]:
    """One study for a program: values as in files, null for what does not exist."""
    from automl.budget import Budget
    from automl.gain import gain

    best, report, found = study.best(), study.directory / "report.html", gain(study)
    return {
        "study": study.name,
        "model": study.resolved.study.model,
        "directory": str(study.directory),
        "state": study.state,
        "end_reason": study.end_reason,
        "objective": study.objective.to_dict(),
        "full_epochs": study.resolved.full_epochs,
        "trials": len(study.trials),
        "front": [
            {"point": point.name, **point.values, "knee": point == study.knee()}
            for point in study.front()
        ],
        "best": {"trial": best.id, "value": study.value(best)} if best is not None else None,
        "gain": found.to_dict() if found is not None else None,
        "seconds": study.active_seconds(),
        "cost": Budget.of(study.resolved.study).spent(study),
        "report": str(report) if report.is_file() else None,
    }


def _trial_facts(study: Study) -> list[dict[str, Any]]:
    """Every trial; its value is that of its last epoch."""
    return [
        {
            "trial": trial.id,
            "state": trial.state,
            "epochs": trial.last_epoch,
            "value": trial.value_at(trial.last_epoch, study.objective.metric),
            "seconds": trial.seconds,
            "detail": trial.detail,
            "params": trial.params,
        }
        for trial in study.trials
    ]


def _words(found: Study | Mapping[str, Any]) -> tuple[str, ...]:
    """One study as a row of `automl list`."""
    from automl.objectives import score

    if isinstance(found, Mapping):
        reason = found["detail"].splitlines()[0]
        return (found["study"], "", f"unreadable: {reason}", "", "", "")
    facts, best = _facts(found), found.best()
    metric = found.objective.metric
    shown = "" if best is None else f"{metric} {score(found.objective, found.value(best))}"
    row = (facts["study"], facts["model"], facts["state"], facts["trials"])
    return (*map(str, row), shown, facts["report"] or "")


def _studies() -> list[Path]:
    """Directories of all studies, the newest last."""
    from automl.plan import STUDIES
    from automl.store import EVENTS_FILE

    logs = sorted(STUDIES.glob(f"*/{EVENTS_FILE}"), key=lambda log: log.stat().st_mtime)
    return [log.parent for log in logs]


def _study_directory(name: str | None) -> Path:
    """Directory of a study given by name or path; the newest when none is named.

    Raises:
        StudySpecError: there is no such study; the message lists those there are.
    """
    from automl.plan import STUDIES
    from automl.store import EVENTS_FILE

    known = _studies()
    if name is None:
        if not known:
            remedy = "Start one: automl study ffs"
            raise StudySpecError([Problem(str(STUDIES), "", "holds no study", remedy)])
        return known[-1]
    for directory in (STUDIES / name, Path(name)):
        if (directory / EVENTS_FILE).is_file():
            return directory
    there_are = ", ".join(directory.name for directory in known) or "none"
    problem = f"no study of this name in {STUDIES}, and no directory with a study"
    raise StudySpecError([Problem("STUDY", name, problem, f"There are: {there_are}")])


def _completion(arguments: argparse.Namespace) -> int:
    from automl.study_spec import STUDIES as STUDY_FILES

    targets = " ".join(sorted(path.stem for path in STUDY_FILES.glob("*.yaml")))
    script = COMPLETION.format(commands=" ".join(SENTENCES), targets=targets)
    if arguments.shell == "zsh":
        script = f"autoload -U +X bashcompinit && bashcompinit\n{script}"
    _say(script)
    return 0


COMPLETION = """\
_automl() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" command="${{COMP_WORDS[1]}}"
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{commands}" -- "$word"))
  else
    case "$command" in
      plan|study|train) COMPREPLY=($(compgen -W "{targets}" -- "$word") $(compgen -f -- "$word")) ;;
      status|promote|report|replay|dashboard)
        COMPREPLY=($(compgen -W "$(ls results/studies 2>/dev/null)" -- "$word")) ;;
    esac
  fi
}}
complete -F _automl automl"""


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "plan": _plan,
    "study": _study,
    "train": _train,
    "status": _status,
    "promote": _promote,
    "report": _report,
    "replay": _replay,
    "list": _list,
    "dashboard": _dashboard,
    "completion": _completion,
}

if __name__ == "__main__":
    sys.exit(main())
