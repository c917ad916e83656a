"""A pipeline's parameters as data: their types, defaults and descriptions, the presets, and values given as text."""

import importlib.resources
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from kfp.pipeline_spec import pipeline_spec_pb2

from stillhouse.errors import InputError, Problem
from stillhouse.pipelines.catalogue import PIPELINES, TRAIN_AND_DEPLOY, Pipeline
from stillhouse.pipelines.checked_yaml import read_mapping, read_text

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


def parameters(pipeline: Pipeline = TRAIN_AND_DEPLOY) -> dict[str, Parameter]:
    """Every parameter, in the order of the pipeline's signature."""
    component = pipeline.component.component_spec
    spec = pipeline.component.pipeline_spec.root.input_definitions.parameters
    return {
        name: Parameter(
            name,
            _TYPES[spec[name].parameter_type],
            None if not given.optional else given.default,
            spec[name].description,
        )
        for name, given in (component.inputs or {}).items()
    }


def preset_names(pipeline: Pipeline = TRAIN_AND_DEPLOY) -> list[str]:
    """Names of a pipeline's presets that come with this release."""
    folder = _presets(pipeline)
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read_preset(name: str, pipeline: Pipeline = TRAIN_AND_DEPLOY) -> dict[str, Any]:
    """A preset's values by parameter.

    Args:
        name: of a preset that comes with this release; or the path of a YAML file (`.yaml`, `.yml`) of parameters,
            whose key `preset` names the one that it starts from, if any.
        pipeline: whose preset it is.

    Raises:
        InputError: there is no such preset, or the file is none; everything that is wrong with its form.
    """
    base, own = _layers(name, pipeline)
    return {**base, **own}


def _layers(name: str, pipeline: Pipeline) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values of a preset that comes with this release, and those of the user's file."""
    if not name.endswith((".yaml", ".yml")):
        return _bundled(name, "--preset", pipeline), {}
    try:
        text = read_text(name)
    except ValueError as error:
        remedy = f"Choose one of: {', '.join(preset_names(pipeline))}, or give the path of a file of parameters."
        raise InputError(Problem("--preset", f"{name!r} cannot be read: {error}.", remedy)) from None
    own, found = read_mapping(name, text, "Write parameters in it, as NAME: VALUE.")
    base: dict[str, Any] = {}
    if own is not None and (start := own.pop("preset", None)) is not None:
        try:
            base = _bundled(start, f"{name}: preset", pipeline)
        except InputError as error:
            found += error.problems
    if own is None or found:
        raise InputError(found)
    return base, {str(key): value for key, value in own.items()}


def _bundled(name: Any, where: str, pipeline: Pipeline) -> dict[str, Any]:
    known = preset_names(pipeline)
    if name not in known:
        raise InputError(Problem(where, f"{name!r} is unknown.", f"Choose one of: {', '.join(known)}."))
    text = (_presets(pipeline) / f"{name}.yaml").read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    assert isinstance(values, dict), name
    return values


def _presets(pipeline: Pipeline) -> Any:
    return importlib.resources.files("stillhouse.pipelines").joinpath(*pipeline.preset_folder.split("/"))


def arguments_for(
    preset: str,
    settings: Iterable[str],
    *,
    cluster: Mapping[str, Any] | None = None,
    complete: bool = True,
    pipeline: Pipeline = TRAIN_AND_DEPLOY,
) -> tuple[dict[str, Any], list[Problem]]:
    """The pipeline's arguments from a preset and `key=value` settings, and everything wrong with them.

    What is wrong is left out of the arguments, so that the rest can still be checked.

    Args:
        preset: as `read_preset` takes it.
        settings: what goes before the preset.
        cluster: values of a cluster, which go before a preset that comes with this release, and after the user's own
            file and settings; those that are of another pipeline alone are passed over. A preset that deploys on this
            machine deploys nothing there.
        complete: whether every parameter without a default must be given.
        pipeline: whose arguments they are.
    """
    known = parameters(pipeline)
    found: list[Problem] = []
    values: dict[str, Any] = {name: p.default for name, p in known.items() if p.default is not None}
    try:
        layers = _layers(preset, pipeline)
    except InputError as error:
        found.extend(error.problems)
        layers = _layers(pipeline.fallback_preset, pipeline)  # so that the rest can be checked
    if cluster is not None:
        for layer in layers:
            if layer.get("deploy_target") == "local":
                layer["deploy_target"] = "none"
    base, own = layers
    texts: dict[str, Any] = {**base, **_of_pipeline(pipeline, cluster or {}, known), **own}
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
    source = pipeline.source
    if complete and source not in values and not any(p.where == source for p in found):
        found.append(Problem(source, "is not given.", pipeline.source_remedy))
    return values, found


def _of_pipeline(pipeline: Pipeline, values: Mapping[str, Any], known: Mapping[str, Parameter]) -> dict[str, Any]:
    """The values without those of other pipelines' parameters: a cluster's file has the defaults of all."""
    if values.keys() <= known.keys():
        return dict(values)
    foreign = {name for other in PIPELINES.values() if other.name != pipeline.name for name in parameters(other)}
    return {name: value for name, value in values.items() if name in known or name not in foreign}


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
