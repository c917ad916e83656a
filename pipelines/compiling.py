"""Compile the pipeline to Kubeflow's IR YAML for a cluster."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kfp import compiler

from stillhouse.pipelines.placement import Cluster, cluster_names, load_cluster
from stillhouse.pipelines.train_and_deploy import define

__all__ = ["Cluster", "cluster_names", "compiled_yaml", "load_cluster"]


def compiled_yaml(cluster: Cluster, defaults: Mapping[str, Any]) -> str:
    """The pipeline as IR YAML; the same text for the same code and arguments.

    Args:
        cluster: what its steps get on the cluster.
        defaults: defaults of its parameters, beside those of its signature.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(define(cluster), package_path=str(path), pipeline_parameters=dict(defaults))
        text = path.read_text(encoding="utf-8")
    for name, value in defaults.items():
        if isinstance(value, (dict, list)):
            # In its comment kfp writes these in the order of a protobuf map, which differs from process to process.
            said = f"{name}: {type(value).__name__} [Default: {json.dumps(value, sort_keys=True)}]"
            text = re.sub(rf"(?m)^#    {name}: \w+ \[Default: .*$", lambda _, said=said: f"#    {said}", text)
    return text
