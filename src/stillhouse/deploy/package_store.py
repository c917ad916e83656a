"""Where a package may lie: in MLflow, in an object store, on a volume. Files are listed and copied, one by one.

models:/NAME/VERSION       a registered version; MLflow's address is in MLFLOW_TRACKING_URI
s3://bucket/folder         with s3fs; AWS_… variables, or the identity of the machine or pod
gs://bucket/folder         with gcsfs; GOOGLE_APPLICATION_CREDENTIALS, or an identity
az://container/folder      with adlfs (also abfs://, abfss://); AZURE_STORAGE_… variables, or an identity
/folder                    a path, such as a mounted volume
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar

from stillhouse.data.location import describe, scheme_of
from stillhouse.errors import InputError, Problem, RegistryError
from stillhouse.redaction import holds_credentials, redacted, without_secrets

__all__ = ["PackageStore", "open_store", "source_problems"]

T = TypeVar("T")

_REGISTERED = re.compile(r"models:/(?P<name>[^/@]+)/(?P<version>[0-9]+)")
_CLIENTS = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs"}
_BLOCK = 8 << 20  # bytes of one request, and about what is held in memory


class PackageStore(Protocol):
    """The files of one package."""

    def sizes(self) -> dict[str, int]:
        """Bytes of each file by its path inside the package; empty where there is none."""

    def download(self, name: str, target: Path) -> None:
        """Write one file to `target`."""


def source_problems(source: str, name: str, version: str) -> list[Problem]:
    """What is wrong with the form of a source; nothing is opened.

    Args:
        source: as above.
        name: of the model that is wanted.
        version: of it.
    """
    where, scheme = "SOURCE", scheme_of(source)
    if source.startswith("models:"):
        match = _REGISTERED.fullmatch(source)
        if match is None:
            what = f"{redacted(source)!r} is not one registered version."
            return [Problem(where, what, "Write models:/NAME/VERSION, as an alias may move.")]
        if (match["name"], match["version"]) != (name, version):
            return [Problem(where, f"is {source}, and version {version} of {name!r} is asked for.", "Make them agree.")]
        return []
    if holds_credentials(source):
        remedy = "Give them in the environment, from a secret: the command line is shown to everyone."
        return [Problem(where, f"{redacted(source)!r} holds credentials.", remedy)]
    if source.startswith("/") or (scheme in _CLIENTS and PurePosixPath(source.partition("://")[2]).parts):
        return []
    remedy = "Give models:/NAME/VERSION, s3://…, gs://…, az://…, or an absolute path."
    return [Problem(where, f"{redacted(source)!r} is no place that packages are fetched from.", remedy)]


@contextmanager
def open_store(source: str, tracking_uri: str) -> Iterator[PackageStore]:
    """The package at a source whose form is right.

    Raises:
        InputError: a client library or MLflow's address is absent.
        RegistryError: it could not be reached.
    """
    if match := _REGISTERED.fullmatch(source):
        from stillhouse.registry import MlflowRegistry
        from stillhouse.registry.stored_package import stored_package

        with stored_package(MlflowRegistry(tracking_uri), match["name"], match["version"]) as store:
            yield store
    else:
        yield FolderStore(source)


class FolderStore:
    """A package's folder on a file system that fsspec knows.

    Raises:
        InputError: the store's client library is absent.
        RegistryError: the store could not be reached. Also from the methods.
    """

    def __init__(self, location: str) -> None:
        self._location = location.rstrip("/")
        self._filesystem, self._root = self._try(self._open)

    def sizes(self) -> dict[str, int]:
        """Bytes of each file by its path inside the package; empty where there is none."""

        def find() -> dict[str, Any]:
            self._filesystem.invalidate_cache()
            try:
                return dict(self._filesystem.find(self._root, detail=True))
            except FileNotFoundError:
                return {}

        entries = self._try(find)
        # Some tools leave an empty object in the place of a folder.
        return {
            PurePosixPath(path).relative_to(self._root).as_posix(): int(entry.get("size") or 0)
            for path, entry in entries.items()
            if entry["type"] == "file" and not path.endswith("/") and path != self._root
        }

    def download(self, name: str, target: Path) -> None:
        """Write one file to `target`, a block at a time: some clients' own downloads hold ten large ones in memory."""

        def copy() -> None:
            with (
                self._filesystem.open(f"{self._root}/{name}", "rb", block_size=_BLOCK) as source,
                target.open("wb") as file,
            ):
                shutil.copyfileobj(source, file, 1 << 20)

        self._try(copy, f" ({name})")

    def _open(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs

        filesystem, root = url_to_fs(self._location or "/")
        return filesystem, root.rstrip("/")

    def _try(self, action: Callable[[], T], what: str = "") -> T:
        try:
            return action()
        except ImportError:
            client = _CLIENTS.get(scheme_of(self._location), "fsspec")
            what = f"{scheme_of(self._location) or 'a path'} needs {client!r}, which is absent."
            raise InputError(Problem("installation", what, "pip install 'stillhouse[ops]'")) from None
        except Exception as error:  # each store's client has an exception tree of its own
            # Without the cause, whose text and traceback may hold a key.
            raise RegistryError(
                f"Could not fetch the package{what} from {redacted(self._location)}: "
                f"{without_secrets(redacted(describe(error)))}. Check the address, the credentials, and the disk."
            ) from None
