"""Documents in which order and topic can be learned in seconds, and the models that learn them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stillhouse.artifacts import DatasetManifest, SplitInfo

TOPICS = {
    "sea": ["ship", "sail", "wave", "tide", "crew", "deck", "harbour", "storm"],
    "farm": ["barn", "field", "plough", "wheat", "cow", "goat", "fence", "hay"],
    "city": ["tram", "street", "tower", "market", "bridge", "crowd", "lamp", "square"],
}
ORDER = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth"]
TOKENIZER = "train://wordpiece?vocab_size=120"
# Without dropout, so that equal batches make equal losses.
SCRATCH = (
    "scratch://bert?num_hidden_layers=2&hidden_size=32&num_attention_heads=2&intermediate_size=64"
    "&hidden_dropout_prob=0&attention_probs_dropout_prob=0"
)
ALBERT = (
    "scratch://albert?num_hidden_layers=2&hidden_size=32&embedding_size=16&num_attention_heads=2&intermediate_size=64"
)


def documents(count: int) -> list[str]:
    """Each about one topic, its sentences numbered in order."""
    draw = random.Random(0)
    texts = []
    for _ in range(count):
        words = TOPICS[draw.choice(sorted(TOPICS))]
        sentences = [f"The {draw.choice(words)} saw {number} a {draw.choice(words)}." for number in ORDER]
        texts.append(" ".join(sentences))
    return texts


def write_jsonl(path: Path, texts: list[str]) -> Path:
    """One document a line."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def write_dataset(folder: Path) -> Path:
    """Sentences of two topics, as a labelled dataset."""
    draw = random.Random(1)
    names = ["farm", "sea"]
    folder.mkdir()
    splits = {}
    for split, count in (("train", 96), ("validation", 32), ("test", 32)):
        labels = [draw.randrange(2) for _ in range(count)]
        texts = [
            f"The {draw.choice(TOPICS[names[label]])} saw a {draw.choice(TOPICS[names[label]])}" for label in labels
        ]
        pq.write_table(pa.table({"text": texts, "label": labels}), folder / f"{split}.parquet")
        counts = {name: labels.count(label) for label, name in enumerate(names)}
        splits[split] = SplitInfo(rows=count, class_counts=counts, length_quantiles={})
    DatasetManifest(
        producer="prepare_data", task="classification", columns={"text": "text", "label": "label"}, label_names=names,
        splits=splits, source={}, fingerprint="x", seed=0, duplicates_removed=0,
    ).save(folder)  # fmt: skip
    return folder
