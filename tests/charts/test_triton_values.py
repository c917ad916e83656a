"""charts/triton: values are documented and closed, and wrong ones are refused by the name of their key."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "triton"
MINIMAL = CHART / "ci" / "minimal-values.yaml"
EVERYTHING = CHART / "ci" / "everything-values.yaml"
SCHEMA = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
VALUES = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
REFUSED = "Refused: see templates/_renamed.tpl."

_TABLE = re.search(
    r'define "triton.renamed" -}}\n(.*?)\{\{- end', (CHART / "templates" / "_renamed.tpl").read_text(), re.DOTALL
)
assert _TABLE is not None
RENAMED: dict[str, str] = yaml.safe_load(_TABLE[1])


def resolved(schema: Any) -> Any:
    return SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def schemas(schema: Any = SCHEMA, at: str = "") -> Iterator[tuple[str, Any]]:
    """Every schema of an object under the values, by the path of its key."""
    schema = resolved(schema)
    if isinstance(schema, dict) and schema.get("type") == "object":
        yield at, schema
        for key, inner in schema.get("properties", {}).items():
            yield from schemas(inner, f"{at}.{key}".lstrip("."))
    elif isinstance(schema, dict) and "items" in schema:
        yield from schemas(schema["items"], f"{at}[]")


def test_the_schema_knows_the_values_and_no_others():
    def compare(values: Any, schema: Any, at: str) -> None:
        properties = resolved(schema).get("properties")
        if not isinstance(values, dict) or properties is None:
            return
        assert set(values) <= set(properties), at
        optional = {"": {"global"}, "podSecurityContext": {"seLinuxOptions", "sysctls"}}
        for key in set(properties) - set(values) - optional.get(at, set()):
            assert properties[key].get("description") == REFUSED or at in OPEN, f"{at}.{key} is in no values.yaml"
        for key, value in values.items():
            compare(value, properties[key], f"{at}.{key}".lstrip("."))

    compare(VALUES, SCHEMA, "")


# Objects of Kubernetes, of which a release needs a few fields, or which are passed on.
OPEN = {"podSecurityContext.seccompProfile", "securityContext", "securityContext.capabilities", "affinity", "resources",
        "fetch.resources", "tls.certManager.issuerRef"}  # fmt: skip


def test_every_object_is_closed():
    """But those whose keys are the user's, and those that are passed on to Kubernetes as they are."""
    passed = {"global", "affinity.nodeAffinity", "affinity.podAffinity", "affinity.podAntiAffinity",
              "extraVolumes[]", "extraContainers[]", "extraEnv[].valueFrom", "fetch.extraEnv[].valueFrom"}  # fmt: skip
    open_ones = {at for at, schema in schemas() if "additionalProperties" not in schema}
    assert open_ones == passed


def test_the_defaults_fit_the_schema_and_say_what_is_missing(refusal):
    said = refusal("triton")
    for key in ("model.name", "model.version", "model.manifestSha256"):
        assert f"{key} is required" in said
    assert "values don't meet" not in said


def test_every_value_is_documented():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        from generate import chart_values
    finally:
        sys.path.pop(0)
    documented = [key for _, rows in chart_values(CHART / "values.yaml") for key, _, _ in rows]
    page = (CHART / "README.md").read_text(encoding="utf-8")
    assert len(documented) > 120
    assert all(f"| `{key}` |" in page for key in documented)


def test_an_undocumented_value_is_found(tmp_path: Path):
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        from generate import chart_values
    finally:
        sys.path.pop(0)
    path = tmp_path / "values.yaml"
    path.write_text("# Documented.\na: 1\nb:\n  # Too.\n  c: 1\n  d: 2\ne: {}\n")
    with pytest.raises(ValueError, match=r"mean: b\.d, e$"):
        chart_values(path)


