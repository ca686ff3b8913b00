from __future__ import annotations

import logging

import pytest

from stereo.errors import SpecError
from stereo.spec.experiment import ACTIONS, ExperimentSpec
from stereo.spec.load import load_spec
from stereo.spec.models import BP2_BLOCK, MODELS
from stereo.spec.rules import QUANTIZE_RULES, RULES, bp2_mismatches, model_key_fault, value_at


def source(dataset: str) -> str:
    return f"=[{{dataset_name: {dataset}, data_file: a}}]"


def train_data(model: str) -> tuple[str, ...]:
    return ("dataset.train_dataset.data_sources" + source(MODELS[model].default_dataset),)


TRAIN = train_data("ffs")
EVALUATE = ("dataset.test_dataset.data_sources" + source("Middlebury"),)
INFERENCE = ("dataset.infer_dataset.data_sources" + source("Middlebury"),)
AUGMENTATION = "dataset.{}_dataset.augmentation"
SPLITS = ("train", "val", "test", "infer")
PROFILE = tuple(
    f"gen_trt_engine.{end}_{side}={size}"
    for side in ("height", "width")
    for end, size in (("min", 64), ("opt", 96), ("max", 128))
)
BACKBONE = "model.mono_backbone.pretrained_path"

# key of the rule, overrides that break it, what the message says
Case = tuple[str, tuple[str, ...], str]

SPLIT_CASES: list[Case] = [
    (f"{AUGMENTATION.format(split)}.{name}", (f"{AUGMENTATION.format(split)}.{value}",), said)
    for split in SPLITS
    for name, value, said in (
        ("min_scale", "min_scale=0.5", "needs min_scale <= max_scale"),
        ("color_aug_saturation", "color_aug_saturation=[1.4, 0]", "needs low <= high"),
        ("color_aug_hue_range", "color_aug_hue_range=[0.1, 0]", "needs low <= high"),
        ("gamma", "gamma=[1, 1, 2, 1]", "needs low <= high"),
    )
]


def convert_cases(*companions: str) -> list[Case]:
    """Rules of the files beside an image."""
    others = {
        "nocc": ("convert.depth_dir_pattern=[e, f]", "convert.right_dir_pattern=[e, f]"),
    }
    return [
        *(
            (
                f"convert.{kind}_dir_pattern",
                (
                    "convert.image_dir_pattern=[a, b]",
                    f"convert.{kind}_dir_pattern={given}",
                    *others.get(kind, ()),
                ),
                f"got {count} strings, convert.image_dir_pattern has 2",
            )
            for kind in companions
            for given, count in (("[c]", 1), ("[c, d, e]", 3))
        ),
        *(
            (
                f"convert.{kind}_extension",
                (
                    "convert.image_dir_pattern=[a]",
                    f"convert.{kind}_dir_pattern=[b]",
                    f"convert.image_extension={image}",
                    f"convert.{kind}_extension={own}",
                ),
                said,
            )
            for kind in companions
            if kind != "right"
            for image, own, said in (
                (".png", "pfm", "got 'pfm', but convert.image_extension is '.png': one lacks"),
                ("png", ".pfm", "Add the leading dot"),
                ("''", ".x", "no suffix to swap it for"),
            )
        ),
        *(
            (
                f"convert.{kind}_dir_pattern",
                (
                    "convert.image_dir_pattern=[a]",
                    "convert.image_extension=.png",
                    f"convert.{kind}_dir_pattern=[a]",
                    *(f"convert.{other}_dir_pattern=[b]" for other in beside if other != kind),
                ),
                "gives the path of the left image itself",
            )
            for kind in companions
            for beside in [[] if companions == ("depth",) else ["right", "depth"]]
        ),
    ]


