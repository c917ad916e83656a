"""Training: fine-tuning and distillation on `transformers.Trainer`."""

from stillhouse.training.config import DistillationWeights, DistillConfig, FinetuneConfig

__all__ = ["DistillConfig", "DistillationWeights", "FinetuneConfig"]
