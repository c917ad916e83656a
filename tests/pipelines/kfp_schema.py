"""The API of Kubeflow Pipelines as `kfp_server_api` ships it: its routes and models, read from the generated code."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import kfp_server_api

SERVICES = (
    kfp_server_api.ExperimentServiceApi,
    kfp_server_api.PipelineServiceApi,
    kfp_server_api.PipelineUploadServiceApi,
    kfp_server_api.RecurringRunServiceApi,
    kfp_server_api.RunServiceApi,
)


class Mismatch(Exception):
    """A value is not of the type that the schema gives it."""


@dataclass(frozen=True)
class Route:
    """One operation."""

    name: str
    method: str
    pattern: re.Pattern[str]
    query: dict[str, str]
    """Type by parameter."""
    body: str
    """Type; empty where there is none."""
    uploads: bool
    answer: str


def routes() -> list[Route]:
    """Every operation, those with longer paths first."""
    found = []
    for service in SERVICES:
        for name, function in inspect.getmembers(service, inspect.isfunction):
            if name.endswith("_with_http_info"):
                found.append(_route(name.removesuffix("_with_http_info"), inspect.getsource(function)))
    return sorted(found, key=lambda route: -len(route.pattern.pattern))


def _route(name: str, source: str) -> Route:
    path, method = re.search(r"call_api\(\s*'([^']+)', '([A-Z]+)'", source).groups()
    types = dict(re.findall(r":type (\w+): (.+)", source))
    query = re.findall(r"query_params\.append\(\('(\w+)'", source)
    body = re.search(r"body_params = local_var_params\['(\w+)'\]", source)
    pattern = "".join(
        rf"(?P<{re.sub(r'[^a-z_]', '_', part[1:-1])}>[^/:]+)" if part.startswith("{") else re.escape(part)
        for part in re.split(r"(\{[^}]+\})", path)
    )
    return Route(
        name=name,
        method=method,
        pattern=re.compile(pattern),
        query={key: types[key] for key in query},
        body=types[body[1]] if body else "",
        uploads="local_var_files['uploadfile']" in source,
        answer=re.search(r"response_type='(.*?)'", source)[1],
    )


def check(value: Any, kind: str, where: str = "") -> None:
    """Compare a JSON value with a type of the schema.

    Raises:
        Mismatch: it does not fit: an unknown field, a wrong type, a value that an enumeration does not have.
    """
    if inner := re.fullmatch(r"list\[(.+)\]", kind):
        _want(isinstance(value, list), value, "a list", where)
        for number, entry in enumerate(value):
            check(entry, inner[1], f"{where}[{number}]")
    elif inner := re.fullmatch(r"dict\(str, (.+)\)", kind):
        _want(isinstance(value, dict), value, "an object", where)
        for key, entry in value.items():
            check(entry, inner[1], f"{where}.{key}")
    elif kind == "object":
        pass
    elif kind == "datetime":
        _want(isinstance(value, str), value, "a time", where)
        try:
            moment = datetime.fromisoformat(re.sub("Z$", "+00:00", value))
        except ValueError:
            raise Mismatch(f"{where}: {value!r} is not RFC 3339") from None
        _want(moment.tzinfo is not None, value, "a time with an offset", where)
    elif kind in ("str", "int", "bool", "float"):
        wanted = {"str": str, "int": int, "bool": bool, "float": (int, float)}[kind]
        _want(isinstance(value, wanted) and (kind == "bool" or not isinstance(value, bool)), value, kind, where)
    else:
        model = getattr(kfp_server_api, kind)
        if not model.openapi_types:
            _want(value in model.allowable_values if hasattr(model, "allowable_values") else value in _values(model),
                  value, f"one of {kind}", where)  # fmt: skip
            return
        _want(isinstance(value, dict), value, f"a {kind}", where)
        types = {model.attribute_map[name]: entry for name, entry in model.openapi_types.items()}
        for key, entry in value.items():
            _want(key in types, key, f"a field of {kind}", where)
            check(entry, types[key], f"{where}.{key}")


def _values(model: type) -> set[str]:
    return {value for name, value in vars(model).items() if name.isupper() and isinstance(value, str)}


def _want(fits: bool, value: Any, what: str, where: str) -> None:
    if not fits:
        raise Mismatch(f"{where or 'body'}: {value!r} is not {what}")


def serialised(answer: Any) -> Any:
    """A model of the schema as JSON."""
    return kfp_server_api.ApiClient().sanitize_for_serialization(answer)
