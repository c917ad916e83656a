"""The compiled pipeline: it is the one in the tree, valid, and shows in Kubeflow what a user needs."""

from pathlib import Path

import pytest
import yaml
from google.protobuf import json_format
from kfp.components import load_component_from_text
from kfp.kubernetes.kubernetes_executor_config_pb2 import KubernetesExecutorConfig
from kfp.pipeline_spec import pipeline_spec_pb2

from stillhouse.components.images import OPS_IMAGE, TRAIN_IMAGE
from stillhouse.pipelines.catalogue import PIPELINES, Pipeline
from stillhouse.pipelines.compiling import cluster_defaults, cluster_names, compiled_yaml
from stillhouse.pipelines.local import LocalSteps
from stillhouse.pipelines.train_and_deploy import train_and_deploy

COMPILED = Path(__file__).resolve().parents[2] / "pipelines" / "compiled"


@pytest.fixture(scope="module", params=["cpu", "gpu"])
def text(request: pytest.FixtureRequest) -> str:
    return (COMPILED / f"train_and_deploy-{request.param}.yaml").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def spec(text: str) -> dict:
    return next(yaml.safe_load_all(text))


@pytest.mark.parametrize("name", ["cpu", "gpu"])
@pytest.mark.parametrize("pipeline", PIPELINES.values(), ids=PIPELINES)
def test_the_compiled_pipeline_in_the_tree_is_current(pipeline: Pipeline, name: str):
    cluster, defaults, problems = cluster_defaults(name, pipeline)
    assert problems == []
    now = compiled_yaml(cluster, defaults, pipeline)
    kept = (COMPILED / f"{pipeline.identifier}-{name}.yaml").read_text(encoding="utf-8")
    assert kept == now, "run `make docs` and commit what changed"


def test_there_is_one_for_each_cluster():
    expected = {f"{pipeline.identifier}-{name}.yaml" for pipeline in PIPELINES.values() for name in cluster_names()}
    assert expected == {path.name for path in COMPILED.iterdir()}


def test_the_first_step_is_given_every_parameter(spec: dict):
    inspected = spec["components"]["comp-inspect-source"]["inputDefinitions"]["parameters"]
    assert set(inspected) - {"pipeline_run"} == set(spec["root"]["inputDefinitions"]["parameters"])


def test_kfp_loads_it_again(text: str):
    loaded = load_component_from_text(text)
    assert loaded.name == "stillhouse-train-and-deploy"


def test_it_is_a_pipeline_spec_and_a_platform_spec(text: str):
    pipeline, platform = yaml.safe_load_all(text)
    read = json_format.ParseDict(pipeline, pipeline_spec_pb2.PipelineSpec())
    executors = {name for name, e in read.deployment_spec.fields["executors"].struct_value.fields.items()}
    kubernetes = json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec()).platforms["kubernetes"]
    configured = kubernetes.deployment_spec.executors
    assert set(configured) == executors
    for name, config in configured.items():
        # The executor configuration is a free-form struct there; kfp-kubernetes knows its fields.
        json_format.ParseDict(json_format.MessageToDict(config), KubernetesExecutorConfig())
        assert config.fields["activeDeadlineSeconds"], name


def test_the_form_needs_data_two_columns_and_a_model_name_only(spec: dict):
    inputs = spec["root"]["inputDefinitions"]["parameters"]
    assert [name for name, given in inputs.items() if not given.get("isOptional")] == ["data"]
    assert inputs["deploy_target"]["defaultValue"] == "none"


def test_the_pipeline_s_description_lists_the_parameters(spec: dict):
    description = spec["pipelineInfo"]["description"]
    for name, given in spec["root"]["inputDefinitions"]["parameters"].items():
        assert f"- {name}: {given['description']}" in description


def leaf_tasks(spec: dict) -> dict[str, dict]:
    """Every task that runs something, at whatever depth."""
    dags = [spec["root"], *spec["components"].values()]
    tasks = {name: task for part in dags if "dag" in part for name, task in part["dag"]["tasks"].items()}
    return {name: task for name, task in tasks.items()
            if "dag" not in spec["components"][task["componentRef"]["name"]]}  # fmt: skip


