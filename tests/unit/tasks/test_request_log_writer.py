from __future__ import annotations

import hashlib
import hmac
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from stillhouse.tasks.front_models import request_log
from stillhouse.tasks.front_models.request_log import FORMAT, RequestLog, Settings, redact

LABELS = ["no", "yes"]
ROWS = np.array([[0.25, 0.75], [0.9, 0.1]], dtype=np.float32)


def open_log(folder, *, chance=random.random, **settings):
    return RequestLog(
        Settings(folder=folder, **{"sample": 1.0, **settings}),
        model="reviews",
        release="7",
        label_names=LABELS,
        count_tokens=lambda texts: [len(text.split()) for text in texts],
        chance=chance,
    )


def lines(folder, pattern="*.jsonl"):
    return [json.loads(line) for path in sorted(folder.glob(pattern)) for line in path.read_bytes().splitlines()]


def rows(folder, pattern="*.jsonl"):
    return [line for line in lines(folder, pattern) if "label" in line]


def counts(folder):
    return [line for line in lines(folder) if "requests" in line]


def eventually(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
    return value


def test_a_segment_says_what_was_answered(tmp_path):
    log = open_log(tmp_path / "made")
    before = time.time()
    log.record(["a good film", "größe"], ["yes", "no"], ROWS)
    log.close()
    header, first, second, footer = lines(tmp_path / "made")
    assert header == {"format": FORMAT, "model": "reviews", "release": "7", "label_names": LABELS, "sample": 1.0}
    assert before - 1 <= first.pop("timestamp") <= time.time()
    assert first == {
        "label": "yes",
        "confidence": 0.75,
        "probabilities": [0.25, 0.75],
        "bytes": 11,
        "tokens": 3,
        "text": None,
    }
    assert (second["label"], second["bytes"], second["confidence"]) == ("no", 7, 0.9)
    assert footer == {"requests": 1, "dropped": 0, "expired": 0}
    (path,) = (tmp_path / "made").iterdir()
    assert path.stat().st_mode & 0o077 == 0  # it may hold what users wrote


def test_a_share_of_requests_is_logged_and_all_are_counted(tmp_path):
    log = open_log(tmp_path, sample=0.25, chance=random.Random(5).random)
    chance = random.Random(5)
    expected = sum(chance.random() < 0.25 for _ in range(400))
    for _ in range(400):
        log.record(["x"], ["yes"], ROWS[:1])
    log.close()
    assert 60 < expected < 140
    assert len(rows(tmp_path)) == expected
    assert sum(line["requests"] for line in counts(tmp_path)) == 400


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, None),
        ({"text": "full"}, "mail me@x.org"),
        ({"text": "redacted"}, "mail [EMAIL]"),
        ({"text": "redacted", "hook": str.upper}, "MAIL [EMAIL]"),
        ({"text": "redacted", "hook": lambda text: None}, None),
        ({"text": "redacted", "hook": lambda text: 1 / 0}, None),
        ({"text": "redacted", "hook": lambda text: 5}, None),
        ({"text": "redacted", "hook": lambda text: "\ud800"}, None),
        ({"text": "hash", "key": b"k"}, hmac.new(b"k", b"mail me@x.org", hashlib.sha256).hexdigest()),
    ],
)
def test_what_becomes_of_the_text(tmp_path, settings, expected):
    log = open_log(tmp_path, **settings)
    log.record(["mail me@x.org"], ["yes"], ROWS[:1])
    log.close()
    (row,) = rows(tmp_path)
    assert row["text"] == expected
    assert row["label"] == "yes"
    if settings.get("text") != "full":
        assert b"me@x.org" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to john.o'neil+news@mail.example.co.uk, or not", "write to [EMAIL], or not"),
        ("<a_b@localhost>", "<[EMAIL]>"),
        ("full-width a＠b.jp", "full-width [EMAIL]"),
        ("call +49 (171) 123-45.67 now", "call [PHONE] now"),
        ("tel:5551234", "tel:[PHONE]"),
        ("٠١٢٣٤٥٦٧٨", "[PHONE]"),
        ("paid with 4111 1111 1111 1111.", "paid with [CARD]."),
        ("4111-1111-1111-1111", "[CARD]"),
        ("5" * 40, "[CARD]"),
        ("seen 3 times in 2019, 9.5 of 10", "seen 3 times in 2019, 9.5 of 10"),
        ("@home with 123456", "@home with 123456"),
    ],
)
def test_redaction(text, expected):
    assert redact(text) == expected


@pytest.mark.parametrize("unit", ["x", "a@", "1 ", "1.1...", "(1", "@", "a.-", "1" * 6 + "x", "x@", "1    "])
def test_no_text_makes_redaction_slow(unit):
    def seconds(size):
        text = (unit * size)[:size] + "@"
        begin = time.perf_counter()
        redact(text)
        return time.perf_counter() - begin

    # A quadratic pattern takes seconds for the first, and a thousand times that for the second.
    assert min(seconds(20_000) for _ in range(3)) < 0.1
    assert min(seconds(200_000) for _ in range(3)) < 1


