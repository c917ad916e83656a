"""What charts/triton renders, run: init container, Triton, probes and hooks, against MLflow on PostgreSQL."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from containers import ROOT, MlflowServer, call, engine_flags, make_images, show
from kube_service import Service
from kubelet import Objects, Pod

from stillhouse.artifacts import PackageManifest
from stillhouse.client import Client, ServerUnavailable, Tls
from stillhouse.components.images import OPS_IMAGE, REGISTRY
from stillhouse.deploy.smoke import KnownAnswer, ask_known_answers
from stillhouse.progress import Step
from stillhouse.registry import MlflowRegistry, RegisterConfig

# The artifacts that the evaluation's tests make, and the load that the tests of serving put on.
sys.path[:0] = [str(ROOT / "tests" / "unit" / "evaluation"), str(ROOT / "tests" / "serving")]

from constant_load import constant_load, lost, turned_away  # noqa: E402
from tiny_artifacts import SERVED, evaluate_tiny, write_all, write_model  # noqa: E402

pytestmark = pytest.mark.slow

NAMESPACE = "serving"
Render = Callable[..., list[dict[str, Any]]]


@dataclasses.dataclass
class Registered:
    """A version in the registry, and what it is known to answer."""

    version: str
    digest: str
    answers: list[dict[str, Any]]
    kept: Path
    """The package's folder in MLflow's artifact store."""
    tracking_uri: str
    """MLflow as pods reach it."""


@pytest.fixture(scope="module")
def images(request: pytest.FixtureRequest) -> str:
    """The images `ops` and `triton-dev`; the address of this machine as containers know it."""
    if os.geteuid() != 0:
        pytest.skip("volumes are made as a node makes them, which needs root")
    begin = time.monotonic()
    make_images(engine_flags(), "ops", "triton-dev")
    show(request, f"make images: {time.monotonic() - begin:.0f} s")
    subnet = call("docker", "network", "inspect", "bridge", "--format={{(index .IPAM.Config 0).Subnet}}").strip()
    return str(next(ipaddress.ip_network(subnet).hosts()))


@pytest.fixture(scope="module")
def registered(mlflow_server: MlflowServer, images: str, tmp_path_factory: pytest.TempPathFactory) -> Registered:
    root = tmp_path_factory.mktemp("artifacts")
    paths = write_all(root)
    models = [write_model(root / "models" / name, name, paths["dataset"]) for name in ("teacher", "student", "albert")]
    evaluate_tiny(root, paths, policy="memory")
    registry = MlflowRegistry(mlflow_server.url)
    packages = [paths[name] for name in ("teacher", "student", "albert")]
    version = registry.register(
        RegisterConfig(model_name=SERVED, tracking_uri=mlflow_server.url),
        dataset_dir=paths["dataset"], packages=packages, models=models, evaluation_dir=root / "evaluation",
        step=Step("register"),
    ).version  # fmt: skip
    (kept,) = mlflow_server.artifacts.rglob(f"{SERVED}-encoder/config.pbtxt")
    answers = json.loads((root / "evaluation/smoke.json").read_text())
    digest = registry.tags(SERVED, version)["manifest_digest"]
    address = f"http://{images}:{mlflow_server.port}"
    return Registered(version, digest, answers, kept.parents[2], address)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By openssl: an authority, and the server's and a client's certificate that it signed: `NAME.pem`, `NAME.key`."""
    folder = tmp_path_factory.mktemp("certificates")
    names = [
        "DNS:localhost",
        "IP:127.0.0.1",
        *(f"DNS:{name}.{NAMESPACE}.svc" for name in ("reviews", "reviews-stable")),
    ]
    (folder / "names").write_text(f"subjectAltName={','.join(names)}\n")

    def openssl(*arguments: str) -> None:
        call("openssl", *arguments, cwd=folder)

    request = ("req", "-newkey", "rsa:2048", "-nodes")
    openssl(*request, "-x509", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca", "-days", "2")
    for name in ("server", "client"):
        openssl(*request, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out",
                f"{name}.pem", "-days", "2", "-extfile", "names")  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def render(helm: Path, registered: Registered, tmp_path_factory: pytest.TempPathFactory) -> Render:
    """Manifests of the chart for the registered version, with waits that suit a test, and what is given besides."""
    folder = tmp_path_factory.mktemp("values")
    base: dict[str, Any] = {
        "model": {"name": SERVED, "version": registered.version, "manifestSha256": registered.digest},
        "image": {"repository": f"{REGISTRY}/stillhouse-triton-dev"},
        "opsImage": {"repository": OPS_IMAGE.rpartition(":")[0]},
        "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "1Gi"}},
        "grpc": {"maxConnectionAgeSeconds": 3},
        "drain": {"delaySeconds": 6, "timeoutSeconds": 20, "exitTimeoutSeconds": 10},
        "probes": {
            "startup": {"periodSeconds": 1, "timeoutSeconds": 5, "failureThreshold": 60},
            "liveness": {
                "periodSeconds": 2,
                "timeoutSeconds": 3,
                "failureThreshold": 2,
                "terminationGracePeriodSeconds": 3,
            },
            "readiness": {"periodSeconds": 1, "timeoutSeconds": 2, "failureThreshold": 2},
        },
    }

    def template(**values: Any) -> list[dict[str, Any]]:
        (folder / "base.yaml").write_text(yaml.safe_dump(base))
        (folder / "more.yaml").write_text(yaml.safe_dump(values))
        files = [f"--values={folder / name}.yaml" for name in ("base", "more")]
        cluster = ["--kube-version=1.29.0", f"--namespace={NAMESPACE}"]
        command = [helm, "template", "reviews", ROOT / "charts/triton", *cluster, *files]
        return [manifest for manifest in yaml.safe_load_all(call(*command)) if manifest]

    return template


def one(manifests: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    (found,) = [m for m in manifests if m["kind"] == kind and m["metadata"]["name"] == name]
    return found


class Release:
    """The pods of a release's stable Deployment."""

    def __init__(self, manifests: list[dict[str, Any]], objects: Objects, folder: Path) -> None:
        self.manifests, self.objects, self._folder = manifests, objects, folder
        objects.take(manifests)
        self.spec = one(manifests, "Deployment", "reviews")["spec"]["template"]["spec"]
        self.pods: list[Pod] = []

    def pod(self, name: str) -> Pod:
        self.pods.append(Pod(self.spec, self.objects, self._folder / name, name=name, namespace=NAMESPACE))
        return self.pods[-1]

    def remove(self) -> None:
        for pod in self.pods:
            pod.remove()


@pytest.fixture(scope="module")
def secured(
    render: Render, registered: Registered, certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Release]:
    """A release with TLS that asks who calls, and MLflow's address from a Secret; two pods that are ready."""
    read = {
        name: (certificates / name).read_text()
        for name in ("ca.pem", "server.pem", "server.key", "client.pem", "client.key")
    }
    secrets = {
        "reviews-tls": {"ca.crt": read["ca.pem"], "tls.crt": read["server.pem"], "tls.key": read["server.key"]},
        "reviews-clients": {"ca.crt": read["ca.pem"]},
        "reviews-caller": {"tls.crt": read["client.pem"], "tls.key": read["client.key"]},
        "stillhouse-mlflow": {"MLFLOW_TRACKING_URI": registered.tracking_uri},
    }
    manifests = render(
        tls={"existingSecret": "reviews-tls", "clientCASecret": "reviews-clients"},
        smokeTest={"answers": registered.answers, "clientSecret": "reviews-caller"},
    )
    release = Release(manifests, Objects(secrets=secrets), tmp_path_factory.mktemp("secured"))
    try:
        for name in ("first", "second"):
            release.pod(name).start()
        for pod in release.pods:
            pod.until("ready", 60, lambda pod=pod: pod.ready)
        yield release
    finally:
        release.remove()


@pytest.fixture(scope="module")
def caller(certificates: Path) -> Tls:
    return Tls(certificates / "ca.pem", certificates / "client.key", certificates / "client.pem")


@pytest.fixture(scope="module")
def plain(render: Render, registered: Registered, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """A release without TLS, as the chart is by default, whose Secrets are absent; one pod that is ready."""
    manifests = render(mlflow={"trackingUri": registered.tracking_uri})
    release = Release(manifests, Objects(), tmp_path_factory.mktemp("plain"))
    try:
        pod = release.pod("only")
        pod.start()
        pod.until("ready", 60, lambda: pod.ready)
        yield release
    finally:
        release.remove()


def known(registered: Registered) -> list[KnownAnswer]:
    return [KnownAnswer(row["text"], row["label"], tuple(row["probabilities"])) for row in registered.answers]


# -- serving ----------------------------------------------------------------------------------------------------------


def test_it_answers_over_tls_whom_it_knows(secured: Release, registered: Registered, caller: Tls):
    service = Service(secured.pods, 8001)
    try:
        report = ask_known_answers(service.url, SERVED, registered.version, known(registered), tls=caller)
        report.check()
        assert len(report.rows) > 10
        assert set(service.connections) <= {"first", "second"}
        for stranger in (None, Tls(caller.root_certificates)):
            with Client(service.url, SERVED, tls=stranger, retries=0) as client, pytest.raises(ServerUnavailable):
                client.predict(["x"])
    finally:
        service.close()


def test_helm_test_asks_it_from_inside(secured: Release, registered: Registered, tmp_path: Path):
    spec = one(secured.manifests, "Pod", "reviews-smoke")["spec"]
    (container,) = spec["containers"]
    name = f"reviews.{NAMESPACE}.svc"
    pod = Pod(spec, secured.objects, tmp_path / "smoke", name="smoke", hosts={name: secured.pods[0].ip})
    try:
        done = pod.run_to_end(container)
        assert done.returncode == 0, done.stderr
        count = len(registered.answers)
        assert f"version {registered.version} at {name}:8001: {count} of {count} answers agree" in done.stdout
        for row in (answers := json.loads(secured.objects.config_maps["reviews-smoke"]["answers.json"])):
            row["label"] = {"negative": "positive", "positive": "negative"}[row["label"]]
        (tmp_path / "smoke/answers/answers.json").write_text(json.dumps(answers))
        done = pod.run_to_end(container)
        assert done.returncode == 1
        assert f"failed the smoke test on {count} of {count} rows" in done.stderr
    finally:
        pod.remove()


def test_it_runs_as_it_is_told_and_writes_where_it_may(plain: Release):
    (pod,) = plain.pods
    status = pod.execute(["cat", "/proc/1/status"], 10).stdout
    security = plain.spec["securityContext"]
    for line in (rf"Uid:\s+{security['runAsUser']}\s", r"CapEff:\s+0+$", r"NoNewPrivs:\s+1$", r"Seccomp:\s+2$"):
        assert re.search(f"^{line}", status, re.MULTILINE), status
    for path in ("/models/triton/x", "/opt/x", "/opt/stillhouse/pod/x"):
        assert "Read-only" in pod.execute(["touch", path], 10).stderr
    # All the files that it made are in volumes.
    script = "find / -xdev -newer /proc/1 -type f 2>/dev/null | grep -v '^/etc/'; df --output=fstype /dev/shm"
    assert pod.execute(["sh", "-c", script], 30).stdout.split() == ["Type", "tmpfs"]
    assert pod.execute(["printenv", "POD_KEY"], 10).stdout.strip() == pod.uid


def test_only_grpc_and_metrics_are_open(plain: Release, registered: Registered):
    (pod,) = plain.pods
    ask_known_answers(f"{pod.ip}:8001", SERVED, registered.version, known(registered)).check()
    with urllib.request.urlopen(f"http://{pod.ip}:8002/metrics", timeout=5) as answer:
        text = answer.read().decode()
    assert re.search(rf'^nv_inference_request_success{{.*model="{SERVED}".*}} [1-9]', text, re.MULTILINE)
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://{pod.ip}:8000/v2/health/ready", timeout=5)
    from tritonclient import grpc
    from tritonclient.utils import InferenceServerException

    with grpc.InferenceServerClient(f"{pod.ip}:8001") as client:
        for call_ in (lambda: client.unload_model(SERVED), client.get_log_settings, client.get_trace_settings):
            with pytest.raises(InferenceServerException, match="restricted"):
                call_()


def test_a_pod_whose_model_died_is_restarted(plain: Release, registered: Registered):
    """Triton itself says that all is well, and so does the readiness probe; liveness asks the model."""
    (pod,) = plain.pods
    ids = [int(line.split()[1]) for line in call("docker", "top", pod.container, "-eo", "ppid,pid").splitlines()[1:]]
    (stub,) = [pid for pid in ids if f"/models/triton/{SERVED}/" in " ".join(psutil.Process(pid).cmdline())]
    os.kill(stub, signal.SIGKILL)
    begin = time.monotonic()
    pod.until("restarted", 60, lambda: pod.restarts == 1)
    assert time.monotonic() - begin > 3, pod.events  # not at the first failure
    pod.until("ready again", 60, lambda: pod.ready)
    ask_known_answers(f"{pod.ip}:8001", SERVED, registered.version, known(registered)).check()
    assert (
        sum(event.startswith("liveness: live:") or event.startswith("liveness: no answer") for event in pod.events) == 2
    )
    time.sleep(3 * plain.spec["containers"][0]["livenessProbe"]["periodSeconds"])
    assert pod.restarts == 1


# -- what is fetched --------------------------------------------------------------------------------------------------


def fetched(render: Render, registered: Registered, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the init container of a new pod; nothing is in its volume where that fails."""
    release = Release(render(mlflow={"trackingUri": registered.tracking_uri}), Objects(), folder)
    pod = release.pod("new")
    try:
        done = pod.run_init()
        names = {path.name for path in (folder / "new/models").iterdir()}
        assert names == (set() if done.returncode else {"package.json", "triton"})
        if not done.returncode:
            again = pod.run_init()  # as where a node restarts
            assert (again.returncode, "already, whole" in again.stderr) == (0, True)
        return done
    finally:
        release.remove()


def test_the_init_container_lays_out_what_is_pinned(render: Render, registered: Registered, tmp_path: Path):
    done = fetched(render, registered, tmp_path)
    assert done.returncode == 0, done.stderr
    manifest = PackageManifest.load(registered.kept)
    assert f"package.json is the pinned one; it names {len(manifest.files)} files" in done.stderr
    folder = tmp_path / "new/models/triton" / SERVED / registered.version
    assert folder.is_dir()
    assert {path.stat().st_uid for path in folder.rglob("*")} == {1000}


@pytest.fixture
def spoiled(registered: Registered, tmp_path: Path) -> Iterator[Path]:
    """The package in MLflow's artifact store, for a test to spoil; put right afterwards."""
    shutil.copytree(registered.kept, tmp_path / "good")
    yield registered.kept
    shutil.rmtree(registered.kept)
    shutil.copytree(tmp_path / "good", registered.kept)


def test_altered_files_keep_it_from_starting(render: Render, registered: Registered, spoiled: Path, tmp_path: Path):
    model = f"triton/{SERVED}-encoder/1/model.onnx"
    (spoiled / model).write_bytes((spoiled / model).read_bytes() + b"\0")
    (spoiled / f"triton/{SERVED}/1/tokenizer.json").unlink()
    (spoiled / f"triton/{SERVED}/1/sitecustomize.py").write_text("import os")
    (tmp_path / "pods").mkdir()
    done = fetched(render, registered, tmp_path / "pods")
    assert done.returncode == 2
    source = f"models:/{SERVED}/{registered.version}"
    assert f"{source}/{model}: was altered" in done.stderr
    assert f"{source}/triton/{SERVED}/1/tokenizer.json: is missing" in done.stderr
    assert f"{source}/triton/{SERVED}/1/sitecustomize.py: is not in the manifest" in done.stderr


def test_an_altered_manifest_keeps_it_from_starting(
    render: Render, registered: Registered, spoiled: Path, tmp_path: Path
):
    """Also one that fits the altered files, and whoever altered it could have set MLflow's tag as well."""
    model = f"triton/{SERVED}-encoder/1/model.onnx"
    (spoiled / model).write_bytes((spoiled / model).read_bytes() + b"\0")
    PackageManifest.load(spoiled).save(spoiled)
    (tmp_path / "pods").mkdir()
    done = fetched(render, registered, tmp_path / "pods")
    assert done.returncode == 2
    assert f"models:/{SERVED}/{registered.version}/package.json: has sha256" in done.stderr
    assert registered.digest in done.stderr


# -- ending -----------------------------------------------------------------------------------------------------------


def test_what_a_pod_accepted_is_answered_though_callers_stay(plain: Release, registered: Registered):
    """Callers that ask this one pod to the end. Last: it ends the pod."""
    (pod,) = plain.pods
    texts = [row["text"] for row in registered.answers]
    # Large requests, so that some are waiting in the pod at any time.
    with constant_load(f"{pod.ip}:8001", SERVED, texts, threads=8, moves=True, rows=32) as load:
        time.sleep(1)
        begin = time.monotonic()
        ending = pod.delete()
        time.sleep(0.5)
    assert (ending.hook_exit, ending.exit_code) == (0, 0), (ending, pod.log())
    # A server that is asked too much says so at once. Beside that, all are answered until endpoints and long
    # connections have gone and the model is unloaded; then they are refused, and in the end nobody is there.
    failed = [answer for answer in load.failed if not turned_away(answer.error)]
    refused = [answer for answer in failed if "has no available versions" in answer.error]
    assert refused and min(answer.sent for answer in refused) > begin + 6, (begin, refused[:3])
    others = [answer for answer in failed if answer not in refused]
    assert lost(others, begin + ending.hook_seconds) == [], (begin, ending)
    assert sum(begin < answer.sent < begin + 6 for answer in load.answered) > 100


def test_a_pod_ends_under_load_and_nobody_notices(secured: Release, registered: Registered, caller: Tls):
    """Callers on long connections, without retries; the other pod takes over. Last: it ends one of the pods."""
    first, second = secured.pods
    service = Service(secured.pods, 8001)
    texts = [row["text"] for row in registered.answers]
    try:
        with constant_load(service.url, SERVED, texts, threads=8, moves=True, tls=caller) as load:
            time.sleep(2)
            before = len(load.answers)
            ending = first.delete()
            after = len(load.answers)
            time.sleep(1)
    finally:
        service.close()
    assert before > 20
    assert after > before
    assert load.failed == []
    assert {answer.version for answer in load.answered} == {registered.version}
    assert (ending.hook_exit, ending.exit_code) == (0, 0), (ending, first.log())
    assert "everything that was accepted is answered" in ending.hook_output
    hook = secured.spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert "--delay=6" in hook and ending.hook_seconds >= 6
    assert ending.seconds < secured.spec["terminationGracePeriodSeconds"] - 5
    assert set(service.connections) == {"first", "second"}
    assert service.connections[-1] == "second"
    assert second.restarts == first.restarts == 0
