"""Extra candidates in the pipeline: the loop, what is made where there are none, and the steps that are shown."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from stillhouse.models.candidates import PARAMETER
from stillhouse.pipelines.local import LocalSteps, _CacheHits, local_defaults
from stillhouse.pipelines.parameters import arguments_for
from stillhouse.pipelines.remote.runs import _Reporter, submission_problems
from stillhouse.pipelines.train_and_deploy import train_and_deploy
from stillhouse.progress import EVENTS_VARIABLE, emit

COMPILED = Path(__file__).resolve().parents[2] / "pipelines" / "compiled"
NAMES = ["roberta", "xlnet"]


@pytest.fixture(scope="module")
def spec() -> dict[str, Any]:
    return next(yaml.safe_load_all((COMPILED / "train_and_deploy-gpu.yaml").read_text(encoding="utf-8")))


def groups(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Tasks by group."""
    parts = {"root": spec["root"], **spec["components"]}
    return {name: part["dag"]["tasks"] for name, part in parts.items() if "dag" in part}


@pytest.fixture(scope="module")
def loop(spec: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The one loop: its group's name, and its task."""
    (found,) = [
        (task["componentRef"]["name"], task)
        for tasks in groups(spec).values()
        for task in tasks.values()
        if "parameterIterator" in task
    ]
    return found


def test_the_loop_is_over_texts_that_the_inspection_found(spec: dict[str, Any], loop: tuple[str, dict[str, Any]]):
    group, task = loop
    items = "pipelinechannel--inspect-source-candidates"
    assert task["parameterIterator"] == {"itemInput": f"{items}-loop-item", "items": {"inputParameter": items}}
    assert "iteratorPolicy" not in task  # on a cluster all at once
    tasks = groups(spec)[group]
    assert {one["taskInfo"]["name"] for one in tasks.values()} == {
        "Fine-tune extra candidate",
        "Package extra candidate",
    }
    (finetune,) = [one for one in tasks.values() if one["taskInfo"]["name"].startswith("Fine-tune")]
    assert finetune["inputs"]["parameters"]["checkpoint"] == {"componentInputParameter": f"{items}-loop-item"}
    assert "teacher" not in finetune["inputs"]["artifacts"]  # so that another teacher does not train it anew
    # kfp hands the items of some loops up to the groups around, which then lack an input (kubeflow/pipelines#13273).
    for name, part in {"root": spec["root"], **spec["components"]}.items():
        given = part.get("inputDefinitions", {}).get("parameters", {})
        assert name == group or not [key for key in given if "loop-item" in key], name


def test_the_loop_is_given_what_a_run_says_of_the_machines(spec: dict[str, Any], loop: tuple[str, dict[str, Any]]):
    given = set(spec["components"][loop[0]]["inputDefinitions"]["parameters"])
    for name in ("node_selector", "tolerations", "train_cpu", "train_memory", "gpu_type", "inspect-source-gpus"):
        assert f"pipelinechannel--{name}" in given, name


def test_a_run_takes_one_of_two_ways(spec: dict[str, Any], loop: tuple[str, dict[str, Any]]):
    ways = {
        name: tasks
        for name, tasks in groups(spec).items()
        if any(t["taskInfo"]["name"] == "Register" for t in tasks.values())
    }
    conditions = {}
    for name, tasks in ways.items():
        (task,) = [t for group in groups(spec).values() for t in group.values() if t["componentRef"]["name"] == name]
        conditions[task["triggerPolicy"]["condition"].rpartition(" == ")[2]] = tasks
        titles = sorted(t["taskInfo"]["name"] for t in tasks.values() if "iterator" not in str(t))
        assert {"Evaluate and choose", "Register", "Deploy"} <= set(titles)
    assert set(conditions) == {"'yes'", "'no'"}
    for answer, tasks in conditions.items():
        by_title = {task["taskInfo"]["name"]: task for task in tasks.values()}
        evaluated = by_title["Evaluate and choose"]["inputs"]["artifacts"]
        registered = by_title["Register"]["inputs"]["artifacts"]
        if answer == "'no'":
            assert not [name for name in (*evaluated, *registered) if name.startswith("extra")]
            continue
        (name,) = [name for name, task in tasks.items() if task["componentRef"]["name"] == loop[0]]
        for inputs, wanted in ((evaluated, {"extra_packages"}), (registered, {"extra_packages", "extra_models"})):
            extras = {key: value for key, value in inputs.items() if key.startswith("extra")}
            assert set(extras) == wanted
            assert {value["taskOutputArtifact"]["producerTask"] for value in extras.values()} == {name}


def test_on_one_machine_they_come_one_after_the_other():
    tasks = [task for part in train_and_deploy.pipeline_spec.components.values() for task in part.dag.tasks.values()]
    (looped,) = [task for task in tasks if task.WhichOneof("iterator")]
    assert looped.iterator_policy.parallelism_limit == 1


def test_each_candidate_has_steps_of_its_own():
    plain = LocalSteps(train_and_deploy.pipeline_spec).titles
    assert not [title for title in plain.values() if "extra" in title]
    steps = LocalSteps(train_and_deploy.pipeline_spec, NAMES)
    added = {step_id: title for step_id, title in steps.titles.items() if step_id not in plain}
    assert added == {"finetune-roberta": "Fine-tune roberta", "finetune-xlnet": "Fine-tune xlnet",
                     "package-roberta": "Package roberta", "package-xlnet": "Package xlnet"}  # fmt: skip
    order = list(steps.titles)
    assert order.index("package-albert") < order.index("finetune-roberta") < order.index("package-xlnet")
    assert order[order.index("package-xlnet") + 1 :] == ["evaluate", "register", "deploy", "notify"]


def test_a_cache_hit_in_the_loop_is_that_of_the_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    events = tmp_path / "events.jsonl"
    monkeypatch.setenv(EVENTS_VARIABLE, str(events))
    steps = LocalSteps(train_and_deploy.pipeline_spec, [*NAMES, "bart"])
    hits = _CacheHits(steps)

    def hit(task: str) -> None:
        hits.handle(logging.LogRecord("kfp", logging.INFO, "", 0, f"Task {task} cache hit (key=1); skipping", (), None))

    looped = [name for name in steps._turns if steps.turns_of(name)[0] == "finetune-roberta"]
    hit(looped[0])
    emit("finetune-xlnet", "started")
    hit(looped[0])
    hit("prepare-data")
    said = [json.loads(line) for line in events.read_text().splitlines()]
    assert [(event["step"], event["event"]) for event in said] == [
        ("finetune-roberta", "cached"), ("finetune-xlnet", "started"), ("finetune-bart", "cached"),
        ("prepare-data", "cached"),
    ]  # fmt: skip


def test_folders_are_named_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    values, problems = arguments_for("tiny", [])
    assert problems == []
    items = ["models/roberta", "mine=x", "hub://a/b", 7, "=", "minilm://"]
    assert local_defaults({**values, PARAMETER: items})[PARAMETER] == [
        f"roberta={tmp_path}/models/roberta", f"mine={tmp_path}/x", "hub://a/b", 7, "=", "minilm://"
    ]  # fmt: skip


def test_what_is_on_this_machine_is_told_before_a_run_on_kubeflow():
    values, _ = arguments_for("base", ["data=s3://bucket/rows.csv", "tracking_uri=https://mlflow"])
    items = ["models/roberta", "/models/bart", "hub://a/b", "minilm://", "teacher=hub://a/b", "scratch://gpt9"]
    found = [p for p in submission_problems({**values, PARAMETER: items}) if p.where == PARAMETER]
    said = "\n".join(problem.what for problem in found)
    assert len(found) == 3
    for part in ("'models/roberta' is on this machine", "'teacher'", "scratch://gpt9"):
        assert part in said


def moment(second: int) -> datetime:
    return datetime(2026, 1, 1, 0, 0, second, tzinfo=timezone.utc)


def turn(state: str, begin: int = 1, end: int = 0, *, error: str = "") -> SimpleNamespace:
    """What Kubeflow says of one turn of the loop's fine-tuning."""
    return SimpleNamespace(
        display_name="Fine-tune extra candidate", state=state, start_time=moment(begin),
        end_time=moment(end) if end else None, child_tasks=[], task_id=f"t{begin}", parent_task_id="", pod_name="",
        state_history=[], error=SimpleNamespace(message=error) if error else None,
    )  # fmt: skip


@pytest.fixture
def reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Tells the reporter what Kubeflow says, and returns what is new."""
    events = tmp_path / "events.jsonl"
    events.touch()
    monkeypatch.setenv(EVENTS_VARIABLE, str(events))
    reporter = _Reporter(LocalSteps(train_and_deploy.pipeline_spec, NAMES, together=True))

    def report(*turns: Any) -> list[tuple[str, str]]:
        before = len(events.read_text().splitlines())
        reporter.report(SimpleNamespace(run_details=SimpleNamespace(task_details=list(turns))))
        new = [json.loads(line) for line in events.read_text().splitlines()[before:]]
        return [(event["step"], event["event"]) for event in new]

    yield report


def test_on_kubeflow_a_step_of_the_loop_ends_with_its_last_turn(reported: Any):
    step = "finetune-extra"
    assert reported() == []
    assert reported(turn("RUNNING")) == [(step, "started")]
    assert reported(turn("SUCCEEDED", 1, 5), turn("RUNNING", 2)) == []
    assert reported(turn("SUCCEEDED", 1, 5), turn("SUCCEEDED", 2, 9)) == [(step, "finished")]


def test_on_kubeflow_a_step_of_the_loop_fails_with_any_turn(reported: Any):
    assert reported(turn("RUNNING"), turn("FAILED", 2, 3, error="no memory")) == [
        ("finetune-extra", "started"), ("finetune-extra", "failed")
    ]  # fmt: skip
