"""The lookup's first convolution between networks of another radius or number of levels.

Its input channels are, level by level, the 2r+1 taps of every channel of the volume and then those
of the appearance correlation: channel `(level * (c + 1) + channel) * (2r + 1) + tap`, and the
middle tap is the current disparity. Networks of different radius share the taps around it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

State = Mapping[str, Tensor]

WEIGHT = "update_block.encoder.convc1.weight"
VOLUME = "cost_agg.conv1_up.conv.weight"  # its second axis has the channels of the volume


class Lookup(NamedTuple):
    """Sizes of a lookup.

    Attributes:
        channels: of the volume, c.
        levels: of the pyramid.
        radius: r; 2r+1 taps are read per level and channel.
    """

    channels: int
    levels: int
    radius: int

    @property
    def taps(self) -> int:
        """Samples of one channel at one level."""
        return 2 * self.radius + 1


def lookup_of(state: State) -> Lookup | None:
    """Sizes of the lookup of a stereo network; None where the tensors are not there or do not fit.

    `levels * (2r + 1)` is odd for one level and even for two.
    """
    weight, volume = state.get(WEIGHT), state.get(VOLUME)
    if weight is None or volume is None or weight.ndim < 2 or volume.ndim < 2:
        return None
    inputs, channels = weight.shape[1], volume.shape[1]
    if not inputs or inputs % (channels + 1):
        return None
    samples = inputs // (channels + 1)
    levels = 1 if samples % 2 else 2
    return Lookup(channels, levels, (samples // levels - 1) // 2)


def shared_taps(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[Tensor, str] | None:
    """The weight of `own` with the taps that it shares with `state`, and what was copied.

    None where the weights have equal shapes, or differ in more than their taps.
    """
    given, needed = lookup_of(state), lookup_of(own)
    if given is None or needed is None or given == needed or given.channels != needed.channels:
        return None
    source, fresh = state[WEIGHT], own[WEIGHT]
    if source.shape[0] != fresh.shape[0]:
        return None
    levels, radius = min(given.levels, needed.levels), min(given.radius, needed.radius)
    weight = fresh.clone()
    target = weight.view(-1, needed.levels, needed.channels + 1, needed.taps)
    theirs = source.reshape(-1, given.levels, given.channels + 1, given.taps)
    target[:, :levels, :, needed.radius - radius : needed.radius + radius + 1] = theirs[
        :, :levels, :, given.radius - radius : given.radius + radius + 1
    ]
    told = f"taps -{radius}..{radius} of {_levels(levels)} copied"
    return weight, f"{WEIGHT}: {told}, file: radius {given.radius}, {_levels(given.levels)}"


def _levels(count: int) -> str:
    return f"{count} level{'s' if count > 1 else ''}"
