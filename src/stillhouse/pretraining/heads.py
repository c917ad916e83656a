"""The heads that a pretraining model has over its encoder, whatever its family calls them.

A language-model head maps every position to the whole vocabulary, which is most of a small model's work; only masked
positions need it, about one in seven.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["HeadParts", "LanguageModel", "Predictions", "head_parts"]


@dataclass(frozen=True)
class HeadParts:
    """Where a model class has its heads."""

    language: str
    """Submodule that the encoder's output goes into, on its way to the vocabulary."""
    transform: str
    """Linear layer [h, h] (or [h, e]) at the head's beginning."""
    bias: str
    """Parameter [v] that is added to the logits."""
    logits: str
    """Name of the language model's logits in the output."""
    sentence: str = ""
    """Name of the sentence task's logits; empty where there is no such head."""
    sentence_parts: tuple[str, ...] = ()
    """Submodules that only the sentence task trains."""
    language_parts: tuple[str, ...] = ()
    """Submodules and parameters that only the language model trains; the decoder's weight is the embeddings' own."""


_PARTS = {
    "BertForPreTraining": HeadParts(
        "cls.predictions", "cls.predictions.transform.dense", "cls.predictions.bias", "prediction_logits",
        "seq_relationship_logits", ("bert.pooler", "cls.seq_relationship"),
        ("cls.predictions.transform", "cls.predictions.bias"),
    ),
    "BertForMaskedLM": HeadParts(
        "cls.predictions", "cls.predictions.transform.dense", "cls.predictions.bias", "logits",
        language_parts=("cls.predictions.transform", "cls.predictions.bias"),
    ),
    **dict.fromkeys(
        ("RobertaForMaskedLM", "XLMRobertaForMaskedLM", "CamembertForMaskedLM"),
        HeadParts(
            "lm_head", "lm_head.dense", "lm_head.bias", "logits",
            language_parts=("lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),
        ),
    ),
    "AlbertForPreTraining": HeadParts(
        "predictions", "predictions.dense", "predictions.bias", "prediction_logits", "sop_logits",
        ("albert.pooler", "sop_classifier"), ("predictions.dense", "predictions.LayerNorm", "predictions.bias"),
    ),
    "DistilBertForMaskedLM": HeadParts(
        "vocab_transform", "vocab_transform", "vocab_projector.bias", "logits",
        language_parts=("vocab_transform", "vocab_layer_norm", "vocab_projector.bias"),
    ),
}  # fmt: skip


def head_parts(model: PreTrainedModel) -> HeadParts | None:
    """Where a model has its heads; None for a class that is not known here."""
    return _PARTS.get(type(model).__name__)


class Predictions(NamedTuple):
    """What a model says of a batch of b sequences of s tokens, m of them masked."""

    language: torch.Tensor
    """[m, v] logits at the masked positions."""
    sentence: torch.Tensor | None
    """[b, 2] logits of the sentence task."""
    states: tuple[torch.Tensor, ...] | None
    """[b, s, h] each: the embeddings' output, then every layer's, where they were asked for."""


class LanguageModel:
    """Calls a model so that its language-model head sees the masked positions alone.

    Args:
        model: of a class that `head_parts` knows; it is not changed but for a hook on its head.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        parts = head_parts(model)
        assert parts is not None, type(model).__name__
        self.model: Any = model
        self.parts = parts
        self._positions: torch.Tensor | None = None
        self.model.get_submodule(parts.language).register_forward_pre_hook(self._select)

    def __call__(self, batch: dict[str, Any], *, states: bool = False, through: Any = None) -> Predictions:
        """The predictions for a batch; `through` is the model where it is wrapped, for several processes."""
        names = ("input_ids", "attention_mask", "token_type_ids")
        inputs = {name: batch[name] for name in names if name in batch}
        self._positions = batch["positions"]
        try:
            outputs = (self.model if through is None else through)(**inputs, output_hidden_states=states)
        finally:
            self._positions = None
        sentence = outputs[self.parts.sentence] if self.parts.sentence else None
        return Predictions(outputs[self.parts.logits], sentence, outputs.hidden_states if states else None)

    def train_only(self, *, encoder: bool = True, language: bool = True, sentence: bool = True) -> None:
        """Let only these parts of the model learn: what no term of the loss reaches must not be waited for."""
        self.model.requires_grad_(encoder)
        for names, wanted in ((self.parts.sentence_parts, sentence), (self.parts.language_parts, language)):
            for name in names:
                part = self.model
                for step in name.split("."):
                    part = getattr(part, step)
                part.requires_grad_(wanted)

    def _select(self, module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._positions is None:
            return None
        return (arguments[0].flatten(0, 1).index_select(0, self._positions), *arguments[1:])
