"""The `evaluate` step: measure every package on the test split, choose one by policy, and write the report."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.artifacts import DatasetManifest, EvaluationManifest, PackageManifest, PackagesManifest, sha256_file
from stillhouse.errors import InputError, ManifestError, Problem
from stillhouse.evaluation.bootstrap import bootstrap_interval
from stillhouse.evaluation.machine import available_cores, describe_machine
from stillhouse.evaluation.measure import Measurement, measure
from stillhouse.evaluation.policy import POLICIES, REFERENCE, choose, retention
from stillhouse.evaluation.table import chosen
from stillhouse.progress import Step
from stillhouse.tasks import Task, get_task

__all__ = ["BASELINE_ROWS", "SMOKE_ROWS", "EvaluateConfig", "confusion_matrix", "evaluate", "scalar_metrics"]

BASELINE_ROWS = 200_000
"""Train rows that the baselines are fitted on at most, drawn by seed; more changes little and takes much memory."""
SMOKE_ROWS = 16
"""Test rows whose answers are kept for the smoke test of a rollout."""
_SMOKE_MARGIN = 0.2
"""Distance of the two most probable labels from which an answer counts as clear."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How candidates are compared and chosen."""

    policy: str = "real-time"
    """`real-time`, `memory` or `quality`."""
    min_retention: float = 0.97
    """Least share of the FP32 teacher's quality that a candidate must keep, above 0 and at most 1."""
    quality_metric: str = "accuracy"
    """Metric that retention and the policies are computed from; one of the task's."""
    bootstrap_samples: int = 1000
    """Resamples for the 95% interval."""
    seed: int = 42
    """Seed of the resamples, of the texts timed and of the baselines."""
    latency_samples: int = 200
    """Test texts answered one at a time to measure latency, in each of 3 rounds."""
    throughput_rows: int = 512
    """Test rows answered in batches of 32 to measure throughput, over all rounds."""
    threads: int = 0
    """Threads of one call, the same for all candidates; 0 takes every core that this process may use."""

    def problems(self, task: Task | None = None) -> list[Problem]:
        """Everything wrong with the values; with a task, the metric is checked too."""
        found = []
        if self.policy not in POLICIES:
            found.append(Problem("policy", f"{self.policy!r} is unknown.", f"Choose one of: {', '.join(POLICIES)}."))
        if not 0 < self.min_retention <= 1:
            found.append(
                Problem("min_retention", f"{self.min_retention} is not a share.", "Give a number above 0, at most 1.")
            )
        if task is not None and self.quality_metric not in task.metric_names:
            names = ", ".join(task.metric_names)
            what = f"{self.quality_metric!r} is not a metric of {task.name}."
            found.append(Problem("quality_metric", what, f"Choose one of: {names}."))
        # Below 100 resamples the 2.5% tails hold two values or fewer.
        for name, least in (
            ("bootstrap_samples", 100),
            ("latency_samples", 10),
            ("throughput_rows", 1),
            ("threads", 0),
        ):
            if getattr(self, name) < least:
                found.append(Problem(name, f"{getattr(self, name)} is too small.", f"Give {least} or more."))
        return found


@dataclass(frozen=True)
class _Package:
    folder: Path
    manifest: PackageManifest
    digest: str

    @property
    def key(self) -> str:
        return f"{self.manifest.name} {self.manifest.precision}"


def _load_packages(
    folders: Sequence[Path], dataset: DatasetManifest
) -> tuple[list[_Package], list[dict[str, str]], dict[str, str]]:
    """All packages in order, what was refused before, and the digest of each `packages` artifact by role.

    Raises:
        InputError: with every package that is altered, doubled, or made for other labels than the dataset's.
    """
    found: list[_Package] = []
    refused: list[dict[str, str]] = []
    digests: dict[str, str] = {}
    problems: list[Problem] = []
    for folder in folders:
        try:
            manifest = PackagesManifest.load(folder)
            manifest.verify(folder)
            digests[f"packages_{manifest.name}"] = PackagesManifest.digest(folder)
            refused += [
                {"name": manifest.name, "precision": precision, "reason": reason}
                for precision, reason in manifest.refused.items()
            ]
            for precision in manifest.precisions:
                path = folder / precision
                found.append(_Package(path, PackageManifest.load(path), sha256_file(path / "package.json")))
        except ManifestError as error:
            problems += error.problems
    seen: set[str] = set()
    for package in found:
        if package.key in seen:
            problems.append(Problem("packages", f"{package.key} is given twice.", "Give each candidate once."))
        seen.add(package.key)
        if (package.manifest.task, package.manifest.label_names) != (dataset.task, dataset.label_names):
            what = f"{package.key} answers other labels, or another task, than the dataset holds."
            problems.append(Problem("packages", what, "Evaluate packages on the dataset they were trained for."))
    if not problems and not any((p.manifest.name, p.manifest.precision) == REFERENCE for p in found):
        what = "the FP32 teacher, which retention is measured against, is not among the candidates."
        reasons = [entry["reason"] for entry in refused if (entry["name"], entry["precision"]) == REFERENCE]
        remedy = f"It was refused: {reasons[0]}" if reasons else "Package the teacher, and keep fp32 in `precisions`."
        problems.append(Problem("packages", what, remedy))
    if problems:
        raise InputError(problems)
    return found, refused, digests


