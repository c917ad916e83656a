"""How every plot looks, drawn without matplotlib's global state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "FAINT", "INK", "canvas", "save_figure"]

COLOURS = (
    "#3b4cc0",
    "#c2571a",
    "#1b7f5c",
    "#8a3ffc",
    "#b1284c",
    "#5b6470",
    "#0e8a9b",
    "#a07d00",
    "#d04fb0",
    "#6b4226",
)
INK, FAINT = "#1d232b", "#68727d"
_STYLE: Any = {
    "font.size": 10.5,
    "font.family": "sans-serif",
    "axes.edgecolor": "#aab2bb",
    "axes.labelcolor": INK,
    "axes.titlesize": 11.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e4e7eb",
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "svg.hashsalt": "stillhouse",  # the same figures give the same bytes
}


@contextmanager
def canvas(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """An empty figure of that size in inches, with one pair of axes; it is to be saved before the context ends.

    Raises:
        ImportError: matplotlib is not installed.
    """
    # No pyplot: it keeps every figure alive and picks a backend for the whole process.
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), dpi=144, layout="constrained")
        yield figure, figure.add_subplot()


def save_figure(figure: Figure, target: Path | IO[Any], *, transparent: bool = False) -> None:
    """Write the figure: in the format that a path's suffix says, for example `.svg` or `.png`; as SVG to a stream."""
    kind = target.suffix[1:] if isinstance(target, Path) else "svg"
    # Only SVG stamps the time that it was written at.
    metadata: Any = {"Date": None} if kind == "svg" else None
    figure.savefig(target, format=kind, transparent=transparent, metadata=metadata)
