"""The compiled pipeline: it is the one in the tree, valid, and shows in Kubeflow what a user needs."""

from pathlib import Path

import pytest
import yaml
from kfp.components import load_component_from_text

from stillhouse.components.images import TRAIN_IMAGE
from stillhouse.pipelines.compiling import COMPILED, compiled_yaml
from stillhouse.pipelines.local import LocalSteps
from stillhouse.pipelines.train_and_deploy import train_and_deploy

GOLDEN = Path(__file__).resolve().parents[2] / "pipelines" / "compiled" / COMPILED


@pytest.fixture(scope="module")
def text() -> str:
    return compiled_yaml()


@pytest.fixture(scope="module")
def spec(text: str) -> dict:
    return next(yaml.safe_load_all(text))


def test_the_compiled_pipeline_in_the_tree_is_current(text: str):
    assert GOLDEN.read_text(encoding="utf-8") == text, "run `make docs` and commit what changed"


def test_kfp_loads_it_again(text: str):
    loaded = load_component_from_text(text)
    assert loaded.name == "stillhouse-train-and-deploy"


def test_tasks_have_display_names_and_the_release_s_image(spec: dict):
    dag = spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    names = {task["taskInfo"]["name"] for task in dag.values()}
    assert names == {"Inspect source", "Prepare data", "Fine-tune teacher", "Fine-tune ALBERT", "Distil student",
                     "Package teacher", "Package student", "Package ALBERT", "Evaluate and choose", "Register",
                     "Deploy"}  # fmt: skip
    images = {e["container"]["image"] for e in spec["deploymentSpec"]["executors"].values()}
    assert images == {TRAIN_IMAGE}


def test_what_must_not_be_cached_is_not(spec: dict):
    tasks = {**spec["components"]["comp-exit-handler-1"]["dag"]["tasks"], **spec["root"]["dag"]["tasks"]}
    cached = {
        task["taskInfo"]["name"]: task.get("cachingOptions", {}).get("enableCache", False)
        for task in tasks.values()
        if "dag" not in spec["components"][task["componentRef"]["name"]]
    }
    assert {name for name, on in cached.items() if not on} == {"Inspect source", "Register", "Deploy", "Notify"}


def test_cached_steps_take_the_fingerprint_or_the_version_of_their_code(spec: dict):
    tasks = spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    for name, task in tasks.items():
        if task.get("cachingOptions", {}).get("enableCache"):
            produced = task["inputs"]["parameters"]["code_version"]["taskOutputParameter"]
            assert produced["producerTask"] == "inspect-source", name
    fingerprint = tasks["prepare-data"]["inputs"]["parameters"]["fingerprint"]["taskOutputParameter"]
    assert fingerprint["outputParameterKey"] == "fingerprint"


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
    assert steps[:3] == ["inspect-source", "prepare-data", "finetune-teacher"]
    assert set(steps[3:8]) == {
        "distill-student",
        "finetune-albert",
        "package-teacher",
        "package-student",
        "package-albert",
    }
    assert steps[8:] == ["evaluate", "register", "deploy", "notify"]
