"""Reading a cluster's file, and saying what is wrong with it: all at once, each in words of its own."""

from __future__ import annotations

import difflib
import importlib.resources
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from stillhouse.errors import InputError, Problem
from stillhouse.pipelines.placement import PARTS, TRAINING, Cluster

__all__ = ["cluster_names", "load_cluster", "read_cluster"]

_TYPES = {
    "string_type": ("text", "Write it in quotes."),
    "int_type": ("a whole number", ""),
    "int_from_float": ("a whole number", ""),
    "float_type": ("a number", ""),
    "float_parsing": ("a number", ""),
    "list_type": ("a list", "Write it as [a, b]."),
    "dict_type": ("a mapping", "Write it as {key: value}."),
    "model_type": ("a mapping", "Write it as {key: value}."),
}
"""What each of pydantic's errors of type wants, and how to write it."""


def cluster_names() -> list[str]:
    """Names of the clusters that come with this release."""
    folder = importlib.resources.files("stillhouse.pipelines") / "clusters"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_cluster(name: str) -> Cluster:
    """A cluster by the name of one that comes with this release, or by the path of a YAML file.

    Raises:
        InputError: there is no such cluster, or with everything that is wrong in the file.
    """
    cluster, problems = read_cluster(name)
    if problems:
        raise InputError(problems)
    return cluster


def read_cluster(name: str) -> tuple[Cluster, list[Problem]]:
    """The same, with the problems beside it: a faulty cluster keeps its preset and parameters, so that they are checked."""
    if name in cluster_names():
        text = (importlib.resources.files("stillhouse.pipelines") / "clusters" / f"{name}.yaml").read_text("utf-8")
    else:
        try:
            text = Path(name).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8"
            remedy = f"Choose one of: {', '.join(cluster_names())}, or give the path of a file like them."
            return Cluster(), [Problem("--cluster", f"{name!r} cannot be read: {reason}.", remedy)]
    try:
        found = [
            Problem(f"{name}: line {line}", f"{key!r} stands there a second time.", "Keep one of them.")
            for line, key in _repeated(yaml.compose(text, Loader=yaml.SafeLoader))
        ]
        body = yaml.safe_load(text)
    except yaml.YAMLError as error:
        return Cluster(), [Problem(name, "is not YAML: " + " ".join(str(error).split()), "Correct the file.")]
    if not isinstance(body, dict):
        remedy = 'See "What is set when, and where" in docs/operations.md for what it holds.'
        return Cluster(), [Problem(name, "is not a mapping.", remedy)]
    found += _training_resources(name, body)
    try:
        cluster = Cluster.model_validate(body)
    except ValidationError as error:
        found += [_problem(name, fault) for fault in error.errors(include_url=False)]
        cluster = Cluster()
        if isinstance(body.get("preset"), str):
            cluster = cluster.model_copy(update={"preset": body["preset"]})
        if isinstance(body.get("parameters"), dict):
            named = {key: value for key, value in body["parameters"].items() if isinstance(key, str)}
            cluster = cluster.model_copy(update={"parameters": named})
    return cluster, found


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


def _training_resources(name: str, body: dict[str, Any]) -> list[Problem]:
    """CPU and memory of the steps that train, which would have no effect among the other steps'."""
    steps = body.get("steps")
    return [
        Problem(f"{name}: steps.{step}.{key}", "has no effect.", f"Set parameters.train_{key}.")
        for step in TRAINING
        for key in ("cpu", "memory")
        if isinstance(steps, dict) and isinstance(steps.get(step), dict) and key in steps[step]
    ]


def _problem(name: str, fault: Any) -> Problem:
    """One of pydantic's errors, for people."""
    kind, value, context = fault["type"], fault["input"], fault.get("ctx", {})
    path = [str(part) for part in fault["loc"] if part != "[key]"]
    where = f"{name}: {'.'.join(path)}"
    if kind == "value_error":
        return Problem(where, *context["error"].args)
    if kind in _TYPES:
        wanted, remedy = _TYPES[kind]
        return Problem(where, f"{value!r} is not {wanted}.", remedy)
    if kind == "extra_forbidden":
        part = "training_nodes.tolerations" if "tolerations" in path else path[0] if len(path) > 1 else ""
        known = list(PARTS[part].model_fields)
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
