"""Compile a pipeline to Kubeflow's IR YAML for a cluster."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kfp import compiler

from stillhouse.errors import Problem
from stillhouse.pipelines.catalogue import TRAIN_AND_DEPLOY, Pipeline
from stillhouse.pipelines.cluster_files import cluster_names, load_cluster, read_cluster
from stillhouse.pipelines.parameters import arguments_for, preset_names
from stillhouse.pipelines.placement import Cluster

__all__ = ["Cluster", "cluster_defaults", "cluster_names", "compiled_yaml", "load_cluster"]


def cluster_defaults(name: str, pipeline: Pipeline = TRAIN_AND_DEPLOY) -> tuple[Cluster, dict[str, Any], list[Problem]]:
    """A cluster, the defaults of the pipeline's parameters there, and everything wrong with its file.

    What is wrong is left out of both.
    """
    cluster, problems = read_cluster(name)
    preset, known = pipeline.preset_on(cluster), preset_names(pipeline)
    if preset not in known:
        field = pipeline.cluster_preset
        problems.append(Problem(f"{name}: {field}", f"{preset!r} is unknown.", f"Choose one of: {', '.join(known)}."))
        preset = Cluster.model_fields[field].default
        cluster = cluster.model_copy(update={field: preset})
    defaults, wrong = arguments_for(preset, [], cluster=cluster.defaults(), complete=False, pipeline=pipeline)
    problems += [Problem(f"{name}: parameters.{p.where}", p.what, p.remedy) for p in wrong]
    left_out = {problem.where for problem in wrong}
    sound = {key: value for key, value in cluster.parameters.items() if key not in left_out}
    return cluster.model_copy(update={"parameters": sound}), defaults, problems


def compiled_yaml(cluster: Cluster, defaults: Mapping[str, Any], pipeline: Pipeline = TRAIN_AND_DEPLOY) -> str:
    """The pipeline as IR YAML; the same text for the same code and arguments.

    Args:
        cluster: what its steps get on the cluster.
        defaults: defaults of its parameters, beside those of its signature.
        pipeline: which one.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(
            pipeline.define(cluster), package_path=str(path), pipeline_parameters=dict(defaults)
        )
        text = path.read_text(encoding="utf-8")
    for name, value in defaults.items():
        if isinstance(value, (dict, list)):
            # In its comment kfp writes these in the order of a protobuf map, which differs from process to process.
            said = f"{name}: {type(value).__name__} [Default: {json.dumps(value, sort_keys=True)}]"
            text = re.sub(rf"(?m)^#    {name}: \w+ \[Default: .*$", lambda _, said=said: f"#    {said}", text)
    return text
