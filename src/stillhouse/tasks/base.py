"""What a task is: everything that differs between kinds of prediction, behind one interface.

Nothing outside `stillhouse.tasks` asks which task it is: steps call the methods below. A new task is a new module
here, listed in `stillhouse.tasks.TASKS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.data.schema import RowSchema

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

__all__ = ["Output", "PairedTest", "Task"]


@dataclass(frozen=True)
class Output:
    """One output tensor of the served model."""

    name: str
    data_type: str
    """Triton data type, for example `TYPE_FP32` or `TYPE_STRING`."""
    dims: tuple[int, ...]
    """Shape of one row, without the batch dimension."""


@dataclass(frozen=True)
class PairedTest:
    """A test of whether two models differ, on the rows that both answered."""

    name: str
    p_value: float
    """Two-sided: the chance of a difference at least as large between models that are equally good."""
    only_first: int
    """Rows that the first model alone has right."""
    only_second: int
    """Rows that the second model alone has right."""
    metrics: tuple[str, ...]
    """Metrics of which it is a test; for others it is only reported."""


class Task(ABC):
    """One kind of prediction, from source columns to served outputs.

    Shapes in this file: n rows, c labels, s tokens.
    """

    name: str
    """Value of the `task` parameter."""
    metric_names: tuple[str, ...]
    """Keys of `metrics` that may be chosen as the quality metric; higher is better for each."""
    auto_class: str
    """Name of the `transformers` auto class that loads the checkpoint with its head."""
    architecture_suffix: str
    """How the class names in a fitting checkpoint's `architectures` end, for example `ForSequenceClassification`."""
    front_model: Path
    """Source of the served front model: text in, the task's outputs out."""
    front_parts: tuple[str, ...] = ("batch_queue.py", "encoder_session.py", "queue_metrics.py", "request_log.py")
    """Files beside it that it needs where it is served."""

    @abstractmethod
    def schema(self, *, text_column: str, label_column: str) -> RowSchema:
        """The columns to read from a source, named by the user's parameters."""

    @abstractmethod
    def head_config(self, label_names: Sequence[str]) -> dict[str, Any]:
        """Fields of the `transformers` config that size and name the head."""

    @abstractmethod
    def encode(
        self, rows: Mapping[str, Sequence[Any]], tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> dict[str, list[Any]]:
        """Turn dataset rows into model inputs: `input_ids` (n lists of at most `max_length`) and `labels`."""

    @abstractmethod
    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean loss of logits [n, c] against the dataset's labels [n]."""

    @abstractmethod
    def distillation_loss(
        self, student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        """Mean soft-target loss of the student's logits [n, c] against the teacher's [n, c]."""

    @abstractmethod
    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """What the exported encoder returns for logits [n, c]: probabilities [n, c]."""

    @abstractmethod
    def metrics(self, probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
        """Quality of probabilities [n, c] against labels [n]: the metrics of `metric_names`, and any other figures."""

    @abstractmethod
    def details(
        self, probabilities: NDArray[np.float32], labels: NDArray[np.int64], label_names: Sequence[str]
    ) -> dict[str, Any]:
        """The report's own section: `table` (rows as dicts) and `confusion` (c by c counts, true by predicted)."""

    @abstractmethod
    def baselines(
        self, train: Mapping[str, Sequence[Any]], test: Mapping[str, Sequence[Any]], label_count: int, seed: int
    ) -> dict[str, NDArray[np.float32]]:
        """Probabilities [n, c] on the test rows by each simple baseline's name: `majority`, `tf-idf` and any others."""

    def paired_test(
        self, first: NDArray[np.float32], second: NDArray[np.float32], labels: NDArray[np.int64]
    ) -> PairedTest | None:
        """Compare two models' probabilities [n, c] on the same labels [n]; None where the task has no such test."""
        return None

    @abstractmethod
    def outputs(self, label_names: Sequence[str]) -> tuple[Output, ...]:
        """The public model's output tensors."""
