"""Errors that a user can fix, with the exit code that `depth_net` ends with.

    StereoError               1  the action failed while running
      SpecError               2  a spec, an override or an option is wrong; nothing was run
      DataError            1, 2  an annotation or data file is wrong; 2 when found before a run
      CheckpointError         2  a weight file cannot be used
      OutputExistsError       2  an output would be overwritten
      EngineError             1  an engine could not be built or run
        BackendMissingError   4  the requested backend or device is missing here
      NoResultError           3  ran, but has no usable result
        DivergedError         3  the loss or the monitored metric became NaN or infinite

A message names the file, the key or path, the value found, the values allowed and the next step.
A KeyboardInterrupt that carries SIGTERM stands for that signal: exit code 143 instead of 130.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass


class StereoError(Exception):
    """Base of all errors of this package; `exit_code` is the exit status of the program."""

    exit_code: int = 1


@dataclass(frozen=True)
class SpecProblem:
    """One mistake: where it stands, which key, what is wrong and what to do."""

    source: str
    key: str
    problem: str
    remedy: str = ""

    def __str__(self) -> str:
        place = ": ".join(part for part in (self.source, self.key) if part)
        return f"{place}: {self.problem}" + (f". {self.remedy}" if self.remedy else "")


class SpecError(StereoError):
    """All mistakes of one spec, found together."""

    exit_code = 2

    def __init__(self, problems: Sequence[SpecProblem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type[SpecError], tuple[tuple[SpecProblem, ...]]]:
        # The default would rebuild the error from its text, which is not what __init__ takes.
        return type(self), (self.problems,)


class DataError(StereoError):
    """Annotation or data files that cannot be used; the message lists every one."""

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        self.exit_code = exit_code
        super().__init__(message)


class CheckpointError(StereoError):
    """A weight file that is unreadable, of another kind, or does not fit the network."""

    exit_code = 2


class OutputExistsError(StereoError):
    """An output that would be overwritten without being asked to."""

    exit_code = 2


class EngineError(StereoError):
    """An engine that could not be built or run."""


class BackendMissingError(EngineError):
    """A backend or device that this machine does not have."""

    exit_code = 4


class NoResultError(StereoError):
    """A run that ended without a usable result."""

    exit_code = 3


class DivergedError(NoResultError):
    """A training run whose loss or monitored metric is no longer finite."""


def interrupt_exit_code(interrupt: KeyboardInterrupt) -> int:
    """Exit code after SIGTERM, which such an interrupt carries as its argument, or SIGINT."""
    return 143 if interrupt.args == (signal.SIGTERM,) else 130
