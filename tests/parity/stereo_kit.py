"""Kits of the stereo networks: every stage, disparities, losses and gradients."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stereo.losses import sequence_loss
from stereo.nets.aggregation import DisparityTransformer
from stereo.nets.cost_volume import channel_order
from stereo.nets.edgenext import FeaturePyramid
from stereo.nets.folding import fold_norms
from stereo.nets.stereo_network import StereoNetwork, StereoOutput
from tests.parity.checks import Check, maps, relative
from tests.parity.networks import find_network, load_filled, model_spec

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Tolerances:
    """Largest accepted deviations; px unless stated."""

    initial: tuple[float, float] = (2e-3, 2e-4)  # max, mean
    final: tuple[float, float] = (5e-3, 3e-4)
    stage: float = 5e-4  # of the stage's standard deviation
    lookup: float = 5e-4  # the same for what reads the volume at a disparity
    loss: float = 1e-4  # relative
    gradient: tuple[float, float] = (1e-3, 1e-2)  # relative; frozen, train
    train_prediction: float = 5e-2

    def scaled(self, factor: float) -> Tolerances:
        """Return all tolerances multiplied by `factor`."""
        return Tolerances(
            (self.initial[0] * factor, self.initial[1] * factor),
            (self.final[0] * factor, self.final[1] * factor),
            self.stage * factor,
            self.lookup * factor,
            self.loss * factor,
            (self.gradient[0] * factor, self.gradient[1] * factor),
            self.train_prediction * factor,
        )


TOLERANCES = {
    "FastFoundationStereo": Tolerances(),
    "FoundationStereo": Tolerances(
        initial=(1e-2, 1e-3),
        final=(3e-2, 2e-3),
        stage=2e-3,
        lookup=1e-2,
        train_prediction=1e-1,
    ),
}
LOOKUPS = ("geo_feat#", "update_block.encoder.convc1#")


class StereoKit:
    """A kit on disk: network with filled weights, images, reference values."""

    def __init__(self, manifest: dict[str, Any], golden: Path) -> None:
        self.manifest = manifest
        with np.load(golden) as stored:
            self.values: dict[str, np.ndarray] = {name: stored[name] for name in stored.files}
        header: dict[str, Any] = self.manifest["header"]
        self.row = row = find_network(header["model"]["model_type"])
        self.spec = model_spec(row.spec_class, header["model"])
        self.network = load_filled(
            row.build(self.spec), row, self.manifest, header["fill_checksum"]
        )
        self.left, self.right = self._image("left"), self._image("right")
        normalized = getattr(self.spec, "gwc_feature_normalize", True)
        self.tolerances = TOLERANCES[self.spec.model_type].scaled(1 if normalized else 2)

    def _image(self, key: str) -> Tensor:
        """Return a stored uint8 (B, H, W, 3) image normalised, (B, 3, H, W)."""
        image = torch.from_numpy(self.values[key]).permute(0, 3, 1, 2).float() / 255
        return (image - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)

    def checks(self) -> Iterator[Check]:
        """Compare everything the kit holds; the network is left in train mode."""
        yield from self.inference_checks()
        for layout in self.other_layouts():
            yield from self.layout_checks(layout)
        yield from self.training_checks()

    def inference_checks(self) -> Iterator[Check]:
        """Compare every stage, and the disparities with the batch norms as they are and folded."""
        yield from self.stage_checks()
        yield from self._disparity_checks(self.network)
        yield from self._disparity_checks(fold_norms(copy.deepcopy(self.network)), said="folded ")

    def stage_checks(self) -> Iterator[Check]:
        """Compare what passed every stage in two iterations."""
        captured = self._captured_stages
        for stage in map(str, self.values["stage_order"]):
            if stage in captured:
                yield self._stage_check(f"stage/{stage}", captured[stage])

    def other_layouts(self) -> list[str]:
        """Attention layouts besides that of the spec for which the kit holds results."""
        names = (name.partition("/") for name in self.values)
        return [layout for layout, _, leaf in names if leaf == "init_disp"]

    def layout_checks(self, layout: str) -> Iterator[Check]:
        """Compare the same weights under another attention layout."""
        spec = dataclasses.replace(self.spec, attention_layout=layout)
        network = self.row.build(spec).eval()
        network.load_state_dict(self.network.state_dict())
        captured = capture_stages(network, spec, self.left, self.right)
        prefix = f"{layout}/stage/"
        stages = {n.rpartition("/")[0] for n in self.values if n.startswith(prefix)}
        for stage in sorted(stages):
            yield self._stage_check(stage, captured[stage.removeprefix(prefix)])
        yield from self._disparity_checks(network, f"{layout}/")

    def _disparity_checks(
        self, network: nn.Module, prefix: str = "", said: str = ""
    ) -> Iterator[Check]:
        """Compare the initial disparity and those after some iterations.

        Args:
            network: has the weights of the kit.
            prefix: of the names of the values in the kit.
            said: first words of the names of the checks.
        """
        start = f"{prefix}disp_iters"
        counts = sorted(int(n.removeprefix(start)) for n in self.values if n.startswith(start))
        with torch.no_grad():
            output = network(self.left, self.right, iters=counts[-1])
        limits = self.tolerances
        name = f"{prefix}init_disp"
        yield from maps(said + name, output.initial, self.values[name], limits.initial)
        for count in counts:
            name = f"{start}{count}"
            found, expected = output.refined[count - 1], self.values[name]
            yield from maps(said + name, found, expected, limits.final)

    def skipped_stages(self) -> list[str]:
        """Stages of the kit that this implementation fuses with others."""
        captured = self._captured_stages
        return [str(stage) for stage in self.values["stage_order"] if str(stage) not in captured]

    @cached_property
    def _captured_stages(self) -> dict[str, Tensor]:
        return capture_stages(self.network, self.spec, self.left, self.right)

    def _stage_check(self, key: str, found: Tensor) -> Check:
        """Compare what passed a stage with the values below `key`."""
        stage = key.rpartition("/")[2]
        name = key.removeprefix("stage/")
        shape = tuple(int(size) for size in self.values[f"{key}/shape"])
        if tuple(found.shape) != shape:
            return Check(f"{name}: shape {tuple(found.shape)}, not {shape}", float("inf"), 0.0)
        _, deviation, _, _ = self.values[f"{key}/stats"]
        flat = found.flatten()
        index = np.linspace(0, flat.numel() - 1, min(256, flat.numel())).astype(np.int64)
        expected = self.values[f"{key}/slice"]
        worst = np.abs(flat.numpy()[index] - expected).max() / max(float(deviation), 1e-12)
        lookup = stage.startswith(LOOKUPS)
        limit = self.tolerances.lookup if lookup else self.tolerances.stage
        return Check(name, float(worst), limit)

    def training_checks(self) -> Iterator[Check]:
        """Compare losses, predictions, gradients and batch statistics in both module modes."""
        if "train/iters" not in self.values:
            return
        yield from self._mode_checks("frozen")
        self.network.train()
        for module in self.network.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        yield from self._mode_checks("train")
        yield from self._statistics_checks()

    def _mode_checks(self, mode: str) -> Iterator[Check]:
        value = {
            name.removeprefix(f"train/{mode}/"): array
            for name, array in self.values.items()
            if name.startswith(f"train/{mode}/")
        }
        output, losses, errors = self._backward()
        tolerances, frozen = self.tolerances, mode == "frozen"
        for name, found in losses.items():
            yield relative(f"{mode} {name}", found, float(value[name]), tolerances.loss)
        yield relative(f"{mode} epe", errors, float(value["epe"]), tolerances.loss)
        limits = tolerances.initial if frozen else (tolerances.train_prediction, float("inf"))
        yield from maps(f"{mode} init_disp", output.initial, value["init_disp"], limits)
        limits = tolerances.final if frozen else limits
        stride = int(self.values["train/pred_stride"])
        for index, prediction in enumerate(output.refined):
            thin = prediction[..., ::stride, ::stride]
            yield from maps(f"{mode} pred{index}", thin, value[f"pred{index}"], limits)
        yield from self._gradient_checks(mode, value, tolerances.gradient[0 if frozen else 1])

    def _backward(self) -> tuple[StereoOutput, dict[str, float], float]:
        """Run forward and backward once; return the output, the losses and the mean error."""
        shape = (self.left.shape[0], 1, *self.left.shape[-2:])
        truth = torch.from_numpy(self.values["gt"]).expand(shape)
        valid = torch.from_numpy(self.values["valid"]).bool().expand(shape)
        valid = valid & (truth.abs() < int(self.values["train/max_disparity"]))
        iters = int(self.values["train/iters"])
        output = self.network(self.left, self.right, iters=iters)
        loss = sequence_loss(output.initial, output.refined, truth, valid)
        self.network.zero_grad(set_to_none=True)
        loss.total.backward()
        error = (output.refined[-1].detach() - truth).abs()[valid].mean()
        losses = {"loss": loss.total.item(), "init_loss": loss.initial.item()}
        return output, losses, error.item()

    def _gradient_checks(
        self, mode: str, value: dict[str, np.ndarray], tolerance: float
    ) -> Iterator[Check]:
        parameters = dict(self.network.named_parameters())
        for name, expected in zip(
            self.values["train/grad_names"], value["grad_norms"], strict=True
        ):
            gradient = parameters[str(name)].grad
            found = 0.0 if gradient is None else gradient.double().norm().item()
            yield relative(f"{mode} grad {name}", found, float(expected), tolerance)
        squares = [
            p.grad.double().square().sum() for p in parameters.values() if p.grad is not None
        ]
        total = torch.stack(squares).sum().sqrt().item()
        yield relative(f"{mode} grad_global", total, float(value["grad_global"]), tolerance)
        trainable = (p for p in parameters.values() if p.requires_grad)
        without = sum(p.numel() for p in trainable if p.grad is None)
        difference = abs(without - int(value["n_params_without_grad"]))
        yield Check(f"{mode} n_params_without_grad", float(difference), 0.0)

    def _statistics_checks(self) -> Iterator[Check]:
        """Compare the running statistics of one BatchNorm after a forward pass in train mode."""
        if "train/train/bn_name" not in self.values:
            return
        stem = str(self.values["train/train/bn_name"]).removesuffix(".running_mean")
        buffers = dict(self.network.named_buffers())
        for leaf in ("running_mean", "running_var"):
            expected = self.values[f"train/train/bn_{leaf}"]
            found = buffers[f"{stem}.{leaf}"].numpy()
            worst = np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-12)
            yield Check(f"train {stem}.{leaf}", float(worst), self.tolerances.loss)


def capture_stages(
    network: StereoNetwork, spec: Any, left: Tensor, right: Tensor
) -> dict[str, Tensor]:
    """Run two iterations and return what passed every module, under the names of the kits."""
    captured: dict[str, Tensor] = {}
    calls: dict[str, int] = {}

    def keep(name: str, value: Tensor, call: int | None = None) -> None:
        call = calls.get(name, 0) if call is None else call
        calls[name] = call + 1
        captured[f"{name}#{call}"] = value.detach().clone()

    def output_of(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor):
                keep(name, output)

        return hook

    handles = [
        module.register_forward_hook(output_of(name))
        for name, module in network.named_modules()
        if name and not name.startswith("update_block.mask")
    ]
    handles += _named_quantities(network, spec, keep)
    for module in network.modules():
        if isinstance(module, DisparityTransformer):
            module.CHUNK = left.numel() * spec.max_disparity  # layers see all pixels in one call
    try:
        with torch.no_grad():
            output = network(left, right, iters=2, last_only=True)
    finally:
        for handle in handles:
            handle.remove()
        for module in network.modules():
            module.__dict__.pop("CHUNK", None)
    keep("disp_up", output.refined[-1][:, 0])
    keep("init_disp", output.initial)
    return captured


def _named_quantities(network: StereoNetwork, spec: Any, keep: Callable[..., None]) -> list[Any]:
    """Hook the quantities of the kits that are not the output of a module."""
    modules = dict(network.named_modules())

    def features(_module: nn.Module, _inputs: Any, output: Any) -> None:
        pyramid = output if isinstance(output, FeaturePyramid) else output.pyramid
        for scale, level in zip((4, 8, 16, 32), pyramid, strict=True):
            keep(f"feat_x{scale}", level)

    def volume(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        keep("gwc_volume", inputs[0][:, : spec.cv_group])
        keep("concat_volume", inputs[0][:, spec.cv_group :])

    def vit_input(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        keep("vit_input", inputs[0])

    def vit_map(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        keep("vit_feat", output)

    order = channel_order(
        channels=spec.volume_dim, levels=spec.corr_levels, radius=spec.corr_radius
    ).argsort()

    def update(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        states, disparity, geometry, attentions, _ = inputs
        for index, (state, attention) in enumerate(zip(states, attentions, strict=True)):
            keep(f"net{index}", state)
            keep(f"att{index}", attention)
        keep("disp_in", disparity)
        keep("geo_feat", geometry[:, order])

    scales = iter(range(3))

    def context(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        keep(f"inp{next(scales)}", inputs[0])

    def mask(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        keep("update_block.mask", output, call=1)  # only the last of the two iterations computes it

    block = network.update_block
    handles = [
        modules["feature"].register_forward_hook(features),
        modules.get("corr_stem", modules["corr_feature_att"]).register_forward_pre_hook(volume),
        block.register_forward_pre_hook(update),
        network.sam.register_forward_pre_hook(context),
        block.mask.register_forward_hook(mask),
    ]
    if "feature.dino" in modules:
        encoder = modules["feature.dino.depth_anything.pretrained"]
        handles.append(encoder.register_forward_pre_hook(vit_input))
        handles.append(modules["feature.dino"].register_forward_hook(vit_map))
    return handles
