"""What is said of a deployment to Kubernetes before anything is done, and what a release pins."""

from __future__ import annotations

from typing import Any

import pytest
from folder_registry import FolderRegistry
from tiny_package import TEXTS, build_package

from stillhouse.artifacts import PackageManifest, sha256_file
from stillhouse.deploy.kubernetes.release import Revision
from stillhouse.deploy.kubernetes.rendering import refusals, rendered_problems
from stillhouse.deploy.kubernetes.rollback import revision_before
from stillhouse.deploy.kubernetes.schema import schema_problems
from stillhouse.deploy.kubernetes.settings import KubernetesSettings, release_name
from stillhouse.deploy.kubernetes.values import canary_values, pin, release_values, same_release
from stillhouse.errors import InputError, ManifestError

MLFLOW = {"trackingUri": "http://mlflow.mlops:5000"}


def settings(**changes: Any) -> KubernetesSettings:
    return KubernetesSettings(model_name="reviews", **changes)


def where(**changes: Any) -> list[str]:
    return [problem.where for problem in settings(**changes).problems()]


@pytest.mark.parametrize(
    ("model", "release"),
    [
        ("reviews", "reviews"),
        ("Film_Reviews.v2", "film-reviews-v2"),
        ("2024", "model-2024"),
        ("_", "model"),
        ("x" * 63, "x" * 53),
        ("x" * 52 + ".y", "x" * 52),
    ],
)
def test_release_names(model: str, release: str) -> None:
    assert release_name(model) == release
    assert where(release=release) == []


def test_everything_at_once() -> None:
    values = {"model": {}, "replica": 2, "canary": {"weight": 3, "replicas": 2}, "device": "tpu", "smokeTest": []}
    found = where(
        namespace="My_Space", release="2x", canary_weight=100, canary_minutes=0, timeout_minutes=1e9,
        prometheus_url="prometheus:9090", values=values,
    )  # fmt: skip
    assert found == [
        "serving_namespace", "release", "canary_weight", "canary_minutes", "rollout_timeout_minutes", "prometheus_url",
        "serving_values.model", "serving_values.canary.weight", "serving_values.replica", "serving_values.device",
        "serving_values.smokeTest",
    ]  # fmt: skip


def test_a_misspelt_value_is_told_with_the_right_one() -> None:
    (problem,) = settings(values={"replica": 2}).problems()
    assert problem.remedy == "Did you mean replicas?"


@pytest.mark.parametrize("namespace", ["serving", "2024-serving", "a"])
def test_what_is_fine_is_not_complained_about(namespace: str) -> None:
    values = {"replicas": 3, "device": "gpu", "canary": {"replicas": 2}, "smokeTest": {"timeoutSeconds": 9}}
    assert where(namespace=namespace, values=values, canary_weight=10, prometheus_url="https://p/prefix") == []


@pytest.mark.parametrize(
    "uri", ["sqlite:////tmp/mlflow.db", "http://localhost:5000", "http://127.0.0.1", "http://[::1]:5"]
)
def test_a_registry_that_pods_cannot_reach(uri: str) -> None:
    assert where(tracking_uri=uri) == ["tracking_uri"]
    assert where(tracking_uri=uri, values={"mlflow": MLFLOW}) == []


def test_passwords_are_in_no_value(monkeypatch: pytest.MonkeyPatch, packages: FolderRegistry) -> None:
    assert where(prometheus_url="http://me:hunter2@prometheus") == ["prometheus_url"]
    assert all("hunter2" not in str(p) for p in settings(prometheus_url="http://me:hunter2@prometheus").problems())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:hunter2@mlflow.example.com")
    pinned = pin(packages, "reviews", "7", TEXTS)
    # It is left to the secret that the pods mount.
    assert release_values(settings(), pinned)["mlflow"]["trackingUri"] == ""


@pytest.mark.parametrize(
    ("said", "problems"),
    [
        (
            "UPGRADE FAILED: values don't meet the specifications of the schema(s) in the following chart(s):\n"
            "triton:\n"
            "- (root): Additional property replica is not allowed\n- replicas: Invalid type. Expected: integer\n",
            ["serving_values: Additional property replica is not allowed.",
             "serving_values.replicas: Invalid type. Expected: integer."],
        ),
        (
            "values don't meet the specifications of the schema(s) in the following chart(s):\ntriton:\n"
            "- at '': additional properties 'replica' not allowed\n- at '/canary/weight': got string, want integer\n",
            ["serving_values: additional properties 'replica' not allowed.",
             "serving_values.canary.weight: got string, want integer."],
        ),
        (
            "execution error at (triton/templates/deployment.yaml:1:4): replicaCount was renamed\nto replicas",
            ["serving_values: replicaCount was renamed to replicas"],
        ),
        ("UPGRADE FAILED: timed out waiting for the condition", []),
    ],
)  # fmt: skip
def test_what_helm_says_of_values(said: str, problems: list[str]) -> None:
    assert [str(problem) for problem in refusals(said)] == problems


