from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import nn

from stereo.nets.foundation_stereo import FoundationStereo, vit_size
from stereo.spec.networks import FoundationStereoSpec
from tests.parity.kit import open_kit
from tests.parity.stereo_kit import StereoKit

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
KITS = ("fs_vits", "fs_public_vits")
COUNTS = {  # tensors, parameters, trainable parameters
    "fs_vits": (1147, 62_333_607, 37_548_518),
    "fs_vitl": (1315, 374_515_175, 39_199_526),
    "fs_public_vits": (1192, 62_335_403, 37_550_314),
    "fs_public_vitl": (1360, 374_517_067, 39_201_418),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def open_stereo_kit(name: str) -> StereoKit:
    kit = open_kit(GOLDEN / name)
    assert isinstance(kit, StereoKit)
    return kit


@pytest.mark.parametrize(
    "name", [KITS[0], *(pytest.param(name, marks=pytest.mark.slow) for name in KITS[1:])]
)
def test_every_stage_equals_the_reference(name: str) -> None:
    kit = open_stereo_kit(name)

    checks = list(kit.stage_checks())

    assert [str(check) for check in checks if not check.ok] == []
    assert len(checks) > 230
    fused = {"convc1", "conv0", "mask", "vit_out"}
    assert {stage.partition("#")[0].rpartition(".")[2] for stage in kit.skipped_stages()} <= fused


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layouts"), [("fs_vits", []), ("fs_public_vits", ["mha"])])
def test_disparities_losses_and_gradients_equal_the_reference(
    name: str, layouts: list[str]
) -> None:
    kit = open_stereo_kit(name)

    checks = list(kit.checks())

    assert kit.other_layouts() == layouts
    assert [str(check) for check in checks if not check.ok] == []
    assert len(checks) > 270


@pytest.mark.parametrize("name", COUNTS)
def test_names_shapes_and_counts_are_those_of_the_released_networks(name: str) -> None:
    manifest = json.loads((GOLDEN / f"{name}.manifest.json").read_text())
    variant = "public" if "public" in name else "tao"
    with torch.device("meta"):
        network = FoundationStereo(FoundationStereoSpec(encoder=name[-4:], variant=variant))

    state = network.state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        tensor["name"]: tuple(tensor["shape"]) for tensor in manifest["tensors"]
    }
    parameters = list(network.parameters())
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    assert (len(state), sum(p.numel() for p in parameters), trainable) == COUNTS[name]


def small_spec(**fields: object) -> FoundationStereoSpec:
    return FoundationStereoSpec(**{"volume_dim": 16, "max_disparity": 64} | fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"n_gru_layers": 1, "corr_levels": 1, "corr_radius": 2},
        {"variant": "public", "n_gru_layers": 2, "cv_group": 4, "volume_dim": 20},
        *(
            pytest.param(fields, marks=pytest.mark.slow)
            for fields in (
                {"n_gru_layers": 2, "cv_group": 16, "encoder": "vitb"},
                {"variant": "public", "attention_layout": "mha", "corr_radius": 8},
                {"variant": "auto"},
            )
        ),
    ],
)
def test_every_structure_of_the_spec_builds_a_running_network(fields: dict[str, object]) -> None:
    network = FoundationStereo(small_spec(**fields)).eval()
    left, right = torch.rand(2, 2, 3, 32, 64)

    with torch.no_grad():
        output = network(left, right, iters=2)

    assert output.initial.shape == (2, 1, 8, 16)
    assert [tuple(disparity.shape) for disparity in output.refined] == [(2, 1, 32, 64)] * 2
    assert all(disparity.isfinite().all() for disparity in output.refined)


def test_groups_and_volume_width_shape_the_network() -> None:
    with torch.device("meta"):
        state = FoundationStereo(small_spec(volume_dim=40, cv_group=16)).state_dict()

    assert state["corr_stem.0.weight"].shape[:2] == (40, 40)
    assert state["classifier.2.weight"].shape[1] == 20
    assert state["update_block.encoder.convc1.weight"].shape[1] == 2 * 9 * 41


