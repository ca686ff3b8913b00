"""Runs a parity kit through the project's own loader and network.

    python -m tests.parity.kit PREFIX [--golden FILE.npz]

A kit is PREFIX.manifest.json (model section, names and shapes of every tensor) and PREFIX.npz or
FILE.npz (images and what the reference computed from them). Weights are generated from tensor names
by `tests/golden/fill.py`. Every check is one line with its deviation and tolerance; the exit status
is 1 when one fails. The form of a kit is described in `tests/golden/README.md`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from tests.golden.fill import load_manifest
from tests.parity.checks import KitError
from tests.parity.mono_kit import MonoKit
from tests.parity.stereo_kit import StereoKit


def open_kit(prefix: Path, golden: Path | None = None) -> StereoKit | MonoKit:
    """Return the kit at `prefix`, of the form that its manifest has."""
    manifest = load_manifest(prefix.with_name(f"{prefix.name}.manifest.json"))
    golden = golden or prefix.with_name(f"{prefix.name}.npz")
    return (StereoKit if "header" in manifest else MonoKit)(manifest, golden)


def main(arguments: list[str] | None = None) -> int:
    """Print every check; return 0 when all hold, else 1."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kit", type=Path, metavar="PREFIX", help="path without .manifest.json")
    parser.add_argument("--golden", type=Path, help="default: PREFIX.npz")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        kit = open_kit(options.kit, options.golden)
    except (KitError, OSError) as error:
        print(f"{options.kit}: FAIL: {error}")
        return 1
    count = len(kit.manifest["tensors"])
    print(f"{options.kit}: checksum ok, {count} tensors agree in name and shape")
    checks = []
    for check in kit.checks():
        print(check, flush=True)
        checks.append(check)
    print(f"not computed on their own here: {', '.join(kit.skipped_stages()) or 'none'}")
    failed = [check for check in checks if not check.ok]
    print(f"{len(checks) - len(failed)} of {len(checks)} checks within tolerance")
    if failed:
        print(f"first failure: {failed[0].name}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
