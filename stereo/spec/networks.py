"""Hyperparameters of the networks (section `model`), one dataclass per network.

Widths are channels. Defaults of FastFoundationStereo are the released bp2 values, so leaving a
field out builds the network that the bp2 weights fit; those of FoundationStereo fit its small
released weights. Structure rules are rows of `rules.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stereo.spec.fields import same_field, spec_field, with_default

ModelType = Literal[
    "FoundationStereo", "FastFoundationStereo", "MetricDepthAnything", "RelativeDepthAnything"
]

MonoEncoder = Literal["vits", "vitb", "vitl", "vitg"]
QUARTER_WIDTHS = {"vits": 128, "vitb": 160, "vitl": 224}  # channels of the 1/4-scale features
LEVEL_WIDTHS = [128, 128, 128]  # GRU widths for which FoundationStereo is defined
VARIANT_LAYOUTS = {
    "tao": ("auto", "rows"),
    "public": ("auto", "groups", "mha"),
    "auto": ("auto", "rows", "groups", "mha"),
}


@dataclass
class StereoBackboneSpec:
    """Image encoder (`model.stereo_backbone`)."""

    depth_anything_v2_pretrained_path: str | None = spec_field(
        None, "Depth Anything V2 weights for the stereo ViT branch"
    )
    edgenext_pretrained_path: str | None = spec_field(
        None, "EdgeNeXt weights for the stereo CNN branch"
    )
    use_bn: bool = spec_field(False, "Batch normalisation inside the DPT head", shapes_weights=True)
    use_clstoken: bool = spec_field(
        False, "Feed the class token to the DPT head", shapes_weights=True
    )


@dataclass
class FoundationStereoSpec:
    """Hyperparameters of FoundationStereo (`model`)."""

    model_type: ModelType = spec_field("FoundationStereo", "Which of the four networks to build")
    encoder: Literal["vits", "vitb", "vitl"] = spec_field(
        "vits",
        "ViT size; also sets feature widths of the stereo networks",
        automl_enabled=None,
        shapes_weights=True,
    )
    variant: Literal["tao", "public", "auto"] = spec_field(
        "tao",
        "Which FoundationStereo: tao, public, or auto (follow the checkpoint; tao without one)",
        shapes_weights=True,
    )
    attention_layout: Literal["auto", "rows", "groups", "mha"] = spec_field(
        "auto", "Arrangement of the heads in the disparity transformer"
    )
    stereo_backbone: StereoBackboneSpec = spec_field(StereoBackboneSpec, "Stereo backbone options")
    hidden_dims: list[int] = spec_field(
        [128, 128, 128], "GRU hidden widths, one per level", item_low=1, shapes_weights=True
    )
    n_gru_layers: int = spec_field(
        3, "Number of GRU levels", low=1, high=3, automl_enabled=None, shapes_weights=True
    )
    n_downsample: int = spec_field(2, "Disparity is refined at 1/2^n resolution", low=2, high=2)
    corr_radius: int = spec_field(
        4,
        "Lookup radius r: 2r+1 samples per pyramid level",
        low=2,
        high=8,
        automl_enabled=True,
        shapes_weights=True,
    )
    corr_levels: int = spec_field(
        2,
        "Levels of the correlation pyramid",
        low=1,
        high=2,
        automl_enabled=None,
        shapes_weights=True,
    )
    cv_group: int = spec_field(
        8,
        "Groups of the group-wise correlation volume; must divide the 1/4-scale feature width",
        low=4,
        high=16,
        options=(4, 8, 16),
        automl_enabled=True,
        search_default=False,
        shapes_weights=True,
    )
    volume_dim: int = spec_field(
        28,
        "Channels of the filtered cost volume",
        low=16,
        high=64,
        math_cond="/ 4",
        automl_enabled=True,
        search_default=False,
        shapes_weights=True,
    )
    max_disparity: int = spec_field(
        416,
        "Number of disparity hypotheses at full resolution; must be a multiple of 32",
        unit="px",
        low=32,
        high=832,
    )
    train_iters: int = spec_field(
        22,
        "GRU updates per training forward pass",
        unit="GRU updates",
        low=1,
        high=64,
        search_range=(4, 32),
        search_range_cpu=(2, 8),
        automl_enabled=True,
    )
    valid_iters: int = spec_field(
        22, "GRU updates per evaluation forward pass", unit="GRU updates", low=1, high=64
    )
    low_memory: int = spec_field(
        0, "Memory-saving level of the cost-volume lookup, 0 = off", low=0, high=4
    )
    mixed_precision: bool = spec_field(
        False, "Run the forward pass under autocast", automl_enabled=None
    )
    compile: bool = spec_field(False, "Run the network through torch.compile")


@dataclass
class FastFoundationStereoSpec:
    """Hyperparameters of FastFoundationStereo (`model`)."""

    model_type: ModelType = with_default(FoundationStereoSpec, "model_type", "FastFoundationStereo")
    encoder: Literal["vits", "vitb", "vitl"] = with_default(FoundationStereoSpec, "encoder", "vitl")
    stereo_backbone: StereoBackboneSpec = same_field(FoundationStereoSpec, "stereo_backbone")
    hidden_dims: list[int] = with_default(FoundationStereoSpec, "hidden_dims", [128])
    n_gru_layers: int = spec_field(
        1, "Number of GRU levels", low=1, high=1, automl_enabled=None, shapes_weights=True
    )
    n_downsample: int = same_field(FoundationStereoSpec, "n_downsample")
    corr_radius: int = same_field(FoundationStereoSpec, "corr_radius")
    corr_levels: int = same_field(FoundationStereoSpec, "corr_levels")
    cv_group: int = same_field(FoundationStereoSpec, "cv_group")
    volume_dim: int = same_field(FoundationStereoSpec, "volume_dim")
    concat_channel: int = spec_field(
        24,
        "Channels of the concatenation volume",
        automl_enabled=None,
        shapes_weights=True,
    )
    max_disparity: int = with_default(FoundationStereoSpec, "max_disparity", 192)
    train_iters: int = same_field(FoundationStereoSpec, "train_iters")
    valid_iters: int = with_default(FoundationStereoSpec, "valid_iters", 8)
    low_memory: int = same_field(FoundationStereoSpec, "low_memory")
    mixed_precision: bool = same_field(FoundationStereoSpec, "mixed_precision")
    compile: bool = same_field(FoundationStereoSpec, "compile")
    gwc_feature_normalize: bool = spec_field(
        True,
        "L2-normalise features before group-wise correlation; must be true for bp2 weights",
        automl_enabled=None,
    )
    motion_encoder_widths: list[int] = spec_field(
        [56, 96, 16, 12],
        "Widths of the four inner convolutions of the motion encoder",
        length=4,
        item_low=1,
        automl_enabled=None,
        shapes_weights=True,
    )
    motion_encoder_final: int | None = spec_field(
        48,
        "Output width of the motion encoder before disparity is appended",
        automl_enabled=None,
        shapes_weights=True,
    )
    gru_hidden: int | None = spec_field(
        60, "GRU hidden width (FFS)", automl_enabled=None, shapes_weights=True
    )
    gru_gating_conv_widths: list[int] | None = spec_field(
        [100, 168],
        "Widths of the two input convolutions of the selective GRU",
        length=2,
        item_low=1,
        automl_enabled=None,
        shapes_weights=True,
    )
    disp_head_input_dim: int | None = spec_field(
        60, "Input width of the disparity head", shapes_weights=True
    )
    disp_head_intermediate: int | None = spec_field(
        36, "Inner width of the disparity head", automl_enabled=None, shapes_weights=True
    )
    disp_head_pwconv1_widths: list[int] | None = spec_field(
        [212, 244],
        "Expansion widths of the two EdgeNeXt blocks in the disparity head",
        length=2,
        item_low=1,
        automl_enabled=None,
        shapes_weights=True,
    )
    mask_widths: list[int] = spec_field(
        [32, 16],
        "Widths of the upsampling-mask convolutions",
        length=2,
        item_low=1,
        automl_enabled=None,
        shapes_weights=True,
    )
    stem_2_widths: list[int] = spec_field(
        [12, 16],
        "Widths of the two layers of the half-resolution stem",
        length=2,
        item_low=1,
        automl_enabled=None,
        shapes_weights=True,
    )
    spx_2_gru_widths: list[int] = spec_field(
        [16, 12, 16, 24],
        "[in, mid, skip, out] widths of the final upsampling block",
        length=4,
        item_low=1,
        automl_enabled=None,
        shapes_weights=True,
    )
    spx_gru_out: int = spec_field(
        9,
        "Output channels of the upsampling-weight head; must be 9 (3x3 neighbourhood)",
        low=9,
        high=9,
        shapes_weights=True,
    )
    classifier_mid: int | None = spec_field(
        14, "Inner width of the disparity classifier (unused by the FFS graph)"
    )
    cnet_conv04_widths: list[int] | None = spec_field(
        [60, 48],
        "Widths of the two context heads (hidden state, input)",
        length=2,
        item_low=1,
        automl_enabled=None,
        shapes_weights=True,
    )
    cam_mid_channels: int | None = spec_field(
        8, "Inner width of the channel-attention block", automl_enabled=None, shapes_weights=True
    )
    cost_agg_conv_patch_padding: list[int] | None = spec_field(
        [0, 0, 0], "Padding of the patch convolution of the hourglass", length=3, item_low=0
    )


@dataclass
class MonoBackboneSpec:
    """Image encoder (`model.mono_backbone`)."""

    pretrained_path: str | None = spec_field(
        None,
        "Backbone-only weights for the monocular networks (DINOv2, or a relative checkpoint for "
        "metric fine-tuning)",
    )
    use_bn: bool = same_field(StereoBackboneSpec, "use_bn")
    use_clstoken: bool = same_field(StereoBackboneSpec, "use_clstoken")
    blocks: int | None = spec_field(
        None,
        "Transformer blocks; null = as many as model.encoder has; fewer make a thinner network that"
        " released weights do not fit",
        low=4,
        high=40,
        shapes_weights=True,
    )
    width: int | None = spec_field(
        None,
        "Width of a token, a multiple of 64; the maps of the head follow in proportion; null = that"
        " of model.encoder, the only one that released weights fit",
        low=64,
        high=1536,
        math_cond="/ 64",
        shapes_weights=True,
    )


@dataclass
class MetricDepthSpec:
    """Hyperparameters of MetricDepthAnything (`model`)."""

    model_type: ModelType = with_default(FoundationStereoSpec, "model_type", "MetricDepthAnything")
    encoder: MonoEncoder = with_default(FoundationStereoSpec, "encoder", "vitl")
    mono_backbone: MonoBackboneSpec = spec_field(MonoBackboneSpec, "Monocular backbone options")
    compile: bool = same_field(FoundationStereoSpec, "compile")


@dataclass
class RelativeDepthSpec:
    """Hyperparameters of RelativeDepthAnything (`model`)."""

    model_type: ModelType = with_default(
        FoundationStereoSpec, "model_type", "RelativeDepthAnything"
    )
    encoder: MonoEncoder = same_field(MetricDepthSpec, "encoder")
    mono_backbone: MonoBackboneSpec = same_field(MetricDepthSpec, "mono_backbone")
    compile: bool = same_field(MetricDepthSpec, "compile")
