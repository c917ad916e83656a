"""Latency, throughput, memory and training step of models, by turns on one machine.

Each lives in a process of its own, so that its peak memory is its own. All stay alive, and only one works at a time:
they take turns, and another one begins each round. A figure is the median over rounds; a ratio is the median over
rounds of the quotient within a round, so that a slow minute of a shared machine falls on both sides of it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from stillhouse.evaluation.processes import WorkerProcess
from stillhouse.progress import Step

__all__ = ["Loaded", "Measured", "load_all", "measure_all"]

_WARM = 2
"""Calls at the start of a turn that are not counted: the other models have just emptied the caches."""


@dataclass(frozen=True)
class _Phase:
    """One kind of figure, and how many calls make a turn of it."""

    name: str
    do: str
    fewest: int
    most: int
    warm: int


_PHASES = (
    _Phase("latency", "time", 5, 50, _WARM),
    _Phase("throughput", "time", 1, 20, 1),
    # The first step also makes the optimizer's state.
    _Phase("training", "train", 1, 10, 1),
)


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What loading a model told."""

    seconds: float
    import_mb: float
    """Resident size of the process before the model was built: interpreter and libraries."""
    labels: list[str] | None
    """Label names of a trained classification head, in id order; None where there is none."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured of one model, in FP32 in PyTorch."""

    latency_ms: dict[str, float]
    """`p50` and `p95` of one sentence at a time, in milliseconds."""
    latency_ratio: float
    """p50 by the first model's: below 1 is faster."""
    throughput: float
    """Sentences a second in batches."""
    throughput_ratio: float
    """By the first model's: above 1 is faster."""
    peak_memory_mb: float
    """Largest resident size of the process that answers, in MB, before any training step."""
    model_memory_mb: float
    """The same less interpreter and libraries."""
    training_step_ms: float
    """Forward, backward and AdamW's update of one batch, in milliseconds."""
    training_step_ratio: float
    """By the first model's: below 1 is faster."""
    training_memory_mb: float
    """Largest resident size with training, in MB."""


def load_all(processes: Sequence[WorkerProcess], seed: int, step: Step) -> dict[str, Loaded]:
    """Load the models one after the other, since what two load at once is timed for neither."""
    found = {}
    for index, process in enumerate(processes):
        step.progress(index, len(processes), f"loading {process.name}")
        found[process.name] = Loaded(**process.ask("load", seed=seed))
    return found


def measure_all(
    processes: Sequence[WorkerProcess],
    loaded: dict[str, Loaded],
    *,
    rounds: int,
    turn_seconds: float,
    length: int,
    batch_size: int,
    vocabulary: int,
    step: Step,
    between: Callable[[], None],
) -> dict[str, Measured]:
    """Measure all models; the first is what ratios are against.

    Args:
        processes: the loaded models.
        loaded: what loading them told.
        rounds: turns of each model, for each figure.
        turn_seconds: how long a turn takes about.
        length: tokens of a sentence.
        batch_size: sentences of a batch.
        vocabulary: token ids are below it, for all models the same ones.
        step: told how far the work is.
        between: called once inference is measured and before the weights change.
    """
    shapes = {"latency": 1, "throughput": batch_size, "training": batch_size}
    turns: dict[str, dict[str, list[list[float]]]] = {p.name: {m.name: [] for m in processes} for p in _PHASES}
    peaks: dict[str, float] = {}
    total = len(_PHASES) * rounds * len(processes)
    done = 0
    for phase in _PHASES:
        if phase.name == "training":
            peaks = {process.name: process.ask("memory")["peak_mb"] for process in processes}
            between()
        shape = {"batch": shapes[phase.name], "length": length, "vocabulary": vocabulary}
        calls: dict[str, int] = {}
        for round_ in range(rounds):
            shift = round_ % len(processes)
            for process in [*processes[shift:], *processes[:shift]]:
                step.progress(done, total, f"round {round_ + 1} of {rounds}: {phase.name} of {process.name}")
                if process.name not in calls:
                    (once,) = process.ask(phase.do, **shape, calls=1, warm=1)["seconds"]
                    calls[process.name] = min(phase.most, max(phase.fewest, int(turn_seconds / once)))
                asked = {**shape, "calls": calls[process.name], "warm": phase.warm}
                turns[phase.name][process.name].append(process.ask(phase.do, **asked)["seconds"])
                done += 1
    step.progress(total, total, "measured")

    first = processes[0].name

    def medians(phase: str, name: str) -> list[float]:
        return [statistics.median(turn) for turn in turns[phase][name]]

    def ratio(phase: str, name: str) -> float:
        pairs = zip(medians(phase, name), medians(phase, first), strict=True)
        return statistics.median(own / other for own, other in pairs)

    return {
        process.name: Measured(
            latency_ms={
                name: 1000
                * statistics.median(float(np.percentile(turn, level)) for turn in turns["latency"][process.name])
                for name, level in (("p50", 50), ("p95", 95))
            },
            latency_ratio=ratio("latency", process.name),
            throughput=batch_size / statistics.median(medians("throughput", process.name)),
            throughput_ratio=1 / ratio("throughput", process.name),
            peak_memory_mb=peaks[process.name],
            model_memory_mb=peaks[process.name] - loaded[process.name].import_mb,
            training_step_ms=1000 * statistics.median(medians("training", process.name)),
            training_step_ratio=ratio("training", process.name),
            training_memory_mb=process.ask("memory")["peak_mb"],
        )
        for process in processes
    }
