"""Batch normalisation folded into the convolution before it, for networks that only predict.

A norm in evaluation mode is one factor and one summand per channel; multiplied into weight and bias
of the convolution that feeds it, it costs nothing. The sums are made in double precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.fusion import fuse_conv_bn_weights

from stereo.nets.blocks import BatchNorm

Network = TypeVar("Network", bound=nn.Module)

# In the networks of this package a norm of these names takes what the convolution gives.
NAMES = (("conv", "norm"), *((f"conv{n}", f"{norm}{n}") for norm in ("norm", "bn") for n in (1, 2)))


def fold_norms(network: Network) -> Network:
    """Fold every batch norm behind a convolution into it, in place, and return the network.

    The network is in evaluation mode. Its state dict loses the norms: give a copy of one that is
    still to be trained or saved.
    """
    for module in list(network.modules()):
        for conv, norm in _pairs(module):
            first, second = module.get_submodule(conv), module.get_submodule(norm)
            if isinstance(first, _ConvNd) and isinstance(second, BatchNorm):
                _fold(first, second)
                setattr(module, norm, nn.Identity())
    return network


def _pairs(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of neighbours in a module, of which the second may be the norm of the first."""
    children = dict(module.named_children())
    if isinstance(module, nn.Sequential):
        yield from pairwise(children)
    yield from (pair for pair in NAMES if children.keys() >= set(pair))


@torch.no_grad()
def _fold(conv: _ConvNd, norm: BatchNorm) -> None:
    mean, variance, _ = (value.double() for value in norm.buffers())
    scale, shift = norm.weight.double(), norm.bias.double()
    bias = None if conv.bias is None else conv.bias.double()
    transposed = isinstance(conv, _ConvTransposeNd)
    weight, bias = fuse_conv_bn_weights(
        conv.weight.double(), bias, mean, variance, norm.eps, scale, shift, transposed
    )
    dtype = conv.weight.dtype
    conv.weight, conv.bias = nn.Parameter(weight.to(dtype)), nn.Parameter(bias.to(dtype))
