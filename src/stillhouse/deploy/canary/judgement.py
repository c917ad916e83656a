"""The decision on a canary, apart from asking: two tracks' figures in, a verdict out.

Failures are counts, judged by Fisher's exact test, one-sided: how likely would the canary have failed so often, were it
as good as stable? It holds for little traffic as for much. Since it is asked at every look, the level is divided: one
half for the end, the other over the looks before it (Bonferroni), so that a canary that is as good as stable is
withdrawn with at most that chance in all.

Latencies are judged by a ratio with a tolerance. What Triton exports are quantiles of each pod over the last minute,
which cannot be added up: the canary's worst pod is compared with stable's typical one, the median of its pods, each
pod's p99 averaged over the time looked at. Beside it stands the mean latency of each track, exact since from counters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from stillhouse.deploy.canary.exact_tests import binomial_tail, fisher
from stillhouse.deploy.canary.prometheus import prometheus_problems
from stillhouse.deploy.config import version_problems
from stillhouse.errors import Problem
from stillhouse.serving.repository import name_problems

__all__ = ["CanaryWatch", "Track", "Verdict", "judge"]

_NO_METRICS_S = 300.0
"""Seconds after which a canary without metrics is given up; to be found and scraped takes one or two minutes."""
_GROSS = 2.0
"""How many times beyond its limit the median latency is that ends a watch before its time."""


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
    """Requests that each track must have taken: with fewer, the canary is not promoted."""
    significance: float = 0.05
    """Chance that one kind of failure makes a canary fail that is as good as stable, over all looks together."""
    max_error_increase: float = 0.001
    """Share of failed requests that the canary may have beyond stable's, however sure the difference is."""
    max_error_rate: float = 0.1
    """Share of failed requests beyond which no canary is promoted, whatever stable's is."""
    max_latency_ratio: float = 1.3
    """How many times stable's latency the canary's may be: the mean, p99, and the wait in the queue."""
    latency_slack_ms: float = 5.0
    """Milliseconds that the canary's latency may be beyond that: where both are small, a ratio says little."""
    max_p99_ms: float = 0.0
    """Milliseconds that the canary's p99 may be, whatever stable's is; 0 is no limit."""
    max_restarts: int = 0
    """Restarts of the canary's pods that are put up with."""

    def problems(self) -> list[Problem]:
        """Everything that is wrong with these settings."""
        found = prometheus_problems(self.prometheus_url) + name_problems(self.model)
        for where in ("namespace", "release"):
            if not getattr(self, where):
                found.append(Problem(where, "is empty.", "Name the one that the canary was deployed in."))
        for where in ("stable_version", "canary_version"):
            found += version_problems(where, getattr(self, where)) or (
                [] if getattr(self, where) else [Problem(where, "is empty.", "Name the version that is served.")]
            )
        for where, least, most, unit in _RANGES:
            value = getattr(self, where)
            if not least <= value <= most:  # NaN fails too
                found.append(Problem(where, f"{value:g} is out of range.", f"Give {least:g} to {most:g} {unit}."))
        return found

    @property
    def looks(self) -> int:
        """How often the metrics are looked at before the end."""
        return max(1, math.ceil(60 * self.minutes / self.interval_s))


_RANGES = (
    ("minutes", 0.01, 7 * 24 * 60, "minutes"),
    ("interval_s", 0.1, 3600, "seconds"),
    ("min_requests", 1, 10**9, "requests"),
    ("significance", 1e-9, 0.5, "as a chance"),
    ("max_error_increase", 0, 1, "as a share of the requests"),
    ("max_error_rate", 0, 1, "as a share of the requests"),
    ("max_latency_ratio", 1, 1000, "times"),
    ("latency_slack_ms", 0, 1e6, "milliseconds"),
    ("max_p99_ms", 0, 1e6, "milliseconds"),
    ("max_restarts", 0, 10**6, "restarts"),
)


