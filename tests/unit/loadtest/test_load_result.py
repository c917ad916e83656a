from __future__ import annotations

import json

import numpy as np
import pytest

from stillhouse.loadtest import LoadResult, find_knee


def result(texts_per_second=100.0, latencies=(), errors=None, error_latencies=()):
    return LoadResult(
        seconds=2.0,
        requests=len(latencies) + len(error_latencies),
        texts_per_second=texts_per_second,
        latencies=np.array(latencies, dtype=np.float64),
        errors=errors or {},
        error_latencies=np.array(error_latencies, dtype=np.float64),
        releases={"7": len(latencies)},
        lag_p99=0.0,
        cpu_cores=0.1,
    )


def test_percentiles_by_hand():
    found = result(latencies=range(101), errors={"UNAVAILABLE": 3}, error_latencies=[1, 2, 9])
    assert (found.p50, found.p95, found.p99, found.mean, found.error_p50) == (50, 95, 99, 50, 2)


def test_nothing_answered_is_none_in_json():
    document = json.loads(json.dumps(result(texts_per_second=0).to_dict(), allow_nan=False))
    assert [document[name] for name in ("p50", "p95", "p99", "mean", "error_p50")] == [None] * 5
    assert document["requests"] == 0


def test_every_figure_is_in_the_json():
    document = result(latencies=[1.0, 3.0], errors={"UNAVAILABLE": 1}, error_latencies=[4.0]).to_dict()
    assert document == {
        "seconds": 2.0,
        "requests": 3,
        "texts_per_second": 100.0,
        "p50": 2.0,
        "p95": 2.9,
        "p99": 2.98,
        "mean": 2.0,
        "error_p50": 4.0,
        "lag_p99": 0.0,
        "cpu_cores": 0.1,
        "errors": {"UNAVAILABLE": 1},
        "releases": {"7": 2},
    }


@pytest.mark.parametrize(
    ("throughputs", "knee"),
    [
        ([100, 180, 190, 191, 188], 4),  # 180 is 94% of the best
        ([100, 182, 190, 191, 188], 2),
        ([100], 1),
        ([100, 200, 400, 800, 1600], 16),
    ],
)
def test_the_knee_is_the_smallest_with_95_percent_of_the_best(throughputs, knee):
    steps = [(2**index, result(float(value))) for index, value in enumerate(throughputs)]
    assert find_knee(steps) == knee
    assert find_knee(steps[::-1]) == knee


def test_steps_with_failures_count_only_where_all_have_some():
    fine, failing = result(100.0), result(300.0, errors={"UNAVAILABLE": 1})
    assert find_knee([(1, result(90.0)), (2, fine), (4, failing)]) == 2
    assert find_knee([(2, failing), (4, failing)]) == 2


def test_no_answer_has_no_knee():
    with pytest.raises(ValueError, match="no step answered"):
        find_knee([(1, result(0.0))])
