"""What the model's own queue reports among Triton's metrics, which autoscaling and alerts go by."""

from __future__ import annotations

import re
import time
import urllib.request
from dataclasses import replace

import pytest
from tiny_package import TEXTS, build_package, with_a_failing_word

from stillhouse.client import Client
from stillhouse.errors import InputError, ServingError
from stillhouse.loadtest import run_load
from stillhouse.serving.repository import set_model_version
from stillhouse.serving.server import start_server, switch_server
from stillhouse.tasks.front_models.request_log import VARIABLE

WITHIN = 5.0  # seconds; reports come every second


def scrape(config) -> dict[tuple[str, str], float]:
    """The queue's metrics of the public model, by name and version."""
    with urllib.request.urlopen(f"http://127.0.0.1:{config.ports.metrics}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    lines = re.findall(r'^(stillhouse_\w+)\{model="reviews",version="(\d+)"\} (\S+)$', text, re.MULTILINE)
    return {(name, version): float(value) for name, version, value in lines}


def eventually(config, wanted):
    deadline = time.monotonic() + WITHIN
    while not wanted(found := scrape(config)):
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
    return found


def test_requests_and_their_seconds_are_counted(own_server):
    start_server(own_server)
    before = eventually(own_server, lambda found: ("stillhouse_queue_length", "7") in found)
    url = f"127.0.0.1:{own_server.ports.grpc}"
    with Client(url, "reviews") as client:
        for text in TEXTS:
            client.predict_one(text)
    result = run_load(url, "reviews", TEXTS, concurrency=8, seconds=2.0, warmup=0.0)
    took = 8 * 2.0  # request-seconds, at most
    found = eventually(
        own_server, lambda found: found["stillhouse_requests_total", "7"] >= len(TEXTS) + result.requests
    )
    grown = {name: found[name, "7"] - before.get((name, "7"), 0.0) for name, _ in found}
    assert grown["stillhouse_requests_refused_total"] == 0
    assert found["stillhouse_queue_length", "7"] == 0
    assert 0.05 * took < grown["stillhouse_queue_seconds_total"] < took, "eight callers wait for each other"
    assert 0.02 * took < grown["stillhouse_compute_seconds_total"] < took
    # The probes of the supervisor are requests too: the counters go on.
    assert grown["stillhouse_requests_total"] < len(TEXTS) + result.requests + 60


def test_refusals_are_counted(tmp_path, own_server):
    package = build_package(tmp_path / "package", max_queue_size=1, batch_rows=1)
    set_model_version(package / "triton", "reviews", "7")
    start_server(replace(own_server, package=package))
    url = f"127.0.0.1:{own_server.ports.grpc}"
    refused = run_load(url, "reviews", TEXTS, concurrency=16, seconds=2.0, warmup=0.0).errors["UNAVAILABLE"]
    assert refused > 10
    eventually(own_server, lambda found: found["stillhouse_requests_refused_total", "7"] >= refused)


def test_who_asks_again_at_once_is_not_in_its_own_way(tmp_path, own_server, monkeypatch):
    """What is answered is no longer at work: half of it would be more than may be waited for."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "log"))  # what is done after the answer takes its time
    monkeypatch.setenv(VARIABLE + "_SAMPLE", "1")
    package = build_package(tmp_path / "package", max_wait_ms=1, batch_rows=256, max_batch_size=256)
    set_model_version(package / "triton", "reviews", "7")
    start_server(replace(own_server, package=package, probe_interval=60.0))  # a probe may be in its way
    asked, refused = 0, []
    with Client(f"127.0.0.1:{own_server.ports.grpc}", "reviews", retries=0) as client:
        until = time.monotonic() + 8
        while time.monotonic() < until:
            asked += 1
            try:
                client.predict(TEXTS * 32)
            except ServingError as error:
                # A thread that wakes up after more than a millisecond is another matter.
                refused += [str(error)] if "until its turn" in str(error) else []
    assert asked > 50
    assert refused == []


def test_failures_are_counted_where_triton_counts_successes(tmp_path, own_server):
    package = with_a_failing_word(build_package(tmp_path / "package"), "boom")
    set_model_version(package / "triton", "reviews", "7")
    start_server(replace(own_server, package=package))
    eventually(own_server, lambda found: ("stillhouse_requests_failed_total", "7") in found)  # as 0, from the beginning
    with Client(f"127.0.0.1:{own_server.ports.grpc}", "reviews", retries=0) as client:
        client.predict_one("fine")
        for _ in range(2):
            with pytest.raises(ServingError, match="the encoder failed"):
                client.predict_one("boom")
        for _ in range(3):
            with pytest.raises(InputError, match="bytes"):
                client.predict_one("too long " * 1000)
    found = eventually(own_server, lambda found: found["stillhouse_requests_failed_total", "7"] > 0)
    assert found["stillhouse_requests_failed_total", "7"] == 2
    found = eventually(own_server, lambda found: found["stillhouse_requests_invalid_total", "7"] > 0)
    assert found["stillhouse_requests_invalid_total", "7"] == 3
    assert found["stillhouse_requests_refused_total", "7"] == 0
    # What is at work besides the probes: one answer, and the two failures.
    assert found["stillhouse_requests_total", "7"] - found["stillhouse_probes_total", "7"] == 3
    assert found["stillhouse_probes_total", "7"] > 0
    with urllib.request.urlopen(f"http://127.0.0.1:{own_server.ports.metrics}/metrics", timeout=10) as answer:
        by_triton = re.findall(
            r'^nv_inference_request_failure\{model="reviews",.*\} (\S+)$', answer.read().decode(), re.M
        )
    assert len(by_triton) == 4 and set(by_triton) == {"0"}, "Triton tells of failures: its own counter would do"


def test_each_release_has_counters_of_its_own(tmp_path, package, own_server):
    start_server(own_server)
    url = f"127.0.0.1:{own_server.ports.grpc}"
    newer = build_package(tmp_path / "package")
    set_model_version(newer / "triton", "reviews", "8")
    with Client(url, "reviews") as client:
        for config in (replace(own_server, package=newer, version="8"), own_server) * 2:
            switch_server(config)
            assert client.predict_one("fine").release == config.version
            found = eventually(
                config, lambda found, version=config.version: ("stillhouse_requests_total", version) in found
            )
            assert found["stillhouse_requests_total", config.version] < 100


def test_without_metrics_the_model_serves_all_the_same(own_server):
    config = replace(own_server, ports=replace(own_server.ports, metrics=0))
    start_server(config)
    with Client(f"127.0.0.1:{config.ports.grpc}", "reviews") as client:
        assert client.predict_one("fine").release == "7"
