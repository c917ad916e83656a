"""The images that serve: `triton-dev` as it is built and run, and the steps of `triton` on top of it.

NVIDIA's image is many GB, and not reachable from everywhere; `triton-dev` is laid out like it and takes its place here.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from constant_load import turned_away
from tiny_package import TEXTS
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from stillhouse import __version__
from stillhouse.components.images import REGISTRY
from stillhouse.serving.runtime import PackageRuntime
from stillhouse.serving.triton import free_ports

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = ROOT.parent / "shared" / "tools" / "base-image"
"""Starts an engine and makes a stand-in for the public base image, where no registry can be reached."""
DEV = f"{REGISTRY}/stillhouse-triton-dev:{__version__}"
PRODUCTION = f"{REGISTRY}/stillhouse-triton:stand-in"
LOCKED = ("--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--user=1234567:7654321")
"""As strict as clusters are: a user and a group that the image does not know, and nothing to write to but /tmp."""
NOTICE = re.compile(r"for development clusters and CI only.*CVE-2025-23310 and CVE-2025-23311", re.DOTALL)


def call(*command: str | Path, **options: Any) -> str:
    """Run a command; its output, or a failure that shows it."""
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-5000:]}\n{done.stderr[-5000:]}"
    return done.stdout


def in_image(image: str, script: str) -> str:
    return call("docker", "run", "--rm", "--network=none", "--user=0", "--entrypoint=sh", image, "-c", script)


def make_image(name: str, *variables: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "REGISTRY", "TAG")}
    call("make", f"image-{name}", f"IMAGES={name}", *variables, cwd=ROOT, env=environment)


def base_image() -> str:
    (base,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", (ROOT / "images/triton-dev/Dockerfile").read_text(), re.MULTILINE)
    return str(base)


def base_size() -> int:
    return int(call("docker", "image", "inspect", "--format={{.Size}}", base_image()))


@pytest.fixture(scope="module")
def build_flags() -> str:
    """What `docker build` needs here, once an engine runs and the base is at hand."""
    if not STAND_IN.exists():
        if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode:
            pytest.skip("no Docker engine answers, and there is no tool to start one")
        return ""
    if os.geteuid() != 0:
        pytest.skip("starting a Docker engine needs root")
    done = subprocess.run([STAND_IN, base_image()], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        pytest.skip(f"{STAND_IN.name} failed: {done.stderr[-300:]}")
    return "--network=host"


@pytest.fixture(scope="module")
def image(build_flags: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    """What the engine says of `triton-dev`."""
    make_image("triton-dev", f"DOCKER_BUILD_FLAGS={build_flags}")
    found: dict[str, Any] = json.loads(call("docker", "image", "inspect", DEV))[0]
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{DEV}: {found['Size'] / 1e6:.0f} MB, of which its base {base_size() / 1e6:.0f} MB", flush=True)
    return found


@pytest.fixture(scope="module")
def production(image: dict[str, Any], build_flags: str) -> Iterator[str]:
    """`images/triton` built on `triton-dev` less the tokenizers, run by root as NVIDIA's; yields the base's name."""
    base = "stillhouse-test/nvidia:stand-in"
    recipe = f"FROM {DEV}\nUSER 0\nRUN rm -r /opt/stillhouse/lib/python3*/site-packages/tokenizers*\n"
    call("docker", "build", "--tag", base, "-", input=recipe)
    make_image("triton", "TAG=stand-in", f"DOCKER_BUILD_FLAGS={build_flags} --build-arg TRITON_IMAGE={base}")
    yield base
    call("docker", "image", "rm", PRODUCTION, base)


@dataclass
class Container:
    name: str
    url: str
    client: grpc.InferenceServerClient

    def log(self) -> str:
        done = subprocess.run(["docker", "logs", self.name], capture_output=True, text=True, check=True)
        return done.stdout + done.stderr


@contextlib.contextmanager
def serving(image: str, package: Path, *options: str, more: tuple[str, ...] = ()) -> Iterator[Container]:
    """A container that serves a package, once it answers; `more` goes to the server's command line."""
    port = free_ports().grpc
    name = f"stillhouse-test-{os.getpid()}-{port}"
    command = [
        "tritonserver", "--model-repository=/models", "--disable-auto-complete-config", f"--grpc-port={port}",
        "--grpc-address=127.0.0.1", "--allow-http=false", "--allow-metrics=false", *more,
    ]  # fmt: skip
    volume = f"--volume={package / 'triton'}:/models:ro"
    try:
        call("docker", "run", "--detach", "--name", name, "--network=host", volume, *options, image, *command)
        with grpc.InferenceServerClient(f"127.0.0.1:{port}") as client:
            container = Container(name, f"127.0.0.1:{port}", client)
            for _ in range(300):
                state = call("docker", "inspect", "--format={{.State.Running}}", name).strip()
                assert state == "true", container.log()
                with contextlib.suppress(Exception):
                    if client.is_model_ready("reviews"):
                        break
                time.sleep(0.2)
            yield container
    finally:
        subprocess.run(["docker", "rm", "--force", name], capture_output=True)


