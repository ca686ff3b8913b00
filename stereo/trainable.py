"""DepthNet: the depth package as automl sees it, without importing automl.

Fulfils the contract of `automl/contract.py` structurally; the entry point `automl.trainables` names
this class. Nothing heavy is imported before an action runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stereo.actions import ActionResult

Report = Callable[[int, Mapping[str, float], Path | None], bool]


@dataclass(frozen=True)
class Objective:
    """What training optimises: metric name, `minimize` or `maximize`, and the unit."""

    metric: str
    direction: str
    unit: str


class DepthNet:
    """Trains, evaluates, exports and builds engines for the networks of this package."""

    schema_dir = Path(__file__).resolve().parents[1] / "schemas"

    def run(
        self,
        action: str,
        spec: Mapping[str, Any],
        results_dir: Path,
        report: Report | None = None,
    ) -> ActionResult:
        """Run one action with its files in `results_dir`; mistakes come back as a status.

        Args:
            action: a verb of `depth_net`, or `check`, `measure`, `pictures` (see `stereo.actions`).
            spec: the experiment spec as plain mappings; missing keys take their defaults.
            results_dir: directory of this action, created when missing.
            report: called after every validation of `train` with the number of finished epochs,
                the metrics and the checkpoint; answers whether to stop now.
        """
        from stereo import actions

        return actions.run(action, spec, results_dir, report)

    def objective(self, model: str) -> Objective:
        """The declared objective of a model (`schemas/<model>/model.json`)."""
        metadata = json.loads((self.schema_dir / model / "model.json").read_text("utf-8"))
        return Objective(**metadata["objective"])

    def template(self, model: str, action: str) -> dict[str, Any]:
        """The packaged spec of (model, action); values still open are `???`."""
        from stereo.spec.load import template

        return template(model, action)

    def embedded_data(self, model: str, directory: Path, profile: str = "cpu") -> dict[str, str]:
        """Write the embedded samples of a model below `directory` unless they are there.

        Returns:
            `CLASS:FILE` of the annotation files for `train` and `val`.
        """
        from stereo.data.generator import embedded_sources
        from stereo.spec.models import MODELS

        return embedded_sources(MODELS[model].default_dataset, directory, large=profile == "gpu")
