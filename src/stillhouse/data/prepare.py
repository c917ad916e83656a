"""`inspect_source` and `prepare_dataset`: from a user's rows to a dataset artifact, in two streamed passes.

The first pass checks every row and keeps a hash and a label id of each; from these the splits are decided. The second
reads the rows again and writes each to its split. No text is kept in memory.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stillhouse.artifacts import DatasetManifest, digest_json
from stillhouse.data.cells import sort_labels
from stillhouse.data.config import DataConfig
from stillhouse.data.faults import Faults, Unreadable
from stillhouse.data.location import SPLIT_PARAMETERS, public_name
from stillhouse.data.scan import Meter, Scan, scan_source
from stillhouse.data.sources import Source, open_sources
from stillhouse.data.split import SPLITS, Assignment, assign_rows
from stillhouse.data.writing import write_splits
from stillhouse.errors import InputError, Problem
from stillhouse.progress import Step

__all__ = ["SourceReport", "inspect_source", "prepare_dataset"]

_READER_VERSION = 1
"""Part of every fingerprint: raised whenever the same bytes would be read as other rows."""


@dataclass(frozen=True)
class SourceReport:
    """What `inspect_source` found."""

    fingerprint: str
    """sha256 of the content of everything read; empty where something could not be read to its end."""
    problems: tuple[Problem, ...]
    """All that is wrong; empty where the source can be used."""
    rows: dict[str, int] = field(default_factory=dict)
    """Rows of each split that would be made; where there are problems, rows read from each location."""
    columns: tuple[str, ...] = ()
    """All columns of `data`."""
    label_names: tuple[str, ...] = ()
    """In id order."""
    duplicates_removed: int = 0


@dataclass
class _Examination:
    sources: dict[str, Source]
    assignment: Assignment | None
    report: SourceReport
    digests: dict[str, str]


def inspect_source(config: DataConfig, step: Step | None = None) -> SourceReport:
    """Check the parameters, and every row of every source; nothing is written.

    Whatever is wrong with what the user gave is returned as problems, all of it, never raised.
    """
    return _examine(config, step).report


def prepare_dataset(
    config: DataConfig, output_dir: Path, *, fingerprint: str, step: Step | None = None
) -> DatasetManifest:
    """Write `train.parquet`, `validation.parquet`, `test.parquet` and `dataset.json` to `output_dir`.

    Args:
        config: what to read and how to split it.
        output_dir: a folder that is empty or does not exist. It appears in one rename, or not at all.
        fingerprint: what `inspect_source` returned for the same config; empty: whatever is there now.
        step: told of the progress.

    Raises:
        InputError: with every problem that `inspect_source` would return, or since the source has changed after it, or
            since the output folder cannot be written.
    """
    output_dir = Path(output_dir)
    if problem := _output_problem(output_dir):
        raise InputError([*_examine(config, step).report.problems, problem])
    examined = _examine(config, step)
    report = examined.report
    if report.problems:
        raise InputError(report.problems)
    assert examined.assignment is not None  # no problems
    if fingerprint and fingerprint != report.fingerprint:
        raise InputError(_changed(config))
    try:
        output_dir.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{output_dir.name}.partial-", dir=output_dir.parent))
    except OSError as error:
        raise InputError(Problem("output folder", f"{output_dir} cannot be made ({error}).")) from None
    try:
        partial.chmod(0o755)
        splits = write_splits(
            partial, examined.sources, config.schema, examined.assignment, list(report.label_names), step
        )
        if {split: source.digest for split, source in examined.sources.items()} != examined.digests:
            raise InputError(_changed(config))
        manifest = DatasetManifest(
            producer="prepare-data",
            task=config.task,
            columns={column.name: column.source for column in config.schema.columns},
            label_names=list(report.label_names),
            splits=splits,
            source={parameter: public_name(config.location(split)) for split, parameter in SPLIT_PARAMETERS.items()},
            fingerprint=report.fingerprint,
            seed=config.seed,
            duplicates_removed=examined.assignment.duplicates_removed,
        )
        manifest.save(partial)
        partial.replace(output_dir)
    except Unreadable as error:
        raise InputError(Problem("data", error.what, error.remedy)) from None
    except OSError as error:  # reading never raises it; writing does, on a full disk for one
        raise InputError(Problem("output folder", f"{output_dir} cannot be written ({error}).")) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return DatasetManifest.load(output_dir)


def _examine(config: DataConfig, step: Step | None) -> _Examination:
    faults = Faults()
    for problem in config.problems():
        faults.add_problem(problem)
    sources = open_sources(config, faults)
    sizes = [source.total_bytes for source in sources.values()]
    meter = Meter(step, "checking", sum(sizes) if all(sizes) else 0)
    scans: dict[str, Scan] = {}
    for split, source in list(sources.items()):
        own = Faults() if source.optional else faults
        scan = scan_source(source, config.schema, own, meter)
        if source.optional and not scan.label_names and config.schema.of_kind("class"):
            del sources[split]  # the hub's test splits often come without labels
            continue
        if source.optional:
            for problem in own.problems():
                faults.add_problem(problem)
        scans[split] = scan
    label_names = sort_labels(scans["train"].label_names) if "train" in scans else []
    labels = _check_labels(config, sources, scans, label_names, faults)
    assignment = None
    if not faults and "train" in scans:
        assignment = assign_rows(
            {split: scan.hashes for split, scan in scans.items()},
            labels,
            max(1, len(label_names)),
            fractions={"validation": config.validation_fraction, "test": config.test_fraction},
            limits={split: config.limit(split) for split in SPLITS},
            seed=config.seed,
        )
        _check_sizes(config, scans, assignment, label_names, faults)
    rows = {split: len(scan.hashes) for split, scan in scans.items()}
    if assignment is not None and not faults:
        rows = {split: int(assignment.counts[split].sum()) for split in SPLITS}
    digests = {split: scan.digest for split, scan in scans.items()}
    report = SourceReport(
        fingerprint=_fingerprint(config, digests),
        problems=tuple(faults.problems()),
        rows=rows,
        columns=scans["train"].columns if "train" in scans else (),
        label_names=tuple(label_names),
        duplicates_removed=assignment.duplicates_removed if assignment else 0,
    )
    return _Examination(sources=sources, assignment=assignment, report=report, digests=digests)


def _fingerprint(config: DataConfig, digests: Mapping[str, str]) -> str:
    given = {split for split in SPLITS if config.location(split)}
    if not given <= digests.keys() or not all(digests.values()):
        return ""
    columns = {column.name: column.source for column in config.schema.columns}
    return digest_json({"reader": _READER_VERSION, "columns": columns, "sources": dict(digests)})


def _check_labels(
    config: DataConfig,
    sources: Mapping[str, Source],
    scans: Mapping[str, Scan],
    label_names: list[str],
    faults: Faults,
) -> dict[str, NDArray[np.int16]]:
    """Label ids [n] of each source's rows in the order of `label_names`; what is wrong with them is collected."""
    classes = config.schema.of_kind("class")
    ids = {name: index for index, name in enumerate(label_names)}
    labels = {}
    for split, scan in scans.items():
        if not classes:
            labels[split] = scan.labels
            continue
        lookup = np.array([ids.get(name, -1) for name in scan.label_names] + [-1], dtype=np.int16)
        labels[split] = lookup[scan.labels]
        unseen = [index for index, name in enumerate(scan.label_names) if name not in ids]
        if unseen and label_names:
            faults.add(SPLIT_PARAMETERS[split], _unseen_words(sources[split].name, scan, unseen), "Add rows to train.")
    if "train" in scans and classes:
        name = sources["train"].name
        if not len(scans["train"].hashes) and not scans["train"].faulty:
            faults.add("data", f"{name} has a header but no rows.", "Give a file with rows.")
        elif len(label_names) == 1 and scans["train"].digest:
            faults.add(
                f"{classes[0].name}_column",
                f"{name} has one class only: every {classes[0].source!r} is {label_names[0]!r}.",
                "Give rows of two classes or more.",
            )
    for split in ("validation", "test"):
        if split in scans and not len(scans[split].hashes) and not scans[split].faulty:
            faults.add(SPLIT_PARAMETERS[split], f"{sources[split].name} has no rows.", "Give a file with rows.")
    return labels


