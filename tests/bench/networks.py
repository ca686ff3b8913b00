"""Cost of the stereo networks on one CPU thread, in units of the yardstick.

    python tests/bench/networks.py [ROW ...] [--repeats N] [--record]

A unit is the CPU time of `yardstick.py`, measured around every repetition, so that rows compare
between machines. Memory is what the row adds to the peak of the loaded process. The process that is
timed then compares its network with the parity kit: values and gradients as far as the row goes.
Fails when a value is beyond its tolerance: such a time means nothing. Never fails for a time.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from record import record  # noqa: E402 (a script finds its neighbours by path)
from yardstick import unit_seconds  # noqa: E402

from stereo.nets.fast_foundation_stereo import FastFoundationStereo  # noqa: E402
from stereo.nets.folding import fold_norms  # noqa: E402
from stereo.nets.foundation_stereo import FoundationStereo  # noqa: E402
from stereo.spec.networks import FastFoundationStereoSpec, FoundationStereoSpec  # noqa: E402
from tests.parity.kit import open_kit  # noqa: E402
from tests.parity.stereo_kit import StereoKit  # noqa: E402


@dataclass(frozen=True)
class Row:
    """One measured piece of work."""

    name: str
    height: int
    width: int
    iters: int
    batch: int = 1
    max_disparity: int = 192
    mode: str = "forward"  # forward, backward (forward + backward), step (train mode, with AdamW)
    fs: Literal["tao", "public"] | None = None  # FoundationStereo of this variant, else FFS
    low_memory: int = 0

    @property
    def kit(self) -> Path:
        """Parity kit of the network, without suffix."""
        names = {None: "ffs_bp2", "tao": "fs_vits", "public": "fs_public_vits"}
        return ROOT / "tests" / "golden" / names[self.fs]


ROWS = {
    "forward": Row("FFS forward 128x256, 8 iterations", 128, 256, 8),
    "large": Row("FFS forward 320x736, 8 iterations", 320, 736, 8),
    "backward": Row("FFS forward + backward 128x256, 8 iterations", 128, 256, 8, mode="backward"),
    "steps": Row(
        "  the same, train.activation_checkpoint", 128, 256, 8, mode="backward", low_memory=1
    ),
    "lean": Row("  the same, model.low_memory 4", 128, 256, 8, mode="backward", low_memory=4),
    "step": Row("FFS training step 64x128, batch 2, 4 iterations", 64, 128, 4, 2, 64, "step"),
    "fs-forward": Row("FS vits forward 128x256, 8 iterations", 128, 256, 8, 1, 416, fs="tao"),
    "fs-backward": Row(
        "FS vits forward + backward 128x256, 8 iterations", 128, 256, 8, 1, 416, "backward", "tao"
    ),
    "public-forward": Row(
        "FS vits public forward 128x256, 8 iterations", 128, 256, 8, 1, 416, fs="public"
    ),
}


def work(row: Row) -> Callable[[], None]:
    """Return a function that does the row's work once."""
    torch.manual_seed(0)
    if row.fs is None:
        network = FastFoundationStereo(
            FastFoundationStereoSpec(max_disparity=row.max_disparity, low_memory=row.low_memory)
        )
    else:
        spec = FoundationStereoSpec(variant=row.fs, max_disparity=row.max_disparity)
        network = FoundationStereo(spec)
    network.train(row.mode == "step")
    if row.mode == "forward":
        network = fold_norms(network)  # as predictors do
    left, right = torch.randn(2, row.batch, 3, row.height, row.width)
    truth = torch.rand(row.batch, 1, row.height, row.width) * 40
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)  # as the trainer does

    def forward() -> None:
        with torch.no_grad():
            network(left, right, iters=row.iters, last_only=True)

    def backward() -> None:
        output = network(left, right, iters=row.iters)
        loss: Tensor = output.initial.abs().mean()
        for disparity in output.refined:
            loss = loss + (disparity - truth).abs().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()

    def step() -> None:
        backward()
        optimizer.step()

    return {"forward": forward, "backward": backward, "step": step}[row.mode]


def measure(row: Row, repeats: int) -> str:
    """Time the row against the yardstick, alternating, and return a line of the table.

    Raises:
        SystemExit: the network of this process does not compute the values of its kit.
    """
    torch.set_num_threads(1)
    once = work(row)
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    once()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - loaded
    units, seconds = [unit_seconds(repeats=1)], []
    for _ in range(repeats):
        start = time.process_time()
        once()
        seconds.append(time.process_time() - start)
        units.append(unit_seconds(repeats=1))
    ratio = statistics.median(seconds) / statistics.median(units)
    cells = f"{statistics.median(seconds):7.3f} | {ratio:7.2f} | {memory / 1024:6.0f}"
    return f"| {row.name:<48} | {cells} | {golden(row)} |"


def golden(row: Row) -> str:
    """Compare with the row's kit, in this process; how many values agree: all or none returns."""
    kit = open_kit(row.kit)
    assert isinstance(kit, StereoKit)
    kit.network.low_memory = row.low_memory
    checks = list(kit.inference_checks() if row.mode == "forward" else kit.training_checks())
    if faults := [str(check) for check in checks if not check.ok]:
        head = f"{row.name.strip()}: {len(faults)} of {len(checks)} values differ from {row.kit}"
        sys.exit("\n".join((head, *faults)))
    return f"{len(checks)} of {len(checks)}"


def main() -> None:
    """Measure the rows, each in a fresh process so that peaks do not mix."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []], help="default: all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--record", action="store_true", help="write docs/performance.md too")
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        print(measure(ROWS[options.row], options.repeats))
        return
    title = f"| {'one thread':48} | CPU s | units | MB above the loaded process | golden |"
    lines = [title, "|---|---|---|---|---|"]
    print(*lines, sep="\n", flush=True)
    keys = options.rows or list(ROWS)
    for number, key in enumerate(keys, start=1):
        print(f"row {number} of {len(keys)}: {ROWS[key].name.strip()} ...", file=sys.stderr)
        command = [sys.executable, __file__, "--row", key, "--repeats", str(options.repeats)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"row {key} failed; nothing is recorded")
        lines.append(done.stdout.strip())
        print(lines[-1], flush=True)
    if options.record:
        record("networks", lines, "python tests/bench/networks.py --record")


if __name__ == "__main__":
    main()
