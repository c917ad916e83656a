"""Load tests of a real server, through the library and through `stillhouse bench serve`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
from tiny_package import TEXTS

from stillhouse.errors import InputError
from stillhouse.loadtest import run_load, run_open_load


@pytest.fixture
def bench(tmp_path):
    environment = {**os.environ, "STILLHOUSE_HOME": str(tmp_path / "home")}

    def run(*arguments, stdin=""):
        return subprocess.run(
            [sys.executable, "-m", "stillhouse.cli.main", "bench", "serve", *arguments],
            env=environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


def endpoint(server):
    return ["--url", server.grpc_url, "--model", "reviews"]


def test_closed_loop(server):
    result = run_load(server.grpc_url, "reviews", TEXTS, concurrency=4, seconds=1.0, batch_size=4)
    assert result.errors == {}
    assert result.releases == {"7": result.requests}
    assert result.texts_per_second == pytest.approx(4 * result.requests, rel=0.1)
    assert 0 < result.p50 <= result.p95 <= result.p99 < 1000


def test_open_loop(server):
    result = run_open_load(server.grpc_url, "reviews", TEXTS, rate=20, seconds=1.0)
    assert result.errors == {}
    assert result.requests == 20
    assert result.releases == {"7": 20}


def test_refused_texts_are_errors_of_the_load(server):
    """The first text is fine, so the load begins; the second is over the model's limit."""
    result = run_load(server.grpc_url, "reviews", ["good", "x" * 401], concurrency=1, seconds=0.5, warmup=0)
    assert set(result.errors) == {"INVALID_ARGUMENT"}
    assert abs(result.errors["INVALID_ARGUMENT"] - result.releases["7"]) <= 1


@pytest.mark.parametrize(
    ("model", "batch_size", "words"),
    [
        ("verdicts", 1, "serves no model 'verdicts'"),
        ("reviews", 9, "refuses the first request: .*batch-size must be <= 8"),
    ],
)
def test_what_the_server_can_never_answer_is_told_at_once(server, model, batch_size, words):
    begin = time.monotonic()
    with pytest.raises(InputError, match=words):
        run_load(server.grpc_url, model, TEXTS, concurrency=1, seconds=30, batch_size=batch_size)
    assert time.monotonic() - begin < 10


def test_the_command_ramps_up_and_writes_what_it_found(server, bench, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("the film was good\n\nthe plot was awful\n", encoding="utf-8")
    folder = tmp_path / "results"
    done = bench(
        *endpoint(server), "--texts", str(texts), "-c", "2,1", "--seconds", "0.5", "--output", str(folder)
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "p99 ms" in done.stdout and done.stdout.count("◀ knee") == 1
    assert "1 at once: " in done.stderr and "2 at once: " in done.stderr
    document = json.loads((folder / "bench.json").read_text(encoding="utf-8"))
    assert [step["concurrency"] for step in document["steps"]] == [1, 2]
    assert all(step["requests"] and not step["errors"] for step in document["steps"])
    assert document["knee"] in (1, 2)
    assert document["settings"]["different_texts"] == 2
    assert (folder / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (folder / "bench.svg").read_bytes()


def test_the_command_compares_two_servers(server, bench, tmp_path):
    done = bench(
        *endpoint(server), "--against", server.grpc_url, "-c", "1,2", "--seconds", "0.5", "--json", "--texts", "-",
        stdin="the film was good\n",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    for step in document["steps"]:
        ours, theirs = step["texts_per_second"], step["against"]["texts_per_second"]
        assert step["throughput_ratio"] == pytest.approx(ours / theirs, rel=1e-3)
        assert 0.2 < step["throughput_ratio"] < 5  # they are one and the same
    assert document["knee_against"] in (1, 2)
    (stored,) = (tmp_path / "home" / "bench").glob("reviews-*/bench.json")
    assert json.loads(stored.read_text(encoding="utf-8")) == document
