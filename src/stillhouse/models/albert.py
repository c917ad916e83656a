"""An ALBERT made from a BERT: factorised embeddings and one block shared by all layers.

Source: Lan et al. 2019, arXiv:1909.11942, section 3.1 (factorised embedding parameterisation, cross-layer parameter
sharing). Making it from a trained BERT, rather than pretraining it, is our own; it needs distillation afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from stillhouse.errors import InputError, Problem

if TYPE_CHECKING:
    from transformers import AlbertForSequenceClassification, BertForSequenceClassification

__all__ = ["Factorisation", "albert_from_bert", "evenly_spaced_layers", "factorise"]

_BLOCK_PARTS = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.dense": "attention.output.dense",
    "attention.LayerNorm": "attention.output.LayerNorm",
    "ffn": "intermediate.dense",
    "ffn_output": "output.dense",
    "full_layer_layer_norm": "output.LayerNorm",
}
"""ALBERT's name for each part of a transformer block, and BERT's."""


@dataclass(frozen=True)
class Factorisation:
    """Truncated singular value decomposition of an embedding matrix [v, h]."""

    basis: torch.Tensor
    """[h, e], orthonormal columns: the directions kept."""
    energy: float
    """Share of the squared Frobenius norm kept, between 0 and 1."""


def factorise(embeddings: torch.Tensor, size: int, weights: torch.Tensor | None = None) -> Factorisation:
    """The `size` leading right singular vectors of embeddings [v, h], each row weighted by the root of its weight.

    `embeddings @ basis` [v, e] followed by `basis.T` [e, h] is the best approximation of rank e in the (weighted)
    squared error (Eckart and Young 1936). Computed from the h by h Gram matrix, since v is much larger than h.

    Args:
        embeddings: [v, h].
        size: e, the number of directions kept.
        weights: [v], not negative; None weighs all rows alike.
    """
    matrix = embeddings.detach().double()
    if weights is not None:
        matrix = matrix * weights.double().sqrt()[:, None]
    values, vectors = torch.linalg.eigh(matrix.T @ matrix)
    kept = values.flip(0)[:size].clamp(min=0)
    return Factorisation(vectors.flip(1)[:, :size].float(), float(kept.sum() / values.clamp(min=0).sum()))


def evenly_spaced_layers(count: int, teacher_layers: int) -> tuple[int, ...]:
    """For each of `count` layers, the teacher's layer (counted from 1) at the same share of its depth, rounded up."""
    return tuple(-(-layer * teacher_layers // count) for layer in range(1, count + 1))


def albert_from_bert(
    teacher: BertForSequenceClassification,
    *,
    embedding_size: int,
    layers: int = 0,
    token_counts: torch.Tensor | None = None,
    seed: int = 0,
) -> tuple[AlbertForSequenceClassification, float]:
    """Build an ALBERT of the teacher's width, and the share of embedding energy that it keeps.

    `layers` is how often the shared block is applied; 0 takes the teacher's depth. Fewer are faster, and easier to
    recover: one block cannot follow each of many different ones.

    The word, position and type embeddings [·, h] are projected to `embedding_size` = e by the truncated SVD of the word
    embeddings. With `token_counts` [v], how often each token stands in the training texts, a word counts in it as often
    as it is used (plus once): most of a general vocabulary never occurs in one domain, and the few directions are
    better spent on what does. ALBERT normalises in the small space, before the mapping to h, where BERT normalises
    after it; so the mapping [h, e] is fitted by least squares to give BERT's own normalised embeddings back, over the
    vocabulary, weighted alike, at random positions.

    The shared block starts as the mean of the teacher's blocks: attention heads of different layers do not correspond,
    but the mean keeps the scale and bias that residual stream and LayerNorm expect. Pooler and classifier are copied.

    Raises:
        InputError: the teacher is not of the BERT family, or `embedding_size` exceeds its hidden size.
    """
    from transformers import AlbertConfig, AlbertForSequenceClassification

    source = teacher.config
    problems = []
    if source.model_type != "bert":
        problems.append(
            Problem("teacher", f"is of the family {source.model_type!r}; an ALBERT is made from a BERT.",
                    "Give a BERT checkpoint, or a trained ALBERT checkpoint as `albert`.")
        )  # fmt: skip
    elif not 1 <= embedding_size <= source.hidden_size:
        problems.append(
            Problem("albert_embedding_size", f"{embedding_size} is not between 1 and the teacher's hidden size "
                    f"{source.hidden_size}.", "Choose a size in that range.")
        )  # fmt: skip
    if problems:
        raise InputError(problems)
    config = AlbertConfig(
        vocab_size=source.vocab_size,
        embedding_size=embedding_size,
        hidden_size=source.hidden_size,
        num_hidden_layers=layers or source.num_hidden_layers,
        num_attention_heads=source.num_attention_heads,
        intermediate_size=source.intermediate_size,
        hidden_act=source.hidden_act,
        max_position_embeddings=source.max_position_embeddings,
        type_vocab_size=source.type_vocab_size,
        layer_norm_eps=source.layer_norm_eps,
        initializer_range=source.initializer_range,
        pad_token_id=source.pad_token_id,
        # No dropout, as in the paper's section 4.8; the small space overfits little.
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        classifier_dropout_prob=0.1,
        num_labels=source.num_labels,
        id2label=source.id2label,
        label2id=source.label2id,
        problem_type=source.problem_type,
    )
    student = AlbertForSequenceClassification(config)
    with torch.no_grad():
        energy = _factorise_embeddings(teacher, student, embedding_size, token_counts, seed)
        block = student.albert.encoder.albert_layer_groups[0].albert_layers[0]
        for part, counterpart in _BLOCK_PARTS.items():
            module = block.get_submodule(part)
            states = [layer.get_submodule(counterpart).state_dict() for layer in teacher.bert.encoder.layer]
            module.load_state_dict({name: torch.stack([s[name] for s in states]).mean(dim=0) for name in states[0]})
        student.albert.pooler.load_state_dict(teacher.bert.pooler.dense.state_dict())
        student.classifier.load_state_dict(teacher.classifier.state_dict())
    return student, energy


def _factorise_embeddings(
    teacher: BertForSequenceClassification,
    student: AlbertForSequenceClassification,
    size: int,
    token_counts: torch.Tensor | None,
    seed: int,
) -> float:
    """Set the student's embeddings and mapping; return the energy kept."""
    old, new = teacher.bert.embeddings, student.albert.embeddings
    weights = torch.ones(old.word_embeddings.num_embeddings)
    if token_counts is not None:
        weights = weights + token_counts
    factors = factorise(old.word_embeddings.weight, size, weights)
    for name in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
        getattr(new, name).weight.copy_(getattr(old, name).weight @ factors.basis)

    words = torch.arange(old.word_embeddings.num_embeddings)
    generator = torch.Generator().manual_seed(seed)
    # Real texts are short, so positions beyond 128 would only blur the fit.
    positions = torch.randint(min(128, old.position_embeddings.num_embeddings), words.shape, generator=generator)
    target = old.LayerNorm(
        old.word_embeddings(words) + old.position_embeddings(positions) + old.token_type_embeddings.weight[0]
    )
    reduced = new.LayerNorm(
        new.word_embeddings(words) + new.position_embeddings(positions) + new.token_type_embeddings.weight[0]
    )
    inputs = torch.cat([reduced, torch.ones(len(words), 1)], dim=1)
    weighted = inputs * weights[:, None]
    # A little ridge keeps the fit well conditioned where e is close to h.
    gram = weighted.T @ inputs + 1e-3 * torch.eye(inputs.shape[1])
    solution = torch.linalg.solve(gram.double(), (weighted.T @ target).double()).float()
    mapping = student.albert.encoder.embedding_hidden_mapping_in
    mapping.weight.copy_(solution[:-1].T)
    mapping.bias.copy_(solution[-1])
    return factors.energy
