from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from stereo.errors import SpecError
from stereo.spec.data import MonoSource
from stereo.spec.experiment import ACTIONS, ExperimentSpec
from stereo.spec.fields import Node
from stereo.spec.load import given_values, load_spec, named_model, template, to_dict
from stereo.spec.models import MODELS, Model
from stereo.spec.networks import FoundationStereoSpec
from stereo.spec.rules import RULES
from stereo.spec.schema import experiment_schema


def samples(model: str = "ffs") -> list[dict[str, str]]:
    """Data sources of a class that fits the model."""
    return [{"dataset_name": MODELS[model].default_dataset, "data_file": "samples.txt"}]


PAIRS = samples()


def opened(action: str, model: str | None = None) -> list[str]:
    """Values for what a template leaves open."""
    (source,) = samples(model or "ffs")
    mono = model is not None and model.startswith("mono")
    return {
        "convert": [
            "convert.data_root=scenes",
            "convert.image_dir_pattern=[left]",
            *([] if mono else ["convert.right_dir_pattern=[right]"]),
            "convert.depth_dir_pattern=[disparity]",
        ],
        "train": [f"dataset.train_dataset.data_sources=[{source}]"],
        "evaluate": [
            "evaluate.checkpoint=a.pth",
            f"dataset.test_dataset.data_sources=[{source}]",
        ],
        "inference": [
            "inference.checkpoint=a.pth",
            "dataset.infer_dataset.data_sources.0.data_file=a",
        ],
        "export": ["export.checkpoint=a.pth"],
        "gen_trt_engine": ["gen_trt_engine.onnx_file=a.onnx"],
        "quantize": [
            "quantize.model_path=a.pth",
            f"dataset.val_dataset.data_sources=[{source}]",
        ],
    }[action]


def load(
    *overrides: str, source: Any = None, action: str = "train", model: str | None = None
) -> ExperimentSpec:
    named = model or named_model(source or {}, overrides)
    values = ["results_dir=out", *opened(action, named), *overrides]
    return load_spec(source, values, action=action, model=model)


def mistakes(
    *overrides: str, source: Any = None, action: str = "train", model: str | None = None
) -> list[str]:
    with pytest.raises(SpecError) as caught:
        load(*overrides, source=source, action=action, model=model)
    return [str(problem) for problem in caught.value.problems]


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


# -- merging --------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("action", list(ACTIONS))
def test_every_template_loads_once_its_open_values_are_given(model: Model, action: str) -> None:
    spec = load(source=template(model.key, action), action=action)
    assert type(spec) is model.spec_class
    assert spec.results_dir == "out"
    assert spec.model == model.spec_class().model


# -- which model ----------------------------------------------------------------------------------

FS = "model.model_type=FoundationStereo"
METRIC = "model.model_type=MetricDepthAnything"


@pytest.mark.parametrize(
    ("overrides", "source", "model", "key"),
    [
        ((), None, None, "ffs"),
        ((), {"model": {"corr_radius": 3}}, None, "ffs"),
        ((), {"model": {"model_type": "FoundationStereo"}}, None, "fs"),
        ((FS,), None, None, "fs"),
        (("+model.model_type='FoundationStereo'",), None, None, "fs"),
        ((FS,), {"model": {"model_type": "FastFoundationStereo"}}, None, "fs"),
        ((), None, "fs", "fs"),
        ((), {"train": {"num_epochs": 2}}, "fs", "fs"),
        ((METRIC,), None, None, "mono_metric"),
        ((), {"model": {"model_type": "MetricDepthAnythingV2"}}, None, "mono_metric"),
        ((), {"model": {"model_type": "RelativeDepthAnything"}}, None, "mono_relative"),
    ],
)
def test_the_model_is_the_one_asked_for_else_the_one_the_spec_names(
    overrides: tuple[str, ...], source: Any, model: str | None, key: str
) -> None:
    spec = load(*overrides, source=source, model=model)
    assert type(spec) is MODELS[key].spec_class
    usual = {"ffs": "MultiStepLR", "fs": "PolynomialLR"}.get(key, "LambdaLR")
    assert spec.train.optim.lr_scheduler == usual
    assert spec.model.model_type == MODELS[key].model_type


