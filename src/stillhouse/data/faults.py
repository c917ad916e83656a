"""Collecting everything that is wrong with a source's content, in one pass and in little memory."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass, field

from stillhouse.errors import Problem

__all__ = ["Faults", "Unreadable"]

EXAMPLES = 5
"""Row numbers named per kind of fault; the others are counted."""


class Unreadable(Exception):
    """A source cannot be opened or read further. Internal: it becomes a `Problem` before it leaves this layer."""

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy


@dataclass
class _Fault:
    file: str
    what: str
    remedy: str
    rows: list[int] = field(default_factory=list)
    count: int = 0


class Faults:
    """Faults by file and kind: each keeps its first row numbers and a count, so a million bad rows are one problem."""

    def __init__(self) -> None:
        self._faults: dict[tuple[str, str], _Fault] = {}

    def __len__(self) -> int:
        return len(self._faults)

    def add(self, where: str, what: str, remedy: str = "", *, key: str = "") -> None:
        """A fault of a parameter or a whole file. Of several with the same place and `key`, the first is kept."""
        self._faults.setdefault((where, key or what), _Fault(where, what, remedy))

    def add_problem(self, problem: Problem) -> None:
        """A fault that is already a problem."""
        self.add(problem.where, problem.what, problem.remedy)

    def add_rows(self, file: str, kind: str, rows: Iterable[int], what: str, remedy: str = "") -> None:
        """Faulty rows of a file, numbered from 1 without the header. `what` of the first call for a `kind` is kept."""
        fault = self._faults.setdefault((file, f"rows:{kind}"), _Fault(file, what, remedy))
        for row in rows:
            fault.count += 1
            # Faults of one kind may come out of order: a parser reports some as it reads ahead.
            if len(fault.rows) < EXAMPLES or row < fault.rows[-1]:
                insort(fault.rows, int(row))
                del fault.rows[EXAMPLES:]

    def problems(self) -> list[Problem]:
        """One problem per file and kind, in the order in which they were first seen."""
        return [Problem(_where(fault), fault.what, fault.remedy) for fault in self._faults.values()]


def _where(fault: _Fault) -> str:
    if not fault.count:
        return fault.file
    if fault.count == 1:
        return f"{fault.file}, row {fault.rows[0]}"
    rows = ", ".join(str(row) for row in fault.rows)
    more = fault.count - len(fault.rows)
    return f"{fault.file}, rows {rows}" + (f" and {more:,} more" if more else "")
