"""Shows a run while it goes on: a live table on a terminal, one line per change anywhere else."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from stillhouse.cli.state import RunState, StepState

__all__ = ["LiveView", "PlainView", "format_seconds", "steps_table", "view_for"]

# state: (sign, style of the sign, style of the title)
_LOOKS = {
    "waiting": ("·", "dim", "dim"),
    "running": ("", "cyan", "bold"),
    "cached": ("✓", "blue", ""),
    "done": ("✓", "green", ""),
    "failed": ("✗", "red", "bold red"),
    "skipped": ("–", "dim", "dim"),
    "interrupted": ("■", "yellow", "yellow"),
}


def format_seconds(seconds: float) -> str:
    """A duration as people write it: `0.4s`, `42s`, `3m 07s`, `1h 02m`."""
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"


def steps_table(state: RunState, now: float, spinner: Spinner | None = None) -> Table:
    """One line per step: sign, title, what it is at, and how long it took.

    Args:
        state: the run so far.
        now: seconds since the epoch, for the steps that are running.
        spinner: the sign of a running step; a still one where there is none.
    """
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(width=1)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column(justify="right", no_wrap=True)
    for step in state.steps.values():
        sign, sign_style, title_style = _LOOKS[step.state]
        elapsed = step.elapsed(now)
        if step.state == "running":
            mark: RenderableType = spinner or Text("▸", style=sign_style)
        else:
            mark = Text(sign, style=sign_style)
        right = Text(format_seconds(elapsed) if elapsed is not None else "", style="dim")
        table.add_row(mark, Text(step.title, style=title_style), _activity(step), right)
    return table


def _activity(step: StepState) -> RenderableType:
    """The middle of a step's line."""
    if step.state == "running":
        if step.total <= 0:
            return Text(step.note, style="dim")
        row = Table.grid(padding=(0, 1))
        row.add_column(width=24)
        row.add_column(justify="right", width=4)
        row.add_column(no_wrap=True, overflow="ellipsis")
        share = min(1.0, step.done / step.total)
        bar = ProgressBar(total=step.total, completed=min(step.done, step.total), complete_style="cyan", width=24)
        row.add_row(bar, f"{share:.0%}", Text(step.note, style="dim"))
        return row
    if step.state == "failed":
        return Text(step.message.splitlines()[0] if step.message else "", style="red")
    if step.state in ("cached", "skipped", "interrupted"):
        return Text(step.state, style="dim")
    return Text("")


class LiveView:
    """Redraws the table of steps in place."""

    def __init__(self, console: Console, state: RunState, heading: str) -> None:
        self._state = state
        self._heading = heading
        self._began = time.time()
        self._spinner = Spinner("dots", style="cyan")
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=8, transient=False)

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def update(self, changed: list[StepState]) -> None:
        """Nothing to do: the table is drawn from the state, several times a second."""

    def _render(self) -> RenderableType:
        now = time.time()
        whole = Table.grid(expand=True)
        heading = Table.grid(expand=True)
        heading.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        heading.add_column(justify="right", no_wrap=True)
        heading.add_row(Text.from_markup(self._heading), Text(format_seconds(now - self._began), style="bold"))
        whole.add_row(heading)
        whole.add_row("")
        if self._state.steps:
            whole.add_row(steps_table(self._state, now, self._spinner))
        else:
            whole.add_row(Text("  preparing the pipeline …", style="dim"))
        whole.add_row("")
        return whole


class PlainView:
    """Prints a line whenever a step changes its state: for log files and CI."""

    def __init__(self, console: Console, state: RunState, heading: str) -> None:
        self._console = console
        self._heading = heading
        self._began = time.time()

    def __enter__(self) -> PlainView:
        self._console.print(Text.from_markup(self._heading), soft_wrap=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def update(self, changed: list[StepState]) -> None:
        """Print one line for each of the steps."""
        for step in changed:
            line = f"{format_seconds(time.time() - self._began):>8}  {step.state:<11}  {step.title}"
            if step.state == "failed" and step.message:
                line += f": {step.message.splitlines()[0]}"
            elif step.seconds is not None:
                line += f" ({format_seconds(step.seconds)})"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def view_for(console: Console, state: RunState, heading: str) -> LiveView | PlainView:
    """The live view where the console is a terminal that can redraw, else the plain one."""
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveView(console, state, heading)
    return PlainView(console, state, heading)
