"""A run that is played back, and an evaluation for it to point at."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_run import PLAN, PLAYER, candidate, event

from stillhouse.artifacts import EvaluationManifest


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    """Folder of an evaluation artifact with three candidates and a baseline."""
    folder = tmp_path / "evaluation"
    folder.mkdir()
    (folder / "report.html").write_text("<html>the report</html>")
    EvaluationManifest(
        producer="evaluate",
        task="classification",
        metric="accuracy",
        policy="real-time",
        min_retention=0.97,
        test_rows=1821,
        baselines=[{"name": "majority", "metrics": {"accuracy": 0.5}, "interval": [0.48, 0.52], "retention": 0.55}],
        candidates=[
            candidate("teacher", "fp32", 0.9, 8.0, 90_000_000),
            candidate("student", "fp32", 0.89, 4.2, 67_000_000),
            candidate("student", "int8", 0.885, 1.9, 17_000_000),
        ],
        choice={
            "name": "student",
            "precision": "int8",
            "reason": "STUDENT INT8 has the lowest p95 latency.",
            "deployable": True,
            "undeployable_reason": "",
            "promotion": {"decision": "promote", "reason": "It is 40% faster.", "champion_version": "2"},
            "incomparable": [{"name": "champion", "version": "2", "reason": "its labels are others."}],
            "refused": [{"name": "teacher", "precision": "int8", "reason": "outside its tolerance"}],
        },
        machine={},
    ).save(folder)
    return folder


@pytest.fixture
def good_run(evaluation: Path) -> list[dict[str, Any]]:
    """What a run reports that goes well, with its first steps cached."""
    return [
        {"print": "kfp says a lot"},
        event("run", "plan", steps=PLAN),
        event("inspect-source", "started"),
        event("inspect-source", "finished", seconds=1.25),
        event("prepare-data", "cached"),
        event("distill-student", "started"),
        event("distill-student", "progress", done=40, total=100, note="epoch 1"),
        event("distill-student", "finished", seconds=75.0),
        event("evaluate", "started"),
        event("evaluate", "finished", seconds=12.0),
        event("register", "started"),
        event(
            "register",
            "result",
            values={
                "evaluation_dir": str(evaluation),
                "model_name": "reviews",
                "version": "3",
                "run_id": "abc",
                "reused": False,
            },
        ),
        event("register", "finished", seconds=2.0),
        event("deploy", "started"),
        event(
            "deploy",
            "result",
            values={
                "outcome": "deployed",
                "outcome_reason": "It is 40% faster.",
                "url": "127.0.0.1:8001",
                "http_url": "http://127.0.0.1:8000",
                "model": "reviews",
                "version": "3",
                "examples": [{"text": "good [bold] soup", "label": "positive", "probability": 0.987}],
            },
        ),
        event("deploy", "finished", seconds=3.0),
        event("run", "finished", seconds=95.0),
    ]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[dict[str, Any]]], Path]:
    """Make `stillhouse run` start a process that plays these acts back; returns the script for other processes."""
    home = tmp_path / "home"
    monkeypatch.setenv("STILLHOUSE_HOME", str(home))

    def prepare(acts: list[dict[str, Any]]) -> Path:
        (tmp_path / "acts.json").write_text(json.dumps(acts))
        (tmp_path / "player.py").write_text(PLAYER)
        command = [sys.executable, str(tmp_path / "player.py"), str(tmp_path / "acts.json")]
        monkeypatch.setattr("stillhouse.cli.run.pipelines_command", lambda *arguments: [*command, *arguments])
        # The same for a command line in a process of its own, where signals can be sent to it.
        main = tmp_path / "main.py"
        main.write_text(
            "from stillhouse.cli import run\n"
            "from stillhouse.cli.main import main\n"
            f"run.pipelines_command = lambda *arguments: [*{command!r}, *arguments]\n"
            "main()\n"
        )
        return main

    return prepare
