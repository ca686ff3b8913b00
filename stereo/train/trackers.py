"""MLflow and Weights & Biases, which get the scalars of TensorBoard too when the spec asks.

Both are optional packages. MLflow writes to a folder in the directory of the run unless the spec
names a tracking store; Weights & Biases goes where its own environment variables say.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from stereo.errors import BackendMissingError
from stereo.spec.experiment import ExperimentSpec
from stereo.spec.load import to_dict
from stereo.spec.models import model_of


class Tracker(Protocol):
    """Where scalars go besides TensorBoard."""

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        """Record finite numbers after an optimiser step."""
        ...

    def close(self) -> None:
        """End the run."""
        ...


def trackers(spec: ExperimentSpec, directory: Path) -> list[Tracker]:
    """The trackers that a spec turns on.

    Raises:
        BackendMissingError: the package of one is not installed.
    """
    found: list[Tracker] = []
    if spec.mlflow.enable:
        _require("mlflow")
        found.append(_Mlflow(spec, directory))
    if spec.wandb.enable:
        _require("wandb")
        found.append(_Wandb(spec, directory))
    return found


def _require(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise BackendMissingError(
            f"{package}.enable: the package {package} is not installed. Run: "
            f"pip install 'depthtune[{package}]'"
        )


class _Mlflow:
    def __init__(self, spec: ExperimentSpec, directory: Path) -> None:
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

        store = spec.mlflow.tracking_uri or _local_store(directory)
        self._client: Any = MlflowClient(tracking_uri=store)
        name = spec.mlflow.experiment or model_of(spec).key
        known = self._client.get_experiment_by_name(name)
        place = self._client.create_experiment(name) if known is None else known.experiment_id
        run = self._client.create_run(place, run_name=spec.model_name or directory.name)
        self._run: str = run.info.run_id
        for key, value in _leaves(to_dict(spec)):
            self._client.log_param(self._run, key, value)

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        for name, value in scalars.items():
            self._client.log_metric(self._run, name, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._run)


class _Wandb:
    def __init__(self, spec: ExperimentSpec, directory: Path) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        section = spec.wandb
        self._run: Any = wandb.init(
            project=section.project or None,
            entity=section.entity or None,
            group=section.group or None,
            tags=section.tags,
            reinit=section.reinit,
            sync_tensorboard=section.sync_tensorboard,
            save_code=section.save_code,
            name=section.name or spec.model_name,
            id=section.run_id or None,
            resume="allow" if section.run_id else None,
            dir=directory,
            config=to_dict(spec),
        )

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        self._run.log(dict(scalars), step=step)

    def close(self) -> None:
        self._run.finish()


def _local_store(directory: Path) -> str:
    """A database in a folder of the run: MLflow 3.17 refuses a store of plain files."""
    folder = (directory / "mlruns").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder / 'mlflow.db'}"


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in tree.items():
        nested = isinstance(value, Mapping)
        found += _leaves(value, f"{prefix}{key}.") if nested else [(f"{prefix}{key}", value)]
    return found
