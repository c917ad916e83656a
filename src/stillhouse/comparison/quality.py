"""How good models are on labelled rows, where they have a trained head for those labels."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stillhouse.artifacts import DatasetManifest
from stillhouse.comparison.config import TASK, CompareConfig
from stillhouse.comparison.measuring import Loaded
from stillhouse.errors import InputError, Problem
from stillhouse.evaluation.processes import WorkerProcess
from stillhouse.progress import Step
from stillhouse.tasks import get_task

__all__ = ["Rows", "judge", "read_rows"]

_SAMPLES = 1000
"""Resamples for the interval."""
_OPTIONS = {"data": "--data", "text_column": "--text-column", "label_column": "--label-column"}


@dataclass(frozen=True)
class Rows:
    """Labelled texts, n of them."""

    texts: list[str]
    labels: list[str]
    """Label name of each text."""


def read_rows(config: CompareConfig) -> Rows:
    """All rows of `config.data`, checked as the pipeline checks its sources.

    Raises:
        InputError: with everything that is wrong with them.
    """
    folder = Path(config.data).expanduser()
    if (folder / DatasetManifest.filename()).is_file():
        from stillhouse.data.dataset import read_split

        names = DatasetManifest.load(folder).label_names
        split = read_split(folder, "test")
        return Rows(split["text"], [names[label] for label in split["label"]])
    return _read_source(config)


def _read_source(config: CompareConfig) -> Rows:
    from stillhouse.data.config import DataConfig
    from stillhouse.data.faults import Faults
    from stillhouse.data.scan import Meter, clean_chunks
    from stillhouse.data.sources import open_sources

    schema = get_task(TASK).schema(text_column=config.text_column, label_column=config.label_column)
    source_config = DataConfig(task=TASK, schema=schema, data=config.data)
    faults = Faults()
    for problem in source_config.problems():
        faults.add_problem(problem)
    texts: list[str] = []
    labels: list[str] = []
    for split, source in open_sources(source_config, faults).items():
        if split != "train":
            continue  # what else a hub's data set holds
        for chunk, good in clean_chunks(source, schema, faults, Meter(None, "", 0)):
            if faults:
                continue  # read on, for the rest of what is wrong
            for name, into in (("text", texts), ("label", labels)):
                into += [value for value, fine in zip(chunk.columns[name].to_pylist(), good, strict=True) if fine]
        if not faults and not texts:
            faults.add("data", f"{source.name} has no rows.", "Give a file with rows.")
    if faults:
        # Filed under the command's options, not the pipeline's parameters.
        raise InputError(Problem(_OPTIONS.get(p.where, p.where), p.what, p.remedy) for p in faults.problems())
    return Rows(texts, labels)


def judge(
    processes: Sequence[WorkerProcess], loaded: Mapping[str, Loaded], rows: Rows, config: CompareConfig, step: Step
) -> dict[str, dict[str, Any]]:
    """Each model's `quality`: the task's metrics and a bootstrap interval; or why there is none, `quality_note`."""
    from stillhouse.evaluation.bootstrap import bootstrap_interval

    task = get_task(TASK)
    order = np.argsort([len(text) for text in rows.texts], kind="stable")
    found: dict[str, dict[str, Any]] = {}
    for process in processes:
        names = loaded[process.name].labels
        if note := _unfit(names, rows):
            found[process.name] = {"quality": None, "quality_note": note}
            continue
        assert names is not None
        # By length, so that a batch is padded little.
        listing = process.folder / "texts.jsonl"
        with listing.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(rows.texts[row]) + "\n" for row in order)
        output = process.folder / "probabilities.npy"
        for reply in process.follow("predict", texts=str(listing), output=str(output)):
            done = reply.get("done", len(rows.texts))
            step.progress(done, len(rows.texts), f"predicting with {process.name}")
        by_length = np.load(output)
        probabilities = np.empty_like(by_length)
        probabilities[order] = by_length
        labels = np.array([names.index(label) for label in rows.labels], dtype=np.int64)
        interval = bootstrap_interval(
            lambda p, y: task.metrics(p, y)[config.quality_metric],
            probabilities,
            labels,
            samples=_SAMPLES,
            seed=config.seed,
            name=config.quality_metric,
        )
        quality = {**task.metrics(probabilities, labels), "interval": [interval.low, interval.high]}
        found[process.name] = {"quality": quality, "quality_note": ""}
    return found


def _unfit(names: list[str] | None, rows: Rows) -> str:
    """Why a model with these labels cannot be judged on the rows; empty where it can."""
    if names is None:
        return "it has no trained classification head"
    unknown = sorted(set(rows.labels) - set(names))
    if not unknown:
        return ""
    shown = ", ".join(unknown[:5]) + (", …" if len(unknown) > 5 else "")
    return f"the rows have labels that it does not answer ({shown}); it answers {', '.join(names[:5])}"