BROKEN: list[Case] = [
    *SPLIT_CASES,
    *convert_cases("depth"),
    *(
        ("convert.image_dir_pattern", (f"convert.image_dir_pattern={patterns}",), "got [")
        for patterns in ("[left, left]", "[left, '']")
    ),
    *(
        case
        for action in ("train", "evaluate", "inference")
        for case in (
            (
                f"{action}.num_gpus",
                (f"{action}.num_gpus=2", f"{action}.gpu_ids=[0, 1]"),
                f"got 2. This version runs {action} on one device",
            ),
            (f"{action}.num_nodes", (f"{action}.num_nodes=2",), "on one device of one machine"),
            (
                f"{action}.gpu_ids",
                (f"{action}.gpu_ids=[0, 1]",),
                f"got 2 devices, but {action}.num_gpus is 1",
            ),
        )
    ),
    ("train.distributed_strategy", ("train.distributed_strategy=fsdp",), "over several devices"),
    ("train.checkpoint_interval", ("train.checkpoint_interval=2",), "no checkpoint"),
    ("train.validation_interval", ("train.validation_interval=2",), "nothing would be validated"),
    (
        "train.optim.min_lr",
        (
            "train.optim.min_lr=1e-3",
            "train.optim.lr=1e-5",
            "train.optim.lr_scheduler=CosineAnnealingLR",
        ),
        "0.001 is not below train.optim.lr 1e-05",
    ),
    ("evaluate.input_height", ("evaluate.input_height=448",), "height 448 and width None"),
    ("inference.input_height", ("inference.input_width=448",), "height None and width 448"),
    ("export.batch_size", ("export.batch_size=0",), "Use -1 or a number from 1"),
    ("export.input_channel", ("export.input_channel=1",), "the networks read RGB"),
    (
        "gen_trt_engine.compute_capabilities",
        ("gen_trt_engine.compute_capabilities=[SM75, SM80]",),
        "SM75 with fp32",
    ),
    ("gen_trt_engine.batch_size", ("gen_trt_engine.batch_size=0",), "Use -1 or a number from 1"),
    ("evaluate.batch_size", ("evaluate.batch_size=0",), "Use -1 or a number from 1"),
    ("inference.batch_size", ("inference.batch_size=0",), "Use -1 or a number from 1"),
    (
        "gen_trt_engine.tensorrt.min_batch_size",
        ("gen_trt_engine.tensorrt.min_batch_size=3", "gen_trt_engine.tensorrt.max_batch_size=4"),
        "needs min_batch_size <= opt_batch_size <= max_batch_size",
    ),
]


def side_cases(multiple: int) -> list[Case]:
    """Sides of crops and inputs that are no multiple."""
    return [
        *(
            (
                f"{AUGMENTATION.format(split)}.crop_size",
                (f"{AUGMENTATION.format(split)}.crop_size=[{3 * multiple + 1}, {5 * multiple}]",),
                f"multiple of {multiple}; the nearest is [{3 * multiple}, {5 * multiple}]",
            )
            for split in SPLITS
        ),
        *(
            (
                f"{action}.input_{side}",
                (f"{action}.input_height=300", f"{action}.input_width=300"),
                f"got 300, needs a multiple of {multiple}",
            )
            for action in ("evaluate", "inference", "export")
            for side in ("height", "width")
        ),
    ]


BROKEN_STEREO: list[Case] = [
    *side_cases(32),
    *convert_cases("right", "nocc"),
    *(
        (
            "convert.nocc_dir_pattern",
            (
                "convert.image_dir_pattern=[a]",
                f"convert.{present}_dir_pattern=[b]",
                "convert.nocc_dir_pattern=[c]",
            ),
            f"nocc_dir_pattern needs {absent}_dir_pattern",
        )
        for present, absent in (("right", "depth"), ("depth", "right"))
    ),
    *(
        (
            f"{action}.hierarchical",
            (f"{action}.hierarchical=true", f"{action}.trt_engine=a.onnx"),
            f"{action}.trt_engine is set, and a graph has no input for the first pass",
        )
        for action in ("evaluate", "inference")
    ),
    *(
        (
            f"{action}.hierarchical",
            (f"{action}.hierarchical=true", "train.inference_tile=true"),
            "train.inference_tile is set",
        )
        for action in ("evaluate", "inference")
    ),
    ("model.max_disparity", ("model.max_disparity=112",), "multiple of 32; the nearest is 128"),
    ("model.max_disparity", ("model.max_disparity=33",), "got 33, needs a multiple of 32"),
    ("model.volume_dim", ("model.volume_dim=30",), "multiple of 4; the nearest is 32"),
    ("dataset.dataset_name", ("dataset.dataset_name=MonoDataset",), "reads StereoDataset"),
]

BROKEN_MONO: list[Case] = [
    (
        "model.mono_backbone.width",
        ("model.mono_backbone.width=100",),
        "got 100, needs a multiple of 64; the nearest is 128",
    ),
    (
        "model.mono_backbone.blocks",
        ("model.mono_backbone.blocks=3",),
        "got 3, allowed integer 4..40 or null",
    ),
    *side_cases(14),
    ("dataset.dataset_name", ("dataset.dataset_name=StereoDataset",), "reads MonoDataset"),
]

