"""Predictions, latency, throughput and memory of packages, side by side on one machine.

Each candidate lives in a process of its own (`stillhouse.evaluation.worker`), so that its peak memory is its own. All
processes stay alive, and only one works at a time: the candidates take turns of a few texts, over several rounds, and
the median over rounds is reported. A slow minute of a shared machine so falls on all of them, and on one round only.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stillhouse.evaluation.processes import WorkerProcess, worker_processes
from stillhouse.progress import Step

__all__ = ["BATCH", "ROUNDS", "Measurement", "answers", "measure", "probe"]

BATCH = 32
"""Rows per call when throughput is measured and when the test split is predicted."""
ROUNDS = 3
"""Rounds of latency and throughput measurements."""
_TURN = 25
"""Texts that a candidate answers before the next one takes its turn."""
_WARM = 3
"""Calls at the start of a turn that are not counted: the other candidates have just emptied the caches."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What was measured of one package."""

    probabilities: NDArray[np.float32]
    """[n, c], in the order of the texts given."""
    latency_ms: dict[str, float]
    """`p50`, `p95` and `p99` of one text at a time, tokenising included, in milliseconds."""
    latencies: NDArray[np.float64]
    """[rounds, texts], seconds: what the percentiles are made of. Every candidate was asked the same texts."""
    throughput: float
    """Rows per second in batches of 32, texts of whatever length they come in."""
    peak_memory_mb: float
    """Largest resident size of the whole process, in MB."""
    model_memory_mb: float
    """The same less what the process held before the package was loaded: the interpreter and the libraries."""
    load_seconds: float
    """Time to load the package."""


def _processes(models: Mapping[str, Path], threads: int, folder: Path) -> AbstractContextManager[list[WorkerProcess]]:
    """A worker for each package or checkpoint, by its key."""
    arguments = {key: [str(path.resolve()), "--threads", str(threads)] for key, path in models.items()}
    environment = {"OMP_NUM_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads)}
    return worker_processes("stillhouse.evaluation.worker", arguments, folder, environment)


def probe(key: str, package: Path, text: str, threads: int) -> None:
    """Load a package in a process of its own, and let it answer one text.

    Raises:
        ServingError: it cannot be loaded, or fails on the text.
    """
    with (
        tempfile.TemporaryDirectory(prefix="stillhouse-probe-") as folder,
        _processes({key: package}, threads, Path(folder)) as (process,),
    ):
        process.ask("load")
        process.ask("time", batches=[[text]], warm=0)


def _percentiles(rounds: Sequence[Sequence[float]]) -> dict[str, float]:
    """p50, p95 and p99 in milliseconds: each percentile within a round, then the median over rounds."""
    values = np.percentile(np.array(rounds) * 1000, [50, 95, 99], axis=1)
    return {name: float(np.median(row)) for name, row in zip(("p50", "p95", "p99"), values, strict=True)}


def _batches(texts: Sequence[str], size: int) -> list[list[str]]:
    return [list(texts[start : start + size]) for start in range(0, len(texts), size)]


def _answers(
    processes: Sequence[WorkerProcess], texts: Sequence[str], folder: Path, tell: Callable[[int, str], None]
) -> dict[str, NDArray[np.float32]]:
    """Probabilities [n, c] of the n texts by each process's key; `tell` is given the rows done so far, and a note."""
    count = len(texts)
    # By length, so that a batch is padded little: closest to the single texts that the endpoint is asked for.
    order = np.argsort([len(text) for text in texts], kind="stable")
    listing = folder / "texts.jsonl"
    with listing.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(texts[row]) + "\n" for row in order)
    found: dict[str, NDArray[np.float32]] = {}
    for index, process in enumerate(processes):
        output = folder / str(index) / "probabilities.npy"
        asked = {"texts": str(listing), "rows": count, "batch": BATCH, "output": str(output)}
        for reply in process.follow("predict", **asked):
            tell(index * count + reply.get("done", count), f"predicting with {process.name}")
        sorted_rows = np.load(output)
        found[process.name] = np.empty_like(sorted_rows)
        found[process.name][order] = sorted_rows
    return found


