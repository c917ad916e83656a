"""Canaries watched for real: two Tritons with load on them, scraped by a real Prometheus."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tiny_package import build_package, with_a_failing_word

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit" / "deploy"))

from live_prometheus import NAMESPACE, RELEASE, prometheus, prometheus_program, target

from stillhouse.client import Client
from stillhouse.deploy.canary import CanaryWatch, Verdict, watch_canary
from stillhouse.deploy.canary.prometheus import Prometheus
from stillhouse.errors import ServingError, StillhouseError
from stillhouse.progress import Step
from stillhouse.serving.repository import set_model_version
from stillhouse.serving.server import ServerConfig, start_server, stop_folder
from stillhouse.serving.triton import free_ports

GOOD = ["the film was good", "bad", "awful plot"] * 7


@pytest.fixture(scope="module")
def tracks(tmp_path_factory) -> Iterator[tuple[str, ServerConfig, ServerConfig]]:
    """The address of Prometheus; stable, version 7; and a canary, version 8, that fails on one word."""
    prometheus_program()
    root = tmp_path_factory.mktemp("tracks")
    servers = []
    try:
        for track, version in (("stable", "7"), ("canary", "8")):
            package = build_package(root / track / "package")
            if track == "canary":
                with_a_failing_word(package, "boom")
            set_model_version(package / "triton", "reviews", version)
            (root / track / "server").mkdir()
            servers.append(
                ServerConfig(
                    folder=root / track / "server", package=package, model="reviews", version=version,
                    ports=free_ports(), probe_interval=0.5,
                )
            )  # fmt: skip
            start_server(servers[-1])
        stable, canary = servers
        targets = [
            target(f"127.0.0.1:{server.ports.metrics}", f"reviews-{track}-1", track)
            for track, server in (("stable", stable), ("canary", canary))
        ]
        with prometheus(root / "prometheus", targets, every="500ms") as url:
            yield url, stable, canary
    finally:
        for server in servers:
            stop_folder(server.folder)


@contextmanager
def load(server: ServerConfig, texts: list[str], pause: float) -> Iterator[list[int]]:
    """Someone who asks all the time; yields counts of answers and of failures."""
    done, counts = threading.Event(), [0, 0]

    def ask() -> None:
        with Client(f"127.0.0.1:{server.ports.grpc}", "reviews", retries=0) as client:
            while not done.is_set():
                for text in texts:
                    try:
                        client.predict_one(text)
                        counts[0] += 1
                    except StillhouseError:
                        counts[1] += 1
                    if done.wait(pause):
                        break

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield counts
    finally:
        done.set()
        thread.join()


def watched(url: str, **settings: float) -> Verdict:
    watch = CanaryWatch(
        prometheus_url=url, namespace=NAMESPACE, release=RELEASE, model="reviews", stable_version="7",
        canary_version="8", interval_s=1.0, **settings,
    )  # fmt: skip
    return watch_canary(watch, step=Step("deploy"), allowed=lambda: None)


def test_a_good_canary_is_promoted(tracks):
    url, stable, canary = tracks
    with load(stable, GOOD, 0.01), load(canary, GOOD, 0.03) as counts:
        # The machine may be busy with other tests, on one track more than on the other.
        verdict = watched(url, minutes=0.2, max_latency_ratio=20.0, latency_slack_ms=200.0)
    assert verdict.promote, verdict.reason
    seen = verdict.figures["canary"]
    assert (seen["failed"], seen["refused"], seen["invalid"], seen["restarts"], seen["pods"]) == (0, 0, 0, 0, 1)
    # The supervisor's probes, two a second, are not traffic; what was answered before and after the watch is not seen.
    assert 100 <= seen["requests"] <= counts[0]
    assert seen["requests"] > 0.6 * counts[0]
    assert 0.05 < seen["p50_ms"] < seen["p99_ms"] and seen["mean_ms"] > 0.05 and seen["queue_ms"] is not None


def test_a_canary_whose_encoder_fails_is_withdrawn_though_triton_calls_it_success(tracks):
    url, stable, canary = tracks
    with load(stable, [*GOOD, "boom"], 0.01), load(canary, [*GOOD, "boom"], 0.02) as counts:
        verdict = watched(url, minutes=1.0)
    assert not verdict.promote and verdict.figures["early"]
    assert "of its requests failed, and 0.00% of version 7's" in verdict.reason
    assert counts[1] > 0
    by_triton = Prometheus(url).query('sum(nv_inference_request_failure{model="reviews",version="8"})')
    assert by_triton[0].samples[0][1] == 0.0


def test_a_canary_that_nobody_asks_has_only_probes(tracks):
    url, stable, _ = tracks
    time.sleep(3.0)  # the counters follow by a second, and Prometheus by half of one
    with load(stable, GOOD, 0.01):
        verdict = watched(url, minutes=0.1, min_requests=5)
    assert not verdict.promote and "Too little traffic on canary" in verdict.reason
    assert verdict.figures["canary"]["requests"] == 0
    assert verdict.figures["stable"]["requests"] > 100


def test_a_canary_that_stops_serving_is_not_promoted(tracks):
    url, stable, canary = tracks
    stop_folder(canary.folder)
    with pytest.raises(ServingError), Client(f"127.0.0.1:{canary.ports.grpc}", "reviews", retries=0) as client:
        client.predict_one("good")
    with load(stable, GOOD, 0.01):
        verdict = watched(url, minutes=0.1)
    assert not verdict.promote and "no metrics of canary" in verdict.reason
