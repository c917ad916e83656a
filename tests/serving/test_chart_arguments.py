"""charts/triton: the real Triton takes the arguments that the chart gives, and the pod's script copes with it.

The containers themselves, with docker, are another test's; this one needs no engine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from constant_load import constant_load, lost
from tiny_package import TEXTS, build_package
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from stillhouse.client import Client, ServingError, Tls
from stillhouse.serving.processes import end_group, remove_shared_memory, shared_memory_prefix
from stillhouse.serving.repository import set_model_version
from stillhouse.serving.triton import Ports, find_triton, free_ports

CHART = Path(__file__).resolve().parents[2] / "charts" / "triton"
SCRIPT = CHART / "files" / "pod.py"
KEY = "0b5c9a52-2f4e-4a8b-9f63-1f4cf2d1a7aa"


@dataclass
class Pod:
    """A Triton with the container's arguments, less what is the container's own: ports, folders, addresses."""

    process: subprocess.Popen[bytes]
    ports: Ports
    container: dict[str, Any]
    log: Path

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.ports.grpc}"

    def run(self, what: str, *options: str) -> subprocess.CompletedProcess[str]:
        """The pod's script, as its probes and its hook run it."""
        command = [sys.executable, "-IS", str(SCRIPT), what, "reviews", f"--port={self.ports.http}", *options]
        return subprocess.run(command, capture_output=True, text=True, env={"POD_KEY": KEY}, timeout=60)

    def stubs(self, model: str) -> list[psutil.Process]:
        """The Python processes behind a model."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if any(f"/{model}/" in part for part in child.cmdline())]


Start = Callable[..., Any]


@pytest.fixture
def start(helm: Path, tmp_path: Path) -> Start:
    """Starts what the chart renders: `with start(package, "grpc.maxConnectionAgeSeconds=1") as pod:`."""

    @contextmanager
    def started(package: Path, *sets: str, replaced: Sequence[tuple[str, str]] = ()) -> Iterator[Pod]:
        values = CHART / "ci" / "minimal-values.yaml"
        command = [str(helm), "template", "reviews", str(CHART), f"--values={values}", "--kube-version=1.29.0"]
        flags = [f"--set={setting}" for setting in sets]
        done = subprocess.run([*command, *flags], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        (deployment,) = (m for m in yaml.safe_load_all(done.stdout) if m and m["kind"] == "Deployment")
        container = deployment["spec"]["template"]["spec"]["containers"][0]
        ports = free_ports()
        local = [
            ("$(POD_KEY)", KEY), ("=/models/triton", f"={package / 'triton'}"), ("=0.0.0.0", "=127.0.0.1"),
            ("port=8001", f"port={ports.grpc}"), ("port=8000", f"port={ports.http}"),
            ("port=8002", f"port={ports.metrics}"), *replaced,
        ]  # fmt: skip
        arguments = container["args"]
        for old, new in local:
            arguments = [argument.replace(old, new) for argument in arguments]
        triton = find_triton(tmp_path)
        prefix = shared_memory_prefix(tmp_path)
        log = tmp_path / "triton.log"
        own = [
            f"--backend-directory={triton.backends}", f"--cache-directory={triton.caches}",
            f"--backend-config=python,shm-region-prefix-name={prefix}", "--grpc-address=127.0.0.1",
        ]  # fmt: skip
        with log.open("wb") as output:
            process = subprocess.Popen(
                [str(triton.binary), *arguments, *own], env=triton.environment, stdin=subprocess.DEVNULL,
                stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        pod = Pod(process, ports, container, log)
        try:
            for _ in range(150):
                assert process.poll() is None, log.read_text(errors="replace")[-3000:]
                if pod.run("live", "--timeout=5").returncode == 0:
                    break
                time.sleep(0.2)
            else:
                pytest.fail(log.read_text(errors="replace")[-3000:])
            yield pod
        finally:
            end_group(process.pid, patience=5.0)
            process.wait(30)
            remove_shared_memory(tmp_path)

    return started


def health(url: str, credentials: Any = None) -> str:
    """The kubelet's own gRPC probe: grpc.health.v1's Check, without a name."""
    import grpc as library

    channel = library.insecure_channel(url) if credentials is None else library.secure_channel(url, credentials)
    with channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        answer: bytes = check(b"", timeout=5)
    return {b"\x08\x01": "SERVING", b"\x08\x02": "NOT_SERVING"}.get(answer, repr(answer))


def test_triton_starts_with_the_arguments_of_the_chart(start: Start, package: Path):
    with start(package, "responseCache.bytes=1048576", "extraArgs={--log-verbose=0}") as pod:
        assert health(pod.url) == "SERVING"
        assert pod.run("ready").returncode == 0
        done = pod.run("live")
        assert done.stdout == "version 7 answered\n"
        with grpc.InferenceServerClient(pod.url) as client:
            for closed in (lambda: client.unload_model("reviews"), lambda: client.get_trace_settings()):
                with pytest.raises(InferenceServerException, match="restricted"):
                    closed()


def test_a_dead_process_behind_a_model_is_found_by_liveness_alone(start: Start, package: Path):
    """What the probe is for: Triton goes on saying that all is well."""
    with start(package) as pod:
        for stub in pod.stubs("reviews"):
            stub.kill()
        time.sleep(1)
        assert health(pod.url) == "SERVING"
        assert pod.run("ready").returncode == 0
        done = pod.run("live", "--timeout=5")
        assert done.returncode == 1
        assert done.stderr.startswith("live: ")


@pytest.mark.parametrize("in_front", [False, True])
def test_overload_is_no_reason_to_restart(start: Start, tmp_path: Path, in_front: bool):
    package = build_package(
        tmp_path / "package", max_queue_size=1, max_wait_ms=1, batch_rows=1, encoder_in_front=in_front
    )
    set_model_version(package / "triton", "reviews", "7")
    with start(package) as pod, constant_load(pod.url, "reviews", [TEXTS[2]], threads=24) as load:
        time.sleep(1)
        for _ in range(10):
            before = len(load.failed)
            done = pod.run("live", "--timeout=9.5")
            assert done.stdout == "version 7 answered\n", done.stderr
            assert len(load.failed) > before, "nobody was refused meanwhile"
    assert {str(answer.error) for answer in load.failed if "overloaded" in str(answer.error)}


def test_a_pod_ends_without_losing_a_request(start: Start, tmp_path: Path):
    """The hook under load, with requests that wait for their turn, then SIGTERM."""
    package = build_package(tmp_path / "package", max_wait_ms=0, batch_rows=1)
    set_model_version(package / "triton", "reviews", "7")
    with start(package, "grpc.maxConnectionAgeSeconds=2", "drain.delaySeconds=5") as pod:
        hook = pod.container["lifecycle"]["preStop"]["exec"]["command"]
        assert hook[3:6] == ["drain", "reviews", "--delay=5"]
        with constant_load(pod.url, "reviews", TEXTS[:4], threads=48, moves=True) as load:
            time.sleep(1)
            begin = time.monotonic()
            done = pod.run("drain", "--delay=3", "--timeout=20")
            drained = time.monotonic()
            pod.process.terminate()
            status = pod.process.wait(20)
        assert done.returncode == 0, done.stderr
        assert drained - begin >= 3
        # By when it was answered: a request whose connection ended can come seconds after it was sent, and be refused.
        served_on = [answer for answer in load.answers if answer.received < begin + 3]
        assert len(served_on) > 100
        assert [a.error for a in served_on if a.error] == [], "it serves on during the delay, across ended connections"
        refused = "Request for unknown model: 'reviews' has no available versions"
        errors = [a for a in load.answers if a.error and refused not in a.error]
        assert lost(errors, drained) == [], "what was accepted is answered, and what is not is refused"
        assert status == 0, pod.log.read_text(errors="replace")[-2000:]


def test_connections_end_at_their_age(start: Start, package: Path):
    with start(package, "grpc.maxConnectionAgeSeconds=1") as pod:
        with Client(pod.url, "reviews", retries=0) as client:
            addresses = set()
            for _ in range(40):
                client.predict_one(TEXTS[0])
                for connection in psutil.Process().net_connections("tcp"):
                    if (
                        connection.raddr
                        and connection.raddr.port == pod.ports.grpc
                        and connection.status == "ESTABLISHED"
                    ):
                        addresses.add(connection.laddr.port)
                time.sleep(0.1)
        assert len(addresses) > 1


# -- TLS -------------------------------------------------------------------------------------------------------------


def openssl(*arguments: str, folder: Path) -> None:
    done = subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`ca.crt`, and `tls.crt` with `tls.key` of 127.0.0.1; `client-ca.crt`, and `client.crt` with `client.key`."""
    folder = tmp_path_factory.mktemp("certificates")
    try:
        subprocess.run(["openssl", "version"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("openssl is not on the path")
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    for authority, name in (("ca", "tls"), ("client-ca", "client")):
        openssl("req", "-x509", *new, "-keyout", f"{authority}.key", "-out", f"{authority}.crt",
                "-subj", f"/CN={authority}", "-days", "2", folder=folder)  # fmt: skip
        (folder / f"{name}.ext").write_text("subjectAltName=IP:127.0.0.1\n")
        openssl("req", *new, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}", folder=folder)
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", f"{authority}.crt", "-CAkey", f"{authority}.key",
                "-CAcreateserial", "-out", f"{name}.crt", "-days", "2", "-extfile", f"{name}.ext",
                folder=folder)  # fmt: skip
    return folder


def asked(pod: Pod, tls: Tls | None) -> str:
    with Client(pod.url, "reviews", tls=tls, retries=0, timeout=5) as client:
        return str(client.predict_one(TEXTS[0]).release)


def test_tls(start: Start, package: Path, certificates: Path):
    replaced = [("=/tls/", f"={certificates}/")]
    with start(package, "tls.existingSecret=a", replaced=replaced) as pod:
        assert asked(pod, Tls(str(certificates / "ca.crt"))) == "7"
        with pytest.raises(ServingError):
            asked(pod, None)
        with pytest.raises(ServingError):
            asked(pod, Tls(str(certificates / "client-ca.crt")))
        assert pod.run("ready").returncode == 0


def test_mutual_tls(start: Start, package: Path, certificates: Path):
    replaced = [("=/tls/", f"={certificates}/")]
    mutual = ["tls.existingSecret=a", "tls.clientCASecret=b", "smokeTest.clientSecret=c"]
    own = [str(certificates / name) for name in ("ca.crt", "client.key", "client.crt")]
    with start(package, *mutual, replaced=replaced) as pod:
        assert asked(pod, Tls(*own)) == "7"
        with pytest.raises(ServingError):
            asked(pod, Tls(own[0]))


# -- what Prometheus reads -------------------------------------------------------------------------------------------


def test_metrics_that_alerts_and_the_dashboard_name_are_there(start: Start, package: Path):
    import re
    import urllib.request

    wanted = set()
    for path in (CHART / "files" / "dashboard.json", CHART / "templates" / "prometheusrule.yaml"):
        wanted |= set(re.findall(r"\b(?:nv|stillhouse)_[a-z_]+(?=\{)", path.read_text(encoding="utf-8")))
    wanted -= {"nv_gpu_utilization"}
    with start(package) as pod:
        with grpc.InferenceServerClient(pod.url) as client:
            text = grpc.InferInput("TEXT", [1, 1], "BYTES")
            text.set_data_from_numpy(np.array([[b"good"]], dtype=np.object_))
            client.infer("reviews", [text])
        with urllib.request.urlopen(f"http://127.0.0.1:{pod.ports.metrics}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
    there = {line.partition("{")[0] for line in lines if 'model="reviews"' in line and 'version="7"' in line}
    assert json.dumps(sorted(wanted - there)) == "[]", os.linesep.join(lines)