def test_segments_are_closed_by_size_and_by_age(tmp_path):
    log = open_log(tmp_path, segment_bytes=2000)
    for _ in range(100):
        log.record(["x"], ["yes"], ROWS[:1])
    log.close()
    closed = list(tmp_path.glob("*.jsonl"))
    assert len(closed) > 3
    # A footer comes on top, when the segment is full.
    assert max(path.stat().st_size for path in closed) < 2000 + 100
    assert len(rows(tmp_path)) == 100
    assert sum(line["requests"] for line in counts(tmp_path)) == 100

    aged = tmp_path / "aged"
    log = open_log(aged, segment_seconds=0.5)
    log.record(["x"], ["yes"], ROWS[:1])
    eventually(lambda: rows(aged, "*.jsonl.open"))
    assert not rows(aged)
    eventually(lambda: rows(aged))
    log.close()
    assert len(list(aged.iterdir())) == 1  # an idle log makes no further segments


def test_disk_use_is_bounded_and_the_oldest_go(tmp_path):
    log = open_log(tmp_path, segment_bytes=2000, max_bytes=10_000)
    for index in range(200):
        log.record(["x"], [str(index)], ROWS[:1])
    log.close()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 10_000
    labels = [int(row["label"]) for row in rows(tmp_path)]
    assert labels == list(range(200 - len(labels), 200))
    expired = sum(line["expired"] for line in counts(tmp_path))
    assert 0 < expired < 200  # some of the counts have expired themselves


def test_a_full_queue_drops_and_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(request_log, "_QUEUE_BYTES", 5 * (request_log._ROW_BYTES + 1))
    monkeypatch.setattr(request_log, "_WAKE", 60.0)  # nothing is taken from the queue until the log is closed
    log = open_log(tmp_path)
    for _ in range(8):
        log.record(["x"], ["yes"], ROWS[:1])
    log.close()
    assert len(rows(tmp_path)) == 5
    assert counts(tmp_path) == [{"requests": 8, "dropped": 3, "expired": 0}]


def test_a_folder_that_cannot_be_written_costs_rows_and_nothing_else(tmp_path, capfd):
    blocked = tmp_path / "log"
    blocked.write_text("a file stands where the folder should be")
    log = open_log(blocked)
    log.record(["x", "y"], ["yes", "no"], ROWS)
    eventually(lambda: log._segments.dropped == 2)
    log.record(["x"], ["yes"], ROWS[:1])
    eventually(lambda: log._segments.dropped == 3)
    blocked.unlink()
    log.record(["z"], ["yes"], ROWS[:1])
    log.close()
    assert len(rows(blocked)) == 1
    assert counts(blocked) == [{"requests": 3, "dropped": 3, "expired": 0}]
    assert capfd.readouterr().err.count("the request log lost rows: FileExistsError") == 1


def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch):
    write, failures = os.write, [9, 0]

    def full(file, data):
        if b"label_names" not in data and failures:
            return write(file, data[: failures.pop()])  # a disk that fills up takes a part
        return write(file, data)

    monkeypatch.setattr(request_log.os, "write", full)
    log = open_log(tmp_path)
    for label in ("one", "two", "three"):
        log.record(["x"], [label], ROWS[:1])
    log.close()
    assert [row["label"] for row in rows(tmp_path)] == ["three"]
    assert counts(tmp_path) == [{"requests": 3, "dropped": 2, "expired": 0}]


WRITER = """
import sys, time
import numpy as np
from pathlib import Path
from stillhouse.tasks.front_models.request_log import RequestLog, Settings
log = RequestLog(Settings(folder=Path(sys.argv[1]), sample=1.0), model="m", release="1", label_names=["a"],
                 count_tokens=lambda texts: [1] * len(texts))
log.record(["x"], ["a"], np.ones((1, 1)))
time.sleep(60)
"""


def test_the_segment_of_a_killed_process_is_closed_by_the_next(tmp_path):
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)]) as process:
        try:
            eventually(lambda: rows(tmp_path, "*.jsonl.open"), 30)
            assert request_log.close_abandoned(tmp_path) == []  # it lives
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    log = open_log(tmp_path)
    log.record(["y"], ["yes"], ROWS[:1])
    log.close()
    assert [row["label"] for row in rows(tmp_path)] == ["a", "yes"]
    assert not list(tmp_path.glob("*.open"))


