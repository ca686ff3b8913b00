"""The networks by key: the only place that knows a model by name.

A row says what task a network has, how to build it from an experiment, which released names it
accepts and which stride its input sides must keep. torch is imported when a network or its task is
needed, not before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stereo.errors import CheckpointError, SpecError, SpecProblem
from stereo.nets import names
from stereo.spec import models
from stereo.spec.experiment import (
    ExperimentSpec,
    FoundationStereoExperiment,
    MetricDepthExperiment,
    RelativeDepthExperiment,
)
from stereo.spec.fields import leaves
from stereo.spec.networks import (
    VARIANT_LAYOUTS,
    FastFoundationStereoSpec,
    FoundationStereoSpec,
    MetricDepthSpec,
    RelativeDepthSpec,
)
from stereo.spec.rules import RULES, bp2_mismatches, value_at

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stereo.checkpoints.identify import Identity
    from stereo.checkpoints.load import LoadReport, Part
    from stereo.nets.stereo_network import StereoNetwork
    from stereo.tasks import Task

LOG = logging.getLogger(__name__)
Stated = Callable[[], Mapping[str, Any]]
"""Fields of section `model` that a checkpoint tells; none when training starts from scratch."""


@dataclass(frozen=True)
class ModelEntry:
    """What the rest of the package needs to know about one network.

    Attributes:
        key: `ffs`, as in `MODEL=` and the folder names.
        model_type: the long name inside a spec (`model.model_type`).
        spec_class: dataclass of the spec's `model` section.
        load_task: returns what is asked of networks of this kind.
        build: experiment -> network with fresh weights.
        load_release: released names -> ours; leaves our own names unchanged.
        release_faults: what in a spec differs from the network of the released weights.
        stride: input height and width are multiples of this many pixels.
        dynamic_size: a graph can leave height and width open.
        settle: spec section and what the weights tell -> section without open choices.
        parts: what of the network may start from a file of its own.
    """

    key: str
    model_type: str
    spec_class: type[Any]
    load_task: Callable[[], Task[Any]]
    build: Callable[[Any], nn.Module]
    load_release: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    release_faults: Callable[[ExperimentSpec], list[SpecProblem]]
    stride: int
    dynamic_size: bool = False
    settle: Callable[[Any, Stated], Any] = lambda section, _stated: section
    parts: Callable[[], tuple[Part, ...]] = tuple

    @property
    def task(self) -> Task[Any]:
        """What is asked of networks of this kind."""
        return self.load_task()

    def experiment(self, section: Any = None) -> ExperimentSpec:
        """An experiment with this network that says nothing but its section `model`."""
        spec = models.MODELS[self.key].spec_class()
        return spec if section is None else replace(spec, model=section)


def _stereo() -> Task[Any]:
    from stereo.tasks import STEREO

    return STEREO


def _metric() -> Task[Any]:
    from stereo.tasks import METRIC

    return METRIC


def _relative() -> Task[Any]:
    from stereo.tasks import RELATIVE

    return RELATIVE


def _build_fast_foundation_stereo(spec: ExperimentSpec) -> nn.Module:
    from stereo.nets.fast_foundation_stereo import FastFoundationStereo

    return _as_trained(FastFoundationStereo(spec.model), spec)


def _build_foundation_stereo(spec: FoundationStereoExperiment) -> nn.Module:
    from stereo.nets.foundation_stereo import FoundationStereo

    return _as_trained(FoundationStereo(spec.model), spec)


def _as_trained(network: StereoNetwork, spec: ExperimentSpec) -> StereoNetwork:
    """The network with activation checkpointing where the spec asks for it."""
    import torch

    if spec.train.activation_checkpoint:
        network.checkpoint_activations()
    if network.mixed_precision and not torch.cuda.is_available():
        LOG.warning("model.mixed_precision has no effect: no GPU with CUDA is visible")
    return network


def _build_metric_depth(spec: MetricDepthExperiment) -> nn.Module:
    from stereo.nets.depth_anything_v2 import MetricDepthAnything

    recompute = spec.train.activation_checkpoint
    return MetricDepthAnything(spec.model, max_depth=spec.dataset.max_depth, recompute=recompute)


def _build_relative_depth(spec: RelativeDepthExperiment) -> nn.Module:
    from stereo.nets.depth_anything_v2 import RelativeDepthAnything

    return RelativeDepthAnything(spec.model, recompute=spec.train.activation_checkpoint)


def _edgenext() -> Part:
    from stereo.checkpoints.load import Part

    return Part(
        "model.stereo_backbone.edgenext_pretrained_path",
        "an EdgeNeXt-small encoder",
        names.FEATURE,
        ("downsample_layers.", "stages."),
        names.rename_edgenext,
    )


def _depth_anything() -> Part:
    from stereo.checkpoints.load import Part

    return Part(
        "model.stereo_backbone.depth_anything_v2_pretrained_path",
        "a Depth Anything V2 network",
        "feature.dino.depth_anything.",
        ("pretrained.", "depth_head."),
        names.rename_relative_depth,
    )


def mono_encoder() -> tuple[Part, ...]:
    """The encoder of both monocular networks, from DINOv2 or from either of them."""
    from stereo.checkpoints.load import Part

    return (
        Part(
            "model.mono_backbone.pretrained_path",
            "a DINOv2 encoder or a Depth Anything V2 network",
            "",
            (names.MONO_ENCODER,),
            names.rename_relative_depth,
        ),
    )


def _settle_foundation_stereo(
    section: FoundationStereoSpec, stated: Stated
) -> FoundationStereoSpec:
    """Variant and arrangement of heads of the weights, where the spec leaves them to those."""
    variant, layout = section.variant, section.attention_layout
    if variant == "auto":
        variant = stated().get("variant", "tao")
    _, usual, *others = VARIANT_LAYOUTS[variant]
    if layout == "auto":
        trained = stated().get("attention_layout") if others else usual
        layout = trained if trained in others else usual
    if variant == "public":
        LOG.info("public FoundationStereo with model.attention_layout %s", layout)
    return replace(section, variant=variant, attention_layout=layout)


MODELS: dict[str, ModelEntry] = {
    entry.key: entry
    for entry in (
        ModelEntry(
            key="ffs",
            model_type="FastFoundationStereo",
            spec_class=FastFoundationStereoSpec,
            load_task=_stereo,
            build=_build_fast_foundation_stereo,
            load_release=names.rename_fast_foundation_stereo,
            release_faults=bp2_mismatches,
            stride=32,
            dynamic_size=True,
            parts=lambda: (_edgenext(),),
        ),
        ModelEntry(
            key="fs",
            model_type="FoundationStereo",
            spec_class=FoundationStereoSpec,
            load_task=_stereo,
            build=_build_foundation_stereo,
            load_release=names.rename_foundation_stereo,
            release_faults=lambda _spec: [],  # names and shapes show every difference
            stride=32,
            settle=_settle_foundation_stereo,
            parts=lambda: (_edgenext(), _depth_anything()),
        ),
        ModelEntry(
            key="mono_metric",
            model_type="MetricDepthAnything",
            spec_class=MetricDepthSpec,
            load_task=_metric,
            build=_build_metric_depth,
            load_release=names.rename_metric_depth,
            release_faults=lambda _spec: [],  # names and shapes show every difference
            stride=14,
            parts=mono_encoder,
        ),
        ModelEntry(
            key="mono_relative",
            model_type="RelativeDepthAnything",
            spec_class=RelativeDepthSpec,
            load_task=_relative,
            build=_build_relative_depth,
            load_release=names.rename_relative_depth,
            release_faults=lambda _spec: [],
            stride=14,
            parts=mono_encoder,
        ),
    )
}


def entry_for(spec: ExperimentSpec) -> ModelEntry:
    """Row of the network that `spec.model` describes."""
    return next(entry for entry in MODELS.values() if isinstance(spec.model, entry.spec_class))


def settled(spec: ExperimentSpec, checkpoint: Path | None) -> ExperimentSpec:
    """The experiment with every choice made that a spec may leave to its weights.

    Args:
        spec: the experiment.
        checkpoint: a `.pth` file; None: training from scratch.

    Raises:
        CheckpointError: the file is unusable.
        SpecError: the weights decide against another field of the spec.
    """
    entry = entry_for(spec)

    @cache
    def stated() -> Mapping[str, Any]:
        if checkpoint is None:
            return {}
        from stereo.checkpoints import files, identify
        from stereo.checkpoints.load import network_state

        payload = files.read(checkpoint)
        found = identify.identify(entry.load_release(network_state(payload)), payload)
        return {**found.settings, **found.fields}

    decided = replace(spec, model=entry.settle(spec.model, stated))
    problems = [
        SpecProblem(str(checkpoint), rule.keys[0], problem, rule.remedy)
        for rule in RULES[entry.key]
        if "model.variant" in rule.keys and (problem := rule.broken(decided))
    ]
    if problems:
        raise SpecError(problems)
    return decided


def load_weights(
    network: nn.Module,
    path: Path,
    entry: ModelEntry,
    spec: ExperimentSpec,
    *,
    partial: bool = False,
) -> LoadReport:
    """Copy the weights of a checkpoint into the network of a spec, released weights included.

    Args:
        network: what `entry` built from `spec`.
        path: a `.pth` file.
        entry: row of the network.
        spec: the experiment, for the fields that released weights need.
        partial: accept differences and load what fits.

    Raises:
        CheckpointError: the file is unusable, or its weights do not fit.
        SpecError: released weights fit, but the network computes something else with them.
    """
    from stereo.checkpoints.identify import expected
    from stereo.checkpoints.load import load_into

    is_release = False

    def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
        nonlocal is_release
        renamed = entry.load_release(state)
        is_release = renamed.keys() != state.keys()
        return renamed

    try:
        report = load_into(network, path, partial=partial, rename=rename, expected=expected(entry))
    except CheckpointError as error:
        faults = entry.release_faults(spec) if is_release else []
        if not faults:
            raise
        raise CheckpointError("\n".join(map(str, (error, *faults)))) from None
    faults = entry.release_faults(spec) if is_release and not partial else []
    shaping = {node.path for node in leaves(type(spec)) if node.facts.shapes_weights}
    if faults and shaping.isdisjoint(fault.key for fault in faults):  # else another release
        raise SpecError(faults)
    _tell_other_range(path, report, spec, entry, is_release=is_release)
    return report


def _tell_other_range(
    path: Path, report: LoadReport, spec: ExperimentSpec, entry: ModelEntry, *, is_release: bool
) -> None:
    """Warn of weights for another range of disparities, which load all the same."""
    given = getattr(spec.model, "max_disparity", None)
    released = getattr(entry.experiment().model, "max_disparity", None) if is_release else given
    needed = report.settings.get("max_disparity", released)
    if given != needed:
        LOG.warning("%s: made for model.max_disparity %s, the spec has %s", path, needed, given)


def other_meanings(
    path: Path, payload: Mapping[str, Any], entry: ModelEntry, spec: ExperimentSpec
) -> list[SpecProblem]:
    """Fields with which the weights of a checkpoint would mean something else than in training.

    Args:
        path: of the checkpoint, for messages.
        payload: what it holds; released files say nothing of their training, which is logged.
        entry: row of the network.
        spec: the experiment.
    """
    problems: list[SpecProblem] = []
    for key in entry.task.bound:
        value: Any = payload.get("spec")
        for name in key.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        given = value_at(spec, key)
        if value is None:
            LOG.warning(
                "%s: does not say which %s its weights were trained with; that of the spec, %s,"
                " counts",
                *(path, key, given),
            )
        elif value != given:
            problem = f"got {given}, the weights were trained with {value}"
            problems.append(SpecProblem(str(path), key, problem, f"Set {key}={value}"))
    return problems


def load_start(
    network: nn.Module, entry: ModelEntry, spec: ExperimentSpec
) -> dict[str, LoadReport]:
    """Copy the weights from which a spec starts a training into its network.

    Weights of the whole network win over those of its parts.

    Returns:
        What found no place, by file; empty when training starts from scratch.

    Raises:
        CheckpointError: a file is unusable, or its weights do not fit.
        SpecError: see `load_weights`.
    """
    from stereo.checkpoints import files as checkpoints
    from stereo.checkpoints.load import load_part

    partial, whole = spec.train.allow_partial_load, spec.train.pretrained_model_path
    if whole:
        if entry.task.bound:
            for problem in other_meanings(Path(whole), checkpoints.read(Path(whole)), entry, spec):
                LOG.warning("%s", problem)
        return {whole: load_weights(network, Path(whole), entry, spec, partial=partial)}
    files = {part: value_at(spec, part.key) for part in entry.parts()}
    return {
        file: load_part(network, Path(file), part, partial=partial)
        for part, file in files.items()
        if file
    }


def recognised(path: Path) -> tuple[Identity, dict[str, Tensor]]:
    """What a weight file is, and its tensors under our names.

    Raises:
        CheckpointError: the file is unusable, or holds no network of this program.
    """
    from stereo.checkpoints import files, identify
    from stereo.checkpoints.load import network_state

    payload = files.read(path)
    stored = network_state(payload)
    depth = identify.depth_of(stored, payload, path.name)
    for entry in MODELS.values():
        state = entry.load_release(stored)
        found = identify.identify(state, payload)
        if found.network == entry.model_type and depth in (None, entry.model_type):
            return found, state
    return identify.identify(stored, payload), stored
