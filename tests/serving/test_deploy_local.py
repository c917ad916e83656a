from __future__ import annotations

import dataclasses
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
from folder_registry import FolderRegistry
from leftovers import remains
from tiny_package import TEXTS, build_package

from stillhouse.artifacts import PackageManifest
from stillhouse.client import predict_texts
from stillhouse.deploy import DeployConfig, deploy_local, deploy_release
from stillhouse.deploy import config as deploy_config
from stillhouse.deploy import shelf as shelf_module
from stillhouse.deploy.local import serving_lock, stop_serving
from stillhouse.errors import RegistryError, ServingError
from stillhouse.serving.runtime import PackageRuntime
from stillhouse.serving.server import ServerConfig, read_status, server_status, serving_folder, start_server
from stillhouse.serving.triton import free_ports


@pytest.fixture(autouse=True)
def outside_of_containers(monkeypatch):
    """These tests may run in a container: their servers are stopped before it ends."""
    monkeypatch.setattr(deploy_config, "container_marker", lambda: "")


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    root = tmp_path_factory.mktemp("packages")
    found = {version: build_package(root / version, seed=int(version)) for version in ("1", "2", "3")}
    # Version 3 answers rightly in this process, and wrongly under Triton.
    front = found["3"] / "triton" / "reviews" / "1" / "model.py"
    source = front.read_text()
    wrong = source.replace('"PROBABILITIES", probabilities)', '"PROBABILITIES", probabilities[:, ::-1].copy())')
    assert wrong != source
    front.write_text(wrong)
    PackageManifest.load(found["3"]).save(found["3"])
    return found


@pytest.fixture
def registry(packages):
    return FolderRegistry(packages)


@pytest.fixture
def config(tmp_path):
    ports = free_ports()
    yield DeployConfig(
        model_name="reviews",
        version="1",
        tracking_uri="",
        grpc_port=ports.grpc,
        http_port=ports.http,
        metrics_port=ports.metrics,
        home=tmp_path,
    )
    stop_serving(serving_folder(tmp_path))
    assert remains(serving_folder(tmp_path)) == []
    assert remains(serving_folder(tmp_path) / "candidate") == []


def champion(registry):
    return registry.get_alias("reviews", "champion")


def served_version(config):
    rows = predict_texts(f"127.0.0.1:{config.grpc_port}", "reviews", TEXTS)
    (version,) = {row["model_version"] for row in rows}
    return version


def test_from_release_to_release(registry, packages, config):
    first = deploy_release(config, registry=registry, smoke_rows=TEXTS)
    assert (first["version"], first["url"], first["kept"]) == ("1", f"127.0.0.1:{config.grpc_port}", False)
    assert len({example["label"] for example in first["examples"]}) > 1
    assert champion(registry) == "1"
    assert served_version(config) == "1"
    before = server_status(config.home)

    # The same version once more: left running, tested all the same.
    again = deploy_local(config, registry=registry, smoke_rows=TEXTS)
    assert again.kept
    assert server_status(config.home) == before

    # Another version takes over the same ports.
    second = dataclasses.replace(config, version="2")
    assert not deploy_local(second, registry=registry, smoke_rows=TEXTS).kept
    assert champion(registry) == "2"
    assert served_version(second) == "2"
    known = PackageRuntime(packages["2"]).predict(TEXTS)
    assert [row["LABEL"] for row in predict_texts(f"127.0.0.1:{config.grpc_port}", "reviews", TEXTS)] == known.labels

    # One that fails its test on spare ports: the one that serves is not even touched, nor the record of it.
    before = server_status(config.home)
    with pytest.raises(ServingError, match=r"version 3 failed the smoke test on \d of 8 rows"):
        deploy_local(dataclasses.replace(config, version="3"), registry=registry, smoke_rows=TEXTS)
    assert champion(registry) == "2"
    assert served_version(config) == "2"
    assert server_status(config.home) == before
    assert list(registry.service.values()) == ["2"]


def test_failure_after_the_switch_brings_the_previous_release_back(registry, config):
    deploy_local(config, registry=registry, smoke_rows=TEXTS)
    first = server_status(config.home)
    registry.refuse_alias = True
    with pytest.raises(RegistryError, match="out of order"):
        deploy_local(dataclasses.replace(config, version="2"), registry=registry, smoke_rows=TEXTS)
    assert champion(registry) == "1"
    assert served_version(config) == "1"
    back = server_status(config.home)
    assert (back.package, back.ports) == (first.package, first.ports)
    assert back.pid == first.pid  # it was never stopped
    assert back.request  # or the switch was never made


def after_the_switch(config, seen, act):
    """An `allowed` that acts when it is asked for the second time, and keeps which version was served each time."""

    def allowed():
        seen.append(served_version(config))
        if len(seen) == 2:
            act()

    return allowed


