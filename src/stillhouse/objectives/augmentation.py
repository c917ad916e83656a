"""Changes to a batch of training texts that make it teach more."""

from __future__ import annotations

import torch

__all__ = ["word_dropout"]


def word_dropout(attention_mask: torch.Tensor, rate: float) -> torch.Tensor:
    """An attention mask [b, s] in which each token is hidden with probability `rate`, drawn anew at each call.

    The first and the last token of every row, [CLS] and [SEP], stay. In distillation the mask goes to teacher and
    student alike: the teacher says what the shortened text means, so that a few rows stand for many. After Iyyer et
    al. 2015 (ACL P15-1162), who drop words of a sentence at random.
    """
    last = attention_mask.sum(dim=1, keepdim=True) - 1
    position = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    kept = torch.rand(attention_mask.shape, device=attention_mask.device) >= rate
    return attention_mask * (kept | (position == 0) | (position == last)).to(attention_mask.dtype)
