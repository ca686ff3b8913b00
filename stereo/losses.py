"""Sequence loss of the iterative stereo networks.

Symbols: B batch, H, W rows and columns of the image, n refinement steps. The initial disparity is
in quarter-resolution pixels, everything else in px of the image. Every mean runs over the valid
pixels of the whole batch; without a valid pixel it is 0 with zero gradients, never NaN.

Source: training.md 2.1; weights as in RAFT-Stereo (Lipson et al., 3DV 2021), scaled so that the sum
does not depend on n.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

INITIAL_SCALE = 4  # the initial disparity is at 1/4 resolution, in pixels of that resolution


class SequenceLoss(NamedTuple):
    """Scalars of one batch: `total` is minimised, the other two are for logs."""

    total: Tensor
    initial: Tensor  # smooth-L1 of the initial disparity, quarter px
    last: Tensor  # mean absolute error of the last refinement, px


def sequence_loss(
    initial: Tensor, refined: Sequence[Tensor], disparity: Tensor, valid: Tensor
) -> SequenceLoss:
    """Weighted sum of the errors of the initial and of every refined disparity.

    Args:
        initial: (B, 1, H/4, W/4), px at quarter resolution.
        refined: n maps (B, 1, H, W), px, in the order of refinement.
        disparity: ground truth (B, 1, H, W), px; any value where `valid` is False.
        valid: bool (B, 1, H, W).
    """
    truth = torch.where(valid, disparity, 0.0)
    step = (..., slice(None, None, INITIAL_SCALE), slice(None, None, INITIAL_SCALE))
    initial_loss = masked_mean(
        smooth_l1(_at_least_float32(initial), truth[step] / INITIAL_SCALE), valid[step]
    )
    terms = [
        masked_mean((_at_least_float32(prediction) - truth).abs(), valid) for prediction in refined
    ]
    weights = refinement_weights(len(terms))
    total = initial_loss + sum(weight * term for weight, term in zip(weights, terms, strict=True))
    return SequenceLoss(total, initial_loss, terms[-1])


def refinement_weights(count: int) -> list[float]:
    """Weights of `count` refinements: the last is 1, the first about 0.9^15, whatever the count."""
    if count == 1:
        return [1.0]
    gamma = 0.9 ** (15 / (count - 1))
    return [gamma ** (count - index) for index in range(1, count + 1)]


def smooth_l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Elementwise smooth-L1 with beta 1."""
    return F.smooth_l1_loss(prediction, target, reduction="none", beta=1.0)


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of `values` where `valid`; 0, still connected to the graph, where nothing is valid."""
    return torch.where(valid, values, 0.0).sum() / valid.sum().clamp(min=1)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