# -- what the schema refuses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        # typing errors
        ("replicsa=3", "replicsa"),
        ("model.nmae=reviews", "nmae"),
        ("canary.model.digest=abc", "digest"),
        ("image.repo=x", "repo"),
        ("autoscaling.keda.url=http://x", "url"),
        ("monitoring.serviceMonitor.on=true", "on"),
        ("networkPolicy.grpc.sameNamespaces=true", "sameNamespaces"),
        ("tolerations[0].kye=a", "kye"),
        ("route.parentRefs[0].nmae=a", "nmae"),
        ("securityContext.readOnlyRootFileSystem=true", "readOnlyRootFileSystem"),
        ("smokeTest.answers[0].txt=a", "txt"),
        ("probes.liveness.periodSecond=1", "periodSecond"),
        # wrong types
        ("replicas=two", "replicas"),
        ("replicas=1.5", "replicas"),
        ("canary.enabled=yes", "canary.enabled"),
        ("drain.delaySeconds=20s", "drain.delaySeconds"),
        ("extraArgs=--log-verbose=1", "extraArgs"),
        ("service.port=grpc", "service.port"),
        ("resources.requests.memory={2Gi}", "resources.requests.memory"),
        ("networkPolicy.fetch.ports[0]=https", "networkPolicy.fetch.ports.0"),
        # values that nothing could be made of
        ("model.name=my model", "model.name"),
        ("model.version=latest", "model.version"),
        ("model.version=0", "model.version"),
        ("model.manifestSha256=abc", "model.manifestSha256"),
        ("model.source=ftp://models/7", "model.source"),
        ("canary.weight=101", "canary.weight"),
        ("canary.replicas=0", "canary.replicas"),
        ("device=tpu", "device"),
        ("gpu.count=-1", "gpu.count"),
        ("service.port=70000", "service.port"),
        ("shm.sizeLimit=many", "shm.sizeLimit"),
        ("autoscaling.kind=vpa", "autoscaling.kind"),
        ("requestLog.text=some", "requestLog.text"),
        ("updateStrategy.maxSurge=-1", "updateStrategy.maxSurge"),
        ("topologySpread.whenUnsatisfiable=Never", "topologySpread.whenUnsatisfiable"),
        ("mlflow.trackingUri=http://user:secret@mlflow", "mlflow.trackingUri"),
        ("image.digest=sha256:1", "image.digest"),
        ("fullnameOverride=My_Name", "fullnameOverride"),
        ("extraArgs={log-verbose}", "extraArgs.0"),
    ],
)
def test_the_schema_refuses(refusal, setting: str, key: str):
    said = refusal("triton", MINIMAL, setting)
    assert "values don't meet the specifications of the schema" in said
    assert re.search(rf"(?m)^- (\S+: )?.*\b{re.escape(key)}\b", said), said


# -- keys of another name --------------------------------------------------------------------------------------------


def test_the_schema_lets_renamed_keys_through_to_the_table():
    found = set()
    for at, schema in schemas():
        for key, inner in schema.get("properties", {}).items():
            if inner.get("description") == REFUSED:
                found.add(f"{at}.{key}".lstrip("."))
    # Both images have one definition.
    assert found - {f"opsImage.{key[6:]}" for key in RENAMED if key.startswith("image.")} == set(RENAMED)


def test_a_renamed_key_leads_to_a_key():
    known = {at for at, _ in schemas()}

    def is_key(path: str) -> bool:
        at = VALUES
        for part in path.split("."):
            if not isinstance(at, dict) or part not in at:
                return False
            at = at[part]
        return True

    for old, new in RENAMED.items():
        assert not is_key(old)
        assert any(is_key(word.strip(",:")) or word.strip(",:") in known for word in new.split()), (old, new)


def test_renamed_keys_fail_with_instructions(refusal, tmp_path: Path):
    """All of them at once."""
    values: dict[str, Any] = {}
    for old in RENAMED:
        at = values
        *parents, last = old.split(".")
        for part in parents:
            at = at.setdefault(part, {})
        at[last] = "x"
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump(values))
    said = refusal("triton", [MINIMAL, path])
    for old, new in RENAMED.items():
        assert f"- {old} is not a key of this chart: write {new}." in said


@pytest.mark.parametrize("value", ["0", "false", "", "{}"])
def test_a_renamed_key_is_found_whatever_its_value(refusal, value: str):
    assert "replicaCount is not a key of this chart: write replicas." in refusal(
        "triton", MINIMAL, f"replicaCount={value}"
    )


# -- what does not fit together --------------------------------------------------------------------------------------

