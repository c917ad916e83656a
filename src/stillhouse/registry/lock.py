"""One rollout at a time for each model name: a queue that lives in the registry, beside the alias that it protects.

A ticket is a version of the registered model `<name>.deploy-lock`. MLflow numbers versions in the order of their
creation, on a database as on a server, and never gives a number again; so the lowest ticket that is alive holds the
lock, whichever machines the runs are on. A ticket is given back by deleting it. Its holder renews it, which sets its
time of update; that of a process that died grows old, and whoever comes next deletes it. A holder whose ticket is gone
has lost the lock, and is told so when it renews: it does before it moves the alias.

Ages are differences of times that the registry itself sets, so the machines' clocks do not matter.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from stillhouse.errors import RegistryError
from stillhouse.progress import Step
from stillhouse.registry.connection import Connection
from stillhouse.registry.tracking import registry_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["LEASE_SECONDS", "LOCK_SUFFIX", "DeployLock", "LockBusy"]

LOCK_SUFFIX = ".deploy-lock"
"""Ending of the name that a queue is registered by; no model is named so."""
LEASE_SECONDS = 120.0
"""Age from which a ticket that nobody renewed is taken for a dead process's."""
_HOLDER = "stillhouse.holder"
_ABOUT = "Runs of Stillhouse that are deploying this model, in their order. Each version is a place in the queue."
_SOURCE = "stillhouse:/deploy-lock"
"""MLflow wants to be told where a version's files are. A server refuses addresses that it would have to connect to."""
_TRIES = 10


class LockBusy(Exception):
    """Another run holds the lock, and will not give it up in time."""

    def __init__(self, holder: str) -> None:
        self.holder = holder
        super().__init__(holder)


class DeployLock:
    """A place in the queue of a model.

    Args:
        connection: to the registry.
        name: of the registered model.
        holder: the run that wants to deploy. Another attempt of the same run takes its place over.
        lease_s: seconds after which a ticket that was not renewed counts no more.
    """

    def __init__(self, connection: Connection, name: str, holder: str, *, lease_s: float = LEASE_SECONDS) -> None:
        self._connection = connection
        self._client = connection.client()
        self._queue = f"{name}{LOCK_SUFFIX}"
        self._holder = holder
        self._lease_s = lease_s
        self._ticket: str | None = None
        self._renewed = 0.0

    @contextmanager
    def hold(self, *, wait_s: float, step: Step) -> Iterator[DeployLock]:
        """Wait for the lock, hold it, and give it back.

        Args:
            wait_s: seconds to wait at most; 0 does not wait.
            step: told whom is waited for.

        Raises:
            LockBusy: another run held it all that time.
            RegistryError: the registry refused, or could not be reached.
        """
        done = threading.Event()
        keeper = threading.Thread(target=self._keep, args=(done,), daemon=True)
        try:
            with registry_errors(self._connection.uri, f"take the lock {self._queue}"):
                self._take_ticket()
                self._wait(wait_s, step)
            keeper.start()
            yield self
        finally:
            done.set()
            if keeper.ident is not None:
                keeper.join()
            self._give_back()

    def check(self) -> None:
        """Make sure that the lock is still held, and will be for a while.

        Raises:
            RegistryError: it was lost: this process was held up for longer than a ticket lives.
        """
        # Not renewed in time, it may be counted out by another at this very moment.
        late = time.monotonic() - self._renewed > self._lease_s
        with registry_errors(self._connection.uri, f"renew the lock {self._queue}"):
            lost = late or self._renew(self._client) is None
        if lost:
            raise RegistryError(f"The lock {self._queue} was lost to another run, since it was not renewed in time.")

    def _take_ticket(self) -> None:
        from mlflow.exceptions import MlflowException

        with suppress(MlflowException):  # there already, or the next call says what is wrong
            self._client.create_registered_model(self._queue, description=_ABOUT)
        for attempt in range(_TRIES):
            try:
                made = self._client.create_model_version(self._queue, _SOURCE, tags={_HOLDER: self._holder})
                break
            except MlflowException as error:
                # Many at once: MLflow itself tries only three times for a free number.
                if attempt == _TRIES - 1 or error.error_code not in ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE"):
                    raise
                time.sleep(0.05 * (attempt + 1))
        self._ticket, self._renewed = str(made.version), time.monotonic()

    def _wait(self, wait_s: float, step: Step) -> None:
        begin = time.monotonic()
        while True:
            ahead = self._ahead()
            if ahead is None:
                return
            waited = time.monotonic() - begin
            if waited >= wait_s:
                raise LockBusy(ahead)
            step.progress(round(waited), round(wait_s), f"waiting for {ahead}, which is deploying")
            time.sleep(min(max(0.2, self._lease_s / 60), wait_s))

    def _ahead(self) -> str | None:
        """The run next before this one in the queue; None where this one holds the lock. Dead tickets are removed."""
        now = self._renew(self._client)
        if now is None:  # counted out while this process was held up: back to the end of the queue
            self._take_ticket()
            return self._ahead()
        assert self._ticket is not None
        ahead = None
        for ticket in sorted(self._tickets(), key=lambda entry: int(entry.version)):
            if int(ticket.version) >= int(self._ticket):
                break
            holder = ticket.tags.get(_HOLDER, "another run")
            if holder == self._holder or now - _touched(ticket) > self._lease_s * 1000:
                self._delete(str(ticket.version))
            else:
                ahead = holder
        return ahead

    def _tickets(self) -> list[Any]:
        found: list[Any] = []
        token = None
        quoted = self._queue.replace("'", "''")
        while True:
            page = self._client.search_model_versions(f"name='{quoted}'", max_results=200, page_token=token)
            found += page
            if not (token := page.token):
                return found

    def _renew(self, client: MlflowClient) -> int | None:
        """Set the ticket's time of update, and return it in the registry's milliseconds; None where it is gone."""
        from mlflow.exceptions import MlflowException

        assert self._ticket is not None
        at = time.monotonic()
        try:
            found = client.update_model_version(self._queue, self._ticket, f"deploying, for {self._holder}")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        self._renewed = at
        return _touched(found)

    def _keep(self, done: threading.Event) -> None:
        """Renew the ticket until `done`; a failure is for `check` to find."""
        client = self._connection.client()
        while not done.wait(self._lease_s / 6):
            with suppress(Exception):
                self._renew(client)

    def _give_back(self) -> None:
        if self._ticket is not None:
            with suppress(Exception):  # it grows old by itself; what was done under the lock stays done
                self._delete(self._ticket)

    def _delete(self, version: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.delete_model_version(self._queue, version)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # another one was first
                raise


def _touched(ticket: Any) -> int:
    return int(ticket.last_updated_timestamp or ticket.creation_timestamp)
