"""Matching volumes between rectified left and right feature maps, and the lookup in them.

Symbols: B batch, C channels, G groups, D disparity candidates, h, w rows and columns of the
feature map (1/4 of the image), N = B * h * w. Disparity is in feature-map pixels; candidate d
compares left column x with right column x - d. Columns x < d have no match and hold 0.

Every shift is a slice of a flattened array (rows of length L read with step L - 1 move by one
column per row), never an assignment per candidate: the graph stays small and the gradient is a
slice as well.

Source: group-wise correlation, Guo et al., CVPR 2019, section 3.2; geometry encoding volume with
all-pairs correlation, IGEV-Stereo, Xu et al., CVPR 2023.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stereo.nets.blocks import full_precision, leading, spatial_shape
from stereo.nets.recompute import recomputable
from stereo.nets.sampling import LinearTable, halve


def group_wise_correlation(
    left: Tensor, right: Tensor, *, num_groups: int, max_disparity: int, normalize: bool
) -> Tensor:
    """Correlate channel groups at every candidate disparity.

    Args:
        left: features of the left image, (B, C, h, w).
        right: features of the right image, (B, C, h, w).
        num_groups: G; divides C.
        max_disparity: D, in feature-map pixels.
        normalize: divide every group by its L2 norm first.

    Returns:
        Volume (B, G, D, h, w): sum over the C/G channels of left[x] * right[x - d].
    """
    channels, (height, width) = int(left.shape[1]), spatial_shape(left)
    batch = leading(left.shape[0])
    groups = (batch, num_groups, channels // num_groups, height, width)
    left, right = left.reshape(groups), right.reshape(groups)
    if normalize:
        left, right = F.normalize(left, dim=2), F.normalize(right, dim=2)
    # Column k of the padded right row holds right[w - 1 - k], and 0 from k = w on.
    reversed_right = F.pad(right.flip(-1), (0, max_disparity))
    products = left.permute(0, 1, 3, 4, 2) @ reversed_right.permute(0, 1, 3, 2, 4)
    # (B, G, h, w, w + D); candidate d of column x is at k = w - 1 - x + d.
    row = width + max_disparity
    products = products.reshape(batch, num_groups, height, width * row)
    diagonals = products[..., width - 1 : width - 1 + width * (row - 1)]
    diagonals = diagonals.reshape(batch, num_groups, height, width, row - 1)
    volume = diagonals[..., :max_disparity]  # (B, G, h, w, D)
    return volume.permute(0, 1, 4, 2, 3)


def concatenation_volume(left: Tensor, right: Tensor, *, max_disparity: int) -> Tensor:
    """Stack left features, repeated over d, and right features shifted by d.

    Args:
        left: (B, C, h, w).
        right: (B, C, h, w).
        max_disparity: D, in feature-map pixels.

    Returns:
        Volume (B, 2C, D, h, w); the left half does not depend on d, also where x < d.
    """
    channels, (height, width) = int(left.shape[1]), spatial_shape(left)
    row, batch = width + max_disparity, leading(left.shape[0])
    # Row d of the repeated array is read from column D - d on: right[x - d] behind D zeros.
    padded = F.pad(right, (max_disparity, 0)).unsqueeze(3)
    repeated = padded.expand(-1, -1, -1, max_disparity, -1)
    repeated = repeated.reshape(batch, channels, height, max_disparity * row)
    shifted = repeated[..., max_disparity:]
    shifted = shifted.reshape(batch, channels, height, max_disparity, row - 1)
    shifted = shifted[..., :width]  # (B, C, h, D, w)
    constant = left.unsqueeze(2).expand(-1, -1, max_disparity, -1, -1)
    return torch.cat((constant, shifted.transpose(2, 3)), dim=1)


def all_pairs_correlation(left: Tensor, right: Tensor) -> Tensor:
    """Cosine similarity of every left column with every right column of its row, (B, h, w, w)."""
    left, right = F.normalize(left, dim=1), F.normalize(right, dim=1)
    return left.permute(0, 2, 3, 1) @ right.permute(0, 2, 1, 3)


class GeometryLookup:
    """Reads the filtered volume and the all-pairs correlation around a disparity.

    Both are kept at `levels` resolutions along the disparity axis; level i holds means of 2^i
    samples. They are read in float32, also under autocast.

    Args:
        volume: filtered volume (B, C, D, h, w).
        left: features of the left image, (B, C', h, w).
        right: features of the right image, (B, C', h, w).
        levels: number of pyramid levels.
        radius: r; 2r+1 taps are read per level.
    """

    def __init__(
        self, volume: Tensor, left: Tensor, right: Tensor, *, levels: int, radius: int
    ) -> None:
        channels, (depth, height, width) = int(volume.shape[1]), spatial_shape(volume)
        batch = leading(volume.shape[0])
        self.map_shape = (batch, height, width)
        geometry = full_precision(volume).permute(0, 2, 3, 4, 1)  # (B, D, h, w, C), as in memory
        geometry = geometry.reshape(batch, depth, height * width, channels)
        appearance = full_precision(all_pairs_correlation(left, right))
        pixels = leading(volume.shape[0], height, width)
        appearance = appearance.reshape(pixels, width, 1, 1)  # (N, w, 1, 1)
        self.column = torch.arange(width, dtype=geometry.dtype, device=volume.device)
        self.levels: list[tuple[LinearTable, LinearTable]] = []
        for level in range(levels):
            if level:
                geometry, appearance = halve(geometry), halve(appearance)
            self.levels.append((LinearTable(geometry, radius), LinearTable(appearance, radius)))

    def __call__(self, disparity: Tensor) -> Tensor:
        """Return the samples around `disparity` (B, 1, h, w) as (B, channels, h, w).

        Channels: level by level the geometry samples, tap-major, then the appearance samples
        (`channel_order` tells where the released weights expect them).
        """
        return recomputable(self._samples, disparity)

    def _samples(self, disparity: Tensor) -> Tensor:
        position = disparity.reshape(-1)
        match = (self.column - disparity).reshape(-1)
        samples: list[Tensor] = []
        for level, (geometry, appearance) in enumerate(self.levels):
            scale = 0.5**level
            samples.append(geometry.read(position * scale).flatten(1))
            samples.append(appearance.read(match * scale).flatten(1))
        features = torch.cat(samples, dim=1)  # (N, channels)
        features = features.reshape(*self.map_shape, int(features.shape[1]))
        return features.permute(0, 3, 1, 2)


def lookup_channels(*, channels: int, levels: int, radius: int) -> int:
    """Number of channels a `GeometryLookup` returns for a volume of `channels`."""
    return levels * (2 * radius + 1) * (channels + 1)


def channel_order(*, channels: int, levels: int, radius: int) -> Tensor:
    """For every channel of a `GeometryLookup`, its index in the released weights.

    They order a level's geometry samples channel-major; memory holds them tap-major, and reordering
    one weight is cheaper than reordering every sample.
    """
    taps = 2 * radius + 1
    block = torch.arange(taps * channels).view(channels, taps).T.flatten()
    level = torch.cat((block, torch.arange(taps * channels, taps * (channels + 1))))
    return torch.cat([level + index * taps * (channels + 1) for index in range(levels)])
