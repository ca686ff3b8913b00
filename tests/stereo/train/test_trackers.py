from __future__ import annotations

import csv
import importlib.util

import pytest

from stereo.errors import BackendMissingError


@pytest.mark.filterwarnings("default")  # those of the package are its own
def test_mlflow_gets_the_numbers_of_the_run(make_spec, run, tmp_path) -> None:
    mlflow = pytest.importorskip("mlflow")
    spec = make_spec(num_epochs=2)
    spec.model_name, spec.mlflow.enable = "first try", True
    run(spec, tmp_path / "run")

    store = f"sqlite:///{tmp_path / 'run' / 'mlruns' / 'mlflow.db'}"
    client = mlflow.MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("ffs")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("first try", "FINISHED")
    assert found.data.params["train.num_epochs"] == "2"
    with (tmp_path / "run" / "metrics.csv").open() as file:
        *_, last = csv.DictReader(file)
    assert found.data.metrics["val/epe"] == pytest.approx(float(last["val/epe"]), rel=1e-6)
    history = client.get_metric_history(found.info.run_id, "val/epe")
    assert [metric.step for metric in history] == [3, 6]


@pytest.mark.filterwarnings("default")  # those of the package are its own
def test_wandb_gets_the_numbers_of_the_run(
    make_spec, run, tmp_path, monkeypatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    spec = make_spec(num_epochs=1)
    spec.wandb.enable, spec.wandb.project = True, "depth"
    run(spec, tmp_path)
    (record,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert record.stat().st_size > 0
    assert "val/epe" in capfd.readouterr().err, "its summary at the end of the run"


@pytest.mark.parametrize("package", ["mlflow", "wandb"])
def test_a_tracker_that_is_not_installed_is_told_before_training(
    make_spec, run, tmp_path, package: str
) -> None:
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    spec = make_spec()
    getattr(spec, package).enable = True
    with pytest.raises(
        BackendMissingError, match=rf"pip install 'depthtune\[{package}\]'"
    ) as error:
        run(spec, tmp_path)
    assert error.value.exit_code == 4
    assert list(tmp_path.glob("*.pth")) == []
