"""`stillhouse run`, with a process that plays a run back in place of the pipeline's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from fake_run import PLAN, event
from typer.testing import CliRunner

from stillhouse.cli.main import app, main

Play = Callable[[list[dict[str, Any]]], Path]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def invoke(*arguments: str) -> Any:
    return CliRunner(env={"COLUMNS": "160"}).invoke(app, list(arguments), catch_exceptions=False)


def only_run(home: Path) -> Path:
    (folder,) = (home / "runs").iterdir()
    return folder


def test_summary_of_a_good_run(play: Play, good_run: list[dict[str, Any]], evaluation: Path, home: Path) -> None:
    play(good_run)
    result = invoke("run")
    assert result.exit_code == 0
    table, rest = result.stdout.split("Chosen")
    assert [line.split()[:4] for line in table.splitlines() if "0." in line] == [
        ["teacher", "fp32", "0.9000", "[0.880,"],
        ["student", "fp32", "0.8900", "[0.870,"],
        ["▸", "student", "int8", "0.8850"],
        ["majority", "–", "0.5000", "[0.480,"],
    ]
    assert "champion v2 cannot be compared: its labels are others." in table
    assert "teacher int8 was refused: outside its tolerance" in table
    assert "student INT8" in rest
    assert "STUDENT INT8 has the lowest p95 latency." in rest
    assert "reviews version 3" in rest
    assert [line.split() for line in rest.splitlines() if "faster" in line] == [
        ["Promoted", "It", "is", "40%", "faster."]
    ]
    assert "gRPC 127.0.0.1:8001" in rest
    assert str(evaluation / "report.html") in rest
    assert "good [bold] soup" in rest and "0.987" in rest
    assert "stillhouse predict --url 127.0.0.1:8001 --model reviews 'Your own text'" in rest


def test_what_is_kept_of_a_run_holds_no_signed_link(play: Play, good_run: list[dict[str, Any]], home: Path) -> None:
    play(good_run)
    result = invoke("run", "--set", "data=https://host/x.csv?signature=hunter2", "--json")
    assert json.loads(result.stdout)["settings"] == ["data=https://host/x.csv?***"]
    assert "hunter2" not in (only_run(home) / "run.json").read_text()


def test_progress_goes_to_standard_error_and_the_process_s_output_to_the_log(
    play: Play, good_run: list[dict[str, Any]], home: Path
) -> None:
    play(good_run)
    result = invoke("run", "--preset", "tiny")
    lines = [line.split(None, 1)[1].strip() for line in result.stderr.splitlines()[1:]]
    assert "preset tiny" in result.stderr.splitlines()[0]
    assert lines[:3] == [
        "running      Inspect the source",
        "done         Inspect the source (1.2s)",
        "cached       Prepare data",
    ]
    assert "kfp says a lot" not in result.output
    assert (only_run(home) / "kfp.log").read_text() == "kfp says a lot\n"


def test_arguments_reach_the_process_unchanged(play: Play, tmp_path: Path, home: Path) -> None:
    play([{"arguments": str(tmp_path / "seen.json")}, event("run", "finished", seconds=0.1)])
    assert invoke("run", "-p", "base", "--set", "data=a b.csv", "-s", "policy=memory").exit_code == 0
    seen = json.loads((tmp_path / "seen.json").read_text())
    run_dir = str(only_run(home))
    options = ["--preset", "base", "--set", "data=a b.csv", "--set", "policy=memory", "--run-dir", run_dir]
    assert seen == ["run", *options]


def test_json_is_one_document_and_the_same_as_run_json(
    play: Play, good_run: list[dict[str, Any]], evaluation: Path, home: Path
) -> None:
    play(good_run)
    result = invoke("run", "--json", "--set", "seed=1")
    document = json.loads(result.stdout)
    assert document == json.loads((only_run(home) / "run.json").read_text())
    assert (document["status"], document["exit_code"], document["preset"]) == ("finished", 0, "demo")
    assert document["settings"] == ["seed=1"]
    assert document["model"] == {"name": "reviews", "version": "3", "run_id": "abc", "reused": False}
    assert document["endpoint"]["url"] == "127.0.0.1:8001"
    assert (document["outcome"], document["outcome_reason"]) == ("deployed", "It is 40% faster.")
    assert document["report"] == str(evaluation / "report.html")
    assert document["evaluation"]["choice"]["precision"] == "int8"
    assert {step["id"]: step["state"] for step in document["steps"]}["prepare-data"] == "cached"


def test_steps_that_the_pipeline_left_out_are_skipped(play: Play, good_run: list[dict[str, Any]]) -> None:
    play([act for act in good_run if act.get("step") != "deploy"])
    document = json.loads(invoke("run", "--json").stdout)
    assert {step["id"]: step["state"] for step in document["steps"]}["deploy"] == "skipped"
    assert document["endpoint"] is None


def test_a_run_that_stops_early_succeeds_and_says_why(play: Play, good_run: list[dict[str, Any]]) -> None:
    reason = "The source has not changed since the champion, version 2, was trained."
    said = event("inspect-source", "result", values={"outcome": "unchanged", "outcome_reason": reason})
    play([*good_run[:3], said, good_run[3], event("run", "finished", seconds=9.0)])
    result = invoke("run")
    assert result.exit_code == 0
    assert reason in result.stdout and "Unchanged" in result.stdout
    assert "skipped      Evaluate" in result.stderr
    play([*good_run[:3], said, good_run[3], event("run", "finished", seconds=9.0)])
    document = json.loads(invoke("run", "--json").stdout)
    assert (document["status"], document["exit_code"]) == ("finished", 0)
    assert (document["outcome"], document["outcome_reason"], document["model"]) == ("unchanged", reason, None)


@pytest.mark.parametrize(
    ("outcome", "title"),
    [("challenger", "Not promoted"), ("registered", "Not deployed"), ("kept", "Kept"), ("failed", "Not deployed")],
)
def test_what_came_of_a_run_that_was_not_rolled_out(
    play: Play, good_run: list[dict[str, Any]], outcome: str, title: str
) -> None:
    kept = [act for act in good_run if act.get("step") != "deploy"]
    said = event("deploy", "result", values={"outcome": outcome, "outcome_reason": "It is not better [than noise]."})
    play([*kept[:-1], said, kept[-1]])
    output = invoke("run").stdout
    (line,) = [line for line in output.splitlines() if "not better [than noise]" in line]
    assert line.strip().startswith(title)
    assert "It is 40% faster." not in output and "Endpoint" not in output


def test_bad_input_lists_every_problem_and_exits_with_2(play: Play, home: Path) -> None:
    problems = [
        {"where": "data", "what": "there is no file 'x.csv'.", "remedy": "Give a path."},
        {"where": "policy", "what": "'fast' is unknown.", "remedy": "Choose one of: real-time, memory, quality."},
    ]
    play(
        [
            event("run", "plan", steps=PLAN),
            event("inspect-source", "started"),
            event("inspect-source", "failed", message="two things", problems=problems, exit_code=2),
            event("run", "failed", message="inspect-source failed", problems=[], exit_code=1),
            {"print": "Traceback (most recent call last):"},
            {"exit": 1},
        ]
    )
    result = invoke("run", "--json")
    assert result.exit_code == 2
    for problem in problems:
        assert f"{problem['where']}: {problem['what']}" in result.stderr
        assert problem["remedy"] in result.stderr
    assert "Traceback" not in result.output
    document = json.loads(result.stdout)
    assert document["problems"] == problems
    assert document["status"] == "failed"


def test_other_failures_show_the_log_where_the_step_failed_and_exit_with_1(play: Play, home: Path) -> None:
    play(
        [
            event("prepare-data", "started"),
            event("prepare-data", "finished", seconds=5.0),
            *({"print": f"line {number}"} for number in range(50)),
            {"print": "Task \x1b[96m'distill'\x1b[0m finished with status \x1b[91mFAILURE\x1b[0m"},
            {"print": "other steps and the exit handler go on"},
            event("distill-student", "started"),
            event("distill-student", "failed", message="RuntimeError: out of memory", problems=[], exit_code=1),
            event("run", "failed", message="the pipeline failed", problems=[], exit_code=1),
            {"exit": 1},
        ]
    )
    result = invoke("run")
    assert result.exit_code == 1
    assert "Distill student failed" in result.stderr
    assert "RuntimeError: out of memory" in result.stderr
    assert "line 49" in result.stderr and "line 10" not in result.stderr
    assert "go on" not in result.stderr.split("kfp.log")[1].split("Finished steps")[0]
    assert str(only_run(home) / "kfp.log") in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(("status", "exit_code"), [(1, 1), (2, 2), (-9, 1), (137, 1)])
def test_a_process_that_dies_without_a_word(play: Play, status: int, exit_code: int) -> None:
    acts = [event("distill-student", "started"), {"print": "the last words"}]
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    play([*acts, {"exit": status}] if status > 0 else acts)
    if status < 0:
        player = Path(os.environ["STILLHOUSE_HOME"]).parent / "player.py"
        player.write_text(player.read_text() + kill)
    result = invoke("run")
    assert result.exit_code == exit_code
    assert "the last words" in result.stderr
    assert "failed       Distill student" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_every_process_of_the_run(play: Play, tmp_path: Path, home: Path, number: signal.Signals) -> None:
    child = tmp_path / "child.pid"
    main_file = play([event("distill-student", "started"), {"child": str(child)}, {"sleep": 600}])
    command = [sys.executable, str(main_file), "run", "--set", "data=a b.csv"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not (child.is_file() and child.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        grandchild = psutil.Process(int(child.read_text()))
        runner = grandchild.parent()
        assert runner is not None and runner.pid != process.pid
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    for ended in (grandchild, runner):
        assert not ended.is_running() or ended.status() == psutil.STATUS_ZOMBIE
    assert number.name in errors
    assert "stillhouse run --preset demo --set 'data=a b.csv'" in errors
    assert "interrupted  Distill student" in errors
    assert "Traceback" not in errors
    assert json.loads((only_run(home) / "run.json").read_text())["status"] == "interrupted"


def test_an_unwritable_state_folder_is_the_user_s_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Below a file no folder can be made, not even by root.
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "file" / "home"))
    monkeypatch.setattr(sys, "argv", ["stillhouse", "run"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    errors = capsys.readouterr().err
    assert "STILLHOUSE_HOME: cannot write in the state folder" in errors
    assert str(tmp_path / "file" / "home") in errors
    assert "Traceback" not in errors


def test_our_own_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr("stillhouse.cli.run.run_pipeline", broken)
    monkeypatch.setattr(sys, "argv", ["stillhouse", "run"])
    with pytest.raises(ZeroDivisionError):
        main()


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("stillhouse.cli.extras.find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["stillhouse", "run"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert "pip install 'stillhouse[local]'" in capsys.readouterr().err


def test_the_command_line_imports_nothing_heavy() -> None:
    code = (
        "import sys, stillhouse.cli.main, stillhouse.cli.run\n"
        "heavy = {'kfp', 'torch', 'transformers', 'mlflow', 'sklearn', 'pandas', 'matplotlib', 'datasets'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
