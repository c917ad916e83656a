"""A comparison as rows of text, as Markdown and as plots."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from stillhouse.evaluation.table import Column, format_bytes, format_count, metric_title
from stillhouse.plotting import COLOURS, INK, canvas, save_figure

__all__ = [
    "count_columns",
    "file_names",
    "markdown",
    "markdown_table",
    "measure_columns",
    "notes",
    "plot_names",
    "save_plots",
    "table_cells",
    "write_report",
]

Entry = Mapping[str, Any]
_NONE = "–"
_SUFFIXES = (".svg", ".png")
_Cell = Callable[[Entry], str]


def _milliseconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _ratio(value: float) -> str:
    return f"{value:.2f}×"


def _short(name: str) -> str:
    return name if len(name) <= 32 else f"{name[:31]}…"


def _published(entry: Entry) -> str:
    return _NONE if entry["published"] is None else format_count(entry["published"]["parameters"]).replace(".0", "")


_COUNTS: tuple[tuple[Column, _Cell], ...] = (
    (Column("model", "Model", number=False), lambda e: str(e["name"])),
    (Column("parameters", "Parameters"), lambda e: format_count(e["parameters"])),
    (Column("published", "In the paper"), _published),
    (Column("embedding", "Embeddings"), lambda e: format_count(e["embedding_parameters"])),
    (Column("encoder", "Encoder"), lambda e: format_count(e["encoder_parameters"])),
    (Column("pooler", "Pooler"), lambda e: format_count(e["pooler_parameters"])),
    (Column("bytes", "FP32 bytes"), lambda e: format_bytes(e["bytes"])),
    (Column("flops", "GFLOPs"), lambda e: _NONE if e["flops"] is None else f"{e['flops'] / 1e9:,.3g}"),
)
_MEASURES: tuple[tuple[Column, _Cell], ...] = (
    (Column("model", "Model", number=False), lambda e: str(e["name"])),
    (Column("p50", "p50 ms"), lambda e: _milliseconds(e["latency_ms"]["p50"])),
    (Column("p95", "p95 ms"), lambda e: _milliseconds(e["latency_ms"]["p95"])),
    (Column("latency", "Latency"), lambda e: _ratio(e["latency_ratio"])),
    (Column("throughput", "Sentences/s"), lambda e: f"{e['throughput']:,.3g}"),
    (Column("throughput_ratio", "Throughput"), lambda e: _ratio(e["throughput_ratio"])),
    (Column("memory", "Memory"), lambda e: f"{e['peak_memory_mb']:,.0f} MB"),
    (Column("own", "Model's"), lambda e: f"{e['model_memory_mb']:,.0f} MB"),
    (Column("step", "Step ms"), lambda e: _milliseconds(e["training_step_ms"])),
    (Column("step_ratio", "Step"), lambda e: _ratio(e["training_step_ratio"])),
)


def _is_measured(models: Sequence[Entry]) -> bool:
    return bool(models) and models[0]["latency_ms"] is not None


def _is_judged(models: Sequence[Entry]) -> bool:
    return any(entry["quality"] or entry["quality_note"] for entry in models)


def count_columns(document: Mapping[str, Any]) -> list[tuple[Column, _Cell]]:
    """What is counted; the papers' numbers only where a model is one of theirs."""
    named = any(entry["published"] for entry in document["models"])
    return [pair for pair in _COUNTS if named or pair[0].key != "published"]


def measure_columns(document: Mapping[str, Any]) -> list[tuple[Column, _Cell]]:
    """What was measured and judged; empty where nothing was."""
    models = document["models"]
    chosen = list(_MEASURES) if _is_measured(models) else [_MEASURES[0]]
    if _is_judged(models):
        metric = document["settings"]["quality_metric"]

        def quality(entry: Entry) -> str:
            if not entry["quality"]:
                return _NONE
            low, high = entry["quality"]["interval"]
            return f"{entry['quality'][metric]:.4f} [{low:.3f}, {high:.3f}]"

        chosen.append((Column("quality", metric_title(metric)), quality))
    return chosen if len(chosen) > 1 else []


def table_cells(models: Sequence[Entry], columns: Sequence[tuple[Column, _Cell]]) -> list[list[str]]:
    """The cells of each model, in the order of the columns."""
    return [[cell(entry) for _, cell in columns] for entry in models]


