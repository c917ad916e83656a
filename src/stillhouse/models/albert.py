"""ALBERTs: which parts their layers share, and how to make one from a BERT.

Source: Lan et al. 2019, arXiv:1909.11942, section 3.1 (factorised embedding parameterisation, cross-layer parameter
sharing) and section 4.5 (sharing attention or feed-forward networks alone). Making an ALBERT from a trained BERT,
rather than pretraining it, is our own; it needs distillation afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from stillhouse.errors import InputError, Problem
from stillhouse.models.bert_like import language_head, require_bert_like
from stillhouse.models.families import first_position
from stillhouse.models.shape import FIELD, PARTIAL_SHARING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "LAYER_SHARING",
    "Factorisation",
    "albert_from_bert",
    "evenly_spaced_layers",
    "factorise",
    "layer_sharing_of",
    "sharing_fields",
    "tie_layers",
]

LAYER_SHARING = ("all", *PARTIAL_SHARING, "none")
"""What the layers of an ALBERT may share."""
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


def _kind(part: str) -> str:
    """Whether a part of a block goes with `attention` or with `ffn`; each LayerNorm goes with what it follows."""
    return "attention" if part.startswith("attention.") else "ffn"


def sharing_fields(fields: Mapping[str, Any], parameter: str) -> dict[str, Any]:
    """Config fields of an ALBERT, where those given may hold `layer_sharing`: all, attention, ffn or none.

    transformers knows groups of layers that share everything. One group is `all`, and as many groups as layers are
    `none`; the others are `none` with ties, which the config's field `stillhouse` tells of.

    Raises:
        InputError: there is no such sharing, or the groups that are given contradict it.
    """
    from transformers import AlbertConfig

    given = dict(fields)
    if "layer_sharing" not in given:
        return given
    sharing = given.pop("layer_sharing")
    if sharing not in LAYER_SHARING:
        what = f"layer_sharing={sharing} is unknown."
        raise InputError(Problem(parameter, what, f"Choose one of: {', '.join(LAYER_SHARING)}."))
    layers = given.get("num_hidden_layers", AlbertConfig().num_hidden_layers)
    groups = 1 if sharing == "all" else layers
    if given.get("num_hidden_groups", 1) not in (1, groups):
        what = f"layer_sharing={sharing} has {groups} groups, and num_hidden_groups is {given['num_hidden_groups']}."
        raise InputError(Problem(parameter, what, "Leave one of them out."))
    given["num_hidden_groups"] = groups
    if sharing in PARTIAL_SHARING:
        given[FIELD] = {"layer_sharing": sharing}
    return given


def layer_sharing_of(config: Any) -> str:
    """What the layers of an ALBERT with that config share; `groups` where each of several groups shares all."""
    partial = (getattr(config, FIELD, None) or {}).get("layer_sharing")
    if partial:
        return str(partial)
    if config.num_hidden_groups == 1:
        return "all"
    return "none" if config.num_hidden_groups == config.num_hidden_layers else "groups"


def _blocks(model: PreTrainedModel) -> Iterator[tuple[str, Any]]:
    """Each block of an ALBERT that has parameters of its own, by its name within the encoder's model."""
    for index, group in enumerate(model.base_model.encoder.albert_layer_groups):
        for inner, block in enumerate(group.albert_layers):
            yield f"encoder.albert_layer_groups.{index}.albert_layers.{inner}", block