def test_settings(tmp_path):
    assert Settings.from_environment({}) is None
    assert Settings.from_environment({"STILLHOUSE_REQUEST_LOG": "", "STILLHOUSE_REQUEST_LOG_SAMPLE": "x"}) is None
    assert Settings.from_environment({"STILLHOUSE_REQUEST_LOG": "/logs"}) == Settings(folder=Path("/logs"))
    hook = tmp_path / "hook.py"
    hook.write_text("def clean(text):\n    return text[:3]\n")
    found = Settings.from_environment(
        {
            "STILLHOUSE_REQUEST_LOG": "/logs",
            "STILLHOUSE_REQUEST_LOG_SAMPLE": "0.5",
            "STILLHOUSE_REQUEST_LOG_TEXT": "redacted",
            "STILLHOUSE_REQUEST_LOG_REDACT": f"{hook}:clean",
            "STILLHOUSE_REQUEST_LOG_KEY": "secret",
            "STILLHOUSE_REQUEST_LOG_SEGMENT_BYTES": "1000",
            "STILLHOUSE_REQUEST_LOG_SEGMENT_SECONDS": "1.5",
            "STILLHOUSE_REQUEST_LOG_MAX_BYTES": "5000",
        }
    )
    assert found.hook("abcdef") == "abc"
    assert (found.sample, found.text, found.key) == (0.5, "redacted", b"secret")
    assert (found.segment_bytes, found.segment_seconds, found.max_bytes) == (1000, 1.5, 5000)


def test_settings_that_cannot_be_understood_are_all_told(tmp_path):
    (tmp_path / "hook.py").write_text("clean = 5\n")
    with pytest.raises(ValueError) as caught:
        Settings.from_environment(
            {
                "STILLHOUSE_REQUEST_LOG": "logs",
                "STILLHOUSE_REQUEST_LOG_SAMPLE": "nan",
                "STILLHOUSE_REQUEST_LOG_TEXT": "everything",
                "STILLHOUSE_REQUEST_LOG_REDACT": f"{tmp_path / 'hook.py'}:clean",
                "STILLHOUSE_REQUEST_LOG_MAX_BYTES": "-1",
            }
        )
    for part in ("'logs' is no absolute", "SAMPLE: 'nan'", "'everything' is unknown", "clean is not a f", "'-1' is no"):
        assert part in str(caught.value)


def test_what_would_log_more_than_was_meant_is_an_error():
    with pytest.raises(ValueError) as caught:
        Settings.from_environment(
            {
                "STILLHOUSE_REQUEST_LOG": "/logs",
                "STILLHOUSE_REQUEST_LOG_TEXT": "hash",
                "STILLHOUSE_REQUEST_LOG_KEY": "",  # a secret that is not there
                "STILLHOUSE_REQUEST_LOG_REDACTION": "/hook.py:clean",
            }
        )
    assert "STILLHOUSE_REQUEST_LOG_REDACTION is unknown" in str(caught.value)
    assert "STILLHOUSE_REQUEST_LOG_KEY is empty" in str(caught.value)


def test_what_a_hook_says_of_its_failure_is_not_told(tmp_path, capfd):
    (tmp_path / "hook.py").write_text("def clean(text):\n    return int(text)\n")
    settings = Settings.from_environment(
        {
            "STILLHOUSE_REQUEST_LOG": str(tmp_path / "log"),
            "STILLHOUSE_REQUEST_LOG_SAMPLE": "1",
            "STILLHOUSE_REQUEST_LOG_TEXT": "redacted",
            "STILLHOUSE_REQUEST_LOG_REDACT": f"{tmp_path / 'hook.py'}:clean",
        }
    )
    log = open_log(tmp_path / "log", hook=settings.hook, text="redacted")
    log.record(["my name is Alice"], ["yes"], ROWS[:1])
    log.close()
    assert [row["text"] for row in rows(tmp_path / "log")] == [None]
    told = capfd.readouterr().err
    assert f"redaction hook failed: ValueError at {tmp_path / 'hook.py'}:2" in told and "Alice" not in told


@pytest.mark.parametrize("reference", ["nowhere.py:clean", "/etc/hostname:clean", "no colon", "{}:missing"])
def test_a_hook_that_cannot_be_loaded_is_an_error(tmp_path, reference):
    (tmp_path / "hook.py").write_text("")
    with pytest.raises(ValueError, match=r"_REDACT: .* cannot be loaded"):
        Settings.from_environment(
            {
                "STILLHOUSE_REQUEST_LOG": "/logs",
                "STILLHOUSE_REQUEST_LOG_TEXT": "redacted",
                "STILLHOUSE_REQUEST_LOG_REDACT": reference.format(tmp_path / "hook.py"),
            }
        )


def test_a_hook_needs_the_mode_that_runs_it(tmp_path):
    (tmp_path / "hook.py").write_text("clean = str.lower\n")
    environment = {
        "STILLHOUSE_REQUEST_LOG": "/logs",
        "STILLHOUSE_REQUEST_LOG_TEXT": "full",
        "STILLHOUSE_REQUEST_LOG_REDACT": f"{tmp_path / 'hook.py'}:clean",
    }
    with pytest.raises(ValueError, match="_REDACT is for STILLHOUSE_REQUEST_LOG_TEXT=redacted, and that is 'full'"):
        Settings.from_environment(environment)
