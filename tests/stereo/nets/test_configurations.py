"""Networks of 40 drawn configurations build, learn, export and agree with their graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from stereo.nets.fast_foundation_stereo import FastFoundationStereo
from stereo.nets.folding import fold_norms
from stereo.nets.foundation_stereo import FoundationStereo
from stereo.spec.fields import leaves
from stereo.spec.load import load_spec
from stereo.spec.networks import (
    FastFoundationStereoSpec,
    FoundationStereoSpec,
    StereoBackboneSpec,
)

FAST, FULL, QUICK = 26, 14, 2  # configurations of each network; of them in the default suite
INPUTS = ((2, 32, 64), (1, 64, 32), (1, 32, 96))  # batch, height, width in px

DATA = {"train_dataset": {"data_sources": [{"dataset_name": "Kitti", "data_file": "pairs.txt"}]}}
FAST_CHOICES: dict[str, Sequence[Any]] = {
    "encoder": ("vits", "vitb", "vitl"),
    "hidden_dims": ([32], [48], [64]),
    "corr_radius": (2, 3, 4, 5, 8),
    "corr_levels": (1, 2),
    "cv_group": (4, 8, 16),
    "volume_dim": (16, 20, 28, 36),
    "concat_channel": (6, 16, 24),
    "max_disparity": (32, 64, 96),
    "gwc_feature_normalize": (True, False),
    "motion_encoder_widths": ([8, 12, 6, 4], [20, 16, 5, 7], [11, 24, 9, 12]),
    "motion_encoder_final": (None, 12, 21, 30),
    "gru_gating_conv_widths": (None, [20, 28], [33, 18], [24, 40]),
    "disp_head_intermediate": (None, 12, 19, 24),
    "disp_head_pwconv1_widths": (None, [16, 24], [30, 21], [25, 18]),
    "cam_mid_channels": (None, 2, 5, 8),
    "mask_widths": ([12, 0], [18, 0], [23, 0]),  # a second width is that of its neighbour below
    "stem_2_widths": ([8, 0], [12, 0], [15, 0]),
    "spx_2_gru_widths": ([8, 12, 10, 14], [13, 6, 16, 20], [16, 9, 7, 24]),
    "cnet_conv04_widths": (None, [20, 16], [28, 33], [36, 24]),
}
FULL_CHOICES: dict[str, Sequence[Any]] = {
    "encoder": ("vits",) * 11 + ("vitb",) * 2 + ("vitl",),
    "structure": (
        ("tao", "auto", 1),
        ("tao", "rows", 2),
        ("tao", "auto", 3),
        ("public", "auto", 2),
        ("public", "mha", 3),
        ("public", "groups", 3),
        ("auto", "auto", 1),
    ),
    "corr_radius": (2, 3, 4, 8),
    "corr_levels": (1, 2),
    "cv_group": (4, 8, 16),
    "volume_dim": (16, 20, 28, 36),
    "max_disparity": (32, 64, 96),
    "use_bn": (False, True),
    "use_clstoken": (False, True),
}


def drawn(choices: Mapping[str, Sequence[Any]], count: int) -> Iterator[dict[str, Any]]:
    """Yield rows in which every choice of a column occurs equally often, in a seeded order."""
    columns: dict[str, list[Any]] = {}
    for name, values in choices.items():
        column = [values[index % len(values)] for index in range(count)]
        Random(name).shuffle(column)
        columns[name] = column
    for index in range(count):
        yield {name: column[index] for name, column in columns.items()}


def fast_specs() -> list[FastFoundationStereoSpec]:
    specs = []
    for row in drawn(FAST_CHOICES, FAST):
        skip, contexts = row["spx_2_gru_widths"], row["cnet_conv04_widths"]
        row["mask_widths"] = [row["mask_widths"][0], skip[0]]
        row["stem_2_widths"] = [row["stem_2_widths"][0], skip[2]]
        row["gru_hidden"] = contexts and contexts[0]
        specs.append(FastFoundationStereoSpec(**row))
    return specs


def full_specs() -> list[FoundationStereoSpec]:
    specs = []
    for row in drawn(FULL_CHOICES, FULL):
        backbone = {name: row.pop(name) for name in ("use_bn", "use_clstoken")}
        row["variant"], row["attention_layout"], row["n_gru_layers"] = row.pop("structure")
        specs.append(FoundationStereoSpec(stereo_backbone=StereoBackboneSpec(**backbone), **row))
    return specs


def at(spec: Any, path: str) -> Any:
    for name in path.split("."):
        spec = getattr(spec, name)
    return spec


SPECS: dict[str, list[Any]] = {"ffs": fast_specs(), "fs": full_specs()}
UNREAD = {  # shape-changing by declaration, but no layer of this network reads them
    "ffs": {
        "disp_head_input_dim",
        "stereo_backbone.use_bn",
        "stereo_backbone.use_clstoken",
    },
    "fs": set(),
}
FIXED = {"ffs": {"n_gru_layers", "spx_gru_out"}, "fs": {"hidden_dims"}}  # one value is valid


@pytest.mark.parametrize("key", SPECS)
def test_every_drawn_configuration_is_accepted_as_a_spec(key: str) -> None:
    for spec in SPECS[key]:
        document = {"model": dataclasses.asdict(spec), "dataset": DATA, "results_dir": "results"}
        assert load_spec(document, action="train", model=key).model == spec


@pytest.mark.parametrize("key", SPECS)
def test_every_field_that_shapes_weights_takes_three_values(key: str) -> None:
    """Three, or all of them where the rules leave fewer; in lists at every place."""
    specs = SPECS[key]
    shaping = {n.path: n for n in leaves(type(specs[0])) if n.facts.shapes_weights}
    assert FIXED[key] | UNREAD[key] < shaping.keys()
    for path, node in shaping.items():
        values = [at(spec, path) for spec in specs]
        if path in FIXED[key] | UNREAD[key]:
            assert values == [node.default] * len(values), path
        elif node.kind == "list":
            given = [value for value in values if value is not None]
            assert all(len(set(column)) >= 3 for column in zip(*given, strict=True)), path
        else:
            few = node.kind == "bool" or node.facts.high == 2
            assert len(set(values)) >= (2 if few else 3), path


def test_encoders_variants_layouts_and_levels_are_drawn_together() -> None:
    assert len(SPECS["ffs"]) + len(SPECS["fs"]) == 40
    for specs in SPECS.values():
        assert {spec.encoder for spec in specs} == {"vits", "vitb", "vitl"}
        for name, count in (("corr_radius", 4), ("cv_group", 3), ("max_disparity", 3)):
            assert len({at(spec, name) for spec in specs}) >= count, name
    levels = {(spec.variant, spec.n_gru_layers) for spec in SPECS["fs"]}
    assert levels >= {("tao", 1), ("tao", 2), ("tao", 3), ("public", 2), ("public", 3)}
    layouts = {(spec.variant, spec.attention_layout) for spec in SPECS["fs"]}
    assert layouts >= {("tao", "rows"), ("public", "groups"), ("public", "mha"), ("auto", "auto")}
    assert {spec.gwc_feature_normalize for spec in SPECS["ffs"]} == {True, False}


class LastDisparity(nn.Module):
    """The network as a graph shows it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.network(left, right, iters=2, last_only=True).refined[-1]


