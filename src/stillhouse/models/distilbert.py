"""A DistilBERT student made from the layers of a BERT, or of a model built like one.

Source: Sanh et al. 2019, arXiv:1910.01108, section 3: token-type embeddings and pooler removed, the number of layers
halved, weights taken from the teacher.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from stillhouse.errors import InputError, Problem
from stillhouse.models.bert_like import language_head, require_bert_like
from stillhouse.models.families import first_position
from stillhouse.models.shape import apply_shape, set_shape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["alternate_layers", "parse_layers", "student_from_bert"]

_LAYER_PARTS = {
    "attention.q_lin": "attention.self.query",
    "attention.k_lin": "attention.self.key",
    "attention.v_lin": "attention.self.value",
    "attention.out_lin": "attention.output.dense",
    "sa_layer_norm": "attention.output.LayerNorm",
    "ffn.lin1": "intermediate.dense",
    "ffn.lin2": "output.dense",
    "output_layer_norm": "output.LayerNorm",
}
"""DistilBERT's name for each part of a transformer block, and BERT's."""
_LAYER_NORM_EPS = 1e-12
"""Of DistilBERT's LayerNorms; its config cannot name another."""


def alternate_layers(teacher_layers: int) -> tuple[int, ...]:
    """Every second layer, counted from 1 and ending with the last: 2, 4, 6 of six; 2, 4, …, 12 of twelve.

    Ending with the last layer keeps the one that the teacher's classifier was trained to read.
    """
    first = 2 if teacher_layers % 2 == 0 else 1
    return tuple(range(first, teacher_layers + 1, 2))


def parse_layers(text: str, teacher_layers: int | None = None) -> tuple[int, ...]:
    """Layers, counted from 1, written as `2,4,6`; the empty string means every second layer.

    Args:
        text: the `distill_layers` parameter.
        teacher_layers: number of layers that the teacher has, where it is known; else only the form is checked.

    Raises:
        InputError: not a list of rising layer numbers that the teacher has.
    """
    if not text.strip():
        return alternate_layers(teacher_layers) if teacher_layers else ()
    try:
        layers = tuple(int(part) for part in text.split(","))
    except ValueError:
        layers = ()
    rising = bool(layers) and layers[0] >= 1 and all(a < b for a, b in itertools.pairwise(layers))
    if not rising or (teacher_layers is not None and layers[-1] > teacher_layers):
        limit = f"between 1 and {teacher_layers}" if teacher_layers else "from 1 upwards"
        raise InputError(
            Problem("distill_layers", f"{text!r} does not name layers of the teacher.",
                    f"Give rising layer numbers {limit}, such as 2,4,6, or leave it empty for every second one.")
        )  # fmt: skip
    return layers


def student_from_bert(
    teacher: PreTrainedModel, layers: Sequence[int], student_class: str = "DistilBertForSequenceClassification"
) -> Any:
    """Build a DistilBERT that starts as the given layers of `teacher` (counted from 1).

    Embeddings and LayerNorms are carried over. DistilBERT has no token types, and single texts always carry type 0, so
    the embedding of type 0 is added to every word embedding rather than dropped: with it folded in, the student's
    embedding output equals the teacher's to rounding, while without it the input of the first copied LayerNorm would
    shift for every token. RoBERTa counts positions from behind its padding token's id; the rows before it go.

    The pooler is gone, and a classification head starts fresh, since DistilBERT's has no counterpart of it. A
    language-model head is copied where the teacher has one: its output matrix is the word embeddings, to which folding
    has added the same vector in every row, so that all logits of a position shift alike and the probabilities stay.

    Args:
        teacher: a BERT, RoBERTa, XLM-RoBERTa or CamemBERT with any head, or none.
        layers: rising numbers of the layers to copy.
        student_class: `DistilBertForSequenceClassification`, `DistilBertForMaskedLM` or `DistilBertModel`.

    Raises:
        InputError: the teacher is not built as BERT is.
    """
    import transformers

    source = teacher.config
    original = require_bert_like(teacher, "a DistilBERT")
    first = first_position(source)
    config = transformers.DistilBertConfig(
        vocab_size=source.vocab_size,
        max_position_embeddings=source.max_position_embeddings - first,
        n_layers=len(layers),
        n_heads=source.num_attention_heads,
        dim=source.hidden_size,
        hidden_dim=source.intermediate_size,
        dropout=source.hidden_dropout_prob,
        attention_dropout=source.attention_probs_dropout_prob,
        activation=source.hidden_act,
        initializer_range=source.initializer_range,
        pad_token_id=source.pad_token_id,
        seq_classif_dropout=source.classifier_dropout or source.hidden_dropout_prob,
        num_labels=source.num_labels,
        id2label=source.id2label,
        label2id=source.label2id,
        problem_type=source.problem_type,
    )
    if source.layer_norm_eps != _LAYER_NORM_EPS:
        set_shape(config, layer_norm_eps=source.layer_norm_eps)
    student = getattr(transformers, student_class)(config)
    with torch.no_grad():
        old, new = original.embeddings, student.base_model.embeddings
        new.word_embeddings.weight.copy_(old.word_embeddings.weight + old.token_type_embeddings.weight[0])
        new.position_embeddings.weight.copy_(old.position_embeddings.weight[first:])
        new.LayerNorm.load_state_dict(old.LayerNorm.state_dict())
        for block, layer in zip(student.base_model.transformer.layer, layers, strict=True):
            copied = original.encoder.layer[layer - 1]
            for part, counterpart in _LAYER_PARTS.items():
                block.get_submodule(part).load_state_dict(copied.get_submodule(counterpart).state_dict())
        if student_class == "DistilBertForMaskedLM" and (head := language_head(teacher)):
            student.vocab_transform.load_state_dict(head.dense.state_dict())
            student.vocab_layer_norm.load_state_dict(head.norm.state_dict())
            student.vocab_projector.bias.copy_(head.bias)
    return apply_shape(student)
