"""Families that are built as BERT is, so that students can be made of their parts, and how each counts positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stillhouse.errors import InputError, Problem
from stillhouse.models.shape import own_shape

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["BERT_LIKE", "first_position", "hidden_layers", "position_limit", "require_bert_like"]

BERT_LIKE = ("bert", "roberta", "xlm-roberta", "camembert")
"""Families whose embeddings and blocks are BERT's, so that a student can be made of their parts (MiniLM is a BERT)."""
_AFTER_PADDING = (
    "roberta",
    "xlm-roberta",
    "camembert",
    "longformer",
    "mpnet",
    "roberta-prelayernorm",
    "xlm-roberta-xl",
)
"""Families that number positions from one more than the id of the padding token, as RoBERTa does."""


def first_position(config: PretrainedConfig) -> int:
    """The row of the position embeddings that the first token of a text takes."""
    return int(config.pad_token_id) + 1 if config.model_type in _AFTER_PADDING else 0


def position_limit(config: PretrainedConfig) -> int | None:
    """Tokens of the longest text that the model has positions for; None where there is no such limit."""
    rows = int(getattr(config, "max_position_embeddings", None) or 0)
    return rows - first_position(config) if rows > 0 else None  # XLNet says -1


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
