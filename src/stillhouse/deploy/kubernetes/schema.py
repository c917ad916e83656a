"""Helm values held to a chart's `values.schema.json` in the plain cases: unknown keys, wrong types, unknown words.

Helm checks everything when it renders the chart. This is for where there is no helm, such as a run's first step, so
that a misspelt key is not found out after the training.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from stillhouse.errors import Problem

__all__ = ["schema_problems"]

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list, tuple),
    "null": (type(None),),
}
_WORDS = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "object": "a mapping",
    "array": "a list",
    "null": "null",
}


def schema_problems(value: Any, schema: Mapping[str, Any], where: str) -> list[Problem]:
    """What is plainly wrong with a value.

    Args:
        value: JSON value.
        schema: JSON schema. Of what is not looked at (`oneOf`, `if`, formats, ranges) nothing is said.
        where: path of the value, such as `serving_values.replicas`.
    """
    return _problems(value, schema, where, schema)


def _problems(value: Any, schema: Any, where: str, root: Mapping[str, Any]) -> list[Problem]:
    schema = _resolved(schema, root)
    if not isinstance(schema, Mapping) or value is None:  # null takes a default away
        return []
    wanted = schema.get("type", [])
    kinds = [wanted] if isinstance(wanted, str) else list(wanted)
    if kinds and not any(_is(value, kind) for kind in kinds):
        return [Problem(where, f"{value!r} is not {' or '.join(_WORDS.get(k, k) for k in kinds)}.", "Correct it.")]
    if "enum" in schema and value not in schema["enum"]:
        choices = ", ".join(str(choice) for choice in schema["enum"])
        return [Problem(where, f"{value!r} is unknown.", f"Choose one of: {choices}.")]
    found = []
    if isinstance(value, Mapping):
        known = schema.get("properties", {})
        others = schema.get("additionalProperties", True)
        for key, entry in value.items():
            if key in known:
                found += _problems(entry, known[key], f"{where}.{key}", root)
            elif others is False and not schema.get("patternProperties"):
                close = difflib.get_close_matches(str(key), [k for k in known if known[k] is not False], n=1)
                remedy = f"Did you mean {close[0]}?" if close else "charts/triton/README.md lists the values."
                found.append(Problem(f"{where}.{key}", "is not known to the chart.", remedy))
            elif isinstance(others, Mapping):
                found += _problems(entry, others, f"{where}.{key}", root)
    elif isinstance(value, (list, tuple)):
        for place, entry in enumerate(value):
            found += _problems(entry, schema.get("items"), f"{where}[{place}]", root)
    return found


def _resolved(schema: Any, root: Mapping[str, Any]) -> Any:
    """The schema that a reference into the same file points to."""
    for _ in range(8):
        reference = schema.get("$ref") if isinstance(schema, Mapping) else None
        if not isinstance(reference, str) or not reference.startswith("#/"):
            return schema
        schema = root
        for part in reference.removeprefix("#/").split("/"):
            schema = schema.get(part, {}) if isinstance(schema, Mapping) else {}
    return {}


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, _TYPES.get(kind, (object,))) or (
        kind == "integer" and isinstance(value, float) and value.is_integer()
    )
