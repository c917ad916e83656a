"""Everything wrong with a pretraining's parameters and corpus, at once; and what its caching goes by."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from stillhouse.errors import InputError
from stillhouse.inspection.pretraining import corpus_config, inspect_pretraining, pretrain_config
from stillhouse.models import checkpoints
from stillhouse.models.references import parse_reference
from stillhouse.pipelines.catalogue import PRETRAIN
from stillhouse.pipelines.parameters import arguments_for

SCRATCH = (
    "scratch://bert?num_hidden_layers=2&hidden_size=16&num_attention_heads=2&intermediate_size=16"
    "&max_position_embeddings=64"
)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    documents = [f"The {i}th document is short. It says so itself. Nothing follows." for i in range(20)]
    path.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT in a folder, with its tokenizer."""
    folder = tmp_path_factory.mktemp("model") / "bert"
    tokenizer = checkpoints.train_tokenizer(["a document of a few words"], 100, 64)
    model = checkpoints.model_from_scratch(parse_reference(SCRATCH, "model"), "model", "AutoModel", {}, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def parameters(source: Path, **changes: Any) -> dict[str, Any]:
    values, problems = arguments_for("tiny", [f"corpus={source}", f"model={SCRATCH}"], pipeline=PRETRAIN)
    assert problems == []
    return {**values, "tracking_uri": f"sqlite:///{source.parent}/mlflow.db", **changes}


def wrong(given: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(InputError) as caught:
        inspect_pretraining(given)
    # Each is said once, although several checks come to it.
    assert len(caught.value.problems) == len({str(problem) for problem in caught.value.problems})
    assert all(problem.what for problem in caught.value.problems)
    return {problem.where: str(problem) for problem in caught.value.problems}


def test_the_settings_of_both_steps_are_the_parameters_of_the_same_names(corpus: Path):
    given = parameters(corpus, model_name="ours", seed=7)
    assert corpus_config(given).corpus == str(corpus) and corpus_config(given).seed == 7
    training = pretrain_config(given, code_version="v")
    assert (training.name, training.code_version, training.steps, training.seed) == ("ours", "v", 40, 7)


def test_the_fingerprint_is_of_the_content(corpus: Path):
    found = inspect_pretraining(parameters(corpus))
    assert found.gpus == "0" and found.corpus_version != found.pretrain_version
    assert inspect_pretraining(parameters(corpus)) == found
    corpus.write_text(corpus.read_text() + "\n\nOne more document. It is new.\n", encoding="utf-8")
    changed = inspect_pretraining(parameters(corpus))
    assert changed.fingerprint != found.fingerprint
    assert (changed.corpus_version, changed.pretrain_version) == (found.corpus_version, found.pretrain_version)
    assert inspect_pretraining(parameters(corpus, gpus_per_node=1)).gpus == "1"


def test_the_files_of_a_checkpoint_count_wherever_it_is_read(corpus: Path, checkpoint: Path, tmp_path: Path):
    copy = shutil.copytree(checkpoint, tmp_path / "bert")
    given = parameters(corpus, model=str(copy), tokenizer=str(checkpoint))
    found = inspect_pretraining(given)
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:-4] + b"\0\0\0\1")
    changed = inspect_pretraining(given)
    assert changed.fingerprint == found.fingerprint and changed.pretrain_version != found.pretrain_version
    (copy / "README.md").write_text("ours\n")
    again = inspect_pretraining({**given, "tokenizer": str(copy)})
    assert again.fingerprint != found.fingerprint


def test_every_parameter_that_will_not_do_is_named(corpus: Path):
    changes = {
        "corpus": "/nowhere.txt", "tokenizer": "train://letters", "max_documents": -1, "validation_fraction": 2.0,
        "model": "/nowhere", "objective": "mlx", "sequence_length": 4, "mask_probability": 0.0, "steps": 0,
        "sentence_weight": 0.0, "mask_ngrams": 0, "batch_size": 0, "gradient_accumulation_steps": 0,
        "optimizer": "sgd", "learning_rate": 7.0, "warmup_ratio": 1.0, "weight_decay": -1.0, "evaluations": 0,
        "precision": "fp8", "seed": -1, "checkpoint_dir": "s4://bucket", "output": "https://host/x", "model_name": " ",
        "tracking_uri": "ftp://x", "experiment": " ", "num_nodes": 0, "gpu_type": "?", "train_memory": "lots",
    }  # fmt: skip
    # Its file is looked at once the rest will do.
    assert set(wrong(parameters(corpus, **changes))) == set(changes) - {"corpus"}
    assert "no such file" in wrong(parameters(corpus, corpus="/nowhere.txt"))["corpus"]