BROKEN_OF: dict[str, list[Case]] = {
    "ffs": [
        *BROKEN_STEREO,
        (
            "gen_trt_engine.min_height",
            ("gen_trt_engine.min_height=64",),
            "opt_height, max_height, min_width, opt_width, max_width not set; a profile needs all",
        ),
        (
            "gen_trt_engine.min_width",
            tuple(
                f"gen_trt_engine.{end}_{side}={64 if end == 'max' else 96}"
                for side in ("height", "width")
                for end in ("min", "opt", "max")
            ),
            "needs min_width <= opt_width <= max_width",
        ),
        *(
            (
                f"gen_trt_engine.{end}_{side}",
                (*PROFILE, f"gen_trt_engine.{end}_{side}={size}"),
                f"got {size}, needs a multiple of 32; the nearest is {nearest}",
            )
            for end, size, nearest in (("min", 70, 64), ("opt", 100, 96), ("max", 140, 128))
            for side in ("height", "width")
        ),
        ("model.concat_channel", ("model.concat_channel=23",), "got 23, needs a multiple of 2"),
        ("model.concat_channel", ("model.concat_channel=0",), "needs at least 2"),
        ("model.motion_encoder_final", ("model.motion_encoder_final=0",), "needs at least 1"),
        (
            "model.gru_hidden",
            ("model.gru_hidden=0", "model.cnet_conv04_widths=[128, 48]"),
            "got 0, needs at least 1; the nearest is 1",
        ),
        ("model.disp_head_intermediate", ("model.disp_head_intermediate=-1",), "needs at least 1"),
        ("model.cam_mid_channels", ("model.cam_mid_channels=0",), "needs at least 1"),
        (
            "model.hidden_dims",
            ("model.hidden_dims=[128, 128, 128]",),
            "got 3 widths, needs 1; the nearest is [128]",
        ),
        ("model.gru_hidden", ("model.gru_hidden=64",), "got 64, but the first context head has 60"),
        (
            "model.gru_hidden",
            ("model.gru_hidden=null",),
            "got 128, but the first context head has 60",
        ),
        (
            "model.mask_widths",
            ("model.mask_widths=[32, 24]",),
            "got [32, 24], the second must equal the first of model.spx_2_gru_widths;"
            " the nearest is [32, 16]",
        ),
        (
            "model.stem_2_widths",
            ("model.stem_2_widths=[12, 24]", "model.spx_2_gru_widths=[16, 12, 20, 24]"),
            "got [12, 24], the second must equal the third of model.spx_2_gru_widths;"
            " the nearest is [12, 20]",
        ),
        (
            "model.cam_mid_channels",
            ("model.cam_mid_channels=null", "model.cnet_conv04_widths=[60, 15]"),
            "got null, which is a sixteenth of the context width, here 0; the nearest is 1",
        ),
        (
            "model.motion_encoder_final",
            ("model.motion_encoder_final=null", "model.hidden_dims=[1]"),
            "got null, which is one less than the hidden width, here 0; the nearest is 1",
        ),
        ("model.hidden_dims", ("model.hidden_dims=[]",), "got 0 widths, needs 1"),
        ("model.model_type", ("model.model_type=FoundationStereo",), "but the model key is ffs"),
    ],
    "fs": [
        *BROKEN_STEREO,
        (
            "model.hidden_dims",
            ("model.hidden_dims=[128, 128]",),
            "got [128, 128], each of the three levels has 128 channels;"
            " the nearest is [128, 128, 128]",
        ),
        ("model.hidden_dims", ("model.hidden_dims=[64, 64, 64]",), "got [64, 64, 64]"),
        (
            "model.attention_layout",
            ("model.attention_layout=mha",),
            "got mha, variant tao has auto, rows. Use auto",
        ),
        (
            "model.attention_layout",
            ("model.variant=public", "model.attention_layout=rows"),
            "got rows, variant public has auto, groups, mha",
        ),
        (
            "model.n_gru_layers",
            ("model.variant=public", "model.n_gru_layers=1"),
            "got 1, the public network refines with 2 or 3 levels; the nearest is 2",
        ),
        (
            "model.model_type",
            ("model.model_type=FastFoundationStereo",),
            "but the model key is fs",
        ),
    ],
    "mono_metric": [
        *BROKEN_MONO,
        (
            "model.model_type",
            ("model.model_type=RelativeDepthAnything",),
            "RelativeDepthAnything, but the model key is mono_metric",
        ),
        (
            "dataset.min_depth",
            ("dataset.min_depth=2", "dataset.max_depth=2"),
            "2.0 m is not below dataset.max_depth 2.0 m",
        ),
        ("dataset.min_depth", ("dataset.min_depth=null",), "got None, allowed number >= 0"),
        ("dataset.max_depth", ("dataset.max_depth=null",), "got None, allowed number >= 1"),
        ("dataset.normalize_depth", ("dataset.normalize_depth=true",), "not in m"),
        *(
            (
                f"dataset.{split}_dataset.data_sources",
                (f"dataset.{split}_dataset.data_sources" + source("NYUDV2Relative"),),
                "got NYUDV2Relative; MetricDepthAnything learns depth in m."
                " Dataset names with it: MetricMonoDataset, NYUDV2",
            )
            for split in SPLITS
        ),
    ],
    "mono_relative": [
        *BROKEN_MONO,
        (
            "model.model_type",
            ("model.model_type=MetricDepthAnything",),
            "but the model key is mono_relative",
        ),
        ("dataset.min_depth", ("dataset.min_depth=0.001",), "relative depth has no metres"),
        ("dataset.max_depth", ("dataset.max_depth=10",), "relative depth has no metres"),
        *(
            (
                f"dataset.{split}_dataset.data_sources",
                (f"dataset.{split}_dataset.data_sources" + source("nyudv2"),),
                "got NYUDV2; RelativeDepthAnything learns disparity. Dataset names with it: Cre",
            )
            for split in SPLITS
        ),
    ],
}
CASES = [(key, *case) for key in MODELS for case in (*BROKEN, *BROKEN_OF[key])]

