from __future__ import annotations

import dataclasses
import json
import shutil
import threading
from pathlib import Path

import pytest
from command_line import CommandLine
from constant_load import constant_load
from leftovers import remains
from tiny_package import TEXTS, build_package

from stillhouse.artifacts import PackageManifest
from stillhouse.client import predict_texts
from stillhouse.deploy import DeployConfig, deploy_local
from stillhouse.deploy import config as deploy_config
from stillhouse.deploy.local import stop_serving
from stillhouse.deploy.rollback import roll_back
from stillhouse.errors import InputError, RegistryError
from stillhouse.progress import Step
from stillhouse.registry import MlflowRegistry
from stillhouse.serving.journal import read_releases
from stillhouse.serving.server import server_status, serving_folder
from stillhouse.serving.triton import free_ports

IN_CONTAINER = deploy_config.container_marker()


class Registry(MlflowRegistry):
    """A real one but for the packages, which are in folders."""

    def __init__(self, uri: str, packages: dict[str, Path]):
        super().__init__(uri)
        self.packages = packages
        self.fetched: list[str] = []

    def fetch_package(self, name, version, destination):
        self.fetched.append(version)
        PackageManifest.load(self.packages[version]).verify(self.packages[version])
        return Path(shutil.copytree(self.packages[version], destination))


@pytest.fixture(autouse=True)
def outside_of_containers(monkeypatch):
    """These tests may run in a container: their servers are stopped before it ends."""
    monkeypatch.setattr(deploy_config, "container_marker", lambda: "")


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    root = tmp_path_factory.mktemp("packages")
    # Refused for no load: a machine that is busy with more than these tests shall not fail them.
    return {v: build_package(root / v, seed=int(v), max_wait_ms=0) for v in ("1", "2", "3")}


@pytest.fixture
def home(tmp_path):
    yield tmp_path / "home"
    stop_serving(serving_folder(tmp_path / "home"))
    assert remains(serving_folder(tmp_path / "home")) == []


@pytest.fixture
def registry(home, packages, new_mlflow):
    registry = Registry(new_mlflow(home), packages)
    client = registry.client()
    client.create_registered_model("reviews")
    for version in packages:
        client.create_model_version("reviews", "stillhouse:/nowhere", tags={"stillhouse.manifest_digest": version * 64})
    return registry


@pytest.fixture
def deploy(registry, home):
    ports = free_ports()
    config = DeployConfig(
        model_name="reviews",
        version="",
        tracking_uri=registry.uri,
        grpc_port=ports.grpc,
        http_port=ports.http,
        metrics_port=ports.metrics,
        home=home,
    )

    def run(version):
        return deploy_local(dataclasses.replace(config, version=version), registry=registry, smoke_rows=TEXTS)

    return run


def champion(registry):
    return registry.get_alias("reviews", "champion")


def served(home):
    (row,) = predict_texts(server_status(home).grpc_url, "reviews", ["good"])
    return row["model_version"]


def back(registry, home, **arguments):
    return roll_back(home, registry=registry, tracking_uri=registry.uri, **arguments)


def test_back_and_back_again(registry, home, deploy):
    for version in ("1", "2", "3"):
        deploy(version)
    registry.fetched.clear()
    started = server_status(home)
    with constant_load(started.grpc_url, "reviews", TEXTS) as load:
        before, endpoint = back(registry, home)
        assert (before, endpoint.version, champion(registry), served(home)) == ("3", "2", "2", "2")
        assert endpoint.answers  # it was tested
        before, endpoint = back(registry, home)
        assert (before, endpoint.version, champion(registry), served(home)) == ("2", "1", "1", "1")
    assert load.failed == []
    assert {answer.version for answer in load.answered} == {"3", "2", "1"}
    assert registry.fetched == []  # all three are still here
    with pytest.raises(InputError, match="only version 1 of reviews was deployed here"):
        back(registry, home)
    with pytest.raises(InputError, match="version 1 of reviews is served now, and is the champion"):
        back(registry, home, to="1")

    # A version that is named may be one that was left behind; what is gone here comes from the registry.
    (third,) = [Path(e.package) for e in read_releases(serving_folder(home)) if e.version == "3"]
    (third / "triton/reviews/3/model.py").write_text("raise SystemExit")
    assert back(registry, home, to="3")[1].version == "3"
    assert registry.fetched == ["3"]
    assert (champion(registry), served(home)) == ("3", "3")
    assert server_status(home).server_pid == started.server_pid
    assert [(e.version, e.how) for e in read_releases(serving_folder(home), "reviews")] == [
        ("1", "deploy"),
        ("2", "deploy"),
        ("3", "deploy"),
        ("2", "rollback"),
        ("1", "rollback"),
        ("3", "rollback"),
    ]


def test_while_a_run_is_deploying(registry, home, deploy, monkeypatch):
    monkeypatch.setattr("stillhouse.deploy.rollback._WAIT_SECONDS", 0.0)
    deploy("1")
    deploy("2")
    held, done = threading.Event(), threading.Event()

    def hold():
        with MlflowRegistry(registry.uri).deploy_lock("reviews", holder="run 77", wait_s=5, step=Step("deploy")):
            held.set()
            done.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert held.wait(30)
        with pytest.raises(RegistryError, match="run 77 is deploying reviews"):
            back(registry, home)
    finally:
        done.set()
        holder.join()
    assert (champion(registry), served(home)) == ("2", "2")


def test_on_the_command_line(registry, home, deploy):
    command = CommandLine(home)
    empty = command("releases")
    assert (empty.returncode, empty.stdout) == (0, "Nothing was served here yet.\n"), empty.stderr
    nothing = command("rollback")
    assert nothing.returncode == 2
    assert "nothing was deployed here yet" in nothing.stderr

    for version in ("1", "2"):
        deploy(version)
    table = command("releases").stdout.splitlines()
    assert "served, champion" in table[2]
    assert "served" not in table[3]

    malformed = command("rollback", "--to", "last")
    assert malformed.returncode == 2
    assert "'last' is not a positive whole number" in malformed.stderr
    unknown = command("rollback", "--to", "9")
    assert unknown.returncode == 1
    assert "has no version 9" in unknown.stderr
    other = command("rollback", "ratings")
    assert other.returncode == 2
    assert "ratings was never served here" in other.stderr
    assert served(home) == "2"

    if not IN_CONTAINER:  # where the command refuses, as it should
        done = command("rollback")
        assert done.returncode == 0, done.stderr
        assert f"Serving reviews version 1 at gRPC {server_status(home).grpc_url} instead of version 2" in done.stdout
        assert (served(home), champion(registry)) == ("1", "1")
        rows = json.loads(command("releases", "reviews", "--json").stdout)
        assert [(r["version"], r["how"], r["served"], r["champion"]) for r in rows] == [
            ("1", "rollback", True, True),
            ("2", "deploy", False, False),
            ("1", "deploy", False, False),
        ]
