"""Students of every kind: made of the teacher's layers, factorised from it, from scratch, or pretrained elsewhere."""

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stillhouse.artifacts import ModelManifest
from stillhouse.data.dataset import read_split
from stillhouse.errors import InputError
from stillhouse.models.albert import layer_sharing_of
from stillhouse.models.checkpoints import (
    load_model,
    load_tokenizer,
    parameter_count,
    reference_for,
    save_model,
    train_tokenizer,
)
from stillhouse.models.students import student_problems
from stillhouse.training import DistillationSettings, DistillConfig, FinetuneConfig, steps

pytestmark = pytest.mark.slow

SIZES = "num_hidden_layers=2&hidden_size=32&num_attention_heads=2&intermediate_size=64&vocab_size=200"
CLASSIFIER = "AutoModelForSequenceClassification"
COMMON: dict[str, Any] = dict(
    epochs=2, learning_rate=2e-3, max_length=16, evaluations_per_epoch=1, early_stopping_patience=0
)


@pytest.fixture(scope="module")
def teacher(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("models") / "teacher"
    config = FinetuneConfig(name="teacher", checkpoint=f"scratch://bert?{SIZES}", **{**COMMON, "epochs": 4})
    steps.finetune(config, dataset_dir=dataset, output_dir=output)
    return output


def pretrained(folder: Path, tokenizer: PreTrainedTokenizerFast, family: str = "distilbert", **fields: Any) -> Path:
    """A checkpoint as `pretrain` leaves one: an encoder with a language-model head, and the tokenizer."""
    torch.manual_seed(3)
    sizes = {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64} if family == "distilbert" else {}
    config = transformers.AutoConfig.for_model(family, vocab_size=len(tokenizer), **{**sizes, **fields})
    save_model(transformers.AutoModelForMaskedLM.from_config(config), folder)
    tokenizer.save_pretrained(folder)
    return folder


def distil(dataset: Path, teacher: Path, output: Path, **changes: Any) -> ModelManifest:
    config = DistillConfig(name="student", **{**COMMON, **changes})
    return steps.distill(config, dataset_dir=dataset, teacher_dir=teacher, output_dir=output)


def load(folder: Path) -> PreTrainedModel:
    return load_model(reference_for(folder), "student", CLASSIFIER, {})


def test_an_albert_student_is_factorised_from_the_teacher_and_distilled(teacher: Path, dataset: Path, tmp_path: Path):
    manifest = distil(
        dataset, teacher, tmp_path, student="teacher://albert", albert_embedding_size=8, albert_layers=1, epochs=3
    )
    assert manifest.metrics["accuracy"] >= 0.95
    assert (manifest.family, manifest.recipe, manifest.producer) == ("albert", "distilled", "distill")
    facts = manifest.hyperparameters
    assert (facts["layers"], facts["layer_sharing"], facts["student"]) == ([2], "all", "teacher://albert")
    assert 0 < facts["embedding_energy"] < 1
    assert load(tmp_path).config.embedding_size == 8


def test_a_pretrained_student_is_taken_as_it_is(teacher: Path, dataset: Path, tmp_path: Path):
    student = pretrained(tmp_path / "pretrained", load_tokenizer(reference_for(teacher), "teacher"))
    # So little learning that the weights show where they come from.
    manifest = distil(dataset, teacher, tmp_path / "student", student=str(student), epochs=0.1, learning_rate=1e-9)
    assert (manifest.family, manifest.recipe) == ("distilbert", "distilled")
    assert manifest.hyperparameters["layers"] == [2]
    before, after = (load_file(folder / "model.safetensors") for folder in (student, tmp_path / "student"))
    shared = [name for name in before if name.startswith("distilbert.")]
    assert len(shared) > 15
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in shared)
    assert not [name for name in after if name.startswith("vocab_")]
    assert (tmp_path / "student" / "tokenizer.json").read_text() == (teacher / "tokenizer.json").read_text()


def test_a_student_from_scratch_reads_with_the_teachers_tokenizer(teacher: Path, dataset: Path, tmp_path: Path):
    # Deeper than the teacher, whose layers it then follows more than once.
    student = f"scratch://albert?{SIZES}&embedding_size=8&layer_sharing=attention".replace("layers=2", "layers=3")
    manifest = distil(dataset, teacher, tmp_path, student=student, epochs=0.5)
    assert manifest.hyperparameters["layers"] == [1, 2, 2]
    assert load(tmp_path).config.vocab_size == load(teacher).config.vocab_size
    with pytest.raises(InputError, match="names 2 layers, and the student has 3"):
        distil(dataset, teacher, tmp_path / "x", student=student, layers="1,2")


