"""Finding the wanted columns among those that a source has."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from stillhouse.data.faults import Faults
from stillhouse.data.schema import RowSchema

__all__ = ["find_columns"]

_SHOWN = 30


def find_columns(
    available: Sequence[str], schema: RowSchema, file: str, faults: Faults, *, source: str = ""
) -> dict[str, str]:
    """The source's column for each of the schema's that is there; the others are reported under their parameter.

    Of the files of one `source` folder that lack a column, the first is reported.
    """
    found = {}
    for column in schema.columns:
        count = available.count(column.source)
        if count == 1:
            found[column.name] = column.source
        elif count:
            faults.add(file, f"has {count} columns named {column.source!r}.", "Rename all but one.")
        else:
            shown = ", ".join(name[:60] or "''" for name in available[:_SHOWN])
            shown += f" and {len(available) - _SHOWN} more" if len(available) > _SHOWN else ""
            faults.add(
                f"{column.name}_column",
                f"{file} has no column {column.source!r}; it has: {shown or 'none'}.",
                _remedy(available, column.source),
                key=source or file,
            )
    return found


def _remedy(available: Sequence[str], wanted: str) -> str:
    if close := get_close_matches(wanted, available, n=1):
        return f"Did you mean {close[0]!r}?"
    if len(available) == 1:
        for character, name in ((";", "semicolons"), ("\t", "tabs"), (",", "commas")):
            if character in available[0]:
                return f"Its cells seem to be separated by {name}: name it .tsv for tabs, .csv for commas."
    return "Name one of these. The first row must be the header."
