"""The request log where it belongs: in the Python process of a real Triton."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import psutil
import pytest
from tiny_package import LABELS, TEXTS
from tritonclient import grpc

from stillhouse.errors import ServingError
from stillhouse.serving.request_log import compact, read
from stillhouse.serving.runtime import PackageRuntime
from stillhouse.serving.server import read_status, start_server, stop_folder
from stillhouse.tasks.front_models.request_log import VARIABLE, RequestLog

HOOK = """
import dataclasses

@dataclasses.dataclass
class Word:
    text: str

def clean(text):
    return text.replace(Word("film").text, "[FILM]")
"""


@pytest.fixture
def logged(own_server, monkeypatch, tmp_path):
    """Configuration of a server that logs every request, and the log's folder."""
    (tmp_path / "hook.py").write_text(HOOK)
    settings = {"": str(tmp_path / "log"), "_SAMPLE": "1", "_TEXT": "redacted", "_REDACT": f"{tmp_path}/hook.py:clean"}
    for name, value in settings.items():
        monkeypatch.setenv(VARIABLE + name, value)
    return own_server, tmp_path / "log"


def ask(status, texts, **options):
    with grpc.InferenceServerClient(status.grpc_url) as client:
        tensor = grpc.InferInput("TEXT", [len(texts), 1], "BYTES")
        tensor.set_data_from_numpy(np.array([text.encode() for text in texts], dtype=np.object_).reshape(-1, 1))
        return client.infer("reviews", [tensor], **options)


def asked(folder):
    """The rows without the supervisor's own probes."""
    return [row for row in read(folder).to_pylist() if row["text"] != "ok"]


def test_what_was_asked_is_in_the_log(logged):
    config, folder = logged
    status = start_server(config)
    before = time.time()
    ask(status, TEXTS)
    ask(status, ["mail me@example.org"])
    ask(status, ["a probe"], request_id=RequestLog.PROBE_ID)
    with pytest.raises(Exception, match="401 bytes"):
        ask(status, ["fine", "x" * 401])  # refused, so there is no prediction to log
    stop_folder(config.folder)
    assert not list(folder.glob("*.open"))  # closed in an orderly way
    compact(folder)
    rows = asked(folder)
    known = PackageRuntime(config.package).predict(TEXTS)
    assert [row["text"] for row in rows] == [*(t.replace("film", "[FILM]") for t in TEXTS), "mail [EMAIL]"]
    assert [row["label"] for row in rows[: len(TEXTS)]] == known.labels
    np.testing.assert_allclose([row["probabilities"] for row in rows[: len(TEXTS)]], known.probabilities, atol=2e-6)
    assert {row["release"] for row in rows} == {"7"}
    assert {row["model"] for row in rows} == {"reviews"}
    assert {tuple(row["label_names"]) for row in rows} == {LABELS}
    assert [row["tokens"] for row in rows[:3]] == [6, 3, 24]  # with [CLS] and [SEP], cut at 24
    assert [row["bytes"] for row in rows[:2]] == [len(TEXTS[0]), len(TEXTS[1])]
    assert all(before <= row["timestamp"].timestamp() <= time.time() for row in rows)


def test_a_kill_loses_no_row_that_was_written(logged):
    config, folder = logged
    status = start_server(config)
    ask(status, TEXTS)
    time.sleep(1)  # the log's thread writes within a quarter of that
    for child in psutil.Process(status.server_pid).children(recursive=True):
        os.kill(child.pid, signal.SIGKILL)
    stop_folder(config.folder)
    compact(folder)
    assert len(asked(folder)) == len(TEXTS)


def test_settings_that_cannot_be_understood_keep_the_model_from_loading(logged, monkeypatch):
    config, folder = logged
    monkeypatch.setenv(f"{VARIABLE}_TEXT", "everything")
    with pytest.raises(ServingError, match=r"'everything' is unknown\. Choose one of: drop"):
        start_server(config)
    assert not folder.exists()


def test_a_disk_that_fails_fails_no_request(logged):
    config, folder = logged
    folder.write_text("a file stands where the folder should be")
    status = start_server(config)
    assert ask(status, TEXTS).as_numpy("LABEL").shape == (len(TEXTS), 1)
    assert read_status(config.folder).restarts == 0


def test_without_the_setting_there_is_no_log(own_server, tmp_path):
    status = start_server(own_server)
    ask(status, TEXTS)
    assert not list(tmp_path.rglob("*.jsonl*"))
