from __future__ import annotations

import threading
import time
from contextlib import suppress

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from stillhouse.errors import InputError, ServingError
from stillhouse.loadtest import run_load, run_open_load
from stillhouse.loadtest.load import prepare_requests
from stillhouse.serving.triton import free_ports

TEXTS = ["good", "bad", "größer"]


def texts_of(request):
    """Texts of a request as a server reads them."""
    raw, texts = request.raw_input_contents[0], []
    while raw:
        length = int.from_bytes(raw[:4], "little")
        texts.append(raw[4 : 4 + length].decode())
        raw = raw[4 + length :]
    return texts


def slow_every(nth, seconds, otherwise=0.0):
    def behave(number):
        time.sleep(seconds if number % nth == nth - 1 else otherwise)
        return "7"

    return behave


def test_requests_hold_the_texts_in_turn_and_each_is_full():
    requests = [service_pb2.ModelInferRequest.FromString(raw) for raw in prepare_requests("m", TEXTS, 2)]
    assert [texts_of(request) for request in requests] == [["good", "bad"], ["größer", "good"]]
    for request in requests:
        assert request.model_name == "m"
        assert [(i.name, i.datatype, list(i.shape)) for i in request.inputs] == [("TEXT", "BYTES", [2, 1])]


def test_a_batch_may_be_larger_than_the_list():
    (raw,) = prepare_requests("m", TEXTS, 7)
    texts = texts_of(service_pb2.ModelInferRequest.FromString(raw))
    assert texts == ["good", "bad", "größer", "good", "bad", "größer", "good"]


def test_as_many_requests_are_under_way_as_there_are_callers(serve):
    url, model = serve(lambda number: time.sleep(0.02) or "7")
    result = run_load(url, "m", TEXTS, concurrency=4, seconds=0.6, warmup=0.1)
    assert model.most_at_once == 4
    assert result.latencies.sum() / 1000 / 0.6 > 3  # four were under way all the time
    assert result.requests <= 4 * 0.6 / 0.02 + 4
    assert 20 <= result.p50 < 40  # two at a time would take turns
    assert result.errors == {}


def test_texts_a_second_count_every_text_of_a_batch(serve):
    url, model = serve(lambda number: time.sleep(0.02) or "7")
    result = run_load(url, "m", TEXTS, concurrency=2, seconds=0.5, batch_size=3, warmup=0)
    assert all(len(texts_of(request)) == 3 for request in model.requests)
    answered_in_time = result.texts_per_second * 0.5 / 3
    assert result.requests - 2 <= answered_in_time <= result.requests


def test_percentiles_find_the_slow_ones(serve):
    url, _ = serve(slow_every(10, 0.2, otherwise=0.005))
    result = run_load(url, "m", TEXTS, concurrency=8, seconds=1.5, warmup=0)
    assert 5 <= result.p50 < 60
    assert 200 <= result.p95 < 400
    assert result.p95 <= result.p99 <= result.latencies.max()
    assert result.mean == pytest.approx(result.latencies.mean())
    # Nearest ranks, found without numpy's interpolation.
    ranked = sorted(result.latencies)
    assert ranked[int(0.95 * (len(ranked) - 1))] <= result.p95 <= ranked[int(np.ceil(0.95 * (len(ranked) - 1)))]


def test_the_warm_up_is_not_measured(serve):
    begin = []

    def behave(number):
        begin.append(time.perf_counter())
        time.sleep(0.15 if begin[-1] - begin[0] < 0.5 else 0.005)
        return "cold" if begin[-1] - begin[0] < 0.5 else "warm"

    url, _ = serve(behave)
    result = run_load(url, "m", TEXTS, concurrency=2, seconds=0.8, warmup=0.8)
    assert set(result.releases) == {"warm"}
    assert np.median(result.latencies) < 100
    assert result.releases["warm"] == result.requests


def test_a_stall_that_outlasts_the_time_is_in_the_latencies(serve):
    url, _ = serve(lambda number: time.sleep(1.0 if number == 5 else 0.01) or "7")
    result = run_load(url, "m", TEXTS, concurrency=1, seconds=0.6, warmup=0)
    assert result.latencies.max() >= 1000
    assert result.requests == len(result.latencies)
    assert result.texts_per_second == pytest.approx((result.requests - 1) / 0.6)  # it came too late to count here


