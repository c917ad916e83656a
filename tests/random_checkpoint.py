"""A small dataset, and model artifacts of random weights to package: what they answer means nothing, but differs."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import AlbertConfig, DistilBertConfig, PretrainedConfig

from stillhouse.artifacts import DatasetManifest, ModelManifest, SplitInfo
from stillhouse.models import checkpoints
from stillhouse.models.pruning import Plan, prune

WORDS = [f"word{index}" for index in range(80)]
LABELS = ["negative", "neutral", "positive"]
CONFIGS: dict[str, PretrainedConfig] = {
    "distilbert": DistilBertConfig(dim=64, n_layers=2, n_heads=4, hidden_dim=128),
    "albert": AlbertConfig(
        embedding_size=16, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128
    ),
}
PLANS = {
    "distilbert": Plan(((0, 2), (1,)), (tuple(range(0, 96, 2)), tuple(range(40)))),
    "albert": Plan(((0, 2),), (tuple(range(0, 96, 2)),)),
}
"""What is left where a checkpoint is pruned."""


def write_dataset(folder: Path) -> Path:
    """48 training rows, 32 for validation, 8 for test, of 1 to 19 words."""
    folder.mkdir()
    random = np.random.default_rng(0)
    splits = {}
    for split, count in (("train", 48), ("validation", 32), ("test", 8)):
        texts = [" ".join(random.choice(WORDS, random.integers(1, 20))) for _ in range(count)]
        pq.write_table(pa.table({"text": texts, "label": random.integers(0, 3, count)}), folder / f"{split}.parquet")
        splits[split] = SplitInfo(rows=count, class_counts={}, length_quantiles={})
    DatasetManifest(
        producer="prepare_data", task="classification", columns={"text": "text", "label": "label"},
        label_names=LABELS, splits=splits, source={}, fingerprint="x", seed=0, duplicates_removed=0,
    ).save(folder)  # fmt: skip
    return folder


def write_model(folder: Path, family: str, *, pruned: bool = False) -> Path:
    """A checkpoint with weights that are large enough for texts to get different answers."""
    tokenizer = checkpoints.train_tokenizer(WORDS, 200, 32)
    config = copy.deepcopy(CONFIGS[family])
    for name, value in dict(vocab_size=len(tokenizer), num_labels=3, pad_token_id=tokenizer.pad_token_id).items():
        setattr(config, name, value)
    torch.manual_seed(0)
    model = checkpoints.build_model(config, "AutoModelForSequenceClassification")
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.6 if "classifier" in name else 0.15)
    if pruned:
        prune(model, PLANS[family])
    checkpoints.save_model(model, folder)
    tokenizer.save_pretrained(folder)
    ModelManifest(
        producer="finetune", name="student", task="classification", recipe="distilled", family=family,
        label_names=LABELS, parameters=checkpoints.parameter_count(model), max_length=24,
        hyperparameters={}, metrics={},
    ).save(folder)  # fmt: skip
    return folder
