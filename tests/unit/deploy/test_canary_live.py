"""Canaries watched through a real Prometheus, which scrapes pods that export what Triton does."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from live_prometheus import NAMESPACE, RELEASE, Pod, prometheus

from stillhouse.deploy.canary import CanaryWatch, Verdict, watch_canary
from stillhouse.deploy.canary.prometheus import Prometheus
from stillhouse.errors import RegistryError, ServerUnavailable, ServingError
from stillhouse.progress import EVENTS_VARIABLE, Step

pytestmark = pytest.mark.slow


class Tracks:
    """Two stable pods and one of the canary, with traffic on them."""

    def __init__(self, folder: Path) -> None:
        self.pods = [Pod("s-1", "stable", "7"), Pod("s-2", "stable", "7"), Pod("c-1", "canary", "8")]
        self.canary = self.pods[2]
        self.folder = folder
        self.url = ""

    def watch(self, **settings: Any) -> CanaryWatch:
        given = {"minutes": 3 / 60, "interval_s": 0.5, **settings}
        return CanaryWatch(
            prometheus_url=self.url, namespace=NAMESPACE, release=RELEASE, model="reviews", stable_version="7",
            canary_version="8", **given,
        )  # fmt: skip

    def judged(self, canary: Callable[[int], dict[str, int]], **settings: Any) -> Verdict:
        """The verdict while stable's pods answer 20 requests every tenth of a second, and the canary as told."""
        with self.traffic(canary):
            return watch_canary(self.watch(**settings), step=Step("deploy"), allowed=lambda: None)

    @contextmanager
    def traffic(self, canary: Callable[[int], dict[str, int]]) -> Iterator[None]:
        done = threading.Event()

        def answer() -> None:
            tick = 0
            while not done.wait(0.1):
                for pod in self.pods[:2]:
                    pod.answer(20)
                self.canary.answer(**canary(tick))
                tick += 1

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            time.sleep(0.5)
            yield
        finally:
            done.set()
            thread.join()


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracks]:
    tracks = Tracks(tmp_path_factory.mktemp("canary"))
    with prometheus(tracks.folder / "prometheus", [pod.target for pod in tracks.pods]) as tracks.url:
        yield tracks
    for pod in tracks.pods:
        pod.close()


@pytest.fixture
def tracks(watched: Tracks) -> Tracks:
    """Pods that begin anew for each test, before its watch does."""
    for pod in watched.pods:
        pod.restart()
        pod.mean_ms, pod.p99_ms = 10.0, 30.0
    return watched


def test_a_good_canary_is_promoted_when_the_time_is_over(tracks: Tracks, monkeypatch: pytest.MonkeyPatch):
    events = tracks.folder / "events.jsonl"
    monkeypatch.setenv(EVENTS_VARIABLE, str(events))
    for pod in tracks.pods:
        pod.answer(5000)  # before the watch, and none of its
    begin = time.monotonic()
    verdict = tracks.judged(lambda tick: {"requests": 10})
    assert verdict.promote, verdict.reason
    assert 3 <= time.monotonic() - begin < 6
    stable, canary = verdict.figures["stable"], verdict.figures["canary"]
    assert (stable["pods"], canary["pods"], canary["failed"], canary["restarts"]) == (2, 1, 0, 0)
    assert 200 <= canary["requests"] <= 400 and canary["requests"] % 10 == 0
    assert stable["requests"] == pytest.approx(4 * canary["requests"], rel=0.15)
    assert canary["mean_ms"] == pytest.approx(10.0) and canary["p99_ms"] == pytest.approx(30.0)
    assert canary["queue_ms"] == pytest.approx(2.0) and canary["p50_ms"] == pytest.approx(10.0)
    json.dumps(verdict.figures)
    told = [json.loads(line) for line in events.read_text().splitlines()]
    assert {(entry["event"], entry["total"]) for entry in told} == {("progress", 3)}
    assert "version 8: " in told[-1]["note"] and "p99 30 ms" in told[-1]["note"]


