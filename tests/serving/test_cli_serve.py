from __future__ import annotations

import ctypes
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from command_line import CommandLine
from leftovers import remains
from tiny_package import build_package

from stillhouse.artifacts import PackageManifest
from stillhouse.cli.serve import newest_champion
from stillhouse.client import predict_texts
from stillhouse.deploy.local import serving_lock, stop_serving
from stillhouse.errors import InputError
from stillhouse.serving.journal import read_releases
from stillhouse.serving.server import read_status, server_status, serving_folder
from stillhouse.serving.triton import LOOPBACK, free_ports


@pytest.fixture
def ports():
    return free_ports()


@pytest.fixture
def options(ports):
    return ["--grpc-port", str(ports.grpc), "--http-port", str(ports.http), "--metrics-port", str(ports.metrics)]


@pytest.fixture
def command(tmp_path):
    yield CommandLine(tmp_path / "home")
    stop_serving(serving_folder(tmp_path / "home"))
    assert remains(serving_folder(tmp_path / "home")) == []


def test_serve_a_package_folder(command, options, ports, tmp_path):
    package = build_package(tmp_path / "package")
    done = command("serve", str(package), *options)
    assert done.returncode == 0, done.stderr
    assert f"Serving reviews version 1 at gRPC 127.0.0.1:{ports.grpc}" in done.stdout

    status = command("serve", "status", "--json")
    assert status.returncode == 0
    body = json.loads(status.stdout)
    assert (body["model"], body["version"], body["status"], body["answers"]) == ("reviews", "1", "ready", True)
    assert body["ports"] == {"grpc": ports.grpc, "http": ports.http, "metrics": ports.metrics}
    assert re.search(r"status +ready, answers", command("serve", "status").stdout)

    answer = command("predict", "--json", "the film was good")
    assert json.loads(answer.stdout)[0]["model_version"] == "1"

    # Another package on the same ports: those of our own server are no hindrance, and it goes on running.
    before = server_status(tmp_path / "home").pid
    other = build_package(tmp_path / "other", seed=1)
    again = command("serve", "start", str(other), *options)
    assert again.returncode == 0, again.stderr
    assert server_status(tmp_path / "home").pid == before
    assert server_status(tmp_path / "home").package == str(other)

    # On other ports it is a new one.
    moved = free_ports()
    again = command("serve", str(other), "--grpc-port", str(moved.grpc), "--http-port", "0", "--metrics-port", "0")
    assert again.returncode == 0, again.stderr
    assert server_status(tmp_path / "home").pid != before
    listed = json.loads(command("releases", "--json").stdout)
    assert [(row["version"], row["how"], row["registered"], row["served"]) for row in listed] == [
        ("1", "serve", False, True),
        ("1", "serve", False, False),
        ("1", "serve", False, False),
    ]

    stopped = command("serve", "stop")
    assert (stopped.returncode, stopped.stdout) == (0, "Stopped reviews version 1.\n")
    assert command("serve", "stop").stdout == "no server runs.\n"
    nothing = command("serve", "status", "--json")
    assert nothing.returncode == 1
    assert json.loads(nothing.stdout) == {"status": "stopped", "answers": False}


def interrupt(process):
    process.send_signal(signal.SIGINT)


def terminate_in_a_librarys_thread(process):
    """The kernel may hand a signal to any thread that does not block it, and libraries start some."""
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        blocked = re.search(r"SigBlk:\s+([0-9a-f]+)", (task / "status").read_text())[1]
        if int(task.name) != process.pid and not int(blocked, 16) >> (signal.SIGTERM - 1) & 1:
            assert ctypes.CDLL(None).tgkill(process.pid, int(task.name), signal.SIGTERM) == 0
            return
    pytest.skip("no thread takes signals beside the first one")


