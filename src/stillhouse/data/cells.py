"""Single values: from whatever type a source has to clean strings, and what counts as missing."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stillhouse.data.stream import INVALID

__all__ = [
    "MISSING_WORDS",
    "as_strings",
    "json_cell",
    "missing_mask",
    "missing_words",
    "numpy_mask",
    "sort_labels",
    "strings_from_python",
]

MISSING_WORDS = ("NaN", "nan", "NAN", "NA", "N/A", "<NA>", "NULL", "null")
"""A whole cell that reads so is a missing value which some tool wrote as text."""

_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,300}")


def as_strings(array: pa.Array) -> tuple[pa.Array, bool]:
    """Any flat array as `string`, null where missing, and whether it holds `INVALID` for bytes that are not UTF-8.

    Integers become "1", booleans "true", and floating-point numbers "1" where they are whole (a column of integers
    with gaps is often stored so) and null where they are NaN.

    Raises:
        TypeError: naming a type that has no plain string form, such as a list.
    """
    kind = array.type
    if pa.types.is_dictionary(kind):
        return as_strings(array.cast(kind.value_type))
    if pa.types.is_floating(kind):
        return strings_from_python([json_cell(value) for value in array.to_pylist()]), False
    if pa.types.is_null(kind) or pa.types.is_boolean(kind) or pa.types.is_integer(kind):
        return array.cast(pa.string()), False
    if pa.types.is_decimal(kind) or pa.types.is_temporal(kind):
        return array.cast(pa.string()), False
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or str(kind) == "string_view":
        array = array.cast(pa.large_binary())
    elif not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise TypeError(str(kind))
    try:
        return array.cast(pa.large_binary()).cast(pa.large_string()).cast(pa.string()), False
    except pa.ArrowInvalid:
        decoded = [None if value is None else _marked(value) for value in array.to_pylist()]
        return pa.array(decoded, pa.string()), True


def json_cell(value: object) -> str | None:
    """A JSON or Python scalar as a string, None where it is missing.

    Raises:
        TypeError: naming a type that has no plain string form.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return str(int(value)) if value.is_integer() else repr(value)
    raise TypeError({"dict": "an object", "list": "a list"}.get(type(value).__name__, type(value).__name__))


def strings_from_python(values: Sequence[str | None]) -> pa.Array:
    """Strings as an array. Lone surrogates, which JSON can escape but UTF-8 cannot hold, become `INVALID`."""
    try:
        return pa.array(values, pa.string())
    except (UnicodeEncodeError, pa.ArrowInvalid):
        return pa.array([None if v is None else _without_surrogates(v) for v in values], pa.string())


def missing_mask(trimmed: pa.Array) -> NDArray[np.bool_]:
    """Which of the trimmed strings are missing: null, empty, or one of `MISSING_WORDS`."""
    words = pc.is_in(trimmed, value_set=pa.array(MISSING_WORDS, pa.string()))
    return numpy_mask(pc.is_null(trimmed)) | numpy_mask(pc.equal(pc.binary_length(trimmed), 0)) | numpy_mask(words)


def missing_words(column: str, source: str) -> tuple[str, str]:
    """What to say of rows where a value is missing, and the remedy."""
    words = ", ".join(MISSING_WORDS)
    return f"the {column} (column {source!r}) is empty or one of {words}.", "Fill in these rows or remove them."


def numpy_mask(mask: pa.Array) -> NDArray[np.bool_]:
    """An Arrow boolean array as NumPy, null as False."""
    result: NDArray[np.bool_] = pc.fill_null(mask, False).to_numpy(zero_copy_only=False)
    return result


def sort_labels(names: Sequence[str]) -> list[str]:
    """Label names in id order: by value where all are whole numbers, else by code point."""
    if all(_WHOLE_NUMBER.fullmatch(name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def _marked(value: bytes) -> str:
    return _without_surrogates(value.decode(errors="surrogateescape"))


def _without_surrogates(value: str) -> str:
    return "".join(INVALID if "\ud800" <= character <= "\udfff" else character for character in value)
