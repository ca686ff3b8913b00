"""Kits of the monocular networks: features of every part, depth, the way to the native size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stereo.nets.sampling import resize
from stereo.nets.vit import PATCH
from tests.parity.checks import Check, maps
from tests.parity.networks import find_network, load_filled, model_spec

MEAN = np.array((0.485, 0.456, 0.406))
STD = np.array((0.229, 0.224, 0.225))
OTHER_LIMIT, OTHER_IMAGE = 80.0, "98x126/image"  # m; the second `max_depth` of the metric kits

# The leading corner of every feature that a kit holds, by the name of the feature.
TABLE, PATCHES, TOKEN, MAP = (20, 6), (6, 6), (12,), (4, 5, 5)
CORNERS = {"pos_embed": TABLE, "patch_embed": PATCHES, "tokens_in": PATCHES, "block_0": PATCHES}
CORNERS |= {f"feat_{k}": PATCHES for k in range(4)} | {f"cls_{k}": TOKEN for k in range(4)}


@dataclass(frozen=True)
class Tolerances:
    """Largest accepted deviations.

    Attributes:
        depth: max and mean, in `unit`; m stands for a `max_depth` of 10 m.
        statistics: of mean and standard deviation, in units of the latter.
        corner: of the stored values, in units of the standard deviation.
    """

    depth: tuple[float, float]
    unit: str
    statistics: float = 5e-6
    corner: float = 2e-5


METRIC, RELATIVE = Tolerances((4e-5, 2e-6), "m"), Tolerances((6e-4, 6e-5), "")
METRIC_LIMIT = 10.0  # m


class MonoKit:
    """A kit on disk: network with filled weights, images, reference values."""

    def __init__(self, manifest: dict[str, Any], golden: Path) -> None:
        self.manifest = manifest
        with np.load(golden) as stored:
            self.values: dict[str, np.ndarray] = {name: stored[name] for name in stored.files}
        row = find_network(manifest["model_type"])
        backbone = dict(manifest["model"])
        limit = backbone.pop("max_depth")
        section = {"encoder": manifest["encoder"], "mono_backbone": backbone}
        spec = model_spec(row.spec_class, section)
        options = {} if limit is None else {"max_depth": limit}
        self.tolerances = RELATIVE if limit is None else METRIC
        network = row.build(spec, **options)
        self.network: Any = load_filled(network, row, manifest, manifest["fill_checksum"])

    def checks(self) -> Iterator[Check]:
        """Compare everything the kit holds."""
        for name in self.values:
            size, _, leaf = name.partition("/")
            if leaf == "image" and size[0].isdigit():
                yield from self._feature_checks(size)
        for name in (name for name in self.values if name.endswith("/depth")):
            yield from self._depth_checks(name.removesuffix("/depth"))

    def skipped_stages(self) -> list[str]:
        """Nothing is fused here."""
        return []

    def _feature_checks(self, size: str) -> Iterator[Check]:
        features = self._features(normalised(self.values[f"{size}/image"]))
        for name, found in features.items():
            key = f"{size}/{name}"
            shape = tuple(int(side) for side in self.values[f"{key}.shape"])
            if tuple(found.shape) != shape:
                yield Check(f"{key}: shape {tuple(found.shape)}, not {shape}", float("inf"), 0.0)
                continue
            scale = float(self.values[f"{key}.std"])
            values = found.double().numpy()
            for statistic in ("mean", "std"):
                away = abs(getattr(values, statistic)() - float(self.values[f"{key}.{statistic}"]))
                yield Check(f"{key}.{statistic}", away / scale, self.tolerances.statistics)
            expected = self.values[f"{key}.slice"]
            corner = values[0][tuple(slice(side) for side in CORNERS.get(name, MAP))]
            away = np.abs(corner - expected).max()
            yield Check(f"{key}.slice", float(away) / scale, self.tolerances.corner)

    def _features(self, image: Tensor) -> dict[str, Tensor]:
        """Run the network and return what passed its parts, under the names of the kits."""
        kept: dict[str, Tensor] = {}

        def output(name: str) -> Callable[..., None]:
            def hook(_module: nn.Module, _inputs: Any, value: Tensor) -> None:
                kept[name] = value.detach().clone()

            return hook

        def first_input(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            kept["tokens_in"] = inputs[0].clone()

        def tapped(_module: nn.Module, _inputs: Any, tokens: Any) -> None:
            for index, (patches, token) in enumerate(tokens):
                kept[f"feat_{index}"], kept[f"cls_{index}"] = patches, token

        encoder = self.network.pretrained
        scratch = next(m for name, m in self.network.named_modules() if name.endswith("scratch"))
        parts = {"patch_embed": encoder.patch_embed, "block_0": encoder.blocks[0]}
        parts |= {f"layer{k}_rn": scratch.get_submodule(f"layer{k}_rn") for k in (1, 2, 3, 4)}
        parts |= {f"path_{k}": scratch.get_submodule(f"refinenet{k}") for k in (4, 3, 2, 1)}
        parts |= {"output_conv1": scratch.output_conv1, "pre_activation": scratch.output_conv2}
        handles = [part.register_forward_hook(output(name)) for name, part in parts.items()]
        handles.append(encoder.blocks[0].register_forward_pre_hook(first_input))
        handles.append(encoder.register_forward_hook(tapped))
        with torch.no_grad():
            kept["pos_embed"] = encoder.position(*(side // PATCH for side in image.shape[-2:]))
            self.network(image)
        for handle in handles:
            handle.remove()
        return kept

    def _depth_checks(self, group: str) -> Iterator[Check]:
        if group.startswith("e2e"):
            depth = self._depth(self.values[f"{group}/resized_image"])
            yield from self._maps(f"{group}/net_depth", depth[0])
            native = self.values[f"{group}/image"].shape[:2]
            yield from self._maps(f"{group}/depth", resize(depth[None], native)[0, 0])
        elif group.startswith("max_depth"):
            usual, self.network.max_depth = self.network.max_depth, OTHER_LIMIT
            depth = self._depth(self.values[OTHER_IMAGE])
            yield from self._maps(f"{group}/depth", depth, OTHER_LIMIT / METRIC_LIMIT)
            self.network.max_depth = usual
        else:
            yield from self._maps(f"{group}/depth", self._depth(self.values[f"{group}/image"]))

    def _maps(self, name: str, found: Tensor, scale: float = 1.0) -> Iterator[Check]:
        largest, mean = self.tolerances.depth
        limits = (largest * scale, mean * scale)
        return maps(name, found, self.values[name], limits, self.tolerances.unit)

    def _depth(self, image: np.ndarray) -> Tensor:
        """Depth (B, H, W) of an image."""
        with torch.no_grad():
            return self.network(normalised(image))[:, 0]


def normalised(image: np.ndarray) -> Tensor:
    """Return uint8 (H, W, 3) or (B, H, W, 3) normalised, (B, 3, H, W)."""
    scaled = (image / 255 - MEAN) / STD
    batch = scaled.reshape(-1, *scaled.shape[-3:])
    return torch.from_numpy(batch.transpose(0, 3, 1, 2).astype(np.float32))
