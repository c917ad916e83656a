"""Going back to a release that was served before, and taking `champion` along."""

from __future__ import annotations

import os
import socket
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from stillhouse.deploy.config import DeployConfig
from stillhouse.deploy.local import deploy_local
from stillhouse.deploy.shelf import kept_texts
from stillhouse.deploy.target import Endpoint, Registry
from stillhouse.errors import InputError, Problem, RegistryError
from stillhouse.evaluation.table import CHAMPION
from stillhouse.progress import Step
from stillhouse.registry import LockBusy
from stillhouse.registry.lock import DeployLock
from stillhouse.serving.journal import Release, read_releases, standing
from stillhouse.serving.server import ServerStatus, server_status, serving_folder
from stillhouse.serving.triton import Ports

__all__ = ["LockingRegistry", "release_before", "roll_back"]

_WAIT_SECONDS = 60.0


class LockingRegistry(Registry, Protocol):
    """What rolling back needs of the model registry."""

    def resolve(self, uri: str) -> tuple[str, str]:
        """Name and version of `models:/NAME/VERSION`; raises where there is none."""

    def deploy_lock(self, name: str, *, holder: str, wait_s: float, step: Step) -> AbstractContextManager[DeployLock]:
        """Be the only one that deploys a model."""


def roll_back(
    home: Path, *, registry: LockingRegistry, tracking_uri: str, model: str = "", to: str = "", step: Step | None = None
) -> tuple[str, Endpoint]:
    """Serve an earlier release in place of the present one, with no request lost, and call it `champion`.

    It is tested like any other: on spare ports first, with the texts that the last deployment was tested with.

    Args:
        home: the state folder.
        registry: where the versions are. Releases that are still on this machine are not fetched again.
        tracking_uri: of that registry.
        model: registered name; empty for the one that is served, or was last.
        to: version to go back to; empty for the one that was served before.
        step: told how far the work is.

    Returns:
        The version that was served or was champion before, and where the earlier one answers now.

    Raises:
        InputError: there is nothing to go back to, or this cannot be done here; nothing was changed.
        ServingError: the release did not come up or answered wrongly. What was served still is.
        RegistryError: the registry refused, or a run is deploying this model.
    """
    step = step or Step("rollback")
    folder, status = serving_folder(home), server_status(home)
    live = status if status and status.status not in ("failed", "dead") else None
    releases = read_releases(folder)
    model = model or (live.model if live else releases[-1].model if releases else "")
    if not model:
        raise InputError(Problem("MODEL", "nothing was deployed here yet.", "Run the pipeline first: stillhouse run."))
    releases = [entry for entry in releases if entry.model == model]
    before = _present(model, live, releases, registry)
    version = to or release_before(releases, model, before)
    _, version = registry.resolve(f"models:/{model}/{version}")
    if version == before == registry.get_alias(model, CHAMPION):
        remedy = "`stillhouse releases` lists those that were served before."
        raise InputError(Problem("--to", f"version {version} of {model} is served now, and is the champion.", remedy))
    ports = live.ports if live else Ports()
    config = DeployConfig(
        model_name=model,
        version=version,
        tracking_uri=tracking_uri,
        grpc_port=ports.grpc,
        http_port=ports.http,
        metrics_port=ports.metrics,
        home=home,
    )
    try:
        holder = f"rollback {os.getpid()} on {socket.gethostname()}"
        with registry.deploy_lock(model, holder=holder, wait_s=_WAIT_SECONDS, step=step) as lock:
            endpoint = deploy_local(
                config,
                registry=registry,
                smoke_rows=kept_texts(home, model),
                step=step,
                allowed=lock.check,
                how="rollback",
            )
    except LockBusy as busy:
        raise RegistryError(f"{busy.holder} is deploying {model}. Roll back when it has ended.") from None
    return before, endpoint


def release_before(releases: list[Release], model: str, present: str) -> str:
    """The version that a rollback goes to.

    Args:
        releases: what was served of the model, the oldest first.
        model: its name, for the error.
        present: the version that is served; empty if none of the registered ones is.

    Raises:
        InputError: there is none.
    """
    stack = [entry.version for entry in standing(releases)]
    if present in stack:
        # With what came after it: that was tried by hand, and is not served any more.
        stack = stack[: stack.index(present)]
    if not stack:
        only = f"only version {present} of {model} was deployed here" if releases else f"{model} was never served here"
        remedy = "Name a version with --to; `stillhouse models` lists them."
        raise InputError(Problem("MODEL", f"{only}, so there is no release to go back to.", remedy))
    return stack[-1]


def _present(model: str, live: ServerStatus | None, releases: list[Release], registry: Registry) -> str:
    """The registered version that is served; the champion where the server runs another model, or none.

    Empty where it runs a package that is none of the registered versions, whatever number that has.
    """
    if live is None or live.model != model:
        return registry.get_alias(model, CHAMPION) or ""
    served = [entry for entry in releases if entry.package == live.package]
    return "" if served and not served[-1].registered else live.version
