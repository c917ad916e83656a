"""Training objectives, and changes to what they see, as pure functions."""

from stillhouse.objectives.augmentation import word_dropout
from stillhouse.objectives.distillation import hard_label_loss, hidden_cosine_loss, soft_target_loss

__all__ = ["hard_label_loss", "hidden_cosine_loss", "soft_target_loss", "word_dropout"]