def test_tasks_have_display_names_and_the_release_s_image(spec: dict):
    names = {task["taskInfo"]["name"] for task in leaf_tasks(spec).values()}
    assert names == {"Inspect source", "Prepare data", "Fine-tune teacher", "Fine-tune ALBERT", "Distil student",
                     "Fine-tune extra candidate", "Package extra candidate", "Package teacher", "Package student",
                     "Package ALBERT", "Fetch champion", "Evaluate and choose",
                     "Register", "Deploy", "Notify"}  # fmt: skip
    images = {e["container"]["image"] for e in spec["deploymentSpec"]["executors"].values()}
    assert images == {TRAIN_IMAGE, OPS_IMAGE}


def test_every_group_is_given_what_its_tasks_ask_for(spec: dict):
    for name, part in {"root": spec["root"], **spec["components"]}.items():
        given = set(part.get("inputDefinitions", {}).get("parameters", {}))
        for task in part.get("dag", {}).get("tasks", {}).values():
            asked = [p.get("componentInputParameter") for p in task.get("inputs", {}).get("parameters", {}).values()]
            assert set(filter(None, asked)) <= given, name


def test_all_but_the_inspection_is_left_out_where_the_source_has_not_changed(spec: dict):
    tasks = spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    assert set(tasks) == {"inspect-source", "condition-2"}
    condition = tasks["condition-2"]["triggerPolicy"]["condition"]
    assert condition.endswith("['pipelinechannel--inspect-source-Output'] == 'yes'")
    for name in ("inspect-source", "register", "deploy"):
        run = leaf_tasks(spec)[name]["inputs"]["parameters"]["pipeline_run"]
        assert run["runtimeValue"]["constant"] == "{{$.pipeline_job_uuid}}"


def test_what_must_not_be_cached_is_not(spec: dict):
    cached = {
        task["taskInfo"]["name"]: task.get("cachingOptions", {}).get("enableCache", False)
        for task in leaf_tasks(spec).values()
    }
    assert {name for name, on in cached.items() if not on} == {"Inspect source", "Register", "Deploy", "Notify"}


def test_cached_steps_take_the_fingerprint_or_the_version_of_their_code(spec: dict):
    tasks = leaf_tasks(spec)
    found = "pipelinechannel--inspect-source"
    for name, task in tasks.items():
        if task.get("cachingOptions", {}).get("enableCache"):
            version = task["inputs"]["parameters"]["code_version"]["componentInputParameter"]
            assert version.startswith(found) and version.endswith("_version"), name
    assert tasks["prepare-data"]["inputs"]["parameters"]["fingerprint"] == {
        "componentInputParameter": f"{found}-fingerprint"
    }
    champion = tasks["fetch-champion"]["inputs"]["parameters"]
    assert champion["champion_digest"] == {"componentInputParameter": f"{found}-champion_digest"}


def test_metrics_confusion_matrix_and_report_are_artifacts(spec: dict):
    outputs = spec["components"]["comp-evaluate"]["outputDefinitions"]["artifacts"]
    kinds = {name: artifact["artifactType"]["schemaTitle"] for name, artifact in outputs.items()}
    assert kinds["metrics"] == "system.Metrics"
    assert kinds["confusion"] == "system.ClassificationMetrics"
    assert kinds["report"] == "system.HTML"


def test_no_component_installs_anything(spec: dict):
    for executor in spec["deploymentSpec"]["executors"].values():
        assert "pip install" not in " ".join(executor["container"]["command"])


def test_steps_are_named_after_their_role_in_the_order_they_run():
    steps = list(LocalSteps(train_and_deploy.pipeline_spec).titles)
    assert steps[0] == "inspect-source"
    assert steps[1:4] == ["fetch-champion", "prepare-data", "finetune-teacher"]
    assert set(steps[4:9]) == {
        "distill-student",
        "finetune-albert",
        "package-teacher",
        "package-student",
        "package-albert",
    }
    assert steps[9:] == ["evaluate", "register", "deploy", "notify"]
