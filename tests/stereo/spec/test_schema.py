from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from stereo.spec import schema
from stereo.spec.data import METRIC_DATASETS, RELATIVE_DATASETS, STEREO_DATASETS
from stereo.spec.experiment import ACTIONS, ExperimentSpec
from stereo.spec.fields import Scale, spec_field
from stereo.spec.load import load_spec, template
from stereo.spec.models import MODELS, Model

FILES = schema.render()
SCHEMAS = {name: json.loads(text) for name, text in FILES.items() if "schema.json" in name}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
every_action = pytest.mark.parametrize("action", list(ACTIONS))


OBJECTIVES = {
    "ffs": ("px", "val/epe"),
    "fs": ("px", "val/epe"),
    "mono_metric": ("", "val/abs_rel"),
    "mono_relative": ("", "val/abs_rel"),
}
DATASETS_OF = {
    "ffs": STEREO_DATASETS,
    "fs": STEREO_DATASETS,
    "mono_metric": METRIC_DATASETS,
    "mono_relative": RELATIVE_DATASETS,
}


def generate(root: Path) -> Path:
    assert schema.main(["--root", str(root)]) == 0
    return root


# -- what is generated ----------------------------------------------------------------------------


def test_the_repository_is_current() -> None:
    assert schema.main(["--check"]) == 0


def test_generation_is_stable_and_a_second_write_changes_nothing(tmp_path: Path) -> None:
    assert schema.render() == FILES
    assert set(schema.write(tmp_path)) == set(FILES)
    assert schema.write(tmp_path) == []


@pytest.mark.parametrize("name", list(SCHEMAS))
def test_every_schema_is_strict_json_schema(name: str) -> None:
    Draft202012Validator.check_schema(SCHEMAS[name])
    open_objects = []

    def visit(node: Any) -> None:
        if isinstance(node, dict):
            if node.get("type") == "object" and node.get("additionalProperties") is not False:
                open_objects.append(node)
            for below in node.values():
                visit(below)

    visit(SCHEMAS[name]["properties"])
    assert open_objects == []
    assert "Infinity" not in FILES[name]
    assert "NaN" not in FILES[name]


@every_model
@every_action
def test_an_action_schema_holds_what_the_verb_reads(model: Model, action: str) -> None:
    made = SCHEMAS[f"schemas/{model.key}/{action}.schema.json"]
    splits = {name for name in made["properties"]["dataset"]["properties"] if "_dataset" in name}
    borrowed = [path.split(".") for path in ACTIONS[action].borrowed]
    others = {section for section, _ in borrowed}
    labels = {"model_name", "encryption_key"} if ACTIONS[action].network else set()
    labels |= {"wandb", "mlflow"} if action == "train" else set()
    own = {"results_dir", "model", "dataset", action}
    assert set(made["properties"]) == own | others | labels
    for section in others:
        assert set(made["properties"][section]["properties"]) == {name for _, name in borrowed}
    assert splits == set(ACTIONS[action].splits)


@every_model
def test_only_the_train_schema_carries_candidates(model: Model) -> None:
    for action in ACTIONS:
        made = SCHEMAS[f"schemas/{model.key}/{action}.schema.json"]
        assert bool(made["automl_default_parameters"]) == (action == "train")
        assert ('"automl_enabled": true' in json.dumps(made)) == (action == "train")
        assert made["automl_disabled_parameters"] == sorted(made["automl_disabled_parameters"])


@every_model
@every_action
def test_a_template_says_what_the_loader_merges(model: Model, action: str) -> None:
    text = FILES[f"spec_templates/{model.key}/{action}.yaml"]
    assert yaml.safe_load(text) == template(model.key, action)
    assert len(model.packaged_values(action)) < 60


