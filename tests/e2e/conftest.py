"""Runs of the whole pipeline through the command line, as a user starts them."""

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from containers import MlflowServer
from postgresql import PostgresqlMissing, postgresql

from stillhouse.data.demo import reviews
from stillhouse.serving.triton import free_ports

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
"""Public data sets beside the repository; tests that need them skip where they are absent."""

CACHED_STEPS = {"prepare-data", "finetune-teacher", "finetune-albert", "distill-student", "package-teacher",
                "package-student", "package-albert", "fetch-champion", "evaluate"}  # fmt: skip
UNCACHED_STEPS = {"inspect-source", "register", "deploy", "notify"}


@dataclass
class Run:
    """What a finished `stillhouse run` left behind."""

    returncode: int
    stdout: str
    stderr: str
    folder: Path

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "events.jsonl").read_text().splitlines()]

    def steps(self, event: str) -> set[str]:
        """Ids of the steps that reported this event."""
        return {e["step"] for e in self.events() if e["event"] == event and e["step"] != "run"}

    def result(self, step: str) -> dict[str, Any]:
        """Everything that the step reported for the summary."""
        values: dict[str, Any] = {}
        for event in self.events():
            if event["event"] == "result" and event["step"] == step:
                values |= event["values"]
        return values

    def evaluation(self) -> dict[str, Any]:
        return json.loads((Path(self.result("register")["evaluation_dir"]) / "evaluation.json").read_text())


class Home:
    """A state folder, and the command that uses it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Wide enough for every table, whatever runs the tests.
        self.environment = {**os.environ, "STILLHOUSE_HOME": str(folder), "NO_COLOR": "1", "COLUMNS": "160"}
        self.environment.pop("MLFLOW_TRACKING_URI", None)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "stillhouse.cli.main", *arguments]

    def stillhouse(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*arguments), env=self.environment, capture_output=True, text=True)

    def run(self, preset: str, **settings: Any) -> Run:
        options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        before = set(self.runs())
        done = self.stillhouse("run", "--preset", preset, *options)
        made = sorted(set(self.runs()) - before)
        return Run(done.returncode, done.stdout, done.stderr, made[-1] if made else Path())

    def runs(self) -> list[Path]:
        return sorted((self.folder / "runs").glob("*"))


def write_reviews(path: Path, rows: int, seed: int = 5) -> Path:
    """A CSV file of labelled reviews, in the columns `review` and `verdict`."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["review", "verdict"])
        writer.writerows(reviews(rows, seed))
    return path


@pytest.fixture(scope="session")
def make_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Home]]:
    homes: list[Home] = []

    def make(name: str) -> Home:
        homes.append(Home(tmp_path_factory.mktemp(name) / "home"))
        return homes[-1]

    yield make
    for home in homes:
        home.stillhouse("serve", "stop")


@pytest.fixture(scope="session")
def sst2() -> Path:
    folder = SHARED / "sst2"
    if not folder.is_dir():
        pytest.skip(f"the SST-2 files are not at {folder}")
    return folder


@pytest.fixture(scope="session")
def database() -> Iterator[str]:
    """PostgreSQL that listens on a socket of its own, run by an unprivileged user; yields its URI for SQLAlchemy."""
    try:
        with postgresql() as folder:
            yield f"postgresql+psycopg2://mlflow@/postgres?host={folder}"
    except PostgresqlMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def mlflow_server(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """An MLflow server on that database, which containers reach too."""
    folder = tmp_path_factory.mktemp("mlflow")
    server = MlflowServer(free_ports().http, folder / "artifacts")
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "0.0.0.0", "--port", str(server.port), "--workers", "1",
        "--backend-store-uri", database, "--artifacts-destination", server.artifacts.as_uri(),
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # seven processes that nothing here needs
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        for _ in range(600):
            assert process.poll() is None, (folder / "log").read_text()[-3000:]
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{server.url}/health", timeout=5) as answer:
                if answer.status == 200:
                    break
            time.sleep(0.2)
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # asked to end, it takes its time, and nothing of it is kept
        process.wait(timeout=30)