def test_each_caller_is_measured_though_the_answers_of_the_warm_up_outlast_the_time(serve):
    url, _ = serve(lambda number: time.sleep(0.3 if number else 0) or ("7" if number > 2 else "warm-up"))
    result = run_load(url, "m", TEXTS, concurrency=2, seconds=0.1, warmup=0.1)
    assert result.releases == {"7": 2} and result.latencies.min() >= 300
    assert result.texts_per_second == 0


def test_failures_are_counted_by_status_and_kept_out_of_the_latencies(serve):
    def behave(number):
        if number % 3 == 1:
            return grpc.StatusCode.UNAVAILABLE
        if number % 3 == 2:
            time.sleep(0.05)
            return grpc.StatusCode.INVALID_ARGUMENT
        return "7"

    url, model = serve(behave)
    result = run_load(url, "m", TEXTS, concurrency=1, seconds=0.8, warmup=0)
    assert set(result.errors) == {"UNAVAILABLE", "INVALID_ARGUMENT"}
    assert sum(result.errors.values()) + len(result.latencies) == result.requests == len(model.requests) - 1
    assert abs(result.errors["UNAVAILABLE"] - result.errors["INVALID_ARGUMENT"]) <= 1
    assert result.p50 < 50 <= result.error_latencies.max()


def test_a_deadline_is_an_error_of_its_own(serve):
    url, _ = serve(lambda number: time.sleep(0.4 if number else 0) or "7")
    result = run_load(url, "m", TEXTS, concurrency=2, seconds=0.3, warmup=0, timeout=0.1)
    assert set(result.errors) == {"DEADLINE_EXCEEDED"}
    assert 95 < result.error_p50 < 200
    assert result.texts_per_second == 0 and np.isnan(result.p50)


def test_a_server_that_refuses_everything_is_not_asked_in_a_spin(serve):
    url, _ = serve(lambda number: grpc.StatusCode.UNAVAILABLE if number else "7")
    result = run_load(url, "m", TEXTS, concurrency=1, seconds=0.5, warmup=0)
    assert 2 < result.errors["UNAVAILABLE"] <= 0.5 / 0.01 + 1


@pytest.mark.slow
def test_a_server_that_is_back_is_found_at_once(serve):
    url, model = serve(lambda number: "7")
    back = []

    def outage():
        time.sleep(0.3)
        model.server.stop(0)
        time.sleep(1.5)
        back.append(serve(lambda number: "8", port=int(url.split(":")[1]))[1])
        back.append(time.perf_counter())

    operator = threading.Thread(target=outage)
    operator.start()
    result = run_load(url, "m", TEXTS, concurrency=2, seconds=3.0, warmup=0)
    operator.join()
    assert set(result.releases) == {"7", "8"}
    assert {"UNAVAILABLE"} <= set(result.errors) <= {"UNAVAILABLE", "CANCELLED"}
    assert back[0].arrivals[0] - back[1] < 0.5  # by gRPC's own timing it is 0.7 s or more


def test_releases_are_counted(serve):
    url, _ = serve(lambda number: "7" if number < 11 else "8")
    result = run_load(url, "m", TEXTS, concurrency=1, seconds=0.4, warmup=0)
    assert result.releases["7"] == 10  # and the one before the clock ran
    assert sum(result.releases.values()) == len(result.latencies)


def test_an_open_loop_keeps_its_rate_while_nothing_is_answered(serve):
    url, model = serve(lambda number: time.sleep(1.5 if number else 0) or "7", workers=64)
    result = run_open_load(url, "m", TEXTS, rate=40, seconds=1.0, timeout=10)
    assert result.requests == 40 == len(model.requests) - 1
    arrivals = np.sort(model.arrivals[1:])
    assert model.most_at_once > 20  # a closed loop would have waited
    assert 0.5 < arrivals[-1] - arrivals[0] < 5
    assert 0.01 < np.median(np.diff(arrivals)) < 0.05  # in a row, not in bursts
    assert result.texts_per_second == 0  # all came after the time was up, and yet each is in the latencies
    assert len(result.latencies) == 40 and result.p50 >= 1500


def test_an_open_loop_counts_the_wait_of_requests_behind_a_stall(serve):
    """One worker stalls for 300 ms: the 15 requests due meanwhile each waited for what was left of it."""
    url, _ = serve(lambda number: time.sleep(0.3 if number == 10 else 0) or "7", workers=1)
    result = run_open_load(url, "m", TEXTS, rate=50, seconds=1.6, timeout=5)
    assert result.requests == 80
    assert 12 <= (result.latencies > 10).sum() <= 70
    assert result.latencies.max() >= 300


