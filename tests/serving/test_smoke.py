"""The smoke test and its command, against a real server."""

from __future__ import annotations

import json
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tiny_package import TEXTS

from stillhouse.cli.main import main
from stillhouse.deploy.smoke import KnownAnswer, ask_known_answers, known_answers, smoke_test
from stillhouse.errors import ServingError
from stillhouse.serving.server import start_server
from stillhouse.serving.triton import free_ports


@pytest.fixture(scope="module")
def answers(package: Path) -> list[KnownAnswer]:
    return known_answers(package, TEXTS)


@pytest.fixture
def file(answers: list[KnownAnswer], tmp_path: Path) -> Path:
    path = tmp_path / "answers.json"
    path.write_text(json.dumps([vars(answer) for answer in answers]))
    return path


def smoke(monkeypatch: pytest.MonkeyPatch, url: str, *options: object, version: str = "7") -> int:
    """Exit code of the command."""
    arguments = ["smoke", "--url", url, "--model", "reviews", "--version", version, *map(str, options)]
    monkeypatch.setattr(sys, "argv", ["stillhouse", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def wrong(answers: list[KnownAnswer], count: int) -> list[KnownAnswer]:
    """The first ones with a label that the server does not give."""
    labels = ["neutral" if answer.label != "neutral" else "negative" for answer in answers]
    changed = [KnownAnswer(answer.text, label) for answer, label in zip(answers, labels, strict=True)]
    return [*changed[:count], *answers[count:]]


def test_all_agree(server, file, monkeypatch, capsys):
    assert smoke(monkeypatch, server.grpc_url, "--answers", file) == 0
    said = capsys.readouterr().out
    assert f"reviews version 7 at {server.grpc_url}: 8 of 8 answers agree (100.0%), p50 " in said
    assert smoke(monkeypatch, server.grpc_url, "--answers", file, "--json") == 0
    body = json.loads(capsys.readouterr().out)
    assert (body["rows"], body["agreement"], body["faults"]) == (8, 1.0, [])
    assert 0 < body["p50_ms"] <= body["p95_ms"] < 1000


def test_without_answers_only_the_version_counts(server, monkeypatch, capsys):
    assert smoke(monkeypatch, server.grpc_url) == 0
    assert smoke(monkeypatch, server.grpc_url, "--timeout", "0.5", version="8") == 1
    assert "version 7 answered" in capsys.readouterr().err


def test_agreement_is_a_share(server, answers, tmp_path, monkeypatch, capsys):
    path = tmp_path / "two-wrong.json"
    path.write_text(json.dumps([vars(answer) for answer in wrong(answers, 2)]))
    assert smoke(monkeypatch, server.grpc_url, "--answers", path) == 1
    said = capsys.readouterr()
    assert "6 of 8 answers agree (75.0%)" in said.out
    assert "failed the smoke test on 2 of 8 rows" in said.err
    assert said.err.count("answered '") == 2
    assert smoke(monkeypatch, server.grpc_url, "--answers", path, "--min-agreement", "0.75") == 0
    assert smoke(monkeypatch, server.grpc_url, "--answers", path, "--min-agreement", "0.76") == 1


def test_probabilities_count_within_the_tolerance(server, answers):
    first, second = answers[0].probabilities[:2]
    off = [KnownAnswer(answers[0].text, answers[0].label, (first + 0.01, second - 0.01, *answers[0].probabilities[2:]))]
    with pytest.raises(ServingError, match=r"a probability differs by 0\.01"):
        smoke_test(server.grpc_url, "reviews", "7", off)
    ask_known_answers(server.grpc_url, "reviews", "7", off, tolerance=0.02).check()
    for values in ((1.0,), (float("nan"),) * 3):
        with pytest.raises(ServingError, match="probabilit"):
            smoke_test(server.grpc_url, "reviews", "7", [KnownAnswer(answers[0].text, "", values)])


def test_what_the_model_refuses_is_not_waited_for(server, answers):
    begin = time.monotonic()
    report = ask_known_answers(server.grpc_url, "reviews", "7", [*answers, KnownAnswer("x" * 500)], patience=60)
    assert [bool(row.fault) for row in report.rows] == [False] * 8 + [True]
    with pytest.raises(ServingError, match="limit"):
        report.check()
    with pytest.raises(ServingError, match="serves no model 'nothing'"):
        ask_known_answers(server.grpc_url, "nothing", "7", answers, patience=60).check(0.5)
    assert time.monotonic() - begin < 10


def test_a_server_that_is_just_coming_up_is_waited_for(own_server, answers):
    url = f"127.0.0.1:{own_server.ports.grpc}"

    def start_late() -> None:
        time.sleep(1)
        start_server(own_server)

    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(start_late)
        report = ask_known_answers(url, "reviews", "7", answers, patience=60)
        started.result()
    report.check()


def test_nobody_there_is_told_in_time(answers, file, monkeypatch, capsys):
    url = f"127.0.0.1:{free_ports().grpc}"
    begin = time.monotonic()
    assert smoke(monkeypatch, url, "--answers", file, "--timeout", "2", "--min-agreement", "0") == 1
    assert 2 <= time.monotonic() - begin < 10
    said = capsys.readouterr()
    assert said.out == ""
    assert "no server answers" in said.err
    with socket.socket() as silent:  # takes connections, and never says a word
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        begin = time.monotonic()
        report = ask_known_answers(
            f"127.0.0.1:{silent.getsockname()[1]}", "reviews", "7", answers, timeout=0.5, patience=1
        )
        assert time.monotonic() - begin < 10
    assert len(report.rows) == 8
    assert all(row.passing for row in report.rows)
