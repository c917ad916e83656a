"""The model registry: what was chosen becomes a version in MLflow, with its lineage."""

from stillhouse.registry.champion import fetch_champion
from stillhouse.registry.lock import LOCK_SUFFIX, DeployLock, LockBusy
from stillhouse.registry.mlflow_registry import MlflowRegistry, RegisteredChampion
from stillhouse.registry.pretraining import PretrainingRecord, RecordedPretraining
from stillhouse.registry.register import RegisterConfig, RegisteredVersion
from stillhouse.registry.run_record import OUTCOMES, RunRecord
from stillhouse.registry.service import ServicePeriod

__all__ = [
    "LOCK_SUFFIX",
    "OUTCOMES",
    "DeployLock",
    "LockBusy",
    "MlflowRegistry",
    "PretrainingRecord",
    "RecordedPretraining",
    "RegisterConfig",
    "RegisteredChampion",
    "RegisteredVersion",
    "RunRecord",
    "ServicePeriod",
    "fetch_champion",
]