def tie_layers(model: PreTrainedModel, sharing: str) -> None:
    """Make all blocks of an ALBERT use the first one's parameters for what they share; again, it changes nothing.

    The ties are noted where transformers notes its own, so that `save_pretrained` writes each shared tensor once and
    `tie_weights` keeps them.

    Args:
        model: with any head, or none, and as many groups as layers; on any device.
        sharing: `attention` or `ffn`; with `all` and `none` there is nothing to tie.
    """
    (first_name, first), *others = _blocks(model)
    ties = {}
    for name, block in others:
        for part in (part for part in _BLOCK_PARTS if _kind(part) == sharing):
            target = block.get_submodule(part)
            for leaf, parameter in first.get_submodule(part).named_parameters():
                assert target.get_parameter(leaf).shape == parameter.shape, f"{name}.{part} has another shape"
                setattr(target, leaf, parameter)
                ties[f"{name}.{part}.{leaf}"] = f"{first_name}.{part}.{leaf}"
    base = model.base_model
    base._tied_weights_keys = {**(type(base)._tied_weights_keys or {}), **ties}
    for module in (base, model):
        module.all_tied_weights_keys = module.get_expanded_tied_weights_keys(all_submodels=True)


_EARLY = 128
"""Positions that a factorisation looks at."""
_DRAWS = 16
"""Positions at which it sees each word: with one, the fit is to where a few frequent words happen to be drawn."""


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
    teacher: PreTrainedModel,
    *,
    embedding_size: int,
    layers: int = 0,
    layer_sharing: str = "all",
    token_counts: torch.Tensor | None = None,
    seed: int = 0,
    student_class: str = "AlbertForSequenceClassification",
) -> tuple[Any, float]:
    """Build an ALBERT of the teacher's width, and the share of embedding energy that it keeps.

    `layers` is how many layers a text passes; 0 takes the teacher's depth. Fewer are faster, and easier to recover: one
    block cannot follow each of many different ones.

    The word, position and type embeddings [·, h] are projected to `embedding_size` = e by the truncated SVD of their
    sums, each word at each position: the first layer reads the sums, and positions have directions of their own, which
    words alone do not show. With `token_counts` [v], how often each token stands in the training texts, a word counts
    in it as often as it is used (plus once): most of a general vocabulary never occurs in one domain, and the few
    directions are better spent on what does. ALBERT normalises in the small space, before the mapping to h, where BERT
    normalises after it; so the mapping [h, e] is fitted by least squares to give BERT's own normalised embeddings back,
    over the vocabulary, weighted alike, each word at several random positions.

    What the layers share (`layer_sharing`: all, attention, ffn or none) starts as that of the teacher's last layer:
    applied again and again it still does some of its work, which a mean over the layers does not, for heads and neurons
    of different layers do not correspond. What is a layer's own is copied from the teacher's layer at the same share of
    the depth.

    Of a `student_class` that classifies, the pooler, or the layer that a RoBERTa has in its place, and the classifier
    are copied. An `AlbertForPreTraining` takes over the teacher's language-model head instead, where it has one: its
    dense layer, whose output is projected as the word embeddings are, and its bias.

    Raises:
        InputError: the teacher is not built as BERT is, `embedding_size` exceeds its hidden size, or there is no such
            sharing.
    """
    import transformers

    source = teacher.config
    old = require_bert_like(teacher, "an ALBERT")
    if not 1 <= embedding_size <= source.hidden_size:
        raise InputError(
            Problem("albert_embedding_size", f"{embedding_size} is not between 1 and the teacher's hidden size "
                    f"{source.hidden_size}.", "Choose a size in that range.")
        )  # fmt: skip
    depth = layers or source.num_hidden_layers
    fields = sharing_fields({"num_hidden_layers": depth, "layer_sharing": layer_sharing}, "albert")
    config = transformers.AlbertConfig(
        **fields,
        vocab_size=source.vocab_size,
        embedding_size=embedding_size,
        hidden_size=source.hidden_size,
        num_attention_heads=source.num_attention_heads,
        intermediate_size=source.intermediate_size,
        hidden_act=source.hidden_act,
        max_position_embeddings=source.max_position_embeddings - first_position(source),
        type_vocab_size=source.type_vocab_size,
        layer_norm_eps=source.layer_norm_eps,
        initializer_range=source.initializer_range,
        pad_token_id=source.pad_token_id,
        # No dropout, as in the paper's section 4.8; the small space overfits little. The classifier's own, which the
        # paper keeps when it fine-tunes (its table 14), is another thing.
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        classifier_dropout_prob=0.1,
        num_labels=source.num_labels,
        id2label=source.id2label,
        label2id=source.label2id,
        problem_type=source.problem_type,
    )
    student = getattr(transformers, student_class)(config)
    with torch.no_grad():
        factors = _factorise_embeddings(teacher, student, embedding_size, token_counts, seed)
        followed = evenly_spaced_layers(depth, source.num_hidden_layers)
        for index, (_, block) in enumerate(_blocks(student)):
            for part, counterpart in _BLOCK_PARTS.items():
                shared = layer_sharing in ("all", _kind(part))
                original = old.encoder.layer[-1 if shared else followed[index] - 1]
                block.get_submodule(part).load_state_dict(original.get_submodule(counterpart).state_dict())
        if student_class == "AlbertForPreTraining":
            if head := language_head(teacher):
                student.predictions.dense.weight.copy_(factors.basis.T @ head.dense.weight)
                student.predictions.dense.bias.copy_(factors.basis.T @ head.dense.bias)
                student.predictions.bias.copy_(head.bias)
        else:
            # RoBERTa's head begins with a layer of its own that does what BERT's pooler does.
            pooled = teacher.classifier.dense if old.pooler is None else old.pooler.dense
            classifier = teacher.classifier.out_proj if old.pooler is None else teacher.classifier
            student.albert.pooler.load_state_dict(pooled.state_dict())
            student.classifier.load_state_dict(classifier.state_dict())
    tie_layers(student, layer_sharing)
    return student, factors.energy


