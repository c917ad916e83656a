"""What a deployment to Kubernetes is told, and what is wrong with it as far as that can be seen without a cluster."""

from __future__ import annotations

import importlib.resources
import ipaddress
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from stillhouse.deploy.canary.prometheus import prometheus_problems
from stillhouse.deploy.kubernetes.schema import schema_problems
from stillhouse.errors import Problem
from stillhouse.redaction import holds_credentials

__all__ = ["KubernetesSettings", "chart_folder", "chart_label", "release_name"]

_OWN = {"model": None, "canary": ("enabled", "weight", "model"), "smokeTest": ("enabled", "answers", "canaryAnswers")}
"""Values that the deployment sets, by top-level key; None is all of them."""
_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LONGEST_RELEASE = 53
_LONGEST_CANARY = 24 * 60
_LONGEST_ROLLOUT = 4 * 60


def chart_folder() -> Path:
    """The chart that comes with this release."""
    return Path(str(importlib.resources.files("stillhouse.charts") / "triton"))


def chart_label() -> str:
    """Name and version of that chart, as helm calls it."""
    chart = yaml.safe_load((chart_folder() / "Chart.yaml").read_text(encoding="utf-8"))
    return f"{chart['name']}-{chart['version']}"


def release_name(model_name: str) -> str:
    """The Helm release that serves a model, where no other name is given: the model's, as Kubernetes takes names."""
    name = re.sub(r"[^a-z0-9]+", "-", model_name.lower()).strip("-")
    name = name if name[:1].isalpha() else f"model-{name}"
    return name[:_LONGEST_RELEASE].strip("-")


@dataclass(frozen=True, kw_only=True)
class KubernetesSettings:
    """The part of `DeployConfig` that Kubernetes goes by; its fields are described there."""

    model_name: str
    tracking_uri: str = ""
    namespace: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    canary_weight: int = 0
    canary_minutes: float = 15
    prometheus_url: str = ""
    timeout_minutes: float = 20
    release: str = ""
    context: str = ""

    @property
    def release_name(self) -> str:
        """The Helm release."""
        return self.release or release_name(self.model_name)

    @property
    def timeout_s(self) -> float:
        """Seconds that a release may take to become ready."""
        return self.timeout_minutes * 60

    def problems(self) -> list[Problem]:
        """Everything that is wrong, as parameters of the pipeline name it."""
        found = []
        if self.namespace and not (_LABEL.fullmatch(self.namespace) or self.namespace[0].isdigit()):
            remedy = "Write lower-case letters, digits and hyphens, such as serving."
            found.append(Problem("serving_namespace", f"{self.namespace!r} cannot name a namespace.", remedy))
        if self.release and not (_LABEL.fullmatch(self.release) and len(self.release) <= _LONGEST_RELEASE):
            remedy = f"Write up to {_LONGEST_RELEASE} lower-case letters, digits and hyphens, beginning with a letter."
            found.append(Problem("release", f"{self.release!r} cannot name a release.", remedy))
        if not 0 <= self.canary_weight <= 99:
            remedy = "Give 1 to 99, or 0 for no canary."
            found.append(Problem("canary_weight", f"{self.canary_weight} is no share in percent.", remedy))
        for name, value, most in (
            ("canary_minutes", self.canary_minutes, _LONGEST_CANARY),
            ("rollout_timeout_minutes", self.timeout_minutes, _LONGEST_ROLLOUT),
        ):
            if not 0 < value <= most:
                found.append(Problem(name, f"{value:g} is out of range.", f"Give minutes from 1 to {most}."))
        if self.prometheus_url:
            found += prometheus_problems(self.prometheus_url)
        return found + self._values_problems()

    def _values_problems(self) -> list[Problem]:
        found = []
        for key, parts in _OWN.items():
            given = self.values.get(key)
            own = [key] if parts is None else [f"{key}.{p}" for p in parts if isinstance(given, Mapping) and p in given]
            for name in own if key in self.values else ():
                remedy = "Leave it out; canary_weight is a parameter." if key == "canary" else "Leave it out."
                found.append(Problem(f"serving_values.{name}", "is set by the deployment.", remedy))
        for name in _secret_places(self.values, "serving_values"):
            what = "holds a user's name or password, and values are shown to everyone."
            found.append(Problem(name, what, "Leave it out: the chart takes the names of secrets."))
        path = chart_folder() / "values.schema.json"
        if path.is_file():
            schema = json.loads(path.read_text(encoding="utf-8"))
            others = {key: value for key, value in self.values.items() if key != "model"}
            found += schema_problems(others, schema, "serving_values")
        return found + self.address_problems(self.tracking_uri)

    def address_problems(self, uri: str) -> list[Problem]:
        """Whether pods can reach MLflow where this process does.

        Args:
            uri: of the registry; empty where it is not known yet.
        """
        mlflow = self.values.get("mlflow")
        if not uri or (isinstance(mlflow, Mapping) and mlflow.get("trackingUri")):
            return []
        scheme, _, rest = uri.partition("://")
        if scheme not in ("http", "https"):
            where = "is a database, from which pods cannot fetch a package"
        elif _is_loopback(rest):
            where = "is an address of this very machine, where pods cannot reach it"
        else:
            return []
        remedy = "Name the MLflow server, or in the values for charts/triton as mlflow.trackingUri how pods reach it."
        return [Problem("tracking_uri", f"{where}.", remedy)]


def _secret_places(value: Any, where: str) -> Iterator[str]:
    """Paths of texts that are addresses with a password."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _secret_places(entry, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for place, entry in enumerate(value):
            yield from _secret_places(entry, f"{where}[{place}]")
    elif isinstance(value, str) and holds_credentials(value):
        yield where


def _is_loopback(rest: str) -> bool:
    try:
        host = urlsplit(f"//{rest}").hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
