"""What a weight file is, from the names and shapes of its tensors alone.

Recognises the four networks and the encoders that they start from, derives every `model` field
that shapes tensors, and compares two such findings as a table (field, given, needed). Names are
ours; released ones are renamed before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from stereo.checkpoints import public_config, taps
from stereo.checkpoints.inert_pickle import Record
from stereo.errors import CheckpointError

State = Mapping[str, Tensor]
Fields = dict[str, Any]

STEREO_VIT = "feature.dino.depth_anything."
STEM = "corr_stem.0.weight"
PUBLIC = "corr_stem.1.norm.running_mean"  # only that variant of FoundationStereo has this norm
VARIANT_BOUND = (
    "cost_agg.agg_1.0.",
    "cost_agg.conv_patch.",
    "cost_agg.atts.cost_vol_disp.",
    "spx_2_gru.conv2.",
)
"""Layers of FoundationStereo that compute something else in the other variant."""
DISTILLED = "cost_agg.post8_to_4.upsample.0.conv.weight"
FILTERING = ("cost_agg.", "corr_feature_att.", "classifier.")
UNUSED_MODULES = (
    *(
        f"cost_agg.{name}."
        for name in (
            *("conv3_up", "conv2_up", "agg_0", "agg_1", "conv_out", "conv_patch"),
            *("atts.cost_vol_disp", "feature_att_up_8", "feature_att_up_16"),
        )
    ),
    "context_zqr_convs.",
)
"""Modules that FastFoundationStereo stores and never runs; a file may lack them."""

DEPTH_HEADS = {"metric_depth_head.": "MetricDepthAnything", "depth_head.": "RelativeDepthAnything"}
ENCODERS = {384: "vits", 768: "vitb", 1024: "vitl", 1536: "vitg"}  # by the width of a token
VIT_CHANNELS = {32: "vits", 64: "vitb", 128: "vitl"}  # by what the ViT adds to the 1/4 features
QUARTER_CHANNELS = 96  # of the CNN alone
EDGENEXT_SMALL = (48, 96, 160, 304)
BUFFERS = (".running_mean", ".running_var", ".num_batches_tracked")
PUBLIC_DISPARITY = 416  # of the public FoundationStereo files, if nothing says otherwise
SETTINGS = {
    "max_disparity": "max_disparity",
    "max_disp": "max_disparity",
    "valid_iters": "valid_iters",
    "low_memory": "low_memory",
    "mixed_precision": "mixed_precision",
    "n_downsample": "n_downsample",
    "gwc_feature_normalize": "gwc_feature_normalize",
    "normalize": "gwc_feature_normalize",
    "attention_layout": "attention_layout",
}
"""What some files say beside their weights and no shape shows: their name -> ours."""
SHAPING = {
    "vit_size": "encoder",
    **{key: key for key in ("hidden_dims", "n_gru_layers", "corr_levels", "corr_radius")},
}
"""What a configuration says and tensors show too: its name -> ours."""
BINDING = ("gwc_feature_normalize",)  # settings that the weights were made for


@dataclass(frozen=True)
class Identity:
    """What a set of tensors belongs to.

    Attributes:
        network: `model.model_type`, or the name of an encoder.
        tensors: number of tensors, buffers included.
        parameters: numbers in them without buffers and second names.
        fields: fields of section `model` that shape the tensors.
        settings: fields of section `model` that the file states and shapes do not show.
        epoch: 0-based epoch that the file was written after, if it says so.
        step: optimiser steps before it was written, if it says so.
        remark: what else a reader must know.
    """

    network: str
    tensors: int
    parameters: int
    fields: Fields
    settings: Fields = field(default_factory=dict)
    epoch: int | None = None
    step: int | None = None
    remark: str = ""

    def __str__(self) -> str:
        rows: list[tuple[str, Any]] = [("network", self.network)]
        rows += [(f"model.{key}", value) for key, value in self.fields.items()]
        rows += [(f"model.{key}", f"{value} (as stated)") for key, value in self.settings.items()]
        rows += [
            (name, value)
            for name, value in (("epoch", self.epoch), ("step", self.step))
            if value is not None
        ]
        rows += [("parameters", f"{self.parameters:,}"), ("tensors", self.tensors)]
        lines = [f"{name:<36}{value}" for name, value in rows]
        return "\n".join([*lines, self.remark] if self.remark else lines)


@dataclass(frozen=True)
class Contradiction:
    """A field of a spec that the weights do not fit."""

    field: str
    given: Any
    needed: Any

    def __str__(self) -> str:
        return f"{self.field}: given {self.given}, needed {self.needed}"


def identify(state: State, payload: Mapping[str, Any] | None = None) -> Identity:
    """Say what a network's tensors belong to.

    Args:
        state: tensors under our names.
        payload: the file they come from; its epoch and settings are told too.

    Raises:
        CheckpointError: no network of this program, or tensors of two kinds mixed.
    """
    for recognises, describe in KINDS:
        if recognises(state):
            found = describe(_Shapes(state))
            return found if payload is None else _with_statements(found, payload)
    raise CheckpointError(
        "none of the networks this program knows (FoundationStereo, FastFoundationStereo, "
        "MetricDepthAnything, RelativeDepthAnything) and none of their encoders"
        + (f"; first tensor {min(state)[:80]}" if state else "")
    )


def depth_of(state: State, payload: Mapping[str, Any] | None = None, name: str = "") -> str | None:
    """`model.model_type` that a monocular network was trained for; None where nothing tells.

    Released metric files have the tensor names of relative ones; their own names tell them apart.
    The public training script (containers `model`, names `module.`) exists for metric depth only.

    Args:
        state: tensors under the names of the file.
        payload: the file they come from.
        name: of the file.
    """
    heads = [head for head in DEPTH_HEADS if any(tensor.startswith(head) for tensor in state)]
    if not heads:
        return None
    spec = (payload or {}).get("spec")
    model = spec.get("model") if type(spec) is dict else None
    stated = model.get("model_type") if type(model) is dict else None
    if type(stated) is str and stated in DEPTH_HEADS.values():
        return stated
    if is_of_public_script(payload or {}):
        return None
    return DEPTH_HEADS["metric_depth_head." if "metric" in name.lower() else heads[0]]


def is_of_public_script(payload: Mapping[str, Any]) -> bool:
    """Whether a file looks as the public training script of Depth Anything V2 writes it."""
    container = payload.get("model")
    return type(container) is dict and all(str(key).startswith("module.") for key in container)


def other_meaning(state: State, own: State) -> tuple[str, ...]:
    """Tensors with the name and shape of one of `own` that compute something else there."""
    if STEM not in state or STEM not in own or (PUBLIC in state) == (PUBLIC in own):
        return ()
    return tuple(
        name
        for name, tensor in state.items()
        if name.startswith(VARIANT_BOUND) and name in own and own[name].shape == tensor.shape
    )


def contradictions(given: Identity, needed: Identity) -> tuple[Contradiction, ...]:
    """Fields in which the network of a spec differs from that of the weights.

    Args:
        given: of the spec, see `expected_state`.
        needed: of the file.
    """
    if given.network != needed.network:
        return (Contradiction("model.model_type", given.network, needed.network),)
    pairs = [(key, given.fields.get(key), value) for key, value in needed.fields.items()]
    pairs += [
        (key, given.settings.get(key), value)
        for key, value in needed.settings.items()
        if key in BINDING
    ]
    return tuple(
        Contradiction(f"model.{key}", ours, value)
        for key, ours, value in pairs
        if ours is not None and ours != value
    )


def table(rows: Sequence[Contradiction]) -> str:
    """Contradictions as a table with a heading."""
    cells = [("field", "given", "needed")]
    cells += [(row.field, str(row.given), str(row.needed)) for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(3)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in cells
    )
    return "\n".join(line.rstrip() for line in lines)


def expected_state(build: Callable[[Any], nn.Module], spec: Any) -> dict[str, Tensor]:
    """Names and shapes of the network that an experiment describes, without memory."""
    with torch.device("meta"):
        return build(spec).state_dict()


class Buildable(Protocol):
    """A row of the registry, as far as it matters here."""

    def experiment(self) -> Any:
        """An experiment with this network and no other wishes."""
        ...

    @property
    def build(self) -> Callable[[Any], nn.Module]:
        """Experiment -> network."""
        ...


def expected(row: Buildable) -> Callable[[Fields], dict[str, Tensor]]:
    """Return the function from fields of section `model` to names and shapes of that network."""

    def state_of(fields: Fields) -> dict[str, Tensor]:
        spec = row.experiment()
        for key, value in fields.items():
            *path, name = key.split(".")
            setattr(reduce(getattr, path, spec.model), name, value)
        return expected_state(row.build, spec)

    return state_of


def refusal(
    found: Identity, missing: Sequence[str], unexpected: Sequence[str], mismatched: Sequence[str]
) -> str:
    """Why weights fit no network of this program.

    Args:
        found: what they were recognised as.
        missing: tensors that the network of the file's own fields has and the file lacks.
        unexpected: tensors of the file without a place in that network.
        mismatched: tensors that differ from it in shape.
    """
    groups = (
        (unexpected, "tensors have no place in this network"),
        (missing, "are missing"),
        (mismatched, "differ in shape"),
    )
    told = ", ".join(f"{len(names)} {what} (first: {names[0]})" for names, what in groups if names)
    reason = SEARCHED[found.network](missing, unexpected) if found.network in SEARCHED else ""
    return f"unsupported {found.network} checkpoint: {told}{reason}"


def _searched(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    """The three kinds of FastFoundationStereo files that are published beside bp2."""
    if any(name.startswith("corr_stem.") for name in unexpected):
        kind = "is an undistilled FastFoundationStereo"
    elif any(name.startswith(FILTERING) for name in (*missing, *unexpected)):
        kind = "is a searched variant with other cost-filtering blocks"
    elif missing or unexpected:
        kind = "lacks or adds blocks outside the cost filtering"
    else:
        kind = "is pruned to widths this model cannot express"
    structure = "the bp2 structure (23-36-37 and the commercial bp2 file)"
    return f". The file {kind}. Supported: {structure}"


SEARCHED: Mapping[str, Callable[[Sequence[str], Sequence[str]], str]] = {
    "FastFoundationStereo": _searched
}
"""Networks of which files with other structures are published."""


def may_lack(own: State) -> tuple[str, ...]:
    """Prefixes of the tensors of a network that a file may lack, because nothing reads them."""
    return UNUSED_MODULES if DISTILLED in own else ()


class _Shapes:
    """Shape entries by tensor name; None for tensors that are not there."""

    def __init__(self, state: State) -> None:
        self.state = state

    def of(self, name: str, axis: int) -> int | None:
        tensor = self.state.get(name)
        return None if tensor is None or tensor.ndim <= axis else tensor.shape[axis]

    def outputs(self, *names: str) -> list[int] | None:
        """First shape entry of each tensor; None when one is not there."""
        found = [self.of(name, 0) for name in names]
        return None if None in found else [size for size in found if size is not None]

    def blocks(self, prefix: str) -> int | None:
        """Number of transformer blocks; None without one."""
        count = 0
        while self.has(f"{prefix}blocks.{count}."):
            count += 1
        return count or None

    def has(self, prefix: str) -> bool:
        return any(name.startswith(prefix) for name in self.state)

    def identity(self, network: str, fields: Fields, remark: str = "") -> Identity:
        known = {key: value for key, value in fields.items() if value is not None}
        return Identity(network, len(self.state), _parameters(self.state), known, remark=remark)


def _foundation_stereo(shapes: _Shapes) -> Identity:
    width = shapes.of(f"{STEREO_VIT}pretrained.patch_embed.proj.weight", 0)
    public = PUBLIC in shapes.state
    volume = shapes.of("cost_agg.conv1_up.conv.weight", 1)
    merged = shapes.of("cost_agg.agg_1.0.conv.weight", 0)
    if volume and merged and merged != (2 if public else 4) * volume:
        raise CheckpointError(
            f"corrupt, or tensors of both variants mixed: cost_agg.agg_1.0.conv.weight has {merged}"
            f" rows, the norms are those of variant {'public' if public else 'tao'}"
        )
    stem = shapes.of(STEM, 1)
    levels = [shapes.has(f"update_block.gru{level}.") for level in ("08", "16")]
    fields = {
        "encoder": ENCODERS.get(width or 0),
        "variant": "public" if public else "tao",
        "n_gru_layers": 1 + sum(levels),
        **_lookup(shapes),
        "volume_dim": volume,
        "cv_group": None if stem is None else stem - 24,
        **_dpt(shapes, f"{STEREO_VIT}depth_head.", "stereo_backbone"),
    }
    return shapes.identity("FoundationStereo", fields)


def _fast_foundation_stereo(shapes: _Shapes) -> Identity:
    of, outputs = shapes.of, shapes.outputs
    quarter = of("feature.conv4.weight", 0)
    volume = of("cost_agg.conv1_up.conv.weight", 1)
    half = of("proj_cmb.weight", 0)
    concat = None if half is None else 2 * half
    stem = of("corr_feature_att.0.conv.weight", 1)
    motion, gru, head = "update_block.encoder", "update_block.gru04", "update_block.disp_head.conv"
    unused = of("context_zqr_convs.0.weight", 1)
    fields = {
        "encoder": VIT_CHANNELS.get((quarter or 0) - QUARTER_CHANNELS),
        "hidden_dims": None if unused is None else [unused],
        **_lookup(shapes),
        "volume_dim": volume,
        "cv_group": None if stem is None or concat is None else stem - concat,
        "concat_channel": concat,
        "motion_encoder_widths": outputs(
            *(f"{motion}.{name}.weight" for name in ("convc1", "convc2", "convd1", "convd2"))
        ),
        "motion_encoder_final": of(f"{motion}.conv.weight", 0),
        "gru_hidden": of(f"{gru}.small_gru.convz.weight", 0),
        "gru_gating_conv_widths": outputs(f"{gru}.conv0.0.weight", f"{gru}.conv1.0.weight"),
        "disp_head_intermediate": of(f"{head}.0.weight", 0),
        "disp_head_pwconv1_widths": outputs(f"{head}.2.pwconv1.weight", f"{head}.3.pwconv1.weight"),
        "mask_widths": outputs("update_block.mask.0.weight", "update_block.mask.2.weight"),
        "stem_2_widths": outputs("stem_2.0.conv.weight", "stem_2.1.weight"),
        "spx_2_gru_widths": _upsampling(shapes),
        "spx_gru_out": of("spx_gru.0.weight", 1),
        "cnet_conv04_widths": outputs("cnet.conv04.0.conv.weight", "cnet.conv04.1.conv.weight"),
        "cam_mid_channels": of("cam.fc.0.weight", 0),
    }
    remark = "" if DISTILLED in shapes.state else "not the bp2 structure: cannot be loaded"
    return shapes.identity("FastFoundationStereo", fields, remark)


def _lookup(shapes: _Shapes) -> Fields:
    found = taps.lookup_of(shapes.state)
    return {} if found is None else {"corr_levels": found.levels, "corr_radius": found.radius}


def _upsampling(shapes: _Shapes) -> list[int] | None:
    enters = shapes.of("spx_2_gru.conv1.conv.weight", 0)
    mid = shapes.of("spx_2_gru.conv1.conv.weight", 1)
    merged = shapes.of("spx_2_gru.conv2.conv.weight", 1)
    leaves = shapes.of("spx_2_gru.conv2.conv.weight", 0)
    if enters is None or mid is None or merged is None or leaves is None:
        return None
    return [enters, mid, merged - mid, leaves]


def _depth_anything(network: str, head: str) -> Callable[[_Shapes], Identity]:
    def describe(shapes: _Shapes) -> Identity:
        width = shapes.of("pretrained.patch_embed.proj.weight", 0)
        fused = shapes.of(f"{head}scratch.layer1_rn.weight", 0)
        fields = {
            "encoder": ENCODERS.get(width or 0) or _proportions(width, fused),
            **_dpt(shapes, head, "mono_backbone"),
            "mono_backbone.blocks": shapes.blocks("pretrained."),
            "mono_backbone.width": width,
        }
        remark = (
            "released metric files carry these names too: their depth is metric"
            if head == "depth_head."
            else ""
        )
        return shapes.identity(network, fields, remark)

    return describe


def _proportions(width: int | None, fused: int | None) -> str | None:
    """The smallest encoder with the proportions of a thinner or wider network.

    Maps of the head are a sixth as wide as tokens for vits and vitb, a quarter for the others.
    """
    if width is None or fused is None:
        return None
    return "vits" if 5 * fused < width else "vitl"


def _dpt(shapes: _Shapes, head: str, backbone: str) -> Fields:
    return {
        f"{backbone}.use_bn": shapes.has(f"{head}scratch.refinenet1.resConfUnit1.bn1."),
        f"{backbone}.use_clstoken": shapes.has(f"{head}readout_projects."),
    }


def _dino(prefix: str) -> Callable[[_Shapes], Identity]:
    def describe(shapes: _Shapes) -> Identity:
        width = shapes.of(f"{prefix}patch_embed.proj.weight", 0)
        remark = "encoder only: model.mono_backbone.pretrained_path takes it"
        return shapes.identity("DINOv2", {"encoder": ENCODERS.get(width or 0)}, remark)

    return describe


def _edgenext(shapes: _Shapes) -> Identity:
    stem, widths = _edgenext_widths(shapes)
    size = "edgenext_small" if (stem, *widths) == EDGENEXT_SMALL else "EdgeNeXt of another size"
    remark = (
        "encoder only: model.stereo_backbone.edgenext_pretrained_path takes it"
        if size == "edgenext_small"
        else f"widths {(stem, *widths)}, the stereo networks have {EDGENEXT_SMALL}"
    )
    return shapes.identity(size, {}, remark)


def _edgenext_widths(shapes: _Shapes) -> tuple[int | None, list[int | None]]:
    """Widths of the four stages, under the names of either of the two published sources."""
    stem = shapes.of("stem.0.weight", 0) or shapes.of("downsample_layers.0.0.weight", 0)
    return stem, [
        shapes.of(f"stages.{i}.downsample.1.weight", 0)
        or shapes.of(f"downsample_layers.{i}.1.weight", 0)
        for i in (1, 2, 3)
    ]


def _starts(*prefixes: str) -> Callable[[State], bool]:
    """Test: every prefix occurs."""
    return lambda state: all(any(name.startswith(p) for name in state) for p in prefixes)


KINDS: tuple[tuple[Callable[[State], bool], Callable[[_Shapes], Identity]], ...] = (
    (_starts(STEREO_VIT), _foundation_stereo),
    (_starts("cost_agg.", "update_block."), _fast_foundation_stereo),
    *(
        (_starts("pretrained.", head), _depth_anything(network, head))
        for head, network in DEPTH_HEADS.items()
    ),
    (_starts("pretrained.patch_embed."), _dino("pretrained.")),
    (_starts("patch_embed.proj.", "blocks.0."), _dino("")),
    (_starts("stem.0.", "stages.0.blocks.0.conv_dw."), _edgenext),
    (_starts("downsample_layers.0.", "stages.0.0.dwconv."), _edgenext),
)
"""Tests in the order in which they decide, and what follows."""


def _parameters(state: State) -> int:
    """Numbers in the tensors of `state` that a network would train or freeze.

    A shortcut's norm is stored under two names.
    """
    return sum(
        tensor.numel()
        for name, tensor in state.items()
        if not name.endswith(BUFFERS)
        and name != "dx"
        and not (".downsample.1." in name and name.replace(".downsample.1.", ".norm3.") in state)
    )


def _with_statements(found: Identity, payload: Mapping[str, Any]) -> Identity:
    """`found` with the epoch, the step and the settings that a file tells beside its weights."""
    spec, config = payload.get("spec"), payload.get(public_config.NAME)
    sources = (config, payload.get("args"), spec.get("model") if type(spec) is dict else None)
    settings: Fields = {}
    for source in sources:
        for key, value in plain_settings(source).items():
            if key in SETTINGS:
                settings[SETTINGS[key]] = value
    remarks = [found.remark] if found.remark else []
    if type(config) is dict:
        remarks += _disputed(found, config)
        if found.fields.get("variant") == "public" and "max_disparity" not in settings:
            settings["max_disparity"] = PUBLIC_DISPARITY
            nothing = f"no {public_config.NAME} says more"
            remarks.append(f"max_disparity {PUBLIC_DISPARITY} as published: {nothing}")
    return replace(
        found,
        settings=settings,
        epoch=_count(payload.get("epoch")),
        step=_count(payload.get("global_step")),
        remark="\n".join(remarks),
    )


def _disputed(found: Identity, config: Mapping[str, Any]) -> list[str]:
    """Fields of which a configuration says something else than the tensors."""
    pairs = [(ours, config.get(theirs), found.fields.get(ours)) for theirs, ours in SHAPING.items()]
    return [
        f"{public_config.NAME} says {ours} {str(stated)[:80]}, the tensors show {shown}"
        for ours, stated, shown in pairs
        if stated is not None and shown is not None and stated != shown
    ]


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 2**53 else None


def plain_settings(value: Any) -> Fields:
    """Names and scalars of a dictionary, of a namespace, or of OmegaConf's records of one."""
    if isinstance(value, Record):
        value = value.state
    if type(value) is dict and isinstance(value.get("_content"), dict):
        value = value["_content"]
    if type(value) is not dict:
        return {}
    found: Fields = {}
    for key, entry in value.items():
        if isinstance(entry, Record) and type(entry.state) is dict:
            entry = entry.state.get("_val")
        if type(key) is str and _is_scalar(entry):
            found[key] = entry
    return found


def _is_scalar(value: Any) -> bool:
    """Whether `value` is one, and short."""
    if type(value) is str:
        return len(value) < 80
    return type(value) in (bool, float) or _count(value) is not None
