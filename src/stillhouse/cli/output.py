"""How the commands write: results on standard output, all that is said along the way on standard error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from stillhouse.errors import InputError, Problem, StillhouseError
from stillhouse.progress import Step

__all__ = ["Spoken", "print_error", "print_json", "print_problems", "stderr", "stdout"]

_PIPE_WIDTH = 120


class Spoken(Step):
    """A step whose notes go to standard error, each once: for commands that people wait for."""

    def __init__(self, step_id: str) -> None:
        super().__init__(step_id)
        self._note = ""

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Say what is being done, where that is something new."""
        if note and note != self._note:
            self._note = note
            stderr().print(Text(f"{note} …", style="dim"), soft_wrap=True)


def stdout() -> Console:
    """Console for results. Where no terminal sets the width, it is wide enough for the tables."""
    return Console(width=_width(sys.stdout.isatty()), highlight=False)


def stderr() -> Console:
    """Console for progress and errors."""
    return Console(stderr=True, width=_width(sys.stderr.isatty()), highlight=False)


def print_json(document: Any) -> None:
    """Write one JSON document to standard output, for programs: no colour, no wrapping."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False, default=str) + "\n")
    sys.stdout.flush()


def print_problems(problems: Sequence[Problem]) -> None:
    """Write every problem to standard error: where it is, what it is, what to do."""
    console = stderr()
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    console.print(Text.assemble(("✗ ", "red"), (f"{count} with the input", "bold red")))
    for problem in problems:
        console.print(Text.assemble("  ", (problem.where, "bold"), ": ", problem.what), soft_wrap=True)
        if problem.remedy:
            console.print(Text.assemble("    → ", problem.remedy, style="dim"), soft_wrap=True)


def print_error(error: StillhouseError) -> None:
    """Write a deliberate error to standard error, without a traceback."""
    if isinstance(error, InputError):
        print_problems(error.problems)
    else:
        stderr().print(Text.assemble(("✗ ", "red"), str(error)), soft_wrap=True)


def _width(terminal: bool) -> int | None:
    return None if terminal or os.environ.get("COLUMNS") else _PIPE_WIDTH
