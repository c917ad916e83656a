from __future__ import annotations

import socket
from pathlib import Path

import pytest

from stillhouse.deploy import config as config_module
from stillhouse.deploy import deploy_local
from stillhouse.deploy.config import DeployConfig, container_marker
from stillhouse.errors import InputError
from stillhouse.serving.triton import LOOPBACK, free_ports, platform_problems

HOST_NAMESPACES = {"cgroup": 4026531835, "ipc": 4026531839, "pid": 4026531836, "uts": 4026531838}


def make(home, **changes):
    ports = free_ports()
    values = {
        "model_name": "reviews",
        "version": "1",
        "tracking_uri": "",
        "grpc_port": ports.grpc,
        "http_port": ports.http,
        "metrics_port": ports.metrics,
        "home": home,
    }
    return DeployConfig(**{**values, **changes})


def fake_root(folder: Path, *markers: str, namespaces: dict[str, int]) -> Path:
    for marker in markers:
        (folder / marker).parent.mkdir(parents=True, exist_ok=True)
        (folder / marker).touch()
    links = folder / "proc/self/ns"
    links.mkdir(parents=True)
    for name, inode in namespaces.items():
        (links / name).symlink_to(f"{name}:[{inode}]")
    return folder


@pytest.mark.parametrize("marker", [".dockerenv", "run/.containerenv"])
def test_containers_are_seen(tmp_path, marker):
    root = fake_root(tmp_path, marker, namespaces={**HOST_NAMESPACES, "pid": 4026532201})
    assert marker in container_marker(root, {})


def test_container_with_the_hosts_pids_is_seen(tmp_path):
    root = fake_root(tmp_path, ".dockerenv", namespaces={**HOST_NAMESPACES, "ipc": 4026532300, "uts": 4026532299})
    assert container_marker(root, {})


def test_marker_left_on_a_machines_own_disk(tmp_path):
    """A virtual machine whose disk was made from an image is no container."""
    assert container_marker(fake_root(tmp_path, ".dockerenv", namespaces=HOST_NAMESPACES), {}) == ""


def test_no_container(tmp_path):
    assert container_marker(fake_root(tmp_path, namespaces={"pid": 1}), {}) == ""


def test_kubernetes_is_seen_by_its_variable(tmp_path):
    assert "KUBERNETES" in container_marker(tmp_path, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"})


def test_local_is_refused_in_a_container_and_none_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(config_module, "container_marker", lambda: "there is a /.dockerenv")
    problems = make(tmp_path).problems()
    assert any(p.where == "deploy_target" and "inside a container" in p.what for p in problems)
    assert make(tmp_path, deploy_target="none").problems() == []


def test_targets(tmp_path):
    (problem,) = make(tmp_path, deploy_target="moon").problems()
    assert problem.where == "deploy_target"
    assert "moon" in problem.what
    assert make(tmp_path, deploy_target="kubernetes").problems() == []


def test_all_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(config_module, "container_marker", lambda: "")
    problems = make(tmp_path, model_name="a b", version="two", grpc_port=0).problems()
    assert [p.where for p in problems if p not in platform_problems()] == ["model_name", "version", "grpc_port"]


def test_taken_port_is_told_before_anything_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(config_module, "container_marker", lambda: "")
    config = make(tmp_path)
    with socket.socket() as holder:
        holder.bind((LOOPBACK, config.metrics_port))
        holder.listen()
        with pytest.raises(InputError, match="metrics_port"):
            deploy_local(config, registry=None, smoke_rows=["x"])
    assert not list(tmp_path.iterdir())


def test_home_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path))
    assert DeployConfig(model_name="m", version="", tracking_uri="").home == tmp_path
    monkeypatch.delenv("STILLHOUSE_HOME")
    monkeypatch.chdir(tmp_path)
    assert DeployConfig(model_name="m", version="", tracking_uri="").home == tmp_path / ".stillhouse"
