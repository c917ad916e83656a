"""Training objectives, and changes to what they see, as pure functions."""

from stillhouse.objectives.augmentation import word_dropout
from stillhouse.objectives.distillation import (
    hard_label_loss,
    hidden_cosine_loss,
    matched_cosine_loss,
    soft_target_loss,
)
from stillhouse.objectives.language import masked_language_loss, sentence_pair_loss
from stillhouse.objectives.masking import choose_positions, mask_tokens

__all__ = [
    "choose_positions",
    "hard_label_loss",
    "hidden_cosine_loss",
    "mask_tokens",
    "masked_language_loss",
    "matched_cosine_loss",
    "sentence_pair_loss",
    "soft_target_loss",
    "word_dropout",
]
