"""Judging a canary: what both tracks' live metrics say of the new version beside the stable one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stillhouse.errors import Problem
from stillhouse.progress import Step

__all__ = ["CanaryWatch", "Verdict", "watch_canary"]


@dataclass(frozen=True, kw_only=True)
class CanaryWatch:
    """What to look at, how long, and within which limits a canary is promoted."""

    prometheus_url: str
    """Address of Prometheus, or of anything with its HTTP API (Thanos, Mimir), with a path prefix where it has one."""
    namespace: str
    """Namespace of the release."""
    release: str
    """Helm release of charts/triton."""
    model: str
    """The served name."""
    stable_version: str
    """Version on the stable track."""
    canary_version: str
    """Version on the canary track."""
    minutes: float
    """How long to look at it."""
    interval_s: float = 15.0
    """Seconds from one look to the next."""
    min_requests: int = 100
    """Requests that each track must have got: with fewer, the canary is not promoted."""
    significance: float = 0.05
    """Chance that one kind of failure makes a canary fail that is as good as stable, over all looks together."""
    max_error_increase: float = 0.001
    """Share of failed requests that the canary may have beyond stable's, however sure the difference is."""
    max_error_rate: float = 0.1
    """Share of failed requests beyond which no canary is promoted, whatever stable's is."""
    max_latency_ratio: float = 1.3
    """How many times stable's latency the canary's may be: the mean, p99 and the wait in the queue."""
    latency_slack_ms: float = 5.0
    """Milliseconds that the canary's latency may be beyond that: where both are small, a ratio says little."""
    max_p99_ms: float = 0.0
    """Milliseconds that the canary's p99 may be, whatever stable's is; 0 is no limit."""
    max_restarts: int = 0
    """Restarts of the canary's pods that are put up with."""

    def problems(self) -> list[Problem]:
        """Everything that is wrong with these settings."""
        return []


@dataclass(frozen=True)
class Verdict:
    """What became of a canary."""

    promote: bool
    """Whether it may take over."""
    reason: str
    """Why, in a sentence or two."""
    figures: Mapping[str, Any]
    """JSON values: what was seen of both tracks."""


def watch_canary(watch: CanaryWatch, *, step: Step, allowed: Callable[[], None]) -> Verdict:
    """Look at the live metrics of both tracks until the time is over or a limit is broken beyond doubt.

    Args:
        watch: what to look at, how long, and the limits.
        step: told at each look what is seen.
        allowed: called before each look; raises where the deployment must not go on.

    Raises:
        InputError: the settings are at fault.
        ServingError: Prometheus cannot be asked.
    """
    raise NotImplementedError
