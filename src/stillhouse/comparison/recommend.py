"""Which model to take for what.

    real-time            the lowest p95 latency of one sentence; unmeasured, the least arithmetic
    memory-constrained   the least memory that the model adds to its process; unmeasured, the fewest bytes of weights
    fast-deployment      the shortest training step, since fine-tuning is most of the way from data to an endpoint;
                         unmeasured, the least arithmetic; among equals the fewest bytes to ship

Where the quality of models is known, only those are looked at that keep a given share of the best one's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stillhouse.evaluation.table import format_bytes, metric_title

__all__ = ["USES", "recommend"]

USES = ("real-time", "memory-constrained", "fast-deployment")
Entry = Mapping[str, Any]


def recommend(entries: Sequence[Entry], *, metric: str, min_retention: float) -> dict[str, dict[str, str]]:
    """The model for each of `USES`, and the reason.

    Args:
        entries: one for each model, as `compare` makes them; the first is what ratios are against.
        metric: the quality metric, higher is better.
        min_retention: least share of the best known quality.
    """
    judged = [entry for entry in entries if entry.get("quality")]
    fit, gate = list(entries), ""
    if judged:
        best = max(entry["quality"][metric] for entry in judged)
        fit = [entry for entry in judged if entry["quality"][metric] >= min_retention * best]
        left_out = len(entries) - len(fit)
        gate = (
            f" Looked at: the {len(fit)} of {len(entries)} that keep at least {100 * min_retention:g}% of the best "
            f"{metric_title(metric)}, {best:.4f}."
            if left_out
            else f" All keep at least {100 * min_retention:g}% of the best {metric_title(metric)}, {best:.4f}."
        )
    first = entries[0]
    measured = entries[0].get("latency_ms") is not None
    return {
        use: {"model": winner["name"], "reason": reason + gate}
        for use, (winner, reason) in {
            "real-time": _real_time(fit, first, measured),
            "memory-constrained": _memory(fit, first, measured),
            "fast-deployment": _deployment(fit, first, measured),
        }.items()
    }


def _least(entries: Sequence[Entry], *keys: Callable[[Entry], float]) -> Entry:
    """The first of those with the least; what cannot be told comes last."""
    return min(entries, key=lambda entry: tuple(key(entry) for key in keys))


def _flops(entry: Entry) -> float:
    return float("inf") if entry["flops"] is None else float(entry["flops"])


def _bytes(entry: Entry) -> float:
    return float(entry["bytes"])


def _against(value: float, first: Entry, winner: Entry, unit: str) -> str:
    """How a figure of the winner stands to the first model's."""
    return "" if winner is first else f", {value:.2f} times {first['name']}'s {unit}"


def _arithmetic(winner: Entry, first: Entry) -> str:
    if winner["flops"] is None:
        return "The first named: no model's arithmetic could be counted."
    part = _against(_flops(winner) / _flops(first), first, winner, "count") if first["flops"] else ""
    return f"Least arithmetic: {winner['flops'] / 1e9:.3g} GFLOPs for one sentence{part}."


def _real_time(fit: Sequence[Entry], first: Entry, measured: bool) -> tuple[Entry, str]:
    if not measured:
        winner = _least(fit, _flops, _bytes)
        return winner, f"{_arithmetic(winner, first)} Not measured."
    winner = _least(fit, lambda entry: float(entry["latency_ms"]["p95"]))
    part = _against(winner["latency_ratio"], first, winner, "median")
    return winner, (
        f"Lowest p95 latency of one sentence, {winner['latency_ms']['p95']:.3g} ms; its median is "
        f"{winner['latency_ms']['p50']:.3g} ms{part}."
    )


def _memory(fit: Sequence[Entry], first: Entry, measured: bool) -> tuple[Entry, str]:
    if not measured:
        winner = _least(fit, _bytes, _flops)
        part = _against(_bytes(winner) / _bytes(first), first, winner, "bytes")
        return winner, f"Fewest bytes of weights, {format_bytes(winner['bytes'])}{part}. Not measured."
    winner = _least(fit, lambda entry: float(entry["model_memory_mb"]))
    part = _against(winner["model_memory_mb"] / first["model_memory_mb"], first, winner, "memory")
    return winner, (
        f"Adds the least memory to its process, {winner['model_memory_mb']:,.0f} MB{part}; its weights are "
        f"{format_bytes(winner['bytes'])}."
    )


def _deployment(fit: Sequence[Entry], first: Entry, measured: bool) -> tuple[Entry, str]:
    if not measured:
        winner = _least(fit, _flops, _bytes)
        return winner, (
            f"{_arithmetic(winner, first)} A training step takes about three times that, and fine-tuning is most of "
            f"the way to an endpoint; {format_bytes(winner['bytes'])} to ship. Not measured."
        )
    winner = _least(fit, lambda entry: float(entry["training_step_ms"]), _bytes)
    part = _against(winner["training_step_ratio"], first, winner, "step")
    return winner, (
        f"Shortest training step, {winner['training_step_ms']:,.0f} ms{part}: fine-tuning is most of the way to an "
        f"endpoint. {format_bytes(winner['bytes'])} to ship."
    )