@every_model
@every_action
def test_every_commented_default_may_be_switched_on(
    model: Model, action: str, tmp_path: Path
) -> None:
    head, _, body = FILES[f"spec_templates/{model.key}/{action}.yaml"].partition("\n\n")
    lines = [line.replace("# ", "", 1) if line.lstrip().startswith("# ") else line
             for line in body.splitlines()]  # fmt: skip
    source = model.default_dataset
    open_values = {
        "data_sources: ???": f"data_sources: [{{dataset_name: {source}, data_file: a}}]",
        "image_dir_pattern: ???": "image_dir_pattern: [a]",
        "right_dir_pattern: ???": "right_dir_pattern: [b]",
        "depth_dir_pattern: ???": "depth_dir_pattern: [c]",
        "???": "given.pth",
    }
    filled = "\n".join(lines)
    for value, given in open_values.items():
        filled = filled.replace(value, given)
    file = tmp_path / "all.yaml"
    file.write_text(filled)

    assert head.startswith(f"# {model.model_type} ({model.key})")
    spec = load_spec(file, action=action)

    assert type(spec) is model.spec_class
    assert spec.train.seed == 1234


@every_model
def test_required_fields_are_required_only_by_their_verb(model: Model) -> None:
    export = SCHEMAS[f"schemas/{model.key}/export.schema.json"]
    assert export["required"] == ["export"]
    assert export["properties"]["export"]["required"] == ["checkpoint"]
    assert "default" not in export["properties"]["export"]["properties"]["checkpoint"]
    assert SCHEMAS[f"schemas/{model.key}/experiment.schema.json"]["required"] == []


@every_model
def test_manifest_names_every_file_with_its_hash(model: Model) -> None:
    row = json.loads(FILES["schemas/manifest.json"])["models"][model.key]
    assert row["automl_enabled"] is True
    family = "mono" if model.key.startswith("mono_") else "stereo"
    assert row["network_arch"] == f"depth_net_{family}"
    for action, entry in row["actions"].items():
        assert entry["schema_sha256"] == schema._sha256(FILES[entry["schema"]])
        assert entry["template_sha256"] == schema._sha256(FILES[entry["template"]])
        assert entry["failures"] == []
        searched = {"train": 10 if family == "mono" else 17}.get(action, 0)
        assert len(entry["automl_default_parameters"]) == searched


@every_model
def test_model_metadata_names_real_fields(model: Model) -> None:
    made = json.loads(FILES[f"schemas/{model.key}/model.json"])
    paths = {node.path for node in model.nodes}
    named = {
        *made["data_keys"].values(),
        *made["weight_keys"],
        *made["part_keys"],
        *(path for shaping in made["part_keys"].values() for path in shaping),
        made["fidelity"],
        *(path for path in made["shorthands"].values() if "{" not in path),
        *(path for params in made["spec_params"].values() for path in params),
        *(given["path"] for verb in made["actions"].values() for given in verb["inputs"]),
        *(path for verb in made["actions"].values() for path in verb["required"]),
    }
    assert named <= paths
    unit, metric = OBJECTIVES[model.key]
    assert made["objective"] == {"metric": metric, "direction": "minimize", "unit": unit}
    assert made["default_dataset"] in DATASETS_OF[model.key]
    assert made["objective"].items() <= {**made["metrics"][metric], "metric": metric}.items()


def test_the_reference_page_lists_every_field_of_every_model_once() -> None:
    page = FILES["docs/spec-reference.md"]
    listed: dict[str, list[str]] = {key: [] for key in MODELS}
    for section in page.split("\n## ")[1:]:
        prefix = section.partition("\n")[0].strip("`")
        for row in (line for line in section.splitlines() if line.startswith("| `")):
            name, models = (cell.strip() for cell in row.split("|")[1:3])
            path = name.strip("`") if prefix == "Root" else f"{prefix}.{name.strip('`')}"
            for key in models.split(", ") if models else MODELS:
                listed[key].append(path)
    assert {key: sorted(paths) for key, paths in listed.items()} == {
        key: sorted(node.path for node in model.nodes if node.kind != "section")
        for key, model in MODELS.items()
    }
    assert "| `lr_scheduler` | fs | categorical | `PolynomialLR` |" in page


# -- checks ---------------------------------------------------------------------------------------


def test_check_fails_after_an_edit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = generate(tmp_path)
    edits = {
        "schemas/ffs/train.schema.json": ('"maximum": 8', '"maximum": 9'),
        "spec_templates/ffs/train.yaml": ("num_epochs: 1 ", "num_epochs: 2 "),
        "docs/spec-reference.md": ("2..8", "2..9"),
        "schemas/manifest.json": ('"automl_enabled": true', '"automl_enabled": false'),
    }
    for name, (old, new) in edits.items():
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new, 1))

    assert schema.main(["--check", "--root", str(root)]) == 1

    said = capsys.readouterr().err.splitlines()
    assert sorted(said) == sorted(
        f"{name}: differs from the dataclasses; run `make schemas`" for name in edits
    )


