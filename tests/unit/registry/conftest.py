from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from stillhouse.progress import Step
from stillhouse.registry import MlflowRegistry, RegisterConfig, RegisteredVersion

# The artifacts that the evaluation's tests make.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "evaluation"))

from tiny_artifacts import SERVED, evaluate_tiny, write_all, write_model


@dataclass
class Store:
    """A registry of its own, and all that is registered in it."""

    root: Path
    paths: dict[str, Path]
    models: list[Path]
    evaluation: Path
    name: str = SERVED
    uri: str = field(init=False)

    def __post_init__(self) -> None:
        self.uri = f"sqlite:///{self.root}/state/mlflow.db"
        self.registry = MlflowRegistry(self.uri)

    def register(self, **overrides: Any) -> RegisteredVersion:
        settings = {"model_name": self.name, "tracking_uri": self.uri, "parameters": {"data": "demo://reviews"}}
        arguments: dict[str, Any] = {
            "dataset_dir": self.paths["dataset"],
            "packages": [self.paths[name] for name in ("teacher", "student", "albert")],
            "models": self.models,
            "evaluation_dir": self.evaluation,
        }
        arguments |= {key: overrides.pop(key) for key in list(overrides) if key in arguments}
        config = RegisterConfig(**(settings | overrides))
        return self.registry.register(config, **arguments, step=Step("register"))


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], list[Path], Path]:
    """Packages, models and an evaluation; not to be changed."""
    root = tmp_path_factory.mktemp("artifacts")
    paths = write_all(root)
    models = [write_model(root / "models" / name, name, paths["dataset"]) for name in ("teacher", "student", "albert")]
    evaluate_tiny(root, paths, policy="memory")
    return paths, models, root / "evaluation"


@pytest.fixture
def new_store(
    new_mlflow: Callable[[Path], str],
    artifacts: tuple[dict[str, Path], list[Path], Path],
) -> Callable[[Path], Store]:
    """Makes an empty registry in a folder."""

    def make(root: Path) -> Store:
        new_mlflow(root / "state")
        return Store(root, *artifacts)

    return make


@pytest.fixture
def store(new_store: Callable[[Path], Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty registry, with the working directory elsewhere."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return new_store(tmp_path)


@pytest.fixture(scope="session")
def registered(
    new_mlflow: Callable[[Path], str],
    artifacts: tuple[dict[str, Path], list[Path], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Store, RegisteredVersion]:
    """A registry with one version in it; not to be changed."""
    root = tmp_path_factory.mktemp("registered")
    new_mlflow(root / "state")
    store = Store(root, *artifacts)
    return store, store.register(run_name="first run")


@pytest.fixture
def server(new_mlflow: Callable[[Path], str], tmp_path: Path) -> Iterator[str]:
    """A real MLflow server that also keeps the artifacts."""
    uri = new_mlflow(tmp_path / "server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        uri,
        "--artifacts-destination",
        str(tmp_path / "kept"),
    ]
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "server.log").read_text()
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)
