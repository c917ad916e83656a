"""Watching a canary: both tracks' live metrics are asked of Prometheus again and again, until there is a verdict.

What is asked for are the samples themselves, as they were scraped. Counts are whole numbers then, and not extrapolated
as `increase()` does; and a counter that falls is seen as what it is: a server that began anew.

Triton counts every answer of the front model as a success, also one that says that something failed (seen with 2.51).
What became of a request is told by the front model's own counters, `stillhouse_requests_…`, which know probes from
traffic, too. Where Triton has none of them, failures are the encoder's, and what else failed is not known.

What does not reach a pod is not seen here: a gateway's own errors are in the gateway's metrics.
"""

from __future__ import annotations

import math
import re
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from stillhouse.deploy.canary.judgement import CanaryWatch, Track, Verdict, judge
from stillhouse.deploy.canary.prometheus import Prometheus, Series, quoted
from stillhouse.errors import InputError, ServerUnavailable
from stillhouse.progress import Step
from stillhouse.redaction import redacted
from stillhouse.serving.repository import encoder_name

__all__ = ["increase", "summarise", "watch_canary"]

_TRACKS = ("stable", "canary")
_BEFORE_S = 300.0
"""Seconds before the watch in which a counter's last value is looked for; Prometheus' own idea of what is stale."""
_WINDOW_S = 60.0
"""Seconds over which Triton's quantiles go: those of the first minute speak of what was before."""
_PATIENCE_S = 180.0
"""Seconds for which Prometheus may be unable to answer."""
_METRICS = (
    "nv_inference_request_success",
    "nv_inference_request_failure",
    "nv_inference_request_duration_us",
    "nv_inference_request_summary_us",
    "stillhouse_requests_total",
    "stillhouse_requests_failed_total",
    "stillhouse_requests_refused_total",
    "stillhouse_requests_invalid_total",
    "stillhouse_probes_total",
    "stillhouse_queue_seconds_total",
)
_QUANTILES = ("0.5", "0.99")
_RESTARTS = "kube_pod_container_status_restarts_total"
"""Of kube-state-metrics, which not every cluster has."""
_CONTAINER = "triton"


def watch_canary(watch: CanaryWatch, *, step: Step, allowed: Callable[[], None]) -> Verdict:
    """Look at the live metrics of both tracks until the time is over or a limit is broken beyond doubt.

    Args:
        watch: what to look at, how long, and the limits.
        step: told at each look what is seen.
        allowed: called before each look; raises where the deployment must not go on.

    Raises:
        InputError: the settings are at fault.
        ServerUnavailable: Prometheus did not answer, for three minutes where it did at first.
        ServingError: Prometheus refuses, or what answers is none.
    """
    if problems := watch.problems():
        raise InputError(problems)
    prometheus = Prometheus(watch.prometheus_url)
    began_there, began = prometheus.now(), time.monotonic()
    seconds, look, answered = 60 * watch.minutes, 0, began
    while True:
        look += 1
        time.sleep(max(0.0, began + min(look * watch.interval_s, max(seconds, look)) - time.monotonic()))
        allowed()
        over = time.monotonic() - began >= seconds
        try:
            stable, canary, now = _look(prometheus, watch, began_there)
        except ServerUnavailable:
            if time.monotonic() - answered > _PATIENCE_S:
                raise
            continue
        answered, elapsed = time.monotonic(), now - began_there
        verdict = judge(watch, stable, canary, elapsed_s=elapsed, over=over)
        step.progress(round(min(elapsed, seconds)), round(seconds), _told(watch, stable, canary))
        if verdict is not None:
            return replace(verdict, figures={**verdict.figures, "prometheus": redacted(watch.prometheus_url)})


def _told(watch: CanaryWatch, stable: Track, canary: Track) -> str:
    return "; ".join(
        f"version {version}: {track.requests} requests, {track.failed} failed"
        + ("" if track.p99_ms is None else f", p99 {track.p99_ms:.0f} ms")
        for version, track in ((watch.canary_version, canary), (watch.stable_version, stable))
    )


def _look(prometheus: Prometheus, watch: CanaryWatch, since: float) -> tuple[Track, Track, float]:
    """Figures of stable and canary from `since` until now, and that now, all by Prometheus' clock."""
    now = prometheus.now()
    window = f"[{math.ceil(now - since + _BEFORE_S)}s]"
    models = "|".join(re.escape(name) for name in (watch.model, encoder_name(watch.model)))
    matchers = {
        "__name__=~": "|".join(_METRICS),
        "namespace=": watch.namespace,
        "stillhouse_release=": watch.release,
        "stillhouse_track=~": "|".join(_TRACKS),
        "model=~": models,
        "version=~": "|".join(dict.fromkeys((watch.stable_version, watch.canary_version))),
        # Of the quantiles these; what is no quantile has no such label, which is as good as an empty one.
        "quantile=~": "|".join(("", *_QUANTILES)),
    }
    found = prometheus.query(_selector(matchers) + window, at=now)
    versions = {"stable": watch.stable_version, "canary": watch.canary_version}
    pods = {track: sorted({_pod(s) for s in found if s.labels.get("stillhouse_track") == track}) for track in _TRACKS}
    restarted: list[Series] = []
    if pods["canary"]:
        canaries = {"__name__=": _RESTARTS, "namespace=": watch.namespace, "container=": _CONTAINER}
        canaries["pod=~"] = "|".join(re.escape(pod) for pod in pods["canary"])
        restarted = prometheus.query(_selector(canaries) + window, at=now)
    stable, canary = (
        summarise(
            [s for s in found if s.labels.get("stillhouse_track") == t and s.labels.get("version") == versions[t]],
            model=watch.model,
            since=since,
            canary=t == "canary",
            restarted=restarted if t == "canary" else (),
        )
        for t in _TRACKS
    )
    return stable, canary, now


