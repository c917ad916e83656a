"""The chart `stillhouse`: what it renders is valid, safe and where it belongs, and what makes no sense is refused."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml
from kube_schemas import NEWEST, OLDEST, is_builtin, kubernetes_faults
from pod_security import pod_specs, violations

from stillhouse import __version__

CHARTS = Path(__file__).resolve().parents[2] / "charts"
CHART = CHARTS / "stillhouse"
VALUES = sorted((CHART / "ci").glob("*.yaml"))
IDS = [path.name.removesuffix("-values.yaml") for path in VALUES]
SERVING = {"Role", "RoleBinding", "NetworkPolicy", "Secret"}
"""Kinds of which some belong into the serving namespace."""
MINIMAL = CHART / "ci" / "minimal-values.yaml"

Manifest = dict[str, Any]


@pytest.fixture(scope="module")
def rendered(render: Any) -> Any:
    """Renders a values file once."""
    known: dict[Path, list[Manifest]] = {}

    def manifests(values: Path) -> list[Manifest]:
        if values not in known:
            known[values] = render("stillhouse", values, namespace="team", release="house")
        return known[values]

    return manifests


def one(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    (found,) = [m for m in manifests if m["kind"] == kind and m["metadata"]["name"] == name]
    return found


# -- what is rendered -------------------------------------------------------------------------------------------------


def test_all_kinds_of_values_are_there():
    assert {"minimal", "everything", "cpu", "gpu"} <= set(IDS)
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == __version__
    assert f"stillhouse-train:{__version__}" in chart["annotations"]["artifacthub.io/images"]


@pytest.mark.parametrize("values", VALUES, ids=IDS)
def test_lint_finds_nothing(run_helm: Any, values: Path):
    done = run_helm("lint", "stillhouse", values, flags=["--strict", "--namespace=team"])
    assert done.returncode == 0, done.stdout
    assert "[WARNING]" not in done.stdout and "[ERROR]" not in done.stdout


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("values", VALUES, ids=IDS)
def test_manifests_are_valid(rendered: Any, values: Path, version: str):
    manifests = rendered(values)
    assert all(is_builtin(manifest) for manifest in manifests)
    assert [fault for manifest in manifests if (fault := kubernetes_faults(manifest, version))] == []


@pytest.mark.parametrize("values", VALUES, ids=IDS)
def test_pods_meet_the_restricted_standard(rendered: Any, values: Path):
    pods = list(pod_specs(rendered(values)))
    assert pods
    for name, pod in pods:
        assert violations(pod) == [], name
        assert pod["automountServiceAccountToken"] is False
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]
            assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("values", VALUES, ids=IDS)
def test_everything_is_in_one_of_the_two_namespaces(rendered: Any, values: Path):
    manifests = rendered(values)
    serving = one(manifests, "RoleBinding", next(m for m in names(manifests, "RoleBinding") if "deployer" in m))
    namespace = serving["metadata"]["namespace"]
    assert namespace != "team"
    for manifest in manifests:
        where = manifest["metadata"].get("namespace")
        if manifest["kind"] in ("Namespace", "ClusterRole", "ClusterRoleBinding"):
            assert where is None
        else:
            assert where in ("team", namespace)
            assert where == "team" or manifest["kind"] in SERVING
    (made,) = [m for m in manifests if m["kind"] == "Namespace"]
    assert made["metadata"]["name"] == namespace
    assert made["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert made["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    keys = [(m["kind"], m["metadata"].get("namespace"), m["metadata"]["name"]) for m in manifests]
    assert len(keys) == len(set(keys))


def names(manifests: list[Manifest], kind: str) -> list[str]:
    return [m["metadata"]["name"] for m in manifests if m["kind"] == kind]


@pytest.mark.parametrize("values", VALUES, ids=IDS)
def test_nothing_secret_is_rendered(rendered: Any, values: Path):
    secrets = [m for m in rendered(values) if m["kind"] == "Secret"]
    held = {key for m in secrets for key in {**m.get("data", {}), **m.get("stringData", {})}}
    assert held <= {"namespace", "MLFLOW_TRACKING_URI"}


# -- the deployer -----------------------------------------------------------------------------------------------------


def test_the_token_is_in_the_pipelines_namespace_and_names_the_other(rendered: Any):
    manifests = rendered(CHART / "ci" / "everything-values.yaml")
    secret = one(manifests, "Secret", "stillhouse-deployer")
    account = one(manifests, "ServiceAccount", "house-deployer")
    assert secret["type"] == "kubernetes.io/service-account-token"
    assert secret["metadata"]["namespace"] == account["metadata"]["namespace"] == "team"
    assert secret["metadata"]["annotations"]["kubernetes.io/service-account.name"] == account["metadata"]["name"]
    # Kubernetes fills in `token` and `ca.crt`; a `namespace` that is there it leaves alone.
    assert secret["data"] == {"namespace": "bGFuZ3VhZ2Utc2VydmluZw=="}
    binding = one(manifests, "RoleBinding", "house-deployer")
    assert binding["metadata"]["namespace"] == "language-serving"
    assert {"kind": "ServiceAccount", "name": "house-deployer", "namespace": "team"} in binding["subjects"]
    assert account["automountServiceAccountToken"] is False
    for name, pod in pod_specs(manifests):
        assert "stillhouse-deployer" not in json.dumps(pod), name


def granted(role: Manifest) -> dict[tuple[str, str], set[str]]:
    """Verbs by API group and resource."""
    found: dict[tuple[str, str], set[str]] = {}
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                found.setdefault((group, resource), set()).update(rule["verbs"])
    return found


def resource(manifest: Manifest) -> tuple[str, str]:
    """API group and plural of a manifest's kind."""
    group = manifest["apiVersion"].rpartition("/")[0]
    kind = manifest["kind"].lower()
    plural = f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}es" if kind.endswith("ss") else f"{kind}s"
    return group, plural


