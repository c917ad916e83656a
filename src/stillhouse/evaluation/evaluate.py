"""The `evaluate` step: measure every package on the test split, choose one by policy, compare it with the champion."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.artifacts import DatasetManifest, EvaluationManifest, PackagesManifest
from stillhouse.errors import InputError
from stillhouse.evaluation.bootstrap import bootstrap_interval
from stillhouse.evaluation.config import EvaluateConfig
from stillhouse.evaluation.machine import available_cores, describe_machine
from stillhouse.evaluation.measure import answers, measure
from stillhouse.evaluation.packages import load_champion, load_packages, served_rows
from stillhouse.evaluation.policy import REFERENCE, choose, retention
from stillhouse.evaluation.promotion import Champion, Contender, promotion_gate
from stillhouse.evaluation.table import CHAMPION, chosen
from stillhouse.progress import Step
from stillhouse.tasks import get_task

__all__ = ["BASELINE_ROWS", "SMOKE_ROWS", "EvaluateConfig", "confusion_matrix", "evaluate", "scalar_metrics"]

BASELINE_ROWS = 200_000
"""Train rows that the baselines are fitted on at most, drawn by seed; more changes little and takes much memory."""
SMOKE_ROWS = 16
"""Test rows whose answers are kept for the smoke test of a rollout."""
_SMOKE_MARGIN = 0.2
"""Distance of the two most probable labels from which an answer counts as clear."""


def _calibration(probabilities: NDArray[np.float32], labels: NDArray[np.int64], bins: int = 10) -> list[dict[str, Any]]:
    """Mean confidence, share correct and row count of each occupied confidence bin of equal width."""
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return [
        {
            "confidence": float(confidence[index == b].mean()),
            "accuracy": float(correct[index == b].mean()),
            "rows": int((index == b).sum()),
        }
        for b in range(bins)
        if (index == b).any()
    ]


def _smoke_rows(
    texts: Sequence[str], probabilities: NDArray[np.float32], label_names: Sequence[str], seed: int
) -> list[dict[str, Any]]:
    """Test rows with the chosen package's own answers: every predicted label in turn, clear answers only.

    A clear answer stays the same when other rows of a batch shift an INT8 model's activations a little. Where no answer
    is clear, the rows come without `label`, and what is compared is left to whoever asks the package itself.
    """
    ranked = np.sort(probabilities, axis=1)
    margin = ranked[:, -1] - (ranked[:, -2] if ranked.shape[1] > 1 else 0)
    draw = np.random.default_rng(seed).permutation(len(texts))
    clear = draw[margin[draw] >= _SMOKE_MARGIN]
    if not len(clear):
        return [{"text": texts[row]} for row in draw[:SMOKE_ROWS]]
    predicted = probabilities.argmax(axis=1)
    queues = [list(clear[predicted[clear] == label]) for label in range(len(label_names))]
    picked: list[int] = []
    while len(picked) < SMOKE_ROWS and any(queues):
        picked += [queue.pop(0) for queue in queues if queue]
    return [
        {"text": texts[row], "label": label_names[predicted[row]], "probabilities": probabilities[row].tolist()}
        for row in picked[:SMOKE_ROWS]
    ]


def _write_predictions(
    path: Path, labels: NDArray[np.int64], answered: Mapping[str, NDArray[np.float32]], rows: list[int]
) -> None:
    """`predictions.parquet`: test row number, label, and each candidate's predicted label id and its probability."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {"row": np.array(rows, dtype=np.int64), "label": labels}
    for key, probabilities in answered.items():
        columns[key] = probabilities.argmax(axis=1)
        columns[f"{key} probability"] = probabilities.max(axis=1)
    pq.write_table(pa.table(columns), path)


