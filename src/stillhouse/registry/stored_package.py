"""The package of a registered version, file by file: what is pinned can be checked before anything else is read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stillhouse.registry.mlflow_registry import MlflowRegistry
from stillhouse.registry.register import PACKAGE_PATH
from stillhouse.registry.tracking import as_default, registry_errors

__all__ = ["StoredPackage", "stored_package"]


class StoredPackage:
    """Where MLflow keeps the package of one version; `stored_package` makes it."""

    def __init__(self, repository: Any, uri: str, doing: str) -> None:
        self._repository, self._uri, self._doing = repository, uri, doing

    def sizes(self) -> dict[str, int]:
        """Bytes of each file by its path inside the package; empty where there is none.

        Raises:
            RegistryError: MLflow or its artifact store could not be reached.
        """
        found: dict[str, int] = {}
        folders = [PACKAGE_PATH]
        with registry_errors(self._uri, self._doing):
            while folders:
                folder = folders.pop()
                for entry in self._repository.list_artifacts(folder):
                    if entry.is_dir:
                        folders.append(entry.path)
                    else:
                        found[entry.path.removeprefix(f"{PACKAGE_PATH}/")] = int(entry.file_size or 0)
        return found

    def download(self, name: str, target: Path) -> None:
        """Write one file of the package to `target`.

        Raises:
            RegistryError: it is not there any more, or the store could not be reached, or the disk is full.
        """
        work = target.with_name(f"{target.name}.part")
        with registry_errors(self._uri, f"{self._doing} ({name})"):
            work.mkdir()
            try:
                # MLflow makes the whole path anew below the folder that it is given.
                os.replace(self._repository.download_artifacts(f"{PACKAGE_PATH}/{name}", str(work)), target)
            finally:
                shutil.rmtree(work, ignore_errors=True)


@contextmanager
def stored_package(registry: MlflowRegistry, name: str, version: str) -> Iterator[StoredPackage]:
    """The package of a registered version.

    Raises:
        RegistryError: there is no such version, or MLflow could not be reached.
    """
    registry.tags(name, version)  # which says what there is, where there is no such version
    doing = f"fetch version {version} of {name}"
    with as_default(registry.uri):
        with registry_errors(registry.uri, doing):
            from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

            repository = get_artifact_repository(f"models:/{name}/{version}")
        yield StoredPackage(repository, registry.uri, doing)
