"""The pipeline's parameters as data: their types, defaults and descriptions, the presets, and values given as text."""

import importlib.resources
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from kfp.pipeline_spec import pipeline_spec_pb2

from stillhouse.errors import InputError, Problem
from stillhouse.pipelines.train_and_deploy import train_and_deploy

__all__ = ["Parameter", "arguments_for", "parameters", "preset_names", "read_preset"]

_TYPES: dict[int, type] = {
    pipeline_spec_pb2.ParameterType.STRING: str,
    pipeline_spec_pb2.ParameterType.NUMBER_INTEGER: int,
    pipeline_spec_pb2.ParameterType.NUMBER_DOUBLE: float,
    pipeline_spec_pb2.ParameterType.BOOLEAN: bool,
    pipeline_spec_pb2.ParameterType.STRUCT: dict,
    pipeline_spec_pb2.ParameterType.LIST: list,
}
_WORDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "a JSON object",
    list: "a JSON list",
}


@dataclass(frozen=True)
class Parameter:
    """One parameter of the pipeline."""

    name: str
    type: type
    default: Any
    """None where a value must be given."""
    description: str


def parameters() -> dict[str, Parameter]:
    """Every parameter, in the order of the pipeline's signature."""
    component = train_and_deploy.component_spec
    spec = train_and_deploy.pipeline_spec.root.input_definitions.parameters
    return {
        name: Parameter(
            name,
            _TYPES[spec[name].parameter_type],
            None if not given.optional else given.default,
            spec[name].description,
        )
        for name, given in (component.inputs or {}).items()
    }


def preset_names() -> list[str]:
    """Names of the presets that come with this release."""
    folder = importlib.resources.files("stillhouse.pipelines") / "presets"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read_preset(name: str) -> dict[str, Any]:
    """A preset's values by parameter.

    Raises:
        InputError: there is no such preset.
    """
    if name not in preset_names():
        raise InputError(Problem("--preset", f"{name!r} is unknown.", f"Choose one of: {', '.join(preset_names())}."))
    text = (importlib.resources.files("stillhouse.pipelines") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    assert isinstance(values, dict), name
    return values


def arguments_for(
    preset: str, settings: Iterable[str], *, cluster: Mapping[str, Any] | None = None, complete: bool = True
) -> tuple[dict[str, Any], list[Problem]]:
    """The pipeline's arguments from a preset and `key=value` settings, and everything wrong with them.

    What is wrong is left out of the arguments, so that the rest can still be checked.

    Args:
        preset: name of a preset.
        settings: what goes before the preset.
        cluster: values of a cluster, which go before the preset, and after the settings. A preset that deploys on this
            machine deploys nothing there.
        complete: whether every parameter without a default must be given.
    """
    known = parameters()
    found: list[Problem] = []
    values: dict[str, Any] = {name: p.default for name, p in known.items() if p.default is not None}
    try:
        given: Mapping[str, Any] = read_preset(preset)
    except InputError as error:
        found.extend(error.problems)
        given = read_preset("demo")  # so that the rest can be checked without reaching for a hub
    if cluster is not None and given.get("deploy_target") == "local":
        given = {**given, "deploy_target": "none"}
    texts: dict[str, Any] = {**given, **(cluster or {})}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            found.append(Problem("--set", f"{setting!r} has no value.", "Write --set NAME=VALUE."))
        else:
            texts[name.strip()] = text
    for name, value in texts.items():
        if name not in known:
            close = _closest(name, known)
            found.append(
                Problem(name, "is not a parameter.", f"Did you mean {close}?" if close else "See docs/parameters.md.")
            )
            continue
        try:
            values[name] = _convert(value, known[name].type)
        except ValueError:
            found.append(Problem(name, f"{value!r} is not {_WORDS[known[name].type]}.", "Correct the value."))
    if complete and "data" not in values and not any(p.where == "data" for p in found):
        found.append(Problem("data", "is not given.", "Name a file, a folder, hub://OWNER/NAME or demo://reviews."))
    return values, found


def _convert(value: Any, wanted: type) -> Any:
    """The value as the wanted type; text is read as JSON would be."""
    if wanted is str:
        return value if isinstance(value, str) else json.dumps(value)
    if isinstance(value, str):
        try:
            value = json.loads(value.strip().lower() if wanted is bool else value)
        except json.JSONDecodeError:
            raise ValueError(value) from None
    if wanted in (bool, dict, list):
        if not isinstance(value, wanted):
            raise ValueError(value)
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value or abs(value) == float("inf"):
        raise ValueError(value)
    if wanted is int and value != int(value):
        raise ValueError(value)
    return wanted(value)


def _closest(name: str, known: Iterable[str]) -> str:
    import difflib

    return next(iter(difflib.get_close_matches(name, list(known), n=1)), "")
