"""Runs a trained checkpoint in PyTorch: what is measured of a model that no package can be made of.

Only its answers are comparable with those of packages; its latency and memory are PyTorch's, and nothing serves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from stillhouse.artifacts import ModelManifest
from stillhouse.models import checkpoints
from stillhouse.tasks import get_task

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Answers", "CheckpointRuntime"]


class Answers(NamedTuple):
    """Answers for n texts and c labels."""

    probabilities: NDArray[np.float32]
    """[n, c], rows sum to 1."""


class CheckpointRuntime:
    """A model artifact, with its own tokenizer.

    Args:
        folder: the artifact.
        threads: threads of one call.

    Raises:
        InputError: it is no model artifact, or cannot be loaded.
    """

    def __init__(self, folder: Path, *, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        manifest = ModelManifest.load(folder)
        reference = checkpoints.reference_for(folder)
        self._task = get_task(manifest.task)
        self._max_length = manifest.max_length
        self._tokenizer = checkpoints.load_tokenizer(reference, manifest.name)
        head = self._task.head_config(manifest.label_names)
        self._model = checkpoints.load_model(reference, manifest.name, self._task.auto_class, head).eval()

    def predict(self, texts: Sequence[str]) -> Answers:
        """Classify the texts in one batch."""
        import torch

        encoded = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=self._max_length, return_tensors="pt",
            return_token_type_ids=False,
        )  # fmt: skip
        with torch.inference_mode():
            probabilities = self._task.probabilities(self._model(**encoded).logits.float())
        return Answers(np.asarray(probabilities.numpy(), dtype=np.float32))
