"""Losses of the networks: stereo sequences, metric depth, relative inverse depth.

Symbols: B batch, H, W rows and columns of the image, n refinement steps; p prediction, g ground
truth. The initial disparity is in quarter-resolution pixels, every other disparity in px of the
image, depth in m. Sums and means run over the valid pixels of the whole batch, in float32 or more;
without a valid pixel a term is 0 with zero gradients, never NaN.

Source: training.md 2. Weights of a sequence as in RAFT-Stereo (Lipson et al., 3DV 2021), scaled so
that the sum does not depend on n; SiLog of Eigen et al., NIPS 2014; scale-and-shift-invariant and
trimmed losses of MiDaS (Ranftl et al., TPAMI 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stereo.geometry import align
from stereo.spec.train import GRADIENT_WEIGHTS

INITIAL_SCALE = 4  # the initial disparity is at 1/4 resolution, in pixels of that resolution
DEPTH_FLOOR = 1e-6  # m; predictions are raised to it before the logarithm
SPREAD_FLOOR = 1e-6  # least mean deviation by which the trimmed loss divides
GRADIENT_STRIDES = (1, 2, 4, 8)  # of the maps whose neighbours are compared


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


def silog_loss(
    prediction: Tensor,
    depth: Tensor,
    valid: Tensor,
    *,
    form: Literal["variance", "sqrt"] = "variance",
    weight: float = 0.5,
) -> Tensor:
    """Scale-invariant logarithmic loss of e = ln p - ln g.

    Args:
        prediction: (B, 1, H, W), m; below `DEPTH_FLOOR` it counts as that, without a gradient.
        depth: ground truth (B, 1, H, W), m; any value where `valid` is False.
        valid: bool (B, 1, H, W).
        form: `variance`: sample variance of e + weight * mean(e)^2;
            `sqrt`: sqrt(mean(e^2) - weight * mean(e)^2), as public Depth Anything trains.
        weight: of the squared mean; with 0 (`variance`) or 1 (`sqrt`) the scale of p is free.
    """
    p = torch.where(valid, _at_least_float32(prediction), 1.0).clamp(min=DEPTH_FLOOR)
    error = p.log() - torch.where(valid, depth, 1.0).log()
    mean = masked_mean(error, valid)
    squares = torch.where(valid, (error - mean).square(), 0.0).sum()
    count = valid.sum()
    if form == "variance":
        return squares / (count - 1).clamp(min=1) + weight * mean.square()
    return _sqrt(squares / count.clamp(min=1) + (1 - weight) * mean.square())


def relative_loss(
    prediction: Tensor,
    target: Tensor,
    valid: Tensor,
    *,
    form: Literal["ssi", "trimmed"] = "ssi",
    gradient_weight: float | None = None,
) -> Tensor:
    """Loss of inverse depth that is known up to a scale and a shift per image.

    Args:
        prediction: (B, 1, H, W), any scale and shift.
        target: ground truth (B, 1, H, W); any value where `valid` is False.
        valid: bool (B, 1, H, W).
        form: `ssi` aligns p to g by least squares and takes half the mean squared error;
            `trimmed` divides both by their spread around the median and takes half the mean
            absolute error of the best 80 % of the pixels.
        gradient_weight: of the gradient term; None: that of `GRADIENT_WEIGHTS`.
    """
    p = torch.where(valid, _at_least_float32(prediction), 0.0)
    g = torch.where(valid, target, 0.0).to(p.dtype)
    if form == "ssi":
        p = align(p, g, valid).aligned
        data = masked_mean((p - g).square(), valid) / 2
    else:
        p, g = _standardised(p, valid), _standardised(g, valid)
        data = _trimmed_error(p, g, valid)
    weight = GRADIENT_WEIGHTS[form] if gradient_weight is None else gradient_weight
    return data + weight * _gradient_terms(p, g, valid)


def _standardised(values: Tensor, valid: Tensor) -> Tensor:
    """(d - median) / mean |d - median| of the valid pixels of each image; 0 elsewhere."""
    images = []
    for image, mask in zip(values, valid, strict=True):
        if mask.any():
            centred = torch.where(mask, image - _median(image[mask]), 0.0)
            spread = masked_mean(centred.abs(), mask).clamp(min=SPREAD_FLOOR)
            images.append(centred / spread)
        else:
            images.append(image)
    return torch.stack(images)


def _median(values: Tensor) -> Tensor:
    """Mean of the two middle values where their number is even (torch takes the lower one)."""
    ordered, middle = values.sort().values, len(values) // 2
    return (ordered[middle] + ordered[-1 - middle]) / 2


def _trimmed_error(p: Tensor, g: Tensor, valid: Tensor) -> Tensor:
    """Sum of the smallest 80 % of the errors / twice the number of all of them."""
    errors = (p - g).abs()[valid].sort().values
    kept = 4 * len(errors) // 5
    return errors[:kept].sum() / max(2 * len(errors), 1)


def _gradient_terms(p: Tensor, g: Tensor, valid: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring errors, summed over the strides."""
    error = torch.where(valid, p - g, 0.0)
    total = torch.zeros((), dtype=error.dtype, device=error.device)
    for stride in GRADIENT_STRIDES:
        r, m = error[..., ::stride, ::stride], valid[..., ::stride, ::stride]
        x = torch.where(m[..., 1:] & m[..., :-1], r.diff(dim=-1), 0.0).abs().sum()
        y = torch.where(m[..., 1:, :] & m[..., :-1, :], r.diff(dim=-2), 0.0).abs().sum()
        total = total + (x + y) / m.sum().clamp(min=1)
    return total


def smooth_l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Elementwise smooth-L1 with beta 1."""
    return F.smooth_l1_loss(prediction, target, reduction="none", beta=1.0)


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of `values` where `valid`; 0, still connected to the graph, where nothing is valid."""
    return torch.where(valid, values, 0.0).sum() / valid.sum().clamp(min=1)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _sqrt(value: Tensor) -> Tensor:
    """Square root whose gradient at 0 is 0 instead of infinite."""
    zero = value == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, value).sqrt())