@pytest.fixture
def told_to_end():
    """What else SIGTERM and SIGHUP do in this process: raise KeyboardInterrupt; under nohup, nothing at all."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("told_to_end")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_told_to_end_while_it_tries_a_release_it_leaves_nothing_of_it(registry, config, number):
    deploy_local(config, registry=registry, smoke_rows=TEXTS)
    trial = serving_folder(config.home) / "candidate"

    def tell():
        while not (trial / "server.json").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    watcher = threading.Thread(target=tell, daemon=True)
    watcher.start()
    with pytest.raises(SystemExit) as end:
        deploy_local(dataclasses.replace(config, version="2"), registry=registry, smoke_rows=TEXTS)
    assert end.value.code == 128 + number
    assert remains(trial) == []
    assert (champion(registry), served_version(config)) == ("1", "1")


@pytest.mark.usefixtures("told_to_end")
def test_told_to_end_after_the_switch_it_brings_the_previous_release_back(registry, config):
    deploy_local(config, registry=registry, smoke_rows=TEXTS)
    seen = []

    def tell():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    allowed = after_the_switch(config, seen, tell)
    with pytest.raises(SystemExit) as end:
        deploy_local(dataclasses.replace(config, version="2"), registry=registry, smoke_rows=TEXTS, allowed=allowed)
    assert end.value.code == 143
    assert seen == ["1", "2"]
    assert (champion(registry), served_version(config)) == ("1", "1")


def test_what_a_killed_deployment_left_is_stopped_with_the_server(registry, config):
    deploy_local(config, registry=registry, smoke_rows=TEXTS)
    folder = serving_folder(config.home)
    status = server_status(config.home)
    trial = ServerConfig(
        folder=folder / "candidate",
        package=Path(status.package),
        model=status.model,
        version=status.version,
        ports=free_ports(),
    )
    start_server(trial)
    with serving_lock(folder, wait_s=0):  # a deployment is under way, whose it is
        assert stop_serving(folder).version == "1"
    assert read_status(trial.folder).status == "ready"
    assert stop_serving(folder) is None
    assert remains(trial.folder) == []


def test_lock_lost_after_the_switch_brings_the_previous_release_back(registry, config):
    deploy_local(config, registry=registry, smoke_rows=TEXTS)
    seen = []

    def lose():
        raise RegistryError("the lock was lost")

    allowed = after_the_switch(config, seen, lose)
    with pytest.raises(RegistryError, match="lock was lost"):
        deploy_local(dataclasses.replace(config, version="2"), registry=registry, smoke_rows=TEXTS, allowed=allowed)
    assert seen == ["1", "2"]  # asked before the switch and after it
    assert (champion(registry), served_version(config)) == ("1", "1")


def test_first_release_that_fails_leaves_nothing(registry, config):
    registry.packages = {"1": registry.packages["3"]}
    with pytest.raises(ServingError, match="failed the smoke test"):
        deploy_local(config, registry=registry, smoke_rows=TEXTS)
    assert champion(registry) is None
    assert server_status(config.home) is None


def test_release_that_does_not_load_tells_the_servers_own_lines(registry, config, tmp_path):
    broken = build_package(tmp_path / "broken")
    pbtxt = broken / "triton" / "reviews" / "config.pbtxt"
    pbtxt.write_text(pbtxt.read_text().replace('backend: "python"', 'backend: "pythagoras"'))
    PackageManifest.load(broken).save(broken)
    registry.packages = {"1": broken}
    with pytest.raises(ServingError, match="did not come up") as caught:
        deploy_local(config, registry=registry, smoke_rows=TEXTS)
    assert any("pythagoras" in line for line in caught.value.log_tail)
    assert champion(registry) is None


def test_old_releases_are_cleared_out(registry, config, monkeypatch):
    monkeypatch.setattr(shelf_module, "_KEPT", 2)
    registry.packages = {str(n): registry.packages["1" if n % 2 else "2"] for n in range(1, 4)}
    for version in registry.packages:
        deploy_local(dataclasses.replace(config, version=version), registry=registry, smoke_rows=TEXTS[:2])
    shelf = Path(server_status(config.home).package).parent
    assert sorted(path.name.split("-")[0] for path in shelf.iterdir() if path.is_dir()) == ["2", "3"]


def test_another_model_takes_the_place_of_the_first_in_the_record(registry, config, tmp_path):
    deploy_local(config, registry=registry, smoke_rows=TEXTS[:2])
    stop_serving(serving_folder(config.home))  # what is stopped is still what was released here
    place = f"local {socket.gethostname()}"
    assert registry.service == {("reviews", place): "1"}
    registry.packages["4"] = build_package(tmp_path / "verdicts", served_name="verdicts")
    other = dataclasses.replace(config, model_name="verdicts", version="4")
    deploy_local(other, registry=registry, smoke_rows=TEXTS[:2])
    assert registry.service == {("verdicts", place): "4"}


def test_a_record_that_cannot_be_written_costs_no_release(registry, config, monkeypatch, caplog):
    def refuse(name, version, *, where):
        raise RegistryError("the registry is out of order")

    monkeypatch.setattr(registry, "begin_service", refuse)
    deploy_local(config, registry=registry, smoke_rows=TEXTS[:2])
    assert (champion(registry), served_version(config)) == ("1", "1")
    assert "lacks this release: the registry is out of order" in caplog.text
