"""Load that grows step by step, on one server or on two in turn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stillhouse.errors import InputError, Problem
from stillhouse.loadtest.result import KNEE_SHARE, LoadResult, find_knee

__all__ = ["Step", "bench_document", "ramp"]


@dataclass(frozen=True)
class Step:
    """What was measured at one concurrency."""

    concurrency: int
    result: LoadResult
    against: LoadResult | None = None
    """The other server under the same load."""

    @property
    def throughput_ratio(self) -> float:
        """Texts a second here by those of the other server; above 1 is better. NaN without one."""
        return _ratio(self.result.texts_per_second, self.against.texts_per_second if self.against else 0.0)

    @property
    def p99_ratio(self) -> float:
        """p99 here by that of the other server; below 1 is better. NaN without one."""
        return _ratio(self.result.p99, self.against.p99 if self.against else 0.0)


def ramp(
    measure: Callable[[str, int], LoadResult], levels: Sequence[int], url: str, against: str | None = None
) -> Iterator[Step]:
    """Measure at each level of concurrency, and yield each step when it is done.

    With two servers they take turns at every level, and who goes first changes from one level to the next: a machine
    that warms up or slows down on the way does so for both.

    Args:
        measure: `measure(url, concurrency)`, for example `run_load` with everything else filled in.
        levels: concurrencies, in the order to measure them in.
        url: the server to measure.
        against: another one to compare it with.

    Raises:
        InputError: there is no level, or one below 1.
    """
    if not levels or min(levels) < 1:
        raise InputError(Problem("concurrency", f"{list(levels)} names no concurrencies of 1 and more."))
    for number, concurrency in enumerate(levels):
        if against is None:
            yield Step(concurrency, measure(url, concurrency))
            continue
        order = (url, against) if number % 2 == 0 else (against, url)
        first, second = (measure(one, concurrency) for one in order)
        yield Step(concurrency, *((first, second) if number % 2 == 0 else (second, first)))


def bench_document(steps: Sequence[Step], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that a ramp found, for bench.json; `knee` is None where nothing was answered.

    Args:
        steps: as `ramp` yielded them.
        settings: what the figures depend on, stored beside them.
    """
    document: dict[str, Any] = {"settings": dict(settings), "knee_share": KNEE_SHARE, "knee": _knee(steps, "result")}
    rows: list[dict[str, Any]] = [{"concurrency": step.concurrency, **step.result.to_dict()} for step in steps]
    if any(step.against for step in steps):
        document["knee_against"] = _knee(steps, "against")
        for row, step in zip(rows, steps, strict=True):
            row["against"] = step.against.to_dict() if step.against else None
            ratios = {"throughput_ratio": step.throughput_ratio, "p99_ratio": step.p99_ratio}
            row.update({name: None if math.isnan(value) else round(value, 4) for name, value in ratios.items()})
    return {**document, "steps": rows}


def _knee(steps: Sequence[Step], which: str) -> int | None:
    found = [(step.concurrency, result) for step in steps if (result := getattr(step, which)) is not None]
    return find_knee(found) if any(result.texts_per_second > 0 for _, result in found) else None


def _ratio(value: float, other: float) -> float:
    return value / other if other else math.nan
