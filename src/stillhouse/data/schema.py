"""The columns that a task reads, and what each may hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Column", "RowSchema"]


@dataclass(frozen=True)
class Column:
    """One column of a dataset."""

    name: str
    """Name in the dataset artifact, fixed by the task."""
    source: str
    """Name in the user's source."""
    kind: Literal["text", "class"]
    """`text`: a string that is neither missing nor blank. `class`: a label name, stored as its id."""


@dataclass(frozen=True)
class RowSchema:
    """All columns of one task."""

    columns: tuple[Column, ...]

    def of_kind(self, kind: str) -> tuple[Column, ...]:
        """The columns of one kind, in order."""
        return tuple(column for column in self.columns if column.kind == kind)
