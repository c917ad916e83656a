"""What differs between families of checkpoints, beyond what their configs say."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["adapt", "classifies", "first_position", "position_limit"]

_OFFSET_POSITIONS = frozenset(
    ("camembert", "data2vec-text", "esm", "ibert", "longformer", "mpnet", "roberta", "roberta-prelayernorm",
     "xlm-roberta", "xlm-roberta-xl", "xmod")
)  # fmt: skip
"""Families whose first token stands at the position after the padding token's id, as in fairseq."""
_POOLED_AT_END = frozenset(("bart", "mbart"))
"""Families that classify by the decoder's state at the last end-of-sentence token."""


def first_position(config: PretrainedConfig) -> int:
    """The row of the position embeddings that the first token of a text takes."""
    if config.model_type not in _OFFSET_POSITIONS:
        return 0
    return int(config.pad_token_id if config.pad_token_id is not None else 0) + 1


def position_limit(config: PretrainedConfig) -> int | None:
    """How many tokens a text may have; None where the positions are relative, and set no limit.

    RoBERTa's table of 514 positions takes 512 tokens: positions are counted from `pad_token_id` + 1.
    """
    rows = getattr(config, "max_position_embeddings", None)
    return int(rows) - first_position(config) if rows and rows > 0 else None  # XLNet says -1


def classifies(config: PretrainedConfig, auto_class: str) -> bool:
    """Whether transformers has a model of that family with the head of `auto_class`, such as
    `AutoModelForSequenceClassification`.
    """
    import transformers

    return type(config) in getattr(transformers, auto_class)._model_mapping


def adapt(model: PreTrainedModel) -> PreTrainedModel:
    """Make a classifier, just loaded, take every text and every batch; most families do as they are.

    BART's own forward picks the states at end tokens by a mask, and fails where rows differ in their number: a text
    with `</s>` in it, which is HTML for the end of struck-out words, ends a training. It also exports badly, since the
    mask's size is data. Taking the state at the last end token gives the same for every row with one of them.
    """
    if model.config.model_type in _POOLED_AT_END and hasattr(model, "classification_head"):
        model.forward = types.MethodType(_forward_pooled_at_end, model)
    return model


def _forward_pooled_at_end(
    self: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    output_hidden_states: bool | None = None,
) -> Any:
    """Logits [b, c] of token ids [b, s]; a row without an end token is classified by its first state."""
    import torch
    from transformers.modeling_outputs import SequenceClassifierOutput

    states = self.model(
        input_ids, attention_mask=attention_mask, output_hidden_states=output_hidden_states, use_cache=False
    ).last_hidden_state  # [b, s, h]
    steps = torch.arange(input_ids.shape[1], device=input_ids.device)
    last = (input_ids.eq(self.config.eos_token_id) * steps).amax(dim=1)  # [b]
    index = last[:, None, None].expand(-1, 1, states.shape[2])
    return SequenceClassifierOutput(logits=self.classification_head(states.gather(1, index)[:, 0]))