@pytest.mark.parametrize("how", [interrupt, terminate_in_a_librarys_thread])
def test_foreground_ends_with_its_signal(command, options, ports, tmp_path, how):
    package = build_package(tmp_path / "package")
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "stillhouse.cli.main", "serve", str(package), "--foreground", *options],
            # numpy's library starts a thread then, also where OMP_NUM_THREADS asks for one alone.
            env={**command.environment, "OPENBLAS_NUM_THREADS": "2"},
            stdout=output,
            stderr=output,
        )
    try:
        folder = serving_folder(tmp_path / "home")
        deadline = time.monotonic() + 60
        while not ((status := read_status(folder)) and status.status == "ready"):
            assert process.poll() is None, (tmp_path / "output").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert status.pid == process.pid
        assert predict_texts(status.grpc_url, "reviews", ["good"])
        how(process)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
    assert read_status(folder) is None
    assert "stopping: answering what was accepted" in (folder / "logs/supervisor.log").read_text()
    (release,) = read_releases(folder)
    assert (release.how, release.registered) == ("serve", False)


def test_foreground_that_does_not_come_up_is_no_release(command, options, tmp_path):
    package = build_package(tmp_path / "package")
    (package / "triton/reviews/1/model.py").write_text("raise ValueError('no front model')")
    PackageManifest.load(package).save(package)
    assert command("serve", str(package), "--foreground", *options).returncode == 1
    assert read_releases(serving_folder(tmp_path / "home")) == []


def test_a_deployment_under_way_is_waited_for(command, options, tmp_path):
    package = build_package(tmp_path / "package")
    ended = []

    def deploy():
        with serving_lock(serving_folder(tmp_path / "home"), wait_s=0):
            began.set()
            time.sleep(8)
            ended.append(read_releases(serving_folder(tmp_path / "home")))

    began = threading.Event()
    deployment = threading.Thread(target=deploy)
    deployment.start()
    assert began.wait(5)
    done = command("serve", str(package), *options)
    deployment.join()
    assert done.returncode == 0, done.stderr
    assert ended == [[]]


def test_port_taken_exits_with_2_and_keeps_what_is_served(command, options, ports, tmp_path):
    package = build_package(tmp_path / "package")
    assert command("serve", str(package), *options).returncode == 0
    with socket.socket() as holder:
        holder.bind((LOOPBACK, 0))
        holder.listen()
        port = holder.getsockname()[1]
        done = command("serve", str(package), "--grpc-port", str(port), "--http-port", "0", "--metrics-port", "0")
    assert done.returncode == 2
    assert "grpc_port" in done.stderr
    assert f"127.0.0.1:{port} is taken" in done.stderr
    assert predict_texts(f"127.0.0.1:{ports.grpc}", "reviews", ["good"])


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("nowhere", "neither a registered model nor a folder"),
        ("models:/reviews", "names no version"),
        (None, "no registered model is called champion"),
    ],
)
def test_what_cannot_be_served(command, options, tmp_path, uri, says):
    done = command("serve", *([uri] if uri else []), *options)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert not (tmp_path / "home" / "mlflow.db").exists()


def test_altered_package_folder_is_refused(command, options, tmp_path):
    package = build_package(tmp_path / "package")
    (package / "triton" / "reviews" / "1" / "model.py").write_text("raise SystemExit")
    done = command("serve", str(package), *options)
    assert done.returncode == 2
    assert "model.py was altered" in done.stderr


def test_newest_champion():
    rows = [
        {"name": "a", "version": "3", "aliases": ["champion"], "created": "2026-01-02T00:00:00+00:00"},
        {"name": "a", "version": "4", "aliases": ["challenger"], "created": "2026-01-09T00:00:00+00:00"},
        {"name": "b", "version": "1", "aliases": ["best", "champion"], "created": "2026-01-03T00:00:00+00:00"},
    ]
    assert newest_champion(rows) == ("b", "1")
    with pytest.raises(InputError, match="champion"):
        newest_champion(rows[1:2])
