from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from leftovers import remains

from stillhouse.artifacts import PackageManifest
from stillhouse.client import predict_texts
from stillhouse.errors import InputError, ServingError
from stillhouse.serving.server import ServerConfig, is_answering, read_status, start_server, stop_folder
from stillhouse.serving.triton import LOOPBACK
from stillhouse.serving.verify import verify_release


def eventually(condition, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.1)
    raise AssertionError("it did not happen")


def stub_of(status, model):
    return next(
        child
        for child in psutil.Process(status.server_pid).children(recursive=True)
        if f"/{model}/" in " ".join(child.cmdline())
    )


def recovered(config, restarts):
    status = read_status(config.folder)
    return status and status.status == "ready" and status.restarts >= restarts and is_answering(status) and status


def test_life(own_server):
    started = start_server(own_server)
    assert started.status == "ready"
    assert (started.model, started.version) == ("reviews", "7")
    assert is_answering(started)
    body = json.loads((own_server.folder / "server.json").read_text())
    assert {"pid", "ports", "model", "version", "started"} <= set(body)
    assert os.getpgid(started.server_pid) == started.server_pid  # a process group of its own
    assert os.getsid(started.pid) != os.getsid(0)
    with pytest.raises(InputError, match="served already"):
        start_server(own_server)
    assert stop_folder(own_server.folder).pid == started.pid
    assert remains(own_server.folder) == []
    assert stop_folder(own_server.folder) is None
    assert not [p for p in psutil.Process().children(recursive=True) if p.pid == started.pid]
    verify_release(own_server.package, PackageManifest.load(own_server.package), "7")  # it was served, not changed


@pytest.mark.parametrize("model", ["reviews", "reviews-encoder"])
def test_killed_python_process_is_noticed(own_server, model):
    started = start_server(own_server)
    stub_of(started, model).kill()
    status = eventually(lambda: recovered(own_server, 1))
    assert status.server_pid != started.server_pid
    assert status.pid == started.pid
    assert predict_texts(status.grpc_url, "reviews", ["good"])[0]["model_version"] == "7"


def test_a_state_that_cannot_be_written_is_no_reason_to_end(own_server):
    """As on a full disk: the supervisor goes on, and says so in its log."""
    started = start_server(own_server)
    state = own_server.folder / "server.json"
    state.unlink()
    state.mkdir()
    os.kill(started.server_pid, signal.SIGKILL)
    log = own_server.folder / "logs/supervisor.log"
    eventually(lambda: log.read_text().count(" ready: ") == 2)
    assert is_answering(started)
    assert "server.json cannot be written" in log.read_text()
    state.rmdir()
    (server,) = psutil.Process(started.pid).children()
    server.kill()
    assert eventually(lambda: recovered(own_server, 2)).pid == started.pid


def test_a_start_that_fails_for_lack_of_room_is_tried_again(own_server):
    started = start_server(own_server)
    served = own_server.folder / "served"
    moved = served.rename(own_server.folder / "moved")
    served.write_text("in the way")
    os.kill(started.server_pid, signal.SIGKILL)
    eventually(lambda: "it cannot be started: " in (own_server.folder / "logs/supervisor.log").read_text())
    served.unlink()
    assert eventually(lambda: recovered(own_server, 2)).pid == started.pid
    shutil.rmtree(moved)


def test_killed_triton_is_noticed(own_server):
    started = start_server(own_server)
    os.kill(started.server_pid, signal.SIGKILL)
    assert eventually(lambda: recovered(own_server, 1)).server_pid != started.server_pid


def test_killed_supervisor_takes_triton_along(own_server):
    started = start_server(own_server)
    os.kill(started.pid, signal.SIGKILL)
    eventually(lambda: not psutil.pid_exists(started.server_pid))
    assert read_status(own_server.folder).status == "dead"
    again = start_server(own_server)  # a dead one is no hindrance
    assert is_answering(again)


def test_callers_pipes_are_not_held_and_its_end_is_survived(own_server):
    """A pipeline step's output is read until every process that holds it has closed it."""
    script = (
        "import os, sys\n"
        "from stillhouse.serving.server import ServerConfig, start_server\n"
        "start_server(ServerConfig.from_json(sys.argv[1]))\n"
        "print('started', flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, own_server.to_json()],
        stdin=subprocess.PIPE,
        capture_output=True,
        timeout=60,  # waits for the end of the pipes, not of the process
        check=False,
    )
    assert done.returncode == -9
    assert done.stdout == b"started\n", done.stderr
    status = read_status(own_server.folder)
    assert is_answering(status)
    # Triton's pipe is the supervisor's; the caller's have been read to their end.
    targets = [str(Path(f"/proc/{status.pid}/fd/{number}").readlink()) for number in (0, 1, 2)]
    assert targets == ["/dev/null", *[str(own_server.folder / "logs" / "supervisor.err")] * 2]


def test_port_taken(own_server):
    with socket.socket() as holder:
        holder.bind((LOOPBACK, own_server.ports.grpc))
        holder.listen()
        with pytest.raises(InputError) as caught:
            start_server(own_server)
    (problem,) = caught.value.problems
    assert problem.where == "grpc_port"
    assert str(own_server.ports.grpc) in problem.what
    assert read_status(own_server.folder) is None


def test_model_that_cannot_load_tells_why(own_server, package, tmp_path):
    broken = shutil.copytree(package, tmp_path / "broken")
    (broken / "triton" / "reviews-encoder" / "7" / "model.onnx").write_bytes(b"this is no model")
    PackageManifest.load(broken).save(broken)
    begin = time.monotonic()
    with pytest.raises(ServingError, match="did not come up") as caught:
        start_server(replace(own_server, package=broken))
    assert any("reviews-encoder" in line for line in caught.value.log_tail)
    assert any("Protobuf parsing failed" in line for line in caught.value.log_tail)
    assert read_status(own_server.folder) is None
    assert time.monotonic() - begin < own_server.start_timeout  # told at once, and not tried again


def test_gives_up_when_restarting_does_not_help(own_server, package, tmp_path):
    fragile = shutil.copytree(package, tmp_path / "fragile")
    started = start_server(replace(own_server, package=fragile, max_restarts=1))
    (fragile / "triton" / "reviews" / "7" / "tokenizer.json").write_text("{}")
    PackageManifest.load(fragile).save(fragile)
    os.kill(started.server_pid, signal.SIGKILL)
    status = eventually(lambda: (s := read_status(own_server.folder)).status == "failed" and s)
    assert status.restarts == 1
    eventually(lambda: not psutil.pid_exists(status.pid))
    assert any("reviews" in line for line in status.log_tail())
    assert remains(own_server.folder) == []


def test_http_off(own_server):
    status = start_server(replace(own_server, ports=replace(own_server.ports, http=0)))
    assert is_answering(status)
    listening = {
        c.laddr.port: c.laddr.ip.removeprefix("::ffff:")  # IPv4 on a socket of IPv6
        for c in psutil.Process(status.server_pid).net_connections("tcp")
        if c.status == psutil.CONN_LISTEN
    }
    assert listening == {own_server.ports.grpc: LOOPBACK, own_server.ports.metrics: LOOPBACK}


def test_config_survives_json(own_server):
    assert ServerConfig.from_json(own_server.to_json()) == own_server