CANARY = ["canary.enabled=true", "canary.model.version=8", f"canary.model.manifestSha256={'a' * 64}"]
SCALED = ["autoscaling.enabled=true", "autoscaling.keda.prometheusUrl=http://prometheus"]
HPA = ["autoscaling.enabled=true", "autoscaling.kind=hpa"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["model.name="], "model.name is required"),
        (["model.version="], "model.version is required"),
        (["model.manifestSha256="], "model.manifestSha256 is required"),
        (["model.source=packages/7"], "model.source is a path, and model.claim names no volume"),
        (["model.source=/data/7", "model.claim=packages"], "model.source: /data/7 is not on the claim"),
        (["model.claim=packages"], "model.claim is given, and model.source is no path on it"),
        (["canary.enabled=true"], "canary.model.version is required"),
        (["canary.enabled=true"], "canary.model.manifestSha256 is required"),
        ([*CANARY, "canary.model.version=7"], "canary.model.version is 7, which is model.version too"),
        (["device=gpu", "gpu.count=0"], "device is gpu, and gpu.count is 0"),
        (["device=gpu", "image.repository=r/stillhouse-triton-dev"], "image.repository is stillhouse-triton-dev"),
        (["gpu.runtimeClassName=nvidia"], "gpu.runtimeClassName is given, and device is cpu"),
        ([*SCALED, "autoscaling.minReplicas=9", "autoscaling.maxReplicas=3"], "autoscaling.minReplicas is 9, above"),
        (["autoscaling.enabled=true"], "autoscaling.keda.prometheusUrl is required"),
        ([*SCALED, "autoscaling.queueRatio=0", "autoscaling.cpuUtilization=0"], "there is nothing to scale by"),
        ([*SCALED, "autoscaling.hpa.queueMetric=ratio"], "autoscaling.hpa.queueMetric is given"),
        ([*SCALED, "autoscaling.kind=hpa"], "autoscaling.keda.prometheusUrl is given, and autoscaling.kind is hpa"),
        ([*HPA, "autoscaling.cpuUtilization=0"], "autoscaling.hpa.queueMetric is not given"),
        ([*HPA, "autoscaling.hpa.queueMetric=r", "autoscaling.queueRatio=0"], "queueRatio, its target, is 0"),
        ([*HPA, "resources.requests.cpu=null"], "autoscaling.cpuUtilization is a share of resources.requests.cpu"),
        (["tls.existingSecret=a", "tls.certManager.enabled=true", "tls.certManager.issuerRef.name=b"],
         "tls.existingSecret and tls.certManager.enabled are both given"),
        (["tls.certManager.enabled=true"], "tls.certManager.issuerRef.name is required"),
        (["tls.clientCASecret=a"], "tls.clientCASecret is given, and there is no TLS"),
        (["tls.existingSecret=a", "tls.clientCASecret=a"], "smokeTest.clientSecret is required"),
        (["tls.existingSecret=a", "http.enabled=true"], "http.enabled: Triton's HTTP has no TLS"),
        (["route.enabled=true", "ingress.enabled=true"], "route.enabled and ingress.enabled are both given"),
        (["route.enabled=true"], "route.parentRefs is required"),
        (["ingress.enabled=true"], "ingress.host is required"),
        (["ingress.enabled=true"], "ingress.tlsSecret is required"),
        (["drain.delaySeconds=10"], "grpc.maxConnectionAgeSeconds is 15: connections of that age outlast "
                                    "drain.delaySeconds, 10. Give an age of 7 at most"),
        (["updateStrategy.maxSurge=0"], "updateStrategy.maxSurge and updateStrategy.maxUnavailable are both 0"),
        (["requestLog.enabled=true", "requestLog.text=hash"], "requestLog.keySecret is required"),
        (["requestLog.claim=log"], "requestLog.claim is given, and requestLog.enabled is false"),
        (["shm.sizeLimit=2Gi"], "shm.sizeLimit, 2Gi, is part of resources.limits.memory, 2Gi"),
        (["shm.sizeLimit=512Mi", "resources.limits.memory=500M"], "shm.sizeLimit, 512Mi, is part of"),
        (["extraArgs={--http-address=0.0.0.0}"], "extraArgs: --http-address is what the chart sets itself"),
        (["extraArgs={--model-control-mode=none}"], "extraArgs: --model-control-mode is what the chart sets itself"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_refused(refusal, settings: list[str], says: str):
    said = refusal("triton", MINIMAL, *settings)
    assert says in said
    assert "The values do not fit together:" in said


def test_everything_that_is_wrong_is_told_at_once(refusal):
    said = refusal(
        "triton", MINIMAL, "model.name=", "canary.enabled=true", "device=gpu", "gpu.count=0", "replicaCount=3",
        "route.enabled=true", "updateStrategy.maxSurge=0",
    )  # fmt: skip
    assert len(re.findall(r"(?m)^  - ", said)) == 7, said


@pytest.mark.parametrize(
    "settings",
    [
        CANARY,
        SCALED,
        HPA,
        [*SCALED, "autoscaling.cpuUtilization=0"],
        ["autoscaling.enabled=true", "autoscaling.queueRatio=0"],
        ["drain.delaySeconds=0", "grpc.maxConnectionAgeSeconds=0"],
        ["drain.delaySeconds=10", "grpc.maxConnectionAgeSeconds=7"],
        ["updateStrategy.maxSurge=25%", "updateStrategy.maxUnavailable=0"],
        ["shm.sizeLimit=1Gi", "resources.limits.memory=1.5G"],
        ["extraArgs={--log-verbose=1,--cache-config=redis\\,host=r}"],
        ["mlflow.existingSecret=", "objectStore.existingSecret="],
        ["global.anything=1"],
        # helm makes text of every fraction on its command line
        [*SCALED, "autoscaling.queueRatio=0.25", "requestLog.sample=0.5", "requestLog.enabled=true"],
    ],
)
def test_what_fits_together_is_taken(render, settings: list[str]):
    assert render("triton", MINIMAL, *settings)


def test_the_values_of_the_documentation_are_taken(render, tmp_path: Path):
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    blocks = [block for block in re.findall(r"^```yaml\n(.*?)^```", text, re.M | re.S) if "serving_values:" in block]
    assert blocks
    for block in blocks:
        (tmp_path / "values.yaml").write_text(yaml.safe_dump(yaml.safe_load(block)["serving_values"]))
        assert render("triton", [MINIMAL, tmp_path / "values.yaml"])


def test_nothing_that_is_off_is_needed(render):
    """The everything-on file with each switch turned off again, one at a time."""
    switches = ["canary", "autoscaling", "route", "topologySpread", "podDisruptionBudget", "networkPolicy", "smokeTest",
                "monitoring.serviceMonitor", "monitoring.prometheusRule", "monitoring.dashboard"]  # fmt: skip
    for switch in switches:
        assert render("triton", EVERYTHING, f"{switch}.enabled=false"), switch
