"""`stillhouse pretrain`, with a process that plays a run back in place of the pipeline's."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_run import event
from typer.testing import CliRunner

from stillhouse.cli.main import app

Play = Callable[[list[dict[str, Any]]], Path]

PLAN = [
    {"id": "inspect-corpus", "title": "Inspect corpus"},
    {"id": "prepare-corpus", "title": "Prepare corpus"},
    {"id": "pretrain", "title": "Pretrain"},
    {"id": "record-pretraining", "title": "Record the curves"},
]
MADE = {
    "checkpoint": "/models/ours", "model_name": "ours", "family": "bert", "recipe": "from scratch",
    "parameters": 12_345, "metrics": {"loss": 6.5, "perplexity": 244.71, "sentence_accuracy": 0.5}, "run_id": "abc",
    "reused": False,
}  # fmt: skip


def acts(**changes: Any) -> list[dict[str, Any]]:
    return [
        event("run", "plan", steps=PLAN),
        event("inspect-corpus", "started"),
        event("inspect-corpus", "finished", seconds=1.0),
        event("prepare-corpus", "cached"),
        event("pretrain", "started"),
        event("pretrain", "progress", done=20, total=40, note="loss 6.5"),
        event("pretrain", "finished", seconds=30.0),
        event("record-pretraining", "started"),
        event("record-pretraining", "result", values={**MADE, **changes}),
        event("record-pretraining", "finished", seconds=1.0),
        event("run", "finished", seconds=33.0),
    ]


def invoke(*arguments: str) -> Any:
    return CliRunner(env={"COLUMNS": "160"}).invoke(app, ["pretrain", *arguments], catch_exceptions=False)


def test_it_says_where_the_checkpoint_is_and_what_takes_it(play: Play):
    play(acts())
    done = invoke()
    assert done.exit_code == 0
    assert "stillhouse pretrain  preset tiny" in done.stderr and "cached       Prepare corpus" in done.stderr
    for words in ("ours  bert of 12,345 parameters, from scratch", "Held out      perplexity 244.7, sentence", "abc"):
        assert words in done.stdout
    assert "stillhouse run --set teacher=/models/ours\n" in done.stdout


@pytest.mark.parametrize(
    ("family", "checkpoint", "roles"),
    [
        ("albert", "/models/ours", ["albert", "student"]),
        ("distilbert", "/models/ours", ["student"]),
        ("bert", "s3://models/ours", []),
    ],
)
def test_the_commands_fit_the_family(play: Play, family: str, checkpoint: str, roles: list[str]):
    play(acts(family=family, checkpoint=checkpoint))
    said = invoke().stdout
    assert checkpoint in said
    assert [role for role in ("teacher", "albert", "student") if f"--set {role}=" in said] == roles


def test_options_reach_the_process_as_settings_of_the_pretraining_pipeline(play: Play, tmp_path: Path):
    play([{"arguments": str(tmp_path / "seen.json")}, *acts()])
    assert invoke("-p", "small", "-s", "corpus=a b.txt", "--output", "models/ours").exit_code == 0
    *seen, option, folder = json.loads((tmp_path / "seen.json").read_text())
    assert option == "--run-dir" and Path(folder).parent.name == "runs"
    settings = ["--set", "corpus=a b.txt", "--set", "output=models/ours"]
    assert seen == ["run", "--workflow", "pretrain", "--preset", "small", *settings]


def test_json_is_one_document(play: Play):
    play(acts(reused=True))
    document = json.loads(invoke("--json").stdout)
    assert (document["status"], document["exit_code"], document["preset"]) == ("finished", 0, "tiny")
    assert (document["checkpoint"], document["mlflow_run"], document["reused"]) == ("/models/ours", "abc", True)
    assert document["metrics"] == MADE["metrics"]
    assert {step["id"]: step["state"] for step in document["steps"]}["prepare-corpus"] == "cached"


def test_bad_input_lists_every_problem_and_exits_with_2(play: Play):
    problems = [{"where": "corpus", "what": "is not given.", "remedy": "Name a file."}]
    play([*acts()[:2], event("inspect-corpus", "failed", message="x", problems=problems, exit_code=2), {"exit": 1}])
    done = invoke("--json")
    assert done.exit_code == 2
    assert "corpus: is not given." in done.stderr
    assert json.loads(done.stdout)["problems"] == problems


def test_a_stopped_run_says_how_it_goes_on(play: Play, tmp_path: Path):
    main = play([*acts()[:6], {"child": str(tmp_path / "child")}, {"sleep": 60}])
    command = [sys.executable, str(main), "pretrain", "--set", "corpus=x.txt", "--output", "out"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not (tmp_path / "child").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "stillhouse pretrain --preset tiny --set corpus=x.txt --set output=out" in said