@pytest.mark.parametrize(
    "levels", [*(pytest.param(levels, marks=pytest.mark.slow) for levels in (1, 2)), 3]
)
def test_only_stored_modules_get_no_gradient(levels: int) -> None:
    torch.manual_seed(0)
    network = FoundationStereo(small_spec(n_gru_layers=levels)).train()
    output = network(*torch.rand(2, 1, 3, 32, 64), iters=2)
    (output.initial.sum() + sum(disparity.sum() for disparity in output.refined)).backward()

    without = {
        ".".join(name.split(".")[:2])
        for name, parameter in network.named_parameters()
        if parameter.grad is None and parameter.requires_grad
    }

    stored = {"stem_4.0", "stem_4.1", "cnet.down", "cnet.norm"}
    stored |= {f"context_zqr_convs.{level}" for level in range(levels)}
    if levels < 3:
        stored |= {"cnet.outputs16", "cnet.layer5"}
    if levels < 2:
        stored |= {"cnet.outputs08", "cnet.layer4"}
    assert without == stored


def test_the_vit_stays_frozen_and_in_evaluation_mode() -> None:
    network = FoundationStereo(small_spec()).train()

    branch = network.feature.dino
    assert not any(module.training for module in branch.modules())
    assert not any(parameter.requires_grad for parameter in branch.parameters())
    assert network.cnet.training


@pytest.mark.parametrize(
    ("image", "seen"),
    [
        ((128, 256), (224, 336)),
        ((112, 1344), (112, 1344)),
        ((128, 1536), (224, 1344)),
        ((1536, 128), (1344, 224)),
        ((1376, 1376), (1344, 1344)),
        ((768, 1408), (784, 1344)),
    ],
)
def test_the_vit_sees_multiples_of_112_px_up_to_1344(
    image: tuple[int, int], seen: tuple[int, int]
) -> None:
    assert vit_size(*image) == seen


def test_a_given_start_replaces_the_initial_disparity() -> None:
    network = FoundationStereo(small_spec()).eval()
    start = torch.full((1, 1, 8, 16), 3.0)

    with torch.no_grad():
        output = network(*torch.rand(2, 1, 3, 32, 64), iters=1, init_disparity=start)

    assert output.initial is start


def test_items_of_a_batch_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    network = FoundationStereo(small_spec()).eval()
    left, right = torch.rand(2, 2, 3, 32, 64)

    with torch.no_grad():
        both = network(left, right, iters=2, last_only=True).refined[0]
        second = network(left[1:], right[1:], iters=2, last_only=True).refined[0]

    torch.testing.assert_close(both[1:], second, atol=1e-4, rtol=1e-4)


def test_a_projected_shortcut_has_one_norm_under_two_names() -> None:
    network = FoundationStereo(small_spec())
    block = network.cnet.layer2[0]

    assert isinstance(block.downsample, nn.Sequential)
    assert block.downsample[1] is block.norm3


class LastDisparity(nn.Module):
    """The network as a graph shows it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return self.network(left, right, iters=2, last_only=True).refined[-1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the exporter announces its successor
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"variant": "public", "n_gru_layers": 2},
        {"variant": "public", "attention_layout": "mha"},
    ],
)
def test_a_graph_computes_the_same(fields: dict[str, object], tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = LastDisparity(FoundationStereo(small_spec(**fields))).eval()
    left, right = torch.randn(2, 1, 3, 64, 96)
    graph = str(tmp_path / "fs.onnx")
    names = {"input_names": ["left", "right"], "output_names": ["disparity"]}

    with torch.no_grad():
        torch.onnx.export(module, (left, right), graph, opset_version=17, dynamo=False, **names)
        expected = module(left, right)

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"left": left.numpy(), "right": right.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-3, rtol=0)
