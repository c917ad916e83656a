"""What a load test found, and the knee of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["KNEE_SHARE", "LoadResult", "find_knee"]

KNEE_SHARE = 0.95
"""Share of the best throughput that is enough at the knee."""


@dataclass(frozen=True, eq=False)
class LoadResult:
    """One load test. Every latency is in milliseconds; a figure over nothing is NaN.

    Requests count by when they began: all that were begun in the measured time, and none from the warm-up. Those that
    were under way when the time was up have been waited for, so that the slowest are not left out.
    """

    seconds: float
    """Measured time, without the warm-up."""
    requests: int
    """Requests begun in that time; `len(latencies)` of them were answered, the others are in `errors`."""
    texts_per_second: float
    """Texts whose answers came in within the measured time, by its seconds."""
    latencies: npt.NDArray[np.float64]
    """[answered] in the order of the answers."""
    errors: dict[str, int]
    """Requests that failed, by the name of their gRPC status, for example `UNAVAILABLE`."""
    error_latencies: npt.NDArray[np.float64]
    """[failed] how long it took to be refused."""
    releases: dict[str, int]
    """Answers by the model version that gave them."""
    lag_p99: float
    """How late the generator sent, 99th percentile. Zero in a closed loop, which has no schedule to be late for."""
    cpu_cores: float
    """Cores that this process kept busy. Near 1 means that the generator, not the server, sets the pace."""

    @property
    def p50(self) -> float:
        return _percentile(self.latencies, 50)

    @property
    def p95(self) -> float:
        return _percentile(self.latencies, 95)

    @property
    def p99(self) -> float:
        return _percentile(self.latencies, 99)

    @property
    def mean(self) -> float:
        return float(self.latencies.mean()) if self.latencies.size else float("nan")

    @property
    def error_p50(self) -> float:
        return _percentile(self.error_latencies, 50)

    def to_dict(self) -> dict[str, Any]:
        """Every figure, without the single latencies, as JSON can hold it: NaN is None."""
        figures = ("seconds", "requests", "texts_per_second", "p50", "p95", "p99", "mean", "error_p50")
        row = {name: getattr(self, name) for name in (*figures, "lag_p99", "cpu_cores")}
        rounded = {name: (None if np.isnan(value) else round(value, 4)) for name, value in row.items()}
        return {**rounded, "errors": dict(self.errors), "releases": dict(self.releases)}


def find_knee(steps: Sequence[tuple[int, LoadResult]]) -> int:
    """The smallest concurrency that reaches 95% of the best throughput.

    Beyond it more callers hardly get more done, and only wait longer. Where some steps went without a failed request,
    only these count, for the best throughput as well.

    Args:
        steps: concurrency and what was measured at it, in any order.

    Raises:
        ValueError: no step answered anything.
    """
    answered = [(concurrency, result) for concurrency, result in steps if result.texts_per_second > 0]
    if not answered:
        raise ValueError("no step answered a request")
    usable = [(concurrency, result) for concurrency, result in answered if not result.errors] or answered
    best = max(result.texts_per_second for _, result in usable)
    return min(concurrency for concurrency, result in usable if result.texts_per_second >= KNEE_SHARE * best)


def _percentile(values: npt.NDArray[np.float64], percent: float) -> float:
    """Linear between the two nearest ranks, as numpy's default."""
    return float(np.percentile(values, percent)) if values.size else float("nan")
