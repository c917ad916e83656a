"""Small checkpoints of many families, each with a tokenizer of the kind that the family has, trained on the spot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    MobileBertConfig,
    ModernBertConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    XLNetConfig,
    XLNetTokenizer,
)
from transformers.models.roberta.tokenization_roberta import RobertaTokenizer

from stillhouse.artifacts import DatasetManifest, ModelManifest, SplitInfo, by_role
from stillhouse.data.demo import reviews
from stillhouse.models.checkpoints import train_tokenizer

FAMILIES = ("roberta", "mobilebert", "bart", "minilm", "modernbert")
"""Those that can be packaged. MiniLM is of the family `bert`."""
LABELS, CUES = ("negative", "positive"), ("awful", "lovely")
POSITIONS = 40
"""Tokens that a text may have, in every family."""


def _byte_level(texts: Sequence[str], special: Sequence[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=list(special), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _roberta_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """As RoBERTa and BART have it: <s> text </s>, and <pad> is 1."""
    model = json.loads(_byte_level(texts, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]).to_str())["model"]
    return RobertaTokenizer(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]])


def _modernbert_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Bytes as RoBERTa's, but [CLS] text [SEP], and [PAD] last of all."""
    tokenizer = _byte_level(texts, ["[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.add_special_tokens(["[PAD]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]",
        mask_token="[MASK]", model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def _xlnet_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Text <sep> <cls>, filled up on the left."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>"]
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    pieces = json.loads(tokenizer.to_str())["model"]["vocab"]
    return XLNetTokenizer(vocab=[tuple(piece) for piece in pieces], unk_id=0)


def _config(family: str, tokenizer: PreTrainedTokenizerFast) -> PretrainedConfig:
    ids: dict[str, Any] = {
        "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id,
        # BART's config forgets a number of labels that is not its own default, unless they have names.
        "id2label": dict(enumerate(LABELS)),
    }  # fmt: skip
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    if family == "roberta":
        # Positions are counted from the one after <pad>.
        return RobertaConfig(**ids, **small, bos_token_id=0, eos_token_id=2, max_position_embeddings=POSITIONS + 2,
                             type_vocab_size=1)  # fmt: skip
    if family == "bart":
        return BartConfig(
            **ids, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=POSITIONS, bos_token_id=0, eos_token_id=2,
            decoder_start_token_id=2, forced_eos_token_id=2,
        )  # fmt: skip
    if family == "mobilebert":
        return MobileBertConfig(
            **ids, **small, embedding_size=16, intra_bottleneck_size=16, num_feedforward_networks=2,
            max_position_embeddings=POSITIONS,
        )  # fmt: skip
    if family == "minilm":
        return BertConfig(**ids, **small, max_position_embeddings=POSITIONS)
    if family == "modernbert":
        # Three layers: one sees the whole text, two no further than three tokens.
        return ModernBertConfig(
            **{**ids, **small, "num_hidden_layers": 3}, local_attention=6, max_position_embeddings=POSITIONS,
            cls_token_id=tokenizer.cls_token_id, bos_token_id=tokenizer.cls_token_id,
            sep_token_id=tokenizer.sep_token_id, eos_token_id=tokenizer.sep_token_id,
        )  # fmt: skip
    assert family == "xlnet"
    return XLNetConfig(**ids, d_model=32, n_layer=2, n_head=2, d_inner=64, bos_token_id=1, eos_token_id=2)


def write_checkpoint(folder: Path, family: str, texts: Sequence[str], *, seed: int = 0) -> Path:
    """A checkpoint with random weights, as a hub would have it.

    Args:
        folder: where to write.
        family: one of `FAMILIES`, or `xlnet`.
        texts: what the tokenizer is trained on.
        seed: of the weights.
    """
    make = {"roberta": _roberta_tokenizer, "bart": _roberta_tokenizer, "modernbert": _modernbert_tokenizer,
            "xlnet": _xlnet_tokenizer}  # fmt: skip
    tokenizer = make[family](texts) if family in make else train_tokenizer(texts, 200, POSITIONS)
    torch.manual_seed(seed)
    AutoModelForSequenceClassification.from_config(_config(family, tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_reviews(folder: Path) -> Path:
    """A `dataset` artifact of reviews that are told apart by their first word, which is the last as well."""
    folder.mkdir(parents=True)
    splits = {}
    for seed, (split, rows) in enumerate({"train": 256, "validation": 48, "test": 48}.items()):
        found = list(reviews(rows, seed))
        labels = [LABELS.index(label) for _, label in found]
        texts = [
            " ".join([cue, *text.split()[: row % 9], cue])
            for row, ((text, _), cue) in enumerate(zip(found, (CUES[label] for label in labels), strict=True))
        ]
        pq.write_table(pa.table({"text": texts, "label": labels}), folder / f"{split}.parquet")
        counts = {name: labels.count(index) for index, name in enumerate(LABELS)}
        splits[split] = SplitInfo(rows=rows, class_counts=counts, length_quantiles={"1.0": 99.0})
    DatasetManifest(
        producer="prepare_data", task="classification", columns={"text": "text", "label": "label"},
        label_names=list(LABELS), splits=splits, source={"data": "x", "validation_data": "", "test_data": ""},
        fingerprint="x", seed=0, duplicates_removed=0,
    ).save(folder)  # fmt: skip
    return folder


def write_model(folder: Path, family: str, dataset: Path) -> Path:
    """A `model` artifact with random weights, as if it had been trained on the dataset."""
    texts = pq.read_table(dataset / "train.parquet")["text"].to_pylist()
    write_checkpoint(folder, family, texts)
    ModelManifest(
        producer="finetune", inputs=dict(by_role(dataset=(DatasetManifest, dataset))), name=family,
        task="classification", recipe="fine-tuned", family=AutoConfig.from_pretrained(folder).model_type,
        label_names=list(LABELS), parameters=1, max_length=POSITIONS, hyperparameters={}, metrics={},
    ).save(folder)  # fmt: skip
    return folder
