"""Real measurements and judgements of tiny models, each in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from stillhouse.comparison import CompareConfig, compare
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
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.tsv"
    lines = [f"{text}\t{label}" for text, label in reviews(60, seed=3)]
    path.write_text("\n".join(["review\tverdict", *lines]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of reviews with random weights, whose labels are not in alphabetical order."""
    folder = tmp_path_factory.mktemp("checkpoints") / "judge"
    torch.manual_seed(0)
    tokenizer = train_tokenizer([text for text, _ in reviews(100, seed=1)], 300, 64)
    labels = ["positive", "negative"]
    assert {label for _, label in reviews(60, seed=3)} == set(labels)
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=64, max_position_embeddings=64, initializer_range=0.5,
                        id2label=dict(enumerate(labels)))  # fmt: skip
    save_model(BertForSequenceClassification(config), folder)
    tokenizer.save_pretrained(folder)
    return folder


def accuracy_of(folder: Path, rows: Path) -> float:
    """Text by text, without anything of the comparison."""
    from transformers import AutoTokenizer

    model = BertForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    right = 0
    lines = rows.read_text(encoding="utf-8").splitlines()[1:]
    for line in lines:
        text, label = line.split("\t")
        with torch.no_grad():
            encoded = tokenizer(text, truncation=True, max_length=64, return_tensors="pt", return_token_type_ids=False)
            right += model.config.id2label[int(model(**encoded).logits.argmax())] == label
    return right / len(lines)


@pytest.mark.slow
def test_two_models_by_turns_and_a_quality_for_the_one_that_has_a_head(
    checkpoint: Path, rows: Path, tmp_path: Path
) -> None:
    small, large = f"scratch://bert?{SMALL}&num_hidden_layers=1", f"scratch://bert?{SMALL}&num_hidden_layers=8"
    step = Heard()
    config = CompareConfig(
        models=(large, small, str(checkpoint)), length=32, batch_size=2, rounds=2, threads=1, data=str(rows),
        text_column="review", label_column="verdict",
    )  # fmt: skip
    document = compare(config, output_dir=tmp_path / "new" / "out", step=step)
    first, second, judge = document["models"]
    assert (first["latency_ratio"], first["throughput_ratio"], first["training_step_ratio"]) == (1, 1, 1)
    # Eight times the layers take more than twice the time, whatever else the machine does.
    assert second["latency_ratio"] < 0.5
    assert second["throughput_ratio"] > 2
    assert second["training_step_ratio"] < 0.6
    for entry in document["models"]:
        assert 0 < entry["latency_ms"]["p50"] <= entry["latency_ms"]["p95"]
        assert 0 < entry["model_memory_mb"] < entry["peak_memory_mb"] <= entry["training_memory_mb"]
    assert first["quality"] is None and first["quality_note"] == "it has no trained classification head"
    assert judge["weights"] == "checkpoint" and judge["name"] == "judge"
    # Weights were trained on afterwards, so this was judged before.
    assert judge["quality"]["accuracy"] == pytest.approx(accuracy_of(checkpoint, rows))
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


def test_rows_at_fault_are_filed_under_the_options(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\ngood,1\n,0\n", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        compare(CompareConfig(models=("bert-base", "bart"), data=str(path), label_column="verdict", rounds=0))
    places = [problem.where for problem in caught.value.problems]
    assert "--rounds" in places and "MODEL" in places and "--label-column" in places
