"""Every error that Stillhouse raises on purpose.

    StillhouseError              anything below; the message is meant for people
    ├── InputError               something the user gave is wrong; `problems` lists all of it
    │   └── ManifestError        an artifact is missing, altered, or of a format not understood
    ├── ParityError              an exported model does not reproduce the model it came from
    ├── ServingError             the inference server did not start, died, or answered wrongly
    │   ├── ServerUnavailable    nobody answers there, or the connection broke
    │   ├── Overloaded           the server turned the request away, since too many wait already
    │   └── DeadlineExceeded     no answer came in the time given
    ├── TrainingError            the processes or machines that train together failed
    └── RegistryError            the model registry refused or lacks something

    try:
        prepare_dataset(config)
    except stillhouse.InputError as error:
        for problem in error.problems:
            print(problem)

Anything else that escapes is a bug in Stillhouse, and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = [
    "DeadlineExceeded",
    "InputError",
    "ManifestError",
    "Overloaded",
    "ParityError",
    "Problem",
    "RegistryError",
    "ServerUnavailable",
    "ServingError",
    "StillhouseError",
    "TrainingError",
]


@dataclass(frozen=True)
class Problem:
    """One thing wrong with what the user gave."""

    where: str
    """The parameter, file, row or column at fault, for example `text_column` or `train.csv, row 7`."""
    what: str
    """What is wrong, with the offending value."""
    remedy: str = ""
    """What to do about it."""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f" {self.remedy}" if self.remedy else "")


class StillhouseError(Exception):
    """Base of all deliberate errors. `exit_code` is what a command exits with."""

    exit_code = 1


class InputError(StillhouseError):
    """The user's input is at fault. `problems` holds every problem found, never only the first."""

    exit_code = 2

    def __init__(self, problems: Iterable[Problem] | Problem) -> None:
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class ManifestError(InputError):
    """An artifact's manifest is missing, does not match its files, or is of an unknown format."""

    def __init__(self, where: str, what: str, remedy: str = "") -> None:
        super().__init__(Problem(where, what, remedy))


class ParityError(StillhouseError):
    """An exported model's outputs differ from the original's by more than the tolerance."""


class ServingError(StillhouseError):
    """The inference server failed. `log_tail` holds its last own lines, oldest first."""

    def __init__(self, message: str, log_tail: Iterable[str] = ()) -> None:
        self.log_tail = tuple(log_tail)
        super().__init__("\n".join([message, *(f"  {line}" for line in self.log_tail)]))


class ServerUnavailable(ServingError):
    """No server answers at the address, it is going down, or the connection broke. Asking again later may help."""


class Overloaded(ServingError):
    """The server turned the request away at once, since more wait than it can answer in time."""


class DeadlineExceeded(ServingError):
    """No answer came in the time that the caller gave."""


class TrainingError(StillhouseError):
    """Processes or machines that train together failed. `log_tail` holds the last lines they wrote, oldest first."""

    def __init__(self, message: str, log_tail: Iterable[str] = ()) -> None:
        self.log_tail = tuple(log_tail)
        super().__init__("\n".join([message, *(f"  {line}" for line in self.log_tail)]))


class RegistryError(StillhouseError):
    """The model registry could not be reached, or lacks what was asked for."""
