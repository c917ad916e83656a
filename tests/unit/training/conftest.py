"""A task small enough to learn in seconds, and an HTTP stand-in of the Kubernetes API."""

from __future__ import annotations

import copy
import http.server
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from object_stores import s3
from tiny_dataset import write_dataset

NAMESPACE = "team"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "dataset", 512)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """An S3 bucket, and the environment to reach it."""
    with s3("shared"):
        yield "s3://shared"


@pytest.fixture
def pod() -> dict[str, Any]:
    """A training step's pod as Kubeflow Pipelines makes it, with all that a cluster's file can add."""
    path = Path(__file__).with_name("step_pod.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


class KubernetesApi:
    """The part of the Kubernetes API that a step uses, over HTTP; `trainer` plays the TrainJob controller.

    Args:
        pods: that exist, by name.
        trainer: called in a thread of its own with each job that is created; it sets `status` and pods.
    """

    def __init__(self, pods: Mapping[str, Mapping[str, Any]]) -> None:
        self.pods = {name: copy.deepcopy(dict(pod)) for name, pod in pods.items()}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.created: list[dict[str, Any]] = []
        self.logs: dict[str, str] = {}
        self.calls: list[tuple[str, str]] = []
        self.trainer: Callable[[dict[str, Any]], None] = lambda job: None
        self.refusal: tuple[int, str] | None = None
        """Status and message with which a creation is answered."""
        self.deletion_refusal: tuple[int, str] | None = None
        """The same for a deletion."""
        self.outages = 0
        """So many requests are answered with status 500."""
        self.slow_deletion = False
        """Whether the next job to be deleted stays a while, as one does whose pods have to end first."""
        api = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length) or "null")
                status, value = api.handle(self.command, self.path, body)
                data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/plain" if isinstance(value, str) else "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_DELETE = answer

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def config(self) -> Any:
        """How the SDK's client reaches it."""
        from kubeflow.trainer import KubernetesBackendConfig
        from kubernetes.client import Configuration

        return KubernetesBackendConfig(namespace=NAMESPACE, client_configuration=Configuration(host=self.url))

    def set_condition(self, name: str, kind: str) -> None:
        condition = {"type": kind, "status": "True", "reason": kind, "message": "", "lastTransitionTime": NOW}
        self.jobs[name].setdefault("status", {}).setdefault("conditions", []).append(condition)

    def handle(self, method: str, url: str, body: Any) -> tuple[int, Any]:
        path, query = urlsplit(url).path, parse_qs(urlsplit(url).query)
        self.calls.append((method, path))
        if self.outages:
            self.outages -= 1
            return failure(500, "etcd is away")
        match path.strip("/").split("/"):
            case ["api", "v1", "namespaces", "team", "pods"]:
                return 200, {"kind": "PodList", "apiVersion": "v1", "items": self.select(query["labelSelector"][0])}
            case ["api", "v1", "namespaces", "team", "pods", name]:
                return (200, self.pods[name]) if name in self.pods else failure(404, f'pods "{name}" not found')
            case ["api", "v1", "namespaces", "team", "pods", name, "log"]:
                assert query["container"] == ["node"]
                lines = self.logs.get(name, "").splitlines()[-int(query["tailLines"][0]) :]
                return 200, "\n".join(lines)
            case ["apis", "trainer.kubeflow.org", "v1alpha1", "clustertrainingruntimes", "torch-distributed"]:
                return 200, RUNTIME
            case ["apis", "trainer.kubeflow.org", "v1alpha1", "namespaces", "team", "trainjobs"]:
                assert method == "POST"
                return self.create(body)
            case ["apis", "trainer.kubeflow.org", "v1alpha1", "namespaces", "team", "trainjobs", name]:
                if name not in self.jobs:
                    return failure(404, f'trainjobs "{name}" not found')
                if method == "DELETE" and self.deletion_refusal:
                    return failure(*self.deletion_refusal)
                if method == "DELETE" and self.slow_deletion:
                    self.slow_deletion = False
                    self.jobs[name]["metadata"]["deletionTimestamp"] = NOW
                    threading.Timer(0.5, self.jobs.pop, (name,)).start()
                    return 200, self.jobs[name]
                if method == "DELETE":
                    self.pods = {key: one for key, one in self.pods.items() if job_of(one) != name}
                    return 200, self.jobs.pop(name)
                return 200, self.jobs[name]
            case _:
                return failure(404, f"{path} not found")

    def create(self, job: dict[str, Any]) -> tuple[int, Any]:
        if self.refusal:
            return failure(*self.refusal)
        name = job["metadata"]["name"]
        if name in self.jobs:
            return failure(409, f'trainjobs "{name}" already exists')
        job["metadata"] |= {"namespace": NAMESPACE, "uid": f"uid-{name}", "creationTimestamp": NOW}
        self.jobs[name] = job
        self.created.append(job)
        threading.Thread(target=self.trainer, args=(job,), daemon=True).start()
        return 201, job

    def add_pod(self, job: str, index: int, status: dict[str, Any], log: str = "") -> None:
        name = f"{job}-node-0-{index}-abcde"
        labels = {"jobset.sigs.k8s.io/jobset-name": job}
        self.pods[name] = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels, "creationTimestamp": NOW},
            "spec": {"containers": [{"name": "node", "image": "x"}]},
            "status": status,
        }
        self.logs[name] = log

    def select(self, selector: str) -> list[dict[str, Any]]:
        key, _, value = selector.partition("=")
        return [one for one in self.pods.values() if one["metadata"].get("labels", {}).get(key) == value]


NOW = "2026-05-04T03:02:01Z"
RUNTIME = {
    "apiVersion": "trainer.kubeflow.org/v1alpha1",
    "kind": "ClusterTrainingRuntime",
    "metadata": {"name": "torch-distributed", "labels": {"trainer.kubeflow.org/framework": "torch"}},
    "spec": {
        "mlPolicy": {"numNodes": 1, "torch": {}},
        "template": {
            "spec": {
                "replicatedJobs": [
                    {
                        "name": "node",
                        "template": {
                            "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
                            "spec": {
                                "template": {"spec": {"containers": [{"name": "node", "image": "pytorch/pytorch"}]}}
                            },
                        },
                    }
                ]
            }
        },
    },
}


def failure(status: int, message: str) -> tuple[int, dict[str, Any]]:
    return status, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": status}


def job_of(pod: Mapping[str, Any]) -> str | None:
    found: str | None = pod["metadata"].get("labels", {}).get("jobset.sigs.k8s.io/jobset-name")
    return found


@pytest.fixture
def kubernetes(pod: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesApi]:
    monkeypatch.setenv("KFP_POD_NAME", pod["metadata"]["name"])
    api = KubernetesApi({pod["metadata"]["name"]: pod})
    yield api
    api.close()
