"""Families that are built as BERT is, so that students can be made of their parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from stillhouse.errors import InputError, Problem
from stillhouse.models.shape import own_shape

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["BERT_LIKE", "LanguageHead", "hidden_layers", "language_head", "require_bert_like"]

BERT_LIKE = ("bert", "roberta", "xlm-roberta", "camembert")
"""Families whose embeddings and blocks are BERT's, so that a student can be made of their parts (MiniLM is a BERT)."""


def hidden_layers(config: PretrainedConfig) -> int:
    """Number of hidden states that the model gives beside its embeddings: how many blocks a text passes."""
    return int(config.num_hidden_layers) * int(getattr(config, "inner_group_num", 1))


def require_bert_like(teacher: PreTrainedModel, made: str) -> Any:
    """The teacher's encoder with its embeddings, where it is built as BERT is.

    Args:
        teacher: with any head, or none.
        made: what is to be made of it, such as `a DistilBERT`.

    Raises:
        InputError: it is of another family, or pruned.
    """
    family = teacher.config.model_type
    if family not in BERT_LIKE:
        raise InputError(
            Problem("teacher", f"is of the family {family!r}; {made} is made from one of: {', '.join(BERT_LIKE)}.",
                    "Give such a checkpoint.")
        )  # fmt: skip
    if {"heads", "neurons"} & set(own_shape(teacher.config)):
        what = f"has heads or neurons pruned away, and {made} has equal layers."
        raise InputError(Problem("teacher", what, "Give the checkpoint from before the pruning."))
    return teacher.base_model


class LanguageHead(NamedTuple):
    """What a masked-language model has over its encoder; its output matrix is the word embeddings."""

    dense: torch.nn.Linear
    """[h, h]"""
    norm: torch.nn.LayerNorm
    """[h]"""
    bias: torch.Tensor
    """[v], added to the logits."""


def language_head(teacher: Any) -> LanguageHead | None:
    """The language-model head of a BERT-like model; None where it has none."""
    if hasattr(teacher, "cls") and hasattr(teacher.cls, "predictions"):  # BERT
        head = teacher.cls.predictions
        return LanguageHead(head.transform.dense, head.transform.LayerNorm, head.bias)
    if hasattr(teacher, "lm_head"):  # RoBERTa
        return LanguageHead(teacher.lm_head.dense, teacher.lm_head.layer_norm, teacher.lm_head.bias)
    return None
