"""Rules between fields, hints for well-known mistakes, and other spellings, all as rows.

A rule looks at one loaded experiment and says what is wrong with it, or nothing. Ranges and types
of a single field are not rules: they are declared with the field.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from stereo.errors import SpecProblem
from stereo.spec.data import (
    METRIC_DATASETS,
    MONO_AUGMENTATION,
    NYU_DATASETS,
    RELATIVE_DATASETS,
    MonoAugmentSpec,
    MonoDatasetSpec,
    MonoSource,
)
from stereo.spec.experiment import ACTIONS, ExperimentSpec
from stereo.spec.fields import MISSING, leaves
from stereo.spec.models import BP2_BLOCK, MODELS, Model
from stereo.spec.networks import LEVEL_WIDTHS, QUARTER_WIDTHS, VARIANT_LAYOUTS

STRIDE = 32  # px, stereo: the encoder and the hourglass halve the image five times
PATCH = 14  # px, mono: side of the patches that the encoder reads

KEY_HINTS: Mapping[str, str] = {
    "model.stereo_backbone.encoder": "encoder belongs to model.encoder",
    "model.mono_backbone.encoder": "encoder belongs to model.encoder",
    "train.lr": "the key is train.optim.lr",
    "train.lr_scheduler": "the key is train.optim.lr_scheduler",
}
"""Unknown path -> what to write instead."""

NAME_HINTS: Mapping[str, str] = {
    "num_workers": "the name is workers",
    "automl_policy": "a run argument of `automl train`, never a spec field: use"
    " `automl train … --automl-policy auto|on|off`",
    "workflow": "a run argument of `automl train`, never a spec field: use"
    " `automl train … --automl-policy auto|on|off`",
}
"""Last name of an unknown path -> what to write instead."""


def owner(path: str) -> str:
    """Keys of the models that have a field or section, "" where none has it."""
    owners = [key for key, model in MODELS.items() if any(n.path == path for n in model.nodes)]
    return " and ".join(owners)


TYPE_ALIASES: Mapping[str, str] = {
    "float8_e4m3fn": "fp8_e4m3fn",
    "float8_e5m2": "fp8_e5m2",
}
"""Other spellings of the types in `quantize.layers`."""

VALUE_ALIASES: Mapping[tuple[str, str], str] = {
    ("train.optim.lr_scheduler", "MultiStep"): "MultiStepLR",
    ("train.optim.monitor_name", "val/loss"): "val_loss",
    ("train.optim.monitor_name", "train/loss"): "train_loss",
    ("model.model_type", "MetricDepthAnythingV2"): "MetricDepthAnything",
    ("model.model_type", "RelativeDepthAnythingV2"): "RelativeDepthAnything",
}
"""Other spellings that are accepted."""

VALUE_HINTS: Mapping[tuple[str, str], str] = {
    ("train.precision", "bf16"): "The stereo networks train in fp32 or fp16",
    ("gen_trt_engine.tensorrt.data_type", "bf16"): "The stereo networks have no bf16 engine",
    ("export.format", "xdl"): "xdl is not a public format",
    **{
        (f"dataset.{split}_dataset.augmentation.do_flip", word): f"Write true, and {other}: 0"
        for split in ("train", "val", "test", "infer")
        for word, other in (("h", "v_flip_prob"), ("v", "h_flip_prob"))
    },
}
"""Values that are refused with more than the list of options."""

_MODEL_WORDS: Mapping[str, str] = {
    "depthnetstereo": "fs or ffs",
    "stereo": "fs or ffs",
    "depthnetmono": "mono_metric or mono_relative",
    "mono": "mono_metric or mono_relative",
    "metric": "mono_metric",
    "relative": "mono_relative",
    "foundationstereo": "fs",
    "fastfoundationstereo": "ffs",
    "metricdepthanything": "mono_metric",
    "metricdepthanythingv2": "mono_metric",
    "relativedepthanything": "mono_relative",
    "relativedepthanythingv2": "mono_relative",
}


def model_key_fault(name: str) -> tuple[str, str] | None:
    """What is wrong with a model key and the remedy; None when it names a model that exists."""
    if name in MODELS:
        return None
    meant = _MODEL_WORDS.get("".join(c for c in name.lower() if c.isalnum()))
    remedy = f"Write {meant}" if meant else f"Models of this version: {_models_in_words()}"
    return f"{name} is not a model key", remedy


def _models_in_words() -> str:
    return ", ".join(f"{model.model_type} (model key {key})" for key, model in MODELS.items())


Check = Callable[[ExperimentSpec], str | None]


@dataclass(frozen=True)
class Rule:
    """One relation between fields.

    Attributes:
        keys: fields it reads; the first is where a mistake is reported.
        broken: says what is wrong, or returns None.
        remedy: what to do about it.
        actions: verbs it is checked for; empty: every verb.
        warning: broken is worth a warning only.
    """

    keys: tuple[str, ...]
    broken: Check
    remedy: str
    actions: tuple[str, ...] = ()
    warning: bool = False


def value_at(spec: ExperimentSpec, path: str) -> Any:
    """The value at a dotted path of a spec."""
    value: Any = spec
    for name in path.split("."):
        value = getattr(value, name)
    return value


def is_open(value: object) -> bool:
    """Whether a value is still to be given."""
    return value is None or value == MISSING


def _said_if(wrong: bool, problem: str) -> str | None:
    return problem if wrong else None


def multiple_fault(value: int | list[int] | None, factor: int) -> str | None:
    """What is wrong with a number or the numbers of a list that must be multiples of `factor`."""

    def nearest(number: int | None) -> int | None:
        if number is None or number % factor == 0:
            return number
        return max(factor, (number + factor // 2) // factor * factor)

    valid = [nearest(n) for n in value] if isinstance(value, list) else nearest(value)
    return _said_if(
        valid != value, f"got {value}, needs a multiple of {factor}; the nearest is {valid}"
    )


def _multiple(path: str, factor: int, remedy: str) -> Rule:
    """The number or all numbers of the list at `path` are multiples of `factor`; null is fine."""

    def broken(spec: ExperimentSpec) -> str | None:
        value = value_at(spec, path)
        return multiple_fault(value, factor)

    return Rule((path,), broken, remedy)


def _sides(factor: int, *paths: str) -> tuple[Rule, ...]:
    return tuple(_multiple(p, factor, "The encoder needs both sides so") for p in paths)


def _not_falling(*paths: str) -> Rule:
    """The numbers at `paths` do not fall from one to the next."""

    def broken(spec: ExperimentSpec) -> str | None:
        values = [value_at(spec, path) for path in paths]
        names = [path.rpartition(".")[2] for path in paths]
        given = ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))
        return _said_if(values != sorted(values), f"needs {' <= '.join(names)}, got {given}")

    return Rule(paths, broken, "Change one of them")


def _pairs_not_falling(path: str) -> Rule:
    """The list at `path` holds [low, high] once or several times."""

    def broken(spec: ExperimentSpec) -> str | None:
        value: Sequence[float] = value_at(spec, path)
        wrong = any(low > high for low, high in zip(value[::2], value[1::2], strict=True))
        return _said_if(wrong, f"got {value}, needs low <= high")

    return Rule((path,), broken, "Exchange the two numbers")


def _batch(path: str) -> Rule:
    return Rule(
        (path,),
        lambda spec: _said_if(value_at(spec, path) == 0, "got 0"),
        "Use -1 or a number from 1",
    )


def _both_sides(action: str) -> Rule:
    height, width = f"{action}.input_height", f"{action}.input_width"

    def broken(spec: ExperimentSpec) -> str | None:
        values = value_at(spec, height), value_at(spec, width)
        wrong = (values[0] is None) != (values[1] is None)
        return _said_if(wrong, f"got height {values[0]} and width {values[1]}")

    return Rule((height, width), broken, "Set both or neither")


def _one_source(action: str) -> Rule:
    checkpoint, engine = f"{action}.checkpoint", f"{action}.trt_engine"

    def broken(spec: ExperimentSpec) -> str | None:
        unset = [is_open(value_at(spec, path)) for path in (checkpoint, engine)]
        which = "neither it nor" if all(unset) else "both it and"
        verb = "is" if all(unset) else "are"
        return _said_if(unset[0] == unset[1], f"{which} {engine} {verb} set")

    return Rule((checkpoint, engine), broken, "Set exactly one of them", actions=(action,))


def _kinds_of_files(action: str) -> tuple[Rule, Rule]:
    """Weights end in .pth; graphs and engines do not."""
    checkpoint, engine = f"{action}.checkpoint", f"{action}.trt_engine"

    def is_weights(spec: ExperimentSpec, path: str) -> bool | None:
        value = value_at(spec, path)
        return None if is_open(value) else str(value).endswith(".pth")

    def no_weights(spec: ExperimentSpec) -> str | None:
        wrong = is_weights(spec, checkpoint) is False
        return _said_if(wrong, f"got {value_at(spec, checkpoint)}, weights end in .pth")

    def no_engine(spec: ExperimentSpec) -> str | None:
        return _said_if(bool(is_weights(spec, engine)), f"got weights, {value_at(spec, engine)}")

    return (
        Rule((checkpoint,), no_weights, f"Set {engine} for a graph or an engine", (action,)),
        Rule((engine,), no_engine, f"Set {checkpoint} for weights", (action,)),
    )


def _tile_overlap(action: str) -> Rule:
    """Tiles, which have the size of the crop, are larger than their overlap."""
    split = ACTIONS[action].splits[0]
    overlap, size = "train.tile_min_overlap", f"dataset.{split}.augmentation.crop_size"

    def broken(spec: ExperimentSpec) -> str | None:
        given, tile = value_at(spec, overlap), value_at(spec, size)
        wrong = any(least >= side for least, side in zip(given, tile, strict=True))
        return _said_if(
            spec.train.inference_tile and wrong, f"got {given}, not below {size}, which is {tile}"
        )

    remedy = "Use less overlap or larger tiles"
    return Rule((overlap, size, "train.inference_tile"), broken, remedy, actions=(action,))


def _two_passes(action: str) -> tuple[Rule, Rule]:
    """Two passes need a network that can start from a map, and the whole image."""
    key, engine = f"{action}.hierarchical", f"{action}.trt_engine"

    def no_start(spec: ExperimentSpec) -> str | None:
        wrong = value_at(spec, key) and not is_open(value_at(spec, engine))
        return _said_if(wrong, f"{engine} is set, and a graph has no input for the first pass")

    def tiles(spec: ExperimentSpec) -> str | None:
        wrong = value_at(spec, key) and spec.train.inference_tile
        return _said_if(wrong, "train.inference_tile is set, and its passes see whole images")

    return (
        Rule((key, engine), no_start, f"Set {action}.checkpoint, or remove {key}"),
        Rule((key, "train.inference_tile"), tiles, "Set one of them"),
    )


_PROFILE = [
    [f"gen_trt_engine.{end}_{side}" for end in ("min", "opt", "max")]
    for side in ("height", "width")
]
_STATIC_SIZE = Rule(
    ("export.dynamic_hw",),
    lambda spec: _said_if(
        spec.export.dynamic_hw,
        f"{spec.model.model_type} computes its position table for one size: height and width of the"
        " graph stay fixed",
    ),
    "Remove the key",
    warning=True,
)


def _whole_profile(spec: ExperimentSpec) -> str | None:
    missing = [path for side in _PROFILE for path in side if is_open(value_at(spec, path))]
    names = ", ".join(path.rpartition(".")[2] for path in missing)
    return _said_if(0 < len(missing) < 6, f"{names} not set; a profile needs all six")


def _rising(paths: Sequence[str]) -> Rule:
    """The sizes of a profile do not fall; what is missing is said by another rule."""
    rule = _not_falling(*paths)

    def broken(spec: ExperimentSpec) -> str | None:
        return None if any(is_open(value_at(spec, p)) for p in paths) else rule.broken(spec)

    return Rule(rule.keys, broken, rule.remedy)


def _one_device(action: str) -> tuple[Rule, ...]:
    """One device on one machine; the list has one index."""
    count, ids, nodes = (f"{action}.{name}" for name in ("num_gpus", "gpu_ids", "num_nodes"))

    def differ(spec: ExperimentSpec) -> str | None:
        given, wanted = len(value_at(spec, ids)), value_at(spec, count)
        return _said_if(given != wanted, f"got {given} devices, but {count} is {wanted}")

    return (
        *(
            Rule(
                (path,),
                lambda spec, path=path: _said_if(
                    value_at(spec, path) != 1, f"got {value_at(spec, path)}"
                ),
                f"This version runs {action} on one device of one machine",
            )
            for path in (count, nodes)
        ),
        Rule((ids, count), differ, "Give one index per device"),
    )


def _output(action: str) -> Rule:
    own = f"{action}.results_dir"

    def broken(spec: ExperimentSpec) -> str | None:
        wrong = is_open(spec.results_dir) and is_open(value_at(spec, own))
        return _said_if(wrong, f"not set, and {own} is not set either")

    return Rule(("results_dir", own), broken, "Set one of them", actions=(action,))


def _same_as(path: str, other: str, given: Check) -> Rule:
    return Rule((path, other), given, "Change one of them")


def _widths_are_positive(path: str, least: int = 1) -> Rule:
    def broken(spec: ExperimentSpec) -> str | None:
        value = value_at(spec, path)
        return _said_if(
            value is not None and value < least,
            f"got {value}, needs at least {least}; the nearest is {least}",
        )

    return Rule((path,), broken, "Use a number of channels")


def _state_width(spec: ExperimentSpec) -> str | None:
    if not spec.model.hidden_dims:
        return None  # said by another rule
    hidden = spec.model.hidden_dims[0]
    gru = spec.model.gru_hidden or hidden
    context = (spec.model.cnet_conv04_widths or [hidden])[0]
    return _said_if(
        gru != context,
        f"got {gru}, but the first context head has {context}; the nearest is {context}",
    )


def _enters_upsampling(path: str, index: int, which: str) -> Rule:
    """The second width of a pair is one of the widths that the final upsampling takes in."""

    def broken(spec: ExperimentSpec) -> str | None:
        given: list[int] = value_at(spec, path)
        needed: list[int] = [given[0], value_at(spec, "model.spx_2_gru_widths")[index]]
        return _said_if(
            given != needed,
            f"got {given}, the second must equal the {which} of model.spx_2_gru_widths;"
            f" the nearest is {needed}",
        )

    return _same_as(path, "model.spx_2_gru_widths", broken)


def _stands_for_nothing(path: str, other: str, words: str, width: Callable[[Any], int]) -> Rule:
    """A width of null follows from another one, which may be too small for it."""

    def broken(spec: ExperimentSpec) -> str | None:
        if value_at(spec, path) is not None or not spec.model.hidden_dims:
            return None
        wrong = width(spec.model) < 1
        return _said_if(wrong, f"got null, which is {words}, here 0; the nearest is 1")

    return Rule((path, other), broken, f"Give a number, or change {other}")


def _level_widths(widths: list[int]) -> Rule:
    """`model.hidden_dims` is the one value for which the network is defined."""

    def broken(spec: ExperimentSpec) -> str | None:
        given = spec.model.hidden_dims
        rule = "each of the three levels has 128 channels"
        return _said_if(given != widths, f"got {given}, {rule}; the nearest is {widths}")

    remedy = "model.n_gru_layers says how many levels refine"
    return Rule(("model.hidden_dims",), broken, remedy)


def _layout_of_variant(spec: ExperimentSpec) -> str | None:
    model: Any = spec.model
    layouts = VARIANT_LAYOUTS[model.variant]
    return _said_if(
        model.attention_layout not in layouts,
        f"got {model.attention_layout}, variant {model.variant} has {', '.join(layouts)}",
    )


def _levels_of_variant(spec: ExperimentSpec) -> str | None:
    model: Any = spec.model
    return _said_if(
        model.variant == "public" and model.n_gru_layers == 1,
        "got 1, the public network refines with 2 or 3 levels; the nearest is 2",
    )


def _group_divides_width(spec: ExperimentSpec) -> str | None:
    groups, width = spec.model.cv_group, QUARTER_WIDTHS[spec.model.encoder]
    nearest = min((n for n in (4, 8, 16) if width % n == 0), key=lambda n: abs(n - groups))
    return _said_if(
        bool(width % groups),
        f"got {groups}, must divide the 1/4-scale width {width}; the nearest is {nearest}",
    )


def _inert(name: str) -> Rule:
    path = f"model.{name}"

    def broken(spec: ExperimentSpec) -> str | None:
        value = value_at(spec, path)
        wrong = value is not None and value != BP2_BLOCK[name]
        return _said_if(wrong, f"{value} has no effect: the network does not read it")

    return Rule((path,), broken, "Remove the key", warning=True)


def _unread(path: str) -> Rule:
    return Rule(
        (path,),
        lambda spec: _said_if(
            bool(value_at(spec, path)), f"{spec.model.model_type} does not read it"
        ),
        "Remove the key",
        warning=True,
    )


def _other_model(model: Model) -> Rule:
    def broken(spec: ExperimentSpec) -> str | None:
        given = spec.model.model_type
        wrong = given != model.model_type
        return _said_if(wrong, f"{given}, but the model key is {model.key}")

    return Rule(("model.model_type",), broken, f"Networks of this version: {_models_in_words()}")


def _replacements(spec: ExperimentSpec, kind: str) -> list[str]:
    return value_at(spec, f"convert.{kind}_dir_pattern")


def _unclear_patterns(spec: ExperimentSpec) -> str | None:
    patterns = spec.convert.image_dir_pattern
    wrong = "" in patterns or len(set(patterns)) < len(patterns)
    return _said_if(wrong, f"got {patterns}")


def _one_for_each_pattern(kind: str) -> Rule:
    path = f"convert.{kind}_dir_pattern"

    def broken(spec: ExperimentSpec) -> str | None:
        count, needed = len(_replacements(spec, kind)), len(spec.convert.image_dir_pattern)
        wrong = count not in (0, needed)
        return _said_if(wrong, f"got {count} strings, convert.image_dir_pattern has {needed}")

    remedy = "Give one replacement for each of its strings, or [] for no such column"
    return Rule((path, "convert.image_dir_pattern"), broken, remedy)


def _both_suffixes(kind: str) -> Rule:
    """A suffix is swapped for its like: with its dot (`.png`, `_10.png`), or bare (`png`)."""
    path, image = f"convert.{kind}_extension", "convert.image_extension"

    def broken(spec: ExperimentSpec) -> str | None:
        own, other = value_at(spec, path), spec.convert.image_extension
        if not own or not _replacements(spec, kind):
            return None
        if not other:
            return f"got {own!r}, but {image} is empty: no suffix to swap it for"
        wrong = ("." in own) != ("." in other)
        return _said_if(wrong, f"got {own!r}, but {image} is {other!r}: one lacks the dot")

    remedy = "Add the leading dot, as in .png and .pfm; empty keeps the image's suffix"
    return Rule((path, image, f"convert.{kind}_dir_pattern"), broken, remedy)


def _not_the_image(kind: str) -> Rule:
    path = f"convert.{kind}_dir_pattern"

    def broken(spec: ExperimentSpec) -> str | None:
        own = "" if kind == "right" else value_at(spec, f"convert.{kind}_extension")
        given = _replacements(spec, kind)
        wrong = bool(given) and given == spec.convert.image_dir_pattern
        wrong = wrong and own in ("", spec.convert.image_extension)
        return _said_if(wrong, "gives the path of the left image itself")

    return Rule((path, "convert.image_dir_pattern"), broken, "Give what differs in the path")


def _companion(kind: str) -> tuple[Rule, ...]:
    """Rules of one of the files beside an image: right, depth or nocc."""
    own_suffix = () if kind == "right" else (_both_suffixes(kind),)
    return (_one_for_each_pattern(kind), *own_suffix, _not_the_image(kind))


def _mask_without(kind: str) -> Check:
    def broken(spec: ExperimentSpec) -> str | None:
        wrong = bool(_replacements(spec, "nocc")) and not _replacements(spec, kind)
        return _said_if(wrong, f"convert.{kind}_dir_pattern is empty")

    return broken


def _redundant(path: str) -> Rule:
    """A file for a part of the network beside one for the whole network, which wins."""

    def broken(spec: ExperimentSpec) -> str | None:
        whole = spec.train.pretrained_model_path
        wrong = bool(whole) and bool(value_at(spec, path))
        return _said_if(wrong, f"not read: train.pretrained_model_path is set, to {whole}")

    keys = (path, "train.pretrained_model_path")
    return Rule(keys, broken, "Set one of them", actions=("train",), warning=True)


def _warm_start_lr(*weights: str) -> Rule:
    def broken(spec: ExperimentSpec) -> str | None:
        loads = any(value_at(spec, path) for path in weights)
        lr = spec.train.optim.lr
        return _said_if(loads and lr > 2e-5, f"{lr} is high for loaded weights")

    keys = ("train.optim.lr", *weights)
    return Rule(keys, broken, "Up to 2e-5 is usual", actions=("train",), warning=True)


def _data_family(name: str, networks: str) -> Rule:
    return Rule(
        ("dataset.dataset_name",),
        lambda spec: _said_if(
            spec.dataset.dataset_name != name, f"got {spec.dataset.dataset_name}"
        ),
        f"A {networks} network reads {name}",
        actions=tuple(action for action in ACTIONS if action != "convert"),  # lists of both
    )


def _only_of_pairs() -> Rule:
    """Augmentation of pairs in a mono spec, which the documents list for every model."""
    usual = MonoAugmentSpec()
    names = [field.name for field in fields(usual) if field.name not in MONO_AUGMENTATION]

    def broken(spec: ExperimentSpec) -> str | None:
        given = [value_at(spec, path) for path in _AUGMENTATIONS]
        idle = [n for n in names if any(getattr(a, n) != getattr(usual, n) for a in given)]
        return _said_if(bool(idle), f"{', '.join(idle)}: of pairs only, without effect here")

    keys = ("dataset", *(f"{path}.{name}" for path in _AUGMENTATIONS for name in names))
    return Rule(keys, broken, "Remove them", warning=True)


def _truth_of(names: tuple[str, ...], truth: str) -> tuple[Rule, ...]:
    """Every source of every split is of a class with such ground truth."""

    def rule(path: str) -> Rule:
        def broken(spec: ExperimentSpec) -> str | None:
            sources: list[MonoSource] = value_at(spec, path) or []
            others = [s.dataset_name for s in sources if s.dataset_name not in (*names, MISSING)]
            problem = f"got {', '.join(others)}; {spec.model.model_type} learns {truth}"
            return _said_if(bool(others), problem)

        return Rule((path,), broken, f"Dataset names with it: {', '.join(names)}")

    return tuple(rule(f"dataset.{split}.data_sources") for split in _SPLITS)


def _crop_of_class(spec: ExperimentSpec) -> str | None:
    given: str = value_at(spec, "dataset.eval_crop")
    data: MonoDatasetSpec = value_at(spec, "dataset")
    scored = (*(data.val_dataset.data_sources or ()), *(data.test_dataset.data_sources or ()))
    names = sorted({s.dataset_name for s in scored if s.dataset_name in NYU_DATASETS})
    wrong = given not in ("none", "nyu_eigen") and bool(names)
    return _said_if(wrong, f"{given} has no effect on {', '.join(names)}, scored in nyu_eigen")


def _depth_range(spec: ExperimentSpec) -> str | None:
    low, high = value_at(spec, "dataset.min_depth"), value_at(spec, "dataset.max_depth")
    return _said_if(low >= high, f"{low} m is not below dataset.max_depth {high} m")


def _no_metres(name: str) -> Rule:
    path = f"dataset.{name}"
    return Rule(
        (path,),
        lambda spec: _said_if(
            value_at(spec, path) is not None,
            f"got {value_at(spec, path)}, relative depth has no metres",
        ),
        "Remove the key, or use model mono_metric",
    )


def _fp16_engine(encoders: tuple[str, ...], problem: str, *, warning: bool) -> Rule:
    path = f"{_TENSORRT}.data_type"

    def broken(spec: ExperimentSpec) -> str | None:
        wrong = value_at(spec, path) == "fp16" and spec.model.encoder in encoders
        return _said_if(wrong, f"fp16 with model.encoder {spec.model.encoder}: {problem}")

    keys = (path, "model.encoder")
    return Rule(keys, broken, "Use bf16 or fp32", ("gen_trt_engine",), warning=warning)


_SPLITS = ("train_dataset", "val_dataset", "test_dataset", "infer_dataset")
_AUGMENTATIONS = tuple(f"dataset.{split}.augmentation" for split in _SPLITS)
_TENSORRT = "gen_trt_engine.tensorrt"
_BACKBONE = "model.mono_backbone.pretrained_path"
_INPUT_SIDES = tuple(
    f"{action}.input_{side}"
    for action in ("evaluate", "inference", "export")
    for side in ("height", "width")
)

STEREO_RULES: tuple[Rule, ...] = (
    _multiple("model.max_disparity", 32, "The hourglass halves the disparity axis too"),
    _multiple("model.volume_dim", 4, "The attention has 4 heads"),
    Rule(("model.cv_group", "model.encoder"), _group_divides_width, "Use a divisor"),
    Rule(
        ("model.mixed_precision", "train.precision"),
        lambda spec: _said_if(
            spec.model.mixed_precision and spec.train.precision != "fp32",
            f"train.precision {spec.train.precision} decides in training",
        ),
        "Set one of them",
        ("train",),
        warning=True,
    ),
)

NETWORK_RULES: Mapping[str, tuple[Rule, ...]] = {
    "ffs": (
        *STEREO_RULES,
        _multiple("model.concat_channel", 2, "Left and right share the channels equally"),
        _widths_are_positive("model.concat_channel", 2),
        _widths_are_positive("model.motion_encoder_final"),
        _widths_are_positive("model.gru_hidden"),
        _widths_are_positive("model.disp_head_intermediate"),
        _widths_are_positive("model.cam_mid_channels"),
        Rule(
            ("model.hidden_dims", "model.n_gru_layers"),
            lambda spec: _said_if(
                len(spec.model.hidden_dims) != 1,
                f"got {len(spec.model.hidden_dims)} widths, needs 1;"
                f" the nearest is {(spec.model.hidden_dims or [128])[:1]}",
            ),
            "FastFoundationStereo has one GRU level",
        ),
        _same_as("model.gru_hidden", "model.cnet_conv04_widths", _state_width),
        _enters_upsampling("model.mask_widths", 0, "first"),
        _enters_upsampling("model.stem_2_widths", 2, "third"),
        _stands_for_nothing(
            "model.cam_mid_channels",
            "model.cnet_conv04_widths",
            "a sixteenth of the context width",
            lambda model: (model.cnet_conv04_widths or [0, model.hidden_dims[0]])[1] // 16,
        ),
        _stands_for_nothing(
            "model.motion_encoder_final",
            "model.hidden_dims",
            "one less than the hidden width",
            lambda model: model.hidden_dims[0] - 1,
        ),
        *_sides(STRIDE, *_PROFILE[0], *_PROFILE[1]),
        *map(_rising, _PROFILE),
        Rule((*_PROFILE[0], *_PROFILE[1]), _whole_profile, "Set all of them or none"),
        _inert("disp_head_input_dim"),
        _inert("classifier_mid"),
        _inert("cost_agg_conv_patch_padding"),
        _unread("model.stereo_backbone.depth_anything_v2_pretrained_path"),
        _unread("model.stereo_backbone.use_bn"),
        _unread("model.stereo_backbone.use_clstoken"),
    ),
    "fs": (
        *STEREO_RULES,
        _STATIC_SIZE,
        _level_widths(LEVEL_WIDTHS),
        Rule(("model.attention_layout", "model.variant"), _layout_of_variant, "Use auto"),
        Rule(
            ("model.n_gru_layers", "model.variant"),
            _levels_of_variant,
            "Or set model.variant=tao",
        ),
        Rule(
            ("export.on_cpu", "export.opset_version"),
            lambda spec: _said_if(
                not spec.export.on_cpu and spec.export.opset_version == 17,
                "traced on the GPU, a graph of opset 17 breaks fp16 engines",
            ),
            "Set export.on_cpu=true or export.opset_version=16",
            actions=("export",),
            warning=True,
        ),
    ),
    "mono_metric": (
        *_truth_of(METRIC_DATASETS, "depth in m"),
        Rule(("dataset.min_depth", "dataset.max_depth"), _depth_range, "Change one of them"),
        Rule(
            ("dataset.normalize_depth",),
            lambda spec: _said_if(
                value_at(spec, "dataset.normalize_depth"), "depth scaled to 0..1 is not in m"
            ),
            "Remove the key: MetricDepthAnything learns metres",
        ),
    ),
    "mono_relative": (
        *_truth_of(RELATIVE_DATASETS, "disparity"),
        _no_metres("min_depth"),
        _no_metres("max_depth"),
    ),
}
"""What one network must obey."""

STEREO_DATA_RULES: tuple[Rule, ...] = (
    _data_family("StereoDataset", "stereo"),
    Rule(
        ("dataset.max_disparity", "model.max_disparity"),
        lambda spec: _said_if(
            spec.dataset.max_disparity != spec.model.max_disparity,
            f"{spec.dataset.max_disparity} differs from model.max_disparity"
            f" {spec.model.max_disparity}",
        ),
        "Loss and metrics use the smaller of the two",
        actions=("train", "evaluate"),
        warning=True,
    ),
    *_sides(STRIDE, *(f"{augmentation}.crop_size" for augmentation in _AUGMENTATIONS)),
    *_sides(STRIDE, *_INPUT_SIDES),
    *(rule for action in ("evaluate", "inference") for rule in _two_passes(action)),
    _warm_start_lr("train.pretrained_model_path"),
)

MONO_DATA_RULES: tuple[Rule, ...] = (
    _data_family("MonoDataset", "mono"),
    _multiple("model.mono_backbone.width", 64, "Every attention head is 64 wide"),
    _STATIC_SIZE,
    _only_of_pairs(),
    Rule(
        (
            "dataset.eval_crop",
            "dataset.val_dataset.data_sources",
            "dataset.test_dataset.data_sources",
        ),
        _crop_of_class,
        "These classes have a crop of their own",
        warning=True,
    ),
    *_sides(PATCH, *(f"{augmentation}.crop_size" for augmentation in _AUGMENTATIONS)),
    *_sides(PATCH, *_INPUT_SIDES),
    _warm_start_lr("train.pretrained_model_path", _BACKBONE),
    _fp16_engine(("vitl", "vitg"), "activations overflow", warning=False),
    _fp16_engine(("vits", "vitb"), "activations may overflow", warning=True),
)

DATA_RULES: tuple[Rule, ...] = (
    *(_not_falling(f"{a}.min_scale", f"{a}.max_scale") for a in _AUGMENTATIONS),
    *(
        _pairs_not_falling(f"{augmentation}.{name}")
        for augmentation in _AUGMENTATIONS
        for name in ("color_aug_saturation", "color_aug_hue_range", "gamma")
    ),
)
"""What the splits of every network must obey."""

TRAIN_RULES: tuple[Rule, ...] = (
    *_one_device("train"),
    Rule(
        ("train.distributed_strategy", "train.num_gpus"),
        lambda spec: _said_if(
            spec.train.distributed_strategy == "fsdp" and spec.train.num_gpus == 1,
            "got fsdp, which shards a network over several devices",
        ),
        "Use ddp",
    ),
    Rule(
        ("train.checkpoint_interval", "train.checkpoint_interval_unit", "train.num_epochs"),
        lambda spec: _said_if(
            spec.train.checkpoint_interval_unit == "epoch"
            and spec.train.checkpoint_interval > spec.train.num_epochs,
            f"{spec.train.checkpoint_interval} epochs is more than train.num_epochs"
            f" {spec.train.num_epochs}: no checkpoint would be written",
        ),
        "Use a shorter interval",
    ),
    Rule(
        ("train.validation_interval", "train.num_epochs"),
        lambda spec: _said_if(
            spec.train.validation_interval > spec.train.num_epochs,
            f"{spec.train.validation_interval} epochs is more than train.num_epochs"
            f" {spec.train.num_epochs}: nothing would be validated",
        ),
        "Use a shorter interval",
    ),
    Rule(
        ("train.optim.min_lr", "train.optim.lr", "train.optim.lr_scheduler"),
        lambda spec: _said_if(
            spec.train.optim.lr_scheduler == "CosineAnnealingLR"
            and spec.train.optim.min_lr >= spec.train.optim.lr,
            f"{spec.train.optim.min_lr} is not below train.optim.lr {spec.train.optim.lr}",
        ),
        "Use a smaller floor",
    ),
    Rule(
        ("train.optim.lr_decay", "train.optim.lr_scheduler"),
        lambda spec: _said_if(
            spec.train.optim.lr_scheduler == "PolynomialLR" and spec.train.optim.lr_decay != 0.1,
            f"{spec.train.optim.lr_decay} has no effect: the power of PolynomialLR is 1",
        ),
        "Remove the key",
        warning=True,
    ),
)

DEPLOY_RULES: tuple[Rule, ...] = (
    *(rule for action in ("evaluate", "inference") for rule in _one_device(action)),
    Rule(
        ("encryption_key",),
        lambda spec: _said_if(spec.encryption_key is not None, "checkpoints are not encrypted"),
        "Remove the key, it has no effect",
        warning=True,
    ),
    *(_one_source(action) for action in ("evaluate", "inference")),
    *(rule for action in ("evaluate", "inference") for rule in _kinds_of_files(action)),
    *(_both_sides(action) for action in ("evaluate", "inference")),
    *(_tile_overlap(action) for action in ("evaluate", "inference")),
    *(_batch(f"{a}.batch_size") for a in ("evaluate", "inference", "export", "gen_trt_engine")),
    _not_falling(*(f"{_TENSORRT}.{end}_batch_size" for end in ("min", "opt", "max"))),
    Rule(
        ("export.input_channel",),
        lambda spec: _said_if(spec.export.input_channel != 3, "got 1, the networks read RGB"),
        "Use 3, and give grey images as three equal channels",
    ),
    Rule(
        ("gen_trt_engine.compute_capabilities", f"{_TENSORRT}.data_type"),
        lambda spec: _said_if(
            "SM75" in spec.gen_trt_engine.compute_capabilities
            and spec.gen_trt_engine.backend in ("auto", "tensorrt_rtx")
            and spec.gen_trt_engine.tensorrt.data_type != "fp16",
            f"SM75 with {spec.gen_trt_engine.tensorrt.data_type}: on these GPUs TensorRT-RTX has"
            " neither float32 products and 3-D convolutions nor bfloat16",
        ),
        f"Remove SM75, or set {_TENSORRT}.data_type=fp16",
    ),
    Rule(
        (f"{_TENSORRT}.workspace_size",),
        lambda spec: _said_if(
            spec.gen_trt_engine.tensorrt.workspace_size > 64,
            f"{spec.gen_trt_engine.tensorrt.workspace_size} GiB is a very large workspace",
        ),
        "The unit is GiB, not MB",
        warning=True,
    ),
)

_TYPES_OF_BACKEND: Mapping[str, tuple[str, ...]] = {
    "onnxruntime": ("int8",),
    "torchao": ("int8", "fp8_e4m3fn", "fp8_e5m2"),
    "modelopt.pytorch": ("int8", "fp8_e4m3fn"),
    "modelopt.onnx": ("int8", "fp8_e4m3fn"),
}
_ALGORITHMS: Mapping[str, tuple[str, ...]] = {
    "onnxruntime": ("minmax", "max", "entropy", "percentile"),
    "torchao": ("minmax", "max", "entropy", "percentile"),  # has no effect, which is said
    "modelopt.pytorch": ("minmax", "max"),
    "modelopt.onnx": ("minmax", "max", "entropy"),
}
_DEVICE = re.compile(r"auto|cuda|cpu|trt|cuda:[0-9]+")
QUANTIZED_OPERATORS = ("MatMul", "Gemm", "Conv")


def _mode_of_backend(spec: ExperimentSpec) -> str | None:
    section = spec.quantize
    only = {"torchao": "weight_only_ptq", "onnxruntime": section.mode}.get(
        section.backend, "static_ptq"
    )
    return _said_if(section.mode != only, f"got {section.mode}, {section.backend} has {only}")


def _kind_of_model(spec: ExperimentSpec) -> str | None:
    path, backend = spec.quantize.model_path, spec.quantize.backend
    takes = (".pth",) if backend in ("torchao", "modelopt.pytorch") else (".pth", ".onnx")
    wrong = not is_open(path) and not path.endswith(takes)
    return _said_if(wrong, f"got {path}, {backend} takes a file that ends in {' or '.join(takes)}")


def _types_of_backend(spec: ExperimentSpec) -> str | None:
    backend, layers = spec.quantize.backend, spec.quantize.layers
    able = (*_TYPES_OF_BACKEND[backend], "native")
    types = [kind for layer in layers for kind in (layer.weights.dtype, layer.activations.dtype)]
    given = {str(kind) for kind in types if kind is not None}
    wrong = sorted(given.difference(able))
    if wrong:
        return f"got {', '.join(wrong)}, {backend} has {', '.join(able)}"
    several = backend == "modelopt.onnx" and len(given - {"native"}) > 1
    return _said_if(several, f"{backend} quantises all modules to one type")


def _native_activations(spec: ExperimentSpec) -> str | None:
    wrong = spec.quantize.mode == "static_ptq" and any(
        (layer.activations.dtype == "native") != (layer.weights.dtype == "native")
        for layer in spec.quantize.layers
        if layer.activations.dtype is not None
    )
    return _said_if(wrong, "static_ptq stores weights and inputs of a module in the same way")


def _unused_activations(spec: ExperimentSpec) -> str | None:
    kinds = {layer.activations.dtype for layer in spec.quantize.layers} - {None, "native"}
    wrong = spec.quantize.mode == "weight_only_ptq" and bool(kinds)
    return _said_if(wrong, "activations.dtype has no effect with mode weight_only_ptq")


def _algorithm_of_backend(spec: ExperimentSpec) -> str | None:
    section, able = spec.quantize, _ALGORITHMS[spec.quantize.backend]
    return _said_if(
        section.algorithm not in able,
        f"got {section.algorithm}, {section.backend} calibrates int8 and fp8 by {', '.join(able)}",
    )


def _unused_algorithm(spec: ExperimentSpec) -> str | None:
    section = spec.quantize
    wrong = section.mode == "weight_only_ptq" and section.algorithm in ("entropy", "percentile")
    return _said_if(wrong, f"{section.algorithm} has no effect: weight_only_ptq does not calibrate")


def _calibration_images(spec: ExperimentSpec) -> str | None:
    missing = not spec.dataset.quant_calibration_dataset.images_dir
    return _said_if(spec.quantize.mode == "static_ptq" and missing, "required by static_ptq")


QUANTIZE_RULES: tuple[Rule, ...] = (
    Rule(
        ("quantize.mode", "quantize.backend"),
        _mode_of_backend,
        "Change one of them; onnxruntime has both modes",
    ),
    Rule(
        ("quantize.model_path", "quantize.backend"),
        _kind_of_model,
        "Name a checkpoint or a graph; onnxruntime takes both",
        actions=("quantize",),
    ),
    Rule(("quantize.layers", "quantize.backend"), _types_of_backend, "Change one of them"),
    Rule(("quantize.layers", "quantize.mode"), _native_activations, "Set both types to native"),
    Rule(("quantize.layers", "quantize.mode"), _unused_activations, "Remove it", warning=True),
    Rule(
        ("quantize.algorithm", "quantize.backend"),
        _algorithm_of_backend,
        "awq and rtn algorithms are for 4-bit weights, which are not offered",
    ),
    Rule(("quantize.algorithm", "quantize.mode"), _unused_algorithm, "Remove it", warning=True),
    Rule(
        ("dataset.quant_calibration_dataset.images_dir", "quantize.mode"),
        _calibration_images,
        "Name a folder of images, for pairs one with left/ and right/ or an annotation file",
        actions=("quantize",),
    ),
    Rule(
        ("quantize.device",),
        lambda spec: _said_if(
            not _DEVICE.fullmatch(spec.quantize.device), f"got {spec.quantize.device}"
        ),
        "Use auto, cpu, cuda, cuda:INDEX or trt",
    ),
    Rule(
        ("quantize.device", "quantize.backend"),
        lambda spec: _said_if(
            spec.quantize.device == "trt" and spec.quantize.backend != "modelopt.onnx",
            f"got trt, which {spec.quantize.backend} does not have",
        ),
        "Use auto, cpu, cuda or cuda:INDEX",
    ),
    Rule(
        ("quantize.backend_kwargs.op_types",),
        lambda spec: _said_if(
            not set(spec.quantize.backend_kwargs.op_types) <= set(QUANTIZED_OPERATORS)
            or not spec.quantize.backend_kwargs.op_types,
            f"got {spec.quantize.backend_kwargs.op_types}",
        ),
        f"Use some of {', '.join(QUANTIZED_OPERATORS)}",
    ),
    Rule(
        ("quantize.backend_kwargs.op_types", "quantize.mode", "quantize.backend"),
        lambda spec: _said_if(
            "Conv" in spec.quantize.backend_kwargs.op_types
            and spec.quantize.mode == "weight_only_ptq",
            f"got Conv, which {spec.quantize.backend} does not have with mode weight_only_ptq",
        ),
        "Set quantize.mode=static_ptq, or leave Conv out",
    ),
)

CONVERT_RULES: tuple[Rule, ...] = (
    Rule(
        ("convert.image_dir_pattern",),
        _unclear_patterns,
        "Give strings that differ, each with at least one character",
    ),
    *_companion("depth"),
)

STEREO_CONVERT_RULES: tuple[Rule, ...] = (
    *_companion("right"),
    *_companion("nocc"),
    *(
        Rule(
            ("convert.nocc_dir_pattern", f"convert.{kind}_dir_pattern"),
            _mask_without(kind),
            f"nocc_dir_pattern needs {kind}_dir_pattern: a mask is the fourth column",
        )
        for kind in ("depth", "right")
    ),
)

OUTPUT_RULES = tuple(_output(action) for action in ACTIONS)

_FAMILY_RULES: Mapping[str, tuple[Rule, ...]] = {
    "StereoDataset": (*STEREO_CONVERT_RULES, *STEREO_DATA_RULES),
    "MonoDataset": MONO_DATA_RULES,
}

RULES: Mapping[str, tuple[Rule, ...]] = {
    key: (
        *OUTPUT_RULES,
        *CONVERT_RULES,
        _other_model(model),
        *NETWORK_RULES[key],
        *_FAMILY_RULES[model.dataset_name],
        *DATA_RULES,
        *TRAIN_RULES,
        *map(_redundant, model.part_keys),
        *DEPLOY_RULES,
        *QUANTIZE_RULES,
    )
    for key, model in MODELS.items()
}
"""All rules of a model."""


def bp2_mismatches(spec: ExperimentSpec) -> list[SpecProblem]:
    """Fields that keep the released bp2 weights from loading: what is given, what is needed."""
    inert = {rule.keys[0] for rule in NETWORK_RULES["ffs"] if rule.warning}
    shaping = [node.path for node in leaves(type(spec)) if node.facts.shapes_weights]
    needed = ExperimentSpec()
    return [
        SpecProblem(
            "bp2 weights",
            path,
            f"given {value_at(spec, path)}, needed {value_at(needed, path)}",
        )
        for path in (*shaping, "model.gwc_feature_normalize")
        if path not in inert and value_at(spec, path) != value_at(needed, path)
    ]
