"""Compile the pipelines to Kubeflow's IR YAML."""

import tempfile
from pathlib import Path

from kfp import compiler

from stillhouse.pipelines.train_and_deploy import train_and_deploy

__all__ = ["COMPILED", "compiled_yaml"]

COMPILED = "train_and_deploy.yaml"
"""Name of the compiled pipeline under `pipelines/compiled/`."""


def compiled_yaml() -> str:
    """The main pipeline as IR YAML; the same text for the same code."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / COMPILED
        compiler.Compiler().compile(train_and_deploy, package_path=str(path))
        return path.read_text(encoding="utf-8")
