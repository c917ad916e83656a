from __future__ import annotations

from typing import Any

import pytest

from stillhouse.errors import InputError
from stillhouse.evaluation.policy import choose, retention


def candidate(name: str, precision: str, accuracy: float, p95: float, size: int) -> dict[str, Any]:
    return {
        "name": name,
        "precision": precision,
        "metrics": {"accuracy": accuracy, "mcc": 2 * accuracy - 1},
        "latency_ms": {"p50": p95 / 2, "p95": p95, "p99": p95 * 2},
        "bytes": size,
    }


TEACHER = candidate("teacher", "fp32", 0.90, 10.0, 90_000_000)
CANDIDATES = [
    TEACHER,
    candidate("teacher", "int8", 0.905, 4.0, 23_000_000),
    candidate("student", "fp32", 0.89, 5.0, 70_000_000),
    candidate("student", "int8", 0.88, 2.0, 18_000_000),  # 97.8% of the teacher
    candidate("albert", "int8", 0.80, 1.0, 6_000_000),  # 88.9%: fastest, smallest and not good enough
]
BASELINES = [
    {"name": "majority", "metrics": {"accuracy": 0.5, "mcc": 0.0}},
    {"name": "tf-idf", "metrics": {"accuracy": 0.79, "mcc": 0.58}},
]


@pytest.mark.parametrize(
    ("policy", "min_retention", "expected"),
    [
        ("real-time", 0.97, ("student", "int8")),
        ("real-time", 0.98, ("teacher", "int8")),
        ("real-time", 0.88, ("albert", "int8")),
        ("memory", 0.97, ("student", "int8")),
        ("memory", 0.98, ("teacher", "int8")),
        ("memory", 0.5, ("albert", "int8")),
        ("quality", 0.97, ("teacher", "int8")),
    ],
)
def test_policies(policy: str, min_retention: float, expected: tuple[str, str]) -> None:
    choice = choose(CANDIDATES, BASELINES, policy, min_retention, "accuracy")
    assert (choice.name, choice.precision) == expected
    assert choice.deployable and choice.undeployable_reason == ""


def test_real_time_and_memory_differ_when_the_faster_is_the_larger() -> None:
    candidates = [TEACHER, candidate("student", "fp32", 0.9, 1.0, 70_000_000), candidate("albert", "int8", 0.9, 8.0, 5)]
    assert choose(candidates, [], "real-time", 0.97, "accuracy").name == "student"
    assert choose(candidates, [], "memory", 0.97, "accuracy").name == "albert"


def test_reason_names_what_was_weighed() -> None:
    reason = choose(CANDIDATES, BASELINES, "real-time", 0.97, "accuracy").reason
    assert "The INT8 student has the lowest p95 latency at batch 1 (2 ms) of the 4 of 5 candidates" in reason
    assert "97.0%" in reason and "0.8800" in reason and "97.8%" in reason and "The FP32 teacher is at 10 ms." in reason
    assert "fewest bytes (18.0 MB)" in choose(CANDIDATES, BASELINES, "memory", 0.97, "accuracy").reason


def test_exactly_the_least_retention_is_enough() -> None:
    candidates = [candidate("teacher", "fp32", 1.0, 10, 10), candidate("student", "int8", 0.97, 1, 1)]
    assert choose(candidates, [], "real-time", 0.97, "accuracy").name == "student"


def test_teacher_is_chosen_and_said_so_when_none_else_is_good_enough() -> None:
    choice = choose([TEACHER, CANDIDATES[4]], BASELINES, "real-time", 0.97, "accuracy")
    assert (choice.name, choice.precision) == ("teacher", "fp32")
    assert "No candidate but the teacher itself keeps at least 97.0%" in choice.reason
    assert "The INT8 albert comes closest with 88.9%" in choice.reason


@pytest.mark.parametrize("quality", [0.79, 0.6])
def test_winner_that_does_not_beat_a_baseline_is_not_deployable(quality: float) -> None:
    candidates = [candidate("teacher", "fp32", quality, 10, 10)]
    choice = choose(candidates, BASELINES, "real-time", 0.97, "accuracy")
    assert not choice.deployable
    assert "tf-idf" in choice.undeployable_reason and "0.7900" in choice.undeployable_reason


def test_retention_of_a_metric_that_can_be_negative() -> None:
    assert retention(0.45, 0.9) == 0.5
    assert retention(0.1, 0.0) == 1.0
    assert retention(-0.2, -0.1) == 0.0


def test_ties_go_to_the_better_then_the_smaller() -> None:
    same = [
        TEACHER,
        candidate("a", "int8", 0.9, 1, 5),
        candidate("b", "int8", 0.91, 1, 5),
        candidate("c", "int8", 0.91, 1, 4),
    ]
    assert choose(same, [], "real-time", 0.97, "accuracy").name == "c"
    assert choose(same, [], "quality", 0.97, "accuracy").name == "c"


def test_no_teacher_and_unknown_policy_are_refused() -> None:
    with pytest.raises(InputError, match="FP32 teacher"):
        choose(CANDIDATES[1:], BASELINES, "real-time", 0.97, "accuracy")
    with pytest.raises(InputError, match="real-time, memory, quality"):
        choose(CANDIDATES, BASELINES, "cheapest", 0.97, "accuracy")
