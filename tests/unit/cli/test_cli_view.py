"""What is drawn of a run."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from stillhouse.cli.state import RunState, StepState
from stillhouse.cli.view import LiveView, PlainView, format_seconds, steps_table, view_for


def state_with(*steps: StepState) -> RunState:
    return RunState(steps={step.id: step for step in steps})


def render(renderable: object, width: int = 100) -> list[str]:
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(renderable)
    return [line.rstrip() for line in console.export_text().splitlines()]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0s"), (9.94, "9.9s"), (9.96, "10s"), (59.6, "1m 00s"), (187, "3m 07s"), (3600, "1h 00m"), (7385, "2h 03m")],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_each_state_has_its_line() -> None:
    lines = render(
        steps_table(
            state_with(
                StepState("a", "Inspect", "done", seconds=1.25),
                StepState("b", "Prepare", "cached"),
                StepState("c", "Distil", "running", done=62, total=100, note="epoch 2 [of 3]", started=1000.0),
                StepState("d", "Package", "failed", message="first line\nsecond", seconds=3.0),
                StepState("e", "Deploy", "waiting"),
            ),
            now=1048.0,
        )
    )
    assert [line.split()[0] for line in lines] == ["✓", "✓", "▸", "✗", "·"]
    assert lines[0].endswith("1.2s") and "Inspect" in lines[0]
    assert "cached" in lines[1]
    assert "62%" in lines[2] and "epoch 2 [of 3]" in lines[2] and lines[2].endswith("48s") and "━" in lines[2]
    assert "first line" in lines[3] and "second" not in "".join(lines)
    assert lines[4].split() == ["·", "Deploy"]


def test_a_long_note_takes_no_second_line_on_a_narrow_terminal() -> None:
    step = StepState("c", "Distil the student", "running", done=1, total=9, note="long " * 40, started=0.0)
    lines = render(steps_table(state_with(step), now=5.0), width=60)
    assert len(lines) == 1
    assert len(lines[0]) <= 60
    assert lines[0].endswith("5.0s")


def test_plain_view_prints_one_line_per_change() -> None:
    console = Console(file=(out := io.StringIO()), width=60)
    with PlainView(console, RunState(), "[bold]stillhouse run[/bold]  preset demo") as view:
        view.update([StepState("a", "Prepare [data]", "running")])
        view.update([])
        view.update([StepState("a", "Prepare [data]", "done", seconds=61.0), StepState("b", "Distil", "failed")])
    lines = out.getvalue().splitlines()
    assert lines[0] == "stillhouse run  preset demo"
    assert [line.split(None, 1)[1] for line in lines[1:]] == [
        "running      Prepare [data]",
        "done         Prepare [data] (1m 01s)",
        "failed       Distil",
    ]


def test_the_view_fits_the_console() -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "xterm"})
    dumb = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
    pipe = Console(file=io.StringIO(), force_terminal=False)
    kinds = [type(view_for(console, RunState(), "")) for console in (terminal, dumb, pipe)]
    assert kinds == [LiveView, PlainView, PlainView]


def test_live_view_leaves_its_last_picture_on_the_screen() -> None:
    console = Console(file=(out := io.StringIO()), force_terminal=True, width=80, _environ={"TERM": "xterm"})
    state = RunState()
    with LiveView(console, state, "heading"):
        state.apply({"time": 1.0, "step": "evaluate", "event": "started"})
        state.apply({"time": 2.0, "step": "evaluate", "event": "finished", "seconds": 1.0})
    last = out.getvalue().rsplit("heading", 1)[1]
    assert "✓" in last and "Evaluate" in last
