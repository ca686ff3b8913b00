"""`depth_net`: the verbs of the depth package on the command line.

Knows nothing of AutoML: `depth_net train` is always a plain run. Exit codes: 0 success, 1 the verb
failed, 2 found before anything ran, 3 ran without a usable result, 4 backend or device missing,
130 and 143 interrupted.
"""

from __future__ import annotations

import argparse
import errno
import json
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from stereo import __version__
from stereo.errors import (
    CheckpointError,
    DataError,
    SpecError,
    SpecProblem,
    StereoError,
    interrupt_exit_code,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from stereo.spec.experiment import ExperimentSpec
    from stereo.viz import Picture

PREVIEW = Path("validate", "data.png")  # below results_dir
VALIDATED_VERB = "train"  # unless --action names another
SCHEMAS = Path(__file__).resolve().parents[1] / "schemas"
VERBS = {
    "convert": "list the samples of a folder of scenes in train.txt and val.txt, or test.txt",
    "train": "train a network and keep its checkpoints",
    "evaluate": "score a checkpoint, a graph or an engine on pairs with ground truth",
    "inference": "write disparity maps and pictures for pairs",
    "export": "write the ONNX graph of a checkpoint, checked against PyTorch",
    "gen_trt_engine": "build an engine from a graph",
    "quantize": "write a graph or weights with int8 or fp8 values and measure what that changes",
}
WITHOUT_PARENT = ("convert",)  # verbs that take nothing from an earlier run
EPILOG = """\
examples:
  depth_net convert -e convert.yaml convert.data_root=data/scenes convert.split_ratio=0.9
  depth_net default_specs --model ffs --action train -o train.yaml
  depth_net train -e train.yaml results_dir=results/run train.num_epochs=2
  depth_net evaluate -e evaluate.yaml evaluate.checkpoint=results/run/train/dn_model_best.pth
  depth_net evaluate -e evaluate.yaml --set-from results/studies/ffs/bundle

exit codes: 0 success, 1 failed while running, 2 found before anything ran, 3 no usable result,
4 backend or device missing, 130/143 interrupted. Searches are run by `automl`, not here."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = _parsed(_parser(words), words)
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        return arguments.command(arguments)
    except StereoError as error:
        print(error, file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt as interrupt:
        code = interrupt_exit_code(interrupt)
        print(f"Interrupted (exit {code}).", file=sys.stderr)
    finally:
        signal.signal(signal.SIGTERM, previous)
    print("Execution status: FAIL")
    return code


def _terminate(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt(signal.SIGTERM)


def _parsed(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """Parse the command line; argparse leaves overrides over that stand behind a later option."""
    arguments, rest = parser.parse_known_args(words)
    takes_overrides = hasattr(arguments, "overrides")
    wrong = [
        word for word in rest if not takes_overrides or word.startswith("-") or "=" not in word
    ]
    if wrong:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="depth_net",
        description="Train, score, export and build stereo-depth networks from one YAML spec.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"depth_net {__version__}")
    commands = parser.add_subparsers(required=True, metavar="VERB")
    wants_help = "--help" in argv or "-h" in argv
    for verb, sentence in VERBS.items():
        sub = commands.add_parser(
            verb,
            help=sentence,
            description=sentence[0].upper() + sentence[1:] + ".",
            epilog=_fields_of(verb) if wants_help else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        _add_spec_arguments(sub)
        if verb not in WITHOUT_PARENT:
            _add_parent_arguments(sub)
        sub.add_argument(
            "--dry-run",
            action="store_true",
            help="print the spec, say where values come from, stop",
        )
        sub.set_defaults(command=_run_verb, verb=verb)
    specs = commands.add_parser("default_specs", help="write the packaged spec of a verb")
    specs.add_argument("--model", required=True, choices=_models())
    specs.add_argument("--action", required=True, choices=list(VERBS))
    specs.add_argument("-o", "--output", type=Path, help="file to write (default: print)")
    specs.set_defaults(command=_default_specs)
    validate = commands.add_parser("validate", help="check a spec or a weight file and stop")
    _add_spec_arguments(validate, required=False)
    validate.add_argument(
        "--action", choices=list(VERBS), help=f"verb to check for (default: {VALIDATED_VERB})"
    )
    validate.add_argument(
        "--data", action="store_true", help="also read the data and say what looks wrong with it"
    )
    validate.add_argument(
        "--pairs",
        metavar="N|all",
        help="with --data: how many pairs of a source are read completely (default: 32)",
    )
    validate.add_argument(
        "--preview",
        nargs="?",
        const=PREVIEW,
        type=Path,
        metavar="FILE.png",
        help="with --data: write a picture of some pairs (default: below results_dir)",
    )
    validate.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE.pth",
        help="say what a weight file is; with -e also whether it fits the spec",
    )
    validate.set_defaults(command=_validate)
    return parser


def _add_spec_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    parser.add_argument(
        "-e",
        "--experiment_spec_file",
        dest="spec_file",
        required=required,
        type=Path,
        metavar="SPEC.yaml",
        help="the spec; any file name",
    )
    parser.add_argument("--model", choices=_models(), help="model key (default: as the spec says)")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="dotted override, value read as YAML; list items by index",
    )
    # Known wrong turns get an answer instead of "unrecognized arguments".
    parser.add_argument("--automl-policy", help=argparse.SUPPRESS)


def _add_parent_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set-from",
        metavar="PARENT",
        type=Path,
        help="fill open fields from a train, export or engine run, a bundle or a study",
    )
    parser.add_argument(
        "--select",
        default="best",
        metavar="best|latest|epoch=E|step=S",
        help="which checkpoint of the parent (default: best)",
    )


def _models() -> list[str]:
    return sorted(path.parent.name for path in SCHEMAS.glob("*/model.json"))


def _fields_of(verb: str) -> str:
    """What a verb reads and writes, from the published schemas of every model."""
    lines: list[str] = []
    for model in _models():
        folder = SCHEMAS / model
        facts = json.loads((folder / "model.json").read_text("utf-8"))["actions"][verb]
        leaves = dict(_leaves(json.loads((folder / f"{verb}.schema.json").read_text("utf-8"))))
        required = [path for path in facts["required"] if path in leaves]
        paths = [given["path"] for given in facts["inputs"]]
        popular = [path for path, leaf in leaves.items() if leaf.get("x-popular")]
        groups = {
            "required fields": required,
            "files it can be given": [path for path in paths if path not in required],
            "popular fields": popular,
        }
        for title, members in groups.items():
            if members:
                lines += [f"{title} ({model}):", *(_field(path, leaves[path]) for path in members)]
        lines.append(f"writes ({model}): {', '.join(facts['outputs'])}")
    return "\n".join([*lines, "and always: experiment.yaml, provenance.json, status.json, a log"])


def _leaves(schema: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for name, leaf in schema.get("properties", {}).items():
        if "properties" in leaf:
            yield from _leaves(leaf, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", leaf


def _field(path: str, leaf: Mapping[str, Any]) -> str:
    default = leaf.get("default")
    shown = "" if default in (None, "???") else f" (default {json.dumps(default)})"
    return f"  {path}: {leaf.get('description', '')}{shown}"


def _load(arguments: argparse.Namespace, action: str) -> tuple[ExperimentSpec, dict[str, str]]:
    """The resolved spec and, for every inferred key, where its value came from."""
    from stereo.parent import infer
    from stereo.spec.load import load_spec

    if arguments.automl_policy is not None:
        problem = "--automl-policy is a run argument of `automl train`, never one of depth_net"
        remedy = "Use automl train MODEL --automl-policy auto|on|off"
        raise SpecError([SpecProblem("command line", "--automl-policy", problem, remedy)])
    overrides = list(arguments.overrides)
    reasons: dict[str, str] = {}
    if getattr(arguments, "set_from", None) is not None:
        inferred = infer(arguments.set_from, action, arguments.select)
        fresh = inferred.open_fields(arguments.spec_file, overrides, arguments.model)
        overrides = [f"{key}={json.dumps(value)}" for key, value in fresh.items()] + overrides
        reasons = {key: inferred.reasons[key] for key in fresh}
    spec = load_spec(arguments.spec_file, overrides, action=action, model=arguments.model)
    return spec, reasons


def _run_verb(arguments: argparse.Namespace) -> int:
    from stereo.spec.load import given_values, to_dict
    from stereo.spec.models import model_of
    from stereo.status import action_directory

    spec, reasons = _load(arguments, arguments.verb)
    directory = action_directory(spec, arguments.verb)
    if arguments.dry_run:
        print(yaml.safe_dump(to_dict(spec), sort_keys=False).rstrip())
        for key, reason in reasons.items():
            print(f"# {key}: {reason}")
        print(f"# would write to {directory}; nothing was run")
        return 0
    from stereo import actions

    given = given_values(
        arguments.spec_file, arguments.overrides, action=arguments.verb, model=arguments.model
    )
    result = actions.run_resolved(
        arguments.verb, spec, directory, inferred=reasons, tell=_tell, given=given.keys()
    )
    declared = model_of(spec).metrics
    for name, value in result.metrics.items():
        print(f"{name}: {_measured(value, declared.get(name, {}).get('unit', ''))}")
    for name, path in result.artifacts.items():
        print(f"{name}: {path}")
    if result.detail:
        print(result.detail, file=sys.stdout if result.exit_code == 0 else sys.stderr)
    print(f"Execution status: {'PASS' if result.exit_code == 0 else 'FAIL'}")
    return result.exit_code


def _tell(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _measured(value: float, unit: str) -> str:
    """A number with its unit; fractions as percent."""
    if unit == "fraction":
        return f"{100 * value:.3g} %"
    number = f"{value:.0f}" if float(value).is_integer() else f"{value:.6g}"
    return f"{number} {unit}".rstrip()


def _default_specs(arguments: argparse.Namespace) -> int:
    packaged = SCHEMAS.parent / "spec_templates" / arguments.model / f"{arguments.action}.yaml"
    text = packaged.read_text("utf-8")
    if arguments.output is None:
        print(text, end="")
        return 0
    if arguments.output.exists():
        problem = "the file exists and would be overwritten"
        raise SpecError([SpecProblem(str(arguments.output), "-o", problem, "Name another file")])
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(text, "utf-8")
    print(f"wrote {arguments.output}; fill in the fields marked ???")
    return 0


def _validate(arguments: argparse.Namespace) -> int:
    problems = [*_spec_option_problems(arguments), *_data_option_problems(arguments)]
    if problems:
        raise SpecError(problems)
    action = arguments.action or VALIDATED_VERB
    spec = preview = None
    if arguments.spec_file is not None:
        spec = _validate_spec(arguments, action)
        print(f"{arguments.spec_file}: valid for {action}")
        preview = _preview_path(spec, arguments.preview, action)
    if arguments.checkpoint is not None:
        _validate_checkpoint(arguments.checkpoint, spec)
    if arguments.data and spec is not None:
        _validate_data(spec, action, arguments.pairs or "", preview)
    return 0


def _validate_spec(arguments: argparse.Namespace, action: str) -> ExperimentSpec:
    """The spec; where the verb was not named and misses its fields, the error says how to name one.

    Raises:
        SpecError: with every mistake.
    """
    try:
        return _load(arguments, action)[0]
    except SpecError as error:
        missing = [each for each in error.problems if each.problem.startswith("required by ")]
        if arguments.action is not None or not missing:
            raise
        problem = f"not given, so checked for {action}"
        remedy = "For another verb: --action VERB"
        hint = SpecProblem("command line", "--action", problem, remedy)
        raise SpecError([*error.problems, hint]) from None


def _spec_option_problems(arguments: argparse.Namespace) -> Iterator[SpecProblem]:
    if arguments.spec_file is None:
        for option, given in (
            ("-e", arguments.checkpoint is None),
            ("--data", arguments.data),
            ("key=value", bool(arguments.overrides)),
        ):
            if given:
                problem = "a spec is needed" if option == "-e" else "needs -e"
                yield SpecProblem("command line", option, problem, "Add -e SPEC.yaml")


def _validate_checkpoint(path: Path, spec: ExperimentSpec | None) -> None:
    """Print what a weight file is; one that fits no network, or not the spec, ends with 2."""
    from stereo.checkpoints import identify, load
    from stereo.registry import MODELS, entry_for, recognised, settled
    from stereo.spec.load import to_dict

    try:
        found, state = recognised(path)
        print(f"{path}\n{found}")
        for entry in MODELS.values():
            if entry.model_type == found.network:
                load.require_network(state, found, identify.expected(entry))
    except CheckpointError as error:
        told = str(error)
        raise CheckpointError(told if told.startswith(str(path)) else f"{path}: {told}") from None
    if spec is not None:
        spec = settled(spec, path)
        network = identify.expected_state(entry_for(spec).build, spec)
        rows = identify.contradictions(identify.identify(network, {"spec": to_dict(spec)}), found)
        if rows:
            raise CheckpointError(f"{path}: does not fit the spec\n{identify.table(rows)}")
        print("fits the spec")


def _data_option_problems(arguments: argparse.Namespace) -> Iterator[SpecProblem]:
    pairs, preview = arguments.pairs, arguments.preview
    for option, value in (("--pairs", pairs), ("--preview", preview)):
        if value is not None and not arguments.data:
            yield SpecProblem("command line", option, "needs --data", "Add --data")
    if pairs not in (None, "all") and not (pairs.isdecimal() and int(pairs) > 0):
        remedy = "Use a number above 0, or all"
        yield SpecProblem("command line", "--pairs", f"got '{pairs}'", remedy)
    if preview is not None and preview.suffix.lower() != ".png":
        remedy = "Name a .png file, or write key=value in front of --preview"
        yield SpecProblem("command line", "--preview", f"got '{preview}'", remedy)


def _preview_path(spec: ExperimentSpec, given: Path | None, action: str) -> Path | None:
    """Where the preview goes, if there is to be one; the nearest folder that exists takes files."""
    from stereo.status import action_directory

    if given is None:
        return None
    path = action_directory(spec, action).parent / given if given == PREVIEW else given
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "Is a directory")
        with tempfile.TemporaryFile(dir=next(each for each in path.parents if each.exists())):
            return path
    except OSError as error:
        raise _no_preview(path, error) from None


def _no_preview(path: Path, error: OSError) -> SpecError:
    problem = f"cannot write '{path}' ({error.strerror})"
    remedy = "Name a file in a folder that can be written to"
    return SpecError([SpecProblem("command line", "--preview", problem, remedy)])


def _validate_data(spec: ExperimentSpec, action: str, pairs: str, preview: Path | None) -> None:
    """Print what the data looks like; a fault of any source ends with exit code 2."""
    from stereo.data.check import PAIRS, check_data
    from stereo.data.check_report import contact_sheet, fault_text, report_text
    from stereo.progress import bar_when_slow
    from stereo.spec.experiment import ACTIONS

    wanted = pairs or str(PAIRS)
    with bar_when_slow() as show:
        report = check_data(
            spec,
            ACTIONS[action].splits,
            pairs=None if wanted == "all" else int(wanted),
            progress=show,
        )
    print(report_text(report))
    if preview is not None:
        _write_preview(contact_sheet(report), preview)
    if report.faults:
        raise DataError(fault_text(report), exit_code=2)


def _write_preview(sheet: Picture | None, path: Path) -> None:
    from stereo.data.encodings import write_png

    if sheet is None:
        print("preview: none, no pair could be read")
        return
    try:
        write_png(path, sheet)
    except OSError as error:
        raise _no_preview(path, error) from None
    print(f"preview: {path}")


if __name__ == "__main__":
    sys.exit(main())
