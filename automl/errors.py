"""Errors a user of `automl` can cause, named for what has to be fixed.

    AutoMLError              exit 1
    ├── StudySpecError       exit 2  the study file, an override, an option (all mistakes together)
    ├── SchemaError          exit 2  a schema or model.json of the trainer
    ├── TrainableError       exit 2  the trainer is not installed or breaks the contract
    ├── ClusterError         exit 2  the Ray cluster is not there, or its nodes cannot run trials
    ├── StoreError           exit 1  the study's files: full disk
    │   ├── UnreadableError  exit 2  they are damaged, of a newer release, or not there
    │   └── StudyLockedError exit 2  another driver owns the study, or it was created differently
    ├── StudyFailedError     exit 1  the study cannot go on (trials fail one after another)
    └── NoResultError        exit 3  ran, but no trial is complete
        └── PromotionError   exit 3  a promotion step failed or its scores are outside the limits

A message names the file, the key or path, the value found, the rule, and the next step. The
command line prints it without a traceback and ends with `exit_code`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class AutoMLError(Exception):
    """Base of every error that the user can act on."""

    exit_code = 1


@dataclass(frozen=True)
class Problem:
    """One mistake: where it is, what is wrong, what to do."""

    source: str
    key: str
    problem: str
    remedy: str = ""

    def __str__(self) -> str:
        place = f"{self.source}: {self.key}" if self.key else self.source
        return f"{place}: {self.problem}." + (f" {self.remedy}" if self.remedy else "")


class StudySpecError(AutoMLError):
    """Every mistake of one study file and its options, one per line."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


class SchemaError(AutoMLError):
    """A schema or model file that cannot be used."""

    exit_code = 2


class TrainableError(AutoMLError):
    """A trainer that cannot be found, or that breaks the contract."""

    exit_code = 2


class ClusterError(AutoMLError):
    """The Ray cluster of `address` is not there, or a node of it cannot run the study's trials."""

    exit_code = 2


class StoreError(AutoMLError):
    """The files of a study cannot be read or written."""


class UnreadableError(StoreError):
    """The files of a study are damaged, of a newer release, or not there; nothing was run."""

    exit_code = 2


class StudyLockedError(StoreError):
    """The study belongs to a living driver, or was created with other settings."""

    exit_code = 2


class StudyFailedError(AutoMLError):
    """The study stopped because its trials keep failing."""


class NoResultError(AutoMLError):
    """The study ran but has no usable result."""

    exit_code = 3


class PromotionError(NoResultError):
    """A promotion step failed, or its scores are outside the limits."""
