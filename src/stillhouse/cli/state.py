"""What a run looks like so far, worked out from the events that its steps report (see `stillhouse.progress`)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stillhouse.errors import Problem

__all__ = ["RUN", "EventTail", "RunState", "StepState"]

RUN = "run"
"""Step id under which the runner speaks of the run as a whole."""


class EventTail:
    """Reads a growing file of JSON lines, each line once, and never half a line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._rest = b""

    def read(self) -> list[dict[str, Any]]:
        """The events appended since the last call. Lines that are not events are passed over."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        events = []
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and "step" in event and "event" in event:
                events.append(event)
        return events


@dataclass
class StepState:
    """One step, as far as it has been heard of."""

    id: str
    title: str
    state: str = "waiting"
    """`waiting`, `running`, `cached`, `done`, `failed`, `skipped` or `interrupted`."""
    done: int = 0
    total: int = 0
    note: str = ""
    started: float | None = None
    """Seconds since the epoch."""
    seconds: float | None = None
    """How long it took, once it has ended."""
    message: str = ""
    """Why it failed."""

    def elapsed(self, now: float) -> float | None:
        """Seconds that the step took or has been running; None before it started."""
        if self.seconds is not None:
            return self.seconds
        if self.started is None or self.state != "running":
            return None
        return max(0.0, now - self.started)


@dataclass
class RunState:
    """All steps in pipeline order, their results, and how the run ended."""

    steps: dict[str, StepState] = field(default_factory=dict)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Values that each step reported, by step id."""
    message: str = ""
    problems: list[Problem] = field(default_factory=list)
    """What is wrong with the user's input, where that is why the run failed."""
    exit_code: int | None = None
    """What the run reported of itself: 0, or the code of its failure; None when it has said nothing (yet)."""

    def apply(self, event: dict[str, Any]) -> StepState | None:
        """Take one event in; returns a copy of the step whose state it changed, or None."""
        name, kind = event["step"], event["event"]
        if name == RUN:
            self._apply_to_run(kind, event)
            return None
        step = self.steps.setdefault(name, StepState(name, _title(name)))
        before = step.state
        if kind == "started":
            # A repeated attempt starts afresh.
            step.state, step.started, step.seconds = "running", float(event.get("time") or 0.0), None
            step.done, step.total, step.note, step.message = 0, 0, "", ""
        elif kind == "progress":
            step.done, step.total, step.note = int(event["done"]), int(event["total"]), str(event.get("note") or "")
        elif kind == "result":
            self.results.setdefault(name, {}).update(event.get("values") or {})
        elif kind == "cached":
            step.state, step.seconds = "cached", None
        elif kind == "finished":
            step.state, step.seconds = "done", float(event.get("seconds") or 0.0)
        elif kind == "failed":
            step.state, step.message = "failed", str(event.get("message") or "")
            if step.started is not None:
                step.seconds = max(0.0, float(event.get("time") or 0.0) - step.started)
            self._fail(event)
        # A copy, since the next event may follow before anyone has looked.
        return replace(step) if step.state != before else None

    def close(self, *, interrupted: bool = False) -> list[StepState]:
        """Settle every step once no more events can come; returns those whose state changed.

        What still waits was skipped: the pipeline's conditions left it out, or a failure came first. What still runs
        was cut off.
        """
        changed = [step for step in self.steps.values() if step.state in ("waiting", "running")]
        for step in changed:
            cut_off = "interrupted" if interrupted else "failed"
            step.state = "skipped" if step.state == "waiting" else cut_off
        return changed

    @property
    def values(self) -> dict[str, Any]:
        """The results of all steps in one mapping, those of later steps winning."""
        merged: dict[str, Any] = {}
        for values in self.results.values():
            merged.update(values)
        return merged

    @property
    def failed_steps(self) -> list[StepState]:
        """The steps that failed, in pipeline order."""
        return [step for step in self.steps.values() if step.state == "failed"]

    def _apply_to_run(self, kind: str, event: dict[str, Any]) -> None:
        if kind == "plan":
            planned = {s["id"]: StepState(s["id"], s.get("title") or _title(s["id"])) for s in event["steps"]}
            self.steps = planned | {name: step for name, step in self.steps.items() if name not in planned}
        elif kind == "result":
            self.results.setdefault(RUN, {}).update(event.get("values") or {})
        elif kind == "finished":
            self.exit_code = 0
        elif kind == "failed":
            self._fail(event)

    def _fail(self, event: dict[str, Any]) -> None:
        # The step at fault speaks first and knows best; what the runner adds afterwards only fills gaps.
        for fields in event.get("problems") or ():
            problem = Problem(fields["where"], fields["what"], fields.get("remedy") or "")
            if problem not in self.problems:
                self.problems.append(problem)
        self.message = self.message or str(event.get("message") or "")
        self.exit_code = self.exit_code or int(event.get("exit_code") or 1)


def _title(step_id: str) -> str:
    return step_id.replace("-", " ").replace("_", " ").capitalize()
