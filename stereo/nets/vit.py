"""DINOv2 vision transformer with patches of 14 px.

Symbols: B batch, H, W image size in px (multiples of 14), h = H/14, w = W/14, N = h * w patch
tokens, C token width. Images are normalised outside.

Parameter names are those of the released DINOv2 and Depth Anything V2 weights.

Source: DINOv2, Oquab et al., TMLR 2024; vision transformer, Dosovitskiy et al., ICLR 2021.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stereo.nets.blocks import spatial_shape

PATCH = 14
GRID = 37  # patches per side of the 518 px images that the position table was made for
HEAD_WIDTH = 64
MLP_RATIO = 4
NORM_EPS = 1e-6


@dataclass(frozen=True)
class Size:
    """One size of the transformer.

    Attributes:
        width: C.
        blocks: number of transformer blocks.
        taps: blocks whose output goes to the head, from 0.
        gated: the feed-forward part is a gated one.
    """

    width: int
    blocks: int
    taps: tuple[int, int, int, int]
    gated: bool = False


SIZES = {
    "vits": Size(384, 12, (2, 5, 8, 11)),
    "vitb": Size(768, 12, (2, 5, 8, 11)),
    "vitl": Size(1024, 24, (4, 11, 17, 23)),
    "vitg": Size(1536, 40, (9, 19, 29, 39), gated=True),
}


def sized(encoder: str, *, blocks: int | None = None, width: int | None = None) -> Size:
    """The transformer of an encoder, or one like it of another depth or width.

    Args:
        encoder: key of `SIZES`.
        blocks: instead of the encoder's; those that end the four quarters are tapped.
        width: C instead of the encoder's, a multiple of `HEAD_WIDTH`.
    """
    size = SIZES[encoder]
    if blocks not in (None, size.blocks):
        first, second, third, last = (blocks * quarter // 4 - 1 for quarter in (1, 2, 3, 4))
        size = replace(size, blocks=blocks, taps=(first, second, third, last))
    return replace(size, width=width or size.width)


class Tokens(NamedTuple):
    """Normalised tokens after one block.

    Attributes:
        patches: (B, N, C), row by row of the image.
        image: the class token, (B, C).
    """

    patches: Tensor
    image: Tensor


class PatchEmbedding(nn.Module):
    """Image (B, 3, H, W) to one token per patch (B, N, C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, stride=PATCH)

    def forward(self, image: Tensor) -> Tensor:
        return self.proj(image).flatten(2).transpose(1, 2)


class SelfAttention(nn.Module):
    """Multi-head attention among the tokens (B, N, C) of an image."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        count, width = (int(size) for size in x.shape[1:])
        qkv = self.qkv(x).reshape(-1, count, 3, width // HEAD_WIDTH, HEAD_WIDTH)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, N, 64)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(-1, count, width))


class Mlp(nn.Module):
    """Two linear layers with GELU in between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, MLP_RATIO * width)
        self.fc2 = nn.Linear(MLP_RATIO * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class GatedMlp(nn.Module):
    """Linear layers around a product of two halves, one through SiLU (SwiGLU)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = math.ceil(MLP_RATIO * width * 2 / 3 / 8) * 8
        self.w12 = nn.Linear(width, 2 * inner)
        self.w3 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class LayerScale(nn.Module):
    """A learned factor per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block; tokens (B, 1 + N, C)."""

    def __init__(self, width: int, *, gated: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = SelfAttention(width)
        self.ls1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = GatedMlp(width) if gated else Mlp(width)
        self.ls2 = LayerScale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class VisionTransformer(nn.Module):
    """Normalised images (B, 3, H, W) to the tokens after the four tapped blocks.

    Args:
        encoder: key of `SIZES`.
        blocks: see `sized`.
        width: see `sized`.
        recompute: keep only what enters a block in training and compute the rest again.
    """

    fixed_position: Tensor | None

    def __init__(
        self,
        encoder: str,
        *,
        blocks: int | None = None,
        width: int | None = None,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        size = sized(encoder, blocks=blocks, width=width)
        width = size.width
        self.taps = size.taps
        self.recompute = recompute
        self.patch_embed = PatchEmbedding(width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + GRID * GRID, width))
        # Part of every checkpoint, used only by DINOv2's own training.
        self.mask_token = nn.Parameter(torch.zeros(1, width), requires_grad=False)
        self.blocks = nn.ModuleList(Block(width, gated=size.gated) for _ in range(size.blocks))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.register_buffer("fixed_position", None, persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        nn.init.normal_(self.cls_token, std=1e-6)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, image: Tensor) -> list[Tokens]:
        height, width = spatial_shape(image)
        if height % PATCH or width % PATCH:
            raise ValueError(
                f"image of {height}x{width} px: both sides must be multiples of {PATCH}. "
                "Resize or pad it"
            )
        patches = self.patch_embed(image)
        cls_token = self.cls_token.expand(patches.shape[0], -1, -1)
        x = torch.cat((cls_token, patches), dim=1)  # (B, 1 + N, C)
        x = x + self.position(height // PATCH, width // PATCH)
        tapped: list[Tokens] = []
        for index, block in enumerate(self.blocks):
            x = self._through(block, x)
            if index in self.taps:
                normalised = self.norm(x)
                tapped.append(Tokens(normalised[:, 1:], normalised[:, 0]))
        return tapped

    def _through(self, block: nn.Module, x: Tensor) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return cast("Tensor", checkpoint(block, x, use_reentrant=False))
        return block(x)

    def fix_position(self, rows: int, columns: int) -> None:
        """Compute the position code of one grid for good: a graph holds it as a constant."""
        self.fixed_position = self.position(rows, columns).detach().clone()

    def position(self, rows: int, columns: int) -> Tensor:
        """Position code of the class token and of rows x columns patches, (1, 1 + N, C)."""
        if self.fixed_position is not None:
            return self.fixed_position
        if rows == columns == GRID:
            return self.pos_embed
        # The released weights expect these factors, 0.1 patches above rows / GRID, and not a size.
        factors = tuple((count + 0.1) / GRID for count in (rows, columns))
        table = self.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (GRID, GRID))  # (1, C, 37, 37)
        table = F.interpolate(table, scale_factor=factors, mode="bicubic")
        return torch.cat((self.pos_embed[:, :1], table.flatten(2).transpose(1, 2)), dim=1)
