"""The record of what was in production: of each version where, since when and until when, as a tag of its own.

The tag `stillhouse.service` of a version holds its periods as JSON, the newest first. It goes with the version: who
deletes a version deletes its record too. Whoever writes it holds the model's lock for deployments, so that nobody else
does.

A period says which version was released at a place, not that its server was up: one that is stopped by hand, or scaled
to nothing, is still what was released there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from stillhouse.registry.register import TAG_PREFIX

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["ServicePeriod", "begin_period", "end_periods", "read_periods"]

_TAG = f"{TAG_PREFIX}service"
_LONGEST = 4900
"""Characters of a tag. Servers before MLflow 2.17 or so take 5,000, and it is some forty periods."""


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


def read_periods(entry: Any) -> list[ServicePeriod]:
    """The periods of one of MLflow's model versions, the newest first; those that cannot be read are left out."""
    try:
        rows = json.loads(entry.tags.get(_TAG, "[]"))
    except ValueError:
        return []
    found = []
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, dict) and isinstance(row.get("where"), str) and isinstance(row.get("since"), str):
            until = row.get("until")
            period = ServicePeriod(
                version=str(entry.version),
                where=row["where"],
                since=row["since"],
                until=until if isinstance(until, str) else None,
            )
            found.append(period)
    return found


def begin_period(client: MlflowClient, versions: Sequence[Any], version: str, where: str) -> None:
    """Begin the period of a version at a place, and end those of the other ones there.

    Args:
        client: of the registry.
        versions: all versions of the model, as MLflow tells them.
        version: the one that is in production there from now on.
        where: the place.
    """
    now = _now()
    for entry in versions:
        if str(entry.version) == version:
            periods = read_periods(entry)
            if not any(period.where == where and period.until is None for period in periods):
                _write(client, entry, [ServicePeriod(version=version, where=where, since=now), *periods])
    end_periods(client, [entry for entry in versions if str(entry.version) != version], where, now)


def end_periods(client: MlflowClient, versions: Sequence[Any], where: str, now: str = "") -> None:
    """End the periods of these versions that stand open at a place."""
    now = now or _now()
    for entry in versions:
        periods = read_periods(entry)
        # Times of one format: they compare as text. Another machine's clock may be ahead.
        ended = [
            replace(one, until=max(now, one.since)) if one.where == where and one.until is None else one
            for one in periods
        ]
        if ended != periods:
            _write(client, entry, ended)


def _write(client: MlflowClient, entry: Any, periods: Sequence[ServicePeriod]) -> None:
    rows = [{key: value for key, value in asdict(period).items() if key != "version"} for period in periods]
    while len(text := json.dumps(rows, ensure_ascii=False, separators=(",", ":"))) > _LONGEST and len(rows) > 1:
        # The oldest goes that is over; of those that stand open, the oldest.
        over = [index for index, row in enumerate(rows) if row["until"] is not None]
        del rows[over[-1] if over else -1]
    client.set_model_version_tag(entry.name, str(entry.version), _TAG, text)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
