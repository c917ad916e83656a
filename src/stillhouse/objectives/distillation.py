"""The terms of the distillation loss.

Shapes: b sequences in a batch, s tokens, h hidden size, c classes. Over a vocabulary, the rows b are the
masked positions of a batch, and the classes c its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

__all__ = ["hard_label_loss", "hidden_cosine_loss", "matched_cosine_loss", "soft_target_loss"]


def hard_label_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of logits [b, c] with label ids [b]; a scalar, in nats."""
    return functional.cross_entropy(logits.float(), labels)


def soft_target_loss(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Kullback-Leibler divergence from the teacher's softened distribution to the student's; a scalar, in nats.

    Both logits [b, c] are divided by the temperature before the softmax. The mean over the batch is multiplied by the
    temperature squared, since the gradients of soft targets shrink by that factor.

    Source: Hinton et al. 2015, arXiv:1503.02531, section 2; used as L_ce in Sanh et al. 2019, arXiv:1910.01108,
    section 2.
    """
    student = functional.log_softmax(student_logits.float() / temperature, dim=-1)
    teacher = functional.log_softmax(teacher_logits.float() / temperature, dim=-1)
    return functional.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def hidden_cosine_loss(
    student_hidden: torch.Tensor, teacher_hidden: torch.Tensor, attention_mask: torch.Tensor
) -> torch.Tensor:
    """Mean over non-padding tokens of one minus the cosine between hidden states; a scalar between 0 and 2.

    Args:
        student_hidden: [b, s, h].
        teacher_hidden: [b, s, h], of the same tokens.
        attention_mask: [b, s], 1 for tokens and 0 for padding.

    Source: Sanh et al. 2019, arXiv:1910.01108, section 2 (L_cos).
    """
    cosine = functional.cosine_similarity(student_hidden.float(), teacher_hidden.float(), dim=-1)
    mask = attention_mask.to(cosine.dtype)
    return ((1.0 - cosine) * mask).sum() / mask.sum()


def matched_cosine_loss(
    student_states: Sequence[torch.Tensor],
    teacher_states: Sequence[torch.Tensor],
    layers: Sequence[int],
    attention_mask: torch.Tensor,
) -> torch.Tensor:
    """Mean of `hidden_cosine_loss` over the student's layers, each with the teacher's layer that it follows; a scalar.

    Args:
        student_states: [b, s, h] each: the embeddings' output, then that of every layer.
        teacher_states: the same of the teacher.
        layers: for each layer of the student, the teacher's layer, counted from 1.
        attention_mask: [b, s], 1 for tokens and 0 for padding.

    Source: as `hidden_cosine_loss`, which the paper computes of the last layers; every layer matched is our choice.
    """
    pairs = zip(student_states[1:], layers, strict=True)
    terms = [hidden_cosine_loss(hidden, teacher_states[layer], attention_mask) for hidden, layer in pairs]
    return torch.stack(terms).mean()
