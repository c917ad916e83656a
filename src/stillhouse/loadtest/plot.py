"""The plot of a ramp: what each caller waits for, against what the server gets done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stillhouse.loadtest.ramp import Step
from stillhouse.loadtest.result import LoadResult
from stillhouse.plotting import COLOURS, FAINT, INK, canvas, save_figure

__all__ = ["save_plot"]

_COLOURS = {"p50": COLOURS[2], "p95": COLOURS[0], "p99": COLOURS[1]}


def save_plot(paths: Sequence[Path], steps: Sequence[Step], *, title: str, knee: int | None) -> None:
    """Draw p50, p95 and p99 against throughput, one point for each concurrency; the other server's lines are dashed.

    Args:
        paths: files to write; the suffix of each says the format, for example `.svg` or `.png`.
        steps: in the order of their concurrency.
        title: shown above.
        knee: concurrency to mark.

    Raises:
        ImportError: matplotlib is not installed.
    """
    with canvas(7.2, 4.6) as (figure, axes):
        own = [(step.concurrency, step.result) for step in steps]
        _lines(axes, own, "", "-")
        if others := [(step.concurrency, step.against) for step in steps if step.against]:
            _lines(axes, others, ", the other server", "--")
        for concurrency, result in own:
            at = (result.texts_per_second, result.p99)  # not drawn where nothing was answered: p99 is NaN
            style: Any = {"xytext": (-6, 4), "textcoords": "offset points", "ha": "right", "fontsize": 9}
            axes.annotate(str(concurrency), at, **style, color=FAINT)
            if concurrency == knee:
                ring: Any = {"markersize": 11, "markerfacecolor": "none", "markeredgecolor": INK, "linestyle": "none"}
                axes.plot(*at, "o", **ring, label=f"knee: {knee} at once")
        axes.set_xlim(left=0)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
        axes.set_xlabel("texts a second")
        axes.set_ylabel("latency, ms")
        axes.set_title(title)
        axes.legend(frameon=False, fontsize=9)
        for path in paths:
            save_figure(figure, path)


def _lines(axes: Any, points: Sequence[tuple[int, LoadResult]], suffix: str, style: str) -> None:
    x = [result.texts_per_second for _, result in points]
    for name, colour in _COLOURS.items():
        y = [getattr(result, name) for _, result in points]
        axes.plot(x, y, style, marker="o", markersize=4, linewidth=1.5, color=colour, label=f"{name}{suffix}")