def prove(network: nn.Module, graph: Path, inputs: tuple[int, int, int]) -> None:
    """Run forward, backward and the exported graph on seeded pairs of `inputs` (B, H, W)."""
    generator = torch.Generator().manual_seed(1)
    batch, height, width = inputs
    left, right = torch.randn(2, batch, 3, height, width, generator=generator)

    output = network.train()(left, right, iters=2)
    assert output.initial.shape == (batch, 1, height // 4, width // 4)
    assert [disparity.shape for disparity in output.refined] == [(batch, 1, height, width)] * 2
    (output.initial.sum() + sum(disparity.sum() for disparity in output.refined)).backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert len(gradients) > 300
    assert all(gradient.isfinite().all() for gradient in gradients)
    network.zero_grad(set_to_none=True)

    module = LastDisparity(network).eval()
    names: Any = {"input_names": ["left", "right"], "output_names": ["disparity"]}
    with torch.no_grad():
        expected = module(left, right)
        fold_norms(module)  # as an export does
        torch.onnx.export(
            module, (left, right), str(graph), opset_version=17, dynamo=False, **names
        )
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"left": left.numpy(), "right": right.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-3, rtol=0)


def cases(specs: Sequence[Any], quick: int) -> list[Any]:
    """Every spec with a batch and a size; all but the first `quick` are marked as slow."""
    return [
        pytest.param(
            spec,
            INPUTS[index % len(INPUTS)],
            marks=() if index < quick else pytest.mark.slow,
            id=str(index),
        )
        for index, spec in enumerate(specs)
    ]


@pytest.mark.filterwarnings("ignore")  # the exporter announces its successor
@pytest.mark.parametrize(("spec", "inputs"), cases(fast_specs(), QUICK))
def test_a_fast_network_learns_and_exports(
    spec: FastFoundationStereoSpec, inputs: tuple[int, int, int], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    prove(FastFoundationStereo(spec), tmp_path / "graph.onnx", inputs)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("spec", "inputs"), cases(full_specs(), 0))
def test_a_full_network_learns_and_exports(
    spec: FoundationStereoSpec, inputs: tuple[int, int, int], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    prove(FoundationStereo(spec), tmp_path / "graph.onnx", inputs)