def _served_rows(rows: Mapping[str, Sequence[Any]], packages: Sequence[_Package]) -> list[int]:
    """Indices of the test rows that every endpoint would take: the others are over the byte limit.

    Raises:
        InputError: none is left.
    """
    limit = min(package.manifest.max_text_bytes for package in packages)
    kept = [index for index, text in enumerate(rows["text"]) if len(text.encode("utf-8", "surrogatepass")) <= limit]
    if not kept:
        what = f"no test row is left to evaluate on: {len(rows['text'])} rows, none within {limit} bytes."
        raise InputError(Problem("test_data", what, "Give test rows, or raise `max_text_bytes`."))
    return kept


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
    path: Path, labels: NDArray[np.int64], measured: Mapping[str, Measurement], rows: list[int]
) -> None:
    """`predictions.parquet`: test row number, label, and each candidate's predicted label id and its probability."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {"row": np.array(rows, dtype=np.int64), "label": labels}
    for key, measurement in measured.items():
        columns[key] = measurement.probabilities.argmax(axis=1)
        columns[f"{key} probability"] = measurement.probabilities.max(axis=1)
    pq.write_table(pa.table(columns), path)


def evaluate(
    config: EvaluateConfig,
    *,
    dataset_dir: str | os.PathLike[str],
    packages: Sequence[Path],
    output_dir: str | os.PathLike[str],
    step: Step,
) -> EvaluationManifest:
    """Measure, choose and report; writes an `evaluation` artifact.

    Beside `evaluation.json` and `report.html` the folder gets `predictions.parquet` (every candidate's answer to every
    test row), `smoke.json` (rows with the chosen package's answers, for the test of a rollout) and the plots.

    Args:
        config: how to compare and choose.
        dataset_dir: a `dataset` artifact; figures come from its test split.
        packages: `packages` artifacts, the teacher's among them.
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
    found, refused, digests = _load_packages([Path(folder) for folder in packages], dataset)
    output = Path(output_dir)
    output.mkdir(parents=True, exist_ok=True)

    test: Mapping[str, Sequence[Any]] = read_split(dataset_dir, "test")
    rows = _served_rows(test, found)
    over_limit = len(test["text"]) - len(rows)
    test = {name: [values[row] for row in rows] for name, values in test.items()}
    labels = np.asarray(test["label"], dtype=np.int64)
    metric = config.quality_metric

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

    threads = config.threads or available_cores()
    measured = measure(
        {package.key: package.folder for package in found},
        test["text"],
        threads=threads,
        latency_samples=config.latency_samples,
        throughput_rows=config.throughput_rows,
        seed=config.seed,
        step=step,
    )
    candidates = []
    for package in found:
        result = measured[package.key]
        details = task.details(result.probabilities, labels, dataset.label_names)
        candidates.append(
            {
                "name": package.manifest.name,
                "precision": package.manifest.precision,
                "family": package.manifest.family,
                "parameters": package.manifest.parameters,
                "bytes": package.manifest.bytes,
                **figures(result.probabilities),
                "latency_ms": result.latency_ms,
                "throughput": result.throughput,
                "peak_memory_mb": result.peak_memory_mb,
                "model_memory_mb": result.model_memory_mb,
                "load_seconds": result.load_seconds,
                "details": details | {"calibration": _calibration(result.probabilities, labels)},
                "parity": package.manifest.parity,
                "package_digest": package.digest,
            }
        )
    train = _baseline_rows(dataset_dir, dataset.splits["train"].rows, config.seed)
    baselines = [
        {"name": name, **figures(probabilities)}
        for name, probabilities in task.baselines(train, test, len(dataset.label_names), config.seed).items()
    ]
    _compare(candidates, baselines, metric)
    choice = choose(candidates, baselines, config.policy, config.min_retention, metric)

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
        choice=asdict(choice) | {"refused": refused, "rows_over_limit": over_limit, "settings": asdict(config)},
        machine=describe_machine(threads) | {"baseline_train_rows": len(train["text"])},
    )
    winner = measured[f"{choice.name} {choice.precision}"].probabilities
    smoke = _smoke_rows(test["text"], winner, dataset.label_names, config.seed)
    (output / "smoke.json").write_text(json.dumps(smoke, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _write_predictions(output / "predictions.parquet", labels, measured, rows)
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


def _compare(candidates: list[dict[str, Any]], baselines: list[dict[str, Any]], metric: str) -> None:
    """Add what takes two entries: `retention` to all, `speedup_vs_teacher` (None without a teacher) to candidates."""
    teacher = next(c for c in candidates if (c["name"], c["precision"]) == REFERENCE)
    for entry in (*candidates, *baselines):
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
