"""The samples with the largest error, on one picture.

One row per sample, worst first: image, ground truth, prediction and error in the colours of the
task, under the sample's name and score. A sample whose prediction is not finite comes first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from stereo import viz
from stereo.evaluation.pictures import Preprocessing, compared, shown
from stereo.tasks import Task
from stereo.viz import Picture

WORST = 8  # samples on the sheet


class WorstSamples:
    """Keeps small pictures of the worst samples while an evaluation runs."""

    def __init__(self, task: Task[Any], preprocessing: Preprocessing) -> None:
        """Start empty; `preprocessing` says how the images were normalised."""
        self._task = task
        self._preprocessing = preprocessing
        self._metric = task.headline[0]
        facts = task.declared[f"val/{self._metric}"]
        self._unit: str = facts["unit"]
        self._sign = 1.0 if facts["direction"] == "minimize" else -1.0
        self._kept: list[tuple[float, str, dict[str, Picture]]] = []  # worst first

    def add(
        self, batch: Mapping[str, Any], prediction: Tensor, rows: Sequence[Mapping[str, Any]]
    ) -> None:
        """Look at the scored samples of a batch; see `evaluator.Watch`."""
        places = {int(index): place for place, index in enumerate(batch["index"])}
        for row in rows:
            score = row[self._metric]
            if score is None:
                continue  # without a valid pixel
            badness = math.inf if not math.isfinite(score) else self._sign * score
            if len(self._kept) == WORST and badness <= self._kept[-1][0]:
                continue
            place = places[row["index"]]
            values = prediction[place].numpy()
            sample = shown(batch, place, values, self._task, self._preprocessing)
            pictures, _ = compared(sample, self._task)
            small = {name: viz.thumbnail(picture) for name, picture in pictures.items()}
            title = f"{row['name']}: {self._metric} {score:.4g} {self._unit}".rstrip()
            self._kept.append((badness, title, small))
            self._kept.sort(key=lambda kept: -kept[0])
            del self._kept[WORST:]

    def sheet(self) -> Picture:
        """The picture; an evaluation that ended has at least one scored sample."""
        made = viz.contact_sheet([(title, pictures) for _, title, pictures in self._kept])
        assert made is not None
        return made