HELM = {"get", "list", "watch", "create", "patch", "delete"}
"""What Helm does with what a chart renders, its hooks included."""
BESIDE = {
    ("", "secrets"): {"get", "list", "create", "update", "delete"},
    ("", "pods"): {"get", "list", "watch", "create", "delete"},
    ("", "pods/log"): {"get"},
    ("", "events"): {"get", "list", "watch"},
    ("", "namespaces"): {"get"},
    ("apps", "replicasets"): {"get", "list", "watch"},
}
"""What deploying needs beside what the chart renders."""


def test_the_deployer_may_do_what_helm_does_with_charts_triton_and_no_more(render: Any, rendered: Any):
    triton = CHARTS / "triton" / "ci"
    if not (files := sorted(triton.glob("*.yaml"))):
        pytest.skip(f"there are no values in {triton}")
    kinds = {resource(manifest) for values in files for manifest in render("triton", values)}
    manifest = one(rendered(MINIMAL), "Role", "house-deployer")
    role = granted(manifest)
    for kind in sorted(kinds):
        assert role.get(kind, set()) >= (BESIDE.get(kind) or HELM), kind
    assert set(role) == kinds | set(BESIDE)
    for kind, verbs in role.items():
        assert verbs <= BESIDE.get(kind, HELM), kind
    (own,) = [rule for rule in manifest["rules"] if rule["resources"] == ["namespaces"]]
    assert own["resourceNames"] == [manifest["metadata"]["namespace"]]


def test_no_role_is_wide(rendered: Any):
    for values in VALUES:
        for manifest in rendered(values):
            if manifest["kind"] in ("Role", "ClusterRole"):
                words = {word for rule in manifest["rules"] for part in rule.values() for word in part}
                assert not words & {
                    "*",
                    "escalate",
                    "bind",
                    "impersonate",
                    "pods/exec",
                    "serviceaccounts/token",
                    "roles",
                }
                if manifest["kind"] == "ClusterRole":
                    assert granted(manifest) == {("trainer.kubeflow.org", "clustertrainingruntimes"): {"get"}}


def test_trainer_rights_are_those_of_the_documentation(rendered: Any):
    """docs/operations.md has them for whoever does not use the chart."""
    text = (CHARTS.parent / "docs" / "operations.md").read_text()
    block = text.split("runs.trainer=true")[1].split("```yaml")[1].split("```")[0]
    manifests = rendered(CHART / "ci" / "gpu-values.yaml")
    assert one(manifests, "Role", "house-trainer")["rules"] == yaml.safe_load(block)
    (subject,) = one(manifests, "RoleBinding", "house-trainer")["subjects"]
    assert subject == {"kind": "ServiceAccount", "name": "default-editor", "namespace": "team"}


def test_the_commands_of_the_documentation_are_ones_that_helm_takes(helm: Path):
    found = []
    for page in (CHART / "README.md", CHARTS.parent / "docs" / "operations.md"):
        text = page.read_text().replace("\\\n", " ")
        found += re.findall(r"^ *helm upgrade --install (stillhouse charts/stillhouse .*)$", text, re.MULTILINE)
    assert len(found) >= 2
    for arguments in found:
        command = [helm, "template", *shlex.split(arguments), "--kube-version=1.29.0"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=CHARTS.parent)
        assert done.returncode == 0, f"{arguments}\n{done.stderr}"


