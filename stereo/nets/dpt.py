"""DPT head: token maps of four transformer blocks to one dense map.

Symbols: B batch, h, w rows and columns of patches, C token width, F width of the fused maps. The
maps have sizes (4h, 4w), (2h, 2w), (h, w) and (h/2, w/2), fine to coarse; fusion goes from coarse
to fine.

Parameter names are those of the released Depth Anything V2 weights.

Source: dense prediction transformer (DPT), Ranftl et al., ICCV 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stereo.nets.blocks import BatchNorm, spatial_shape
from stereo.nets.sampling import resize
from stereo.nets.vit import PATCH, SIZES, Tokens, sized


@dataclass(frozen=True)
class Widths:
    """Channels of the fused maps (F) and of the four levels, fine to coarse."""

    fused: int
    levels: tuple[int, int, int, int]


WIDTHS = {
    "vits": Widths(64, (48, 96, 192, 384)),
    "vitb": Widths(128, (96, 192, 384, 768)),
    "vitl": Widths(256, (256, 512, 1024, 1024)),
    "vitg": Widths(384, (1536, 1536, 1536, 1536)),
}
SCORE_WIDTH = 32


def widths_of(encoder: str, token_width: int | None = None) -> Widths:
    """The maps of an encoder, in proportion to another width of its tokens, in whole eights."""
    widths, usual = WIDTHS[encoder], SIZES[encoder].width
    if token_width in (None, usual):
        return widths
    fused, one, two, three, four = (
        8 * max(1, round(channels * token_width / usual / 8))
        for channels in (widths.fused, *widths.levels)
    )
    return Widths(fused, (one, two, three, four))


class HalvingConv(nn.Conv2d):
    """A 3x3 convolution of stride 2, as every second value of one with stride 1.

    The framework's strided kernel adds in another order. Both are equally far from double precision
    (1e-6), but FoundationStereo in train mode amplifies the difference to 0.13 px; in this order it
    stays within 0.08 px of the reference. It costs 0.1 % of the network.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input)[..., ::2, ::2]


class ResidualUnit(nn.Module):
    """`x + conv2(relu(conv1(relu(x))))`, each convolution with an optional BatchNorm behind it."""

    def __init__(self, channels: int, *, use_bn: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn1 = BatchNorm(channels) if use_bn else nn.Identity()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = BatchNorm(channels) if use_bn else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(F.relu(x)))
        return x + self.bn2(self.conv2(F.relu(y)))


class Fusion(nn.Module):
    """Coarser path and finer level to the path at the next finer size."""

    def __init__(self, channels: int, *, use_bn: bool) -> None:
        super().__init__()
        self.resConfUnit1 = ResidualUnit(channels, use_bn=use_bn)
        self.resConfUnit2 = ResidualUnit(channels, use_bn=use_bn)
        self.out_conv = nn.Conv2d(channels, channels, 1)

    def forward(self, path: Tensor, level: Tensor | None, size: Sequence[int]) -> Tensor:
        if level is not None:
            path = path + self.resConfUnit1(level)
        return self.out_conv(resize(self.resConfUnit2(path), size))


class Scratch(nn.Module):
    """The layers that are trained from scratch on top of the transformer."""

    def __init__(self, widths: Widths, *, use_bn: bool) -> None:
        super().__init__()
        fused = widths.fused
        for index, width in enumerate(widths.levels, start=1):
            self.add_module(f"layer{index}_rn", nn.Conv2d(width, fused, 3, padding=1, bias=False))
        self.refinenet1 = Fusion(fused, use_bn=use_bn)
        self.refinenet2 = Fusion(fused, use_bn=use_bn)
        self.refinenet3 = Fusion(fused, use_bn=use_bn)
        self.refinenet4 = Fusion(fused, use_bn=use_bn)
        # The coarsest level has nothing to be merged with, yet checkpoints hold the unit for it.
        self.refinenet4.resConfUnit1.requires_grad_(False)
        self.output_conv1 = nn.Conv2d(fused, fused // 2, 3, padding=1)
        self.output_conv2 = nn.Sequential(
            nn.Conv2d(fused // 2, SCORE_WIDTH, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(SCORE_WIDTH, 1, 1),
        )

    def fuse(self, levels: Sequence[Tensor]) -> Tensor:
        """Return the fused map (B, F, 8h, 8w) of four level maps, fine to coarse."""
        projected = [
            self.get_submodule(f"layer{index}_rn")(level)
            for index, level in enumerate(levels, start=1)
        ]
        one, two, three, four = projected
        path = self.refinenet4(four, None, spatial_shape(three))
        path = self.refinenet3(path, three, spatial_shape(two))
        path = self.refinenet2(path, two, spatial_shape(one))
        return self.refinenet1(path, one, [2 * side for side in spatial_shape(one)])


class DPTHead(nn.Module):
    """Tokens of four blocks to one score per pixel.

    Args:
        encoder: key of `vit.SIZES` and of `WIDTHS`.
        token_width: C instead of the encoder's; see `widths_of`.
        use_bn: BatchNorm behind the convolutions of the residual units.
        use_clstoken: mix the class token into every patch token first.
    """

    def __init__(
        self, encoder: str, *, use_bn: bool, use_clstoken: bool, token_width: int | None = None
    ) -> None:
        super().__init__()
        width, widths = sized(encoder, width=token_width).width, widths_of(encoder, token_width)
        one, two, _, four = widths.levels
        self.readout_projects = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * width, width), nn.GELU())
            for _ in (widths.levels if use_clstoken else ())
        )
        self.projects = nn.ModuleList(nn.Conv2d(width, level, 1) for level in widths.levels)
        self.resize_layers = nn.ModuleList(
            (
                nn.ConvTranspose2d(one, one, 4, stride=4),
                nn.ConvTranspose2d(two, two, 2, stride=2),
                nn.Identity(),
                HalvingConv(four),
            )
        )
        self.scratch = Scratch(widths, use_bn=use_bn)

    def features(self, tokens: Sequence[Tokens], rows: int, columns: int) -> Tensor:
        """Return the map (B, F/2, 14 rows, 14 columns) from which the scores are computed."""
        levels: list[Tensor] = []
        for index, (project, scale) in enumerate(
            zip(self.projects, self.resize_layers, strict=True)
        ):
            patches = self._readout(index, tokens[index])
            grid = patches.transpose(1, 2).unflatten(2, (rows, columns))  # (B, C, h, w)
            levels.append(scale(project(grid)))
        fused = self.scratch.output_conv1(self.scratch.fuse(levels))
        return resize(fused, (PATCH * rows, PATCH * columns))

    def _readout(self, index: int, tokens: Tokens) -> Tensor:
        """Return the patch tokens, with what the class token adds to them if it is used."""
        if not self.readout_projects:
            return tokens.patches
        image = tokens.image.unsqueeze(1).expand_as(tokens.patches)
        return self.readout_projects[index](torch.cat((tokens.patches, image), dim=-1))

    def forward(self, tokens: Sequence[Tokens], rows: int, columns: int) -> Tensor:
        return self.scratch.output_conv2(self.features(tokens, rows, columns))