@dataclass(frozen=True, kw_only=True)
class Track:
    """What was seen of one track since the watch began."""

    pods: int = 0
    """Pods that metrics came from."""
    requests: int = 0
    """All that came in, whatever became of them."""
    failed: int = 0
    """Of these, those that the server owes an answer."""
    refused: int = 0
    """Of these, those that were turned away under load."""
    invalid: int = 0
    """Of these, those that were told that their input is at fault."""
    mean_ms: float | None = None
    """Mean latency in the server, in milliseconds; None where it is not known."""
    queue_ms: float | None = None
    """Mean wait in the queue."""
    p50_ms: float | None = None
    """Median latency: of the canary's worst pod, of stable's typical one."""
    p99_ms: float | None = None
    """The same of the 99th percentile."""
    restarts: int = 0
    """How often its servers began anew."""

    @property
    def taken(self) -> int:
        """Requests that were not turned away."""
        return self.requests - self.refused


@dataclass(frozen=True)
class Verdict:
    """What became of a canary."""

    promote: bool
    """Whether it may take over."""
    reason: str
    """Why, in a sentence or two."""
    figures: Mapping[str, Any]
    """JSON values: what was seen of both tracks."""


def judge(watch: CanaryWatch, stable: Track, canary: Track, *, elapsed_s: float, over: bool) -> Verdict | None:
    """The verdict on what was seen so far.

    Args:
        watch: the limits.
        stable: figures of the stable track since the watch began.
        canary: figures of the canary track over the same time.
        elapsed_s: seconds since then.
        over: whether the time is over. Before, only what is beyond doubt counts.

    Returns:
        None where it is not over and nothing is beyond doubt.
    """
    chances = {
        kind.name: fisher(kind.count(canary), kind.of(canary), kind.count(stable), kind.of(stable)) for kind in _KINDS
    }
    faults = _restart_faults(watch, canary)
    faults += _count_faults(watch, stable, canary, chances, over)
    faults += _final_latency_faults(watch, stable, canary) if over else _gross_latency_faults(watch, stable, canary)
    promote = False
    if faults:
        reason = f"Version {watch.canary_version} is not promoted: {'; '.join(faults)}."
    elif not canary.pods and (over or elapsed_s >= _NO_METRICS_S):
        reason = _no_metrics(watch, "canary", elapsed_s)
    elif over and not stable.pods:
        reason = _no_metrics(watch, "stable", elapsed_s)
    elif not over:
        return None
    elif lacking := [name for name, track in (("canary", canary), ("stable", stable)) if _little(watch, track)]:
        reason = (
            f"Too little traffic on {' and '.join(lacking)} to judge version {watch.canary_version}, so it is not "
            f"promoted: {canary.taken} requests to canary and {stable.taken} to stable in {_minutes(elapsed_s)}, and "
            f"min_requests is {watch.min_requests}."
        )
    else:
        promote = True
        reason = (
            f"Version {watch.canary_version} holds up beside {watch.stable_version} over {_minutes(elapsed_s)}: "
            f"{_told(canary)}; {watch.stable_version}: {_told(stable)}."
        )
    figures = {
        "seconds": round(elapsed_s, 1),
        "early": not over,
        "canary": {"version": watch.canary_version, **asdict(canary)},
        "stable": {"version": watch.stable_version, **asdict(stable)},
        "chances": chances,
    }
    return Verdict(promote, reason, figures)


@dataclass(frozen=True)
class _Kind:
    """A kind of failure."""

    name: str
    words: str
    count: Callable[[Track], int]
    of: Callable[[Track], int]


_KINDS = (
    _Kind("failed", "failed", lambda track: track.failed, lambda track: track.taken),
    _Kind("refused", "were turned away under load", lambda track: track.refused, lambda track: track.requests),
    _Kind("invalid", "were refused as invalid", lambda track: track.invalid, lambda track: track.taken),
)


def _restart_faults(watch: CanaryWatch, canary: Track) -> list[str]:
    if canary.restarts <= watch.max_restarts:
        return []
    times = "once" if canary.restarts == 1 else f"{canary.restarts} times"
    return [f"its pods restarted {times}"]


