from __future__ import annotations

from pathlib import Path

import pytest

from automl.report import figures
from automl.report.figures import kind
from automl.store import Study
from tests.automl.report.examples import new
from tests.automl.studies import end, finish_epoch, start


@pytest.fixture
def study(tmp_path: Path) -> Study:
    study = new(tmp_path)
    full = study.resolved.full_epochs
    for trial, (epochs, state, value) in enumerate(
        ((full, "complete", 2.0), (2, "stopped", 0.1), (full, "complete", 1.0), (0, "diverged", 0),
         (full, "complete", 1.5))
    ):  # fmt: skip
        start(study, trial, {"train.flip": trial / 10, "model.width": 8, "train.optim.lr": 1e-3})
        for epoch in range(1, epochs + 1):
            finish_epoch(study, trial, epoch, value)
        end(study, trial, state)
    return study


def test_only_complete_trials_can_be_the_best_so_far(study: Study) -> None:
    lines = [trace for trace in figures.history(study).data if trace.name == "best complete so far"]
    assert lines[0].x == (0, 2, 4)
    assert lines[0].y == (2.0, 1.0, 1.0)
    study.close()


def test_each_kind_of_trial_has_its_own_mark(study: Study) -> None:
    kinds = [kind(study, trial) for trial in study.trials]
    assert kinds == ["baseline", "stopped", "best", "failed", "complete"]
    assert len({look.symbol for look in figures.LOOKS.values()}) == len(figures.LOOKS)
    study.close()


def test_a_trial_without_a_value_is_named_not_plotted(study: Study) -> None:
    figure = figures.history(study)
    assert [(note.x, note.text) for note in figure.layout.annotations] == [(3, "diverged")]
    assert all(3 not in trace.x for trace in figure.data)
    study.close()


def test_an_axis_over_magnitudes_is_logarithmic(study: Study) -> None:
    assert figures.history(study).layout.yaxis.type == "log"
    study.close()


def test_rungs_are_marked(study: Study) -> None:
    lines = figures.learning_curves(study).layout.shapes
    assert [line.x0 for line in lines] == [2, 5]
    study.close()


def test_parallel_axes_compare_at_a_common_epoch(study: Study) -> None:
    figure = figures.parallel(study)
    assert figure is not None
    drawn = [trace.meta for trace in figure.data if trace.meta is not None]
    assert sorted(drawn) == [0, 1, 2, 4]
    assert drawn[-1] == 1, "the best after epoch 2 is drawn last, over the others"
    study.close()


def _luminance(color: str) -> float:
    channels = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("look", figures.LOOKS.values(), ids=lambda look: look.label)
def test_marks_have_the_contrast_of_wcag_for_graphics(look: figures.Look) -> None:
    assert 1.05 / (_luminance(look.color) + 0.05) >= 3
