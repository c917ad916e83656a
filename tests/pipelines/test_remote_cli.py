"""`stillhouse submit` and `stillhouse schedule`, typed as users type them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kfp_stand_in import StandIn
from typer.testing import CliRunner

from stillhouse.artifacts import EvaluationManifest
from stillhouse.cli.main import app
from stillhouse.errors import InputError, StillhouseError

pytestmark = pytest.mark.slow

DATA = ("--set", "data=s3://bucket/reviews.csv")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def candidate(name: str, quality: float) -> dict[str, Any]:
    return {
        "name": name, "precision": "fp32", "metrics": {"accuracy": quality}, "interval": [quality, quality],
        "retention": quality / 0.9, "latency_ms": {"p50": 1.0, "p95": 2.0, "p99": 3.0}, "speedup_vs_teacher": 1.0,
        "throughput": 100.0, "parameters": 1000, "bytes": 1000, "peak_memory_mb": 10.0,
        "parity": {"max_difference": 0.0}, "details": {},
    }  # fmt: skip


@pytest.fixture
def registry(new_mlflow: Callable[[Path], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An MLflow registry; the function that it yields records a run of the pipeline there, as `register` does."""
    from stillhouse.registry.tracking import load_mlflow

    uri = new_mlflow(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = load_mlflow().MlflowClient(tracking_uri=uri, registry_uri=uri)

    def record(run_id: str) -> None:
        experiment = client.create_experiment("stillhouse", artifact_location=(tmp_path / "mlartifacts").as_uri())
        tags = {"pipeline_run": run_id, "outcome": "registered", "outcome_reason": "Version 1 is registered.",
                "model_name": "reviews", "model_version": "1"}  # fmt: skip
        run = client.create_run(experiment, tags={f"stillhouse.{k}": v for k, v in tags.items()}).info.run_id
        folder = tmp_path / "evaluation"
        folder.mkdir()
        EvaluationManifest(
            producer="evaluate", task="classification", metric="accuracy", policy="quality", min_retention=0.97,
            test_rows=1821, baselines=[], candidates=[candidate("teacher", 0.9), candidate("student", 0.88)],
            choice={"name": "teacher", "precision": "fp32", "reason": "TEACHER is the best.", "deployable": True,
                    "undeployable_reason": "", "refused": []},
            machine={},
        ).save(folder)  # fmt: skip
        (folder / "report.html").write_text("<html></html>")
        client.log_artifacts(run, str(folder))

    return record


def test_wait_ends_with_the_same_table_as_a_local_run(kubeflow: StandIn, registry: Any, home: Path):
    kubeflow.steps_per_look = 100
    create = kubeflow.run_service_create_run

    def recorded(body: Any) -> Any:
        run = create(body)
        registry(run.run_id)
        return run

    kubeflow.run_service_create_run = recorded
    done = invoke("submit", *DATA, "--wait", "--interval", "0.1")
    assert done.exit_code == 0, done.stderr
    assert "done         Evaluate and choose" in done.stderr
    for words in (
        "TEACHER is the best.",
        "reviews version 1",
        "Version 1 is registered.",
        "1,821 test rows",
        "/#/runs/details/",
    ):
        assert words in done.stdout, done.stdout
    shown = invoke("report")
    assert shown.exit_code == 0 and "TEACHER is the best." in shown.stdout

    (run_id,) = kubeflow.runs
    again = invoke("submit", "--watch", run_id, "--interval", "0.1", "--json")
    assert again.exit_code == 0, again.stderr
    document = json.loads(again.stdout)
    assert document["status"] == "finished"
    assert document["model"] == {
        "name": "reviews",
        "version": "1",
        "run_id": document["model"]["run_id"],
        "reused": None,
    }
    assert document["evaluation"]["choice"]["name"] == "teacher"
    assert {step["state"] for step in document["steps"]} == {"done"}


def test_submitting_alone_says_how_to_watch_and_json_is_only_json(kubeflow: StandIn):
    said = invoke("submit", *DATA, "--endpoint", kubeflow.url)
    assert said.exit_code == 0, said.stderr
    (run_id,) = kubeflow.runs
    assert f"stillhouse submit --watch {run_id} --endpoint={kubeflow.url}" in " ".join(said.stdout.split())
    document = json.loads(invoke("submit", *DATA, "--json").stdout)
    assert document["status"] == "submitted"
    assert document["kubeflow"]["uploaded"] is False
    assert document["kubeflow"]["parameters"] == {"data": "s3://bucket/reviews.csv"}


def test_a_failed_step_is_shown_with_its_message(kubeflow: StandIn):
    kubeflow.steps_per_look, kubeflow.failing = 100, {"evaluate": "no candidate passed"}
    failed = invoke("submit", *DATA, "--wait", "--interval", "0.1")
    assert failed.exit_code == 1
    assert "Evaluate and choose failed" in failed.stderr and "no candidate passed" in failed.stderr
    assert "skipped      Register" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_ctrl_c_stops_watching_and_the_run_goes_on(kubeflow: StandIn, home: Path):
    kubeflow.steps_per_look = 0  # it never ends
    command = [sys.executable, "-m", "stillhouse.cli.main", "submit", *DATA, "--wait", "--interval", "0.1"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ.copy()
    )
    deadline = time.monotonic() + 60
    while kubeflow.operations().count("run_service_get_run") < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    timer = threading.Timer(30, process.kill)
    timer.start()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    timer.cancel()
    (run_id,) = kubeflow.runs
    assert process.returncode == 130
    assert "the run goes on" in errors and f"stillhouse submit --watch {run_id}" in errors
    assert kubeflow.runs[run_id].state == "RUNNING"
    assert not any("terminate" in name for name in kubeflow.operations())
    (record,) = [json.loads(path.read_text()) for path in home.glob("runs/*/run.json")]
    assert record["status"] == "unwatched"
    assert {step["state"] for step in record["steps"]} <= {"waiting", "running"}


def test_what_is_kept_of_a_run_holds_no_signed_link(kubeflow: StandIn, home: Path):
    done = invoke("submit", "--set", "data=https://host/rows.csv?signature=hunter2", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["settings"] == ["data=https://host/rows.csv?***"]
    for path in home.rglob("*"):
        assert path.is_dir() or b"hunter2" not in path.read_bytes(), path


def test_watching_goes_with_nothing_that_submits(kubeflow: StandIn, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match="--wait: is given beside --watch"):
        invoke("submit", "--watch", "some-run", "--wait")
    with pytest.raises(InputError, match="which submits nothing: --cluster, --set, --run-name"):
        invoke("submit", "--watch", "some-run", "--cluster", "gpu", *DATA, "--run-name", "x")
    assert invoke("submit", "--watch", "some-run", "--interval", "0.1", "--endpoint", kubeflow.url).exit_code == 2


def test_bad_input_lists_every_problem(kubeflow: StandIn):
    wrong = invoke("submit", "--set", "data=x.csv", "--set", "deploy_target=local", "--json")
    assert wrong.exit_code == 2
    assert "2 problems with the input" in wrong.stderr
    assert [problem["where"] for problem in json.loads(wrong.stdout)["problems"]] == ["deploy_target", "data"]


def test_schedules_for_people(kubeflow: StandIn):
    with pytest.raises(StillhouseError, match="cannot be reached"):
        invoke("schedule", "list", "--endpoint", "http://localhost:9")
    made = invoke("schedule", "create", "nightly", "--cron", "30 2 * * *", *DATA, "--set", "model_name=verdicts")
    assert made.exit_code == 0, made.stderr
    assert "daily at 02:30 (UTC)" in made.stdout
    listed = invoke("schedule", "list")
    assert all(words in listed.stdout for words in ("nightly", "daily at 02:30", "UTC", "active", "verdicts"))
    shown = invoke("schedule", "show", "nightly")
    assert "skip_unchanged=true" in shown.stdout
    assert json.loads(invoke("schedule", "pause", "nightly", "--json").stdout)["state"] == "paused"
    assert invoke("schedule", "delete", "nightly").exit_code == 0


def test_a_schedule_s_problems_reach_the_user(kubeflow: StandIn):
    with pytest.raises(InputError) as caught:
        invoke("schedule", "create", "x", "--cron", "nonsense", "--time-zone", "Nowhere/Land")
    assert {problem.where for problem in caught.value.problems} == {"--cron", "--time-zone", "data"}


def test_a_schedule_s_failure_is_a_document_too(kubeflow: StandIn, capsys: Any):
    for arguments, code, words in ((("show", "weekly"), 2, "there is no schedule"), (("list",), 1, "not yours")):
        kubeflow.faults = [(403, '{"message": "not yours"}')] if code == 1 else []
        with pytest.raises(StillhouseError):
            app(["schedule", *arguments, "--json"], standalone_mode=False)
        document = json.loads(capsys.readouterr().out)
        assert (document["status"], document["exit_code"]) == ("failed", code)
        assert words in document["message"]
        assert [problem["where"] for problem in document["problems"]] == ["NAME"] * (code == 2)
