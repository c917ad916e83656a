"""Everything wrong with a run's parameters and source, at once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import BartConfig

from stillhouse.errors import InputError
from stillhouse.inspection import inspect_run, record_unchanged
from stillhouse.inspection.inspect import run_digest
from stillhouse.pipelines.parameters import arguments_for
from stillhouse.registry import MlflowRegistry

SCRATCH = "scratch://bert?num_hidden_layers=1&hidden_size=16&num_attention_heads=2&intermediate_size=16"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    rows = [f"text number {i},{'good' if i % 2 else 'bad'}" for i in range(60)]
    path.write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
    return path


def parameters(source: Path, **changes: Any) -> dict[str, Any]:
    values, problems = arguments_for("tiny", [f"data={source}", f"teacher={SCRATCH}"])
    assert problems == []
    return {**values, "tracking_uri": f"sqlite:///{source.parent}/mlflow.db", **changes}


def test_a_sound_run_gets_a_fingerprint_and_versions(source: Path):
    found = inspect_run(parameters(source))
    assert found.fingerprint
    assert set(found.versions) == {"prepare_data", "train", "package", "evaluate"}
    assert inspect_run(parameters(source)).fingerprint == found.fingerprint
    source.write_text(source.read_text() + "one more,good\n", encoding="utf-8")
    assert inspect_run(parameters(source)).fingerprint != found.fingerprint


def test_every_parameter_that_will_not_do_is_named(source: Path):
    wrong = {
        "max_train_rows": -1, "validation_fraction": 2.0, "teacher": "/nowhere", "albert": "hub://a/b/c",
        "student": "teacher://bert",
        "teacher_epochs": 0.0, "student_learning_rate": 7.0, "albert_embedding_size": 0, "batch_size": 0,
        "distill_layers": "x", "distill_temperature": 0.0, "precisions": "int4", "max_text_bytes": 0,
        "student_prune_heads": 1.0, "student_prune_ffn": -0.5, "student_sparsity": 2.0, "prune_epochs": 0.0,
        "calibration_rows": 0, "bootstrap_samples": 50, "latency_samples": 9, "throughput_rows": 0,
        "policy": "best", "min_retention": 0.0, "quality_metric": "bleu", "model_name": "a/b", "deploy_target": "moon",
        "tracking_uri": "ftp://x", "experiment": " ", "promotion": "sometimes", "significance": 1.5,
        "deploy_conflict": "fight", "checkpoint_dir": "s4://bucket",
    }  # fmt: skip
    with pytest.raises(InputError) as caught:
        inspect_run(parameters(source, **wrong))
    assert {problem.where for problem in caught.value.problems} == set(wrong)
    assert all(problem.what for problem in caught.value.problems)
    # Each is said once, although several steps share it.
    assert len(caught.value.problems) == len({str(p) for p in caught.value.problems})


def test_a_deployment_to_kubernetes_is_checked_before_the_training(source: Path, monkeypatch: pytest.MonkeyPatch):
    wrong = {
        "serving_namespace": "My_Space", "canary_weight": 101, "canary_minutes": 0, "rollout_timeout_minutes": 0,
        "prometheus_url": "prometheus:9090",
    }  # fmt: skip
    values = {"replica": 2, "model": {"version": "7"}, "mlflow": {"trackingUri": "http://me:hunter2@mlflow:5000"}}
    with pytest.raises(InputError) as caught:
        inspect_run(parameters(source, **wrong, serving_values=values, deploy_target="kubernetes"))
    named = {"serving_values.replica", "serving_values.model", "serving_values.mlflow.trackingUri"}
    assert {problem.where for problem in caught.value.problems} == {*wrong, *named}
    assert "hunter2" not in str(caught.value)
    # Pods have no access to a file of this machine; and where there is helm, it is asked what it thinks of the values.
    with pytest.raises(InputError, match="tracking_uri: is a database, from which pods cannot fetch a package"):
        inspect_run(parameters(source, deploy_target="kubernetes"))
    served = {"mlflow": {"trackingUri": "http://mlflow.mlops:5000"}}
    monkeypatch.setenv("STILLHOUSE_HELM", "/nowhere/helm")
    assert inspect_run(parameters(source, deploy_target="kubernetes", serving_values=served)).proceed == "yes"


def test_the_chart_is_asked_where_there_is_helm(source: Path, monkeypatch: pytest.MonkeyPatch, helm: Path):
    monkeypatch.setenv("STILLHOUSE_HELM", str(helm))
    served = {"mlflow": {"trackingUri": "http://mlflow.mlops:5000"}, "replicas": -1}
    with pytest.raises(InputError, match=r"serving_values\.replicas: Must be greater than or equal to"):
        inspect_run(parameters(source, deploy_target="kubernetes", serving_values=served))


def test_passwords_have_no_place_in_a_parameter(source: Path):
    secret = "s3://AKIA:hunter2/x@bucket/rows"
    wrong = {"data": secret, "validation_data": secret, "test_data": "https://hunter2@host/x", "checkpoint_dir": secret,
             "tracking_uri": "postgresql://host/db?password=hunter2"}  # fmt: skip
    with pytest.raises(InputError) as caught:
        inspect_run(parameters(source, **wrong, policy="best"))
    assert {problem.where for problem in caught.value.problems} == {*wrong, "policy"}
    assert "hunter2" not in str(caught.value)


def test_a_model_is_not_named_as_the_registry_s_queues_are(source: Path):
    with pytest.raises(InputError, match=r"does not end in \.deploy-lock"):
        inspect_run(parameters(source, model_name="reviews.deploy-lock"))


def test_parameters_and_source_are_reported_together(source: Path):
    with pytest.raises(InputError) as caught:
        inspect_run(parameters(source, text_column="txt", policy="best"))
    text = str(caught.value)
    assert "txt" in text
    assert "policy" in text


def test_an_unknown_task_does_not_hide_the_rest(source: Path):
    with pytest.raises(InputError) as caught:
        inspect_run(parameters(source, task="juggling", policy="best"))
    assert {"task", "policy"} <= {problem.where for problem in caught.value.problems}


@pytest.fixture
def champion(source: Path, new_mlflow: Callable[[Path], str]) -> MlflowRegistry:
    """A registry whose model `tiny` has a champion, version 1, that was trained on the source as it is."""
    found = inspect_run(parameters(source))
    registry = MlflowRegistry(new_mlflow(source.parent))
    client = registry.client()
    client.create_registered_model("tiny")
    tags = {"manifest_digest": "d" * 64, "dataset_fingerprint": found.fingerprint, "run_digest": found.run_digest}
    client.create_model_version("tiny", "stillhouse:/x", tags={f"stillhouse.{k}": v for k, v in tags.items()})
    registry.set_alias("tiny", "champion", "1")
    return registry


def test_a_run_knows_its_champion_and_whether_to_go_on(source: Path, champion: MlflowRegistry):
    # What this very run made is nothing to compare with, so that a repeated run finds all its steps in the cache.
    same = inspect_run(parameters(source))
    assert (same.champion_version, same.champion_digest, same.proceed) == ("", "", "yes")
    other = inspect_run(parameters(source, student_epochs=0.5))
    assert (other.champion_version, other.champion_digest, other.proceed) == ("1", "d" * 64, "yes")

    asked = parameters(source, skip_unchanged=True, pipeline_run="run-5", run_name="nightly")
    stopped = inspect_run(asked)
    assert stopped.proceed == "no" and "since the champion, version 1, was trained" in stopped.unchanged
    assert record_unchanged(stopped, asked) == {"outcome": "unchanged", "outcome_reason": stopped.unchanged}
    record = champion.run_record("run-5")
    assert record is not None and (record.outcome, record.model_name) == ("unchanged", "tiny")

    source.write_text(source.read_text() + "one more,good\n", encoding="utf-8")
    changed = inspect_run(parameters(source, skip_unchanged=True))
    assert (changed.proceed, changed.champion_version) == ("yes", "1")


def test_only_what_shapes_the_result_is_in_the_digest(source: Path):
    values = parameters(source)
    digest = run_digest(values, "f", {"train": "1"})
    for change in ({"grpc_port": 9}, {"tracking_uri": "x"}, {"train_cpu": "9"}, {"promotion": "always"},
                   {"serving_values": {"replicas": 3}}, {"canary_weight": 10}):  # fmt: skip
        assert run_digest({**values, **change}, "f", {"train": "1"}) == digest, change
    for change in ({"seed": 1}, {"data": "x"}, {"policy": "memory"}, {"gpus_per_node": 2}, {"some_new_one": 1}):
        assert run_digest({**values, **change}, "f", {"train": "1"}) != digest, change
    assert run_digest(values, "g", {"train": "1"}) != digest
    assert run_digest(values, "f", {"train": "2"}) != digest


def test_a_registry_out_of_reach_is_told_with_everything_else(source: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InputError) as caught:
        inspect_run(parameters(source, tracking_uri="http://127.0.0.1:1", policy="best"))
    assert {problem.where for problem in caught.value.problems} == {"tracking_uri", "policy"}


def test_a_student_must_fit_the_teacher_before_anything_is_trained(source: Path):
    assert inspect_run(parameters(source, student="teacher://albert?layer_sharing=ffn")).proceed == "yes"
    narrow = SCRATCH.replace("hidden_size=16", "hidden_size=8")
    assert inspect_run(parameters(source, student=narrow)).proceed == "yes"
    only_cosine = {"distill_hard_weight": 0.0, "distill_soft_weight": 0.0}
    with pytest.raises(InputError, match=r"student: .* there is nothing to learn from"):
        inspect_run(parameters(source, student=narrow, **only_cosine))
    with pytest.raises(InputError, match=r"distill_layers: .* names 2 layers, and the student has 1"):
        deep = SCRATCH.replace("layers=1", "layers=2")
        inspect_run(parameters(source, student=narrow, teacher=deep, distill_layers="1,2"))
    with pytest.raises(InputError, match=r"student: .* the teacher's is yet to be trained"):
        inspect_run(parameters(source, student="minilm://"))
    with pytest.raises(InputError, match=r"student: .* is of the family 'bart'"):
        inspect_run(parameters(source, student=bart(source.parent / "bart")))


def bart(folder: Path) -> str:
    BartConfig(d_model=16).save_pretrained(folder)
    (folder / "model.safetensors").touch()
    return str(folder)
