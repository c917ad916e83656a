"""The decision on a canary, with figures that were computed by hand."""

from dataclasses import replace
from typing import Any

import pytest

from stillhouse.deploy.canary.exact_tests import binomial_tail, fisher
from stillhouse.deploy.canary.judgement import CanaryWatch, Track, Verdict, judge

WATCH = CanaryWatch(
    prometheus_url="http://prometheus:9090",
    namespace="models",
    release="reviews",
    model="reviews",
    stable_version="7",
    canary_version="8",
    minutes=10,
)
STABLE = Track(pods=3, requests=10_000, failed=10, mean_ms=10.0, p50_ms=8.0, p99_ms=30.0, queue_ms=2.0)
CANARY = Track(pods=1, requests=1_000, failed=1, mean_ms=10.5, p50_ms=8.5, p99_ms=33.0, queue_ms=2.0)


def verdict(stable: Track = STABLE, canary: Track = CANARY, *, over: bool = True, **limits: Any) -> Verdict | None:
    return judge(replace(WATCH, **limits), stable, canary, elapsed_s=600.0 if over else 60.0, over=over)


def refused(
    reason: str, stable: Track = STABLE, canary: Track = CANARY, *, over: bool = True, **limits: Any
) -> Verdict:
    found = verdict(stable, canary, over=over, **limits)
    assert found is not None and not found.promote
    assert reason in found.reason
    return found


def test_a_canary_that_is_as_good_is_promoted_at_the_end_and_not_before():
    assert verdict(over=False) is None
    found = verdict()
    assert found is not None and found.promote
    assert found.reason == (
        "Version 8 holds up beside 7 over 10 minutes: 1,000 requests, 0.10% failed, mean 10.5 ms, p99 33.0 ms; "
        "7: 10,000 requests, 0.10% failed, mean 10.0 ms, p99 30.0 ms."
    )
    assert found.figures["canary"]["requests"] == 1000 and found.figures["stable"]["version"] == "7"
    assert not found.figures["early"]


def test_fishers_test_is_exact():
    # A lady who tastes tea: three of her four cups right, and one of the other four.
    assert fisher(3, 4, 1, 4) == pytest.approx(17 / 70)
    # All three failures are among 1,000 of 11,000 requests.
    assert fisher(3, 1000, 0, 10_000) == pytest.approx(1000 * 999 * 998 / (11_000 * 10_999 * 10_998))
    assert fisher(0, 1000, 5, 10) == 1.0
    assert fisher(1, 10_000, 10_000, 10_000) == pytest.approx(1.0)  # far below the mean its terms are 0 as floats
    assert fisher(10, 10, 10, 10) == pytest.approx(1.0)  # everything failed everywhere
    assert fisher(0, 0, 3, 10) == 1.0


def test_fishers_test_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    for ours, of, theirs, among in ((5, 200, 12, 1900), (40, 1000, 300, 9000), (2, 20, 1, 30), (700, 90_000, 6, 1000)):
        table = [[ours, of - ours], [theirs, among - theirs]]
        expected = stats.fisher_exact(table, alternative="greater").pvalue
        assert fisher(ours, of, theirs, among) == pytest.approx(expected, rel=1e-6)
        assert binomial_tail(ours, of, 0.03) == pytest.approx(stats.binom.sf(ours - 1, of, 0.03), rel=1e-6)


def test_a_binomial_tail_is_exact():
    assert binomial_tail(2, 3, 0.5) == pytest.approx(4 / 8)
    assert binomial_tail(0, 5, 0.1) == 1.0 and binomial_tail(1, 5, 0.0) == 0.0 and binomial_tail(5, 5, 1.0) == 1.0


def test_more_failures_than_chance_allows_are_too_many():
    # 4 of 500 and none of 5,000: C(500, 4) / C(5500, 4) is 6.7e-5, below half the level.
    stable, canary = replace(STABLE, requests=5000, failed=0), replace(CANARY, requests=500, failed=4)
    found = refused("0.80% of its requests failed, and 0.00% of version 7's", stable, canary)
    assert found.figures["chances"]["failed"] == pytest.approx(6.74e-5, rel=1e-2)
    assert "once in 14,8" in found.reason
    # One of 500 is chance once in 11: (500 / 5500).
    promoted = verdict(stable, replace(canary, failed=1))
    assert promoted is not None and promoted.promote
    assert promoted.figures["chances"]["failed"] == pytest.approx(500 / 5500)


def test_a_sure_but_tiny_difference_is_put_up_with():
    # 0.15% and 0.10% of very many: sure, and within 0.1 percentage points.
    stable, canary = replace(STABLE, requests=10**6, failed=1000), replace(CANARY, requests=10**6, failed=1500)
    found = verdict(stable, canary)
    assert found is not None and found.promote and found.figures["chances"]["failed"] < 1e-6
    refused("0.15% of its requests failed", stable, canary, max_error_increase=0.0001)


def test_only_what_is_beyond_doubt_ends_a_watch_early():
    # Of 40 looks, each has 0.05 / 2 / 40 = 0.000625. Two of 100 and none of 1,000: 100 * 99 / (1100 * 1099) = 0.0082.
    stable, two = replace(STABLE, requests=1000, failed=0), replace(CANARY, requests=100, failed=2)
    assert WATCH.looks == 40
    assert verdict(stable, two, over=False) is None
    refused("2.00% of its requests failed", stable, two)
    # Three of 100: 0.0082 * 98 / 1098 = 0.00073, still more; four: * 97 / 1097 = 0.000065.
    assert verdict(stable, replace(two, failed=3), over=False) is None
    early = refused("4.00% of its requests failed", stable, replace(two, failed=4), over=False)
    assert early.figures["early"]


