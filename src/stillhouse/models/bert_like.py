"""Families that are built as BERT is, so that students can be made of their parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stillhouse.errors import InputError, Problem
from stillhouse.models.shape import own_shape

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["BERT_LIKE", "hidden_layers", "require_bert_like"]

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
