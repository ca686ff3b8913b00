from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from stereo.nets.blocks import ConvBlock
from stereo.nets.fast_foundation_stereo import FastFoundationStereo
from stereo.spec.networks import FastFoundationStereoSpec
from tests.parity.kit import open_kit
from tests.parity.stereo_kit import StereoKit

GOLDEN = Path(__file__).resolve().parents[2] / "golden"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def kit() -> StereoKit:
    kit = open_kit(GOLDEN / "ffs_bp2")
    assert isinstance(kit, StereoKit)
    return kit


def test_every_stage_and_disparity_equals_the_reference(kit: StereoKit) -> None:
    checks = list(kit.inference_checks())

    assert [str(check) for check in checks if not check.ok] == []
    assert len(checks) > 130


def test_only_fused_stages_are_not_compared(kit: StereoKit) -> None:
    fused = {"convc1", "conv0", "mask"}

    assert {stage.partition("#")[0].rpartition(".")[2] for stage in kit.skipped_stages()} <= fused


def test_losses_gradients_and_batch_statistics_equal_the_reference(kit: StereoKit) -> None:
    checks = list(kit.training_checks())

    assert [str(check) for check in checks if not check.ok] == []


def small_spec(**fields: object) -> FastFoundationStereoSpec:
    return FastFoundationStereoSpec(volume_dim=16, max_disparity=32, **fields)


@pytest.mark.parametrize(
    "fields",
    [
        {
            "motion_encoder_final": None,
            "gru_hidden": None,
            "gru_gating_conv_widths": None,
            "disp_head_intermediate": None,
            "disp_head_pwconv1_widths": None,
            "cnet_conv04_widths": None,
            "cam_mid_channels": None,
            "hidden_dims": [64],
        },
        {"encoder": "vits", "cv_group": 16, "concat_channel": 8},
        {"encoder": "vitb", "cv_group": 4, "corr_levels": 1, "corr_radius": 2},
        {"gwc_feature_normalize": False, "corr_radius": 8},
    ],
)
def test_every_width_of_the_spec_builds_a_running_network(fields: dict[str, object]) -> None:
    network = FastFoundationStereo(small_spec(**fields)).eval()
    left, right = torch.rand(2, 2, 3, 32, 64)

    with torch.no_grad():
        output = network(left, right, iters=2)

    assert output.initial.shape == (2, 1, 8, 16)
    assert [tuple(disparity.shape) for disparity in output.refined] == [(2, 1, 32, 64)] * 2
    assert all(disparity.isfinite().all() for disparity in output.refined)


def test_widths_left_out_follow_from_the_hidden_width() -> None:
    fields = {
        "motion_encoder_final": None,
        "gru_hidden": None,
        "gru_gating_conv_widths": None,
        "disp_head_intermediate": None,
        "disp_head_pwconv1_widths": None,
        "cnet_conv04_widths": None,
        "cam_mid_channels": None,
    }
    state = FastFoundationStereo(small_spec(hidden_dims=[64], **fields)).state_dict()

    assert state["update_block.encoder.conv.weight"].shape[0] == 63
    assert state["update_block.gru04.conv0.0.weight"].shape[:2] == (128, 128)
    assert state["update_block.gru04.conv1.0.weight"].shape[0] == 192
    assert state["update_block.disp_head.conv.2.pwconv1.weight"].shape == (256, 64)
    assert state["cam.fc.0.weight"].shape[0] == 4


def test_last_only_returns_the_last_of_all_iterations() -> None:
    torch.manual_seed(0)
    network = FastFoundationStereo(small_spec()).eval()
    left, right = torch.rand(2, 1, 3, 32, 64)

    with torch.no_grad():
        every = network(left, right, iters=3)
        last = network(left, right, iters=3, last_only=True)

    assert len(last.refined) == 1
    torch.testing.assert_close(last.refined[0], every.refined[2])
    torch.testing.assert_close(last.initial, every.initial)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_changes_disparity_little(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = FastFoundationStereo(small_spec()).eval()
    left, right = torch.rand(2, 1, 3, 32, 64)

    with torch.no_grad():
        expected = network(left, right, iters=3, last_only=True)
        with torch.autocast("cpu", dtype):
            found = network(left, right, iters=3, last_only=True)

    for disparity, exact in zip(
        (found.initial, *found.refined), (expected.initial, *expected.refined), strict=True
    ):
        assert disparity.dtype == torch.float32
        torch.testing.assert_close(disparity, exact, rtol=0, atol=0.2)


def test_a_given_start_replaces_the_initial_disparity() -> None:
    network = FastFoundationStereo(small_spec()).eval()
    left, right = torch.rand(2, 1, 3, 32, 64)
    start = torch.full((1, 1, 8, 16), 3.0)

    with torch.no_grad():
        output = network(left, right, iters=1, init_disparity=start)

    assert output.initial is start


def test_items_of_a_batch_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    network = FastFoundationStereo(small_spec()).eval()
    left, right = torch.rand(2, 2, 3, 32, 64)

    with torch.no_grad():
        both = network(left, right, iters=2, last_only=True).refined[0]
        second = network(left[1:], right[1:], iters=2, last_only=True).refined[0]

    torch.testing.assert_close(both[1:], second, atol=1e-4, rtol=1e-4)


def test_the_volume_stays_in_channels_last_memory() -> None:
    """In the default layout a training step costs a fifth more."""
    network = FastFoundationStereo(small_spec()).eval()
    strays: list[str] = []

    def note(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
            if output.stride(1) != 1:
                strays.append(name)

        return hook

    for name, module in network.named_modules():
        if isinstance(module, ConvBlock) and name.startswith(("corr_feature_att", "cost_agg")):
            module.register_forward_hook(note(name))
    with torch.no_grad():
        network(*torch.rand(2, 2, 3, 64, 96), iters=1)

    assert strays == []
