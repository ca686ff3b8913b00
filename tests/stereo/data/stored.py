"""Samples of the decoded cache that tell their number, for tests and the processes they start.

python -m tests.stereo.data.stored DIR BUDGET SEED COUNT
    checks or stores COUNT random samples and prints the number of each
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np

from stereo.data.cache import SampleCache

NUMBERS = 60
SIZES = (4000, 40_000, 400_000)


def key(number: int) -> str:
    return f"{number:032x}"[::-1]


def arrays(number: int, size: int = 4000) -> dict[str, np.ndarray]:
    return {
        "image": np.full((size // 4, 2), number, np.uint8),
        "truth": np.full((3, size // 24), number, np.float32),
    }


def store(cache: SampleCache, number: int, size: int = 4000) -> None:
    cache.put(key(number), arrays(number, size), {"even": number % 2 == 0})


def check(cache: SampleCache, number: int) -> bool:
    """Whether the number is there; what is there must be right."""
    found = cache.get(key(number))
    if found is None:
        return False
    values, facts = found
    size = 4 * values["image"].shape[0]
    for name, expected in arrays(number, size).items():
        np.testing.assert_array_equal(values[name], expected)
        assert values[name].dtype == expected.dtype
    assert facts == {"even": number % 2 == 0}
    return True


def main() -> None:
    budget, seed, count = map(int, sys.argv[2:])
    cache, draw = SampleCache(Path(sys.argv[1]), budget), random.Random(seed)
    for _ in range(count):
        number = draw.randrange(NUMBERS)
        if not check(cache, number):
            store(cache, number, draw.choice(SIZES))
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