def test_a_broken_canary_is_seen_with_little_traffic():
    refused("100.00% of its requests failed", canary=replace(CANARY, requests=4, failed=4), over=False)


def test_turned_away_is_not_failed():
    refusing = replace(CANARY, requests=1000, refused=100, failed=0)
    found = refused("10.00% of its requests were turned away under load, and 0.00% of version 7's", canary=refusing)
    assert " failed" not in found.reason
    # Both tracks under the same flood: nobody's fault.
    flooded = verdict(replace(STABLE, refused=1000), refusing)
    assert flooded is not None and flooded.promote


def test_input_that_stable_takes_must_be_taken():
    refused("3.00% of its requests were refused as invalid", canary=replace(CANARY, invalid=30))


def test_nothing_is_promoted_that_mostly_fails():
    broken = replace(STABLE, failed=3000)
    refused("more than max_error_rate (10.0%)", broken, replace(CANARY, failed=300))
    assert verdict(broken, replace(CANARY, requests=10, failed=2), over=False) is None  # 2 of 10 is no proof
    refused("max_error_rate", broken, replace(CANARY, failed=300), over=False)


def test_a_slower_canary_is_not_promoted():
    # 1.3 times 10 ms and 5 ms more: 18 ms.
    refused("its mean latency is 18.1 ms, and version 7's 10.0 ms (at most 18.0)", canary=replace(CANARY, mean_ms=18.1))
    refused("its p99 latency is 44.1 ms", canary=replace(CANARY, p99_ms=44.1))
    refused("its wait in the queue is 9.0 ms", canary=replace(CANARY, queue_ms=9.0))
    refused("more than max_p99_ms (32)", max_p99_ms=32.0)
    allowed = verdict(canary=replace(CANARY, mean_ms=17.9, p99_ms=43.9, queue_ms=7.5))
    assert allowed is not None and allowed.promote


def test_small_latencies_have_some_slack():
    fast = replace(STABLE, mean_ms=1.0, p99_ms=2.0, queue_ms=0.0)
    found = verdict(fast, replace(CANARY, mean_ms=3.0, p99_ms=6.0, queue_ms=1.0))
    assert found is not None and found.promote


def test_a_gross_slowdown_ends_a_watch_early_and_a_few_slow_requests_do_not():
    # Twice (1.3 * 8 + 5) = 30.8 ms.
    refused("its median latency is 31.0 ms", canary=replace(CANARY, p50_ms=31.0), over=False)
    assert verdict(canary=replace(CANARY, p50_ms=30.0, mean_ms=500.0, p99_ms=9000.0), over=False) is None
    assert verdict(canary=replace(CANARY, p50_ms=31.0, requests=99), over=False) is None


@pytest.mark.parametrize("missing", ["mean_ms", "p99_ms", "queue_ms"])
def test_what_is_not_exported_is_not_judged(missing: str):
    found = verdict(canary=replace(CANARY, **{missing: None}))
    assert found is not None and found.promote
    if missing != "queue_ms":
        assert f"{missing.removesuffix('_ms')} unknown" in found.reason


def test_restarts_count_against_the_canary_alone():
    refused("its pods restarted once", canary=replace(CANARY, restarts=1), over=False)
    refused("its pods restarted 3 times", canary=replace(CANARY, restarts=3), max_restarts=2)
    for stable, canary in ((replace(STABLE, restarts=5), CANARY), (STABLE, replace(CANARY, restarts=2))):
        found = verdict(stable, canary, max_restarts=2)
        assert found is not None and found.promote


def test_too_little_traffic_is_no_reason_to_promote():
    found = refused("Too little traffic on canary to judge version 8", canary=replace(CANARY, requests=99, failed=0))
    assert "99 requests to canary and 10000 to stable in 10 minutes, and min_requests is 100" in found.reason
    refused("on canary and stable", replace(STABLE, requests=50, failed=0), replace(CANARY, requests=50, failed=0))
    # Those that were turned away tell nothing of the model.
    refused("Too little traffic", replace(STABLE, refused=9950), replace(CANARY, requests=950, refused=900, failed=0))
    enough = verdict(canary=replace(CANARY, requests=20, failed=0), min_requests=20)
    assert enough is not None and enough.promote


def test_no_metrics_at_all_are_told_apart_from_no_traffic():
    found = refused("no metrics of canary for 10 minutes", canary=Track())
    assert "stillhouse_track=canary, model=reviews, version=8" in found.reason
    refused("no metrics of stable", Track())
    assert verdict(canary=Track(), over=False) is None
    early = judge(WATCH, STABLE, Track(), elapsed_s=301.0, over=False)
    assert early is not None and "monitoring.serviceMonitor" in early.reason
    # A track whose pods answer and get no requests is another matter.
    assert judge(WATCH, STABLE, Track(pods=1), elapsed_s=301.0, over=False) is None


def test_every_problem_with_the_settings_is_told_at_once():
    wrong = replace(
        WATCH, prometheus_url="prometheus:9090", namespace="", model="re views", canary_version="v8", stable_version="",
        minutes=0, min_requests=0, significance=0.9, max_latency_ratio=float("nan"),
    )  # fmt: skip
    assert [problem.where for problem in wrong.problems()] == [
        "prometheus_url", "model_name", "namespace", "stable_version", "canary_version",
        "minutes", "min_requests", "significance", "max_latency_ratio",
    ]  # fmt: skip
    assert WATCH.problems() == []
