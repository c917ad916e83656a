"""`predict`, `models`, `report`, `compile`, and how errors end a command."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from stillhouse.cli.main import app, main
from stillhouse.cli.runs import Run
from stillhouse.errors import InputError, Problem, ServingError

Main = Callable[..., int]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    monkeypatch.setenv("STILLHOUSE_HOME", str(folder))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


@pytest.fixture
def run_main(monkeypatch: pytest.MonkeyPatch) -> Main:
    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["stillhouse", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0)

    return call


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, list[str]]]:
    """Requests that reach the client; tests/serving asks a real server through it."""
    requests: list[tuple[str, str, list[str]]] = []

    def answer(url: str, model: str, texts: Sequence[str], **_: Any) -> list[dict[str, Any]]:
        requests.append((url, model, list(texts)))
        return [{"PROBABILITIES": [0.25, 0.75], "LABEL": text[:1], "model_version": "3"} for text in texts]

    monkeypatch.setattr("stillhouse.client.predict_texts", answer)
    return requests


ENDPOINT = ("--url", "host:9", "--model", "reviews")


def test_status_without_a_target_is_the_local_server_s(run_main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main("status") == 1
    assert capsys.readouterr().out == "no server runs.\n"
    assert run_main("status", "--json") == 1
    assert json.loads(capsys.readouterr().out) == {"status": "stopped", "answers": False}


def test_a_local_target_has_no_namespace(
    run_main: Main, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STILLHOUSE_TARGET", "local")
    for command in (["status"], ["releases"], ["rollback"], ["deploy", "models:/reviews/1"]):
        assert run_main(*command, "--namespace=serving") == 2
        assert "STILLHOUSE_TARGET: is local, and --namespace can only mean Kubernetes" in capsys.readouterr().err


def test_predict_prints_label_probability_and_text(served: list[Any]) -> None:
    result = CliRunner().invoke(app, ["predict", *ENDPOINT, "good [bold] soup", "bad"], catch_exceptions=False)
    assert [line.split(None, 2) for line in result.stdout.splitlines()] == [
        ["g", "0.750", "good [bold] soup"],
        ["b", "0.750", "bad"],
    ]
    assert served == [("host:9", "reviews", ["good [bold] soup", "bad"])]


def test_predict_json_keeps_the_model_s_own_names(served: list[Any]) -> None:
    result = CliRunner().invoke(app, ["predict", *ENDPOINT, "--json", "good"], catch_exceptions=False)
    assert json.loads(result.stdout) == [
        {"text": "good", "PROBABILITIES": [0.25, 0.75], "LABEL": "g", "model_version": "3"}
    ]


def test_predict_reads_lines_in_blocks_and_keeps_blank_ones(served: list[Any]) -> None:
    lines = [f"línea {n}" for n in range(300)] + ["", "  spaces stay "]
    result = CliRunner().invoke(app, ["predict", *ENDPOINT, "--json"], input="\r\n".join(lines), catch_exceptions=False)
    assert [row["text"] for row in json.loads(result.stdout)] == lines
    assert [len(texts) for _, _, texts in served] == [256, 46]


def test_predict_counts_refused_texts_over_all_lines(
    run_main: Main, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(url: str, model: str, texts: Sequence[str], **_: Any) -> list[dict[str, Any]]:
        if "long" in texts:
            problems = [Problem(f"texts[{texts.index('long')}]", "is long."), Problem("texts[4:8]", "odd.")]
            raise InputError([*problems, Problem("model", "is gone.")])
        return [{"LABEL": "g", "model_version": "3"} for _ in texts]

    monkeypatch.setattr("stillhouse.client.predict_texts", answer)
    lines = b"".join(b"fine\n" for _ in range(259)) + b"long\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    assert run_main("predict", *ENDPOINT) == 2
    errors = capsys.readouterr().err
    assert "text 260: is long." in errors
    assert "texts 261 to 264: odd." in errors
    assert "model: is gone." in errors


def test_predict_names_the_line_that_is_not_utf_8(
    served: list[Any], run_main: Main, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"good\nb\xe4d\n")))
    assert run_main("predict", *ENDPOINT) == 2
    assert "standard input, line 2: is not UTF-8" in capsys.readouterr().err


def test_predict_without_a_server_says_what_to_do(run_main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main("predict", "text") == 2
    errors = capsys.readouterr().err
    assert "--url and --model: no server runs" in errors
    assert "stillhouse serve" in errors


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (
            InputError([Problem("a", "wrong.", "Mend it."), Problem("b", "too.")]),
            2,
            ["2 problems", "a: wrong.", "→ Mend it."],
        ),
        (ServingError("no server answers.", ["E last words"]), 1, ["✗ no server answers.", "E last words"]),
    ],
)
def test_deliberate_errors_end_without_a_traceback(
    error: Exception,
    code: int,
    words: list[str],
    run_main: Main,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("stillhouse.cli.predict.predict", fail)
    assert run_main("predict", "text") == code
    output = capsys.readouterr()
    assert all(word in output.err for word in words), output.err
    assert output.out == "" and "Traceback" not in output.err


def test_predict_refuses_to_wait_for_a_terminal(run_main: Main, served: list[Any]) -> None:
    leader, follower = os.openpty()
    try:
        code = "import sys; sys.argv[1:] = sys.argv[2:]; from stillhouse.cli.main import main; main()"
        command = [sys.executable, "-c", code, "-", "predict", *ENDPOINT]
        result = subprocess.run(command, stdin=follower, capture_output=True, text=True, timeout=60, check=False)
    finally:
        os.close(leader)
        os.close(follower)
    assert result.returncode == 2
    assert "TEXT: there is no text to ask about." in result.stderr


def test_models_lists_nothing_and_creates_nothing(home: Path) -> None:
    result = CliRunner().invoke(app, ["models"], catch_exceptions=False)
    assert "No model is registered" in result.stdout
    assert json.loads(CliRunner().invoke(app, ["models", "--json"], catch_exceptions=False).stdout) == []
    assert not home.exists()


def test_models_shows_aliases_and_what_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    class Status:
        model, version, status = "reviews", "1", "ready"

    rows = [registered_row("2", ["challenger"]), registered_row("1", ["champion"])]
    monkeypatch.setattr("stillhouse.registry.MlflowRegistry.models", lambda self: rows)
    monkeypatch.setattr("stillhouse.serving.server.server_status", lambda home: Status)
    result = CliRunner(env={"COLUMNS": "140"}).invoke(app, ["models"], catch_exceptions=False)
    lines = [line for line in result.stdout.splitlines() if "reviews" in line]
    assert "challenger" in lines[0] and "served" not in lines[0]
    assert "champion, served" in lines[1]
    assert all(part in lines[1] for part in ("student int8", "0.9123 macro-F1", "2.35", "17.1 MB", "2026-01-02 03:04"))
    document = json.loads(CliRunner().invoke(app, ["models", "--json"], catch_exceptions=False).stdout)
    assert [entry["served"] for entry in document] == [False, True]


def registered_row(version: str, aliases: list[str], name: str = "reviews") -> dict[str, Any]:
    figures = {"metric": "macro_f1", "quality": 0.9123, "retention": 0.99, "p95_ms": 2.345, "bytes": 17_100_000}
    names = {"name": name, "version": version, "aliases": aliases, "candidate": "student", "precision": "int8"}
    return {**names, **figures, "created": "2026-01-02T03:04:05+00:00", "run_id": "r", "manifest_digest": "d"}


@pytest.mark.parametrize("width", ["60", "80", "95", "120"])
def test_models_leaves_columns_out_and_cuts_no_alias_off(width: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [registered_row("12", ["challenger", "champion"])]
    monkeypatch.setattr("stillhouse.registry.MlflowRegistry.models", lambda self: rows)
    result = CliRunner(env={"COLUMNS": width}).invoke(app, ["models"], catch_exceptions=False)
    (line,) = [line for line in result.stdout.splitlines() if "reviews" in line]
    assert "reviews" in line and " 12 " in line and "challenger, champion" in line
    assert all(len(line) <= int(width) for line in result.stdout.splitlines())
    assert "…" not in result.stdout
    assert ("shows more: Candidate, Registered, p95 ms, Size." in " ".join(result.stderr.split())) == (width == "60")
    assert ("17.1 MB" in line) == (width == "120")


def test_models_of_one_name(
    monkeypatch: pytest.MonkeyPatch, run_main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [registered_row("1", []), registered_row("3", [], name="verdicts")]
    monkeypatch.setattr("stillhouse.registry.MlflowRegistry.models", lambda self: rows)
    document = json.loads(CliRunner().invoke(app, ["models", "verdicts", "--json"], catch_exceptions=False).stdout)
    assert [row["version"] for row in document] == ["3"]
    assert run_main("models", "other") == 2
    assert "no model 'other' is registered" in capsys.readouterr().err


def make_run(home: Path, name: str, **record: Any) -> None:
    folder = home / "runs" / name
    folder.mkdir(parents=True)
    Run(folder).save({"run": name, "preset": "demo", "status": "finished", "log": str(folder / "kfp.log"), **record})


def test_report_shows_the_newest_evaluated_run(home: Path, evaluation: Path) -> None:
    make_run(home, "20260101-000000-aaaa", evaluation_dir="/gone")
    make_run(home, "20260102-000000-bbbb", evaluation_dir=str(evaluation))
    make_run(home, "20260103-000000-cccc", status="failed")
    result = CliRunner(env={"COLUMNS": "120"}).invoke(app, ["report"], catch_exceptions=False)
    assert "20260102-000000-bbbb" in result.stdout
    assert "student INT8" in result.stdout
    path = CliRunner().invoke(app, ["report", "bbbb", "--path"], catch_exceptions=False).stdout
    assert path == f"{evaluation / 'report.html'}\n"


def test_report_opens_the_browser(home: Path, evaluation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda uri: opened.append(uri) or True)
    make_run(home, "20260102-000000-bbbb", evaluation_dir=str(evaluation))
    CliRunner().invoke(app, ["report", "--open"], catch_exceptions=False)
    assert opened == [(evaluation / "report.html").as_uri()]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("zzzz", "there is no run 'zzzz'"),
        ("2026", "'2026' fits 2 runs: 20260103-000000-cccc, 20260101-000000-aaaa"),
        ("aaaa", "20260101-000000-aaaa has no report"),
        ("cccc", "the run's status is failed"),
    ],
)
def test_report_of_a_run_that_is_not_there(
    home: Path, name: str, words: str, run_main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(home, "20260101-000000-aaaa", evaluation_dir="/gone")
    make_run(home, "20260103-000000-cccc", status="failed")
    assert run_main("report", name) == 2
    assert words in capsys.readouterr().err


def test_report_before_any_run(run_main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main("report") == 2
    assert "stillhouse run" in capsys.readouterr().err


def test_compile_prints_or_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", r"print('a\nb\nc')"]
    asked: list[str] = []
    monkeypatch.setattr(
        "stillhouse.cli.compile.pipelines_command", lambda *arguments: asked.extend(arguments) or command
    )
    options = ["--cluster", "cpu", "--preset", "tiny", "--set", "seed=7"]
    assert CliRunner().invoke(app, ["compile", *options], catch_exceptions=False).stdout == "a\nb\nc\n"
    assert asked == ["compile", *options]
    target = tmp_path / "new" / "pipeline.yaml"
    CliRunner().invoke(app, ["compile", "--output", str(target)], catch_exceptions=False)
    assert target.read_text() == "a\nb\nc\n"


def test_compile_that_fails_says_so(
    monkeypatch: pytest.MonkeyPatch, run_main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, "-c", "raise SystemExit(3)"]
    monkeypatch.setattr("stillhouse.cli.compile.pipelines_command", lambda *arguments: command)
    assert run_main("compile") == 1
    assert "does not compile (exit status 3)" in capsys.readouterr().err


def test_version(run_main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    from stillhouse import __version__

    assert run_main("--version") == 0
    assert capsys.readouterr().out == f"stillhouse {__version__}\n"


@pytest.mark.parametrize("arguments", [("rn",), ("run", "--wrong"), ("report", "a", "b")])
def test_wrong_usage_exits_with_2(
    arguments: tuple[str, ...], run_main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(*arguments) == 2
    assert "Usage: stillhouse" in capsys.readouterr().err
