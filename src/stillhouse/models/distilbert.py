"""A DistilBERT student made from the layers of a BERT teacher.

Source: Sanh et al. 2019, arXiv:1910.01108, section 3: token-type embeddings and pooler removed, the number of layers
halved, weights taken from the teacher.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from stillhouse.errors import InputError, Problem

if TYPE_CHECKING:
    from transformers import BertForSequenceClassification, DistilBertForSequenceClassification

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
    teacher: BertForSequenceClassification, layers: Sequence[int]
) -> DistilBertForSequenceClassification:
    """Build a DistilBERT that starts as the given layers of `teacher` (counted from 1).

    Single texts always carry token type 0, so the embedding of type 0 is added to every word embedding: with it folded
    in, the student's embedding output equals the teacher's to rounding, although DistilBERT has no token types.
    Dropping it would shift the input of the first copied LayerNorm for every token. The classification head starts
    fresh, since DistilBERT's has no counterpart of BERT's pooler.

    Raises:
        InputError: the teacher is not of the BERT family.
    """
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    source = teacher.config
    if source.model_type != "bert":
        raise InputError(
            Problem("teacher", f"is of the family {source.model_type!r}; a DistilBERT takes its layers from a BERT.",
                    "Give a BERT checkpoint.")
        )  # fmt: skip
    config = DistilBertConfig(
        vocab_size=source.vocab_size,
        max_position_embeddings=source.max_position_embeddings,
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
    student = DistilBertForSequenceClassification(config)
    with torch.no_grad():
        old, new = teacher.bert.embeddings, student.distilbert.embeddings
        new.word_embeddings.weight.copy_(old.word_embeddings.weight + old.token_type_embeddings.weight[0])
        new.position_embeddings.weight.copy_(old.position_embeddings.weight)
        new.LayerNorm.load_state_dict(old.LayerNorm.state_dict())
        for block, layer in zip(student.distilbert.transformer.layer, layers, strict=True):
            original = teacher.bert.encoder.layer[layer - 1]
            for part, counterpart in _LAYER_PARTS.items():
                block.get_submodule(part).load_state_dict(original.get_submodule(counterpart).state_dict())
    return student
