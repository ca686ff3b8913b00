"""Predicting large images in tiles: how they are cut, joined and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stereo.errors import SpecError
from stereo.geometry import Tiles, align
from stereo.predict import Predictor
from stereo.tasks import METRIC, RELATIVE, STEREO, Network, Task

SOURCE = Path("network.pth")

# -- rows of pairs --------------------------------------------------------------------------------

ROWS = Tiles((64, 32), (16, 16), "gaussian")


def _pair(height: int, width: int) -> dict[str, Tensor]:
    left, right = torch.rand(2, 2, 3, height, width, generator=torch.Generator().manual_seed(0))
    return {"left": left, "right": right}


def _stereo(network: Network, **options: Any) -> Predictor:
    return Predictor(network, STEREO, backend="test", source=SOURCE, stride=32, **options)


@pytest.mark.parametrize("weights", ["gaussian", "uniform"])
def test_tiles_of_a_pair_are_rows_of_full_width(weights: str) -> None:
    seen: list[tuple[int, ...]] = []

    def network(left: Tensor, _right: Tensor) -> Tensor:
        seen.append(tuple(left.shape))
        return left[:, 0]

    pair = _pair(128, 170)
    found = _stereo(network, tiles=ROWS._replace(weights=weights))(pair)
    torch.testing.assert_close(found, pair["left"][:, 0], rtol=1e-6, atol=0)
    assert seen == [(2, 3, 64, 192)] * 3  # two would not overlap by 16


def test_a_pair_not_higher_than_a_tile_is_predicted_at_once() -> None:
    seen: list[tuple[int, ...]] = []

    def network(left: Tensor, _right: Tensor) -> Tensor:
        seen.append(tuple(left.shape[-2:]))
        return left[:, 0]

    pair = _pair(60, 90)
    torch.testing.assert_close(_stereo(network, tiles=ROWS)(pair), pair["left"][:, 0])
    assert seen == [(64, 96)]


def test_tiles_of_another_size_than_the_networks_are_refused() -> None:
    def network(left: Tensor, _right: Tensor) -> Tensor:
        return left[:, 0]

    for pair in (_pair(150, 90), _pair(150, 50)):
        found = _stereo(network, size=(64, 96), tiles=ROWS)(pair)
        torch.testing.assert_close(found, pair["left"][:, 0], rtol=1e-6, atol=0)
    words = r"network.pth: train.inference_tile: tiles are 64x96, the network takes 96x96 only"
    with pytest.raises(SpecError, match=words):
        _stereo(network, size=(96, 96), tiles=ROWS)(pair)
    with pytest.raises(SpecError, match=r"tiles are 64x128, the network takes 64x96 only"):
        _stereo(network, size=(64, 96), tiles=ROWS)(_pair(150, 100))


# -- tiles of single images -----------------------------------------------------------------------

TILES = Tiles((28, 42), (8, 8), "gaussian")


def _field(height: int, width: int) -> Tensor:
    """A plane (1, H, W), which every resize with aligned corners keeps."""
    rows, columns = torch.linspace(1, 3, height), torch.linspace(0, 2, width)
    return (rows[:, None] + columns)[None]


def _single(height: int, width: int) -> dict[str, Tensor]:
    """An image whose first channel is the field, at the size of the network and at the native."""
    native = _field(height, width).expand(1, 3, -1, -1)
    small = _field(42, 56).expand(1, 3, -1, -1)
    return {"image": small, "native_image": native, "target": native[:, :1]}


def _mono(task: Task[Any], network: Network, **options: Any) -> Predictor:
    return Predictor(network, task, backend="test", source=SOURCE, stride=14, **options)


def test_metric_tiles_are_blended_as_they_are() -> None:
    seen: list[tuple[int, ...]] = []

    def network(image: Tensor) -> Tensor:
        seen.append(tuple(image.shape[-2:]))
        return image[:, 0]

    single = _single(60, 90)
    found = _mono(METRIC, network, tiles=TILES)(single)
    torch.testing.assert_close(found, single["target"][:, 0])
    assert seen == [(28, 42)] * 9

    seen.clear()
    found = _mono(METRIC, network, tiles=TILES._replace(overlap=(16, 8)))(_single(10, 90))
    torch.testing.assert_close(found, _field(10, 90))
    assert seen == [(14, 42)] * 3


@pytest.mark.parametrize("weights", ["gaussian", "uniform"])
def test_relative_tiles_of_any_scale_and_shift_join_without_a_seam(weights: str) -> None:
    generator = torch.Generator().manual_seed(0)

    def network(image: Tensor) -> Tensor:
        scale, shift = torch.rand(2, generator=generator)
        return (0.5 + scale) * image[:, 0] + 10 * shift

    tiles = TILES._replace(weights=weights)
    found = _mono(RELATIVE, network, tiles=tiles)(_single(60, 90))
    alignment = align(found, _field(60, 90), torch.ones(1, 60, 90, dtype=torch.bool))
    torch.testing.assert_close(alignment.aligned, _field(60, 90), rtol=0, atol=1e-4)
    rough = _mono(METRIC, network, tiles=tiles)(_single(60, 90))
    alignment = align(rough, _field(60, 90), torch.ones(1, 60, 90, dtype=torch.bool))
    assert float((alignment.aligned - _field(60, 90)).abs().max()) > 0.1


def test_a_relative_tile_without_contrast_shows_the_whole_image() -> None:
    def network(image: Tensor) -> Tensor:
        is_whole = image.shape[-2:] == (42, 56)
        return image[:, 0] if is_whole else torch.full_like(image[:, 0], 7.0)

    found = _mono(RELATIVE, network, tiles=TILES)(_single(60, 90))
    torch.testing.assert_close(found, _field(60, 90), rtol=0, atol=1e-4)


@pytest.mark.parametrize("task", [METRIC, RELATIVE])
def test_an_image_not_larger_than_a_tile_is_predicted_at_once(task: Task[Any]) -> None:
    single = _single(28, 42)
    tiled, whole = (_mono(task, lambda image: image[:, 0] ** 2, tiles=t) for t in (TILES, None))
    torch.testing.assert_close(tiled(single), whole(single), rtol=0, atol=0)


def test_a_fixed_mono_network_takes_tiles_of_its_size_only() -> None:
    def network(image: Tensor) -> Tensor:
        assert image.shape[-2:] == (28, 42)
        return image[:, 0]

    found = _mono(METRIC, network, size=(28, 42), tiles=TILES)(_single(10, 90))
    torch.testing.assert_close(found, _field(10, 90))
    with pytest.raises(SpecError, match="tiles are 28x42, the network takes 28x28 only"):
        _mono(METRIC, network, size=(28, 28), tiles=TILES)(_single(60, 90))
