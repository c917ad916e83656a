"""Tokenizers of a corpus: trained on it or given, and what pretraining needs to know of one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from stillhouse.errors import InputError, Problem
from stillhouse.models.references import Reference, parse_reference

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["TrainedTokenizer", "Vocabulary", "parse_tokenizer", "tokenizer_reference", "train"]

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_KINDS = ("wordpiece", "unigram")
_LENGTH = 512
_SMALLEST, _LARGEST = 64, 1_000_000


@dataclass(frozen=True)
class Vocabulary:
    """Ids of a tokenizer's special tokens, and what kind each of its v tokens is of."""

    start: int
    """[CLS], before every sequence."""
    separator: int
    """[SEP], after every segment."""
    padding: int
    mask: int
    special: NDArray[np.bool_]
    """[v] whether a token is special, and so never masked; [UNK] stands for text, and is none."""
    ordinary: NDArray[np.int64]
    """[r] the tokens that may stand in for a masked one: neither special nor [UNK]."""
    continues: NDArray[np.bool_]
    """[v] whether a token continues the word of the token before it."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast) -> Vocabulary:
        """That of a fast tokenizer.

        Raises:
            InputError: it lacks a special token.
        """
        roles = {"cls_token": tokenizer.cls_token_id, "sep_token": tokenizer.sep_token_id,
                 "pad_token": tokenizer.pad_token_id, "mask_token": tokenizer.mask_token_id}  # fmt: skip
        if lacking := [role for role, index in roles.items() if index is None]:
            raise InputError(
                Problem("tokenizer", f"has no {', '.join(lacking)}.", "Give the tokenizer of a BERT-like model.")
            )
        size = len(tokenizer)
        pieces = tokenizer.convert_ids_to_tokens(list(range(size)))
        special = np.zeros(size, dtype=bool)
        special[[index for index in tokenizer.all_special_ids if index != tokenizer.unk_token_id]] = True
        ordinary = ~special
        if tokenizer.unk_token_id is not None:
            ordinary[tokenizer.unk_token_id] = False
        return cls(
            start=roles["cls_token"],
            separator=roles["sep_token"],
            padding=roles["pad_token"],
            mask=roles["mask_token"],
            special=special,
            ordinary=np.flatnonzero(ordinary),
            continues=_continuations(pieces) & ~special,
        )


@dataclass(frozen=True)
class TrainedTokenizer:
    """A tokenizer that is to be trained: `train://KIND?vocab_size=N`."""

    kind: str
    vocab_size: int


def parse_tokenizer(text: str) -> TrainedTokenizer | None:
    """What to train, or None where the text is a reference to a tokenizer that exists.

    Raises:
        InputError: it asks for a tokenizer that cannot be trained.
    """
    if not text.startswith("train://"):
        return None
    kind, _, query = text.removeprefix("train://").partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    size = options.pop("vocab_size", "8192")
    remedy = "Write train://wordpiece?vocab_size=8192, or train://unigram?vocab_size=8192."
    if kind not in _KINDS or options or not size.isdecimal() or not _SMALLEST <= int(size) <= _LARGEST:
        raise InputError(Problem("tokenizer", f"{text!r} is no tokenizer that can be trained.", remedy))
    return TrainedTokenizer(kind, int(size))


def tokenizer_reference(text: str) -> Reference:
    """Where a tokenizer is that exists already: a folder with a tokenizer.json, or a checkpoint.

    Raises:
        InputError: nothing is there, or it cannot hold one.
    """
    if (Path(text).expanduser() / "tokenizer.json").is_file():
        return Reference(text, "path", str(Path(text).expanduser().resolve()))
    reference = parse_reference(text, "tokenizer")
    if reference.kind not in ("path", "hub"):
        raise InputError(Problem("tokenizer", f"{text!r} has no tokenizer.", "Name a checkpoint."))
    return reference


def train(wanted: TrainedTokenizer, texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer trained on `texts`; equal texts give an equal tokenizer."""
    from stillhouse.models.checkpoints import train_tokenizer

    if wanted.kind == "wordpiece":
        return train_tokenizer(texts, wanted.vocab_size, _LENGTH)
    return _train_unigram(texts, wanted.vocab_size)


def _train_unigram(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A lower-casing unigram tokenizer with BERT's special tokens, as ALBERT has one.

    Source: Kudo 2018, arXiv:1804.10959; SentencePiece's marking of spaces (Kudo and Richardson 2018, arXiv:1808.06226),
    which ALBERT uses (Lan et al. 2019, arXiv:1909.11942, section 4.1).
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    from stillhouse.models.checkpoints import with_special_tokens

    def with_model(model: models.Unigram) -> Tokenizer:
        tokenizer = Tokenizer(model)
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        return tokenizer

    raw = with_model(models.Unigram())
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size, special_tokens=list(_SPECIAL), unk_token="[UNK]", show_progress=False
    )
    raw.train_from_iterator(texts, trainer)
    learned = json.loads(raw.to_str())["model"]["vocab"]
    pieces = _in_order({piece: score for piece, score in learned if piece not in _SPECIAL})
    tokenizer = with_model(models.Unigram([*((piece, 0.0) for piece in _SPECIAL), *pieces], _SPECIAL.index("[UNK]")))
    tokenizer.add_special_tokens(list(_SPECIAL))
    return with_special_tokens(tokenizer, _LENGTH)


def _in_order(scores: dict[str, float]) -> list[tuple[str, float]]:
    """Pieces and scores, those of equal texts equal, whatever the hash tables that the trainer counts in.

    Their order decides the last digits of sums, which are rounded away, and in which order the characters that must be
    kept are put below all other pieces, by a little more each; here they are put level with the lowest.
    """
    lowest = min((score for piece, score in scores.items() if len(piece) > 1), default=min(scores.values(), default=0))
    rounded = {piece: round(max(score, lowest), 5) for piece, score in scores.items()}
    return sorted(rounded.items(), key=lambda pair: (-pair[1], pair[0]))


def _continuations(pieces: Sequence[str]) -> NDArray[np.bool_]:
    """Which pieces [v] continue a word, by the mark that the vocabulary uses: `##` before these, or a space's mark
    (SentencePiece's ▁, byte-level BPE's Ġ) before all others. Without marks none does.
    """
    if any(piece.startswith("##") for piece in pieces):
        return np.array([piece.startswith("##") for piece in pieces])
    for mark in ("▁", "Ġ"):
        if any(piece.startswith(mark) for piece in pieces):
            return np.array([not piece.startswith(mark) for piece in pieces])
    return np.zeros(len(pieces), dtype=bool)
