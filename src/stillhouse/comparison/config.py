"""What `compare` is told."""

from __future__ import annotations

from dataclasses import dataclass

from stillhouse.errors import Problem
from stillhouse.tasks import get_task

__all__ = ["TASK", "CompareConfig"]

TASK = "classification"
"""Models are timed, trained and judged as classifiers of texts, which is what is served."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Which models to compare, and on what."""

    models: tuple[str, ...]
    """Names of architectures, config files or folders, and checkpoints: see `stillhouse.comparison.subjects`."""
    measure: bool = True
    """Whether to time the models; without it only what their configs say is worked out."""
    length: int = 128
    """Tokens of one sentence."""
    batch_size: int = 8
    """Sentences in a batch, for throughput and for a training step."""
    rounds: int = 5
    """Times that all models are measured, by turns."""
    turn_seconds: float = 1.0
    """Seconds of calls that a model is timed for when it is its turn, if a single call does not take longer."""
    threads: int = 0
    """Threads of one process; 0 takes every core that this one may use."""
    data: str = ""
    """Labelled rows to judge quality on: as the pipeline's `data`, or a `dataset` artifact, of which the test split is
    taken. Empty judges none."""
    text_column: str = "text"
    label_column: str = "label"
    quality_metric: str = "accuracy"
    """Which of the task's metrics decides whether a model is good enough to be recommended."""
    min_retention: float = 0.97
    """Share of the best model's quality that a recommended one must keep, where quality is known."""
    seed: int = 42
    """Seed of random weights and of the token ids that are fed."""

    def problems(self) -> list[Problem]:
        """Everything wrong with the values, by the command's option."""
        found = []
        if not self.models:
            remedy = "Give names such as bert-base, or folders of checkpoints."
            found.append(Problem("MODEL", "no model is named.", remedy))
        for option, value, least, most in (
            ("--length", self.length, 8, 8192),
            ("--batch-size", self.batch_size, 1, 4096),
            ("--rounds", self.rounds, 1, 1000),
            ("--threads", self.threads, 0, 4096),
        ):
            if not least <= value <= most:
                found.append(Problem(option, f"{value} will not do.", f"Give a whole number from {least} to {most}."))
        if not self.turn_seconds > 0:
            found.append(Problem("turn_seconds", f"{self.turn_seconds:g} will not do.", "Give a number above 0."))
        if not 0 < self.min_retention <= 1:
            what = f"{self.min_retention:g} is not a share."
            found.append(Problem("--min-retention", what, "Give a number above 0, at most 1."))
        names = get_task(TASK).metric_names
        if self.quality_metric not in names:
            what = f"{self.quality_metric!r} is not a metric of {TASK}."
            found.append(Problem("--quality-metric", what, f"Choose one of: {', '.join(names)}."))
        return found
