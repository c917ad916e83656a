"""charts/triton: every values file under `ci/`, and what the manifests hold."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from crd_validation import crd_faults
from helm_binary import HelmMissing
from kube_schemas import NEWEST, OLDEST, is_builtin, kubernetes_faults
from pod_security import pod_specs, violations

from stillhouse import __version__

CHART = Path(__file__).resolve().parents[2] / "charts" / "triton"
FILES = {path.name.removesuffix("-values.yaml"): path for path in sorted((CHART / "ci").glob("*.yaml"))}
Manifests = list[dict[str, Any]]


@pytest.fixture(scope="module")
def rendered(render) -> dict[str, Manifests]:
    """Manifests of each values file."""
    return {name: render("triton", path) for name, path in FILES.items()}


def one(manifests: Manifests, kind: str, name: str) -> dict[str, Any]:
    (found,) = (m for m in manifests if (m["kind"], m["metadata"]["name"]) == (kind, name))
    return found


def named(manifests: Manifests, kind: str) -> dict[str, dict[str, Any]]:
    return {m["metadata"]["name"]: m for m in manifests if m["kind"] == kind}


def server_of(manifests: Manifests, name: str = "reviews") -> dict[str, Any]:
    pod = one(manifests, "Deployment", name)["spec"]["template"]["spec"]
    container: dict[str, Any] = pod["containers"][0]
    return container


# -- every values file -----------------------------------------------------------------------------------------------


def test_the_values_files_that_are_promised_are_there():
    assert {"minimal", "cpu", "gpu", "dev", "canary", "everything"} <= set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_helm_lints_strictly(run_helm, name: str):
    done = run_helm("lint", "triton", FILES[name], flags=["--strict"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("name", FILES)
def test_manifests_are_valid(rendered, name: str, version: str):
    builtin = [m for m in rendered[name] if is_builtin(m)]
    assert builtin
    assert [fault for m in builtin if (fault := kubernetes_faults(m, version))] == []


def test_the_schemas_find_faults(rendered):
    manifest = json.loads(json.dumps(one(rendered["minimal"], "Deployment", "reviews")))
    manifest["spec"]["template"]["spec"]["containers"][0]["readOnlyRootFilesystem"] = True
    assert "readOnlyRootFilesystem" in kubernetes_faults(manifest, OLDEST)


def test_custom_resources_are_valid(rendered):
    custom = [m for name in FILES for m in rendered[name] if not is_builtin(m)]
    assert {m["kind"] for m in custom} == {
        "GRPCRoute", "ServiceMonitor", "PrometheusRule", "ScaledObject", "Certificate"
    }  # fmt: skip
    wrong = json.loads(json.dumps(next(m for m in custom if m["kind"] == "GRPCRoute")))
    wrong["spec"]["rules"][0]["backendRefs"][0]["wieght"] = 1
    try:
        faults = crd_faults([*custom, wrong])
    except HelmMissing as missing:
        pytest.skip(str(missing))
    assert faults == ["GRPCRoute/verdicts/spec/rules/0/backendRefs/0/wieght is unknown"]


@pytest.mark.parametrize("name", FILES)
def test_pods_are_restricted(rendered, name: str):
    pods = dict(pod_specs(rendered[name]))
    assert pods
    for pod, spec in pods.items():
        assert violations(spec) == [], pod
        assert spec["automountServiceAccountToken"] is False, pod
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, (pod, container["name"])
            assert container["resources"]["requests"] and container["resources"]["limits"], (pod, container["name"])


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("podSecurityContext.runAsNonRoot=false", "runAsNonRoot is not true"),
        ("podSecurityContext.runAsUser=0", "runs as root"),
        ("podSecurityContext.seccompProfile.type=Unconfined", "no seccomp profile"),
        ("securityContext.allowPrivilegeEscalation=true", "allowPrivilegeEscalation is not false"),
        ("securityContext.privileged=true", "privileged"),
        ("securityContext.capabilities.drop={NET_RAW}", "does not drop all capabilities"),
        ("securityContext.capabilities.add={SYS_ADMIN}", "adds capabilities"),
    ],
)
def test_the_check_of_pod_security_finds_faults(render, setting: str, says: str):
    pods = dict(pod_specs(render("triton", FILES["minimal"], setting)))
    assert set(pods) == {"Deployment/reviews", "Pod/reviews-smoke"}
    for spec in pods.values():
        assert any(says in fault for fault in violations(spec))


@pytest.mark.parametrize("name", FILES)
def test_selectors_select(rendered, name: str):
    """Whatever selects pods selects the ones that it should, and no test pods among them."""
    manifests = rendered[name]
    servers = {
        m["metadata"]["name"]: m["spec"]["template"]["metadata"]["labels"]
        for m in named(manifests, "Deployment").values()
    }
    smoke = [m["metadata"]["labels"] for m in named(manifests, "Pod").values()]
    stable, *canaries = sorted(servers, key=len)

    def selected(selector: dict[str, str]) -> list[str]:
        assert not any(selector.items() <= labels.items() for labels in smoke)
        return sorted(pod for pod, labels in servers.items() if selector.items() <= labels.items())

    for deployment, manifest in named(manifests, "Deployment").items():
        assert selected(manifest["spec"]["selector"]["matchLabels"]) == [deployment]
        for spread in manifest["spec"]["template"]["spec"]["topologySpreadConstraints"]:
            assert selected(spread["labelSelector"]["matchLabels"]) == [deployment]
    for budget, manifest in named(manifests, "PodDisruptionBudget").items():
        assert selected(manifest["spec"]["selector"]["matchLabels"]) == [budget]
    split = bool(named(manifests, "GRPCRoute")) and bool(canaries)
    services = {key: selected(m["spec"]["selector"]) for key, m in named(manifests, "Service").items()}
    callers = [stable] if split else sorted(servers)
    expected = {stable: callers, f"{stable}-headless": callers, f"{stable}-metrics": sorted(servers)}
    if canaries:
        expected |= {f"{stable}-stable": [stable], f"{stable}-canary": canaries}
    assert services == expected
    policies = named(manifests, "NetworkPolicy")
    if policies:
        assert selected(policies[stable]["spec"]["podSelector"]["matchLabels"]) == sorted(servers)


@pytest.mark.parametrize("name", FILES)
def test_names_in_manifests_lead_somewhere(rendered, name: str):
    """Ports that Services name, volumes that containers mount, and what backends and policies refer to."""
    manifests = rendered[name]
    for pod, spec in pod_specs(manifests):
        volumes = {volume["name"] for volume in spec["volumes"]}
        mounted = [
            m["name"] for c in [*spec.get("initContainers", []), *spec["containers"]] for m in c.get("volumeMounts", [])
        ]
        assert set(mounted) == volumes, pod
        for volume in spec["volumes"]:
            own = volume.get("configMap", {}).get("name", "")
            assert own in ("", "authority") or own in named(manifests, "ConfigMap")
    ports = {port["name"] for port in server_of(manifests, min(named(manifests, "Deployment"), key=len))["ports"]}
    for service in named(manifests, "Service").values():
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for monitor in named(manifests, "ServiceMonitor").values():
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        (found,) = (s for s in named(manifests, "Service").values() if wanted <= s["metadata"]["labels"].items())
        assert {e["port"] for e in monitor["spec"]["endpoints"]} <= {p["name"] for p in found["spec"]["ports"]}
    for route in named(manifests, "GRPCRoute").values():
        for backend in route["spec"]["rules"][0]["backendRefs"]:
            assert backend["name"] in named(manifests, "Service")


# -- what the contract of the parts says -----------------------------------------------------------------------------


def test_the_version_is_stillhouses():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)
    images = yaml.safe_load(chart["annotations"]["artifacthub.io/images"])
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    assert {image["image"] for image in images} == {
        f"{values[key]['repository']}:{__version__}" for key in ("image", "opsImage")
    }
    for key in ("artifacthub.io/links", "artifacthub.io/changes"):
        assert yaml.safe_load(chart["annotations"][key])


def test_what_is_pinned_reaches_the_pod(rendered):
    deployment = one(rendered["minimal"], "Deployment", "reviews")
    pod = deployment["spec"]["template"]
    (fetch,) = pod["spec"]["initContainers"]
    digest = yaml.safe_load(FILES["minimal"].read_text())["model"]["manifestSha256"]
    assert fetch["command"] == ["stillhouse", "fetch"]
    assert fetch["args"] == [
        "models:/reviews/7", "/models", "--model", "reviews", "--version", "7", "--manifest-sha256", digest
    ]  # fmt: skip
    for metadata in (deployment["metadata"], pod["metadata"]):
        assert metadata["labels"]["stillhouse.dev/model-version"] == "7"
        assert metadata["labels"]["stillhouse.dev/track"] == "stable"
        assert metadata["annotations"]["stillhouse.dev/manifest-sha256"] == digest
        assert metadata["annotations"]["stillhouse.dev/model"] == "reviews"
    assert {entry["secretRef"]["name"]: entry["secretRef"]["optional"] for entry in fetch["envFrom"]} == {
        "stillhouse-mlflow": True, "stillhouse-object-store": True
    }  # fmt: skip


def test_versions_are_text_however_they_are_given(render, rendered):
    def version(manifests: Manifests) -> str:
        args = one(manifests, "Deployment", "reviews")["spec"]["template"]["spec"]["initContainers"][0]["args"]
        return str(args[args.index("--version") + 1])

    assert version(rendered["gpu"]) == "7"
    assert version(rendered["ingress"]) == "2000000"
    assert version(render("triton", FILES["minimal"], "model.version=12345678")) == "12345678"


def test_sources(rendered, render):
    def source(manifests: Manifests, name: str) -> str:
        return str(one(manifests, "Deployment", name)["spec"]["template"]["spec"]["initContainers"][0]["args"][0])

    assert source(rendered["gpu"], "reviews") == "s3://models/reviews/7"
    assert source(rendered["dev"], "reviews") == "/source/packages/reviews"
    assert source(rendered["everything"], "verdicts-canary") == "s3://models/reviews/8"
    absolute = render("triton", FILES["dev"], "model.source=/source/elsewhere")
    assert source(absolute, "reviews") == "/source/elsewhere"


def test_triton_is_closed_to_all_but_its_own_pod(rendered):
    server = server_of(rendered["minimal"])
    (key,) = (entry for entry in server["env"] if entry["name"] == "POD_KEY")
    assert key["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.uid"
    closed = "shared-memory,model-repository,trace,logging:closed=$(POD_KEY)"
    assert f"--grpc-restricted-protocol={closed}" in server["args"]
    assert f"--http-restricted-api={closed}" in server["args"]
    assert "--http-address=127.0.0.1" in server["args"]
    assert [port["name"] for port in server["ports"]] == ["grpc", "metrics"]
    assert "--http-address=0.0.0.0" in server_of(rendered["ingress"])["args"]


def test_probes_and_the_drain(rendered):
    server = server_of(rendered["minimal"])
    script = ["python3", "-IS", "/opt/stillhouse/pod/pod.py"]
    for probe in ("startupProbe", "livenessProbe"):
        command = server[probe]["exec"]["command"]
        assert command[:5] == [*script, "live", "reviews"]
        assert float(command[5].removeprefix("--timeout=")) < server[probe]["timeoutSeconds"]
    assert server["readinessProbe"]["grpc"] == {"port": 8001}
    assert server["lifecycle"]["preStop"]["exec"]["command"] == [
        *script, "drain", "reviews", "--delay=20", "--timeout=30"
    ]  # fmt: skip
    pod = one(rendered["minimal"], "Deployment", "reviews")["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 20 + 30 + 20 + 10
    (age,) = (a for a in server["args"] if a.startswith("--grpc-max-connection-age="))
    assert int(age.partition("=")[2]) * 1.1 < 20_000
    ready = server_of(rendered["everything"], "verdicts")["readinessProbe"]["exec"]["command"]
    assert ready[3:5] == ["ready", "reviews"], "the kubelet's gRPC probe does not speak TLS"


def test_the_script_is_mounted_as_it_is(rendered):
    script = one(rendered["minimal"], "ConfigMap", "reviews-pod")["data"]["pod.py"]
    assert script.rstrip("\n") == (CHART / "files" / "pod.py").read_text(encoding="utf-8").rstrip("\n")
    template = one(rendered["minimal"], "Deployment", "reviews")["spec"]["template"]
    assert re.fullmatch(r"[0-9a-f]{64}", template["metadata"]["annotations"]["checksum/pod"])


def test_volumes_are_as_small_and_as_closed_as_they_can_be(rendered):
    pod = one(rendered["minimal"], "Deployment", "reviews")["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "256Mi"}
    assert all(volumes[name]["emptyDir"]["sizeLimit"] for name in ("models", "tmp"))
    mounts = {mount["name"]: mount for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts["models"] == {"name": "models", "mountPath": "/models", "readOnly": True}
    assert mounts["pod"]["readOnly"] is True


def test_rollouts_lose_no_pod(rendered):
    spec = one(rendered["minimal"], "Deployment", "reviews")["spec"]
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert spec["replicas"] == 2


def test_an_upgrade_of_the_chart_alone_replaces_no_pod(rendered):
    labels = one(rendered["minimal"], "Deployment", "reviews")["spec"]["template"]["metadata"]["labels"]
    assert not [key for key, value in labels.items() if __version__ in value]


def test_gpus(rendered):
    pod = one(rendered["gpu"], "Deployment", "reviews")["spec"]["template"]["spec"]
    resources = pod["containers"][0]["resources"]
    assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"] == 1
    assert pod["runtimeClassName"] == "nvidia"
    assert {"nvidia.com/gpu", "spot"} == {toleration["key"] for toleration in pod["tolerations"]}
    assert "runAsUser" not in pod["securityContext"], "null leaves it to the cluster"
    assert "--allow-gpu-metrics=true" in pod["containers"][0]["args"]
    without = one(rendered["minimal"], "Deployment", "reviews")["spec"]["template"]["spec"]
    assert "nvidia" not in json.dumps(without)


def test_a_canary_is_the_same_but_for_its_version(rendered):
    manifests = rendered["everything"]
    stable, canary = (one(manifests, "Deployment", name)["spec"] for name in ("verdicts", "verdicts-canary"))
    assert canary["replicas"] == 2
    assert "replicas" not in stable, "KEDA holds them"
    pods = [spec["template"]["spec"] for spec in (stable, canary)]
    for pod in pods:
        pod["topologySpreadConstraints"] = [c | {"labelSelector": None} for c in pod["topologySpreadConstraints"]]
    fetches = [pod.pop("initContainers")[0] for pod in pods]
    assert pods[0] == pods[1]
    assert fetches[0].pop("args") != fetches[1].pop("args")
    assert fetches[0] == fetches[1]


def test_the_route_holds_the_weight(rendered, render):
    (rule,) = one(rendered["everything"], "GRPCRoute", "verdicts")["spec"]["rules"]
    weights = {backend["name"]: backend["weight"] for backend in rule["backendRefs"]}
    assert weights == {"verdicts-stable": 75, "verdicts-canary": 25}
    alone = render("triton", FILES["everything"], "canary.enabled=false")
    (rule,) = one(alone, "GRPCRoute", "verdicts")["spec"]["rules"]
    assert [backend["name"] for backend in rule["backendRefs"]] == ["verdicts"]


def test_replicas_are_left_to_what_scales(rendered, render):
    scaled = one(rendered["cpu"], "ScaledObject", "reviews")["spec"]
    triggers = {trigger["type"]: trigger for trigger in scaled["triggers"]}
    assert set(triggers) == {"prometheus", "cpu"}
    assert triggers["prometheus"]["metricType"] == "Value"
    assert "replicas" not in one(rendered["cpu"], "Deployment", "reviews")["spec"]
    hpa = one(rendered["ingress"], "HorizontalPodAutoscaler", "reviews")["spec"]
    by_kind = {metric["type"]: metric for metric in hpa["metrics"]}
    assert by_kind["Pods"]["pods"]["target"] == {"type": "AverageValue", "averageValue": "500m"}
    assert by_kind["Resource"]["resource"]["target"]["averageUtilization"] == 80
    alone = render("triton", FILES["minimal"], "autoscaling.enabled=true", "autoscaling.kind=hpa")
    metrics = one(alone, "HorizontalPodAutoscaler", "reviews")["spec"]["metrics"]
    assert [metric["type"] for metric in metrics] == ["Resource"]


def test_network_policies_let_in_and_out_what_is_needed(rendered, render):
    spec = one(rendered["minimal"], "NetworkPolicy", "reviews")["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert [[port["port"] for port in rule["ports"]] for rule in spec["ingress"]] == [["grpc"], ["metrics"]]
    assert [[port["port"] for port in rule["ports"]] for rule in spec["egress"]] == [[53, 53], [443]]

    def fetched(manifests: Manifests, name: str = "reviews") -> list[int]:
        return [port["port"] for port in one(manifests, "NetworkPolicy", name)["spec"]["egress"][1]["ports"]]

    assert fetched(rendered["cpu"]) == [443, 5000], "the port of mlflow.trackingUri"
    assert fetched(rendered["everything"], "verdicts") == [443, 9000, 8443]
    assert fetched(render("triton", FILES["minimal"], "mlflow.trackingUri=http://mlflow")) == [443, 80]
    closed = one(rendered["ingress"], "NetworkPolicy", "reviews")["spec"]["ingress"][0]
    assert {"app.kubernetes.io/component": "smoke"}.items() <= closed["from"][0]["podSelector"]["matchLabels"].items()
    assert "NetworkPolicy" not in {m["kind"] for m in rendered["dev"]}


def test_smoke_tests_ask_each_version_for_its_own_answers(rendered):
    manifests = rendered["everything"]
    for name, version in (("verdicts-smoke", "7"), ("verdicts-canary-smoke", "8")):
        pod = one(manifests, "Pod", name)
        assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
        args = pod["spec"]["containers"][0]["args"]
        track = "canary" if "canary" in name else "stable"
        assert args[args.index("--url") + 1] == f"verdicts-{track}.serving.svc:8001"
        assert args[args.index("--version") + 1] == version
        assert {"--tls", "--tls-ca", "--tls-cert", "--tls-key"} <= set(args)
        mounts = {mount["mountPath"] for mount in pod["spec"]["containers"][0]["volumeMounts"]}
        assert all(str(Path(arg).parent) in mounts for arg in args if arg.startswith("/"))
    values = yaml.safe_load(FILES["everything"].read_text())
    answers = json.loads(one(manifests, "ConfigMap", "verdicts-smoke")["data"]["answers.json"])
    assert answers == values["smokeTest"]["answers"], "quotes, braces and umlauts as they were given"
    plain = one(rendered["minimal"], "Pod", "reviews-smoke")["spec"]["containers"][0]["args"]
    assert not [arg for arg in plain if "tls" in arg or arg == "--answers"]
    assert plain[plain.index("--url") + 1] == "reviews.serving.svc:8001"


def test_tls(rendered, render):
    args = server_of(rendered["everything"], "verdicts")["args"]
    assert {"--grpc-use-ssl=true", "--grpc-use-ssl-mutual=true", "--grpc-root-cert=/tls/client-ca.crt"} <= set(args)
    certificate = one(rendered["everything"], "Certificate", "verdicts")["spec"]
    assert {"verdicts.serving.svc", "verdicts-canary.serving.svc", "reviews.example.com"} <= set(
        certificate["dnsNames"]
    )
    given = render("triton", FILES["minimal"], "tls.existingSecret=mine")
    args = server_of(given)["args"]
    assert "--grpc-server-key=/tls/tls.key" in args
    assert not [arg for arg in args if "mutual" in arg]
    pod = one(given, "Deployment", "reviews")["spec"]["template"]["spec"]
    (volume,) = (v for v in pod["volumes"] if v["name"] == "tls")
    assert volume["projected"]["sources"][0]["secret"]["name"] == "mine"
    service = one(given, "Service", "reviews")["spec"]["ports"][0]
    assert "appProtocol" not in service, "h2c is HTTP/2 without TLS"


def test_pods_are_found_in_prometheus_by_release_and_track(rendered):
    (endpoint,) = one(rendered["cpu"], "ServiceMonitor", "reviews")["spec"]["endpoints"]
    labels = {one["targetLabel"]: one["sourceLabels"] for one in endpoint["relabelings"]}
    assert labels == {
        "stillhouse_release": ["__meta_kubernetes_pod_label_app_kubernetes_io_instance"],
        "stillhouse_track": ["__meta_kubernetes_pod_label_stillhouse_dev_track"],
    }


def test_the_request_log_has_room(rendered):
    pod = one(rendered["ingress"], "Deployment", "reviews")["spec"]["template"]["spec"]
    environment = {entry["name"]: entry.get("value") for entry in pod["containers"][0]["env"]}
    (volume,) = (v for v in pod["volumes"] if v["name"] == "requests")
    assert environment["STILLHOUSE_REQUEST_LOG"] == "/requests"
    assert environment["STILLHOUSE_REQUEST_LOG_SAMPLE"] == "0.01"
    assert volume["emptyDir"]["sizeLimit"] > int(environment["STILLHOUSE_REQUEST_LOG_MAX_BYTES"])


# -- notes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("minimal", ["kubectl -n default logs POD -c fetch", "helm -n default rollback reviews", "version 7"]),
        ("dev", ["CVE-2025-23310", "replicas is 1", "networkPolicy.enabled is false"]),
        ("canary", ["no route to hold canary.weight", "1 to 4", "reviews-canary"]),
        ("everything", ["gives it 25%", "BackendTLSPolicy", "with a client certificate"]),
        ("ingress", ["what a pod logged goes with it"]),
    ],
)
def test_notes_help(helm, tmp_path: Path, name: str, words: list[str]):
    """Without a cluster helm shows no notes: they are rendered as a manifest of a copy."""
    shutil.copytree(CHART, tmp_path / "triton")
    source = tmp_path / "triton" / "templates" / "NOTES.txt"
    source.with_name("notes.yaml").write_text(
        '{{ define "notes" }}' + source.read_text(encoding="utf-8") + "{{ end }}\n"
        'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: notes}\ndata: {notes: {{ include "notes" . | quote }}}\n'
    )
    source.unlink()
    command = [
        str(helm),
        "template",
        "reviews",
        str(tmp_path / "triton"),
        f"--values={FILES[name]}",
        "--kube-version=1.29",
    ]
    done = subprocess.run([*command, "--show-only=templates/notes.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    notes = yaml.safe_load(done.stdout)["data"]["notes"]
    for word in words:
        assert word in notes
