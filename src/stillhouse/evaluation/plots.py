"""The report's plots, as SVG text.

Only our own words are drawn (roles, precisions, metric names): label names, which are the user's, stand in HTML, where
every script has glyphs and nothing is taken for mathematical notation.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stillhouse.artifacts import EvaluationManifest
from stillhouse.evaluation.table import candidate_title, chosen, metric_title
from stillhouse.plotting import COLOURS, FAINT, INK, canvas, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["calibration_plot", "quality_plots"]

_MARKERS = {"fp32": "o", "int8": "D", "int8-static": "^"}


def _draw(paint: Callable[[Axes], None], size: tuple[float, float]) -> str:
    """Run `paint` on an empty pair of axes of that size in inches, and return the SVG."""
    with canvas(*size) as (figure, axes):
        paint(axes)
        buffer = io.StringIO()
        save_figure(figure, buffer, transparent=True)
    return buffer.getvalue()


def _quality_plot(manifest: EvaluationManifest, x_of: Callable[[Mapping[str, Any]], float], x_title: str) -> str:
    metric, winner = manifest.metric, chosen(manifest)
    names = list(dict.fromkeys(c["name"] for c in manifest.candidates))
    teacher = next(c for c in manifest.candidates if (c["name"], c["precision"]) == ("teacher", "fp32"))
    baseline = max(manifest.baselines, key=lambda b: b["metrics"][metric], default=None)

    def paint(axes: Axes) -> None:
        for entry in manifest.candidates:
            x, y = x_of(entry), entry["metrics"][metric]
            low, high = entry["interval"]
            colour = COLOURS[names.index(entry["name"]) % len(COLOURS)]
            # A percentile interval need not hold the value itself when there are few rows.
            error = [[max(0.0, y - low)], [max(0.0, high - y)]]
            axes.errorbar(x, y, yerr=error, color=colour, alpha=0.35, linewidth=1.6, capsize=3, zorder=2)
            if entry is winner:
                axes.plot(x, y, "o", markersize=17, markerfacecolor="none", markeredgecolor=INK, zorder=4)
            marker = _MARKERS.get(entry["precision"], "s")
            label = f"{candidate_title(entry)} {entry['precision']}" + (" (chosen)" if entry is winner else "")
            axes.plot(x, y, marker, color=colour, markersize=8.5, label=label, linestyle="none", zorder=3)
        if manifest.policy != "quality":
            need = manifest.min_retention * teacher["metrics"][metric]
            label = f"{100 * manifest.min_retention:g}% of the teacher"
            axes.axhline(need, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1, label=label)
        if baseline is not None:
            value = baseline["metrics"][metric]
            axes.axhline(
                value, color=FAINT, linewidth=1.4, linestyle=":", zorder=1, label=f"baseline {baseline['name']}"
            )
        for entry in manifest.unservable:
            # Measured for its quality alone, so that it has no place on the other axis.
            label = f"{entry['name']}, in PyTorch"
            axes.axhline(entry["metrics"][metric], color=FAINT, linewidth=1, linestyle="-.", zorder=1, label=label)
        values = [x_of(entry) for entry in manifest.candidates]
        if max(values) > 6 * min(values):
            axes.set_xscale("log")
            _plain_log_ticks(axes, min(values), max(values))
        else:
            axes.set_xlim(0, 1.12 * max(values))
        axes.set_xlabel(x_title)
        axes.set_ylabel(metric_title(metric))
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3, frameon=False, fontsize=9)

    # The legend takes from the plot's height what its lines beyond the usual three need.
    lines = -(-(len(manifest.candidates) + len(manifest.unservable) + 2) // 3)
    return _draw(paint, (5.6, 4.4 + 0.18 * max(0, lines - 3)))


def _plain_log_ticks(axes: Axes, low: float, high: float) -> None:
    """Ticks at 1, 2 and 5 times powers of ten, written as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xlim(low / 1.4, high * 1.4)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def quality_plots(manifest: EvaluationManifest) -> dict[str, str]:
    """SVG of quality against p95 latency and against size, by name."""
    return {
        "quality-latency": _quality_plot(
            manifest, lambda c: float(c["latency_ms"]["p95"]), "p95 latency of one text, milliseconds"
        ),
        "quality-size": _quality_plot(manifest, lambda c: float(c["bytes"]) / 1e6, "encoder on disk, MB"),
    }


def calibration_plot(bins: Sequence[Mapping[str, Any]]) -> str:
    """SVG of the share correct against confidence; a point's area grows with its rows.

    Args:
        bins: `confidence`, `accuracy` and `rows` of each occupied bin.
    """
    most = max(entry["rows"] for entry in bins)

    def paint(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=":", zorder=1)
        x = [entry["confidence"] for entry in bins]
        y = [entry["accuracy"] for entry in bins]
        axes.plot(x, y, color=COLOURS[0], linewidth=1.5, alpha=0.5, zorder=2)
        axes.scatter(x, y, s=[18 + 130 * entry["rows"] / most for entry in bins], color=COLOURS[0], zorder=3)
        axes.set_xlim(0, 1.03)
        axes.set_ylim(0, 1.03)
        axes.set_aspect("equal")
        axes.set_xlabel("confidence")
        axes.set_ylabel("share correct")

    return _draw(paint, (4.2, 4.2))
