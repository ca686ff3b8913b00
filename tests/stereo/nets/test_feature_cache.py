from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from stereo.nets.feature_cache import FeatureCache
from stereo.nets.foundation_stereo import ViTBranch
from stereo.spec.networks import StereoBackboneSpec


class Halves:
    """Features that count how often they are computed."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def __call__(self, image: Tensor) -> Tensor:
        self.seen.append(float(image.flatten()[0]))
        return image / 2


@pytest.fixture
def compute() -> Halves:
    return Halves()


def pictures(*values: float, size: tuple[int, int] = (2, 4)) -> Tensor:
    return torch.stack([torch.full((3, *size), float(value)) for value in values])


def test_an_image_is_computed_once_wherever_it_stands(compute: Halves) -> None:
    cache = FeatureCache(compute)

    first = cache(pictures(1, 2, 1))
    second = cache(pictures(2, 3))

    assert torch.equal(first, pictures(1, 2, 1) / 2)
    assert torch.equal(second, pictures(2, 3) / 2)
    assert compute.seen == [1, 2, 3]
    assert cache.hits == 2


@pytest.mark.parametrize(
    "other",
    [
        pictures(1, size=(4, 2)),
        pictures(1).double(),
        pictures(1) + torch.nn.functional.one_hot(torch.tensor(3), 4) * 1e-6,
    ],
)
def test_another_size_type_or_content_is_another_image(compute: Halves, other: Tensor) -> None:
    cache = FeatureCache(compute)
    cache(pictures(1))

    assert torch.equal(cache(other), other / 2)
    assert cache.hits == 0


def test_half_precision_features_are_not_taken_for_whole_ones(compute: Halves) -> None:
    cache = FeatureCache(compute)
    with torch.autocast("cpu", torch.bfloat16):
        cache(pictures(1))

    cache(pictures(1))

    assert cache.hits == 0


def test_a_kept_feature_is_not_changed_by_those_who_use_it(compute: Halves) -> None:
    cache = FeatureCache(lambda image: image)
    images = pictures(1)
    cache(images).zero_()
    images.copy_(pictures(1))

    assert torch.equal(cache(images), pictures(1))


def test_the_budget_bounds_what_is_kept(compute: Halves) -> None:
    size = pictures(1).nbytes
    cache = FeatureCache(compute, budget=2 * size)

    for _ in range(2):
        cache(pictures(1, 2, 3))

    assert compute.seen == [1, 2, 3, 3]
    assert cache.bytes == 2 * size


@pytest.fixture
def branch() -> nn.Module:
    torch.manual_seed(0)
    return ViTBranch("vits", StereoBackboneSpec())


def test_the_vit_branch_gives_the_same_features_from_its_cache(branch: ViTBranch) -> None:
    images = torch.randn(2, 3, 32, 64)
    expected = branch(images)

    branch.keep_features()
    found = branch(images), branch(images.flip(0)).flip(0)

    assert branch.cache is not None
    assert branch.cache.hits == 2
    assert torch.equal(*found)
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=1e-5)


def test_other_weights_make_other_features(branch: ViTBranch) -> None:
    images = torch.randn(1, 3, 32, 64)
    branch.keep_features()
    old = branch(images)

    branch.load_state_dict({n: p + 0.01 for n, p in branch.state_dict().items()})

    assert not torch.allclose(branch(images), old)
    assert branch.cache is not None
    assert branch.cache.hits == 0
