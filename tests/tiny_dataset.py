"""A task small enough to learn in seconds, as a dataset artifact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stillhouse.artifacts import DatasetManifest, SplitInfo

GOOD, BAD = ["fine", "lovely", "superb", "warm"], ["awful", "dull", "broken", "cold"]


def write_dataset(folder: Path, rows: int) -> Path:
    """Two classes told apart by one word among fillers."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    splits = {}
    for split, count in (("train", rows), ("validation", 64), ("test", 64)):
        labels = random.integers(0, 2, count)
        texts = [
            " ".join([*random.choice(["the", "a", "it", "was", "room"], random.integers(1, 6)),
                      str(random.choice(GOOD if label else BAD))])
            for label in labels
        ]  # fmt: skip
        pq.write_table(pa.table({"text": texts, "label": labels}), folder / f"{split}.parquet")
        counts = {name: int((labels == i).sum()) for i, name in enumerate(("bad", "good"))}
        splits[split] = SplitInfo(rows=count, class_counts=counts, length_quantiles={})
    DatasetManifest(
        producer="prepare_data", task="classification", columns={"text": "text", "label": "label"},
        label_names=["bad", "good"], splits=splits, source={}, fingerprint="x", seed=0, duplicates_removed=0,
    ).save(folder)  # fmt: skip
    return folder
