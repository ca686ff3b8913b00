"""What a family of networks is asked: inputs, target, loss, scores, sizes, names, colours.

The shared code (training, predictor, evaluator, export, pictures) knows networks only through a
`Task`; a row of `stereo/registry.py` says which task a network has. Symbols: B batch, h, w size
that the network sees, H, W size of the image as it came in (native).

Source: architecture.md 3, training.md 1 to 3 and 7 to 9.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stereo import viz
from stereo.engines import base
from stereo.errors import SpecError, SpecProblem
from stereo.geometry import Padding, centred_padding, crop
from stereo.losses import sequence_loss, smooth_l1
from stereo.metrics import DisparityMetrics, Metrics
from stereo.spec.experiment import METRICS, ExperimentSpec, disparity_limit
from stereo.viz import Map, Mask, Picture

Batch = Mapping[str, Any]
Size = tuple[int, int]  # height, width in px
Network = Callable[..., Tensor]  # images (B, 3, h, w) of `Task.inputs` -> prediction (B, h, w)
Range = tuple[float, float]

SCALE_QUANTILE = 0.98  # of the ground truth; the disparity that gets the last colour of a panel


@dataclass(frozen=True)
class InputSizes:
    """Sizes of images that a network can be given.

    Attributes:
        stride: sides are multiples of it.
        fixed: the only size; None: any.
        native_padded: pad smaller images to `fixed` instead of resizing them.
        source: file of the network, for messages.
    """

    stride: int
    fixed: Size | None = None
    native_padded: bool = False
    source: Path | str = ""


class Task(ABC):
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

    @abstractmethod
    def loss(self, network: nn.Module, batch: Batch, spec: ExperimentSpec) -> Tensor:
        """Scalar that training makes smaller; 0 without a valid pixel."""

    @abstractmethod
    def predict(self, network: nn.Module, images: Sequence[Tensor], spec: ExperimentSpec) -> Tensor:
        """Prediction (B, h, w), float32, of normalised images (B, 3, h, w)."""

    @abstractmethod
    def graph(self, network: nn.Module, images: Sequence[Tensor], spec: ExperimentSpec) -> Tensor:
        """Output of an exported graph for its inputs."""

    @abstractmethod
    def graph_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Shape of an exported graph's output without the batch axis."""

    @abstractmethod
    def graph_facts(self, spec: ExperimentSpec) -> dict[str, Any]:
        """What the sidecar of a graph says beside section `model` and the sizes."""

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
    def validation_terms(
        self, prediction: Tensor, batch: Batch, spec: ExperimentSpec
    ) -> tuple[Tensor, int]:
        """Sum (float64) and number of terms whose mean over all batches is `val/loss`."""

    @abstractmethod
    def metrics(self, spec: ExperimentSpec) -> Metrics:
        """An empty accumulator of the declared metrics."""

    @abstractmethod
    def usable_truth(self, spec: ExperimentSpec) -> str:
        """Which ground truth counts, as a formula."""

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


class StereoTask(Task):
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

    def loss(self, network: nn.Module, batch: Batch, spec: ExperimentSpec) -> Tensor:
        """Sequence loss over the refinements of training."""
        output = network(batch["left"], batch["right"], iters=spec.model.train_iters)
        truth, valid = batch["disparity"], batch["valid"]
        return sequence_loss(output.initial, output.refined, truth, valid).total

    def predict(self, network: nn.Module, images: Sequence[Tensor], spec: ExperimentSpec) -> Tensor:
        """The disparity after the refinements of evaluation."""
        output = network(*images, iters=spec.model.valid_iters, last_only=True)
        return output.refined[-1][:, 0].float()

    def graph(self, network: nn.Module, images: Sequence[Tensor], spec: ExperimentSpec) -> Tensor:
        """The disparity (B, 1, h, w) after the refinements of an exported graph."""
        return network(*images, iters=spec.export.valid_iters, last_only=True).refined[-1]

    def graph_shape(self, height: int, width: int) -> tuple[int, ...]:
        """With a channel axis."""
        return (1, height, width)

    def graph_facts(self, spec: ExperimentSpec) -> dict[str, Any]:
        """The refinements that are unrolled into the graph."""
        return {"iterations": spec.export.valid_iters}

    def at_native_size(self, network: Network, batch: Batch, sizes: InputSizes) -> Tensor:
        """Disparity of padded images, cropped; or of resized ones, scaled by the widths.

        Borders are repeated where an image is padded. The choice depends on sizes only, so that
        every backend scores the same pixels.
        """
        images = [batch[name] for name in self.inputs]
        native = (images[0].shape[-2], images[0].shape[-1])
        padded = tuple(-(-side // sizes.stride) * sizes.stride for side in native)
        size = sizes.fixed or (padded[0], padded[1])
        if size == padded or sizes.native_padded:
            padding = _padding(native, size, sizes.source)
            return crop(network(*(_pad(image, padding) for image in images)), padding)
        disparity = network(*(_resize(image, size) for image in images))
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
        return viz.turbo_colors()

    def scale(self, truth: Map) -> Range:
        """From 0 to almost the largest, so that a few pixels do not decide."""
        return 0.0, float(np.quantile(truth, SCALE_QUANTILE))

    def color_error(self, prediction: Map, truth: Map, valid: Mask) -> Picture:
        """Turbo of the absolute error."""
        return viz.color_error(prediction, truth, valid)


def _padding(native: Size, size: Size, source: Path | str) -> Padding:
    vertical, horizontal = size[0] - native[0], size[1] - native[1]
    if min(vertical, horizontal) < 0:
        problem = f"the image is {native[0]}x{native[1]}, the network takes {size[0]}x{size[1]}"
        remedy = "Set native_padded=false to resize, or export a larger graph"
        raise SpecError([SpecProblem(str(source), "native_padded", problem, remedy)])
    return centred_padding(vertical, horizontal)


def _pad(image: Tensor, padding: Padding) -> Tensor:
    return F.pad(image, padding, mode="replicate") if any(padding) else image


def _resize(image: Tensor, size: Size) -> Tensor:
    """Bilinear (B, C, *size); smoothed when it becomes smaller, so that fine texture survives."""
    return F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True)


STEREO = StereoTask()
