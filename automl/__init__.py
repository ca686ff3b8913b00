"""Hyperparameter studies of any trainer that fulfils `automl.contract`.

The public names are loaded on first use, so that importing one light module (a worker reads
`automl.contract`) does not pull in the rest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from automl.promote.chain import promote
    from automl.report.page import write_report
    from automl.study import run_study

__all__ = ["promote", "run_study", "write_report"]

_HOMES = {
    "promote": "automl.promote.chain",
    "run_study": "automl.study",
    "write_report": "automl.report.page",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'automl' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