@pytest.fixture(scope="module")
def container(image: dict[str, Any], package: Path) -> Iterator[Container]:
    with serving(DEV, package, *LOCKED) as container:
        yield container


def text_input() -> grpc.InferInput:
    texts = grpc.InferInput("TEXT", [len(TEXTS), 1], "BYTES")
    return texts.set_data_from_numpy(np.array([text.encode() for text in TEXTS], dtype=np.object_).reshape(-1, 1))


def assert_answers(client: grpc.InferenceServerClient, package: Path) -> None:
    """The server answers as the package itself does, with the registered version as release."""
    known = PackageRuntime(package).predict(TEXTS)
    result = client.infer("reviews", [text_input()], client_timeout=30)
    np.testing.assert_allclose(result.as_numpy("PROBABILITIES"), known.probabilities, atol=1e-6)
    assert [label.decode() for label in result.as_numpy("LABEL")[:, 0]] == known.labels
    assert result.get_response().model_version == "7"


# -- triton-dev ------------------------------------------------------------------------------------------------------


def test_labels_say_what_it_is_for(image: dict[str, Any]):
    labels = {k.removeprefix("org.opencontainers.image."): v for k, v in image["Config"]["Labels"].items()}
    assert labels["title"] == "stillhouse-triton-dev"
    assert labels["version"] == __version__
    assert NOTICE.search(labels["description"])
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    assert labels["revision"].removesuffix("-dirty") == (head or "unknown")


def test_any_user_serves_from_a_read_only_root(container: Container, package: Path):
    assert_answers(container.client, package)
    status = call("docker", "exec", container.name, "cat", "/proc/1/status")
    assert re.search(r"^Uid:\s+1234567\s", status, re.MULTILINE)
    assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
    assert "Read-only" in subprocess.run(
        ["docker", "exec", container.name, "touch", "/opt/tritonserver/bin"], capture_output=True, text=True
    ).stderr  # fmt: skip


def test_the_log_says_what_it_is_for(container: Container):
    log = container.log()
    assert NOTICE.search(log.split("\nI1")[0]), log[:1000]
    # onnxruntime would complain here that it can keep no id of the machine.
    assert "telemetry" not in log


def test_the_stated_folder_is_all_that_it_writes_to(container: Container):
    """So that no volume is missing from a chart: what it makes lies in /tmp and /dev/shm."""
    script = "find / -xdev -newer /proc/1 -type f 2>/dev/null; find /tmp /dev/shm -mindepth 1 -maxdepth 1"
    made = call("docker", "exec", container.name, "sh", "-c", script).split()
    assert made
    assert {re.sub(r"_[0-9a-f-]{36}$|_\w{6}$", "", path) for path in made} == {
        "/tmp/python_env", "/dev/shm/triton_python_backend_shm_region", "/dev/shm/triton_onnxruntime_backend_shm_region"
    }  # fmt: skip


def test_sigterm_ends_it_in_time(image: dict[str, Any], package: Path):
    with serving(DEV, package, *LOCKED) as container:
        assert_answers(container.client, package)
        begin = time.monotonic()
        call("docker", "stop", "--time=30", container.name)
        assert time.monotonic() - begin < 10
        assert call("docker", "inspect", "--format={{.State.ExitCode}}", container.name).strip() == "0"
        assert "All models are stopped" in container.log()


