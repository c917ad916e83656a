"""The comparison as plain rows of text, for a terminal and for the report alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from stillhouse.artifacts import EvaluationManifest

__all__ = [
    "CHAMPION",
    "COMPACT",
    "Column",
    "Row",
    "candidate_title",
    "chosen",
    "columns",
    "format_bytes",
    "format_count",
    "metric_title",
    "table_rows",
]

CHAMPION = "champion"
"""Name of the candidate that was deployed before, and the registry's alias for what is deployed."""
_TITLES = {"macro_f1": "macro-F1", "mcc": "MCC", "calibration_error": "calibration error", "f1": "F1"}

COMPACT = ("model", "precision", "quality", "retention", "bytes", "p50", "p95", "speedup")
"""Keys of the columns that fit a terminal of 100 characters."""

_NONE = "–"


@dataclass(frozen=True)
class Column:
    """One column of the comparison."""

    key: str
    title: str
    hint: str = ""
    """What the figure is, in a sentence."""
    number: bool = True
    """Whether to align to the right."""


@dataclass(frozen=True)
class Row:
    """One line of the comparison."""

    kind: Literal["candidate", "unservable", "baseline", "refused", "incomparable"]
    chosen: bool
    cells: dict[str, str]
    """Text by column key; every column is there."""
    note: str = ""
    """Why it cannot be served, was refused, or cannot be compared; empty for the others."""


def candidate_title(entry: Mapping[str, Any]) -> str:
    """A candidate's name as people read it: of a champion, with its version."""
    return f"{entry['name']} v{entry['version']}" if entry.get("version") else str(entry["name"])


def metric_title(name: str) -> str:
    """A metric's name as people write it."""
    return _TITLES.get(name, name.replace("_", " "))


def format_bytes(count: float) -> str:
    """A size in decimal units."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


def format_count(count: float) -> str:
    """A large count in thousands or millions, as for parameters."""
    if count >= 1e6:
        return f"{count / 1e6:.1f} M"
    return f"{count / 1e3:.1f} k" if count >= 1e4 else f"{count:,.0f}"


def _milliseconds(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _share(value: float) -> str:
    return f"{100 * value:.1f}%"


def chosen(manifest: EvaluationManifest) -> dict[str, Any]:
    """The chosen candidate's entry."""
    pair = (manifest.choice["name"], manifest.choice["precision"])
    return next(c for c in manifest.candidates if (c["name"], c["precision"]) == pair)


def columns(manifest: EvaluationManifest, keys: Sequence[str] | None = None) -> list[Column]:
    """The columns in order: all of them, or those named by `keys`."""
    metrics = list(manifest.candidates[0]["metrics"])
    title = metric_title(manifest.metric)
    everything = [
        Column("model", "Model", number=False),
        Column("precision", "Precision", number=False),
        Column("quality", title, "On the test split, with its 95% bootstrap interval."),
        *(Column(name, metric_title(name)) for name in metrics if name != manifest.metric),
        Column("retention", "Retention", f"Share of the FP32 teacher's {title}."),
        Column("parameters", "Parameters"),
        Column("bytes", "Size", "The ONNX encoder on disk."),
        Column("p50", "p50 ms", "Median latency of one text, tokenising included."),
        Column("p95", "p95 ms", "95th percentile of the same."),
        Column("p99", "p99 ms", "99th percentile of the same."),
        Column("speedup", "Speed-up", "Teacher's p50 at the same precision divided by this one's."),
        Column("throughput", "Rows/s", "In batches of 32."),
        Column("memory", "Memory", "Peak resident size of a process that serves nothing else."),
        Column("parity", "Parity", "Largest difference to PyTorch's FP32 probabilities on real rows."),
    ]
    if keys is None:
        return everything
    by_key = {column.key: column for column in everything}
    return [by_key[key] for key in keys]


def _quality(entry: Mapping[str, Any], metric: str) -> str:
    low, high = entry["interval"]
    return f"{entry['metrics'][metric]:.4f} [{low:.3f}, {high:.3f}]"


def _cells(entry: Mapping[str, Any], metric: str) -> dict[str, str]:
    cells = {name: f"{value:.4f}" for name, value in entry["metrics"].items() if name != metric}
    cells["model"] = candidate_title(entry)
    cells |= {"quality": _quality(entry, metric), "retention": _share(entry["retention"])}
    if "parameters" in entry:
        cells["parameters"] = format_count(entry["parameters"])
    if "latency_ms" in entry:
        cells |= {name: _milliseconds(value) for name, value in entry["latency_ms"].items()}
        speedup = entry["speedup_vs_teacher"]
        cells |= {
            "precision": entry["precision"],
            "bytes": format_bytes(entry["bytes"]),
            "speedup": f"{speedup:.2f}×" if speedup is not None else _NONE,
            "throughput": f"{entry['throughput']:,.0f}",
            "memory": f"{entry['peak_memory_mb']:,.0f} MB",
            "parity": f"{entry['parity']['max_difference']:.1e}" if "max_difference" in entry["parity"] else _NONE,
        }
    return cells


def table_rows(manifest: EvaluationManifest, keys: Sequence[str] | None = None) -> list[Row]:
    """Candidates in the order measured, then those that cannot be served, then what was refused or cannot be compared,
    then the best baselines first.

    Args:
        manifest: the evaluation.
        keys: column keys to keep, for example `COMPACT`; all of them without it.
    """
    names = [column.key for column in columns(manifest, keys)]
    winner = chosen(manifest)

    def complete(cells: Mapping[str, str]) -> dict[str, str]:
        return {name: cells.get(name, _NONE) for name in names}

    rows = [
        Row("candidate", entry is winner, complete(_cells(entry, manifest.metric))) for entry in manifest.candidates
    ]
    rows += [
        Row("unservable", False, complete(_cells(entry, manifest.metric) | {"precision": "PyTorch"}), entry["reason"])
        for entry in manifest.unservable
    ]
    rows += [
        Row("refused", False, complete({"model": entry["name"], "precision": entry["precision"]}), entry["reason"])
        for entry in manifest.choice.get("refused", ())
    ]
    rows += [
        Row("incomparable", False, complete({"model": candidate_title(entry)}), entry["reason"])
        for entry in manifest.choice.get("incomparable", ())
    ]
    ranked = sorted(manifest.baselines, key=lambda entry: -entry["metrics"][manifest.metric])
    rows += [Row("baseline", False, complete(_cells(entry, manifest.metric))) for entry in ranked]
    return rows
