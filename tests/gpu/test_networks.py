"""The stereo networks on a device: the same checks on the CPU (default suite) and on a GPU."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stereo.losses import sequence_loss
from stereo.nets.fast_foundation_stereo import FastFoundationStereo
from stereo.nets.foundation_stereo import FoundationStereo
from stereo.spec.networks import FastFoundationStereoSpec, FoundationStereoSpec
from tests.parity.checks import maps
from tests.parity.kit import open_kit
from tests.parity.stereo_kit import StereoKit

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
GPU = pytest.param("cuda", marks=pytest.mark.gpu)
SMALL: dict[str, Any] = {"volume_dim": 16, "max_disparity": 32}
FAST = FastFoundationStereoSpec(**SMALL)
FULL = FoundationStereoSpec(**SMALL, n_gru_layers=1)


@pytest.fixture(autouse=True)
def exact_float32() -> Iterator[None]:
    """Without TF32, which cuDNN uses for convolutions unless told otherwise."""
    cudnn = torch.backends.cudnn
    allowed, cudnn.allow_tf32 = cudnn.allow_tf32, False
    yield
    cudnn.allow_tf32 = allowed


@pytest.fixture(params=["cpu", GPU])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU")
    return request.param


@pytest.fixture
def gpu() -> str:
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU")
    return "cuda"


def build(spec: FastFoundationStereoSpec | FoundationStereoSpec, device: str) -> nn.Module:
    torch.manual_seed(0)
    full = isinstance(spec, FoundationStereoSpec)
    network = FoundationStereo(spec) if full else FastFoundationStereo(spec)
    return network.to(device)


def images(device: str, height: int = 32, width: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 1, 3, height, width, generator=generator).to(device)


def parity(name: str, device: str) -> None:
    """Compare initial and refined disparities of a kit with those computed on the device."""
    kit = open_kit(GOLDEN / name)
    assert isinstance(kit, StereoKit)
    counts = [n for n in kit.values if n.startswith("disp_iters")]
    network = copy.deepcopy(kit.network).to(device)
    with torch.no_grad():
        output = network(kit.left.to(device), kit.right.to(device), iters=8)

    limits = kit.tolerances
    checks = list(maps("init_disp", output.initial.cpu(), kit.values["init_disp"], limits.initial))
    for key in counts:
        found = output.refined[int(key.removeprefix("disp_iters")) - 1].cpu()
        checks += maps(key, found, kit.values[key], limits.final)
    assert len(checks) == 2 + 2 * len(counts)
    assert [str(check) for check in checks if not check.ok] == []


def test_the_fast_network_equals_the_reference(device: str) -> None:
    parity("ffs_bp2", device)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fs_vits", "fs_public_vits"])
def test_the_full_networks_equal_the_reference(name: str, device: str) -> None:
    parity(name, device)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["fs_vits", "fs_public_vits"])
def test_the_full_networks_equal_the_reference_on_a_gpu(name: str, gpu: str) -> None:
    parity(name, gpu)


def learns(spec: FastFoundationStereoSpec | FoundationStereoSpec, device: str, kind: Any) -> None:
    """Take steps on one pair in some arithmetic; the loss stays finite and falls."""
    network = build(spec, device).train()
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=3e-4)
    scaler = torch.amp.GradScaler(device, enabled=kind == torch.float16)
    left, right = images(device)
    truth = torch.full((1, 1, 32, 64), 6.0, device=device)
    losses = []
    for _ in range(8):
        with torch.autocast(device, kind, enabled=kind != torch.float32):
            output = network(left, right, iters=2)
        assert output.initial.dtype == output.refined[-1].dtype == torch.float32
        loss = sequence_loss(output.initial, output.refined, truth, truth > 0).total
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert torch.tensor(losses).isfinite().all()
    assert min(losses[-2:]) < 0.9 * losses[0]


def test_the_fast_network_learns(device: str) -> None:
    learns(FAST, device, torch.float32)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("spec", [FAST, FULL], ids=["ffs", "fs"])
def test_networks_learn_in_half_precision_on_a_gpu(spec: Any, kind: Any, gpu: str) -> None:
    learns(spec, gpu, kind)


def test_mixed_precision_is_float16_on_a_gpu_and_nothing_on_the_cpu(device: str) -> None:
    network = build(FAST, device).eval()
    with torch.no_grad():
        exact = network(*images(device), iters=2)
        network.mixed_precision = True
        mixed = network(*images(device), iters=2)
        with torch.autocast(device, torch.bfloat16):
            outer = network(*images(device), iters=2)
            network.mixed_precision = False
            alone = network(*images(device), iters=2)

    assert mixed.refined[-1].dtype == torch.float32
    assert torch.equal(mixed.refined[-1], exact.refined[-1]) is (device == "cpu")
    torch.testing.assert_close(mixed.refined[-1], exact.refined[-1], atol=0.2, rtol=0.05)
    assert torch.equal(outer.refined[-1], alone.refined[-1]), "the caller's autocast wins"


@pytest.mark.gpu
@pytest.mark.parametrize("spec", [FAST, FULL], ids=["ffs", "fs"])
def test_a_compiled_network_gives_the_same_disparity(spec: Any, gpu: str) -> None:
    network = build(spec, gpu).eval()
    left, right = images(gpu)
    with torch.no_grad():
        expected = network(left, right, iters=2)
        torch.compiler.reset()
        network.compile(fullgraph=True)
        found = network(left, right, iters=2)

    torch.testing.assert_close(found.refined[-1], expected.refined[-1], atol=1e-2, rtol=1e-3)


@pytest.mark.gpu
def test_every_level_of_low_memory_saves_memory_and_keeps_the_loss(gpu: str) -> None:
    peaks, losses = [], []
    for level in range(5):
        network = build(FastFoundationStereoSpec(low_memory=level), gpu).train()
        left, right = images(gpu, 256, 512)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        torch.manual_seed(2)
        output = network(left, right, iters=8)
        loss = torch.stack([x.mean() for x in (output.initial, *output.refined)]).sum()
        loss.backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
        losses.append(loss.item())
    assert losses == pytest.approx([losses[0]] * 5, rel=1e-4)
    assert peaks[1] < 0.9 * peaks[0]
    assert peaks == sorted(peaks, reverse=True)
