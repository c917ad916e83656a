"""What every place to deploy to has in common: what it asks of the registry, what it returns, how `champion` moves."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from stillhouse.deploy.config import DeployConfig
from stillhouse.deploy.shelf import PackageSource
from stillhouse.deploy.smoke import KnownAnswer
from stillhouse.errors import RegistryError, ServingError, StillhouseError
from stillhouse.evaluation.table import CHAMPION
from stillhouse.progress import Step

__all__ = ["Allowed", "CanaryWithdrawn", "Endpoint", "Registry", "Target", "move_champion", "record_service"]

_log = logging.getLogger(__name__)
Allowed = Callable[[], None]
"""Raises where the deployment must not go on, since its lock was lost."""


class Registry(PackageSource, Protocol):
    """What deploying needs of the model registry."""

    def get_alias(self, name: str, alias: str) -> str | None:
        """The version that an alias points to; None where there is no such alias."""

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Point an alias to a version."""

    def delete_alias(self, name: str, alias: str) -> None:
        """Remove an alias."""

    def begin_service(self, name: str, version: str, *, where: str) -> None:
        """Record that a version is in production at a place, instead of the one that was."""

    def end_service(self, name: str, *, where: str) -> None:
        """Record that no version of a model is in production at a place any more."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where a deployed model answers."""

    model: str
    version: str
    grpc_url: str
    """`host:port`."""
    http_url: str = ""
    """Empty where HTTP is off."""
    metrics_url: str = ""
    """Empty where the metrics are off."""
    kept: bool = False
    """The version was being served there already, and was left running."""
    answers: tuple[KnownAnswer, ...] = ()
    """What it answered in the smoke test."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """JSON values that only one kind of place has, such as `namespace`, `release` and `revision`."""


class CanaryWithdrawn(ServingError):
    """The new version was tried on a part of the requests, and taken back. `figures` holds what was seen of it."""

    def __init__(self, reason: str, figures: Mapping[str, Any] | None = None) -> None:
        self.reason, self.figures = reason, dict(figures or {})
        super().__init__(reason)


class Target(Protocol):
    """A place to deploy to."""

    def __call__(
        self,
        config: DeployConfig,
        *,
        registry: Any,
        smoke_rows: Sequence[str | Mapping[str, Any]],
        step: Step | None = None,
        allowed: Allowed | None = None,
    ) -> Endpoint:
        """Serve a registered version there, and call it `champion`.

        Args:
            config: which version, and where.
            registry: where the version is.
            smoke_rows: texts of the test split that the endpoint must answer just as the package does; or mappings with
                `text` and the `label` that the package gave when it was evaluated.
            step: told how far the work is.
            allowed: called right before what callers see changes, and again before the alias is moved.

        Raises:
            InputError: the deployment cannot be made; nothing was changed.
            CanaryWithdrawn: what served before serves; the new version was tried on a part of the requests.
            ServingError: the release did not start or answered wrongly. What served before serves, and the alias is
                where it was.
        """


def move_champion(registry: Registry, name: str, version: str) -> None:
    """Point `champion` to a version; where that fails half-way, back to where it was."""
    before = registry.get_alias(name, CHAMPION)
    if before == version:
        return
    try:
        registry.set_alias(name, CHAMPION, version)
    except BaseException:
        with suppress(StillhouseError):  # what went wrong first is what is told
            if registry.get_alias(name, CHAMPION) != before:
                if before is None:
                    registry.delete_alias(name, CHAMPION)
                else:
                    registry.set_alias(name, CHAMPION, before)
        raise


def record_service(registry: Registry, name: str, version: str, *, where: str, gone: Iterable[str] = ()) -> None:
    """Have the registry's record say what is in production at a place. It serves already: a fault is logged, no more.

    Args:
        registry: that keeps the record.
        name: of the model.
        version: of the model.
        where: a short public name of the place.
        gone: other models that gave way to it.
    """
    try:
        for other in gone:
            registry.end_service(other, where=where)
        registry.begin_service(name, version, where=where)
    except RegistryError as error:
        _log.warning("the record of what was in production lacks this release: %s", error)
