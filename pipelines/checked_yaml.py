"""Reading a YAML file into a closed model, and saying what is wrong with it: all at once, each in words of its own."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from stillhouse.errors import Problem

__all__ = ["fault_problem", "read_mapping", "read_text"]

_TYPES = {
    "string_type": ("text", "Write it in quotes."),
    "int_type": ("a whole number", ""),
    "int_from_float": ("a whole number", ""),
    "float_type": ("a number", ""),
    "float_parsing": ("a number", ""),
    "bool_type": ("true or false", ""),
    "list_type": ("a list", "Write it as [a, b]."),
    "dict_type": ("a mapping", "Write it as {key: value}."),
    "model_type": ("a mapping", "Write it as {key: value}."),
}
"""What each of pydantic's errors of type wants, and how to write it."""


def read_text(path: str) -> str:
    """The text of a file.

    Raises:
        ValueError: it cannot be read; the message says why.
    """
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(getattr(error, "strerror", None) or "it is not UTF-8") from None


def read_mapping(name: str, text: str, remedy: str) -> tuple[dict[str, Any] | None, list[Problem]]:
    """The mapping that a YAML text is, and everything wrong with its form; None where it is none.

    Args:
        name: of the file, for the problems.
        text: its content.
        remedy: what to do where it holds no mapping.
    """
    try:
        found = [
            Problem(f"{name}: line {line}", f"{key!r} stands there a second time.", "Keep one of them.")
            for line, key in _repeated(yaml.compose(text, Loader=yaml.SafeLoader))
        ]
        body = yaml.safe_load(text)
    except yaml.YAMLError as error:
        return None, [Problem(name, "is not YAML: " + " ".join(str(error).split()), "Correct the file.")]
    if not isinstance(body, dict):
        return None, [Problem(name, "is not a mapping.", remedy)]
    return body, found


def _repeated(node: yaml.Node | None) -> Iterator[tuple[int, str]]:
    """Line and name of each key that its mapping has already: YAML would silently keep the last."""
    if isinstance(node, yaml.SequenceNode):
        for entry in node.value:
            yield from _repeated(entry)
    elif isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    yield key.start_mark.line + 1, key.value
                seen.add(key.value)
            yield from _repeated(value)


def fault_problem(name: str, fault: Any, fields: Callable[[list[str]], Iterable[str]]) -> Problem:
    """One of pydantic's errors, for people.

    Args:
        name: of the file.
        fault: what `ValidationError.errors()` holds.
        fields: the fields that are known beside one that is not, by the path of the latter.
    """
    kind, value, context = fault["type"], fault["input"], fault.get("ctx", {})
    path = [str(part) for part in fault["loc"] if part != "[key]"]
    where = f"{name}: {'.'.join(path)}"
    if kind == "value_error":
        return Problem(where, *context["error"].args)
    if kind in _TYPES:
        wanted, remedy = _TYPES[kind]
        return Problem(where, f"{value!r} is not {wanted}.", remedy)
    if kind == "extra_forbidden":
        known = list(fields(path))
        close = difflib.get_close_matches(path[-1], known, n=1)
        remedy = f"Did you mean {close[0]}? " if close else ""
        return Problem(where, "is not known here.", f"{remedy}There are: {', '.join(known)}.")
    if kind == "missing":
        return Problem(where, "is not given.", "Add it.")
    if kind == "literal_error":
        return Problem(where, f"{value!r} is unknown.", f"Choose {context['expected']}.")
    if kind in ("greater_than_equal", "less_than_equal"):
        least = "ge" in context
        size, limit = ("small", f"at least {context['ge']}") if least else ("large", f"at most {context['le']}")
        return Problem(where, f"{value!r} is too {size}.", f"Give {limit}.")
    if kind == "too_short":
        return Problem(where, "is empty.", "Name at least one.")
    return Problem(where, f"{fault['msg']}.", "Correct it.")