def test_what_a_teacher_needs_is_checked(corpus: Path):
    triple = parameters(corpus, objective="triple", model="teacher://", layers="x", temperature=0.0, head_steps=0)
    assert set(wrong(triple)) == {"teacher", "layers", "temperature", "head_steps"}
    assert set(wrong(parameters(corpus, model="teacher://"))) == {"model"}


def test_tokens_are_those_that_the_checkpoint_knows(corpus: Path, checkpoint: Path, tmp_path: Path):
    assert f"Give tokenizer={checkpoint}" in wrong(parameters(corpus, model=str(checkpoint)))["tokenizer"]
    assert inspect_pretraining(parameters(corpus, model=str(checkpoint), tokenizer=str(checkpoint))).fingerprint
    other = shutil.copytree(checkpoint, tmp_path / "other")
    checkpoints.train_tokenizer(["zebras"], 100, 64).save_pretrained(other)
    said = wrong(parameters(corpus, model=str(checkpoint), tokenizer=str(other)))
    assert "is another tokenizer than that of model" in said["tokenizer"]
    given = {"objective": "triple", "model": "teacher://", "teacher": str(checkpoint)}
    assert set(wrong(parameters(corpus, **given))) == {"tokenizer"}


def test_a_checkpoint_of_another_family_or_too_few_positions_is_refused(corpus: Path, checkpoint: Path):
    given = parameters(corpus, model=str(checkpoint), tokenizer=str(checkpoint), sequence_length=65)
    assert "exceeds the 64 positions" in wrong(given)["sequence_length"]
    given = {**given, "sequence_length": 64, "objective": "triple", "teacher": str(checkpoint)}
    assert "which cannot be trained on 'triple'" in wrong(given)["model"]


def test_a_copy_goes_nowhere_where_something_else_is(corpus: Path):
    (folder := corpus.parent / "thesis").mkdir()
    assert inspect_pretraining(parameters(corpus, output=str(folder))).fingerprint
    (folder / "chapter-1.tex").write_text("…")
    assert "holds other files" in wrong(parameters(corpus, output=str(folder)))["output"]
    assert "is a file" in wrong(parameters(corpus, output=str(corpus)))["output"]


def test_passwords_have_no_place_in_a_parameter(corpus: Path):
    secret = "s3://AKIA:hunter2/x@bucket/corpus"
    said = wrong(parameters(corpus, corpus=secret, checkpoint_dir=secret, output=secret, steps=0))
    assert set(said) == {"corpus", "checkpoint_dir", "output", "steps"}
    assert "hunter2" not in " ".join(said.values())


def test_faults_of_the_corpus_and_a_registry_out_of_reach_are_told_with_the_rest(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    rows = corpus.with_suffix(".jsonl")
    rows.write_text('{"body": "A document."}\n', encoding="utf-8")
    said = wrong(parameters(rows, tracking_uri="http://127.0.0.1:1", batch_size=0))
    assert set(said) == {"tracking_uri", "batch_size", "text_column"}


def test_the_teacher_has_the_layers_and_positions_that_are_asked_for(corpus: Path, checkpoint: Path):
    given = {"objective": "triple", "model": "teacher://", "teacher": str(checkpoint), "tokenizer": str(checkpoint)}
    assert inspect_pretraining(parameters(corpus, **given, layers="2")).fingerprint
    said = wrong(parameters(corpus, **given, layers="1,3", sequence_length=100))
    assert set(said) == {"layers", "sequence_length"} and "of the teacher" in said["sequence_length"]
