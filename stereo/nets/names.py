"""Released tensor names -> ours, as tables.

The public stereo files carry other names than our state dicts; the tensors are the same. Public
monocular files differ in the name of the head, and those of their encoder alone lack its prefix.
Names that are ours already pass unchanged, so the rules can always be applied.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# The first prefix that matches is replaced, once.
Prefixes = tuple[tuple[re.Pattern[str], str], ...]
FS_PREFIXES: Prefixes = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^feature\.stem\.", "feature.downsample_layers.0."),
        (r"^feature\.stages\.([123])\.downsample\.", r"feature.downsample_layers.\1."),
        (r"^feature\.stages\.([0-3])\.blocks\.", r"feature.stages.\1."),
        (r"^cost_agg\.atts\.4\.", "cost_agg.atts.cost_vol_disp."),
    )
)
FFS_PREFIXES: Prefixes = (
    *FS_PREFIXES,
    (re.compile(r"^(corr_feature_att|classifier)\.layers\."), r"\1."),
)
FEATURE = "feature."  # the encoder inside a stereo network
EDGENEXT_PREFIX = f"{FEATURE}stages."
EDGENEXT_PARTS = (
    (".conv_dw.", ".dwconv."),
    (".mlp.fc1.", ".pwconv1."),
    (".mlp.fc2.", ".pwconv2."),
)
MONO_HEAD = re.compile(r"^(metric_)?depth_head\.")
MONO_ENCODER = "pretrained."
PATCHES = "patch_embed.proj.weight"  # of a DINOv2 file, which is the encoder without its prefix
NORM = re.compile(r"^(?P<block>.*)\.(bn|IN)\.(?P<leaf>\w+)$")


def rename_foundation_stereo(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return `state` under the names of `FoundationStereo`."""
    return _renamed(state, FS_PREFIXES)


def rename_fast_foundation_stereo(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return `state` under the names of `FastFoundationStereo`."""
    return _renamed(state, FFS_PREFIXES)


def _renamed(state: dict[str, Tensor], prefixes: Prefixes) -> dict[str, Tensor]:
    return {
        _rename(_norm_of_conv_block(name, state), prefixes): value for name, value in state.items()
    }


def _norm_of_conv_block(name: str, state: dict[str, Tensor]) -> str:
    """Rename `X.bn.leaf` and `X.IN.leaf` to `X.norm.leaf` where X is a ConvBlock."""
    match = NORM.match(name)
    if match is None or f"{match['block']}.conv.weight" not in state:
        return name
    return f"{match['block']}.norm.{match['leaf']}"


def _rename(name: str, prefixes: Prefixes) -> str:
    """Apply the prefix table, then the parts that differ within EdgeNeXt."""
    for pattern, replacement in prefixes:
        name, count = pattern.subn(replacement, name)
        if count:
            break
    if name.startswith(EDGENEXT_PREFIX):
        for theirs, ours in EDGENEXT_PARTS:
            name = name.replace(theirs, ours)
    return name


def rename_edgenext(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return `state` of a published `edgenext_small` under the names of the stereo encoder."""
    inside = _renamed({f"{FEATURE}{name}": value for name, value in state.items()}, FS_PREFIXES)
    return {name.removeprefix(FEATURE): value for name, value in inside.items()}


def rename_metric_depth(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return `state` under the names of `MetricDepthAnything`."""
    return _with_head(state, "metric_depth_head.")


def rename_relative_depth(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return `state` under the names of `RelativeDepthAnything`."""
    return _with_head(state, "depth_head.")


def _with_head(state: dict[str, Tensor], head: str) -> dict[str, Tensor]:
    """Give the tensors of the head the prefix `head`, those of a bare encoder the encoder's."""
    if PATCHES in state:
        return {f"{MONO_ENCODER}{name}": value for name, value in state.items()}
    return {MONO_HEAD.sub(head, name): value for name, value in state.items()}