WARNED: list[tuple[str, tuple[str, ...]]] = [
    ("encryption_key", ("encryption_key=abc",)),
    ("train.optim.lr_decay", ("train.optim.lr_decay=0.9", "train.optim.lr_scheduler=PolynomialLR")),
    ("train.optim.lr", ("train.optim.lr=1e-3", "train.pretrained_model_path=a.pth")),
    (
        "gen_trt_engine.tensorrt.workspace_size",
        ("gen_trt_engine.tensorrt.workspace_size=1024",),
    ),
]
WARNED_STEREO: list[tuple[str, tuple[str, ...]]] = [
    ("model.mixed_precision", ("model.mixed_precision=true", "train.precision=fp16")),
    ("dataset.max_disparity", ("dataset.max_disparity=64",)),
    (
        "model.stereo_backbone.edgenext_pretrained_path",
        (
            "model.stereo_backbone.edgenext_pretrained_path=a.pth",
            "train.pretrained_model_path=b.pth",
        ),
    ),
]
WARNED_MONO: list[tuple[str, tuple[str, ...]]] = [
    ("export.dynamic_hw", ("export.dynamic_hw=true",)),
    *(("dataset", (f"{AUGMENTATION.format(split)}.yjitter_prob=0",)) for split in SPLITS),
    ("dataset", (f"{AUGMENTATION.format('train')}.gamma=[0.9, 1.1, 1, 1]",)),
    ("train.optim.lr", ("train.optim.lr=1e-3", f"{BACKBONE}=a.pth")),
    (BACKBONE, (f"{BACKBONE}=a.pth", "train.pretrained_model_path=b.pth")),
]
WARNED_OF: dict[str, list[tuple[str, tuple[str, ...]]]] = {
    "ffs": [
        *WARNED_STEREO,
        ("model.disp_head_input_dim", ("model.disp_head_input_dim=61",)),
        ("model.classifier_mid", ("model.classifier_mid=15",)),
        ("model.cost_agg_conv_patch_padding", ("model.cost_agg_conv_patch_padding=[1, 0, 0]",)),
        (
            "model.stereo_backbone.depth_anything_v2_pretrained_path",
            ("model.stereo_backbone.depth_anything_v2_pretrained_path=a",),
        ),
        ("model.stereo_backbone.use_bn", ("model.stereo_backbone.use_bn=true",)),
        ("model.stereo_backbone.use_clstoken", ("model.stereo_backbone.use_clstoken=true",)),
    ],
    "fs": [
        *WARNED_STEREO,
        ("export.dynamic_hw", ("export.dynamic_hw=true",)),
        (
            "model.stereo_backbone.depth_anything_v2_pretrained_path",
            (
                "model.stereo_backbone.depth_anything_v2_pretrained_path=a.pth",
                "train.pretrained_model_path=b.pth",
            ),
        ),
    ],
    **{
        model: [
            *WARNED_MONO,
            (
                "dataset.eval_crop",
                (
                    "dataset.eval_crop=kitti_garg",
                    "dataset.val_dataset.data_sources=[{dataset_name: " + name + ", data_file: a}]",
                ),
            ),
        ]
        for model, name in (("mono_metric", "NYUDV2"), ("mono_relative", "NYUDV2Relative"))
    },
}


