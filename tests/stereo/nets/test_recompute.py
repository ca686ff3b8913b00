from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from stereo.nets import stereo_network
from stereo.nets.fast_foundation_stereo import FastFoundationStereo
from stereo.nets.foundation_stereo import FoundationStereo
from stereo.nets.recompute import _Announced, announce, cheap_ones_recomputed, recomputable
from stereo.nets.stereo_network import Leaner
from stereo.spec.networks import (
    FastFoundationStereoSpec,
    FoundationStereoSpec,
)


def doubled(x: Tensor) -> Tensor:
    return x * 2


def kept_bytes(
    network: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> tuple[Tensor, int]:
    """A loss, and the size of the activations that autograd keeps of it."""
    kept: dict[int, Tensor] = {}
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    pack = _Announced.pack

    def note(self: _Announced, tensor: Tensor) -> object:
        found = pack(self, tensor)
        if isinstance(found, Tensor):
            kept[found.untyped_storage().data_ptr()] = found
        return found

    with monkeypatch.context() as patch:
        patch.setattr(_Announced, "pack", note)
        loss = loss_of(network, images)
    sizes = {key: tensor.untyped_storage().nbytes() for key, tensor in kept.items()}
    return loss, sum(size for key, size in sizes.items() if key not in weights)


def test_an_announced_tensor_is_computed_when_its_gradient_is_due() -> None:
    calls = 0

    def step(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return x * 2

    x = torch.tensor([3.0, 4.0], requires_grad=True)
    with cheap_ones_recomputed():
        y = recomputable(step, x)
        z = y[1:].square().sum()
    assert calls == 1

    z.backward()

    assert calls == 2
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 32.0]


def test_steps_follow_from_steps() -> None:
    x = torch.randn(4, 5, requires_grad=True)
    with cheap_ones_recomputed():
        y = recomputable(torch.sin, recomputable(torch.t, recomputable(doubled, x)))
        loss = (y * y).sum()
    (found,) = torch.autograd.grad(loss, x)

    torch.testing.assert_close(found, 4 * (2 * x).sin() * (2 * x).cos())


def test_a_tensor_changed_after_its_announcement_is_kept_as_it_is() -> None:
    x = torch.tensor([3.0], requires_grad=True)
    with cheap_ones_recomputed():
        y = recomputable(doubled, x)
        y.add_(1)
        z = y.square()
    z.backward()

    assert x.grad is not None
    assert x.grad.tolist() == [28.0]


def test_memory_whose_announced_tensor_is_gone_means_nothing() -> None:
    x, weight = torch.ones(1000), torch.ones(1000, requires_grad=True)
    with cheap_ones_recomputed():
        announce(x, doubled, weight)
        other = x.detach()  # uses the memory after the announced tensor
        del x
        product = weight * other
    product.sum().backward()

    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.ones(1000))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("build", "spec"),
    [
        (FastFoundationStereo, FastFoundationStereoSpec(volume_dim=16, max_disparity=32)),
        pytest.param(
            FoundationStereo,
            FoundationStereoSpec(volume_dim=16, max_disparity=32, variant="public"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_network_keeps_less_and_gives_the_same_gradients(
    build: Callable[..., nn.Module],
    spec: FastFoundationStereoSpec | FoundationStereoSpec,
    training: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    network = build(spec).train(training)
    images = torch.randn(2, 1, 3, 64, 96)

    found = []
    for context in (cheap_ones_recomputed, lambda: cheap_but_kept(monkeypatch)):
        monkeypatch.setattr(stereo_network, "cheap_ones_recomputed", context)
        loss, size = kept_bytes(network, images, monkeypatch)
        found.append((loss, gradients_of(network, loss), size))

    (loss, gradients, size), (plain_loss, plain_gradients, plain_size) = found
    assert torch.equal(loss, plain_loss)
    torch.testing.assert_close(gradients, plain_gradients, rtol=0, atol=0)
    assert size < 0.75 * plain_size


def loss_of(network: nn.Module, images: Tensor) -> Tensor:
    torch.manual_seed(1)  # of the dropout
    output = network(*images, iters=2)
    return torch.stack([x.square().mean() for x in (output.initial, *output.refined)]).sum()


def gradients_of(network: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    network.zero_grad(set_to_none=True)
    loss.backward()
    return {n: p.grad for n, p in network.named_parameters() if p.grad is not None}


def test_low_memory_keeps_less_from_level_to_level(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for level in range(5):
        torch.manual_seed(0)
        spec = FastFoundationStereoSpec(volume_dim=16, max_disparity=32, low_memory=level)
        network = FastFoundationStereo(spec).train()
        images = torch.randn(2, 1, 3, 64, 96)
        loss, size = kept_bytes(network, images, monkeypatch)
        statistics = {n: b.clone() for n, b in network.named_buffers()}
        found.append((loss, gradients_of(network, loss), statistics, size))

    loss, gradients, statistics, _ = found[0]
    for other_loss, other_gradients, other_statistics, _ in found[1:]:
        assert torch.equal(other_loss, loss)
        torch.testing.assert_close(other_gradients, gradients, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(other_statistics, statistics, rtol=0, atol=0)
    sizes = [size for *_, size in found]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[4] < 0.5 * sizes[0]


@pytest.mark.parametrize(("given", "level"), [(0, Leaner.STEPS), (4, Leaner.VOLUME)])
def test_checkpointing_is_the_level_of_the_refinement_steps(given: int, level: int) -> None:
    spec = FastFoundationStereoSpec(volume_dim=16, max_disparity=32, low_memory=given)
    network = FastFoundationStereo(spec)

    network.checkpoint_activations()

    assert network.low_memory == level


def cheap_but_kept(monkeypatch: pytest.MonkeyPatch) -> object:
    """A context in which what is announced is kept all the same."""
    monkeypatch.setattr(_Announced, "add", lambda *_: None)
    return cheap_ones_recomputed()


def test_without_a_gradient_nothing_is_announced() -> None:
    with cheap_ones_recomputed(), torch.inference_mode():
        assert recomputable(doubled, torch.ones(2)).tolist() == [2.0, 2.0]
    assert recomputable(doubled, torch.ones(2)).tolist() == [2.0, 2.0]


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("build", "spec"),
    [
        (FastFoundationStereo, FastFoundationStereoSpec(volume_dim=16, max_disparity=32)),
        (FoundationStereo, FoundationStereoSpec(volume_dim=16, max_disparity=32)),
    ],
)
def test_a_network_compiles_as_one_graph(
    build: Callable[..., nn.Module],
    spec: FastFoundationStereoSpec | FoundationStereoSpec,
    training: bool,
) -> None:
    torch.manual_seed(0)
    network = build(spec).train(training)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    images = torch.randn(2, 1, 3, 64, 96)
    expected = loss_of(network, images)
    gradients = gradients_of(network, expected)

    torch.compiler.reset()
    network.compile(fullgraph=True, backend="aot_eager")  # raises where the graph would break
    found = loss_of(network, images)

    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    total, other = (
        torch.stack([g.norm() for g in all_of.values()]).norm()
        for all_of in (gradients, gradients_of(network, found))
    )
    torch.testing.assert_close(other, total, rtol=1e-2, atol=0)
