"""A cluster, a registry with three versions, and everything that a deployment to Kubernetes needs."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from cluster_stand_in import Cluster, running_cluster

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "serving"))  # for tiny_package
from tiny_package import TEXTS, build_package

from stillhouse.artifacts import PackageManifest, sha256_file
from stillhouse.deploy import DeployConfig, Endpoint
from stillhouse.deploy.kubernetes.deploy import deploy_kubernetes
from stillhouse.deploy.kubernetes.rollback import roll_back_kubernetes
from stillhouse.registry import MlflowRegistry

TRACKING_URI = "http://mlflow.mlops.svc:5000"
"""Where pods would find the registry."""


@pytest.fixture(scope="session")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry on SQLite with three versions of the model `reviews`, whose packages lie beside it."""
    folder = tmp_path_factory.mktemp("registered")
    registry = MlflowRegistry(f"sqlite:///{folder}/mlflow.db")
    registry.initialise()
    client = registry.client()
    client.create_registered_model("reviews")
    for version in ("1", "2", "3"):
        package = build_package(folder / version / "artifacts" / "package", seed=int(version))
        tags = {"stillhouse.manifest_digest": sha256_file(package / PackageManifest.filename())}
        client.create_model_version("reviews", str(folder / version), tags=tags)
    return folder


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
        return {**os.environ, "MLFLOW_TRACKING_URI": self.registry.uri, "STILLHOUSE_HOME": str(self.folder / "home")}


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


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
def world(cluster: Cluster, helm: Path, registered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A user's shell before an empty namespace."""
    monkeypatch.setenv("STILLHOUSE_HELM", str(helm))
    monkeypatch.setenv("KUBECONFIG", str(write_kubeconfig(tmp_path / "kubeconfig", cluster.url)))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(registered / "mlflow.db", tmp_path / "mlflow.db")
    return World(cluster, MlflowRegistry(f"sqlite:///{tmp_path}/mlflow.db"), tmp_path)