def test_a_generator_that_falls_behind_says_so(serve):
    url, _ = serve(lambda number: "7")
    result = run_open_load(url, "m", TEXTS, rate=100, seconds=0.5, watch=lambda seconds: time.sleep(0.15))
    assert result.lag_p99 > 100
    # From when each was due: of those under way while the generator stood still, there is one at a time.
    assert (result.latencies > 50).sum() > 10
    # Else it is on time, but where the machine itself stands still.
    assert min(run_open_load(url, "m", TEXTS, rate=50, seconds=0.4).lag_p99 for _ in range(3)) < 100


def test_an_open_loop_counts_rejections(serve):
    url, _ = serve(lambda number: grpc.StatusCode.UNAVAILABLE if number % 2 else "7")
    result = run_open_load(url, "m", TEXTS, rate=100, seconds=0.4)
    assert result.requests == 40
    assert result.errors == {"UNAVAILABLE": 20}
    assert len(result.latencies) == 20


def test_whoever_watches_is_told_how_far_it_is(serve):
    url, _ = serve(lambda number: "7")
    seen = []
    run_load(url, "m", TEXTS, concurrency=1, seconds=1.0, warmup=0.2, watch=seen.append)
    assert seen == sorted(seen) and seen[-1] == pytest.approx(1.2)
    assert 0.15 < seen[0] < 1.1


def test_the_generators_own_share_of_the_processor_is_told(serve):
    url, _ = serve(lambda number: time.sleep(0.1) or "7")
    assert 0 < run_load(url, "m", TEXTS, concurrency=1, seconds=0.5, warmup=0).cpu_cores < 0.5


def test_every_wrong_argument_is_told_at_once():
    with pytest.raises(InputError) as caught:
        run_load("x:1", "m", [], concurrency=0, seconds=0, batch_size=0, warmup=-1, timeout=0)
    places = {problem.where for problem in caught.value.problems}
    assert places == {"texts", "concurrency", "seconds", "batch_size", "warmup", "timeout"}
    with pytest.raises(InputError) as caught:
        run_open_load("x:1", "m", TEXTS, rate=0, seconds=-1, timeout=float("nan"))
    assert {problem.where for problem in caught.value.problems} == {"rate", "seconds", "timeout"}


def test_no_server_is_told_before_any_load(monkeypatch):
    monkeypatch.setattr("stillhouse.loadtest.load._CONNECT_SECONDS", 0.5)
    url = f"127.0.0.1:{free_ports().grpc}"
    with pytest.raises(ServingError, match=f"no server answers at {url}"):
        run_load(url, "m", TEXTS, concurrency=1, seconds=5)


def test_a_server_that_was_not_there_leaves_the_next_load_in_peace(serve, monkeypatch, caplog):
    monkeypatch.setattr("stillhouse.loadtest.load._CONNECT_SECONDS", 0.5)
    url, _ = serve(lambda number: "7")
    with suppress(ServingError):  # pytest.raises would keep the channel alive in the traceback
        run_load(f"127.0.0.1:{free_ports().grpc}", "m", TEXTS, concurrency=1, seconds=5)
    for _ in range(2):
        run_load(url, "m", TEXTS, concurrency=1, seconds=0.2, warmup=0)
    assert caplog.records == []  # asyncio logs what gRPC reports to a loop that is closed


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (grpc.StatusCode.NOT_FOUND, InputError, "serves no model 'm'"),
        (grpc.StatusCode.INVALID_ARGUMENT, InputError, "refuses the first request: as told"),
        (grpc.StatusCode.UNIMPLEMENTED, ServingError, "no inference server"),
    ],
)
def test_what_can_never_work_is_told_before_any_load(serve, status, error, words):
    url, model = serve(lambda number: status)
    with pytest.raises(error, match=words):
        run_load(url, "m", TEXTS, concurrency=2, seconds=5)
    assert len(model.requests) == 1


def test_a_server_that_is_busy_at_first_is_measured_all_the_same(serve):
    url, _ = serve(lambda number: "7" if number else grpc.StatusCode.UNAVAILABLE)
    assert run_open_load(url, "m", TEXTS, rate=50, seconds=0.2).errors == {}
