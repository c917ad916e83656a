"""Samples in, figures out: what counts, what does not, and what a counter that falls means."""

import math
from typing import Any

import pytest

from stillhouse.deploy.canary.prometheus import Series
from stillhouse.deploy.canary.watch import increase, summarise

SINCE = 990.0


def series(metric: str, *values: float, pod: str = "a", model: str = "reviews", first: float = 985.0, **labels: Any):
    """Samples every 15 s; the first is the last before the watch."""
    named = {"__name__": metric, "model": model, "version": "8", "pod": pod, **labels}
    return Series(named, [(first + 15 * n, value) for n, value in enumerate(values)])


def seen(*found: Series, canary: bool = True, restarted: tuple[Series, ...] = ()):
    return summarise(found, model="reviews", since=SINCE, canary=canary, restarted=restarted)


def test_a_counter_rises_from_its_last_value_before_the_watch():
    samples = [(970.0, 5.0), (985.0, 8.0), (1000.0, 10.0), (1015.0, 15.0)]
    assert increase(samples, SINCE, newborn=False) == (7.0, 0)
    assert increase(samples, SINCE, newborn=True) == (7.0, 0)
    assert increase([], SINCE, newborn=True) == (0.0, 0)


def test_a_counter_that_came_during_the_watch_began_at_zero_where_its_pod_did():
    samples = [(1015.0, 4.0), (1030.0, 9.0)]
    assert increase(samples, SINCE, newborn=True) == (9.0, 0)
    assert increase(samples, SINCE, newborn=False) == (5.0, 0)


def test_a_counter_that_falls_began_anew():
    samples = [(985.0, 90.0), (1015.0, 100.0), (1030.0, 3.0), (1045.0, 8.0), (1060.0, 2.0)]
    assert increase(samples, SINCE, newborn=False) == (10 + 3 + 5 + 2, 2)
    assert increase([(960.0, 50.0), (985.0, 2.0), (1015.0, 4.0)], SINCE, newborn=False) == (2.0, 0)  # before the watch


def test_the_front_models_counters_tell_what_became_of_requests():
    track = seen(
        series("nv_inference_request_success", 10, 130),  # its errors, and probes, among them
        series("nv_inference_request_failure", 0, 2, reason="BACKEND"),
        series("nv_inference_request_failure", 0, 1, reason="OTHER"),
        series("nv_inference_request_failure", 0, 9, model="reviews-encoder", reason="BACKEND"),
        series("nv_inference_request_duration_us", 0, 1_200_000),
        series("stillhouse_requests_total", 10, 93),  # at work: not those that were refused or invalid
        series("stillhouse_probes_total", 1, 4),
        series("stillhouse_requests_failed_total", 0, 4),
        series("stillhouse_requests_refused_total", 0, 20),
        series("stillhouse_requests_invalid_total", 0, 5),
        series("stillhouse_queue_seconds_total", 1.0, 1.415),
    )
    # At work 83, of which 3 were probes; 3 that Triton lost, and 5 that were invalid.
    assert (track.taken, track.requests) == (88, 108)
    assert (track.failed, track.refused, track.invalid) == (7, 20, 5)
    assert track.mean_ms == pytest.approx(10.0)  # 1.2 s over 120
    assert track.queue_ms == pytest.approx(5.0)  # 0.415 s over 83


def test_a_release_without_those_counters_is_judged_by_its_encoder():
    track = seen(
        series("nv_inference_request_success", 0, 100),
        series("nv_inference_request_failure", 0, 2, reason="BACKEND"),
        series("nv_inference_request_failure", 0, 3, model="reviews-encoder", reason="BACKEND"),
    )
    assert (track.requests, track.failed, track.refused, track.queue_ms, track.mean_ms) == (102, 5, 0, None, None)


def test_pods_are_added_up_and_each_series_counts_once():
    both = [series("stillhouse_requests_total", 0, 10, pod=pod) for pod in "ab"]
    again = series("stillhouse_requests_total", 0, 10, 20, pod="b", job="another", prometheus_replica="1")
    track = seen(*both, again)
    assert (track.pods, track.requests) == (2, 30)


def test_a_pod_that_was_gone_before_the_watch_is_none_of_the_track():
    track = seen(series("stillhouse_requests_total", 5, 7, pod="old", first=900.0))
    assert (track.pods, track.requests) == (0, 0)


def test_a_server_that_began_anew_is_a_restart_and_counted_once():
    track = seen(
        series("stillhouse_requests_total", 50, 60, 3, 9),
        series("nv_inference_request_success", 55, 66, 4, 11),
        series("nv_inference_request_success", 5, 6, 7, 8, pod="b"),
        # The quantiles of a summary rise and fall as they like.
        series("nv_inference_request_summary_us", 100, 90, 80, 70, quantile="0.99", pod="b"),
    )
    assert (track.requests, track.restarts, track.pods) == (10 + 3 + 6, 1, 2)


def test_kube_state_metrics_tell_of_restarts_that_counters_hide():
    # So much traffic that the counter is higher than before at the next scrape already.
    requests = series("stillhouse_requests_total", 50, 80, 120)
    kube = Series({"__name__": "kube_pod_container_status_restarts_total", "pod": "a"}, [(985.0, 1.0), (1030.0, 3.0)])
    assert seen(requests).restarts == 0
    assert seen(requests, restarted=(kube,)).restarts == 2
    fallen = series("stillhouse_requests_total", 50, 3, 2, 1)
    assert seen(fallen, restarted=(kube,)).restarts == 3  # of both, the one that saw more


def quantile(*values: float, pod: str = "a", which: str = "0.99"):
    return series("nv_inference_request_summary_us", *values, pod=pod, quantile=which)


def test_quantiles_are_of_the_worst_pod_of_the_canary_and_the_typical_one_of_stable():
    # 985, 1000, …, 1075: the first minute of the watch speaks of what was before.
    pods = [quantile(0, 9e9, 9e9, 9e9, 9e9, level - 1000, level + 1000, pod=pod) for pod, level in
            (("a", 10_000), ("b", 12_000), ("c", 90_000))]  # fmt: skip
    median = quantile(1, 1, 1, 1, 1, 4000, 6000, which="0.5")
    assert seen(*pods, median).p99_ms == pytest.approx(90.0)
    assert seen(*pods, median, canary=False).p99_ms == pytest.approx(12.0)
    assert seen(*pods, median).p50_ms == pytest.approx(5.0)


def test_a_minute_without_requests_has_no_quantile():
    assert seen(quantile(math.nan, math.nan, math.nan)).p99_ms is None
    assert seen(quantile(0, 7000, math.nan)).p99_ms == pytest.approx(7.0)  # nothing later is known
