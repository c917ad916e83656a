"""The model registry: what was chosen becomes a version in MLflow, with its lineage."""

from stillhouse.registry.mlflow_registry import MlflowRegistry
from stillhouse.registry.register import RegisterConfig, RegisteredVersion

__all__ = ["MlflowRegistry", "RegisterConfig", "RegisteredVersion"]
