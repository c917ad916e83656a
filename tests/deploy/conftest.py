"""A cluster, a registry with three versions, and everything that a deployment to Kubernetes needs."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster_stand_in import Cluster, running_cluster

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "serving"))  # for tiny_package
from deployed_world import World, write_kubeconfig
from tiny_package import build_package

from stillhouse.artifacts import PackageManifest, sha256_file
from stillhouse.registry import MlflowRegistry


@pytest.fixture(scope="session")
def registered(new_mlflow: Callable[[Path], str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry on SQLite with three versions of the model `reviews`, whose packages lie beside it."""
    folder = tmp_path_factory.mktemp("registered")
    client = MlflowRegistry(new_mlflow(folder)).client()
    client.create_registered_model("reviews")
    for version in ("1", "2", "3"):
        package = build_package(folder / version / "artifacts" / "package", seed=int(version))
        tags = {"stillhouse.manifest_digest": sha256_file(package / PackageManifest.filename())}
        client.create_model_version("reviews", str(folder / version), tags=tags)
    return folder


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