def markdown_table(titles: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[bool]) -> str:
    """A table in Markdown; columns of numbers are aligned to the right."""
    marks = ["---:" if number else "---" for number in numbers]
    lines = [titles, marks, *[[cell.replace("|", "\\|") for cell in row] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def markdown(document: Mapping[str, Any]) -> str:
    """The whole comparison."""
    models = document["models"]
    settings = document["settings"]
    parts = ["# Comparison\n"]
    for columns in (count_columns(document), measure_columns(document)):
        if columns:
            titles, numbers = [c.title for c, _ in columns], [c.number for c, _ in columns]
            parts.append(markdown_table(titles, table_cells(models, columns), numbers))
    parts.append(f"Parameters: {settings['parameters']}. FLOPs of a sentence of {settings['length']} tokens: "
                 f"{settings['flops']}.\n")  # fmt: skip
    if _is_measured(models):
        machine = document["machine"]
        parts.append(
            f"Measured in FP32 in PyTorch, a process for each model, by turns over {settings['rounds']} rounds; "
            f"sentences of {settings['length']} tokens, batches of {settings['batch_size']}; ratios are against "
            f"{models[0]['name']}. Memory is the peak of the process that answers, and the model's what that is above "
            f"the libraries; a step is one of training, with AdamW. {machine['processor']}, {machine['threads']} "
            "threads.\n"
        )
    parts += [f"- **{use}**: {entry['model']}. {entry['reason']}" for use, entry in document["recommendations"].items()]
    said = notes(document)
    return "\n".join([*parts, *(["", *(f"- {note}" for note in said)] if said else [])]) + "\n"


def notes(document: Mapping[str, Any]) -> list[str]:
    """What needs a word: counts that are not the paper's, and what could not be worked out."""
    models = document["models"]
    found = [
        f"{entry['name']} ({entry['published']['source']}): {entry['published']['note']}"
        for entry in models
        if entry["published"] and entry["published"]["note"]
    ]
    found += [f"No FLOPs of {e['name']}: its code cannot be run on shapes alone." for e in models if e["flops"] is None]
    return found + [f"No quality of {e['name']}: {e['quality_note']}." for e in models if e["quality_note"]]


def file_names(document: Mapping[str, Any]) -> list[str]:
    """The files that `write_report` writes where matplotlib is installed."""
    return ["compare.json", "compare.md", *(f"{name}{suffix}" for name in plot_names(document) for suffix in _SUFFIXES)]


def write_report(document: Mapping[str, Any], folder: Path) -> None:
    """Write `compare.json`, `compare.md` and, where matplotlib is installed, the plots."""
    (folder / "compare.json").write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "compare.md").write_text(markdown(document), encoding="utf-8")
    with suppress(ImportError):
        save_plots(document, folder)


def plot_names(document: Mapping[str, Any]) -> list[str]:
    """Names of the plots that there are to draw, without suffix."""
    models = document["models"]
    names = ["parameters"]
    if _is_measured(models):
        names.append("speed-size")
    if any(entry["quality"] for entry in models):
        names.append("quality-latency" if _is_measured(models) else "quality-size")
    return names


def save_plots(document: Mapping[str, Any], folder: Path, suffixes: Sequence[str] = _SUFFIXES) -> list[str]:
    """Draw every plot in every format, and return the file names.

    Raises:
        ImportError: matplotlib is not installed.
    """
    written = []
    for name in plot_names(document):
        with canvas(7.2, 4.6) as (figure, axes):
            if name == "parameters":
                _draw_parameters(axes, document["models"])
            else:
                _draw_points(axes, document, name)
            for suffix in suffixes:
                path = folder / f"{name}{suffix}"
                save_figure(figure, path)
                written.append(path.name)
    return written


def _draw_parameters(axes: Any, models: Sequence[Entry]) -> None:
    """Stacked bars, the first model on top; a mark where the paper's number is."""
    rows = range(len(models))
    start = [0.0] * len(models)
    for key, colour in (("embedding", COLOURS[0]), ("encoder", COLOURS[1]), ("pooler", COLOURS[5])):
        widths = [entry[f"{key}_parameters"] / 1e6 for entry in models]
        axes.barh(rows, widths, left=start, color=colour, height=0.62, label=key)
        start = [a + b for a, b in zip(start, widths, strict=True)]
    published = [
        (row, entry["published"]["parameters"] / 1e6) for row, entry in enumerate(models) if entry["published"]
    ]
    if published:
        mark: Any = {"marker": "|", "markersize": 16, "markeredgewidth": 2, "linestyle": "none", "color": INK}
        axes.plot([x for _, x in published], [y for y, _ in published], **mark, label="in the paper")
    axes.set_yticks(list(rows), [_short(entry["name"]) for entry in models])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("parameters, millions")
    axes.legend(frameon=False, fontsize=9)


def _draw_points(axes: Any, document: Mapping[str, Any], name: str) -> None:
    """A point a model, named; both figures grow away from the corner."""
    models = [entry for entry in document["models"] if name == "speed-size" or entry["quality"]]
    metric = document["settings"]["quality_metric"]
    by_latency = name != "quality-size"
    for index, entry in enumerate(models):
        x = entry["latency_ms"]["p50"] if by_latency else entry["bytes"] / 1e6
        y = entry["bytes"] / 1e6 if name == "speed-size" else entry["quality"][metric]
        axes.plot(x, y, "o", color=COLOURS[index % len(COLOURS)], markersize=8)
        axes.annotate(_short(entry["name"]), (x, y), xytext=(7, 4), textcoords="offset points", fontsize=9)
    axes.margins(0.15)
    axes.set_xlabel("median latency of one sentence, milliseconds" if by_latency else "FP32 weights, MB")
    axes.set_ylabel("FP32 weights, MB" if name == "speed-size" else metric_title(metric))
    for axis, set_scale, values in (
        ("x", axes.set_xscale, [x for line in axes.lines for x in line.get_xdata()]),
        ("y", axes.set_yscale, [y for line in axes.lines for y in line.get_ydata()]),
    ):
        if min(values) > 0 and max(values) > 6 * min(values) and not (axis == "y" and name != "speed-size"):
            set_scale("log")
            getattr(axes, f"{axis}axis").set_major_formatter(lambda value, _: f"{value:g}")
            getattr(axes, f"{axis}axis").set_minor_formatter(
                lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else ""
            )