def _count_faults(
    watch: CanaryWatch, stable: Track, canary: Track, chances: Mapping[str, float], over: bool
) -> list[str]:
    level = watch.significance / 2 / (1 if over else watch.looks)
    faults = []
    for kind in _KINDS:
        ours, of, theirs, among = kind.count(canary), kind.of(canary), kind.count(stable), kind.of(stable)
        chance = chances[kind.name]
        if of and among and chance <= level and ours / of - theirs / among > watch.max_error_increase:
            faults.append(
                f"{_share(ours, of)} of its requests {kind.words}, and {_share(theirs, among)} of version "
                f"{watch.stable_version}'s, which is chance once in {_once(chance)}"
            )
    failed, taken = canary.failed, canary.taken
    beyond = taken and failed / taken > watch.max_error_rate
    if beyond and (over or binomial_tail(failed, taken, watch.max_error_rate) <= level):
        faults.append(
            f"{_share(failed, taken)} of its requests failed, more than max_error_rate ({watch.max_error_rate:.1%})"
        )
    return faults


def _final_latency_faults(watch: CanaryWatch, stable: Track, canary: Track) -> list[str]:
    if _little(watch, stable) or _little(watch, canary):
        return []
    pairs = (
        ("mean latency", canary.mean_ms, stable.mean_ms),
        ("p99 latency", canary.p99_ms, stable.p99_ms),
        ("wait in the queue", canary.queue_ms, stable.queue_ms),
    )
    faults = [_slower(watch, what, ours, theirs) for what, ours, theirs in pairs]
    if watch.max_p99_ms and canary.p99_ms is not None and canary.p99_ms > watch.max_p99_ms:
        faults.append(f"its p99 latency is {canary.p99_ms:.1f} ms, more than max_p99_ms ({watch.max_p99_ms:g})")
    return [fault for fault in faults if fault]


def _gross_latency_faults(watch: CanaryWatch, stable: Track, canary: Track) -> list[str]:
    """Goes by the median, which a few slow requests do not move."""
    if _little(watch, stable) or _little(watch, canary):
        return []
    fault = _slower(watch, "median latency", canary.p50_ms, stable.p50_ms, beyond=_GROSS)
    return [fault] if fault else []


def _slower(watch: CanaryWatch, what: str, ours: float | None, theirs: float | None, beyond: float = 1.0) -> str:
    if ours is None or theirs is None:
        return ""
    limit = beyond * (watch.max_latency_ratio * theirs + watch.latency_slack_ms)
    if ours <= limit:
        return ""
    return f"its {what} is {ours:.1f} ms, and version {watch.stable_version}'s {theirs:.1f} ms (at most {limit:.1f})"


def _little(watch: CanaryWatch, track: Track) -> bool:
    return track.taken < watch.min_requests


def _no_metrics(watch: CanaryWatch, track: str, elapsed_s: float) -> str:
    version = watch.canary_version if track == "canary" else watch.stable_version
    return (
        f"Prometheus has had no metrics of {track} for {_minutes(elapsed_s)}, so version {watch.canary_version} is not "
        f"promoted. It was asked for namespace={watch.namespace}, stillhouse_release={watch.release}, "
        f"stillhouse_track={track}, model={watch.model}, version={version}: is monitoring.serviceMonitor of "
        "charts/triton enabled, and does this Prometheus select it?"
    )


def _told(track: Track) -> str:
    parts = [f"{track.requests:,} requests"]
    parts += [
        f"{_share(k.count(track), k.of(track))} {k.words}" for k in _KINDS if k.name == "failed" or k.count(track)
    ]
    for what, value in (("mean", track.mean_ms), ("p99", track.p99_ms)):
        parts.append(f"{what} unknown" if value is None else f"{what} {value:.1f} ms")
    return ", ".join(parts)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} s"


def _share(count: int, of: int) -> str:
    return f"{count / of:.2%}" if of else "none"


def _once(chance: float) -> str:
    return f"{1 / chance:,.0f}" if chance > 1e-6 else "a million and more"