def answers(
    models: Mapping[str, Path], texts: Sequence[str], *, threads: int, step: Step
) -> dict[str, NDArray[np.float32]]:
    """Probabilities [n, c] of packages or checkpoints for the n texts, by key; each in a process of its own, in turn.

    Args:
        models: folder of a package or a model artifact by a name for messages.
        texts: what to answer.
        threads: threads that one call may use.
        step: told how far the work is.

    Raises:
        ServingError: one could not be loaded or failed on a text.
    """
    total = len(models) * len(texts)
    found: dict[str, NDArray[np.float32]] = {}
    for key, path in models.items():
        before = len(found) * len(texts)
        with (
            tempfile.TemporaryDirectory(prefix="stillhouse-evaluate-") as folder,
            _processes({key: path}, threads, Path(folder)) as processes,
        ):
            processes[0].ask("load")
            found |= _answers(
                processes,
                texts,
                Path(folder),
                lambda done, note, before=before: step.progress(before + done, total, note),  # type: ignore[misc]
            )
    return found


def measure(
    packages: Mapping[str, Path],
    texts: Sequence[str],
    *,
    threads: int,
    latency_samples: int,
    throughput_rows: int,
    seed: int,
    step: Step,
) -> dict[str, Measurement]:
    """Measure every package on the same texts, with the same number of threads.

    Args:
        packages: package folder by a name for messages.
        texts: the test split, n texts.
        threads: threads that one call may use.
        latency_samples: texts answered one at a time in each round.
        throughput_rows: rows answered in batches of 32, split over the rounds.
        seed: seed of the choice of texts to time.
        step: told how far the work is.

    Raises:
        ServingError: a package could not be loaded or failed on a text.
    """
    count = len(texts)
    draw = np.random.default_rng(seed).permutation(count)
    single = [[texts[row]] for row in np.resize(draw, latency_samples)]
    turns = [single[start : start + _TURN] for start in range(0, latency_samples, _TURN)]
    # The same rows in every round and for every candidate, as they come: lengths are mixed within a batch.
    bulk = _batches([texts[row] for row in np.resize(draw[::-1], max(1, throughput_rows // ROUNDS))], BATCH)
    bulk_rows = sum(len(batch) for batch in bulk)
    total = len(packages) * (count + ROUNDS * (latency_samples + bulk_rows))

    with (
        tempfile.TemporaryDirectory(prefix="stillhouse-evaluate-") as name,
        _processes(packages, threads, Path(name)) as processes,
    ):
        folder = Path(name)
        loaded = {process.name: process.ask("load") for process in processes}
        probabilities = _answers(processes, texts, folder, lambda done, note: step.progress(done, total, note))
        done = len(packages) * count

        latencies: dict[str, list[list[float]]] = {key: [[] for _ in range(ROUNDS)] for key in packages}
        rates: dict[str, list[float]] = {key: [] for key in packages}
        for round_ in range(ROUNDS):
            # Another one begins each round, so that none always follows the heaviest.
            shift = round_ % len(processes)
            queue = processes[shift:] + processes[:shift]
            for turn in turns:
                for process in queue:
                    latencies[process.name][round_] += process.ask("time", batches=turn, warm=_WARM)["seconds"]
                    done += len(turn)
                    step.progress(done, total, f"timing {process.name}")
            for process in queue:
                seconds = process.ask("time", batches=bulk, warm=1)["seconds"]
                rates[process.name].append(bulk_rows / sum(seconds))
                done += bulk_rows
                step.progress(done, total, f"timing {process.name} in batches")
        peaks = {process.name: process.ask("memory")["peak_mb"] for process in processes}

    return {
        key: Measurement(
            probabilities=probabilities[key],
            latency_ms=_percentiles(latencies[key]),
            latencies=np.array(latencies[key]),
            throughput=float(np.median(rates[key])),
            peak_memory_mb=peaks[key],
            model_memory_mb=peaks[key] - loaded[key]["import_mb"],
            load_seconds=loaded[key]["seconds"],
        )
        for key in packages
    }