def test_a_spec_says_which_model_it_names(tmp_path: Path) -> None:
    file = write(tmp_path / "spec.yaml", "model: {model_type: FoundationStereo}\n")
    assert named_model(file) == "fs"
    assert named_model(file, ["model.model_type=FastFoundationStereo"]) == "ffs"
    assert named_model({"model": None}) is None
    assert named_model({"model": {"model_type": "ResNet"}}) is None


def test_values_given_for_a_model_are_its_own() -> None:
    values = given_values({}, ["model.variant=public"], action="train", model="fs")
    assert values == {"model.variant": "public"}


def test_short_names_are_those_of_the_model() -> None:
    assert "unknown key" in mistakes("depth_anything_ptm=a.pth")[0]
    backbone = load("depth_anything_ptm=a.pth", model="fs").model.stereo_backbone
    assert backbone.depth_anything_v2_pretrained_path == "a.pth"


@pytest.mark.parametrize(
    ("model", "path", "said"),
    [
        ("fs", "model.mask_widths", "belongs to ffs, not to fs"),
        ("fs", "model.gwc_feature_normalize", "belongs to ffs, not to fs"),
        ("fs", "model.mono_backbone", "belongs to mono_metric and mono_relative, not to fs"),
        ("ffs", "model.variant", "belongs to fs, not to ffs"),
        ("ffs", "model.attention_layout", "belongs to fs, not to ffs"),
        ("mono_metric", "model.corr_radius", "belongs to ffs and fs, not to mono_metric"),
        ("mono_metric", "train.relative_loss", "belongs to mono_relative, not to mono_metric"),
        ("mono_relative", "dataset.max_disparity", "belongs to ffs and fs, not to mono_relative"),
        ("mono_relative", "export.valid_iters", "belongs to ffs and fs, not to mono_relative"),
        ("mono_relative", "convert.nocc_extension", "belongs to ffs and fs, not to mono_relative"),
    ],
)
def test_a_key_of_another_network_is_refused(model: str, path: str, said: str) -> None:
    (mistake,) = mistakes(f"{path}=1", model=model)
    assert said in mistake


def test_defaults_of_a_section_are_those_of_the_model() -> None:
    spec = load(model="fs", action="export")
    assert isinstance(spec.model, FoundationStereoSpec)
    assert (spec.export.input_height, spec.export.batch_size, spec.export.valid_iters) == (
        320,
        -1,
        22,
    )
    assert spec.dataset.max_disparity == 416
    assert MODELS["fs"].spec_class().gen_trt_engine.batch_size == -1
    assert ExperimentSpec().export.valid_iters == 8


def test_a_mono_section_has_its_own_defaults() -> None:
    metric, relative = (load(model=f"mono_{kind}") for kind in ("metric", "relative"))
    assert (metric.dataset.min_depth, metric.dataset.max_depth) == (0.001, 10.0)
    assert (relative.dataset.min_depth, relative.dataset.max_depth) == (None, None)
    assert metric.dataset.train_dataset.augmentation.crop_size == [518, 518]
    assert load(METRIC, "train.precision=bf16").train.precision == "bf16"
    for spec in (metric, relative):
        assert (spec.export.input_height, spec.export.input_width, spec.export.batch_size) == (
            518,
            518,
            -1,
        )
        assert (spec.train.optim.lr, spec.train.optim.head_lr_ratio) == (5e-6, 10.0)


def test_sources_of_a_mono_spec_are_mono_classes() -> None:
    source = "[{dataset_name: nyudv2, data_file: a}]"
    spec = load(METRIC, f"dataset.train_dataset.data_sources={source}")
    assert spec.dataset.train_dataset.data_sources == [MonoSource("NYUDV2", "a")]
    (mistake,) = mistakes(METRIC, "dataset.val_dataset.data_sources=[{data_file: a}]")
    assert "dataset_name is missing. Dataset names: MetricMonoDataset, NYUDV2, Cre" in mistake


# -- merging --------------------------------------------------------------------------------------


def test_later_layers_win_and_lists_replace(tmp_path: Path) -> None:
    file = write(
        tmp_path / "any_name.yaml",
        "train:\n  num_epochs: 7\n  optim:\n    lr: 1e-4\n    lr_steps: [5]\n",
    )

    spec = load("train.optim.lr=3e-4", source=file)

    assert spec.train.num_epochs == 7  # file over template
    assert spec.train.optim.lr == 3e-4  # override over file
    assert spec.train.optim.lr_steps == [5]
    assert spec.train.log_every_n_steps == 1  # template over dataclass
    assert spec.train.seed == 1234