def _selector(matchers: Mapping[str, str]) -> str:
    return "{" + ",".join(label + quoted(value) for label, value in matchers.items()) + "}"


def _pod(series: Series) -> str:
    return series.labels.get("pod") or series.labels.get("instance", "")


def summarise(
    found: Iterable[Series], *, model: str, since: float, canary: bool, restarted: Iterable[Series] = ()
) -> Track:
    """What one track's samples say.

    Args:
        found: series of the track, of the public model and of its encoder, some minutes before `since` included.
        model: the public model.
        since: what was before does not count, seconds since the epoch.
        canary: whether it is the canary's: the quantiles are those of its worst pod then, instead of the typical one,
            and what its pods did before they were first scraped counts. Stable's may have served for weeks by then.
        restarted: of kube-state-metrics, how often the containers of these pods were started again.
    """
    seen = _Seen(found, since, newborn=canary)
    at_work = seen.total("stillhouse_requests_total", model)
    answered = seen.total("nv_inference_request_success", model) or 0.0
    # What Triton itself counts as failed never reached the front model: its process was dead, or nobody waited for it.
    lost = seen.total("nv_inference_request_failure", model) or 0.0
    broken = seen.total("stillhouse_requests_failed_total", model)
    if broken is None:
        broken = seen.total("nv_inference_request_failure", encoder_name(model)) or 0.0
    refused = round(seen.total("stillhouse_requests_refused_total", model) or 0.0)
    invalid = round(seen.total("stillhouse_requests_invalid_total", model) or 0.0)
    probes = seen.total("stillhouse_probes_total", model) or 0.0
    duration = seen.total("nv_inference_request_duration_us", model)
    waited = seen.total("stillhouse_queue_seconds_total", model)
    taken = answered + lost - refused if at_work is None else at_work - probes + lost + invalid
    taken = max(0, round(taken))
    restarts = dict(seen.restarts)
    for series in restarted:
        pod = _pod(series)
        restarts[pod] = max(restarts.get(pod, 0), round(increase(series.samples, since, newborn=canary)[0]))
    choose = max if canary else statistics.median
    p50, p99 = (seen.quantiles(model, quantile) for quantile in _QUANTILES)
    return Track(
        pods=len(seen.pods),
        requests=taken + refused,
        # The counters of one scrape are read one after the other, while requests come and go.
        failed=min(round(broken + lost), taken),
        refused=refused,
        invalid=min(invalid, taken),
        mean_ms=None if duration is None or not answered else duration / answered / 1000,
        queue_ms=None if waited is None or not at_work else 1000 * waited / at_work,
        p50_ms=choose(p50) / 1000 if p50 else None,
        p99_ms=choose(p99) / 1000 if p99 else None,
        restarts=sum(restarts.values()),
    )


def increase(samples: Sequence[tuple[float, float]], since: float, *, newborn: bool) -> tuple[float, int]:
    """How far a counter rose, and how often it began anew.

    Args:
        samples: (time, value), the oldest first.
        since: what was before does not count, seconds since the epoch.
        newborn: a counter that has no sample until then began at zero; otherwise, at its first sample.
    """
    last: float | None = 0.0 if newborn else None
    risen, resets = 0.0, 0
    for at, value in samples:
        if at <= since or last is None:
            last = value
            continue
        if value < last:
            resets += 1
            last = 0.0
        risen += value - last
        last = value
    return risen, resets


@dataclass(frozen=True)
class _One:
    """A series, told apart by what Triton says of it."""

    metric: str
    model: str
    pod: str
    quantile: str
    samples: Sequence[tuple[float, float]]


class _Seen:
    """A track's series, each once: two jobs that scrape the same pod, or two Prometheus, would count it twice."""

    def __init__(self, found: Iterable[Series], since: float, *, newborn: bool) -> None:
        unique: dict[tuple[str, ...], _One] = {}
        for series in found:
            labels = series.labels
            one = _One(
                labels.get("__name__", ""), labels.get("model", ""), _pod(series), labels.get("quantile", ""),
                series.samples,
            )  # fmt: skip
            key = (one.metric, one.model, one.pod, one.quantile, labels.get("reason", ""))
            if key not in unique or len(series.samples) > len(unique[key].samples):
                unique[key] = one
        self._series = list(unique.values())
        self._since, self._newborn = since, newborn
        # One that is gone since before the watch is none of this track's any more.
        self.pods = {one.pod for one in self._series if one.samples and one.samples[-1][0] > since}
        self.restarts: dict[str, int] = {}
        for one in self._series:
            if not one.quantile:
                resets = self._increase(one)[1]
                self.restarts[one.pod] = max(self.restarts.get(one.pod, 0), resets)

    def total(self, metric: str, model: str) -> float | None:
        """How far a counter rose, over all pods; None where there is no such metric."""
        rises = [self._increase(one)[0] for one in self._series if (one.metric, one.model) == (metric, model)]
        return sum(rises) if rises else None

    def quantiles(self, model: str, quantile: str) -> list[float]:
        """Of each pod the mean over time of Triton's quantile, in microseconds; pods without requests are left out."""
        means = []
        for one in self._series:
            if (one.metric, one.model, one.quantile) == ("nv_inference_request_summary_us", model, quantile):
                values = [(at, value) for at, value in one.samples if at > self._since and not math.isnan(value)]
                later = [value for at, value in values if at > self._since + _WINDOW_S]
                if values:
                    means.append(statistics.fmean(later or [value for _, value in values]))
        return means

    def _increase(self, one: _One) -> tuple[float, int]:
        return increase(one.samples, self._since, newborn=self._newborn)
