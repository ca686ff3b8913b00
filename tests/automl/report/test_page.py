from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from csv import DictReader
from pathlib import Path

import pytest
import yaml

from automl.errors import PromotionError, StoreError
from automl.promote.chain import promote
from automl.report.page import write_report
from automl.store import Study, read_study
from tests.automl.quadratic import NAME
from tests.automl.report.examples import charts, compare, finished, new, rows
from tests.automl.studies import end, finish_epoch, start


def no_trial(study: Study) -> None:
    pass


def one_running(study: Study) -> None:
    start(study, 0, study.resolved.space.defaults(study.resolved.base_spec))
    finish_epoch(study, 0, 1, 3.0)


def only_failures(study: Study) -> None:
    defaults = study.resolved.space.defaults(study.resolved.base_spec)
    for trial, state in enumerate(("diverged", "out_of_memory", "invalid_spec", "failed")):
        start(study, trial, {**defaults, "train.flip": trial / 10})
        end(study, trial, state, f"{state} because of <b>this</b> & that")


def only_the_baseline(study: Study) -> None:
    start(study, 0, study.resolved.space.defaults(study.resolved.base_spec))
    for epoch in range(1, study.resolved.full_epochs + 1):
        finish_epoch(study, 0, epoch, 5.0 / epoch)
    end(study, 0, "complete")


def a_failed_baseline(study: Study) -> None:
    defaults = study.resolved.space.defaults(study.resolved.base_spec)
    start(study, 0, defaults)
    finish_epoch(study, 0, 1, float("nan"))
    end(study, 0, "diverged", "epoch 1: the loss became NaN")
    start(study, 1, {**defaults, "train.flip": 0.5})
    for epoch in range(1, study.resolved.full_epochs + 1):
        finish_epoch(study, 1, epoch, 5.0 / epoch)
    end(study, 1, "complete")


@pytest.mark.parametrize(
    ("events", "sentences"),
    [
        (no_trial, ["No result yet", "No trial has started."]),
        (one_running, ["No result yet", "this page is a snapshot", "val/epe@1"]),
        (only_failures, ["No result yet", "out_of_memory", "&lt;b&gt;this&lt;/b&gt; &amp; that"]),
        (only_the_baseline, ["Only the baseline is complete", "Too few trials to rank"]),
        (a_failed_baseline, ["Trial 1 reached val/epe 0.5556 px; the baseline has no score"]),
    ],
)
def test_a_study_in_any_state_has_a_report(
    tmp_path: Path, events: Callable[[Study], None], sentences: list[str]
) -> None:
    study = new(tmp_path)
    events(study)

    page = write_report(study)

    text = page.read_text("utf-8") + (page.parent / "trials.csv").read_text("utf-8")
    assert page == study.directory / "report.html"
    assert [sentence for sentence in sentences if sentence not in text] == []
    assert len(rows(study.directory)) == len(study.trials)
    assert (study.directory / "best_spec.yaml").exists() == (study.best() is not None)
    study.close()


def test_a_finished_study_is_shown_whole(tmp_path: Path) -> None:
    study = finished(tmp_path, promoted=True)
    best = study.best()
    assert best is not None

    page = write_report(study)
    text = page.read_text("utf-8")

    assert f"Trial {best.id} scored best: val/epe is " in text
    for sentence in (
        "model quadratic, finished",
        "acts only with train.optim.optimizer = SGD, here it is AdamW",
        "accepted",
        "epe 1.000 px",
        "Scores on the same validation data",
        "stopped",
    ):
        assert sentence in text
    assert text.count("data:image/png;base64,") == 4 * 6
    assert page.stat().st_size < 5e6
    assert [path.name for path in study.directory.glob(".*.tmp")] == []
    spec = yaml.safe_load((study.directory / "best_spec.yaml").read_text("utf-8"))
    assert spec == study.resolved.space.apply(study.resolved.base_spec, best.params)
    study.close()


def test_every_plotted_value_is_in_the_csv_unrounded(tmp_path: Path) -> None:
    study = finished(tmp_path, trials=12)

    page = write_report(study)

    figures = charts(page.read_text("utf-8"))
    assert compare(figures, rows(study.directory), "val/epe") > 50
    study.close()


def test_the_sweep_covers_every_complete_trial_and_equals_its_csv(tmp_path: Path) -> None:
    study = finished(tmp_path, spec={"behaviour": {"steps": 3}})

    text = write_report(study).read_text("utf-8")

    with (study.directory / "sweep.csv").open(newline="", encoding="utf-8") as file:
        table = [
            (int(r["trial"]), int(r["setting"]), float(r["val/epe"])) for r in DictReader(file)
        ]
    drawn = [
        (trace["meta"], x, y)
        for trace in charts(text)["sweep"]["data"]
        for x, y in zip(trace["x"], trace["y"], strict=True)
    ]
    complete = [trial for trial in study.trials if trial.state == "complete"]
    assert sorted(drawn) == table
    assert [row[:2] for row in table] == [(t.id, steps) for t in complete for steps in (1, 2, 3)]
    assert [row[2] for row in table[2::3]] == [study.value(trial) for trial in complete]
    assert len(complete) < len(study.trials)
    assert all("=" not in name for row in rows(study.directory) for name in row)
    study.close()


