"""Runs the pipeline in a process group of its own, and follows what it reports until it ends.

The command line never imports kfp: that takes seconds, and its log lines belong in a file.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from stillhouse.cli.runs import Run
from stillhouse.cli.state import EventTail, RunState, StepState
from stillhouse.progress import EVENTS_VARIABLE
from stillhouse.serving.processes import end_group
from stillhouse.state import HOME_VARIABLE

__all__ = ["Interrupted", "log_excerpt", "pipelines_command", "watch"]

_POLL_SECONDS = 0.1
_GRACE_SECONDS = 5.0
_FAILURE = re.compile(r"Task .* finished with status \S*FAILURE")
"""How kfp.local says that a step failed; the status may be coloured."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """A signal asked the command to stop. By now the run's processes have ended."""

    def __init__(self, signum: int) -> None:
        self.signum = signum
        super().__init__(signal.Signals(signum).name)

    @property
    def exit_code(self) -> int:
        """What a shell reports for a process that this signal ended."""
        return 128 + self.signum


def pipelines_command(*arguments: str) -> list[str]:
    """The command line of the module that knows the pipelines."""
    return [sys.executable, "-m", "stillhouse.pipelines", *arguments]


def watch(
    command: Sequence[str],
    run: Run,
    state: RunState,
    on_update: Callable[[list[StepState]], None],
) -> int:
    """Run `command` to its end, keeping `state` up to date with what its steps report.

    Args:
        command: the pipeline's process. Its output, and that of all it starts, goes to the run's log.
        run: where the log and the events are.
        state: changed in place.
        on_update: called several times a second with the steps whose state changed since the last call.

    Returns:
        The process's exit status.

    Raises:
        Interrupted: on SIGINT, SIGTERM or SIGHUP, once the whole process group has ended.
    """
    environment = os.environ | {
        EVENTS_VARIABLE: str(run.events),
        HOME_VARIABLE: str(run.folder.parent.parent),
        "PYTHONUNBUFFERED": "1",
    }
    tail = EventTail(run.events)

    def take_in() -> list[StepState]:
        changed = [state.apply(event) for event in tail.read()]
        return [step for step in changed if step is not None]

    with _stop_signals() as received, run.log.open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            while True:
                ended = process.poll() is not None
                on_update(take_in())
                if ended:
                    return process.returncode
                if received:
                    raise Interrupted(received[0])
                time.sleep(_POLL_SECONDS)
        finally:
            # Also after an error in the view: no run goes on unseen.
            _end_group(process)
            on_update(take_in())


def log_excerpt(path: Path, lines: int = 40) -> list[str]:
    """The lines of a run's log before the first step that failed; without one, the last lines. Blank ones are left out.

    kfp goes on after a failure with all steps that do not depend on it, and ends with the exit handler, so that the end
    of the log says little.
    """
    kept: deque[str] = deque(maxlen=lines)
    with suppress(OSError), path.open(encoding="utf-8", errors="replace") as log:
        for line in log:
            if text := line.rstrip():
                kept.append(text)
            if _FAILURE.search(line):
                break
    return list(kept)


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect stop signals in a list instead of acting on them at an arbitrary line of code."""
    received: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        received.append(signum)

    if threading.current_thread() is not threading.main_thread():
        yield received  # Only the main thread may set handlers.
        return
    previous: dict[int, Any] = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End the process and all that it started in its group: politely, then for certain."""
    # To all at once: the steps' processes would not hear of it from the leader.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    end_group(process.pid, patience=_GRACE_SECONDS)
