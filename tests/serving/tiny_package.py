"""Builds complete packages around a small random encoder, for tests of serving and deploying."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from stillhouse.artifacts import PackageManifest
from stillhouse.serving.repository import ServingOptions, write_repository
from stillhouse.tasks import get_task

WORDS = [
    "the",
    "a",
    "film",
    "was",
    "good",
    "bad",
    "great",
    "awful",
    "dull",
    "bright",
    "plot",
    "acting",
    "but",
    "not",
    "never",
    "really",
    "##ly",
    "##s",
    "and",
    "of",
    "it",
]
LABELS = ("negative", "neutral", "positive")
TEXTS = [
    "the film was good",
    "bad",
    "the acting was not really great but the plot never dull and the film was bright " * 2,
    "awful",
    "",
    "it was a film of great acting and awful plots",
    "großartig, wörds not in the vocabulary",
    "dull dull dull",
]


def write_tokenizer(path: Path) -> Path:
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(path))
    return path


def write_encoder(path: Path, *, labels: int = len(LABELS), hidden: int = 16, seed: int = 0) -> Path:
    """An encoder with the packages' contract: embeddings averaged over the mask, one layer, softmax."""
    random = np.random.default_rng(seed)
    weights = {
        "table": random.normal(size=(len(WORDS) + 4, hidden)).astype(np.float32),
        "head": random.normal(size=(hidden, labels)).astype(np.float32),
        "sequence_axis": np.array([1], dtype=np.int64),
        "last_axis": np.array([2], dtype=np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last_axis"], ["mask_column"]),
        helper.make_node("Mul", ["embedded", "mask_column"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "sequence_axis"], ["total"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "sequence_axis"], ["count"], keepdims=1),
        helper.make_node("Div", ["total", "count"], ["mean"]),
        helper.make_node("Tanh", ["mean"], ["pooled"]),
        helper.make_node("MatMul", ["pooled", "head"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", labels])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    return path


def build_package(
    folder: Path,
    *,
    served_name: str = "reviews",
    label_names: Sequence[str] = LABELS,
    max_length: int = 24,
    max_text_bytes: int = 400,
    max_batch_size: int = 8,
    seed: int = 0,
    **options: Any,
) -> Path:
    """A package, manifest and all, whose answers depend on `seed`; `options` are fields of `ServingOptions`."""
    folder.mkdir(parents=True)
    parts = folder.with_name(f"{folder.name}.parts")
    parts.mkdir()
    task = get_task("classification")
    encoder = write_encoder(parts / "encoder.onnx", labels=len(label_names), seed=seed)
    write_repository(
        folder / "triton",
        served_name=served_name,
        encoder=encoder,
        tokenizer=write_tokenizer(parts / "tokenizer.json"),
        task=task,
        label_names=label_names,
        max_length=max_length,
        options=ServingOptions(
            max_text_bytes=max_text_bytes, max_batch_size=max_batch_size, **{"encoder_threads": 1, **options}
        ),
    )
    PackageManifest(
        producer="test",
        name="student",
        served_name=served_name,
        task="classification",
        family="bert",
        precision="fp32",
        label_names=list(label_names),
        parameters=0,
        max_length=max_length,
        max_text_bytes=max_text_bytes,
        max_batch_size=max_batch_size,
        parity={},
        bytes=encoder.stat().st_size,
    ).save(folder)
    return folder


def with_a_failing_word(package: Path, word: str) -> Path:
    """The package, whose encoder fails on a text with this word: its token is beyond the table of embeddings."""
    (path,) = package.glob("triton/*/1/tokenizer.json")
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    tokenizer["model"]["vocab"][word] = 9999
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    PackageManifest.load(package).save(package)
    return package


def settings_of(package: Path, served_name: str = "reviews") -> dict[str, object]:
    """The front model's settings in a package as it was written."""
    return dict(json.loads((package / "triton" / served_name / "1" / "settings.json").read_text(encoding="utf-8")))
