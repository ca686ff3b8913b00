"""Taps of the lookup's convolution that networks of different radius share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stereo.checkpoints.identify import expected_state
from stereo.checkpoints.load import load_into
from stereo.checkpoints.taps import VOLUME, WEIGHT, Lookup, lookup_of, shared_taps
from stereo.nets.fast_foundation_stereo import FastFoundationStereo
from stereo.spec.networks import FastFoundationStereoSpec
from tests.stereo.checkpoints.released_files import written

CHANNELS = 4  # of the volume
NEW = -1.0


def state(levels: int, radius: int, *, outputs: int = 2, channels: int = CHANNELS) -> dict:
    inputs = levels * (2 * radius + 1) * (channels + 1)
    weight = torch.arange(1.0, 1 + outputs * inputs).view(outputs, inputs, 1, 1)
    return {WEIGHT: weight, VOLUME: torch.zeros(2 * channels, channels, 4, 4, 4)}


def fresh(levels: int, radius: int, **sizes: int) -> dict[str, Tensor]:
    made = state(levels, radius, **sizes)
    return {**made, WEIGHT: torch.full_like(made[WEIGHT], NEW)}


def channel(lookup: Lookup, level: int, feature: int, tap: int) -> int:
    """Section 10 of the design: levels outer; geometry channel-major, then the appearance."""
    block = lookup.taps * (lookup.channels + 1)
    if feature == lookup.channels:  # the appearance correlation
        return level * block + lookup.taps * lookup.channels + tap + lookup.radius
    return level * block + feature * lookup.taps + tap + lookup.radius


@pytest.mark.parametrize(
    ("given", "needed"),
    [((2, 4), (2, 3)), ((2, 3), (2, 8)), ((1, 5), (2, 2)), ((2, 2), (1, 4)), ((1, 4), (2, 4))],
)
def test_every_tap_of_both_comes_from_its_own_level_channel_and_offset(
    given: tuple[int, int], needed: tuple[int, int]
) -> None:
    source, own = state(*given), fresh(*needed)
    before = own[WEIGHT].clone()

    found = shared_taps(source, own)

    assert found is not None
    weight, told = found
    theirs, ours = Lookup(CHANNELS, *given), Lookup(CHANNELS, *needed)
    seen = 0
    for level in range(ours.levels):
        for feature in range(CHANNELS + 1):
            for tap in range(-ours.radius, ours.radius + 1):
                value = weight[:, channel(ours, level, feature, tap)]
                if level < theirs.levels and abs(tap) <= theirs.radius:
                    expected = source[WEIGHT][:, channel(theirs, level, feature, tap)]
                else:
                    expected = torch.full_like(value, NEW)
                assert torch.equal(value, expected), (level, feature, tap)
                seen += 1
    assert seen == weight.shape[1]
    radius = min(given[1], needed[1])
    assert f"{WEIGHT}: taps -{radius}..{radius} of {min(given[0], needed[0])} level" in told
    assert torch.equal(own[WEIGHT], before), "the network's own weight is not written to"


@pytest.mark.parametrize(
    "own",
    [
        fresh(2, 4),
        fresh(2, 3, outputs=3),
        fresh(2, 3, channels=8),
        {VOLUME: torch.zeros(8, 4, 4, 4, 4)},
    ],
    ids=["equal", "other width", "other volume", "no lookup"],
)
def test_nothing_is_shared_where_more_than_the_taps_differs(own: dict[str, Tensor]) -> None:
    assert shared_taps(state(2, 4), own) is None


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("radius", [2, 3, 5, 8])
def test_the_sizes_of_a_lookup_follow_from_the_network(levels: int, radius: int) -> None:
    spec = FastFoundationStereoSpec(volume_dim=20, corr_levels=levels, corr_radius=radius)
    assert lookup_of(expected_state(FastFoundationStereo, spec)) == Lookup(20, levels, radius)


def test_a_partial_load_copies_shared_taps_and_lists_the_weight(tmp_path: Path) -> None:
    spec = FastFoundationStereoSpec(encoder="vits", volume_dim=16, max_disparity=32)
    torch.manual_seed(0)
    source = FastFoundationStereo(spec).state_dict()
    path = written(tmp_path / "radius4.pth", {"model": source})
    target = FastFoundationStereo(replace(spec, corr_radius=5, mask_widths=[20, 16]))
    drawn = target.state_dict()[WEIGHT].clone()

    report = load_into(target, path, partial=True)

    loaded = target.state_dict()
    taps = loaded[WEIGHT].view(56, 2, 17, 11)
    torch.testing.assert_close(taps[..., 1:10], source[WEIGHT].view(56, 2, 17, 9), rtol=0, atol=0)
    for end in (0, 10):
        torch.testing.assert_close(
            taps[..., end], drawn.view_as(taps)[..., end], rtol=0, atol=0, msg="a new tap"
        )
    assert loaded["dx"].flatten().tolist() == list(range(-5, 6))
    lines = report.lines()
    assert lines[0] == f"{WEIGHT}: taps -4..4 of 2 levels copied, file: radius 4, 2 levels"
    listed = {line.partition(":")[0] for line in lines}
    differ = {n for n, t in source.items() if n != "dx" and not loaded[n].equal(t)}
    assert (
        differ
        == listed
        == {
            WEIGHT,
            "update_block.mask.0.weight",
            "update_block.mask.0.bias",
            "update_block.mask.2.weight",
        }
    )
