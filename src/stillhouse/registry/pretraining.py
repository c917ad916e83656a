"""What a pretraining leaves behind: an MLflow run with its settings and curves, and a copy of the checkpoint."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.artifacts import CorpusManifest, ModelManifest
from stillhouse.errors import InputError, Problem
from stillhouse.registry.register import TAG_PREFIX, log_parameters
from stillhouse.registry.run_record import leave_run
from stillhouse.storage import local_path, store_problems

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

__all__ = ["PretrainingRecord", "RecordedPretraining", "copy_checkpoint", "log_pretraining", "output_problems"]

HISTORY = "history.json"
_METRIC_LIMIT = 1000
"""Metrics that an MLflow server takes in one request."""


@dataclass(frozen=True, kw_only=True)
class PretrainingRecord:
    """Where a pretraining is recorded, and where a copy of its checkpoint goes."""

    model_name: str
    """Name of the checkpoint."""
    experiment: str = "stillhouse-pretraining"
    """MLflow experiment."""
    run_name: str = ""
    """Name of the MLflow run; MLflow makes one up where it is empty."""
    pipeline_run: str = ""
    """What the orchestrator calls the run; tagged, so that what came of the run can be found by it."""
    output: str = ""
    """Where a copy of the checkpoint goes, a path or an fsspec URI; empty makes none."""

    def problems(self) -> list[Problem]:
        """Everything wrong with the values themselves."""
        found = []
        for name, what in (("model_name", "a name for the checkpoint"), ("experiment", "an MLflow experiment")):
            if not getattr(self, name).strip():
                found.append(Problem(name, "is empty.", f"Give {what}."))
        return found + store_problems(self.output, "output")


@dataclass(frozen=True, kw_only=True)
class RecordedPretraining:
    """What was recorded."""

    checkpoint: str
    """Where the checkpoint lies: the copy, where one was asked for."""
    run_id: str
    """The MLflow run with the curves."""
    reused: bool
    """Whether an earlier run had recorded this very checkpoint."""
    manifest: ModelManifest

    def result(self) -> dict[str, Any]:
        """What the summary of the run shows."""
        names = ("family", "recipe", "parameters", "metrics")
        facts = {name: getattr(self.manifest, name) for name in names}
        return {
            "checkpoint": self.checkpoint,
            "model_name": self.manifest.name,
            **facts,
            "run_id": self.run_id,
            "reused": self.reused,
        }


def output_problems(output: str) -> list[Problem]:
    """What on this machine is in the way of a copy: a folder is replaced only where it holds an earlier one."""
    path = local_path(output)
    if not output or path is None:
        return store_problems(output, "output", installed=True)
    if path.exists() and not path.is_dir():
        return [Problem("output", f"{output!r} is a file.", "Name a folder.")]
    if path.is_dir() and any(path.iterdir()) and not (path / ModelManifest.filename()).is_file():
        what = f"{output!r} holds other files than a checkpoint of Stillhouse's."
        return [Problem("output", what, "Name a folder that is empty or does not exist.")]
    return []


def copy_checkpoint(model_dir: Path, output: str) -> str:
    """Copy a model artifact to a path or URI, in the place of an earlier one, and return where it is.

    Raises:
        InputError: something else is there, or it cannot be written.
    """
    if problems := output_problems(output):
        raise InputError(problems)
    try:
        if (path := local_path(output)) is not None:
            return str(_copy_to_folder(model_dir, path.absolute()))
        _copy_to_store(model_dir, output.rstrip("/"))
    except OSError as error:
        what = f"{output!r} cannot be written ({error.strerror or error})."
        raise InputError(Problem("output", what, "Name another place.")) from None
    return output.rstrip("/")


def _copy_to_folder(model_dir: Path, target: Path) -> Path:
    """The folder appears whole, in one rename."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(model_dir, partial)
    if target.exists():
        shutil.rmtree(target)
    partial.rename(target)
    return target