def test_a_trainer_without_settings_has_no_sweep(tmp_path: Path) -> None:
    study = finished(tmp_path)
    assert "Sweep" not in write_report(study).read_text("utf-8")
    assert not (study.directory / "sweep.csv").exists()
    study.close()


def test_whole_numbers_stay_whole_in_the_csv(tmp_path: Path) -> None:
    study = finished(tmp_path)
    write_report(study)
    assert all(row["model.width"].isdigit() for row in rows(study.directory))
    study.close()


def test_fractions_are_percent_on_the_page_only(tmp_path: Path) -> None:
    study = finished(tmp_path, objectives=["val/bp1"])
    best = study.best()
    assert best is not None
    value = study.value(best)
    assert value is not None

    text = write_report(study).read_text("utf-8")

    assert f"{100 * value:#.4g} %" in text
    assert float(rows(study.directory)[best.id]["value"]) == value < 1
    assert charts(text)["history"]["layout"]["yaxis"]["tickformat"].endswith("%")
    study.close()


def test_a_rejected_bundle_is_called_rejected_with_the_reason(tmp_path: Path) -> None:
    study = finished(tmp_path, promoted=True, spec={"behaviour": {"engine_shift": 0.06}})

    text = write_report(study).read_text("utf-8")

    assert '<p class="value">rejected</p>' in text
    assert "by 0.06 px, allowed 0.05" in text
    study.close()


def test_a_promotion_that_failed_is_told_with_its_reason(tmp_path: Path) -> None:
    study = finished(tmp_path, spec={"behaviour": {"engine_fails": True}})
    with pytest.raises(PromotionError):
        promote(study, NAME)

    text = write_report(study).read_text("utf-8")

    assert "step gen_trt_engine failed" in text
    assert "no engine today" in text
    study.close()


def test_a_bundle_of_an_earlier_best_is_called_so(tmp_path: Path) -> None:
    study = finished(tmp_path, promoted=True)
    old = study.best()
    assert old is not None
    number = len(study.trials)
    start(study, number, {**old.params, "train.flip": 0.3})
    for epoch in range(1, study.resolved.full_epochs + 1):
        finish_epoch(study, number, epoch, 0.1)
    end(study, number, "complete")

    text = write_report(study).read_text("utf-8")

    assert f"The bundle is of trial {old.id}, which was the best before." in text
    study.close()


def test_text_from_outside_cannot_become_markup(tmp_path: Path) -> None:
    study = new(tmp_path)
    defaults = study.resolved.space.defaults(study.resolved.base_spec)
    start(study, 0, defaults)
    finish_epoch(study, 0, 1, 3.0)
    end(study, 0, "failed", "</script><script>alert(1)</script>" + "\nline" * 10)

    text = write_report(study).read_text("utf-8")

    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "11 lines" in text
    study.close()


def test_a_reader_writes_the_page_elsewhere_without_touching_the_study(tmp_path: Path) -> None:
    study = finished(tmp_path)
    study.close()
    before = sorted(path.name for path in study.directory.iterdir())

    page = write_report(read_study(study.directory), tmp_path / "elsewhere" / "page.html")

    assert page.parent.joinpath("trials.csv").is_file()
    assert sorted(path.name for path in study.directory.iterdir()) == before


@pytest.mark.parametrize(
    ("content", "fact"), [('{"format_version": 2}', "up to 1"), ("{", "damaged")]
)
def test_a_bundle_that_cannot_be_read_is_an_error(tmp_path: Path, content: str, fact: str) -> None:
    study = finished(tmp_path, trials=2)
    (study.directory / "bundle").mkdir()
    (study.directory / "bundle" / "bundle.json").write_text(content)
    with pytest.raises(StoreError, match=f"bundle.json.*{fact}"):
        write_report(study)
    study.close()


def test_importing_the_report_loads_no_heavy_library() -> None:
    code = "import sys, json, automl.report.page; print(json.dumps(sorted(sys.modules)))"
    printed = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    assert not {"plotly", "pandas", "optuna", "sklearn", "cv2"} & set(json.loads(printed))


def test_a_study_with_partial_loading_lists_what_its_trials_started_without(
    tmp_path: Path,
) -> None:
    study = new(tmp_path / "partial", allow_partial_load=True)
    only_the_baseline(study)
    assert "found a value for every tensor" in write_report(study).read_text("utf-8")
    file = study.trial_directory(0) / "not_loaded.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("convc1.weight: taps -3..3 copied\nmask.0.bias (of another shape)\n")

    text = write_report(study).read_text("utf-8")

    assert "Tensors without stored values" in text
    assert "convc1.weight: taps -3..3 copied\nmask.0.bias (of another shape)" in text
    study.close()
    plain = new(tmp_path / "plain")
    assert "Partial loading" not in write_report(plain).read_text("utf-8")
    plain.close()
