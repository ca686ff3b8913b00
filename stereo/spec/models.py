"""The models of this version as rows: names, spec classes, and what their templates say.

What no row says is the same for every network and stands in `experiment.py`. How a network is
built and which files it can load is a row of `stereo/registry.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stereo.spec import experiment
from stereo.spec.experiment import (
    ACTIONS,
    ActionInput,
    ExperimentSpec,
    FoundationStereoExperiment,
    MetricDepthExperiment,
    RelativeDepthExperiment,
)
from stereo.spec.fields import MISSING, Node, walk

_TRAIN_WEIGHTS = ("train.pretrained_model_path", "train.resume_training_checkpoint_path")
_EDGENEXT = "model.stereo_backbone.edgenext_pretrained_path"
_BACKBONE = "model.mono_backbone.pretrained_path"
_METRIC_LIMITS = {
    "dataset.normalize_depth": False,
    "dataset.min_depth": 0.001,
    "dataset.max_depth": 10.0,
}
_CHECKPOINT_MB = {"model.encoder": {"vits": 284, "vitb": 1116, "vitl": 3838, "vitg": 14399}}
_NO_LIMITS = {"dataset.min_depth": None, "dataset.max_depth": None}
_DEPTH_ANYTHING = "model.stereo_backbone.depth_anything_v2_pretrained_path"
_MONO_VIT_FIELDS = ("model.encoder", "model.mono_backbone.blocks", "model.mono_backbone.width")
_VIT_FIELDS = (
    "model.encoder",
    "model.stereo_backbone.use_bn",
    "model.stereo_backbone.use_clstoken",
)


@dataclass(frozen=True)
class Model:
    """What is published about one network, and where its experiments differ from the others.

    Attributes:
        key: `ffs`, as in `MODEL=` and the folder names.
        model_type: the long name inside a spec (`model.model_type`).
        family: row of the field table (`fields.csv` of the design pages).
        spec_class: dataclass of the experiment.
        block: values of section `model` in the templates of verbs that meet the network.
        templates: verb -> values of its template beside those of `ACTIONS`.
        outputs: verb -> files and folders that it writes beside those of `ACTIONS`.
        spec_params: verb -> fields that a parent run fills beside those of `ACTIONS`.
        shorthands: short names on the command line beside those of every network.
        metrics: what training reports -> direction, unit and whether it is meaningful.
        objective: the metric that a study optimises unless it names another.
        parity_limits: engine precision -> metric -> largest difference between the scores of
            checkpoint and engine with which a promotion accepts the engine.
        default_dataset: class of an annotation file that is given without one.
        weight_keys: any of these set means that training starts from loaded weights.
        part_keys: files that fill a part of the network, and the fields that shape that part.
        checkpoint_mb: with AdamW state at the default widths, or by the value of a field; a study
            plans its disk with it.
        seconds_per_epoch: of the packaged profile, one core; docs/performance.md.
    """

    key: str
    model_type: str
    family: str
    spec_class: type[ExperimentSpec]
    block: Mapping[str, Any]
    templates: Mapping[str, Mapping[str, Any]]
    outputs: Mapping[str, tuple[str, ...]]
    metrics: Mapping[str, Mapping[str, Any]]
    objective: str
    parity_limits: Mapping[str, Mapping[str, float]]
    default_dataset: str
    weight_keys: tuple[str, ...]
    checkpoint_mb: int | Mapping[str, Mapping[str, int]]
    seconds_per_epoch: Mapping[str, int]
    spec_params: Mapping[str, Mapping[str, str]] = field(default_factory=dict[str, Any])
    shorthands: Mapping[str, str] = field(default_factory=dict[str, str])
    part_keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])

    @property
    def dataset_name(self) -> str:
        """Family of its data: StereoDataset or MonoDataset."""
        return self.spec_class().dataset.dataset_name

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All sections and fields of an experiment."""
        return walk(self.spec_class)

    def packaged_values(self, action: str) -> dict[str, Any]:
        """Dotted path -> value of the packaged template of a verb."""
        names_only = {"model_type": self.model_type}
        network = names_only | dict(self.block if ACTIONS[action].network else {})
        return {
            "results_dir": MISSING,
            **{f"model.{name}": value for name, value in network.items()},
            "dataset.dataset_name": self.dataset_name,
            **ACTIONS[action].template,
            **self.templates.get(action, {}),
        }

    def inputs(self, action: str) -> tuple[ActionInput, ...]:
        """The paths that a verb reads."""
        parts = self.part_keys if action == "train" else ()
        return (*ACTIONS[action].inputs, *(ActionInput(key, optional=True) for key in parts))

    def inherited(self, action: str) -> dict[str, str]:
        """Field -> rule that fills it from a parent run (interface.md section 6)."""
        return {
            "dataset.dataset_name": f"constant {self.dataset_name}",
            "model.model_type": f"constant {self.model_type}",
            "results_dir": "output_dir",
            **ACTIONS[action].spec_params,
            **self.spec_params.get(action, {}),
        }

    @property
    def short_names(self) -> dict[str, str]:
        """Short names accepted on the command line."""
        return {**experiment.SHORTHANDS, **self.shorthands}


