"""The evaluation as one HTML file that needs nothing beside it: no script, no network, plots inside.

The template escapes everything it is given; label names and file names are the user's, and may hold markup.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from stillhouse.artifacts import DatasetManifest, EvaluationManifest
from stillhouse.evaluation.plots import calibration_plot, quality_plots
from stillhouse.evaluation.table import (
    candidate_title,
    chosen,
    columns,
    format_bytes,
    format_count,
    metric_title,
    table_rows,
)

__all__ = ["render_report", "write_report"]

_TEMPLATES = Path(__file__).parent / "templates"
MATRIX_CLASSES = 24
"""Above it the confusion matrix is unreadable, and the most frequent confusions stand in its place."""
_CONFUSIONS = 20


def _confusions(labels: list[str], matrix: list[list[int]]) -> list[dict[str, Any]]:
    """The most frequent mistakes: true label, predicted label, rows, and share of the true label's rows."""
    found: list[dict[str, Any]] = [
        {"true": labels[i], "predicted": labels[j], "rows": count, "share": count / sum(row)}
        for i, row in enumerate(matrix)
        for j, count in enumerate(row)
        if i != j and count
    ]
    return sorted(found, key=lambda entry: -entry["rows"])[:_CONFUSIONS]


def _matrix(matrix: list[list[int]]) -> list[list[dict[str, Any]]]:
    """Cells with their share of the row, and the strength of their colour (0 to 1)."""
    return [
        [{"count": n, "share": n / sum(row) if sum(row) else 0.0, "right": i == j} for j, n in enumerate(row)]
        for i, row in enumerate(matrix)
    ]


def _tiles(manifest: EvaluationManifest) -> list[dict[str, str]]:
    """The chosen candidate's key figures."""
    entry = chosen(manifest)
    low, high = entry["interval"]
    title = metric_title(manifest.metric)
    speedup = entry["speedup_vs_teacher"]
    tiles = [
        {"value": f"{entry['metrics'][manifest.metric]:.4f}", "name": title, "note": f"95%: {low:.3f} to {high:.3f}"},
        {
            "value": f"{100 * entry['retention']:.1f}%",
            "name": "retention",
            "note": f"of the FP32 teacher (least {100 * manifest.min_retention:g}%)",
        },
        {
            "value": f"{entry['latency_ms']['p95']:.3g} ms",
            "name": "p95 latency",
            "note": f"median {entry['latency_ms']['p50']:.3g} ms, one text",
        },
        {"value": f"{entry['throughput']:,.0f}", "name": "rows per second", "note": "in batches of 32"},
        {
            "value": format_bytes(entry["bytes"]),
            "name": "on disk",
            "note": f"{format_count(entry['parameters'])} parameters",
        },
        {"value": f"{entry['peak_memory_mb']:,.0f} MB", "name": "peak memory", "note": "of the whole process"},
    ]
    if speedup is not None and entry["name"] != "teacher":
        note = f"of the teacher, both {entry['precision']}"
        tiles.insert(3, {"value": f"{speedup:.2f}×", "name": "speed", "note": note})
    return tiles


def _promotion(manifest: EvaluationManifest) -> dict[str, Any] | None:
    """The comparison with the champion: what was decided and why, and its figures by name."""
    found: dict[str, Any] | None = manifest.choice.get("promotion")
    if not found:
        return None
    figures: dict[str, str] = {}
    if found["difference"] is not None:
        low, high = found["interval"]
        title = f"{metric_title(found['metric'])}, new less champion"
        figures[title] = f"{found['difference']:+.4f} ({100 * (1 - found['level']):.4g}%: {low:+.4f} to {high:+.4f})"
        if found["test"]:
            figures[found["test"]] = f"p = {found['p_value']:.3g}"
        low, high = found["latency_interval"]
        figures["p95 latency, new to champion"] = f"{found['latency_ratio']:.3f} ({low:.3f} to {high:.3f})"
        figures["size, new to champion"] = f"{found['bytes_ratio']:.3f}"
    return found | {"figures": figures}


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _data_uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def render_report(manifest: EvaluationManifest, dataset: DatasetManifest, *, title: str, plots: dict[str, str]) -> str:
    """The report's HTML.

    Args:
        manifest: the evaluation.
        dataset: what it was measured on.
        title: name of the served model.
        plots: SVG by name: `quality-latency`, `quality-size` and, for the chosen candidate, `calibration`.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": _cell, "metric_title": metric_title, "candidate_title": candidate_title}
    winner = chosen(manifest)
    details = winner["details"]
    labels = [row.get("label", "") for row in details.get("table", ())]
    confusion = details.get("confusion", [])
    rows = table_rows(manifest)
    return environment.get_template("report.html.j2").render(
        title=title,
        evaluation=manifest,
        dataset=dataset,
        winner=winner,
        tiles=_tiles(manifest),
        columns=columns(manifest),
        candidates=[row for row in rows if row.kind == "candidate"],
        baselines=[row for row in rows if row.kind == "baseline"],
        unservable=[row for row in rows if row.kind == "unservable"],
        refused=[row for row in rows if row.kind in ("refused", "incomparable")],
        promotion=_promotion(manifest),
        plots={name: _data_uri(svg) for name, svg in plots.items()},
        labels=labels,
        matrix=_matrix(confusion) if len(confusion) <= MATRIX_CLASSES else [],
        confusions=_confusions(labels, confusion) if len(confusion) > MATRIX_CLASSES else [],
        # JSON manifests sort their keys; people read splits and labels in their own order.
        splits={name: dataset.splits[name] for name in ("train", "validation", "test") if name in dataset.splits},
    )


def write_report(manifest: EvaluationManifest, dataset: DatasetManifest, folder: Path, *, title: str) -> Path:
    """Write `report.html`, and the plots as SVG files under `plots/`, into `folder`."""
    plots = quality_plots(manifest)
    if bins := chosen(manifest)["details"].get("calibration"):
        plots["calibration"] = calibration_plot(bins)
    (folder / "plots").mkdir(exist_ok=True)
    for name, svg in plots.items():
        (folder / "plots" / f"{name}.svg").write_text(svg, encoding="utf-8")
    path = folder / "report.html"
    path.write_text(render_report(manifest, dataset, title=title, plots=plots), encoding="utf-8")
    return path
