"""The MLflow server that the chart renders, run as it is rendered, on a real PostgreSQL with TLS."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from certificates import self_signed
from postgresql import PostgresqlMissing, postgresql

from stillhouse.serving.triton import free_ports

pytestmark = pytest.mark.slow

PASSWORD = "p@ss/w:rd?#%&$ "
"""With all that an address would have to escape."""


@dataclass
class Container:
    """A container of the rendered pod, as a process of this machine."""

    command: list[str]
    environment: dict[str, str]


@dataclass
class Rendered:
    """What the chart renders for the database of this test."""

    containers: dict[str, Container]
    probe: str
    port: int
    namespace: str


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory, render: Any) -> Iterator[Rendered]:
    """The pod's containers; what it mounts lies in a folder of this test, and nothing else of it is changed."""
    folder = tmp_path_factory.mktemp("mlflow")
    certificate, key = self_signed(folder)
    ports = free_ports()
    values = {
        "mlflow": {
            "port": ports.http,
            "workers": 1,
            "database": {
                "host": "localhost", "port": ports.grpc, "name": "postgres", "sslMode": "verify-full", "caSecret": "ca",
            },
            "artifacts": {"destination": str(folder / "artifacts"), "claim": "artifacts"},
            "allowedHosts": ["mlflow.example.com"],
        }
    }  # fmt: skip
    (folder / "values.yaml").write_text(yaml.safe_dump(values))
    manifests = render(
        "stillhouse", folder / "values.yaml", namespace="team", release="house", flags=["--kube-version=1.29"]
    )
    (deployment,) = [m for m in manifests if m["kind"] == "Deployment"]
    (scripts,) = [m for m in manifests if m["kind"] == "ConfigMap" and m["metadata"]["name"] == "house-mlflow"]
    pod = deployment["spec"]["template"]["spec"]
    (folder / "migrate.py").write_text(scripts["data"]["migrate.py"])
    secrets = {"username": "mlflow", "password": PASSWORD}
    mounts = {
        "/etc/stillhouse/database/ca.crt": str(certificate),
        "/opt/stillhouse/migration/migrate.py": str(folder / "migrate.py"),
    }
    containers = {}
    for one in [*pod["initContainers"], *pod["containers"]]:
        words = [*one["command"], *one.get("args", [])]
        for inside, outside in mounts.items():
            words = [word.replace(inside, outside) for word in words]
        environment = {
            entry["name"]: entry.get(
                "value", secrets.get(entry.get("valueFrom", {}).get("secretKeyRef", {}).get("key"))
            )
            for entry in one["env"]
        }
        assert None not in environment.values()
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "VIRTUAL_ENV") if name in os.environ}
        launcher = {"python": [sys.executable], "mlflow": [sys.executable, "-m", "mlflow"]}[words[0]]
        containers[one["name"]] = Container([*launcher, *words[1:]], {**kept, **environment, "HOME": str(folder)})
    probe = pod["containers"][0]["readinessProbe"]["httpGet"]["path"]
    try:
        with postgresql(port=ports.grpc, password=PASSWORD, certificate=certificate, key=key):
            yield Rendered(containers, probe, ports.http, "team")
    except PostgresqlMissing as missing:
        pytest.skip(str(missing))


def run(container: Container, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(container.command, env=container.environment, capture_output=True, text=True, **options)


@pytest.fixture(scope="module")
def server(rendered: Rendered, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server, on migrated tables, ready by its own probe; yields `host:port`."""
    migrated = run(rendered.containers["migrate"])
    assert migrated.returncode == 0, migrated.stderr[-3000:]
    assert "Creating initial MLflow database tables" in migrated.stderr
    container, log = rendered.containers["mlflow"], tmp_path_factory.mktemp("log") / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            container.command, env=container.environment, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    address = f"127.0.0.1:{rendered.port}"
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()[-3000:]
            # As the kubelet asks: for the pod's address, which no list of hosts can hold.
            if ask(address, rendered.probe, host=f"10.1.2.3:{rendered.port}")[0] == 200:
                break
            time.sleep(0.2)
        else:
            pytest.fail(log.read_text()[-3000:])
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)
        text = log.read_text()
    assert PASSWORD not in text


def ask(address: str, path: str, *, host: str, body: Any = None) -> tuple[int, str]:
    """Status and body of an answer; 0 where there was none."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Host": host, "Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"http://{address}{path}", data=data, headers=headers), timeout=10
        ) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


SEARCH = "/api/2.0/mlflow/experiments/search?max_results=10"


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("house-mlflow:{port}", True),
        ("house-mlflow.team:{port}", True),
        ("house-mlflow.team.svc:{port}", True),
        ("house-mlflow.team.svc.cluster.local:{port}", True),
        ("localhost:5001", True),
        ("mlflow.example.com", True),
        ("house-mlflow.team.svc.evil.example:{port}", False),
        ("evil.example", False),
        ("evil.example:{port}", False),
        ("10.1.2.3:{port}", False),
        ("mlflow.example.com.evil.example", False),
    ],
)
def test_it_answers_for_its_own_names_alone(server: str, rendered: Rendered, host: str, allowed: bool):
    status, text = ask(server, SEARCH, host=host.format(port=rendered.port))
    assert status == (200 if allowed else 403), text
    assert ("Default" in text) == allowed


