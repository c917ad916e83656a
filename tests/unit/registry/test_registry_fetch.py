"""A pinned package from MLflow to the folder that Triton serves."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillhouse.artifacts import PackageManifest, sha256_file
from stillhouse.deploy.fetch import FetchConfig, fetch_pinned
from stillhouse.errors import InputError, RegistryError, StillhouseError
from stillhouse.serving.verify import verify_release

MODEL = "triton/tiny-reviews-encoder/1/model.onnx"


@pytest.fixture
def wanted(store: Any, tmp_path: Path) -> FetchConfig:
    """The first version of a registry of its own, which the test may spoil."""
    version = store.register().version
    digest = store.registry.tags(store.name, version)["manifest_digest"]
    return FetchConfig(
        source=f"models:/{store.name}/{version}", folder=tmp_path / "models", model=store.name, version=version,
        manifest_sha256=digest, tracking_uri=store.uri,
    )  # fmt: skip


def kept(store: Any) -> Path:
    """The package's folder in the artifact store."""
    (path,) = (store.root / "state/mlartifacts").rglob("artifacts/package/package.json")
    return Path(path.parent)


def refused(wanted: FetchConfig, error: type[StillhouseError] = InputError) -> str:
    with pytest.raises(error) as caught:
        fetch_pinned(wanted)
    assert not list(wanted.folder.glob("*"))
    return str(caught.value)


def test_fetched_as_its_version(wanted: FetchConfig, store: Any):
    lines: list[str] = []
    fetch_pinned(wanted, lines.append)
    manifest = PackageManifest.load(kept(store))
    verify_release(wanted.folder, manifest, wanted.version)
    assert sha256_file(wanted.folder / "package.json") == wanted.manifest_sha256
    # Nothing but the package: a version also holds code and lineage for mlflow.pyfunc.
    assert sorted(path.name for path in wanted.folder.iterdir()) == ["package.json", "triton"]
    assert sum(line.startswith("  triton/") for line in lines) == len(manifest.files)


def spoil_file(package: Path) -> str:
    (package / MODEL).write_bytes(b"another model")
    (package / "triton/tiny-reviews/config.pbtxt").unlink()
    (package / "triton/tiny-reviews/1/more.py").touch()
    return f"{MODEL}: was altered"


def spoil_manifest(package: Path) -> str:
    (package / MODEL).write_bytes(b"another model")
    PackageManifest.load(package).save(package)
    return "package.json: has sha256"


def remove(package: Path) -> str:
    shutil.rmtree(package)
    return "package.json: is missing"


@pytest.mark.parametrize("spoil", [spoil_file, spoil_manifest, remove])
def test_what_was_altered_in_the_artifact_store(wanted: FetchConfig, store: Any, spoil: Callable[[Path], str]):
    says = spoil(kept(store))
    said = refused(wanted)
    assert f"{wanted.source}/{says}" in said
    if spoil is spoil_file:
        assert "tiny-reviews/config.pbtxt: is missing" in said
        assert "tiny-reviews/1/more.py: is not in the manifest" in said


def test_versions_and_registries_that_are_not_there(wanted: FetchConfig, store: Any, monkeypatch: pytest.MonkeyPatch):
    other = dataclasses.replace(wanted, source=f"models:/{store.name}/9", version="9")
    assert "has no version 9. It has: 1." in refused(other, RegistryError)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = dataclasses.replace(wanted, tracking_uri="http://user:hunter2@127.0.0.1:1")
    said = refused(away, RegistryError)
    assert "127.0.0.1:1" in said
    assert "hunter2" not in said
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert "MLFLOW_TRACKING_URI" in refused(dataclasses.replace(wanted, tracking_uri=""))


@pytest.mark.slow
def test_from_a_server(wanted: FetchConfig, store: Any, server: str, monkeypatch: pytest.MonkeyPatch):
    store.uri = server
    store.registry = type(store.registry)(server)
    version = store.register().version
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    from_server = dataclasses.replace(
        wanted, version=version, source=f"models:/{store.name}/{version}", tracking_uri=""
    )
    fetch_pinned(from_server)
    verify_release(wanted.folder, PackageManifest.load(kept(store)), version)
