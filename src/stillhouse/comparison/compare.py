"""`compare`: count, measure, judge, recommend."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse import __version__
from stillhouse.comparison.config import TASK, CompareConfig
from stillhouse.comparison.counting import BYTES_PER_PARAMETER, Count, count
from stillhouse.comparison.recommend import recommend
from stillhouse.comparison.report import write_report
from stillhouse.comparison.subjects import WHERE, Subject, parse_subjects
from stillhouse.data.location import public_name
from stillhouse.errors import InputError, Problem
from stillhouse.models.families import classifies, position_limit
from stillhouse.models.named import PUBLISHED
from stillhouse.progress import Step
from stillhouse.tasks import get_task

if TYPE_CHECKING:
    from stillhouse.comparison.quality import Rows

__all__ = ["compare"]

FLOPS_RULE = (
    "2 for each multiply-add of every matrix product, attention's included, in a forward pass of one sentence through "
    "embeddings, layers and pooler; everything else is left out"
)
PARAMETERS_RULE = "of embeddings, layers and pooler, without the head of any task; shared parameters count once"

_MEASURED = (
    "latency_ms",
    "latency_ratio",
    "throughput",
    "throughput_ratio",
    "peak_memory_mb",
    "model_memory_mb",
    "training_step_ms",
    "training_step_ratio",
    "training_memory_mb",
    "load_seconds",
    "quality",
)
"""Keys of a model's entry that hold None until they are measured."""


def compare(config: CompareConfig, *, output_dir: Path | None = None, step: Step | None = None) -> dict[str, Any]:
    """Compare models; returns a JSON document with `models`, `recommendations`, `settings` and `machine`.

    Args:
        config: which models, and how.
        output_dir: where to write compare.json, compare.md and the plots; made if it is not there. None writes nothing.
        step: told how far the work is.

    Raises:
        InputError: with everything that is wrong with the configuration, the models, the rows and the folder.
        StillhouseError: a model could not be loaded or failed while it was measured.
    """
    step = step or Step("compare")
    problems = config.problems()
    subjects, wrong = parse_subjects(config.models)
    problems += wrong
    entries = []
    for subject in subjects:
        try:
            entries.append(_entry(subject, count(subject.config, config.length, WHERE, repr(subject.text))))
        except InputError as error:
            problems += error.problems
        problems += _limits(subject, config)
    rows = None
    if config.data:
        from stillhouse.comparison.quality import read_rows

        try:
            rows = read_rows(config)
        except InputError as error:
            problems += error.problems
    if output_dir is not None:
        output_dir = output_dir.expanduser()
        problems += _folder_problems(output_dir)
    if problems:
        raise InputError(problems)

    document: dict[str, Any] = {
        "models": entries,
        "recommendations": {},
        "settings": {
            **{name: value for name, value in vars(config).items() if name not in ("models", "threads")},
            "data": public_name(config.data),
            "flops": FLOPS_RULE,
            "parameters": PARAMETERS_RULE,
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "stillhouse": __version__,
        },
        "machine": None,
    }
    if config.measure or rows is not None:
        from stillhouse.evaluation.machine import available_cores, describe_machine

        threads = config.threads or available_cores()
        document["machine"] = describe_machine(threads)
        _run(config, subjects, entries, rows, threads, step)
    document["recommendations"] = recommend(entries, metric=config.quality_metric, min_retention=config.min_retention)
    if output_dir is not None:
        write_report(document, output_dir)
    return document


def _run(
    config: CompareConfig,
    subjects: Sequence[Subject],
    entries: Sequence[dict[str, Any]],
    rows: Rows | None,
    threads: int,
    step: Step,
) -> None:
    """Measure and judge, each model in a process of its own; what is found goes into the entries."""
    from stillhouse.comparison.measuring import load_all, measure_all
    from stillhouse.comparison.process import subject_processes
    from stillhouse.comparison.quality import judge

    by_name = {entry["name"]: entry for entry in entries}
    with (
        tempfile.TemporaryDirectory(prefix="stillhouse-compare-") as folder,
        subject_processes(subjects, threads, Path(folder)) as processes,
    ):
        loaded = load_all(processes, config.seed, step)

        def judge_all() -> None:
            if rows is not None:
                for name, judgement in judge(processes, loaded, rows, config, step).items():
                    by_name[name].update(judgement)

        if not config.measure:
            judge_all()
            return
        measured = measure_all(
            processes,
            loaded,
            rounds=config.rounds,
            turn_seconds=config.turn_seconds,
            length=config.length,
            batch_size=config.batch_size,
            vocabulary=min(_vocabulary(subject) for subject in subjects),
            step=step,
            between=judge_all,
        )
        for name, figures in measured.items():
            by_name[name].update(vars(figures), load_seconds=loaded[name].seconds)


def _entry(subject: Subject, counted: Count) -> dict[str, Any]:
    """What is known of a model without measuring it."""
    published = PUBLISHED.get(subject.text)
    return {
        "name": subject.name,
        "model": subject.text,
        "family": subject.family,
        "weights": "random" if subject.checkpoint is None else "checkpoint",
        "parameters": counted.parameters,
        "embedding_parameters": counted.embedding,
        "encoder_parameters": counted.encoder,
        "pooler_parameters": counted.pooler,
        "bytes": BYTES_PER_PARAMETER * counted.parameters,
        "flops": counted.flops,
        "published": None if published is None else dict(vars(published)),
        **dict.fromkeys(_MEASURED),
        "quality_note": "",
    }


def _limits(subject: Subject, config: CompareConfig) -> list[Problem]:
    """What of the settings the model cannot do."""
    found = []
    limit = position_limit(subject.config)
    if limit is not None and config.length > limit:
        what = f"{config.length} exceeds the {limit} positions of {subject.text!r}."
        found.append(Problem("--length", what, f"Give at most {limit}."))
    if (config.measure or config.data) and not classifies(subject.config, get_task(TASK).auto_class):
        what = f"{subject.text!r} is of the family {subject.family!r}, which cannot be trained as a classifier."
        found.append(Problem(WHERE, what, "Leave it out, or give --no-measure."))
    return found


def _vocabulary(subject: Subject) -> int:
    return int(getattr(subject.config, "vocab_size", 0) or 1000)


def _folder_problems(folder: Path) -> list[Problem]:
    """Whether the results can be written: looked at now, not after minutes of measuring."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return []
    except OSError as error:
        return [Problem("--output", f"cannot write to {folder} ({error.strerror or error}).")]
