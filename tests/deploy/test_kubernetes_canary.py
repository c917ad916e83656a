"""A new version beside the stable one: promoted or withdrawn, by its answers and by what Prometheus says of it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from deployed_world import TRACKING_URI, World

from stillhouse.deploy import CanaryWithdrawn
from stillhouse.errors import RegistryError, ServingError

pytestmark = pytest.mark.slow


@dataclass
class Metrics:
    """A Prometheus that has scraped a pod of each track, which got 1000 requests each since the watch began."""

    failed: dict[str, int] = field(default_factory=dict)
    """Requests that failed, by version."""
    url: str = ""
    broken: bool = False
    on_query: Any = lambda: None

    def answer(self, expression: str) -> Any:
        if expression == "time()":
            return {"resultType": "scalar", "result": [time.time(), str(time.time())]}
        series: list[Any] = []
        if "kube_pod_container_status_restarts_total" in expression:
            return {"resultType": "matrix", "result": series}
        self.on_query()
        for track, version in (("stable", "1"), ("canary", "2")):
            values = {
                "stillhouse_requests_total": 1000,
                "stillhouse_requests_failed_total": self.failed.get(version, 0),
                "nv_inference_request_success": 1000,
                "nv_inference_request_duration_us": 5_000_000,
                "stillhouse_queue_seconds_total": 0.1,
            }
            for name, value in values.items():
                labels = {"pod": f"reviews-{track}", "stillhouse_track": track, "model": "reviews", "version": version}
                samples = [[time.time() - 60, "0"], [time.time(), str(value)]]
                series.append({"metric": {"__name__": name, "namespace": "serving", **labels}, "values": samples})
        return {"resultType": "matrix", "result": series}


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    metrics = Metrics()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            self.reply(parse_qs(body) or parse_qs(urlsplit(self.path).query))

        def do_GET(self) -> None:
            self.reply(parse_qs(urlsplit(self.path).query))

        def reply(self, query: dict[str, list[str]]) -> None:
            refused = metrics.broken and query["query"][0] != "time()"
            found = {"status": "error", "errorType": "execution", "error": "out of order"}
            if not refused:
                found = {"status": "success", "data": metrics.answer(query["query"][0])}
            self.send_response(422 if refused else 200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(found).encode())

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    metrics.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield metrics
    server.shutdown()
    server.server_close()
    thread.join()


def test_promoted(world: World, metrics: Metrics) -> None:
    world.deploy("1")
    before = world.cluster.of("deployments")[0]["spec"]["template"]
    seen = []

    def look() -> None:
        deployments = {thing["metadata"]["name"]: thing for thing in world.cluster.of("deployments")}
        seen.append((world.state, deployments["reviews"]["spec"]["template"] == before))

    metrics.on_query = look
    done = world.deploy("2", canary_weight=10, canary_minutes=0.02, prometheus_url=metrics.url)
    # While it was watched, stable's pods were those of before, and the champion too.
    assert seen and all(one == (({"stable": "1", "canary": "2"}, "1"), True) for one in seen)
    assert world.state == ({"stable": "2"}, "2")
    assert world.served() == [("1", False), ("2", True)]
    canary = done.details["canary"]
    assert canary["weight"] == 10 and "Version 2 holds up beside 1" in canary["reason"] and canary["figures"]
    assert world.revisions() == ["superseded", "superseded", "deployed"]


def test_withdrawn_for_its_metrics(world: World, metrics: Metrics) -> None:
    world.deploy("1")
    metrics.failed["2"] = 200
    with pytest.raises(CanaryWithdrawn, match="Version 2 was withdrawn as a canary") as withdrawn:
        world.deploy("2", canary_weight=10, canary_minutes=0.02, prometheus_url=metrics.url)
    assert withdrawn.value.figures
    assert world.state == ({"stable": "1"}, "1")
    assert world.served() == [("1", True)]
    assert [thing["metadata"]["name"] for thing in world.cluster.of("deployments")] == ["reviews"]


def test_withdrawn_for_its_answers(world: World) -> None:
    world.deploy("1")
    world.cluster.wrong = {"2"}
    world.cluster.log = "'bad': answered 'positive' for 'negative'.\n"
    with pytest.raises(CanaryWithdrawn, match="failed the replay of test rows") as withdrawn:
        world.deploy("2", canary_weight=10)
    assert "answered 'positive' for 'negative'" in str(withdrawn.value)
    assert world.state == ({"stable": "1"}, "1")


def test_promoted_for_its_answers_alone(world: World) -> None:
    world.deploy("1")
    done = world.deploy("2", canary_weight=10)
    assert "without a prometheus_url, no metrics were looked at" in done.details["canary"]["reason"]
    assert world.state == ({"stable": "2"}, "2")


def test_a_canary_that_does_not_come_up(world: World, metrics: Metrics) -> None:
    world.deploy("1")
    world.cluster.behaviour["2"] = "crash"
    with pytest.raises(ServingError, match="CrashLoopBackOff") as failure:
        world.deploy("2", canary_weight=10, prometheus_url=metrics.url)
    assert not isinstance(failure.value, CanaryWithdrawn)
    assert world.state == ({"stable": "1"}, "1")


def test_a_canary_that_cannot_be_judged(world: World, metrics: Metrics) -> None:
    world.deploy("1")
    metrics.broken = True
    with pytest.raises(ServingError, match="out of order") as failure:
        world.deploy("2", canary_weight=10, canary_minutes=0.02, prometheus_url=metrics.url)
    assert not isinstance(failure.value, CanaryWithdrawn)
    assert world.state == ({"stable": "1"}, "1")


def test_nobody_to_judge_it(world: World) -> None:
    world.deploy("1")
    before = world.revisions()
    with pytest.raises(ServingError, match=r"127\.0\.0\.1:9"):
        world.deploy("2", canary_weight=10, prometheus_url="http://127.0.0.1:9")
    assert world.state == ({"stable": "1"}, "1")
    assert world.revisions() == before, "the canary was not to come up at all"


def test_the_lock_is_lost_while_it_is_watched(world: World, metrics: Metrics) -> None:
    world.deploy("1")
    looks: list[None] = []

    def allowed() -> None:
        looks.append(None)
        if world.cluster.serving().get("canary"):
            raise RegistryError("the lock was lost")

    with pytest.raises(RegistryError, match="the lock was lost"):
        world.deploy("2", canary_weight=10, canary_minutes=0.02, prometheus_url=metrics.url, allowed=allowed)
    assert looks and world.state == ({"stable": "1"}, "1")


def test_the_first_version_has_nothing_to_stand_beside(world: World) -> None:
    assert "canary" not in world.deploy("1", canary_weight=10).details
    assert world.state == ({"stable": "1"}, "1")


def test_other_values_come_with_the_promotion(world: World, metrics: Metrics) -> None:
    world.deploy("1")
    replicas = []
    metrics.on_query = lambda: replicas.extend(thing["spec"]["replicas"] for thing in world.cluster.of("deployments"))
    values = {"mlflow": {"trackingUri": TRACKING_URI}, "replicas": 5, "canary": {"replicas": 3}}
    settings = {"canary_weight": 10, "canary_minutes": 0.02, "prometheus_url": metrics.url}
    world.deploy("2", serving_values=values, **settings)
    assert 3 in replicas and 5 not in replicas
    assert [thing["spec"]["replicas"] for thing in world.cluster.of("deployments")] == [5]