def _copy_to_store(model_dir: Path, uri: str) -> None:
    """The manifest goes last, so that a copy that is cut short is no checkpoint."""
    import fsspec

    filesystem, root = fsspec.core.url_to_fs(uri)
    filesystem.invalidate_cache()
    manifest = ModelManifest.filename()
    if filesystem.exists(root) and filesystem.ls(root, detail=False):
        if not filesystem.exists(f"{root}/{manifest}"):
            what = f"{uri!r} holds other files than a checkpoint of Stillhouse's."
            raise InputError(Problem("output", what, "Name a place where nothing is."))
        filesystem.rm(root, recursive=True)
    files = [path for path in model_dir.rglob("*") if path.is_file()]
    for file in sorted(files, key=lambda path: path == model_dir / manifest):
        filesystem.put_file(str(file), f"{root}/{file.relative_to(model_dir).as_posix()}")


def log_pretraining(
    client: MlflowClient, config: PretrainingRecord, experiment: str, *, corpus_dir: Path, model_dir: Path
) -> tuple[str, bool]:
    """Write an MLflow run with the settings, the curves and the manifests, unless this checkpoint has one.

    A repeated run gets a small record, which names in `stillhouse.pretraining_run_id` the run with the curves.

    Returns:
        The id of the run with the curves, and whether it was there before.
    """
    manifest, digest = ModelManifest.load(model_dir), ModelManifest.digest(model_dir)
    tags = {"pipeline_run": config.pipeline_run, "model_name": manifest.name, "outcome": "pretrained",
            "outcome_reason": _sentence(manifest)}  # fmt: skip
    same = f"tags.`{TAG_PREFIX}model_digest` = '{digest}' and attributes.status = 'FINISHED'"
    if found := client.search_runs([experiment], same, max_results=1):
        run_id = str(found[0].info.run_id)
        leave_run(client, experiment, config.run_name, {**tags, "pretraining_run_id": run_id})
        return run_id, True
    tags |= {"model_digest": digest, "corpus_digest": CorpusManifest.digest(corpus_dir), "family": manifest.family,
             "recipe": manifest.recipe, "version": manifest.stillhouse_version}  # fmt: skip
    prefixed = {TAG_PREFIX + key: value for key, value in tags.items()}
    run_id = str(client.create_run(experiment, run_name=config.run_name or None, tags=prefixed).info.run_id)
    try:
        log_parameters(client, run_id, _parameters(manifest, CorpusManifest.load(corpus_dir)))
        _log_curves(client, run_id, model_dir / HISTORY)
        for path in (model_dir / ModelManifest.filename(), model_dir / HISTORY, corpus_dir / CorpusManifest.filename()):
            client.log_artifact(run_id, str(path))
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id, "FINISHED")
    return run_id, False


def _sentence(manifest: ModelManifest) -> str:
    """What came of it, for the record and whoever is told: losses are in the curves."""
    shown = {name: value for name, value in sorted(manifest.metrics.items()) if not name.endswith("loss")}
    figures = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in shown.items())
    return f"A {manifest.family} of {manifest.parameters:,} parameters, {manifest.recipe}; held out: {figures}."


def _parameters(manifest: ModelManifest, corpus: CorpusManifest) -> dict[str, Any]:
    """Everything that shaped the checkpoint: the training's settings, and what it was fed."""
    facts = {"family": manifest.family, "parameters": manifest.parameters, "recipe": manifest.recipe}
    common = {"producer", "inputs", "files", "stillhouse_version"}
    fed = {key: value for key, value in dataclasses.asdict(corpus).items() if key not in common}
    return {**manifest.hyperparameters, **facts, **{f"corpus.{key}": value for key, value in fed.items()}}


def _log_curves(client: MlflowClient, run_id: str, path: Path) -> None:
    """Every figure of the history at its step."""
    metrics = list(_metrics(json.loads(path.read_text(encoding="utf-8"))))
    for start in range(0, len(metrics), _METRIC_LIMIT):
        client.log_batch(run_id, metrics=metrics[start : start + _METRIC_LIMIT])


def _metrics(history: list[Mapping[str, Any]]) -> Iterator[Metric]:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    for entry in history:
        for name, value in entry.items():
            if name != "step" and isinstance(value, (int, float)) and not isinstance(value, bool):
                yield Metric(name, float(value), now, int(entry["step"]))