def test_hidden_states_of_another_width_are_not_compared(
    teacher: Path, dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    tokenizer = load_tokenizer(reference_for(teacher), "teacher")
    narrow = str(pretrained(tmp_path / "narrow", tokenizer, dim=16))
    manifest = distil(dataset, teacher, tmp_path / "student", student=narrow, epochs=0.1)
    assert manifest.hyperparameters["layers"] == []
    assert "hidden states are not compared: the student's have 16 numbers, the teacher's 32" in caplog.text
    alone = DistillationSettings(hard=0, soft=0, cosine=1)
    with pytest.raises(InputError, match="student: has hidden states of another width"):
        distil(dataset, teacher, tmp_path / "x", student=narrow, distillation=alone)
    (problem,) = student_problems(narrow, str(teacher), "", hidden_states_alone=True)
    assert problem.where == "student" and "16" in problem.what and "32" in problem.what
    assert student_problems(narrow, str(teacher), "", hidden_states_alone=False) == []


def test_a_student_with_another_tokenizer_is_refused(teacher: Path, dataset: Path, tmp_path: Path):
    tokenizer = load_tokenizer(reference_for(teacher), "teacher")
    other = pretrained(tmp_path / "other", train_tokenizer(["entirely other words"] * 3, 60, 16))
    with pytest.raises(InputError, match=r"student: the tokenizer of .* is not the teacher's: it has .* in common"):
        distil(dataset, teacher, tmp_path / "x", student=str(other))
    # The same tokens, found in another way.
    cased = pretrained(tmp_path / "cased", tokenizer)
    text = (cased / "tokenizer.json").read_text()
    assert '"lowercase": true' in text
    (cased / "tokenizer.json").write_text(text.replace('"lowercase": true', '"lowercase": false'))
    with pytest.raises(InputError, match="splits texts into other tokens"):
        distil(dataset, teacher, tmp_path / "x", student=str(cased))
    few = pretrained(tmp_path / "few", tokenizer)
    config = (few / "config.json").read_text()
    (few / "config.json").write_text(config.replace(f'"vocab_size": {len(tokenizer)}', '"vocab_size": 20'))
    with pytest.raises(InputError, match="the model embeddings for 20"):
        distil(dataset, teacher, tmp_path / "x", student=str(few))
    (problem,) = student_problems(str(other), f"scratch://bert?{SIZES}", "", hidden_states_alone=False)
    assert "is yet to be trained" in problem.what


@pytest.mark.parametrize(
    "student", ["teacher://bert", "teacher://distilbert?n_layers=2", "scratch://albert?hidden_sise=3"]
)
def test_a_student_that_cannot_be_is_refused(teacher: Path, dataset: Path, tmp_path: Path, student: str):
    with pytest.raises(InputError, match=r"^student: "):
        distil(dataset, teacher, tmp_path / "x", student=student)
    assert not (tmp_path / "x").exists()


def test_a_resumed_training_keeps_ties_and_makes_the_same_weights(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    # As on a cluster, where checkpoints outlive the training, so that one can be resumed from the middle.
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    caplog.set_level("INFO", "stillhouse")
    config = FinetuneConfig(
        name="albert", checkpoint=f"scratch://albert?{SIZES}&embedding_size=8&layer_sharing=attention",
        checkpoint_dir=str(tmp_path / "checkpoints"), **COMMON,
    )  # fmt: skip
    whole = steps.finetune(config, dataset_dir=dataset, output_dir=tmp_path / "whole")
    first, last = sorted(tmp_path.glob("checkpoints/*/checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    stored = load_file(first / "model.safetensors")
    assert sum(tensor.numel() for tensor in stored.values()) == whole.parameters, "a shared tensor is stored twice"
    shutil.rmtree(last)
    resumed = steps.finetune(config, dataset_dir=dataset, output_dir=tmp_path / "resumed")
    assert f"continuing from {first}" in caplog.text
    assert "missing keys" not in caplog.text
    assert resumed.files["model.safetensors"] == whole.files["model.safetensors"]
    assert resumed.metrics == whole.metrics
    model = load(tmp_path / "resumed")
    assert layer_sharing_of(model.config) == "attention"
    assert parameter_count(model) == whole.parameters
    first_block, last_block = (group.albert_layers[0] for group in model.albert.encoder.albert_layer_groups)
    assert first_block.attention.value.weight is last_block.attention.value.weight
    assert not torch.equal(first_block.ffn.weight, last_block.ffn.weight)


def test_the_components_hand_on_what_the_student_is_to_be(teacher: Path, dataset: Path, tmp_path: Path):
    from kfp import dsl

    from stillhouse.components.distill.component import distill
    from stillhouse.components.finetune.component import finetune

    common = dict(
        hard_weight=0.2, soft_weight=0.8, cosine_weight=1.0, temperature=2.0, word_dropout=0.0, epochs=0.1,
        learning_rate=1e-3, batch_size=32, gradient_accumulation_steps=1, max_length=16, warmup_ratio=0.1,
        weight_decay=0.0, evaluations_per_epoch=1, early_stopping_patience=0, quality_metric="accuracy",
        precision="fp32", seed=1, checkpoint_dir="", num_nodes=1, gpus_per_node=0, gpu_type="nvidia.com/gpu",
        code_version="", dataset=dsl.Dataset(uri=str(dataset)), teacher=dsl.Model(uri=str(teacher)),
    )  # fmt: skip

    def outputs(name: str) -> dict[str, Any]:
        metrics = dsl.Metrics(uri=str(tmp_path / f"{name}-metrics"))
        return {"model": dsl.Model(uri=str(tmp_path / name)), "metrics": metrics}

    distill.python_func(
        name="student", student="teacher://albert?layer_sharing=ffn", layers="1,2", albert_embedding_size=8,
        albert_layers=2, prune_heads=0.0, prune_ffn=0.0, sparsity=0.0, prune_epochs=1.0, **common, **outputs("student"),
    )  # fmt: skip
    finetune.python_func(
        name="albert", checkpoint="teacher://albert?layer_sharing=attention", embedding_size=4, layers=2, **common,
        **outputs("albert"),
    )  # fmt: skip
    found = {}
    for name in ("student", "albert"):
        model, manifest = load(tmp_path / name), ModelManifest.load(tmp_path / name)
        found[name] = (layer_sharing_of(model.config), model.config.embedding_size, model.config.num_hidden_layers)
        assert manifest.hyperparameters["layer_sharing"] == found[name][0]
        assert manifest.parameters == parameter_count(model)
    assert found == {"student": ("ffn", 8, 2), "albert": ("attention", 4, 2)}


def test_a_roberta_teacher_goes_all_the_way(dataset: Path, tmp_path: Path):
    from stillhouse.export import PackageConfig
    from stillhouse.export.package import package_model

    tokenizer = train_tokenizer(read_split(dataset, "train")["text"], 200, 16)
    checkpoint = pretrained(
        tmp_path / "checkpoint", tokenizer, "roberta", hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, pad_token_id=0, max_position_embeddings=17, layer_norm_eps=1e-3,
    )  # fmt: skip
    common = {**COMMON, "epochs": 4}
    teacher, student, albert = (tmp_path / name for name in ("teacher", "student", "albert"))
    steps.finetune(
        FinetuneConfig(name="teacher", checkpoint=str(checkpoint), **common), dataset_dir=dataset, output_dir=teacher
    )
    steps.distill(DistillConfig(name="student", **common), dataset_dir=dataset, teacher_dir=teacher, output_dir=student)
    steps.finetune(
        FinetuneConfig(name="albert", checkpoint="teacher://albert?layer_sharing=ffn", embedding_size=16, **common),
        dataset_dir=dataset, teacher_dir=teacher, output_dir=albert,
    )  # fmt: skip
    families = {"teacher": "roberta", "student": "distilbert", "albert": "albert"}
    for name, family in families.items():
        manifest = ModelManifest.load(tmp_path / name)
        assert (manifest.family, manifest.metrics["accuracy"] >= 0.9) == (family, True), name
    for name in ("teacher", "student"):
        config = PackageConfig(served_name="tiny", int8_tolerance=0.2)
        output = tmp_path / f"{name}-packages"
        packages = package_model(config, model_dir=tmp_path / name, dataset_dir=dataset, output_dir=output)
        assert packages.precisions == ["fp32", "int8"], packages.refused
    # Of its 17 positions, RoBERTa leaves the first to padding.
    with pytest.raises(InputError, match="exceeds the 16 positions of teacher"):
        long = FinetuneConfig(name="teacher", checkpoint=str(checkpoint), **{**common, "max_length": 17})
        steps.finetune(long, dataset_dir=dataset, output_dir=tmp_path / "x")
