"""The webhook, against a real HTTP server."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from stillhouse.deploy.notify import WEBHOOK_VARIABLE, notify
from stillhouse.registry import MlflowRegistry


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


def test_a_run_that_never_ends_for_kubeflow_is_judged_by_what_it_left(
    hook: Hook, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, new_mlflow: Callable[[Path], str]
):
    monkeypatch.setenv(WEBHOOK_VARIABLE, hook.url)
    uri = new_mlflow(tmp_path)
    registry = MlflowRegistry(uri)
    cases = {("RUNNING", "deployed"): "m succeeded", ("RUNNING", "failed"): "m failed", ("FAILED", "kept"): "m failed",
             ("RUNNING", ""): "m ended."}  # fmt: skip
    for index, (state, outcome) in enumerate(cases):
        if outcome:
            registry.record_outcome(f"run-{index}", outcome, "Because.", experiment="e", tags={"model_name": "m"})
        assert notify(state=state, model_name="m", data="d", tracking_uri=uri, pipeline_run=f"run-{index}") is True
    for body, said in zip(hook.bodies, cases.values(), strict=True):
        assert said in body["text"]


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


def test_it_says_what_came_of_the_run(
    hook: Hook, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, new_mlflow: Callable[[Path], str]
):
    uri = new_mlflow(tmp_path)
    registry = MlflowRegistry(uri)
    record = {"model_name": "reviews"}
    registry.record_outcome("run-1", "unchanged", "Nothing has changed.", experiment="nightly", tags=record)
    monkeypatch.setenv(WEBHOOK_VARIABLE, hook.url)
    assert notify(state="SUCCEEDED", model_name="reviews", data="d", tracking_uri=uri, pipeline_run="run-1")
    registry.record_outcome("run-1", "challenger", "It is not more than noise.")
    registry.client().set_tag(registry.run_record("run-1").run_id, "stillhouse.model_version", "7")
    assert notify(state="SUCCEEDED", model_name="reviews", data="d", tracking_uri=uri, pipeline_run="run-1")
    first, second = hook.bodies
    assert first["text"] == "Stillhouse: the run for reviews succeeded. Unchanged: Nothing has changed."
    assert second["text"].endswith("succeeded. Challenger (version 7): It is not more than noise.")
    assert (second["outcome"], second["outcome_reason"]) == ("challenger", "It is not more than noise.")
    assert (second["model_version"], second["pipeline_run"]) == ("7", "run-1")


@pytest.mark.parametrize("uri", ["http://user:hunter2@127.0.0.1:1", "", "nonsense"])
def test_it_is_sent_also_where_the_registry_cannot_be_reached(
    hook: Hook, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, uri: str
):
    monkeypatch.setenv(WEBHOOK_VARIABLE, hook.url)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert notify(state="FAILED", model_name="m", data="d", error="e", tracking_uri=uri, pipeline_run="run-1") is True
    (body,) = hook.bodies
    assert (body["text"], body["outcome"]) == ("Stillhouse: the run for m failed. e", "")
    assert "hunter2" not in caplog.text + json.dumps(body)