def problems(overrides: tuple[str, ...], action: str, model: str | None = None) -> dict[str, str]:
    with pytest.raises(SpecError) as caught:
        load_spec(None, ["results_dir=out", *overrides], action=action, model=model)
    return {problem.key: str(problem) for problem in caught.value.problems}


@pytest.mark.parametrize(("model", "key", "overrides", "said"), CASES)
def test_a_broken_rule_is_reported_at_its_key(
    model: str, key: str, overrides: tuple[str, ...], said: str
) -> None:
    epochs = ("train.num_epochs=1",)
    found = problems((*train_data(model), *epochs, *overrides), "train", model)
    assert said in found[key]
    assert found[key].startswith("command line: ")


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(("word", "off"), [("h", "v_flip_prob"), ("v", "h_flip_prob")])
def test_a_flip_direction_is_refused_with_the_two_fields_that_mean_it(
    split: str, word: str, off: str
) -> None:
    key = f"{AUGMENTATION.format(split)}.do_flip"

    found = problems((*TRAIN, f"{key}={word}"), "train")

    assert f"got '{word}', allowed true or false. Write true, and {off}: 0" in found[key]


def test_one_number_as_crop_size_means_a_square() -> None:
    spec = load_spec(
        None,
        ["results_dir=out", *TRAIN, f"{AUGMENTATION.format('train')}.crop_size=96"],
        action="train",
    )

    assert spec.dataset.train_dataset.augmentation.crop_size == [96, 96]


@pytest.mark.parametrize(
    ("image", "ground_truth"),
    [(".png", ".pfm"), ("png", "pfm"), ("_10.png", "_10.png"), ("_10.png", ".pfm"), (".jpg", "''")],
)
def test_suffixes_that_can_be_swapped_break_no_rule(image: str, ground_truth: str) -> None:
    extensions = f"convert.image_extension={image}", f"convert.depth_extension={ground_truth}"
    patterns = "convert.image_dir_pattern=[a]", "convert.depth_dir_pattern=[b]"
    load_spec(None, ["results_dir=out", *TRAIN, *patterns, *extensions], action="train")