BP2_BLOCK: Mapping[str, Any] = {
    "model_type": "FastFoundationStereo",
    "encoder": "vitl",
    "hidden_dims": [128],
    "n_gru_layers": 1,
    "corr_radius": 4,
    "corr_levels": 2,
    "n_downsample": 2,
    "valid_iters": 8,
    "train_iters": 22,
    "max_disparity": 192,
    "volume_dim": 28,
    "mixed_precision": False,
    "gwc_feature_normalize": True,
    "motion_encoder_widths": [56, 96, 16, 12],
    "motion_encoder_final": 48,
    "gru_hidden": 60,
    "gru_gating_conv_widths": [100, 168],
    "disp_head_input_dim": 60,
    "disp_head_intermediate": 36,
    "disp_head_pwconv1_widths": [212, 244],
    "mask_widths": [32, 16],
    "stem_2_widths": [12, 16],
    "spx_2_gru_widths": [16, 12, 16, 24],
    "spx_gru_out": 9,
    "classifier_mid": 14,
    "cnet_conv04_widths": [60, 48],
    "cam_mid_channels": 8,
    "cost_agg_conv_patch_padding": [0, 0, 0],
}
"""Values of section `model` that the released bp2 weights were trained with."""


_SOURCES = "dataset.infer_dataset.data_sources"
_STEREO_TEMPLATES: Mapping[str, Mapping[str, Any]] = {
    "convert": {
        "convert.right_dir_pattern": MISSING,
        "convert.nocc_dir_pattern": [],
        "convert.nocc_extension": ".png",
    },
    "train": {"dataset.train_dataset.augmentation.crop_size": [320, 736], "train.optim.lr": 1e-5},
    "inference": {_SOURCES: [{"dataset_name": "GenericDataset", "data_file": MISSING}]},
    "export": {"export.input_width": 736},
}
_STEREO_LIMITS = {"fp32": {"epe": 0.05}, "fp16": {"epe": 0.2}}  # px
_MONO_LIMITS = {precision: {"abs_rel": 0.01} for precision in ("fp32", "fp16", "bf16")}
_STEREO_OUTPUTS = {"inference": ("disparity_pfm/", "disparity_npy/", "depth/")}
_MONO_OUTPUTS = {"inference": ("depth_pfm/", "depth_npy/")}


