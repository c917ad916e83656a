"""Pretraining as a user does it: a corpus in, a checkpoint out, which is then fine-tuned."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from local_runs import Home, Run
from tiny_dataset import write_dataset

from stillhouse.artifacts import CorpusManifest, ModelManifest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(make_home: Callable[[str], Home]) -> Home:
    return make_home("pretraining")


def pretrain(home: Home, *arguments: str) -> Run:
    before = set(home.runs())
    done = home.stillhouse("pretrain", "--json", *arguments)
    (made,) = set(home.runs()) - before
    return Run(done.returncode, done.stdout, done.stderr, made)


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from stillhouse.data.demo import reviews

    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    texts = [text for text, _ in reviews(400, 3)]
    path.write_text("\n\n".join("\n".join(texts[i : i + 4]) for i in range(0, 400, 4)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def first(home: Home, documents: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    output = tmp_path_factory.mktemp("output") / "ours"
    run = pretrain(home, "--set", f"corpus={documents}", "--set", "validation_fraction=0.1", "--output", str(output))
    assert run.returncode == 0, run.stderr + run.stdout
    return run


def test_a_corpus_becomes_a_checkpoint_and_its_curves(first: Run, home: Home):
    said = json.loads(first.stdout)
    assert {step["id"]: step["state"] for step in said["steps"]} == dict.fromkeys(
        ("inspect-corpus", "prepare-corpus", "pretrain", "record-pretraining", "notify"), "done"
    )
    folder = Path(said["checkpoint"])
    manifest = ModelManifest.load(folder)
    manifest.verify(folder)
    assert (manifest.producer, manifest.family, manifest.task) == ("pretrain", "bert", "pretraining")
    assert manifest.metrics == said["metrics"]
    assert {"perplexity", "mlm_accuracy", "sentence_accuracy"} <= set(manifest.metrics)
    (corpus,) = home.folder.glob("artifacts/*/prepare-corpus/documents")
    # It has learned something: a vocabulary's size is the perplexity of one that knows nothing.
    assert manifest.metrics["perplexity"] < CorpusManifest.load(corpus).vocab_size / 2
    history = json.loads((folder / "history.json").read_text())
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses[-1] < losses[0]

    from stillhouse.registry import MlflowRegistry

    client = MlflowRegistry(f"sqlite:///{home.folder}/mlflow.db").client()
    logged = client.get_metric_history(said["mlflow_run"], "loss")
    assert [(point.step, point.value) for point in logged] == [
        (entry["step"], pytest.approx(entry["loss"])) for entry in history if "loss" in entry
    ]
    assert client.get_run(said["mlflow_run"]).data.params["objective"] == "mlm+nsp"


def test_an_equal_run_prepares_and_pretrains_nothing(first: Run, home: Home, documents: Path):
    settings = ("--set", f"corpus={documents}", "--set", "validation_fraction=0.1")
    os.utime(documents)  # touched, not changed
    again = pretrain(home, *settings)
    assert again.returncode == 0, again.stderr
    said = json.loads(again.stdout)
    assert again.steps("cached") == {"prepare-corpus", "pretrain"}
    assert (said["mlflow_run"], said["reused"]) == (json.loads(first.stdout)["mlflow_run"], True)
    assert Path(said["checkpoint"]).is_dir()


def test_the_checkpoint_is_fine_tuned_as_any_other(first: Run, tmp_path: Path):
    from stillhouse.training import FinetuneConfig, steps

    checkpoint = json.loads(first.stdout)["checkpoint"]
    config = FinetuneConfig(
        name="teacher", checkpoint=checkpoint, epochs=6, learning_rate=2e-3, max_length=32, early_stopping_patience=0
    )
    dataset = write_dataset(tmp_path / "dataset", 256)
    manifest = steps.finetune(config, dataset_dir=dataset, output_dir=tmp_path / "model")
    assert (manifest.recipe, manifest.family) == ("fine-tuned", "bert")
    assert manifest.metrics["accuracy"] > 0.8
    pretrained = ModelManifest.load(checkpoint)
    assert manifest.parameters < pretrained.parameters  # the heads of the language model are gone