def test_the_chart_itself_is_asked_where_there_is_helm(helm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_HELM", str(helm))
    assert rendered_problems(settings(values={"replicas": 3})) == []
    (problem,) = rendered_problems(settings(values={"replicas": -3}))
    assert problem.where == "serving_values.replicas"
    monkeypatch.setenv("STILLHOUSE_HELM", "/nowhere/helm")
    assert rendered_problems(settings(values={"replicas": -3})) == []


def test_schemas() -> None:
    schema = {
        "definitions": {"name": {"type": "string"}},
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "a": {"$ref": "#/definitions/name"},
            "b": {"type": ["integer", "null"]},
            "c": {"type": "array", "items": {"type": "object", "properties": {"d": {"enum": ["x", "y"]}}}},
            "e": {"type": "object", "additionalProperties": {"type": "boolean"}},
        },
    }
    value = {"a": 1, "b": True, "c": [{"d": "x"}, {"d": "z"}], "e": {"f": "no"}, "g": 0}
    found = [str(problem).split(":")[0] for problem in schema_problems(value, schema, "v")]
    assert found == ["v.a", "v.b", "v.c[1].d", "v.e.f", "v.g"]
    assert schema_problems({"a": "x", "b": 2.0, "c": [], "e": None}, schema, "v") == []


@pytest.fixture
def packages(tmp_path: Any) -> FolderRegistry:
    return FolderRegistry(
        {
            "7": build_package(tmp_path / "7", max_text_bytes=70_000),
            "8": build_package(tmp_path / "8", serving_device="gpu"),
        }
    )


def test_what_a_release_pins(packages: FolderRegistry) -> None:
    pinned = pin(packages, "reviews", "7", TEXTS)
    assert pinned.digest == sha256_file(packages.packages["7"] / PackageManifest.filename())
    assert [row["text"] for row in pinned.asked] == TEXTS
    assert all(sum(row["probabilities"]) == pytest.approx(1) for row in pinned.asked)
    values = release_values(settings(values={"mlflow": MLFLOW, "replicas": 3}), pinned)
    assert values["model"] == {"name": "reviews", "version": "7", "manifestSha256": pinned.digest}
    assert (values["mlflow"], values["replicas"], "device" in values) == (MLFLOW, 3, False)

    beside = canary_values(values, settings(canary_weight=5, values={"canary": {"replicas": 2}}), pinned)
    assert beside["model"] == values["model"] and beside["smokeTest"]["answers"] == values["smokeTest"]["answers"]
    wanted = {"version": "7", "manifestSha256": pinned.digest}
    assert beside["canary"] == {"replicas": 2, "enabled": True, "weight": 5, "model": wanted}
    assert not same_release(values, beside)
    assert same_release(values, {**values, "smokeTest": {**values["smokeTest"], "answers": []}})

    with pytest.raises(ManifestError, match="serves under the name 'reviews', and is registered as 'other'"):
        pin(packages, "other", "7", TEXTS)


def test_a_package_for_gpus_is_served_on_gpus(packages: FolderRegistry) -> None:
    pinned = pin(packages, "reviews", "8", TEXTS)
    # Another processor's 16-bit floats are other floats: labels alone are compared.
    assert all(set(row) == {"text", "label"} for row in pinned.asked)
    assert release_values(settings(values={"mlflow": MLFLOW}), pinned)["device"] == "gpu"
    with pytest.raises(InputError, match=r"serving_values\.device: 'cpu' cannot serve version 8"):
        release_values(settings(values={"mlflow": MLFLOW, "device": "cpu"}), pinned)


def test_long_rows_are_left_out(packages: FolderRegistry) -> None:
    rows = ["x" * 60_000, "good", "y" * 60_000, *(str(n) for n in range(40))]
    asked = pin(packages, "reviews", "7", rows).asked
    assert [row["text"] for row in asked] == ["x" * 60_000, "good", *(str(n) for n in range(14))]
    assert pin(packages, "reviews", "7", ["x" * 69_999]).asked[0]["text"] == "ok"
    # What the package itself refuses, such as a row of another version's test.
    assert [row["text"] for row in pin(packages, "reviews", "8", ["x" * 401, "good"]).asked] == ["good"]


def revision(number: int, version: str, **changes: Any) -> Revision:
    values = {"model": {"name": "reviews", "version": version}}
    fields = {"at": "", "status": "superseded", "description": "Upgrade complete", "chart": "", "tested": "Succeeded"}
    return Revision(number=number, **{**fields, "values": values, **changes})


def test_which_revision_is_gone_back_to() -> None:
    canary = {"model": {"version": "1"}, "canary": {"enabled": True, "model": {"version": "2"}}}
    history = [
        revision(1, "1"),
        revision(2, "1", values=canary),
        revision(3, "2"),
        revision(4, "3", tested="Failed"),
        revision(5, "2", description="Rollback to 3"),
        revision(6, "4", status="failed", tested=""),
        revision(7, "2", description="Rollback to 5"),
    ]
    found = revision_before(history[::-1], "2")
    assert found is not None and found.number == 1
    assert revision_before([revision(1, "1")], "1") is None
    three = [revision(1, "1"), revision(2, "2"), revision(3, "3"), revision(4, "2", description="Rollback to 2")]
    found = revision_before(three[::-1], "2")
    assert found is not None and found.version == "1"
