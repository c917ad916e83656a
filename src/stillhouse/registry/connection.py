"""MLflow one level down: a client, its database, and how things are listed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from stillhouse.errors import InputError, RegistryError
from stillhouse.registry.tracking import (
    absolute_uri,
    load_mlflow,
    redact,
    registry_errors,
    resolve_uri,
    sqlite_path,
    uri_problems,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["Connection"]


class Connection:
    """A way to one MLflow.

    Args:
        tracking_uri: `sqlite:///PATH/mlflow.db`, or the address of an MLflow server; empty takes what
            `MLFLOW_TRACKING_URI` says. On SQLite, artifacts are kept in
            `mlartifacts/` beside the database.

    Raises:
        InputError: the URI is of no kind that is understood.
    """

    def __init__(self, tracking_uri: str) -> None:
        uri = resolve_uri(tracking_uri)
        if problems := uri_problems(uri, shown=False):
            raise InputError(problems)
        self.uri = absolute_uri(uri)
        self._database = sqlite_path(self.uri)
        self._initialised = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({redact(self.uri, self.uri)!r})"

    def initialise(self) -> None:
        """Create the database if it is not there. Any number of processes may call this at once.

        Left to itself, MLflow creates the tables when first used, and fails when several processes do that together.

        Raises:
            RegistryError: the folder is not writable, or the server does not answer.
        """
        with registry_errors(self.uri, "open the database"), self._lock("init"):
            self.client().search_experiments(max_results=1)
            self.client().search_registered_models(max_results=1)
        self._initialised = True

    def reach(self) -> None:
        """Ask for next to nothing, to know that an answer comes. A database that is not there yet is not made.

        Raises:
            RegistryError: none comes.
        """
        if not self._absent():
            with registry_errors(self.uri, "read anything"):
                self.client().search_experiments(max_results=1)

    def client(self) -> MlflowClient:
        """A client of MLflow's own."""
        client: MlflowClient = load_mlflow().MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        return client

    def _absent(self) -> bool:
        """Whether this is a database file that is not there: reading must not create one."""
        return self._database is not None and not self._database.exists()

    @contextmanager
    def _lock(self, what: str) -> Iterator[None]:
        """One process at a time, on a database file; a server locks for itself."""
        if self._database is None:
            yield
            return
        from filelock import FileLock

        self._database.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self._database}.{what}.lock"):
            yield

    def _experiment(self, name: str) -> str:
        client = self.client()
        found = client.get_experiment_by_name(name)
        if found is None:
            # Without it, MLflow writes artifacts of a SQLite store to the working directory.
            place = (self._database.parent / "mlartifacts").as_uri() if self._database is not None else None
            from mlflow.exceptions import MlflowException

            try:
                return str(client.create_experiment(name, artifact_location=place))
            except MlflowException:
                found = client.get_experiment_by_name(name)  # another process was first
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise RegistryError(
                f"The experiment {name!r} was deleted. Restore it with `mlflow experiments restore -x "
                f"{found.experiment_id}`, or give another `experiment`."
            )
        return str(found.experiment_id)

    @staticmethod
    def _pages(search: Any, *arguments: Any) -> Iterator[Any]:
        token = None
        while True:
            page = search(*arguments, max_results=200, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _versions(self, name: str) -> list[Any]:
        """All versions of a model, the newest first."""
        quoted = name.replace("'", "''")
        found = self._pages(self.client().search_model_versions, f"name='{quoted}'")
        return sorted(found, key=lambda entry: -int(entry.version))

    def _model(self, name: str) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            return self.client().get_registered_model(name)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