def test_the_values_of_the_documentation_are_ones_that_the_chart_takes(render: Any, tmp_path: Path):
    values = tmp_path / "values.yaml"
    blocks = []
    for page in (CHART / "README.md", CHARTS.parent / "docs" / "operations.md"):
        for block in re.findall(r"^( *)```yaml\n(.*?)^ *```", page.read_text(), re.MULTILINE | re.DOTALL):
            if "publish:" in (text := textwrap.dedent(block[1])):
                blocks.append(text)
    assert len(blocks) >= 2
    for text in blocks:
        values.write_text(text)
        render("stillhouse", [MINIMAL, values])


# -- MLflow's address -------------------------------------------------------------------------------------------------


def test_steps_and_endpoints_find_mlflow(rendered: Any, render: Any):
    for values, address in (("minimal", "https://mlflow.example.com"), ("cpu", "http://house-mlflow.team.svc:5000")):
        secrets = [
            m for m in rendered(CHART / "ci" / f"{values}-values.yaml") if m["metadata"]["name"] == "stillhouse-mlflow"
        ]
        assert {m["metadata"]["namespace"] for m in secrets} == {"team", "stillhouse-serving"}
        assert {m["stringData"]["MLFLOW_TRACKING_URI"] for m in secrets} == {address}
    own = render("stillhouse", MINIMAL, "mlflow.trackingUri=", "mlflow.secret.create=false")
    assert "stillhouse-mlflow" not in names(own, "Secret")


def test_policies_select_the_pods_that_are_there(rendered: Any):
    manifests = rendered(CHART / "ci" / "everything-values.yaml")
    templates = {
        m["metadata"]["name"]: m["spec"]["template"]["metadata"]["labels"]
        for m in manifests
        if m["kind"] in ("Deployment", "Job")
    }
    for name, labels in templates.items():
        policy = one(manifests, "NetworkPolicy", name)["spec"]
        assert policy["podSelector"]["matchLabels"].items() <= labels.items()
        assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
        others = [other for other in templates if other != name]
        assert all(not policy["podSelector"]["matchLabels"].items() <= templates[o].items() for o in others)
    (default,) = [m for m in manifests if m["metadata"]["name"] == "house-default-deny"]
    assert default["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    ports = [
        p["port"] for rule in one(manifests, "NetworkPolicy", "house-mlflow")["spec"]["egress"] for p in rule["ports"]
    ]
    assert ports == [53, 53, 5433, 443, 9000]


# -- what helm prints --------------------------------------------------------------------------------------------------


@pytest.fixture
def notes(helm: Path, tmp_path: Path) -> Any:
    """What helm prints after an installation, said here as an error: nothing is installed."""
    chart = tmp_path / "stillhouse"
    shutil.copytree(CHART, chart, ignore=shutil.ignore_patterns(".helmignore"))
    (chart / "templates" / "NOTES.txt").rename(chart / "notes")
    (chart / "templates" / "zz.yaml").write_text('{{- fail (tpl (.Files.Get "notes") .) }}')

    def said(values: Path, *sets: str) -> str:
        flags = [f"--values={values}", *(f"--set={one}" for one in sets), "--namespace=team", "--kube-version=1.29.0"]
        done = subprocess.run([helm, "template", "house", chart, *flags], capture_output=True, text=True)
        return done.stderr

    return said


def test_the_notes_name_what_to_look_at(notes: Any):
    for values in VALUES:
        text = notes(values)
        assert "kubectl" in text and "%!" not in text and "<nil>" not in text
        assert "NOT THERE" not in text  # nothing was looked up
    everything = notes(CHART / "ci" / "everything-values.yaml")
    for words in (
        "team/postgresql-mlflow: the database's user and password",
        "logs job/house-publish",
        "logs deploy/house-mlflow -c migrate",
        "mlflow.allowedHosts",
        "the schedule topics-often, every 6h",
        "--as=system:serviceaccount:team:house-deployer",
    ):
        assert words in everything
    own = notes(MINIMAL, "mlflow.trackingUri=", "mlflow.secret.create=false")
    assert "stillhouse-serving/stillhouse-mlflow: MLFLOW_TRACKING_URI" in own
    assert "stillhouse-object-store: AWS_ACCESS_KEY_ID" in notes(CHART / "ci" / "cpu-values.yaml")