def test_overrides_reach_list_items_and_accept_plus_and_short_names() -> None:
    spec = load(
        "dataset.train_dataset.data_sources.0.data_file=b",
        "dataset.train_dataset.data_sources.1={dataset_name: genericdataset, data_file: c}",
        "train.optim.lr_steps.0=9",
        "+train.seed=5",
        "num_epochs=4",
        "train.results_dir=null",
    )

    sources = spec.dataset.train_dataset.data_sources
    assert [(s.dataset_name, s.data_file) for s in sources or []] == [
        ("GenericDataset", "b"),
        ("GenericDataset", "c"),
    ]
    assert spec.train.optim.lr_steps == [9]
    assert (spec.train.seed, spec.train.num_epochs, spec.train.results_dir) == (5, 4, None)


def test_engine_short_name_means_the_section_of_the_verb() -> None:
    spec = load("evaluate.checkpoint=null", "trt_engine=a.rtx", action="evaluate")
    assert spec.evaluate.trt_engine == "a.rtx"


def test_the_caller_s_mapping_is_not_changed() -> None:
    entry = {"dataset_name": "middlebury", "data_file": "a"}
    source = {"dataset": {"val_dataset": {"data_sources": [entry]}}}

    spec = load(source=source)

    assert entry["dataset_name"] == "middlebury"
    assert spec.dataset.val_dataset.data_sources is not None
    assert spec.dataset.val_dataset.data_sources[0].dataset_name == "Middlebury"


def test_references_are_filled_in() -> None:
    spec = load("train.pretrained_model_path=${results_dir}/a.pth")
    assert spec.train.pretrained_model_path == "out/a.pth"


def test_open_and_empty_values_of_optional_fields_are_null() -> None:
    spec = load("evaluate.trt_engine=???", "train.pretrained_model_path=''")
    assert spec.evaluate.trt_engine is None
    assert spec.train.pretrained_model_path is None


@pytest.mark.parametrize(("text", "size"), [("4GiB", 4), ("8 gib", 8), ("512MiB", 1), ("6", 6)])
def test_workspace_accepts_units(text: str, size: int) -> None:
    spec = load(f"gen_trt_engine.tensorrt.workspace_size={text}")
    assert spec.gen_trt_engine.tensorrt.workspace_size == size


def test_text_numbers_are_converted_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        spec = load(source={"train": {"optim": {"lr": "1e-5"}}})
    assert spec.train.optim.lr == 1e-5
    assert "train.optim.lr: the text '1e-5' is read as number" in caplog.text


def test_templates_keep_open_values() -> None:
    spec = template("ffs", "export")
    assert spec["results_dir"] == "???"
    assert spec["export"]["checkpoint"] == "???"
    assert spec["model"]["cost_agg_conv_patch_padding"] == [0, 0, 0]
    assert len(spec["model"]) == 28


# -- hints of interface.md 1.2 --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"model": {"stereo_backbone": {"encoder": "vits"}}}, "belongs to model.encoder"),
        ({"model": {"mono_backbone": {"encoder": "vits"}}}, "belongs to model.encoder"),
        ({"dataset": {"val_dataset": {"num_workers": 2}}}, "The name is workers"),
        ({"automl_policy": "on"}, "automl train … --automl-policy"),
        ({"workflow": "x"}, "a run argument of `automl train`|A run argument of `automl train`"),
        ({"train": {"lr": 1.0}}, "The key is train.optim.lr"),
        ({"train": {"lr_scheduler": "StepLR"}}, "The key is train.optim.lr_scheduler"),
        ({"model": {"variant": "tao"}}, "model.variant: belongs to fs, not to ffs"),
        ({"model": {"mono_backbone": {"use_bn": True}}}, "mono_metric and mono_relative"),
        ({"train": {"silog_lambda": 0.5}}, "belongs to mono_metric, not to ffs"),
        ({"model": {"corr_radis": 4}}, "unknown key. Nearest: model.corr_radius"),
        ({"train": {"num_epoch": 4}}, "Nearest: train.num_epochs"),
        ({"trian": {"num_epochs": 4}}, "Nearest: train"),
        ({"weight_decay": 0.1}, "Nearest: train.optim.weight_decay"),
    ],
)
def test_hint_for_an_unknown_key(source: dict[str, Any], said: str) -> None:
    (mistake,) = mistakes(source=source)
    assert any(part in mistake for part in said.split("|"))


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"data_file": "a"}, "data_sources.1: dataset_name is missing"),
        ({"dataset_name": "Middlebury"}, "data_sources.1: data_file is missing"),
        ({"dataset_name": "Kitty", "data_file": "a"}, "data_sources.1.dataset_name: got Kitty"),
        ("a.txt", "data_sources.1: got 'a.txt', needs dataset_name and data_file"),
    ],
)
def test_hint_for_a_data_source(entry: object, said: str) -> None:
    source = {"dataset": {"val_dataset": {"data_sources": [*PAIRS, entry]}}}
    (mistake,) = mistakes(source=source)
    assert said in mistake
    assert "GenericDataset, IsaacRealDataset" in mistake