def test_check_names_missing_and_leftover_files(tmp_path: Path) -> None:
    root = generate(tmp_path)
    (root / "schemas/manifest.json").unlink()
    (root / "spec_templates/ffs/old.yaml").write_text("")
    assert schema.differences(root) == [
        "schemas/manifest.json: missing",
        "spec_templates/ffs/old.yaml: not generated any more",
    ]


@dataclass
class Planted(ExperimentSpec):
    """Declarations that break a rule each."""

    below: int = spec_field(1, "Below its range", low=2, high=8)
    above: float = spec_field(9.0, "Above its range", low=2, high=8)
    undescribed: int = spec_field(1, "")
    half_open: int = spec_field(1, "No upper end", low=1, automl_enabled=True)
    empty: float = spec_field(2.0, "No width", low=2, high=2, automl_enabled=True)
    outside: int = spec_field(
        3, "Wider search", low=2, high=4, automl_enabled=True, search_range=(1, 9)
    )
    log_zero: float = spec_field(
        0.0, "Log from 0", low=0.0, high=1.0, automl_enabled=True, scale=Scale.LOG
    )
    lost: float = spec_field(0.0, "Unknown switch", active_if={"nothing": (True,)})


def test_violations_of_the_declarations_are_listed() -> None:
    assert schema.violations(replace(MODELS["ffs"], spec_class=Planted)) == [
        "below: default 1 below 2",
        "above: default 9.0 above 8",
        "half_open: enabled without both ends of a search range",
        "empty: empty search range 2..2",
        "outside: search range 1..9 outside 2..4",
        "log_zero: a log scale needs a low end above 0",
        "undescribed: no description",
        "lost: depends on unknown nothing",
    ]


def test_a_template_that_does_not_validate_is_a_violation() -> None:
    broken = replace(MODELS["ffs"], templates={"export": {"export.input_height": 5}})
    (fault,) = schema._template_faults(broken, "export")
    assert "export.input_height: 5 is less than the minimum of 32" in fault


def test_an_unknown_keyword_is_a_violation() -> None:
    planted = {"type": "object", "properties": {"a": {"type": "string", "x-new": 1}}}
    assert list(schema._keyword_faults(planted, "train")) == ["train: a: unknown keyword x-new"]


# -- a changed dataclass --------------------------------------------------------------------------


def test_a_changed_flag_and_range_reach_the_schema(tmp_path: Path) -> None:
    """The real program on a copy of the package with an edited declaration; no torch involved."""
    repository = Path(schema.__file__).parents[2]
    for part in ("spec", "__init__.py", "errors.py"):
        source, target = repository / "stereo" / part, tmp_path / "stereo" / part
        target.parent.mkdir(exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    networks, train = (tmp_path / f"stereo/spec/{name}.py" for name in ("networks", "train"))
    flagged = networks.read_text().replace("high=8,\n        automl_enabled=True", "high=8")
    assert flagged != networks.read_text()
    networks.write_text(flagged)
    ranged = train.read_text().replace("search_range=(1e-6, 1e-2)", "search_range=(1e-5, 1e-3)", 1)
    assert ranged != train.read_text()
    train.write_text(ranged)
    program = (
        "import sys, runpy\n"
        "sys.argv = ['schema']\n"
        "try: runpy.run_module('stereo.spec.schema', run_name='__main__')\n"
        "finally: print('torch' in sys.modules or 'omegaconf' in sys.modules)"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )

    made = json.loads((tmp_path / "schemas/ffs/train.schema.json").read_text())
    lr = made["properties"]["train"]["properties"]["optim"]["properties"]["lr"]
    assert done.stdout.rstrip().endswith("False")
    assert "model.corr_radius" not in made["automl_default_parameters"]
    assert "model.corr_radius" in made["automl_disabled_parameters"]
    assert lr["x-search-range"] == [1e-5, 1e-3]
