"""The losses of language-model pretraining.

Shapes: m masked positions of a whole batch, v tokens in the vocabulary, b sequences in a batch.
"""

from __future__ import annotations

import torch
from torch.nn import functional

__all__ = ["masked_language_loss", "sentence_pair_loss"]


def masked_language_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of logits [m, v] with the tokens [m] that were masked; a scalar, in nats.

    Its exponential is the perplexity of the masked tokens.

    Source: Devlin et al. 2018, arXiv:1810.04805, section 3.1 (task 1).
    """
    return functional.cross_entropy(logits.float(), targets)


def sentence_pair_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of logits [b, 2] with labels [b]; a scalar, in nats.

    Label 0: the second segment follows the first in a document. Label 1: it comes from another document (next-sentence
    prediction, Devlin et al. 2018, arXiv:1810.04805, section 3.1, task 2), or the two are swapped (sentence-order
    prediction, Lan et al. 2019, arXiv:1909.11942, section 3.1).
    """
    return functional.cross_entropy(logits.float(), labels)
