"""What a family of networks is asked: inputs, target, loss, scores, sizes, names, colours.

The shared code (training, predictor, evaluator, export, pictures) knows networks only through a
`Task`; a row of `stereo/registry.py` says which task a network has. Symbols: B batch, h, w size
that the network sees, H, W size of the image as it came in (native).

Source: architecture.md 3, training.md 1 to 3 and 7 to 9.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stereo import viz
from stereo.data.augment_mono import network_size
from stereo.engines import base
from stereo.errors import SpecError, SpecProblem
from stereo.geometry import Padding, Tiles, align, centred_padding, crop, pad
from stereo.losses import relative_loss, sequence_loss, silog_loss, smooth_l1
from stereo.metrics import DepthMetrics, DisparityMetrics, Metrics, RelativeMetrics
from stereo.nets.vit import PATCH, VisionTransformer
from stereo.spec.deploy import EvaluateSpec, InferenceSpec
from stereo.spec.experiment import (
    METRICS,
    MONO_METRICS,
    RELATIVE_METRICS,
    ExperimentSpec,
    disparity_limit,
)
from stereo.viz import Map, Mask, Picture

if TYPE_CHECKING:
    from stereo.spec.deploy import MonoEvaluateSpec, MonoInferenceSpec
    from stereo.spec.experiment import MetricDepthExperiment, RelativeDepthExperiment

Spec = TypeVar("Spec", bound=ExperimentSpec)
MonoSpec = TypeVar("MonoSpec", bound="MetricDepthExperiment | RelativeDepthExperiment")
Batch = Mapping[str, Any]
Size = tuple[int, int]  # height, width in px
Network = Callable[..., Tensor]  # images (B, 3, h, w) of `Task.inputs` -> prediction (B, h, w)
Range = tuple[float, float]

NO_PADDING = Padding(0, 0, 0, 0)
SCALE_QUANTILE = 0.98  # of the ground truth; the value that gets the last colour of a panel


@dataclass(frozen=True)
class InputSizes:
    """Sizes of images that a network can be given.

    Attributes:
        stride: sides are multiples of it.
        fixed: the only size; None: any.
        native_padded: pad smaller images to `fixed` instead of resizing them.
        tiles: what larger images are predicted in, at native size; None: an image at once.
        first_pass: pairs are predicted twice, first at this share of the size; None: once.
        source: file of the network, for messages.
    """

    stride: int
    fixed: Size | None = None
    native_padded: bool = False
    first_pass: float | None = None
    tiles: Tiles | None = None
    source: Path | str = ""


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are trained at `ratio` times the rate of the spec."""

    parameters: list[nn.Parameter]
    ratio: float


