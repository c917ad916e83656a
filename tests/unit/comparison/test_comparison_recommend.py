"""Recommendations, from entries written by hand."""

from __future__ import annotations

from typing import Any

from stillhouse.comparison.recommend import USES, recommend


def entry(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "flops": 20e9, "bytes": 400e6, "latency_ms": None, "quality": None, **fields}


def measured(name: str, p95: float, memory: float, step: float, **fields: Any) -> dict[str, Any]:
    return entry(
        name,
        latency_ms={"p50": p95 / 2, "p95": p95},
        latency_ratio=p95 / 100,
        model_memory_mb=memory,
        training_step_ms=step,
        training_step_ratio=step / 1000,
        **fields,
    )


def chosen(entries: list[dict[str, Any]], min_retention: float = 0.97) -> dict[str, str]:
    found = recommend(entries, metric="accuracy", min_retention=min_retention)
    assert tuple(found) == USES
    return {use: found[use]["model"] for use in found}


def test_unmeasured_goes_by_arithmetic_and_bytes() -> None:
    entries = [entry("bert"), entry("distilbert", flops=10e9, bytes=260e6), entry("albert", bytes=40e6)]
    assert chosen(entries) == {
        "real-time": "distilbert",
        "memory-constrained": "albert",
        "fast-deployment": "distilbert",
    }
    reasons = recommend(entries, metric="accuracy", min_retention=0.97)
    assert "10 GFLOPs for one sentence, 0.50 times bert's" in reasons["real-time"]["reason"]
    assert "40.0 MB, 0.10 times bert's bytes" in reasons["memory-constrained"]["reason"]
    assert all("Not measured." in value["reason"] for value in reasons.values())


def test_equal_arithmetic_is_decided_by_bytes() -> None:
    assert chosen([entry("bert"), entry("albert", bytes=40e6)])["fast-deployment"] == "albert"


def test_arithmetic_that_is_unknown_comes_last() -> None:
    assert chosen([entry("odd", flops=None), entry("bert")])["real-time"] == "bert"
    assert chosen([entry("odd", flops=None)])["real-time"] == "odd"


def test_measured_figures_decide_over_counted_ones() -> None:
    entries = [
        measured("bert", 100, 900, 1000),
        measured("albert", 120, 200, 700, flops=1e9, bytes=40e6),
        measured("distilbert", 50, 500, 800),
    ]
    assert chosen(entries) == {
        "real-time": "distilbert",
        "memory-constrained": "albert",
        "fast-deployment": "albert",
    }
    reasons = recommend(entries, metric="accuracy", min_retention=0.97)
    assert "50 ms; its median is 25 ms, 0.50 times bert's median" in reasons["real-time"]["reason"]
    assert "700 ms, 0.70 times bert's step" in reasons["fast-deployment"]["reason"]


def test_too_low_a_quality_is_not_recommended() -> None:
    entries = [
        measured("bert", 100, 900, 1000, quality={"accuracy": 0.90}),
        measured("distilbert", 50, 500, 500, quality={"accuracy": 0.88}),
        measured("tiny", 5, 50, 50, quality={"accuracy": 0.80}),
        measured("unknown", 1, 10, 10),
    ]
    assert set(chosen(entries).values()) == {"distilbert"}
    assert set(chosen(entries, min_retention=0.99).values()) == {"bert"}
    reason = recommend(entries, metric="accuracy", min_retention=0.97)["real-time"]["reason"]
    assert "the 2 of 4 that keep at least 97% of the best accuracy, 0.9000" in reason