def test_an_unknown_key_of_a_data_source_is_named() -> None:
    source = {"dataset": {"val_dataset": {"data_sources": [{**PAIRS[0], "file": "a"}]}}}
    (mistake,) = mistakes(source=source)
    assert "data_sources.0.file: unknown key. Keys: dataset_name, data_file" in mistake


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("train.optim.lr_scheduler=MultiStep", "lr_scheduler", "MultiStepLR"),
        ("train.optim.monitor_name=val/loss", "monitor_name", "val_loss"),
    ],
)
def test_other_spellings_are_accepted(override: str, path: str, value: str) -> None:
    assert getattr(load(override).train.optim, path) == value


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.precision=bf16", "fp32 or fp16"),
        ("gen_trt_engine.tensorrt.data_type=bf16", "no bf16 engine"),
        ("export.format=xdl", "not a public format"),
        ("train.optim.optimizer=adamw", "Did you mean AdamW"),
    ],
)
def test_hint_for_a_value(override: str, said: str) -> None:
    (mistake,) = mistakes(override)
    assert said in mistake


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("FoundationStereo", "fs"),
        ("FastFoundationStereo", "ffs"),
        ("depth_net_stereo", "fs or ffs"),
        ("depth_net_mono", "mono_metric or mono_relative"),
        ("metric", "mono_metric"),
        ("relative", "mono_relative"),
        ("MetricDepthAnythingV2", "mono_metric"),
    ],
)
def test_hint_for_a_model_key(name: str, meant: str) -> None:
    with pytest.raises(SpecError, match=f"{name} is not a model key. Write {meant}$"):
        template(name, "train")


def test_a_name_that_means_no_model_is_answered_with_all_of_them() -> None:
    with pytest.raises(SpecError, match=r"resnet is not a model key.*\(model key mono_relative\)"):
        template("resnet", "train")


# -- mistakes -------------------------------------------------------------------------------------


def test_all_mistakes_are_in_one_error_with_their_lines(tmp_path: Path) -> None:
    file = write(
        tmp_path / "bad.yaml",
        "model:\n"
        "  corr_radius: 12\n"
        "  corr_radis: 3\n"
        "  max_disparity: 100\n"
        "dataset:\n"
        "  val_dataset:\n"
        "    data_sources:\n"
        "      - {dataset_name: Middlebury, data_file: a}\n"
        "      - {data_file: b}\n"
        "train:\n"
        "  num_epochs: many\n"
        "  seed: 1\n"
        "  seed: 2\n",
    )

    with pytest.raises(SpecError) as caught:
        load("train.optim.momentum=2", source=file)

    assert caught.value.exit_code == 2
    places = {problem.key: problem.source for problem in caught.value.problems}
    assert places == {
        "model.corr_radius": f"{file}:2",
        "model.corr_radis": f"{file}:3",
        "model.max_disparity": f"{file}:4",
        "dataset.val_dataset.data_sources.1": f"{file}:9",
        "train.num_epochs": f"{file}:11",
        "train.seed": f"{file}:13",
        "train.optim.momentum": "command line",
    }
    assert str(caught.value).count("\n") == 6
    assert "model.corr_radius: got 12, allowed integer 2..8" in str(caught.value)


