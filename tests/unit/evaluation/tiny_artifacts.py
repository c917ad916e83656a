"""Complete artifacts that take milliseconds to make: a dataset, and packages that sum one weight vector per word.

Test words are not in train, so a bag of words learns nothing from train, while the packages know every word's label.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers

from stillhouse.artifacts import (
    DatasetManifest,
    EvaluationManifest,
    ModelManifest,
    PackageManifest,
    PackagesManifest,
    SplitInfo,
    by_role,
)
from stillhouse.evaluation.evaluate import EvaluateConfig, evaluate
from stillhouse.progress import Step
from stillhouse.serving.repository import ServingOptions, write_repository
from stillhouse.tasks import get_task

SERVED = "tiny-reviews"


def words(split: str, label: int, count: int = 20) -> list[str]:
    """The words of one label in one split."""
    return [f"{split}{label}w{index}" for index in range(count)]


def write_dataset(folder: Path, label_names: Sequence[str] = ("negative", "positive"), rows: int = 60) -> Path:
    """A `dataset` artifact with `rows` rows per split, labels in turn."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(1)
    splits = {}
    for split in ("train", "validation", "test"):
        labels = [index % len(label_names) for index in range(rows)]
        texts = [
            " ".join(generator.choice(words(split, label), size=int(generator.integers(1, 12)))) for label in labels
        ]
        pq.write_table(pa.table({"text": texts, "label": np.array(labels)}), folder / f"{split}.parquet")
        counts = {name: labels.count(index) for index, name in enumerate(label_names)}
        splits[split] = SplitInfo(
            rows=rows,
            class_counts=counts,
            length_quantiles={"0.5": 30.0, "0.9": 55.0, "0.95": 60.0, "0.99": 70.0, "1.0": 80.0},
        )
    DatasetManifest(
        producer="prepare-data",
        task="classification",
        columns={"text": "text", "label": "label"},
        label_names=list(label_names),
        splits=splits,
        source={"data": "reviews.csv", "validation_data": "", "test_data": ""},
        fingerprint="0" * 64,
        seed=1,
        duplicates_removed=3,
    ).save(folder)
    return folder


def write_encoder(path: Path, vocabulary: Mapping[str, int], weights: np.ndarray, padding: int = 0) -> None:
    """An ONNX encoder: softmax of the sum of the weights [v, c] of all unmasked tokens."""
    nodes = [
        helper.make_node("Gather", ["weights", "input_ids"], ["gathered"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide_mask"]),
        helper.make_node("Mul", ["gathered", "wide_mask"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "tokens"], ["logits"], keepdims=0),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
    ]
    initializers = [
        numpy_helper.from_array(weights.astype(np.float32), "weights"),
        numpy_helper.from_array(np.array([-1], dtype=np.int64), "last"),
        numpy_helper.from_array(np.array([1], dtype=np.int64), "tokens"),
    ]
    shape = ["batch", "sequence"]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", weights.shape[1]])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model.doc_string = "x" * padding  # makes one file larger than another
    onnx.save(model, str(path))


def write_packages(
    folder: Path,
    name: str,
    *,
    precisions: Sequence[str] = ("fp32", "int8"),
    wrong: Mapping[str, int] | None = None,
    label_names: Sequence[str] = ("negative", "positive"),
    padding: int = 0,
    refused: Mapping[str, str] | None = None,
    served_name: str = SERVED,
    max_text_bytes: int = 1000,
) -> Path:
    """A `packages` artifact.

    Args:
        folder: where to write.
        name: the candidate's role.
        precisions: packages to make.
        wrong: by precision, how many of each label's 20 test words are given to the next label.
        label_names: the labels.
        padding: bytes added to the FP32 encoder.
        refused: precisions to note as refused.
        served_name: name of the served model.
        max_text_bytes: the byte limit.
    """
    work = folder.parent / f".{folder.name}.work"
    work.mkdir(parents=True)
    task, classes = get_task("classification"), len(label_names)
    vocabulary = {"[UNK]": 0, "[PAD]": 1}
    for split in ("train", "validation", "test"):
        for label in range(classes):
            vocabulary |= {word: len(vocabulary) + index for index, word in enumerate(words(split, label))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(work / "tokenizer.json"))
    for precision in precisions:
        weights = np.zeros((len(vocabulary), classes), dtype=np.float32)
        for split in ("train", "validation", "test"):
            for label in range(classes):
                for index, word in enumerate(words(split, label)):
                    off = split == "test" and index < (wrong or {}).get(precision, 0)
                    weights[vocabulary[word], (label + off) % classes] = 1.0
        encoder = work / f"{precision}.onnx"
        write_encoder(encoder, vocabulary, weights, padding + 4000 if precision == "fp32" else 0)
        package = folder / precision
        write_repository(
            package / "triton",
            served_name=served_name,
            encoder=encoder,
            tokenizer=work / "tokenizer.json",
            task=task,
            label_names=label_names,
            max_length=64,
            options=ServingOptions(max_text_bytes=max_text_bytes, max_batch_size=32),
        )
        PackageManifest(
            producer="package",
            inputs={"model": "1" * 64},
            name=name,
            served_name=served_name,
            task="classification",
            family={"teacher": "bert", "student": "distilbert"}.get(name, name),
            precision=precision,
            label_names=list(label_names),
            parameters=weights.size,
            max_length=64,
            max_text_bytes=max_text_bytes,
            max_batch_size=32,
            parity={
                "rows": 60,
                "max_difference": 2e-7,
                "mean_difference": 3e-8,
                "agreement": 1.0,
                "tolerance": 1e-4,
            },
            bytes=encoder.stat().st_size,
        ).save(package)
    PackagesManifest(
        producer="package",
        inputs={"model": "1" * 64},
        name=name,
        precisions=list(precisions),
        refused=dict(refused or {}),
    ).save(folder)
    return folder


def write_model(folder: Path, name: str, dataset: Path) -> Path:
    """A `model` artifact with a manifest and a config, which is all that a registry reads of it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    ModelManifest(
        producer="finetune",
        inputs=dict(by_role(dataset=(DatasetManifest, dataset))),
        name=name,
        task="classification",
        recipe="fine-tuned",
        family="bert",
        label_names=["negative", "positive"],
        parameters=1000,
        max_length=64,
        hyperparameters={"epochs": 1, "learning_rate": 2e-5},
        metrics={"accuracy": 0.9},
    ).save(folder)
    return folder


def write_all(root: Path) -> dict[str, Path]:
    """A dataset and three packages: a teacher, a student that keeps 97% and a smaller albert that does not."""
    dataset = write_dataset(root / "dataset", rows=120)
    return {
        "dataset": dataset,
        "teacher": write_packages(root / "teacher", "teacher", padding=60_000),
        "student": write_packages(root / "student", "student", wrong={"int8": 1}, padding=30_000),
        "albert": write_packages(
            root / "albert", "albert", precisions=["fp32"], wrong={"fp32": 8}, refused={"int8": "difference 0.31"}
        ),
    }


def evaluate_tiny(root: Path, paths: Mapping[str, Path], **overrides: Any) -> EvaluationManifest:
    """Evaluate the above quickly into `root / "evaluation"`."""
    champion = overrides.pop("champion_dir", None)
    settings = {"bootstrap_samples": 200, "latency_samples": 20, "throughput_rows": 64, "threads": 1} | overrides
    return evaluate(
        EvaluateConfig(**settings),
        dataset_dir=paths["dataset"],
        packages=[paths[name] for name in ("teacher", "student", "albert")],
        champion_dir=champion,
        output_dir=root / "evaluation",
        step=Step("evaluate"),
    )