class Task(ABC, Generic[Spec]):
    """What the shared code must know about a family of networks.

    Attributes:
        inputs: keys of a batch that the network is called with, in this order; the first is the
            image that pictures show.
        target: key of a batch that holds the ground truth, (B, 1, H, W).
        graph_inputs: names of the inputs of an exported graph, in the order of `inputs`.
        graph_output: name of its output.
        quantity: what is predicted, in words.
        folder: first word of the folders of raw predictions.
        unit: of the prediction.
        samples: what a batch consists of, in words.
        declared: `val/<metric>` -> direction and unit.
        headline: metrics that one line shows; the first judges a network.
        error_scale: error of the last colour in pictures, in `error_unit`.
        limit_keys: fields of the spec that limit the ground truth, in words.
        bound: fields of the spec that are part of what the weights mean.
        steps: field with the number of refinements of a prediction; empty: it is not refined.
    """

    inputs: ClassVar[tuple[str, ...]]
    target: ClassVar[str]
    graph_inputs: ClassVar[tuple[str, ...]]
    graph_output: ClassVar[str]
    quantity: ClassVar[str]
    folder: ClassVar[str]
    unit: ClassVar[str]
    samples: ClassVar[str]
    declared: ClassVar[Mapping[str, Mapping[str, Any]]]
    headline: ClassVar[tuple[str, ...]]
    error_scale: ClassVar[float]
    error_unit: ClassVar[str]
    limit_keys: ClassVar[str]
    bound: ClassVar[tuple[str, ...]] = ()
    steps: ClassVar[str] = ""

    @abstractmethod
    def loss(self, network: nn.Module, batch: Batch, spec: Spec) -> Tensor:
        """Scalar that training makes smaller; 0 without a valid pixel."""

    @abstractmethod
    def predict(
        self,
        network: nn.Module,
        images: Sequence[Tensor],
        spec: Spec,
        initial: Tensor | None = None,
    ) -> Tensor:
        """Prediction (B, h, w), float32, of normalised images (B, 3, h, w).

        Args:
            network: of this task.
            images: its `inputs`.
            spec: of the network.
            initial: disparity (B, 1, h/4, w/4) to refine, in px of that map; for pairs only.
        """

    def predict_steps(
        self, network: nn.Module, images: Sequence[Tensor], spec: Spec
    ) -> list[Tensor]:
        """What `predict` gives after 1, 2, ... of the refinements, from one forward pass."""
        return [self.predict(network, images, spec)]

    def parameter_groups(self, network: nn.Module, spec: Spec) -> list[ParameterGroup]:
        """The trainable parameters by the rate they are trained at; the first at that of `lr`."""
        return [ParameterGroup([p for p in network.parameters() if p.requires_grad], 1.0)]

    def prepare_graph(self, network: nn.Module, height: int, width: int) -> None:
        """Let a network about to be exported at one size compute beforehand what it can."""

    @abstractmethod
    def graph(self, network: nn.Module, images: Sequence[Tensor], spec: Spec) -> Tensor:
        """Output of an exported graph for its inputs."""

    @abstractmethod
    def graph_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Shape of an exported graph's output without the batch axis."""

    @abstractmethod
    def graph_facts(self, spec: Spec) -> dict[str, Any]:
        """What the sidecar of a graph says beside section `model` and the sizes."""

    def pads_to_size(self, section: MonoEvaluateSpec | MonoInferenceSpec) -> bool:
        """Whether images are padded to the only size of a network instead of resized."""
        return False

    def first_pass(self, section: MonoEvaluateSpec | MonoInferenceSpec) -> float | None:
        """Size of the images of a prediction that comes first, as a share; None: there is none."""
        return None

    @abstractmethod
    def network_sizes(self, native: Iterable[Size], spec: Spec, stride: int) -> set[Size]:
        """Sizes at which the network sees validation images of native sizes."""

    @abstractmethod
    def at_native_size(self, network: Network, batch: Batch, sizes: InputSizes) -> Tensor:
        """Prediction (B, H, W) in the units of the images as they came in.

        Args:
            network: the `inputs` of a batch at a size it takes -> prediction (B, h, w).
            batch: see `stereo.data.loaders`.
            sizes: what the network takes.

        Raises:
            SpecError: an image does not fit.
        """

    @abstractmethod
    def validation_terms(self, prediction: Tensor, batch: Batch, spec: Spec) -> tuple[Tensor, int]:
        """Sum (float64) and number of terms whose mean over all batches is `val/loss`."""

    @abstractmethod
    def metrics(self, spec: Spec) -> Metrics:
        """An empty accumulator of the declared metrics."""

    @abstractmethod
    def usable_truth(self, spec: Spec) -> str:
        """Which ground truth counts, as a formula."""

    def fixed_scale(self, spec: Spec) -> Range | None:
        """Values of the first and the last colour of every picture; None: those of each map."""
        return None

    @abstractmethod
    def color(self, values: Map, scale: Range | None = None) -> Picture:
        """Picture of a map (H, W), black where it is not finite.

        Args:
            values: prediction or ground truth.
            scale: values of the first and the last colour; None: those of the map.
        """

    @property
    @abstractmethod
    def colors(self) -> list[str]:
        """Colours of `color` from the first to the last, `#rrggbb`."""

    @abstractmethod
    def scale(self, truth: Map) -> Range:
        """Values of the first and the last colour for known ground truth (N,)."""

    @abstractmethod
    def color_error(self, prediction: Map, truth: Map, valid: Mask) -> Picture:
        """Picture of the error up to `error_scale`, black where there is no ground truth."""

    def comparable(self, prediction: Map, truth: Map, valid: Mask) -> Map:
        """The prediction in the units of the ground truth."""
        return prediction