def test_the_error_survives_pickling() -> None:
    with pytest.raises(SpecError) as caught:
        load("train.seed=x")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.seed=1.5", "got 1.5, allowed integer >= -1"),
        ("train.seed=true", "got True, allowed integer"),
        ("train.seed=null", "got None, allowed integer"),
        ("train.seed=???", "left open"),
        ("train.deterministic=7.5", "allowed true or false"),
        ("train.pretrained_model_path=true", "got True, allowed text or null"),
        ("train.optim.lr=.nan", "got nan, allowed number 1e-09..10000"),
        ("train.optim.lr=[1]", "allowed number"),
        ("train.optim.lr_decay=0", "got 0.0, allowed number > 0 and <= 1"),
        ("train.optim.weight_decay=1e-12", "allowed number 0 or 1e-09..1"),
        ("model.cv_group=5", "got 5, allowed 4, 8, 16"),
        ("model.mask_widths=[32]", "allowed a list of 2 integer values >= 1"),
        ("model.mask_widths=[[32], 16]", "allowed a list of 2 integer values"),
        ("model.mask_widths=3", "allowed a list of 2 integer values"),
        ("gen_trt_engine.compute_capabilities=[SM70]", "a list of SM75, SM80"),
        ("dataset.val_dataset.data_sources=a.txt", "a list of {dataset_name, data_file}"),
        ("train.optim=3", "needs keys below it"),
        ("train.optim.lr_steps.3=3", "no item 3. The list has 1 items"),
        ("train.optim.lr_steps.0.x=3", "item 0 has no keys"),
        ("verbose", "is no override. Write key.path=value"),
        ("train.seed=[", "is not valid YAML"),
        ("evaluate.checkpoint=${nowhere}", "cannot be resolved"),
    ],
)
def test_a_wrong_value_is_refused(override: str, said: str) -> None:
    (mistake,) = mistakes(override)
    assert said in mistake
    assert mistake.startswith("command line: ")


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("model.corr_radius=12", "8"),
        ("model.corr_radius=1", "2"),
        ("model.corr_levels=3", "2"),
        ("model.n_gru_layers=2", "1"),
        ("model.n_downsample=3", "2"),
        ("model.cv_group=12", "8"),
        ("model.volume_dim=80", "64"),
        ("model.max_disparity=1000", "832"),
        ("model.spx_gru_out=8", "9"),
        ("model.train_iters=0", "1"),
        ("model.mask_widths=[0, 16]", "[1, 16]"),
        ("model.cv_group=6", "4"),
        ("model.mask_widths=[20]", "[20, 16]"),
        ("model.mask_widths=[20, 16, 8]", "[20, 16]"),
        ("train.optim.lr=0", "1e-09"),
    ],
)
def test_a_value_outside_its_range_is_told_the_nearest_valid_one(
    override: str, nearest: str
) -> None:
    (mistake,) = mistakes(override)
    assert mistake.endswith(f". The nearest is {nearest}")


@pytest.mark.parametrize("value", ["on", "off", "auto"])
def test_a_word_that_yaml_reads_as_a_truth_value_stays_a_word(value: str, tmp_path: Path) -> None:
    assert load(f"dataset.cache={value}").dataset.cache == value
    assert load(f"dataset.cache='{value}'").dataset.cache == value
    (tmp_path / "spec.yaml").write_text(f"dataset:\n  cache: {value}\n")
    assert load(source=tmp_path / "spec.yaml").dataset.cache == value


@pytest.mark.parametrize("value", ["0", "1e-9"])
def test_zero_turns_weight_decay_off(value: str) -> None:
    assert load(f"train.optim.weight_decay={value}").train.optim.weight_decay == float(value)


