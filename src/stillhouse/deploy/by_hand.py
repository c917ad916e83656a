"""Deploying a registered version from a shell, under the lock that runs deploy under."""

from __future__ import annotations

import os
import socket
from typing import Any

from stillhouse.deploy.config import DeployConfig
from stillhouse.deploy.release import deploy_release
from stillhouse.deploy.shelf import kept_texts
from stillhouse.errors import InputError, Problem, RegistryError
from stillhouse.progress import Step
from stillhouse.registry import LockBusy, MlflowRegistry

__all__ = ["WAIT_SECONDS", "deploy_by_hand", "holder"]

WAIT_SECONDS = 60.0
"""How long a command waits for a run that is deploying the same model."""


def holder(command: str) -> str:
    """What a command of this process is called in the queue of those that deploy."""
    return f"{command} {os.getpid()} on {socket.gethostname()}"


def deploy_by_hand(config: DeployConfig, *, registry: MlflowRegistry, step: Step | None = None) -> dict[str, Any]:
    """Deploy a version that nobody compares with the champion, and tell it as `described` does.

    It is tested with the texts that the last deployment at the same place was tested with: a registry keeps no rows.

    Args:
        config: which version, and where.
        registry: where it is.
        step: told how far the work is.

    Raises:
        InputError: the version may not be served, or the deployment cannot be made; nothing was changed.
        CanaryWithdrawn, ServingError: as a `stillhouse.deploy.target.Target`.
        RegistryError: the registry refused, or a run is deploying this model.
    """
    step = step or Step("deploy")
    tags = registry.tags(config.model_name, config.version)
    if tags.get("deployable") == "false":
        reason = tags.get("undeployable_reason") or tags.get("reason") or "its evaluation says so"
        what = f"version {config.version} of {config.model_name} may not be served: {reason.rstrip('.')}."
        raise InputError(Problem("MODEL_URI", what, "Deploy another version; `stillhouse models` lists them."))
    rows = kept_texts(config.home, config.model_name) if config.deploy_target == "local" else []
    try:
        with registry.deploy_lock(config.model_name, holder=holder("deploy"), wait_s=WAIT_SECONDS, step=step) as lock:
            return deploy_release(config, registry=registry, smoke_rows=rows, step=step, allowed=lock.check)
    except LockBusy as busy:
        raise RegistryError(f"{busy.holder} is deploying {config.model_name}. Try again when it has ended.") from None
