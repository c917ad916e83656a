"""charts/triton/files/pod.py against a server that answers as Triton does; tests/serving has the real one."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "charts" / "triton" / "files" / "pod.py"
KEY = "b1946ac9-uid"
ANSWER = {"model_name": "reviews", "model_version": "7", "outputs": [{"name": "LABEL", "data": ["positive"]}]}


class Triton:
    """What the server answers, and what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        self.infer: tuple[int, Any] = (200, ANSWER)
        self.ready = 200
        self.states: list[str] = ["unloaded"]
        self.delay = 0.0
        self.unloaded_at = 0.0

    def answer(self, method: str, path: str, body: Any, key: str | None) -> tuple[int, Any]:
        self.asked.append((method, path, body))
        time.sleep(self.delay)
        if path.startswith("/v2/repository/"):
            if key != KEY:
                return 403, {"error": "This API is restricted, expecting header 'closed'"}
            if path.endswith("/unload"):
                self.unloaded_at = time.monotonic()
                return 200, None
            state = self.states.pop(0) if len(self.states) > 1 and self.unloaded_at else self.states[0]
            return 200, [{"name": "reviews-encoder", "state": "READY"}, {"name": "reviews", "reason": state}]
        if path.endswith("/infer"):
            return self.infer
        return (self.ready, None) if path.endswith("/ready") else (404, {"error": path})


@pytest.fixture
def triton() -> Iterator[tuple[Triton, int]]:
    world = Triton()

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, body = world.answer(
                self.command, self.path, json.loads(data) if data else None, self.headers.get("closed")
            )
            text = b"" if body is None else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = _serve

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield world, server.server_address[1]
    server.shutdown()
    server.server_close()


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def pod(triton: tuple[Triton, int]) -> Run:
    """Runs the script as the chart does: isolated, without site-packages."""

    def run(what: str, *options: str, key: str = KEY, port: int = triton[1]) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-IS", str(SCRIPT), what, "reviews", f"--port={port}", *options]
        return subprocess.run(command, capture_output=True, text=True, env={"POD_KEY": key}, timeout=30)

    return run


def test_a_real_inference_is_alive(triton, pod: Run):
    done = pod("live")
    assert (done.returncode, done.stdout) == (0, "version 7 answered\n"), done.stderr
    ((method, path, body),) = triton[0].asked
    assert (method, path) == ("POST", "/v2/models/reviews/infer")
    assert body["id"] == "stillhouse-probe", "or probes would be in the request log"
    assert body["inputs"][0]["shape"] == [1, 1]
    pod("live")
    assert triton[0].asked[1][2] != body, "an answer from the response cache proves nothing"


@pytest.mark.parametrize(
    "answer",
    [
        (500, {"error": "Failed to process the request(s): Stub process is not healthy."}),
        (404, {"error": "Request for unknown model: 'reviews' has no available versions"}),
        (503, {"error": "the model is overloaded: 264 requests are waiting already"}),
        (200, {"model_name": "reviews"}),
        (200, {}),
    ],
)
def test_what_is_no_answer_is_not_alive(triton, pod: Run, answer: tuple[int, Any]):
    triton[0].infer = answer
    done = pod("live")
    assert done.returncode == 1
    assert f"live: status {answer[0]}" in done.stderr
    assert "Traceback" not in done.stderr


def test_silence_is_not_alive_and_told_in_time(triton, pod: Run):
    triton[0].delay = 3
    begin = time.monotonic()
    done = pod("live", "--timeout=0.5")
    assert done.returncode == 1
    assert time.monotonic() - begin < 2
    assert "timed out" in done.stderr


@pytest.mark.parametrize("what", ["live", "ready"])
def test_nobody_is_neither_alive_nor_ready(pod: Run, what: str):
    done = pod(what, port=1)
    assert done.returncode == 1
    assert "refused" in done.stderr


def test_ready(triton, pod: Run):
    assert pod("ready").returncode == 0
    assert [path for _, path, _ in triton[0].asked] == ["/v2/health/ready", "/v2/models/reviews/ready"]
    triton[0].ready = 400
    done = pod("ready")
    assert done.returncode == 1
    assert "/v2/health/ready: status 400" in done.stderr


def test_the_drain_serves_on_then_unloads_then_waits(triton, pod: Run):
    world = triton[0]
    world.states = ["", "", "", "unloaded"]
    begin = time.monotonic()
    done = pod("drain", "--delay=1", "--timeout=5")
    assert done.returncode == 0, done.stderr
    assert world.unloaded_at - begin >= 1
    assert world.states == ["unloaded"], "it came back before everything was answered"
    paths = [path for _, path, _ in world.asked]
    assert paths.count("/v2/repository/models/reviews/unload") == 1


def test_a_drain_that_takes_too_long_says_so(triton, pod: Run):
    triton[0].states = ["UNLOADING"]
    begin = time.monotonic()
    done = pod("drain", "--timeout=1")
    assert done.returncode == 1
    assert 1 <= time.monotonic() - begin < 3
    assert "still has requests to answer after 1 s" in done.stderr


def test_a_drain_without_the_key_fails(triton, pod: Run):
    done = pod("drain", key="wrong")
    assert done.returncode == 1
    assert "unloading reviews: status 403: This API is restricted" in done.stderr
    assert "wrong" not in done.stderr


def test_there_is_nothing_to_drain_where_nobody_listens(pod: Run):
    begin = time.monotonic()
    done = pod("drain", "--delay=20", port=1)
    assert done.returncode == 0, done.stderr
    assert "no server to drain" in done.stdout
    assert time.monotonic() - begin < 5, "a server that never came up need not be waited for"