@pytest.mark.parametrize(
    ("model", "key", "overrides"),
    [(key, *case) for key in MODELS for case in (*WARNED, *WARNED_OF[key])],
)
def test_a_field_without_effect_is_worth_a_warning(
    model: str, key: str, overrides: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        overrides = ("results_dir=out", *train_data(model), *overrides)
        load_spec(None, list(overrides), action="train", model=model)
    assert [m for m in caplog.messages if m.startswith(f"command line: {key}: ")]


@pytest.mark.parametrize("crop", ["none", "nyu_eigen"])
def test_the_crop_that_nyu_is_scored_in_needs_no_warning(
    crop: str, caplog: pytest.LogCaptureFixture
) -> None:
    given = [*train_data("mono_metric"), f"dataset.eval_crop={crop}"]
    given.append("dataset.val_dataset.data_sources=[{dataset_name: NYUDV2, data_file: a}]")
    with caplog.at_level(logging.WARNING):
        load_spec(None, ["results_dir=out", *given], action="train", model="mono_metric")
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("model", "opset", "on_cpu", "warned"),
    [("fs", 17, False, True), ("fs", 17, True, False), ("fs", 16, False, False),
     ("ffs", 17, False, False)],
)  # fmt: skip
def test_a_graph_of_fs_is_better_not_traced_on_the_gpu_with_opset_17(
    model: str, opset: int, on_cpu: bool, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    given = [f"export.opset_version={opset}", f"export.on_cpu={on_cpu}"]
    overrides = ["results_dir=out", "export.checkpoint=a.pth", *given]
    with caplog.at_level(logging.WARNING):
        load_spec(None, overrides, action="export", model=model)
    assert any("breaks fp16 engines" in message for message in caplog.messages) == warned


@pytest.mark.parametrize("model", ["mono_metric", "mono_relative"])
@pytest.mark.parametrize("encoder", ["vits", "vitb", "vitl", "vitg"])
def test_an_fp16_engine_of_a_large_encoder_is_refused_and_of_a_small_one_warned(
    model: str, encoder: str, caplog: pytest.LogCaptureFixture
) -> None:
    overrides = ["results_dir=out", "gen_trt_engine.onnx_file=a.onnx", f"model.encoder={encoder}"]
    key = "gen_trt_engine.tensorrt.data_type"
    load_spec(None, [*overrides, f"{key}=bf16"], action="gen_trt_engine", model=model)
    assert caplog.messages == []

    with caplog.at_level(logging.WARNING):
        if encoder in ("vitl", "vitg"):
            with pytest.raises(SpecError, match=rf"{encoder}: activations overflow.*bf16 or fp32"):
                load_spec(None, [*overrides, f"{key}=fp16"], action="gen_trt_engine", model=model)
        else:
            load_spec(None, [*overrides, f"{key}=fp16"], action="gen_trt_engine", model=model)
            assert "may overflow. Use bf16 or fp32" in caplog.text


def test_augmentation_of_pairs_is_accepted_for_one_image_with_one_notice(
    caplog: pytest.LogCaptureFixture,
) -> None:
    train, val = (AUGMENTATION.format(split) for split in ("train", "val"))
    pairs = [f"{train}.hshift_prob=0.5", f"{train}.yjitter_prob=0", f"{val}.gamma=[0.9, 1, 1, 1]"]
    acting = [f"{train}.do_flip=true", f"{train}.h_flip_prob=0.2", f"{train}.crop_size=[140, 98]"]
    overrides = ["results_dir=out", *train_data("mono_metric"), *acting]
    with caplog.at_level(logging.WARNING):
        load_spec(None, overrides, action="train", model="mono_metric")
        assert caplog.messages == []
        load_spec(None, [*overrides, *pairs], action="train", model="mono_metric")

    (notice,) = caplog.messages
    assert "yjitter_prob, gamma, hshift_prob: of pairs only, without effect here" in notice


def test_an_open_dataset_name_is_asked_for_and_not_taken_for_a_wrong_one() -> None:
    overrides = ["results_dir=out", "inference.checkpoint=a.pth"]
    with pytest.raises(SpecError) as caught:
        load_spec(None, overrides, action="inference", model="mono_metric")
    assert [problem.key for problem in caught.value.problems] == [
        "dataset.infer_dataset.data_sources.0.data_file"
    ]


@pytest.mark.parametrize(("action", "data"), [("evaluate", EVALUATE), ("inference", INFERENCE)])
def test_exactly_one_of_checkpoint_and_engine(action: str, data: tuple[str, ...]) -> None:
    checkpoint, engine = f"{action}.checkpoint=a.pth", f"{action}.trt_engine=a.rtx"
    for given, said in [((), "neither it nor"), ((checkpoint, engine), "both it and")]:
        found = problems((*data, *given), action)
        assert said in found[f"{action}.checkpoint"]
        assert f"{action}.trt_engine" in found[f"{action}.checkpoint"]
    for given in (checkpoint, engine):
        load_spec(None, ["results_dir=out", *data, given], action=action)


@pytest.mark.parametrize(("action", "data"), [("evaluate", EVALUATE), ("inference", INFERENCE)])
@pytest.mark.parametrize(
    ("given", "file", "other"),
    [("checkpoint", "a.engine", "trt_engine"), ("trt_engine", "a.pth", "checkpoint")],
)
def test_weights_and_engines_are_not_taken_for_each_other(
    action: str, data: tuple[str, ...], given: str, file: str, other: str
) -> None:
    found = problems((*data, f"{action}.{given}={file}"), action)
    assert file in found[f"{action}.{given}"]
    assert f"Set {action}.{other}" in found[f"{action}.{given}"]


@pytest.mark.parametrize(("action", "data"), [("evaluate", EVALUATE), ("inference", INFERENCE)])
def test_tiles_are_larger_than_their_overlap(action: str, data: tuple[str, ...]) -> None:
    size = f"dataset.{ACTIONS[action].splits[0]}.augmentation.crop_size"
    given = (*data, f"{action}.checkpoint=a.pth", f"{size}=[64, 96]", "train.inference_tile=true")
    found = problems((*given, "train.tile_min_overlap=[16, 96]"), action)
    assert list(found) == ["train.tile_min_overlap"]
    assert f"got [16, 96], not below {size}, which is [64, 96]" in found["train.tile_min_overlap"]
    for allowed in ("tile_min_overlap=[63, 95]", "inference_tile=false"):
        overrides = (*given, "train.tile_min_overlap=[64, 0]", f"train.{allowed}")
        load_spec(None, ["results_dir=out", *overrides], action=action)
    found = problems((*given, "train.tile_min_overlap=[-1, 0]"), action)
    assert ">= 0" in found["train.tile_min_overlap"]


@pytest.mark.parametrize("action", list(ACTIONS))
def test_either_results_dir_is_enough(action: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(None, [f"{action}.results_dir=out"], action=action)
    assert "results_dir" not in {problem.key for problem in caught.value.problems}


@pytest.mark.parametrize("model", MODELS)
def test_every_rule_has_a_case(model: str) -> None:
    files = ("checkpoint", "trt_engine")
    sources = {f"{action}.{file}" for action in ("evaluate", "inference") for file in files}
    cases = (*BROKEN, *BROKEN_OF[model], *WARNED, *WARNED_OF[model])
    keys = {key for key, *_ in cases} | sources | {"results_dir"}
    # below: these are checked for one verb only
    keys |= {"export.on_cpu", "gen_trt_engine.tensorrt.data_type", "train.tile_min_overlap"}
    keys |= {rule.keys[0] for rule in QUANTIZE_RULES}  # test_quantize_rules.py
    # 4, 8 and 16 divide the width of every encoder, so this rule cannot break today.
    assert {rule.keys[0] for rule in RULES[model]} - keys <= {"model.cv_group"}


@pytest.mark.parametrize("model", MODELS)
def test_defaults_break_no_rule_but_the_open_ones(model: str) -> None:
    spec = MODELS[model].spec_class()
    broken = {rule.keys[0] for rule in RULES[model] if rule.broken(spec)}
    assert broken == {"results_dir", "evaluate.checkpoint", "inference.checkpoint"}


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.n_gru_layers=1",),
        ("model.variant=public", "model.attention_layout=groups", "model.n_gru_layers=2"),
        ("model.variant=public", "model.attention_layout=mha"),
        ("model.variant=tao", "model.attention_layout=rows"),
        ("model.variant=auto", "model.attention_layout=mha"),
        ("model.encoder=vitl", "model.cv_group=16", "model.volume_dim=64"),
        ("model.max_disparity=832", "dataset.max_disparity=832"),
    ],
)
def test_valid_combinations_of_foundation_stereo_break_no_rule(overrides: tuple[str, ...]) -> None:
    load_spec(None, ["results_dir=out", *TRAIN, *overrides], action="train", model="fs")


def test_bp2_mismatches_are_listed_as_given_and_needed() -> None:
    spec = ExperimentSpec()
    assert bp2_mismatches(spec) == []

    spec.model.corr_radius = 5
    spec.model.mask_widths = [32, 8]
    spec.model.gwc_feature_normalize = False
    spec.model.disp_head_input_dim = None  # shapes nothing: no layer reads it
    spec.model.max_disparity = 64
    said = {problem.key: problem.problem for problem in bp2_mismatches(spec)}

    assert said == {
        "model.corr_radius": "given 5, needed 4",
        "model.mask_widths": "given [32, 8], needed [32, 16]",
        "model.gwc_feature_normalize": "given False, needed True",
    }


def test_family_defaults_equal_the_bp2_block() -> None:
    spec = ExperimentSpec()
    assert {name: value_at(spec, f"model.{name}") for name in BP2_BLOCK} == BP2_BLOCK
    assert len(BP2_BLOCK) == 28


def test_keys_of_models_have_no_fault() -> None:
    assert [model_key_fault(key) for key in MODELS] == [None] * 4
    assert model_key_fault("resnet") is not None
