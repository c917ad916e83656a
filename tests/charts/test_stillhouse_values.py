"""The chart `stillhouse`: values that make no sense are refused by their key, and the schema knows all that do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

CHART = Path(__file__).resolve().parents[2] / "charts" / "stillhouse"
MINIMAL = CHART / "ci" / "minimal-values.yaml"
NEEDED = ("mlflow.database.host=db", "mlflow.artifacts.destination=s3://bucket/mlflow")
"""What an MLflow server cannot do without."""

WRONG = [
    # A typo, at each level.
    (["mlfow.enabled=true"], "Additional property mlfow is not allowed"),
    (["mlflow.databse.host=db"], "Additional property databse is not allowed"),
    (["publish.schedules[0].name=a", "publish.schedules[0].corn=x"], "Additional property corn is not allowed"),
    # Another type or form.
    (["mlflow.replicas=two"], "mlflow.replicas"),
    (["mlflow.database.sslMode=on"], "mlflow.database.sslMode"),
    (["image.digest=abc"], "image.digest"),
    (["image.pullPolicy=Sometimes"], "image.pullPolicy"),
    (["kubeflow.endpoint=ml-pipeline:8888"], "kubeflow.endpoint"),
    (["kubeflow.endpoint=https://me:secret@host"], "kubeflow.endpoint"),
    (["serving.namespace=Serving"], "serving.namespace"),
    (["mlflow.artifacts.destination=file:///x"], "mlflow.artifacts.destination"),
    (["deployer.additionalSubjects[0].kind=Robot", "deployer.additionalSubjects[0].name=x"], "Subjects.0.kind"),
    (["publish.schedules[0].name=a", "publish.schedules[0].cluster=gpu"], "parameters is required"),
    (["networkPolicy.mlflow.egressPorts[0]=https"], "networkPolicy.mlflow.egressPorts"),
    # Contradictions, and what is missing.
    (["serving.namespace=default"], "serving.namespace: default is the release's own namespace"),
    (["mlflow.enabled=true"], "mlflow.trackingUri: names a server, but mlflow.enabled runs one"),
    (["mlflow.enabled=true", "mlflow.trackingUri="], "mlflow.database.host: is not given"),
    (["mlflow.enabled=true", "mlflow.trackingUri="], "mlflow.artifacts.destination: is not given"),
    (["mlflow.enabled=true", *NEEDED, "mlflow.artifacts.destination=/data"], "mlflow.artifacts.claim: is not given"),
    (["mlflow.enabled=true", *NEEDED, "mlflow.artifacts.claim=c"], "mlflow.artifacts.claim: has no effect"),
    (["mlflow.enabled=true", *NEEDED, "mlflow.database.sslMode=verify-full"], "mlflow.database.caSecret: is not given"),
    (["mlflow.enabled=true", *NEEDED, "mlflow.database.caSecret=ca"], "mlflow.database.sslMode: require checks no"),
    (["mlflow.trackingUri=https://me:secret@mlflow"], "mlflow.trackingUri: holds a user's name or password"),
    (["mlflow.secret.create=false"], "mlflow.trackingUri: has no effect"),
    (["deployer.enabled=false", "deployer.additionalSubjects[0].kind=User", "deployer.additionalSubjects[0].name=x"],
     "deployer.additionalSubjects: have no effect"),
    (["publish.pipelines=null"], "publish.pipelines: lists nothing"),
    (["publish.pipelines[0].cluster=ours"], "publish.pipelines[0].cluster: there is no cluster \"ours\""),
    (["publish.clusterFiles.gpu.preset=base"], "publish.clusterFiles.gpu: is the name of a cluster"),
]  # fmt: skip
SCHEDULE = {"name": "a", "cluster": "gpu", "cron": "0 6 * * 1", "parameters": {"data": "s3://b/x"}}
WRONG_SCHEDULES = [
    ([SCHEDULE, SCHEDULE], {}, 'publish.schedules[1].name: "a" is given to another'),
    ([SCHEDULE | {"every": "6h"}], {}, "publish.schedules[0].every: stands beside cron"),
    ([SCHEDULE | {"cron": ""}], {}, "publish.schedules[0].cron: is not given, and neither is every"),
    (
        [SCHEDULE | {"cluster": "tpu"}],
        {},
        'publish.schedules[0].cluster: there is no cluster "tpu". There are: gpu, cpu',
    ),
    ([SCHEDULE], {"enabled": False}, "publish.schedules: have no effect, since publish.enabled is false"),
]
RENAMED = yaml.safe_load(
    (CHART / "templates" / "_checks.tpl").read_text().split('"stillhouse.renamed" -}}')[1].split("{{- end")[0]
)


@pytest.mark.parametrize(("sets", "said"), WRONG, ids=[said[:40] for _, said in WRONG])
def test_wrong_values_are_refused_by_their_key(refusal: Any, sets: list[str], said: str):
    text = refusal("stillhouse", MINIMAL, *sets)
    assert said in text
    assert "secret@" not in text


@pytest.mark.parametrize(("schedules", "beside", "said"), WRONG_SCHEDULES, ids=[s[2][:40] for s in WRONG_SCHEDULES])
def test_wrong_schedules_are_refused_by_their_key(
    refusal: Any, tmp_path: Path, schedules: list[Any], beside: Any, said: str
):
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump({"publish": {"schedules": schedules, **beside}}))
    assert said in refusal("stillhouse", [MINIMAL, values])


@pytest.mark.parametrize("path", RENAMED)
def test_renamed_keys_say_what_to_write(refusal: Any, path: str):
    text = refusal("stillhouse", MINIMAL, f"{path}=x")
    assert f"{path}: is not a key of this chart. {RENAMED[path]}" in text


def test_everything_wrong_is_told_at_once(refusal: Any):
    text = refusal("stillhouse", MINIMAL, "mlflow.enabled=true", "serving.namespace=default", "servingNamespace=x")
    for key in ("servingNamespace", "serving.namespace", "mlflow.trackingUri", "mlflow.database.host"):
        assert f"\n{key}: " in text


def test_the_schema_is_closed_and_knows_every_default():
    schema = json.loads((CHART / "values.schema.json").read_text())
    opened = []

    def compare(values: Any, part: dict[str, Any], path: str) -> None:
        part = schema["definitions"][part["$ref"].rpartition("/")[2]] if "$ref" in part else part
        if isinstance(values, dict) and part.get("type") == "object" and "properties" in part:
            assert part["additionalProperties"] is False, path
            known = {key for key, entry in part["properties"].items() if "$comment" not in entry}
            assert set(values) <= known, path
            for key, value in values.items():
                compare(value, part["properties"][key], f"{path}.{key}")
        elif isinstance(values, dict):
            opened.append(path.removeprefix("."))

    compare(yaml.safe_load((CHART / "values.yaml").read_text()), schema, "")
    kubernetes = (
        "podSecurityContext",
        "securityContext",
        "Annotations",
        "annotations",
        "Labels",
        "nodeSelector",
        "affinity",
    )
    assert [path for path in opened if not path.endswith((*kubernetes, "requests", "limits", "clusterFiles"))] == []


def test_everything_on_sets_every_key():
    """An option that no test renders is an option that nobody has tried."""

    def paths(values: Any, path: str = "") -> set[str]:
        if not isinstance(values, dict) or not values:
            return {path.removeprefix(".")}
        return {found for key, value in values.items() for found in paths(value, f"{path}.{key}")}

    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    given = paths(yaml.safe_load((CHART / "ci" / "everything-values.yaml").read_text()))
    left = {path for path in paths(defaults) if not any(g == path or g.startswith(f"{path}.") for g in given)}
    ours = ("podSecurityContext", "securityContext", "mlflow.resources", "publish.resources", "mlflow.podLabels")
    assert {path for path in left if not path.startswith((*ours, "publish.podLabels"))} == {
        "mlflow.trackingUri", "mlflow.secret.create", "mlflow.secret.name", "mlflow.artifacts.claim",
        "mlflow.podDisruptionBudget.enabled",
    }  # fmt: skip
