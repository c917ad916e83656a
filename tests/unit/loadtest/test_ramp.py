from __future__ import annotations

import json

import pytest
from test_load_result import result

from stillhouse.errors import InputError
from stillhouse.loadtest import Step, bench_document, ramp

SPEEDS = {"a": 100.0, "b": 80.0}


def measurer(calls):
    def measure(url, concurrency):
        calls.append((url, concurrency))
        return result(SPEEDS[url] * concurrency, latencies=[SPEEDS[url]])

    return measure


def test_one_server_is_measured_level_by_level():
    calls = []
    steps = ramp(measurer(calls), [1, 2], "a")
    assert next(steps).concurrency == 1 and calls == [("a", 1)]  # each step is given out when it is done
    assert [step.concurrency for step in steps] == [2]


def test_two_servers_take_turns_and_change_who_is_first():
    calls = []
    steps = list(ramp(measurer(calls), [1, 2, 3], "a", "b"))
    assert calls == [("a", 1), ("b", 1), ("b", 2), ("a", 2), ("a", 3), ("b", 3)]
    for step in steps:
        assert step.result.texts_per_second == 100 * step.concurrency
        assert step.against.texts_per_second == 80 * step.concurrency
        assert step.throughput_ratio == 1.25
        assert step.p99_ratio == 1.25


@pytest.mark.parametrize("levels", [[], [0, 1]])
def test_levels_are_at_least_one(levels):
    with pytest.raises(InputError, match="concurrency"):
        list(ramp(measurer([]), levels, "a"))


def test_the_document_of_one_server():
    steps = [Step(1, result(100.0, [1.0])), Step(2, result(101.0, [2.0]))]
    document = json.loads(json.dumps(bench_document(steps, {"url": "a"}), allow_nan=False))
    assert document["settings"] == {"url": "a"} and document["knee"] == 1 and document["knee_share"] == 0.95
    assert [row["concurrency"] for row in document["steps"]] == [1, 2]
    assert document["steps"][1] == {"concurrency": 2, **steps[1].result.to_dict()}


def test_the_document_of_two_servers():
    steps = list(ramp(measurer([]), [1, 2], "a", "b"))
    document = json.loads(json.dumps(bench_document(steps, {}), allow_nan=False))
    assert document["knee"] == document["knee_against"] == 2
    assert document["steps"][0]["against"]["texts_per_second"] == 80
    assert [row["throughput_ratio"] for row in document["steps"]] == [1.25, 1.25]


def test_a_server_that_answered_nothing_leaves_blanks():
    steps = [Step(1, result(100.0, [1.0]), result(0.0))]
    document = json.loads(json.dumps(bench_document(steps, {}), allow_nan=False))
    assert document["knee"] == 1 and document["knee_against"] is None
    assert document["steps"][0]["throughput_ratio"] is None
    assert bench_document([Step(1, result(0.0))], {})["knee"] is None