def test_the_address_that_steps_get_is_one_of_them(server: str, rendered: Rendered, render: Any, tmp_path: Path):
    values = {"mlflow": {"port": rendered.port, "database": {"host": "x"}, "artifacts": {"destination": "s3://b/p"}}}
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
    manifests = render(
        "stillhouse", tmp_path / "values.yaml", namespace="team", release="house", flags=["--kube-version=1.29"]
    )
    addresses = {
        m["stringData"]["MLFLOW_TRACKING_URI"] for m in manifests if m["metadata"]["name"] == "stillhouse-mlflow"
    }
    (address,) = addresses
    assert ask(server, SEARCH, host=address.removeprefix("http://"))[0] == 200


def test_it_keeps_runs_and_proxies_artifacts(server: str, rendered: Rendered, tmp_path: Path):
    """As a step does: through the server alone, with no access to the store."""
    code = """
import mlflow, sys
mlflow.set_tracking_uri(sys.argv[1])
mlflow.set_experiment("reviews")
with mlflow.start_run() as run:
    mlflow.log_metric("accuracy", 0.9)
    mlflow.log_text("hello", "a/b.txt")
print(run.info.artifact_uri, mlflow.artifacts.load_text(run.info.artifact_uri + "/a/b.txt"))
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    done = subprocess.run(
        [sys.executable, "-c", code, f"http://{server.replace('127.0.0.1', 'localhost')}"],
        env=environment, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    uri, text = done.stdout.split()[-2:]
    assert uri.startswith("mlflow-artifacts:/") and text == "hello"


@pytest.fixture(scope="module")
def engine(server: str, rendered: Rendered) -> Iterator[Any]:
    """The server's database."""
    import sqlalchemy

    uri = sqlalchemy.engine.make_url(rendered.containers["migrate"].command[-1])
    uri = uri.set(username="mlflow", password=PASSWORD)
    engine = sqlalchemy.create_engine(uri, isolation_level="AUTOCOMMIT")
    yield engine
    engine.dispose()


def test_older_tables_are_brought_up_to_date_and_a_second_time_changes_nothing(engine: Any, rendered: Rendered):
    import alembic.command
    import sqlalchemy
    from mlflow.store.db import utils
    from mlflow.store.db.base_sql_model import Base  # noqa: F401 - with all the tables
    from mlflow.store.tracking.dbmodels.initial_models import Base as InitialBase

    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE DATABASE older")
    older = sqlalchemy.create_engine(engine.url.set(database="older"))
    InitialBase.metadata.create_all(older)
    config = utils._get_alembic_config("")
    with older.begin() as connection:
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, "acf3f17fdcc7")  # of MLflow 2
    migrate = rendered.containers["migrate"]
    command = [re.sub(r"/postgres[?]", "/older?", word) for word in migrate.command]
    assert command != migrate.command
    assert utils._get_schema_version(older) != utils._get_latest_schema_revision()
    for _ in range(2):
        done = run(Container(command, migrate.environment), timeout=120)
        assert done.returncode == 0, done.stderr[-3000:]
        assert utils._get_schema_version(older) == utils._get_latest_schema_revision()
    older.dispose()


def test_pods_migrate_in_turn(engine: Any, rendered: Rendered):
    migrate = rendered.containers["migrate"]
    script = next(word for word in migrate.command if word.endswith("migrate.py"))
    lock = re.search(r"^LOCK = (\d+)", Path(script).read_text().replace("_", ""), re.MULTILINE)
    assert lock
    with engine.connect() as connection:
        connection.exec_driver_sql(f"SELECT pg_advisory_lock({lock[1]})")
        process = subprocess.Popen(migrate.command, env=migrate.environment, stderr=subprocess.PIPE)
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        for _ in range(100):
            if connection.exec_driver_sql(waiting).scalar():
                break
            time.sleep(0.1)
        assert process.poll() is None and connection.exec_driver_sql(waiting).scalar() == 1
        connection.exec_driver_sql(f"SELECT pg_advisory_unlock({lock[1]})")
        assert process.communicate(timeout=120) is not None and process.returncode == 0


def test_what_is_wrong_with_the_database_is_in_the_log(rendered: Rendered, tmp_path: Path):
    container = rendered.containers["migrate"]
    wrong = run(Container(container.command, {**container.environment, "PGPASSWORD": "wrong"}), timeout=120)
    assert wrong.returncode != 0 and "password authentication failed" in wrong.stderr
    # Another authority than the one that signed the server's certificate.
    other, _ = self_signed(tmp_path)
    command = [re.sub(r"sslrootcert=.*", f"sslrootcert={other}", word) for word in container.command]
    untrusted = run(Container(command, container.environment), timeout=120)
    assert untrusted.returncode != 0 and "certificate verify failed" in untrusted.stderr
    assert PASSWORD not in wrong.stderr + untrusted.stderr
