"""The counters of a served model's queue and of what became of its requests, among Triton's metrics.

This file is copied as it stands into every package, beside `model.py`, and runs inside Triton: standard library only.

Triton's own `nv_inference_queue_duration_us` knows nothing of a queue inside the model, and it counts every answer of
such a model as a success, errors too (seen with 2.51: `nv_inference_request_failure` stays 0). Autoscaling goes by the
rates of the first two of these, canaries and alerts by the others; all bear the labels `model` and `version`:

    stillhouse_queue_seconds_total      counter   seconds that requests waited, all together
    stillhouse_compute_seconds_total    counter   seconds that requests were at work, all together
    stillhouse_requests_total           counter   requests that were at work
    stillhouse_requests_refused_total   counter   requests that were refused since the model was overloaded
    stillhouse_requests_failed_total    counter   requests at work that got no answer: the encoder failed
    stillhouse_requests_invalid_total   counter   requests that were refused since their input is at fault
    stillhouse_probes_total             counter   requests at work that were probes, and nobody's traffic
    stillhouse_queue_length             gauge     requests that wait
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

__all__ = ["Outcomes", "QueueMetrics"]

_COUNTERS = {
    "stillhouse_queue_seconds_total": "Seconds that requests waited for their turn",
    "stillhouse_compute_seconds_total": "Seconds that requests were at work",
    "stillhouse_requests_total": "Requests that were at work",
    "stillhouse_requests_refused_total": "Requests refused because the model was overloaded",
    "stillhouse_requests_failed_total": "Requests at work that got no answer",
    "stillhouse_requests_invalid_total": "Requests refused because their input is at fault",
    "stillhouse_probes_total": "Requests at work that were probes",
}
_GAUGE = ("stillhouse_queue_length", "Requests that wait for their turn")
_SECONDS = 1.0
"""Between two reports: each tells the server over shared memory, which would delay a request."""


class Outcomes:
    """Counts what became of requests; any number of threads may add."""

    def __init__(self) -> None:
        self._counts = (0, 0, 0)
        self._lock = threading.Lock()

    def add(self, *, failed: int = 0, invalid: int = 0, probes: int = 0) -> None:
        """Count some more."""
        with self._lock:
            before = self._counts
            self._counts = (before[0] + failed, before[1] + invalid, before[2] + probes)

    def totals(self) -> tuple[int, int, int]:
        """Failed, invalid, and probes, until now."""
        return self._counts


class QueueMetrics:
    """Reports what went through a queue to Triton, from a thread of its own.

    Args:
        totals: tells the queue's totals, in the order of `batch_queue.Totals`.
        outcomes: what became of the requests.
        model: name of the public model.
        version: its version.
    """

    def __init__(self, totals: Callable[[], Any], outcomes: Outcomes, *, model: str, version: str) -> None:
        import triton_python_backend_utils as pb_utils

        self._totals, self._outcomes = totals, outcomes
        self._reported = dict.fromkeys(_COUNTERS, 0.0)
        self._over = threading.Event()
        labels = {"model": model, "version": version}
        # Kept beside its metrics: Triton drops a family when the object is gone.
        self._families = [
            pb_utils.MetricFamily(name=name, description=description, kind=kind)
            for name, description, kind in (
                *((name, description, pb_utils.MetricFamily.COUNTER) for name, description in _COUNTERS.items()),
                (*_GAUGE, pb_utils.MetricFamily.GAUGE),
            )
        ]
        self._metrics = [family.Metric(labels=labels) for family in self._families]
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Report no more. The metrics end with the model."""
        self._over.set()
        self._thread.join()

    def _work(self) -> None:
        import triton_python_backend_utils as pb_utils

        while not self._over.wait(_SECONDS):
            try:
                self._report()
            except Exception as error:  # serving goes on without metrics
                pb_utils.Logger.log_warn(f"the queue's metrics are not reported any more: {error}")
                return

    def _report(self) -> None:
        items, refused, queue_seconds, compute_seconds, waiting = self._totals()
        totals = (queue_seconds, compute_seconds, items, refused, *self._outcomes.totals())
        for (name, before), metric, now in zip(list(self._reported.items()), self._metrics, totals, strict=False):
            if now > before:
                metric.increment(now - before)
                self._reported[name] = now
        self._metrics[-1].set(waiting)
