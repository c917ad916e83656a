"""The workers that compare models (`stillhouse.comparison.worker`)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from stillhouse.comparison.subjects import Subject
from stillhouse.evaluation.processes import WorkerProcess, worker_processes

__all__ = ["subject_processes"]


def subject_processes(
    subjects: Sequence[Subject], threads: int, folder: Path
) -> AbstractContextManager[list[WorkerProcess]]:
    """A worker for each model, by its name."""
    arguments = {subject.name: [subject.text, "--threads", str(threads)] for subject in subjects}
    environment = {
        "OMP_NUM_THREADS": str(threads),
        # Threads that wait must not spin: the cores are another model's while this one is not asked.
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return worker_processes("stillhouse.comparison.worker", arguments, folder, environment)
