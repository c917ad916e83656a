"""The record of what was in production: of each version where, since when and until when, as a tag of its own."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ServicePeriod"]


@dataclass(frozen=True, kw_only=True)
class ServicePeriod:
    """A time in which a version was in production."""

    version: str
    """Registered version."""
    where: str
    """A short public name of the place: `local HOST`, `kubernetes NAMESPACE/RELEASE`."""
    since: str
    """ISO 8601, UTC."""
    until: str | None = None
    """ISO 8601, UTC; None: now."""