def evaluate(
    config: EvaluateConfig,
    *,
    dataset_dir: str | os.PathLike[str],
    packages: Sequence[Path],
    champion_dir: str | os.PathLike[str] | None = None,
    output_dir: str | os.PathLike[str],
    step: Step,
) -> EvaluationManifest:
    """Measure, choose, compare with the champion, and report; writes an `evaluation` artifact.

    Beside `evaluation.json` and `report.html` the folder gets `predictions.parquet` (every candidate's answer to every
    test row), `smoke.json` (rows with the chosen package's answers, for the test of a rollout) and the plots.

    Args:
        config: how to compare and choose.
        dataset_dir: a `dataset` artifact; figures come from its test split.
        packages: `packages` artifacts, the teacher's among them. One of a model that cannot be packaged is evaluated in
            PyTorch, for its quality alone, and is not chosen from.
        champion_dir: a `packages` artifact with the champion's package, which is measured as one more candidate but
            not chosen from; with none in it, or None, there is no champion.
        output_dir: where to write; made if it is not there.
        step: told how far the work is.

    Raises:
        InputError: a value of the configuration, or an artifact, is at fault; all problems at once.
        ServingError: a package failed while it was measured.
    """
    from stillhouse.data.dataset import read_split
    from stillhouse.evaluation.report import write_report

    dataset = DatasetManifest.load(dataset_dir)
    task = get_task(dataset.task)
    if problems := config.problems(task):
        raise InputError(problems)
    given = load_packages([Path(folder) for folder in packages], dataset)
    found, digests = given.packages, given.digests
    output = Path(output_dir)
    output.mkdir(parents=True, exist_ok=True)

    test: Mapping[str, Sequence[Any]] = read_split(dataset_dir, "test")
    rows = served_rows(test, found)
    over_limit = len(test["text"]) - len(rows)
    test = {name: [values[row] for row in rows] for name, values in test.items()}
    labels = np.asarray(test["label"], dtype=np.int64)
    metric = config.quality_metric
    threads = config.threads or available_cores()
    champion, incomparable = None, ""
    if champion_dir is not None and config.champion_version:
        champion, incomparable = load_champion(Path(champion_dir), dataset, test["text"], threads)
        digests[f"packages_{CHAMPION}"] = PackagesManifest.digest(champion_dir)
    measured_packages = [*found, champion] if champion else found

    def figures(probabilities: NDArray[np.float32]) -> dict[str, Any]:
        interval = bootstrap_interval(
            lambda p, y: task.metrics(p, y)[metric],
            probabilities,
            labels,
            samples=config.bootstrap_samples,
            seed=config.seed,
            name=metric,
        )
        return {"metrics": task.metrics(probabilities, labels), "interval": [interval.low, interval.high]}

    measured = measure(
        {package.key: package.folder for package in measured_packages},
        test["text"],
        threads=threads,
        latency_samples=config.latency_samples,
        throughput_rows=config.throughput_rows,
        seed=config.seed,
        step=step,
    )
    candidates = []
    contenders: dict[str, Contender] = {}
    for package in measured_packages:
        result = measured[package.key]
        probabilities = package.in_order(result.probabilities, dataset.label_names)
        details = task.details(probabilities, labels, dataset.label_names)
        entry = {
            "name": package.role,
            "precision": package.manifest.precision,
            "family": package.manifest.family,
            "parameters": package.manifest.parameters,
            "bytes": package.manifest.bytes,
            **figures(probabilities),
            "latency_ms": result.latency_ms,
            "throughput": result.throughput,
            "peak_memory_mb": result.peak_memory_mb,
            "model_memory_mb": result.model_memory_mb,
            "load_seconds": result.load_seconds,
            "details": details | {"calibration": _calibration(probabilities, labels)},
            "parity": package.manifest.parity,
            "package_digest": package.digest,
        }
        if package is champion:
            entry |= {"version": config.champion_version, "origin": package.manifest.name}
        candidates.append(entry)
        contenders[package.key] = Contender(entry=entry, probabilities=probabilities, latencies=result.latencies)
    train = _baseline_rows(dataset_dir, dataset.splits["train"].rows, config.seed)
    baselines = [
        {"name": name, **figures(probabilities)}
        for name, probabilities in task.baselines(train, test, len(dataset.label_names), config.seed).items()
    ]
    in_pytorch = answers(
        {checkpoint.key: checkpoint.folder for checkpoint in given.unservable}, test["text"], threads=threads, step=step
    )
    unservable = [
        {
            "name": checkpoint.name,
            "family": checkpoint.manifest.family,
            "parameters": checkpoint.manifest.parameters,
            "reason": checkpoint.reason,
            **figures(in_pytorch[checkpoint.key]),
        }
        for checkpoint in given.unservable
    ]
    _compare(candidates, [*baselines, *unservable], metric)
    new = [entry for entry in candidates if entry["name"] != CHAMPION]
    choice = choose(new, baselines, config.policy, config.min_retention, metric)
    winner = contenders[f"{choice.name} {choice.precision}"]
    reigning = None
    if champion or incomparable:
        of_champion = contenders[champion.key] if champion else None
        reigning = Champion(version=config.champion_version, measured=of_champion, incomparable=incomparable)
    promotion = promotion_gate(
        config,
        task,
        challenger=winner,
        champion=reigning,
        labels=labels,
        tried=len(new),
        undeployable=choice.undeployable_reason,
    )
    decided = {
        "promotion": asdict(promotion),
        "refused": given.refused,
        "incomparable": [{"name": CHAMPION, "version": config.champion_version, "reason": incomparable}]
        if incomparable
        else [],
        "rows_over_limit": over_limit,
        "settings": asdict(config),
    }
    manifest = EvaluationManifest(
        producer="evaluate",
        inputs={"dataset": DatasetManifest.digest(dataset_dir), **digests},
        task=dataset.task,
        metric=metric,
        policy=config.policy,
        min_retention=config.min_retention,
        test_rows=len(rows),
        baselines=baselines,
        candidates=candidates,
        choice=asdict(choice) | decided,
        machine=describe_machine(threads) | {"baseline_train_rows": len(train["text"])},
        unservable=unservable,
    )
    smoke = _smoke_rows(test["text"], winner.probabilities, dataset.label_names, config.seed)
    (output / "smoke.json").write_text(json.dumps(smoke, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    answered = {key: contender.probabilities for key, contender in contenders.items()} | in_pytorch
    _write_predictions(output / "predictions.parquet", labels, answered, rows)
    write_report(manifest, dataset, output, title=found[0].manifest.served_name)
    manifest.save(output)
    return EvaluationManifest.load(output)


def _baseline_rows(dataset_dir: str | os.PathLike[str], count: int, seed: int) -> Mapping[str, Sequence[Any]]:
    """The train split, or rows drawn from it by seed where it is large; a list per column."""
    from stillhouse.data.dataset import load_split, read_split

    if count <= BASELINE_ROWS:
        return read_split(dataset_dir, "train")
    kept = np.sort(np.random.default_rng(seed).choice(count, BASELINE_ROWS, replace=False))
    columns: dict[str, list[Any]] = load_split(dataset_dir, "train").select(kept).to_dict()
    return columns


def _compare(candidates: list[dict[str, Any]], others: list[dict[str, Any]], metric: str) -> None:
    """Add what takes two entries: `retention` to all, `speedup_vs_teacher` (None without a teacher) to candidates."""
    teacher = next(c for c in candidates if (c["name"], c["precision"]) == REFERENCE)
    for entry in (*candidates, *others):
        entry["retention"] = retention(entry["metrics"][metric], teacher["metrics"][metric])
    p50 = {c["precision"]: c["latency_ms"]["p50"] for c in candidates if c["name"] == REFERENCE[0]}
    for entry in candidates:
        of_teacher = p50.get(entry["precision"])
        entry["speedup_vs_teacher"] = of_teacher / entry["latency_ms"]["p50"] if of_teacher else None


def scalar_metrics(manifest: EvaluationManifest) -> dict[str, float]:
    """Figures of the chosen candidate under flat names, as a metrics artifact of a pipeline shows them."""
    winner = chosen(manifest)
    return {
        **winner["metrics"],
        "retention": winner["retention"],
        "p50_ms": winner["latency_ms"]["p50"],
        "p95_ms": winner["latency_ms"]["p95"],
        "p99_ms": winner["latency_ms"]["p99"],
        "rows_per_second": winner["throughput"],
        "peak_memory_mb": winner["peak_memory_mb"],
        "megabytes": winner["bytes"] / 1e6,
        "parameters": float(winner["parameters"]),
        "deployable": float(manifest.choice["deployable"]),
    }


def confusion_matrix(manifest: EvaluationManifest) -> tuple[list[str], list[list[int]]]:
    """Label names and counts [c][c], true by predicted, of the chosen candidate; empty where the task has none."""
    details = chosen(manifest)["details"]
    return [row["label"] for row in details.get("table", ()) if "label" in row], details.get("confusion", [])
