"""One row for every trap of the reference that the design pages list, and what ours does instead.

Rows are those of interface.md 1.5 and training.md 11, in their order. What a spec decides is
checked here; a row of behaviour names the test that proves it, which must exist.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from automl.runners.environment import quiet_ray
from stereo.errors import SpecError
from stereo.spec.experiment import ExperimentSpec
from stereo.spec.load import load_spec
from stereo.spec.models import MODELS
from stereo.spec.rules import value_at

ROOT = Path(__file__).resolve().parents[2]
STEREO, MONO = ("fs", "ffs"), ("mono_metric", "mono_relative")
EVERY = (*STEREO, *MONO)
Tools = tuple[Path, pytest.LogCaptureFixture]
Row = Callable[[Tools], None]


def load(model: str, *overrides: str, action: str = "train", source: Any = None) -> ExperimentSpec:
    data = f"[{{dataset_name: {MODELS[model].default_dataset}, data_file: a}}]"
    split = {"evaluate": "test", "inference": "infer"}.get(action, "train")
    given = [f"dataset.{split}_dataset.data_sources={data}", "results_dir=out", *overrides]
    return load_spec(source, given, action=action, model=model)


def default(path: str, expected: object, models: tuple[str, ...] = EVERY) -> Row:
    def check(_tools: Tools) -> None:
        for model in models:
            assert value_at(load(model), path) == expected, model

    return check


def accepted(override: str, path: str, expected: object, models: tuple[str, ...] = EVERY) -> Row:
    def check(_tools: Tools) -> None:
        for model in models:
            assert value_at(load(model, override), path) == expected, model

    return check


def refused(
    *overrides: str, words: str, models: tuple[str, ...] = EVERY, action: str = "train"
) -> Row:
    def check(_tools: Tools) -> None:
        for model in models:
            with pytest.raises(SpecError, match=words) as error:
                load(model, *overrides, action=action)
            assert error.value.exit_code == 2

    return check


def warned(
    *overrides: str, words: str, models: tuple[str, ...] = EVERY, action: str = "train"
) -> Row:
    def check(tools: Tools) -> None:
        for model in models:
            tools[1].clear()
            with tools[1].at_level(logging.WARNING):
                load(model, *overrides, action=action)
            assert re.search(words, tools[1].text), model

    return check


def proved(place: str) -> Row:
    """The test `file::name` exists; it runs with its own file."""

    def check(_tools: Tools) -> None:
        file, _, name = place.partition("::")
        assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text("utf-8"), place

    return check


def declared(path: str, models: tuple[str, ...] = EVERY, **facts: object) -> Row:
    def check(_tools: Tools) -> None:
        for model in models:
            (node,) = (node for node in MODELS[model].nodes if node.path == path)
            assert {name: getattr(node.facts, name) for name in facts} == facts, model

    return check


def all_of(*rows: Row) -> Row:
    def check(tools: Tools) -> None:
        for row in rows:
            row(tools)

    return check


def without(folder: str, words: str) -> Row:
    """No source file of a folder has the words."""

    def check(_tools: Tools) -> None:
        files = (ROOT / folder).rglob("*.py")
        assert [file for file in files if re.search(words, file.read_text("utf-8"))] == []

    return check


def any_file_name(tools: Tools) -> None:
    file = tools[0] / "whatever you like.txt"
    file.write_text("train:\n  num_epochs: 3\n")
    assert load("ffs", source=file).train.num_epochs == 3
    assert file.read_text() == "train:\n  num_epochs: 3\n", "and it is never modified"


def opset_of_the_gpu(tools: Tools) -> None:
    with tools[1].at_level(logging.WARNING):
        load("fs", "export.checkpoint=a.pth", "export.on_cpu=false", action="export")
    assert "opset_version=16" in tools[1].text


def no_usage_statistics(_tools: Tools) -> None:
    with quiet_ray():
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def fractions(_tools: Tools) -> None:
    for model in EVERY:
        for name, facts in MODELS[model].metrics.items():
            if re.fullmatch(r"val/(bp\d|d\d)", name):
                assert facts["unit"] == "fraction"


BACKBONE = "model.mono_backbone.pretrained_path"
_SPEC, _TRAIN = "stereo/spec/test_load.py", "stereo/train/test_trainer.py"
_OPTIM, _AUGMENT = "stereo/train/test_optim.py", "stereo/data/test_augment_stereo.py"
_BUILD = "gen_trt_engine"
_FP16 = ("gen_trt_engine.tensorrt.data_type=fp16", "gen_trt_engine.onnx_file=a.onnx")
_DATA_TYPE = "gen_trt_engine.tensorrt.data_type"
SIZED = proved("stereo/test_predict.py::test_resizing_scales_disparity_by_the_ratio_of_the_widths")
LOADED = proved(
    "stereo/checkpoints/test_mono_files.py::test_a_head_of_the_other_depth_loads_only_when_asked"
)
CLIPPED = all_of(
    default("train.clip_grad_algorithm", "norm"),
    proved(f"{_TRAIN}::test_gradients_are_clipped_before_the_update"),
)
WARM_UP = proved(f"{_OPTIM}::test_a_warm_up_longer_than_half_of_the_run_is_cut_with_a_warning")
MOMENTUM = proved(f"{_OPTIM}::test_optimisers_read_their_settings_and_leave_frozen_parameters_out")
IDLE_DECAY = warned(
    "train.optim.lr_scheduler=PolynomialLR", "train.optim.lr_decay=0.9", words="power .* is 1"
)

INTERFACE: dict[str, Row] = {
    "spec base name must equal the verb": any_file_name,
    "fsdp forces fp16": refused("train.distributed_strategy=fsdp", words="several devices"),
    "gradient clip is by value": CLIPPED,
    "flips, hshift, gamma never read": all_of(
        proved(f"{_AUGMENT}::test_each_searched_field_changes_samples"),
        proved(f"{_AUGMENT}::test_gain_multiplies_after_the_power"),
        proved(f"{_AUGMENT}::test_shift_moves_the_right_view_by_every_integer_up_to_four"),
    ),
    "momentum never read": MOMENTUM,
    "warmup_steps ignored": WARM_UP,
    "lr_decay ignored by PolynomialLR": IDLE_DECAY,
    "evaluate ignores crop_size": SIZED,
    "stereo export overwrites": proved(
        "stereo/export/test_graph.py::test_an_existing_graph_is_kept_unless_overwrite_is_set"
    ),
    "mono export with another depth range": proved(
        "stereo/test_tasks.py::test_the_range_of_depth_is_part_of_weights_and_graph"
    ),
    "public weights of another head name": LOADED,
    "numpy scalar error": proved(
        "stereo/evaluation/test_evaluator.py::"
        "test_every_sample_has_a_row_in_order_and_all_of_it_is_json"
    ),
    "multi-GPU engine run reduced to one": refused(
        *("evaluate.trt_engine=a.rtx", "evaluate.checkpoint=null"),
        *("evaluate.num_gpus=2", "evaluate.gpu_ids=[0, 1]"),
        words=r"evaluate\.num_gpus: got 2",
        action="evaluate",
    ),
    "telemetry": all_of(without("stereo", "telemetry"), no_usage_statistics),
    "sys.exit inside the builder": without("stereo/engines", r"sys\.exit|\bassert_"),
    "workspace in MB": proved(f"{_SPEC}::test_workspace_accepts_units"),
    "the spec file is rewritten": any_file_name,
}
TRAINING: dict[str, Row] = {
    "model.model_type": all_of(
        accepted(
            "model.model_type=MetricDepthAnythingV2",
            "model.model_type",
            "MetricDepthAnything",
            ("mono_metric",),
        ),
        proved(f"{_SPEC}::test_other_spellings_are_accepted"),
    ),
    "train.activation_checkpoint": default("train.activation_checkpoint", False),
    "train.lr_scheduler": refused("train.lr_scheduler=StepLR", words=r"train\.optim\.lr_scheduler"),
    "train.optim.lr": all_of(
        default("train.optim.lr", 1e-5, STEREO),
        default("train.optim.lr", 5e-6, MONO),
        warned("train.optim.lr=1e-4", "train.pretrained_model_path=a.pth", words="high for loaded"),
        warned("train.optim.lr=1e-4", f"{BACKBONE}=a.pth", words="high for loaded", models=MONO),
    ),
    "optim.monitor_name": accepted(
        "train.optim.monitor_name=val/loss", "train.optim.monitor_name", "val_loss"
    ),
    "clip_grad_norm": CLIPPED,
    "warmup_steps 20": WARM_UP,
    "precision for stereo": refused("train.precision=bf16", words="fp32 or fp16", models=STEREO),
    "checkpoint names": proved(f"{_TRAIN}::test_a_plain_run_leaves_checkpoints_links_and_records"),
    "checkpoint_interval_steps": proved(
        f"{_TRAIN}::test_steps_are_saved_and_shown_beside_the_epochs"
    ),
    "dataloader_visualize, vis_step_interval": all_of(
        declared("train.dataloader_visualize", automl_enabled=False),
        declared("train.vis_step_interval", automl_enabled=False),
    ),
    "model.train_iters": declared("model.train_iters", STEREO, search_default=True),
    "momentum for AdamW": declared(
        "train.optim.momentum", active_if={"train.optim.optimizer": ("SGD",)}
    ),
    "lr_step_size, lr_decay, min_lr": declared(
        "train.optim.lr_step_size", active_if={"train.optim.lr_scheduler": ("StepLR",)}
    ),
    "model.volume_dim, model.cv_group": all_of(
        default("model.volume_dim", 28, STEREO), default("model.cv_group", 8, STEREO)
    ),
    "min_scale": all_of(
        accepted(
            "dataset.train_dataset.augmentation.min_scale=-1",
            "dataset.train_dataset.augmentation.min_scale",
            -1,
            STEREO,
        ),
        refused("dataset.train_dataset.augmentation.min_scale=-1.1", words="min_scale"),
    ),
    "dataset.max_disparity vs model.max_disparity": warned(
        "dataset.max_disparity=64", words="smaller of the two", models=STEREO
    ),
    "max_disparity under FFS": default("model.max_disparity", 192, ("ffs",)),
    "workers / num_workers": all_of(
        accepted("dataset.train_dataset.workers=0", "dataset.train_dataset.workers", 0),
        refused("dataset.train_dataset.num_workers=0", words="name is workers"),
    ),
    "evaluate.input_width/height": SIZED,
    "export opset": all_of(default("export.opset_version", 17), opset_of_the_gpu),
    "tensorrt.workspace_size": all_of(
        default("gen_trt_engine.tensorrt.workspace_size", 4),
        warned("gen_trt_engine.tensorrt.workspace_size=1024", words="unit is GiB"),
    ),
    "tensorrt.data_type": all_of(
        default(_DATA_TYPE, "fp32", ("fs", *MONO)),
        refused(*_FP16, "model.encoder=vitl", words="overflow", models=MONO, action=_BUILD),
        warned(*_FP16, "model.encoder=vits", words="overflow", models=MONO, action=_BUILD),
        refused(f"{_DATA_TYPE}=bf16", words="no bf16 engine", models=STEREO),
    ),
    "metrics as percentage": fractions,
    "inference bounded to the depth range": proved(
        "stereo/test_metrics.py::test_metric_depth_is_clipped_to_its_range"
    ),
    "public metric checkpoints fail to load": LOADED,
    "is_dry_run": proved(f"{_TRAIN}::test_a_dry_run_leaves_no_checkpoint"),
    "inference.conf_threshold": accepted(
        "inference.conf_threshold=0.3", "inference.conf_threshold", 0.3
    ),
    "dataset.normalize_depth with metric": refused(
        "dataset.normalize_depth=true", words="not in m", models=("mono_metric",)
    ),
    "reduce log_every_n_steps to go faster": default("train.log_every_n_steps", 500, ("fs", *MONO)),
}


@pytest.mark.parametrize("trap", [*INTERFACE, *TRAINING])
def test_a_trap_of_the_reference_is_none_of_ours(
    trap: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (INTERFACE | TRAINING)[trap]((tmp_path, caplog))


def test_every_row_of_both_tables_is_here() -> None:
    assert (len(INTERFACE), len(TRAINING)) == (17, 30)