class StereoTask(Task[ExperimentSpec]):
    """Disparity of the left image, px, of a rectified pair."""

    inputs = ("left", "right")
    target = "disparity"
    graph_inputs = (base.LEFT, base.RIGHT)
    graph_output = base.DISPARITY
    quantity = folder = "disparity"
    unit = "px"
    samples = "pairs"
    declared = METRICS
    headline = ("epe", "bp1")
    error_scale = viz.ERROR_FULL_SCALE
    error_unit = "px"
    limit_keys = "dataset.max_disparity"
    steps = "model.valid_iters"

    def loss(self, network: nn.Module, batch: Batch, spec: ExperimentSpec) -> Tensor:
        """Sequence loss over the refinements of training."""
        output = network(batch["left"], batch["right"], iters=spec.model.train_iters)
        truth, valid = batch["disparity"], batch["valid"]
        return sequence_loss(output.initial, output.refined, truth, valid).total

    def predict(
        self,
        network: nn.Module,
        images: Sequence[Tensor],
        spec: ExperimentSpec,
        initial: Tensor | None = None,
    ) -> Tensor:
        """The disparity after the refinements of evaluation."""
        start = {} if initial is None else {"init_disparity": initial}
        output = network(*images, iters=spec.model.valid_iters, last_only=True, **start)
        return output.refined[-1][:, 0].float()

    def predict_steps(
        self, network: nn.Module, images: Sequence[Tensor], spec: ExperimentSpec
    ) -> list[Tensor]:
        """The disparity after every refinement of evaluation."""
        output = network(*images, iters=spec.model.valid_iters)
        return [disparity[:, 0].float() for disparity in output.refined]

    def graph(self, network: nn.Module, images: Sequence[Tensor], spec: ExperimentSpec) -> Tensor:
        """The disparity (B, 1, h, w) after the refinements of an exported graph."""
        return network(*images, iters=spec.export.valid_iters, last_only=True).refined[-1]

    def graph_shape(self, height: int, width: int) -> tuple[int, ...]:
        """With a channel axis."""
        return (1, height, width)

    def graph_facts(self, spec: ExperimentSpec) -> dict[str, Any]:
        """The refinements that are unrolled into the graph."""
        return {"iterations": spec.export.valid_iters}

    def pads_to_size(self, section: MonoEvaluateSpec | MonoInferenceSpec) -> bool:
        """As the spec says."""
        return isinstance(section, EvaluateSpec | InferenceSpec) and section.native_padded

    def first_pass(self, section: MonoEvaluateSpec | MonoInferenceSpec) -> float | None:
        """As the spec says."""
        if isinstance(section, EvaluateSpec | InferenceSpec) and section.hierarchical:
            return section.small_ratio
        return None

    def network_sizes(self, native: Iterable[Size], spec: ExperimentSpec, stride: int) -> set[Size]:
        """Padded to the stride."""
        return {(_up(height, stride), _up(width, stride)) for height, width in native}

    def at_native_size(self, network: Network, batch: Batch, sizes: InputSizes) -> Tensor:
        """Disparity of padded images, cropped; or of resized ones, scaled by the widths.

        Borders are repeated where an image is padded. The choice depends on sizes only, so that
        every backend scores the same pixels. Tiles are rows of full width, because matches lie up
        to the largest disparity beside a pixel.
        """
        images = [batch[name] for name in self.inputs]
        native = (images[0].shape[-2], images[0].shape[-1])
        padded = (_up(native[0], sizes.stride), _up(native[1], sizes.stride))
        size = sizes.fixed or padded
        if sizes.tiles is not None and native[0] > sizes.tiles.size[0]:
            rows = sizes.tiles._replace(
                size=(sizes.tiles.size[0], max(size[1], padded[1])),
                overlap=(sizes.tiles.overlap[0], 0),
            )
            return _in_tiles(network, images, rows, sizes)
        predict = _in_one_pass
        if sizes.first_pass is not None:
            predict = partial(_in_two_passes, ratio=sizes.first_pass)
        if size == padded or sizes.native_padded:
            return predict(network, images, _padding(native, size, sizes.source), sizes.stride)
        resized = [_resize(image, size) for image in images]
        disparity = predict(network, resized, NO_PADDING, sizes.stride)
        return _resize(disparity[:, None], native)[:, 0] * (native[1] / size[1])

    def validation_terms(
        self, prediction: Tensor, batch: Batch, spec: ExperimentSpec
    ) -> tuple[Tensor, int]:
        """Smooth-L1 of every valid pixel."""
        truth, valid = batch["disparity"][:, 0], batch["valid"][:, 0]
        error = smooth_l1(prediction, torch.where(valid, truth, 0.0))
        return torch.where(valid, error, 0.0).sum(dtype=torch.float64), int(valid.sum())

    def metrics(self, spec: ExperimentSpec) -> DisparityMetrics:
        """Metrics of disparity below the limit."""
        return DisparityMetrics(disparity_limit(spec))

    def usable_truth(self, spec: ExperimentSpec) -> str:
        """Positive and below the limit."""
        return f"0 < disparity < {disparity_limit(spec):g} px"

    def color(self, values: Map, scale: Range | None = None) -> Picture:
        """Turbo from 0 to the largest disparity."""
        return viz.color_disparity(values, None if scale is None else scale[1])

    @property
    def colors(self) -> list[str]:
        """Turbo."""
        return viz.legend(viz.TURBO)

    def scale(self, truth: Map) -> Range:
        """From 0 to almost the largest, so that a few pixels do not decide."""
        return 0.0, float(np.quantile(truth, SCALE_QUANTILE))

    def color_error(self, prediction: Map, truth: Map, valid: Mask) -> Picture:
        """Turbo of the absolute error."""
        return viz.color_error(prediction, truth, valid)


