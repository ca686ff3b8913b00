"""What every test shares."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the decoded cache of the tests, and of the programs they start, out of the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def thin_vits() -> Iterator[None]:
    """The encoder vits with four narrow blocks, for tests that need no released weights."""
    from stereo.nets import dpt, vit

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vit.SIZES, "vits", vit.Size(width=64, blocks=4, taps=(0, 1, 2, 3)))
        patch.setitem(dpt.WIDTHS, "vits", dpt.Widths(16, (8, 8, 16, 16)))
        yield
