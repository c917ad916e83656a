"""What a test of deploying to Kubernetes acts on: a cluster, a registry, and a deployment's settings."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cluster_stand_in import Cluster
from tiny_package import TEXTS

from stillhouse.deploy import DeployConfig, Endpoint
from stillhouse.deploy.kubernetes.deploy import deploy_kubernetes
from stillhouse.deploy.kubernetes.rollback import roll_back_kubernetes
from stillhouse.registry import MlflowRegistry

__all__ = ["TRACKING_URI", "World", "write_kubeconfig"]

TRACKING_URI = "http://mlflow.mlops.svc:5000"
"""Where pods would find the registry."""


@dataclass
class World:
    """What a deployment acts on, and what it is told."""

    cluster: Cluster
    registry: MlflowRegistry
    folder: Path
    rows: list[Any] = field(default_factory=lambda: list(TEXTS))
    config: DeployConfig = field(init=False)

    def __post_init__(self) -> None:
        self.config = DeployConfig(
            model_name="reviews",
            version="",
            tracking_uri=self.registry.uri,
            deploy_target="kubernetes",
            serving_values={"mlflow": {"trackingUri": TRACKING_URI}},
            rollout_timeout_minutes=3 / 60,
            home=self.folder / "home",
        )

    def deploy(self, version: str, *, allowed: Callable[[], None] | None = None, **changes: Any) -> Endpoint:
        config = replace(self.config, version=version, **changes)
        return deploy_kubernetes(config, registry=self.registry, smoke_rows=self.rows, allowed=allowed)

    def roll_back(self, to: str = "") -> tuple[str, Endpoint]:
        return roll_back_kubernetes(self.config, registry=self.registry, to=to)

    @property
    def champion(self) -> str | None:
        return self.registry.get_alias("reviews", "champion")

    @property
    def state(self) -> tuple[dict[str, str], str | None]:
        """What pods serve, by track, and the champion."""
        return self.cluster.serving(), self.champion

    def served(self) -> list[tuple[str, bool]]:
        """Versions that were in production, the oldest first, and whether they still are."""
        return [(one.version, one.until is None) for one in reversed(self.registry.service_history("reviews"))]

    def revisions(self) -> list[str]:
        """Status of each revision that helm keeps."""
        found = [s["metadata"]["labels"] for s in self.cluster.of("secrets") if s["type"] == "helm.sh/release.v1"]
        return [one["status"] for one in sorted(found, key=lambda one: int(one["version"]))]

    def environment(self) -> dict[str, str]:
        """Variables for `stillhouse` as a process."""
        own = {"MLFLOW_TRACKING_URI": self.registry.uri, "STILLHOUSE_HOME": str(self.folder / "home")}
        # Wide enough for every table, whatever runs the tests.
        return {**os.environ, **own, "COLUMNS": "160"}


def write_kubeconfig(path: Path, url: str) -> Path:
    body = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "stand-in", "cluster": {"server": url}}],
        "users": [{"name": "me", "user": {}}],
        "contexts": [{"name": "here", "context": {"cluster": "stand-in", "user": "me", "namespace": "serving"}}],
        "current-context": "here",
    }
    path.write_text(json.dumps(body))
    path.chmod(0o600)
    return path
