from __future__ import annotations

import os
import socket
import sys

import pytest

from stillhouse.serving import triton
from stillhouse.serving.triton import LOOPBACK, Ports, Triton, free_ports, platform_problems


def test_numbers():
    assert Ports().problems() == []
    assert Ports(http=0, metrics=0).problems() == []
    assert [p.where for p in Ports(grpc=0, http=-1, metrics=65536).problems()] == [
        "grpc_port",
        "http_port",
        "metrics_port",
    ]
    (problem,) = Ports(grpc=9000, http=9001, metrics=9000).problems()
    assert problem.where == "metrics_port"
    assert "grpc_port" in problem.what


def test_taken_names_parameter_holder_and_way_out():
    ports = free_ports()
    with socket.socket() as holder:
        holder.bind((LOOPBACK, ports.http))
        holder.listen()
        (problem,) = ports.taken()
        assert problem.where == "http_port"
        assert f"127.0.0.1:{ports.http}" in problem.what
        assert f"pid {os.getpid()}" in problem.what
        assert "--http-port" in problem.remedy
        assert "--set http_port" in problem.remedy
        assert ports.taken(except_ports=[ports.http]) == []
    assert ports.taken() == []


def test_free_ports_differ():
    ports = free_ports()
    assert len({ports.grpc, ports.http, ports.metrics}) == 3


def command_of(folder, ports):
    server = Triton(folder / "tritonserver", folder, folder, {})
    return server.command(folder, ports, models=["m"], shared_memory="x", key="k")


def test_everything_listens_on_loopback(tmp_path):
    command = command_of(tmp_path, Ports(grpc=1, http=2, metrics=3))
    assert [part for part in command if "address" in part] == [
        f"--{name}-address=127.0.0.1" for name in ("grpc", "http", "metrics")
    ]
    assert any(part.startswith("--http-restricted-api=shared-memory,model-repository") for part in command)
    assert any(part.startswith("--grpc-restricted-protocol=shared-memory,model-repository") for part in command)


def test_http_and_metrics_can_be_off(tmp_path):
    command = command_of(tmp_path, Ports(grpc=1, http=0, metrics=0))
    assert {"--allow-http=false", "--allow-metrics=false"} <= set(command)
    assert not [part for part in command if part.startswith(("--http", "--metrics-port", "--metrics-address"))]


def test_other_platforms_are_told(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(triton.platform, "machine", lambda: "arm64")
    monkeypatch.setattr(sys, "version_info", (3, 13, 0))
    problems = platform_problems()
    assert [p.where for p in problems] == ["deploy_target", "deploy_target"]
    assert "darwin arm64" in problems[0].what
    assert "3.12" in problems[1].what


@pytest.mark.parametrize(("name", "version"), [("glibc", "2.31"), ("", "")])
def test_old_or_other_libc_is_told(monkeypatch, name, version):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(triton.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(triton.platform, "libc_ver", lambda: (name, version))
    assert "glibc 2.35" in platform_problems()[0].what


def test_absent_server_is_told(monkeypatch):
    monkeypatch.setattr(triton, "_pytriton", lambda: None)
    assert any("nvidia-pytriton" in p.what or "runs on" in p.what for p in platform_problems())
