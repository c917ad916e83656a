"""Training: fine-tuning and distillation on `transformers.Trainer`."""

from stillhouse.training.config import DistillationSettings, DistillConfig, FinetuneConfig, PruneSettings

__all__ = ["DistillConfig", "DistillationSettings", "FinetuneConfig", "PruneSettings"]
