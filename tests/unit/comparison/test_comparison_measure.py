"""Real measurements and judgements of tiny models, each in a process of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from stillhouse.artifacts import ModelManifest
from stillhouse.comparison import CompareConfig, compare
from stillhouse.comparison.worker import Worker
from stillhouse.data.demo import reviews
from stillhouse.errors import InputError, StillhouseError
from stillhouse.models.checkpoints import save_model, train_tokenizer
from stillhouse.progress import Step

SMALL = "hidden_size=32&num_attention_heads=2&intermediate_size=64&vocab_size=300&max_position_embeddings=64"


class Heard(Step):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__("compare")
        self.notes: list[str] = []

    def progress(self, done: int, total: int, note: str = "") -> None:
        assert 0 <= done <= total
        self.notes.append(note)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of reviews with random weights, whose labels are not in alphabetical order."""
    folder = tmp_path_factory.mktemp("checkpoints") / "judge"
    torch.manual_seed(3)
    tokenizer = train_tokenizer([text for text, _ in reviews(100, seed=1)], 300, 64)
    labels = ["positive", "negative"]
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=64, max_position_embeddings=64, initializer_range=0.5,
                        id2label=dict(enumerate(labels)))  # fmt: skip
    save_model(BertForSequenceClassification(config), folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rows(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 reviews with the labels that the checkpoint gives them, asked one by one; every fourth has the other one."""
    model = BertForSequenceClassification.from_pretrained(checkpoint).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    lines = ["review\tverdict"]
    answers = []
    for row, (text, _) in enumerate(reviews(60, seed=3)):
        encoded = tokenizer(text, truncation=True, max_length=64, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            answers.append(int(model(**encoded).logits.argmax()))
        lines.append(f"{text}\t{model.config.id2label[answers[-1] ^ (row % 4 == 0)]}")
    assert 10 < sum(answers) < 50  # else a constant answer, or another row's, would be as good
    path = tmp_path_factory.mktemp("rows") / "rows.tsv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_texts_are_cut_where_the_training_cut_them(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "artifact")
    ModelManifest(
        producer="finetune", name="judge", task="classification", recipe="fine-tuned", family="bert",
        label_names=["positive", "negative"], parameters=1, max_length=8, hyperparameters={}, metrics={},
    ).save(folder)  # fmt: skip
    text = next(iter(reviews(1, seed=5)))[0]
    (tmp_path / "texts").write_text(json.dumps(text) + "\n", encoding="utf-8")
    worker = Worker(str(folder), 1)
    worker.load(0)
    worker.predict(str(tmp_path / "texts"), str(tmp_path / "found.npy"), lambda message: None)
    model = BertForSequenceClassification.from_pretrained(checkpoint).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)

    def cut(length: int) -> np.ndarray:
        encoded = tokenizer(text, truncation=True, max_length=length, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            return np.asarray(model(**encoded).logits.softmax(-1))

    found = np.load(tmp_path / "found.npy")
    assert found == pytest.approx(cut(8), abs=1e-5)
    assert np.abs(cut(64) - cut(8)).max() > 1e-3


@pytest.mark.slow
def test_two_models_by_turns_and_a_quality_for_the_one_that_has_a_head(
    checkpoint: Path, rows: Path, tmp_path: Path
) -> None:
    large = f"scratch://bert?{SMALL}&num_hidden_layers=8"
    step = Heard()
    config = CompareConfig(
        models=(large, str(checkpoint)), length=32, batch_size=2, rounds=2, turn_seconds=0.2, threads=1,
        data=str(rows), text_column="review", label_column="verdict",
    )  # fmt: skip
    document = compare(config, output_dir=tmp_path / "new" / "out", step=step)
    first, judge = document["models"]
    assert (first["latency_ratio"], first["throughput_ratio"], first["training_step_ratio"]) == (1, 1, 1)
    # Eight times the layers take more than twice the time, whatever else the machine does.
    assert judge["latency_ratio"] < 0.5
    assert judge["throughput_ratio"] > 2
    assert judge["training_step_ratio"] < 0.6
    for entry in document["models"]:
        assert 0 < entry["latency_ms"]["p50"] <= entry["latency_ms"]["p95"]
        assert 0 < entry["model_memory_mb"] < entry["peak_memory_mb"] <= entry["training_memory_mb"]
    assert first["quality"] is None and first["quality_note"] == "it has no trained classification head"
    assert judge["weights"] == "checkpoint" and judge["name"] == "judge"
    assert judge["quality"]["accuracy"] == 0.75
    low, high = judge["quality"]["interval"]
    assert low <= judge["quality"]["accuracy"] <= high
    assert {entry["model"] for entry in document["recommendations"].values()} == {"judge"}
    assert any("round 2 of 2: training of judge" in note for note in step.notes)
    assert document["machine"]["threads"] == 1

    written = {path.name for path in (tmp_path / "new" / "out").iterdir()}
    assert {"compare.json", "compare.md", "parameters.svg", "speed-size.svg", "quality-latency.png"} <= written
    table = (tmp_path / "new" / "out" / "compare.md").read_text(encoding="utf-8")
    assert f"{judge['quality']['accuracy']:.4f}" in table and "Measured in FP32 in PyTorch" in table


@pytest.mark.slow
def test_a_model_that_fails_says_what_it_wrote(checkpoint: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (broken / name).write_bytes((checkpoint / name).read_bytes())
    (broken / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(StillhouseError, match="broken failed to load"):
        compare(CompareConfig(models=(str(broken),), length=8, rounds=1))


def test_what_cannot_classify_is_counted_but_not_measured(tmp_path: Path) -> None:
    path = tmp_path / "odd.json"
    path.write_text('{"model_type": "bert-generation", "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, '
                    '"num_attention_heads": 2, "intermediate_size": 16}', encoding="utf-8")  # fmt: skip
    with pytest.raises(InputError, match="cannot be trained as a classifier"):
        compare(CompareConfig(models=(str(path),), length=8))
    document = compare(CompareConfig(models=(str(path),), length=8, measure=False))
    assert document["models"][0]["name"] == "odd" and document["models"][0]["parameters"] > 0


def test_rows_at_fault_are_filed_under_the_options(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\ngood,1\n,0\n", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        compare(CompareConfig(models=("bert-base", "bart"), data=str(path), label_column="verdict", rounds=0))
    places = [problem.where for problem in caught.value.problems]
    assert "--rounds" in places and "MODEL" in places and "--label-column" in places