def test_no_accepted_request_is_lost_where_the_model_is_unloaded_first(image: dict[str, Any], package: Path):
    """As images/README.md says, with the code that stands there, under load."""
    text = (ROOT / "images/README.md").read_text()
    (hook,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (options,) = re.findall(r"^(--model-control-mode=.*)$", text, re.MULTILINE)
    http = free_ports().http
    more = (*options.replace("KEY", "a-key").split(), "--allow-http=true", f"--http-port={http}")
    answers: Counter[str] = Counter()
    ended = threading.Event()

    def ask(url: str) -> None:
        with grpc.InferenceServerClient(url) as client:
            while not ended.is_set():
                try:
                    client.infer("reviews", [text_input()], client_timeout=30)
                    answers["answered"] += 1
                except InferenceServerException as error:
                    # An overloaded server may refuse in time; it has not accepted these.
                    answers["rejected" if turned_away(str(error)) else str(error)] += 1

    with serving(DEV, package, *LOCKED, more=more) as container:
        with pytest.raises(InferenceServerException, match="restricted"):
            container.client.unload_model("reviews")
        with ThreadPoolExecutor(16) as pool:
            for _ in range(16):
                pool.submit(ask, container.url)
            try:
                time.sleep(1)
                before = answers["answered"]
                call("docker", "exec", container.name, "python3", "-c", hook, "reviews", str(http), timeout=30)
                assert "successfully unloaded 'reviews' version 7" in container.log(), "the hook did not wait"
            finally:
                ended.set()
        call("docker", "stop", "--time=30", container.name)
        assert call("docker", "inspect", "--format={{.State.ExitCode}}", container.name).strip() == "0"
    assert before
    refused = "[StatusCode.NOT_FOUND] Request for unknown model: 'reviews' has no available versions"
    assert answers.pop(refused)
    assert set(answers) <= {"answered", "rejected"}, answers


def test_it_is_laid_out_as_nvidias(image: dict[str, Any]):
    files = in_image(
        DEV, "cd /opt/tritonserver && command -v tritonserver && find . -type f | grep -v '^./lib/' | sort"
    )
    assert files.split() == [
        "/opt/tritonserver/bin/tritonserver",
        "./backends/onnxruntime/encoder_session.py",
        "./backends/onnxruntime/model.py",
        "./backends/python/libtriton_python.so",
        "./backends/python/triton_python_backend_stub",
        "./backends/python/triton_python_backend_utils.py",
        "./bin/tritonserver",
        "./caches/local/libtritoncache_local.so",
        "./libexec/tritonserver",
    ]
    backend = "src/stillhouse/serving/backends/onnxruntime/model.py"
    assert in_image(DEV, "cat /opt/tritonserver/backends/onnxruntime/model.py") == (ROOT / backend).read_text()


def test_it_holds_three_python_packages_and_nothing_of_the_build(image: dict[str, Any]):
    assert image["Config"]["User"] == "1000:1000"
    frozen = "import importlib.metadata as m; print(*(f'{d.name}=={d.version}' for d in m.distributions()))"
    found = set(in_image(DEV, f'python3 -c "{frozen}"').split())
    tested = set(re.findall(r"^(?:numpy|onnxruntime|tokenizers)==[\d.]+", (ROOT / "constraints.txt").read_text(), re.M))
    assert found == tested
    assert len(tested) == 3
    assert image["Size"] - base_size() < 300e6
    script = """
for tool in gcc g++ cc c++ ld make git; do command -v $tool; done
for path in /build ~/.cache /tmp/*; do test -e $path && echo $path; done
find /opt/stillhouse /opt/tritonserver -name '*.whl' -o -name pip -o -name pytriton -o -name 'libpython*'
true
"""
    assert in_image(DEV, script) == ""


# -- triton ----------------------------------------------------------------------------------------------------------


def test_production_starts_from_a_release_that_may_serve():
    text = (ROOT / "images/triton/Dockerfile").read_text()
    ((year, month),) = re.findall(
        r"^ARG TRITON_IMAGE=nvcr\.io/nvidia/tritonserver:(\d\d)\.(\d\d)-py3$", text, re.MULTILINE
    )
    assert (int(year), int(month)) >= (25, 8)


def test_production_adds_the_tokenizers_and_serves(production: str, package: Path):
    listing = "find / -xdev -type f -not -path '/proc/*' -not -path '/sys/*' | sort"
    before, after = (set(in_image(name, listing).split("\n")) for name in (production, PRODUCTION))
    assert before - after == set()
    packages = "/opt/stillhouse/lib/python3.11/site-packages"
    added = {re.sub(rf"^({packages}/[^/]+)/.*", r"\1", path) for path in after - before}
    tokenizers = re.findall(r"^tokenizers==([\d.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[0]
    assert added == {
        "/opt/stillhouse/constraints.txt", f"{packages}/tokenizers", f"{packages}/tokenizers-{tokenizers}.dist-info"
    }  # fmt: skip
    (found,) = json.loads(call("docker", "image", "inspect", PRODUCTION))
    assert found["Config"]["User"] == "1000:1000"
    assert found["Config"]["Labels"]["org.opencontainers.image.title"] == "stillhouse-triton"
    assert "development" not in found["Config"]["Labels"]["org.opencontainers.image.description"]
    with serving(PRODUCTION, package, *LOCKED) as container:
        assert_answers(container.client, package)


def test_production_refuses_a_triton_without_the_backend(production: str, build_flags: str):
    base = "stillhouse-test/nvidia:no-backend"
    call(
        "docker",
        "build",
        "--tag",
        base,
        "-",
        input=f"FROM {production}\nRUN rm -r /opt/tritonserver/backends/onnxruntime\n",
    )
    try:
        options = f"DOCKER_BUILD_FLAGS={build_flags} --force-rm --build-arg TRITON_IMAGE={base}"
        with pytest.raises(AssertionError, match="This Triton has no backend 'onnxruntime'"):
            make_image("triton", "TAG=no-backend", options)
    finally:
        call("docker", "image", "rm", base)