def _in_one_pass(
    network: Network, images: Sequence[Tensor], padding: Padding, stride: int
) -> Tensor:
    """Disparity (B, H, W) of a pair (B, 3, H, W) that has a size of the network once padded."""
    return crop(network(*(pad(image, padding) for image in images)), padding)


def _in_two_passes(
    network: Network, images: Sequence[Tensor], padding: Padding, stride: int, *, ratio: float
) -> Tensor:
    """The same, refined from the disparity of smaller images: for disparities beyond the volume.

    The columns of padding on the left are added to that disparity as in the released code, though
    both views have them.
    """
    small = [F.interpolate(image, scale_factor=ratio, mode="bilinear") for image in images]
    height, width = small[0].shape[-2:]
    around = centred_padding(_up(height, stride) - height, _up(width, stride) - width)
    first = _in_one_pass(network, small, around, stride)[:, None]
    size = images[0].shape[-2:]
    coarse = F.interpolate(first, size=size, mode="bilinear", align_corners=True) / ratio
    padded = pad(coarse.clamp(min=0), padding) + padding.left
    quarter = F.interpolate(padded, scale_factor=0.25, mode="bilinear", align_corners=True) / 4
    return crop(network(*(pad(image, padding) for image in images), initial=quarter), padding)


def _up(side: int, stride: int) -> int:
    return -(-side // stride) * stride


def _fitting(tiles: Tiles, native: Size, sizes: InputSizes) -> Tiles:
    """The tiles for an image; along a side that needs only one, as short as the network allows."""
    sides = [
        (tile, overlap) if length > tile or sizes.fixed else (_up(length, sizes.stride), 0)
        for length, tile, overlap in zip(native, tiles.size, tiles.overlap, strict=True)
    ]
    (height, rows), (width, columns) = sides
    return tiles._replace(size=(height, width), overlap=(rows, columns))


def _in_tiles(
    network: Network,
    images: Sequence[Tensor],
    tiles: Tiles,
    sizes: InputSizes,
    whole: Tensor | None = None,
) -> Tensor:
    """Prediction (B, H, W) of native images, blended from those of their tiles.

    Args:
        network: see `Task.at_native_size`.
        images: its inputs, (B, 3, H, W); borders are repeated where one is smaller than a tile.
        tiles: of a size that the network takes.
        sizes: what the network takes.
        whole: prediction (B, H, W) of the whole image, to whose scale and shift every tile is
            brought; None: tiles agree by themselves.

    Raises:
        SpecError: the network takes another size only.
    """
    if sizes.fixed not in (None, tiles.size):
        problem = f"tiles are {_words(tiles.size)}, the network takes {_words(sizes.fixed)} only"
        remedy = "Set crop_size to that size, export a larger graph, or set it to false"
        raise SpecError([SpecProblem(str(sizes.source), "train.inference_tile", problem, remedy)])
    count, _, *native = images[0].shape
    height, width = (max(pair) for pair in zip(native, tiles.size, strict=True))
    padding = centred_padding(height - native[0], width - native[1])
    padded = [pad(image, padding) for image in images]
    goal = None if whole is None else pad(whole[:, None], padding)[:, 0]

    def predict(rows: slice, columns: slice) -> Tensor:
        found = network(*(image[..., rows, columns] for image in padded))
        return found if goal is None else _fitted(found, goal[:, rows, columns])

    return crop(tiles.blend((count, height, width), predict), padding)


def _fitted(prediction: Tensor, goal: Tensor) -> Tensor:
    """The prediction at the scale and shift of `goal`, (B, h, w); `goal` where it is constant."""
    alignment = align(prediction, goal, torch.ones_like(goal, dtype=torch.bool))
    return torch.where(alignment.found[:, None, None], alignment.aligned, goal)


def _words(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def _padding(native: Size, size: Size, source: Path | str) -> Padding:
    vertical, horizontal = size[0] - native[0], size[1] - native[1]
    if min(vertical, horizontal) < 0:
        problem = f"the image is {native[0]}x{native[1]}, the network takes {size[0]}x{size[1]}"
        remedy = "Set native_padded=false to resize, or export a larger graph"
        raise SpecError([SpecProblem(str(source), "native_padded", problem, remedy)])
    return centred_padding(vertical, horizontal)


def _resize(image: Tensor, size: Size) -> Tensor:
    """Bilinear (B, C, *size); smoothed when it becomes smaller, so that fine texture survives."""
    return F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True)


class MonoTask(Task[MonoSpec]):
    """What a single image shows; the loader has brought it to the size of the network."""

    inputs = ("image",)
    target = "target"
    graph_inputs = (base.IMAGES,)
    graph_output = base.OUTPUTS
    folder = "depth"
    samples = "images"
    headline = ("abs_rel", "d1")
    error_scale = 100 * viz.RATIO_FULL_SCALE
    error_unit = "%"
    encoder = "pretrained."  # names of its parameters start so, those of the head do not
    is_inverse: ClassVar[bool]
    is_affine: ClassVar[bool]  # every prediction has a scale and shift of its own

    @abstractmethod
    def compare(self, prediction: Tensor, truth: Tensor, valid: Tensor, spec: MonoSpec) -> Tensor:
        """Loss of a prediction, all (B, 1, h, w)."""

    def loss(self, network: nn.Module, batch: Batch, spec: MonoSpec) -> Tensor:
        """The comparison over the whole batch."""
        return self.compare(network(batch["image"]), batch["target"], batch["valid"], spec)

    def predict(
        self,
        network: nn.Module,
        images: Sequence[Tensor],
        spec: MonoSpec,
        initial: Tensor | None = None,
    ) -> Tensor:
        """The map without its channel axis."""
        return network(*images)[:, 0].float()

    def parameter_groups(self, network: nn.Module, spec: MonoSpec) -> list[ParameterGroup]:
        """Encoder, and head at a multiple of its rate."""
        encoder: list[nn.Parameter] = []
        head: list[nn.Parameter] = []
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                (encoder if name.startswith(self.encoder) else head).append(parameter)
        return [ParameterGroup(encoder, 1.0), ParameterGroup(head, spec.train.optim.head_lr_ratio)]

    def prepare_graph(self, network: nn.Module, height: int, width: int) -> None:
        """Resample the position table, so that the graph needs no cubic resize."""
        encoder = network.get_submodule(self.encoder.removesuffix("."))
        assert isinstance(encoder, VisionTransformer)
        encoder.fix_position(height // PATCH, width // PATCH)

    def graph(self, network: nn.Module, images: Sequence[Tensor], spec: MonoSpec) -> Tensor:
        """The map (B, h, w)."""
        return network(*images)[:, 0]

    def graph_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Without a channel axis."""
        return (height, width)

    def network_sizes(self, native: Iterable[Size], spec: MonoSpec, stride: int) -> set[Size]:
        """Covering the crop of the validation split."""
        crop_size = spec.dataset.val_dataset.augmentation.crop_size
        return {network_size(size, crop_size) for size in native}

    def at_native_size(self, network: Network, batch: Batch, sizes: InputSizes) -> Tensor:
        """The map resized to the size of the ground truth, which is native; or that of tiles."""
        height, width = batch["target"].shape[-2:]
        if sizes.tiles is None or not sizes.tiles.cut((height, width)):
            return self._whole(network, batch)
        tiles = _fitting(sizes.tiles, (height, width), sizes)
        whole = self._whole(network, batch) if self.is_affine else None
        return _in_tiles(network, [batch["native_image"]], tiles, sizes, whole)

    def _whole(self, network: Network, batch: Batch) -> Tensor:
        """Prediction (B, H, W) of the image as the loader has resized it."""
        found, size = network(batch["image"])[:, None], batch["target"].shape[-2:]
        return F.interpolate(found, size=size, mode="bilinear", align_corners=True)[:, 0]

    def validation_terms(
        self, prediction: Tensor, batch: Batch, spec: MonoSpec
    ) -> tuple[Tensor, int]:
        """The loss of each image with a valid pixel, whatever the batches are."""
        truth, valid = batch["target"], batch["valid"]
        known = valid.flatten(1).any(dim=1).nonzero()[:, 0].tolist()
        rows = [slice(place, place + 1) for place in known]
        maps = prediction[:, None].double()
        losses = [self.compare(maps[row], truth[row], valid[row], spec) for row in rows]
        return torch.stack(losses).sum() if losses else maps.new_zeros(()), len(losses)

    def fixed_scale(self, spec: MonoSpec) -> Range | None:
        """Targets between 0 and 1 keep these ends."""
        return (0.0, 1.0) if spec.dataset.normalize_depth else None

    def color(self, values: Map, scale: Range | None = None) -> Picture:
        """Spectral, near is red."""
        return viz.color_depth(values, scale, is_inverse=self.is_inverse)

    @property
    def colors(self) -> list[str]:
        """Spectral, from the smallest to the largest value."""
        return viz.legend(viz.SPECTRAL[::-1] if self.is_inverse else viz.SPECTRAL)

    def scale(self, truth: Map) -> Range:
        """From almost the smallest to almost the largest: a few pixels do not decide."""
        low, high = np.quantile(truth, (1 - SCALE_QUANTILE, SCALE_QUANTILE))
        return float(low), float(high)

    def color_error(self, prediction: Map, truth: Map, valid: Mask) -> Picture:
        """Turbo of the error relative to the truth."""
        return viz.color_ratio(self.comparable(prediction, truth, valid), truth, valid)


class MetricTask(MonoTask["MetricDepthExperiment"]):
    """Depth in m, between 0 and `dataset.max_depth`."""

    quantity = "depth"
    unit = "m"
    declared = MONO_METRICS
    limit_keys = "dataset.min_depth and dataset.max_depth"
    bound = ("dataset.max_depth",)
    is_inverse = is_affine = False

    def compare(
        self, prediction: Tensor, truth: Tensor, valid: Tensor, spec: MetricDepthExperiment
    ) -> Tensor:
        """SiLog."""
        train = spec.train
        return silog_loss(
            prediction, truth, valid, form=train.silog_form, weight=train.silog_lambda
        )

    def graph_facts(self, spec: MetricDepthExperiment) -> dict[str, Any]:
        """The range of depth."""
        return {"min_depth": spec.dataset.min_depth, "max_depth": spec.dataset.max_depth}

    def metrics(self, spec: MetricDepthExperiment) -> Metrics:
        """Metrics of depth within the range."""
        return DepthMetrics(spec.dataset.min_depth, spec.dataset.max_depth)

    def usable_truth(self, spec: MetricDepthExperiment) -> str:
        """Within the range."""
        return f"{spec.dataset.min_depth:g} < depth < {spec.dataset.max_depth:g} m"


class RelativeTask(MonoTask["RelativeDepthExperiment"]):
    """Inverse depth up to an unknown scale and shift; larger is nearer."""

    quantity = "inverse depth"
    unit = ""
    declared = RELATIVE_METRICS
    limit_keys = "dataset.eval_crop"
    is_inverse = is_affine = True

    def compare(
        self, prediction: Tensor, truth: Tensor, valid: Tensor, spec: RelativeDepthExperiment
    ) -> Tensor:
        """The loss that scale and shift do not change."""
        train = spec.train
        return relative_loss(
            prediction,
            truth,
            valid,
            form=train.relative_loss,
            gradient_weight=train.gradient_loss_weight,
        )

    def graph_facts(self, spec: RelativeDepthExperiment) -> dict[str, Any]:
        """Nothing: the output has no unit."""
        return {}

    def metrics(self, spec: RelativeDepthExperiment) -> Metrics:
        """Metrics of aligned inverse depth."""
        return RelativeMetrics()

    def usable_truth(self, spec: RelativeDepthExperiment) -> str:
        """Of any scale."""
        return "0 < target < 1000"

    def comparable(self, prediction: Map, truth: Map, valid: Mask) -> Map:
        """The prediction at the scale and shift of the ground truth."""
        maps = (torch.from_numpy(each)[None] for each in (prediction, truth, valid))
        found = align(*maps)
        if not found.found:
            return prediction
        return found.scale.numpy() * prediction + found.shift.numpy()


STEREO = StereoTask()
METRIC = MetricTask()
RELATIVE = RelativeTask()
