"""The search space comes from the schema; what cannot matter is dropped with its reason."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automl.algorithms.samplers import at_positions
from automl.errors import SchemaError, StudySpecError
from automl.space import (
    Parameter,
    SearchSpace,
    build_space,
    read_fields,
    with_numbers_for_nulls,
)
from automl.study_spec import base_spec, get_path, load_study, set_path
from tests.automl import studies
from tests.automl.quadratic import Quadratic

SCHEMA = json.loads((studies.MODEL_DIR / "train.schema.json").read_text())
MODEL = json.loads((studies.MODEL_DIR / "model.json").read_text())
BASE = Quadratic().template("quadratic", "train")
SCHEMAS = Path(__file__).parents[2] / "schemas"
OPTIMIZER, MOMENTUM = "train.optim.optimizer", "train.optim.momentum"


def build(base=BASE, schema=SCHEMA, allow_partial_load=False, **search) -> SearchSpace:
    study = studies.study_spec(search=search, allow_partial_load=allow_partial_load)
    return build_space(read_fields(schema), study, base, MODEL["weight_keys"])


def changed(path: str, value: object) -> dict:
    spec = copy.deepcopy(BASE)
    set_path(spec, path, value)
    return spec


def reasons(space: SearchSpace) -> dict[str, str]:
    return {item.path: item.reason for item in space.dropped}


def names(space: SearchSpace) -> list[str]:
    return [parameter.path for parameter in space.parameters]


def test_the_schema_gives_ranges_scales_steps_and_defaults():
    space = {item.path: item for item in build().parameters}
    assert list(space) == ["model.width", "train.flip", "train.optim.lr"]
    assert space["train.optim.lr"] == Parameter(
        "train.optim.lr", "float", 1e-4, low=1e-6, high=1e-1, log=True
    )
    assert space["model.width"].domain() == "4..32 step 4"
    assert space["train.flip"].domain() == "0..1"


def test_a_number_that_trial_0_leaves_open_is_not_searched():
    space = build(changed("train.optim.lr", None))
    assert "train.optim.lr" not in names(space)
    assert reasons(space)["train.optim.lr"].startswith("null in trial 0, the spec; give it")


def test_a_range_or_flag_changed_in_the_schema_changes_the_space():
    schema = copy.deepcopy(SCHEMA)
    optim = schema["properties"]["train"]["properties"]["optim"]["properties"]
    optim["lr"]["x-search-range"] = [1e-5, 1e-3]
    schema["automl_default_parameters"].remove("train.flip")
    space = build(schema=schema)
    assert names(space) == ["model.width", "train.optim.lr"]
    assert (space.parameters[1].low, space.parameters[1].high) == (1e-5, 1e-3)


def test_what_cannot_act_is_dropped_with_its_reason():
    assert reasons(build()) == {MOMENTUM: f"acts only with {OPTIMIZER} = SGD, here it is AdamW"}
    assert MOMENTUM in names(build(changed(OPTIMIZER, "SGD")))


def test_weight_shapes_are_fixed_when_weights_are_loaded():
    base = changed("train.pretrained_model_path", "w.pth")
    dropped = reasons(build(base))
    assert "weights are loaded (train.pretrained_model_path)" in dropped["model.width"]
    assert "model.width" in names(build(base, allow_partial_load=True))


PARTS = {"model.part_path": ["model.width"], "model.other_path": []}


def build_with_parts(base, *, partial=False) -> SearchSpace:
    study = studies.study_spec(allow_partial_load=partial)
    return build_space(read_fields(SCHEMA), study, base, MODEL["weight_keys"], PARTS)


def test_a_file_for_a_part_fixes_what_shapes_that_part_only():
    assert "model.width" in names(build_with_parts(BASE))
    other = changed("model.other_path", "w.pth")
    assert "model.width" in names(build_with_parts(other))
    part = changed("model.part_path", "w.pth")
    for partial in (False, True):
        reason = reasons(build_with_parts(part, partial=partial))["model.width"]
        assert reason == "changes the shape of weights that are loaded (model.part_path)"
    whole = copy.deepcopy(part)
    set_path(whole, "train.pretrained_model_path", "w.pth")
    assert "(train.pretrained_model_path)" in reasons(build_with_parts(whole))["model.width"]
    assert "model.width" in names(build_with_parts(whole, partial=True))


def test_a_searched_controller_keeps_its_conditional_fields():
    space = build(add=[OPTIMIZER])
    assert names(space)[-2:] == [OPTIMIZER, MOMENTUM]
    momentum = space.parameters[-1]
    assert momentum.condition == {OPTIMIZER: ("SGD",)}
    assert not space.is_active(momentum, {OPTIMIZER: "AdamW"})
    assert MOMENTUM not in space.defaults(BASE)
    assert space.defaults(changed(OPTIMIZER, "SGD"))[MOMENTUM] == 0.9


def test_a_study_adds_drops_and_narrows():
    space = build(
        parameters=["train.flip", "train.optim.lr", "model.width"],
        add=[OPTIMIZER],
        drop=["train.flip"],
        ranges={"train.optim.lr": [1e-8, 1.0], "model.width": [5, 17]},
        choices={OPTIMIZER: ["SGD", "AdamW"]},
    )
    assert names(space) == ["model.width", "train.optim.lr", OPTIMIZER]
    assert reasons(space)["train.flip"] == "dropped by the study"
    assert [item.domain() for item in space.parameters] == [
        "8..16 step 4",
        "1e-08..1 log",
        "SGD, AdamW",
    ]


@pytest.mark.parametrize(
    ("search", "words"),
    [
        (
            {"add": ["train.optim.lrr"]},
            r"no field train\.optim\.lrr. Did you mean train\.optim\.lr",
        ),
        ({"add": ["train.num_epochs"]}, r"train\.num_epochs is never searched"),
        ({"ranges": {"train.flip": [0, 2]}}, r"train\.flip: got \[0, 2\], allowed 0\.\.1"),
        ({"ranges": {"train.optim.lr": [1e-10, 1]}}, r"allowed 1e-09\.\.10000"),
        ({"ranges": {"model.width": [5, 7]}}, "holds no allowed value"),
        ({"ranges": {MOMENTUM + "x": [0, 1]}}, "no field"),
        ({"choices": {OPTIMIZER: ["SGD"]}}, f"not searched. Add it: search.add: .{OPTIMIZER}"),
        (
            {"add": [OPTIMIZER], "choices": {OPTIMIZER: ["Lion"]}},
            "got .*Lion.*, allowed AdamW, SGD",
        ),
        ({"parameters": [MOMENTUM]}, "nothing is left to search"),
    ],
)
def test_each_mistake_has_its_message(search, words):
    with pytest.raises(StudySpecError, match=words):
        build(**search)


@pytest.mark.parametrize(
    ("written", "number"),
    [({}, 2.0), ({"form": "b"}, 0.5), ({"weight": None}, 2.0), ({"weight": 0.7}, 0.7)],
)
def test_null_becomes_the_number_that_it_stands_for(written, number):
    meanings = {"o.form": {"a": 2.0, "b": 0.5}}
    weight = {"type": ["number", "null"], "default": None, "minimum": 0, "maximum": 4}
    leaves = {
        "form": {"enum": ["a", "b"], "default": "a"},
        "weight": {**weight, "automl_enabled": True, "x-null-means": meanings},
    }
    schema = {
        "automl_default_parameters": ["o.weight"],
        "properties": {"o": {"properties": leaves}},
    }
    spec = with_numbers_for_nulls(read_fields(schema), {"o": written})
    assert spec == {"o": {**written, "weight": number}}


def test_powers_and_neighbours_of_a_math_condition():
    leaf = {"type": "integer", "default": 8, "minimum": 2, "maximum": 40, "automl_enabled": True}
    number = {"type": "number", "minimum": 0.0, "maximum": 1.0, "automl_enabled": True}
    schema = {
        "automl_default_parameters": ["o.groups", "o.min_lr", "o.lr"],
        "properties": {
            "o": {
                "properties": {
                    "groups": {**leaf, "x-math-cond": "^ 2"},
                    "min_lr": {**number, "default": 0.1, "x-math-cond": "< depends_on lr"},
                    "lr": {**number, "default": 0.2},
                }
            }
        },
    }
    space = build({"o": {}}, schema)
    groups, lr, min_lr = space.parameters
    assert groups.choices == (2, 4, 8, 16, 32)
    assert (lr.path, min_lr.below) == ("o.lr", "o.lr")
    assert min_lr.limited(0.7, {"o.lr": 0.5}) == math.nextafter(0.5, 0)
    assert min_lr.limited(0.3, {"o.lr": 0.5}) == 0.3


def test_a_default_that_the_schema_forbids_is_a_schema_error():
    schema = copy.deepcopy(SCHEMA)
    schema["automl_default_parameters"].append("train.num_epochs")
    with pytest.raises(SchemaError, match=r"train\.num_epochs: searched by default although"):
        read_fields(schema)
    schema["automl_default_parameters"] = ["train.gone"]
    with pytest.raises(SchemaError, match=r"names train\.gone.*make schemas"):
        read_fields(schema)


@given(positions=st.lists(st.floats(0, 1, exclude_max=True), min_size=5, max_size=5))
@settings(deadline=None, max_examples=40)
def test_every_sample_is_inside_and_validates(positions):
    space = build(add=[OPTIMIZER])
    params = at_positions(space, dict(zip(names(space), positions, strict=True)))
    assert space.contains(params)
    jsonschema.validate(space.apply(BASE, params), SCHEMA)


def test_apply_leaves_the_base_spec_alone():
    before = copy.deepcopy(BASE)
    spec = build().apply(BASE, {"train.optim.lr": 0.5})
    assert spec["train"]["optim"]["lr"] == 0.5
    assert before == BASE


def test_a_space_survives_its_lock_file():
    space = build(add=[OPTIMIZER])
    assert SearchSpace.from_dict(json.loads(json.dumps(space.to_dict()))) == space


@given(value=st.integers(-100, 100) | st.floats(-100, 100))
@settings(deadline=None)
def test_the_nearest_value_is_inside(value):
    for parameter in build().parameters:
        assert parameter.contains(parameter.nearest(value))
        assert parameter.nearest(parameter.low) == parameter.low


def packaged_space(key: str, **spec_changes: object) -> SearchSpace:
    study = load_study(key)
    model = json.loads((SCHEMAS / key / "model.json").read_text())
    fields = read_fields(json.loads((SCHEMAS / key / "train.schema.json").read_text()))
    template: dict = {}
    for item in fields:
        set_path(template, item.path, item.default)
    base = base_spec(study, template, model, {"train": "x.txt", "val": "x.txt"})
    for path, value in spec_changes.items():
        set_path(base, path, value)
    return build_space(fields, replace(study), base, model["weight_keys"])


AUGMENTATION = "dataset.train_dataset.augmentation."


@pytest.mark.parametrize("key", ["ffs", "fs"])
def test_the_packaged_study_searches_what_the_profile_makes_active(key):
    """17 default fields; with OneCycleLR and AdamW four optimiser fields cannot act."""
    space = packaged_space(key)
    assert set(reasons(space)) == {
        "train.optim.lr_decay",
        "train.optim.lr_step_size",
        "train.optim.min_lr",
        MOMENTUM,
    }
    assert len(space.parameters) == 13
    flips = {f"{AUGMENTATION}{side}_flip_prob" for side in "hv"}
    assert flips | {"model.corr_radius", "model.train_iters", "train.optim.lr"} <= set(names(space))
    assert all(path.startswith((AUGMENTATION, "model.", "train.optim.")) for path in names(space))
    lr = next(item for item in space.parameters if item.path == "train.optim.lr")
    assert (lr.low, lr.high, lr.log, lr.default) == (1e-6, 1e-2, True, 1e-4)


@pytest.mark.parametrize("key", ["ffs", "fs"])
def test_flips_and_weight_shapes_follow_the_base_spec(key):
    space = packaged_space(
        key, **{f"{AUGMENTATION}do_flip": False, "train.pretrained_model_path": "released.pth"}
    )
    dropped = reasons(space)
    assert "here it is False" in dropped[f"{AUGMENTATION}h_flip_prob"]
    assert "weights are loaded" in dropped["model.corr_radius"]
    assert get_path({}, "model.corr_radius") is None
