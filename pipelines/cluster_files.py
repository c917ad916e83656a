"""Reading a cluster's file, and saying what is wrong with it: all at once, each in words of its own."""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from stillhouse.errors import InputError, Problem
from stillhouse.pipelines.checked_yaml import fault_problem, read_mapping, read_text
from stillhouse.pipelines.placement import PARTS, TRAINING, Cluster

__all__ = ["cluster_names", "load_cluster", "read_cluster"]


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
            text = read_text(name)
        except ValueError as error:
            remedy = f"Choose one of: {', '.join(cluster_names())}, or give the path of a file like them."
            return Cluster(), [Problem("--cluster", f"{name!r} cannot be read: {error}.", remedy)]
    remedy = 'See "What is set when, and where" in docs/operations.md for what it holds.'
    body, found = read_mapping(name, text, remedy)
    if body is None:
        return Cluster(), found
    found += _training_resources(name, body)
    try:
        cluster = Cluster.model_validate(body)
    except ValidationError as error:
        found += [fault_problem(name, fault, _fields) for fault in error.errors(include_url=False)]
        cluster = Cluster()
        for field in ("preset", "pretrain_preset"):
            if isinstance(body.get(field), str):
                cluster = cluster.model_copy(update={field: body[field]})
        if isinstance(body.get("parameters"), dict):
            named = {key: value for key, value in body["parameters"].items() if isinstance(key, str)}
            cluster = cluster.model_copy(update={"parameters": named})
    return cluster, found


def _training_resources(name: str, body: dict[str, Any]) -> list[Problem]:
    """CPU and memory of the steps that train, which would have no effect among the other steps'."""
    steps = body.get("steps")
    return [
        Problem(f"{name}: steps.{step}.{key}", "has no effect.", f"Set parameters.train_{key}.")
        for step in TRAINING
        for key in ("cpu", "memory")
        if isinstance(steps, dict) and isinstance(steps.get(step), dict) and key in steps[step]
    ]


def _fields(path: list[str]) -> Iterable[str]:
    """The fields beside the one at this path."""
    part = "training_nodes.tolerations" if "tolerations" in path else path[0] if len(path) > 1 else ""
    return PARTS[part].model_fields