def _stereo(**verbs: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Templates of a stereo network: what all of them say, and its own values."""
    return {
        action: {**_STEREO_TEMPLATES.get(action, {}), **verbs.get(action, {})} for action in ACTIONS
    }


def _one_by_one(*splits: str) -> dict[str, Any]:
    """Splits of 320x736 pairs, one pair a batch: what the small network was trained with."""
    settings = {"augmentation.crop_size": [320, 736], "batch_size": 1, "workers": 4}
    return {
        f"dataset.{split}_dataset.{name}": value
        for split in splits
        for name, value in settings.items()
    }


def _mono(
    dataset: str, limits: Mapping[str, Any], weights: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Templates of a mono network.

    Args:
        dataset: class of the images to predict.
        limits: the settings of depth, which every verb repeats.
        weights: keys of the weights to start from.
    """
    train = {
        **limits,
        "dataset.train_dataset.augmentation.crop_size": [518, 518],
        "dataset.train_dataset.batch_size": 4,
        **dict.fromkeys(weights),
        "train.clip_grad_norm": 0.1,
        "train.optim.lr": 5e-6,
        "train.optim.lr_scheduler": "LambdaLR",
        "train.optim.warmup_steps": 20,
        "train.optim.weight_decay": 1e-4,
    }
    return {
        "train": train,
        "evaluate": {**limits, "dataset.test_dataset.augmentation.crop_size": [518, 518]},
        "inference": {**limits, _SOURCES: [{"dataset_name": dataset, "data_file": MISSING}]},
        "export": {
            **limits,
            "export.input_height": 518,
            "export.input_width": 518,
            "export.batch_size": -1,
        },
        "gen_trt_engine": {
            **limits,
            "gen_trt_engine.batch_size": -1,
            "gen_trt_engine.tensorrt.max_batch_size": 4,
        },
    }


def _mono_model(
    *,
    key: str,
    model_type: str,
    spec_class: type[experiment.ExperimentSpec],
    limits: Mapping[str, Any],
    weights: Sequence[str],
    metrics: Mapping[str, Mapping[str, Any]],
    dataset: str,
) -> Model:
    """Row of a monocular network; they differ in what they predict.

    Args:
        key: also the family.
        model_type: the long name inside a spec.
        spec_class: dataclass of an experiment.
        limits: the settings of depth, which every verb repeats.
        weights: keys of the weights to start from.
        metrics: what is measured.
        dataset: class of the images to predict.
    """
    return Model(
        key=key,
        model_type=model_type,
        family=key,
        spec_class=spec_class,
        block={"encoder": "vitl"},
        templates=_mono(dataset, limits, weights),
        outputs=_MONO_OUTPUTS,
        metrics=metrics,
        objective="val/abs_rel",
        parity_limits=_MONO_LIMITS,
        default_dataset=dataset,
        weight_keys=_TRAIN_WEIGHTS,
        part_keys={_BACKBONE: _MONO_VIT_FIELDS},
        checkpoint_mb=_CHECKPOINT_MB,
        seconds_per_epoch={"cpu": 9},
        spec_params={"train": {_BACKBONE: "ptm"}},
        shorthands={"depth_anything_ptm": _BACKBONE},
    )


MODELS: Mapping[str, Model] = {
    model.key: model
    for model in (
        Model(
            key="ffs",
            model_type="FastFoundationStereo",
            family="stereo_ffs",
            spec_class=ExperimentSpec,
            block=BP2_BLOCK,
            templates=_stereo(
                train={
                    "dataset.max_disparity": 192,
                    "train.num_epochs": 1,
                    "train.log_every_n_steps": 1,
                    "train.pretrained_model_path": None,
                    "train.optim.lr_scheduler": "MultiStepLR",
                    "train.optim.lr_decay": 0.1,
                    "train.optim.warmup_steps": 0,
                },
                evaluate={"dataset.test_dataset.augmentation.crop_size": [480, 736]},
                export={
                    "export.input_height": 480,
                    "export.batch_size": 1,
                    "export.valid_iters": 8,
                },
                gen_trt_engine={
                    "gen_trt_engine.batch_size": 1,
                    "gen_trt_engine.tensorrt.max_batch_size": 1,
                },
            ),
            outputs=_STEREO_OUTPUTS,
            metrics=experiment.METRICS,
            objective="val/epe",
            parity_limits=_STEREO_LIMITS,
            default_dataset="GenericDataset",
            weight_keys=_TRAIN_WEIGHTS,
            part_keys={_EDGENEXT: ()},
            checkpoint_mb=190,
            seconds_per_epoch={"cpu": 13},
            shorthands={"bp2_ckpt": "train.pretrained_model_path", "edgenext_ptm": _EDGENEXT},
        ),
        Model(
            key="fs",
            model_type="FoundationStereo",
            family="stereo_fs",
            spec_class=FoundationStereoExperiment,
            block={"encoder": "vits", "max_disparity": 416, "volume_dim": 28},
            templates=_stereo(
                train={
                    "dataset.max_disparity": 416,
                    **_one_by_one("train", "val"),
                    _EDGENEXT: None,
                    _DEPTH_ANYTHING: None,
                    "train.num_epochs": 6,
                    "train.clip_grad_norm": 0.1,
                    "train.pretrained_model_path": None,
                    "train.optim.lr_scheduler": "PolynomialLR",
                    "train.optim.warmup_steps": 20,
                },
                evaluate={"dataset.max_disparity": 416, **_one_by_one("test")},
                inference={"dataset.infer_dataset.batch_size": 1},
                export={
                    "export.input_height": 320,
                    "export.batch_size": -1,
                    "export.valid_iters": 22,
                },
                gen_trt_engine={
                    "gen_trt_engine.batch_size": -1,
                    "gen_trt_engine.tensorrt.max_batch_size": 4,
                },
            ),
            outputs=_STEREO_OUTPUTS,
            metrics=experiment.METRICS,
            objective="val/epe",
            parity_limits=_STEREO_LIMITS,
            default_dataset="GenericDataset",
            weight_keys=_TRAIN_WEIGHTS,
            part_keys={_EDGENEXT: (), _DEPTH_ANYTHING: _VIT_FIELDS},
            checkpoint_mb=560,
            seconds_per_epoch={"cpu": 38},
            spec_params={"train": {_DEPTH_ANYTHING: "ptm"}},
            shorthands={"depth_anything_ptm": _DEPTH_ANYTHING, "edgenext_ptm": _EDGENEXT},
        ),
        _mono_model(
            key="mono_metric",
            model_type="MetricDepthAnything",
            spec_class=MetricDepthExperiment,
            limits=_METRIC_LIMITS,
            weights=[_BACKBONE],
            metrics=experiment.MONO_METRICS,
            dataset="MetricMonoDataset",
        ),
        _mono_model(
            key="mono_relative",
            model_type="RelativeDepthAnything",
            spec_class=RelativeDepthExperiment,
            limits=_NO_LIMITS,
            weights=[_TRAIN_WEIGHTS[0], _BACKBONE],
            metrics=experiment.RELATIVE_METRICS,
            dataset="RelativeMonoDataset",
        ),
    )
}
DEFAULT = "ffs"  # of a spec that does not name its network


def model_of(spec: ExperimentSpec) -> Model:
    """Row of the network that an experiment is about."""
    return next(model for model in MODELS.values() if type(spec) is model.spec_class)
