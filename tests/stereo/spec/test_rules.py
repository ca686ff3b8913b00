from __future__ import annotations

import logging

import pytest

from stereo.errors import SpecError
from stereo.spec.experiment import ACTIONS, ExperimentSpec
from stereo.spec.load import load_spec
from stereo.spec.models import BP2_BLOCK, MODELS
from stereo.spec.rules import RULES, bp2_mismatches, model_key_fault, value_at

SOURCE = "=[{dataset_name: Middlebury, data_file: a}]"
TRAIN = ("dataset.train_dataset.data_sources" + SOURCE,)
EVALUATE = ("dataset.test_dataset.data_sources" + SOURCE,)
INFERENCE = ("dataset.infer_dataset.data_sources" + SOURCE,)
AUGMENTATION = "dataset.{}_dataset.augmentation"
SPLITS = ("train", "val", "test", "infer")

# key of the rule, overrides that break it, what the message says; for every model
BROKEN: list[tuple[str, tuple[str, ...], str]] = [
    ("model.model_type", ("model.model_type=RelativeDepthAnything",), "not in this version"),
    ("model.max_disparity", ("model.max_disparity=112",), "multiple of 32; the nearest is 128"),
    ("model.max_disparity", ("model.max_disparity=33",), "got 33, needs a multiple of 32"),
    ("model.volume_dim", ("model.volume_dim=30",), "multiple of 4; the nearest is 32"),
    ("model.mixed_precision", ("model.mixed_precision=true",), "not implemented"),
    ("dataset.dataset_name", ("dataset.dataset_name=MonoDataset",), "reads StereoDataset"),
    ("train.num_gpus", ("train.num_gpus=2", "train.gpu_ids=[0, 1]"), "one device"),
    ("train.gpu_ids", ("train.gpu_ids=[0, 1]",), "got 2 devices, but train.num_gpus is 1"),
    ("train.checkpoint_interval", ("train.checkpoint_interval=2",), "no checkpoint"),
    ("train.validation_interval", ("train.validation_interval=2",), "nothing would be validated"),
    (
        "train.optim.min_lr",
        ("train.optim.min_lr=1e-3", "train.optim.lr_scheduler=CosineAnnealingLR"),
        "0.001 is not below train.optim.lr 1e-05",
    ),
    ("evaluate.input_height", ("evaluate.input_height=320",), "height 320 and width None"),
    ("inference.input_height", ("inference.input_width=320",), "height None and width 320"),
    ("export.input_height", ("export.input_height=500",), "multiple of 32"),
    ("export.input_width", ("export.input_width=500",), "multiple of 32"),
    ("export.batch_size", ("export.batch_size=0",), "Use -1 or a number from 1"),
    ("gen_trt_engine.batch_size", ("gen_trt_engine.batch_size=0",), "Use -1 or a number from 1"),
    ("evaluate.batch_size", ("evaluate.batch_size=0",), "Use -1 or a number from 1"),
    ("inference.batch_size", ("inference.batch_size=0",), "Use -1 or a number from 1"),
    (
        "gen_trt_engine.tensorrt.min_batch_size",
        ("gen_trt_engine.tensorrt.min_batch_size=3", "gen_trt_engine.tensorrt.max_batch_size=4"),
        "needs min_batch_size <= opt_batch_size <= max_batch_size",
    ),
    *(
        (
            f"{action}.input_{side}",
            (f"{action}.input_height=300", f"{action}.input_width=300"),
            "got 300, needs a multiple of 32",
        )
        for action in ("evaluate", "inference")
        for side in ("height", "width")
    ),
    *(
        ("convert.image_dir_pattern", (f"convert.image_dir_pattern={patterns}",), "got [")
        for patterns in ("[left, left]", "[left, '']")
    ),
    *(
        (
            f"convert.{kind}_dir_pattern",
            ("convert.image_dir_pattern=[a, b]", f"convert.{kind}_dir_pattern={given}", *others),
            f"got {count} strings, convert.image_dir_pattern has 2",
        )
        for kind, *others in (
            ("right",),
            ("depth",),
            ("nocc", "convert.depth_dir_pattern=[e, f]", "convert.right_dir_pattern=[e, f]"),
        )
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
        for kind in ("depth", "nocc")
        for image, own, said in (
            (".png", "pfm", "got 'pfm', but convert.image_extension is '.png': one lacks the dot"),
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
                *(
                    f"convert.{other}_dir_pattern=[b]"
                    for other in ("right", "depth")
                    if other != kind
                ),
            ),
            "gives the path of the left image itself",
        )
        for kind in ("right", "depth", "nocc")
    ),
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
        (f"{AUGMENTATION.format(split)}.{name}", (f"{AUGMENTATION.format(split)}.{value}",), said)
        for split in SPLITS
        for name, value, said in (
            ("crop_size", "crop_size=[112, 160]", "multiple of 32; the nearest is [128, 160]"),
            ("crop_size", "crop_size=[518, 518]", "multiple of 32; the nearest is [512, 512]"),
            ("min_scale", "min_scale=0.5", "needs min_scale <= max_scale"),
            ("color_aug_saturation", "color_aug_saturation=[1.4, 0]", "needs low <= high"),
            ("color_aug_hue_range", "color_aug_hue_range=[0.1, 0]", "needs low <= high"),
            ("gamma", "gamma=[1, 1, 2, 1]", "needs low <= high"),
        )
    ),
]

