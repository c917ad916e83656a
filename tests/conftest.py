"""Fixtures for tests of several folders, and the order of all tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helm_binary import HelmMissing, find_helm


@pytest.fixture(scope="session")
def helm() -> Path:
    """The real helm binary."""
    try:
        return find_helm()
    except HelmMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session", autouse=True)
def sqlite_leaves_the_disk_alone() -> None:
    """Databases of this process need not outlast a power failure; waiting for the disk is most of what they take."""
    import sqlalchemy

    @sqlalchemy.event.listens_for(sqlalchemy.engine.Engine, "connect")
    def hurry(connection: Any, record: Any) -> None:
        if connection.__class__.__module__.startswith("sqlite3"):
            connection.execute("PRAGMA synchronous=OFF")


@pytest.fixture(scope="session")
def mlflow_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with nothing in it but tables, which take seconds to make; not to be changed."""
    from stillhouse.registry import MlflowRegistry

    database = tmp_path_factory.mktemp("tables") / "mlflow.db"
    MlflowRegistry(f"sqlite:///{database}").initialise()
    return database


@pytest.fixture(scope="session")
def new_mlflow(mlflow_tables: Path) -> Callable[[Path], str]:
    """Makes an empty MLflow store in a folder and returns its URI."""

    def make(folder: Path) -> str:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(mlflow_tables, folder / "mlflow.db")
        return f"sqlite:///{folder}/mlflow.db"

    return make


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The files that take minutes begin first, so that no worker is left alone with one at the end.
    items.sort(key=lambda item: "e2e" not in item.path.parts)
