"""What several end-to-end tests use: state folders, public data, PostgreSQL, an MLflow server."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from containers import MlflowServer
from local_runs import Home
from postgresql import PostgresqlMissing, postgresql

from stillhouse.serving.triton import free_ports

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
"""Public data sets beside the repository; tests that need them skip where they are absent."""


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
