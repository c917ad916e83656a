"""The webhook, against a real HTTP server."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from stillhouse.deploy.notify import WEBHOOK_VARIABLE, notify


class Hook:
    """A server that keeps what it was sent."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.status = 200
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                hook.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(hook.status)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook?token=hunter2"


@pytest.fixture
def hook() -> Iterator[Hook]:
    hook = Hook()
    thread = threading.Thread(target=hook.server.serve_forever)
    thread.start()
    yield hook
    hook.server.shutdown()
    hook.server.server_close()
    thread.join()


def test_it_does_nothing_unless_asked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(WEBHOOK_VARIABLE, raising=False)
    assert notify(state="SUCCEEDED", model_name="m", data="d") is False


def test_it_says_how_the_run_ended_without_secrets(hook: Hook, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(WEBHOOK_VARIABLE, hook.url)
    assert notify(state="SUCCEEDED", model_name="m", data="https://user:pw@host/rows.csv?signature=s") is True
    assert notify(state="FAILED", model_name="m", data="d", error="step x failed") is True
    good, bad = hook.bodies
    assert (good["state"], good["data"]) == ("SUCCEEDED", "https://host/rows.csv")
    assert "m succeeded" in good["text"]
    assert "failed. step x failed" in bad["text"]


@pytest.mark.parametrize("broken", ["status", "nobody", "nonsense"])
def test_a_webhook_that_fails_is_only_logged_and_not_by_its_url(
    hook: Hook, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, broken: str
):
    hook.status = 500
    urls = {"status": hook.url, "nobody": "http://127.0.0.1:1/?token=hunter2", "nonsense": "hunter2"}
    monkeypatch.setenv(WEBHOOK_VARIABLE, urls[broken])
    assert notify(state="FAILED", model_name="m", data="d") is False
    assert "not reached" in caplog.text
    assert "hunter2" not in caplog.text