BROKEN_OF: dict[str, list[tuple[str, tuple[str, ...], str]]] = {
    "ffs": [
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
        ("model.mask_widths", ("model.mask_widths=[32, 24]",), "the second width 24"),
        ("model.stem_2_widths", ("model.stem_2_widths=[12, 24]",), "the second width 24"),
        ("model.model_type", ("model.model_type=FoundationStereo",), "but the model key is ffs"),
    ],
    "fs": [
        (
            "model.hidden_dims",
            ("model.hidden_dims=[128, 128]",),
            "got [128, 128], each of the three levels has 128 channels. Use [128, 128, 128]",
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
}
CASES = [(key, *case) for key in MODELS for case in (*BROKEN, *BROKEN_OF[key])]

WARNED: list[tuple[str, tuple[str, ...]]] = [
    ("model.low_memory", ("model.low_memory=2",)),
    ("dataset.max_disparity", ("dataset.max_disparity=64",)),
    ("train.optim.lr_decay", ("train.optim.lr_decay=0.9", "train.optim.lr_scheduler=PolynomialLR")),
    ("train.optim.lr", ("train.optim.lr=1e-3", "train.pretrained_model_path=a.pth")),
    (
        "model.stereo_backbone.edgenext_pretrained_path",
        (
            "model.stereo_backbone.edgenext_pretrained_path=a.pth",
            "train.pretrained_model_path=b.pth",
        ),
    ),
    (
        "gen_trt_engine.tensorrt.workspace_size",
        ("gen_trt_engine.tensorrt.workspace_size=1024",),
    ),
]
WARNED_OF: dict[str, list[tuple[str, tuple[str, ...]]]] = {
    "ffs": [
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
        (
            "model.stereo_backbone.depth_anything_v2_pretrained_path",
            (
                "model.stereo_backbone.depth_anything_v2_pretrained_path=a.pth",
                "train.pretrained_model_path=b.pth",
            ),
        ),
    ],
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
    found = problems((*TRAIN, *epochs, *overrides), "train", model)
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
        load_spec(None, ["results_dir=out", *TRAIN, *overrides], action="train", model=model)
    assert [m for m in caplog.messages if m.startswith(f"command line: {key}: ")]


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
    keys |= {"export.on_cpu"}  # below: it is checked for one verb only
    # 4, 8 and 16 divide the width of every encoder, so this rule cannot break today.
    assert {rule.keys[0] for rule in RULES[model]} - keys == {"model.cv_group"}


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
    assert [model_key_fault(key) for key in MODELS] == [None, None]
    assert model_key_fault("resnet") is not None