def _factorise_embeddings(
    teacher: PreTrainedModel,
    student: Any,
    size: int,
    token_counts: torch.Tensor | None,
    seed: int,
) -> Factorisation:
    """Set the student's embeddings and mapping; return what they were projected by."""
    old, new = teacher.base_model.embeddings, student.albert.embeddings
    words, kind = old.word_embeddings.weight, old.token_type_embeddings.weight[0]
    places = old.position_embeddings.weight[first_position(teacher.config) :]
    weights = torch.ones(len(words))
    if token_counts is not None:
        weights = weights + token_counts
    # Real texts are short, so later positions would only blur the fit.
    early = places[:_EARLY]
    middle = early.mean(dim=0)
    # The squares of all sums of a word and a position are those of the words at the mean position, and of the positions
    # around it, counted once for each word.
    each = (weights.sum() / len(early)).expand(len(early))
    factors = factorise(torch.cat([words + middle + kind, early - middle]), size, torch.cat([weights, each]))
    new.word_embeddings.weight.copy_(words @ factors.basis)
    new.position_embeddings.weight.copy_(places @ factors.basis)
    new.token_type_embeddings.weight.copy_(old.token_type_embeddings.weight @ factors.basis)

    generator = torch.Generator().manual_seed(seed)
    gram, moments = torch.zeros(size + 1, size + 1), torch.zeros(size + 1, words.shape[1])
    for _ in range(_DRAWS):
        drawn = torch.randint(len(early), (len(words),), generator=generator)
        target = old.LayerNorm(words + places[drawn] + kind)
        small = new.word_embeddings.weight + new.position_embeddings.weight[drawn] + new.token_type_embeddings.weight[0]
        inputs = torch.cat([new.LayerNorm(small), torch.ones(len(words), 1)], dim=1)
        weighted = inputs * weights[:, None]
        gram += weighted.T @ inputs
        moments += weighted.T @ target
    # A little ridge keeps the fit well conditioned where e is close to h.
    gram += 1e-3 * _DRAWS * torch.eye(size + 1)
    solution = torch.linalg.solve(gram.double(), moments.double()).float()
    mapping = student.albert.encoder.embedding_hidden_mapping_in
    mapping.weight.copy_(solution[:-1].T)
    mapping.bias.copy_(solution[-1])
    return factors
