from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from stereo.nets.aggregation import (
    HEADS,
    DisparityAttention,
    DisparityTransformer,
    GroupAttention,
    HeadAttention,
    RowAttention,
    soft_argmin,
)

LENGTH, CHANNELS = 8, 28


def influence(layout: type[DisparityAttention]) -> torch.Tensor:
    """Which disparity (row) sees which other one (column), True or False."""
    torch.manual_seed(0)
    attention = layout(CHANNELS)
    x = torch.randn(1, LENGTH, CHANNELS)
    jacobian = torch.autograd.functional.jacobian(attention, x)
    return jacobian[0, :, :, 0].abs().sum(dim=(1, 3)) > 1e-7


def test_with_groups_no_disparity_sees_another() -> None:
    assert torch.equal(influence(GroupAttention), torch.eye(LENGTH, dtype=torch.bool))


def test_with_rows_a_disparity_sees_its_quarter() -> None:
    quarter = torch.ones(LENGTH // HEADS, LENGTH // HEADS, dtype=torch.bool)

    assert torch.equal(influence(RowAttention), torch.block_diag(*[quarter] * HEADS).bool())


def test_with_heads_every_disparity_sees_all() -> None:
    assert influence(HeadAttention).all()


def test_heads_are_those_of_the_textbooks() -> None:
    torch.manual_seed(0)
    attention = HeadAttention(CHANNELS)
    x = torch.randn(3, LENGTH, CHANNELS)
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)

    with torch.no_grad():
        expected, _ = F.multi_head_attention_forward(
            *(x.transpose(0, 1),) * 3,
            embed_dim_to_check=CHANNELS,
            num_heads=HEADS,
            in_proj_weight=torch.cat([p.weight for p in projections]),
            in_proj_bias=torch.cat([p.bias for p in projections]),
            bias_k=None,
            bias_v=None,
            add_zero_attn=False,
            dropout_p=0.0,
            out_proj_weight=attention.out_proj.weight,
            out_proj_bias=attention.out_proj.bias,
        )

        torch.testing.assert_close(attention(x), expected.transpose(0, 1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", [GroupAttention, RowAttention, HeadAttention])
def test_pixels_do_not_see_each_other(layout: type[DisparityAttention]) -> None:
    torch.manual_seed(0)
    attention = layout(CHANNELS)
    x = torch.randn(5, LENGTH, CHANNELS)

    torch.testing.assert_close(attention(x)[2:3], attention(x[2:3]))


@pytest.mark.parametrize("training", [False, True])
def test_pixels_in_chunks_give_the_gradients_of_all_at_once(training: bool) -> None:
    torch.manual_seed(0)
    transformer = DisparityTransformer(CHANNELS, length=LENGTH, layers=2, feedforward=CHANNELS)
    for module in transformer.train(training).modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    volume = torch.randn(1, CHANNELS, LENGTH, 3, 5)
    found = []
    for chunk in (LENGTH * 15, LENGTH * 4):
        transformer.CHUNK = chunk
        transformer.zero_grad()
        leaf = volume.clone().requires_grad_()
        transformer(leaf).pow(3).sum().backward()
        found.append([leaf.grad, *(p.grad.clone() for p in transformer.parameters())])

    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


def test_the_backward_pass_drops_what_the_forward_pass_dropped() -> None:
    torch.manual_seed(0)
    transformer = DisparityTransformer(CHANNELS, length=LENGTH, layers=1, feedforward=CHANNELS)
    transformer.CHUNK = LENGTH * 4
    volume = torch.randn(1, CHANNELS, LENGTH, 3, 5, dtype=torch.double, requires_grad=True)

    def dropped(volume: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        return transformer.double()(volume).pow(3).sum()

    torch.autograd.gradcheck(dropped, volume, fast_mode=True, nondet_tol=0.0)
    state = torch.get_rng_state()
    output = transformer(volume)
    drawn = torch.get_rng_state()
    output.sum().backward()
    assert torch.equal(drawn, torch.get_rng_state())
    assert not torch.equal(drawn, state)


def test_the_expected_disparity_of_half_precision_scores_is_exact() -> None:
    scores = torch.randn(1, 1, 104, 2, 3, generator=torch.Generator().manual_seed(0))
    scores = scores.to(torch.bfloat16)
    found = soft_argmin(scores)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, soft_argmin(scores.float()), rtol=0, atol=0)
