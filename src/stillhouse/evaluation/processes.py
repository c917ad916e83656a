"""Both ends of a worker, a process that measures one model: JSON requests to it, one a line, and replies from it.

A reply is `{"ok": answer}` or `{"error": message}`; before it there may be others, of progress. A worker ends when its
standard input does, so that it never outlives its parent.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stillhouse.errors import ServingError

__all__ = ["Reply", "WorkerProcess", "serve_requests", "worker_processes"]

Reply = Callable[[dict[str, Any]], None]


class WorkerProcess:
    """The parent's end of one worker.

    Args:
        name: for messages.
        module: what is run, with `arguments`.
        arguments: of its command line.
        folder: of its own, where its standard error goes.
        environment: variables beside the parent's.
    """

    def __init__(
        self, name: str, module: str, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]
    ) -> None:
        self.name = name
        self.folder = folder
        self._log = folder / "stderr.log"
        source = Path(__file__).parents[2]
        # The worker must import this very stillhouse, however the parent found it.
        path = os.pathsep.join([str(source), *filter(None, [os.environ.get("PYTHONPATH")])])
        with self._log.open("wb") as log:
            # In the parent's working directory, since a model may be given by a relative path.
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **environment, "PYTHONPATH": path},
                text=True,
                encoding="utf-8",
            )

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        """Send a request and wait for its answer; raises as `follow` does."""
        return [*self.follow(do, **fields)][-1]

    def follow(self, do: str, **fields: Any) -> Iterator[dict[str, Any]]:
        """Send a request and yield its progress replies, then its answer.

        Raises:
            ServingError: the worker reported an error, or died; with the last lines that it wrote.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **fields}) + "\n")
            self._process.stdin.flush()
            for line in self._process.stdout:
                reply: dict[str, Any] = json.loads(line)
                if "error" in reply:
                    raise ServingError(f"{self.name} failed to {do}: {reply['error']}", self._tail())
                if "ok" in reply:
                    yield reply["ok"]
                    return
                yield reply
        except BrokenPipeError:
            pass
        code = self._process.wait()
        ended = f"was killed by signal {-code} (9 often means out of memory)" if code < 0 else f"exited with {code}"
        raise ServingError(f"The process measuring {self.name} {ended} while asked to {do}.", self._tail())

    def _tail(self) -> list[str]:
        return self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:]

    def close(self) -> None:
        """End the worker."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(timeout=10)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


@contextmanager
def worker_processes(
    module: str, arguments: Mapping[str, Sequence[str]], folder: Path, environment: Mapping[str, str]
) -> Iterator[list[WorkerProcess]]:
    """A worker for each name, with its arguments and a folder of its own; ended with the block."""
    started: list[WorkerProcess] = []
    try:
        for index, (name, own) in enumerate(arguments.items()):
            place = folder / str(index)
            place.mkdir()
            started.append(WorkerProcess(name, module, own, place, environment))
        yield started
    finally:
        for process in started:
            process.close()


def serve_requests(answer: Callable[[dict[str, Any], Reply], dict[str, Any]]) -> None:
    """The worker's end: answer what stands on standard input, line by line, until it ends.

    Args:
        answer: given a request, and what sends a reply of progress. What it raises is told to the parent.
    """
    # Whatever a library prints goes to standard error, not between the replies.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(reply: dict[str, Any]) -> None:
        replies.write(json.dumps(reply) + "\n")
        replies.flush()

    while line := sys.stdin.readline():
        try:
            say({"ok": answer(json.loads(line), say)})
        except Exception as error:  # the parent reports it, with what stands in standard error
            say({"error": f"{type(error).__name__}: {' '.join(str(error).split())}"})