def _unseen_words(name: str, scan: Scan, unseen: list[int]) -> str:
    shown = ", ".join(f"{scan.label_names[index][:60]!r}" for index in unseen[:5])
    shown += f" and {len(unseen) - 5} more" if len(unseen) > 5 else ""
    rows = np.flatnonzero(np.isin(scan.labels, unseen))
    return f"{name} has labels that no row of data has: {shown} ({len(rows):,} rows, the first is row {rows[0] + 1})."


def _check_sizes(
    config: DataConfig, scans: Mapping[str, Scan], assignment: Assignment, label_names: list[str], faults: Faults
) -> None:
    """Whether every split has rows, and train some of every label."""
    total = len(scans["train"].hashes)
    limit = config.limit("train")
    if limit and limit < len(label_names):
        what = f"is {limit}, fewer than the {len(label_names)} labels."
        faults.add("max_train_rows", what, "Give at least one row a label.")
        return
    if len(scans) < len(SPLITS) and total < 2 * len(label_names):
        what = (
            f"{total:,} rows for {len(label_names)} different labels are too few to split; two a label are the least."
        )
        faults.add("data", what, "Give more rows, or name the column that holds the classes.")
        return
    for split in ("validation", "test"):
        if assignment.counts[split].sum():
            continue
        if split in scans:
            what = f"all {len(scans[split].hashes):,} rows stand in test_data too, so none is left."
            faults.add(SPLIT_PARAMETERS[split], what, "Give other rows.")
        else:
            what = f"{total:,} rows with {max(1, len(label_names))} labels are too few to split {split} rows off"
            remedy = f"Give more rows, a larger {split}_fraction, or {SPLIT_PARAMETERS[split]}."
            faults.add("data", f"{what} ({split}_fraction is {getattr(config, f'{split}_fraction'):g}).", remedy)
    train = assignment.counts["train"]
    if not train.all():
        lost = ", ".join(repr(label_names[index]) for index in np.flatnonzero(train == 0)[:5]) or "all"
        what = f"no train rows are left of labels {lost}: all are in other splits too."
        faults.add("data", what, "Give more rows.")


def _changed(config: DataConfig) -> Problem:
    names = ", ".join(public_name(config.location(split)) for split in SPLITS if config.location(split))
    return Problem("data", f"changed since it was inspected: {names}.", "Run again.")


def _output_problem(output_dir: Path) -> Problem | None:
    try:
        if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
            return Problem("output folder", f"{output_dir} exists and is not empty.", "Give a new one.")
    except OSError as error:
        return Problem("output folder", f"{output_dir} cannot be read ({error}).")
    return None
