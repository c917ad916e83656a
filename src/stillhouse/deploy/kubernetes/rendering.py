"""What the chart itself finds wrong with values, as helm tells it, turned into problems that name the key."""

from __future__ import annotations

import re

from stillhouse.deploy.kubernetes.helm import Helm, HelmError, find_helm
from stillhouse.deploy.kubernetes.settings import KubernetesSettings, chart_folder
from stillhouse.errors import InputError, Problem

__all__ = ["refusals", "rendered_problems"]

_WHERE = "serving_values"
_SCHEMA_REFUSED = "values don't meet the specifications of the schema"
_KUBERNETES = "1.31.0"
"""What a chart is rendered for where no cluster says: helm 3.10 takes itself for one that is too old."""


def rendered_problems(settings: KubernetesSettings) -> list[Problem]:
    """Have helm render the chart with the user's values, without a cluster; nothing is found where there is no helm."""
    if find_helm() is None:
        return []
    try:
        helm = Helm()
    except InputError:  # one that is too old says so where it is needed
        return []
    model = {"name": settings.model_name, "version": "1", "manifestSha256": "0" * 64}
    mlflow = {"trackingUri": "http://mlflow:5000", **(settings.values.get("mlflow") or {})}
    values = {**settings.values, "model": model, "mlflow": mlflow}
    try:
        helm.run("template", settings.release_name, str(chart_folder()), f"--kube-version={_KUBERNETES}", values=values)
    except HelmError as error:
        return refusals(error.said) or [Problem(_WHERE, error.said)]
    return []


def refusals(said: str) -> list[Problem]:
    """What helm found wrong with values before it changed anything; empty where its error is about something else.

    Args:
        said: helm's error.
    """
    if _SCHEMA_REFUSED in said:
        return [_schema_problem(line[2:].strip()) for line in said.splitlines() if line.startswith("- ")]
    if match := re.search(r"execution error at \([^)]*\): (.*)", said, re.DOTALL):
        return [Problem(_WHERE, " ".join(match[1].split()))]
    return []


def _schema_problem(line: str) -> Problem:
    """`replicas: Invalid type. …` (helm 3.10), or `at '/replicas': got string, …` (helm 3.18)."""
    match = re.match(r"at '/?(?P<path>[^']*)': (?P<what>.*)", line) or re.match(r"(?P<path>[^:]*): (?P<what>.*)", line)
    if match is None:
        return Problem(_WHERE, line)
    path = match["path"].replace("(root)", "").replace("/", ".")
    return Problem(f"{_WHERE}.{path}" if path else _WHERE, match["what"].rstrip(".") + ".")