def test_a_canary_that_fails_is_withdrawn_before_the_time_is_over(tracks: Tracks):
    begin = time.monotonic()
    verdict = tracks.judged(lambda tick: {"requests": 10, "failed": 1}, minutes=10)
    assert not verdict.promote and "10.00% of its requests failed, and 0.00% of version 7's" in verdict.reason
    assert time.monotonic() - begin < 20 and verdict.figures["early"]


def test_a_canary_that_turns_away_what_stable_takes_is_not_promoted(tracks: Tracks):
    verdict = tracks.judged(lambda tick: {"requests": 10, "refused": 3})
    assert not verdict.promote and "turned away under load" in verdict.reason and " failed" not in verdict.reason


def test_a_canary_whose_server_begins_anew_is_withdrawn(tracks: Tracks):
    def restarting(tick: int) -> dict[str, int]:
        if tick == 15:
            tracks.canary.restart()
        return {"requests": 10}

    verdict = tracks.judged(restarting, minutes=10)
    assert not verdict.promote and "its pods restarted once" in verdict.reason


def test_a_slow_canary_is_not_promoted(tracks: Tracks):
    tracks.canary.mean_ms, tracks.canary.p99_ms = 25.0, 60.0
    verdict = tracks.judged(lambda tick: {"requests": 10})
    assert not verdict.promote
    assert "mean latency is 25.0 ms" in verdict.reason and "p99 latency is 60.0 ms" in verdict.reason


def test_a_canary_that_nobody_asks_is_not_promoted(tracks: Tracks):
    verdict = tracks.judged(lambda tick: {"requests": 0})
    assert not verdict.promote and "Too little traffic on canary" in verdict.reason
    assert verdict.figures["canary"]["p99_ms"] is None  # a quantile of nothing, which is NaN


def test_a_version_that_is_not_there_has_no_metrics(tracks: Tracks):
    with tracks.traffic(lambda tick: {"requests": 10}):
        watch = CanaryWatch(**{**vars(tracks.watch()), "canary_version": "9"})
        verdict = watch_canary(watch, step=Step("deploy"), allowed=lambda: None)
    assert not verdict.promote and "no metrics of canary" in verdict.reason


def test_whoever_lost_the_lock_stops_watching(tracks: Tracks):
    def lost() -> None:
        raise RegistryError("The lock was lost.")

    with pytest.raises(RegistryError, match="lock was lost"):
        watch_canary(tracks.watch(minutes=10), step=Step("deploy"), allowed=lost)


def test_a_prometheus_that_goes_away_is_waited_for_and_then_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("stillhouse.deploy.canary.watch._PATIENCE_S", 1.5)
    tracks, looks = Tracks(tmp_path), 0
    with ExitStack() as running:
        tracks.url = running.enter_context(prometheus(tmp_path / "prometheus", [pod.target for pod in tracks.pods]))

        def end_it_at_the_third_look() -> None:
            nonlocal looks
            looks += 1
            if looks == 3:
                running.close()

        # Also past the end: without a last look there is no verdict.
        with pytest.raises(ServerUnavailable, match="does not answer: Connection refused"):
            watch_canary(tracks.watch(minutes=1 / 60, interval_s=0.2), step=Step("x"), allowed=end_it_at_the_third_look)
    assert looks >= 6
    for pod in tracks.pods:
        pod.close()


def test_a_wrong_question_is_told_in_prometheus_own_words(tracks: Tracks):
    with pytest.raises(ServingError, match=r"refused the question \(400\): .*parse error"):
        Prometheus(tracks.url).query("up{")
    with pytest.raises(ServingError, match=r"no API there \(404\)"):
        Prometheus(tracks.url + "/elsewhere").query("up")
    assert Prometheus(tracks.url).now() == pytest.approx(time.time(), abs=5)
