"""Pretraining in the processes and pods that fine-tuning and distillation train in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stillhouse.artifacts import CorpusManifest, ModelManifest
from stillhouse.errors import InputError
from stillhouse.pretraining import CorpusConfig, PretrainConfig, prepare_corpus
from stillhouse.progress import EVENTS_VARIABLE, Step
from stillhouse.training import DistillationSettings, DistillConfig, FinetuneConfig, launch
from stillhouse.training.scale import ScaleConfig
from stillhouse.training.staging import Place, Work

SCRATCH = "scratch://bert?num_hidden_layers=2&hidden_size=32&num_attention_heads=2&intermediate_size=64"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    documents = [f"Day {i} was fine. The {i % 7} of us walked. Then it rained. We slept well." for i in range(60)]
    (folder / "days.txt").write_text("\n\n".join(documents), encoding="utf-8")
    config = CorpusConfig(
        corpus=str(folder / "days.txt"), tokenizer="train://wordpiece?vocab_size=200", validation_fraction=0.2
    )
    prepare_corpus(config, output_dir=folder / "corpus")
    return folder / "corpus"


def settings(**changes: Any) -> PretrainConfig:
    given: dict[str, Any] = {"model": SCRATCH, "sequence_length": 32, "steps": 6, "batch_size": 4, "evaluations": 2}
    return PretrainConfig(**{**given, **changes})


@pytest.mark.parametrize(
    "config",
    [
        settings(objective="mlm+sop", layers="1,2", checkpoint_dir="s3://bucket"),
        FinetuneConfig(name="albert", checkpoint="teacher://", distillation=DistillationSettings(soft=0.5)),
        DistillConfig(name="student", distillation=DistillationSettings(word_dropout=0)),
    ],
    ids=lambda config: type(config).__name__,
)
def test_the_work_is_read_as_it_was_written(config: Any):
    work = Work(config=config, step="x", nodes=2, processes=4, inputs={"corpus": "digest"})
    assert Work.from_json(json.loads(json.dumps(work.to_json()))) == work


def test_several_machines_are_refused_where_there_is_one(corpus: Path, tmp_path: Path):
    for name, value in (("num_nodes", 2), ("gpus_per_node", 99)):
        scale = ScaleConfig(checkpoint_dir=str(tmp_path / "c"), **{name: value})
        with pytest.raises(InputError, match=name):
            launch.pretrain(settings(), scale=scale, corpus_dir=corpus, output_dir=tmp_path / "x", step=Step("x"))


def test_a_train_job_gets_the_corpus_and_gives_the_model_back(
    corpus: Path, tmp_path: Path, kubernetes: Any, bucket: str
):
    place = f"{bucket}/{tmp_path.name}"
    seen: list[Work] = []

    def machines(job: dict[str, Any]) -> None:
        meeting = Place(job["spec"]["trainer"]["command"][-1])
        seen.append(Work.from_json(meeting.read("work.json")))
        meeting.get("corpus", tmp_path / "corpus")
        made = tmp_path / "made"
        made.mkdir()
        (made / "model.safetensors").write_bytes(b"weights")
        ModelManifest(
            producer="pretrain", name="Ours, v2", task="pretraining", recipe="x", family="bert", label_names=[],
            parameters=1, max_length=32, hyperparameters={}, metrics={"perplexity": 2.5},
        ).save(made)  # fmt: skip
        meeting.put("model", made)
        kubernetes.set_condition(job["metadata"]["name"], "Complete")

    kubernetes.trainer = machines
    config = settings(name="Ours, v2", checkpoint_dir=place)
    work = Work(
        config=config, step="pretrain", nodes=2, processes=1, inputs={"corpus": CorpusManifest.digest(corpus)}
    )  # fmt: skip
    manifest = launch.train_under_trainer(
        work, inputs={"corpus": corpus}, output_dir=tmp_path / "model", step=Step("pretrain"),
        scale=ScaleConfig(num_nodes=2, checkpoint_dir=place), cluster=kubernetes.config, poll_s=0.02,
    )  # fmt: skip
    assert manifest.metrics == {"perplexity": 2.5}
    assert [work.config for work in seen] == [config]
    assert CorpusManifest.digest(tmp_path / "corpus") == CorpusManifest.digest(corpus)
    # Whatever the checkpoint is called, its job has a name that Kubernetes takes.
    (name,) = {path.rpartition("/")[2] for method, path in kubernetes.calls if method == "DELETE"}
    assert name.startswith("stillhouse-pretrain-") and len(name) <= 40


@pytest.mark.slow
def test_two_processes_of_this_machine_pretrain_together(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv(EVENTS_VARIABLE, str(tmp_path / "events.jsonl"))
    config = settings(checkpoint_dir=str(tmp_path / "checkpoints"))
    work = Work(
        config=config, step="pretrain", nodes=1, processes=2, inputs={"corpus": CorpusManifest.digest(corpus)}
    )  # fmt: skip
    # This machine may have no GPUs to count, so what follows the count is called.
    manifest = launch._train_here(work, inputs={"corpus": corpus}, output_dir=tmp_path / "model")
    manifest.verify(tmp_path / "model")
    assert (manifest.hyperparameters["processes"], manifest.inputs) == (2, dict(work.inputs))
    history = json.loads((tmp_path / "model" / "history.json").read_text())
    assert history[-1]["step"] == 6
    # One process alone tells how far it is.
    done = [json.loads(line)["done"] for line in (tmp_path / "events.jsonl").open()]
    assert done == sorted(set(done)) and done[-1] == 6
