"""The deploy step as a pod runs it: with the mounted secret of the deployer, over TLS."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster_stand_in import Cluster, running_cluster
from deployed_world import TRACKING_URI, World

from stillhouse.artifacts import EvaluationManifest
from stillhouse.components.deploy.component import deploy
from stillhouse.deploy.kubernetes import access
from stillhouse.deploy.kubernetes.access import cluster_access
from stillhouse.errors import InputError

TOKEN = "eyJ-the-deployers-token"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    """A certificate of loopback's that is its own authority."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = tmp_path_factory.mktemp("certificate")
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x")])
    at = datetime.now(timezone.utc)
    alternatives = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, at - timedelta(days=1), at + timedelta(days=1))
        .add_extension(alternatives, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "ca.crt").write_bytes(made.public_bytes(pem))
    private = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(pem, *private))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "ca.crt", folder / "key.pem")
    return folder / "ca.crt", context


@pytest.fixture
def cluster(certificate: tuple[Path, ssl.SSLContext]) -> Iterator[Cluster]:
    with running_cluster(certificate[1]) as cluster:
        cluster.token = TOKEN
        yield cluster


@pytest.fixture
def mounted(tmp_path: Path, certificate: tuple[Path, ssl.SSLContext]) -> Path:
    folder = tmp_path / "deployer"
    folder.mkdir()
    for name, text in (("token", TOKEN), ("ca.crt", certificate[0].read_text()), ("namespace", "serving")):
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def pod(world: World, mounted: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """The world as the deploy step's pod sees it."""
    host, port = world.cluster.url.removeprefix("https://").split(":")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
    monkeypatch.delenv("KUBECONFIG")
    monkeypatch.setattr(access, "DEPLOYER", mounted)
    return world


def run_step(world: World, tmp_path: Path, decision: str, **changes: Any) -> None:
    EvaluationManifest(
        producer="evaluate", task="classification", metric="accuracy", policy="quality", min_retention=0.97,
        test_rows=1, baselines=[], candidates=[], machine={},
        choice={"deployable": True, "promotion": {
            "decision": decision, "reason": "It is better.", "mode": "better", "champion_version": world.champion or "",
        }},
    ).save(tmp_path)  # fmt: skip
    (tmp_path / "smoke.json").write_text(json.dumps([{"text": text} for text in world.rows]))
    arguments = {
        "model_name": "reviews", "version": "1", "tracking_uri": world.registry.uri, "deploy_target": "kubernetes",
        "deploy_conflict": "wait", "pipeline_run": "run-1", "grpc_port": 8001, "http_port": 8000, "metrics_port": 8002,
        "serving_namespace": "", "serving_values": {"mlflow": {"trackingUri": TRACKING_URI}}, "canary_weight": 0,
        "canary_minutes": 15, "prometheus_url": "", "rollout_timeout_minutes": 1,
        "evaluation": type("Artifact", (), {"path": str(tmp_path)}),
    }  # fmt: skip
    deploy.python_func(**{**arguments, **changes})


@pytest.mark.slow
def test_a_run_deploys_and_says_what_came_of_it(pod: World, tmp_path: Path) -> None:
    record = {"model_name": "reviews", "model_version": "1"}
    pod.registry.record_outcome("run-1", "registered", "So far.", experiment="stillhouse", tags=record)
    run_step(pod, tmp_path, "promote")
    assert pod.state == ({"stable": "1"}, "1")
    found = pod.registry.run_record("run-1")
    assert found is not None and (found.outcome, found.reason) == ("deployed", "It is better.")

    # What is withdrawn as a canary stays challenger, and the run has not failed.
    pod.cluster.wrong = {"2"}
    run_step(pod, tmp_path, "promote", version="2", canary_weight=20)
    found = pod.registry.run_record("run-1")
    assert found is not None and found.outcome == "challenger"
    assert "withdrawn as a canary: it failed the replay of test rows" in found.reason
    assert pod.state == ({"stable": "1"}, "1")

    # What fails is a failure of the run.
    with pytest.raises(SystemExit) as ended:
        run_step(pod, tmp_path, "promote", version="2")
    assert ended.value.code == 1
    found = pod.registry.run_record("run-1")
    assert found is not None and found.outcome == "failed"
    assert pod.state == ({"stable": "1"}, "1")


@pytest.mark.slow
def test_what_was_not_promoted_is_not_even_asked_for(pod: World, tmp_path: Path) -> None:
    pod.registry.record_outcome("run-1", "registered", "So far.", experiment="stillhouse", tags={})
    run_step(pod, tmp_path, "keep")
    assert pod.cluster.requests == [] and pod.champion is None


@pytest.mark.slow
def test_a_role_that_lacks_something_says_what(pod: World) -> None:
    what = 'deployments.apps "reviews" is forbidden: User "deployer" cannot patch resource "deployments"'
    pod.deploy("1")
    pod.cluster.refusals["PATCH", "deployments"] = what
    with pytest.raises(Exception, match="cannot patch resource") as failure:
        pod.deploy("2")
    assert pod.champion == "1" and pod.cluster.serving() == {"stable": "1"}
    assert TOKEN not in str(failure.value)


def test_the_kubeconfig_names_the_tokens_file_and_is_gone_afterwards(mounted: Path) -> None:
    variables = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"}
    with cluster_access(deployer=mounted, environment=variables) as found:
        assert found.namespace == "serving" and found.kubeconfig is not None
        text = found.kubeconfig.read_text()
        assert TOKEN not in text and str(mounted / "token") in text
        assert found.kubeconfig.stat().st_mode & 0o777 == 0o600
        assert yaml.safe_load(text)["clusters"][0]["cluster"]["server"] == "https://[fd00::1]:6443"
        assert TOKEN not in " ".join(found.flags)
    assert not found.kubeconfig.exists()
    with cluster_access("other", deployer=mounted, environment=variables) as found:
        assert found.namespace == "other"


def test_who_asks_the_cluster(mounted: Path, tmp_path: Path) -> None:
    """The mounted deployer before the user's kubeconfig, and that before the pod's own account."""
    from deployed_world import write_kubeconfig

    absent = tmp_path / "absent"
    own = {"KUBECONFIG": str(write_kubeconfig(tmp_path / "config", "https://mine"))}
    variables = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "HOME": str(tmp_path)}
    with cluster_access(deployer=mounted, pod=absent, environment={**variables, **own}) as found:
        assert found.kubeconfig is not None
    with cluster_access(context="here", deployer=mounted, environment={**variables, **own}) as found:
        assert (found.kubeconfig, found.context, found.namespace) == (None, "here", "serving")
    with cluster_access(deployer=absent, pod=mounted, environment={**variables, **own}) as found:
        assert found.kubeconfig is None
    with cluster_access(deployer=absent, pod=mounted, environment={**variables, "KUBECONFIG": str(absent)}) as found:
        assert found.kubeconfig is not None
    with (
        pytest.raises(InputError, match="no cluster can be reached"),
        cluster_access(deployer=absent, pod=absent, environment={**variables, "KUBECONFIG": str(absent)}),
    ):
        pass
