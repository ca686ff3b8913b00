from __future__ import annotations

import pytest
import torch

from stereo.nets.vit import SIZES, VisionTransformer, sized


@pytest.fixture(scope="module")
def small() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer("vits").eval()


def test_the_table_of_518_px_images_is_used_as_it_is(small: VisionTransformer) -> None:
    assert small.position(37, 37) is small.pos_embed


def test_positions_are_resampled_with_the_offset_of_the_released_weights(
    small: VisionTransformer,
) -> None:
    """With a target size in place of the factors, the last of these are off by 0.2 patches."""
    ramp = torch.arange(37.0)
    with torch.no_grad():
        small.pos_embed[0, 1:, 0] = ramp.repeat_interleave(37)  # row number
        small.pos_embed[0, 1:, 1] = ramp.repeat(37)  # column number
        found = small.position(10, 20)[0, 1:].unflatten(0, (10, 20))

    row = (torch.arange(10) + 0.5) * 37 / 10.1 - 0.5
    column = (torch.arange(20) + 0.5) * 37 / 20.1 - 0.5
    torch.testing.assert_close(found[2:-2, 5, 0], row[2:-2], atol=0.05, rtol=0)  # cubic
    torch.testing.assert_close(found[5, 2:-2, 1], column[2:-2], atol=0.05, rtol=0)


def test_tokens_run_along_the_rows_of_the_image(small: VisionTransformer) -> None:
    image = torch.randn(1, 3, 28, 42)
    moved = image.clone()
    moved[..., 14:, 28:] += 1  # the last patch of the second row

    with torch.no_grad():
        difference = (small.patch_embed(image) - small.patch_embed(moved)).abs().sum(-1)

    assert difference[0].nonzero().flatten().tolist() == [5]


@pytest.mark.parametrize("size", [(15, 28), (28, 27)])
def test_an_image_that_holds_no_whole_number_of_patches_is_refused(
    small: VisionTransformer, size: tuple[int, int]
) -> None:
    with pytest.raises(ValueError, match=rf"{size[0]}x{size[1]} px: .* multiples of 14"):
        small(torch.zeros(1, 3, *size))


@pytest.mark.parametrize("size", SIZES)
def test_four_blocks_are_tapped_the_last_one_among_them(size: str) -> None:
    with torch.device("meta"):
        network = VisionTransformer(size)
        tokens = network(torch.zeros(2, 3, 28, 42))

    assert [tuple(tapped.patches.shape) for tapped in tokens] == [(2, 6, SIZES[size].width)] * 4
    assert [tuple(tapped.image.shape) for tapped in tokens] == [(2, SIZES[size].width)] * 4
    assert SIZES[size].taps[-1] == len(network.blocks) - 1


def test_a_transformer_of_another_depth_is_tapped_at_the_ends_of_its_quarters() -> None:
    for size in ("vits", "vitb", "vitg"):
        other = "vitl"  # has 24
        assert sized(other, blocks=SIZES[size].blocks).taps == SIZES[size].taps
    assert sized("vits", blocks=4).taps == (0, 1, 2, 3)
    assert sized("vits", blocks=5).taps == (0, 1, 2, 4)
    assert sized("vitl", blocks=24) == SIZES["vitl"]
    assert sized("vits", width=192).width == 192
    network = VisionTransformer("vits", blocks=5, width=64)
    tokens = network(torch.zeros(2, 3, 28, 42))
    assert [tuple(tapped.patches.shape) for tapped in tokens] == [(2, 6, 64)] * 4
    assert len(network.blocks) == 5
