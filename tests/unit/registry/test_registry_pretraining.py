"""What a pretraining leaves in MLflow, and where its checkpoint is copied to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from object_stores import s3

from stillhouse.artifacts import CorpusManifest, CorpusSplit, ModelManifest
from stillhouse.errors import InputError
from stillhouse.progress import Step
from stillhouse.registry import MlflowRegistry, PretrainingRecord
from stillhouse.registry.pretraining import copy_checkpoint

STEP = Step("record-pretraining")
HISTORY = [
    {"step": 10, "loss": 6.5, "learning_rate": 1e-4},
    {"step": 20, "loss": 5.25, "learning_rate": 5e-5},
    {"step": 20, "eval_loss": 5.5, "eval_perplexity": 244.7, "note": "not a number", "best": True},
]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    split = CorpusSplit(documents=9, sentences=30, tokens=400, shards=1)
    CorpusManifest(
        producer="prepare-corpus", corpus="s3://bucket/corpus/", text_column="text", tokenizer="train://wordpiece",
        vocab_size=100, splits={"train": split, "validation": split}, fingerprint="f", validation_fraction=0.5, seed=1,
    ).save(folder)  # fmt: skip
    return folder


def write_model(folder: Path, weights: bytes = b"weights") -> Path:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "history.json").write_text(json.dumps(HISTORY))
    ModelManifest(
        producer="pretrain", name="ours", task="pretraining", recipe="from scratch", family="bert", label_names=[],
        parameters=12_345, max_length=64, hyperparameters={"steps": 20, "objective": "mlm+nsp", "long": "x" * 7000},
        metrics={"perplexity": 244.7, "mlm_accuracy": 0.25},
    ).save(folder)  # fmt: skip
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


@pytest.fixture
def registry(new_mlflow: Callable[[Path], str], tmp_path: Path) -> MlflowRegistry:
    """An empty registry."""
    return MlflowRegistry(new_mlflow(tmp_path / "state"))


def test_settings_and_curves_become_a_run(registry: MlflowRegistry, corpus: Path, model: Path):
    config = PretrainingRecord(model_name="ours", experiment="pre", run_name="tonight", pipeline_run="run-1")
    recorded = registry.record_pretraining(config, corpus_dir=corpus, model_dir=model, step=STEP)
    assert (recorded.checkpoint, recorded.reused) == (str(model), False)
    client = registry.client()
    run = client.get_run(recorded.run_id)
    assert (run.info.run_name, run.info.status) == ("tonight", "FINISHED")
    assert client.get_experiment(run.info.experiment_id).name == "pre"
    parameters = run.data.params
    assert (parameters["steps"], parameters["objective"], parameters["parameters"]) == ("20", "mlm+nsp", "12345")
    assert (parameters["corpus.corpus"], parameters["corpus.vocab_size"]) == ("s3://bucket/corpus/", "100")

    def curve(name: str) -> list[tuple[int, float]]:
        return [(point.step, point.value) for point in client.get_metric_history(recorded.run_id, name)]

    assert curve("loss") == [(10, 6.5), (20, 5.25)]
    assert curve("eval_perplexity") == [(20, 244.7)]
    assert set(run.data.metrics) == {"loss", "learning_rate", "eval_loss", "eval_perplexity"}
    files = {entry.path for entry in client.list_artifacts(recorded.run_id)}
    assert files == {"model.json", "history.json", "corpus.json"}
    record = registry.run_record("run-1")
    assert record is not None and (record.outcome, record.model_name) == ("pretrained", "ours")
    assert record.reason == "A bert of 12,345 parameters, from scratch; held out: mlm accuracy 0.25, perplexity 244.7."
    assert recorded.result()["metrics"]["perplexity"] == 244.7


def test_the_same_checkpoint_is_recorded_once(
    registry: MlflowRegistry, corpus: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def once(number: int, folder: Path) -> Any:
        config = PretrainingRecord(model_name="ours", pipeline_run=f"run-{number}")
        return registry.record_pretraining(config, corpus_dir=corpus, model_dir=folder, step=STEP)

    with monkeypatch.context() as patch:  # what broke off on the way counts for nothing
        patch.setattr("stillhouse.registry.pretraining._log_curves", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            once(0, model)
    first, second = once(1, model), once(2, model)
    assert (second.run_id, first.reused, second.reused) == (first.run_id, False, True)
    record = registry.run_record("run-2")
    assert record is not None and record.run_id != first.run_id
    assert (record.outcome, record.tags["pretraining_run_id"]) == ("pretrained", first.run_id)
    other = once(3, write_model(tmp_path / "other", b"other weights"))
    assert other.run_id != first.run_id and not other.reused
    runs = registry.client().search_runs([registry._experiment("stillhouse-pretraining")])
    statuses = [run.info.status for run in runs]
    assert sorted(statuses) == ["FAILED", "FINISHED", "FINISHED", "FINISHED"]


def test_a_long_history_fits_into_the_server_s_requests(
    registry: MlflowRegistry, corpus: Path, model: Path, monkeypatch: pytest.MonkeyPatch
):
    from mlflow import MlflowClient
    from mlflow.utils.validation import MAX_METRICS_PER_BATCH

    sizes: list[int] = []
    real = MlflowClient.log_batch

    def counted(client: Any, run_id: str, metrics: Any = (), **rest: Any) -> Any:
        sizes.append(len(metrics))  # a database file takes any number
        return real(client, run_id, metrics=metrics, **rest)

    monkeypatch.setattr(MlflowClient, "log_batch", counted)
    entries = [{"step": step, "loss": 1 / step} for step in range(1, 2502)]
    (model / "history.json").write_text(json.dumps(entries))
    recorded = registry.record_pretraining(
        PretrainingRecord(model_name="ours"), corpus_dir=corpus, model_dir=model, step=STEP
    )
    assert len(registry.client().get_metric_history(recorded.run_id, "loss")) == 2501
    assert sum(sizes) == 2501 and max(sizes) <= MAX_METRICS_PER_BATCH


def test_a_copy_takes_the_place_of_an_earlier_one_and_of_nothing_else(model: Path, tmp_path: Path):
    target = tmp_path / "deep" / "ours"
    assert copy_checkpoint(model, str(target)) == str(target)
    ModelManifest.load(target).verify(target)
    newer = write_model(tmp_path / "newer", b"newer weights")
    (target / "leftover.bin").write_bytes(b"of the earlier one")
    copy_checkpoint(newer, str(target))
    ModelManifest.load(target).verify(target)
    assert (target / "model.safetensors").read_bytes() == b"newer weights"
    assert [path.name for path in target.parent.iterdir()] == ["ours"]
    (thesis := tmp_path / "thesis").mkdir()
    (thesis / "chapter-1.tex").write_text("…")
    for place in (thesis, thesis / "chapter-1.tex"):
        with pytest.raises(InputError, match="output"):
            copy_checkpoint(model, str(place))
    with pytest.raises(InputError, match="cannot be written"):
        copy_checkpoint(model, str(thesis / "chapter-1.tex" / "inside"))
    assert (thesis / "chapter-1.tex").read_text() == "…"


def test_a_copy_goes_to_an_object_store(model: Path, tmp_path: Path):
    import s3fs

    with s3("models"):
        files = s3fs.S3FileSystem()
        assert copy_checkpoint(model, "s3://models/ours/") == "s3://models/ours"
        files.pipe_file("models/ours/leftover.bin", b"of the earlier one")
        copy_checkpoint(write_model(tmp_path / "newer", b"newer weights"), "s3://models/ours")
        s3fs.S3FileSystem.clear_instance_cache()
        found = {path.rpartition("/")[2] for path in s3fs.S3FileSystem().find("models/ours")}
        assert found == {"model.json", "model.safetensors", "history.json"}
        assert s3fs.S3FileSystem().cat_file("models/ours/model.safetensors") == b"newer weights"
        files.pipe_file("models/thesis/chapter-1.tex", b"...")
        with pytest.raises(InputError, match="holds other files"):
            copy_checkpoint(model, "s3://models/thesis")


def test_every_value_at_fault_is_named(registry: MlflowRegistry, corpus: Path, model: Path):
    config = PretrainingRecord(model_name=" ", experiment="", output="https://host/x")
    with pytest.raises(InputError) as caught:
        registry.record_pretraining(config, corpus_dir=corpus, model_dir=model, step=STEP)
    assert {problem.where for problem in caught.value.problems} == {"model_name", "experiment", "output"}
