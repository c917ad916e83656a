"""What a step tells those who watch it: started, how far, what came out, how it ended.

With `STILLHOUSE_EVENTS` naming a file, each event is appended to it as one JSON line, which is what the command line's
live view reads; without it (on a cluster), events become log lines. Events are for people: no step reads another's.

An event is `{"time": seconds since the epoch, "step": id, "event": name, …}` with the names

    started    {}
    progress   {"done": int, "total": int, "note": str}
    result     {"values": {…}}            what the final summary shows: paths, figures, the endpoint
    finished   {"seconds": float}
    failed     {"message": str, "problems": [{"where", "what", "remedy"}], "exit_code": int}
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from stillhouse.errors import InputError, StillhouseError

__all__ = ["EVENTS_VARIABLE", "Step", "emit", "step"]

EVENTS_VARIABLE = "STILLHOUSE_EVENTS"
_log = logging.getLogger("stillhouse")


def emit(step_id: str, event: str, **fields: Any) -> None:
    """Append one event to the events file, or log it where there is none."""
    path = os.environ.get(EVENTS_VARIABLE)
    if not path:
        _log.info("%s %s %s", step_id, event, json.dumps(fields, default=str) if fields else "")
        return
    line = json.dumps({"time": time.time(), "step": step_id, "event": event, **fields}, default=str) + "\n"
    # One write of one short line in append mode, so that steps running side by side do not mix.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


class Step:
    """Handle of a running step, passed to library calls that take long."""

    def __init__(self, step_id: str) -> None:
        self.id = step_id
        self._last = 0.0

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Say how far the step is; at most two events a second are kept, and always the last."""
        now = time.monotonic()
        if done >= total or now - self._last >= 0.5:
            self._last = now
            emit(self.id, "progress", done=done, total=total, note=note)

    def result(self, **values: Any) -> None:
        """Record values for the run's summary."""
        emit(self.id, "result", values=values)


@contextmanager
def step(step_id: str) -> Iterator[Step]:
    """Run a step's body: report its start and end, and turn a `StillhouseError` into a clean exit.

    Raises:
        SystemExit: with the error's exit code, after its message went to standard error without a traceback.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    begin = time.monotonic()
    emit(step_id, "started")
    try:
        yield Step(step_id)
    except StillhouseError as error:
        problems = [vars(p) for p in error.problems] if isinstance(error, InputError) else []
        emit(step_id, "failed", message=str(error), problems=problems, exit_code=error.exit_code)
        print(f"{step_id} failed:\n{error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except BaseException as error:
        emit(step_id, "failed", message=f"{type(error).__name__}: {error}", problems=[], exit_code=1)
        raise
    emit(step_id, "finished", seconds=round(time.monotonic() - begin, 3))
