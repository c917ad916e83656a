"""From events to the state of a run."""

from __future__ import annotations

import json
from pathlib import Path

from stillhouse.cli.state import EventTail, RunState
from stillhouse.errors import Problem


def apply_all(*events: dict) -> RunState:
    state = RunState()
    for event in events:
        state.apply({"time": 100.0, **event})
    return state


def test_tail_yields_each_line_once_and_never_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail = EventTail(path)
    assert tail.read() == []
    first, second = (json.dumps({"step": "a", "event": name}) for name in ("started", "finished"))
    path.write_text(first + "\n" + second[:10])
    assert [e["event"] for e in tail.read()] == ["started"]
    assert tail.read() == []
    with path.open("a") as file:
        file.write(second[10:] + "\n")
    assert [e["event"] for e in tail.read()] == ["finished"]


def test_tail_passes_over_what_is_no_event(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'\xff\xfe\n[1]\n{"step": "a"}\n{"step": "a", "event": "started"}\n')
    assert EventTail(path).read() == [{"step": "a", "event": "started"}]


def test_plan_sets_the_order_and_steps_outside_it_come_last() -> None:
    state = apply_all(
        {"step": "extra", "event": "started"},
        {"step": "run", "event": "plan", "steps": [{"id": "b", "title": "Bee"}, {"id": "a", "title": "Ay"}]},
        {"step": "a", "event": "cached"},
    )
    assert [(s.id, s.title, s.state) for s in state.steps.values()] == [
        ("b", "Bee", "waiting"),
        ("a", "Ay", "cached"),
        ("extra", "Extra", "running"),
    ]


def test_only_changes_of_state_are_returned_and_as_they_were_then() -> None:
    state = RunState()
    started = state.apply({"time": 1.0, "step": "a", "event": "started"})
    progressed = state.apply({"time": 2.0, "step": "a", "event": "progress", "done": 1, "total": 2})
    finished = state.apply({"time": 3.0, "step": "a", "event": "finished", "seconds": 2.0})
    assert progressed is None
    assert started is not None and started.state == "running"
    assert finished is not None and (finished.state, finished.seconds) == ("done", 2.0)


def test_elapsed_counts_from_the_start_and_stops_at_the_end() -> None:
    state = apply_all({"step": "a", "event": "started"})
    assert state.steps["a"].elapsed(130.0) == 30.0
    state.apply({"time": 140.0, "step": "a", "event": "failed", "message": "no", "exit_code": 1})
    assert state.steps["a"].elapsed(999.0) == 40.0


def test_a_repeated_attempt_starts_afresh() -> None:
    state = apply_all(
        {"step": "a", "event": "started"},
        {"step": "a", "event": "progress", "done": 5, "total": 9, "note": "epoch 1"},
        {"step": "a", "event": "failed", "message": "out of memory", "exit_code": 1},
        {"step": "a", "event": "started"},
    )
    step = state.steps["a"]
    assert (step.state, step.done, step.total, step.note, step.message, step.seconds) == ("running", 0, 0, "", "", None)


def test_the_step_at_fault_speaks_before_the_run_and_problems_are_told_once() -> None:
    problem = {"where": "data", "what": "no such file.", "remedy": "Give one."}
    state = apply_all(
        {"step": "a", "event": "failed", "message": "bad data", "problems": [problem], "exit_code": 2},
        {"step": "run", "event": "failed", "message": "step a failed", "problems": [problem], "exit_code": 1},
    )
    assert state.problems == [Problem("data", "no such file.", "Give one.")]
    assert (state.message, state.exit_code) == ("bad data", 2)


def test_close_skips_what_waits_and_settles_what_runs() -> None:
    plan = {"step": "run", "event": "plan", "steps": [{"id": i, "title": i} for i in "abc"]}
    for interrupted, ending in ((False, "failed"), (True, "interrupted")):
        state = apply_all(plan, {"step": "a", "event": "cached"}, {"step": "b", "event": "started"})
        changed = state.close(interrupted=interrupted)
        assert [s.state for s in state.steps.values()] == ["cached", ending, "skipped"]
        assert [s.id for s in changed] == ["b", "c"]


def test_results_of_later_steps_win_in_values() -> None:
    state = apply_all(
        {"step": "register", "event": "result", "values": {"version": "3", "run_id": "x"}},
        {"step": "register", "event": "result", "values": {"reused": True}},
        {"step": "deploy", "event": "result", "values": {"version": "4"}},
    )
    assert state.results["register"] == {"version": "3", "run_id": "x", "reused": True}
    assert state.values == {"version": "4", "run_id": "x", "reused": True}