@pytest.mark.parametrize("action", list(ACTIONS))
def test_open_values_of_the_verb_are_listed(action: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(None, action=action)
    keys = {problem.key.removesuffix(".0.data_file") for problem in caught.value.problems}
    assert keys >= {"results_dir", *ACTIONS[action].required} - {f"{action}.results_dir"}
    assert all(p.source == f"template ffs/{action}" for p in caught.value.problems)


def test_the_columns_of_convert_are_open_and_an_empty_list_leaves_one_out() -> None:
    left_open = mistakes("convert.right_dir_pattern=???", action="convert")
    assert left_open == [
        "command line: convert.right_dir_pattern: left open. Give a list of text values"
    ]
    mono = load("convert.right_dir_pattern=[]", action="convert")
    assert mono.convert.right_dir_pattern == []
    (unset,) = mistakes("convert.image_dir_pattern=[]", action="convert")
    assert "convert.image_dir_pattern: required by convert" in unset


@pytest.mark.parametrize("ratio", ["-0.01", "1.01", ".nan"])
def test_the_train_share_of_convert_lies_between_0_and_1(ratio: str) -> None:
    (mistake,) = mistakes(f"convert.split_ratio={ratio}", action="convert")
    assert "convert.split_ratio: got" in mistake
    assert "allowed number 0..1" in mistake


def test_a_pattern_of_convert_is_a_list() -> None:
    (mistake,) = mistakes("convert.image_dir_pattern=left", action="convert")
    assert "got 'left', allowed a list of text values" in mistake


def test_open_values_of_other_verbs_do_not_matter() -> None:
    assert load(source={"convert": {"data_root": "???"}}).convert.data_root == "???"
    assert load(source={"export": {"checkpoint": "???"}}).export.checkpoint == "???"


@pytest.mark.parametrize(
    ("text", "said"),
    [("train: [", "is not valid YAML"), ("- a\n", "holds no mapping"), ("", None)],
)
def test_a_file_that_is_no_spec_is_refused(tmp_path: Path, text: str, said: str | None) -> None:
    file = write(tmp_path / "spec.yaml", text)
    if said is None:
        load(source=file)
    else:
        assert said in mistakes(source=file)[0]


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "cannot be read" in mistakes(source=tmp_path / "none.yaml")[0]


def test_an_unknown_verb_is_refused() -> None:
    with pytest.raises(SpecError, match="prune: unknown, allowed convert, train, evaluate"):
        load_spec(None, action="prune")


# -- round trip -----------------------------------------------------------------------------------


def free_nodes(model: Model) -> list[Node]:
    """The fields that no rule ties to another."""
    bound = {key for rule in RULES[model.key] if not rule.warning for key in rule.keys}
    return [node for node in model.nodes if node.kind != "section" and node.path not in bound]


def values_of(node: Node, model: str) -> st.SearchStrategy[Any]:
    facts = node.facts
    low = 1 if facts.low is None else facts.low
    high = low + 1000 if facts.high is None else min(facts.high, low + 1e6)
    scalars: dict[str, st.SearchStrategy[Any]] = {
        "bool": st.booleans(),
        "int": st.integers(int(low), int(high)),
        "float": st.floats(low, high, exclude_min=facts.exclusive_low),
        "string": st.text("abc/._- 19é", min_size=1).map(lambda text: f"p{text}"),
    }
    if node.item == "section":
        layers = [{"module_name": "*", "weights": {"dtype": "int8"}}]
        values = st.just(layers if node.path == "quantize.layers" else samples(model))
    elif node.kind == "list":
        least = 0 if facts.item_low is None else facts.item_low
        items = scalars | {"int": st.integers(int(least), 512), "float": st.floats(least, 2.0)}
        item = st.sampled_from(node.choices) if node.choices else items[str(node.item)]
        size = facts.length or 2
        unique = bool(node.choices)
        values = st.lists(item, min_size=size, max_size=size, unique=unique)
    else:
        values = st.sampled_from(node.choices) if node.choices else scalars[node.kind]
    return st.none() | values if node.nullable else values


def values_for(model: Model) -> st.SearchStrategy[dict[str, Any]]:
    """Values of some free fields by path."""
    nodes = st.lists(
        st.sampled_from(free_nodes(model)), max_size=25, unique_by=lambda node: node.path
    )
    return nodes.flatmap(
        lambda chosen: st.fixed_dictionaries(
            {node.path: values_of(node, model.key) for node in chosen}
        )
    )


VALIDATORS = {key: Draft202012Validator(experiment_schema(model)) for key, model in MODELS.items()}


@pytest.mark.parametrize("key", MODELS)
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_what_the_loader_accepts_the_schema_accepts_and_loads_again(
    key: str, data: st.DataObject
) -> None:
    values = data.draw(values_for(MODELS[key]))
    source: dict[str, Any] = {}
    for path, value in {
        "dataset.train_dataset.data_sources": samples(key),
        "results_dir": "out",
        **values,
    }.items():
        *parents, name = path.split(".")
        level = source
        for parent in parents:
            level = level.setdefault(parent, {})
        level[name] = value
    if source["dataset"]["train_dataset"]["data_sources"] is None:
        source["dataset"]["train_dataset"]["data_sources"] = samples(key)

    spec = load_spec(source, action="train", model=key)

    plain = to_dict(spec)
    assert [error.message for error in VALIDATORS[key].iter_errors(plain)] == []
    assert load_spec(plain, action="train") == spec
