"""The pipeline's start on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_registry_out_of_reach_hides_nothing_else(tmp_path: Path):
    events = tmp_path / "events.jsonl"
    environment = {
        "STILLHOUSE_HOME": str(tmp_path),
        "STILLHOUSE_EVENTS": str(events),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }
    settings = ("num_nodes=2", "tracking_uri=http://127.0.0.1:9", f"checkpoint_dir={tmp_path}")
    options = [part for setting in settings for part in ("--set", setting)]
    command = [sys.executable, "-m", "stillhouse.pipelines", "run", "--preset", "tiny", "--run-dir", str(tmp_path)]
    done = subprocess.run(
        [*command, *options], env=os.environ | environment, capture_output=True, timeout=300, check=False
    )
    assert done.returncode == 1  # of the runner, which knows no more than that a step failed
    said = [json.loads(line) for line in events.read_text().splitlines()]
    failed = next(event for event in said if event["event"] == "failed" and event["step"] == "inspect-source")
    assert {problem["where"] for problem in failed["problems"]} == {"num_nodes", "tracking_uri"}
    assert failed["exit_code"] == 2
